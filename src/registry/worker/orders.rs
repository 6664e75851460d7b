//! What people want of an agent, as numbered commands: durable before they are sent.
//!
//! *Recorded* is the commit of the command's row, *delivered* the keeper's word that it wrote it.

use super::process::NotSent;
use super::saved::{Body, to_bytes};
use super::{Go, LADDER_MS, LAST_REPLY_MS, Order, Purpose, Stage, Worker, after};
use crate::limits;
use crate::provider::{Answer, Command, Write};
use crate::registry::{Orders, StoreState, end, request_of_agent};
use crate::run::change::{Change, Mark};
use crate::run::event::{AnswerState, By, ByKind, Decision, Event, PermissionResolved, Reason};
use crate::run::id::{Millis, RequestId, RunId};
use crate::run::log::Settled;
use crate::run::state::AnswerRequest;

impl Worker<'_> {
    /// Takes orders: an abort, answers, or to let go.
    pub(super) fn obey(&mut self, now: Millis) -> Go {
        let Orders { abort, ended, answers, let_go } = self.session.orders(self.run);
        if let_go {
            return Go::LetGo;
        }
        self.answers.extend(answers);
        let catching_up = self.fold.is_catching_up() && !self.said_all;
        if !catching_up {
            // The adapter knows now what they answer.
            for (request, answer) in std::mem::take(&mut self.answers) {
                self.answer(&request, answer, now);
            }
        }
        if abort.is_some() && self.stage == Stage::Running {
            match self.held {
                Some(_) => self.end_crosses_abort(),
                // What the dialect's own interrupt would be is not known before.
                None if catching_up => self.stop_for_abort(false),
                None => self.interrupt(now),
            }
        }
        if ended && !self.is_over() {
            // Somebody else ended the run (the store refused it, say): its process goes.
            self.close_asked = true;
            self.run_ended();
        }
        Go::On
    }

    fn answer(&mut self, request: &RequestId, answer: AnswerRequest, now: Millis) {
        self.fold.turn_mut().answered(request);
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
        match self.fold.turn().adapter().encode(&command) {
            Some(write) => {
                self.record(write, purpose, 0);
            }
            // The agent has withdrawn the request meanwhile.
            None => self.delivered(self.run, purpose, AnswerState::Undeliverable, now),
        }
    }

    fn answered_by(&self, request: &RequestId) -> By {
        self.session
            .answered_by(request)
            .unwrap_or_else(|| By { kind: ByKind::Rule, name: "gateway".into() })
    }

    /// The provider's own interrupt first, if it has one and the row can become durable; else the
    /// stop ladder at once. A prompt that was not sent yet never is.
    fn interrupt(&mut self, now: Millis) {
        if self.forget_prompt() {
            let end = end(Reason::Aborted, Some(0), None);
            self.session.complete(self.run, &end, now);
            return self.run_ended();
        }
        let can_record = self.seat.registry.store_state() == StoreState::Good;
        match self.fold.turn().adapter().encode(&Command::Interrupt).filter(|_| can_record) {
            Some(write) => {
                self.record(write, Purpose::Interrupt, 0);
                self.stage = Stage::Interrupting { until: after(limits::INTERRUPT_MS) };
            }
            None => self.stop_for_abort(false),
        }
    }

    /// Takes back the prompt of a process that serves runs beside this one, if it waits for the
    /// disk.
    fn forget_prompt(&mut self) -> bool {
        let waits = |order: &Order| order.purpose == Purpose::Prompt && order.n > 1;
        let before = self.recorded.len();
        self.recorded.retain(|order| !waits(order));
        self.recorded.len() < before
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

    /// Numbers a command and sends its row on the way to disk. `cause` is the end of the record
    /// that an automatic reply answers, else 0.
    pub(super) fn record(&mut self, write: Write, purpose: Purpose, cause: u64) -> u64 {
        let n = self.next_n;
        self.next_n += 1;
        let ticket = self.session.note(recorded(self.run, n, &write, &purpose, cause));
        self.recorded.push_back(Order { run: self.run, n, write, ticket, purpose });
        n
    }

    /// Sends the commands whose rows are durable, in their order.
    pub(super) fn send_durable(&mut self) {
        self.retry_at = None;
        while let Some(order) = self.recorded.front() {
            match self.session.wake_when_settled(order.ticket, &self.waker) {
                Settled::Waiting => break,
                Settled::Committed => {
                    let Some(Order { run, n, write, ticket: order_ticket, purpose }) =
                        self.recorded.pop_front()
                    else {
                        break;
                    };
                    match self.agent.write(n, &write) {
                        Ok(()) => {}
                        Err(NotSent::Full) => {
                            let order = Order { run, n, write, ticket: order_ticket, purpose };
                            self.recorded.push_front(order);
                            self.retry_at = Some(after(limits::LOOK_AGAIN_MS));
                            break;
                        }
                        Err(NotSent::Gone) => self.takes_no_commands(),
                    }
                    self.sent.insert(n, (run, purpose));
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
        if let Some((run, purpose)) = self.sent.remove(&n) {
            // First the event: without the row's mark, a restart asks the keeper once more.
            self.delivered(run, purpose, AnswerState::Delivered, now);
            self.session.note(Change::CommandDelivered { run, n, at: now });
        }
    }

    /// The prompt is not in the agent's stdin, and never will be. A warm agent that closed it is of
    /// no use any more: a fresh one takes the run.
    pub(super) fn prompt_unwritten(&mut self, run: RunId) {
        if run == self.run {
            self.prompt_failed = true;
            if self.job.is_some() && !self.gone && self.stage == Stage::Running {
                self.stop();
            }
        }
    }

    /// An answer reached the agent, or never will (I20).
    pub(super) fn delivered(&self, run: RunId, purpose: Purpose, state: AnswerState, now: Millis) {
        let Purpose::Answer(resolved) = purpose else { return };
        // The input and the note stand in the event that recorded them.
        let resolved = PermissionResolved { state, ..*resolved };
        let request = RequestId(resolved.request_id.clone());
        let by = resolved.by.clone();
        let mark = Mark::PermissionAnswered {
            request: request.clone(),
            decision: resolved.decision,
            state,
            by: by.clone(),
            answer: None,
        };
        let event = Event::PermissionResolved(resolved);
        if self.session.record(run, &event, Some(&mark), now).is_err() {
            // The run has its end already: for the audit table only.
            let detail = serde_json::json!({ "requestId": request.0, "late": true });
            let what = match state {
                AnswerState::Undeliverable => "permission_undeliverable",
                _ => "permission_delivered",
            };
            self.session.note(Change::Audit {
                run: Some(run),
                what,
                detail: detail.to_string(),
                at: now,
                by: Some(by),
            });
        }
    }

    /// Checkpoints that are durable: the keeper may drop what lies before them.
    pub(super) fn confirm_durable(&mut self) {
        while let Some((ticket, offset)) = self.checkpoints.front().copied() {
            match self.session.wake_when_settled(ticket, &self.waker) {
                Settled::Waiting => break,
                Settled::Committed if self.agent.confirm(offset).is_err() => {
                    // It has ended, or is stuck, which its next order will show.
                    tracing::debug!(run = %self.run, "a keeper takes no confirmation");
                }
                Settled::Committed | Settled::Rejected => {}
            }
            self.checkpoints.pop_front();
        }
    }
}

/// The row of a command.
pub(super) fn recorded(run: RunId, n: u64, write: &Write, purpose: &Purpose, cause: u64) -> Change {
    let request = match purpose {
        Purpose::Answer(resolved) => Some(RequestId(resolved.request_id.clone())),
        _ => None,
    };
    let body = to_bytes(&Body { write: write.clone(), purpose: purpose.clone() });
    Change::CommandRecorded { run, n, body, cause, request, at: Millis::now() }
}
