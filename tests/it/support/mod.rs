//! What the black-box tests share: the gateway as a process, clients on real sockets, scripted
//! agents, and the checker of the invariants.
//!
//! Must not know the library's types: these tests see what any other program sees.

pub(crate) mod agent;
pub(crate) mod checker;
pub(crate) mod client;
pub(crate) mod follower;
pub(crate) mod gateway;
pub(crate) mod process;
pub(crate) mod schema;
mod selftest;
pub(crate) mod stream;

use std::time::{Duration, Instant};

pub(crate) use agent::{Agent, Hub};
pub(crate) use checker::{Checker, Ledger};
pub(crate) use client::{Client, Frame};
pub(crate) use follower::{Address, Follower, View};
pub(crate) use gateway::{Gateway, Setup, http};

/// How long a test waits for a condition before it fails. Never a measure of speed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The one wait helper: asks until there is an answer, for at most `span`. All other waiting in
/// these tests blocks on a socket or a condition variable.
pub(crate) fn ask_for<T>(span: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if start.elapsed() >= span {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks until there is an answer, and fails with `what` when `DEADLINE` has passed.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    match ask_for(DEADLINE, ask) {
        Some(answer) => answer,
        None => panic!("waited {DEADLINE:?} in vain: {what}"),
    }
}

/// Waits until `span` has passed: where the clock itself is the condition (retention, heartbeat).
pub(crate) fn let_time_pass(span: Duration) {
    assert!(ask_for(span, || None::<()>).is_none(), "nobody answers");
}

/// A gateway with one session of a scripted agent.
pub(crate) fn one_session() -> (Gateway, String) {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    (gateway, session)
}

/// Starts a run of provider `fake` and gives its id and its agent.
#[track_caller]
pub(crate) fn begin(
    gateway: &Gateway,
    client: &mut Client,
    session: &str,
    content: &str,
) -> (String, Agent) {
    let run = client.prompt(session, content);
    let (agent, _) = gateway.hub().prompted("fake", content);
    (run, agent)
}

/// The frames of runs, in the order in which the client saw them.
pub(crate) fn of_runs(client: &Client) -> Vec<Frame> {
    client.seen.iter().filter(|frame| frame.run().is_some()).cloned().collect()
}

/// A seeded generator (splitmix64), so that random points are the same in each run.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound).expect("a usize fits 64 bits");
        usize::try_from((z ^ (z >> 31)) % bound).expect("it is below a usize")
    }
}
