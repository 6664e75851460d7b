//! One session: its log and its runs under one lock, and every operation as one step under it.
//!
//! Who ends a run is one compare here (I1), whoever asks: the agent's own end, an abort's, the
//! crash net, shutdown, recovery. Everything addresses a run by its id, never "the current run"
//! (I6). Frames are encoded outside the lock and compared inside: `Moved` means encode again.
//! Lock order: registry map, session, waker (I16). Must not know HTTP, WebSocket, SQLite.

use std::collections::VecDeque;

use crate::registry::budget::Budget;
use crate::registry::compose::Composer;
use crate::registry::shelf::Loaded;
use crate::run::change::{Batch, Change, Frame, Mark, RunRow, SessionRow};
use crate::run::event::{AnswerState, By, Complete, Decision, Event, PermissionResolved};
use crate::run::id::{
    AgentId, ClientMessageId, Millis, NativeId, Ordinal, Position, RequestId, RunId, Seq, SessionId,
};
use crate::run::log::{Log, Read, Settled};
use crate::run::state::{AnswerRequest, Closing, PermissionState, Phase, Run, Runs, Statement};
use crate::run::wake::{Waker, Wakes};
use crate::sync::{Arc, Mutex};

/// One session.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    budget: Arc<Budget>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    row: SessionRow,
    log: Log,
    runs: Runs,
    /// The worker of the newest run.
    worker: Option<(RunId, Waker)>,
    /// Answers that the worker has not taken yet.
    answers: VecDeque<(RequestId, AnswerRequest)>,
    /// Nothing new begins: the session is deleted, evicted from memory, or the server stops.
    end: Option<EndOfSession>,
}

/// Why a session takes nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfSession {
    /// It left memory; who holds it looks it up again.
    Evicted,
    /// It is deleted.
    Deleted,
    /// The server stops.
    Closing,
}

/// What a new run needs.
#[derive(Debug)]
pub struct Begin {
    /// Its id.
    pub run: RunId,
    /// The agent process that will serve it.
    pub agent: AgentId,
    /// `user` or `agent`.
    pub origin: &'static str,
    /// Of content and options.
    pub prompt_hash: [u8; 32],
    /// The sender's id for the prompt.
    pub client_message_id: Option<ClientMessageId>,
    /// When.
    pub now: Millis,
    /// `run_started`, encoded.
    pub head: tungstenite::Utf8Bytes,
    /// For a session without a title.
    pub title: Option<String>,
}

/// What became of a `begin`.
#[derive(Debug, PartialEq, Eq)]
pub enum Begun {
    /// The run began.
    Started {
        /// Its place.
        ordinal: Ordinal,
        /// Settled once its row is durable.
        ticket: u64,
    },
    /// The same message began this run before (I19).
    Duplicate {
        /// The run that it began.
        run: RunId,
        /// The hash of what it said then.
        hash: [u8; 32],
        /// Settled once that run's row is durable.
        ticket: u64,
    },
    /// A run is running (I5). Nothing changed.
    Busy,
    /// The session takes nothing new.
    Ended(EndOfSession),
}

/// Why an append was refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The run has moved on: this seq comes next (or, for a closing group, somebody asked for an
    /// abort meanwhile). Encode again.
    Moved(Seq),
    /// No room. The appender's waker is armed by `Budget::starve`.
    Full,
    /// The run has its `complete`, or is unknown.
    Ended,
}

/// Who appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The agent: the ring's bounds hold.
    Agent,
    /// The gateway: always admitted.
    Gateway,
    /// The group that ends the run: always admitted, if its snapshot is still true.
    Closing {
        /// Whether the snapshot knew of an abort.
        aborting: bool,
    },
}

/// Whether a completion was the one that counts (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// It was.
    Won,
    /// The run had its end, or is unknown.
    Already,
}

/// What became of an answer (I20).
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    /// It counts. Settled with the ticket.
    Recorded {
        /// Which run waits for it.
        run: RunId,
        /// Settled once it is durable.
        ticket: u64,
    },
    /// Somebody was first.
    Already,
    /// Memory does not know the request.
    Unknown,
}

