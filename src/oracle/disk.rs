//! A disk in memory: what the store's tables and guards do, as plain maps and assertions.
//!
//! It outlives the registry over it, as a file outlives the process: a crash is a new registry
//! over the same disk. Where SQLite's guards would refuse what the core must never write, this
//! one panics and names the invariant. Must not know threads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tungstenite::Utf8Bytes;

use super::fault::Fault;
use crate::registry::{CommitError, Disk, Gap, Kept, Loaded, Message, Place, Shelf, ShelfError};
use crate::run::change::{Batch, Change, Frame, Item, Mark, RunEnd, RunRow, SessionRow};
use crate::run::event::{AnswerState, By};
use crate::run::id::{
    AgentId, ClientMessageId, Millis, NativeId, Ordinal, Position, RequestId, RunId, Seq, SessionId,
};
use crate::run::queue::{Queue, Queued};
use crate::run::server_change::ServerChange;
use crate::run::state::{Permission, PermissionState, Phase, Run};
use crate::sync::{Arc, Mutex, MutexGuard, locks_held};

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Tables>>);

#[derive(Clone, Debug, Default)]
struct Tables {
    sessions: BTreeMap<SessionId, Stored>,
    deleted: BTreeSet<SessionId>,
    /// What the next commits answer; an entry that is `None` lets its commit pass.
    faults: VecDeque<Option<Fault>>,
    commits: usize,
}

#[derive(Clone, Debug)]
struct Stored {
    row: SessionRow,
    runs: Vec<StoredRun>,
    queue: Vec<Queued>,
    held: bool,
    removed: Vec<ClientMessageId>,
}

/// A run as the disk has it.
#[derive(Clone, Debug)]
pub struct StoredRun {
    /// Its id.
    pub id: RunId,
    /// Its place.
    pub ordinal: Ordinal,
    /// The head, then the events.
    pub frames: Vec<(Position, Utf8Bytes)>,
    /// Its end, if it has one.
    pub end: Option<RunEnd>,
    /// Who asked it to stop, if anybody did.
    pub abort: Option<By>,
    /// Whether retention took its events.
    pub pruned: bool,
    agent: AgentId,
    started_at: Millis,
    hash: [u8; 32],
    message: Option<ClientMessageId>,
    tools: Vec<String>,
    permissions: Vec<(RequestId, Permission)>,
}

impl StoredRun {
    /// The newest seq.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.frames.last().map_or(Seq(0), |(at, _)| at.seq)
    }
}

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next commits answer these, one each; `None` lets one pass.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.0.lock().faults.extend(faults);
    }

    /// No more faults.
    pub fn heal(&self) {
        self.0.lock().faults.clear();
    }

    /// How many commits went well.
    #[must_use]
    pub fn commits(&self) -> usize {
        self.0.lock().commits
    }

    /// A session's row.
    #[must_use]
    pub fn row(&self, session: SessionId) -> Option<SessionRow> {
        self.0.lock().sessions.get(&session).map(|stored| stored.row.clone())
    }

    /// A session's runs, oldest first.
    #[must_use]
    pub fn runs(&self, session: SessionId) -> Vec<StoredRun> {
        self.0.lock().sessions.get(&session).map(|stored| stored.runs.clone()).unwrap_or_default()
    }

    /// Whether that run is there and has its `complete`.
    #[must_use]
    pub fn is_complete(&self, session: SessionId, run: RunId) -> bool {
        let tables = self.0.lock();
        let runs = tables.sessions.get(&session).map(|stored| &stored.runs);
        runs.is_some_and(|runs| runs.iter().any(|known| known.id == run && known.end.is_some()))
    }

    /// The runs without a `complete`: what recovery ends.
    #[must_use]
    pub fn open_runs(&self) -> Vec<(SessionId, RunId)> {
        let tables = self.0.lock();
        let open =
            |stored: &Stored| stored.runs.last().filter(|run| run.end.is_none()).map(|r| r.id);
        tables.sessions.iter().filter_map(|(id, stored)| Some((*id, open(stored)?))).collect()
    }

    /// The prompts that wait in a session, in order.
    #[must_use]
    pub fn queued(&self, session: SessionId) -> Vec<String> {
        let tables = self.0.lock();
        let queue = tables.sessions.get(&session).map(|stored| &stored.queue);
        queue.into_iter().flatten().map(|queued| queued.content.clone()).collect()
    }

    /// Retention takes the session's oldest completed run that it has not taken yet; gives its
    /// place.
    pub fn prune_oldest(&self, session: SessionId) -> Option<Ordinal> {
        let mut tables = self.0.lock();
        let runs = &mut tables.sessions.get_mut(&session)?.runs;
        let run = runs.iter_mut().find(|run| !run.pruned).filter(|run| run.end.is_some())?;
        run.pruned = true;
        run.permissions.clear();
        Some(run.ordinal)
    }
}

