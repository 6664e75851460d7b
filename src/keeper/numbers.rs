//! The numbers of writes: each is taken once, however often and by whichever gateway it is sent,
//! and what became of it can be said again.
//!
//! Pure, so that the models in `tests/models` explore it. Must not know bytes or pipes.

use std::collections::BTreeSet;

use crate::limits::REFUSED_WRITES_MAX;

/// What became of the writes so far, in bounded memory: numbers rise, so most are below a mark.
#[derive(Debug, Default)]
pub struct Numbers {
    /// The highest number that was taken.
    last: Option<u64>,
    /// The highest number that was wholly written.
    written: Option<u64>,
    /// Numbers that were refused while the agent's stdin was open.
    refused: BTreeSet<u64>,
    /// At or below this a number that was refused may be forgotten.
    forgotten: Option<u64>,
}

/// What became of a number that was taken and does not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in the agent's stdin.
    Written,
    /// There was no room for it.
    Refused,
    /// It is not in the agent's stdin, or that can no longer be said.
    Failed,
}

impl Numbers {
    /// Takes number `n`. `false`: it was taken before, and nothing may be written for it.
    #[must_use]
    pub fn take(&mut self, n: u64) -> bool {
        if self.last.is_some_and(|last| n <= last) {
            return false;
        }
        self.last = Some(n);
        true
    }

    /// Number `n` is wholly written.
    pub fn written(&mut self, n: u64) {
        self.written = Some(n);
    }

    /// There was no room for number `n`.
    pub fn refuse(&mut self, n: u64) {
        self.refused.insert(n);
        if self.refused.len() > REFUSED_WRITES_MAX {
            self.forgotten = self.refused.pop_first();
        }
    }

    /// What became of number `n`, which was taken and does not wait.
    #[must_use]
    pub fn fate(&self, n: u64) -> Fate {
        if self.refused.contains(&n) {
            Fate::Refused
        } else if self.forgotten.is_some_and(|forgotten| n <= forgotten) {
            // It may have been refused: to say *delivered* here could be a lie.
            Fate::Failed
        } else if self.written.is_some_and(|written| n <= written) {
            Fate::Written
        } else {
            Fate::Failed
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_taken_once_and_its_fate_can_be_asked_again() {
        let mut numbers = Numbers::default();
        assert!(numbers.take(2));
        assert!(!numbers.take(2));
        assert!(!numbers.take(1), "numbers rise");
        numbers.written(2);
        assert!(numbers.take(5));
        numbers.refuse(5);
        assert!(numbers.take(6));
        assert_eq!(
            [2, 5, 6].map(|n| numbers.fate(n)),
            [Fate::Written, Fate::Refused, Fate::Failed]
        );
        numbers.written(6);
        assert_eq!(
            [2, 5, 6].map(|n| numbers.fate(n)),
            [Fate::Written, Fate::Refused, Fate::Written]
        );
    }

    #[test]
    fn a_refusal_that_is_forgotten_is_not_taken_for_a_delivery() {
        let mut numbers = Numbers::default();
        for n in 0..=REFUSED_WRITES_MAX as u64 {
            numbers.refuse(n);
        }
        numbers.written(1 << 20);
        assert_eq!(numbers.fate(0), Fate::Failed);
        assert_eq!(numbers.fate(1), Fate::Refused);
        assert_eq!(numbers.fate(1 << 20), Fate::Written);
    }
}
