//! The state machine: every operation is applied to the registry that ships and to the reference,
//! the results are compared, and after each one everything that must hold is checked.
//!
//! Prompts and queues are in `queues`, readers in `readers`, the store's side in `rounds`. Must not know who chooses the
//! operations.

mod hands;
mod queues;
mod readers;
mod rounds;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use self::hands::Hands;
use self::readers::{Listener, Reader};
use super::bell::Alarm;
use super::disk::MemoryDisk;
use super::model::{Answer, Asked, Model, News, SessionModel};
use super::op::Op;
use crate::limits::Limits;
use crate::protocol::message::WhenBusy;
use crate::registry::{
    Admission, Completed, Composer, Pending, Persist, Refusal, RefusalCode, Refused, Registry,
    Session, cancelled, end, request_id,
};
use crate::run::change::{Mark, SessionRow};
use crate::run::event::{
    AnswerState, By, ByKind, CancelReason, Category, Decision, Event, Interaction,
    PermissionRequest, PermissionResolved, Reason, ToolStatus, ToolUse,
};
use crate::run::id::{LogEpoch, Millis, NativeId, Ordinal, RequestId, RunId, SessionId};
use crate::run::log::Settled;
use crate::run::state::AnswerRequest;
use crate::run::wake::Waker;
use crate::sync::Arc;

/// Sessions alive at once.
const SESSIONS_MAX: usize = 3;
/// Clients.
const READERS: usize = 3;
/// The incarnation of the log; another one is stale.
const EPOCH: LogEpoch = LogEpoch::from_u128(7);
/// How long a finished run stays in memory.
const RETENTION_MS: i64 = 100;

/// A registry over a disk in memory, beside its reference.
#[derive(Debug)]
pub struct Machine {
    disk: MemoryDisk,
    registry: Arc<Registry>,
    persist: Persist<MemoryDisk>,
    crew: Hands,
    model: Model,
    readers: Vec<Reader>,
    listener: Listener,
    tickets: Vec<Ticket>,
    /// The workers of sessions' newest runs.
    workers: BTreeMap<SessionId, (RunId, Waker)>,
    /// Who was answered `Full`.
    starving: Option<Waker>,
    now: i64,
    /// Numbers what agents say, so that no two events are alike.
    said: u64,
}

/// Something on its way to disk, and when the reference says that it is there.
#[derive(Debug)]
struct Ticket {
    pending: Pending,
    session: usize,
    version: u64,
    /// It was refused: the rows of its session were.
    refused: bool,
}

/// Applies operations to a new machine.
///
/// # Panics
/// At the first thing that must not be; the message names the invariant.
pub fn check_ops(ops: &[Op]) {
    let mut machine = Machine::new();
    for op in ops {
        machine.apply(*op);
    }
    machine.finish();
}

