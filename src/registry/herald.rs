//! Who is told of what a person may want to hear of: requests that wait, runs that ended.
//!
//! The store thread tells it after the commit, so nobody hears of what a crash could take back, and
//! a restart, which folds without committing, tells nothing twice. What is told is small and names
//! what is on disk; the rest is read there. Must not know how people are reached.

use crate::registry::Registry;
use crate::run::change::{Batch, Item, Mark};
use crate::run::event::Reason;
use crate::run::id::{Position, RequestId, SessionId};

/// Hears of it, on the store thread: it must not wait for anything.
pub trait Herald: Send + Sync {
    /// Something is on disk that somebody may want to hear of.
    fn tell(&self, notable: Notable);
}

/// Something on disk that somebody may want to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notable {
    /// In which session.
    pub session: SessionId,
    /// Its event.
    pub at: Position,
    /// What it is.
    pub what: Occasion,
}

/// What somebody may want to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// An agent waits for an answer.
    Asked(RequestId),
    /// A run ended.
    Ended {
        /// Why.
        reason: Reason,
        /// Whether it succeeded.
        success: bool,
        /// Whether somebody stopped it.
        aborted: bool,
    },
}

impl Registry {
    /// Who is told. Set once, before anything is committed.
    pub fn set_herald(&self, herald: Box<dyn Herald>) {
        assert!(self.herald.set(herald).is_ok(), "the herald is set once");
    }

    /// Tells of what was just committed.
    pub(super) fn tell_herald(&self, batch: &Batch) {
        let Some(herald) = self.herald.get() else { return };
        for item in &batch.items {
            let Item::Frame(frame) = item else { continue };
            let what = match frame.mark.as_deref() {
                Some(Mark::PermissionOpened { request, .. }) => Occasion::Asked(request.clone()),
                Some(Mark::Complete(end)) => Occasion::Ended {
                    reason: end.complete.reason,
                    success: end.complete.success,
                    aborted: end.complete.aborted,
                },
                _ => continue,
            };
            herald.tell(Notable { session: batch.session, at: frame.at, what });
        }
    }
}
