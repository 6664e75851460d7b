//! From records to the log: fold, encode outside the lock, append, as far as there is room.
//!
//! A group ends where a record ends, and its last frame carries that record's end offset: what a
//! crash cuts off is folded again as a whole. The events of the record that ends the turn go into
//! the closing group, for the same reason.

use std::collections::VecDeque;

use crossbeam_channel::RecvTimeoutError;

use super::saved::{Saved, to_bytes};
use super::turn::{Effect, Staged, gateway_error};
use super::{GROUP_FRAMES_MAX, Held, NATIVE_IDS_MAX, Purpose, Stage, Worker, after};
use crate::limits;
use crate::provider::{Origin, Output, Record, RecordBody};
use crate::registry::session::{Admission, Refused, Session};
use crate::registry::{BegunByAgent, Completed, Composer, NotBegun, end};
use crate::run::change::{Change, Frame};
use crate::run::event::{Complete, Event, Reason};
use crate::run::id::{Millis, NativeId, Seq};

impl Worker<'_> {
    /// Folds what is taken and appends what is folded, as far as the log has room.
    pub(super) fn log_what_is_folded(&mut self, now: Millis) {
        self.full = false;
        loop {
            let before = (self.records.len(), self.staged.len());
            self.fold_taken(now);
            if self.fold.turn().is_on() {
                let held = self.held.as_ref().map_or(0, |held| held.tail);
                if !self.append_staged(self.staged.len() - held) {
                    self.full = true;
                    return;
                }
            }
            match self.held.take() {
                Some(held) => self.turn_ended(&held.end, now),
                None => self.checkpoint_if_due(),
            }
            if self.records.is_empty() || before == (self.records.len(), self.staged.len()) {
                return;
            }
        }
    }

    /// Saves how far the records are folded, if everything before that is in the log.
    pub(super) fn checkpoint(&mut self) {
        let offset = self.fold.folded();
        if offset <= self.checkpointed || !self.staged.is_empty() {
            return;
        }
        let state = to_bytes(&Saved {
            turn: self.fold.turn().clone(),
            next_n: self.next_n,
            launch: self.launch.clone(),
        });
        let agent = self.agent_id;
        let saved = Change::Checkpoint { agent, offset, state, at: Millis::now() };
        self.checkpoints.push_back((self.session.note(saved), offset));
        self.checkpointed = offset;
    }

    fn checkpoint_if_due(&mut self) {
        if self.fold.folded() - self.checkpointed >= limits::CHECKPOINT_BYTES
            && !self.fold.is_catching_up()
        {
            self.checkpoint();
        }
    }

    /// Folds records until there is enough for a group, or the turn is over.
    fn fold_taken(&mut self, now: Millis) {
        let before = self.staged.len();
        while self.held.is_none()
            && self.staged.len() < GROUP_FRAMES_MAX
            && !matches!(self.stage, Stage::Clearing { .. })
        {
            let Some((record, offset)) = self.records.pop_front() else { break };
            match self.stage {
                Stage::Lingering { .. } | Stage::Ending => self.fold.read_late(&record, offset),
                _ => self.fold(&record, offset, now),
            }
        }
        if self.staged.len() > before {
            self.quiet_at = after(limits::QUIET_MS);
        }
    }

    fn fold(&mut self, record: &Record, offset: u64, now: Millis) {
        if matches!(self.stage, Stage::Idle { .. }) {
            self.refresh_session();
        }
        if let RecordBody::In { n, .. } = record.body {
            self.written(n, now);
        }
        let before = self.staged.len();
        let outputs = self.fold.read(record, offset);
        if !self.fold.turn().is_on() && !self.fold.is_known() && begins(&outputs) {
            self.begin_own_run(now);
        }
        let effects = self.fold.stage(record, outputs, &mut self.staged);
        let mut over = None;
        for effect in effects {
            match effect {
                Effect::Reply(write) => {
                    self.record(write, Purpose::Reply, offset);
                }
                Effect::Native(id) => self.learn_native(&id, record.at, now),
                Effect::TurnEnded(ending) => over = Some(ending.complete(0)),
                Effect::Exited(exit) if over.is_none() && self.unsent_prompt().is_none() => {
                    over = Some(self.exited(exit));
                }
                Effect::Exited(_) => {}
            }
        }
        self.say_when_caught_up();
        let tail = self.staged.len().saturating_sub(before);
        self.held = over.filter(|_| self.fold.turn().is_on()).map(|end| Held { end, tail });
    }

    fn say_when_caught_up(&mut self) {
        let Some(records) = &mut self.recovering else { return };
        *records += 1;
        if self.fold.is_catching_up() {
            return;
        }
        tracing::info!(run = %self.run, records, "an agent's records are folded up to the present");
        self.recovering = None;
        // A record that is not known may have asked just now, and nobody could answer yet.
        if self.fold.is_known() {
            self.forget_answered();
        }
    }

    /// What was answered before the restart does not wait any more.
    pub(super) fn forget_answered(&mut self) {
        let session = &self.session;
        self.fold.turn_mut().keep_open(|request| session.is_open(request));
    }

    /// The agent goes on by itself, a background task's result say: that is a run of its own,
    /// unless a prompt's began at the same time.
    fn begin_own_run(&mut self, now: Millis) {
        if !self.try_begin_own_run(now) && !self.fold.turn().is_on() {
            // The prompt's run ended before it came here.
            self.try_begin_own_run(now);
        }
    }

    /// `false`: a prompt's run was on, and was waited for.
    fn try_begin_own_run(&mut self, now: Millis) -> bool {
        match self.seat.registry.begin_agent_run(self.seat.session, self.agent_id, now) {
            Ok(BegunByAgent { session, run, ordinal }) => {
                self.session = session;
                self.enter(run, Some(ordinal), Origin::Agent);
            }
            Err(NotBegun::Busy) if !self.gone => {
                self.await_prompt(now);
                return false;
            }
            // Its events are counted, and stay in the journal.
            Err(why) => tracing::warn!(?why, "what an agent does by itself is not logged"),
        }
        true
    }

    /// A prompt's run has begun and is about to be given to us.
    fn await_prompt(&mut self, now: Millis) {
        let until = after(limits::RUN_HANDOVER_MS);
        while !self.fold.turn().is_on() {
            self.drop_what_ended(now);
            self.take_queued();
            if self.fold.turn().is_on() || !matches!(self.stage, Stage::Idle { .. }) {
                return;
            }
            let look = after(limits::LOOK_AGAIN_MS).min(until);
            match self.seat.inbox.recv_deadline(look) {
                Ok(next) => self.hear_next(Some(next)),
                Err(RecvTimeoutError::Timeout) if look < until => {
                    if self.session.running().is_none() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn learn_native(&mut self, id: &NativeId, at: Millis, now: Millis) {
        if self.session.row().native_id.as_ref() == Some(id) || self.native_ids > NATIVE_IDS_MAX {
            return;
        }
        self.native_ids += 1;
        if self.native_ids > NATIVE_IDS_MAX {
            let error = "The agent names ever new ids for its conversation; no more are noted.";
            return self.stage_error(at, error);
        }
        match self.seat.registry.learn_native(&self.session, id, now) {
            Ok(true) => {}
            Ok(false) => self.stage_error(
                at,
                "Another session has this conversation of the provider's already; \
                 this one goes on without its id and cannot be resumed by it.",
            ),
            Err(error) => self.stage_error(at, &error.message),
        }
    }

    fn stage_error(&mut self, at: Millis, content: &str) {
        // It belongs to the record that is being folded, and stands last in it.
        let end = Some(self.fold.folded());
        if let Some(last) = self.staged.back_mut().filter(|last| last.record_end == end) {
            last.record_end = None;
        }
        let error = Staged::new(at, gateway_error(content), None);
        self.staged.push_back(Staged { record_end: end, ..error });
    }

    /// Appends the first `count` staged events in groups; `false` if the log is full, with the
    /// waker armed.
    fn append_staged(&mut self, count: usize) -> bool {
        let mut left = count;
        let mut armed = false;
        while left > 0 && !self.is_over() {
            let Some(seq) = self.session.next_seq(self.run) else {
                self.staged.clear();
                return true;
            };
            let (group, taken) = self.group(seq, left);
            match self.session.append(self.run, group, Admission::Agent) {
                Ok(()) => {
                    self.staged.drain(..taken);
                    left -= taken;
                    armed = false;
                }
                Err(Refused::Moved(_)) => {}
                Err(Refused::Ended) => {
                    self.staged.clear();
                    return true;
                }
                Err(Refused::Full) if armed => return false,
                Err(Refused::Full) => {
                    // Arm first, then try once more: room may have come in between.
                    self.seat.registry.budget().starve(self.session.id(), &self.waker);
                    armed = true;
                }
            }
        }
        true
    }

    /// The next group of staged events, whole records of them, and how many it takes.
    fn group(&mut self, seq: Seq, left: usize) -> (Vec<Frame>, usize) {
        let frames_max =
            GROUP_FRAMES_MAX.min(self.seat.registry.limits().ring_events_max / 4).max(1);
        let (mut taken, mut bytes) = (0, 0);
        for staged in self.staged.iter().take(left) {
            taken += 1;
            bytes += staged.weight();
            let enough = taken >= frames_max || bytes >= limits::PULL_BYTES;
            if enough && staged.record_end.is_some() {
                break;
            }
        }
        let group = compose(&self.session, &mut self.composer, &self.staged, taken, seq);
        (group, taken)
    }

    /// The agent said that the turn is over, or its process has ended.
    fn turn_ended(&mut self, over: &Complete, now: Millis) {
        match self.stage {
            Stage::Running => {
                let (session, staged, composer) = (&self.session, &self.staged, &mut self.composer);
                let offset = self.fold.folded();
                let completed = session.complete_after(self.run, over, now, offset, |seq| {
                    compose(session, composer, staged, staged.len(), seq)
                });
                match completed {
                    Completed::Aborting => self.end_crosses_abort(),
                    Completed::Won | Completed::Already => self.run_ended(),
                }
            }
            // The agent's terminal only confirms; it is held until nothing is left.
            Stage::Interrupting { .. } => {
                self.append_now();
                self.clear_for_abort();
            }
            Stage::Stopping { .. } | Stage::Clearing { .. } => self.append_now(),
            Stage::Lingering { .. } | Stage::Ending | Stage::Idle { .. } => self.staged.clear(),
        }
    }

    /// An abort was asked for while the agent's end was on its way: that end only confirms, and
    /// the run's waits until nothing is left (I21).
    pub(super) fn end_crosses_abort(&mut self) {
        self.held = None;
        self.append_now();
        self.clear_for_abort();
    }

    /// Appends all that is staged, room or not: a last record's events before an abort's end.
    pub(super) fn append_now(&mut self) {
        while !self.staged.is_empty() {
            let Some(seq) = self.session.next_seq(self.run) else { break };
            let count = self.staged.len();
            let group = compose(&self.session, &mut self.composer, &self.staged, count, seq);
            match self.session.append(self.run, group, Admission::Gateway) {
                Ok(()) | Err(Refused::Ended) => break,
                Err(Refused::Moved(_) | Refused::Full) => {}
            }
        }
        self.staged.clear();
    }

    /// Everything that the agent said is folded and no end was among it.
    pub(super) fn lost_without_end(&mut self, now: Millis) {
        if let Some((n, job)) = self.unsent_prompt() {
            return self.hand_on(n, job);
        }
        let error = self.fold.turn().stderr_tail().unwrap_or_else(|| {
            "The agent's keeper was lost, and the agent with it: what they left running was \
             stopped. Send the prompt again to go on."
                .to_owned()
        });
        let end = end(Reason::AgentLost, None, Some(error));
        self.session.complete(self.run, &end, now);
    }
}

/// Whether a turn begins among these, or the agent asks somebody something, which needs a run.
fn begins(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| {
        matches!(output, Output::TurnStarted(_) | Output::Event(Event::PermissionRequest(_)))
    })
}

/// The frames of the first `count` staged events, from `seq` on.
fn compose(
    session: &Session,
    composer: &mut Composer,
    staged: &VecDeque<Staged>,
    count: usize,
    seq: Seq,
) -> Vec<Frame> {
    let (mut group, mut seq) = (Vec::with_capacity(count), seq);
    for event in staged.iter().take(count) {
        let settled = event.if_open.as_ref().is_some_and(|request| !session.is_open(request));
        if !settled {
            group.push(composer.frame(seq, event.at, &event.event, event.mark.clone()));
            seq = seq.next();
        }
        if let (Some(last), Some(offset)) = (group.last_mut(), event.record_end) {
            last.offset = offset;
        }
    }
    group
}
