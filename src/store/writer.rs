//! The one value that writes: batches in, one transaction out.
//!
//! Owned by a single thread. Must not know when to retry, whom to wake, or what to do about a
//! session whose rows are refused.

use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::apply::{Known, Refusal, Sum, apply};
use super::error::{Class, CommitError, word};
use super::files::DataDir;
use super::{PAGE_BYTES, set_max_page_count};
use crate::run::change::Batch;

/// The writing end of the store, with the lock on its data directory.
#[derive(Debug)]
pub struct Writer {
    pub(super) conn: Connection,
    pub(super) known: Known,
    /// Bytes of heads, events and blobs that are not retired.
    pub(super) bytes: i64,
    pub(super) files: DataDir,
    pub(super) ballast: bool,
    page_limit: Option<u32>,
    took: (Duration, Duration),
}

/// What a commit wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Events, heads not counted.
    pub events: u64,
}

impl Writer {
    pub(super) fn new(
        conn: Connection,
        files: DataDir,
        page_limit: Option<u32>,
    ) -> rusqlite::Result<Self> {
        let bytes = conn.query_row(
            "SELECT ifnull(sum(bytes), 0) FROM run WHERE pruned_ms IS NULL",
            [],
            |row| row.get(0),
        )?;
        let ballast = files.make_ballast();
        let took = Default::default();
        Ok(Self { conn, known: Known::default(), bytes, files, ballast, page_limit, took })
    }

    /// Commits all of `batches` in one transaction, or nothing of them. When this returns `Ok`,
    /// it is on the disk (I8).
    ///
    /// # Errors
    /// `Retry`: try the same again later. `Constraint` names the session at fault: commit the
    /// batches one by one, and give the refused session's run an end instead, as a batch with
    /// `complete{store_rejected}` at the seq after its last durable one. `Fatal`: give up.
    pub fn commit(&mut self, batches: &[Batch]) -> Result<Committed, CommitError> {
        let result = self.try_commit(batches);
        match &result {
            Ok(sum) => self.bytes += sum.bytes,
            // Some of what is remembered may never have been committed.
            Err(_) => self.known.forget(),
        }
        result.map(|sum| Committed { events: sum.events })
    }

    fn try_commit(&mut self, batches: &[Batch]) -> Result<Sum, CommitError> {
        let mut sum = Sum::default();
        let begun = Instant::now();
        let tx = Transaction::new(&mut self.conn, TransactionBehavior::Immediate)
            .map_err(|error| whole(&error))?;
        for batch in batches {
            apply(&tx, &mut self.known, batch, &mut sum)
                .map_err(|refusal| of_session(batch, &refusal))?;
        }
        let written = Instant::now();
        tx.commit().map_err(|error| whole(&error))?;
        self.took = (written - begun, written.elapsed());
        Ok(sum)
    }

    /// Bytes of heads, events and blobs that retention has not retired.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(0)
    }

    /// How long the last commit took to write, and then to be flushed.
    #[must_use]
    pub const fn last_commit_took(&self) -> (Duration, Duration) {
        self.took
    }

    /// Deletes the ballast, so that a full disk has room for the last `complete`s. True if
    /// there was one. `retain` makes it again when there is ample room.
    pub fn drop_ballast(&mut self) -> bool {
        let dropped = self.files.drop_ballast();
        self.ballast = false;
        // Under a limit set for a test, the ballast's pages become free as they would on a disk.
        if let Some(pages) = self.page_limit.filter(|_| dropped) {
            let room = self.files.ballast_bytes() / u64::from(PAGE_BYTES);
            let pages = pages.saturating_add(u32::try_from(room).unwrap_or(u32::MAX));
            return set_max_page_count(&self.conn, pages).is_ok();
        }
        dropped
    }

    /// Sets another limit of pages, as `OpenOptions::max_page_count` did: a disk that gets
    /// room again.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn set_max_page_count(&mut self, pages: u32) -> Result<(), CommitError> {
        set_max_page_count(&self.conn, pages).map_err(|error| whole(&error))?;
        self.page_limit = Some(pages);
        Ok(())
    }

    /// An orderly end: the write-ahead log goes into the database, and the next start need not
    /// examine it. Without this call the next start does.
    ///
    /// # Errors
    /// `Retry` or `Fatal`; all that was committed is on disk in any case.
    pub fn close(self) -> Result<(), CommitError> {
        let end = |conn: &Connection| {
            conn.execute("UPDATE meta SET v = 1 WHERE k = 'clean'", [])?;
            // A reader at work only makes this an incomplete checkpoint, which is no loss.
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        end(&self.conn).map_err(|error| whole(&error))
    }
}

/// An error that is no session's own.
pub(super) fn whole(error: &rusqlite::Error) -> CommitError {
    let (code, message) = (word(error), error.to_string());
    match Class::of(error) {
        Class::Retry => CommitError::Retry { code, message },
        _ => CommitError::Fatal { code, message },
    }
}

/// An error while one session's batch was applied.
fn of_session(batch: &Batch, refusal: &Refusal) -> CommitError {
    let constraint = |message| CommitError::Constraint { session: Some(batch.session), message };
    match refusal {
        Refusal::Contradiction(what) => constraint(what.clone()),
        Refusal::Sqlite(error) if Class::of(error) == Class::Rows => constraint(error.to_string()),
        Refusal::Sqlite(error) => whole(error),
    }
}
