//! Who starts agents: knows the providers and gives each session's runs to its worker's thread.
//!
//! A session has at most one agent process and one thread that sees to it; a run that comes while
//! that is busy waits there. Must not know what a line means or who is connected.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde_json::{Map, Value};

use crate::keeper::{DataTag, Home};
use crate::metrics::Metrics;
use crate::provider::Provider;
use crate::registry::attachments;
use crate::registry::worker::{self, Job, Next, Recovered, Seat};
use crate::registry::{self, Crew, Refusal, RefusalCode, Registry, Session, Started, end};
use crate::run::change::SessionRow;
use crate::run::event::Reason;
use crate::run::id::{Millis, SessionId};
use crate::store::{StoredAgent, Uploads};
use crate::sync::{Arc, Mutex};

/// The workers of this process.
#[derive(Clone, Debug)]
pub struct Workers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    providers: BTreeMap<String, Arc<Provider>>,
    /// The data directory and its tag.
    dir: PathBuf,
    data: DataTag,
    /// The program that serves as keeper: this one.
    keeper: PathBuf,
    metrics: Arc<Metrics>,
    seats: Arc<Seats>,
    uploads: Uploads,
}

/// Which sessions have a worker's thread, and how to reach it.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<BTreeMap<SessionId, Taken>>);

#[derive(Debug)]
struct Taken {
    inbox: Sender<Next>,
    /// Whose agent it is.
    provider: Arc<Provider>,
    /// Since when its agent is idle, if it is.
    idle_since: Option<Instant>,
}

impl Workers {
    /// Workers for these providers, with homes in the data directory `dir`. `data` tags their
    /// processes, `keeper` is this program.
    #[must_use]
    pub fn new(
        providers: BTreeMap<String, Provider>,
        dir: PathBuf,
        data: DataTag,
        keeper: PathBuf,
        metrics: Arc<Metrics>,
    ) -> Self {
        let providers =
            providers.into_iter().map(|(name, provider)| (name, Arc::new(provider))).collect();
        let (uploads, seats) = (Uploads::of(&dir), Arc::default());
        Self(Arc::new(Inner { providers, dir, data, keeper, metrics, seats, uploads }))
    }

    /// Takes an agent of before the restart over. Its session is in memory; `head` is the whole
    /// `run_started` of the run that it is in.
    pub(super) fn recover(
        &self,
        registry: &Arc<Registry>,
        session: &Arc<Session>,
        (stored, home): (StoredAgent, Home),
        head: Option<&[u8]>,
    ) {
        let row = session.row();
        let job = head.and_then(prompt_of).and_then(|(content, options)| {
            let job = self.prepare(&row, &content, &options);
            job.inspect_err(|refusal| {
                tracing::warn!(run = %stored.newest.id, %refusal, "a prompt cannot be served again");
            })
            .ok()
        });
        let permit = registry.extra_permit();
        let lost = stored.open.as_ref().map(|open| open.run.id);
        let agent = stored.agent;
        let recovered = Recovered { session: session.clone(), stored, home, job, permit };
        if let Err(why) = self.give(registry, session, Job::Recovered(Box::new(recovered))) {
            // Nobody can serve it any more (I9, I21).
            worker::sweep(agent);
            match lost {
                // Its home goes with the next start, when this end is on disk.
                Some(run) => {
                    let end = end(Reason::AgentLost, None, Some(why));
                    session.complete(run, &end, Millis::now());
                }
                None => worker::forget_home(&Home::of(&self.0.dir, agent)),
            }
        }
    }

    /// Every agent is to end: idle ones now, others with their runs.
    pub fn close_all(&self) {
        self.0.seats.close_all();
    }

    /// How many workers have to do with a process.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.seats.0.lock().len()
    }

    /// The same by the name of their provider.
    #[must_use]
    pub fn by_provider(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for taken in self.0.seats.0.lock().values() {
            *counts.entry(taken.provider.name.clone()).or_default() += 1;
        }
        counts
    }

    /// Hands a job to the session's thread, which is started if there is none.
    fn give(
        &self,
        registry: &Arc<Registry>,
        session: &Arc<Session>,
        job: Job,
    ) -> Result<(), String> {
        let inner = &self.0;
        let id = session.id();
        let provider = session.row().provider;
        let Some(provider) = inner.providers.get(&provider).cloned() else {
            return Err(format!("The provider `{provider}` is not configured any more."));
        };
        let mut seats = inner.seats.0.lock();
        let job = match seats.get(&id) {
            None => job,
            Some(taken) => match taken.inbox.try_send(Next::Job(job)) {
                Ok(()) => return Ok(()),
                // Its thread has panicked: nobody reads there any more.
                Err(TrySendError::Disconnected(Next::Job(job))) => job,
                Err(_) => return Err("Too many runs wait for this session's agent to end.".into()),
            },
        };
        let (sender, inbox) = bounded(INBOX_MAX);
        seats.insert(id, Taken { inbox: sender, provider: provider.clone(), idle_since: None });
        drop(seats);
        let name = id.to_string();
        let seat = Seat {
            registry: registry.clone(),
            provider,
            data: inner.data.clone(),
            dir: inner.dir.clone(),
            keeper: inner.keeper.clone(),
            metrics: inner.metrics.clone(),
            session: id,
            name: name[name.len() - 8..].to_owned(),
            seats: inner.seats.clone(),
            inbox,
            queue: RefCell::default(),
            serving: RefCell::default(),
        };
        worker::spawn(seat, job).map_err(|error| {
            inner.seats.0.lock().remove(&id);
            format!("No thread could be started for this run: {error}")
        })
    }
}

