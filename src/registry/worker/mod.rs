//! One agent's thread: what it says becomes the log of its runs, what people want its stdin.
//!
//! The thread belongs to a session and sees one agent process at a time to its end; a warm process
//! serves several runs. It waits for records, for replies of the keeper, for a wake (an order, a
//! commit, room), for the next run or a deadline, and each turn of its loop does what is possible
//! now. It never blocks on the log: while that is full it takes no *records*; orders, deadlines and
//! the stop ladder go on. Every command to the agent is a numbered row that is durable before it
//! is sent. Must not know sockets of clients, or what a line means (that is the adapter's).

mod ending;
mod fold;
mod foreign;
mod logging;
mod orders;
mod process;
mod recover;
mod saved;
mod seat;
mod start;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use crate::keeper::{Home, Reply, SpawnFailure, WriteError};
use crate::limits;
use crate::metrics::labels;
use crate::provider::{Exit, Launch, Record, RecordBody, Write};
use crate::registry::session::Session;
use crate::registry::{self, AgentPermit, Composer, end};
use crate::run::event::{AnswerState, Complete, Event, Reason, Status, StatusKind};
use crate::run::id::{AgentId, Millis, RequestId, RunId};
use crate::run::state::AnswerRequest;
use crate::run::wake::{Bell, Waker};
use crate::sync::Arc;

use orders::recorded;
use process::Agent;
use saved::Purpose;
use seat::Recorded;

pub(super) use ending::sweep;
pub use fold::Fold;
pub(super) use recover::Recovered;
pub(super) use seat::{Job, Next, Seat, forget_home, spawn};
pub use turn::{Effect, Staged, Turn};

/// A command that is on its way to the agent.
#[derive(Debug)]
struct Order {
    /// The run that it is for.
    run: RunId,
    n: u64,
    write: Write,
    ticket: u64,
    purpose: Purpose,
}

/// The end of the turn, on its way.
#[derive(Debug)]
struct Held {
    end: Complete,
    /// How many of the staged events, the last ones, are of the same record.
    tail: usize,
}

/// How far the end of the run and of its process has come.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The turn is on.
    Running,
    /// An abort was asked for; the agent has until then to confirm its interrupt.
    Interrupting { until: Instant },
    /// It has confirmed and stays warm; what its turn started is being killed.
    Clearing { until: Instant },
    /// The stop ladder runs for an abort. Whether the agent had confirmed before.
    Stopping { confirmed: bool },
    /// No run is on; the warm process waits for the next one until then.
    Idle { until: Instant },
    /// The run has its `complete`; its process may linger until then.
    Lingering { until: Instant },
    /// No run is on and the stop ladder runs.
    Ending,
}

struct Worker<'a> {
    seat: &'a Seat,
    session: Arc<Session>,
    /// The newest run that the process served.
    run: RunId,
    agent_id: AgentId,
    agent: Agent,
    home: Home,
    /// How the process was started.
    launch: Launch,
    /// Its place among the agents that may be alive at once.
    permit: Option<AgentPermit>,
    composer: Composer,
    fold: Fold,
    stage: Stage,
    /// Events that are folded and not yet appended.
    staged: VecDeque<Staged>,
    /// The turn's end, which is told once everything before it is appended.
    held: Option<Held>,
    /// Records that are taken and not yet folded.
    records: VecDeque<(Record, u64)>,
    /// The stream of records has ended: what is taken is all.
    said_all: bool,
    /// The agent's exit was among them.
    exit_seen: bool,
    /// How the agent's process ended, once that is known.
    exit: Option<labels::Exit>,
    /// Where the journal ended when this worker came.
    backlog_end: u64,
    next_n: u64,
    /// The number of the prompt that began the run, if a prompt of this gateway's did.
    prompt_n: Option<u64>,
    /// What the run is to do, if the process served another before: should it turn out to be
    /// dead, a fresh one takes over.
    job: Option<registry::Job>,
    /// The run's is the process's first turn.
    first_turn: bool,
    /// The keeper said that the prompt is not in the agent's stdin.
    prompt_failed: bool,
    recorded: VecDeque<Order>,
    sent: BTreeMap<u64, (RunId, Purpose)>,
    /// Answers that wait until the adapter knows what they answer.
    answers: Vec<(RequestId, AnswerRequest)>,
    /// Checkpoints on their way to disk: tickets and offsets.
    checkpoints: VecDeque<(u64, u64)>,
    /// The offset of the last one.
    checkpointed: u64,
    /// The process is of before a restart, and its records are being folded up to the present.
    recovering: Option<u64>,
    waker: Waker,
    wakes: Receiver<()>,
    /// When commands are tried again that found no room.
    retry_at: Option<Instant>,
    /// When a keeper that was told to stop has had all the time that it may need.
    stuck_at: Option<Instant>,
    quiet_at: Instant,
    /// How many ids the agent gave its conversation in this run.
    native_ids: usize,
    full: bool,
    /// The process is to end as soon as no run is on.
    close_asked: bool,
    /// The process is gone: only what it said is left.
    gone: bool,
}

