//! The disk, with what was committed counted: every run, event and decision passes here once, when
//! it is durable.
//!
//! Must not know SQLite, nor how a counter is told.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::limits;
use crate::metrics::labels::{Decision, Source};
use crate::metrics::{Metrics, OTHER};
use crate::registry::shelf::{CommitError, Disk};
use crate::registry::{Registry, Writing};
use crate::run::change::{Batch, Change, Frame, Item, Mark, RunEnd};
use crate::run::event::{self, AnswerState, By, ByKind, CancelReason, Reason};
use crate::run::id::{Millis, RequestId};
use crate::run::server_change::ServerChange;
use crate::run::state::AnswerRequest;
use crate::store::PendingPermission;
use crate::sync::Arc;

/// How a run may end, as the label `outcome` says it.
pub const OUTCOMES: &[&str] = &[
    "finished",
    "failed",
    "aborted",
    "agent_exited",
    "agent_lost",
    "spawn_failed",
    "timeout",
    "shutdown",
    "store_rejected",
    "internal_error",
];

/// The disk behind the store thread's rounds.
#[derive(Debug)]
pub(super) struct Counting {
    pub(super) disk: Writing,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// Requests that wait for an answer; those of before the restart too.
    waiting: BTreeMap<RequestId, Waiting>,
}

/// A permission request that waits.
#[derive(Debug)]
struct Waiting {
    since: Millis,
    /// The choices that are more than an answer to this one request.
    rules: Vec<String>,
}

impl Counting {
    /// Counts what is committed from now on. `pending` waits already.
    pub(super) fn new(
        disk: Writing,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        pending: Vec<PendingPermission>,
    ) -> Self {
        metrics.log_holds(disk.0.stored_bytes());
        let waiting = pending.into_iter().map(|one| {
            (one.request, Waiting { since: one.received_at, rules: rules_of(&one.text) })
        });
        Self { disk, registry, metrics, waiting: waiting.collect() }
    }

    /// Retention may have taken something.
    pub(super) fn measure(&self) {
        self.metrics.log_holds(self.disk.0.stored_bytes());
    }

    fn count(&mut self, batch: &Batch) {
        let session = self.registry.in_memory(batch.session);
        let agent = session.map_or_else(|| OTHER.to_owned(), |session| session.row().provider);
        let (mut events, mut bytes) = (0, 0);
        for item in &batch.items {
            match item {
                Item::Frame(frame) => {
                    // Seq 0 is a run's head, which is no event.
                    events += u64::from(frame.at.seq.0 > 0);
                    bytes += frame.text.len() as u64;
                    if let Some(mark) = frame.mark.as_deref() {
                        self.mark(&agent, frame, mark);
                    }
                }
                Item::Change(change) => {
                    if let Change::RunStarted(_) = change.as_ref() {
                        self.metrics.run_started(&agent);
                    }
                }
            }
        }
        if events > 0 {
            self.metrics.appended(&agent, events, bytes);
        }
    }

    fn mark(&mut self, agent: &str, frame: &Frame, mark: &Mark) {
        match mark {
            Mark::PermissionOpened { request, received_at } => {
                if self.waiting.len() < limits::PERMISSIONS_TIMED_MAX {
                    let rules = rules_of(&frame.text);
                    self.waiting.insert(request.clone(), Waiting { since: *received_at, rules });
                }
            }
            Mark::PermissionAnswered {
                request,
                decision,
                by,
                answer,
                state: AnswerState::Recorded,
            } => {
                let waiting = self.waiting.remove(request);
                let decision = decision_of(*decision, answer.as_deref(), waiting.as_ref());
                self.metrics.decided(decision, source_of(by), waiting.map(|one| one.waited()));
            }
            Mark::PermissionCancelled(request) => {
                // One that was answered before was decided then.
                if let Some(waiting) = self.waiting.remove(request) {
                    let decision = cancelled_as(&frame.text);
                    self.metrics.decided(decision, Source::Agent, Some(waiting.waited()));
                }
            }
            Mark::Complete(end) => {
                let RunEnd { complete, .. } = end.as_ref();
                let took = Duration::from_millis(complete.duration_ms);
                self.metrics.run_finished(agent, outcome_of(complete.reason), took);
            }
            Mark::PermissionAnswered { .. } | Mark::ToolOpened(_) | Mark::ToolClosed(_) => {}
        }
    }
}

impl Disk for Counting {
    fn commit(&mut self, batches: &[Batch]) -> Result<(), CommitError> {
        self.disk.commit(batches)?;
        let (append, sync) = self.disk.0.last_commit_took();
        self.metrics.committed(append, sync, self.disk.0.stored_bytes());
        for batch in batches {
            self.count(batch);
        }
        Ok(())
    }

