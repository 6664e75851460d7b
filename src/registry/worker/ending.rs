//! How a run and its process come to their ends.
//!
//! A natural end waits for all that the agent said before it; an abort's end waits until nothing
//! that the agent started is running (I21). Whoever ends the run, `Session::complete` decides (I1).

use crossbeam_channel::{never, select};

use super::{Go, Stage, Worker, after};
use crate::keeper::{self, Stopped};
use crate::limits;
use crate::provider::{Decision, Exit};
use crate::registry::end;
use crate::run::event::{Complete, Reason};
use crate::run::id::{AgentId, Millis};

impl Worker<'_> {
    /// The run has its end: a warm process waits for the next one, another has a while to end by
    /// itself. What was still on its way to the log has no place there any more.
    pub(super) fn run_ended(&mut self) {
        self.staged.clear();
        self.held = None;
        self.fold.turn_mut().end();
        let serves_one = self.fold.turn().adapter().ends_stdin_with_turn();
        // One that is gone rests, too: what it still said is yet to be told.
        let ends = serves_one || (!self.gone && (self.close_asked || self.stuck_at.is_some()));
        self.stage = if ends {
            Stage::Lingering { until: after(limits::LINGER_MS) }
        } else {
            self.seat.idle();
            Stage::Idle { until: after(self.seat.registry.limits().agent_idle_ms) }
        };
        self.checkpoint();
        if ends && self.agent.close_stdin().is_err() {
            self.takes_no_commands();
        }
    }

    /// No run is on, and the process is to end now.
    pub(super) fn end_now(&mut self) {
        self.seat.busy();
        self.stage = Stage::Ending;
        self.stop();
    }

    /// The agent has confirmed its interrupt. A warm one stays, once what its turn started is
    /// gone; if nobody can say what that is, all of it goes.
    pub(super) fn clear_for_abort(&mut self) {
        let warm = !self.fold.turn().adapter().ends_stdin_with_turn() && !self.close_asked;
        match self.prompt_n.filter(|_| warm) {
            Some(n) if self.agent.sweep(n).is_ok() => {
                self.stage = Stage::Clearing { until: after(limits::SWEEP_MS) };
            }
            _ => self.stop_for_abort(true),
        }
    }

    /// What the turn started is gone. In the first turn of a process its own helpers (MCP servers)
    /// were among it: without them it is of no use.
    pub(super) fn swept(&mut self, killed: u32, left: u32, now: Millis) {
        if !matches!(self.stage, Stage::Clearing { .. }) {
            return;
        }
        if left > 0 || (killed > 0 && self.first_turn) {
            return self.stop_for_abort(true);
        }
        let end = end(Reason::Aborted, Some(0), None);
        self.session.complete(self.run, &end, now);
        self.run_ended();
    }

    /// Nothing of the agent is running any more. A natural end waits for the records before it;
    /// an abort's end waits for this only (I21).
    pub(super) fn nothing_left(&mut self, stopped: &Stopped, now: Millis) -> bool {
        if stopped.left > 0 {
            tracing::error!(run = %self.run, left = stopped.left, "processes cannot be killed");
        }
        self.stuck_at = None;
        self.gone = true;
        match self.stage {
            Stage::Interrupting { .. } | Stage::Stopping { .. } | Stage::Clearing { .. } => {
                let confirmed = matches!(
                    self.stage,
                    Stage::Stopping { confirmed: true } | Stage::Clearing { .. }
                );
                // Any rung of the ladder, the close of its stdin too, is more than the interrupt.
                let exit_code = i64::from(!confirmed && stopped.step.is_some());
                self.append_now();
                let end = end(Reason::Aborted, Some(exit_code), None);
                self.session.complete(self.run, &end, now);
            }
            Stage::Running | Stage::Idle { .. } => self.take_the_rest(),
            Stage::Lingering { .. } | Stage::Ending => {}
        }
        false
    }

    /// The agent will never be told what to do.
    pub(super) fn prompt_refused(&self, now: Millis) {
        let error = format!(
            "The prompt is longer than an agent can be given: at most {} bytes.",
            limits::STDIN_BYTES_MAX
        );
        let end = end(Reason::Failed, None, Some(error));
        // Refused: it has its end, or an abort was asked for, which stops it as well.
        self.session.complete_after(self.run, &end, now, self.fold.folded(), |_| Vec::new());
    }

    /// Nothing of the agent is left and nobody asked for that: takes all that it said before its
    /// end, which is among it unless the keeper was lost.
    fn take_the_rest(&mut self) {
        loop {
            let now = Millis::now();
            if self.obey(now) == Go::LetGo {
                return;
            }
            self.log_what_is_folded(now);
            match self.stage {
                Stage::Running if self.said_all && !self.full => {
                    // Its stream may have ended before its keeper was missed.
                    return self.lost_without_end(now);
                }
                Stage::Running => {}
                Stage::Idle { .. } if !self.said_all => {}
                Stage::Idle { .. } | Stage::Lingering { .. } | Stage::Ending => return,
                Stage::Interrupting { .. } | Stage::Clearing { .. } | Stage::Stopping { .. } => {
                    // An abort came meanwhile, and nothing is left to stop.
                    self.append_now();
                    let end = end(Reason::Aborted, Some(0), None);
                    self.session.complete(self.run, &end, now);
                    return;
                }
            }
            let nothing = never();
            let lines = if self.full { &nothing } else { &self.agent.lines };
            select! {
                recv(self.wakes) -> _ => {
                    self.waker.take();
                }
                recv(lines) -> batch => match batch {
                    Ok(batch) => self.take(batch),
                    Err(_) => self.lines_ended(),
                },
            }
        }
    }

    /// The keeper died or is stuck: what it left is found by its tag and killed.
    pub(super) fn keeper_lost(&mut self, why: &str) -> bool {
        if self.agent.is_left() {
            tracing::info!(run = %self.run, "a keeper had ended; its journal says how it went");
        } else {
            tracing::error!(run = %self.run, why);
        }
        self.agent.kill();
        sweep(self.agent_id);
        self.stuck_at = None;
        self.gone = true;
        match self.stage {
            Stage::Interrupting { .. } | Stage::Stopping { .. } | Stage::Clearing { .. } => {
                self.append_now();
                let end = end(Reason::Aborted, Some(1), Some(why.to_owned()));
                self.session.complete(self.run, &end, Millis::now());
            }
            Stage::Running | Stage::Idle { .. } => self.take_the_rest(),
            Stage::Lingering { .. } | Stage::Ending => {}
        }
        false
    }

    /// The process ended without saying that the turn is over.
    pub(super) fn exited(&self, exit: Exit) -> Complete {
        let (exit_code, how) = match exit {
            Exit::Code(code) => (Some(i64::from(code)), format!("exited with code {code}")),
            Exit::Signal(signal) => (None, format!("was killed by signal {signal}")),
        };
        let turn = self.fold.turn();
        let error = match turn.stopped_by_keeper() {
            Some(Decision::OrphanGraceOver) => {
                "No gateway came back within `timeouts.orphan_grace`, so the agent's keeper \
                 stopped it."
                    .to_owned()
            }
            Some(Decision::Signalled) => {
                "The agent's keeper was told by a signal to stop it.".to_owned()
            }
            Some(Decision::StopAsked) | None => turn.stderr_tail().unwrap_or_else(|| {
                format!("The agent {how} before it said that the turn is over.")
            }),
        };
        end(Reason::AgentExited, exit_code, Some(error))
    }
}

/// Kills what an agent left behind.
pub(in crate::registry) fn sweep(agent: AgentId) {
    match keeper::sweep_agent(agent) {
        Ok(swept) if swept.left.is_empty() => {}
        Ok(swept) => tracing::error!(?swept, "an agent's processes cannot be killed"),
        Err(error) => tracing::error!(%error, "an agent's processes cannot be looked for"),
    }
}