impl Disk for MemoryDisk {
    fn commit(&mut self, batches: &[Batch]) -> Result<(), CommitError> {
        let mut tables = self.access();
        if let Some(Some(fault)) = tables.faults.pop_front() {
            return Err(fault.error());
        }
        // All of it or nothing.
        let mut next = tables.clone();
        for batch in batches {
            next.apply(batch)?;
        }
        next.commits += 1;
        *tables = next;
        Ok(())
    }

    /// No guard stands between facts of no session, and nothing of a session depends on them.
    fn commit_server(&mut self, _changes: &[ServerChange]) -> Result<(), CommitError> {
        let mut tables = self.access();
        match tables.faults.pop_front() {
            Some(Some(fault)) => Err(fault.error()),
            _ => Ok(()),
        }
    }
}

impl MemoryDisk {
    /// The registry reads or writes: as with a file, not while it holds a lock.
    fn access(&self) -> MutexGuard<'_, Tables> {
        assert_eq!(locks_held(), 0, "I16: the disk is used under a lock");
        self.0.lock()
    }
}

impl Tables {
    fn apply(&mut self, batch: &Batch) -> Result<(), CommitError> {
        let mut last = None;
        for item in &batch.items {
            assert!(!self.deleted.contains(&batch.session), "nothing is written after a deletion");
            match item {
                Item::Frame(frame) => {
                    self.stored(batch.session).frame(frame);
                    last = Some(frame);
                }
                Item::Change(change) => self.change(batch.session, change)?,
            }
        }
        if let Some(frame) = last {
            assert!(frame.group_end, "a batch never cuts a group");
            assert_eq!(frame.at, batch.to, "I8: durable is what was committed");
        }
        if let Some(stored) = self.sessions.get(&batch.session) {
            for run in &stored.runs {
                assert!(!run.frames.is_empty(), "a run's row is committed with its head");
            }
        }
        Ok(())
    }

    fn stored(&mut self, session: SessionId) -> &mut Stored {
        let Some(stored) = self.sessions.get_mut(&session) else {
            panic!("rows of a session that was not created");
        };
        stored
    }

