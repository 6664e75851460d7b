//! What `reattach bench` is made of: a server of its own, clients that count, and the system's
//! account of processes. Everything is measured from outside, over public interfaces.
//!
//! Must not know the server's insides.

pub mod account;
pub mod args;
pub mod client;
pub mod place;
pub mod report;

use std::time::Duration;

use super::exit::{Exit, Failure};

/// A failure of the bench itself. A missed target is none.
pub(super) fn failed(message: impl Into<String>) -> Failure {
    Failure::new(
        Exit::Failure,
        "BENCH",
        message,
        "reattach bench --quick --dir DIR, with DIR on a disk that has 2 GB of room",
    )
}

/// Milliseconds, with their fraction.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle one; of an even number, the upper of the two in the middle. NaN for none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 3.0).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