/// Whether a worker goes on.
#[derive(Debug, PartialEq, Eq)]
enum Go {
    On,
    /// The server stops and agents live on.
    LetGo,
}

impl<'a> Worker<'a> {
    fn new(
        seat: &'a Seat,
        session: Arc<Session>,
        (run, agent_id): (RunId, AgentId),
        fold: Fold,
        (agent, home, launch): (Agent, Home, Launch),
        (waker, wakes): (Waker, Receiver<()>),
    ) -> Self {
        Self {
            composer: seat.composer(&session, run, None),
            seat,
            session,
            run,
            agent_id,
            agent,
            home,
            launch,
            permit: None,
            checkpointed: fold.folded(),
            fold,
            stage: Stage::Running,
            staged: VecDeque::new(),
            held: None,
            records: VecDeque::new(),
            said_all: false,
            exit_seen: false,
            exit: None,
            backlog_end: 0,
            retry_at: None,
            next_n: 1,
            prompt_n: None,
            job: None,
            first_turn: false,
            prompt_failed: false,
            recorded: VecDeque::new(),
            sent: BTreeMap::new(),
            answers: Vec::new(),
            checkpoints: VecDeque::new(),
            recovering: None,
            waker,
            wakes,
            stuck_at: None,
            quiet_at: after(limits::QUIET_MS),
            native_ids: 0,
            full: false,
            close_asked: false,
            gone: false,
        }
    }

    fn run(mut self) {
        loop {
            let now = Millis::now();
            if self.obey(now) == Go::LetGo {
                // To drop the agent is to leave it to its keeper.
                return;
            }
            self.take_next(now);
            self.send_durable();
            self.confirm_durable();
            let behind = self.fold.is_catching_up();
            self.log_what_is_folded(now);
            if behind && !self.fold.is_catching_up() {
                // Orders waited for this.
                continue;
            }
            self.meet_deadlines();
            if self.stuck_at.is_some_and(|at| at <= Instant::now()) {
                self.keeper_lost("The agent's keeper did not stop it in time.");
                break;
            }
            if !self.wait() {
                break;
            }
        }
        self.finish();
    }

    /// Nothing of the process is left.
    fn finish(mut self) {
        if self.session.orders(self.run).let_go {
            return;
        }
        let late = self.fold.turn().late_events;
        if late > 0 {
            tracing::info!(
                run = %self.run,
                events = late,
                "the agent went on after the end of its run; what it said is not logged"
            );
        }
        // Who says nothing of it is gone with its keeper.
        self.seat.agent_ended(self.exit.unwrap_or(labels::Exit::Lost));
        self.refresh_session();
        self.agent.join();
        // Another agent takes the place now.
        drop(self.permit.take());
        self.seat.clear_up(&self.session, self.run, &self.home);
    }

