//! Prompts that wait: whoever ends a run, takes one out, resumes or sends, each begins once, in
//! order (I19).

use reattach::oracle::Alarm;
use reattach::registry::{Advance, Mode, RefusalCode, Sent, Turns, end};
use reattach::run::event::Reason;
use reattach::run::id::{QueueId, RunId};
use reattach::run::wake::Waker;

use super::world::{NOW, S, World, by, complete, spawn};

/// A durable session with a run that is on and a durable prompt that waits.
fn waiting(world: &World) -> (RunId, QueueId) {
    let (_, run) = world.running();
    let Sent::Queued(queued) = world.queue("b").expect("it waits") else {
        panic!("I5: a run is on");
    };
    world.settle();
    (run, queued.id)
}

/// The same after the run has ended: its turn has come.
fn due(world: &World) -> QueueId {
    let (run, queued) = waiting(world);
    complete(&world.registry.in_memory(S).expect("in memory"), run);
    world.settle();
    queued
}

/// What the disk has of prompts that began, in order.
fn began(world: &World) -> Vec<String> {
    world.settle();
    world.check_disk();
    let runs = world.disk.runs(S);
    runs.iter().map(|run| run.frames[0].1.to_string()).collect()
}

fn is_of(head: &str, content: &str) -> bool {
    head.contains(&format!(r#""content":"{content}""#))
}

/// A prompt against the end of the run (I4c, I19): it is a run of its own at once, or it waits and
/// the queue's thread is told.
pub(crate) fn queue_and_complete() {
    let world = World::new();
    let (session, run) = world.running();
    let bell = Alarm::new();
    let waker = Waker::new(Box::new(bell.clone()));
    let mut turns = Turns::new(world.registry.clone(), waker.clone());
    let queue = {
        let session = session.clone();
        spawn(move || {
            loop {
                assert!(!turns.take(NOW), "nothing is in the way");
                if session.running().is_some_and(|running| running != run) {
                    return;
                }
                bell.wait();
            }
        })
    };
    let sender = {
        let world = world.clone();
        spawn(move || match world.queue("b").expect("accepted") {
            Sent::Run(_) => waker.wake_other(),
            Sent::Queued(queued) => assert_eq!((queued.position, queued.duplicate), (1, false)),
        })
    };
    complete(&session, run);
    sender.join().unwrap();
    queue.join().unwrap();
    let heads = began(&world);
    assert_eq!(heads.len(), 2, "I19: once");
    assert!(is_of(&heads[1], "b"));
}

/// Two turns at the same time, and somebody who takes the prompt out (I19): it begins once, or it
/// is taken out.
pub(crate) fn turns_and_removal() {
    let world = World::new();
    let queued = due(&world);
    let turn = {
        let world = world.clone();
        spawn(move || world.registry.advance(S, NOW))
    };
    let remover = {
        let world = world.clone();
        spawn(move || world.registry.remove_queued(S, queued, NOW).is_ok())
    };
    let own = world.registry.advance(S, NOW);
    let both = [own, turn.join().unwrap()];
    let removed = remover.join().unwrap();
    let begun = both.iter().filter(|turn| matches!(turn, Advance::Began(_))).count();
    assert_eq!(begun + usize::from(removed), 1, "I19: {both:?}, removed: {removed}");
    assert_eq!(began(&world).len(), 1 + begun, "I19: once");
}

/// An abort's end, a turn and somebody who resumes: what is held does not begin, and what was
/// resumed after it does.
pub(crate) fn hold_and_resume() {
    let world = World::new();
    let (run, _) = waiting(&world);
    let session = world.registry.in_memory(S).expect("in memory");
    let worker = {
        let session = session.clone();
        spawn(move || {
            session.ask_abort(Some(run), &by("somebody"), NOW);
            session.complete(run, &end(Reason::Aborted, None, None), NOW);
        })
    };
    let resumer = {
        let world = world.clone();
        spawn(move || world.registry.resume_queue(S, NOW).map(drop).expect("it can be resumed"))
    };
    let during = world.registry.advance(S, NOW);
    worker.join().unwrap();
    resumer.join().unwrap();
    let after = world.registry.advance(S, NOW);
    let begun = [during, after].iter().filter(|turn| matches!(turn, Advance::Began(_))).count();
    // The memory disk refuses a begin that it has as held.
    assert_eq!(began(&world).len(), 1 + begun, "I19: once");
    assert!(begun <= 1, "I19");
    if begun == 0 {
        assert!(session.next_queued().is_none(), "held");
        drop(world.registry.resume_queue(S, NOW).expect("it can be resumed"));
        assert!(matches!(world.registry.advance(S, NOW), Advance::Began(_)));
        assert_eq!(began(&world).len(), 2, "it was not lost");
    }
}

/// A turn against a prompt that would not wait (I19): the one that waited goes first.
pub(crate) fn turn_and_prompt() {
    let world = World::new();
    due(&world);
    let sender = {
        let world = world.clone();
        spawn(move || world.send("c").map_err(|refusal| refusal.code))
    };
    let turn = world.registry.advance(S, NOW);
    assert_eq!(sender.join().unwrap(), Err(RefusalCode::RunInProgress), "I19: in order");
    assert!(matches!(turn, Advance::Began(_)));
    let heads = began(&world);
    assert!(heads.len() == 2 && is_of(&heads[1], "b"), "I19: in order");
}

/// A turn against shutdown (I14): the prompt's run begins before and is ended with the others, or
/// the prompt still waits on disk.
pub(crate) fn turn_and_close() {
    let world = World::new();
    due(&world);
    let closer = {
        let world = world.clone();
        spawn(move || {
            world.registry.close(Mode::Abort);
            for (session, run) in world.registry.running() {
                let session = world.registry.in_memory(session).expect("it runs");
                session.ask_abort(Some(run), &by("shutdown"), NOW);
                session.complete(run, &end(Reason::Aborted, None, None), NOW);
            }
            assert!(world.registry.running().is_empty(), "I14: nothing begins after it");
        })
    };
    let turn = world.registry.advance(S, NOW);
    closer.join().unwrap();
    assert!(world.registry.running().is_empty(), "I14: nothing begins after it");
    let heads = began(&world);
    match turn {
        Advance::Began(run) => assert!(world.disk.is_complete(S, run), "I14"),
        turn => {
            assert_eq!((turn, heads.len()), (Advance::Nothing, 1));
            assert_eq!(world.disk.queued(S), ["b"], "it waits for the next start");
        }
    }
}
