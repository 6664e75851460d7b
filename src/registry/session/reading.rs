//! What readers and those who wait for a commit get of a session.

use super::{EndOfSession, Inner, Session};
use crate::run::id::{Ordinal, Position, RunId, Seq};
use crate::run::log::{Read, Settled};
use crate::run::state::Statement;
use crate::run::wake::Waker;

/// What a subscriber learns at the moment of its subscribe.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The session's durable state.
    pub statement: Statement,
    /// The durable position.
    pub durable: Position,
    /// The newest position that only the disk holds.
    pub evicted: Position,
}

impl Session {
    /// How a ticket stands.
    #[must_use]
    pub fn settled(&self, ticket: u64) -> Settled {
        self.inner.lock().log.settled(ticket)
    }

    /// Wakes `waker` when the ticket is settled; says how it stands now.
    pub fn wake_when_settled(&self, ticket: u64, waker: &Waker) -> Settled {
        self.inner.lock().log.wake_when_settled(ticket, waker)
    }

    /// Gives `waker` a slot and says what is durable, in one step. `Err` if the session left
    /// memory or is deleted.
    pub fn watch(&self, waker: &Waker) -> Result<Watched, EndOfSession> {
        let mut inner = self.inner.lock();
        if let Some(end) = inner.gone() {
            return Err(end);
        }
        inner.log.watch(waker);
        Ok(inner.watched())
    }

    /// What is durable, without a slot.
    #[must_use]
    pub fn look(&self) -> Watched {
        self.inner.lock().watched()
    }

    /// Takes `waker`'s slot away.
    pub fn unwatch(&self, waker: &Waker) {
        self.inner.lock().log.unwatch(waker);
    }

    /// `waker` is gone: its slot and its tickets.
    pub fn forget(&self, waker: &Waker) {
        let mut inner = self.inner.lock();
        inner.log.unwatch(waker);
        inner.log.stop_waiting(waker);
    }

    /// A run's place and newest seq on disk, if memory knows the run.
    #[must_use]
    pub fn locate(&self, run: RunId) -> Option<(Ordinal, Seq)> {
        let inner = self.inner.lock();
        let durable = inner.log.durable();
        let run = inner.runs.get(run)?;
        match run.ordinal.cmp(&durable.ordinal) {
            std::cmp::Ordering::Less => Some((run.ordinal, run.last_seq)),
            std::cmp::Ordering::Equal => Some((run.ordinal, durable.seq)),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// The id of the run with this place, if memory knows it.
    #[must_use]
    pub fn run_at(&self, ordinal: Ordinal) -> Option<RunId> {
        self.inner.lock().runs.at(ordinal).map(|run| run.id)
    }

    /// What comes after a cursor, as far as memory has it.
    pub fn read(&self, cursor: Position, budget: usize, waker: &Waker) -> Read {
        self.inner.lock().log.read(cursor, budget, waker)
    }
}

impl Inner {
    pub(super) fn watched(&self) -> Watched {
        let durable = self.log.durable();
        Watched { statement: self.runs.statement(durable), durable, evicted: self.log.evicted() }
    }
}
