//! The machine's disk: rounds that go well and rounds that fail, crashes, what leaves memory and
//! what leaves the disk (I7, I8, I9, I13, I18).

use super::{Machine, RETENTION_MS};
use crate::oracle::fault::Fault;
use crate::oracle::model::News;
use crate::registry::{Completed, Round, StoreState, end};
use crate::run::event::Reason;
use crate::run::id::{Millis, Position};

impl Machine {
    /// The store commits all there is.
    pub(super) fn round(&mut self) {
        let behind: Vec<_> = self.behind();
        let round = self.persist.round(Millis(self.now));
        if behind.is_empty() {
            assert_eq!(round, Round::Idle, "there was nothing to commit");
        } else {
            assert_eq!(round, Round::Worked, "the disk is good");
            self.model.store_bad = false;
        }
        for index in behind {
            self.commit(index);
        }
        self.after_round();
    }

    /// The store commits in a round in which the disk fails in one of a few ways.
    pub(super) fn fail(&mut self, how: u8, which: u8) {
        let behind = self.behind();
        if behind.is_empty() {
            return;
        }
        let place = usize::from(which) % behind.len();
        let target = behind[place];
        let constraint = Some(Fault::Constraint);
        let passing = || std::iter::repeat_n(None, place);
        match how % 6 {
            0 => {
                self.disk.fail_next([Some(Fault::Retry)]);
                self.fails();
            }
            1 => {
                self.disk.fail_next([constraint, Some(Fault::Retry)]);
                self.fails();
            }
            2 => {
                self.disk.fail_next([Some(Fault::Fatal)]);
                let round = self.persist.round(Millis(self.now));
                assert!(matches!(round, Round::Fatal(_)), "I18: {round:?}");
                self.crash();
            }
            // Only a run that is on disk has an end to refuse.
            5 if self.model.sessions[target].durable.running().is_some() => {
                let faults = [constraint].into_iter().chain(passing());
                self.disk.fail_next(faults.chain([constraint, constraint]));
                self.rejects(&behind, target, false);
            }
            _ => {
                self.disk.fail_next([constraint].into_iter().chain(passing()).chain([constraint]));
                self.rejects(&behind, target, true);
            }
        }
        self.disk.heal();
        self.after_round();
    }

    /// Nothing is committed, nothing is lost.
    fn fails(&mut self) {
        let round = self.persist.round(Millis(self.now));
        assert_eq!(round, Round::Failing("FULL"), "I18: the disk is full");
        assert_eq!(self.registry.store_state(), StoreState::Bad("FULL"), "I18: and all hear it");
        self.model.store_bad = true;
    }

    /// A guard refuses the rows of `target`; of the end of its run as well, unless `end_passes`.
    fn rejects(&mut self, behind: &[usize], target: usize, end_passes: bool) {
        let round = self.persist.round(Millis(self.now));
        assert_eq!(round, Round::Worked, "the others go on");
        self.model.store_bad = false;
        self.listener.lenient = true;
        for index in behind {
            if *index != target {
                self.commit(*index);
            }
        }
        for ticket in self.tickets.iter_mut().filter(|ticket| ticket.session == target) {
            ticket.refused |= ticket.version > self.model.sessions[target].durable_version;
        }
        let session = &mut self.model.sessions[target];
        let accepted: Vec<_> = session.now.runs.iter().map(|run| run.id).collect();
        let deleted = !session.now.exists;
        session.roll_back();
        let open = session.now.running().map(|run| run.id);
        let kept: Vec<_> = session.now.runs.iter().map(|run| run.id).collect();
        {
            let mut permits = self.crew.0.lock();
            for run in accepted.iter().filter(|run| !kept.contains(run)) {
                permits.remove(run);
            }
        }
        if open.is_some() && end_passes {
            session.now.end_running(false, self.now);
            session.note(News::UnlessArchived);
            if deleted {
                self.cut_off(target);
            }
            self.commit(target);
            self.crew.0.lock().retain(|run, _| Some(*run) != open);
        } else {
            let id = session.id;
            assert!(self.registry.in_memory(id).is_none(), "what cannot be kept leaves memory");
            self.cut_off(target);
        }
    }

    /// The process dies; the next one finds what is on disk, ends what was running (I9) and only
    /// then serves.
    pub(super) fn crash(&mut self) {
        self.disk.heal();
        self.crew.0.lock().clear();
        let (registry, persist) = Self::boot(&self.disk, &self.crew);
        (self.registry, self.persist) = (registry, persist);
        self.tickets.clear();
        self.workers.clear();
        self.starving = None;
        self.model.store_bad = false;
        self.drop_connections();
        for session in &mut self.model.sessions {
            session.roll_back();
        }
        for (id, run) in self.disk.open_runs() {
            let session = self.expect_session(id);
            let lost = end(Reason::AgentLost, None, None);
            let done = session.complete(run, &lost, Millis(self.now));
            assert_eq!(done, Completed::Won, "I9: it had no end");
            let model = self.model.sessions.iter_mut().find(|model| model.id == id);
            let Some(model) = model else { panic!("a session that nobody made") };
            assert!(model.now.running().is_some(), "I8: it is on disk as running");
            model.now.end_running(false, self.now);
            model.note(News::UnlessArchived);
        }
        let still = self.model.sessions.iter().any(|model| model.now.running().is_some());
        assert!(!still, "I9: after a restart nothing runs");
        self.round();
        self.check_disk();
    }

