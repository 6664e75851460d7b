//! Appending to a run and ending it: one compare under the session's lock, whoever calls (I1, I2).
//!
//! Frames are encoded outside the lock; a refused append says what comes next, and its caller
//! encodes again.

use super::{Admission, Answered, Completed, Inner, Refused, Session};
use crate::registry::budget::Budget;
use crate::registry::compose::Composer;
use crate::run::change::{Frame, Mark};
use crate::run::event::{AnswerState, By, Complete, Decision, Event, PermissionResolved};
use crate::run::id::{Millis, Ordinal, Position, RequestId, RunId, Seq};
use crate::run::state::{AnswerRequest, Closing, PermissionState};

impl Session {
    /// Appends a group of run `run` whose first seq is the run's next one (I2).
    pub fn append(
        &self,
        run: RunId,
        group: Vec<Frame>,
        admission: Admission,
    ) -> Result<(), Refused> {
        self.append_with(run, group, admission, |_| ())
    }

    fn append_with(
        &self,
        run: RunId,
        group: Vec<Frame>,
        admission: Admission,
        and: impl FnOnce(&mut Inner),
    ) -> Result<(), Refused> {
        let (wakes, ready) = {
            let mut inner = self.inner.lock();
            inner.append(run, group, admission, &self.budget)?;
            and(&mut inner);
            let mut wakes = inner.after_append();
            if inner.runs.running().is_none() {
                // What was not handed out was closed as undeliverable. The worker learns that its
                // run has ended: it need not have been the one who ended it.
                inner.answers.clear();
                if let Some((_, worker)) = inner.worker.as_ref().filter(|(owner, _)| *owner == run)
                {
                    wakes.other(worker.clone());
                }
            }
            (wakes, inner.is_ready())
        };
        wakes.wake();
        self.budget.wake_store(self.id);
        if ready {
            self.budget.wake_queue(self.id);
        }
        Ok(())
    }

    /// The run's next seq, if it has no `complete`.
    #[must_use]
    pub fn next_seq(&self, run: RunId) -> Option<Seq> {
        let inner = self.inner.lock();
        inner.on(run).map(|run| run.last_seq.next())
    }

    /// What is needed to end a run, if it is running.
    #[must_use]
    pub fn closing(&self, run: RunId) -> Option<Closing> {
        let inner = self.inner.lock();
        inner.on(run)?;
        inner.runs.closing(run)
    }

    /// Ends a run as `end` says, or as an abort if one was asked for (I1: one compare, whoever
    /// calls).
    pub fn complete(&self, run: RunId, end: &Complete, now: Millis) -> Completed {
        loop {
            let Some(closing) = self.closing(run) else { return Completed::Already };
            if let Some(completed) = self.try_complete(closing, end, now, 0, |_| Vec::new()) {
                return completed;
            }
        }
    }

    /// Ends a run by the agent's own word, after last frames that go into the same group: `last`
    /// makes them, from the seq that it is given on. `offset` is the end of the agent record that
    /// all of it is from. Nothing is appended if somebody asked for an abort: that end has to wait
    /// until nothing of the agent is left (I21).
    pub fn complete_after(
        &self,
        run: RunId,
        end: &Complete,
        now: Millis,
        offset: u64,
        mut last: impl FnMut(Seq) -> Vec<Frame>,
    ) -> Completed {
        loop {
            let Some(closing) = self.closing(run) else { return Completed::Already };
            if closing.abort.is_some() {
                return Completed::Aborting;
            }
            if let Some(completed) = self.try_complete(closing, end, now, offset, &mut last) {
                return completed;
            }
        }
    }

    /// Ends a run that the store refused. Its worker may not append meanwhile: what it still has to
    /// say would be refused again, and the end with it.
    pub fn complete_rejected(&self, run: RunId, end: &Complete, now: Millis) -> Completed {
        let closing = {
            let inner = self.inner.lock();
            inner.not_ended(run).and_then(|run| inner.runs.closing(run.id))
        };
        let Some(closing) = closing else { return Completed::Already };
        let provider = self.row().provider;
        let group = self.composer(run, closing.ordinal, &provider).closing(&closing, end, now);
        match self.append(run, group, Admission::Rejected) {
            Ok(()) => Completed::Won,
            Err(Refused::Ended) => Completed::Already,
            // It was not marked: others may append.
            Err(Refused::Moved(_) | Refused::Full) => self.complete(run, end, now),
        }
    }