/// Decodes operations and applies them: the body of the fuzz target.
///
/// # Panics
/// See `check_ops`.
pub fn check_bytes(bytes: &[u8]) {
    let (ops, _) = bytes.as_chunks::<{ Op::BYTES }>();
    check_ops(&ops.iter().map(|bytes| Op::decode(*bytes)).collect::<Vec<_>>());
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let disk = MemoryDisk::new();
        let crew = Hands::default();
        let (registry, persist) = Self::boot(&disk, &crew);
        let listener = Listener::join(&registry);
        Self {
            disk,
            registry,
            persist,
            crew,
            model: Model::default(),
            readers: (0..READERS).map(|_| Reader::new()).collect(),
            listener,
            tickets: Vec::new(),
            workers: BTreeMap::new(),
            starving: None,
            now: 1000,
            said: 0,
        }
    }

    fn limits() -> Limits {
        Limits {
            agents_max: 2,
            ring_events_max: 6,
            ring_bytes_max: 2500,
            ring_total_bytes_max: 5000,
            completed_retention_ms: RETENTION_MS,
            ..Limits::default()
        }
    }

    fn boot(disk: &MemoryDisk, crew: &Hands) -> (Arc<Registry>, Persist<MemoryDisk>) {
        let store = Waker::new(Box::new(Alarm::new()));
        let shelf = Arc::new(disk.clone());
        let registry = Arc::new(Registry::new(Self::limits(), EPOCH, shelf, store.clone()));
        registry.set_crew(Box::new(crew.clone()));
        let persist = Persist::new(registry.clone(), disk.clone(), store);
        (registry, persist)
    }

    /// Applies one operation and checks everything.
    ///
    /// # Panics
    /// At the first thing that must not be.
    pub fn apply(&mut self, op: Op) {
        match op {
            Op::Create => self.create(),
            Op::Send { session, message, content, sub } => {
                self.send((session, message, content, sub), WhenBusy::Refuse);
            }
            Op::Queue { session, message, content, sub } => {
                self.send((session, message, content, sub), WhenBusy::Queue);
            }
            Op::Unqueue { session, which } => self.unqueue(session, which),
            Op::Resume { session } => self.resume(session),
            Op::Turn { session } => self.turn(session),
            Op::Append { session, count, late } => self.append(session, count, late),
            Op::Tool { session, tool, close } => self.tool(session, tool, close),
            Op::Complete { session, how, late } => self.complete(session, how, late),
            Op::Abort { session, named } => self.abort(session, named),
            Op::Ask { session } => self.ask(session),
            Op::Answer { session, which, allow } => self.answer(session, which, allow),
            Op::Take { session } => self.take(session),
            Op::Withdraw { session } => self.withdraw(session),
            Op::Edit { session, what } => self.edit(session, what),
            Op::Learn { session, native } => self.learn(session, native),
            Op::Delete { session } => self.delete(session),
            Op::Subscribe { sub, session, from, seq } => self.subscribe(sub, session, from, seq),
            Op::Unsubscribe { sub } => self.unsubscribe(sub),
            Op::Read { sub, budget } => {
                self.read(sub, usize::from(budget) * 16);
            }
            Op::Round => self.round(),
            Op::Fail { how, which } => self.fail(how, which),
            Op::Crash => self.crash(),
            Op::Pass { ms } => self.pass(i64::from(ms)),
            Op::Trim { session, bytes } => self.trim(session, usize::from(bytes) * 16),
            Op::Prune { session } => self.prune(session),
        }
        self.check();
    }

    /// The end of a case: the store catches up, everybody reads all there is.
    ///
    /// # Panics
    /// If somebody does not get it.
    pub fn finish(mut self) {
        self.disk.heal();
        self.round();
        self.check();
        for sub in 0..READERS {
            self.read_all(sub);
        }
    }

    fn create(&mut self) {
        let alive = self.model.sessions.iter().filter(|session| session.now.exists).count();
        if alive >= SESSIONS_MAX {
            return;
        }
        let id = SessionId::from_u128(self.model.sessions.len() as u128 + 1);
        let row = SessionRow {
            id,
            provider: "model".into(),
            native_id: None,
            project_path: "/p".into(),
            title: None,
            archived: false,
            created_at: Millis(self.now),
            updated_at: Millis(self.now),
        };
        match self.registry.create_from(row) {
            Ok((_, pending)) => {
                assert!(!self.model.store_bad, "nothing new while the store is bad");
                let mut session = SessionModel::new(id);
                session.now.exists = true;
                session.note(News::UnlessArchived);
                self.model.sessions.push(session);
                self.ticket(self.model.sessions.len() - 1, pending);
            }
            Err(refusal) => self.expect_store_bad(&refusal),
        }
    }

    fn append(&mut self, session: u8, count: u8, late: bool) {
        let Some(index) = self.pick(session) else { return };
        let Some((run, ordinal)) = self.run_of(index, late) else { return };
        let session = self.expect_session(self.model.sessions[index].id);
        let ended = self.model.sessions[index].now.runs[ordinal - 1].ended_at.is_some();
        let next = self.model.sessions[index].now.runs[ordinal - 1].last_seq().next();
        assert_eq!(session.next_seq(run), (!ended).then_some(next), "I2, I3: what comes next");
        let mut composer = self.composer(index, run, ordinal);
        let mut seq = next;
        let mut said = Vec::new();
        let mut group = Vec::new();
        for _ in 0..count {
            self.said += 1;
            let content = format!("e{}", self.said);
            let event = text(&content);
            group.push(composer.frame(seq, Millis(self.now), &event, None));
            said.push(format!("text {content}"));
            seq = seq.next();
        }
        // A group whose place is taken changes nothing.
        let stale = vec![composer.frame(seq.next(), Millis(self.now), &text("stale"), None)];
        let moved = if ended { Refused::Ended } else { Refused::Moved(next) };
        assert_eq!(session.append(run, stale, Admission::Agent), Err(moved), "I2: no holes");
        let limits = Self::limits();
        let undurable = self.undurable_frames(index);
        match session.append(run, group, Admission::Agent) {
            Ok(()) => {
                assert!(!ended, "I3: nothing after `complete`");
                let (frames, _) = session.log_weight();
                assert!(
                    frames <= limits.ring_events_max.max(count.into()),
                    "I7: {frames} frames in a ring of {}",
                    limits.ring_events_max
                );
                let model = &mut self.model.sessions[index];
                model.now.runs[ordinal - 1].said.extend(said);
                model.note(News::None);
            }
            Err(Refused::Ended) => assert!(ended, "I3: it has not ended"),
            Err(Refused::Full) => {
                assert!(undurable > 0, "I7: a log that is all durable takes any group");
                let waker = Waker::new(Box::new(Alarm::new()));
                self.registry.budget().starve(session.id(), &waker);
                self.starving = Some(waker);
            }
            Err(Refused::Moved(next)) => panic!("I2: {next:?} comes next, nobody else appended"),
        }
    }

    fn tool(&mut self, session: u8, tool: u8, close: bool) {
        let Some(index) = self.pick(session) else { return };
        let tool = format!("t{tool}");
        let Some(run) = self.model.sessions[index].now.running() else { return };
        if close && !run.tools.contains(&tool) {
            return;
        }
        let (event, mark, label) = if close {
            let event = crate::registry::synthetic_result(&tool, "done");
            (event, Mark::ToolClosed(tool.clone()), "tool_result")
        } else {
            (tool_use(&tool), Mark::ToolOpened(tool.clone()), "tool_use")
        };
        self.record(index, &event, &mark, format!("{label} {tool}"));
        if let Some(run) = self.model.sessions[index].now.running_mut() {
            if close {
                run.tools.retain(|open| *open != tool);
            } else if !run.tools.contains(&tool) {
                run.tools.push(tool);
            }
        }
    }

    fn complete(&mut self, session: u8, how: u8, late: bool) {
        let Some(index) = self.pick(session) else { return };
        let Some((run, ordinal)) = self.run_of(index, late) else { return };
        let session = self.expect_session(self.model.sessions[index].id);
        let reason = [Reason::Finished, Reason::AgentExited, Reason::Aborted][usize::from(how)];
        let done = session.complete(run, &end(reason, None, None), Millis(self.now));
        let now = self.now;
        let model = &mut self.model.sessions[index];
        if model.now.runs[ordinal - 1].ended_at.is_some() {
            assert_eq!(done, Completed::Already, "I1, I6: it has its end");
            return;
        }
        assert_eq!(done, Completed::Won, "I1: it had no end");
        model.now.end_run(ordinal - 1, reason == Reason::Aborted, now);
        model.note(News::UnlessArchived);
        self.expect_worker_woken(index, run);
        self.crew.0.lock().remove(&run);
    }

    fn abort(&mut self, session: u8, named: u8) {
        let Some(index) = self.pick(session) else { return };
        let id = self.model.sessions[index].id;
        let run = match named {
            0 => None,
            1 => self.run_of(index, false).map(|(run, _)| run),
            _ => self.run_of(index, true).map(|(run, _)| run),
        };
        let asked = self.registry.abort(id, run, &somebody(), Millis(self.now));
        let running = self.model.sessions[index].now.running().map(|run| run.id);
        match asked {
            Ok(aborting) => {
                assert_eq!(Some(aborting.run), running, "I6: only what runs is stopped");
                assert!(run.is_none() || run == running, "I6: only what was named is stopped");
                let model = &mut self.model.sessions[index];
                if let Some(run) = model.now.running_mut() {
                    run.abort = true;
                }
                model.note(News::None);
                self.ticket(index, aborting.pending);
                self.expect_worker_woken(index, aborting.run);
            }
            Err(refusal) => {
                assert_eq!(refusal.code, RefusalCode::NoActiveRun);
                assert!(running.is_none() || (run.is_some() && run != running), "{refusal}");
            }
        }
    }

    fn ask(&mut self, session: u8) {
        let Some(index) = self.pick(session) else { return };
        let Some(run) = self.model.sessions[index].now.running() else { return };
        let request = request_id(run.id, &format!("q{}", run.asked.len()));
        let seq = run.last_seq().next().0;
        let event = permission(&request);
        let mark =
            Mark::PermissionOpened { request: request.clone(), received_at: Millis(self.now) };
        self.record(index, &event, &mark, format!("permission_request {}", request.0));
        let model = &mut self.model.sessions[index];
        model.note(News::UnlessArchived);
        if let Some(run) = model.now.running_mut() {
            run.asked.insert(request, Asked { seq, answer: Answer::Open });
        }
    }

    fn answer(&mut self, session: u8, which: u8, allow: bool) {
        let Some(index) = self.pick(session) else { return };
        let asked: Vec<(RequestId, Answer, bool)> = {
            let state = &self.model.sessions[index].now;
            let all = state.runs.iter().flat_map(|run| {
                run.asked
                    .iter()
                    .map(move |(id, asked)| (id.clone(), asked.answer, run.ended_at.is_none()))
            });
            all.collect()
        };
        let Some((request, before, on)) =
            asked.get(usize::from(which) % asked.len().max(1)).cloned()
        else {
            return;
        };
        let answer = AnswerRequest { allow, ..AnswerRequest::default() };
        // A run whose end the store refused has nobody to answer to until the next start.
        let on = on && self.registry.in_memory(self.model.sessions[index].id).is_some();
        let done = self.registry.answer(&request, &answer, &somebody(), Millis(self.now));
        match done {
            Ok(accepted) => {
                assert!(before == Answer::Open && on, "I20: the first answer counts");
                let model = &mut self.model.sessions[index];
                if let Some(run) = model.now.running_mut() {
                    run.said.push(format!("permission_resolved {}", request.0));
                    run.asked.entry(request).and_modify(|asked| asked.answer = Answer::Recorded);
                }
                model.note(News::UnlessArchived);
                self.ticket(index, accepted.pending);
                self.expect_worker_woken(index, accepted.run);
            }
            Err(refusal) => {
                assert!(before != Answer::Open || !on, "I20: it is open: {refusal}");
                let pruned = self.is_pruned(index, &request);
                let known = refusal.code == RefusalCode::PermissionAlreadyResolved
                    || (pruned && refusal.code == RefusalCode::PermissionNotFound);
                assert!(known, "I20: it was asked: {refusal}");
            }
        }
    }

    fn take(&mut self, session: u8) {
        let Some(index) = self.pick(session) else { return };
        let Some(run) = self.model.sessions[index].now.running() else { return };
        let (run, abort) = (run.id, run.abort);
        let session = self.expect_session(self.model.sessions[index].id);
        let orders = session.orders(run);
        assert!(!orders.ended, "I17: it runs");
        assert_eq!(orders.abort.is_some(), abort, "I6: the wish to stop reaches its worker");
        for (request, answer) in orders.answers {
            let decision = if answer.allow { Decision::Allow } else { Decision::Deny };
            let (state, by) = (AnswerState::Delivered, somebody());
            let event = Event::PermissionResolved(PermissionResolved {
                request_id: request.0.clone(),
                decision,
                choice_id: None,
                state,
                by: by.clone(),
                edited: false,
                updated_input: None,
                message: None,
            });
            let mark = Mark::PermissionAnswered {
                request: request.clone(),
                decision,
                state,
                by,
                answer: None,
            };
            self.record(index, &event, &mark, format!("permission_resolved {}", request.0));
            let model = &mut self.model.sessions[index];
            model.note(News::UnlessArchived);
            let asked = model.now.running_mut().and_then(|run| run.asked.get_mut(&request));
            let Some(asked) = asked else { panic!("I20: an answer to nothing: {}", request.0) };
            assert_eq!(asked.answer, Answer::Recorded, "I20: an answer is handed out once");
            asked.answer = Answer::Done;
        }
    }

    fn withdraw(&mut self, session: u8) {
        let Some(index) = self.pick(session) else { return };
        let Some(run) = self.model.sessions[index].now.running() else { return };
        let Some(request) = run.waiting().into_iter().next() else { return };
        let event = cancelled(&request, CancelReason::Withdrawn);
        let mark = Mark::PermissionCancelled(request.clone());
        self.record(index, &event, &mark, format!("permission_cancelled {}", request.0));
        let model = &mut self.model.sessions[index];
        model.note(News::UnlessArchived);
        if let Some(run) = model.now.running_mut() {
            run.asked.entry(request).and_modify(|asked| asked.answer = Answer::Done);
        }
    }

    fn edit(&mut self, session: u8, what: u8) {
        let Some(index) = self.pick(session) else { return };
        let model = &self.model.sessions[index];
        let (id, exists) = (model.id, model.now.exists);
        let (title, archived) = match what {
            0 => (Some(format!("title {}", self.said)), None),
            1 => (None, Some(true)),
            _ => (None, Some(false)),
        };
        match self.registry.edit_session(id, title.clone(), archived, Millis(self.now)) {
            Ok(pending) => {
                assert!(exists, "it is not there");
                let model = &mut self.model.sessions[index];
                if title.is_some() {
                    model.now.title = title;
                }
                model.now.archived = archived.unwrap_or(model.now.archived);
                model.note(if archived.is_some() { News::Always } else { News::UnlessArchived });
                self.ticket(index, pending);
            }
            Err(refusal) if exists => self.expect_store_bad(&refusal),
            Err(refusal) => self.expect_gone(&refusal),
        }
    }

    fn learn(&mut self, session: u8, native: u8) {
        let Some(index) = self.pick(session) else { return };
        let native = NativeId(format!("n{native}"));
        let model = &self.model.sessions[index];
        let known = model.now.native.as_ref().or(model.durable.native.as_ref());
        if !model.now.exists || known.is_some_and(|known| *known != native) {
            return;
        }
        let owner = self.model.owner(&native);
        let session = self.expect_session(model.id);
        let learned = self.registry.learn_native(&session, &native, Millis(self.now));
        let free = owner.is_none_or(|owner| owner == session.id());
        assert_eq!(learned, Ok(free), "the first to learn a native id keeps it: {owner:?}");
        let model = &mut self.model.sessions[index];
        if free && model.now.native.is_none() {
            model.now.native = Some(native);
            model.note(News::UnlessArchived);
        }
    }

    fn delete(&mut self, session: u8) {
        let Some(index) = self.pick(session) else { return };
        let model = &self.model.sessions[index];
        let (exists, running) = (model.now.exists, model.now.running().is_some());
        match self.registry.delete_session(model.id, &somebody(), Millis(self.now)) {
            Ok(pending) => {
                assert!(exists && !running, "I5: not while a run is on");
                let model = &mut self.model.sessions[index];
                model.now.exists = false;
                model.note(News::Always);
                self.ticket(index, pending);
            }
            Err(refusal) if running && refusal.code == RefusalCode::RunInProgress => {}
            Err(refusal) if exists => self.expect_store_bad(&refusal),
            Err(refusal) => self.expect_gone(&refusal),
        }
    }

    /// The gateway records something in the running run.
    fn record(&mut self, index: usize, event: &Event, mark: &Mark, label: String) {
        let Some(run) = self.model.sessions[index].now.running().map(|run| run.id) else { return };
        let session = self.expect_session(self.model.sessions[index].id);
        let done = session.record(run, event, Some(mark), Millis(self.now));
        assert_eq!(done, Ok(()), "what the gateway says is always admitted");
        let model = &mut self.model.sessions[index];
        if let Some(run) = model.now.running_mut() {
            run.said.push(label);
        }
        model.note(News::None);
    }

    fn pick(&self, session: u8) -> Option<usize> {
        let all = self.model.sessions.len();
        // The newest few: older ones are deleted.
        let few = all.min(SESSIONS_MAX + 1);
        (few > 0).then(|| all - 1 - usize::from(session) % few)
    }

    /// The newest run or the one before it, and its place.
    fn run_of(&self, index: usize, late: bool) -> Option<(RunId, usize)> {
        let state = &self.model.sessions[index].now;
        let runs = Some(&state.runs).filter(|_| state.exists)?;
        let place = runs.len().checked_sub(usize::from(late)).filter(|place| *place > 0)?;
        Some((runs[place - 1].id, place))
    }

    fn composer(&self, index: usize, run: RunId, ordinal: usize) -> Composer {
        let ordinal = Ordinal(u32::try_from(ordinal).unwrap_or(u32::MAX));
        Composer::new(self.model.sessions[index].id, run, ordinal, "model", 1 << 18)
    }

    fn expect_session(&self, id: SessionId) -> Arc<Session> {
        match self.registry.recover(id) {
            Ok(session) => session,
            Err(refusal) => panic!("{id} is there: {refusal}"),
        }
    }

    fn expect_store_bad(&self, refusal: &Refusal) {
        assert_eq!(refusal.code, RefusalCode::StoreUnavailable, "{refusal}");
        assert!(self.model.store_bad, "I18: the store is good");
    }

    fn expect_gone(&self, refusal: &Refusal) {
        let gone = refusal.code == RefusalCode::SessionNotFound;
        assert!(gone || self.model.store_bad, "it is not there: {refusal}");
    }

    /// The worker of this run, if it lives, was told to look (I4c).
    fn expect_worker_woken(&self, index: usize, run: RunId) {
        let worker = self.workers.get(&self.model.sessions[index].id);
        if let Some((_, waker)) = worker.filter(|(owner, _)| *owner == run) {
            assert!(waker.take().other, "I4c: the worker is told");
        }
    }

    fn undurable_frames(&self, index: usize) -> usize {
        let model = &self.model.sessions[index];
        model.now.frames().count() - model.durable.frames().count()
    }

    fn is_pruned(&self, index: usize, request: &RequestId) -> bool {
        let model = &self.model.sessions[index];
        let mut runs = model.now.runs.iter().zip(1..);
        let run = runs.find(|(run, _)| run.asked.contains_key(request));
        run.is_some_and(|(_, ordinal)| model.pruned.contains(&ordinal))
    }

    fn ticket(&mut self, session: usize, pending: Pending) {
        let version = self.model.sessions[session].version;
        self.tickets.push(Ticket { pending, session, version, refused: false });
    }

    /// Everything that must hold between two operations.
    fn check(&mut self) {
        let mut total = 0;
        for session in self.registry.loaded() {
            total += session.log_weight().1;
            let model = self.model.sessions.iter().find(|model| model.id == session.id());
            let Some(model) = model else { panic!("a session that nobody made") };
            assert_eq!(session.has_undurable(), model.is_behind(), "I8: what waits for the store");
            let running = model.now.running().map(|run| run.id);
            assert_eq!(session.running(), running, "I17: what runs");
            let turn = model.now.ready().filter(|_| running.is_none()).map(|one| one.id);
            assert_eq!(session.next_queued().map(|one| one.id), turn, "I19: whose turn it is");
            self.check_statement(&session, model);
        }
        assert_eq!(self.registry.budget().total(), total, "I7: the total is the sum of the logs");
        for ticket in &self.tickets {
            let durable = self.model.sessions[ticket.session].durable_version;
            let expected = match ticket {
                Ticket { refused: true, .. } => Settled::Rejected,
                Ticket { version, .. } if *version <= durable => Settled::Committed,
                _ => Settled::Waiting,
            };
            assert_eq!(ticket.pending.settled(), expected, "I8: a ticket is settled by its commit");
        }
        self.check_readers();
    }
}

