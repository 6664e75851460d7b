//! A session's place among the workers: its thread, what comes to it, and what is left of an agent
//! when its process is gone.
//!
//! Must not know records or commands.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::{FOREVER, Recovered, Worker, bell, recover, sweep};
use crate::keeper::{DataTag, Home};
use crate::metrics::Metrics;
use crate::metrics::labels::Exit;
use crate::provider::Provider;
use crate::registry::crew::Seats;
use crate::registry::session::Session;
use crate::registry::{Composer, Registry, Started, end};
use crate::run::change::Change;
use crate::run::event::Reason;
use crate::run::id::{AgentId, Millis, Ordinal, RunId, SessionId};
use crate::run::log::Settled;
use crate::run::wake::Waker;
use crate::sync::Arc;

/// What a session's thread works with, from one process to the next.
#[derive(Debug)]
pub(in crate::registry) struct Seat {
    pub(in crate::registry) registry: Arc<Registry>,
    pub(in crate::registry) provider: Arc<Provider>,
    pub(in crate::registry) data: DataTag,
    /// The data directory, in which agents have their homes.
    pub(in crate::registry) dir: PathBuf,
    /// The program that serves as keeper: this one.
    pub(in crate::registry) keeper: PathBuf,
    pub(in crate::registry) metrics: Arc<Metrics>,
    pub(in crate::registry) session: SessionId,
    /// Ends the threads' names.
    pub(in crate::registry) name: String,
    pub(in crate::registry) seats: Arc<Seats>,
    pub(in crate::registry) inbox: Receiver<Next>,
    /// What came while a process had to go first.
    pub(in crate::registry) queue: RefCell<VecDeque<Job>>,
    /// What the crash net has to end.
    pub(in crate::registry) serving: RefCell<Option<(Arc<Session>, RunId, AgentId)>>,
}

/// What comes next in a session.
#[derive(Debug)]
pub(in crate::registry) enum Next {
    /// Something to serve.
    Job(Job),
    /// An idle agent is to end now, one that is at work when its run ends.
    Close,
}

/// Something to serve.
#[derive(Debug)]
pub(in crate::registry) enum Job {
    /// A run that a prompt began; its prompt, if that was recorded already.
    Run { session: Arc<Session>, started: Box<Started>, recorded: Option<Recorded> },
    /// An agent of before the restart.
    Recovered(Box<Recovered>),
}

/// A prompt whose command was recorded for a process that is gone.
#[derive(Clone, Copy, Debug)]
pub(in crate::registry) struct Recorded {
    /// Its number.
    pub(in crate::registry) n: u64,
    /// The number of the next command.
    pub(in crate::registry) next_n: u64,
}

/// Starts a session's thread with its first job.
pub(in crate::registry) fn spawn(seat: Seat, job: Job) -> io::Result<()> {
    thread::Builder::new().name(format!("agent-{}", seat.name)).spawn(move || {
        let mut next = Some(job);
        while let Some(job) = next.take().or_else(|| seat.next()) {
            let served = catch_unwind(AssertUnwindSafe(|| serve(&seat, job)));
            if served.is_err() {
                seat.mop_up();
            }
        }
    })?;
    Ok(())
}

/// Serves one job, to the end of its process.
fn serve(seat: &Seat, job: Job) {
    let worker = match job {
        Job::Run { session, started, recorded } => {
            seat.serving.replace(Some((session.clone(), started.run, started.agent)));
            Worker::start(seat, session, *started, recorded)
        }
        Job::Recovered(recovered) => recover::recover(seat, *recovered),
    };
    if let Some(worker) = worker {
        worker.run();
    }
    seat.serving.replace(None);
}

impl Seat {
    /// The next job, or `None`: the thread ends, and whoever comes later starts another.
    fn next(&self) -> Option<Job> {
        if let Some(job) = self.queue.borrow_mut().pop_front() {
            return Some(job);
        }
        loop {
            match self.seats.leave(self.session, &self.inbox)? {
                Next::Job(job) => return Some(job),
                // There is no process to close.
                Next::Close => {}
            }
        }
    }

    /// The crash net (I1): whatever went wrong, the run has its one end. First what it left is
    /// killed: the end may be an abort's (I21).
    fn mop_up(&self) {
        let Some((session, run, agent)) = self.serving.take() else { return };
        sweep(agent);
        self.agent_ended(Exit::Lost);
        let error = Some("The gateway had an internal error in this run; see its log.".into());
        session.complete(run, &end(Reason::InternalError, None, error), Millis::now());
        self.clear_up(&session, run, &Home::of(&self.dir, agent));
    }

    /// Removes the home of an agent that is gone. What its journal holds may be needed again until
    /// the run's end is on disk (I8), so this waits for that.
    pub(super) fn clear_up(&self, session: &Session, run: RunId, home: &Home) {
        let (bell, wakes) = bell();
        let waker = Waker::new(Box::new(bell));
        session.attach_worker(run, waker.clone());
        let ticket = session.note(Change::Nothing);
        while session.wake_when_settled(ticket, &waker) == Settled::Waiting {
            if session.orders(run).let_go {
                return;
            }
            // Rung or not: it looks again.
            wakes.recv_timeout(FOREVER).unwrap_or_default();
            waker.take();
        }
        // In this order: a journal without its checkpoint would be told from its beginning.
        forget_home(home);
        // The session may have left memory meanwhile.
        if let Ok(session) = self.registry.recover(self.session) {
            session.note(Change::AgentEnded { agent: home.agent(), at: Millis::now() });
        }
    }

    pub(super) fn composer(
        &self,
        session: &Session,
        run: RunId,
        ordinal: Option<Ordinal>,
    ) -> Composer {
        let ordinal = ordinal.or_else(|| session.ordinal_of(run)).unwrap_or_default();
        let bytes_max = self.registry.limits().event_bytes_max;
        Composer::new(session.id(), run, ordinal, &self.provider.name, bytes_max)
    }

    /// An agent's process has ended, or was not to be had.
    pub(super) fn agent_ended(&self, exit: Exit) {
        self.metrics.agent_ended(&self.provider.name, exit);
    }

    pub(super) fn idle(&self) {
        self.seats.idle(self.session, Some(Instant::now()));
    }

    pub(super) fn busy(&self) {
        self.seats.idle(self.session, None);
    }
}

/// Removes an agent's home, once nothing in it is needed.
pub(in crate::registry) fn forget_home(home: &Home) {
    if let Err(error) = home.remove() {
        tracing::warn!(%error, home = %home.path().display(), "an agent's home cannot be removed");
    }
}
