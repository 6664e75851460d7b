//! A gateway over the real registry, store and fold, without threads: what the worker's thread
//! does when, the test decides.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use reattach::keeper::{AttachError, read_journal};
use reattach::limits::Limits;
use reattach::oracle::Alarm;
use reattach::protocol::message::WhenBusy;
use reattach::provider::{Adapter, Answer, Command, Kind, Origin, Record, RecordBody, Write};
use reattach::registry::{
    Admission, AgentPermit, BegunByAgent, Completed, Composer, Crew, Effect, Fold, Job, Persist,
    Reading, Refusal, Registry, Round, SendPrompt, Session, Started, Turn, Writing, end,
    request_of_agent,
};
use reattach::run::change::{Change, Mark, SessionRow};
use reattach::run::event::{
    AnswerState, By, ByKind, Complete, Decision, Event, PermissionResolved, Reason,
};
use reattach::run::id::{
    AgentId, ClientMessageId, Millis, NativeId, Ordinal, Position, RequestId, RunId, Seq, SessionId,
};
use reattach::run::log::Settled;
use reattach::run::state::AnswerRequest;
use reattach::run::wake::Waker;
use reattach::store::{OpenOptions, OpenRun, Readers};
use serde_json::{Map, Value};

use super::agent::{Agent, Body, Purpose, Saved, begins, encoded, exited, recorded};
use super::keeper::Keeper;
use super::script::Script;
use crate::store::open_store;

pub(super) const SESSION: SessionId = SessionId::from_u128(5);
/// The gateway's clock stands still, so that nothing depends on when a gateway was killed.
pub(super) const NOW: Millis = Millis(2_000);

/// A run that has no process yet.
#[derive(Debug)]
struct Waiting {
    run: RunId,
    ordinal: Ordinal,
    agent: AgentId,
    content: String,
    ticket: u64,
    /// Its first command, if that is recorded.
    first: Option<(u64, Body)>,
}

/// Takes runs down.
#[derive(Clone, Debug, Default)]
struct Hands(std::sync::Arc<Mutex<Vec<Started>>>);

impl Crew for Hands {
    fn prepare(
        &self,
        _: &SessionRow,
        content: &str,
        _: &Map<String, Value>,
    ) -> Result<Job, Refusal> {
        Ok(Job { content: content.into(), ..Job::default() })
    }

    fn start(
        &self,
        _: &reattach::sync::Arc<Registry>,
        _: &reattach::sync::Arc<Session>,
        started: Started,
    ) {
        self.0.lock().expect("one thread").push(started);
    }
}

/// One life of a gateway.
pub(super) struct Gateway {
    dir: PathBuf,
    kind: Kind,
    provider: &'static str,
    registry: reattach::sync::Arc<Registry>,
    persist: Persist<Writing>,
    pub(super) readers: Readers,
    session: reattach::sync::Arc<Session>,
    hands: Hands,
    permits: Vec<AgentPermit>,
    waiting: Option<Waiting>,
    pub(super) agent: Option<Agent>,
    /// How many events of the agent's were told once the records up to an offset were folded.
    pub(super) told: BTreeMap<u64, usize>,
}

impl Gateway {
    /// Starts on this data directory, and takes over what it finds there.
    pub(super) fn start(dir: &Path, script: &Script, keeper: Option<&mut Keeper>) -> Self {
        let options = OpenOptions { ballast_bytes: 0, readers: 1, ..OpenOptions::default() };
        let (writer, readers) = open_store(dir, &options);
        let bell = Waker::new(Box::new(Alarm::new()));
        let shelf = reattach::sync::Arc::new(Reading(reattach::sync::Arc::new(readers.clone())));
        let registry = Registry::new(Limits::default(), readers.epoch(), shelf, bell.clone());
        let registry = reattach::sync::Arc::new(registry);
        let hands = Hands::default();
        registry.set_crew(Box::new(hands.clone()));
        let mut persist = Persist::new(registry.clone(), Writing(writer), bell);
        let provider = if script.kind == Kind::Claude { "claude" } else { "jsonl" };
        if readers.session_view(SESSION).expect("readable").is_none() {
            registry.create_from(session(provider)).expect("a session");
            while persist.round(NOW) == Round::Worked {}
        }
        let session = registry.recover(SESSION).expect("the session");
        let mut gateway = Self {
            dir: dir.into(),
            kind: script.kind,
            provider,
            registry,
            persist,
            readers,
            session,
            hands,
            permits: Vec::new(),
            waiting: None,
            agent: None,
            told: BTreeMap::new(),
        };
        gateway.recover(keeper);
        gateway
    }