/// What a worker is to do.
#[derive(Debug, Default)]
pub struct Orders {
    /// Somebody asked that the run stop.
    pub abort: Option<By>,
    /// The run has its `complete` already: the worker only has to end its process.
    pub ended: bool,
    /// Answers, oldest first; each is handed out once.
    pub answers: Vec<(RequestId, AnswerRequest)>,
}

impl Session {
    /// A session that was just made; its row goes to disk with the ticket.
    #[must_use]
    pub fn create(row: SessionRow, budget: Arc<Budget>) -> (Self, u64) {
        let session = Self::new(row.clone(), Position::START, Runs::default(), budget);
        let ticket = session.inner.lock().log.record(Change::SessionCreated(row));
        (session, ticket)
    }

    /// A session from disk.
    #[must_use]
    pub fn load(loaded: Loaded, budget: Arc<Budget>) -> Self {
        let last = loaded
            .newest
            .as_ref()
            .map_or(Position::START, |run| Position::new(run.ordinal, run.last_seq));
        let runs = Runs::loaded(loaded.newest, loaded.permissions);
        Self::new(loaded.row, last, runs, budget)
    }

    fn new(row: SessionRow, last: Position, runs: Runs, budget: Arc<Budget>) -> Self {
        let log = Log::new(row.id, last);
        let id = row.id;
        let inner = Inner { row, log, runs, worker: None, answers: VecDeque::new(), end: None };
        Self { id, budget, inner: Mutex::new(inner) }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Its row, as decided (not necessarily durable).
    #[must_use]
    pub fn row(&self) -> SessionRow {
        self.inner.lock().row.clone()
    }

    /// The run without a `complete`, if there is one.
    #[must_use]
    pub fn running(&self) -> Option<RunId> {
        self.inner.lock().runs.running().map(|run| run.id)
    }

    /// A run begins, unless one is running (I5) or the same message began one (I19). The caller
    /// then wakes the store, once it holds no lock (I16).
    pub(super) fn begin(&self, begin: Begin) -> Begun {
        let mut inner = self.inner.lock();
        match inner.obstacle(begin.client_message_id.as_ref()) {
            Some(obstacle) => obstacle,
            None => inner.begin(begin, &self.budget),
        }
    }

    /// What `begin` would say without beginning anything; `None` if the run would begin.
    #[must_use]
    pub fn would_begin(&self, message: Option<&ClientMessageId>) -> Option<Begun> {
        let inner = self.inner.lock();
        inner.obstacle(message)
    }

    /// Whether memory has this run.
    #[must_use]
    pub fn knows(&self, run: RunId) -> bool {
        self.inner.lock().runs.get(run).is_some()
    }

    /// Appends a group of run `run` whose first seq is the run's next one (I2).
    pub fn append(
        &self,
        run: RunId,
        group: Vec<Frame>,
        admission: Admission,
    ) -> Result<(), Refused> {
        self.append_with(run, group, admission, |_| ())
    }

    fn append_with(
        &self,
        run: RunId,
        group: Vec<Frame>,
        admission: Admission,
        and: impl FnOnce(&mut Inner),
    ) -> Result<(), Refused> {
        let wakes = {
            let mut inner = self.inner.lock();
            inner.append(run, group, admission, &self.budget)?;
            and(&mut inner);
            let mut wakes = inner.after_append();
            if inner.runs.running().is_none() {
                // What was not handed out was closed as undeliverable. The worker learns that its
                // run has ended: it need not have been the one who ended it.
                inner.answers.clear();
                if let Some((_, worker)) = inner.worker.as_ref().filter(|(owner, _)| *owner == run)
                {
                    wakes.other(worker.clone());
                }
            }
            wakes
        };
        wakes.wake();
        self.budget.wake_store(self.id);
        Ok(())
    }

    /// The run's next seq, if it has no `complete`.
    #[must_use]
    pub fn next_seq(&self, run: RunId) -> Option<Seq> {
        let inner = self.inner.lock();
        inner.runs.get(run).filter(|run| run.is_running()).map(|run| run.last_seq.next())
    }

    /// What is needed to end a run, if it is running.
    #[must_use]
    pub fn closing(&self, run: RunId) -> Option<Closing> {
        self.inner.lock().runs.closing(run)
    }

    /// Ends a run as `end` says, or as an abort if one was asked for (I1: one compare, whoever
    /// calls).
    pub fn complete(&self, run: RunId, end: &Complete, now: Millis) -> Completed {
        self.complete_after(run, end, now, 0, |_| Vec::new())
    }

    /// As `complete`, after last frames that go into the same group: `last` makes them, from the
    /// seq that it is given on. `offset` is the end of the agent record that all of it is from.
    pub fn complete_after(
        &self,
        run: RunId,
        end: &Complete,
        now: Millis,
        offset: u64,
        mut last: impl FnMut(Seq) -> Vec<Frame>,
    ) -> Completed {
        loop {
            let Some(mut closing) = self.closing(run) else { return Completed::Already };
            let provider = self.row().provider;
            let mut composer = self.composer(run, closing.ordinal, &provider);
            let mut group = last(closing.next);
            closing.follow(&group);
            group.append(&mut composer.closing(&closing, end, now));
            if let Some(complete) = group.last_mut() {
                complete.offset = offset;
            }
            let admission = Admission::Closing { aborting: closing.abort.is_some() };
            match self.append(run, group, admission) {
                Ok(()) => return Completed::Won,
                Err(Refused::Ended) => return Completed::Already,
                Err(Refused::Moved(_) | Refused::Full) => {}
            }
        }
    }

    /// Appends one event of the gateway's, whatever else is appended meanwhile. `Err` once the run
    /// has its `complete`.
    pub fn record(
        &self,
        run: RunId,
        event: &Event,
        mark: Option<&Mark>,
        now: Millis,
    ) -> Result<(), Refused> {
        loop {
            let (seq, ordinal) = self.place(run).ok_or(Refused::Ended)?;
            let provider = self.row().provider;
            let frame =
                self.composer(run, ordinal, &provider).frame(seq, now, event, mark.cloned());
            match self.append(run, vec![frame], Admission::Gateway) {
                Err(Refused::Moved(_) | Refused::Full) => {}
                done => return done,
            }
        }
    }

    /// Asks that a run (the running one, if none is named) stop. From here on each end of it is
    /// an abort. Gives the run and a ticket; `None` if there is nothing to stop.
    pub fn ask_abort(&self, run: Option<RunId>, by: &By, now: Millis) -> Option<(RunId, u64)> {
        let (asked, worker) = {
            let mut inner = self.inner.lock();
            let id = inner.runs.running()?.id;
            if run.is_some_and(|run| run != id) {
                return None;
            }
            let ticket = if inner.runs.ask_abort(id, by)? {
                inner.log.record(Change::AbortAsked { run: id, by: by.clone(), at: now })
            } else {
                inner.log.ticket()
            };
            ((id, ticket), inner.worker.clone())
        };
        if let Some((_, worker)) = worker {
            worker.wake_other();
        }
        self.budget.wake_store(self.id);
        Some(asked)
    }

    /// Answers a permission request, if nobody has (I20: compare and set).
    pub fn answer(
        &self,
        request: &RequestId,
        answer: &AnswerRequest,
        by: &By,
        now: Millis,
    ) -> Answered {
        loop {
            let (run, seq, ordinal, provider) = {
                let inner = self.inner.lock();
                let Some(permission) = inner.runs.permission(request) else {
                    return Answered::Unknown;
                };
                let run = inner.runs.at(permission.opened.ordinal).filter(|run| run.is_running());
                let (PermissionState::Open, Some(run)) = (&permission.state, run) else {
                    return Answered::Already;
                };
                (run.id, run.last_seq.next(), run.ordinal, inner.row.provider.clone())
            };
            let (event, mark) = recorded(request, answer, by);
            let frame = self.composer(run, ordinal, &provider).frame(seq, now, &event, Some(mark));
            let mut ticket = 0;
            let appended = self.append_with(run, vec![frame], Admission::Gateway, |inner| {
                inner.answers.push_back((request.clone(), answer.clone()));
                ticket = inner.log.ticket();
            });
            // Refused: the run has moved on, and perhaps the request with it. Look again.
            if appended.is_ok() {
                self.wake_worker(run);
                return Answered::Recorded { run, ticket };
            }
        }
    }

    /// Whether a permission request waits for its answer.
    #[must_use]
    pub fn is_open(&self, request: &RequestId) -> bool {
        let inner = self.inner.lock();
        let permission = inner.runs.permission(request);
        permission.is_some_and(|permission| permission.state == PermissionState::Open)
    }

    /// Who answered a permission request, if somebody did.
    #[must_use]
    pub fn answered_by(&self, request: &RequestId) -> Option<By> {
        let inner = self.inner.lock();
        match &inner.runs.permission(request)?.state {
            PermissionState::Answered { by, .. } => Some(by.clone()),
            _ => None,
        }
    }

    /// The worker of `run` is awake from now on. A late one of an older run changes nothing (I6).
    /// Ask for `orders` after this.
    pub fn attach_worker(&self, run: RunId, waker: Waker) {
        let mut inner = self.inner.lock();
        if inner.runs.newest().is_some_and(|newest| newest.id == run) {
            inner.worker = Some((run, waker));
        }
    }

    /// What the worker of `run` is to do.
    pub fn orders(&self, run: RunId) -> Orders {
        let mut inner = self.inner.lock();
        let state = inner.runs.get(run);
        let ended = state.is_none_or(|run| !run.is_running());
        let abort = state.and_then(Run::abort).cloned();
        let ours = inner.worker.as_ref().is_some_and(|(owner, _)| *owner == run);
        let answers = if ours { inner.answers.drain(..).collect() } else { Vec::new() };
        Orders { abort, ended, answers }
    }

    /// Records a fact and gives its ticket; one that is rejected already if the session has left
    /// memory or is deleted.
    pub fn note(&self, change: Change) -> u64 {
        let ticket = self.inner.lock().record(change);
        self.budget.wake_store(self.id);
        ticket
    }

    /// The provider's own id became known. `None` if it was known.
    pub fn learn_native(&self, native_id: &NativeId, now: Millis) -> Option<u64> {
        let ticket = {
            let mut inner = self.inner.lock();
            if inner.row.native_id.as_ref() == Some(native_id) {
                return None;
            }
            inner.row.native_id = Some(native_id.clone());
            inner.row.updated_at = now;
            inner.record(Change::NativeIdLearned { native_id: native_id.clone(), at: now })
        };
        self.budget.wake_store(self.id);
        Some(ticket)
    }

    /// Changes title or archive flag.
    pub fn edit(
        &self,
        title: Option<String>,
        archived: Option<bool>,
        now: Millis,
    ) -> Result<u64, EndOfSession> {
        let ticket = {
            let mut inner = self.inner.lock();
            if let Some(end) = inner.gone() {
                return Err(end);
            }
            if let Some(title) = &title {
                inner.row.title = Some(title.clone());
            }
            if let Some(archived) = archived {
                inner.row.archived = archived;
            }
            inner.row.updated_at = now;
            inner.log.record(Change::SessionEdited { title, archived, at: now })
        };
        self.budget.wake_store(self.id);
        Ok(ticket)
    }

    /// Deletes it, unless a run is running. Readers get `Ended`.
    pub fn delete(&self) -> Result<u64, DeleteRefused> {
        let (ticket, wakes) = {
            let mut inner = self.inner.lock();
            if let Some(end) = inner.gone() {
                return Err(DeleteRefused::Ended(end));
            }
            if inner.runs.running().is_some() {
                return Err(DeleteRefused::Running);
            }
            inner.end = Some(EndOfSession::Deleted);
            let ticket = inner.log.record(Change::SessionDeleted);
            (ticket, inner.log.close())
        };
        wakes.wake();
        self.budget.wake_store(self.id);
        Ok(ticket)
    }

    /// How a ticket stands.
    #[must_use]
    pub fn settled(&self, ticket: u64) -> Settled {
        self.inner.lock().log.settled(ticket)
    }

    /// Wakes `waker` when the ticket is settled; says how it stands now.
    pub fn wake_when_settled(&self, ticket: u64, waker: &Waker) -> Settled {
        self.inner.lock().log.wake_when_settled(ticket, waker)
    }

    /// Gives `waker` a slot and says what is durable, in one step. `Err` if the session left
    /// memory or is deleted.
    pub fn watch(&self, waker: &Waker) -> Result<Watched, EndOfSession> {
        let mut inner = self.inner.lock();
        if let Some(end) = inner.gone() {
            return Err(end);
        }
        inner.log.watch(waker);
        Ok(inner.watched())
    }

    /// What is durable, without a slot.
    #[must_use]
    pub fn look(&self) -> Watched {
        self.inner.lock().watched()
    }

    /// Takes `waker`'s slot away.
    pub fn unwatch(&self, waker: &Waker) {
        self.inner.lock().log.unwatch(waker);
    }

    /// `waker` is gone: its slot and its tickets.
    pub fn forget(&self, waker: &Waker) {
        let mut inner = self.inner.lock();
        inner.log.unwatch(waker);
        inner.log.stop_waiting(waker);
    }

    /// A run's place and newest seq on disk, if memory knows the run.
    #[must_use]
    pub fn locate(&self, run: RunId) -> Option<(Ordinal, Seq)> {
        let inner = self.inner.lock();
        let durable = inner.log.durable();
        let run = inner.runs.get(run)?;
        match run.ordinal.cmp(&durable.ordinal) {
            std::cmp::Ordering::Less => Some((run.ordinal, run.last_seq)),
            std::cmp::Ordering::Equal => Some((run.ordinal, durable.seq)),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// The id of the run with this place, if memory knows it.
    #[must_use]
    pub fn run_at(&self, ordinal: Ordinal) -> Option<RunId> {
        self.inner.lock().runs.at(ordinal).map(|run| run.id)
    }

    /// What comes after a cursor, as far as memory has it.
    pub fn read(&self, cursor: Position, budget: usize, waker: &Waker) -> Read {
        self.inner.lock().log.read(cursor, budget, waker)
    }

    /// What its log holds in memory: frames, and their bytes (I7).
    #[must_use]
    pub fn log_weight(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.log.frames(), inner.log.bytes())
    }

    /// Whether something waits for the store.
    #[must_use]
    pub fn has_undurable(&self) -> bool {
        self.inner.lock().log.has_undurable()
    }

    /// What the store is to commit next.
    #[must_use]
    pub fn take(&self) -> Option<Batch> {
        self.inner.lock().log.take()
    }

    /// A batch is on disk. Says whether more waits.
    pub fn settle(&self, to: Position, ticket: u64) -> bool {
        let (wakes, more) = {
            let mut inner = self.inner.lock();
            let before = inner.log.bytes();
            let wakes = inner.log.settle(to, ticket);
            inner.runs.settled(to);
            self.budget.changed(before, inner.log.bytes());
            (wakes, inner.log.has_undurable())
        };
        wakes.wake();
        more
    }

    /// The store refuses what is not durable: it is gone, and the session is again what the disk
    /// has of it, `loaded`. The run that has no end there, if one, is given back to be ended as
    /// `store_rejected`.
    pub fn reject(&self, loaded: Loaded) -> Option<RunId> {
        let (wakes, run) = {
            let mut inner = self.inner.lock();
            let before = inner.log.bytes();
            let settled = inner.log.settled_ticket();
            let mut wakes = inner.log.reject();
            self.budget.changed(before, inner.log.bytes());
            inner.runs.roll_back(loaded.newest, loaded.permissions, settled);
            inner.row = loaded.row;
            inner.answers.clear();
            if let Some((_, worker)) = &inner.worker {
                wakes.other(worker.clone());
            }
            (wakes, inner.runs.running().map(|run| run.id))
        };
        wakes.wake();
        run
    }

    /// Takes completed runs whose own retention is over out of memory (I13); gives the time of
    /// the next one, and whether the whole session may leave.
    pub fn evict(&self, now: Millis, retention_ms: i64) -> (Option<Millis>, bool) {
        self.inner.lock().evict(now, retention_ms, &self.budget)
    }

    /// Marks it as out of memory, if it is still idle. The caller holds the registry's map.
    pub fn try_leave(&self, now: Millis, retention_ms: i64) -> bool {
        let mut inner = self.inner.lock();
        let (_, idle) = inner.evict(now, retention_ms, &self.budget);
        if idle {
            inner.end = Some(EndOfSession::Evicted);
        }
        idle
    }

    /// It leaves memory, whoever reads: what is not durable is refused, readers get `Ended`. The
    /// caller holds the registry's map, and carries out the wakes after it.
    pub(super) fn depart(&self) -> Wakes {
        let mut inner = self.inner.lock();
        if inner.end != Some(EndOfSession::Deleted) {
            inner.end = Some(EndOfSession::Evicted);
        }
        let before = inner.log.bytes();
        let mut wakes = inner.log.reject();
        let durable = inner.log.durable();
        inner.log.evict(durable);
        self.budget.changed(before, inner.log.bytes());
        wakes.append(inner.log.close());
        wakes
    }

    /// Whether nothing of it would be lost if it left memory now.
    pub(super) fn is_at_rest(&self) -> bool {
        let inner = self.inner.lock();
        inner.runs.running().is_none() && !inner.log.has_undurable()
    }

    /// Drops durable frames until `bytes` are freed. Only a completed newest run's, if `completed`.
    pub fn trim(&self, bytes: usize, completed: bool) -> usize {
        let mut inner = self.inner.lock();
        if completed && inner.runs.running().is_some() {
            return 0;
        }
        let before = inner.log.bytes();
        let freed = inner.log.trim(bytes);
        self.budget.changed(before, inner.log.bytes());
        freed
    }

    /// The server stops: nothing new begins (I14). A running run may end; then, or at once if
    /// none is running, readers that have everything get `Ended`.
    pub fn close(&self) {
        let wakes = {
            let mut inner = self.inner.lock();
            inner.end.get_or_insert(EndOfSession::Closing);
            inner.after_append()
        };
        wakes.wake();
    }

    fn composer(&self, run: RunId, ordinal: Ordinal, provider: &str) -> Composer {
        Composer::new(self.id, run, ordinal, provider, self.budget.event_bytes_max())
    }

    fn place(&self, run: RunId) -> Option<(Seq, Ordinal)> {
        let inner = self.inner.lock();
        let run = inner.runs.get(run).filter(|run| run.is_running())?;
        Some((run.last_seq.next(), run.ordinal))
    }

    fn wake_worker(&self, run: RunId) {
        let worker = self.inner.lock().worker.clone();
        if let Some((_, waker)) = worker.filter(|(owner, _)| *owner == run) {
            waker.wake_other();
        }
    }
}

/// What a subscriber learns at the moment of its subscribe.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The session's durable state.
    pub statement: Statement,
    /// The durable position.
    pub durable: Position,
    /// The newest position that only the disk holds.
    pub evicted: Position,
}

/// Why a session was not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteRefused {
    /// A run is running.
    Running,
    /// It takes nothing new.
    Ended(EndOfSession),
}

