//! Who ends a run, and what must not touch the next one.

use reattach::oracle::Fault;
use reattach::registry::{Admission, Completed, Refused, end, request_id};
use reattach::run::change::Mark;
use reattach::run::event::{Event, Interaction, PermissionRequest, Reason};
use reattach::run::id::{RequestId, RunId, Seq};
use reattach::run::state::AnswerRequest;
use reattach::run::wake::Waker;
use serde_json::{Map, Value};

use super::world::{LATER, NOW, S, World, append, by, complete, finished, frame, spawn, text};

/// Abort against the natural end against the crash net (I1, I3): one wins, and once the wish to
/// abort was accepted the end is an abort, whoever wrote it.
pub(crate) fn abort_complete_crash() {
    let world = World::new();
    let (session, run) = world.running();
    let natural = {
        let session = session.clone();
        spawn(move || session.complete(run, &finished(), NOW))
    };
    let crash = {
        let session = session.clone();
        spawn(move || {
            append(&session, run, 1);
            session.complete(run, &end(Reason::AgentExited, None, None), NOW)
        })
    };
    let asked = session.ask_abort(Some(run), &by("a"), NOW).is_some();
    let aborted = session.complete(run, &end(Reason::Aborted, Some(0), None), NOW);
    let all = [natural.join().unwrap(), crash.join().unwrap(), aborted];
    let won = all.iter().filter(|completed| **completed == Completed::Won).count();
    assert_eq!(won, 1, "I1: one caller is told that it won");
    assert!(!append(&session, run, 1), "I3: nothing after `complete`");
    world.settle();
    let checker = world.check_disk();
    assert!(checker.has_end_of(1), "I1: it has its end");
    let stored = world.disk.runs(S).remove(0).end.unwrap().complete;
    assert_eq!(stored.aborted, asked || aborted == Completed::Won, "an accepted abort shows");
}

/// A late end, a late abort, a late timer and a late worker of run 1 against run 2 (I6, I13).
pub(crate) fn late_end_and_next_run() {
    let world = World::new();
    let (session, first) = world.completed();
    let late = {
        let (world, session) = (world.clone(), session.clone());
        spawn(move || {
            let crash = end(Reason::AgentExited, None, None);
            assert_eq!(world.registry.complete(S, first, &crash, NOW), Completed::Already, "I6");
            assert!(session.ask_abort(Some(first), &by("late"), NOW).is_none(), "I6");
        })
    };
    let timer = {
        let world = world.clone();
        spawn(move || {
            world.registry.evict(LATER);
        })
    };
    let second = world.send("b").expect("the first run has ended");
    // The session may have left memory before the send: this is the one that has the run.
    let session = world.registry.in_memory(S).expect("I13: it has a running run");
    assert!(append(&session, second, 2), "I6: run 2 is running");
    timer.join().unwrap();
    late.join().unwrap();
    assert_eq!(session.running(), Some(second), "I6: nothing of run 1 ends run 2");
    complete(&session, second);
    world.settle();
    let checker = world.check_disk();
    assert!(checker.has_end_of(1) && checker.has_end_of(2));
    let runs = world.disk.runs(S);
    assert!(!runs[1].end.as_ref().unwrap().complete.aborted, "I6: the abort was not meant for it");
    assert!(runs[1].abort.is_none(), "I6");
}

