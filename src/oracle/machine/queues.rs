//! The machine's prompts: sent, waiting, taken out, let go on, begun (I5, I19).

use serde_json::Map;

use super::{Machine, SESSIONS_MAX, somebody};
use crate::oracle::bell::Alarm;
use crate::oracle::model::{News, QueuedModel, RunModel};
use crate::protocol::message::WhenBusy;
use crate::registry::{Accepted, AcceptedToQueue, Advance, RefusalCode, SendPrompt, Sent};
use crate::run::id::{ClientMessageId, Millis, QueueId, RunId};
use crate::run::wake::Waker;

/// What the reference says of a prompt that is sent.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// It begins a run.
    Run,
    /// It has begun this one.
    Duplicate(RunId),
    /// It waits at this place.
    Waits(usize),
    /// It waits already, as this and at this place.
    WaitsAlready(QueueId, usize),
    /// It is refused.
    Refused(RefusalCode),
}

impl Machine {
    /// A prompt; message 0 has no id. Its sender listens from then on.
    pub(super) fn send(
        &mut self,
        (session, message, content, sub): (u8, u8, u8, u8),
        when_busy: WhenBusy,
    ) {
        let Some(index) = self.pick(session) else { return };
        let name = (message > 0).then(|| ClientMessageId(format!("m{message}")));
        let prompt = SendPrompt {
            session: self.model.sessions[index].id,
            content: format!("prompt {content}"),
            options: Map::new(),
            client_message_id: name,
            when_busy,
            by: somebody(),
        };
        let expected = self.expected(index, message, content, when_busy);
        let sent = self.registry.send(prompt, Millis(self.now));
        match (sent, expected) {
            (Ok(Sent::Run(accepted)), Expected::Duplicate(run)) => {
                assert!(accepted.duplicate, "I19: a resend begins nothing");
                assert_eq!(accepted.run, run, "I19: a resend names the run that it began");
            }
            (Ok(Sent::Run(accepted)), Expected::Run) => {
                assert!(!accepted.duplicate, "I19: a new prompt is no duplicate");
                let Accepted { run, cursor, pending, .. } = accepted;
                self.model.sessions[index].now.held = false;
                self.began(index, run, message, content);
                self.ticket(index, pending);
                self.sender_listens(sub, index, cursor);
            }
            (Ok(Sent::Queued(queued)), Expected::Waits(place)) => {
                assert!(!queued.duplicate, "I19: a new prompt is no duplicate");
                let AcceptedToQueue { id, position, pending, .. } = queued;
                assert_eq!(position, place, "I19: at the end");
                let model = &mut self.model.sessions[index];
                model.now.queue.push(QueuedModel { id, content, message });
                model.note(News::UnlessArchived);
                self.ticket(index, pending);
            }
            (Ok(Sent::Queued(queued)), Expected::WaitsAlready(id, place)) => {
                assert!(queued.duplicate, "I19: a resend takes no other place");
                assert_eq!((queued.id, queued.position), (id, place), "I19: a resend finds it");
            }
            (Err(refusal), Expected::Refused(code)) => {
                assert_eq!(refusal.code, code, "I5, I19: {refusal}");
            }
            (sent, expected) => panic!("I5, I19: {sent:?}, but {expected:?}"),
        }
    }

    fn expected(&self, index: usize, message: u8, content: u8, when_busy: WhenBusy) -> Expected {
        let state = &self.model.sessions[index].now;
        if !state.exists {
            return Expected::Refused(RefusalCode::SessionNotFound);
        }
        if let Some(run) = state.began_by(message).filter(|_| message > 0) {
            return match run.message == Some((message, content)) {
                true => Expected::Duplicate(run.id),
                false => Expected::Refused(RefusalCode::InvalidField),
            };
        }
        if message > 0 && state.removed.contains(&message) {
            return Expected::Refused(RefusalCode::InvalidField);
        }
        let waits = |one: &&QueuedModel| message > 0 && one.message == message;
        if let Some(one) = state.queue.iter().find(waits) {
            let place = state.queue.iter().take_while(|other| other.id != one.id).count() + 1;
            return match one.content == content {
                true => Expected::WaitsAlready(one.id, place),
                false => Expected::Refused(RefusalCode::InvalidField),
            };
        }
        let busy = state.running().is_some() || state.ready().is_some();
        match when_busy {
            WhenBusy::Refuse if busy => Expected::Refused(RefusalCode::RunInProgress),
            _ if self.model.store_bad => Expected::Refused(RefusalCode::StoreUnavailable),
            WhenBusy::Queue if busy => Expected::Waits(state.queue.len() + 1),
            _ if self.is_full() => Expected::Refused(RefusalCode::Busy),
            _ => Expected::Run,
        }
    }

