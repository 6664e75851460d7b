//! The session's queue: prompts that wait for its run to end (I19).

use super::{Begun, EndOfSession, Inner, Session};
use crate::run::change::Change;
use crate::run::id::{Millis, Position, QueueId};
use crate::run::queue::Queued;

/// What became of a prompt that may wait.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::registry) enum Enqueued {
    /// It waits.
    Waiting {
        /// As what.
        id: QueueId,
        /// Its place, from 1.
        position: usize,
        /// Where the log ended then: what follows is news to its sender.
        cursor: Position,
        /// Settled once its place is durable.
        ticket: u64,
    },
    /// Nothing is on: its run may begin at once.
    Free,
    /// No room (I7). Nothing changed.
    Full,
    /// The same message is known here, or the session takes nothing new.
    Refused(Begun),
}

impl Session {
    /// A prompt takes its place behind the run that is on, if one is.
    pub(in crate::registry) fn enqueue(&self, queued: Queued) -> Enqueued {
        let mut inner = self.inner.lock();
        match inner.obstacle(queued.client_message_id.as_ref()) {
            None => return Enqueued::Free,
            Some(Begun::Busy) => {}
            Some(obstacle) => return Enqueued::Refused(obstacle),
        }
        if !inner.queue.has_room(&queued) {
            return Enqueued::Full;
        }
        inner.row.updated_at = queued.at;
        let (id, cursor) = (queued.id, inner.log.end());
        let ticket = inner.log.record(Change::Queued(Box::new(queued.clone())));
        let position = inner.queue.push(queued, ticket);
        Enqueued::Waiting { id, position, cursor, ticket }
    }

    /// The prompt whose run may begin now.
    #[must_use]
    pub fn next_queued(&self) -> Option<Queued> {
        let inner = self.inner.lock();
        inner.is_ready().then(|| inner.queue.ready().cloned()).flatten()
    }

    /// Takes a waiting prompt out; `None` if it does not wait (any more).
    pub(in crate::registry) fn remove_queued(
        &self,
        id: QueueId,
        now: Millis,
    ) -> Result<Option<u64>, EndOfSession> {
        let mut inner = self.inner.lock();
        if let Some(end) = inner.gone() {
            return Err(end);
        }
        if !inner.queue.remove(id) {
            return Ok(None);
        }
        inner.row.updated_at = now;
        Ok(Some(inner.log.record(Change::QueueRemoved { id, at: now })))
    }

    /// A queue that an abort held goes on.
    pub(in crate::registry) fn resume_queue(&self, now: Millis) -> Result<u64, EndOfSession> {
        let mut inner = self.inner.lock();
        if let Some(end) = inner.gone() {
            return Err(end);
        }
        inner.queue.resume();
        inner.row.updated_at = now;
        Ok(inner.log.record(Change::QueueResumed { at: now }))
    }
}

impl Inner {
    /// Whether a prompt has to wait: a run is on, or the first one in the queue is about to begin.
    pub(super) fn is_busy(&self) -> bool {
        self.runs.running().is_some() || self.queue.ready().is_some()
    }

    /// Whether the first prompt of the queue may begin its run.
    pub(super) fn is_ready(&self) -> bool {
        self.end.is_none() && self.runs.running().is_none() && self.queue.ready().is_some()
    }

    /// What stands against the run of a queued prompt.
    pub(super) fn obstacle_of_queued(&self, id: QueueId) -> Option<Begun> {
        self.obstacle_of_any().or_else(|| {
            let turn = self.queue.ready().is_some_and(|queued| queued.id == id);
            (!turn).then_some(Begun::Busy)
        })
    }
}
