//! Which sessions and runs exist, and everything that can be asked of them.
//!
//! The registry is a map of sessions under one mutex; what happens in a session happens under the
//! session's own (see `session`). The disk is read without a lock held, and what was read counts
//! only if nothing left memory meanwhile. Must not know HTTP or WebSocket.

#[cfg(not(any(loom, shuttle)))]
mod attachments;
mod broadcast;
mod budget;
mod compose;
#[cfg(not(any(loom, shuttle)))]
mod counting;
#[cfg(not(any(loom, shuttle)))]
mod crew;
mod desk;
#[cfg(not(any(loom, shuttle)))]
mod disk;
#[cfg(not(any(loom, shuttle)))]
mod engine;
mod feed;
mod herald;
mod pending;
mod persist;
mod prompt;
mod queue;
mod refusal;
mod session;
mod shelf;
#[cfg(not(any(loom, shuttle)))]
mod worker;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::limits::Limits;
use crate::run::change::{Change, SessionRow};
use crate::run::event::{By, Complete};
use crate::run::id::{LogEpoch, Millis, NativeId, RequestId, RunId, SessionId};
use crate::run::server_change::ServerChange;
use crate::run::state::AnswerRequest;
use crate::run::wake::Waker;
use crate::sync::{Arc, AtomicUsize, Mutex};

use desk::Desk;
use refusal::shutting_down;

pub use broadcast::{Announced, AnnouncementCursor, Broadcasts, Mode, StoreState};
pub use budget::Budget;
pub use compose::{Composer, cancelled, end, synthetic_result};
#[cfg(not(any(loom, shuttle)))]
pub use counting::OUTCOMES;
#[cfg(not(any(loom, shuttle)))]
pub use crew::Workers;
#[cfg(not(any(loom, shuttle)))]
pub use disk::{Reading, Writing};
#[cfg(not(any(loom, shuttle)))]
pub use engine::{Engine, EngineError, Fatal};
pub use feed::{From, Read, SubscribeError, Subscribed, Target};
pub use herald::{Herald, Notable, Occasion};
pub use pending::Pending;
pub use persist::{Persist, Round};
pub use prompt::{
    Accepted, AcceptedToQueue, AgentPermit, BegunByAgent, Crew, Job, NotBegun, SendPrompt, Sent,
    Started,
};
pub use queue::{Advance, Turns};
pub use refusal::{Refusal, RefusalCode};
pub use session::{
    Admission, Answered, Begin, Begun, Completed, DeleteRefused, EndOfSession, Orders, Refused,
    Session, Watched,
};
pub use shelf::{CommitError, Disk, Gap, Kept, Loaded, Message, Place, Shelf, ShelfError};
#[cfg(not(any(loom, shuttle)))]
pub use worker::{Effect, Fold, Staged, Turn};

/// The registry. It lives in an `Arc`: workers hold it.
pub struct Registry {
    limits: Limits,
    epoch: LogEpoch,
    shelf: Arc<dyn Shelf>,
    budget: Arc<Budget>,
    desk: Arc<Desk>,
    crew: OnceLock<Box<dyn Crew>>,
    herald: OnceLock<Box<dyn Herald>>,
    map: Mutex<Sessions>,
    broadcasts: Broadcasts,
    agents: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Sessions {
    sessions: BTreeMap<SessionId, Arc<Session>>,
    /// Who has which native id, as decided; the disk's unique index has the last word.
    natives: BTreeMap<(String, NativeId), SessionId>,
    /// How often something left memory: what was read from disk before that may be stale.
    departures: u64,
    /// The server stops, and what becomes of agents.
    closing: Option<Mode>,
}

/// A run was asked to stop.
#[derive(Debug)]
pub struct Aborting {
    /// Which.
    pub run: RunId,
    /// Settled once the intent is durable.
    pub pending: Pending,
}

/// A permission request was answered.
#[derive(Debug)]
pub struct AnswerAccepted {
    /// Whose.
    pub session: SessionId,
    /// Which run waits for it.
    pub run: RunId,
    /// Settled once the answer is durable, that is *recorded*.
    pub pending: Pending,
}

/// A new session.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Which provider.
    pub provider: String,
    /// An existing absolute directory under a project root: the caller has checked it.
    pub project_path: String,
    /// If given; else the first prompt's beginning.
    pub title: Option<String>,
    /// A conversation begun elsewhere.
    pub native_id: Option<NativeId>,
}