    fn recover(&mut self, keeper: Option<&mut Keeper>) {
        let id = keeper.as_ref().map(|keeper| keeper.home.agent());
        for open in self.readers.open_runs().expect("readable") {
            if Some(open.agent) != id {
                self.wait_for_process(&open);
            }
        }
        let Some(keeper) = keeper else { return };
        // Its run's row was durable before it was started.
        let stored = self.readers.agent(keeper.home.agent()).expect("readable").expect("a run");
        self.attach(stored.newest.id);
        let native = self.session.row().native_id;
        let composer = self.composer(stored.newest.id, stored.newest.ordinal);
        let mut agent = Agent::resume(&stored, self.kind, native, composer);
        agent.send_again(&stored, keeper);
        agent.catch_up(&self.session);
        self.agent = Some(agent);
    }

    fn wait_for_process(&mut self, open: &OpenRun) {
        let head =
            self.readers.event_whole(open.run.id, Seq(0)).expect("readable").expect("a head");
        let head: Value = serde_json::from_slice(&head).expect("JSON");
        let stored = self.readers.agent(open.agent).expect("readable").expect("a run");
        let first = stored.commands.iter().find(|command| command.n == 1);
        self.waiting = Some(Waiting {
            run: open.run.id,
            ordinal: open.run.ordinal,
            agent: open.agent,
            content: head["content"].as_str().expect("a prompt").into(),
            ticket: 0,
            first: first.map(|first| (0, serde_json::from_slice(&first.body).expect("a body"))),
        });
    }

    /// Answers to this run's requests are for us.
    fn attach(&self, run: RunId) {
        self.session.attach_worker(run, Waker::new(Box::new(Alarm::new())));
    }

    fn composer(&self, run: RunId, ordinal: Ordinal) -> Composer {
        Composer::new(SESSION, run, ordinal, self.provider, Limits::default().event_bytes_max)
    }

    /// A person sends the next prompt after `sent`, unless a run is on; says how many there were.
    pub(super) fn prompt(&mut self, mut sent: usize, content: &str) -> Option<usize> {
        if self.session.running().is_some() {
            return None;
        }
        loop {
            let prompt = SendPrompt {
                session: SESSION,
                content: content.into(),
                options: Map::new(),
                client_message_id: Some(ClientMessageId(format!("m{sent}"))),
                when_busy: WhenBusy::Refuse,
                by: somebody(),
            };
            match self.registry.send(prompt, NOW).map(|sent| sent.run().expect("a run")) {
                // It came through before the gateway died (I19).
                Ok(accepted) if accepted.duplicate => sent += 1,
                // The same, with another content: the agent got it and moved on.
                Err(_) => sent += 1,
                Ok(_) => break,
            }
        }
        self.session = self.registry.recover(SESSION).expect("the session");
        let started = self.hands.0.lock().expect("one thread").pop().expect("it began");
        self.permits.push(started.permit);
        self.waiting = Some(Waiting {
            run: started.run,
            ordinal: started.ordinal,
            agent: started.agent,
            content: started.job.content,
            ticket: started.ticket,
            first: None,
        });
        Some(sent)
    }

    /// A person answers one of the requests that wait.
    pub(super) fn answer(&mut self, which: usize) -> bool {
        let Some(run) = self.session.running() else { return false };
        let Some(closing) = self.session.closing(run) else { return false };
        let open = closing.open_permissions;
        if open.is_empty() {
            return false;
        }
        let request = &open[which % open.len()];
        let message = Some(format!("to {}", request_of_agent(request)));
        let answer = AnswerRequest { allow: true, message, ..AnswerRequest::default() };
        self.registry.answer(request, &answer, &somebody(), NOW).expect("it waits");
        true
    }

    /// Reads and folds up to `count` records; says how many there were.
    pub(super) fn fold(&mut self, count: usize, keeper: &Keeper) -> usize {
        let from = match &self.agent {
            Some(agent) if !agent.over => agent.fold.folded(),
            _ => return 0,
        };
        let mut records = match read_journal(&keeper.home, from) {
            // What was folded is cut off: nothing is left to be folded.
            Err(AttachError::OffsetBeyondEnd { .. }) if keeper.is_dead => return 0,
            other => other.expect("the journal is there"),
        };
        for number in 0..count {
            match records.next().expect("whole records") {
                Some((record, end)) => self.fold_record(&record, end),
                None => return number,
            }
        }
        count
    }

