//! Who may begin a run, and what may not.

use reattach::oracle::Fault;
use reattach::registry::{From, Mode, NotBegun, RefusalCode, Registry};
use reattach::run::id::{AgentId, NativeId, Seq, SessionId};
use reattach::run::log::Settled;
use reattach::sync::Arc;

use super::world::{Follower, LATER, NOW, S, World, append, by, complete, spawn};

/// A process that outlived its run.
const AGENT: AgentId = AgentId::from_u128(0xa9e7);

/// Two starts (I5): one begins, the other is told that a run is in progress and changes nothing.
pub(crate) fn two_starts() {
    let world = World::new();
    let session = world.session(S);
    let other = {
        let world = world.clone();
        spawn(move || world.send("b").map_err(|refusal| refusal.code))
    };
    let one = world.send("a").map_err(|refusal| refusal.code);
    let both = [one, other.join().unwrap()];
    let began: Vec<_> = both.iter().filter_map(|result| result.ok()).collect();
    let refused: Vec<_> = both.iter().filter_map(|result| result.err()).collect();
    assert_eq!(began.len(), 1, "I5: one begins");
    assert_eq!(refused, [RefusalCode::RunInProgress], "I5");
    assert_eq!(session.running(), Some(began[0]), "I5: the other changes nothing");
    world.settle();
    assert_eq!(world.check_disk().facts().len(), 1, "I5: one head");
}

