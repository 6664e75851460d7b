//! Before the process: the one before it is gone, the run's rows are durable.

use crossbeam_channel::{Receiver, RecvTimeoutError, select};

use super::{FOREVER, Seat};
use crate::provider::Prompt;
use crate::registry::{Job, Started, end};
use crate::run::event::Reason;
use crate::run::id::Millis;
use crate::run::log::Settled;
use crate::run::wake::Waker;

/// Waits until the session's process before this one is gone and the run's rows are durable.
/// `false`: the run has ended before anything was started.
pub(super) fn wait_to_start(
    seat: &Seat,
    started: &Started,
    ticket: u64,
    waker: &Waker,
    wakes: &Receiver<()>,
) -> bool {
    let mut before = seat.before.clone();
    loop {
        let orders = seat.session.orders(started.run);
        if orders.ended {
            return false;
        }
        if orders.abort.is_some() {
            let end = end(Reason::Aborted, Some(0), None);
            seat.session.complete(started.run, &end, Millis::now());
            return false;
        }
        if let Some(gone) = before.take() {
            select! {
                recv(gone) -> _ => {}
                recv(wakes) -> _ => {
                    waker.take();
                    before = Some(gone);
                }
            }
            continue;
        }
        match seat.session.wake_when_settled(ticket, waker) {
            Settled::Committed => return true,
            Settled::Rejected => {
                let error = Some("The store refused this run's rows.".to_owned());
                let end = end(Reason::StoreRejected, None, error);
                seat.session.complete(started.run, &end, Millis::now());
                return false;
            }
            Settled::Waiting => match wakes.recv_timeout(FOREVER) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {
                    waker.take();
                }
                Err(RecvTimeoutError::Disconnected) => return false,
            },
        }
    }
}

/// Waits until a process of before is gone.
pub(super) fn wait_gone(gone: &Receiver<()>) {
    // Nothing is ever sent: its end says it.
    gone.recv().unwrap_or_default();
}

pub(super) fn prompt_of(job: &Job) -> Prompt {
    Prompt {
        content: job.content.clone(),
        options: job.options.clone(),
        cwd: job.cwd.clone(),
        native_id: job.native_id.as_ref().map(|id| id.0.clone()),
    }
}