impl Inner {
    /// What stands against a new run, in the order of the checks.
    fn obstacle(&self, message: Option<&ClientMessageId>) -> Option<Begun> {
        if let Some(end) = self.end {
            return Some(Begun::Ended(end));
        }
        if let Some((run, hash, ticket)) = message.and_then(|id| self.runs.find_accepted(id)) {
            return Some(Begun::Duplicate { run, hash, ticket });
        }
        self.runs.running().is_some().then_some(Begun::Busy)
    }

    /// Whether it left memory or is deleted.
    fn gone(&self) -> Option<EndOfSession> {
        self.end.filter(|end| *end != EndOfSession::Closing)
    }

    /// Records a fact, if anything can still take it to disk.
    fn record(&mut self, change: Change) -> u64 {
        if self.gone().is_some() { self.log.refuse() } else { self.log.record(change) }
    }

    fn evict(&mut self, now: Millis, retention_ms: i64, budget: &Budget) -> (Option<Millis>, bool) {
        let durable = self.log.durable();
        let (due, next) = self.runs.due(durable, now, retention_ms);
        if let Some(to) = due {
            let before = self.log.bytes();
            self.log.evict(to);
            budget.changed(before, self.log.bytes());
            self.runs.forget(to, durable);
        }
        let idle = self.log.evicted() == self.log.end()
            && next.is_none()
            && self.end.is_none_or(|end| end == EndOfSession::Closing)
            && self.runs.running().is_none()
            && !self.log.has_undurable()
            && !self.log.is_watched();
        (next, idle)
    }

