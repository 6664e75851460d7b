//! Accepting a prompt: the checks in their order, the run that begins, who serves it.

use serde_json::{Map, Value};

use crate::protocol::frame::{Encoded, Head, encode_head};
use crate::protocol::message::WhenBusy;
use crate::registry::refusal::{another, busy, queue_full, removed, shutting_down};
use crate::registry::session::Enqueued;
use crate::registry::shelf::Message;
use crate::registry::{
    Begin, Begun, EndOfSession, Pending, Refusal, RefusalCode, Registry, Session,
};
use crate::run::change::SessionRow;
use crate::run::event::By;
use crate::run::id::{
    AgentId, ClientMessageId, Millis, NativeId, Ordinal, Position, QueueId, RunId, SessionId,
};
use crate::run::queue::Known;
use crate::sync::{Arc, AtomicUsize, Ordering};

/// Who starts agents: the workers, or a model's stand-in.
pub trait Crew: Send + Sync {
    /// Checks what can be checked before a run begins: the provider, the working directory.
    fn prepare(
        &self,
        session: &SessionRow,
        content: &str,
        options: &Map<String, Value>,
    ) -> Result<Job, Refusal>;

    /// A run began: serve it, to its `complete`. Must not block.
    fn start(&self, registry: &Arc<Registry>, session: &Arc<Session>, started: Started);

    /// All places are taken. Whether this session's next run may begin all the same: it has a
    /// process of its own, or the longest idle one of another session was told to end.
    fn make_room(&self, _session: SessionId) -> bool {
        false
    }

    /// The session is deleted: its idle agent, if it has one, is of no use any more.
    fn dismiss(&self, _session: SessionId) {}
}

/// A prompt that can be served.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// What the person says.
    pub content: String,
    /// As the client gave them.
    pub options: Map<String, Value>,
    /// The files that `options.attachments` names.
    #[cfg(not(any(loom, shuttle)))]
    pub attachments: Vec<crate::provider::Attachment>,
    /// Where the agent runs: the project, or a place in it.
    pub cwd: std::path::PathBuf,
    /// The conversation to go on with.
    pub native_id: Option<NativeId>,
}

/// A run that the agent began by itself.
#[derive(Debug)]
pub struct BegunByAgent {
    /// Its session, as it is in memory now.
    pub session: Arc<Session>,
    /// Which.
    pub run: RunId,
    /// Its place.
    pub ordinal: Ordinal,
}

/// Why an agent's own run did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotBegun {
    /// A prompt's run is on (I5): what the agent does is told there.
    Busy,
    /// The server stops, or the session is deleted.
    Ended,
    /// The store cannot be read.
    Unreadable,
}

/// A run that began.
#[derive(Debug)]
pub struct Started {
    /// Which.
    pub run: RunId,
    /// Its place.
    pub ordinal: Ordinal,
    /// The agent process that serves it.
    pub agent: AgentId,
    /// When.
    pub at: Millis,
    /// Settled once its row is durable: nothing is spawned before.
    pub ticket: u64,
    /// What to do.
    pub job: Job,
    /// Its place among the agents that may be alive at once.
    pub permit: AgentPermit,
}

/// A place among `agents_max`. Given back when dropped.
#[derive(Debug)]
pub struct AgentPermit(Arc<AtomicUsize>);

impl Drop for AgentPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A prompt.
#[derive(Clone, Debug)]
pub struct SendPrompt {
    /// To which session.
    pub session: SessionId,
    /// What the person says.
    pub content: String,
    /// As the client gave them.
    pub options: Map<String, Value>,
    /// Makes a resend harmless.
    pub client_message_id: Option<ClientMessageId>,
    /// What is to become of it while a run is on.
    pub when_busy: WhenBusy,
    /// Who sends it.
    pub by: By,
}

/// What became of a prompt.
#[derive(Debug)]
pub enum Sent {
    /// It is a run.
    Run(Accepted),
    /// It waits.
    Queued(AcceptedToQueue),
}

impl Sent {
    /// The run, if it is one.
    #[must_use]
    pub fn run(self) -> Option<Accepted> {
        match self {
            Self::Run(accepted) => Some(accepted),
            Self::Queued(_) => None,
        }
    }
}