    fn change(&mut self, id: SessionId, change: &Change) -> Result<(), CommitError> {
        match change {
            Change::SessionCreated(row) => {
                self.check_native(id, &row.provider, row.native_id.as_ref())?;
                let stored = Stored {
                    row: row.clone(),
                    runs: Vec::new(),
                    queue: Vec::new(),
                    held: false,
                    removed: Vec::new(),
                };
                assert!(self.sessions.insert(id, stored).is_none(), "a session is made once");
            }
            Change::SessionEdited { title, archived, at } => {
                let row = &mut self.stored(id).row;
                if title.is_some() {
                    row.title.clone_from(title);
                }
                row.archived = archived.unwrap_or(row.archived);
                row.updated_at = *at;
            }
            Change::SessionDeleted => {
                let gone = self.sessions.remove(&id);
                let running = gone.and_then(|stored| stored.runs.last().map(|r| r.end.is_none()));
                assert_ne!(running, Some(true), "a session is not deleted while a run is on");
                self.deleted.insert(id);
            }
            Change::NativeIdLearned { native_id, at } => {
                let provider = self.stored(id).row.provider.clone();
                self.check_native(id, &provider, Some(native_id))?;
                let row = &mut self.stored(id).row;
                row.native_id = Some(native_id.clone());
                row.updated_at = *at;
            }
            Change::RunStarted(run) => self.stored(id).start(run),
            Change::Queued(queued) => self.stored(id).enqueue(queued),
            Change::QueueRemoved { id: prompt, at } => {
                let stored = self.stored(id);
                let at_place = stored.queue.iter().position(|queued| queued.id == *prompt);
                let Some(place) = at_place else { panic!("I19: only what waits is removed") };
                stored.removed.extend(stored.queue.remove(place).client_message_id);
                stored.row.updated_at = *at;
            }
            Change::QueueResumed { .. } => self.stored(id).held = false,
            Change::AbortAsked { run, by, .. } => {
                if let Some(run) = self.stored(id).runs.iter_mut().find(|known| known.id == *run) {
                    run.abort.get_or_insert_with(|| by.clone());
                }
            }
            Change::Nothing
            | Change::CommandRecorded { .. }
            | Change::CommandDelivered { .. }
            | Change::RunAdopted { .. }
            | Change::Checkpoint { .. }
            | Change::AgentEnded { .. }
            | Change::Audit { .. } => {}
        }
        Ok(())
    }

    /// The unique index: the registry checks first, but the disk has the last word.
    fn check_native(
        &self,
        id: SessionId,
        provider: &str,
        native: Option<&NativeId>,
    ) -> Result<(), CommitError> {
        let taken = native.is_some()
            && self.sessions.iter().any(|(other, stored)| {
                *other != id
                    && stored.row.provider == provider
                    && stored.row.native_id.as_ref() == native
            });
        if taken {
            return Err(CommitError::Constraint { message: "native id".into() });
        }
        Ok(())
    }
}

impl Stored {
    fn enqueue(&mut self, queued: &Queued) {
        if let Some(id) = &queued.client_message_id {
            let ran = self.runs.iter().any(|run| run.message.as_ref() == Some(id));
            let waits = self.queue.iter().any(|one| one.client_message_id.as_ref() == Some(id));
            let known = ran || waits || self.removed.contains(id);
            assert!(!known, "I19: one message has one place");
        }
        self.row.updated_at = queued.at;
        self.queue.push(queued.clone());
    }

    fn start(&mut self, row: &RunRow) {
        match row.queued {
            Some(id) => {
                assert!(!self.held, "I19: what is held does not begin");
                assert_eq!(self.queue.first().map(|queued| queued.id), Some(id), "I19: in order");
                self.queue.remove(0);
            }
            None if row.origin == "user" => self.held = false,
            None => {}
        }
        let last = self.runs.last();
        assert!(last.is_none_or(|run| run.end.is_some()), "I5: one running run per session");
        let ordinal = last.map_or(1, |run| run.ordinal.0 + 1);
        assert_eq!(row.at, Position::new(Ordinal(ordinal), Seq(0)), "I6: runs follow each other");
        if let Some(id) = &row.client_message_id {
            let twice = self.runs.iter().any(|run| run.message.as_ref() == Some(id));
            assert!(!twice, "I19: one message begins one run");
        }
        if self.row.title.is_none() {
            self.row.title.clone_from(&row.title);
        }
        self.row.updated_at = row.started_at;
        self.runs.push(StoredRun {
            id: row.id,
            ordinal: row.at.ordinal,
            frames: Vec::new(),
            end: None,
            abort: None,
            pruned: false,
            agent: row.agent,
            started_at: row.started_at,
            hash: row.prompt_hash,
            message: row.client_message_id.clone(),
            tools: Vec::new(),
            permissions: Vec::new(),
        });
    }

