//! The store's and the evictor's side of a session: take, settle, reject, leave memory.

use super::{EndOfSession, Session};
use crate::registry::shelf::Loaded;
use crate::run::change::Batch;
use crate::run::id::{Millis, Position, RunId};
use crate::run::wake::Wakes;

impl Session {
    /// What its log holds in memory: frames, and their bytes (I7).
    #[must_use]
    pub fn log_weight(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.log.frames(), inner.log.bytes())
    }

    /// Whether something waits for the store.
    #[must_use]
    pub fn has_undurable(&self) -> bool {
        self.inner.lock().log.has_undurable()
    }

    /// What the store is to commit next.
    #[must_use]
    pub fn take(&self) -> Option<Batch> {
        self.inner.lock().log.take()
    }

    /// A batch is on disk. Says whether more waits.
    pub fn settle(&self, to: Position, ticket: u64) -> bool {
        let (wakes, more) = {
            let mut inner = self.inner.lock();
            let before = inner.log.bytes();
            let wakes = inner.log.settle(to, ticket);
            inner.runs.settled(to);
            self.budget.changed(before, inner.log.bytes());
            (wakes, inner.log.has_undurable())
        };
        wakes.wake();
        more
    }

    /// The store refuses what is not durable: it is gone, and the session is again what the disk
    /// has of it, `loaded`. The run that has no end there, if one, is given back to be ended as
    /// `store_rejected` (`complete_rejected`); until then nothing else is appended to it.
    ///
    /// The wakes are the caller's to carry out once it has let go of the registry's map.
    pub(in crate::registry) fn reject(&self, loaded: Loaded) -> (Wakes, Option<RunId>) {
        let mut inner = self.inner.lock();
        let before = inner.log.bytes();
        let settled = inner.log.settled_ticket();
        let mut wakes = inner.log.reject();
        self.budget.changed(before, inner.log.bytes());
        inner.runs.roll_back(loaded.newest, loaded.permissions, settled);
        inner.row = loaded.row;
        inner.queue = loaded.queue;
        inner.answers.clear();
        if let Some((_, worker)) = &inner.worker {
            wakes.other(worker.clone());
        }
        inner.rejected = inner.runs.running().map(|run| run.id);
        (wakes, inner.rejected)
    }

    /// Takes completed runs whose own retention is over out of memory (I13); gives the time of
    /// the next one, and whether the whole session may leave.
    pub fn evict(&self, now: Millis, retention_ms: i64) -> (Option<Millis>, bool) {
        self.inner.lock().evict(now, retention_ms, &self.budget)
    }

    /// Marks it as out of memory, if it is still idle. The caller holds the registry's map.
    pub fn try_leave(&self, now: Millis, retention_ms: i64) -> bool {
        let mut inner = self.inner.lock();
        let (_, idle) = inner.evict(now, retention_ms, &self.budget);
        if idle {
            inner.end = Some(EndOfSession::Evicted);
        }
        idle
    }

    /// Drops durable frames until `bytes` are freed. Only a completed newest run's, if `completed`.
    pub fn trim(&self, bytes: usize, completed: bool) -> usize {
        let mut inner = self.inner.lock();
        if completed && inner.runs.running().is_some() {
            return 0;
        }
        let before = inner.log.bytes();
        let freed = inner.log.trim(bytes);
        self.budget.changed(before, inner.log.bytes());
        freed
    }
}
