//! Killing what was born since some write, and nothing that is older.
//!
//! A warm agent's own helpers live on from turn to turn; what a turn started must not outlive it
//! (I21). Must not know why, or who asks.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use rustix::process::Pid;

use super::ladder::later;
use super::processes::{self, Process};
use crate::limits::{SWEEP_PASS_MS, WRITE_TIMES_MAX};

/// When writes began, in the units of processes' start times. Bounded: of the writes of one tick
/// the first is kept, and the oldest are forgotten.
#[derive(Debug, Default)]
pub(super) struct WriteTimes {
    /// Rising in both.
    times: VecDeque<(u64, u64)>,
    /// The highest number that was begun.
    last: Option<u64>,
}

impl WriteTimes {
    /// Write `n` begins at `moment`. Numbers rise.
    pub(super) fn note(&mut self, n: u64, moment: u64) {
        if self.last == Some(n) {
            return;
        }
        self.last = Some(n);
        if self.times.back().is_none_or(|(_, last)| *last < moment) {
            self.times.push_back((n, moment));
        }
        if self.times.len() > WRITE_TIMES_MAX {
            self.times.pop_front();
        }
    }

    /// When write `n` began, or a little before. `None`: it has not. For one that is forgotten it
    /// is the beginning of time: rather too much is killed than too little (I21).
    pub(super) fn of(&self, n: u64) -> Option<u64> {
        self.last.filter(|last| n <= *last)?;
        let after = self.times.partition_point(|(noted, _)| *noted <= n);
        Some(after.checked_sub(1).map_or(0, |at| self.times[at].1))
    }
}

/// A hunt that is on.
#[derive(Debug)]
pub(super) struct Hunt {
    since: u64,
    deadline: Instant,
    next: Instant,
    killed: BTreeSet<(u32, u64)>,
    /// How many answers are owed.
    pub(super) asked: u32,
}

/// How one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caught {
    pub(super) killed: u32,
    pub(super) left: u32,
}

impl Hunt {
    pub(super) fn new(since: u64, now: Instant, sweep_ms: u64) -> Self {
        let deadline = later(now, sweep_ms);
        Self { since, deadline, next: now, killed: BTreeSet::new(), asked: 1 }
    }

    /// One more asks, perhaps for older ones as well.
    pub(super) fn join(&mut self, other: &Self) {
        self.since = self.since.min(other.since);
        self.deadline = self.deadline.max(other.deadline);
        self.asked += other.asked;
    }

    /// When to look again.
    pub(super) const fn due(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time to, and kills; says how it ended once nobody is left or the time is up.
    pub(super) fn pass(&mut self, agent: Pid, now: Instant) -> Option<Caught> {
        if now < self.next {
            return None;
        }
        let prey = self.prey(agent);
        for process in &prey {
            processes::kill(*process);
            self.killed.insert((processes::number(process.pid), process.start));
        }
        if !prey.is_empty() && now < self.deadline {
            self.next = later(now, SWEEP_PASS_MS.unsigned_abs());
            return None;
        }
        Some(self.caught(prey.len()))
    }

    /// What it comes to if `left` are left.
    pub(super) fn caught(&self, left: usize) -> Caught {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Caught { killed: count(self.killed.len()), left: count(left) }
    }

    fn prey(&self, agent: Pid) -> Vec<Process> {
        let Ok(all) = processes::list() else { return Vec::new() };
        let mut prey = processes::descendants_of(&all, [rustix::process::getpid()]);
        prey.retain(|process| process.pid != agent && process.start >= self.since);
        prey
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_has_the_time_at_which_it_or_one_of_its_tick_began() {
        let mut times = WriteTimes::default();
        assert_eq!(times.of(1), None);
        for (n, moment) in [(2, 50), (3, 50), (5, 60), (5, 70), (6, 80)] {
            times.note(n, moment);
        }
        let found: Vec<_> = (1..=7).map(|n| times.of(n)).collect();
        let expected = [Some(0), Some(50), Some(50), Some(50), Some(60), Some(80), None];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_forgotten_counts_as_the_beginning() {
        let mut times = WriteTimes::default();
        let count = WRITE_TIMES_MAX as u64 + 1;
        for n in 1..=count {
            times.note(n, 100 + n);
        }
        assert_eq!(times.times.len(), WRITE_TIMES_MAX);
        assert_eq!((times.of(1), times.of(2)), (Some(0), Some(102)));
    }
}
