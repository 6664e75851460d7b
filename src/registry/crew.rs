//! Who starts agents: knows the providers and gives each run its worker thread.
//!
//! A session has at most one agent process: a run's worker waits until the one before it has seen
//! its process out. Must not know what a line means or who is connected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, bounded};
use serde_json::{Map, Value};

use crate::keeper::DataTag;
use crate::provider::Provider;
use crate::registry::worker;
use crate::registry::{Crew, Job, Refusal, RefusalCode, Registry, Session, Started, end};
use crate::run::change::SessionRow;
use crate::run::event::Reason;
use crate::run::id::{Millis, SessionId};
use crate::sync::{Arc, Mutex};

/// The workers of this process.
#[derive(Debug)]
pub struct Workers {
    providers: BTreeMap<String, Arc<Provider>>,
    /// The data directory, where agents' keepers live.
    dir: PathBuf,
    data: DataTag,
    /// The program that serves as keeper: this one.
    keeper: PathBuf,
    /// Of each session's newest worker: it disconnects when that worker's process is gone.
    gone: Mutex<BTreeMap<SessionId, Receiver<()>>>,
}

impl Workers {
    /// Workers for these providers. `dir` is the data directory, `data` the tag that its processes
    /// carry, `keeper` this program.
    #[must_use]
    pub fn new(
        providers: BTreeMap<String, Provider>,
        dir: PathBuf,
        data: DataTag,
        keeper: PathBuf,
    ) -> Self {
        let providers =
            providers.into_iter().map(|(name, provider)| (name, Arc::new(provider))).collect();
        Self { providers, dir, data, keeper, gone: Mutex::new(BTreeMap::new()) }
    }
}

impl Crew for Workers {
    fn prepare(
        &self,
        session: &SessionRow,
        content: &str,
        options: &Map<String, Value>,
    ) -> Result<Job, Refusal> {
        let Some(provider) = self.providers.get(&session.provider) else {
            let known = self.providers.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Refusal::new(
                RefusalCode::UnsupportedProvider,
                format!("There is no provider `{}` here; there are: {known}.", session.provider),
            ));
        };
        provider
            .check(options)
            .map_err(|why| Refusal::new(RefusalCode::InvalidField, format!("options: {why}")))?;
        Ok(Job {
            content: content.to_owned(),
            options: options.clone(),
            cwd: confine(Path::new(&session.project_path), options.get("cwd"))?,
            native_id: session.native_id.clone(),
        })
    }

    fn start(&self, registry: &Arc<Registry>, session: &Arc<Session>, started: Started) {
        let Some(provider) = self.providers.get(&session.row().provider).cloned() else {
            // `prepare` has just found it, and providers do not change.
            return;
        };
        let (alive, gone) = bounded(0);
        let before = {
            let mut map = self.gone.lock();
            map.retain(|_, gone| !is_disconnected(gone));
            map.insert(session.id(), gone)
        };
        let run = started.run;
        let seat = worker::Seat {
            registry: registry.clone(),
            session: session.clone(),
            provider,
            dir: self.dir.clone(),
            data: self.data.clone(),
            keeper: self.keeper.clone(),
            before,
            alive,
        };
        if let Err(error) = worker::spawn(seat, started) {
            let error = format!("No thread could be started for this run: {error}");
            session.complete(run, &end(Reason::InternalError, None, Some(error)), Millis::now());
        }
    }
}

fn is_disconnected(gone: &Receiver<()>) -> bool {
    matches!(gone.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
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