    fn commit_server(&mut self, changes: &[ServerChange]) -> Result<(), CommitError> {
        self.disk.commit_server(changes)?;
        for change in changes {
            if let ServerChange::Notified(row) = change {
                self.metrics.notified(&row.sink, row.outcome);
            }
        }
        Ok(())
    }
}

impl Waiting {
    fn waited(&self) -> Duration {
        Duration::from_millis(u64::try_from(Millis::now().0 - self.since.0).unwrap_or(0))
    }
}

fn decision_of(
    decision: event::Decision,
    answer: Option<&AnswerRequest>,
    waiting: Option<&Waiting>,
) -> Decision {
    if decision == event::Decision::Deny {
        return Decision::Deny;
    }
    let Some(answer) = answer else { return Decision::AllowOnce };
    let remembers = answer.remember.as_ref().is_some_and(|rule| !rule.is_null());
    let chose = answer.choice_id.as_ref();
    let rule = chose.zip(waiting).is_some_and(|(choice, waiting)| waiting.rules.contains(choice));
    if remembers || rule { Decision::AllowRule } else { Decision::AllowOnce }
}

const fn source_of(by: &By) -> Source {
    match by.kind {
        ByKind::Web => Source::Web,
        ByKind::Cli => Source::Cli,
        ByKind::Api => Source::Api,
        ByKind::Rule => Source::Rule,
    }
}

/// The ids of a request's choices that allow more than this once.
fn rules_of(frame: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Request {
        #[serde(default)]
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        id: String,
        kind: String,
    }
    let request = serde_json::from_str(frame).unwrap_or(Request { choices: Vec::new() });
    let always = request.choices.into_iter().filter(|choice| choice.kind == "allow_always");
    always.map(|choice| choice.id).collect()
}

fn cancelled_as(frame: &str) -> Decision {
    #[derive(Deserialize)]
    struct Cancelled {
        reason: CancelReason,
    }
    match serde_json::from_str(frame) {
        Ok(Cancelled { reason: CancelReason::Timeout }) => Decision::Expired,
        Ok(Cancelled { reason: CancelReason::Withdrawn }) => Decision::Withdrawn,
        Ok(Cancelled { reason: CancelReason::RunEnded }) | Err(_) => Decision::RunEnded,
    }
}

/// One of `OUTCOMES`.
const fn outcome_of(reason: Reason) -> &'static str {
    match reason {
        Reason::Finished => "finished",
        Reason::Failed => "failed",
        Reason::Aborted => "aborted",
        Reason::AgentExited => "agent_exited",
        Reason::AgentLost => "agent_lost",
        Reason::SpawnFailed => "spawn_failed",
        Reason::Timeout => "timeout",
        Reason::Shutdown => "shutdown",
        Reason::StoreRejected => "store_rejected",
        Reason::InternalError => "internal_error",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn outcomes_are_the_words_of_complete() {
        let reasons = [
            Reason::Finished,
            Reason::Failed,
            Reason::Aborted,
            Reason::AgentExited,
            Reason::AgentLost,
            Reason::SpawnFailed,
            Reason::Timeout,
            Reason::Shutdown,
            Reason::StoreRejected,
            Reason::InternalError,
        ];
        let words = reasons.map(outcome_of);
        assert_eq!(words, OUTCOMES);
        assert_eq!(serde_json::to_value(reasons).expect("words"), json!(words));
    }

    #[test]
    fn a_choice_for_the_next_times_is_a_rule() {
        let frame = json!({"choices": [
            {"id": "1", "kind": "allow_once"}, {"id": "2", "kind": "allow_always"},
        ]});
        let waiting = Waiting { since: Millis(0), rules: rules_of(&frame.to_string()) };
        let allow = |answer: serde_json::Value| {
            let answer: AnswerRequest = serde_json::from_value(answer).expect("an answer");
            decision_of(event::Decision::Allow, Some(&answer), Some(&waiting))
        };
        assert_eq!(allow(json!({"allow": true})), Decision::AllowOnce);
        assert_eq!(allow(json!({"allow": true, "choiceId": "1"})), Decision::AllowOnce);
        assert_eq!(allow(json!({"allow": true, "choiceId": "2"})), Decision::AllowRule);
        assert_eq!(allow(json!({"allow": true, "remember": {"a": 1}})), Decision::AllowRule);
        assert_eq!(decision_of(event::Decision::Deny, None, None), Decision::Deny);
        assert_eq!(rules_of("no JSON"), [""; 0]);
        assert_eq!(cancelled_as(r#"{"reason":"withdrawn"}"#), Decision::Withdrawn);
    }
}
