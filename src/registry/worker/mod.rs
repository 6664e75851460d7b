//! One agent's thread: what it says becomes the run's log, what people want becomes its stdin.
//!
//! The worker waits for records, for replies of the keeper, for a wake (an order, a commit, room)
//! or a deadline, and each turn of its loop does what is possible now. It never blocks on the log:
//! while that is full it takes no *records*; orders, deadlines and the stop ladder go on.
//! Every command to the agent is a numbered row that is durable before it is sent.
//! Must not know sockets of clients, or what a line means (that is the adapter's).

mod ending;
mod logging;
mod orders;
mod process;
mod start;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use crate::keeper::{DataTag, Home, LaunchSpec, Reply, SpawnFailure, WriteError};
use crate::limits;
use crate::provider::{Adapter, Command, Provider, Record, Write};
use crate::registry::session::Session;
use crate::registry::{Composer, Registry, Started, end};
use crate::run::event::{
    AnswerState, Complete, Event, PermissionResolved, Reason, Status, StatusKind,
};
use crate::run::id::{AgentId, Millis, RunId};
use crate::run::wake::{Bell, Waker};
use crate::sync::Arc;

use ending::sweep;
use orders::recorded;
use process::Agent;
use start::{prompt_of, wait_gone, wait_to_start};
use turn::{Staged, Turn};

/// What a worker needs beside the run it serves.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) registry: Arc<Registry>,
    pub(super) session: Arc<Session>,
    pub(super) provider: Arc<Provider>,
    pub(super) dir: PathBuf,
    pub(super) data: DataTag,
    pub(super) keeper: PathBuf,
    /// Disconnects when the session's agent process before this one is gone.
    pub(super) before: Option<Receiver<()>>,
    /// Dropped when this one's is.
    pub(super) alive: Sender<()>,
}

/// Starts the worker of a run that began.
pub(super) fn spawn(seat: Seat, started: Started) -> io::Result<()> {
    let name = started.run.to_string();
    let name = name[name.len() - 8..].to_owned();
    thread::Builder::new().name(format!("agent-{name}")).spawn(move || {
        let (session, run, agent) = (seat.session.clone(), started.run, started.agent);
        let served = catch_unwind(AssertUnwindSafe(|| Worker::serve(seat, started, &name)));
        if served.is_err() {
            // The crash net (I1): whatever went wrong, the run has its one end. First what it
            // left is killed: the end may be an abort's (I21).
            sweep(agent);
            let error = Some("The gateway had an internal error in this run; see its log.".into());
            session.complete(run, &end(Reason::InternalError, None, error), Millis::now());
        }
    })?;
    Ok(())
}

/// A command that is on its way to the agent.
#[derive(Debug)]
struct Order {
    n: u64,
    write: Write,
    ticket: u64,
    purpose: Purpose,
}

#[derive(Debug)]
enum Purpose {
    Prompt,
    Answer(Box<PermissionResolved>),
    Interrupt,
    Reply,
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
    /// The stop ladder runs for an abort. Whether the agent had confirmed before.
    Stopping { confirmed: bool },
    /// The run has its `complete`; its process may linger until then.
    Lingering { until: Instant },
    /// The run has its `complete` and the stop ladder runs.
    Ending,
}

struct Worker {
    registry: Arc<Registry>,
    session: Arc<Session>,
    run: RunId,
    agent_id: AgentId,
    agent: Agent,
    composer: Composer,
    turn: Turn,
    stage: Stage,
    /// Events that are folded and not yet appended, and the offset of the last record in them.
    staged: VecDeque<Staged>,
    offset: u64,
    /// The turn's end, which is told once everything before it is appended.
    held: Option<Held>,
    /// Records that are taken and not yet folded.
    records: VecDeque<(Record, u64)>,
    /// The stream of records has ended: what is taken is all.
    said_all: bool,
    next_n: u64,
    recorded: VecDeque<Order>,
    sent: BTreeMap<u64, Purpose>,
    waker: Waker,
    wakes: Receiver<()>,
    /// When a keeper that was told to stop has had all the time that it may need.
    stuck_at: Option<Instant>,
    quiet_at: Instant,
    /// How many ids the agent gave its conversation in this run.
    native_ids: usize,
    full: bool,
}

