//! A keeper for the models: its loop's turns as calls under one lock, around the rules that ship
//! (`keeper::handover`, `keeper::numbers`). A record is one byte long and a segment of its own,
//! so that an offset counts records and whatever may be dropped is gone at once.

use std::time::{Duration, Instant};

use reattach::keeper::handover::{Attached, Bounds, Handover, NotFollowed};
use reattach::keeper::numbers::Numbers;
use reattach::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What every gateway has to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Exited,
    Stopped,
}

/// What the journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Out(u8),
    In(u64),
    /// The keeper decided to stop the agent.
    Decided,
    Exit,
}

/// The keeper has ended: no connection is answered any more. The journal is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// Clones are the same keeper.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<(Mutex<State>, Condvar)>);

struct State {
    handover: Handover<Word>,
    numbers: Numbers,
    /// All that was ever said; what is before `start` is dropped.
    journal: Vec<Record>,
    start: u64,
    /// The numbers that reached the agent.
    stdin: Vec<u64>,
    alive: bool,
    /// Of each control connection what was said to it, and how much of that was read.
    heard: Vec<(Vec<Word>, usize)>,
    /// Whose data connection is open.
    follows: Option<u64>,
    ended: bool,
}

/// When the models begin and how long an orphan lives.
pub(crate) struct Clock {
    pub(crate) begin: Instant,
    pub(crate) grace: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), grace: Duration::from_secs(60) }
    }

    pub(crate) fn after_the_grace(&self) -> Instant {
        self.begin + self.grace
    }
}

