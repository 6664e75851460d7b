//! The log by REST: the frames of the WebSocket, byte for byte, in pages.

use http::StatusCode;
use serde_json::json;

use crate::limits;
use crate::protocol::gateway::{EventAt, GapRange};
use crate::protocol::message::{ErrorCode, run_id};
use crate::run::id::{LogEpoch, Position, RunId, Seq, SessionId};
use crate::server::api::{Call, Outcome, Problem, runs};
use crate::server::http::response::Response;
use crate::store::{EventsPage, Gone, PageLimit, Place, RunSummary};

pub(super) fn page(call: &Call<'_>, named: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let compact = call.query.boolean("compact")?.unwrap_or(false);
    let bytes = limits::PAGE_BYTES_MAX;
    let limit = PageLimit { events: call.query.limit()?, bytes, compact };
    let readers = &call.api.readers;
    let way = way(call, session)?;
    let end = readers.end_of(session)?;
    let (mut page, begin) = match way {
        Way::After(begin) => (readers.events_page(session, begin.cursor, end, limit)?, begin),
        Way::Before(begin) => {
            (readers.events_page_before(session, begin.cursor, end, limit)?, begin)
        }
        Way::Newest => {
            let begin = Begin { cursor: past(end), ..START };
            (readers.events_page_before(session, begin.cursor, end, limit)?, begin)
        }
    };
    // Nothing came after the cursor: what is before it, its own event included, still is.
    if page.items.is_empty() && page.prev.is_none() {
        page.prev = begin.named.filter(|_| page.next.is_none() && page.gap.is_none());
    }
    let found = page.gap.map(gap_range);
    let gap = match begin.unknown {
        Some(to) => Some(GapRange { from: None, to: found.map_or(to, |gap| gap.to) }),
        None => found,
    };
    Ok(encode(&page, gap, begin.rewound))
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

/// Which page is asked for.
enum Way {
    /// What follows a cursor.
    After(Begin),
    /// What lies before one.
    Before(Begin),
    /// The last one there is.
    Newest,
}

/// Where a page begins.
struct Begin {
    cursor: Position,
    /// The cursor was ahead of the log, or of another incarnation of it.
    rewound: bool,
    /// The cursor's run is not known any more: what it named is gone.
    unknown: Option<EventAt>,
    /// The `before` that leads back from the end of the log.
    named: Option<Place>,
}

const START: Begin = Begin { cursor: Position::START, rewound: false, unknown: None, named: None };

/// Reads `after`, `before`, `from`, of which there may be one. Cursors are RUNID:SEQ, with or
/// without `@EPOCH`, and mean what they mean in `chat.subscribe`.
fn way(call: &Call<'_>, session: SessionId) -> Result<Way, Problem> {
    let get = |name| call.query.get(name);
    match (get("after"), get("before"), get("from")) {
        (None, None, None) => Ok(Way::Newest),
        (None, None, Some("start")) => Ok(Way::After(START)),
        (None, None, Some(_)) => Err(Problem::field(
            "from must be start; without from, after and before it is the newest page.",
        )),
        (Some(after), None, None) => {
            let mark = mark(call, session, "after", after)?;
            let Some(run) = mark.run else {
                let unknown = Some(EventAt { run_id: mark.run_id, seq: mark.seq });
                return Ok(Way::After(Begin { unknown, rewound: mark.stale, ..START }));
            };
            let rewound = mark.stale || mark.seq > run.last_seq;
            let cursor = match rewound {
                true => Position::before_run(run.ordinal),
                false => Position::new(run.ordinal, mark.seq),
            };
            let named = (!rewound).then(|| Place { run: run.id, seq: mark.seq.next() });
            Ok(Way::After(Begin { cursor, rewound, named, ..START }))
        }
        (None, Some(before), None) => {
            let mark = mark(call, session, "before", before)?;
            let run = mark.run.ok_or_else(|| {
                let message = "The run of before is not known; leave before out to begin with \
                               the newest page.";
                Problem::of(ErrorCode::RunNotFound, message)
            })?;
            let past = run.last_seq.next();
            // A number of another log must hide nothing: it counts as the end of its run.
            let rewound = mark.stale || mark.seq > past;
            let seq = if rewound { past } else { mark.seq };
            let cursor = Position::new(run.ordinal, seq);
            Ok(Way::Before(Begin { cursor, rewound, ..START }))
        }
        _ => Err(Problem::field("Give one of after, before and from, or none of them.")),
    }
}

/// A cursor as it was given.
struct Mark {
    run_id: RunId,
    /// Its run, if that is known.
    run: Option<RunSummary>,
    seq: Seq,
    /// It is of another incarnation of the log.
    stale: bool,
}

fn mark(call: &Call<'_>, session: SessionId, name: &str, text: &str) -> Result<Mark, Problem> {
    let bad = || Problem::field(&format!("{name} must be RUNID:SEQ or RUNID:SEQ@EPOCH."));
    let (cursor, epoch) = match text.split_once('@') {
        Some((cursor, epoch)) => (cursor, Some(epoch)),
        None => (text, None),
    };
    let (run, seq) = cursor.split_once(':').ok_or_else(bad)?;
    let (run_id, seq) = (run_id(run), Seq(seq.parse().map_err(|_| bad())?));
    let own = call.api.registry.epoch();
    let stale = epoch.is_some_and(|epoch| epoch.parse::<LogEpoch>() != Ok(own));
    let run = call.api.readers.run(run_id)?;
    if run.as_ref().is_some_and(|run| run.session != session) {
        let message = format!("The run of {name} is another session's; ask that one for it.");
        return Err(Problem::of(ErrorCode::RunNotFound, &message));
    }
    Ok(Mark { run_id, run, seq, stale })
}

/// Just after a position.
const fn past(at: Position) -> Position {
    Position::new(at.ordinal, at.seq.next())
}

/// The page around its frames, which are put in as they are.
fn encode(page: &EventsPage, gap: Option<GapRange>, rewound: bool) -> Response {
    let cursor = |at: Option<Place>| at.map(|at| format!("{}:{}", at.run, at.seq.0));
    let rest = json!({
        "nextCursor": cursor(page.next), "prevCursor": cursor(page.prev), "gap": gap,
        "rewound": rewound,
    });
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
    json_bytes(body)
}

fn json_bytes(body: Vec<u8>) -> Response {
    let content_type = Some("application/json");
    Response { content_type, body: body.into(), ..Response::empty(StatusCode::OK) }
}

fn gap_range(gone: Gone) -> GapRange {
    let at = |place: Place| EventAt { run_id: place.run, seq: place.seq };
    GapRange { from: Some(at(gone.from)), to: at(gone.to) }
}