impl Worker {
    /// Serves the run to its `complete`, and its process to its end.
    fn serve(seat: Seat, started: Started, name: &str) {
        let (bell, wakes) = bell();
        let waker = Waker::new(Box::new(bell));
        seat.session.attach_worker(started.run, waker.clone());
        let adapter = Adapter::new(seat.provider.kind);
        let prompt = prompt_of(&started.job);
        let launch = seat.provider.launch(&prompt);
        let first = adapter.encode(&Command::Prompt(prompt)).unwrap_or_default();
        let ticket = seat.session.note(recorded(started.run, 1, &first));
        let order = Order { n: 1, write: first, ticket, purpose: Purpose::Prompt };
        if !wait_to_start(&seat, &started, ticket, &waker, &wakes) {
            // The next run's process waits for this one's; there is none, but there may be one
            // before it.
            drop(started.permit);
            seat.before.iter().for_each(wait_gone);
            return;
        }
        let line_bytes_max = seat.registry.limits().line_bytes_max;
        let home = Home::of(&seat.dir, started.agent);
        let spec = LaunchSpec {
            session: seat.session.id().to_string(),
            provider: seat.provider.name.clone(),
            // No gateway looks for agents of before: without this one, it is stopped at once.
            orphan_grace_ms: 0,
            ..LaunchSpec::new(&launch, home, &seat.data, line_bytes_max)
        };
        let agent = match Agent::start(&seat.keeper, &spec, name) {
            Ok(agent) => agent,
            Err(error) => {
                let end = end(Reason::SpawnFailed, None, Some(error));
                seat.session.complete(started.run, &end, Millis::now());
                return;
            }
        };
        let registry = seat.registry.clone();
        let bytes_max = registry.limits().event_bytes_max;
        let provider = &seat.provider.name;
        let worker = Self {
            composer: Composer::new(
                seat.session.id(),
                started.run,
                started.ordinal,
                provider,
                bytes_max,
            ),
            registry,
            session: seat.session.clone(),
            run: started.run,
            agent_id: started.agent,
            agent,
            turn: Turn::new(started.run, adapter, started.job.native_id.clone()),
            stage: Stage::Running,
            staged: VecDeque::new(),
            offset: 0,
            held: None,
            records: VecDeque::new(),
            said_all: false,
            next_n: 2,
            recorded: VecDeque::from([order]),
            sent: BTreeMap::new(),
            waker,
            wakes,
            stuck_at: None,
            quiet_at: after(limits::QUIET_MS),
            native_ids: 0,
            full: false,
        };
        worker.run();
        // Only now may the session's next process start, and another agent take the place.
        drop((seat.alive, started.permit));
    }

    fn run(mut self) {
        loop {
            let now = Millis::now();
            self.obey(now);
            self.send_durable();
            self.log_what_is_folded(now);
            self.meet_deadlines();
            if self.stuck_at.is_some_and(|at| at <= Instant::now()) {
                self.keeper_lost("The agent's keeper did not stop it in time.");
                break;
            }
            if !self.wait() {
                break;
            }
        }
        if self.turn.late_events > 0 {
            tracing::info!(
                run = %self.run,
                events = self.turn.late_events,
                "the agent went on after the end of its run; what it said is not logged"
            );
        }
        self.agent.join();
    }

    fn meet_deadlines(&mut self) {
        let now = Instant::now();
        match self.stage {
            Stage::Interrupting { until } if until <= now => self.stop_for_abort(false),
            Stage::Lingering { until } if until <= now => {
                self.stage = Stage::Ending;
                self.stop();
            }
            Stage::Running if self.quiet_at <= now => {
                self.quiet_at = after(limits::QUIET_MS * QUIET_PAUSES);
                self.say_quiet(Millis::now());
            }
            _ => {}
        }
    }

    fn say_quiet(&self, now: Millis) {
        if self.full || self.turn.waits() {
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

    /// Waits for something to do; `false` when nothing of the agent is left.
    fn wait(&mut self) -> bool {
        let nothing = never();
        // Replies to the agent that wait for the disk hold it back as a full log does (I7).
        let held_up = self.full || self.recorded.len() >= RECORDED_MAX;
        let takes = self.records.is_empty() && !held_up;
        let lines = if takes { &self.agent.lines } else { &nothing };
        let timeout =
            self.deadline().map_or(FOREVER, |at| at.saturating_duration_since(Instant::now()));
        select! {
            recv(self.wakes) -> _ => {
                self.waker.take();
                true
            }
            recv(self.agent.replies) -> reply => match reply {
                Ok(reply) => self.hear(reply),
                Err(_) => self.keeper_lost("The agent's keeper is gone."),
            },
            recv(lines) -> batch => {
                match batch {
                    Ok(batch) => self.records.extend(batch),
                    // The stream ended; the replies say how it stands.
                    Err(_) => self.lines_ended(),
                }
                true
            }
            default(timeout) => true,
        }
    }

    fn lines_ended(&mut self) {
        self.agent.lines = never();
        self.said_all = true;
    }

    fn deadline(&self) -> Option<Instant> {
        let stage = match self.stage {
            Stage::Running => Some(self.quiet_at),
            Stage::Interrupting { until } | Stage::Lingering { until } => Some(until),
            Stage::Stopping { .. } | Stage::Ending => None,
        };
        [stage, self.stuck_at].into_iter().flatten().min()
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
                    Some(Purpose::Prompt) if why == WriteError::Full => self.prompt_refused(now),
                    Some(purpose) => self.delivered(purpose, AnswerState::Undeliverable, now),
                    None => {}
                }
                true
            }
            Reply::Exited(exit) => {
                tracing::debug!(run = %self.run, ?exit, "the agent's process has ended");
                true
            }
            Reply::Stopped(stopped) => self.nothing_left(&stopped, now),
            Reply::Swept { .. } | Reply::Welcome(_) | Reply::Refused { .. } => true,
        }
    }

    const fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Lingering { .. } | Stage::Ending)
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
