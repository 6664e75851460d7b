//! Who says that a session is on a screen before their eyes.
//!
//! A notification is left out only because of a client that *said* that it is visible, follows the
//! session, and was heard from lately. Whatever is not known counts as nobody. Must not know
//! connections.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::run::id::SessionId;
use crate::sync::{Arc, Mutex};

/// The clients that say that they are visible.
#[derive(Debug)]
pub struct Presence {
    /// How long silence counts as presence.
    lately: Duration,
    viewers: Mutex<Viewers>,
}

#[derive(Debug, Default)]
struct Viewers {
    next: u64,
    seats: BTreeMap<u64, Viewer>,
}

#[derive(Debug)]
struct Viewer {
    heard: Instant,
    follows: BTreeSet<SessionId>,
}

/// A visible client's place; it is gone when this is dropped.
#[derive(Debug)]
pub struct Seat {
    presence: Arc<Presence>,
    number: u64,
}

impl Presence {
    /// Nobody is there yet. A client counts for `lately` after it was last heard from.
    #[must_use]
    pub fn new(lately: Duration) -> Self {
        Self { lately, viewers: Mutex::new(Viewers::default()) }
    }

    /// A client says that it is visible.
    #[must_use]
    pub fn sit(self: &Arc<Self>, heard: Instant, follows: BTreeSet<SessionId>) -> Seat {
        let mut viewers = self.viewers.lock();
        let number = viewers.next;
        viewers.next += 1;
        viewers.seats.insert(number, Viewer { heard, follows });
        Seat { presence: self.clone(), number }
    }

    /// Whether somebody looks at a session.
    #[must_use]
    pub fn sees(&self, session: SessionId, now: Instant) -> bool {
        let viewers = self.viewers.lock();
        viewers.seats.values().any(|viewer| {
            now.saturating_duration_since(viewer.heard) <= self.lately
                && viewer.follows.contains(&session)
        })
    }
}

impl Seat {
    /// The client was heard from.
    pub fn heard(&self, at: Instant) {
        if let Some(viewer) = self.presence.viewers.lock().seats.get_mut(&self.number) {
            viewer.heard = at;
        }
    }

    /// The client follows these sessions, and no others any more.
    pub fn follow(&self, sessions: BTreeSet<SessionId>) {
        if let Some(viewer) = self.presence.viewers.lock().seats.get_mut(&self.number) {
            viewer.follows = sessions;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.presence.viewers.lock().seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_says_so_follows_and_lives_is_present() {
        let presence = Arc::new(Presence::new(Duration::from_secs(32)));
        let (one, other) = (SessionId::from_u128(1), SessionId::from_u128(2));
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(!presence.sees(one, start), "nobody is there");
        let seat = presence.sit(start, BTreeSet::from([one]));
        assert!(presence.sees(one, later(32)));
        assert!(!presence.sees(other, start), "it does not follow that one");
        assert!(!presence.sees(one, later(33)), "it may be gone");
        seat.heard(later(30));
        assert!(presence.sees(one, later(33)));
        seat.follow(BTreeSet::from([other]));
        assert!(!presence.sees(one, later(33)));
        assert!(presence.sees(other, later(33)));
        drop(seat);
        assert!(!presence.sees(other, later(33)), "it says so no longer");
    }
}