    fn frame(&mut self, frame: &Frame) {
        let Some(run) = self.runs.last_mut() else { panic!("I6: a frame before any run") };
        assert_eq!(frame.at.ordinal, run.ordinal, "I6: only the newest run is written to");
        assert!(run.end.is_none(), "I3: nothing after `complete`");
        let next = run.frames.last().map_or(Seq(0), |(at, _)| at.seq.next());
        assert_eq!(frame.at.seq, next, "I2: seqs are dense from the head on");
        run.frames.push((frame.at, frame.text.clone()));
        if let Some(mark) = frame.mark.as_deref() {
            run.mark(mark, frame);
            if matches!(mark, Mark::Complete(end) if end.complete.aborted) {
                self.held = !self.queue.is_empty();
            }
        }
    }
}

impl StoredRun {
    fn mark(&mut self, mark: &Mark, frame: &Frame) {
        match mark {
            Mark::ToolOpened(tool) => {
                if !self.tools.contains(tool) {
                    self.tools.push(tool.clone());
                }
            }
            Mark::ToolClosed(tool) => {
                let before = self.tools.len();
                self.tools.retain(|open| open != tool);
                assert_eq!(self.tools.len() + 1, before, "a tool call is closed once: {tool}");
            }
            Mark::PermissionOpened { request, received_at } => {
                let permission = Permission {
                    opened: frame.at,
                    frame: frame.text.clone(),
                    received_at: *received_at,
                    state: PermissionState::Open,
                    settled: None,
                };
                self.permissions.push((request.clone(), permission));
            }
            Mark::PermissionAnswered { request, decision, state, by, answer } => {
                let whole = *state == AnswerState::Recorded;
                assert_eq!(answer.is_some(), whole, "I20: a recorded answer is kept whole");
                let permission = self.permission(request);
                match (&permission.state, state) {
                    (PermissionState::Open, AnswerState::Recorded)
                    | (
                        PermissionState::Answered { state: AnswerState::Recorded, .. },
                        AnswerState::Delivered | AnswerState::Undeliverable,
                    ) => {}
                    (before, _) => panic!("I20: one answer per request: {before:?}, {state:?}"),
                }
                permission.settled.get_or_insert(frame.at);
                permission.state = PermissionState::Answered {
                    decision: *decision,
                    state: *state,
                    by: by.clone(),
                };
            }
            Mark::PermissionCancelled(request) => {
                let permission = self.permission(request);
                assert_eq!(permission.state, PermissionState::Open, "I20: only an open one");
                permission.settled = Some(frame.at);
                permission.state = PermissionState::Cancelled;
            }
            Mark::Complete(end) => {
                assert!(self.tools.is_empty(), "a run's end closes its tool calls");
                for (request, permission) in &self.permissions {
                    let open = matches!(
                        permission.state,
                        PermissionState::Open
                            | PermissionState::Answered { state: AnswerState::Recorded, .. }
                    );
                    assert!(!open, "I20: a run's end settles {}", request.0);
                }
                assert!(
                    self.abort.is_none() || end.complete.aborted,
                    "an end after the wish to abort is an abort"
                );
                self.end = Some(end.as_ref().clone());
            }
        }
    }

    fn permission(&mut self, request: &RequestId) -> &mut Permission {
        let Some((_, permission)) = self.permissions.iter_mut().find(|(id, _)| id == request)
        else {
            panic!("an answer to a request that was not asked");
        };
        permission
    }

    fn as_run(&self) -> Run {
        let phase = match &self.end {
            None => Phase::Running { abort: self.abort.clone() },
            Some(end) => Phase::Completed {
                at: Position::new(self.ordinal, self.last_seq()),
                ended_at: end.at,
            },
        };
        Run {
            id: self.id,
            ordinal: self.ordinal,
            agent: self.agent,
            started_at: self.started_at,
            last_seq: self.last_seq(),
            phase,
            open_tools: self.tools.clone(),
        }
    }

    fn waiting(&self) -> Vec<(RequestId, Permission)> {
        let waits = |permission: &Permission| {
            matches!(
                permission.state,
                PermissionState::Open
                    | PermissionState::Answered { state: AnswerState::Recorded, .. }
            )
        };
        self.permissions.iter().filter(|(_, permission)| waits(permission)).cloned().collect()
    }
}

