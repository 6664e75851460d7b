//! One agent's thread: what it says becomes the run's log, what people want becomes its stdin.
//!
//! The worker waits for records, for replies of the keeper, for a wake (an order, a commit, room)
//! or a deadline, and each turn of its loop does what is possible now. It never blocks on the log:
//! while that is full it takes no *records*; orders, deadlines and the stop ladder go on.
//! Every command to the agent is a numbered row that is durable before it is sent.
//! Must not know sockets of clients, or what a line means (that is the adapter's).

mod process;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never, select};

use crate::keeper::{self, DataTag, LaunchSpec, Reply, SpawnFailure, Step, Stopped};
use crate::limits;
use crate::provider::{Adapter, Answer, Command, Ending, Exit, Prompt, Provider, Record, Write};
use crate::registry::session::{Admission, Refused, Session};
use crate::registry::{
    Composer, Job, Orders, Registry, Started, StoreState, end, request_of_agent,
};
use crate::run::change::{Change, Frame, Mark};
use crate::run::event::{
    AnswerState, By, Complete, Decision, Event, PermissionResolved, Reason, Status, StatusKind,
};
use crate::run::id::{AgentId, Millis, RequestId, RunId};
use crate::run::log::Settled;
use crate::run::state::AnswerRequest;
use crate::run::wake::{Bell, Waker};
use crate::sync::Arc;

use process::Agent;
use turn::{Effect, Staged, Turn, gateway_error};

/// What a worker needs beside the run it serves.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) registry: Arc<Registry>,
    pub(super) session: Arc<Session>,
    pub(super) provider: Arc<Provider>,
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
            // The crash net (I1): whatever went wrong, the run has its one end.
            let error = Some("The gateway had an internal error in this run; see its log.".into());
            session.complete(run, &end(Reason::InternalError, None, error), Millis::now());
            sweep(agent);
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
    Answer { request: RequestId, decision: Decision, by: By },
    Interrupt,
    Reply,
}

