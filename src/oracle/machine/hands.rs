//! Who would start agents: keeps each run's place among those that may be alive. Must not know who
//! gives it back.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::registry::{AgentPermit, Crew, Job, Refusal, Registry, Session, Started};
use crate::run::change::SessionRow;
use crate::run::id::RunId;
use crate::sync::{Arc, Mutex};

/// Starts no agent; keeps each run's place among those that may be alive.
#[derive(Clone, Debug, Default)]
pub(super) struct Hands(pub(super) Arc<Mutex<BTreeMap<RunId, AgentPermit>>>);

impl Crew for Hands {
    fn prepare(&self, _: &SessionRow, _: &str, _: &Map<String, Value>) -> Result<Job, Refusal> {
        Ok(Job::default())
    }

    fn start(&self, _: &Arc<Registry>, _: &Arc<Session>, started: Started) {
        self.0.lock().insert(started.run, started.permit);
    }
}