/// What a frame says beside its place, as the reference words it.
fn label(text: &str) -> String {
    let frame: Value = serde_json::from_str(text).unwrap_or_default();
    let kind = frame["kind"].as_str().unwrap_or_default();
    let detail = match kind {
        "text" => frame["content"].as_str().map(str::to_owned),
        "tool_use" | "tool_result" => frame["toolId"].as_str().map(str::to_owned),
        "complete" => frame["aborted"].as_bool().map(|aborted| aborted.to_string()),
        "run_started" => None,
        _ => frame["requestId"].as_str().map(str::to_owned),
    };
    detail.map_or_else(|| kind.to_owned(), |detail| format!("{kind} {detail}"))
}

fn somebody() -> By {
    By { kind: ByKind::Api, name: "somebody".into() }
}

fn text(content: &str) -> Event {
    Event::Text { content: content.into(), role: None, block_id: None, parent_tool_id: None }
}

fn tool_use(tool: &str) -> Event {
    Event::ToolUse(ToolUse {
        tool_id: tool.into(),
        tool_name: "Bash".into(),
        tool_input: Value::Null,
        category: Category::Execute,
        title: None,
        diff: None,
        status: ToolStatus::Running,
        parent_tool_id: None,
    })
}

fn permission(request: &RequestId) -> Event {
    Event::PermissionRequest(PermissionRequest {
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
    })
}
