//! The scenarios under loom: every interleaving of their threads, up to `LOOM_MAX_PREEMPTIONS`.
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
#![cfg(loom)]

mod models;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use models::{SCENARIOS, Scenario};

/// Loom's default of 1000 is too few for a scenario that commits, reads and ends.
const BRANCHES_MAX: usize = 20_000;

fn explore(scenario: &Scenario) -> usize {
    let executions = Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.max_branches = BRANCHES_MAX;
    if builder.preemption_bound.is_none() && std::env::var_os("LOOM_UNBOUNDED").is_none() {
        builder.preemption_bound = Some(3);
    }
    let (counter, run) = (executions.clone(), scenario.run);
    let begun = std::time::Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        run();
    });
    let executions = executions.load(Ordering::Relaxed);
    println!(
        "{:28} {executions:8} executions {:6.2} s",
        scenario.name,
        begun.elapsed().as_secs_f64()
    );
    executions
}

/// All scenarios, or those whose names are in `MODELS` (comma-separated).
#[test]
fn every_interleaving() {
    let chosen = std::env::var("MODELS").ok();
    let chosen: Option<Vec<_>> = chosen.as_deref().map(|names| names.split(',').collect());
    let mut poor = Vec::new();
    for scenario in SCENARIOS {
        if chosen.as_ref().is_some_and(|names| !names.contains(&scenario.name)) {
            continue;
        }
        let executions = explore(scenario);
        if executions < scenario.executions_min {
            poor.push(scenario.name);
        }
    }
    assert!(poor.is_empty(), "explored too little to mean anything: {poor:?}");
    for name in chosen.into_iter().flatten() {
        assert!(SCENARIOS.iter().any(|known| known.name == name), "there is no scenario {name}");
    }
}
