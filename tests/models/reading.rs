//! What subscribers see: all of it, in order, once, and without being asked twice to look.

use reattach::limits::Limits;
use reattach::oracle::Alarm;
use reattach::registry::From;
use reattach::run::id::Seq;
use reattach::run::wake::Waker;

use super::world::{Follower, LATER, NOW, S, World, append, by, complete, spawn};

/// Attaching while the agent appends and `durable` rises (I4, I4c, I8).
pub(crate) fn attach_while_appending() {
    let world = World::new();
    let (session, run) = world.running();
    let agent = {
        let session = session.clone();
        spawn(move || {
            append(&session, run, 1);
            complete(&session, run);
        })
    };
    let store = {
        let world = world.clone();
        spawn(move || world.keep_store(|disk| disk.is_complete(S, run)))
    };
    let mut follower = Follower::subscribe(&world, From::Start).expect("the session is there");
    follower.follow_to_end_of(1);
    assert_eq!(follower.checker.facts().len(), 3, "I4: the head, the event, the end");
    agent.join().unwrap();
    store.join().unwrap();
}

/// The next run starts while a subscriber is behind in the one before, in a ring that holds two
/// frames: its tail comes from the disk, then the next run, nothing is skipped (I4, I6).
pub(crate) fn next_run_while_behind() {
    let world = World::with(Limits { ring_events_max: 2, ..Limits::default() });
    let (session, first) = world.completed();
    let from = From::Cursor { run: first, last_seq: Some(Seq(1)) };
    let mut follower = Follower::subscribe(&world, from).expect("the session is there");
    let agent = {
        let world = world.clone();
        spawn(move || {
            let second = world.send("b").expect("the first has ended");
            world.settle();
            // This makes room: what is left of run 1 leaves the ring.
            append(&session, second, 2);
            complete(&session, second);
            world.settle();
        })
    };
    follower.follow_to_end_of(2);
    assert_eq!(follower.checker.facts().len(), 4, "I4: the end, then all of run 2");
    agent.join().unwrap();
}

/// A session leaves memory while somebody subscribes to it (I13): who has subscribed hears the
/// next run.
pub(crate) fn evict_and_subscribe() {
    let world = World::new();
    world.completed();
    let timer = {
        let world = world.clone();
        spawn(move || {
            world.registry.evict(LATER);
        })
    };
    let mut follower = Follower::subscribe(&world, From::Tail).expect("the session is there");
    assert!(follower.pull(), "the tail is caught up");
    let run = world.send("b").expect("nothing is running");
    let session = world.registry.in_memory(S).expect("I13: a watched session stays");
    complete(&session, run);
    world.settle();
    follower.follow_to_end_of(2);
    timer.join().unwrap();
}

/// Two connections follow one session: both get all of it (I4, I15).
pub(crate) fn two_connections() {
    let world = World::new();
    let (session, run) = world.running();
    let other = {
        let world = world.clone();
        spawn(move || {
            let from = From::Cursor { run, last_seq: Some(Seq(0)) };
            let mut follower = Follower::subscribe(&world, from).expect("it is there");
            follower.follow_to_end_of(1);
            assert_eq!(follower.checker.facts().len(), 1, "I4: the end alone");
        })
    };
    let agent = {
        let world = world.clone();
        spawn(move || {
            complete(&session, run);
            world.settle();
        })
    };
    let mut follower = Follower::subscribe(&world, From::Start).expect("it is there");
    follower.follow_to_end_of(1);
    world.registry.forget(&follower.waker);
    agent.join().unwrap();
    other.join().unwrap();
}

/// A session is deleted while somebody subscribes to it: it is not found, or it ends.
pub(crate) fn delete_and_subscribe() {
    let world = World::new();
    world.completed();
    let deleter = {
        let world = world.clone();
        spawn(move || {
            assert!(
                world.registry.delete_session(S, &by("deleter"), NOW).is_ok(),
                "nothing is running"
            );
            world.settle();
            assert!(world.disk.row(S).is_none(), "it is gone from disk");
        })
    };
    if let Some(mut follower) = Follower::subscribe(&world, From::Start) {
        follower.follow_to_the_end();
    }
    deleter.join().unwrap();
    assert!(world.registry.in_memory(S).is_none(), "it is gone from memory");
    assert_eq!(world.registry.budget().total(), 0, "I7: and its frames with it");
}

/// A change is announced after its commit, to everybody, without a further stimulus (I4c).
pub(crate) fn announce_and_join() {
    let world = World::new();
    world.session(S);
    let bell = Alarm::new();
    let waker = Waker::new(Box::new(bell.clone()));
    let mut cursor = world.registry.broadcasts().join(&waker);
    let editor = {
        let world = world.clone();
        spawn(move || {
            let edited = world.registry.edit_session(S, Some("new".into()), None, NOW);
            assert!(edited.is_ok());
            world.settle();
        })
    };
    loop {
        let news = world.registry.broadcasts().read(&waker, &mut cursor);
        if news.changed.contains(&S) {
            break;
        }
        loop {
            bell.wait();
            if waker.take().broadcast {
                break;
            }
        }
    }
    let title = world.disk.row(S).and_then(|row| row.title);
    assert_eq!(title.as_deref(), Some("new"), "I8: announced after the commit");
    editor.join().unwrap();
}