impl Keeper {
    /// Its agent runs, and the gateway that spawned it is attached: epoch 1, following from 0.
    pub(crate) fn launched(clock: &Clock) -> Self {
        let mut handover = Handover::spawned();
        handover.launched(clock.grace);
        let state = State {
            handover,
            numbers: Numbers::default(),
            journal: Vec::new(),
            start: 0,
            stdin: Vec::new(),
            alive: true,
            heard: vec![(Vec::new(), 0)],
            follows: Some(1),
            ended: false,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn turn<T>(&self, turn: impl FnOnce(&mut State) -> T) -> T {
        let result = turn(&mut self.0.0.lock());
        self.0.1.notify_all();
        result
    }

    fn wait<'a>(&'a self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.1.wait(guard)
    }

    // The agent's side.

    pub(crate) fn append(&self, record: Record) {
        self.turn(|state| state.journal.push(record));
    }

    /// The agent's process ends, by itself or since it was stopped.
    pub(crate) fn exit(&self) {
        self.turn(|state| {
            state.alive = false;
            state.say(Word::Exited);
        });
    }

    /// Nothing that it started is left.
    pub(crate) fn swept(&self) {
        self.turn(|state| state.say(Word::Stopped));
    }

    /// The journal has its last record.
    pub(crate) fn over(&self) {
        self.turn(|state| {
            state.journal.push(Record::Exit);
            state.handover.over();
        });
    }

    /// The keeper's own end, once nobody needs it.
    pub(crate) fn end(&self) {
        let mut state = self.0.0.lock();
        while !state.may_end() {
            state = self.wait(state);
        }
        state.ended = true;
        // What waits to be written is never heard.
        let (said, read) = state.heard.last_mut().expect("there was one from the beginning");
        said.truncate(*read);
        drop(state);
        self.0.1.notify_all();
    }

    /// Whether an orphan's grace is over at that time; then its agent is being stopped.
    pub(crate) fn look_at_the_clock(&self, now: Instant) -> bool {
        self.turn(|state| {
            let due = state.handover.orphan_is_due(now);
            if due {
                state.journal.push(Record::Decided);
            }
            due
        })
    }

    // The gateways' side.

    /// Attaches, and says whether the agent is being stopped by then and where the journal began.
    pub(crate) fn attach(&self) -> Result<(u64, Bounds), Gone> {
        self.turn(|state| {
            if state.ended {
                return Err(Gone);
            }
            let Attached { epoch, repeat } = state.handover.attach();
            state.follows = None;
            state.heard.push((repeat, 0));
            assert_eq!(epoch, state.newest(), "each attach is an epoch");
            Ok((epoch, state.bounds()))
        })
    }

    pub(crate) fn follow(&self, epoch: u64, offset: u64) -> Result<(), NotFollowed> {
        self.turn(|state| {
            assert!(!state.ended, "a keeper waits for the gateway that is attached");
            let bounds = state.bounds();
            let followed = state.handover.follow(epoch, offset, bounds);
            if followed.is_ok() {
                state.follows = Some(epoch);
            }
            followed
        })
    }

    /// The record at `offset`, once it is there. A data connection that was closed goes on with
    /// the files, as `Records` does.
    pub(crate) fn read(&self, epoch: u64, offset: u64) -> Record {
        let index = usize::try_from(offset).unwrap();
        let mut state = self.0.0.lock();
        loop {
            let connected = state.follows == Some(epoch);
            if let Some(record) = state.journal.get(index).copied() {
                assert!(offset >= state.start, "a follower lost what was dropped under it");
                if connected {
                    state.handover.sent(offset + 1);
                    drop(state);
                    self.0.1.notify_all();
                }
                return record;
            }
            assert!(!state.ended, "the journal of a keeper that has ended has no exit record");
            state = self.wait(state);
        }
    }

    /// The next word on control connection `epoch`; `None` once it is closed.
    pub(crate) fn hear(&self, epoch: u64) -> Option<Word> {
        let index = usize::try_from(epoch - 1).unwrap();
        let mut state = self.0.0.lock();
        loop {
            let open = state.newest() == epoch && !state.ended;
            let (said, read) = &mut state.heard[index];
            if let Some(word) = said.get(*read).copied() {
                *read += 1;
                drop(state);
                self.0.1.notify_all();
                return Some(word);
            }
            if !open {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// A confirm arrives over control connection `epoch`.
    pub(crate) fn confirm(&self, epoch: u64, offset: u64) {
        self.turn(|state| {
            let (bounds, before) = (state.bounds(), state.start);
            let counted = state.handover.confirm(epoch, offset, bounds);
            assert!(!counted || epoch == state.newest(), "only the newest gateway counts");
            state.start = before.max(state.handover.droppable());
        });
    }

    /// A write arrives over control connection `epoch`. Whether it was obeyed.
    pub(crate) fn write(&self, epoch: u64, n: u64) -> bool {
        self.turn(|state| {
            let obeyed = state.handover.counts(epoch);
            assert!(!obeyed || epoch == state.newest(), "only the newest gateway counts");
            if obeyed && state.numbers.take(n) {
                state.stdin.push(n);
                state.numbers.written(n);
                state.journal.push(Record::In(n));
            }
            obeyed
        })
    }

    /// A stop arrives over control connection `epoch`.
    pub(crate) fn stop(&self, epoch: u64) {
        self.turn(|state| {
            if state.handover.counts(epoch) && state.alive {
                state.journal.push(Record::Decided);
            }
        });
    }

    /// Control connection `epoch` is closed at its other end.
    pub(crate) fn lose(&self, epoch: u64, now: Instant) {
        self.turn(|state| state.handover.lose(epoch, now));
    }

    // What a model looks at when all is over.

    pub(crate) fn journal(&self) -> Vec<Record> {
        self.0.0.lock().journal.clone()
    }

    pub(crate) fn stdin(&self) -> Vec<u64> {
        self.0.0.lock().stdin.clone()
    }

    pub(crate) fn start(&self) -> u64 {
        self.0.0.lock().start
    }
}

impl State {
    fn newest(&self) -> u64 {
        self.heard.len() as u64
    }

    fn bounds(&self) -> Bounds {
        Bounds { start: self.start, end: self.journal.len() as u64 }
    }

    fn say(&mut self, word: Word) {
        if self.handover.say(word) {
            let (said, _) = self.heard.last_mut().expect("there was one from the beginning");
            said.push(word);
        }
    }

    fn may_end(&self) -> bool {
        let (said, read) = self.heard.last().expect("there was one from the beginning");
        self.handover.may_end(*read < said.len(), self.journal.len() as u64)
    }
}
