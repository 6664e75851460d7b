//! Permission requests: what waits, and answers to it.

use http::StatusCode;
use serde_json::{Value, json};

use crate::limits;
use crate::protocol::message::{ErrorCode, read_answer};
use crate::run::event::AnswerState;
use crate::run::id::RequestId;
use crate::server::api::{Call, Outcome, Problem, listed};
use crate::server::http::response::Response;

/// Oldest first. A cursor is the id of the last request of the page before; one that was answered
/// meanwhile begins the list anew.
pub(super) fn list(call: &Call<'_>) -> Outcome {
    let limit = call.query.limit()?;
    let pending = call.api.readers.pending_permissions()?;
    let seen = call.query.get("cursor").and_then(|cursor| {
        pending.iter().position(|request| request.request.0 == cursor).map(|at| at + 1)
    });
    let rest = &pending[seen.unwrap_or(0)..];
    let mut bytes = 0;
    let fitting = rest.iter().take(limit).take_while(|request| {
        let first = bytes == 0;
        bytes += request.text.len();
        first || bytes <= limits::PAGE_BYTES_MAX
    });
    let items: Vec<_> = fitting
        .map(|request| {
            let mut event = serde_json::from_str(&request.text).unwrap_or_else(|_| json!({}));
            event["receivedAt"] = Value::String(request.received_at.to_string());
            event
        })
        .collect();
    let more = items.len() < rest.len();
    let last = items.len().checked_sub(1).filter(|_| more);
    let next = last.map(|last| rest[last].request.0.clone());
    Ok(listed(items, next))
}

pub(super) fn answer(call: &Call<'_>, named: &str) -> Outcome {
    if named.len() > limits::ID_BYTES_MAX {
        let message = "There is no such permission request.";
        return Err(Problem::of(ErrorCode::PermissionNotFound, message));
    }
    let answer = read_answer(&mut call.fields()?)?;
    let request = RequestId(named.to_owned());
    let accepted = call.api.registry.answer(&request, &answer, &call.by, call.now)?;
    call.commit(&accepted.pending)?;
    let body = json!({
        "state": AnswerState::Recorded, "requestId": request,
        "sessionId": accepted.session, "runId": accepted.run,
    });
    Ok(Response::json(StatusCode::OK, &body))
}