    fn is_full(&self) -> bool {
        self.crew.0.lock().len() >= Self::limits().agents_max
    }

    fn began(&mut self, index: usize, run: RunId, message: u8, content: u8) {
        let message = (message > 0).then_some((message, content));
        let model = &mut self.model.sessions[index];
        model.now.runs.push(RunModel::new(run, message));
        if model.now.title.is_none() {
            model.now.title = Some(format!("prompt {content}"));
        }
        model.note(News::UnlessArchived);
        let id = model.id;
        let waker = Waker::new(Box::new(Alarm::new()));
        self.expect_session(id).attach_worker(run, waker.clone());
        self.workers.insert(id, (run, waker));
    }

    /// Somebody takes one of the waiting prompts out, or one that does not wait.
    pub(super) fn unqueue(&mut self, session: u8, which: u8) {
        let Some(index) = self.pick(session) else { return };
        let model = &self.model.sessions[index];
        let (id, exists) = (model.id, model.now.exists);
        let place = usize::from(which) % (SESSIONS_MAX + model.now.queue.len());
        let waiting = model.now.queue.get(place).cloned();
        let named = waiting.as_ref().map_or(QueueId::from_u128(1), |one| one.id);
        let done = self.registry.remove_queued(id, named, Millis(self.now));
        match (done, waiting) {
            (Ok(pending), Some(one)) => {
                let model = &mut self.model.sessions[index];
                model.now.queue.remove(place);
                if one.message > 0 {
                    model.now.removed.insert(one.message);
                }
                model.note(News::UnlessArchived);
                self.ticket(index, pending);
            }
            (Err(refusal), None) if exists && !self.model.store_bad => {
                assert_eq!(refusal.code, RefusalCode::QueuedPromptNotFound, "{refusal}");
            }
            (Err(refusal), _) if exists => self.expect_store_bad(&refusal),
            (Err(refusal), _) => self.expect_gone(&refusal),
            (done, waiting) => panic!("I19: {done:?}, but {waiting:?}"),
        }
    }

    /// Somebody lets a queue go on.
    pub(super) fn resume(&mut self, session: u8) {
        let Some(index) = self.pick(session) else { return };
        let model = &self.model.sessions[index];
        let (id, exists) = (model.id, model.now.exists);
        match self.registry.resume_queue(id, Millis(self.now)) {
            Ok(pending) => {
                assert!(exists, "it is not there");
                let model = &mut self.model.sessions[index];
                model.now.held = false;
                model.note(News::UnlessArchived);
                self.ticket(index, pending);
            }
            Err(refusal) if exists => self.expect_store_bad(&refusal),
            Err(refusal) => self.expect_gone(&refusal),
        }
    }

    /// The queue's thread looks at the session: its first prompt begins if nothing is in the way.
    pub(super) fn turn(&mut self, session: u8) {
        let Some(index) = self.pick(session) else { return };
        let model = &self.model.sessions[index];
        let due = model.now.ready().filter(|_| model.now.running().is_none()).cloned();
        let turn = self.registry.advance(model.id, Millis(self.now));
        match (turn, due) {
            (Advance::Began(run), Some(one)) => {
                assert!(!self.model.store_bad, "nothing new while the store is bad");
                self.model.sessions[index].now.queue.remove(0);
                self.began(index, run, one.message, one.content);
            }
            (Advance::Later, Some(_)) => {
                assert!(self.model.store_bad || self.is_full(), "I19: nothing is in the way");
            }
            (turn, due) => {
                assert!(due.is_none() && turn == Advance::Nothing, "I19: {turn:?}, but {due:?}");
            }
        }
    }
}
