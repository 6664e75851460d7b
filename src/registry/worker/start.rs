//! How a run comes to its process: a fresh one, or the session's warm one.
//!
//! A process is started once the rows of its run and of its first command are durable.

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::process::Agent;
use super::saved::Purpose;
use super::turn::Turn;
use super::{
    FOREVER, Fold, Order, Recorded, Seat, Stage, Worker, after, bell, forget_home, recorded, sweep,
};
use crate::keeper::{Home, LaunchSpec};
use crate::limits;
use crate::metrics::labels;
use crate::provider::{Adapter, Command, Launch, Origin, Prompt};
use crate::registry::session::Session;
use crate::registry::{self, Completed, Job, Started, attachments, end};
use crate::run::change::Change;
use crate::run::event::Reason;
use crate::run::id::{AgentId, Millis, Ordinal, RunId};
use crate::run::log::Settled;
use crate::run::wake::Waker;
use crate::sync::Arc;

impl<'a> Worker<'a> {
    /// Starts a process for a run; `None` if the run has ended, or the server stopped, before
    /// that. `told` is its prompt, if that was recorded for a process that is gone.
    pub(super) fn start(
        seat: &'a Seat,
        session: Arc<Session>,
        started: Started,
        told: Option<Recorded>,
    ) -> Option<Self> {
        let (bell, wakes) = bell();
        let waker = Waker::new(Box::new(bell));
        let run = started.run;
        session.attach_worker(run, waker.clone());
        let adapter = Adapter::new(seat.provider.kind);
        let prompt = attachments::with_pictures(prompt_of(&started.job), seat.provider.kind);
        let launch = seat.provider.launch(&prompt);
        let write = adapter.encode(&Command::Prompt(prompt)).unwrap_or_default();
        let Recorded { n, next_n } = told.unwrap_or(Recorded { n: 1, next_n: 2 });
        let ticket = session.note(match told {
            // Its row is on disk, and is this process's once that is.
            Some(_) => Change::RunAdopted { run, agent: started.agent },
            None => recorded(run, n, &write, &Purpose::Prompt, 0),
        });
        let order = Order { run, n, write, ticket, purpose: Purpose::Prompt };
        if !wait_to_start(&session, &started, order.ticket, &waker, &wakes) {
            return None;
        }
        let home = Home::of(&seat.dir, started.agent);
        let agent = match seat.spawn(&launch, &home, &session) {
            Ok(agent) => agent,
            Err(error) => {
                sweep(started.agent);
                seat.agent_ended(labels::Exit::SpawnFailed);
                let end = end(Reason::SpawnFailed, None, Some(error));
                session.complete(run, &end, Millis::now());
                forget_home(&home);
                return None;
            }
        };
        let fold = Fold::new(Turn::new(run, adapter, started.job.native_id.clone()));
        let key = launch_key(seat, &started.job);
        let ids = (run, started.agent);
        let mut worker = Self::new(seat, session, ids, fold, (agent, home, key), (waker, wakes));
        worker.permit = Some(started.permit);
        worker.next_n = next_n;
        worker.prompt_n = Some(n);
        worker.first_turn = true;
        worker.recorded.push_back(order);
        Some(worker)
    }

    /// What waits in the seat, as far as it can be dealt with now.
    pub(super) fn take_next(&mut self, now: Millis) {
        self.drop_what_ended(now);
        if self.close_asked {
            match self.stage {
                Stage::Idle { .. } | Stage::Lingering { .. } => self.end_now(),
                _ => {}
            }
        }
        // What was said before may be of the run before: it comes first (I6).
        if self.said_all || self.fold.folded() >= self.backlog_end {
            self.take_queued();
        }
    }

    /// An idle process takes what waits, or goes for it.
    pub(super) fn take_queued(&mut self) {
        let idle = matches!(self.stage, Stage::Idle { .. });
        if !idle || self.seat.queue.borrow().is_empty() {
            return;
        }
        let Some(next) = self.seat.queue.borrow_mut().pop_front() else { return };
        match self.adoptable(next) {
            Ok((session, started)) => self.adopt(session, started),
            // It needs another process: this one goes first.
            Err(job) => {
                self.seat.queue.borrow_mut().push_front(*job);
                self.end_now();
            }
        }
    }

    /// A run that this process can take: it would be started in the same way, and nothing of it is
    /// recorded as another process's.
    fn adoptable(&self, job: super::Job) -> Result<(Arc<Session>, Started), Box<super::Job>> {
        let job = match job {
            super::Job::Recovered(recovered) => {
                recovered.unstarted().map_err(|other| Box::new(super::Job::Recovered(other)))?
            }
            run @ super::Job::Run { .. } => run,
        };
        match job {
            super::Job::Run { session, started, recorded: None }
                if launch_key(self.seat, &started.job) == self.launch =>
            {
                Ok((session, *started))
            }
            other => Err(Box::new(other)),
        }
    }

