//! The log's frames, read from the disk: in order across runs, each run opened by its head, and
//! an exact gap where retention took something (I4, I4b).
//!
//! Must not know who reads, nor what is in a frame.

use rusqlite::{Connection, OptionalExtension, params};
use tungstenite::Utf8Bytes;

use super::error::ReadError;
use super::reader::Readers;
use super::rows::{frame_text, int, natural};
use crate::limits::{PULL_BYTES, READ_ROWS_MAX};
use crate::run::id::{Ordinal, Position, RunId, Seq, SessionId};

/// An event's place as cursors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its run.
    pub run: RunId,
    /// Its seq; 0 is the run's head.
    pub seq: Seq,
}

/// A range that retention took, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The first thing that is gone.
    pub from: Place,
    /// The last thing that is gone.
    pub to: Place,
    /// The cursor from which to read on: the position of `to`.
    pub end: Position,
}

/// A frame as it was sent, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its run.
    pub run: RunId,
    /// Its position in the session.
    pub at: Position,
    /// Its bytes.
    pub text: Utf8Bytes,
}

/// What one read found after a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Frames, in order, none left out. Empty: nothing is stored between the cursor and the
    /// upper end.
    Frames(Vec<Stored>),
    /// What came next is gone. Consecutive ranges are joined.
    Gone(Gone),
}

/// A run, as reading frames needs it.
pub(super) struct Run {
    pub(super) row: i64,
    pub(super) id: RunId,
    pub(super) ordinal: Ordinal,
    pub(super) last_seq: Seq,
    pub(super) pruned: bool,
}

impl Run {
    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get("id")?,
            id: RunId::from_bytes(row.get("rid")?),
            ordinal: Ordinal(row.get("ordinal")?),
            last_seq: Seq(natural(row.get("last_seq")?)),
            pruned: row.get("pruned")?,
        })
    }

    pub(super) const fn place(&self, seq: Seq) -> Place {
        Place { run: self.id, seq }
    }
}

impl Readers {
    /// The frames after `after` up to and with `upto`: at most `rows_max` (and 512) of them and
    /// at most `bytes_max` (and 64 KiB), but at least one if there is one.
    ///
    /// # Errors
    /// As SQLite says. An unknown session has no frames.
    pub fn frames(
        &self,
        session: SessionId,
        after: Position,
        upto: Position,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Read, ReadError> {
        let budget =
            Budget { rows: rows_max.clamp(1, READ_ROWS_MAX), bytes: bytes_max.min(PULL_BYTES) };
        self.read(|conn| read_frames(conn, session, after, upto, budget))
    }

    /// One event as JSON, whole however long it is: the uncut form if it was cut. Seq 0 gives
    /// the run's head.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn event_whole(&self, run: RunId, seq: Seq) -> Result<Option<Vec<u8>>, ReadError> {
        self.read(|conn| {
            let row = conn
                .prepare_cached("SELECT id FROM run WHERE rid = ?1 AND pruned_ms IS NULL")?
                .query_row(params![run.as_bytes()], |row| row.get::<_, i64>(0))
                .optional()?;
            let Some(row) = row else { return Ok(None) };
            let whole = conn
                .prepare_cached(
                    "SELECT json FROM blob WHERE run = ?1 AND seq = ?2 \
                     UNION ALL SELECT body FROM event WHERE run = ?1 AND seq = ?2 \
                     UNION ALL SELECT body FROM head WHERE run = ?1 AND ?2 = 0 LIMIT 1",
                )?
                .query_row(params![row, int(seq.0)], |row| row.get(0))
                .optional()?;
            Ok(whole)
        })
    }

    /// The position of the oldest frame that is kept: the head of the oldest run that is.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn oldest_kept(&self, session: SessionId) -> Result<Option<Position>, ReadError> {
        self.read(|conn| {
            let first: Option<u32> = conn
                .prepare_cached(
                    "SELECT ordinal FROM run WHERE pruned_ms IS NULL \
                     AND session = (SELECT id FROM session WHERE sid = ?1) \
                     ORDER BY ordinal LIMIT 1",
                )?
                .query_row(params![session.as_bytes()], |row| row.get(0))
                .optional()?;
            Ok(first.map(|ordinal| Position::new(Ordinal(ordinal), Seq(0))))
        })
    }

    /// The position of the last frame that is stored: what is durable of a session that is not
    /// in memory. `Position::START` if it has no run.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn end_of(&self, session: SessionId) -> Result<Position, ReadError> {
        self.read(|conn| {
            let end = conn
                .prepare_cached(
                    "SELECT ordinal, last_seq FROM run \
                     WHERE session = (SELECT id FROM session WHERE sid = ?1) \
                     ORDER BY ordinal DESC LIMIT 1",
                )?
                .query_row(params![session.as_bytes()], |row| {
                    Ok(Position::new(Ordinal(row.get(0)?), Seq(natural(row.get(1)?))))
                })
                .optional()?;
            Ok(end.unwrap_or(Position::START))
        })
    }
}

