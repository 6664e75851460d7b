//! Runs: started, listed, shown, aborted.

use http::StatusCode;
use serde_json::json;

use crate::protocol::message::{ErrorCode, Prompt, run_id};
use crate::registry::{AcceptedToQueue, SendPrompt, Sent};
use crate::server::api::{Call, Outcome, Problem, listed};
use crate::server::http::response::Response;
use crate::server::view;
use crate::store::{RunFilter, RunStatus, RunSummary};

pub(super) fn of_session(call: &Call<'_>, named: &str) -> Outcome {
    let session = Some(call.session(named)?.row.id);
    page(call, RunFilter { session, status: status(call)? })
}

pub(super) fn list(call: &Call<'_>) -> Outcome {
    page(call, RunFilter { session: None, status: status(call)? })
}

pub(super) fn start(call: &Call<'_>, named: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let prompt = Prompt::read(&mut call.fields()?)?;
    let Prompt { content, options, client_message_id, when_busy } = prompt;
    let by = call.by.clone();
    let prompt = SendPrompt { session, content, options, client_message_id, when_busy, by };
    let (pending, body) = match call.api.registry.send(prompt, call.now)? {
        Sent::Run(run) => (run.pending, json!({ "runId": run.run, "duplicate": run.duplicate })),
        Sent::Queued(queued) => {
            let AcceptedToQueue { id, position, duplicate, pending, .. } = queued;
            let body = json!({ "queueId": id, "position": position, "duplicate": duplicate });
            (pending, body)
        }
    };
    call.commit(&pending)?;
    Ok(Response::json(StatusCode::ACCEPTED, &body))
}

pub(super) fn show(call: &Call<'_>, named: &str) -> Outcome {
    Ok(Response::json(StatusCode::OK, &view::run(&find(call, named)?)))
}

pub(super) fn abort(call: &Call<'_>, named: &str) -> Outcome {
    let run = find(call, named)?;
    let aborting = call.api.registry.abort(run.session, Some(run.id), &call.by, call.now)?;
    call.commit(&aborting.pending)?;
    Ok(Response::json(StatusCode::ACCEPTED, &json!({ "runId": aborting.run })))
}

pub(super) fn find(call: &Call<'_>, named: &str) -> Result<RunSummary, Problem> {
    call.api.readers.run(run_id(named))?.ok_or_else(|| {
        let message = "There is no such run.";
        Problem::of(ErrorCode::RunNotFound, message)
    })
}

fn page(call: &Call<'_>, filter: RunFilter) -> Outcome {
    let limit = call.query.limit()?;
    let page = call.api.readers.runs(&filter, limit, call.query.get("cursor"))?;
    Ok(listed(page.items.iter().map(view::run).collect(), page.next))
}

fn status(call: &Call<'_>) -> Result<Option<RunStatus>, Problem> {
    match call.query.get("status") {
        None => Ok(None),
        Some("running") => Ok(Some(RunStatus::Running)),
        Some("completed") => Ok(Some(RunStatus::Completed)),
        Some(_) => Err(Problem::field("status must be running or completed.")),
    }
}
