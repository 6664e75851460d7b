//! Pages of a session's log, forwards and backwards, whole or without the deltas that a finished
//! block replaces.
//!
//! A page is read in slices like everything else, so that no read holds a snapshot for long.
//! Must not know REST, nor of a frame more than whether it is a delta or a finished block.

use std::borrow::Cow;
use std::collections::HashMap;

use rusqlite::{Connection, params};
use serde::Deserialize;

use super::error::ReadError;
use super::frames::{Budget, Gone, Place, Read, Run, Stored, Taken};
use super::reader::Readers;
use super::rows::{int, natural};
use crate::limits::{FINISHED_BLOCK_SEQS_MAX, PULL_BYTES, READ_ROWS_MAX};
use crate::run::id::{Position, RunId, Seq, SessionId};

/// How much a page may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    /// Events, at least one; heads do not count.
    pub events: usize,
    /// Bytes of frames that may be read for it; one frame may exceed it by itself.
    pub bytes: usize,
    /// Leave out deltas whose finished block is in the log. A page may then be empty although
    /// there is more.
    pub compact: bool,
}

/// A page of a session's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsPage {
    /// What is gone between the cursor and the page's items; of a page that was read backwards
    /// also what is gone before its items, if nothing before that is kept. Where something else
    /// is gone the page ends at it.
    pub gap: Option<Gone>,
    /// Events and heads, oldest first.
    pub items: Vec<Stored>,
    /// The cursor for the page after this one, if there is more: `after`.
    pub next: Option<Place>,
    /// The cursor for the page before this one, if anything kept is before: `before`.
    pub prev: Option<Place>,
}

impl Readers {
    /// A page of events after `after` up to and with `upto`.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn events_page(
        &self,
        session: SessionId,
        after: Position,
        upto: Position,
        limit: PageLimit,
    ) -> Result<EventsPage, ReadError> {
        let mut page = Filling::new(self, limit);
        let mut cursor = after;
        let more = 'page: loop {
            match self.frames(session, cursor, upto, page.rows(), limit.bytes)? {
                Read::Gone(gone) if page.lowest.is_none() => {
                    page.gap = Some(page.gap.map_or(gone, |gap| Gone { from: gap.from, ..gone }));
                    cursor = gone.end;
                }
                Read::Gone(_) => break true,
                Read::Frames(frames) if frames.is_empty() => break false,
                Read::Frames(frames) => {
                    for frame in frames {
                        if page.is_full() {
                            break 'page true;
                        }
                        cursor = frame.at;
                        page.take(frame)?;
                    }
                }
            }
        };
        let lowest = page.lowest;
        let next = page.highest.filter(|_| more).map(|(_, place)| place);
        let prev = match (lowest, self.oldest_kept(session)?) {
            (Some((at, place)), Some(oldest)) if oldest < at => Some(place),
            _ => None,
        };
        Ok(EventsPage { gap: page.gap, items: page.items, next, prev })
    }

    /// The page of events just before `before`, which is not in it. `end` is the end of the log:
    /// from there on nothing is after the page.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn events_page_before(
        &self,
        session: SessionId,
        before: Position,
        end: Position,
        limit: PageLimit,
    ) -> Result<EventsPage, ReadError> {
        let mut page = Filling::new(self, limit);
        let mut cursor = before;
        let oldest = self.oldest_kept(session)?;
        'page: loop {
            match self.frames_before(session, cursor, page.rows(), limit.bytes)? {
                Back::Gone(gone, begin) if page.lowest.is_none() => {
                    page.gap = Some(match page.gap {
                        None => gone,
                        Some(gap) => Gone { from: gone.from, ..gap },
                    });
                    cursor = begin;
                }
                Back::Gone(gone, begin) => {
                    // Else nobody who walks back would hear of it: there is no page before.
                    if page.gap.is_none() && oldest.is_none_or(|oldest| begin < oldest) {
                        page.gap = Some(gone);
                    }
                    break;
                }
                Back::Frames(frames) if frames.is_empty() => break,
                Back::Frames(frames) => {
                    for frame in frames {
                        // A head goes with the event that it stands before.
                        if page.is_full() && frame.at.seq > Seq(0) {
                            break 'page;
                        }
                        cursor = frame.at;
                        page.take(frame)?;
                    }
                }
            }
        }
        page.items.reverse();
        let next = match page.highest {
            Some((at, place)) => Some(place).filter(|_| at < end),
            None => page.gap.filter(|gap| gap.end < end).map(|gap| gap.to),
        };
        let prev = page.lowest.filter(|(at, _)| oldest.is_some_and(|oldest| oldest < *at));
        Ok(EventsPage {
            gap: page.gap,
            items: page.items,
            next,
            prev: prev.map(|(_, place)| place),
        })
    }

    /// The frames before `before`, the last one first.
    fn frames_before(
        &self,
        session: SessionId,
        before: Position,
        rows: usize,
        bytes: usize,
    ) -> Result<Back, ReadError> {
        let left = Budget { rows: rows.clamp(1, READ_ROWS_MAX), bytes: bytes.min(PULL_BYTES) };
        self.read(|conn| read_back(conn, session, before, left))
    }

    /// The seq of the finished form of `block`, if it comes after `after` and not after `upto`.
    fn finished_block(
        &self,
        run: RunId,
        block: &str,
        after: Seq,
        upto: Seq,
    ) -> Result<Option<Seq>, ReadError> {
        // As it stands in an encoded event: quotes in texts are escaped, so no text looks so.
        let id = serde_json::Value::from(block).to_string();
        let needle = format!("\"blockId\":{id}").into_bytes();
        self.read(|conn| {
            let mut found = conn.prepare_cached(
                "SELECT seq, body FROM event WHERE run = (SELECT id FROM run WHERE rid = ?1) \
                 AND seq > ?2 AND seq <= ?3 AND instr(body, ?4) > 0 ORDER BY seq",
            )?;
            let mut found =
                found.query(params![run.as_bytes(), int(after.0), int(upto.0), needle])?;
            while let Some(row) = found.next()? {
                let body: Vec<u8> = row.get(1)?;
                let shape = serde_json::from_slice::<Shape<'_>>(&body).unwrap_or_default();
                let finished = matches!(shape.kind.as_ref(), "text" | "thinking");
                if finished && shape.block_id.as_deref() == Some(block) {
                    return Ok(Some(Seq(natural(row.get(0)?))));
                }
            }
            Ok(None)
        })
    }
}