/// Two answers against the end of the run (I20): at most one counts, and the log says of the
/// request exactly once what became of it.
pub(crate) fn answers_and_complete() {
    let world = World::new();
    let (session, run) = world.running();
    let request = ask(&world, run);
    let answers: Vec<_> = [true, false]
        .into_iter()
        .map(|allow| {
            let (world, request) = (world.clone(), request.clone());
            spawn(move || {
                let answer = AnswerRequest { allow, ..AnswerRequest::default() };
                world.registry.answer(&request, &answer, &by("x"), NOW).is_ok()
            })
        })
        .collect();
    complete(&session, run);
    let counted = answers.into_iter().filter_map(|thread| thread.join().ok()).filter(|ok| *ok);
    let counted = counted.count();
    assert!(counted <= 1, "I20: the first answer counts");
    world.settle();
    let kinds: Vec<_> = world.check_disk().facts().iter().map(|fact| fact.kind.clone()).collect();
    let count = |kind: &str| kinds.iter().filter(|known| *known == kind).count();
    // Recorded, then undeliverable: the run ended before anybody took the answer.
    assert_eq!(count("permission_resolved"), counted * 2, "I20: {kinds:?}");
    assert_eq!(count("permission_cancelled"), 1 - counted, "I20: {kinds:?}");
    let late = world.registry.answer(&request, &AnswerRequest::default(), &by("late"), NOW);
    assert!(late.is_err(), "I20: nobody is asked any more");
}

/// An answer against the worker that comes late to its run: it is handed out once, and its worker
/// learns of it without a further stimulus (I4c, I20).
pub(crate) fn answer_and_late_worker() {
    let world = World::new();
    let (session, run) = world.running();
    let request = ask(&world, run);
    let worker = {
        let session = session.clone();
        spawn(move || {
            let bell = reattach::oracle::Alarm::new();
            let waker = Waker::new(Box::new(bell.clone()));
            session.attach_worker(run, waker.clone());
            loop {
                let orders = session.orders(run);
                if !orders.answers.is_empty() {
                    return orders.answers.len();
                }
                bell.wait();
                waker.take();
            }
        })
    };
    let answer = AnswerRequest { allow: true, ..AnswerRequest::default() };
    world.registry.answer(&request, &answer, &by("x"), NOW).expect("I20: it is open");
    assert_eq!(worker.join().unwrap(), 1, "I20: an answer is handed out once");
    assert!(session.orders(run).answers.is_empty(), "I20: an answer is handed out once");
}

/// The store refuses a run's rows while somebody appends to it and somebody else sends: what is
/// on disk stays whole, and the run that was refused ends there (I1, I2, I5).
pub(crate) fn reject_and_start() {
    let world = World::new();
    let (session, run) = world.running();
    world.disk.fail_next([Some(Fault::Constraint), Some(Fault::Constraint)]);
    append(&session, run, 1);
    let agent = {
        let session = session.clone();
        spawn(move || {
            append(&session, run, 1);
            // A frame that was made before the refusal is not taken for one made after it.
            let stale = vec![frame(run, 1, Seq(3), &text("stale"), None)];
            let refused = session.append(run, stale, Admission::Agent);
            assert!(!matches!(refused, Err(Refused::Full)));
        })
    };
    let sender = {
        let world = world.clone();
        spawn(move || world.send("b").is_ok())
    };
    world.settle();
    let started = sender.join().unwrap();
    agent.join().unwrap();
    let session = world.registry.in_memory(S).expect("it has a run that memory knows");
    if let Some(running) = session.running() {
        assert!(started, "I1: the refused run has its end");
        complete(&session, running);
    }
    world.settle();
    let checker = world.check_disk();
    assert!(checker.has_end_of(1), "I1: the refused run has its end");
    assert_eq!(checker.has_end_of(2), started, "a prompt that was accepted ran");
}

/// The agent asks for permission; durable when this returns.
fn ask(world: &World, run: RunId) -> RequestId {
    let session = world.registry.in_memory(S).expect("its run is running");
    let request = request_id(run, "q");
    let event = Event::PermissionRequest(PermissionRequest {
        request_id: request.0.clone(),
        interaction: Interaction::Tool,
        tool_id: None,
        tool_name: "Bash".into(),
        input: Value::Null,
        cwd: None,
        title: None,
        description: None,
        diff: None,
        choices: Vec::new(),
        editable: false,
        questions: None,
        parent_tool_id: None,
        extra: Map::new(),
    });
    let mark = Mark::PermissionOpened { request: request.clone(), received_at: NOW };
    session.record(run, &event, Some(&mark), NOW).expect("its run is running");
    world.settle();
    request
}
