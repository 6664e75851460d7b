//! What people want of an agent, as numbered commands: durable before they are sent.
//!
//! *Recorded* is the commit of the command's row, *delivered* the keeper's word that it wrote it.

use super::{LADDER_MS, LAST_REPLY_MS, Order, Purpose, Stage, Worker, after};
use crate::limits;
use crate::provider::{Answer, Command, Write};
use crate::registry::{Orders, StoreState, request_of_agent};
use crate::run::change::{Change, Mark};
use crate::run::event::{AnswerState, By, ByKind, Decision, Event, PermissionResolved};
use crate::run::id::{Millis, RequestId, RunId};
use crate::run::log::Settled;
use crate::run::state::AnswerRequest;

impl Worker {
    /// Takes orders: an abort, answers.
    pub(super) fn obey(&mut self, now: Millis) {
        let Orders { abort, ended, answers, .. } = self.session.orders(self.run);
        for (request, answer) in answers {
            self.answer(&request, answer, now);
        }
        if abort.is_some() && self.stage == Stage::Running {
            match self.held {
                Some(_) => self.end_crosses_abort(),
                None => self.interrupt(),
            }
        }
        if ended && !self.is_over() {
            // Somebody else ended the run (the store refused it, say): its process goes.
            self.end_process();
        }
    }

    fn answer(&mut self, request: &RequestId, answer: AnswerRequest, now: Millis) {
        self.turn.answered(request);
        let resolved = Box::new(PermissionResolved {
            request_id: request.0.clone(),
            decision: if answer.allow { Decision::Allow } else { Decision::Deny },
            choice_id: answer.choice_id.clone(),
            state: AnswerState::Recorded,
            by: self.answered_by(request),
            edited: answer.updated_input.is_some(),
            updated_input: None,
            message: None,
        });
        let command = Command::Answer(Answer {
            request_id: request_of_agent(request).to_owned(),
            allow: answer.allow,
            choice_id: answer.choice_id,
            updated_input: answer.updated_input,
            message: answer.message,
            remember: answer.remember,
        });
        let purpose = Purpose::Answer(resolved);
        match self.turn.adapter().encode(&command) {
            Some(write) => self.record(write, purpose),
            // The agent has withdrawn the request meanwhile.
            None => self.delivered(purpose, AnswerState::Undeliverable, now),
        }
    }

    fn answered_by(&self, request: &RequestId) -> By {
        self.session
            .answered_by(request)
            .unwrap_or_else(|| By { kind: ByKind::Rule, name: "gateway".into() })
    }

    /// The provider's own interrupt first, if it has one and the row can become durable; else the
    /// stop ladder at once.
    fn interrupt(&mut self) {
        let can_record = self.registry.store_state() == StoreState::Good;
        match self.turn.adapter().encode(&Command::Interrupt).filter(|_| can_record) {
            Some(write) => {
                self.record(write, Purpose::Interrupt);
                self.stage = Stage::Interrupting { until: after(limits::INTERRUPT_MS) };
            }
            None => self.stop_for_abort(false),
        }
    }

    pub(super) fn stop_for_abort(&mut self, confirmed: bool) {
        self.stage = Stage::Stopping { confirmed };
        self.stop();
    }

    pub(super) fn stop(&mut self) {
        self.stuck_at = Some(after(LADDER_MS));
        if self.agent.stop().is_err() {
            self.takes_no_commands();
        }
    }

    /// A keeper that takes no commands has ended, and its last reply is on its way; or it is stuck.
    pub(super) fn takes_no_commands(&mut self) {
        let at = after(LAST_REPLY_MS);
        self.stuck_at = Some(self.stuck_at.map_or(at, |before| before.min(at)));
    }

    /// Numbers a command and sends its row on the way to disk.
    pub(super) fn record(&mut self, write: Write, purpose: Purpose) {
        let n = self.next_n;
        self.next_n += 1;
        let ticket = self.session.note(recorded(self.run, n, &write));
        self.recorded.push_back(Order { n, write, ticket, purpose });
    }

    /// Sends the commands whose rows are durable, in their order.
    pub(super) fn send_durable(&mut self) {
        while let Some(order) = self.recorded.front() {
            match self.session.wake_when_settled(order.ticket, &self.waker) {
                Settled::Waiting => break,
                Settled::Committed => {
                    let Some(Order { n, write, purpose, .. }) = self.recorded.pop_front() else {
                        break;
                    };
                    self.sent.insert(n, purpose);
                    if self.agent.write(n, write.bytes, write.close).is_err() {
                        self.takes_no_commands();
                    }
                }
                Settled::Rejected => {
                    self.recorded.pop_front();
                }
            }
        }
    }

    /// The keeper wrote a command. It says so twice, and what comes first counts: a reply passes
    /// lines that wait, and a record stands before what the agent says in return, be that the end
    /// of the turn or the next request under the same id.
    pub(super) fn written(&mut self, n: u64, now: Millis) {
        if let Some(purpose) = self.sent.remove(&n) {
            self.session.note(Change::CommandDelivered { run: self.run, n, at: now });
            self.delivered(purpose, AnswerState::Delivered, now);
        }
    }

    /// An answer reached the agent, or never will (I20).
    pub(super) fn delivered(&self, purpose: Purpose, state: AnswerState, now: Millis) {
        let Purpose::Answer(resolved) = purpose else { return };
        // The input and the note stand in the event that recorded them.
        let resolved = PermissionResolved { state, ..*resolved };
        let request = RequestId(resolved.request_id.clone());
        let mark = Mark::PermissionAnswered {
            request: request.clone(),
            decision: resolved.decision,
            state,
            by: resolved.by.clone(),
            answer: None,
        };
        let event = Event::PermissionResolved(resolved);
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
}

/// The row of a command.
pub(super) fn recorded(run: RunId, n: u64, write: &Write) -> Change {
    // A `Write` is bytes and a flag: this cannot fail.
    let body = serde_json::to_vec(write).unwrap_or_default();
    Change::CommandRecorded { run, n, body, cause: 0, request: None, at: Millis::now() }
}
