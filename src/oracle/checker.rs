//! The checker: fed with what one subscriber gets, in order, it panics at the first thing that
//! must not be and names the invariant.
//!
//! It knows nothing of what should have been said (the model does), only of how a log may look
//! from outside: order, density, one end per run. Must not know the registry.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::run::id::{Ordinal, Position, Seq};

/// What a frame says, as far as the invariants go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Where it stands.
    pub at: Position,
    /// Its run, as the frame names it.
    pub run: String,
    /// Its kind.
    pub kind: String,
}

impl Fact {
    /// Reads a frame.
    ///
    /// # Panics
    /// If it is not an event's frame, or its seq is not its position's.
    #[must_use]
    pub fn read(at: Position, text: &str) -> Self {
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        let word = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
        let fact = Self { at, run: word("runId"), kind: word("kind") };
        assert!(!fact.run.is_empty() && !fact.kind.is_empty(), "not an event's frame: {text}");
        let seq = frame["seq"].as_u64();
        assert_eq!(seq, Some(at.seq.0), "I2: the seq that a frame carries is its position's");
        fact
    }
}

/// Checks what one subscriber gets (I1, I2, I3, I4, I6).
#[derive(Clone, Debug)]
pub struct Checker {
    cursor: Position,
    /// Whether what `cursor` stands on was seen, or announced as gone: then what follows is known.
    sure: bool,
    /// Whether the run at `cursor` has ended there.
    ended: bool,
    runs: BTreeMap<Ordinal, String>,
    facts: Vec<Fact>,
}

impl Checker {
    /// For a subscriber that reads on after `cursor`.
    #[must_use]
    pub const fn new(cursor: Position) -> Self {
        Self { cursor, sure: false, ended: false, runs: BTreeMap::new(), facts: Vec::new() }
    }

    /// Where the subscriber is.
    #[must_use]
    pub const fn cursor(&self) -> Position {
        self.cursor
    }

    /// All that it got, in order.
    #[must_use]
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Whether it got the end of the run with this place.
    #[must_use]
    pub fn has_end_of(&self, ordinal: u32) -> bool {
        let end = |fact: &Fact| fact.at.ordinal.0 == ordinal && fact.kind == "complete";
        self.facts.iter().any(end)
    }

    /// It got frames.
    ///
    /// # Panics
    /// At the first that may not come here.
    pub fn frames<'a>(&mut self, frames: impl IntoIterator<Item = (Position, &'a str)>) {
        for (at, text) in frames {
            self.fact(Fact::read(at, text));
        }
    }

    /// It got one event.
    ///
    /// # Panics
    /// If it may not come here.
    pub fn fact(&mut self, fact: Fact) {
        let (at, cursor) = (fact.at, self.cursor);
        assert!(at > cursor, "I4: {at:?} after {cursor:?} is a repetition");
        if at.ordinal == cursor.ordinal {
            assert!(!self.ended, "I3: {at:?} comes after its run's `complete`");
            assert_eq!(at.seq, cursor.seq.next(), "I4: something before {at:?} is missing");
        } else {
            assert_eq!(at.seq, Seq(0), "I4: a run begins with its head, not with {at:?}");
            assert_eq!(at.ordinal.0, cursor.ordinal.0 + 1, "I4: a run before {at:?} is missing");
            assert!(
                !self.sure || self.ended || cursor == Position::START,
                "I1: {at:?} begins before the run before it had its `complete`"
            );
        }
        assert_eq!(fact.kind == "run_started", at.seq == Seq(0), "I2: only heads have seq 0");
        let known = self.runs.entry(at.ordinal).or_insert_with(|| fact.run.clone());
        assert_eq!(*known, fact.run, "I6: {at:?} names another run");
        self.cursor = at;
        self.sure = true;
        self.ended = fact.kind == "complete";
        self.facts.push(fact);
    }

    /// It was told that everything up to `to` is gone. `first` is the first that is, if named.
    ///
    /// # Panics
    /// If the gap does not begin where the subscriber is, or is empty.
    pub fn gap(&mut self, first: Option<Position>, to: Position) {
        assert!(to > self.cursor, "I4b: a gap up to {to:?} is behind {:?}", self.cursor);
        if let Some(first) = first {
            let next = if first.seq == Seq(0) {
                Position::before_run(first.ordinal)
            } else {
                Position::new(first.ordinal, Seq(first.seq.0 - 1))
            };
            assert!(
                self.cursor <= next && (first.seq == Seq(0) || self.cursor == next),
                "I4b: a gap from {first:?} does not join {:?}",
                self.cursor
            );
        }
        self.cursor = to;
        // A gap takes whole completed runs, or the durable part of one that memory has the rest of.
        self.sure = false;
        self.ended = false;
    }

    /// It subscribed again: it reads on after `cursor`.
    pub const fn moved(&mut self, cursor: Position) {
        self.cursor = cursor;
        self.sure = false;
        self.ended = false;
    }
}
