//! What is on its way to disk, as those see it who wait for it. Must not know what it is.

use crate::registry::Session;
use crate::registry::desk::Desk;
use crate::run::log::Settled;
use crate::run::wake::Waker;
use crate::sync::Arc;

/// Something that is on its way to disk.
#[derive(Clone, Debug)]
pub struct Pending(Option<Way>);

#[derive(Clone, Debug)]
enum Way {
    Session(Arc<Session>, u64),
    Server(Arc<Desk>, u64),
}

impl Pending {
    /// For what is on disk already.
    #[must_use]
    pub const fn done() -> Self {
        Self(None)
    }

    pub(super) const fn of(session: Arc<Session>, ticket: u64) -> Self {
        Self(Some(Way::Session(session, ticket)))
    }

    pub(super) const fn of_server(desk: Arc<Desk>, ticket: u64) -> Self {
        Self(Some(Way::Server(desk, ticket)))
    }

    /// How it stands.
    #[must_use]
    pub fn settled(&self) -> Settled {
        match &self.0 {
            None => Settled::Committed,
            Some(Way::Session(session, ticket)) => session.settled(*ticket),
            Some(Way::Server(desk, ticket)) => desk.settled(*ticket),
        }
    }

    /// Wakes `waker` (its `other`) once it is settled; says how it stands now.
    #[must_use]
    pub fn wake(&self, waker: &Waker) -> Settled {
        match &self.0 {
            None => Settled::Committed,
            Some(Way::Session(session, ticket)) => session.wake_when_settled(*ticket, waker),
            Some(Way::Server(desk, ticket)) => desk.wake_when_settled(*ticket, waker),
        }
    }
}