/// How far the end of the run and of its process has come.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The turn is on.
    Running,
    /// An abort was asked for; the agent has until then to confirm its interrupt.
    Interrupting { until: Millis },
    /// The stop ladder runs for an abort. Whether the agent had confirmed before.
    Stopping { confirmed: bool },
    /// The run has its `complete`; its process may linger until then.
    Lingering { until: Millis },
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
    /// The turn's end, once everything staged is appended.
    ending: Option<Complete>,
    /// Records that are taken and not yet folded.
    records: VecDeque<(Record, u64)>,
    next_n: u64,
    recorded: VecDeque<Order>,
    sent: BTreeMap<u64, Purpose>,
    waker: Waker,
    wakes: Receiver<()>,
    /// When a keeper that was told to stop has had all the time that it may need.
    stuck_at: Option<Millis>,
    quiet_at: Millis,
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
            return;
        }
        let line_bytes_max = seat.registry.limits().line_bytes_max;
        let spec = LaunchSpec::new(&launch, started.agent, &seat.data, line_bytes_max);
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
            turn: Turn::new(started.run, adapter),
            stage: Stage::Running,
            staged: VecDeque::new(),
            offset: 0,
            ending: None,
            records: VecDeque::new(),
            next_n: 2,
            recorded: VecDeque::from([order]),
            sent: BTreeMap::new(),
            waker,
            wakes,
            stuck_at: None,
            quiet_at: Millis::now().plus(limits::QUIET_MS),
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
            self.meet_deadlines(now);
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

    /// Takes orders: an abort, answers.
    fn obey(&mut self, now: Millis) {
        let Orders { abort, ended, answers } = self.session.orders(self.run);
        for (request, answer) in answers {
            self.answer(&request, answer, now);
        }
        if abort.is_some() && self.stage == Stage::Running && self.ending.is_none() {
            self.interrupt(now);
        }
        if ended && !self.is_over() {
            // Somebody else ended the run (the store refused it, say): its process goes.
            self.end_process(now);
        }
    }

    fn answer(&mut self, request: &RequestId, answer: AnswerRequest, now: Millis) {
        self.turn.answered(request);
        let decision = if answer.allow { Decision::Allow } else { Decision::Deny };
        let by = self.answered_by(request);
        let command = Command::Answer(Answer {
            request_id: request_of_agent(request).to_owned(),
            allow: answer.allow,
            choice_id: answer.choice_id,
            updated_input: answer.updated_input,
            message: answer.message,
            remember: answer.remember,
        });
        let purpose = Purpose::Answer { request: request.clone(), decision, by };
        match self.turn.adapter().encode(&command) {
            Some(write) => self.record(write, purpose),
            // The agent has withdrawn the request meanwhile.
            None => self.delivered(purpose, AnswerState::Undeliverable, now),
        }
    }

    fn answered_by(&self, request: &RequestId) -> By {
        self.session
            .answered_by(request)
            .unwrap_or_else(|| By { kind: crate::run::event::ByKind::Rule, name: "gateway".into() })
    }

    /// The provider's own interrupt first, if it has one and the row can become durable; else the
    /// stop ladder at once.
    fn interrupt(&mut self, now: Millis) {
        let can_record = self.registry.store_state() == StoreState::Good;
        match self.turn.adapter().encode(&Command::Interrupt).filter(|_| can_record) {
            Some(write) => {
                self.record(write, Purpose::Interrupt);
                self.stage = Stage::Interrupting { until: now.plus(limits::INTERRUPT_MS) };
            }
            None => self.stop_for_abort(false, now),
        }
    }

    fn stop_for_abort(&mut self, confirmed: bool, now: Millis) {
        self.stage = Stage::Stopping { confirmed };
        self.stop(now);
    }

    fn stop(&mut self, now: Millis) {
        self.stuck_at = Some(now.plus(LADDER_MS));
        if self.agent.stop().is_err() {
            self.stuck_at = Some(now);
        }
    }

    /// Numbers a command and sends its row on the way to disk.
    fn record(&mut self, write: Write, purpose: Purpose) {
        let n = self.next_n;
        self.next_n += 1;
        let ticket = self.session.note(recorded(self.run, n, &write));
        self.recorded.push_back(Order { n, write, ticket, purpose });
    }

    /// Sends the commands whose rows are durable, in their order.
    fn send_durable(&mut self) {
        while let Some(order) = self.recorded.front() {
            match self.session.wake_when_settled(order.ticket, &self.waker) {
                Settled::Waiting => break,
                Settled::Committed => {
                    let Some(Order { n, write, purpose, .. }) = self.recorded.pop_front() else {
                        break;
                    };
                    self.sent.insert(n, purpose);
                    if self.agent.write(n, write.bytes, write.close).is_err() {
                        self.stuck_at = Some(Millis::now());
                    }
                }
                Settled::Rejected => {
                    self.recorded.pop_front();
                }
            }
        }
    }

    /// Folds what is taken and appends what is folded, as far as the log has room.
    fn log_what_is_folded(&mut self, now: Millis) {
        self.full = false;
        loop {
            if !self.append_staged() {
                self.full = true;
                return;
            }
            if let Some(end) = self.ending.take() {
                self.turn_ended(&end, now);
            }
            let Some((record, offset)) = self.records.pop_front() else { return };
            self.fold(&record, offset, now);
        }
    }

    fn fold(&mut self, record: &Record, offset: u64, now: Millis) {
        if self.is_over() {
            self.turn.fold_late(record);
            return;
        }
        let mut staged = Vec::new();
        let effects = self.turn.fold(record, &mut staged);
        if !staged.is_empty() {
            self.quiet_at = now.plus(limits::QUIET_MS);
        }
        self.staged.extend(staged);
        self.offset = offset;
        for effect in effects {
            match effect {
                Effect::Reply(write) => self.record(write, Purpose::Reply),
                Effect::Native(id) => match self.registry.learn_native(&self.session, &id, now) {
                    Ok(true) => {}
                    Ok(false) => self.stage_error(
                        record.at,
                        "Another session has this conversation of the provider's already; \
                         this one goes on without its id and cannot be resumed by it.",
                    ),
                    Err(error) => self.stage_error(record.at, &error.message),
                },
                Effect::TurnEnded(ending) => self.ending = Some(complete_of(ending)),
                Effect::Exited(exit) if self.ending.is_none() => {
                    self.ending = Some(self.exited(exit));
                }
                Effect::Exited(_) => {}
            }
        }
    }

    fn stage_error(&mut self, at: Millis, content: &str) {
        let event = gateway_error(content);
        self.staged.push_back(Staged { at, event, mark: None, if_open: None });
    }

    /// The process ended without saying that the turn is over.
    fn exited(&self, exit: Exit) -> Complete {
        let (exit_code, how) = match exit {
            Exit::Code(code) => (Some(i64::from(code)), format!("exited with code {code}")),
            Exit::Signal(signal) => (None, format!("was killed by signal {signal}")),
        };
        let error = self
            .turn
            .stderr_tail()
            .unwrap_or_else(|| format!("The agent {how} before it said that the turn is over."));
        end(Reason::AgentExited, exit_code, Some(error))
    }

    /// Appends what is staged in groups; `false` if the log is full, with the waker armed.
    fn append_staged(&mut self) -> bool {
        let mut armed = false;
        while !self.staged.is_empty() && !self.is_over() {
            let Some(mut seq) = self.session.next_seq(self.run) else {
                self.staged.clear();
                break;
            };
            let (mut group, mut bytes, mut taken) = (Vec::new(), 0, 0);
            let frames_max =
                GROUP_FRAMES_MAX.min(self.registry.limits().ring_events_max / 4).max(1);
            for staged in &self.staged {
                if group.len() >= frames_max || bytes >= limits::PULL_BYTES {
                    break;
                }
                taken += 1;
                let gone = staged.if_open.as_ref().is_some_and(|id| !self.session.is_open(id));
                if gone {
                    continue;
                }
                let mark = staged.mark.clone();
                let frame = self.composer.frame(seq, staged.at, &staged.event, mark);
                bytes += frame.weight();
                group.push(frame);
                seq = seq.next();
            }
            self.finish_group(&mut group, taken);
            match self.session.append(self.run, group, Admission::Agent) {
                Ok(()) => {
                    self.staged.drain(..taken);
                    armed = false;
                }
                Err(Refused::Moved(_)) => {}
                Err(Refused::Ended) => self.staged.clear(),
                Err(Refused::Full) if armed => return false,
                Err(Refused::Full) => {
                    // Arm first, then try once more: room may have come in between.
                    self.registry.budget().starve(self.session.id(), &self.waker);
                    armed = true;
                }
            }
        }
        true
    }

    /// The offset stands on the last frame of the last group, so that a group that is cut off
    /// by a crash is folded again as a whole.
    fn finish_group(&self, group: &mut [Frame], taken: usize) {
        if taken == self.staged.len()
            && let Some(last) = group.last_mut()
        {
            last.offset = self.offset;
        }
    }

    /// The agent said that the turn is over, or its process has ended.
    fn turn_ended(&mut self, end: &Complete, now: Millis) {
        match self.stage {
            Stage::Running => {
                self.session.complete(self.run, end, now);
                // An abort that came while this end was on its way has decided how it is told.
                self.end_process(now);
            }
            // The agent's terminal only confirms; it is held until nothing is left.
            Stage::Interrupting { .. } => self.stop_for_abort(true, now),
            Stage::Stopping { .. } | Stage::Lingering { .. } | Stage::Ending => {}
        }
    }

    /// The run has its end: the process has a while to end by itself.
    fn end_process(&mut self, now: Millis) {
        self.stage = Stage::Lingering { until: now.plus(limits::LINGER_MS) };
        if self.turn.adapter().ends_stdin_with_turn() && self.agent.close_stdin().is_err() {
            self.stuck_at = Some(now);
        }
    }

    fn meet_deadlines(&mut self, now: Millis) {
        match self.stage {
            Stage::Interrupting { until } if until <= now => self.stop_for_abort(false, now),
            Stage::Lingering { until } if until <= now => {
                self.stage = Stage::Ending;
                self.stop(now);
            }
            Stage::Running if self.quiet_at <= now => {
                self.quiet_at = now.plus(limits::QUIET_MS * QUIET_PAUSES);
                self.say_quiet(now);
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
        let takes = self.records.is_empty() && !self.full;
        let lines = if takes { &self.agent.lines } else { &nothing };
        let timeout = self.deadline().map_or(FOREVER, |at| {
            Duration::from_millis(u64::try_from(at.0 - Millis::now().0).unwrap_or(0))
        });
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
                    Err(_) => self.agent.lines = never(),
                }
                true
            }
            default(timeout) => {
                if self.stuck_at.is_some_and(|at| at <= Millis::now()) {
                    return self.keeper_lost("The agent's keeper did not stop it in time.");
                }
                true
            }
        }
    }

    fn deadline(&self) -> Option<Millis> {
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
                if let Some(purpose) = self.sent.remove(&n) {
                    self.session.note(Change::CommandDelivered { run: self.run, n, at: now });
                    self.delivered(purpose, AnswerState::Delivered, now);
                }
                true
            }
            Reply::WriteFailed { n, why } => {
                tracing::info!(run = %self.run, n, ?why, "a command did not reach the agent");
                if let Some(purpose) = self.sent.remove(&n) {
                    self.delivered(purpose, AnswerState::Undeliverable, now);
                }
                true
            }
            Reply::Exited(exit) => {
                tracing::debug!(run = %self.run, ?exit, "the agent's process has ended");
                true
            }
            Reply::Stopped(stopped) => self.nothing_left(&stopped, now),
        }
    }

    /// An answer reached the agent, or never will (I20).
    fn delivered(&self, purpose: Purpose, state: AnswerState, now: Millis) {
        let Purpose::Answer { request, decision, by } = purpose else { return };
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
        let mark = Mark::PermissionAnswered { request: request.clone(), decision, state, by };
        if self.session.record(self.run, &event, Some(&mark), now).is_err() {
            // The run has its end already: for the audit table only.
            let detail = serde_json::json!({ "requestId": request.0, "state": state });
            self.session.note(Change::Audit {
                run: Some(self.run),
                what: "permission_delivered",
                detail: detail.to_string(),
                at: now,
            });
        }
    }

    /// Nothing of the agent is running any more. A natural end waits for the records before it;
    /// an abort's end waits for this only (I21).
    fn nothing_left(&mut self, stopped: &Stopped, now: Millis) -> bool {
        if stopped.left > 0 {
            tracing::error!(run = %self.run, left = stopped.left, "processes cannot be killed");
        }
        self.stuck_at = None;
        match self.stage {
            Stage::Interrupting { .. } | Stage::Stopping { .. } => {
                let confirmed = matches!(self.stage, Stage::Stopping { confirmed: true });
                let by_itself = stopped.step.is_none_or(|step| step == Step::CloseStdin);
                let exit_code = i64::from(!(confirmed || by_itself));
                let end = end(Reason::Aborted, Some(exit_code), None);
                self.session.complete(self.run, &end, now);
            }
            Stage::Running => self.take_the_rest(now),
            Stage::Lingering { .. } | Stage::Ending => {}
        }
        false
    }

    /// The process has ended by itself: takes all that it said before its end.
    fn take_the_rest(&mut self, now: Millis) {
        while !self.is_over() {
            self.obey(now);
            self.log_what_is_folded(Millis::now());
            if self.is_over() {
                return;
            }
            if self.stage != Stage::Running {
                // An abort came meanwhile, and nothing is left to stop.
                let end = end(Reason::Aborted, Some(0), None);
                self.session.complete(self.run, &end, Millis::now());
                return;
            }
            let nothing = never();
            let lines = if self.full { &nothing } else { &self.agent.lines };
            select! {
                recv(self.wakes) -> _ => {
                    self.waker.take();
                }
                recv(lines) -> batch => match batch {
                    Ok(batch) => self.records.extend(batch),
                    Err(_) => {
                        let error = self.turn.stderr_tail();
                        let end = end(Reason::AgentLost, None, error);
                        self.session.complete(self.run, &end, Millis::now());
                        return;
                    }
                },
            }
        }
    }

    /// The keeper died or is stuck: what it left is found by its tag and killed.
    fn keeper_lost(&mut self, why: &str) -> bool {
        tracing::error!(run = %self.run, why);
        self.agent.kill();
        sweep(self.agent_id);
        let aborting = matches!(self.stage, Stage::Interrupting { .. } | Stage::Stopping { .. });
        let reason = if aborting { Reason::Aborted } else { Reason::AgentLost };
        let exit_code = aborting.then_some(1);
        self.session.complete(
            self.run,
            &end(reason, exit_code, Some(why.to_owned())),
            Millis::now(),
        );
        false
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
/// Frames in one append.
const GROUP_FRAMES_MAX: usize = 256;
/// After a first `quiet`, this many times as long until the next.
const QUIET_PAUSES: i64 = 10;
/// The longest wait without a deadline.
const FOREVER: Duration = Duration::from_secs(3600);

/// Waits until the session's process before this one is gone and the run's rows are durable.
/// `false`: the run has ended before anything was started.
fn wait_to_start(
    seat: &Seat,
    started: &Started,
    ticket: u64,
    waker: &Waker,
    wakes: &Receiver<()>,
) -> bool {
    let mut before = seat.before.clone();
    loop {
        let orders = seat.session.orders(started.run);
        if orders.ended {
            return false;
        }
        if orders.abort.is_some() {
            let end = end(Reason::Aborted, Some(0), None);
            seat.session.complete(started.run, &end, Millis::now());
            return false;
        }
        if let Some(gone) = before.take() {
            select! {
                recv(gone) -> _ => {}
                recv(wakes) -> _ => {
                    waker.take();
                    before = Some(gone);
                }
            }
            continue;
        }
        match seat.session.wake_when_settled(ticket, waker) {
            Settled::Committed => return true,
            Settled::Rejected => {
                let error = Some("The store refused this run's rows.".to_owned());
                let end = end(Reason::StoreRejected, None, error);
                seat.session.complete(started.run, &end, Millis::now());
                return false;
            }
            Settled::Waiting => match wakes.recv_timeout(FOREVER) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {
                    waker.take();
                }
                Err(RecvTimeoutError::Disconnected) => return false,
            },
        }
    }
}

fn prompt_of(job: &Job) -> Prompt {
    Prompt {
        content: job.content.clone(),
        options: job.options.clone(),
        cwd: job.cwd.clone(),
        native_id: job.native_id.as_ref().map(|id| id.0.clone()),
    }
}

fn recorded(run: RunId, n: u64, write: &Write) -> Change {
    // A `Write` is bytes and a flag: this cannot fail.
    let write = serde_json::to_vec(write).unwrap_or_default();
    Change::CommandRecorded { run, n, write, at: Millis::now() }
}

fn complete_of(ending: Ending) -> Complete {
    ending.complete(0)
}

/// Kills what an agent left behind.
fn sweep(agent: AgentId) {
    match keeper::sweep_agent(agent) {
        Ok(swept) if swept.left.is_empty() => {}
        Ok(swept) => tracing::error!(?swept, "an agent's processes cannot be killed"),
        Err(error) => tracing::error!(%error, "an agent's processes cannot be looked for"),
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
