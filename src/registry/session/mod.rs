//! One session: its log and its runs under one lock, and every operation as one step under it.
//!
//! Who ends a run is one compare here (I1), whoever asks: the agent's own end, an abort's, the
//! crash net, shutdown, recovery. Everything addresses a run by its id, never "the current run"
//! (I6). Frames are encoded outside the lock and compared inside: `Moved` means encode again.
//! Lock order: registry map, session, waker (I16). Must not know HTTP, WebSocket, SQLite.

mod append;
mod queue;
mod reading;
mod storing;

use std::collections::VecDeque;

use crate::registry::broadcast::Mode;
use crate::registry::budget::Budget;
use crate::registry::shelf::Loaded;
use crate::run::change::{Change, Frame, RunRow, SessionRow, Whole};
use crate::run::event::By;
use crate::run::id::{
    AgentId, ClientMessageId, Millis, NativeId, Ordinal, Position, QueueId, RequestId, RunId, Seq,
    SessionId,
};
use crate::run::log::Log;
use crate::run::queue::{Known, Queue};
use crate::run::state::{AnswerRequest, PermissionState, Phase, Run, Runs};
use crate::run::wake::{Waker, Wakes};
use crate::sync::{Arc, Mutex};

pub(super) use queue::Enqueued;
pub use reading::Watched;

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
    queue: Queue,
    /// The worker of the newest run.
    worker: Option<(RunId, Waker)>,
    /// Answers that the worker has not taken yet.
    answers: VecDeque<(RequestId, AnswerRequest)>,
    /// Nothing new begins: the session is deleted, evicted from memory, or the server stops.
    end: Option<EndOfSession>,
    /// A run that the store refused, until it has its end: nobody else appends to it.
    rejected: Option<RunId>,
    /// The server stops and agents live on: the worker is to let go of its own.
    let_go: bool,
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
    /// Its place in the queue, if it waited there.
    pub queued: Option<QueueId>,
    /// When.
    pub now: Millis,
    /// `run_started`, encoded.
    pub head: tungstenite::Utf8Bytes,
    /// The uncut `run_started`, if it was cut.
    pub whole: Option<Vec<u8>>,
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
    /// The same message waits in the queue, or was taken out of it (I19).
    Known(Known),
    /// A run is running (I5), or a queued prompt's is about to begin. Nothing changed.
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
    /// The group that ends a run which the store refused: the only one that is admitted then.
    Rejected,
}