/// What a frame is, as far as leaving it out needs to know.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    block_id: Option<Cow<'a, str>>,
}

/// What is known of a block: up to where it was looked for, and where its finished form is.
struct Looked {
    from: Seq,
    found: Option<Seq>,
}

/// A page on its way.
struct Filling<'a> {
    readers: &'a Readers,
    limit: PageLimit,
    gap: Option<Gone>,
    items: Vec<Stored>,
    events: usize,
    bytes: usize,
    /// The ends of what was read, whether or not it is among the items.
    lowest: Option<(Position, Place)>,
    highest: Option<(Position, Place)>,
    blocks: HashMap<(RunId, String), Looked>,
}

impl<'a> Filling<'a> {
    fn new(readers: &'a Readers, limit: PageLimit) -> Self {
        Self {
            readers,
            limit,
            gap: None,
            items: Vec::new(),
            events: 0,
            bytes: 0,
            lowest: None,
            highest: None,
            blocks: HashMap::new(),
        }
    }

    /// How many rows to read next: what still fits, and one that tells whether there is more.
    fn rows(&self) -> usize {
        match self.limit.compact {
            true => READ_ROWS_MAX,
            false => self.limit.events.saturating_sub(self.events).saturating_add(1),
        }
    }

    fn is_full(&self) -> bool {
        let full = self.events >= self.limit.events || self.bytes >= self.limit.bytes;
        full && self.lowest.is_some()
    }

    fn take(&mut self, frame: Stored) -> Result<(), ReadError> {
        let here = (frame.at, Place { run: frame.run, seq: frame.at.seq });
        if self.lowest.is_none_or(|(lowest, _)| here.0 < lowest) {
            self.lowest = Some(here);
        }
        if self.highest.is_none_or(|(highest, _)| here.0 > highest) {
            self.highest = Some(here);
        }
        self.bytes = self.bytes.saturating_add(frame.text.len());
        if self.limit.compact && self.is_replaced(&frame)? {
            return Ok(());
        }
        self.events += usize::from(frame.at.seq > Seq(0));
        self.items.push(frame);
        Ok(())
    }

