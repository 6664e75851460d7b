//! The session's queue: shown, shortened, let go on. Prompts enter it by `POST .../runs`.

use http::StatusCode;
use serde_json::json;

use crate::protocol::message::ErrorCode;
use crate::server::api::{Call, Outcome, Problem};
use crate::server::http::response::Response;
use crate::server::view;

pub(super) fn list(call: &Call<'_>, named: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let (waiting, held) = call.api.readers.queue(session)?;
    let body = json!({ "items": view::queue(&waiting, None), "held": held, "nextCursor": null });
    Ok(Response::json(StatusCode::OK, &body))
}

pub(super) fn remove(call: &Call<'_>, named: &str, queued: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let queued = queued.parse().map_err(|_| {
        let code = ErrorCode::QueuedPromptNotFound;
        Problem::of(code, "A queued prompt is named by its queueId.")
    })?;
    let pending = call.api.registry.remove_queued(session, queued, call.now)?;
    call.commit(&pending)?;
    Ok(Response::empty(StatusCode::NO_CONTENT))
}

pub(super) fn resume(call: &Call<'_>, named: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let pending = call.api.registry.resume_queue(session, call.now)?;
    call.commit(&pending)?;
    Ok(Response::json(StatusCode::ACCEPTED, &json!({ "held": false })))
}
