//! Everything below the server, put together: the store and its thread, the registry, the
//! workers, and the recovery of what a gateway before this one left behind.
//!
//! Must not know HTTP, WebSocket or the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::keeper::{self, DataTag, Home};
use crate::limits::{self, Limits};
use crate::metrics::Metrics;
use crate::provider::Provider;
use crate::registry::counting::{Counting, OUTCOMES};
use crate::registry::{Herald, Mode, Persist, Reading, Registry, Round, Turns, Workers, Writing};
use crate::run::event::{By, ByKind};
use crate::run::id::{AgentId, Millis, Seq};
use crate::run::wake::{Bell, Waker};
use crate::store::{self, Keep, OpenOptions, Readers, Store, Writer};
use crate::sync::Arc;

/// The store, the registry and the workers of this process.
#[derive(Debug)]
pub struct Engine {
    registry: Arc<Registry>,
    readers: Arc<Readers>,
    workers: Workers,
    metrics: Arc<Metrics>,
    dir: PathBuf,
    stopping: Arc<AtomicBool>,
    bell: Sender<()>,
    store: Option<JoinHandle<Result<(), Fatal>>>,
    queue: Option<JoinHandle<()>>,
    queue_bell: Sender<()>,
    fatal: Receiver<String>,
}

/// Why nothing can be served from a data directory.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] store::OpenError),
    /// What was left behind cannot be dealt with.
    #[error("what the last gateway left behind cannot be recovered: {0}")]
    Recover(String),
    /// The system does not let it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The database is not usable any more: the process must end with code 75.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the database is not usable any more: {0}; recovery finishes at the next start")]
pub struct Fatal(pub String);

