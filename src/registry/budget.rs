//! The memory that all logs share, and who waits for some of it (I7).
//!
//! The total is an atomic sum; the store trims it, one session lock at a time. A worker that was
//! answered `Full` leaves its waker here and then tries once more. Must not know what a frame is.

use std::sync::OnceLock;

use crate::limits::Limits;
use crate::run::id::SessionId;
use crate::run::log::{Bounds, Log};
use crate::run::wake::Waker;
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// The bounds of all logs, and what they hold.
#[derive(Debug)]
pub struct Budget {
    bounds: Bounds,
    total_max: usize,
    event_bytes_max: usize,
    total: AtomicUsize,
    starving: Mutex<Vec<Waker>>,
    store: Waker,
    /// The waker of the thread that begins the runs of queued prompts, once there is one.
    queue: OnceLock<Waker>,
}

impl Budget {
    /// An empty budget. `store` is the store thread's waker: appends wake it, and no one else.
    #[must_use]
    pub fn new(limits: &Limits, store: Waker) -> Self {
        Self {
            bounds: Bounds { frames_max: limits.ring_events_max, bytes_max: limits.ring_bytes_max },
            total_max: limits.ring_total_bytes_max,
            event_bytes_max: limits.event_bytes_max,
            total: AtomicUsize::new(0),
            starving: Mutex::new(Vec::new()),
            store,
            queue: OnceLock::new(),
        }
    }

    /// Who begins the runs of queued prompts. Set once.
    pub fn set_queue(&self, waker: Waker) {
        assert!(self.queue.set(waker).is_ok(), "the queue's thread is set once");
    }

    /// A session's run has ended and a prompt waits.
    pub fn wake_queue(&self, session: SessionId) {
        if let Some(queue) = self.queue.get() {
            queue.wake_session(session);
        }
    }

    /// One event, encoded, in bytes.
    #[must_use]
    pub const fn event_bytes_max(&self) -> usize {
        self.event_bytes_max
    }

    /// Bytes above the total's bound.
    #[must_use]
    pub fn excess(&self) -> usize {
        self.total.load(Ordering::Relaxed).saturating_sub(self.total_max)
    }

    /// Bytes in all logs.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// `waker` was answered `Full`: it is woken after the store's next round. Try once more after
    /// this call.
    pub fn starve(&self, session: SessionId, waker: &Waker) {
        self.starving.lock().push(waker.clone());
        self.wake_store(session);
    }

    /// Wakes all who were answered `Full`, whichever bound refused them.
    pub fn feed(&self) {
        let starving = std::mem::take(&mut *self.starving.lock());
        for waker in starving {
            waker.wake_other();
        }
    }

    /// The session has something for the store.
    pub fn wake_store(&self, session: SessionId) {
        self.store.wake_session(session);
    }

    /// Whether a group of an agent may be appended; makes room in its own log first.
    pub(crate) fn admits(&self, log: &mut Log, frames: usize, bytes: usize) -> bool {
        if !log.make_room(frames, bytes, self.bounds) {
            return false;
        }
        // A group that finds its session's log all durable is admitted whatever the total:
        // otherwise one session could be starved for ever by the others.
        self.total.load(Ordering::Relaxed) + bytes <= self.total_max || log.durable() == log.end()
    }

    /// A log's size changed.
    pub(crate) fn changed(&self, before: usize, after: usize) {
        if after >= before {
            self.total.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.total.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::oracle::Alarm;
    use crate::run::change::Frame;
    use crate::run::id::{Ordinal, Position, Seq};

    const SESSION: SessionId = SessionId::from_u128(1);

    fn at(seq: u64) -> Position {
        Position::new(Ordinal(1), Seq(seq))
    }

    fn push(budget: &Budget, log: &mut Log, seq: u64, bytes: usize) {
        let text = "x".repeat(bytes).into();
        let before = log.bytes();
        log.push(vec![Frame {
            at: at(seq),
            text,
            mark: None,
            whole: None,
            group_end: true,
            offset: 0,
        }]);
        budget.changed(before, log.bytes());
    }

    fn budget(total: usize) -> (Budget, Alarm) {
        let bell = Alarm::new();
        let limits = Limits { ring_total_bytes_max: total, ..Limits::default() };
        (Budget::new(&limits, Waker::new(Box::new(bell.clone()))), bell)
    }

    #[test]
    fn the_total_is_exact_and_starves_nobody_whose_log_is_durable() {
        let (budget, _) = budget(100);
        let mut one = Log::new(SESSION, Position::START);
        let mut two = Log::new(SessionId::from_u128(2), Position::START);
        push(&budget, &mut one, 0, 60);
        assert!(budget.admits(&mut one, 1, 40), "I7: just fits");
        assert!(!budget.admits(&mut one, 1, 41), "I7: a byte too much");
        assert!(
            budget.admits(&mut two, 1, 41),
            "it has nothing that could be written to make room"
        );
        push(&budget, &mut one, 1, 41);
        assert_eq!((budget.total(), budget.excess()), (101, 1));
    }

    #[test]
    fn who_starves_is_fed_once_and_the_store_is_told() {
        let (budget, store) = budget(100);
        let bell = Alarm::new();
        budget.starve(SESSION, &Waker::new(Box::new(bell.clone())));
        assert!(store.drain(), "I4c: the store is to make room");
        budget.feed();
        assert!(bell.drain(), "I4c");
        budget.feed();
        assert!(!bell.drain());
    }
}
