//! The stop ladder: which step comes next, and when. Pure: time is passed in.
//!
//! Must not know processes or signals.

use std::time::{Duration, Instant};

use super::frame::{Step, Timings};

/// A ladder that is being climbed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    /// The last step that was taken.
    pub(super) step: Step,
    /// When the next one is due; `None` after the last.
    pub(super) due: Option<Instant>,
}

impl Ladder {
    /// The first step, to be taken now.
    pub(super) fn start(now: Instant, timings: &Timings) -> Self {
        Self::on(Step::CloseStdin, now, timings)
    }

    /// The step to take now, if one is due.
    pub(super) fn next(&self, now: Instant, timings: &Timings) -> Option<Self> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        let step = match self.step {
            Step::CloseStdin => Step::Interrupt,
            Step::Interrupt => Step::Terminate,
            Step::Terminate | Step::Kill => Step::Kill,
        };
        Some(Self::on(step, now, timings))
    }

    fn on(step: Step, now: Instant, timings: &Timings) -> Self {
        let wait = match step {
            Step::CloseStdin => Some(timings.close_stdin_ms),
            Step::Interrupt => Some(timings.interrupt_ms),
            Step::Terminate => Some(timings.terminate_ms),
            Step::Kill => None,
        };
        Self { step, due: wait.map(|ms| later(now, ms)) }
    }
}

/// `ms` after `now`; a day is for ever here, and no number of the gateway's overflows.
pub(super) fn later(now: Instant, ms: u64) -> Instant {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    now + Duration::from_millis(ms.min(DAY_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_waits_for_its_own_time_and_the_last_for_nothing() {
        let timings = Timings {
            close_stdin_ms: 10,
            interrupt_ms: 20,
            terminate_ms: 30,
            drain_ms: 0,
            sweep_ms: 0,
        };
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut ladder = Ladder::start(begin, &timings);
        for (due, step) in [(10, Step::Interrupt), (30, Step::Terminate), (60, Step::Kill)] {
            assert!(ladder.next(at(due - 1), &timings).is_none());
            ladder = ladder.next(at(due), &timings).expect("a step");
            assert_eq!(ladder.step, step);
        }
        assert!(ladder.next(at(1_000_000), &timings).is_none());
    }
}
