//! `queue`: the prompts that wait in a session.

use clap::Args;
use serde_json::{Value, json};

use super::{Context, age, segment, string};
use crate::cli::args::{OutputArgs, ServerArgs};
use crate::cli::exit::{Exit, Outcome};
use crate::cli::text::{self, Paint};

/// `reattach queue`.
#[derive(Debug, Args)]
pub struct QueueArgs {
    /// The session
    pub session: String,
    /// Take this prompt out; may be given several times
    #[arg(long, value_name = "QUEUE_ID", conflicts_with = "resume")]
    pub remove: Vec<String>,
    /// Go on with what an abort held
    #[arg(long)]
    pub resume: bool,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Lists what waits, after it was changed as asked.
///
/// # Errors
/// What the server or the way to it says; `Exit::NotFound` if a prompt does not wait (any more).
pub fn queue(args: &QueueArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let session = string(&context.session(&args.session)?, "id")?;
    let path = format!("/sessions/{session}/queue");
    for id in &args.remove {
        context.rest.delete::<Value>(&format!("{path}/{}", segment(id)))?;
    }
    if args.resume {
        context.rest.post::<Value>(&format!("{path}/resume"), &json!({}))?;
    }
    let listed: Value = context.rest.get(&path, &[])?;
    let shown = shown(&listed);
    context.screen.document(&listed, &shown)?;
    if !context.screen.is_json() {
        let flags = context.rest.target().flags();
        if shown.is_empty() {
            context.screen.say("nothing waits")?;
        }
        if listed["held"] == true {
            context.screen.say(&format!(
                "held after an abort; to go on: reattach queue {session} --resume{flags}"
            ))?;
        }
    }
    Ok(Exit::Ok)
}

/// One line for each prompt.
fn shown(listed: &Value) -> String {
    let items = listed["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |item: &Value| {
        let content = item["content"].as_str().unwrap_or_default();
        let joined = content.split_whitespace().collect::<Vec<_>>().join(" ");
        let first: String = joined.chars().take(60).collect();
        let (id, since) = (item["queueId"].as_str().unwrap_or_default(), age(&item["queuedAt"]));
        let line = format!("{:>2}  {id}  {since:>4}  {first}", item["position"]);
        format!("{}\n", text::clean(&line, Paint::Plain))
    };
    items.iter().map(line).collect()
}
