//! `ps`, `sessions`, `version`: what is there.

use serde_json::{Value, json};

use super::run::is_waiting;
use super::{Context, age, id, keepers, title};
use crate::cli::args::{PsArgs, SessionsArgs, VersionArgs};
use crate::cli::exit::{Exit, Outcome};
use crate::cli::text::{self, Paint};

/// `reattach ps`: an array of sessions, each with its `run` if one is on.
///
/// # Errors
/// What the server or the way to it says.
pub fn ps(args: PsArgs) -> Outcome {
    if args.keepers {
        return keepers::ps(&args);
    }
    let mut context = Context::new(&args.server, args.output)?;
    let runs = context.list("/runs", &[("status", "running")], usize::MAX);
    let runs = runs.map_err(|failure| keepers::unreachable(failure, context.rest.target()))?;
    let mut sessions = Vec::new();
    if args.all {
        sessions = context.list("/sessions", &[("archived", "false")], usize::MAX)?;
    } else {
        for run in &runs {
            let session = run["sessionId"].as_str().unwrap_or_default();
            // A session that was deleted meanwhile runs no more.
            match context.rest.get::<Value>(&format!("/sessions/{session}"), &[]) {
                Ok(session) => sessions.push(session),
                Err(failure) if failure.exit == Exit::NotFound => {}
                Err(failure) => return Err(failure.into()),
            }
        }
    }
    for session in &mut sessions {
        if let Some(run) = runs.iter().find(|run| run["sessionId"] == session["id"]) {
            session["run"] = run.clone();
        }
    }
    let text = if sessions.is_empty() {
        let what = if args.all { "no sessions" } else { "nothing runs" };
        if !context.screen.is_json() {
            context.screen.say(&format!("{what}; to start something: reattach run \"PROMPT\""))?;
        }
        String::new()
    } else {
        table(&sessions)
    };
    context.screen.document(&Value::Array(sessions), &text)?;
    Ok(Exit::Ok)
}

/// `reattach sessions`: an array of sessions, the last changed first.
///
/// # Errors
/// What the server or the way to it says.
pub fn sessions(args: SessionsArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let mut query = vec![("archived", if args.archived { "true" } else { "false" })];
    if let Some(text) = &args.query {
        query.push(("q", text.as_str()));
    }
    let sessions = context.list("/sessions", &query, args.limit.unwrap_or(usize::MAX))?;
    if sessions.is_empty() && !context.screen.is_json() {
        context.screen.say("no sessions; to start one: reattach run \"PROMPT\"")?;
    }
    let text = if sessions.is_empty() { String::new() } else { table(&sessions) };
    context.screen.document(&Value::Array(sessions), &text)?;
    Ok(Exit::Ok)
}

fn table(sessions: &[Value]) -> String {
    let rows: Vec<Vec<String>> = sessions
        .iter()
        .map(|session| {
            let state = match (is_waiting(session), session["running"] == true) {
                (true, _) => "waiting",
                (false, true) if session["lastRunOrigin"] == "agent" => "running by itself",
                (false, true) => "running",
                (false, false) if session["archived"] == true => "archived",
                (false, false) => "idle",
            };
            let since = match &session["run"]["startedAt"] {
                Value::Null => &session["updatedAt"],
                started => started,
            };
            let cell =
                |name: &str| text::clean(session[name].as_str().unwrap_or_default(), Paint::Plain);
            vec![
                id(session),
                state.to_owned(),
                cell("provider"),
                age(since),
                cell("projectPath"),
                title(session),
            ]
        })
        .collect();
    text::table(&["SESSION", "STATE", "AGENT", "AGE", "PROJECT", "TITLE"], &rows)
}

/// `reattach version`: ours, and the server's if one runs.
///
/// # Errors
/// If a server answers with something else than its version.
pub fn version(args: VersionArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let ours = env!("CARGO_PKG_VERSION");
    let server: Option<Value> = match context.rest.get_at("/version", &[]) {
        Ok(server) => Some(server),
        // Asking for the version must not fail for want of a server that nobody named.
        Err(failure) if failure.exit == Exit::Unreachable && args.server.server.is_none() => None,
        Err(failure) => return Err(failure.into()),
    };
    let mut text = format!("reattach {ours}\n");
    if let Some(theirs) = server.as_ref().and_then(|server| server["version"].as_str()) {
        text.push_str(&format!("server {}\n", text::clean(theirs, Paint::Plain)));
    }
    context.screen.document(&json!({"version": ours, "server": server}), &text)?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_goes_on_by_itself_is_seen() {
        let of = |origin: &str, running: bool| {
            table(&[json!({"id": "s", "running": running, "lastRunOrigin": origin})])
        };
        assert!(of("agent", true).contains("running by itself"));
        assert!(!of("user", true).contains("by itself"));
        assert!(of("agent", false).contains("idle"));
    }

    #[test]
    fn a_session_that_waits_says_so_before_that_it_runs() {
        let of = |waiting: Value| {
            table(&[json!({"id": "s", "running": true, "waiting": waiting, "provider": "demo",
                "projectPath": "/w", "title": "t"})])
        };
        for waiting in [json!(true), json!(2)] {
            assert!(of(waiting).contains("waiting"), "who needs you comes first");
        }
        for waiting in [json!(false), json!(0), Value::Null] {
            assert!(of(waiting).contains("running"), "nobody waits");
        }
    }
}