    /// Whether it is a delta whose finished block is in the log.
    fn is_replaced(&mut self, frame: &Stored) -> Result<bool, ReadError> {
        if !frame.text.contains("stream_delta") {
            return Ok(false);
        }
        let shape = serde_json::from_str::<Shape<'_>>(&frame.text).unwrap_or_default();
        let Some(block) = shape.block_id.filter(|_| shape.kind == "stream_delta") else {
            return Ok(false);
        };
        let at = frame.at.seq;
        let far = Seq(at.0.saturating_add(FINISHED_BLOCK_SEQS_MAX));
        let key = (frame.run, block.into_owned());
        let upto = match self.blocks.get(&key) {
            Some(Looked { found: Some(found), .. }) if at < *found => return Ok(true),
            Some(Looked { from, found: None }) if at >= *from => return Ok(false),
            Some(Looked { from, found: None }) => far.min(*from),
            _ => far,
        };
        let found = self.readers.finished_block(frame.run, &key.1, at, upto)?;
        self.blocks.insert(key, Looked { from: at, found });
        Ok(found.is_some())
    }
}

/// What one read found before a cursor.
enum Back {
    /// Frames, the last one first.
    Frames(Vec<Stored>),
    /// What came before is gone, and the position of its first frame.
    Gone(Gone, Position),
}

fn read_back(
    conn: &Connection,
    session: SessionId,
    before: Position,
    left: Budget,
) -> Result<Back, ReadError> {
    let mut runs = conn.prepare_cached(
        "SELECT id, rid, ordinal, last_seq, pruned_ms IS NOT NULL AS pruned FROM run \
         WHERE session = (SELECT id FROM session WHERE sid = ?1) AND ordinal <= ?2 \
         ORDER BY ordinal DESC",
    )?;
    let bounds = params![session.as_bytes(), before.ordinal.0];
    let mut runs = runs.query_map(bounds, Run::read)?;
    let mut taken = Taken { frames: Vec::new(), left };
    let mut gone: Option<(Gone, Position)> = None;
    while let Some(run) = runs.next().transpose()? {
        // How many frames of it, with its head, lie before the cursor.
        let own = run.last_seq.0.saturating_add(1);
        let count = if run.ordinal == before.ordinal { own.min(before.seq.0) } else { own };
        let Some(last) = count.checked_sub(1).map(Seq) else { continue };
        if run.pruned {
            if !taken.frames.is_empty() {
                break;
            }
            let to = run.place(last);
            let end = Position::new(run.ordinal, last);
            let first = (Gone { from: to, to, end }, end);
            let (gone, begin) = gone.get_or_insert(first);
            gone.from = run.place(Seq(0));
            *begin = Position::new(run.ordinal, Seq(0));
            continue;
        }
        if gone.is_some() || !take_back(conn, &run, last, &mut taken)? {
            break;
        }
    }
    Ok(gone.map_or(Back::Frames(taken.frames), |(gone, begin)| Back::Gone(gone, begin)))
}

/// Takes a run's frames from `last` down to its head. False when the budget is used up.
fn take_back(
    conn: &Connection,
    run: &Run,
    last: Seq,
    taken: &mut Taken,
) -> Result<bool, ReadError> {
    let mut events = conn.prepare_cached(
        "SELECT seq, body FROM event WHERE run = ?1 AND seq <= ?2 ORDER BY seq DESC",
    )?;
    let mut events = events.query(params![run.row, int(last.0)])?;
    while let Some(event) = events.next()? {
        if taken.left.rows == 0 || !taken.push(run, Seq(natural(event.get(0)?)), event.get(1)?)? {
            return Ok(false);
        }
    }
    let head = conn
        .prepare_cached("SELECT body FROM head WHERE run = ?1")?
        .query_row([run.row], |row| row.get(0))?;
    taken.push(run, Seq(0), head)
}
