//! `token` and `devices`: who may come in.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::pair::ScopeArg;
use super::{Context, age, segment};
use crate::cli::args::{OutputArgs, ServerArgs, parse_duration};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::text::{self, Paint};

/// `reattach token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for a program, and print it: this once.
    Create(CreateArgs),
    /// List tokens, without their secrets.
    List(ListArgs),
    /// Revoke tokens: what they hold open is closed.
    Revoke(RevokeArgs),
}

/// `reattach devices`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevicesArgs {
    /// What to do; if nothing is said, list.
    #[command(subcommand)]
    pub command: Option<DevicesCommand>,
    /// How to list.
    #[command(flatten)]
    pub list: ListArgs,
}

/// What can be done with devices.
#[derive(Debug, Subcommand)]
pub enum DevicesCommand {
    /// List the browsers that have logged in.
    List(ListArgs),
    /// Log browsers out: what they hold open is closed.
    Revoke(RevokeArgs),
}

/// `reattach token create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What it is called in lists and in the record of who did what
    pub name: String,
    /// What it may do
    #[arg(long, value_enum, default_value_t = ScopeArg::Control)]
    pub scope: ScopeArg,
    /// How long it lasts (`12h`, `30d`) [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub expires: Option<Duration>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What is to be revoked.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Which: a name, an id, or the beginning of one
    #[arg(required_unless_present = "all")]
    pub names: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl TokenArgs {
    /// Whether errors are to be printed as JSON.
    #[must_use]
    pub const fn json(&self) -> bool {
        match &self.command {
            TokenCommand::Create(args) => args.output.json,
            TokenCommand::List(args) => args.output.json,
            TokenCommand::Revoke(args) => args.output.json,
        }
    }
}

impl DevicesArgs {
    /// Whether errors are to be printed as JSON.
    #[must_use]
    pub const fn json(&self) -> bool {
        match &self.command {
            Some(DevicesCommand::List(args)) => args.output.json,
            Some(DevicesCommand::Revoke(args)) => args.output.json,
            None => self.list.output.json,
        }
    }
}

/// What is listed or revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Token,
    Device,
}

impl Sort {
    const fn word(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Device => "device",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Token => "/tokens",
            Self::Device => "/devices",
        }
    }

    const fn list_command(self) -> &'static str {
        match self {
            Self::Token => "reattach token list",
            Self::Device => "reattach devices",
        }
    }
}

/// `reattach token`.
///
/// # Errors
/// What the server or the way to it says.
pub fn token(args: &TokenArgs) -> Outcome {
    match &args.command {
        TokenCommand::Create(args) => create(args),
        TokenCommand::List(args) => list(Sort::Token, args),
        TokenCommand::Revoke(args) => revoke(Sort::Token, args),
    }
}

/// `reattach devices`.
///
/// # Errors
/// What the server or the way to it says.
pub fn devices(args: &DevicesArgs) -> Outcome {
    match &args.command {
        Some(DevicesCommand::Revoke(args)) => revoke(Sort::Device, args),
        Some(DevicesCommand::List(args)) => list(Sort::Device, args),
        None => list(Sort::Device, &args.list),
    }
}

fn create(args: &CreateArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let expires = args.expires.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let body = json!({"name": args.name, "scope": args.scope.word(), "expiresInMs": expires});
    let made: Value = context.rest.post("/tokens", &body)?;
    let token = text::clean(&super::string(&made, "token")?, Paint::Plain);
    // The token alone, so that a script can take it.
    context.screen.document(&made, &format!("{token}\n"))?;
    if !context.screen.is_json() {
        let end = match made["expiresAt"].as_str() {
            Some(at) => format!("until {}", time(at)),
            None => "until it is revoked".to_owned(),
        };
        let scope = args.scope.word();
        context.screen.say(&format!(
            "it is shown this once; scope {scope}, {end}. As REATTACH_TOKEN it opens --server URL"
        ))?;
    }
    Ok(Exit::Ok)
}

fn list(sort: Sort, args: &ListArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let found = all(&context, sort)?;
    if found.is_empty() && !context.screen.is_json() {
        let hint = match sort {
            Sort::Token => "no tokens; to make one: reattach token create NAME",
            Sort::Device => "no devices; to let one in: reattach open, or reattach pair",
        };
        context.screen.say(hint)?;
    }
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    let head = ["ID", "NAME", "SCOPE", "USED", "CREATED", "EXPIRES"];
    let text = if rows.is_empty() { String::new() } else { text::table(&head, &rows) };
    context.screen.document(&Value::Array(found), &text)?;
    Ok(Exit::Ok)
}