    /// Time passes; what is past its own retention leaves memory, nothing else does (I13).
    pub(super) fn pass(&mut self, ms: i64) {
        self.now += ms;
        let before: Vec<_> = self.registry.loaded();
        let evicted: Vec<Position> = before.iter().map(|session| session.look().evicted).collect();
        let next = self.registry.evict(Millis(self.now));
        assert!(next.is_none_or(|next| next > Millis(self.now)), "a timer is set for later");
        for (session, before) in before.iter().zip(evicted) {
            let Some(index) = self.model.sessions.iter().position(|model| model.id == session.id())
            else {
                panic!("a session that nobody made");
            };
            let model = &self.model.sessions[index];
            let after = session.look().evicted;
            let mut due = Position::START;
            for (at, run) in model.durable.runs.iter().zip(1_u32..).map(|(run, at)| (at, run)) {
                match run.ended_at {
                    Some(ended) if ended + RETENTION_MS <= self.now => {
                        due = Position::new(crate::run::id::Ordinal(at), run.last_seq());
                    }
                    _ => break,
                }
            }
            // A deleted one is on its way out.
            if model.now.exists {
                assert_eq!(after, before.max(due), "I13: what is due leaves, nothing else");
            }
            let stays = self.registry.in_memory(session.id()).is_some();
            let needed = model.now.running().is_some()
                || model.now.ready().is_some()
                || model.is_behind()
                || self.is_watched(index);
            assert!(stays || !needed, "I13: who is watched, behind or running stays");
        }
    }

    /// Memory is wanted back: only what is durable can go.
    pub(super) fn trim(&mut self, session: u8, bytes: usize) {
        let Some(index) = self.pick(session) else { return };
        let Some(session) = self.registry.in_memory(self.model.sessions[index].id) else { return };
        let before = session.log_weight();
        let freed = session.trim(bytes, false);
        let after = session.log_weight();
        assert_eq!(before.1 - after.1, freed, "I7: what was freed");
        assert!(after.0 >= self.undurable_frames(index), "I8: what is not durable stays");
        let nothing_left = after.0 == self.undurable_frames(index);
        assert!(freed >= bytes || nothing_left, "I7: as much as can go");
    }

    /// Retention takes the oldest completed run of a session from disk.
    pub(super) fn prune(&mut self, session: u8) {
        let Some(index) = self.pick(session) else { return };
        let model = &mut self.model.sessions[index];
        if let Some(ordinal) = self.disk.prune_oldest(model.id) {
            model.pruned.insert(ordinal.0);
        }
    }

    fn behind(&self) -> Vec<usize> {
        let all = self.model.sessions.iter().enumerate();
        all.filter(|(_, session)| session.is_behind()).map(|(index, _)| index).collect()
    }

    fn commit(&mut self, index: usize) {
        let session = &mut self.model.sessions[index];
        let announced = session.commit();
        let (id, gone) = (session.id, !session.durable.exists);
        if announced {
            self.listener.expected.insert(id);
        }
        if gone {
            self.cut_off(index);
            assert!(self.registry.in_memory(id).is_none(), "a deleted session leaves memory");
        }
    }

    /// Whoever was refused room looks again, and the total is within its bound or can't be.
    fn after_round(&mut self) {
        if let Some(starving) = self.starving.take() {
            assert!(starving.take().other, "I4c: who starves is fed after each round");
        }
        let excess = self.registry.budget().excess();
        let held: usize = (0..self.model.sessions.len()).map(|at| self.undurable_frames(at)).sum();
        assert!(excess == 0 || held > 0, "I7: what is durable and too much leaves memory");
    }

    /// The disk and the reference say the same.
    pub(super) fn check_disk(&self) {
        for model in &self.model.sessions {
            let runs = self.disk.runs(model.id);
            assert_eq!(runs.len(), model.durable.runs.len(), "I8: the runs on disk");
            let waiting = model.durable.queue.iter().map(|one| format!("prompt {}", one.content));
            assert_eq!(self.disk.queued(model.id), waiting.collect::<Vec<_>>(), "I19: what waits");
            for (stored, run) in runs.iter().zip(&model.durable.runs) {
                let said: Vec<_> =
                    stored.frames.iter().map(|(_, text)| super::label(text)).collect();
                assert_eq!(said, run.said, "I8: what is on disk");
                assert_eq!(stored.end.is_some(), run.ended_at.is_some(), "I1");
            }
        }
    }
}
