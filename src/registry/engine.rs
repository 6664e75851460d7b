//! Everything below the server, put together: the store and its thread, the registry, the
//! workers, and the recovery of what a gateway before this one left behind.
//!
//! Must not know HTTP, WebSocket or the command line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::keeper::{self, DataTag};
use crate::limits::{self, Limits};
use crate::provider::Provider;
use crate::registry::{Completed, Mode, Persist, Reading, Registry, Round, Workers, Writing, end};
use crate::run::event::{By, ByKind, Reason};
use crate::run::id::Millis;
use crate::run::wake::{Bell, Waker};
use crate::store::{self, Keep, OpenOptions, Readers, Store, Writer};
use crate::sync::Arc;

/// The store, the registry and the workers of this process.
#[derive(Debug)]
pub struct Engine {
    registry: Arc<Registry>,
    readers: Arc<Readers>,
    stopping: Arc<AtomicBool>,
    bell: Sender<()>,
    store: Option<JoinHandle<Result<(), Fatal>>>,
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
    /// Opens the data directory, ends what the last gateway left running (I9, I21), and starts the
    /// store thread. When this returns, prompts can be taken.
    ///
    /// # Errors
    /// See `EngineError`; nothing runs then.
    pub fn open(
        dir: &Path,
        limits: &Limits,
        providers: BTreeMap<String, Provider>,
        options: &OpenOptions,
    ) -> Result<Self, EngineError> {
        let (writer, readers) = Store::open(dir, options)?;
        let readers = Arc::new(readers);
        let data = DataTag::of(dir)?;
        sweep_leftovers(&data)?;
        for home in keeper::homes(dir)? {
            home.remove()?;
        }
        let (bell, rings) = bounded(1);
        let waker = Waker::new(Box::new(StoreBell(bell.clone())));
        let shelf = Arc::new(Reading(readers.clone()));
        let registry =
            Arc::new(Registry::new(limits.clone(), readers.epoch(), shelf, waker.clone()));
        registry.set_crew(Box::new(Workers::new(
            providers,
            dir.to_owned(),
            data,
            keeper::program()?,
        )));
        let stopping = Arc::new(AtomicBool::new(false));
        let (report, fatal) = bounded(1);
        let keeping = Keeping {
            persist: Persist::new(registry.clone(), Writing(writer), waker),
            keep: Keep { age_ms: limits.retention_age_ms, bytes_max: limits.retention_bytes },
            rings,
            stopping: stopping.clone(),
            retain_at: Instant::now(),
        };
        let store = thread::Builder::new()
            .name("store".into())
            .spawn(move || keep_store(keeping, &report))?;
        let engine = Self { registry, readers, stopping, bell, store: Some(store), fatal };
        engine.recover()?;
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

    /// Says so once if the store thread had to stop.
    #[must_use]
    pub const fn fatal(&self) -> &Receiver<String> {
        &self.fatal
    }

    /// Stops all runs; `true` once each has its `complete` and is durable, `false` at the deadline.
    #[must_use]
    pub fn abort_all(&self, deadline: Instant) -> bool {
        self.registry.close(Mode::Abort);
        let by = By { kind: ByKind::Rule, name: "shutdown".into() };
        for (session, run) in self.registry.running() {
            // Refused: it has ended meanwhile.
            drop(self.registry.abort(session, Some(run), &by, Millis::now()));
        }
        wait_until(deadline, || {
            self.registry.running().is_empty()
                && self.registry.loaded().iter().all(|session| !session.has_undurable())
        })
    }

    /// Commits what is left, closes the store and ends its thread.
    ///
    /// # Errors
    /// The store could not be closed in order.
    pub fn close(mut self) -> Result<(), Fatal> {
        self.stopping.store(true, Ordering::Release);
        // Full: it rings already.
        self.bell.try_send(()).unwrap_or_default();
        match self.store.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Fatal("the store thread panicked".into())),
            None => Ok(()),
        }
    }

    /// Runs of before the restart: each gets its one `complete` before anything is served (I9).
    fn recover(&self) -> Result<(), EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Recover(error.to_string());
        let open = self.readers.open_runs().map_err(|error| failed(&error))?;
        for run in &open {
            let (session, id) = (run.run.session, run.run.id);
            let session = self.registry.recover(session).map_err(|error| failed(&error))?;
            let error = "The gateway stopped while this run was on, and its agent with it.";
            let end = end(Reason::AgentLost, None, Some(error.to_owned()));
            if session.complete(id, &end, Millis::now()) == Completed::Won {
                tracing::info!(run = %id, "a run of before the restart ends as agent_lost");
            }
        }
        let deadline = Instant::now() + Duration::from_millis(limits::RECOVER_MS.unsigned_abs());
        let durable = wait_until(deadline, || {
            self.registry.loaded().iter().all(|session| !session.has_undurable())
        });
        if !durable {
            // They become durable, and visible, once the store can write.
            tracing::warn!("the store cannot write; runs of before the restart end when it can");
        }
        Ok(())
    }
}

/// Ends the agents and keepers that a gateway of this data directory left behind.
fn sweep_leftovers(data: &DataTag) -> Result<(), EngineError> {
    let swept = keeper::sweep(data, &[])?;
    if !swept.killed.is_empty() {
        tracing::info!(killed = ?swept.killed, "processes of the last gateway were still there");
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
    persist: Persist<Writing>,
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
                if code == "FULL" && keeping.persist.disk().0.drop_ballast() {
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

impl Keeping {
    fn retain_if_due(&mut self) {
        if Instant::now() < self.retain_at {
            return;
        }
        let writer: &mut Writer = &mut self.persist.disk().0;
        let budget = limits::RETENTION_SLICE_MS;
        let more = match writer.retain(Millis::now(), self.keep, budget, &mut Millis::now) {
            Ok(retained) => {
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
        self.persist.into_disk().0.close().map_err(|error| Fatal(error.to_string()))
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

struct StoreBell(Sender<()>);

impl Bell for StoreBell {
    fn ring(&self) {
        // Full: it rings already. Disconnected: the store thread is gone.
        self.0.try_send(()).unwrap_or_default();
    }
}
