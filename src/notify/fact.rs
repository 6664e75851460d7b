//! What there is to tell of something notable, read from the log.
//!
//! Must not know who is told.

use serde_json::Value;

use crate::notify::message::Fact;
use crate::notify::sink::EventKind;
use crate::registry::{Notable, Occasion};
use crate::run::event::Interaction;
use crate::run::id::{Millis, RequestId};
use crate::store::{PermissionState, ReadError, Readers};

/// What is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Something to tell.
    Fact(Fact),
    /// A request that was answered, or that nobody needs to answer any more.
    Settled(EventKind),
    /// It was deleted meanwhile, or is nothing that anybody is told of.
    Nothing,
}

/// Reads what `notable` names.
pub(super) fn find(readers: &Readers, notable: &Notable) -> Result<Found, ReadError> {
    match &notable.what {
        Occasion::Asked(request) => asked(readers, request),
        Occasion::Ended { reason, success, aborted } => {
            let Some(kind) = EventKind::of_end(*reason, *success, *aborted) else {
                return Ok(Found::Nothing);
            };
            let run = readers.run_at(notable.session, notable.at.ordinal)?;
            let Some(run) = run else { return Ok(Found::Nothing) };
            // Retention may have taken it already: that it ended is known all the same.
            let event = readers.event_whole(run.id, notable.at.seq)?.unwrap_or_default();
            let event: Value = serde_json::from_slice(&event).unwrap_or(Value::Null);
            let error = event["error"].as_str().map(str::to_owned);
            let reason = run.reason.and_then(|reason| serde_json::to_value(reason).ok());
            let reason = reason.as_ref().and_then(Value::as_str).map(str::to_owned);
            let summary = match kind {
                EventKind::RunFinished => None,
                _ => error.filter(|error| !error.trim().is_empty()).or(reason),
            };
            let at = run.ended_at.unwrap_or_else(Millis::now);
            Ok(Found::Fact(Fact { kind, run: run.id, request: None, tool: None, summary, at }))
        }
    }
}

fn asked(readers: &Readers, request: &RequestId) -> Result<Found, ReadError> {
    let Some(found) = readers.permission(request)? else { return Ok(Found::Nothing) };
    let event: Value = serde_json::from_str(&found.text).unwrap_or(Value::Null);
    let interaction = serde_json::from_value(event["interaction"].clone());
    let kind = EventKind::of_interaction(interaction.unwrap_or(Interaction::Tool));
    if found.state != PermissionState::Open {
        return Ok(Found::Settled(kind));
    }
    Ok(Found::Fact(Fact {
        kind,
        run: found.run,
        request: Some(found.request),
        tool: event["toolName"].as_str().map(str::to_owned),
        summary: summary(&event),
        at: found.received_at,
    }))
}

/// What the agent wants, in short: the question, the command, else what it calls it itself.
fn summary(event: &Value) -> Option<String> {
    let input = &event["input"];
    let short = [
        &event["questions"][0]["text"],
        &input["command"],
        &event["title"],
        &input["file_path"],
        &input["path"],
        &input["url"],
        &event["description"],
    ];
    let text = short.iter().find_map(|value| value.as_str().filter(|text| !text.trim().is_empty()));
    text.map(str::to_owned).or_else(|| match input {
        Value::Object(fields) if !fields.is_empty() => Some(input.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_told_by_what_it_is_about() {
        let of = |event| summary(&event);
        let bash = json!({"title": "Run tests", "input": {"command": "cargo test"}});
        assert_eq!(of(bash).as_deref(), Some("cargo test"));
        let asked = json!({"questions": [{"text": "Which one?"}], "input": {"questions": []}});
        assert_eq!(of(asked).as_deref(), Some("Which one?"));
        assert_eq!(of(json!({"title": "Edit a.rs", "input": {}})).as_deref(), Some("Edit a.rs"));
        assert_eq!(of(json!({"input": {"n": 1}})).as_deref(), Some("{\"n\":1}"));
        assert_eq!(of(json!({"input": {}})), None);
    }
}