/// A run that the agent begins by itself against a prompt (I5): one begins, the other is told that
/// a run is on and changes nothing.
pub(crate) fn agent_run_and_prompt() {
    let world = World::new();
    let (session, _) = world.completed();
    let sender = {
        let world = world.clone();
        spawn(move || world.send("b").map_err(|refusal| refusal.code))
    };
    let agent = world.registry.begin_agent_run(S, AGENT, NOW);
    let prompt = sender.join().unwrap();
    let (began, origin) = match (agent, prompt) {
        (Ok(begun), Err(code)) => {
            assert_eq!(code, RefusalCode::RunInProgress, "I5");
            (begun.run, "agent")
        }
        (Err(why), Ok(run)) => {
            assert_eq!(why, NotBegun::Busy, "I5");
            (run, "user")
        }
        both => panic!("I5: one begins: {both:?}"),
    };
    assert_eq!(session.running(), Some(began), "I5: the other changes nothing");
    complete(&session, began);
    world.settle();
    let checker = world.check_disk();
    assert!(checker.has_end_of(2), "the one that began ran");
    let runs = world.disk.runs(S);
    assert_eq!(runs.len(), 2, "I5: one head");
    assert!(runs[1].frames[0].1.contains(&format!(r#""origin":"{origin}""#)));
}

/// A run that the agent begins by itself against shutdown (I14) and against the session's leaving
/// memory (I13): it begins before the server stops, in the session that is found, or not at all.
pub(crate) fn agent_run_and_close() {
    let world = World::new();
    world.completed();
    let closer = {
        let world = world.clone();
        spawn(move || {
            world.registry.close(Mode::Abort);
            abort_all(&world.registry);
            assert!(world.registry.running().is_empty(), "I14: nothing begins after it");
        })
    };
    let timer = {
        let world = world.clone();
        spawn(move || {
            world.registry.evict(LATER);
        })
    };
    let begun = world.registry.begin_agent_run(S, AGENT, NOW);
    closer.join().unwrap();
    timer.join().unwrap();
    world.settle();
    assert!(world.registry.running().is_empty(), "I14: nothing begins after it");
    match begun {
        Ok(begun) => {
            assert!(world.disk.is_complete(S, begun.run), "I14: it is ended with the others");
        }
        Err(why) => {
            assert_eq!(why, NotBegun::Ended);
            assert_eq!(world.disk.runs(S).len(), 1, "what did not begin is not there");
        }
    }
}

/// The same prompt twice at the same time, while the store commits (I19): one run, one original.
pub(crate) fn one_prompt_twice() {
    let world = World::new();
    world.session(S);
    let other = {
        let world = world.clone();
        spawn(move || world.send_as("a", Some("m")).map(|a| (a.run, a.duplicate)))
    };
    let store = {
        let world = world.clone();
        spawn(move || world.keep_store(|disk| !disk.runs(S).is_empty()))
    };
    let one = world.send_as("a", Some("m")).map(|a| (a.run, a.duplicate)).expect("accepted");
    let other = other.join().unwrap().expect("I19: a resend is accepted");
    store.join().unwrap();
    assert_eq!(one.0, other.0, "I19: one run");
    assert_ne!(one.1, other.1, "I19: one of them is the duplicate");
}

/// Shutdown against a start and a subscribe (I14): nothing begins after it, who subscribed sees
/// the run's end and then that nothing more will come.
pub(crate) fn close_start_subscribe() {
    let world = World::new();
    world.session(S);
    let sender = {
        let world = world.clone();
        spawn(move || world.send("a").map_err(|refusal| refusal.code))
    };
    let closer = {
        let world = world.clone();
        spawn(move || {
            world.registry.close(Mode::Abort);
            abort_all(&world.registry);
            world.settle();
            assert!(world.registry.running().is_empty(), "I14: nothing begins after it");
        })
    };
    let mut follower = Follower::subscribe(&world, From::Start).expect("the session is there");
    follower.follow_to_the_end();
    closer.join().unwrap();
    match sender.join().unwrap() {
        Ok(_) => assert!(follower.checker.has_end_of(1), "I14: readers drain through `complete`"),
        Err(code) => {
            assert_eq!(code, RefusalCode::ShuttingDown);
            assert!(follower.checker.facts().is_empty(), "a refused send records nothing");
        }
    }
    assert!(world.registry.running().is_empty(), "I14: nothing begins after it");
}

/// Shutdown while somebody's subscribe loads the session from disk (I14): it ends all the same.
pub(crate) fn close_and_load() {
    let world = World::new();
    world.completed();
    world.registry.evict(LATER);
    let closer = {
        let world = world.clone();
        spawn(move || world.registry.close(Mode::Abort))
    };
    let mut follower = Follower::subscribe(&world, From::Start).expect("the session is there");
    follower.follow_to_the_end();
    assert!(follower.checker.has_end_of(1), "I14: it has all of it");
    closer.join().unwrap();
}

/// A session leaves memory while somebody sends to it: the run begins in the one that is found,
/// and is committed (I13).
pub(crate) fn evict_and_start() {
    let world = World::new();
    world.completed();
    let timer = {
        let world = world.clone();
        spawn(move || {
            world.registry.evict(LATER);
        })
    };
    let run = world.send("b").expect("nothing is running");
    let session = world.registry.in_memory(S).expect("I13: it has a running run");
    assert_eq!(session.running(), Some(run));
    append(&session, run, 2);
    complete(&session, run);
    timer.join().unwrap();
    world.settle();
    let checker = world.check_disk();
    assert_eq!(checker.facts().len(), 6, "two heads, two events, two ends");
}

/// A session is loaded while another thread loads it, runs a run in it and lets it leave memory
/// again: what was read before that is not taken for the session (I6).
pub(crate) fn stale_load() {
    let world = World::new();
    world.completed();
    world.registry.evict(LATER);
    assert!(world.registry.in_memory(S).is_none(), "I13: nobody needs it");
    let other = {
        let world = world.clone();
        spawn(move || {
            let Ok(run) = world.send("b") else { return };
            let session = world.registry.in_memory(S).expect("I13: it has a running run");
            complete(&session, run);
            world.settle();
            world.registry.evict(LATER);
        })
    };
    let sent = world.send("c");
    other.join().unwrap();
    if let Ok(run) = sent {
        let session = world.registry.in_memory(S).expect("I13: it has a running run");
        assert_eq!(session.running(), Some(run), "I5: the one that was accepted");
        complete(&session, run);
    }
    // The disk asserts that runs follow each other.
    world.settle();
}

/// The store will not have a session's change, so that it leaves memory, while somebody sends to
/// it: a prompt that is accepted runs in the session that is found from then on.
pub(crate) fn refused_edit_and_start() {
    let world = World::new();
    world.session(S);
    world.disk.fail_next([Some(Fault::Constraint), Some(Fault::Constraint)]);
    assert!(world.registry.edit_session(S, Some("new".into()), None, NOW).is_ok());
    let sender = {
        let world = world.clone();
        spawn(move || world.send_as("a", None).map(|accepted| accepted.pending))
    };
    world.settle();
    let pending = sender.join().unwrap().expect("nothing stands against it");
    world.settle();
    let began = world.disk.runs(S).len();
    match pending.settled() {
        Settled::Committed => assert_eq!(began, 1, "I8: committed is on disk"),
        // It was in the same refused rows.
        Settled::Rejected => assert_eq!(began, 0, "what was rejected is not there"),
        Settled::Waiting => panic!("I4c: nobody will ever settle it"),
    }
    let title = world.disk.row(S).and_then(|row| row.title);
    assert_eq!(title.as_deref(), Some("t"), "the edit was refused");
}

/// Two sessions learn the same native id: one keeps it, and the disk never has to refuse the
/// other.
pub(crate) fn native_id_twice() {
    let world = World::new();
    let other = SessionId::from_u128(0x07e5);
    let ((one, _), two) = (world.running(), world.session(other));
    let native = NativeId("n".into());
    let second = {
        let (world, native) = (world.clone(), native.clone());
        spawn(move || {
            let learned = world.registry.learn_native(&two, &native, NOW).expect("readable");
            // It may leave memory as soon as it is durable, and its claim with it.
            world.settle();
            world.registry.evict(LATER);
            learned
        })
    };
    let first = world.registry.learn_native(&one, &native, NOW).expect("readable");
    assert_ne!(first, second.join().unwrap(), "one of them keeps it");
    world.settle();
    let owners = [S, other].map(|id| world.disk.row(id).unwrap().native_id.is_some());
    assert_eq!(owners, [first, !first]);
}

fn abort_all(registry: &Arc<Registry>) {
    for (id, run) in registry.running() {
        let asked = registry.abort(id, Some(run), &by("shutdown"), NOW);
        assert!(asked.is_ok(), "nobody else ends it");
        let session = registry.in_memory(id).expect("its run is running");
        assert!(session.next_seq(run) > Some(Seq(0)));
        complete(&session, run);
    }
}
