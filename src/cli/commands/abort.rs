//! `abort`: stops one session's run, or every run that is on.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Context, keepers, string};
use crate::cli::args::AbortArgs;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::follow::{Begin, Follow, Mark};
use crate::cli::text;
use crate::cli::watch::{CtrlC, Options, Until, Watch};

/// `reattach abort`.
///
/// # Errors
/// What the server or the way to it says.
pub fn abort(args: &AbortArgs) -> Outcome {
    match &args.session {
        Some(session) => one(args, session),
        None => all(args),
    }
}

fn one(args: &AbortArgs, named: &str) -> Outcome {
    let begun = Instant::now();
    let mut context = Context::new(&args.server, args.output)?;
    let session = context.session(named)?;
    let session_id = string(&session, "id")?;
    let Some(run) = session["lastRunId"].as_str() else {
        return Err(nothing_to_abort(&session_id).into());
    };
    ask(&context, run)?;
    if !args.wait {
        let answer = json!({"sessionId": session_id, "runId": run, "state": "stopping"});
        context.screen.document(&answer, "stopping\n")?;
        return Ok(Exit::Ok);
    }
    if !context.screen.is_json() {
        context.screen.say("stopping...")?;
    }
    let exit = wait_for_end(&mut context, &session_id, run, deadline(args, begun))?;
    if exit == Exit::TimedOut {
        return Ok(exit);
    }
    let ended: Value = context.rest.get(&format!("/runs/{run}"), &[])?;
    if ended["status"] != "completed" {
        // Somebody pressed Ctrl-C: it stops without us.
        return Ok(exit);
    }
    let how = match ended["reason"].as_str() {
        Some("aborted") => format!("stopped ({})\n", since(begun)),
        reason => format!("it had ended by itself: {}\n", reason.unwrap_or("unknown")),
    };
    let mut answer = json!({"sessionId": session_id, "runId": run, "state": "stopped"});
    answer["run"] = ended;
    context.screen.document(&answer, &how)?;
    Ok(Exit::Ok)
}

/// Every run that is on when this is called. That none is on is what was wished for.
fn all(args: &AbortArgs) -> Outcome {
    let begun = Instant::now();
    let mut context = Context::new(&args.server, args.output)?;
    let running = context.list("/runs", &[("status", "running")], usize::MAX);
    let running =
        running.map_err(|failure| keepers::unreachable(failure, context.rest.target()))?;
    let mut stopping = Vec::new();
    let mut refused = None;
    for run in &running {
        let (id, session) = (string(run, "id")?, string(run, "sessionId")?);
        match ask(&context, &id) {
            Ok(()) => {
                stopping.push(json!({"sessionId": session, "runId": id, "state": "stopping"}));
            }
            // It has ended by itself meanwhile.
            Err(failure) if failure.code == "NO_ACTIVE_RUN" => {}
            // One that cannot be stopped keeps none of the others running.
            Err(failure) => {
                refused.get_or_insert(failure);
            }
        }
    }
    let mut exit = Exit::Ok;
    if args.wait {
        exit = wait_for_all(&mut context, args, begun, &mut stopping)?;
    }
    let done = args.wait && stopping.iter().all(|entry| entry["state"] == "stopped");
    let text = match (stopping.len(), done) {
        (0, _) => "nothing runs\n".to_owned(),
        (count, false) => format!("stopping {}\n", runs(count)),
        (count, true) => format!("stopped {} ({})\n", runs(count), since(begun)),
    };
    let state = if done { "stopped" } else { "stopping" };
    context.screen.document(&json!({"state": state, "runs": stopping}), &text)?;
    match refused {
        Some(failure) => Err(failure.into()),
        None => Ok(exit),
    }
}

/// Waits for the end of each; what has ended says so in its entry of `stopping`.
fn wait_for_all(
    context: &mut Context,
    args: &AbortArgs,
    begun: Instant,
    stopping: &mut [Value],
) -> Outcome {
    if !context.screen.is_json() && !stopping.is_empty() {
        context.screen.say(&format!("stopping {}...", runs(stopping.len())))?;
    }
    for entry in stopping {
        let (session, run) = (string(entry, "sessionId")?, string(entry, "runId")?);
        let exit = wait_for_end(context, &session, &run, deadline(args, begun))?;
        let ended: Value = context.rest.get(&format!("/runs/{run}"), &[])?;
        if ended["status"] != "completed" {
            // Time is over, or somebody pressed Ctrl-C: they stop without us.
            return Ok(exit);
        }
        entry["state"] = "stopped".into();
        entry["run"] = ended;
    }
    Ok(Exit::Ok)
}

/// Asks for the end of a run. Repeatable: it names the run, so a second one stops no other.
fn ask(context: &Context, run: &str) -> Result<(), Failure> {
    let _: Value = context.rest.post_repeatable(&format!("/runs/{run}/abort"), &json!({}))?;
    Ok(())
}

fn runs(count: usize) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

fn since(begun: Instant) -> String {
    text::duration(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX))
}

fn deadline(args: &AbortArgs, begun: Instant) -> Option<Instant> {
    args.timeout.and_then(|timeout| begun.checked_add(timeout))
}

fn nothing_to_abort(session: &str) -> Failure {
    Failure::new(
        Exit::Conflict,
        "NO_ACTIVE_RUN",
        format!("session {session} has no run"),
        "reattach ps",
    )
}

fn wait_for_end(
    context: &mut Context,
    session: &str,
    run: &str,
    deadline: Option<Instant>,
) -> Outcome {
    let state: Value = context.rest.get(&format!("/runs/{run}"), &[])?;
    if state["status"] == "completed" {
        return Ok(Exit::Ok);
    }
    // What was said before is of no interest here, only the end.
    let seen = Mark { run: run.to_owned(), seq: state["lastSeq"].as_u64().unwrap_or(0) };
    let options = Options {
        until: Until::Complete(run.to_owned()),
        ctrl_c: CtrlC::Detach,
        no_input: false,
        deadline,
        quiet: true,
    };
    let follow = Follow::new(session, Begin::After(seen));
    Watch::new(&context.rest, &mut context.screen, follow, options)?.run()
}
