//! From records to the log: fold, encode outside the lock, append, as far as there is room.
//!
//! A group ends where a record ends, and its last frame carries that record's end offset: what a
//! crash cuts off is folded again as a whole. The events of the record that ends the turn go into
//! the closing group, for the same reason.

use std::collections::VecDeque;

use super::ending::exited;
use super::turn::{Effect, Staged, gateway_error};
use super::{GROUP_FRAMES_MAX, Held, NATIVE_IDS_MAX, Purpose, Stage, Worker, after};
use crate::limits;
use crate::provider::{Record, RecordBody};
use crate::registry::session::{Admission, Refused, Session};
use crate::registry::{Completed, Composer, end};
use crate::run::change::Frame;
use crate::run::event::{Complete, Reason};
use crate::run::id::{Millis, NativeId, Seq};

impl Worker {
    /// Folds what is taken and appends what is folded, as far as the log has room.
    pub(super) fn log_what_is_folded(&mut self, now: Millis) {
        self.full = false;
        loop {
            self.fold_taken(now);
            let held = self.held.as_ref().map_or(0, |held| held.tail);
            if !self.append_staged(self.staged.len() - held) {
                self.full = true;
                return;
            }
            if let Some(held) = self.held.take() {
                self.turn_ended(&held.end, now);
            }
            if self.records.is_empty() && self.staged.is_empty() {
                return;
            }
        }
    }

    /// Folds records until there is enough for a group, or the turn is over.
    fn fold_taken(&mut self, now: Millis) {
        let before = self.staged.len();
        while self.held.is_none() && self.staged.len() < GROUP_FRAMES_MAX {
            let Some((record, offset)) = self.records.pop_front() else { break };
            if self.is_over() {
                self.turn.fold_late(&record);
            } else {
                self.fold(&record, offset, now);
            }
        }
        if self.staged.len() > before {
            self.quiet_at = after(limits::QUIET_MS);
        }
    }

    fn fold(&mut self, record: &Record, offset: u64, now: Millis) {
        if let RecordBody::In { n, .. } = record.body {
            self.written(n, now);
        }
        let before = self.staged.len();
        let effects = self.turn.fold(record, &mut self.staged);
        let mut over = None;
        for effect in effects {
            match effect {
                Effect::Reply(write) => self.record(write, Purpose::Reply),
                Effect::Native(id) => self.learn_native(&id, record.at, now),
                Effect::TurnEnded(ending) => over = Some(ending.complete(0)),
                Effect::Exited(exit) if over.is_none() => {
                    over = Some(exited(exit, self.turn.stderr_tail()));
                }
                Effect::Exited(_) => {}
            }
        }
        if self.staged.len() > before
            && let Some(last) = self.staged.back_mut()
        {
            last.record_end = Some(offset);
        }
        self.offset = offset;
        self.held = over.map(|end| Held { end, tail: self.staged.len() - before });
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
        match self.registry.learn_native(&self.session, id, now) {
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
        self.staged.push_back(Staged::new(at, gateway_error(content), None));
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
                    self.registry.budget().starve(self.session.id(), &self.waker);
                    armed = true;
                }
            }
        }
        true
    }

    /// The next group of staged events, whole records of them, and how many it takes.
    fn group(&mut self, seq: Seq, left: usize) -> (Vec<Frame>, usize) {
        let frames_max = GROUP_FRAMES_MAX.min(self.registry.limits().ring_events_max / 4).max(1);
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
                let completed = session.complete_after(self.run, over, now, self.offset, |seq| {
                    compose(session, composer, staged, staged.len(), seq)
                });
                match completed {
                    Completed::Aborting => self.end_crosses_abort(),
                    Completed::Won | Completed::Already => self.end_process(),
                }
            }
            // The agent's terminal only confirms; it is held until nothing is left.
            Stage::Interrupting { .. } | Stage::Stopping { .. } => {
                self.append_now();
                if matches!(self.stage, Stage::Interrupting { .. }) {
                    self.stop_for_abort(true);
                }
            }
            Stage::Lingering { .. } | Stage::Ending => self.staged.clear(),
        }
    }

    /// An abort was asked for while the agent's end was on its way: that end only confirms, and
    /// the run's waits until nothing is left (I21).
    pub(super) fn end_crosses_abort(&mut self) {
        self.held = None;
        self.append_now();
        self.stop_for_abort(true);
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
    pub(super) fn lost_without_end(&self, now: Millis) {
        let end = end(Reason::AgentLost, None, self.turn.stderr_tail());
        self.session.complete(self.run, &end, now);
    }
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
