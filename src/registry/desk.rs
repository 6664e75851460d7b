//! Durable facts of no session on their way to disk, in order.
//!
//! The store takes them at the beginning of a round, in a transaction of their own. Bounded: who
//! comes while too many wait is told that the store does not keep up. Must not know SQLite.

use std::collections::{BTreeSet, VecDeque};

use crate::limits;
use crate::registry::{Refusal, RefusalCode};
use crate::run::log::Settled;
use crate::run::server_change::ServerChange;
use crate::run::wake::{Waker, Wakes};
use crate::sync::Mutex;

/// What waits for the store, and who waits for it.
#[derive(Debug)]
pub(super) struct Desk {
    state: Mutex<State>,
    store: Waker,
}

#[derive(Debug, Default)]
struct State {
    /// The last ticket given out.
    ticket: u64,
    changes: VecDeque<(u64, ServerChange)>,
    /// Tickets whose change was refused for good, the last ones.
    refused: BTreeSet<u64>,
    waiting: Vec<(u64, Waker)>,
}

impl Desk {
    /// An empty one. `store` is the store thread's waker.
    pub(super) fn new(store: Waker) -> Self {
        Self { state: Mutex::new(State::default()), store }
    }

    /// Puts a fact on its way and gives its ticket.
    pub(super) fn record(&self, change: ServerChange) -> Result<u64, Refusal> {
        let ticket = {
            let mut state = self.state.lock();
            if state.changes.len() >= limits::SERVER_CHANGES_MAX {
                return Err(Refusal::new(
                    RefusalCode::StoreUnavailable,
                    "The store does not keep up; try again when it does.",
                ));
            }
            state.ticket += 1;
            let ticket = state.ticket;
            state.changes.push_back((ticket, change));
            ticket
        };
        self.store.wake_other();
        Ok(ticket)
    }

    /// What the store is to commit next.
    pub(super) fn take(&self) -> Vec<(u64, ServerChange)> {
        self.state.lock().changes.iter().cloned().collect()
    }

    /// All up to this ticket is on disk, but for those in `refused`.
    pub(super) fn settle(&self, to: u64, refused: &[u64]) {
        let wakes = {
            let mut state = self.state.lock();
            while state.changes.front().is_some_and(|(ticket, _)| *ticket <= to) {
                state.changes.pop_front();
            }
            state.refused.extend(refused);
            while state.refused.len() > limits::SERVER_CHANGES_MAX {
                state.refused.pop_first();
            }
            let mut wakes = Wakes::default();
            state.waiting.retain(|(ticket, waker)| {
                let settled = *ticket <= to;
                if settled {
                    wakes.other(waker.clone());
                }
                !settled
            });
            wakes
        };
        wakes.wake();
    }

    /// Whether something waits for the store.
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().changes.is_empty()
    }

    /// How a ticket stands.
    pub(super) fn settled(&self, ticket: u64) -> Settled {
        self.state.lock().settled(ticket)
    }

    /// Wakes `waker` when the ticket is settled; says whether it is already.
    pub(super) fn wake_when_settled(&self, ticket: u64, waker: &Waker) -> Settled {
        let mut state = self.state.lock();
        let settled = state.settled(ticket);
        if settled == Settled::Waiting {
            state.waiting.push((ticket, waker.clone()));
        }
        settled
    }

    /// Whoever that is waits for nothing here any more.
    pub(super) fn forget(&self, waker: &Waker) {
        self.state.lock().waiting.retain(|(_, waiting)| !waiting.is(waker));
    }
}

impl State {
    fn settled(&self, ticket: u64) -> Settled {
        if self.refused.contains(&ticket) {
            Settled::Rejected
        } else if self.changes.front().is_some_and(|(first, _)| *first <= ticket) {
            Settled::Waiting
        } else {
            Settled::Committed
        }
    }
}
