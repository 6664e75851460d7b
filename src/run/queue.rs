//! The prompts of a session that wait for its run to end (I19: each is one run, or one place here).
//!
//! Held after an abort, until somebody sends or resumes: whoever stops an agent does not want its
//! next prompt to start by itself. Pure. Must not know threads, SQLite or the wire.

use std::collections::VecDeque;

use serde_json::{Map, Value};

use crate::limits;
use crate::run::event::By;
use crate::run::id::{ClientMessageId, Millis, QueueId};

/// A prompt that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Queued {
    /// Its id.
    pub id: QueueId,
    /// What the person says.
    pub content: String,
    /// As the client gave them.
    pub options: Map<String, Value>,
    /// The sender's id for the prompt.
    pub client_message_id: Option<ClientMessageId>,
    /// Tells it from another prompt under the same id.
    pub hash: [u8; 32],
    /// Who sent it.
    pub by: By,
    /// When.
    pub at: Millis,
}

/// A session's queue, as decided (not necessarily durable).
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// In order, each with the ticket that settles it; 0 for one from disk.
    waiting: VecDeque<(Queued, u64)>,
    held: bool,
    /// Ids of prompts that were taken out since the session came to memory.
    removed: VecDeque<ClientMessageId>,
}

/// What is known of a prompt's id here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It waits.
    Waiting {
        /// As what.
        id: QueueId,
        /// From 1.
        position: usize,
        /// Of what it said.
        hash: [u8; 32],
        /// Settles it.
        ticket: u64,
    },
    /// Somebody took it out.
    Removed,
}

impl Queue {
    /// What the disk has.
    #[must_use]
    pub fn loaded(waiting: Vec<Queued>, held: bool) -> Self {
        let waiting = waiting.into_iter().map(|queued| (queued, 0)).collect();
        Self { waiting, held, removed: VecDeque::new() }
    }

    /// The prompt whose turn it is, unless the queue is held.
    #[must_use]
    pub fn ready(&self) -> Option<&Queued> {
        self.waiting.front().filter(|_| !self.held).map(|(queued, _)| queued)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether one more of this size has room (I7).
    #[must_use]
    pub fn has_room(&self, queued: &Queued) -> bool {
        let bytes: usize = self.waiting.iter().map(|(one, _)| weight(one)).sum();
        self.waiting.len() < limits::QUEUE_MAX && bytes + weight(queued) <= limits::QUEUE_BYTES_MAX
    }

    /// What is known of a prompt's id.
    #[must_use]
    pub fn find(&self, id: &ClientMessageId) -> Option<Known> {
        let waits = self.waiting.iter().zip(1..).find_map(|((queued, ticket), position)| {
            let fits = queued.client_message_id.as_ref() == Some(id);
            fits.then_some(Known::Waiting {
                id: queued.id,
                position,
                hash: queued.hash,
                ticket: *ticket,
            })
        });
        waits.or_else(|| self.removed.contains(id).then_some(Known::Removed))
    }

    /// Takes its place at the end and gives it, from 1.
    pub fn push(&mut self, queued: Queued, ticket: u64) -> usize {
        self.waiting.push_back((queued, ticket));
        self.waiting.len()
    }

    /// Its run begins: the first one leaves. `false` if it is not this one's turn.
    pub fn start(&mut self, id: QueueId) -> bool {
        let turn = self.ready().is_some_and(|queued| queued.id == id);
        if turn {
            self.waiting.pop_front();
        }
        turn
    }

    /// Somebody takes a prompt out. `false` if it does not wait (any more).
    pub fn remove(&mut self, id: QueueId) -> bool {
        let Some(at) = self.waiting.iter().position(|(queued, _)| queued.id == id) else {
            return false;
        };
        let removed = self.waiting.remove(at);
        if let Some(id) = removed.and_then(|(queued, _)| queued.client_message_id) {
            if self.removed.len() >= limits::RECENT_MESSAGES_MAX {
                self.removed.pop_front();
            }
            self.removed.push_back(id);
        }
        true
    }

    /// A run was aborted: what waits does not begin by itself.
    pub fn hold(&mut self) {
        self.held = !self.waiting.is_empty();
    }

    /// Somebody goes on.
    pub fn resume(&mut self) {
        self.held = false;
    }
}

fn weight(queued: &Queued) -> usize {
    // Options are part of a message, whose size is bounded; their exact form in memory is not.
    queued.content.len()
        + queued.options.iter().map(|(key, value)| key.len() + size(value)).sum::<usize>()
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|item| size(item) + 8).sum(),
        Value::Object(fields) => fields.iter().map(|(key, item)| key.len() + size(item) + 8).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::run::event::ByKind;

    fn queued(n: u128, content: &str) -> Queued {
        Queued {
            id: QueueId::from_u128(n),
            content: content.into(),
            options: Map::new(),
            client_message_id: Some(ClientMessageId(format!("m{n}"))),
            hash: [0; 32],
            by: By { kind: ByKind::Api, name: "test".into() },
            at: Millis(1),
        }
    }

    #[test]
    fn prompts_leave_in_order_and_a_hold_stops_them() {
        let mut queue = Queue::default();
        assert_eq!([queue.push(queued(1, "a"), 1), queue.push(queued(2, "b"), 2)], [1, 2]);
        assert!(!queue.start(QueueId::from_u128(2)), "it is not its turn");
        queue.hold();
        assert_eq!(queue.ready(), None);
        assert!(!queue.start(QueueId::from_u128(1)), "held");
        queue.resume();
        assert!(queue.start(QueueId::from_u128(1)));
        let id = ClientMessageId("m2".into());
        assert!(matches!(queue.find(&id), Some(Known::Waiting { position: 1, ticket: 2, .. })));
        assert!(queue.remove(QueueId::from_u128(2)));
        assert!(!queue.remove(QueueId::from_u128(2)));
        assert_eq!(queue.find(&id), Some(Known::Removed));
        queue.hold();
        queue.push(queued(3, "c"), 3);
        assert!(queue.ready().is_some(), "an empty queue is not held");
    }

    #[test]
    fn it_is_bounded_by_count_and_by_bytes() {
        let mut queue = Queue::default();
        for n in 0..limits::QUEUE_MAX {
            let one = queued(n as u128, "x");
            assert!(queue.has_room(&one));
            queue.push(one, 1);
        }
        assert!(!queue.has_room(&queued(99, "x")));
        let large = "x".repeat(limits::QUEUE_BYTES_MAX);
        let queue = Queue::loaded(vec![queued(1, "y")], false);
        assert!(!queue.has_room(&queued(2, &large)));
        assert!(Queue::default().has_room(&queued(2, &large)));
    }
}