/// Whether a completion was the one that counts (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// It was.
    Won,
    /// The run had its end, or is unknown.
    Already,
    /// Somebody asked for an abort, so that the agent's own word does not end it.
    Aborting,
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
    /// The run has its `complete` already: the worker only has to see to its process.
    pub ended: bool,
    /// The server stops and the agent lives on: nothing more is appended, nothing is stopped.
    pub let_go: bool,
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
        let session = Self::new(loaded.row, last, runs, budget);
        session.inner.lock().queue = loaded.queue;
        session
    }

    fn new(row: SessionRow, last: Position, runs: Runs, budget: Arc<Budget>) -> Self {
        let log = Log::new(row.id, last);
        let id = row.id;
        let inner = Inner {
            row,
            log,
            runs,
            queue: Queue::default(),
            worker: None,
            answers: VecDeque::new(),
            end: None,
            rejected: None,
            let_go: false,
        };
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

    /// Whether somebody deleted it; the disk may not know yet.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.inner.lock().end == Some(EndOfSession::Deleted)
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
        let obstacle = match (begin.queued, begin.origin) {
            (Some(id), _) => inner.obstacle_of_queued(id),
            // What an agent does by itself waits for nobody's turn.
            (None, "agent") => inner.obstacle_of_any(),
            _ => inner.obstacle(begin.client_message_id.as_ref()),
        };
        match obstacle {
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

    /// A run's place, durable or not, if memory knows the run.
    #[must_use]
    pub fn ordinal_of(&self, run: RunId) -> Option<Ordinal> {
        self.inner.lock().runs.get(run).map(|run| run.ordinal)
    }

    /// Whether memory has this run.
    #[must_use]
    pub fn knows(&self, run: RunId) -> bool {
        self.inner.lock().runs.get(run).is_some()
    }

    /// Asks that a run (the running one, if none is named) stop. From here on each end of it is
    /// an abort. Gives the run and a ticket; `None` if there is nothing to stop.
    pub fn ask_abort(&self, run: Option<RunId>, by: &By, now: Millis) -> Option<(RunId, u64)> {
        let (asked, worker) = {
            let mut inner = self.inner.lock();
            let id = inner.runs.running()?.id;
            inner.on(id).filter(|_| run.is_none_or(|run| run == id))?;
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
        let state = inner.on(run);
        let ended = state.is_none();
        let abort = state.and_then(Run::abort).cloned();
        let ours = inner.worker.as_ref().is_some_and(|(owner, _)| *owner == run);
        let answers = if ours { inner.answers.drain(..).collect() } else { Vec::new() };
        Orders { abort, ended, answers, let_go: inner.let_go }
    }

    /// Records a fact and gives its ticket; one that is rejected already if the session has left
    /// memory or is deleted.
    pub fn note(&self, change: Change) -> u64 {
        let ticket = self.inner.lock().record(change);
        self.budget.wake_store(self.id);
        ticket
    }

    /// Records two facts that reach the disk together, and gives the ticket of both.
    pub fn note_both(&self, first: Change, second: Change) -> u64 {
        let ticket = {
            let mut inner = self.inner.lock();
            inner.record(first);
            inner.record(second)
        };
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

    /// Deletes it, unless a run is running, and records `audit`. Readers get `Ended`.
    pub fn delete(&self, audit: Change) -> Result<u64, DeleteRefused> {
        let (ticket, wakes) = {
            let mut inner = self.inner.lock();
            if let Some(end) = inner.gone() {
                return Err(DeleteRefused::Ended(end));
            }
            if inner.runs.running().is_some() {
                return Err(DeleteRefused::Running);
            }
            inner.end = Some(EndOfSession::Deleted);
            inner.log.record(audit);
            let ticket = inner.log.record(Change::SessionDeleted);
            (ticket, inner.log.close())
        };
        wakes.wake();
        self.budget.wake_store(self.id);
        Ok(ticket)
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
        if let Some((_, worker)) = &inner.worker {
            wakes.other(worker.clone());
        }
        wakes
    }

    /// Whether nothing of it would be lost if it left memory now.
    pub(super) fn is_at_rest(&self) -> bool {
        let inner = self.inner.lock();
        inner.runs.running().is_none() && !inner.log.has_undurable()
    }

    /// The server stops: nothing new begins (I14). With `Abort` a running run may end; then, or at
    /// once if none is running, readers that have everything get `Ended`. With `Keep` the worker
    /// lets go of the agent, and readers end with what was appended until then.
    pub fn close(&self, mode: Mode) {
        let wakes = {
            let mut inner = self.inner.lock();
            inner.end.get_or_insert(EndOfSession::Closing);
            inner.let_go = mode == Mode::Keep;
            let mut wakes = inner.after_append();
            if let Some((_, worker)) = inner.worker.as_ref().filter(|_| inner.let_go) {
                wakes.other(worker.clone());
            }
            wakes
        };
        wakes.wake();
    }
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
        if let Some(known) = message.and_then(|id| self.queue.find(id)) {
            return Some(Begun::Known(known));
        }
        self.is_busy().then_some(Begun::Busy)
    }

    /// What stands against any new run.
    fn obstacle_of_any(&self) -> Option<Begun> {
        let running = self.runs.running().is_some();
        self.end.map(Begun::Ended).or_else(|| running.then_some(Begun::Busy))
    }

    /// A run that can still be written to: it has no `complete`, the store has not refused it, and
    /// the session is in memory.
    fn on(&self, run: RunId) -> Option<&Run> {
        self.not_ended(run).filter(|run| self.rejected != Some(run.id))
    }

    fn not_ended(&self, run: RunId) -> Option<&Run> {
        self.runs.get(run).filter(|run| run.is_running() && self.gone().is_none())
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
            && self.queue.ready().is_none()
            && !self.log.has_undurable()
            && !self.log.is_watched();
        (next, idle)
    }

    fn begin(&mut self, begin: Begin, budget: &Budget) -> Begun {
        let ordinal = self.runs.next_ordinal();
        let at = Position::new(ordinal, Seq(0));
        match begin.queued {
            Some(id) => assert!(self.queue.start(id), "I19: only the first one's turn comes"),
            // Whoever sends goes on, and what waits after it.
            None if begin.origin == "user" => self.queue.resume(),
            None => {}
        }
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
            queued: begin.queued,
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
            whole: begin.whole.map(|json| Arc::new(Whole { json })),
            group_end: true,
            offset: 0,
        }]);
        budget.changed(before, self.log.bytes());
        self.answers.clear();
        Begun::Started { ordinal, ticket }
    }

    /// A server that stops lets each session's readers go once its last run has ended, or at once
    /// if agents live on.
    fn after_append(&mut self) -> Wakes {
        let over = self.let_go || self.runs.running().is_none();
        if self.end == Some(EndOfSession::Closing) && over {
            self.log.close()
        } else {
            Wakes::default()
        }
    }
}
