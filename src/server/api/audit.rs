//! The audit trail, for who may see it. Must not know how it comes about.

use serde_json::{Value, json};

use super::{Call, Outcome, Problem, listed, session_id};
use crate::limits;
use crate::run::id::Millis;
use crate::store::{AuditFilter, AuditRow};

/// `GET /audit`: the newest first.
pub(super) fn list(call: &Call<'_>) -> Outcome {
    let query = &call.query;
    let since = match query.get("since") {
        None => None,
        Some(text) => Some(time(text)?),
    };
    let session = match query.get("session") {
        None => None,
        // It may be one that is deleted, so it is not looked up.
        Some(named) => Some(
            session_id(named)
                .ok_or_else(|| Problem::field("session must be the app id of a session."))?,
        ),
    };
    let what = match query.get("what") {
        Some(what) if what.len() > limits::ID_BYTES_MAX => {
            return Err(Problem::field("what must be one word."));
        }
        what => what.map(str::to_owned),
    };
    let filter = AuditFilter { since, what, session };
    let found = call.api.readers.audit(&filter, query.limit()?, query.get("cursor"))?;
    Ok(listed(found.items.iter().map(row).collect(), found.next))
}

fn row(row: &AuditRow) -> Value {
    json!({
        "id": row.id, "at": row.at.to_string(), "what": row.what, "by": row.by,
        "sessionId": row.session, "runId": row.run, "detail": row.detail,
    })
}

fn time(text: &str) -> Result<Millis, Problem> {
    let time: Result<jiff::Timestamp, _> = text.parse();
    time.map(|time| Millis(time.as_millisecond()))
        .map_err(|_| Problem::field("since must be a time such as 2026-03-01T09:30:00Z."))
}