impl Engine {
    /// Opens the data directory, starts the store thread, and takes over what the last gateway
    /// left running; what has no keeper any more is ended (I9, I21). When this returns, prompts can be taken.
    /// `herald` hears of what is committed from the first commit on, so also of those ends.
    ///
    /// # Errors
    /// See `EngineError`; nothing runs then.
    pub fn open(
        dir: &Path,
        limits: &Limits,
        providers: BTreeMap<String, Provider>,
        options: &OpenOptions,
        herald: Option<Box<dyn Herald>>,
    ) -> Result<Self, EngineError> {
        let (writer, readers) = Store::open(dir, options)?;
        let readers = Arc::new(readers);
        let data = DataTag::of(dir)?;
        let homes = keeper::homes(dir)?;
        sweep_leftovers(&data, &homes)?;
        let (bell, rings) = bounded(1);
        let waker = Waker::new(Box::new(Ring(bell.clone())));
        let shelf = Arc::new(Reading(readers.clone()));
        let registry =
            Arc::new(Registry::new(limits.clone(), readers.epoch(), shelf, waker.clone()));
        let metrics = Arc::new(counters(providers.keys().cloned()));
        let program = keeper::program()?;
        let workers = Workers::new(providers, dir.to_owned(), data, program, metrics.clone());
        registry.set_crew(Box::new(workers.clone()));
        if let Some(herald) = herald {
            registry.set_herald(herald);
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let (report, fatal) = bounded(1);
        let pending = readers
            .pending_permissions()
            .map_err(|error| EngineError::Recover(error.to_string()))?;
        let disk = Counting::new(Writing(writer), registry.clone(), metrics.clone(), pending);
        let keeping = Keeping {
            persist: Persist::new(registry.clone(), disk, waker),
            keep: Keep { age_ms: limits.retention_age_ms, bytes_max: limits.retention_bytes },
            rings,
            stopping: stopping.clone(),
            retain_at: Instant::now(),
        };
        let store = thread::Builder::new()
            .name("store".into())
            .spawn(move || keep_store(keeping, &report))?;
        let (queue_bell, queue_rings) = bounded(1);
        let queue_waker = Waker::new(Box::new(Ring(queue_bell.clone())));
        let turns = Turns::new(registry.clone(), queue_waker.clone());
        let queue = thread::Builder::new().name("queue".into()).spawn({
            let stopping = stopping.clone();
            move || take_turns(turns, &queue_rings, &stopping)
        })?;
        let engine = Self {
            registry,
            readers,
            workers,
            metrics,
            dir: dir.to_owned(),
            stopping,
            bell,
            store: Some(store),
            queue: Some(queue),
            queue_bell,
            fatal,
        };
        engine.recover(homes)?;
        // What waited before the restart, unless its session's run goes on: its end rings.
        for session in engine.readers.queues().map_err(|e| EngineError::Recover(e.to_string()))? {
            queue_waker.wake_session(session);
        }
        Ok(engine)
    }

    /// The registry.
    #[must_use]
    pub const fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The store's readers.
    #[must_use]
    pub const fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// What is counted.
    #[must_use]
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The workers.
    #[must_use]
    pub const fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Says so once if the store thread had to stop.
    #[must_use]
    pub const fn fatal(&self) -> &Receiver<String> {
        &self.fatal
    }

    /// Nothing new begins, and agents live on without us; `true` once all that was logged is
    /// durable, `false` at the deadline.
    #[must_use]
    pub fn let_go(&self, deadline: Instant) -> bool {
        let agents = self.workers.count();
        self.registry.close(Mode::Keep);
        if agents > 0 {
            tracing::info!(
                agents,
                "agents work on without a server, and the next start goes on with them; \
                 `reattach ps --keepers` lists them"
            );
        }
        wait_until(deadline, || self.registry.is_durable())
    }

    /// Stops all runs and all agents; `true` once each run has its `complete`, all is durable and
    /// no agent is left, `false` at the deadline, at which what is left is killed.
    #[must_use]
    pub fn abort_all(&self, deadline: Instant) -> bool {
        self.registry.close(Mode::Abort);
        let by = By { kind: ByKind::Rule, name: "shutdown".into() };
        for (session, run) in self.registry.running() {
            // Refused: it has ended meanwhile.
            drop(self.registry.abort(session, Some(run), &by, Millis::now()));
        }
        self.workers.close_all();
        let ended = wait_until(deadline, || {
            self.registry.running().is_empty()
                && self.registry.is_durable()
                && self.workers.count() == 0
        });
        if !ended && let Err(error) = self.kill_all() {
            tracing::error!(%error, "what is left of the agents cannot be killed");
        }
        ended
    }

    fn kill_all(&self) -> Result<(), EngineError> {
        sweep_leftovers(&DataTag::of(&self.dir)?, &[])
    }

    /// Commits what is left, closes the store and ends its thread.
    ///
    /// # Errors
    /// The store could not be closed in order.
    pub fn close(mut self) -> Result<(), Fatal> {
        self.stopping.store(true, Ordering::Release);
        // Full: it rings already.
        self.bell.try_send(()).unwrap_or_default();
        self.queue_bell.try_send(()).unwrap_or_default();
        if self.queue.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the queue's thread panicked");
        }
        match self.store.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Fatal("the store thread panicked".into())),
            None => Ok(()),
        }
    }

    /// Agents of before the restart are given to workers, which go on with them or give their runs
    /// the one `complete` (I9). Prompts for their sessions wait for that.
    fn recover(&self, homes: Vec<Home>) -> Result<(), EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Recover(error.to_string());
        let mut agents: BTreeMap<AgentId, Home> =
            homes.into_iter().map(|home| (home.agent(), home)).collect();
        for open in self.readers.open_runs().map_err(|error| failed(&error))? {
            agents.entry(open.agent).or_insert_with(|| Home::of(&self.dir, open.agent));
        }
        // In a session whose agent lives, a run that has no process yet comes after it.
        let mut agents: Vec<_> = agents.into_iter().collect();
        agents.sort_by_key(|(_, home)| home.info().is_none());
        let mut left = 0;
        for (agent, home) in agents {
            let stored = self.readers.agent(agent).map_err(|error| failed(&error))?;
            let Some(stored) = stored else {
                // Its session is deleted, or its run never became durable.
                forget(&home);
                continue;
            };
            let session = self.registry.recover(stored.session).map_err(|error| failed(&error))?;
            let head = match &stored.open {
                Some(open) => {
                    self.readers.event_whole(open.run.id, Seq(0)).map_err(|error| failed(&error))?
                }
                None => None,
            };
            left += 1;
            self.workers.recover(&self.registry, &session, (stored, home), head.as_deref());
        }
        if left > 0 {
            tracing::info!(agents = left, "agents of before the restart are taken over");
        }
        Ok(())
    }
}

/// The counters of this program, with these providers.
fn counters(providers: impl IntoIterator<Item = String>) -> Metrics {
    Metrics::new(providers, OUTCOMES, env!("CARGO_PKG_VERSION"), option_env!("REATTACH_REVISION"))
}

/// Ends an agent that nobody knows, and removes its home.
fn forget(home: &Home) {
    let path = home.path().display();
    tracing::info!(home = %path, "an agent without a run was still there");
    let gone = keeper::sweep_agent(home.agent()).and_then(|_| home.remove());
    if let Err(error) = gone {
        tracing::error!(%error, home = %path, "it cannot be removed; stop it and delete its home");
    }
}

