//! Who sleeps is woken: for room in a log, for a ticket, for an order.

use std::collections::BTreeSet;

use reattach::limits::Limits;
use reattach::oracle::{Alarm, Fault};
use reattach::registry::{Admission, Refused};
use reattach::run::id::SessionId;
use reattach::run::log::Settled;
use reattach::run::wake::Waker;

use super::world::{NOW, S, World, by, complete, frame, spawn, text};

/// A worker whose log is full waits for the store's rounds; memory stays within its bound (I7).
pub(crate) fn room_and_rounds() {
    let world = World::with(Limits { ring_events_max: 2, ..Limits::default() });
    let (session, run) = world.running();
    let worker = {
        let (world, session) = (world.clone(), session.clone());
        spawn(move || {
            let bell = Alarm::new();
            let waker = Waker::new(Box::new(bell.clone()));
            let mut waiting = false;
            let mut left = 3;
            while left > 0 {
                let seq = session.next_seq(run).expect("nobody else ends it");
                let group = vec![frame(run, 1, seq, &text("x"), None)];
                match session.append(run, group, Admission::Agent) {
                    Ok(()) => (left, waiting) = (left - 1, false),
                    Err(Refused::Full) if waiting => {
                        // Armed, and tried once more in vain: sleep.
                        bell.wait();
                        waker.take();
                        waiting = false;
                    }
                    Err(Refused::Full) => {
                        world.registry.budget().starve(S, &waker);
                        waiting = true;
                    }
                    Err(other) => panic!("nobody else appends: {other:?}"),
                }
                let weight = session.log_weight();
                assert!(weight.0 <= 2, "I7: {weight:?} frames and bytes in memory");
            }
            complete(&session, run);
        })
    };
    world.keep_store(|disk| disk.is_complete(S, run));
    worker.join().unwrap();
    assert_eq!(world.check_disk().facts().len(), 5, "a head, three events, an end");
}

/// Waking against taking (I4c): whatever is marked ready is taken, with or without a new ring.
pub(crate) fn take_and_wake() {
    let bell = Alarm::new();
    let waker = Waker::new(Box::new(bell.clone()));
    let ids = [SessionId::from_u128(1), SessionId::from_u128(2)];
    let publishers: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let waker = waker.clone();
            spawn(move || waker.wake_session(id))
        })
        .collect();
    let mut seen = BTreeSet::new();
    while seen.len() < ids.len() {
        bell.wait();
        seen.append(&mut waker.take().sessions);
    }
    for publisher in publishers {
        publisher.join().unwrap();
    }
}

/// A connection waits for its ticket while the store settles it.
pub(crate) fn ticket_and_settle() {
    assert_eq!(wait_for_ticket(&[]), Settled::Committed);
}

/// A connection waits for its ticket while the store refuses the session's rows, and those of its
/// run's end as well: no commit follows that would wake it.
pub(crate) fn ticket_and_refusal() {
    let refused = [Some(Fault::Constraint); 3];
    assert_eq!(wait_for_ticket(&refused), Settled::Rejected);
}

fn wait_for_ticket(faults: &[Option<Fault>]) -> Settled {
    let world = World::new();
    let (session, run) = world.running();
    world.disk.fail_next(faults.iter().copied());
    let accepted = session.ask_abort(Some(run), &by("a"), NOW).expect("it is running");
    let store = {
        let world = world.clone();
        spawn(move || world.settle())
    };
    let bell = Alarm::new();
    let waker = Waker::new(Box::new(bell.clone()));
    let settled = loop {
        match session.wake_when_settled(accepted.1, &waker) {
            Settled::Waiting => {
                bell.wait();
                assert!(waker.take().other, "told for nothing");
            }
            settled => break settled,
        }
    };
    if settled == Settled::Committed {
        assert!(world.disk.runs(S)[0].abort.is_some(), "I8: committed is on disk");
    }
    store.join().unwrap();
    settled
}

/// An abort against the worker that comes to its run: it learns of it without a further stimulus
/// (I4c), also if somebody else has ended the run by then.
pub(crate) fn orders_and_abort() {
    let world = World::new();
    let (session, run) = world.running();
    let worker = {
        let session = session.clone();
        spawn(move || {
            let bell = Alarm::new();
            let waker = Waker::new(Box::new(bell.clone()));
            session.attach_worker(run, waker.clone());
            loop {
                let orders = session.orders(run);
                if orders.ended {
                    return;
                }
                bell.wait();
                waker.take();
            }
        })
    };
    session.ask_abort(None, &by("a"), NOW).expect("it is running");
    complete(&session, run);
    worker.join().unwrap();
}
