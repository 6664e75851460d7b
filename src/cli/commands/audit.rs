//! `audit`: who did what that matters later. Must not know how the trail comes about.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Context, age};
use crate::cli::args::{OutputArgs, ServerArgs, parse_duration};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::text::{self, Paint};

/// `reattach audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only what was done in this time: 30m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Only this, `permission_answered` say
    #[arg(long, value_name = "WORD")]
    pub what: Option<String>,
    /// Only in this session; one that is deleted by its whole id
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,
    /// At most this many, the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach audit`: an array of what was done, the newest first.
///
/// # Errors
/// What the server or the way to it says.
pub fn audit(args: &AuditArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let since = args.since.map(before_now).transpose()?;
    let session = args.session.as_deref().map(|named| session(&context, named)).transpose()?;
    let mut query = Vec::new();
    for (name, value) in [("since", &since), ("what", &args.what), ("session", &session)] {
        if let Some(value) = value {
            query.push((name, value.as_str()));
        }
    }
    let rows = context.list("/audit", &query, args.limit)?;
    if rows.is_empty() && !context.screen.is_json() {
        context.screen.say("nothing was done")?;
    }
    let text = if rows.is_empty() { String::new() } else { table(&rows) };
    context.screen.document(&Value::Array(rows), &text)?;
    Ok(Exit::Ok)
}

/// The id of a session, whether it is there or not.
fn session(context: &Context, named: &str) -> Result<String, Failure> {
    if named.parse::<uuid::Uuid>().is_ok() {
        return Ok(named.to_owned());
    }
    super::string(&context.session(named)?, "id")
}

fn before_now(span: Duration) -> Result<String, Failure> {
    let then = jiff::Timestamp::now().checked_sub(span);
    then.map(|then| then.to_string()).map_err(|_| {
        let message = "--since reaches back before all times";
        Failure::new(Exit::Usage, "USAGE", message, "the same command with less")
    })
}

fn table(rows: &[Value]) -> String {
    let cell = |value: &Value| text::clean(value.as_str().unwrap_or_default(), Paint::Plain);
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let by = match &row["by"] {
                Value::Null => String::new(),
                by => format!("{} {}", cell(&by["kind"]), cell(&by["name"])),
            };
            let session = cell(&row["sessionId"]).chars().take(8).collect();
            let detail = text::clean(&row["detail"].to_string(), Paint::Plain);
            let detail = text::one_line(&detail, 100);
            vec![cell(&row["at"]), age(&row["at"]), cell(&row["what"]), by, session, detail]
        })
        .collect();
    text::table(&["AT", "AGE", "WHAT", "BY", "SESSION", "DETAIL"], &rows)
}