/// What a read may still take.
#[derive(Clone, Copy)]
pub(super) struct Budget {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

fn read_frames(
    conn: &Connection,
    session: SessionId,
    after: Position,
    upto: Position,
    budget: Budget,
) -> Result<Read, ReadError> {
    let mut runs = conn.prepare_cached(
        "SELECT id, rid, ordinal, last_seq, pruned_ms IS NOT NULL AS pruned FROM run \
         WHERE session = (SELECT id FROM session WHERE sid = ?1) AND ordinal BETWEEN ?2 AND ?3 \
         ORDER BY ordinal",
    )?;
    let bounds = params![session.as_bytes(), after.ordinal.0, upto.ordinal.0];
    let mut runs = runs.query_map(bounds, Run::read)?;
    let mut taken = Taken { frames: Vec::new(), left: budget };
    let mut gone: Option<Gone> = None;
    while let Some(run) = runs.next().transpose()? {
        // The cursor within this run: nothing of it, or its seq.
        let seen = (run.ordinal == after.ordinal).then_some(after.seq);
        let last =
            if run.ordinal == upto.ordinal { upto.seq.min(run.last_seq) } else { run.last_seq };
        if seen.is_some_and(|seen| seen >= last) {
            continue;
        }
        if run.pruned {
            if !taken.frames.is_empty() {
                break;
            }
            let from = run.place(seen.map_or(Seq(0), Seq::next));
            let gone = gone.get_or_insert(Gone { from, to: from, end: after });
            gone.to = run.place(last);
            gone.end = Position::new(run.ordinal, last);
            continue;
        }
        if let Some(gone) = gone {
            return Ok(Read::Gone(gone));
        }
        if !take_run(conn, &run, seen, last, &mut taken)? {
            break;
        }
    }
    Ok(gone.map_or(Read::Frames(taken.frames), Read::Gone))
}

/// Frames on their way out.
pub(super) struct Taken {
    pub(super) frames: Vec<Stored>,
    pub(super) left: Budget,
}

impl Taken {
    /// Takes a frame if the budget allows; always the first one.
    pub(super) fn push(&mut self, run: &Run, seq: Seq, body: Vec<u8>) -> Result<bool, ReadError> {
        let fits = self.left.rows > 0 && self.left.bytes >= body.len();
        if !fits && !self.frames.is_empty() {
            return Ok(false);
        }
        self.left.rows = self.left.rows.saturating_sub(1);
        self.left.bytes = self.left.bytes.saturating_sub(body.len());
        let at = Position::new(run.ordinal, seq);
        self.frames.push(Stored { run: run.id, at, text: frame_text(body)? });
        Ok(true)
    }
}

/// Takes a run's frames after `seen`, up to `last`. False when the budget is used up.
fn take_run(
    conn: &Connection,
    run: &Run,
    seen: Option<Seq>,
    last: Seq,
    taken: &mut Taken,
) -> Result<bool, ReadError> {
    if seen.is_none() {
        let head = conn
            .prepare_cached("SELECT body FROM head WHERE run = ?1")?
            .query_row([run.row], |row| row.get(0))?;
        if !taken.push(run, Seq(0), head)? {
            return Ok(false);
        }
    }
    let mut events = conn.prepare_cached(
        "SELECT seq, body FROM event WHERE run = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
    )?;
    let mut events = events.query(params![run.row, int(seen.unwrap_or(Seq(0)).0), int(last.0)])?;
    while taken.left.rows > 0 {
        let Some(event) = events.next()? else { return Ok(true) };
        if !taken.push(run, Seq(natural(event.get(0)?)), event.get(1)?)? {
            return Ok(false);
        }
    }
    Ok(false)
}
