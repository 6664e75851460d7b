//! `notify`: what became of notifications, and tests of the sinks.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Context, age, id};
use crate::cli::args::{OutputArgs, ServerArgs};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::text::{self, Paint};

/// `reattach notify`.
#[derive(Debug, Args)]
pub struct NotifyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: NotifyCommand,
}

/// What `notify` can do.
#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// List what became of notifications, the newest first.
    List(NotifyListArgs),
    /// Send a test to each sink, or to one, and say how each went.
    Test(NotifyTestArgs),
}

/// `reattach notify list`.
#[derive(Debug, Args)]
pub struct NotifyListArgs {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach notify test`.
#[derive(Debug, Args)]
pub struct NotifyTestArgs {
    /// The sink's name in the configuration
    pub sink: Option<String>,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl NotifyArgs {
    /// Whether programs read the output.
    #[must_use]
    pub const fn json(&self) -> bool {
        match &self.command {
            NotifyCommand::List(args) => args.output.json,
            NotifyCommand::Test(args) => args.output.json,
        }
    }
}

/// `reattach notify list` and `reattach notify test`.
///
/// # Errors
/// What the server or the way to it says.
pub fn notify(args: NotifyArgs) -> Outcome {
    match args.command {
        NotifyCommand::List(args) => list(&args),
        NotifyCommand::Test(args) => test(args),
    }
}

fn list(args: &NotifyListArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let items = context.list("/notifications", &[], args.limit)?;
    if items.is_empty() && !context.screen.is_json() {
        context
            .screen
            .say("nothing was notified yet; to see whether it works: reattach notify test")?;
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            vec![
                age(&item["at"]),
                word(&item["event"]),
                word(&item["sink"]),
                word(&item["outcome"]),
                if item["sessionId"].is_null() { "-".to_owned() } else { id(&item["sessionId"]) },
                word(&item["detail"]),
            ]
        })
        .collect();
    let head = ["AGE", "EVENT", "SINK", "OUTCOME", "SESSION", "DETAIL"];
    let text = if items.is_empty() { String::new() } else { text::table(&head, &rows) };
    context.screen.document(&Value::Array(items), &text)?;
    Ok(Exit::Ok)
}

fn test(args: NotifyTestArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let body = args.sink.map_or_else(|| json!({}), |sink| json!({ "sink": sink }));
    let answer: Value = context.rest.post("/notifications/test", &body)?;
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    if items.is_empty() {
        return Err(Failure::new(
            Exit::Failure,
            "NO_SINK",
            "nobody would be told: no sink is configured",
            "write [notify.NAME] into the server's config.toml and start it again; \
             docs/notifications.md",
        )
        .into());
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| ["sink", "kind", "outcome", "detail"].map(|key| word(&item[key])).to_vec())
        .collect();
    let all = items.iter().all(|item| item["outcome"] == "sent");
    let text = text::table(&["SINK", "KIND", "OUTCOME", "DETAIL"], &rows);
    context.screen.document(&Value::Array(items), &text)?;
    Ok(if all { Exit::Ok } else { Exit::Failure })
}

fn word(value: &Value) -> String {
    let text = value.as_str().unwrap_or("-");
    text::one_line(&text::clean(text, Paint::Plain), 160)
}
