//! `run`, `send`, `attach`: what starts and watches runs.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Context, string};
use crate::cli::args::{AttachArgs, AttachFrom, RunArgs, SendArgs, WatchArgs};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::follow::{Begin, Follow, Mark};
use crate::cli::watch::{CtrlC, Options, Until, Watch};

/// `reattach run`.
///
/// # Errors
/// What the server or the way to it says.
pub fn run(args: RunArgs) -> Outcome {
    let deadline = deadline(args.watch);
    let mut context = Context::new(&args.server, args.output)?;
    let content = prompt(args.prompt)?;
    let mut options: Map<String, Value> = args.options.into_iter().collect();
    if let Some(model) = args.model {
        options.insert("model".into(), Value::from(model));
    }
    let mut body = json!({"provider": args.agent, "projectPath": directory(args.cwd)?});
    if let Some(title) = args.title {
        body["title"] = Value::from(title);
    }
    let session: Value = context.rest.post("/sessions", &body)?;
    let session = string(&session, "id")?;
    context.screen.say(&format!("session {session}"))?;
    let message_id = Uuid::new_v4().to_string();
    let accepted = accept(&context, &session, &content, &options, &message_id, "refuse")?;
    if args.detach {
        return acknowledge(&mut context, &session, &accepted);
    }
    watch_run(&mut context, &session, &accepted, args.watch, deadline)
}

/// `reattach send`.
///
/// # Errors
/// What the server or the way to it says.
pub fn send(args: SendArgs) -> Outcome {
    let deadline = deadline(args.watch);
    let mut context = Context::new(&args.server, args.output)?;
    let content = prompt(args.text)?;
    let session = string(&context.session(&args.session)?, "id")?;
    let options = args.options.into_iter().collect();
    let message_id = args.message_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    let when_busy = if args.queue { "queue" } else { "refuse" };
    let accepted = accept(&context, &session, &content, &options, &message_id, when_busy)?;
    if args.wait && accepted["runId"].is_string() {
        return watch_run(&mut context, &session, &accepted, args.watch, deadline);
    }
    acknowledge(&mut context, &session, &accepted)
}

/// `reattach attach`.
///
/// # Errors
/// What the server or the way to it says.
pub fn attach(args: AttachArgs) -> Outcome {
    let deadline = deadline(args.watch);
    let mut context = Context::new(&args.server, args.output)?;
    let session = match &args.session {
        Some(named) => context.session(named)?,
        None => the_one_that_matters(&context)?,
    };
    let session = string(&session, "id")?;
    if args.session.is_none() {
        context.screen.say(&format!("session {session}"))?;
    }
    let begin = match (args.since, args.from) {
        (Some(since), _) => Begin::After(Mark { run: since.run, seq: since.seq }),
        (None, AttachFrom::Start) => Begin::Start,
        (None, AttachFrom::Tail) => Begin::Tail,
    };
    let options = Options {
        until: if args.until_complete { Until::Idle } else { Until::Detached },
        ctrl_c: CtrlC::Detach,
        no_input: args.watch.no_input,
        deadline,
        quiet: false,
    };
    let follow = Follow::new(session, begin);
    Watch::new(&context.rest, &mut context.screen, follow, options)?.run()
}

/// Sends a prompt. Its id makes it harmless to send it again when the answer was lost.
fn accept(
    context: &Context,
    session: &str,
    content: &str,
    options: &Map<String, Value>,
    message_id: &str,
    when_busy: &str,
) -> Result<Value, Failure> {
    let body = json!({
        "content": content, "options": options, "clientMessageId": message_id,
        "whenBusy": when_busy,
    });
    let accepted = context.rest.post_repeatable(&format!("/sessions/{session}/runs"), &body);
    accepted.map_err(|mut failure| {
        // The server's advice names no session; here it is known.
        failure.next = failure.next.replace("SESSION", session);
        if failure.code == "RUN_IN_PROGRESS" && goes_on_by_itself(context, session) {
            failure.message = format!(
                "the agent of session {session} is going on by itself, since work of its own in \
                 the background has reported; nothing was sent"
            );
        }
        failure
    })
}

/// Whether what runs in the session is a run that the agent began.
fn goes_on_by_itself(context: &Context, session: &str) -> bool {
    // Without an answer the server's own words do.
    let session = context.rest.get::<Value>(&format!("/sessions/{session}"), &[]);
    session.is_ok_and(|session| session["running"] == true && session["lastRunOrigin"] == "agent")
}

