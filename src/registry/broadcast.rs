//! What every connection hears: which sessions changed, how the store is, whether the server
//! stops.
//!
//! A bounded ring of ids, read by cursor; an id enters only after the commit of its change. Who
//! fell off the ring is told to fetch the list again. Store state and draining are a current value
//! with a version. Must not know what a session looks like on the wire.

use std::collections::{BTreeSet, VecDeque};

use crate::limits;
use crate::run::id::SessionId;
use crate::run::wake::Waker;
use crate::sync::Mutex;

/// The broadcasts.
#[derive(Debug, Default)]
pub struct Broadcasts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Change>,
    /// The number of the ring's next entry.
    next: u64,
    store: (u64, StoreState),
    draining: Option<Mode>,
    watchers: Vec<(Waker, bool)>,
}

#[derive(Clone, Copy, Debug)]
struct Change {
    session: SessionId,
    deleted: bool,
}

/// What happens to runs when the server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are aborted.
    Abort,
    /// They go on.
    Keep,
}

/// Whether the store can commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// It can.
    #[default]
    Good,
    /// It cannot, for the time being; SQLite's word for why.
    Bad(&'static str),
}

/// How far a connection has read the broadcasts.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnnouncementCursor {
    next: u64,
    store: u64,
    draining: bool,
}

/// What is new to a connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Sessions that changed, each once, in the order of their latest change.
    pub changed: Vec<SessionId>,
    /// Sessions that were deleted.
    pub deleted: Vec<SessionId>,
    /// It fell off the ring: the whole list may have changed.
    pub lost: bool,
    /// The store's state changed to this.
    pub store: Option<StoreState>,
    /// The server stops.
    pub draining: Option<Mode>,
}

impl Broadcasts {
    /// A cursor at the end: what comes from now on. The store's state is news if it is bad.
    pub fn join(&self, waker: &Waker) -> AnnouncementCursor {
        let mut state = self.0.lock();
        if !state.watchers.iter().any(|(watcher, _)| watcher.is(waker)) {
            state.watchers.push((waker.clone(), true));
        }
        let store = if state.store.1 == StoreState::Good { state.store.0 } else { u64::MAX };
        AnnouncementCursor { next: state.next, store, draining: false }
    }

    /// The connection is gone.
    pub fn leave(&self, waker: &Waker) {
        self.0.lock().watchers.retain(|(watcher, _)| !watcher.is(waker));
    }

    /// What is new; the connection is armed for what comes next.
    pub fn read(&self, waker: &Waker, cursor: &mut AnnouncementCursor) -> Announced {
        let mut state = self.0.lock();
        if let Some((_, armed)) = state.watchers.iter_mut().find(|(watcher, _)| watcher.is(waker)) {
            *armed = true;
        }
        let mut news = Announced::default();
        let oldest = state.next - state.ring.len() as u64;
        news.lost = cursor.next < oldest;
        let skip = usize::try_from(cursor.next.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let mut seen = BTreeSet::new();
        for change in state.ring.iter().skip(skip).rev() {
            if seen.insert(change.session) {
                let list = if change.deleted { &mut news.deleted } else { &mut news.changed };
                list.push(change.session);
            }
        }
        news.changed.reverse();
        news.deleted.reverse();
        if cursor.store != state.store.0 {
            news.store = Some(state.store.1);
        }
        news.draining = state.draining.filter(|_| !cursor.draining);
        *cursor = AnnouncementCursor {
            next: state.next,
            store: state.store.0,
            draining: state.draining.is_some(),
        };
        news
    }

    /// These changes were committed.
    pub fn announce(&self, changes: impl IntoIterator<Item = (SessionId, bool)>) {
        self.publish(|state| {
            let before = state.next;
            for (session, deleted) in changes {
                if state.ring.len() >= limits::BROADCAST_RING_MAX {
                    state.ring.pop_front();
                }
                state.ring.push_back(Change { session, deleted });
                state.next += 1;
            }
            state.next != before
        });
    }

    /// The store's state.
    #[must_use]
    pub fn store(&self) -> StoreState {
        self.0.lock().store.1
    }

    /// The store can, or cannot, commit.
    pub fn set_store(&self, store: StoreState) {
        self.publish(|state| {
            let changed = state.store.1 != store;
            if changed {
                state.store = (state.store.0 + 1, store);
            }
            changed
        });
    }

    /// The server stops.
    pub fn set_draining(&self, mode: Mode) {
        self.publish(|state| {
            state.draining = Some(mode);
            true
        });
    }

    fn publish(&self, change: impl FnOnce(&mut State) -> bool) {
        let wakes: Vec<Waker> = {
            let mut state = self.0.lock();
            if !change(&mut state) {
                return;
            }
            state
                .watchers
                .iter_mut()
                .filter_map(|(watcher, armed)| std::mem::take(armed).then(|| watcher.clone()))
                .collect()
        };
        for waker in wakes {
            waker.wake_broadcast();
        }
    }
}
