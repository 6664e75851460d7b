//! The scenarios under shuttle: random and PCT schedules, beyond loom's bound of preemptions.
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
#![cfg(shuttle)]

mod models;

use models::SCENARIOS;

fn schedules() -> usize {
    std::env::var("SHUTTLE_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

#[test]
fn random_schedules() {
    for scenario in SCENARIOS {
        shuttle::check_random(scenario.run, schedules());
    }
}

#[test]
fn pct_schedules() {
    for scenario in SCENARIOS {
        shuttle::check_pct(scenario.run, schedules(), 3);
    }
}