fn acknowledge(context: &mut Context, session: &str, accepted: &Value) -> Outcome {
    if accepted["queueId"].is_string() {
        return acknowledge_queued(context, session, accepted);
    }
    let run = string(accepted, "runId")?;
    let flags = context.rest.target().flags();
    let duplicate = accepted["duplicate"] == true;
    let answer = json!({"sessionId": session, "runId": run, "duplicate": duplicate});
    let text = format!("run {run}{}\n", if duplicate { " (sent before)" } else { "" });
    context.screen.document(&answer, &text)?;
    if !context.screen.is_json() {
        context.screen.say(&format!("to watch it: reattach attach {session}{flags}"))?;
    }
    Ok(Exit::Ok)
}

fn acknowledge_queued(context: &mut Context, session: &str, accepted: &Value) -> Outcome {
    let (id, position) = (string(accepted, "queueId")?, &accepted["position"]);
    let flags = context.rest.target().flags();
    let mut answer = accepted.clone();
    answer["sessionId"] = json!(session);
    let before = if accepted["duplicate"] == true { " (sent before)" } else { "" };
    context.screen.document(&answer, &format!("queued {id}, place {position}{before}\n"))?;
    if !context.screen.is_json() {
        context.screen.say(&format!("to see what waits: reattach queue {session}{flags}"))?;
    }
    Ok(Exit::Ok)
}

fn watch_run(
    context: &mut Context,
    session: &str,
    accepted: &Value,
    watch: WatchArgs,
    deadline: Option<Instant>,
) -> Outcome {
    let run = string(accepted, "runId")?;
    let options = Options {
        until: Until::Complete(run.clone()),
        ctrl_c: CtrlC::AbortThenDetach,
        no_input: watch.no_input,
        deadline,
        quiet: false,
    };
    let follow = Follow::new(session, Begin::Run(run));
    Watch::new(&context.rest, &mut context.screen, follow, options)?.run()
}

/// The session that needs somebody, else the one that runs, else the last.
fn the_one_that_matters(context: &Context) -> Result<Value, Failure> {
    let sessions = context.list("/sessions", &[("archived", "false")], usize::MAX)?;
    let rank = |session: &&Value| {
        let updated = session["updatedAt"].as_str().unwrap_or_default().to_owned();
        (is_waiting(session), session["running"] == true, updated)
    };
    sessions.iter().max_by_key(rank).cloned().ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            "SESSION_NOT_FOUND",
            "there is no session yet",
            "reattach run \"PROMPT\"",
        )
    })
}

/// Whether a session waits for somebody.
#[must_use]
pub fn is_waiting(session: &Value) -> bool {
    match &session["waiting"] {
        Value::Bool(waiting) => *waiting,
        Value::Number(count) => count.as_u64() != Some(0),
        Value::Array(waiting) => !waiting.is_empty(),
        _ => false,
    }
}

fn deadline(watch: WatchArgs) -> Option<Instant> {
    watch.timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// A prompt, from stdin if it is `-`.
fn prompt(given: String) -> Result<String, Failure> {
    let text = if given == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| {
            Failure::usage(
                format!("cannot read the prompt from stdin: {error}"),
                "echo \"PROMPT\" | reattach run -",
            )
        })?;
        text
    } else {
        given
    };
    if text.trim().is_empty() {
        return Err(Failure::usage("the prompt is empty", "reattach run \"PROMPT\""));
    }
    Ok(text)
}

/// The directory to work in, absolute and without links where this machine knows it.
fn directory(given: Option<PathBuf>) -> Result<String, Failure> {
    let given = given.unwrap_or_else(|| PathBuf::from("."));
    let path = match std::fs::canonicalize(&given) {
        Ok(path) => path,
        // The server may be elsewhere, and know it.
        Err(_) if given.is_absolute() => given,
        Err(error) => {
            return Err(Failure::usage(
                format!("{}: {error}", given.display()),
                "--cwd DIR with a directory that exists",
            ));
        }
    };
    utf8(&path)
}

/// A path as JSON can say it.
///
/// # Errors
/// If it is not UTF-8.
pub fn utf8(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::usage(
            format!("{}: the name is not UTF-8, which the protocol needs", path.display()),
            "a directory with another name",
        )
    })
}