    fn fold_record(&mut self, record: &Record, offset: u64) {
        if let RecordBody::In { n, .. } = record.body {
            self.written(n);
        }
        let agent = self.agent.as_mut().expect("somebody reads");
        let outputs = agent.fold.read(record, offset);
        if !agent.fold.turn().is_on() && !agent.fold.is_known() && begins(&outputs) {
            let begun = self.registry.begin_agent_run(SESSION, agent.id, NOW);
            let BegunByAgent { session, run, ordinal } = begun.expect("no other run is on");
            self.session = session;
            self.enter(run, ordinal, Origin::Agent);
        }
        let agent = self.agent.as_mut().expect("somebody reads");
        let before = agent.staged.len();
        let effects = agent.fold.stage(record, outputs, &mut agent.staged);
        let tail = agent.staged.len().saturating_sub(before);
        agent.catch_up(&self.session);
        let mut over = None;
        for effect in effects {
            match effect {
                Effect::Reply(write) => self.record(write, Purpose::Reply, offset),
                Effect::Native(id) => self.learn(&id),
                Effect::TurnEnded(ending) => over = Some(ending.complete(0)),
                Effect::Exited(exit) => {
                    self.agent.as_mut().expect("somebody reads").over = true;
                    over = over.or_else(|| Some(exited(exit)));
                }
            }
        }
        self.append(tail, over);
    }

    /// Appends what is staged; the last `tail` events are of the record that brought the end.
    fn append(&mut self, tail: usize, over: Option<Complete>) {
        let agent = self.agent.as_mut().expect("somebody reads");
        if !agent.fold.turn().is_on() {
            return;
        }
        let count = agent.staged.len() - over.as_ref().map_or(0, |_| tail);
        let told = agent.staged.iter().filter(|staged| staged.if_open.is_none()).count();
        let before = self.told.last_key_value().map_or(0, |(_, told)| *told);
        self.told.insert(agent.fold.folded(), before + told);
        while let Some(seq) = self.session.next_seq(agent.run) {
            let group = agent.compose(&self.session, count, seq);
            if group.is_empty() || self.session.append(agent.run, group, Admission::Agent).is_ok() {
                break;
            }
        }
        agent.staged.drain(..count);
        let Some(over) = over else { return };
        let (run, offset) = (agent.run, agent.fold.folded());
        let completed = self.session.complete_after(run, &over, NOW, offset, |seq| {
            agent.compose(&self.session, agent.staged.len(), seq)
        });
        assert_eq!(completed, Completed::Won, "I1");
        self.run_ended();
    }

    fn run_ended(&mut self) {
        let agent = self.agent.as_mut().expect("its run ended");
        agent.staged.clear();
        agent.fold.turn_mut().end();
        self.checkpoint();
    }

    fn learn(&self, id: &NativeId) {
        assert_eq!(self.registry.learn_native(&self.session, id, NOW).ok(), Some(true));
    }

    pub(super) fn checkpoint(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let offset = agent.fold.folded();
        if offset <= agent.checkpointed || !agent.staged.is_empty() || agent.fold.is_catching_up() {
            return;
        }
        let saved = Saved { turn: agent.fold.turn().clone(), next_n: agent.next_n };
        let state = serde_json::to_vec(&saved).expect("a state is JSON");
        let saved = Change::Checkpoint { agent: agent.id, offset, state, at: NOW };
        agent.checkpoints.push_back((self.session.note(saved), offset));
        agent.checkpointed = offset;
    }