/// Ends agents and keepers of this data directory that have no home, or whose keeper is gone.
fn sweep_leftovers(data: &DataTag, homes: &[Home]) -> Result<(), EngineError> {
    let mut kept = Vec::new();
    for home in homes {
        let alive = home.is_alive().map_err(|error| {
            let path = home.path().display();
            let advice = "make it readable for this user, or move it away";
            EngineError::Recover(format!("{path} cannot be looked at ({error}); {advice}"))
        })?;
        if alive {
            kept.push(home.agent());
        }
    }
    let swept = keeper::sweep(data, &kept)?;
    if !swept.killed.is_empty() {
        tracing::info!(killed = ?swept.killed, "processes without a keeper were still there");
    }
    if !swept.left.is_empty() {
        return Err(EngineError::Recover(format!(
            "processes {:?} of the last gateway cannot be killed; end them and start again",
            swept.left
        )));
    }
    Ok(())
}

struct Keeping {
    persist: Persist<Counting>,
    keep: Keep,
    rings: Receiver<()>,
    stopping: Arc<AtomicBool>,
    retain_at: Instant,
}

/// The store thread: rounds, and retention between them.
fn keep_store(mut keeping: Keeping, report: &Sender<String>) -> Result<(), Fatal> {
    loop {
        match keeping.persist.round(Millis::now()) {
            Round::Worked => keeping.retain_if_due(),
            Round::Idle => {
                if keeping.stopping.load(Ordering::Acquire) {
                    return keeping.close();
                }
                keeping.retain_if_due();
                let pause = keeping.retain_at.saturating_duration_since(Instant::now());
                match keeping.rings.recv_timeout(pause) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return keeping.close(),
                }
            }
            Round::Failing(code) => {
                tracing::error!(code, "the store cannot write; it tries again");
                if code == "FULL" && keeping.persist.disk().disk.0.drop_ballast() {
                    tracing::error!("the ballast was given up to write what is on its way");
                    continue;
                }
                if keeping.stopping.load(Ordering::Acquire) {
                    return Err(Fatal(format!("the store could not write ({code}) to the end")));
                }
                // New work cannot hurry the disk: wait the time out, whoever rings.
                thread::sleep(Duration::from_millis(limits::STORE_RETRY_MS.unsigned_abs()));
            }
            Round::Fatal(error) => {
                tracing::error!(error, "the database is not usable");
                // Full: it was reported already.
                report.try_send(error.clone()).unwrap_or_default();
                return Err(Fatal(error));
            }
        }
    }
}

/// The queue's thread: begins what waits, whenever a run has ended.
fn take_turns(mut turns: Turns, rings: &Receiver<()>, stopping: &AtomicBool) {
    loop {
        let later = turns.take(Millis::now());
        if stopping.load(Ordering::Acquire) {
            return;
        }
        // A place that becomes free rings nobody, nor does a store that recovers.
        let rung = match later {
            true => match rings
                .recv_timeout(Duration::from_millis(limits::QUEUE_RETRY_MS.unsigned_abs()))
            {
                Err(RecvTimeoutError::Disconnected) => Err(()),
                _ => Ok(()),
            },
            false => rings.recv().map_err(|_| ()),
        };
        if rung.is_err() {
            return;
        }
    }
}

impl Keeping {
    fn retain_if_due(&mut self) {
        if Instant::now() < self.retain_at {
            return;
        }
        let writer: &mut Writer = &mut self.persist.disk().disk.0;
        let budget = limits::RETENTION_SLICE_MS;
        let more = match writer.retain(Millis::now(), self.keep, budget, &mut Millis::now) {
            Ok(retained) => {
                self.persist.disk().measure();
                if !retained.pruned.is_empty() {
                    tracing::info!(runs = retained.pruned.len(), "retention took finished runs");
                }
                retained.more
            }
            Err(error) => {
                tracing::warn!(%error, "retention could not work");
                false
            }
        };
        let pause = if more { 0 } else { limits::RETENTION_PAUSE_MS.unsigned_abs() };
        self.retain_at = Instant::now() + Duration::from_millis(pause);
    }

    fn close(self) -> Result<(), Fatal> {
        self.persist.into_disk().disk.0.close().map_err(|error| Fatal(error.to_string()))
    }
}

/// Looks again and again; for the few waits that have no wake of their own.
fn wait_until(deadline: Instant, mut done: impl FnMut() -> bool) -> bool {
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(limits::LOOK_AGAIN_MS.unsigned_abs()));
    }
}

/// Rings a thread that waits on a channel.
struct Ring(Sender<()>);

impl Bell for Ring {
    fn ring(&self) {
        // Full: it rings already. Disconnected: the thread is gone.
        self.0.try_send(()).unwrap_or_default();
    }
}