impl Registry {
    /// A registry over a disk. `store` is the waker of the thread that runs `Persist`.
    #[must_use]
    pub fn new(limits: Limits, epoch: LogEpoch, shelf: Arc<dyn Shelf>, store: Waker) -> Self {
        Self {
            desk: Arc::new(Desk::new(store.clone())),
            budget: Arc::new(Budget::new(&limits, store)),
            limits,
            epoch,
            shelf,
            crew: OnceLock::new(),
            herald: OnceLock::new(),
            map: Mutex::new(Sessions::default()),
            broadcasts: Broadcasts::default(),
            agents: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Who starts agents. Set once, before the first prompt.
    pub fn set_crew(&self, crew: Box<dyn Crew>) {
        assert!(self.crew.set(crew).is_ok(), "the crew is set once");
    }

    /// The incarnation of the log.
    #[must_use]
    pub const fn epoch(&self) -> LogEpoch {
        self.epoch
    }

    /// The bounds in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What every connection hears.
    #[must_use]
    pub const fn broadcasts(&self) -> &Broadcasts {
        &self.broadcasts
    }

    /// The memory that all logs share.
    #[must_use]
    pub const fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Puts a durable fact of no session on its way to disk.
    pub fn record(&self, change: ServerChange) -> Result<Pending, Refusal> {
        self.check_store()?;
        let ticket = self.desk.record(change)?;
        Ok(Pending::of_server(self.desk.clone(), ticket))
    }

    /// Whether all that was recorded is on disk.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.desk.is_empty() && self.loaded().iter().all(|session| !session.has_undurable())
    }

    /// A new session.
    pub fn create_session(
        &self,
        new: NewSession,
        now: Millis,
    ) -> Result<(SessionId, Pending), Refusal> {
        let row = SessionRow {
            id: SessionId::random(),
            provider: new.provider,
            native_id: new.native_id,
            project_path: new.project_path,
            title: new.title,
            archived: false,
            created_at: now,
            updated_at: now,
        };
        self.create_from(row)
    }

    /// A new session with a row made elsewhere (tests and models choose the id).
    pub fn create_from(&self, row: SessionRow) -> Result<(SessionId, Pending), Refusal> {
        self.check_open()?;
        let id = row.id;
        if let Some(native_id) = &row.native_id
            && !self.claim_native(id, &row.provider, native_id)?
        {
            return Err(Refusal::new(
                RefusalCode::InvalidField,
                "providerSessionId: another session has this conversation; use that one.",
            ));
        }
        let (session, ticket) = Session::create(row, self.budget.clone());
        let session = Arc::new(session);
        {
            let mut map = self.map.lock();
            if map.closing.is_some() {
                return Err(shutting_down());
            }
            map.sessions.insert(id, session.clone());
        }
        self.budget.wake_store(id);
        Ok((id, Pending::of(session, ticket)))
    }

    /// Changes a session's title or archive flag.
    pub fn edit_session(
        &self,
        id: SessionId,
        title: Option<String>,
        archived: Option<bool>,
        now: Millis,
    ) -> Result<Pending, Refusal> {
        self.check_open()?;
        loop {
            let session = self.find(id)?;
            match session.edit(title.clone(), archived, now) {
                Ok(ticket) => return Ok(Pending::of(session, ticket)),
                Err(EndOfSession::Evicted) => {}
                Err(_) => return Err(Refusal::no_session(id)),
            }
        }
    }

    /// Deletes a session with all its runs.
    pub fn delete_session(&self, id: SessionId, by: &By, now: Millis) -> Result<Pending, Refusal> {
        self.check_open()?;
        loop {
            let session = self.find(id)?;
            match session.delete(Change::session_deleted(&session.row().provider, by, now)) {
                Ok(ticket) => {
                    if let Some(crew) = self.crew.get() {
                        crew.dismiss(id);
                    }
                    return Ok(Pending::of(session, ticket));
                }
                Err(DeleteRefused::Running) => {
                    return Err(Refusal::new(
                        RefusalCode::RunInProgress,
                        "A run is running in this session; abort it first.",
                    ));
                }
                Err(DeleteRefused::Ended(EndOfSession::Evicted)) => {}
                Err(DeleteRefused::Ended(_)) => return Err(Refusal::no_session(id)),
            }
        }
    }

    /// Asks that a run (the session's running one, if none is named) stop.
    pub fn abort(
        &self,
        id: SessionId,
        run: Option<RunId>,
        by: &By,
        now: Millis,
    ) -> Result<Aborting, Refusal> {
        let none = || Refusal::new(RefusalCode::NoActiveRun, "No run is running there.");
        let session = self.look_up(id)?.ok_or_else(none)?;
        let (run, ticket) = session.ask_abort(run, by, now).ok_or_else(none)?;
        Ok(Aborting { run, pending: Pending::of(session, ticket) })
    }

    /// Answers a permission request (I20: the first answer counts).
    pub fn answer(
        &self,
        request: &RequestId,
        answer: &AnswerRequest,
        by: &By,
        now: Millis,
    ) -> Result<AnswerAccepted, Refusal> {
        let unknown = || {
            Refusal::new(RefusalCode::PermissionNotFound, "There is no such permission request.")
        };
        let already = || {
            Refusal::new(
                RefusalCode::PermissionAlreadyResolved,
                "Somebody answered first, or nobody needs to answer any more.",
            )
        };
        let run = request_run(request).ok_or_else(unknown)?;
        let Some(session) = self.session_of_run(run) else {
            // Its run has left memory, so it ended: the request is settled, if it ever was.
            let asked = self.shelf.permission(request)?.is_some();
            return Err(if asked { already() } else { unknown() });
        };
        match session.answer(request, answer, by, now) {
            Answered::Recorded { run, ticket } => Ok(AnswerAccepted {
                session: session.id(),
                run,
                pending: Pending::of(session, ticket),
            }),
            Answered::Already => Err(already()),
            // Memory forgets what is settled; the disk does not.
            Answered::Unknown => {
                let asked = self.shelf.permission(request)?.is_some();
                Err(if asked { already() } else { unknown() })
            }
        }
    }

    /// Ends a run, if it is in that session and has no end yet (I1). Whoever calls.
    pub fn complete(
        &self,
        session: SessionId,
        run: RunId,
        end: &Complete,
        now: Millis,
    ) -> Completed {
        let session = self.map.lock().sessions.get(&session).cloned();
        session.map_or(Completed::Already, |session| session.complete(run, end, now))
    }

    /// The runs without a `complete`.
    #[must_use]
    pub fn running(&self) -> Vec<(SessionId, RunId)> {
        let sessions = self.loaded();
        sessions.iter().filter_map(|session| Some((session.id(), session.running()?))).collect()
    }

    /// Whether a run is on in that session.
    #[must_use]
    pub fn is_processing(&self, session: SessionId) -> bool {
        let session = self.map.lock().sessions.get(&session).cloned();
        session.is_some_and(|session| session.running().is_some())
    }

    /// A provider named its own id for a session's conversation. `false` if another session of
    /// the provider has it: the first keeps it.
    pub fn learn_native(
        &self,
        session: &Session,
        native_id: &NativeId,
        now: Millis,
    ) -> Result<bool, Refusal> {
        let row = session.row();
        if row.native_id.as_ref() == Some(native_id) {
            return Ok(true);
        }
        if !self.claim_native(session.id(), &row.provider, native_id)? {
            return Ok(false);
        }
        session.learn_native(native_id, now);
        Ok(true)
    }

    /// A session, from memory or disk, for a worker or the recovery.
    pub fn recover(&self, id: SessionId) -> Result<Arc<Session>, Refusal> {
        self.find(id)
    }

    /// Takes what is past its retention out of memory (I13); gives the time to call again.
    pub fn evict(&self, now: Millis) -> Option<Millis> {
        let retention = self.limits.completed_retention_ms;
        let mut due: Option<Millis> = None;
        for session in self.loaded() {
            let (next, idle) = session.evict(now, retention);
            due = match (due, next) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if idle {
                let mut map = self.map.lock();
                if session.try_leave(now, retention) {
                    map.sessions.remove(&session.id());
                    map.natives.retain(|_, owner| *owner != session.id());
                    map.departures += 1;
                }
            }
        }
        due
    }

    /// The server stops: nothing new begins from here on (I14).
    pub fn close(&self, mode: Mode) {
        let sessions: Vec<_> = {
            let mut map = self.map.lock();
            map.closing = Some(mode);
            map.sessions.values().cloned().collect()
        };
        self.broadcasts.set_draining(mode);
        for session in sessions {
            session.close(mode);
        }
    }

    /// The connection is gone: its slots and tickets.
    pub fn forget(&self, waker: &Waker) {
        self.broadcasts.leave(waker);
        self.desk.forget(waker);
        for session in self.loaded() {
            session.forget(waker);
        }
    }

    /// Forgets all sessions that are durable and without a running run, whoever watches. For
    /// tests.
    pub fn clear(&self) {
        for session in self.loaded() {
            if session.is_at_rest() {
                self.remove(session.id());
            }
        }
    }

    /// Sessions in memory.
    #[must_use]
    pub fn loaded(&self) -> Vec<Arc<Session>> {
        self.map.lock().sessions.values().cloned().collect()
    }

    /// A session in memory.
    #[must_use]
    pub fn in_memory(&self, id: SessionId) -> Option<Arc<Session>> {
        self.map.lock().sessions.get(&id).cloned()
    }

    /// A session, from memory or disk.
    pub(crate) fn look_up(&self, id: SessionId) -> Result<Option<Arc<Session>>, ShelfError> {
        loop {
            let departures = {
                let map = self.map.lock();
                if let Some(session) = map.sessions.get(&id) {
                    return Ok(Some(session.clone()));
                }
                map.departures
            };
            let Some(loaded) = self.shelf.session(id)? else { return Ok(None) };
            let mut map = self.map.lock();
            if map.departures != departures {
                // What was read may be older than what left memory meanwhile.
                continue;
            }
            let closing = map.closing;
            let session = map
                .sessions
                .entry(id)
                .or_insert_with(|| Arc::new(Session::load(loaded, self.budget.clone())))
                .clone();
            drop(map);
            if let Some(mode) = closing {
                session.close(mode);
            }
            return Ok(Some(session));
        }
    }

    /// Takes a session out of memory, whoever reads it: its deletion is on disk, or the store
    /// will not have it.
    pub(crate) fn remove(&self, id: SessionId) {
        let wakes = {
            let mut map = self.map.lock();
            map.natives.retain(|_, owner| *owner != id);
            map.departures += 1;
            // Under the map's lock, so that nothing begins in what is no longer found.
            map.sessions.remove(&id).map(|session| session.depart())
        };
        if let Some(wakes) = wakes {
            wakes.wake();
        }
    }

    /// The store refused what is not durable of a session: it is as the disk has it again. Without
    /// a run to end, it leaves memory in the same step, so that nothing begins in it in between.
    pub(crate) fn reject(&self, session: &Session, loaded: Loaded) -> Option<RunId> {
        let id = session.id();
        let mut map = self.map.lock();
        let (wakes, run) = session.reject(loaded);
        let mut left = None;
        if run.is_none() {
            map.natives.retain(|_, owner| *owner != id);
            map.departures += 1;
            left = map.sessions.remove(&id).map(|session| session.depart());
        }
        drop(map);
        wakes.wake();
        if let Some(wakes) = left {
            wakes.wake();
        }
        run
    }

    /// A session is as the disk has it again: what it claimed beyond that is free.
    pub(crate) fn release_natives(&self, id: SessionId, kept: Option<&NativeId>) {
        let mut map = self.map.lock();
        map.natives.retain(|(_, native), owner| *owner != id || Some(native) == kept);
    }

    /// A session as the disk has it.
    pub(crate) fn on_disk(&self, id: SessionId) -> Result<Option<Loaded>, ShelfError> {
        self.shelf.session(id)
    }

    fn find(&self, id: SessionId) -> Result<Arc<Session>, Refusal> {
        let session = self.look_up(id)?.filter(|session| !session.is_deleted());
        session.ok_or_else(|| Refusal::no_session(id))
    }

    fn session_of_run(&self, run: RunId) -> Option<Arc<Session>> {
        self.loaded().into_iter().find(|session| session.knows(run))
    }

    fn check_open(&self) -> Result<(), Refusal> {
        if self.map.lock().closing.is_some() {
            return Err(shutting_down());
        }
        self.check_store()
    }

    fn check_store(&self) -> Result<(), Refusal> {
        match self.broadcasts.store() {
            StoreState::Good => Ok(()),
            StoreState::Bad(code) => Err(Refusal::new(
                RefusalCode::StoreUnavailable,
                format!("The store cannot write now ({code}); try again when it can."),
            )),
        }
    }

    /// Claims a native id for a session; `false` if another session of the provider has it.
    fn claim_native(
        &self,
        session: SessionId,
        provider: &str,
        native_id: &NativeId,
    ) -> Result<bool, ShelfError> {
        let mut departures = self.map.lock().departures;
        loop {
            let on_disk = self.shelf.native(provider, native_id)?;
            let mut map = self.map.lock();
            if map.departures != departures {
                // Its owner may have left memory after the disk was read: read again.
                departures = map.departures;
                continue;
            }
            if on_disk.is_some_and(|owner| owner != session) {
                return Ok(false);
            }
            let key = (provider.to_owned(), native_id.clone());
            return Ok(*map.natives.entry(key).or_insert(session) == session);
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The id under which clients know an agent's permission request.
#[must_use]
pub fn request_id(run: RunId, of_agent: &str) -> RequestId {
    RequestId(format!("{run}:{of_agent}"))
}

/// The agent's own id in a request id.
#[must_use]
pub fn request_of_agent(request: &RequestId) -> &str {
    request.0.split_once(':').map_or("", |(_, own)| own)
}

fn request_run(request: &RequestId) -> Option<RunId> {
    request.0.split_once(':')?.0.parse().ok()
}