/// A prompt waits in its session's queue.
#[derive(Debug)]
pub struct AcceptedToQueue {
    /// As what.
    pub id: QueueId,
    /// Its place, from 1.
    pub position: usize,
    /// Whether it waited before (I19).
    pub duplicate: bool,
    /// Where the log ended then; `None` for a duplicate.
    pub cursor: Option<Position>,
    /// Settled once its place is durable: answer then.
    pub pending: Pending,
}

/// A prompt was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The run that it began.
    pub run: RunId,
    /// Whether it had begun it before (I19).
    pub duplicate: bool,
    /// The cursor just before that run's head.
    pub cursor: Position,
    /// Settled once the run's row is durable: answer then.
    pub pending: Pending,
}

impl Registry {
    /// Accepts a prompt: a run begins, it takes its place in the queue, or what the same message
    /// became before is named (I19).
    ///
    /// Checked in this order: session, duplicate, provider, busy session, free agent. A refused
    /// send records nothing.
    pub fn send(self: &Arc<Self>, prompt: SendPrompt, now: Millis) -> Result<Sent, Refusal> {
        let hash = prompt_hash(&prompt.content, &prompt.options);
        loop {
            let session = self.find(prompt.session)?;
            if let Some(id) = &prompt.client_message_id
                && let Some(known) = self.shelf.message(prompt.session, id)?
            {
                return match known {
                    Message::Run(run, earlier) => {
                        self.duplicate(&session, run, earlier == hash, Pending::done())
                    }
                    Message::Removed => Err(removed()),
                };
            }
            let crew = self.crew.get().ok_or_else(shutting_down)?;
            let met = match crew.prepare(&session.row(), &prompt.content, &prompt.options) {
                Ok(job) => {
                    match self.begin_or_queue(&session, &prompt, crew.as_ref(), job, hash, now)? {
                        Met::Sent(sent) => return Ok(sent),
                        Met::Obstacle(begun) => begun,
                        Met::Changed => continue,
                    }
                }
                // A duplicate is answered even if its provider is gone by now.
                Err(refusal) => match session.would_begin(prompt.client_message_id.as_ref()) {
                    Some(known @ (Begun::Duplicate { .. } | Begun::Known(_))) => known,
                    Some(Begun::Ended(EndOfSession::Evicted)) => continue,
                    _ => return Err(refusal),
                },
            };
            match met {
                Begun::Duplicate { run, hash: earlier, ticket } => {
                    let pending = Pending::of(session.clone(), ticket);
                    return self.duplicate(&session, run, earlier == hash, pending);
                }
                Begun::Known(known) => return waits(session, known, hash),
                Begun::Busy => {
                    return Err(Refusal::new(
                        RefusalCode::RunInProgress,
                        "A run is running in this session; wait for its end, abort it, or send \
                         with whenBusy \"queue\".",
                    ));
                }
                Begun::Ended(EndOfSession::Evicted) | Begun::Started { .. } => {}
                Begun::Ended(EndOfSession::Deleted) => {
                    return Err(Refusal::no_session(prompt.session));
                }
                Begun::Ended(EndOfSession::Closing) => return Err(shutting_down()),
            }
        }
    }

    fn begin_or_queue(
        self: &Arc<Self>,
        session: &Arc<Session>,
        prompt: &SendPrompt,
        crew: &dyn Crew,
        job: Job,
        hash: [u8; 32],
        now: Millis,
    ) -> Result<Met, Refusal> {
        if prompt.when_busy == WhenBusy::Queue {
            match self.enqueue(session, prompt, hash, now)? {
                Enqueued::Free => {}
                Enqueued::Waiting { id, position, cursor, ticket } => {
                    return Ok(Met::Sent(Sent::Queued(AcceptedToQueue {
                        id,
                        position,
                        duplicate: false,
                        cursor: Some(cursor),
                        pending: Pending::of(session.clone(), ticket),
                    })));
                }
                Enqueued::Full => return Err(queue_full()),
                Enqueued::Refused(obstacle) => return Ok(Met::Obstacle(obstacle)),
            }
        }
        let permit = self.place_for(session, prompt.client_message_id.as_ref(), crew);
        let run = RunId::random();
        let begin = self.begin_of(session, run, &OfPrompt::sent(prompt, hash), now);
        let agent = begin.agent;
        match self.begin(session, begin, permit.is_some())? {
            Begun::Started { ordinal, ticket } => {
                let Some(permit) = permit else { return Err(busy()) };
                let started = Started { run, ordinal, agent, at: now, ticket, job, permit };
                crew.start(self, session, started);
                Ok(Met::Sent(Sent::Run(Accepted {
                    run,
                    duplicate: false,
                    cursor: Position::before_run(ordinal),
                    pending: Pending::of(session.clone(), ticket),
                })))
            }
            // It became busy meanwhile: then it waits.
            Begun::Busy if prompt.when_busy == WhenBusy::Queue => Ok(Met::Changed),
            obstacle => Ok(Met::Obstacle(obstacle)),
        }
    }

