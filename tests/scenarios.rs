//! The scenarios on real threads: weak as a search, but on the primitives that ship.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::exit,
    clippy::or_fun_call,
    clippy::print_stdout,
    clippy::type_complexity,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "a test fails by a panic, its threads are real, and its numbers are small"
)]
#![cfg(not(any(loom, shuttle)))]

mod models;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use models::SCENARIOS;

const ROUNDS: usize = 50;
/// A lost wake-up hangs: that is a failure, not a wait.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn on_real_threads() {
    for scenario in SCENARIOS {
        let (done, finished) = mpsc::channel();
        let runner = thread::spawn(move || {
            for _ in 0..ROUNDS {
                (scenario.run)();
            }
            done.send(()).expect("somebody waits");
        });
        match finished.recv_timeout(DEADLINE) {
            Ok(()) => runner.join().expect("it has finished"),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} hangs", scenario.name),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{} failed", scenario.name),
        }
    }
}