    fn begin(&mut self, begin: Begin, budget: &Budget) -> Begun {
        let ordinal = self.runs.next_ordinal();
        let at = Position::new(ordinal, Seq(0));
        self.row.updated_at = begin.now;
        let title = begin.title.filter(|_| self.row.title.is_none());
        if title.is_some() {
            self.row.title.clone_from(&title);
        }
        self.runs.begin(Run {
            id: begin.run,
            ordinal,
            agent: begin.agent,
            started_at: begin.now,
            last_seq: Seq(0),
            phase: Phase::Running { abort: None },
            open_tools: Vec::new(),
        });
        let ticket = self.log.record(Change::RunStarted(RunRow {
            id: begin.run,
            at,
            agent: begin.agent,
            origin: begin.origin,
            prompt_hash: begin.prompt_hash,
            client_message_id: begin.client_message_id.clone(),
            started_at: begin.now,
            head: begin.head.clone(),
            title,
        }));
        if let Some(id) = begin.client_message_id {
            self.runs.remember(id, begin.run, begin.prompt_hash, ticket);
        }
        let before = self.log.bytes();
        self.log.push(vec![Frame {
            at,
            text: begin.head,
            mark: None,
            whole: None,
            group_end: true,
            offset: 0,
        }]);
        budget.changed(before, self.log.bytes());
        self.answers.clear();
        Begun::Started { ordinal, ticket }
    }

