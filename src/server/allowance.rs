//! How many messages a client may send at once. Must not know what they say.

use std::time::Instant;

use crate::limits;

/// A bucket of messages that refills with time.
pub(super) struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: f64::from(limits::MESSAGES_BURST_MAX), at: now }
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        let regained =
            now.duration_since(self.at).as_secs_f64() * f64::from(limits::MESSAGES_PER_SECOND);
        self.left = (self.left + regained).min(f64::from(limits::MESSAGES_BURST_MAX));
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_runs_out_and_comes_back_with_time() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert!((0..limits::MESSAGES_BURST_MAX).all(|_| allowance.take(start)));
        assert!(!allowance.take(start));
        let later = start + Duration::from_secs(1);
        let regained = (0..).take_while(|_| allowance.take(later)).count();
        assert_eq!(regained, limits::MESSAGES_PER_SECOND as usize);
    }
}