    /// `None`: the snapshot is not true any more.
    fn try_complete(
        &self,
        mut closing: Closing,
        end: &Complete,
        now: Millis,
        offset: u64,
        last: impl FnOnce(Seq) -> Vec<Frame>,
    ) -> Option<Completed> {
        let run = closing.run;
        let provider = self.row().provider;
        let mut composer = self.composer(run, closing.ordinal, &provider);
        let mut group = last(closing.next);
        closing.follow(&group);
        group.append(&mut composer.closing(&closing, end, now));
        if let Some(complete) = group.last_mut() {
            complete.offset = offset;
        }
        let admission = Admission::Closing { aborting: closing.abort.is_some() };
        match self.append(run, group, admission) {
            Ok(()) => Some(Completed::Won),
            Err(Refused::Ended) => Some(Completed::Already),
            Err(Refused::Moved(_) | Refused::Full) => None,
        }
    }

    /// Appends one event of the gateway's, whatever else is appended meanwhile. `Err` once the run
    /// has its `complete`.
    pub fn record(
        &self,
        run: RunId,
        event: &Event,
        mark: Option<&Mark>,
        now: Millis,
    ) -> Result<(), Refused> {
        loop {
            let (seq, ordinal) = self.place(run).ok_or(Refused::Ended)?;
            let provider = self.row().provider;
            let frame =
                self.composer(run, ordinal, &provider).frame(seq, now, event, mark.cloned());
            match self.append(run, vec![frame], Admission::Gateway) {
                Err(Refused::Moved(_) | Refused::Full) => {}
                done => return done,
            }
        }
    }

    /// Answers a permission request, if nobody has (I20: compare and set).
    pub fn answer(
        &self,
        request: &RequestId,
        answer: &AnswerRequest,
        by: &By,
        now: Millis,
    ) -> Answered {
        loop {
            let (run, seq, ordinal, provider) = {
                let inner = self.inner.lock();
                let Some(permission) = inner.runs.permission(request) else {
                    return Answered::Unknown;
                };
                let run = inner.runs.at(permission.opened.ordinal);
                let run = run.and_then(|run| inner.on(run.id));
                let (PermissionState::Open, Some(run)) = (&permission.state, run) else {
                    return Answered::Already;
                };
                (run.id, run.last_seq.next(), run.ordinal, inner.row.provider.clone())
            };
            let (event, mark) = recorded(request, answer, by);
            let frame = self.composer(run, ordinal, &provider).frame(seq, now, &event, Some(mark));
            let mut ticket = 0;
            let appended = self.append_with(run, vec![frame], Admission::Gateway, |inner| {
                inner.answers.push_back((request.clone(), answer.clone()));
                ticket = inner.log.ticket();
            });
            // Refused: the run has moved on, and perhaps the request with it. Look again.
            if appended.is_ok() {
                self.wake_worker(run);
                return Answered::Recorded { run, ticket };
            }
        }
    }

    fn composer(&self, run: RunId, ordinal: Ordinal, provider: &str) -> Composer {
        Composer::new(self.id, run, ordinal, provider, self.budget.event_bytes_max())
    }

    fn place(&self, run: RunId) -> Option<(Seq, Ordinal)> {
        let inner = self.inner.lock();
        let run = inner.on(run)?;
        Some((run.last_seq.next(), run.ordinal))
    }

    pub(super) fn wake_worker(&self, run: RunId) {
        let worker = self.inner.lock().worker.clone();
        if let Some((_, waker)) = worker.filter(|(owner, _)| *owner == run) {
            waker.wake_other();
        }
    }
}

