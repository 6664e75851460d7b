//! An agent whose keeper speaks another version's protocol: it is left alone until it ends.
//!
//! Its run stays running, since its agent is. An abort, or a prompt that needs the session's
//! process, stops it by a signal to its keeper, which every version understands.

use std::time::Duration;

use super::recover::{Recovered, end_as_lost};
use super::{Next, Seat, bell, sweep};
use crate::keeper::Home;
use crate::limits;
use crate::registry::end;
use crate::run::event::Reason;
use crate::run::id::Millis;
use crate::run::wake::Waker;

/// Waits for the end of the keeper.
pub(super) fn watch(seat: &Seat, recovered: &Recovered, version: &str) {
    let Recovered { session, stored, home, .. } = recovered;
    let run = stored.newest.id;
    let (bell, wakes) = bell();
    let waker = Waker::new(Box::new(bell));
    session.attach_worker(run, waker.clone());
    let pause = Duration::from_millis(limits::FOREIGN_LOOK_MS.unsigned_abs());
    let mut told = false;
    while home.is_alive().unwrap_or(false) {
        let orders = session.orders(run);
        if orders.let_go {
            return;
        }
        if !told && (orders.abort.is_some() || !seat.queue.borrow().is_empty()) {
            told = true;
            terminate(home);
        }
        crossbeam_channel::select! {
            recv(wakes) -> _ => {
                waker.take();
            }
            recv(seat.inbox) -> next => match next {
                Ok(Next::Job(job)) => seat.queue.borrow_mut().push_back(job),
                Ok(Next::Close) => {
                    told = true;
                    terminate(home);
                }
                Err(_) => return,
            },
            default(pause) => {}
        }
    }
    sweep(stored.agent);
    if let Some(open) = &stored.open {
        if session.orders(run).abort.is_some() {
            let end = end(Reason::Aborted, Some(1), None);
            session.complete(run, &end, Millis::now());
        } else {
            let why = format!(
                "The agent's keeper was of version {version}, whose journal this version cannot \
                 read; it has ended."
            );
            end_as_lost(session, open, &why);
        }
    }
    seat.clear_up(session, run, home);
}

fn terminate(home: &Home) {
    if let Err(error) = home.terminate() {
        let agent = home.agent();
        tracing::error!(%error, %agent, "a keeper of another version cannot be told to stop");
    }
}