    /// What people want, as far as it can be dealt with now. Starts or takes a process.
    pub(super) fn obey(&mut self, script: &Script, keeper: &mut Option<Keeper>) -> bool {
        let answered = self.obey_answers();
        let Some(waiting) = &mut self.waiting else { return answered };
        if let Some(agent) = &self.agent {
            let keeper = keeper.as_ref().expect("it has a keeper");
            // In the midst of what it says by itself the prompt would come at another place.
            if agent.fold.turn().is_on() || !keeper.is_read(agent.fold.folded()) {
                return answered;
            }
            self.adopt();
            return true;
        }
        if waiting.first.is_none() {
            let body = Body { write: first(self.kind, &waiting.content), purpose: Purpose::Prompt };
            let ticket = self.session.note(recorded(waiting.run, 1, &body, 0));
            waiting.first = Some((ticket, body));
            return true;
        }
        let (ticket, _) = waiting.first.as_ref().expect("it was just made");
        if [waiting.ticket, *ticket]
            .into_iter()
            .any(|t| self.session.settled(t) != Settled::Committed)
        {
            return answered;
        }
        let waiting = self.waiting.take().expect("it waits");
        self.attach(waiting.run);
        *keeper = Some(Keeper::start(&self.dir, waiting.agent, script));
        let turn = Turn::new(waiting.run, Adapter::new(self.kind), self.session.row().native_id);
        let (ticket, body) = waiting.first.expect("it was recorded");
        self.agent = Some(Agent {
            id: waiting.agent,
            run: waiting.run,
            composer: self.composer(waiting.run, waiting.ordinal),
            fold: Fold::new(turn),
            staged: VecDeque::new(),
            next_n: 2,
            recorded: VecDeque::from([(waiting.run, 1, ticket, body)]),
            sent: BTreeMap::new(),
            answers: Vec::new(),
            checkpoints: VecDeque::new(),
            checkpointed: 0,
            catching_up: false,
            over: false,
        });
        true
    }

    /// The warm process takes the run that waits.
    fn adopt(&mut self) {
        // What it said since its last run stays outside of this one, also after a restart.
        self.checkpoint();
        let waiting = self.waiting.take().expect("it waits");
        let agent = self.agent.as_mut().expect("it is warm");
        self.session.note(Change::RunAdopted { run: waiting.run, agent: agent.id });
        let write = encoded(agent.fold.turn().adapter(), waiting.content);
        self.enter(waiting.run, waiting.ordinal, Origin::User);
        self.record(write, Purpose::Prompt, 0);
    }

    fn enter(&mut self, run: RunId, ordinal: Ordinal, origin: Origin) {
        self.attach(run);
        let composer = self.composer(run, ordinal);
        let agent = self.agent.as_mut().expect("it is warm");
        agent.run = run;
        agent.composer = composer;
        agent.fold.turn_mut().begin(run, origin);
    }

    fn obey_answers(&mut self) -> bool {
        let Some(agent) = &mut self.agent else { return false };
        agent.answers.extend(self.session.orders(agent.run).answers);
        if agent.fold.is_catching_up() {
            return false;
        }
        let answers = std::mem::take(&mut agent.answers);
        let any = !answers.is_empty();
        for (request, answer) in answers {
            let agent = self.agent.as_mut().expect("it asked");
            agent.fold.turn_mut().answered(&request);
            let purpose = Purpose::Answer { request: request.0.clone(), allow: answer.allow };
            let command = Command::Answer(Answer {
                request_id: request_of_agent(&request).to_owned(),
                allow: answer.allow,
                message: answer.message,
                ..Answer::default()
            });
            match agent.fold.turn().adapter().encode(&command) {
                Some(write) => self.record(write, purpose, 0),
                None => {
                    let run = agent.run;
                    self.delivered(run, purpose, AnswerState::Undeliverable);
                }
            }
        }
        any
    }

    fn record(&mut self, write: Write, purpose: Purpose, cause: u64) {
        let agent = self.agent.as_mut().expect("somebody is told");
        let (n, body) = (agent.next_n, Body { write, purpose });
        agent.next_n += 1;
        let ticket = self.session.note(recorded(agent.run, n, &body, cause));
        agent.recorded.push_back((agent.run, n, ticket, body));
    }

    /// Commits what is new; says whether there was something.
    pub(super) fn commit(&mut self, keeper: Option<&mut Keeper>) -> bool {
        let mut worked = false;
        loop {
            match self.persist.round(NOW) {
                Round::Worked => worked = true,
                Round::Idle => break,
                failed => panic!("the store takes everything, yet {failed:?}"),
            }
        }
        let (Some(agent), Some(keeper)) = (&mut self.agent, keeper) else { return worked };
        while let Some((ticket, offset)) = agent.checkpoints.front().copied() {
            match self.session.settled(ticket) {
                Settled::Waiting => break,
                Settled::Committed => keeper.confirm(offset),
                Settled::Rejected => panic!("a guard refused a checkpoint"),
            }
            agent.checkpoints.pop_front();
        }
        worked
    }

