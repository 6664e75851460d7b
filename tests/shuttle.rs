//! The scenarios under shuttle: random and PCT schedules, beyond loom's bound of preemptions.
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