    /// A run that the agent began by itself, in the process that is alive already (origin
    /// `agent`). Under the map's lock, as a prompt's: nothing begins once the server stops (I14),
    /// nor beside another run (I5).
    pub fn begin_agent_run(
        &self,
        id: SessionId,
        agent: AgentId,
        now: Millis,
    ) -> Result<BegunByAgent, NotBegun> {
        loop {
            let found = self.look_up(id).map_err(|_| NotBegun::Unreadable)?;
            let session = found.filter(|session| !session.is_deleted()).ok_or(NotBegun::Ended)?;
            let begin = self.begin_by_agent(&session, agent, now);
            let run = begin.run;
            let map = self.map.lock();
            if map.closing.is_some() {
                return Err(NotBegun::Ended);
            }
            let begun = session.begin(begin);
            drop(map);
            match begun {
                Begun::Started { ordinal, .. } => {
                    self.budget.wake_store(id);
                    return Ok(BegunByAgent { session, run, ordinal });
                }
                Begun::Busy => return Err(NotBegun::Busy),
                Begun::Ended(EndOfSession::Evicted) => {}
                Begun::Ended(_) | Begun::Duplicate { .. } | Begun::Known(_) => {
                    return Err(NotBegun::Ended);
                }
            }
        }
    }

    fn begin_by_agent(&self, session: &Session, agent: AgentId, now: Millis) -> Begin {
        let row = session.row();
        let run = RunId::random();
        let Encoded { text: head, whole } = encode_head(
            &Head {
                session: row.id,
                run,
                provider: &row.provider,
                content: "",
                options: &Map::new(),
                origin: "agent",
                client_message_id: None,
                queue_id: None,
                by: None,
                started_at: now,
            },
            self.limits.event_bytes_max,
        );
        Begin {
            run,
            agent,
            origin: "agent",
            prompt_hash: prompt_hash("", &Map::new()),
            client_message_id: None,
            queued: None,
            now,
            head,
            whole,
            title: None,
        }
    }

    /// A place for the session's next run: a free one, its own idle agent's, or the one of an
    /// idle agent that has to go. Nobody has to go for a prompt that is refused anyway.
    fn place_for(
        &self,
        session: &Session,
        message: Option<&ClientMessageId>,
        crew: &dyn Crew,
    ) -> Option<AgentPermit> {
        self.permit().or_else(|| {
            let begins = session.would_begin(message).is_none();
            (begins && crew.make_room(session.id())).then(|| self.extra_permit())
        })
    }

    /// A place above the bound, for a process that takes over from one that is about to end.
    pub(super) fn extra_permit(&self) -> AgentPermit {
        self.agents.fetch_add(1, Ordering::Relaxed);
        AgentPermit(self.agents.clone())
    }

