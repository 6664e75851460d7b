//! Scenarios of the core, each written once: run by loom (all interleavings), by shuttle (random
//! and PCT schedules) and by real threads.
//!
//! A scenario is a plain function with at most five threads, the caller's included, of one to
//! three operations each. What it asserts must hold however they interleave. A lost wake-up
//! shows as a deadlock, which loom and shuttle report at once.

mod ends;
mod handover;
mod keeper;
mod queues;
mod reading;
mod starts;
mod waiting;
mod world;

/// A scenario: its name, what runs it once, and how many executions loom must at least explore at
/// three preemptions (fewer would mean that its threads no longer meet).
#[allow(dead_code, reason = "each driver uses what it needs")]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
    pub(crate) executions_min: usize,
}

const fn scenario(name: &'static str, run: fn(), executions_min: usize) -> Scenario {
    Scenario { name, run, executions_min }
}

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("abort_complete_crash", ends::abort_complete_crash, 20),
    scenario("late_end_and_next_run", ends::late_end_and_next_run, 20),
    scenario("answers_and_complete", ends::answers_and_complete, 20),
    scenario("answer_and_late_worker", ends::answer_and_late_worker, 10),
    scenario("reject_and_start", ends::reject_and_start, 10),
    scenario("two_starts", starts::two_starts, 10),
    scenario("one_prompt_twice", starts::one_prompt_twice, 10),
    scenario("close_start_subscribe", starts::close_start_subscribe, 50),
    scenario("close_and_load", starts::close_and_load, 10),
    scenario("evict_and_start", starts::evict_and_start, 10),
    scenario("stale_load", starts::stale_load, 50),
    scenario("refused_edit_and_start", starts::refused_edit_and_start, 50),
    scenario("native_id_twice", starts::native_id_twice, 5),
    scenario("attach_while_appending", reading::attach_while_appending, 100),
    scenario("next_run_while_behind", reading::next_run_while_behind, 100),
    scenario("evict_and_subscribe", reading::evict_and_subscribe, 50),
    scenario("two_connections", reading::two_connections, 100),
    scenario("delete_and_subscribe", reading::delete_and_subscribe, 20),
    scenario("announce_and_join", reading::announce_and_join, 10),
    scenario("room_and_rounds", waiting::room_and_rounds, 50),
    scenario("take_and_wake", waiting::take_and_wake, 10),
    scenario("ticket_and_settle", waiting::ticket_and_settle, 10),
    scenario("ticket_and_refusal", waiting::ticket_and_refusal, 10),
    scenario("orders_and_abort", waiting::orders_and_abort, 10),
    scenario("follow_and_confirm", handover::follow_and_confirm, 100),
    scenario("two_gateways", handover::two_gateways, 20),
    scenario("stop_and_exit", handover::stop_and_exit, 100),
    scenario("end_and_attach", handover::end_and_attach, 20),
    scenario("grace_and_attach", handover::grace_and_attach, 10),
    scenario("agent_run_and_prompt", starts::agent_run_and_prompt, 10),
    scenario("agent_run_and_close", starts::agent_run_and_close, 10),
    scenario("queue_and_complete", queues::queue_and_complete, 50),
    scenario("turns_and_removal", queues::turns_and_removal, 10),
    scenario("hold_and_resume", queues::hold_and_resume, 20),
    scenario("turn_and_prompt", queues::turn_and_prompt, 5),
    scenario("turn_and_close", queues::turn_and_close, 10),
];
