//! Retention: whole completed runs leave, oldest first, in slices that fit between two batches.
//!
//! A run is retired in one short transaction (its row stays as a tombstone, so that a gap can
//! name it); its events are then deleted little by little, and their pages given back to the
//! file system. A session that was deleted leaves the same way. Must not know when it is called.

use std::path::Path;

use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};

use super::backup::known_version;
use super::connect;
use super::error::{CommitError, OpenError};
use super::rows::natural;
use super::writer::{Writer, whole};
use crate::run::id::{Millis, RunId, SessionId};

/// Rows that one transaction deletes: about 10 ms of a slow disk's time.
const SLICE_ROWS: i64 = 500;
/// Free pages that one step gives back.
const SLICE_PAGES: i64 = 64;

/// What a call of `Writer::retain` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// The runs whose events are gone from now on.
    pub pruned: Vec<(SessionId, RunId)>,
    /// Whether there is more to do; call again after the next batch.
    pub more: bool,
}

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Completed runs that ended longer ago than this leave, in ms. 0 keeps all.
    pub age_ms: i64,
    /// The oldest completed runs leave until heads, events and blobs take at most this many
    /// bytes. 0 keeps all.
    pub bytes_max: u64,
}

/// Why a run leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It ended too long ago.
    Age,
    /// All that is kept takes too much room, and it is the one that ended first.
    Bytes,
}

impl Keep {
    /// Whether nothing at all leaves while `stored` bytes are kept.
    const fn keeps_all(&self, stored: u64) -> bool {
        self.age_ms <= 0 && !self.is_too_large(stored)
    }

    const fn is_too_large(&self, stored: u64) -> bool {
        self.bytes_max > 0 && stored > self.bytes_max
    }

    /// Whether `oldest`, the completed run that ended first, leaves while `stored` bytes are kept.
    fn takes(&self, now: Millis, stored: u64, oldest: &Oldest) -> Option<Why> {
        if self.age_ms > 0 && oldest.ended_at.plus(self.age_ms) < now {
            return Some(Why::Age);
        }
        self.is_too_large(stored).then_some(Why::Bytes)
    }
}

/// A run that would leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Its session.
    pub session: SessionId,
    /// Its id.
    pub run: RunId,
    /// When it ended.
    pub ended_at: Millis,
    /// Bytes of its head, events and blobs.
    pub bytes: u64,
    /// What it leaves for.
    pub why: Why,
}

/// What retention would take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of heads, events and blobs of all runs that are kept now.
    pub stored: u64,
    /// How many runs that is.
    pub runs: u64,
    /// What would leave, in the order in which it would.
    pub leaving: Vec<Leaving>,
}

/// What `Writer::retain` would take of the database at `path` if it were called at `now` with
/// `keep`, and went on until there is nothing to do. Changes nothing; another process may have the
/// database open.
///
/// # Errors
/// If it is no database of ours, or cannot be read.
pub fn plan(path: &Path, keep: Keep, now: Millis) -> Result<Plan, OpenError> {
    let sqlite = |source| OpenError::sqlite(path, source);
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
    known_version(&conn, path)?;
    let plan = || -> rusqlite::Result<Plan> {
        let snapshot = conn.unchecked_transaction()?;
        let (runs, stored) = snapshot.query_row(
            "SELECT count(*), ifnull(sum(bytes), 0) FROM run WHERE pruned_ms IS NULL",
            [],
            |row| Ok((natural(row.get(0)?), row.get(1)?)),
        )?;
        let mut plan = Plan { stored: natural(stored), runs, leaving: Vec::new() };
        let mut left = stored;
        let mut runs = snapshot.prepare(OLDEST_FIRST)?;
        let mut runs = runs.query([])?;
        while let Some(row) = runs.next()? {
            let oldest = Oldest::read(row)?;
            let Some(why) = keep.takes(now, natural(left), &oldest) else { break };
            left -= oldest.bytes;
            plan.leaving.push(Leaving {
                session: oldest.session,
                run: oldest.run,
                ended_at: oldest.ended_at,
                bytes: natural(oldest.bytes),
                why,
            });
        }
        Ok(plan)
    };
    plan().map_err(sqlite)
}

impl Writer {
    /// Works for about `budget_ms` by `clock`, at least one slice if there is something to do.
    /// Also finishes deletions of sessions, so it is to be called even if `keep` keeps all.
    ///
    /// # Errors
    /// `Retry` or `Fatal`; what was done before is done. Runs retired by this call before the
    /// error show in no answer: readers see them on disk.
    pub fn retain(
        &mut self,
        now: Millis,
        keep: Keep,
        budget_ms: i64,
        clock: &mut dyn FnMut() -> Millis,
    ) -> Result<Retained, CommitError> {
        let end = clock().plus(budget_ms);
        let mut done = Retained::default();
        loop {
            let worked = self.slice(now, keep, &mut done.pruned);
            if !worked.map_err(|error| whole(&error))? {
                break;
            }
            if clock() >= end {
                done.more = true;
                break;
            }
        }
        if !self.ballast {
            self.ballast = self.files.make_ballast();
        }
        Ok(done)
    }