    /// A place among the agents that may be alive at once.
    pub(super) fn permit(&self) -> Option<AgentPermit> {
        let max = self.limits.agents_max;
        // Never above the bound, not even for a moment: another send would be told `BUSY`.
        let claim = |taken| (taken < max).then_some(taken + 1);
        let claimed = self.agents.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim);
        claimed.is_ok().then(|| AgentPermit(self.agents.clone()))
    }

    /// Begins a run under the map's lock, so that nothing begins once the server stops (I14).
    fn begin(&self, session: &Session, begin: Begin, free: bool) -> Result<Begun, Refusal> {
        let refusal = self.check_store().err().or_else(|| (!free).then(busy));
        let map = self.map.lock();
        if map.closing.is_some() {
            return Ok(Begun::Ended(EndOfSession::Closing));
        }
        if let Some(refusal) = refusal {
            drop(map);
            // It cannot begin; which answer is due depends on what it would have met first.
            return session.would_begin(begin.client_message_id.as_ref()).ok_or(refusal);
        }
        let begun = session.begin(begin);
        drop(map);
        self.budget.wake_store(session.id());
        Ok(begun)
    }

    pub(super) fn begin_of(
        &self,
        session: &Session,
        run: RunId,
        prompt: &OfPrompt<'_>,
        now: Millis,
    ) -> Begin {
        let row = session.row();
        let Encoded { text: head, whole } = encode_head(
            &Head {
                session: row.id,
                run,
                provider: &row.provider,
                content: prompt.content,
                options: prompt.options,
                origin: "user",
                client_message_id: prompt.client_message_id,
                queue_id: prompt.queued,
                by: Some(prompt.by),
                started_at: now,
            },
            self.limits.event_bytes_max,
        );
        Begin {
            run,
            agent: AgentId::random(),
            origin: "user",
            prompt_hash: prompt.hash,
            client_message_id: prompt.client_message_id.cloned(),
            queued: prompt.queued,
            now,
            head,
            whole,
            title: title_of(prompt.content),
        }
    }

    fn duplicate(
        &self,
        session: &Session,
        run: RunId,
        same: bool,
        pending: Pending,
    ) -> Result<Sent, Refusal> {
        if !same {
            return Err(another());
        }
        // Its row need not be on disk yet.
        let ordinal = match session.ordinal_of(run) {
            Some(ordinal) => ordinal,
            None => self.shelf.locate(run)?.map_or(Ordinal(0), |place| place.ordinal),
        };
        let cursor = Position::before_run(ordinal);
        Ok(Sent::Run(Accepted { run, duplicate: true, cursor, pending }))
    }
}

/// How far a send got.
enum Met {
    Sent(Sent),
    Obstacle(Begun),
    /// What was decided on has changed meanwhile: look again.
    Changed,
}

/// A prompt whose run begins, as it was sent or as it waited.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfPrompt<'a> {
    pub(super) content: &'a str,
    pub(super) options: &'a Map<String, Value>,
    pub(super) client_message_id: Option<&'a ClientMessageId>,
    pub(super) hash: [u8; 32],
    pub(super) by: &'a By,
    pub(super) queued: Option<QueueId>,
}

impl<'a> OfPrompt<'a> {
    fn sent(prompt: &'a SendPrompt, hash: [u8; 32]) -> Self {
        Self {
            content: &prompt.content,
            options: &prompt.options,
            client_message_id: prompt.client_message_id.as_ref(),
            hash,
            by: &prompt.by,
            queued: None,
        }
    }
}

/// The same message waits already, or was taken out (I19).
fn waits(session: Arc<Session>, known: Known, hash: [u8; 32]) -> Result<Sent, Refusal> {
    match known {
        Known::Removed => Err(removed()),
        Known::Waiting { hash: earlier, .. } if earlier != hash => Err(another()),
        Known::Waiting { id, position, ticket, .. } => Ok(Sent::Queued(AcceptedToQueue {
            id,
            position,
            duplicate: true,
            cursor: None,
            pending: Pending::of(session, ticket),
        })),
    }
}

/// The first 80 characters, white space joined.
fn title_of(content: &str) -> Option<String> {
    let joined = content.split_whitespace().collect::<Vec<_>>().join(" ");
    let title: String = joined.chars().take(80).collect();
    (!title.is_empty()).then_some(title)
}

/// Tells the same prompt from another one under the same `clientMessageId`.
fn prompt_hash(content: &str, options: &Map<String, Value>) -> [u8; 32] {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    hash.update((content.len() as u64).to_le_bytes());
    hash.update(content);
    hash.update(Value::Object(options.clone()).to_string());
    hash.finalize().into()
}