fn row(one: &Value) -> Vec<String> {
    let cell = |name: &str| text::clean(one[name].as_str().unwrap_or_default(), Paint::Plain);
    let used = match &one["lastUsedAt"] {
        Value::Null => "never".to_owned(),
        at => format!("{} ago", age(at)),
    };
    let expires = one["expiresAt"].as_str().map_or_else(|| "never".to_owned(), time);
    vec![cell("id"), cell("name"), cell("scope"), used, time(&cell("createdAt")), expires]
}

fn revoke(sort: Sort, args: &RevokeArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let all = all(&context, sort)?;
    let mut chosen: Vec<&Value> = Vec::new();
    if args.all {
        chosen.extend(&all);
    }
    for name in &args.names {
        let one = pick(sort, &all, name)?;
        if !chosen.contains(&one) {
            chosen.push(one);
        }
    }
    for one in &chosen {
        let id = one["id"].as_str().unwrap_or_default();
        let path = format!("{}/{}", sort.path(), segment(id));
        match context.rest.delete::<Value>(&path) {
            Ok(_) => {}
            // It went with one that came before it.
            Err(failure) if failure.exit == Exit::NotFound => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    if !context.screen.is_json() {
        for one in &chosen {
            let name = text::clean(one["name"].as_str().unwrap_or_default(), Paint::Plain);
            context.screen.say(&format!("revoked: {} \"{name}\"", sort.word()))?;
        }
        if chosen.is_empty() {
            context.screen.say(&format!("there is no {} to revoke", sort.word()))?;
        }
    }
    let revoked: Vec<Value> = chosen.into_iter().cloned().collect();
    context.screen.document(&Value::Array(revoked), "")?;
    Ok(Exit::Ok)
}

fn all(context: &Context, sort: Sort) -> Result<Vec<Value>, Failure> {
    context.list(sort.path(), &[], usize::MAX)
}

/// By id, by name, or by the beginning of the id.
fn pick<'a>(sort: Sort, all: &'a [Value], named: &str) -> Result<&'a Value, Failure> {
    let id = |one: &Value| one["id"].as_str().unwrap_or_default().to_owned();
    if let Some(one) = all.iter().find(|one| id(one) == named) {
        return Ok(one);
    }
    let mut found: Vec<&Value> = all.iter().filter(|one| one["name"] == named).collect();
    if found.is_empty() && !named.is_empty() {
        found = all.iter().filter(|one| id(one).starts_with(named)).collect();
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::new(
            Exit::NotFound,
            match sort {
                Sort::Token => "TOKEN_NOT_FOUND",
                Sort::Device => "DEVICE_NOT_FOUND",
            },
            format!("no {} is called `{named}`", sort.word()),
            sort.list_command(),
        )),
        several => {
            let ids: Vec<String> = several.iter().map(|one| id(one)).collect();
            Err(Failure::new(
                Exit::Usage,
                "AMBIGUOUS",
                format!("`{named}` can mean {}", ids.join(" or ")),
                "the same command with one of these ids",
            ))
        }
    }
}

/// A time to the minute, in UTC.
fn time(iso: &str) -> String {
    let minute: String = iso.chars().take("2026-01-02T03:04".len()).collect();
    text::clean(&minute.replace('T', " "), Paint::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_what_people_say() {
        let all = [("ab12", "phone"), ("ab34", "tv"), ("cd56", "tv"), ("ef78", "ab12")]
            .map(|(id, name)| json!({"id": id, "name": name}));
        let found = |named: &str| match pick(Sort::Device, &all, named) {
            Ok(one) => one["id"].as_str().unwrap_or_default().to_owned(),
            Err(failure) => failure.code,
        };
        for (named, id) in [
            ("ab12", "ab12"),
            ("phone", "ab12"),
            ("tv", "AMBIGUOUS"),
            ("ab", "AMBIGUOUS"),
            ("ab3", "ab34"),
            ("nobody", "DEVICE_NOT_FOUND"),
            ("", "DEVICE_NOT_FOUND"),
        ] {
            assert_eq!(found(named), id, "{named:?}");
        }
    }
}