    /// One step of work; false if there is none. Room is given back before more is taken, so
    /// what was retired is gone for good soon.
    fn slice(
        &mut self,
        now: Millis,
        keep: Keep,
        pruned: &mut Vec<(SessionId, RunId)>,
    ) -> rusqlite::Result<bool> {
        if sweep(&mut self.conn)? {
            return Ok(true);
        }
        if let Some((session, run, bytes)) = self.retire(now, keep)? {
            self.bytes -= bytes;
            pruned.push((session, run));
            return Ok(true);
        }
        give_back(&self.conn)
    }

    /// Turns the oldest completed run into a tombstone, if what is to be kept says so.
    fn retire(
        &mut self,
        now: Millis,
        keep: Keep,
    ) -> rusqlite::Result<Option<(SessionId, RunId, i64)>> {
        let stored = self.stored_bytes();
        if keep.keeps_all(stored) {
            return Ok(None);
        }
        let Some(oldest) = oldest(&self.conn)? else { return Ok(None) };
        if keep.takes(now, stored, &oldest).is_none() {
            return Ok(None);
        }
        let tx = Transaction::new(&mut self.conn, TransactionBehavior::Immediate)?;
        for sql in [
            "INSERT INTO garbage (run) VALUES (?1)",
            "DELETE FROM head WHERE run = ?1",
            "DELETE FROM open_tool WHERE run = ?1",
            "DELETE FROM permission WHERE run = ?1",
            "DELETE FROM command WHERE run = ?1",
        ] {
            tx.prepare_cached(sql)?.execute([oldest.row])?;
        }
        tx.prepare_cached("UPDATE run SET pruned_ms = ?2 WHERE id = ?1")?
            .execute(params![oldest.row, now.0])?;
        tx.commit()?;
        Ok(Some((oldest.session, oldest.run, oldest.bytes)))
    }
}

/// A completed run that still has its events.
struct Oldest {
    row: i64,
    session: SessionId,
    run: RunId,
    ended_at: Millis,
    bytes: i64,
}

/// Completed runs that have their events, the one that ended first first.
const OLDEST_FIRST: &str = "SELECT r.id, s.sid, r.rid, r.ended_ms, r.bytes FROM run r \
     JOIN session s ON s.id = r.session \
     WHERE r.state = 'completed' AND r.pruned_ms IS NULL ORDER BY r.ended_ms, r.id";

impl Oldest {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get(0)?,
            session: SessionId::from_bytes(row.get(1)?),
            run: RunId::from_bytes(row.get(2)?),
            ended_at: Millis(row.get(3)?),
            bytes: row.get(4)?,
        })
    }
}

/// The one that ended first.
fn oldest(conn: &Connection) -> rusqlite::Result<Option<Oldest>> {
    conn.prepare_cached(OLDEST_FIRST)?.query_row([], Oldest::read).optional()
}

/// Deletes a slice of what is in the garbage; false if there is none.
fn sweep(conn: &mut Connection) -> rusqlite::Result<bool> {
    let run: Option<i64> =
        conn.prepare_cached("SELECT min(run) FROM garbage")?.query_row([], |row| row.get(0))?;
    let Some(run) = run else { return Ok(false) };
    let tx = Transaction::new(conn, TransactionBehavior::Immediate)?;
    let mut left = SLICE_ROWS;
    for sql in [
        "DELETE FROM blob WHERE rowid IN \
         (SELECT rowid FROM blob WHERE run = ?1 ORDER BY seq LIMIT ?2)",
        "DELETE FROM event WHERE rowid IN \
         (SELECT rowid FROM event WHERE run = ?1 ORDER BY seq LIMIT ?2)",
    ] {
        let deleted = tx.prepare_cached(sql)?.execute(params![run, left])?;
        left -= i64::try_from(deleted).unwrap_or(left);
    }
    if left > 0 {
        tx.prepare_cached("DELETE FROM garbage WHERE run = ?1")?.execute([run])?;
    }
    tx.commit()?;
    Ok(true)
}

/// Gives free pages back to the file system; false if there are none.
fn give_back(conn: &Connection) -> rusqlite::Result<bool> {
    let free: i64 = conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    if free == 0 {
        return Ok(false);
    }
    // Each row of this pragma is one page's work: all have to be taken.
    let sql = format!("PRAGMA incremental_vacuum({SLICE_PAGES})");
    let mut step = conn.prepare_cached(&sql)?;
    let mut pages = step.query([])?;
    while pages.next()?.is_some() {}
    Ok(true)
}