impl Shelf for MemoryDisk {
    fn session(&self, id: SessionId) -> Result<Option<Loaded>, ShelfError> {
        let tables = self.access();
        Ok(tables.sessions.get(&id).map(|stored| {
            let newest = stored.runs.last();
            Loaded {
                row: stored.row.clone(),
                newest: newest.map(StoredRun::as_run),
                permissions: newest.map(StoredRun::waiting).unwrap_or_default(),
                queue: Queue::loaded(stored.queue.clone(), stored.held),
            }
        }))
    }

    fn locate(&self, run: RunId) -> Result<Option<Place>, ShelfError> {
        let tables = self.access();
        let found = tables.sessions.iter().find_map(|(session, stored)| {
            stored.runs.iter().find(|known| known.id == run).map(|run| Place {
                session: *session,
                ordinal: run.ordinal,
                last_seq: run.last_seq(),
                pruned: run.pruned,
            })
        });
        Ok(found)
    }

    fn run_at(&self, session: SessionId, ordinal: Ordinal) -> Result<Option<RunId>, ShelfError> {
        let tables = self.access();
        let runs = tables.sessions.get(&session).map(|stored| &stored.runs);
        Ok(runs.and_then(|runs| runs.iter().find(|run| run.ordinal == ordinal)).map(|run| run.id))
    }

    fn frames(
        &self,
        session: SessionId,
        after: Position,
        upto: Position,
        bytes: usize,
    ) -> Result<Kept, ShelfError> {
        let tables = self.access();
        let Some(stored) = tables.sessions.get(&session) else {
            return Ok(Kept::Frames(Vec::new()));
        };
        let (mut frames, mut taken) = (Vec::new(), 0);
        let mut gone: Option<(Gap, Position)> = None;
        for run in &stored.runs {
            let wanted: Vec<_> =
                run.frames.iter().filter(|(at, _)| *at > after && *at <= upto).collect();
            let (Some((first, _)), Some((last, _))) = (wanted.first(), wanted.last()) else {
                continue;
            };
            if run.pruned && frames.is_empty() {
                let from = gone.map_or(Some((run.id, first.seq)), |(gap, _)| gap.from);
                gone = Some((Gap { from, to: (run.id, last.seq) }, *last));
                continue;
            }
            if run.pruned || gone.is_some() {
                break;
            }
            for (at, text) in wanted {
                taken += text.len();
                if taken > bytes && !frames.is_empty() {
                    return Ok(Kept::Frames(frames));
                }
                frames.push((*at, text.clone()));
            }
        }
        Ok(gone.map_or(Kept::Frames(frames), |(gap, to)| Kept::Gone { gap, to }))
    }

    fn message(
        &self,
        session: SessionId,
        id: &ClientMessageId,
    ) -> Result<Option<Message>, ShelfError> {
        let tables = self.access();
        let Some(stored) = tables.sessions.get(&session) else { return Ok(None) };
        let run = stored.runs.iter().find(|run| run.message.as_ref() == Some(id));
        let removed = stored.removed.contains(id).then_some(Message::Removed);
        Ok(run.map(|run| Message::Run(run.id, run.hash)).or(removed))
    }

    fn queue(&self, session: SessionId) -> Result<(Vec<Queued>, bool), ShelfError> {
        let tables = self.access();
        let stored = tables.sessions.get(&session);
        Ok(stored.map_or_else(Default::default, |stored| (stored.queue.clone(), stored.held)))
    }

    fn native(&self, provider: &str, id: &NativeId) -> Result<Option<SessionId>, ShelfError> {
        let tables = self.access();
        let owner = tables.sessions.iter().find(|(_, stored)| {
            stored.row.provider == provider && stored.row.native_id.as_ref() == Some(id)
        });
        Ok(owner.map(|(id, _)| *id))
    }

    fn permission(&self, request: &RequestId) -> Result<Option<SessionId>, ShelfError> {
        let tables = self.access();
        let asked = |run: &StoredRun| run.permissions.iter().any(|(id, _)| id == request);
        let owner = tables.sessions.iter().find(|(_, stored)| stored.runs.iter().any(asked));
        Ok(owner.map(|(id, _)| *id))
    }
}