impl Inner {
    pub(super) fn append(
        &mut self,
        run: RunId,
        group: Vec<Frame>,
        admission: Admission,
        budget: &Budget,
    ) -> Result<(), Refused> {
        let state = match admission {
            Admission::Rejected => self.not_ended(run),
            _ => self.on(run),
        };
        let Some(state) = state else { return Err(Refused::Ended) };
        let next = state.last_seq.next();
        let Some(first) = group.first() else { return Ok(()) };
        if first.at != Position::new(state.ordinal, next) {
            return Err(Refused::Moved(next));
        }
        match admission {
            Admission::Agent => {
                let bytes = group.iter().map(Frame::weight).sum();
                let before = self.log.bytes();
                let fits = budget.admits(&mut self.log, group.len(), bytes);
                budget.changed(before, self.log.bytes());
                if !fits {
                    return Err(Refused::Full);
                }
            }
            Admission::Gateway => {}
            Admission::Rejected => self.rejected = None,
            Admission::Closing { aborting } => {
                if state.abort().is_some() != aborting {
                    return Err(Refused::Moved(next));
                }
            }
        }
        for frame in &group {
            self.runs.appended(frame);
            if let Some(Mark::Complete(end)) = frame.mark.as_deref()
                && end.complete.aborted
            {
                self.queue.hold();
            }
        }
        let before = self.log.bytes();
        self.log.push(group);
        budget.changed(before, self.log.bytes());
        Ok(())
    }
}

fn recorded(request: &RequestId, answer: &AnswerRequest, by: &By) -> (Event, Mark) {
    let decision = if answer.allow { Decision::Allow } else { Decision::Deny };
    let event = Event::PermissionResolved(PermissionResolved {
        request_id: request.0.clone(),
        decision,
        choice_id: answer.choice_id.clone(),
        state: AnswerState::Recorded,
        by: by.clone(),
        edited: answer.updated_input.is_some(),
        updated_input: answer.updated_input.clone(),
        message: answer.message.clone(),
    });
    let mark = Mark::PermissionAnswered {
        request: request.clone(),
        decision,
        state: AnswerState::Recorded,
        by: by.clone(),
        answer: Some(Box::new(answer.clone())),
    };
    (event, mark)
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::registry::compose::end;
    use crate::registry::session::{Begin, Begun};
    use crate::run::change::SessionRow;
    use crate::run::event::{ByKind, Reason};
    use crate::run::id::{AgentId, SessionId};
    use crate::run::wake::{Bell, Waker};
    use crate::sync::Arc;

    struct Deaf;

    impl Bell for Deaf {
        fn ring(&self) {}
    }

    #[test]
    fn the_agents_own_end_does_not_overtake_an_abort() {
        let budget = Arc::new(Budget::new(&Limits::default(), Waker::new(Box::new(Deaf))));
        let now = Millis(1);
        let row = SessionRow {
            id: SessionId::from_u128(1),
            provider: "p".into(),
            native_id: None,
            project_path: "/".into(),
            title: None,
            archived: false,
            created_at: now,
            updated_at: now,
        };
        let (session, _) = Session::create(row, budget);
        let run = RunId::from_u128(2);
        let begun = session.begin(Begin {
            run,
            agent: AgentId::from_u128(3),
            origin: "user",
            prompt_hash: [0; 32],
            client_message_id: None,
            queued: None,
            now,
            head: "{}".into(),
            whole: None,
            title: None,
        });
        assert!(matches!(begun, Begun::Started { .. }));
        let by = By { kind: ByKind::Api, name: "test".into() };
        session.ask_abort(Some(run), &by, now).expect("it runs");
        let finished = end(Reason::Finished, Some(0), None);
        let own = session.complete_after(run, &finished, now, 0, |_| Vec::new());
        assert_eq!(own, Completed::Aborting);
        assert_eq!(session.running(), Some(run), "I21: it ends when nothing of it is left");
        let aborted = end(Reason::Aborted, Some(0), None);
        assert_eq!(session.complete(run, &aborted, now), Completed::Won);
        let own = session.complete_after(run, &finished, now, 0, |_| Vec::new());
        assert_eq!(own, Completed::Already);
    }
}
