//! Wake-ups: hints to look again, which carry no data.
//!
//! A `Waker` belongs to one thread that sleeps (a connection, a worker, the store). What is ready
//! and whether it has been told lie under one lock (I4c): a publisher inserts and, if nobody was
//! told yet, rings; the owner drains its bell FIRST, then takes what is ready and clears
//! `notified` in one step. Another order loses wake-ups.
//! Must not know what the bell is: a pipe, a channel, a condition.

use std::collections::BTreeSet;
use std::fmt;

use crate::run::id::SessionId;
use crate::sync::{Arc, Mutex};

/// How a sleeping thread is made to look again.
pub trait Bell: Send + Sync {
    /// Wakes the owner. Never blocks; called without a lock held.
    fn ring(&self);
}

/// What a thread is to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// Sessions whose log has something new.
    pub sessions: BTreeSet<SessionId>,
    /// The broadcasts have something new.
    pub broadcast: bool,
    /// Something this thread waits for was settled: a ticket, room in a log, an order.
    pub other: bool,
}

/// The address of a thread that sleeps. Clones are the same address.
#[derive(Clone)]
pub struct Waker(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    bell: Box<dyn Bell>,
}

#[derive(Default)]
struct State {
    ready: Woken,
    notified: bool,
}

impl Waker {
    /// A waker that rings `bell`.
    #[must_use]
    pub fn new(bell: Box<dyn Bell>) -> Self {
        Self(Arc::new(Inner { state: Mutex::new(State::default()), bell }))
    }

    /// A session has something new.
    pub fn wake_session(&self, session: SessionId) {
        self.wake(|ready| {
            ready.sessions.insert(session);
        });
    }

    /// The broadcasts have something new.
    pub fn wake_broadcast(&self) {
        self.wake(|ready| ready.broadcast = true);
    }

    /// Something else was settled.
    pub fn wake_other(&self) {
        self.wake(|ready| ready.other = true);
    }

    /// What is ready, and from now on the next wake rings again, in one step.
    ///
    /// Drain the bell before calling this, never after.
    pub fn take(&self) -> Woken {
        let mut state = self.0.state.lock();
        state.notified = false;
        std::mem::take(&mut state.ready)
    }

    /// Whether both are the same thread's.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn wake(&self, mark: impl FnOnce(&mut Woken)) {
        let ring = {
            let mut state = self.0.state.lock();
            mark(&mut state.ready);
            !std::mem::replace(&mut state.notified, true)
        };
        if ring {
            self.0.bell.ring();
        }
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waker").field(&Arc::as_ptr(&self.0)).finish()
    }
}

/// Wakes that are due, gathered under a lock and carried out after it (I16).
#[must_use = "a wake that is not carried out is lost"]
#[derive(Debug, Default)]
pub struct Wakes {
    sessions: Vec<(Waker, SessionId)>,
    others: Vec<Waker>,
}

impl Wakes {
    pub(crate) fn session(&mut self, waker: Waker, session: SessionId) {
        self.sessions.push((waker, session));
    }

    pub(crate) fn other(&mut self, waker: Waker) {
        self.others.push(waker);
    }

    pub(crate) fn append(&mut self, mut more: Self) {
        self.sessions.append(&mut more.sessions);
        self.others.append(&mut more.others);
    }

    /// Carries them out. Call it with no lock held.
    pub fn wake(self) {
        for (waker, session) in self.sessions {
            waker.wake_session(session);
        }
        for waker in self.others {
            waker.wake_other();
        }
    }
}
