//! The durable queue: prompts wait for their session's run to end, then begin runs of their own,
//! in order, each once (I19).
//!
//! Whoever ends a run only rings; one thread begins what comes next, so that no worker and no
//! store thread has to. Must not know what a prompt says.

use std::collections::BTreeSet;

use crate::registry::prompt::OfPrompt;
use crate::registry::refusal::{no_queued, shutting_down};
use crate::registry::session::Enqueued;
use crate::registry::{
    Begun, Crew, EndOfSession, Pending, Refusal, Registry, SendPrompt, Session, Started, end,
};
use crate::run::event::Reason;
use crate::run::id::{Millis, QueueId, RunId, SessionId};
use crate::run::queue::Queued;
use crate::run::wake::Waker;
use crate::sync::Arc;

/// What became of a queue that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// A run began.
    Began(RunId),
    /// Nothing waits, a run is on, or the queue is held.
    Nothing,
    /// No agent has a place, or the store fails: try again later.
    Later,
}

/// The thread that begins the runs of queued prompts: its state between two wakes.
#[derive(Debug)]
pub struct Turns {
    registry: Arc<Registry>,
    waker: Waker,
    /// Sessions whose turn has to be tried again.
    later: BTreeSet<SessionId>,
}

impl Turns {
    /// The queues of `registry`, whose ends of runs ring `waker` from now on.
    #[must_use]
    pub fn new(registry: Arc<Registry>, waker: Waker) -> Self {
        registry.budget().set_queue(waker.clone());
        Self { registry, waker, later: BTreeSet::new() }
    }

    /// Takes every turn that is due; says whether some have to be tried again. The caller has
    /// drained its bell before.
    pub fn take(&mut self, now: Millis) -> bool {
        let mut due = std::mem::take(&mut self.later);
        due.append(&mut self.waker.take().sessions);
        for id in due {
            if self.registry.advance(id, now) == Advance::Later {
                self.later.insert(id);
            }
        }
        !self.later.is_empty()
    }
}

impl Registry {
    /// Begins the run of a session's first queued prompt, if its turn has come.
    pub fn advance(self: &Arc<Self>, id: SessionId, now: Millis) -> Advance {
        loop {
            let session = match self.look_up(id) {
                Ok(Some(session)) => session,
                Ok(None) => return Advance::Nothing,
                Err(_) => return Advance::Later,
            };
            let Some(queued) = session.next_queued() else { return Advance::Nothing };
            let Some(crew) = self.crew.get() else { return Advance::Later };
            if self.check_store().is_err() {
                return Advance::Later;
            }
            // `None`: it was taken out, or something else began meanwhile.
            if let Some(turn) = self.begin_queued(&session, &queued, crew.as_ref(), now) {
                return turn;
            }
        }
    }

    fn begin_queued(
        self: &Arc<Self>,
        session: &Arc<Session>,
        queued: &Queued,
        crew: &dyn Crew,
        now: Millis,
    ) -> Option<Advance> {
        let job = crew.prepare(&session.row(), &queued.content, &queued.options);
        // What cannot be served needs no place: it is a run all the same, which says why.
        let served = match job {
            Ok(job) => match self.place_for_queued(session, crew) {
                Some(permit) => Ok((job, permit)),
                None => return Some(Advance::Later),
            },
            Err(refusal) => Err(refusal),
        };
        let run = RunId::random();
        let prompt = OfPrompt {
            content: &queued.content,
            options: &queued.options,
            client_message_id: queued.client_message_id.as_ref(),
            hash: queued.hash,
            by: &queued.by,
            queued: Some(queued.id),
        };
        let begin = self.begin_of(session, run, &prompt, now);
        let agent = begin.agent;
        // Under the map's lock, as a prompt's: nothing begins once the server stops (I14).
        let map = self.map.lock();
        if map.closing.is_some() {
            return Some(Advance::Nothing);
        }
        let begun = session.begin(begin);
        drop(map);
        match begun {
            Begun::Started { ordinal, ticket } => {
                self.budget.wake_store(session.id());
                match served {
                    Ok((job, permit)) => {
                        let started = Started { run, ordinal, agent, at: now, ticket, job, permit };
                        crew.start(self, session, started);
                    }
                    Err(refusal) => {
                        let end = end(Reason::SpawnFailed, None, Some(refusal.message));
                        session.complete(run, &end, now);
                    }
                }
                Some(Advance::Began(run))
            }
            Begun::Ended(EndOfSession::Deleted | EndOfSession::Closing) => Some(Advance::Nothing),
            _ => None,
        }
    }

    /// A prompt takes its place in the queue, if the session is busy.
    pub(super) fn enqueue(
        &self,
        session: &Session,
        prompt: &SendPrompt,
        hash: [u8; 32],
        now: Millis,
    ) -> Result<Enqueued, Refusal> {
        let queued = Queued {
            id: QueueId::random(),
            content: prompt.content.clone(),
            options: prompt.options.clone(),
            client_message_id: prompt.client_message_id.clone(),
            hash,
            by: prompt.by.clone(),
            at: now,
        };
        if let Err(refusal) = self.check_open() {
            // What is known already is answered even if nothing new can be recorded.
            let met = session.would_begin(prompt.client_message_id.as_ref());
            return match met.filter(|met| *met != Begun::Busy) {
                Some(known) => Ok(Enqueued::Refused(known)),
                None => Err(refusal),
            };
        }
        let enqueued = session.enqueue(queued);
        self.budget.wake_store(session.id());
        Ok(enqueued)
    }

    /// Takes a waiting prompt out.
    pub fn remove_queued(
        &self,
        session: SessionId,
        id: QueueId,
        now: Millis,
    ) -> Result<Pending, Refusal> {
        self.check_open()?;
        self.with_queue(session, |session| session.remove_queued(id, now))?.ok_or_else(no_queued)
    }

    /// A queue that an abort held goes on: its first prompt's run begins.
    pub fn resume_queue(&self, session: SessionId, now: Millis) -> Result<Pending, Refusal> {
        self.check_open()?;
        let pending = self.with_queue(session, |session| session.resume_queue(now).map(Some))?;
        self.budget.wake_queue(session);
        pending.ok_or_else(shutting_down)
    }

    fn with_queue(
        &self,
        id: SessionId,
        change: impl Fn(&Session) -> Result<Option<u64>, EndOfSession>,
    ) -> Result<Option<Pending>, Refusal> {
        loop {
            let session = self.find(id)?;
            match change(&session) {
                Ok(ticket) => {
                    self.budget.wake_store(id);
                    return Ok(ticket.map(|ticket| Pending::of(session, ticket)));
                }
                Err(EndOfSession::Evicted) => {}
                Err(_) => return Err(Refusal::no_session(id)),
            }
        }
    }

    fn place_for_queued(&self, session: &Session, crew: &dyn Crew) -> Option<super::AgentPermit> {
        let room = || crew.make_room(session.id()).then(|| self.extra_permit());
        self.permit().or_else(room)
    }
}