    /// Sends the commands that are durable; says whether there were any.
    pub(super) fn send(&mut self, keeper: &mut Keeper, replies: bool) -> bool {
        let Some(agent) = &mut self.agent else { return false };
        let mut written = Vec::new();
        while let Some((_, _, ticket, _)) = agent.recorded.front() {
            match self.session.settled(*ticket) {
                Settled::Waiting => break,
                Settled::Rejected => panic!("a guard refused a command"),
                Settled::Committed => {}
            }
            let (run, n, _, body) = agent.recorded.pop_front().expect("it is there");
            agent.sent.insert(n, (run, body.purpose));
            keeper.write(n, body.write.bytes);
            written.push(n);
        }
        let any = !written.is_empty();
        for n in written.into_iter().filter(|n| replies && keeper.has(*n)) {
            self.written(n);
        }
        any
    }

    fn written(&mut self, n: u64) {
        let agent = self.agent.as_mut().expect("somebody is told");
        if let Some((run, purpose)) = agent.sent.remove(&n) {
            self.delivered(run, purpose, AnswerState::Delivered);
            self.session.note(Change::CommandDelivered { run, n, at: NOW });
        }
    }

    fn delivered(&self, run: RunId, purpose: Purpose, state: AnswerState) {
        let Purpose::Answer { request, allow } = purpose else { return };
        let (by, request_id) = (somebody(), request.clone());
        let decision = if allow { Decision::Allow } else { Decision::Deny };
        let event = Event::PermissionResolved(PermissionResolved {
            request_id,
            decision,
            choice_id: None,
            state,
            by: by.clone(),
            edited: false,
            updated_input: None,
            message: None,
        });
        let request = RequestId(request);
        let mark = Mark::PermissionAnswered { request, decision, state, by, answer: None };
        // Refused: its run is over, and said already that it is undeliverable.
        self.session.record(run, &event, Some(&mark), NOW).unwrap_or_default();
    }

    /// The keeper is gone, and the journal ended without an end.
    pub(super) fn lose(&mut self) {
        if let Some(run) = self.session.running() {
            let lost = end(Reason::AgentLost, None, None);
            assert_eq!(self.session.complete(run, &lost, NOW), Completed::Won, "I1");
            if self.agent.is_some() {
                self.run_ended();
            }
        }
    }

    /// Answers that are recorded and did not reach their end.
    pub(super) fn undelivered(&self) -> usize {
        let running = self.session.running().and_then(|run| self.session.closing(run));
        running.map_or(0, |closing| closing.undelivered.len())
    }

    /// Whether a run is on.
    pub(super) fn is_on(&self) -> bool {
        self.session.running().is_some()
    }

    /// The end of the last record that was folded.
    pub(super) fn folded(&self) -> u64 {
        self.agent.as_ref().map_or(0, |agent| agent.fold.folded())
    }

    /// The end of the last record whose events are stored.
    pub(super) fn stored_offset(&self) -> u64 {
        let stored =
            self.agent.as_ref().and_then(|agent| self.readers.agent(agent.id).expect("readable"));
        stored.map_or(0, |stored| stored.offset)
    }

    /// The process is gone, and what it said is told.
    pub(super) fn forget_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            self.session.note(Change::AgentEnded { agent: agent.id, at: NOW });
        }
    }

    /// Everything that is durable.
    pub(super) fn durable(&self) -> Vec<(Position, RunId, String)> {
        let (mut cursor, mut all) = (Position::START, Vec::new());
        let last = Position::new(Ordinal(u32::MAX), Seq(u64::MAX));
        loop {
            let read = self.readers.frames(SESSION, cursor, last, usize::MAX, 1 << 20);
            let reattach::store::Read::Frames(frames) = read.expect("readable") else {
                panic!("I4b: nothing is gone")
            };
            let Some(newest) = frames.last() else { return all };
            cursor = newest.at;
            all.extend(frames.into_iter().map(|f| (f.at, f.run, f.text.as_str().to_owned())));
        }
    }
}

fn first(kind: Kind, content: &str) -> Write {
    encoded(&Adapter::new(kind), content.into())
}

fn session(provider: &str) -> SessionRow {
    SessionRow {
        id: SESSION,
        provider: provider.into(),
        native_id: None,
        project_path: "/srv/project".into(),
        title: None,
        archived: false,
        created_at: NOW,
        updated_at: NOW,
    }
}

fn somebody() -> By {
    By { kind: ByKind::Api, name: "somebody".into() }
}
