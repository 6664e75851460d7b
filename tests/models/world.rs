//! What the scenarios stand on: a registry over a disk in memory, its store, and those who follow
//! a session as a connection does.

use std::collections::BTreeSet;

use reattach::limits::Limits;
use reattach::oracle::{Alarm, Checker, MemoryDisk};
use reattach::protocol::message::WhenBusy;
use reattach::registry::{
    Admission, Composer, Crew, From, Job, Persist, Read, Refusal, Refused, Registry, Round,
    SendPrompt, Sent, Session, Started, Target, end,
};
use reattach::run::change::{Frame, Mark, SessionRow};
use reattach::run::event::{By, ByKind, Complete, Event, Reason};
use reattach::run::id::{
    ClientMessageId, LogEpoch, Millis, Ordinal, Position, RunId, Seq, SessionId,
};
use reattach::run::wake::Waker;
use reattach::sync::Arc;
use serde_json::{Map, Value};

#[cfg(loom)]
pub(crate) use loom::thread::spawn;
#[cfg(shuttle)]
pub(crate) use shuttle::thread::spawn;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::thread::spawn;

/// All sessions of the models belong to it.
pub(crate) const PROVIDER: &str = "model";
/// The session of most scenarios.
pub(crate) const S: SessionId = SessionId::from_u128(0x5e55);

/// A registry, its disk and its store.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) registry: Arc<Registry>,
    pub(crate) disk: MemoryDisk,
    pub(crate) store: Waker,
    pub(crate) bell: Alarm,
}

/// Starts no agent: the scenario is the agent.
struct Idle;

impl Crew for Idle {
    fn prepare(&self, _: &SessionRow, _: &str, _: &Map<String, Value>) -> Result<Job, Refusal> {
        Ok(Job::default())
    }

    fn start(&self, _: &Arc<Registry>, _: &Arc<Session>, _: Started) {}
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let (disk, bell) = (MemoryDisk::new(), Alarm::new());
        let store = Waker::new(Box::new(bell.clone()));
        let epoch = LogEpoch::from_u128(1);
        let shelf = Arc::new(disk.clone());
        let registry = Arc::new(Registry::new(limits, epoch, shelf, store.clone()));
        registry.set_crew(Box::new(Idle));
        Self { registry, disk, store, bell }
    }

    /// The store's side. One at a time.
    pub(crate) fn persist(&self) -> Persist<MemoryDisk> {
        Persist::new(self.registry.clone(), self.disk.clone(), self.store.clone())
    }

    /// Rounds until nothing is left. Only while no other thread is the store.
    pub(crate) fn settle(&self) {
        let mut persist = self.persist();
        while persist.round(NOW) != Round::Idle {}
    }

    /// The store's thread: rounds, and sleep between them, until `done`.
    pub(crate) fn keep_store(&self, done: impl Fn(&MemoryDisk) -> bool) {
        let mut persist = self.persist();
        loop {
            let round = persist.round(NOW);
            if done(&self.disk) {
                return;
            }
            if round == Round::Idle {
                self.bell.wait();
            }
        }
    }

    /// A durable session.
    pub(crate) fn session(&self, id: SessionId) -> Arc<Session> {
        self.registry.create_from(row(id)).expect("a registry that is open");
        self.settle();
        self.registry.in_memory(id).expect("it was just made")
    }

    /// A durable session with a durable run that is running.
    pub(crate) fn running(&self) -> (Arc<Session>, RunId) {
        let session = self.session(S);
        let run = self.send("a").expect("nothing stands against it");
        self.settle();
        (session, run)
    }

    /// A durable session with a durable, completed run of one text event.
    pub(crate) fn completed(&self) -> (Arc<Session>, RunId) {
        let (session, run) = self.running();
        append(&session, run, 1);
        complete(&session, run);
        self.settle();
        (session, run)
    }

    pub(crate) fn send(&self, content: &str) -> Result<RunId, Refusal> {
        self.send_as(content, None).map(|accepted| accepted.run)
    }

    pub(crate) fn send_as(
        &self,
        content: &str,
        message: Option<&str>,
    ) -> Result<reattach::registry::Accepted, Refusal> {
        let sent = self.registry.send(prompt(content, message, WhenBusy::Refuse), NOW);
        sent.map(|sent| sent.run().expect("nobody asked it to wait"))
    }

    /// A prompt that may wait.
    pub(crate) fn queue(&self, content: &str) -> Result<Sent, Refusal> {
        self.registry.send(prompt(content, None, WhenBusy::Queue), NOW)
    }

    /// What the disk has of the session, checked as a subscriber from the start would.
    pub(crate) fn check_disk(&self) -> Checker {
        let mut checker = Checker::new(Position::START);
        for run in self.disk.runs(S) {
            checker.frames(run.frames.iter().map(|(at, text)| (*at, text.as_str())));
        }
        checker
    }
}

