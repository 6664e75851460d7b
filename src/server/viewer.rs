//! Tells the notifier that a client says it is visible, and what it follows.
//!
//! Must not know sockets, or what a notification is.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::notify::presence::{Presence, Seat};
use crate::run::id::SessionId;
use crate::server::subscriber::{Subscriber, Ticket};
use crate::sync::Arc;

/// One connection's side of it. Costs a hidden client nothing.
#[derive(Debug, Default)]
pub struct Viewer(Option<Viewing>);

#[derive(Debug)]
struct Viewing {
    seat: Seat,
    follows: BTreeSet<SessionId>,
}

impl Viewer {
    /// After each turn: what the client says of itself by now, and when it was heard in it.
    pub fn update<T: Ticket>(
        &mut self,
        presence: &Arc<Presence>,
        subscriber: &Subscriber<T>,
        heard: Option<Instant>,
    ) {
        if !subscriber.is_visible() {
            self.0 = None;
            return;
        }
        let Some(viewing) = &mut self.0 else {
            let follows: BTreeSet<_> = subscriber.followed().collect();
            let seat = presence.sit(heard.unwrap_or_else(Instant::now), follows.clone());
            self.0 = Some(Viewing { seat, follows });
            return;
        };
        if let Some(at) = heard {
            viewing.seat.heard(at);
        }
        if !subscriber.followed().eq(viewing.follows.iter().copied()) {
            viewing.follows = subscriber.followed().collect();
            viewing.seat.follow(viewing.follows.clone());
        }
    }
}
