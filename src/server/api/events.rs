//! The log by REST: the frames of the WebSocket, byte for byte, in pages.

use http::StatusCode;
use serde_json::json;

use crate::limits;
use crate::protocol::gateway::{EventAt, GapRange};
use crate::protocol::message::{ErrorCode, run_id};
use crate::run::id::{LogEpoch, Position, RunId, Seq, SessionId};
use crate::server::api::{Call, Outcome, Problem, runs};
use crate::server::http::response::Response;
use crate::store::{EventsPage, Gone, Place};

pub(super) fn page(call: &Call<'_>, named: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let limit = call.query.limit()?;
    for later in ["before", "compact"] {
        if call.query.get(later).is_some() {
            return Err(Problem::field(&format!("This server does not know {later} yet.")));
        }
    }
    let Begin { cursor, rewound, unknown } = begin(call, session)?;
    let readers = &call.api.readers;
    let end = readers.end_of(session)?;
    let page = readers.events_page(session, cursor, end, limit, limits::PAGE_BYTES_MAX)?;
    let found = page.gap.map(gap_range);
    let gap = match unknown {
        Some(to) => Some(GapRange { from: None, to: found.map_or(to, |gap| gap.to) }),
        None => found,
    };
    Ok(encode(call, session, &page, gap, rewound)?.unwrap_or_else(|| {
        Response::json(
            StatusCode::OK,
            &json!({ "items": [], "nextCursor": null,
            "prevCursor": null, "gap": gap, "rewound": rewound }),
        )
    }))
}

pub(super) fn whole(call: &Call<'_>, run: &str, seq: &str) -> Outcome {
    let run = runs::find(call, run)?;
    let seq = seq.parse().map_err(|_| Problem::field("The event's number must be a number."))?;
    let event = call.api.readers.event_whole(run.id, Seq(seq))?;
    let body = event.ok_or_else(|| {
        let why = if run.pruned_at.is_some() { "is no longer kept" } else { "does not exist" };
        Problem::of(ErrorCode::RunNotFound, &format!("Event {seq} of this run {why}."))
    })?;
    Ok(json_bytes(body))
}

/// Where a page begins.
struct Begin {
    cursor: Position,
    /// The cursor was ahead of the log, or of another incarnation of it.
    rewound: bool,
    /// The cursor's run is not known any more: what it named is gone.
    unknown: Option<EventAt>,
}

/// Reads `after=RUNID:SEQ`, with or without `@EPOCH`, as `chat.subscribe` reads a cursor.
fn begin(call: &Call<'_>, session: SessionId) -> Result<Begin, Problem> {
    let start = Begin { cursor: Position::START, rewound: false, unknown: None };
    let Some(after) = call.query.get("after") else {
        return Ok(start);
    };
    let bad = || Problem::field("after must be RUNID:SEQ or RUNID:SEQ@EPOCH.");
    let (cursor, epoch) = match after.split_once('@') {
        Some((cursor, epoch)) => (cursor, Some(epoch)),
        None => (after, None),
    };
    let (run, seq) = cursor.split_once(':').ok_or_else(bad)?;
    let (run_id, seq): (RunId, u64) = (run_id(run), seq.parse().map_err(|_| bad())?);
    let own = call.api.registry.epoch();
    let stale = epoch.is_some_and(|epoch| epoch.parse::<LogEpoch>() != Ok(own));
    let Some(run) = call.api.readers.run(run_id)? else {
        let unknown = Some(EventAt { run_id, seq: Seq(seq) });
        return Ok(Begin { unknown, rewound: stale, ..start });
    };
    if run.session != session {
        let message = "That run is another session's.";
        return Err(Problem::of(ErrorCode::RunNotFound, message));
    }
    let rewound = stale || Seq(seq) > run.last_seq;
    let cursor = match rewound {
        true => Position::before_run(run.ordinal),
        false => Position::new(run.ordinal, Seq(seq)),
    };
    Ok(Begin { cursor, rewound, unknown: None })
}

/// The page around its frames, which are put in as they are. `None` if there are none.
fn encode(
    call: &Call<'_>,
    session: SessionId,
    page: &EventsPage,
    gap: Option<GapRange>,
    rewound: bool,
) -> Result<Option<Response>, Problem> {
    if page.items.is_empty() {
        return Ok(None);
    }
    let next = match page.next {
        None => None,
        Some(next) => {
            let run = page.items.iter().rev().find(|item| item.at == next).map(|item| item.run);
            let run = match run {
                Some(run) => Some(run),
                None => call.api.readers.run_at(session, next.ordinal)?.map(|run| run.id),
            };
            run.map(|run| format!("{run}:{}", next.seq.0))
        }
    };
    let rest = json!({ "nextCursor": next, "prevCursor": null, "gap": gap, "rewound": rewound });
    let rest = rest.to_string();
    let items: usize = page.items.iter().map(|item| item.text.len() + 1).sum();
    let mut body = Vec::with_capacity(items + rest.len() + 16);
    body.extend_from_slice(b"{\"items\":[");
    for (count, item) in page.items.iter().enumerate() {
        if count > 0 {
            body.push(b',');
        }
        body.extend_from_slice(item.text.as_bytes());
    }
    body.extend_from_slice(b"],");
    body.extend_from_slice(&rest.as_bytes()[1..]);
    Ok(Some(json_bytes(body)))
}

fn json_bytes(body: Vec<u8>) -> Response {
    let content_type = Some("application/json");
    Response { content_type, body: body.into(), ..Response::empty(StatusCode::OK) }
}

fn gap_range(gone: Gone) -> GapRange {
    let at = |place: Place| EventAt { run_id: place.run, seq: place.seq };
    GapRange { from: Some(at(gone.from)), to: at(gone.to) }
}