impl Seats {
    /// A session's thread has nothing to do: what came meanwhile, or `None`, and its seat is gone.
    pub(super) fn leave(&self, session: SessionId, inbox: &Receiver<Next>) -> Option<Next> {
        let mut seats = self.0.lock();
        // Under the lock under which jobs are given: none is left behind.
        let next = inbox.try_recv().ok();
        if next.is_none() {
            seats.remove(&session);
        }
        next
    }

    /// Since when a session's agent is idle; `None`: it is not.
    pub(super) fn idle(&self, session: SessionId, since: Option<Instant>) {
        if let Some(taken) = self.0.lock().get_mut(&session) {
            taken.idle_since = since;
        }
    }

    fn close_all(&self) {
        for taken in self.0.lock().values() {
            taken.close();
        }
    }

    fn close(&self, session: SessionId) {
        if let Some(taken) = self.0.lock().get(&session) {
            taken.close();
        }
    }

    /// Whether the session has a thread, or the longest idle agent was told to end.
    fn make_room(&self, session: SessionId) -> bool {
        let mut seats = self.0.lock();
        if seats.contains_key(&session) {
            return true;
        }
        let idle = seats.values_mut().filter(|taken| taken.idle_since.is_some());
        let Some(longest) = idle.min_by_key(|taken| taken.idle_since) else { return false };
        // Nobody chooses it twice.
        longest.idle_since = None;
        longest.close();
        true
    }
}

impl Taken {
    fn close(&self) {
        // Full: its thread has much to do before it is idle. Disconnected: it has panicked.
        self.inbox.try_send(Next::Close).unwrap_or_default();
    }
}

impl Crew for Workers {
    fn prepare(
        &self,
        session: &SessionRow,
        content: &str,
        options: &Map<String, Value>,
    ) -> Result<registry::Job, Refusal> {
        let providers = &self.0.providers;
        let Some(provider) = providers.get(&session.provider) else {
            let known = providers.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Refusal::new(
                RefusalCode::UnsupportedProvider,
                format!("There is no provider `{}` here; there are: {known}.", session.provider),
            ));
        };
        provider
            .check(options)
            .map_err(|why| Refusal::new(RefusalCode::InvalidField, format!("options: {why}")))?;
        Ok(registry::Job {
            content: content.to_owned(),
            options: options.clone(),
            attachments: attachments::resolve(&self.0.uploads, session.id, options)?,
            cwd: confine(Path::new(&session.project_path), options.get("cwd"))?,
            native_id: session.native_id.clone(),
        })
    }

    fn start(&self, registry: &Arc<Registry>, session: &Arc<Session>, started: Started) {
        let run = started.run;
        let job = Job::Run { session: session.clone(), started: Box::new(started), recorded: None };
        if let Err(error) = self.give(registry, session, job) {
            session.complete(run, &end(Reason::InternalError, None, Some(error)), Millis::now());
        }
    }

    fn make_room(&self, session: SessionId) -> bool {
        self.0.seats.make_room(session)
    }

    fn dismiss(&self, session: SessionId) {
        self.0.seats.close(session);
    }
}

/// What may wait for a session's thread: a run each time that one was aborted before it began.
const INBOX_MAX: usize = 64;

/// What the prompt of a run said, if a prompt began it.
fn prompt_of(head: &[u8]) -> Option<(String, Map<String, Value>)> {
    #[derive(serde::Deserialize)]
    struct Head {
        origin: String,
        content: String,
        #[serde(default)]
        options: Map<String, Value>,
    }
    let head: Head = serde_json::from_slice(head).ok()?;
    (head.origin == "user").then_some((head.content, head.options))
}

/// The run's working directory: the project's, or a place in it.
fn confine(project: &Path, cwd: Option<&Value>) -> Result<PathBuf, Refusal> {
    let refuse = |why: &str| {
        Refusal::new(RefusalCode::InvalidField, format!("options.cwd: {why}; leave it out."))
    };
    let wanted = match cwd {
        None | Some(Value::Null) => return Ok(project.to_owned()),
        Some(Value::String(path)) => project.join(path),
        Some(_) => return Err(refuse("it must be a string")),
    };
    let real = wanted.canonicalize().map_err(|_| refuse("there is no such directory"))?;
    let root = project.canonicalize().map_err(|_| refuse("the project's directory is gone"))?;
    if !real.starts_with(&root) {
        return Err(refuse("it leads out of the session's project"));
    }
    if !real.is_dir() {
        return Err(refuse("it is not a directory"));
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_directory_cannot_leave_the_project() {
        let dir = tempfile::tempdir().expect("a directory");
        let project = dir.path().join("project");
        std::fs::create_dir_all(project.join("inner")).expect("a directory");
        std::fs::create_dir(dir.path().join("other")).expect("a directory");
        std::os::unix::fs::symlink(dir.path().join("other"), project.join("way-out"))
            .expect("a link");
        let at = |cwd: Value| confine(&project, Some(&cwd));
        assert_eq!(confine(&project, None).expect("the project"), project);
        assert!(at("inner".into()).expect("inside").ends_with("project/inner"));
        assert!(at(project.join("inner").to_string_lossy().into()).is_ok());
        for bad in ["..", "../other", "way-out", "/", "missing"] {
            assert_eq!(at(bad.into()).expect_err(bad).code, RefusalCode::InvalidField);
        }
        assert_eq!(at(5.into()).expect_err("a number").code, RefusalCode::InvalidField);
    }
}
