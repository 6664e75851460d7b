//! How far an agent's records are folded, and how much of that is durable.
//!
//! A worker that comes after a restart begins at a checkpoint: records up to the last durable one
//! only bring the state forward, since their events are in the log already; what follows gives
//! events again. fold(all) = fold(checkpoint, rest). Pure. Must not know threads, channels or
//! locks.

use std::collections::{BTreeMap, VecDeque};

use super::turn::{Effect, Staged, Turn};
use crate::limits;
use crate::provider::{Output, Record};

/// The fold of one agent's records.
#[derive(Debug)]
pub struct Fold {
    turn: Turn,
    /// The end of the last record that was folded.
    folded: u64,
    /// The events of records up to here are durable.
    durable: u64,
    /// How many automatic replies are recorded that a record caused, by its end.
    replied: BTreeMap<u64, usize>,
}

impl Fold {
    /// Of a process that is about to start.
    #[must_use]
    pub const fn new(turn: Turn) -> Self {
        Self { turn, folded: 0, durable: 0, replied: BTreeMap::new() }
    }

    /// Of a process that an earlier gateway began to fold: `turn` is the state at `folded`, the
    /// events of records up to `durable` are in the log, and `replied` has the ends of the records
    /// after `folded` that caused recorded replies, each as often as it did.
    #[must_use]
    pub fn resume(
        turn: Turn,
        folded: u64,
        durable: u64,
        replied: impl IntoIterator<Item = u64>,
    ) -> Self {
        let mut counts = BTreeMap::new();
        for end in replied {
            *counts.entry(end).or_default() += 1;
        }
        Self { turn, folded, durable: durable.max(folded), replied: counts }
    }

    /// The agent's conversation.
    #[must_use]
    pub const fn turn(&self) -> &Turn {
        &self.turn
    }

    /// The agent's conversation.
    pub const fn turn_mut(&mut self) -> &mut Turn {
        &mut self.turn
    }

    /// The end of the last record that was folded.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Whether what is folded next was told before the restart.
    #[must_use]
    pub const fn is_catching_up(&self) -> bool {
        self.folded < self.durable
    }

    /// Whether the events of the record that was read last are in the log already.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.folded <= self.durable
    }

    /// What a record means to the dialect; `end` is its end offset. `stage` is to follow.
    pub fn read(&mut self, record: &Record, end: u64) -> Vec<Output> {
        self.folded = end;
        self.turn.read(record)
    }

    /// Makes events of the outputs of the record that was just read, and adds them to `staged`,
    /// the last one with the record's end. Gives what is to be done beside.
    pub fn stage(
        &mut self,
        record: &Record,
        outputs: Vec<Output>,
        staged: &mut VecDeque<Staged>,
    ) -> Vec<Effect> {
        let known = self.is_known();
        let (before, late) = (staged.len(), self.turn.late_events);
        let mut effects = self.turn.stage(record, outputs, staged);
        if known {
            // They are in the log, or were counted before the restart.
            staged.truncate(before);
            self.turn.late_events = late;
        } else if staged.len() > before
            && let Some(last) = staged.back_mut()
        {
            last.record_end = Some(self.folded);
        }
        // A command's row may be durable before the events of its record are, or after them.
        let mut replied = self.replied.remove(&self.folded).unwrap_or(0);
        effects.retain(|effect| {
            let done = match effect {
                Effect::Reply(_) => replied > 0,
                // What they changed is on disk, and an end that was not the run's is an abort's.
                Effect::Native(_) | Effect::TurnEnded(_) | Effect::Exited(_) => known,
            };
            replied -= usize::from(done && matches!(effect, Effect::Reply(_)));
            !done
        });
        if !self.turn.is_on() {
            while staged.len() > limits::IDLE_EVENTS_MAX {
                staged.pop_front();
                self.turn.late_events += 1;
            }
        }
        effects
    }

    /// A record that nobody will tell of any more.
    pub fn read_late(&mut self, record: &Record, end: u64) {
        self.folded = end;
        self.turn.read_late(record);
    }
}