    fn meet_deadlines(&mut self) {
        let now = Instant::now();
        match self.stage {
            Stage::Interrupting { until } if until <= now => self.stop_for_abort(false),
            Stage::Clearing { until } if until <= now => self.stop_for_abort(true),
            Stage::Lingering { until } | Stage::Idle { until } if until <= now => self.end_now(),
            Stage::Running if self.quiet_at <= now => {
                self.quiet_at = after(limits::QUIET_MS * QUIET_PAUSES);
                self.say_quiet(Millis::now());
            }
            _ => {}
        }
    }

    fn say_quiet(&self, now: Millis) {
        if self.full || self.fold.turn().waits() {
            return;
        }
        let event = Event::Status(Status {
            status: StatusKind::Quiet,
            text: format!("No news from the agent for {} s.", limits::QUIET_MS / 1000),
            can_interrupt: Some(true),
            ..Status::default()
        });
        // Refused: the run is over, and needs no status.
        self.session.record(self.run, &event, None, now).unwrap_or_default();
    }

    /// The session as it is in memory now: one without a run may have left it meanwhile.
    fn refresh_session(&mut self) {
        if let Ok(session) = self.seat.registry.recover(self.seat.session) {
            self.session = session;
        }
    }

    /// Waits for something to do; `false` when nothing of the agent is left.
    fn wait(&mut self) -> bool {
        let nothing = never();
        // Replies to the agent that wait for the disk hold it back as a full log does (I7).
        let clearing = matches!(self.stage, Stage::Clearing { .. });
        let held_up = self.full || clearing || self.recorded.len() >= RECORDED_MAX;
        let takes = self.records.is_empty() && !held_up;
        let lines = if takes { &self.agent.lines } else { &nothing };
        let timeout =
            self.deadline().map_or(FOREVER, |at| at.saturating_duration_since(Instant::now()));
        select! {
            recv(self.wakes) -> _ => {
                self.waker.take();
                true
            }
            recv(self.seat.inbox) -> next => {
                self.hear_next(next.ok());
                true
            }
            recv(self.agent.replies) -> reply => match reply {
                Ok(reply) => self.hear(reply),
                Err(_) => self.keeper_lost("The agent's keeper is gone."),
            },
            recv(lines) -> batch => {
                match batch {
                    Ok(batch) => self.take(batch),
                    // The stream ended; the replies say how it stands.
                    Err(_) => self.lines_ended(),
                }
                true
            }
            default(timeout) => true,
        }
    }

    /// What is to come after this run, or this process.
    fn hear_next(&mut self, next: Option<Next>) {
        match next {
            Some(Next::Job(job)) => self.seat.queue.borrow_mut().push_back(job),
            // `None`: the crew is gone, and with it the registry; nothing will come.
            Some(Next::Close) | None => self.close_asked = true,
        }
    }

    /// Records that came.
    fn take(&mut self, batch: Vec<(Record, u64)>) {
        if let Some((Record { body: RecordBody::Exit(exit), .. }, _)) = batch.last() {
            self.exit_seen = true;
            self.exit = Some(word_of(*exit));
        }
        self.records.extend(batch);
    }