    /// The warm process takes another prompt.
    pub(super) fn adopt(&mut self, session: Arc<Session>, started: Started) {
        self.session = session;
        self.enter(started.run, Some(started.ordinal), Origin::User);
        // It has a place already: the run's own is given back.
        self.permit.get_or_insert(started.permit);
        let prompt = attachments::with_pictures(prompt_of(&started.job), self.seat.provider.kind);
        let write = self.fold.turn().adapter().encode(&Command::Prompt(prompt)).unwrap_or_default();
        let n = self.next_n;
        self.next_n += 1;
        // Both or neither: a restart finds the prompt with the process that is to get it.
        let ticket = self.session.note_both(
            Change::RunAdopted { run: self.run, agent: self.agent_id },
            recorded(self.run, n, &write, &Purpose::Prompt, 0),
        );
        let run = self.run;
        self.recorded.push_back(Order { run, n, write, ticket, purpose: Purpose::Prompt });
        self.prompt_n = Some(n);
        self.job = Some(started.job);
    }

    /// Another run of this process is on.
    pub(super) fn enter(&mut self, run: RunId, ordinal: Option<Ordinal>, origin: Origin) {
        self.run = run;
        self.seat.serving.replace(Some((self.session.clone(), run, self.agent_id)));
        self.seat.busy();
        self.session.attach_worker(run, self.waker.clone());
        self.composer = self.seat.composer(&self.session, run, ordinal);
        self.fold.turn_mut().begin(run, origin);
        self.stage = Stage::Running;
        self.prompt_n = None;
        self.job = None;
        self.first_turn = false;
        self.prompt_failed = false;
        self.quiet_at = after(limits::QUIET_MS);
        self.native_ids = 0;
    }

    /// The prompt that a process which served runs before never got.
    pub(super) fn unsent_prompt(&self) -> Option<(u64, registry::Job)> {
        let (n, job) = (self.prompt_n?, self.job.as_ref()?);
        let waits = |order: &Order| order.n == n;
        let unsent =
            self.prompt_failed || self.sent.contains_key(&n) || self.recorded.iter().any(waits);
        unsent.then(|| (n, job.clone()))
    }

    /// The warm process is dead and never got the prompt: a fresh one takes the run.
    pub(super) fn hand_on(&mut self, n: u64, job: registry::Job) {
        tracing::info!(run = %self.run, "a warm agent was gone; its prompt goes to a fresh one");
        let started = Started {
            run: self.run,
            ordinal: self.session.ordinal_of(self.run).unwrap_or_default(),
            agent: AgentId::random(),
            at: Millis::now(),
            ticket: 0,
            job,
            permit: self.permit.take().unwrap_or_else(|| self.seat.registry.extra_permit()),
        };
        let session = self.session.clone();
        let recorded = Some(Recorded { n, next_n: self.next_n });
        let job = super::Job::Run { session, started: Box::new(started), recorded };
        self.seat.queue.borrow_mut().push_front(job);
    }

    /// Runs that wait for this process to be gone may end before.
    pub(super) fn drop_what_ended(&mut self, now: Millis) {
        let waker = &self.waker;
        self.seat.queue.borrow_mut().retain(|job| {
            let super::Job::Run { session, started, .. } = job else { return true };
            session.attach_worker(started.run, waker.clone());
            !ended_before_start(session, started, now)
        });
    }
}

/// Whether nothing has to be started for this run any more: it has its end, or gets it here.
fn ended_before_start(session: &Session, started: &Started, now: Millis) -> bool {
    let orders = session.orders(started.run);
    if !orders.ended && orders.abort.is_some() {
        let end = end(Reason::Aborted, Some(0), None);
        return session.complete(started.run, &end, now) != Completed::Aborting;
    }
    orders.ended
}

/// Waits until the run's rows are durable. `false`: nothing is to be started.
fn wait_to_start(
    session: &Session,
    started: &Started,
    ticket: u64,
    waker: &Waker,
    wakes: &Receiver<()>,
) -> bool {
    loop {
        // A server that stops and keeps its agents starts this one next time.
        if ended_before_start(session, started, Millis::now()) || session.orders(started.run).let_go
        {
            return false;
        }
        match session.wake_when_settled(ticket, waker) {
            Settled::Committed => return true,
            Settled::Rejected => {
                let error = Some("The store refused this run's rows.".to_owned());
                let end = end(Reason::StoreRejected, None, error);
                session.complete(started.run, &end, Millis::now());
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

impl Seat {
    fn spawn(&self, launch: &Launch, home: &Home, session: &Session) -> Result<Agent, String> {
        let limits = self.registry.limits();
        let spec = LaunchSpec {
            session: session.id().to_string(),
            provider: self.provider.name.clone(),
            journal_bytes_max: limits.journal_bytes_max,
            orphan_grace_ms: limits.orphan_grace_ms.unsigned_abs(),
            ..LaunchSpec::new(launch, home.clone(), &self.data, limits.line_bytes_max)
        };
        Agent::start(&self.keeper, &spec, &self.name)
    }
}

/// How a process for this is started, but for the conversation that it would go on with.
pub(super) fn launch_key(seat: &Seat, job: &Job) -> Launch {
    seat.provider.launch(&Prompt { native_id: None, ..prompt_of(job) })
}

fn prompt_of(job: &Job) -> Prompt {
    Prompt {
        content: job.content.clone(),
        options: job.options.clone(),
        attachments: job.attachments.clone(),
        cwd: job.cwd.clone(),
        native_id: job.native_id.as_ref().map(|id| id.0.clone()),
    }
}
