//! What became of notifications, and tests of the sinks.

use http::StatusCode;
use serde_json::json;

use crate::server::api::{Call, Outcome, Problem, listed};
use crate::server::http::response::Response;

/// Newest first. A cursor is the number of the last one of the page before.
pub(super) fn list(call: &Call<'_>) -> Outcome {
    let limit = call.query.limit()?;
    let before = match call.query.get("cursor").map(str::parse::<i64>) {
        None => None,
        Some(Ok(cursor)) => Some(cursor),
        Some(Err(_)) => return Err(Problem::field("cursor must be one that this list gave.")),
    };
    // One more than asked for tells whether there are more.
    let mut found = call.api.readers.notifications(before, limit + 1)?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| last.id.to_string());
    let items = found.iter().map(|one| {
        json!({
            "id": one.id.to_string(), "at": one.at.to_string(), "sessionId": one.session,
            "runId": one.run, "event": one.event, "sink": one.sink, "outcome": one.outcome,
            "detail": one.detail,
        })
    });
    Ok(listed(items.collect(), next))
}

/// Sends a test to one sink or to all of them, and says how each try went.
pub(super) fn test(call: &Call<'_>) -> Outcome {
    let named = match call.request.body.is_empty() {
        true => None,
        false => call.fields()?.string("sink")?,
    };
    let notifier = &call.api.notifier;
    if let Some(named) = named.as_deref().filter(|named| notifier.names().all(|one| one != *named))
    {
        let named: String = named.chars().take(64).collect();
        let known = notifier.names().collect::<Vec<_>>().join(", ");
        let message = match known.as_str() {
            "" => format!("There is no sink \"{named}\": none is configured."),
            known => format!("There is no sink \"{named}\"; there are: {known}."),
        };
        return Err(Problem { status: StatusCode::NOT_FOUND, code: "NOT_FOUND".into(), message });
    }
    let tested = notifier.test(named.as_deref()).ok().flatten().ok_or_else(|| {
        let message = "Another test is going on; try again in some seconds.".to_owned();
        Problem { status: StatusCode::SERVICE_UNAVAILABLE, code: "BUSY".into(), message }
    })?;
    let items = tested.iter().map(|one| {
        json!({
            "sink": one.sink, "kind": one.kind, "outcome": one.outcome.word(),
            "detail": one.detail,
        })
    });
    Ok(Response::json(StatusCode::OK, &json!({ "items": items.collect::<Vec<_>>() })))
}