fn prompt(content: &str, message: Option<&str>, when_busy: WhenBusy) -> SendPrompt {
    SendPrompt {
        session: S,
        content: content.into(),
        options: Map::new(),
        client_message_id: message.map(|id| ClientMessageId(id.into())),
        when_busy,
        by: by("sender"),
    }
}

pub(crate) const NOW: Millis = Millis(1_000_000);
/// After every retention.
pub(crate) const LATER: Millis = Millis(10_000_000);

pub(crate) fn by(name: &str) -> By {
    By { kind: ByKind::Api, name: name.into() }
}

pub(crate) fn row(id: SessionId) -> SessionRow {
    SessionRow {
        id,
        provider: PROVIDER.into(),
        native_id: None,
        project_path: "/p".into(),
        title: Some("t".into()),
        archived: false,
        created_at: NOW,
        updated_at: NOW,
    }
}

pub(crate) fn finished() -> Complete {
    Complete { success: true, exit_code: Some(0), ..end(Reason::Finished, None, None) }
}

pub(crate) fn complete(session: &Session, run: RunId) {
    session.complete(run, &finished(), NOW);
}

pub(crate) fn text(content: &str) -> Event {
    Event::Text { content: content.into(), role: None, block_id: None, parent_tool_id: None }
}

/// One frame of a run, as its agent's thread makes it.
pub(crate) fn frame(
    run: RunId,
    ordinal: u32,
    seq: Seq,
    event: &Event,
    mark: Option<Mark>,
) -> Frame {
    Composer::new(S, run, Ordinal(ordinal), PROVIDER, 1 << 18).frame(seq, NOW, event, mark)
}

/// The agent says something in run `ordinal`: one event, encoded again while others were faster.
/// `false` once the run has ended.
pub(crate) fn append(session: &Session, run: RunId, ordinal: u32) -> bool {
    loop {
        let Some(seq) = session.next_seq(run) else { return false };
        let group = vec![frame(run, ordinal, seq, &text("x"), None)];
        match session.append(run, group, Admission::Agent) {
            Ok(()) => return true,
            Err(Refused::Moved(_)) => {}
            Err(Refused::Ended) => return false,
            Err(Refused::Full) => panic!("the default ring has room"),
        }
    }
}

/// A connection that follows one session.
pub(crate) struct Follower {
    pub(crate) world: World,
    pub(crate) waker: Waker,
    pub(crate) bell: Alarm,
    pub(crate) checker: Checker,
    /// Where it reads on: what a gap or an empty read moved it to.
    pub(crate) cursor: Position,
}

impl Follower {
    /// Subscribes from there; `None` if there is no such session.
    pub(crate) fn subscribe(world: &World, from: From) -> Option<Self> {
        let bell = Alarm::new();
        let waker = Waker::new(Box::new(bell.clone()));
        let target = Target { session: S, from, epoch: None };
        let subscribed = world.registry.subscribe(&waker, &target).ok()?;
        assert!(subscribed.gap.is_none(), "I4b: nothing is gone");
        let statement = &subscribed.statement;
        assert!(
            Position::new(statement.ordinal, statement.last_seq) <= subscribed.durable,
            "I17: a statement is durable"
        );
        let checker = Checker::new(subscribed.cursor);
        Some(Self { world: world.clone(), waker, bell, checker, cursor: subscribed.cursor })
    }

    /// Pulls until it is caught up; `false` if nothing more will ever come.
    pub(crate) fn pull(&mut self) -> bool {
        loop {
            match self.world.registry.read(&self.waker, S, self.cursor, 1) {
                Read::Frames(frames) => {
                    self.checker.frames(frames.iter().map(|(at, text)| (*at, text.as_str())));
                    self.cursor = self.checker.cursor();
                }
                Read::CaughtUp => return true,
                Read::Ended => return false,
                other => panic!("I4b: nothing is gone: {other:?}"),
            }
        }
    }

    /// Follows until it has the end of run `ordinal`, as a connection does: it reads a session
    /// only when told to.
    pub(crate) fn follow_to_end_of(&mut self, ordinal: u32) {
        self.follow(|checker| checker.has_end_of(ordinal));
        assert!(self.checker.has_end_of(ordinal), "I14: it ended before the run did");
    }

    /// Follows until nothing more will ever come.
    pub(crate) fn follow_to_the_end(&mut self) {
        self.follow(|_| false);
    }

    fn follow(&mut self, done: impl Fn(&Checker) -> bool) {
        let mut behind = BTreeSet::from([S]);
        loop {
            if behind.contains(&S) {
                if !self.pull() || done(&self.checker) {
                    return;
                }
                behind.clear();
            }
            self.bell.wait();
            behind.append(&mut self.waker.take().sessions);
        }
    }
}