    fn append(
        &mut self,
        run: RunId,
        group: Vec<Frame>,
        admission: Admission,
        budget: &Budget,
    ) -> Result<(), Refused> {
        let Some(state) = self.runs.get(run).filter(|run| run.is_running()) else {
            return Err(Refused::Ended);
        };
        let next = state.last_seq.next();
        let Some(first) = group.first() else { return Ok(()) };
        if first.at != Position::new(state.ordinal, next) {
            return Err(Refused::Moved(next));
        }
        match admission {
            Admission::Agent => {
                let bytes = group.iter().map(Frame::weight).sum();
                let before = self.log.bytes();
                let fits = budget.admits(&mut self.log, group.len(), bytes);
                budget.changed(before, self.log.bytes());
                if !fits {
                    return Err(Refused::Full);
                }
            }
            Admission::Gateway => {}
            Admission::Closing { aborting } => {
                if state.abort().is_some() != aborting {
                    return Err(Refused::Moved(next));
                }
            }
        }
        for frame in &group {
            self.runs.appended(frame);
        }
        let before = self.log.bytes();
        self.log.push(group);
        budget.changed(before, self.log.bytes());
        Ok(())
    }

    /// A server that stops lets each session's readers go once its last run has ended.
    fn after_append(&mut self) -> Wakes {
        if self.end == Some(EndOfSession::Closing) && self.runs.running().is_none() {
            self.log.close()
        } else {
            Wakes::default()
        }
    }

    fn watched(&self) -> Watched {
        let durable = self.log.durable();
        Watched { statement: self.runs.statement(durable), durable, evicted: self.log.evicted() }
    }
}

fn recorded(request: &RequestId, answer: &AnswerRequest, by: &By) -> (Event, Mark) {
    let decision = if answer.allow { Decision::Allow } else { Decision::Deny };
    let event = Event::PermissionResolved(PermissionResolved {
        request_id: request.0.clone(),
        decision,
        choice_id: answer.choice_id.clone(),
        state: AnswerState::Recorded,
        by: by.clone(),
        edited: answer.updated_input.is_some(),
        updated_input: answer.updated_input.clone(),
        message: answer.message.clone(),
    });
    let mark = Mark::PermissionAnswered {
        request: request.clone(),
        decision,
        state: AnswerState::Recorded,
        by: by.clone(),
    };
    (event, mark)
}