    fn lines_ended(&mut self) {
        self.agent.lines = never();
        self.said_all = true;
        if !self.exit_seen && !self.gone {
            // Its journal cannot be followed: if the keeper is not about to say that it is gone,
            // it is of no use any more.
            self.takes_no_commands();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let stage = match self.stage {
            Stage::Running => Some(self.quiet_at),
            Stage::Interrupting { until }
            | Stage::Clearing { until }
            | Stage::Idle { until }
            | Stage::Lingering { until } => Some(until),
            Stage::Stopping { .. } | Stage::Ending => None,
        };
        [stage, self.stuck_at, self.retry_at].into_iter().flatten().min()
    }

    /// `false` when nothing of the agent is left.
    fn hear(&mut self, reply: Reply) -> bool {
        let now = Millis::now();
        match reply {
            Reply::Started { pid } => {
                tracing::debug!(run = %self.run, pid, "the agent runs");
                true
            }
            Reply::SpawnFailed(failed) => {
                self.exit = Some(labels::Exit::SpawnFailed);
                let exit_code = match failed.kind {
                    SpawnFailure::NotFound => Some(127),
                    SpawnFailure::NotExecutable => Some(126),
                    SpawnFailure::Directory | SpawnFailure::Other => None,
                };
                let end = end(Reason::SpawnFailed, exit_code, Some(failed.message));
                self.session.complete(self.run, &end, now);
                false
            }
            Reply::Written { n } => {
                self.written(n, now);
                true
            }
            Reply::WriteFailed { n, why } => {
                tracing::info!(run = %self.run, n, ?why, "a command did not reach the agent");
                match self.sent.remove(&n) {
                    // A prompt that is too long to wait for the agent: it would wait for ever.
                    Some((_, Purpose::Prompt)) if why == WriteError::Full => {
                        self.prompt_refused(now);
                    }
                    Some((run, Purpose::Prompt)) => self.prompt_unwritten(run),
                    Some((run, purpose)) => {
                        self.delivered(run, purpose, AnswerState::Undeliverable, now);
                    }
                    None => {}
                }
                true
            }
            Reply::Exited(exit) => {
                tracing::debug!(run = %self.run, ?exit, "the agent's process has ended");
                self.exit = Some(word_of(exit));
                true
            }
            Reply::Swept { killed, left } => {
                self.swept(killed, left, now);
                true
            }
            Reply::Stopped(stopped) => self.nothing_left(&stopped, now),
            // They are a gateway's that attaches, and were taken there.
            Reply::Welcome { .. } | Reply::Refused { .. } => true,
        }
    }

    /// Whether no run is on.
    const fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Lingering { .. } | Stage::Ending | Stage::Idle { .. })
    }
}

/// What the stop ladder and the sweep after it may take in all, and a margin.
const LADDER_MS: i64 = limits::CLOSE_STDIN_MS
    + limits::SIGINT_MS
    + limits::SIGTERM_MS
    + limits::DRAIN_AFTER_EXIT_MS
    + limits::SWEEP_MS
    + 2000;
/// What the last reply of a keeper that has ended may take to get here.
const LAST_REPLY_MS: i64 = 1000;
/// Ids of its conversation that one run's agent may name: each costs a row's change and memory.
const NATIVE_IDS_MAX: usize = 64;
/// Commands that wait for the disk before no more records are taken.
const RECORDED_MAX: usize = 64;
/// Frames in one append.
const GROUP_FRAMES_MAX: usize = 256;
/// After a first `quiet`, this many times as long until the next.
const QUIET_PAUSES: i64 = 10;
/// The longest wait without a deadline.
const FOREVER: Duration = Duration::from_secs(3600);

/// The time `ms` from now, by a clock that nobody sets: a deadline must not wait for an hour
/// because the wall's clock was put back.
fn after(ms: i64) -> Instant {
    Instant::now() + Duration::from_millis(ms.unsigned_abs())
}

/// As the metrics say it.
const fn word_of(exit: Exit) -> labels::Exit {
    match exit {
        Exit::Code(0) => labels::Exit::Exited,
        Exit::Code(_) => labels::Exit::Failed,
        Exit::Signal(_) => labels::Exit::Signal,
    }
}

struct Ring(Sender<()>);

impl Bell for Ring {
    fn ring(&self) {
        // Full: it rings already. Disconnected: the worker is gone.
        self.0.try_send(()).unwrap_or_default();
    }
}

fn bell() -> (Ring, Receiver<()>) {
    let (ring, wakes) = bounded(1);
    (Ring(ring), wakes)
}
