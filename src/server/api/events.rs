//! The log by REST: the frames of the WebSocket, byte for byte, in pages.

use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use crate::limits;
use crate::protocol::gateway::{EventAt, GapRange};
use crate::protocol::message::{ErrorCode, run_id};
use crate::registry::{From, Target};
use crate::run::id::{LogEpoch, Position, RunId, Seq, SessionId};
use crate::server::api::{Call, Outcome, Problem, runs};
use crate::server::http::response::Response;
use crate::server::sse::{Follow, NO_RUN};
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
    // The same address also has a stream.
    Ok(encode(&page, gap, begin.rewound).with("Vary", "Accept"))
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

/// Whether the log is asked for as server-sent events.
pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|one| one.eq_ignore_ascii_case("text/event-stream"));
        let weight = parts.find_map(|part| part.strip_prefix(['q', 'Q'])?.strip_prefix('='));
        named && weight.and_then(|weight| weight.parse::<f32>().ok()).is_none_or(|q| q > 0.0)
    })
}

/// What a stream begins with. An `EventSource` comes back with the URL that it was made with and
/// the last id that it saw, so that header wins over whatever the query says.
pub(super) fn follow(call: &Call<'_>, named: &str) -> Result<Follow, Problem> {
    let session = call.session(named)?.row.id;
    for name in ["before", "compact"] {
        if call.query.get(name).is_some() {
            let message = format!("{name} is for pages: a stream tells every frame, forwards.");
            return Err(Problem::field(&message));
        }
    }
    let begin = |from| Follow { target: Target { session, from, epoch: None }, skips: false };
    if let Some(last) = call.request.head.headers.get("last-event-id") {
        let last = last.to_str().unwrap_or("?").trim();
        if !last.is_empty() {
            return follow_after(call, session, "Last-Event-ID", last);
        }
    }
    match (call.query.get("after"), call.query.get("from")) {
        (None, None) => newest(call, session),
        (Some(after), None) => follow_after(call, session, "after", after),
        (None, Some("start")) => Ok(begin(From::Start)),
        (None, Some("tail")) => Ok(begin(From::Tail)),
        (None, Some(_)) => Err(Problem::field("from must be start or tail.")),
        _ => Err(Problem::field("Give one of after and from, or none of them.")),
    }
}

fn follow_after(
    call: &Call<'_>,
    session: SessionId,
    name: &str,
    text: &str,
) -> Result<Follow, Problem> {
    let mark = mark(call, session, name, text)?;
    let from = match mark.before_all {
        true => From::Start,
        false => From::Cursor { run: mark.run_id, last_seq: Some(mark.seq) },
    };
    // Of whatever other incarnation it is: it is not ours, which no log has by chance.
    let epoch = mark.stale.then(|| LogEpoch::from_u128(0));
    Ok(Follow { target: Target { session, from, epoch }, skips: false })
}

/// From the first item of the newest page on.
fn newest(call: &Call<'_>, session: SessionId) -> Result<Follow, Problem> {
    let limit =
        PageLimit { events: call.query.limit()?, bytes: limits::PAGE_BYTES_MAX, compact: false };
    let readers = &call.api.readers;
    let end = readers.end_of(session)?;
    let page = readers.events_page_before(session, past(end), end, limit)?;
    let from = match page.items.first() {
        None => From::Start,
        Some(first) => {
            let last_seq = first.at.seq.0.checked_sub(1).map(Seq);
            From::Cursor { run: first.run, last_seq }
        }
    };
    let target = Target { session, from, epoch: None };
    Ok(Follow { target, skips: page.prev.is_some() || page.gap.is_some() })
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
            if mark.before_all {
                return Ok(Way::After(START));
            }
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
    /// It is what a stream gives to a client while the session has no run.
    before_all: bool,
}

fn mark(call: &Call<'_>, session: SessionId, name: &str, text: &str) -> Result<Mark, Problem> {
    let bad = || Problem::field(&format!("{name} must be RUNID:SEQ or RUNID:SEQ@EPOCH."));
    let (cursor, epoch) = match text.split_once('@') {
        Some((cursor, epoch)) => (cursor, Some(epoch)),
        None => (text, None),
    };
    let (run, seq) = cursor.split_once(':').ok_or_else(bad)?;
    let before_all = run == NO_RUN.to_string();
    let (run_id, seq) = (run_id(run), Seq(seq.parse().map_err(|_| bad())?));
    let own = call.api.registry.epoch();
    let stale = epoch.is_some_and(|epoch| epoch.parse::<LogEpoch>() != Ok(own));
    let run = call.api.readers.run(run_id)?;
    if run.as_ref().is_some_and(|run| run.session != session) {
        let message = format!("The run of {name} is another session's; ask that one for it.");
        return Err(Problem::of(ErrorCode::RunNotFound, &message));
    }
    Ok(Mark { run_id, run, seq, stale, before_all })
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
