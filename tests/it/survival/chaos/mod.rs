//! Rounds of kill -9: of the gateway, of a keeper, of an agent, alone and together, while a demo
//! agent, a flood and a dialogue run, and three clients follow all of them.

mod round;

use crate::support::{Gateway, Random, Setup};

use super::rounds;
use round::{Plan, Round};

/// Where the kills of a round fell.
#[derive(Clone, Copy, Debug, Default)]
struct Fell {
    /// The gateway was among the killed.
    gateway: bool,
    /// A client was in the middle of a replay.
    in_replay: bool,
    /// The store was about to write what had been appended.
    between_append_and_durable: bool,
    /// A permission request was open.
    permission_open: bool,
    /// The gateway was killed again, as soon as it was back or before.
    in_recovery: bool,
    /// How many frames the clients have seen in all.
    frames: usize,
}

#[test]
fn whatever_is_killed_nothing_is_lost_and_nothing_doubled() {
    let rounds = rounds(6);
    let mut random = Random::new(u64::try_from(rounds).unwrap_or(0));
    // A small ring, so that a replay from the start needs the disk.
    let setup = Setup::new()
        .scripted("flood")
        .scripted("ask")
        .provider("demo", "demo", &[env!("CARGO_BIN_EXE_reattach"), "demo-agent"])
        .set("limits", "ring_events_max", "512")
        .env("REATTACH_LOG", "info,reattach::registry::disk=trace");
    let mut gateway = setup.start();
    let references = round::references(&gateway);
    let mut fell = Vec::new();
    for number in 0..rounds {
        let plan = Plan::new(number, &mut random);
        eprintln!("round {number}: {plan:?}");
        let (next, at) = Round::begin(gateway, plan, &mut random).play(&references, &mut random);
        gateway = next;
        eprintln!("round {number}: {at:?}");
        fell.push(at);
    }
    mix(&fell);
    ended_well(gateway);
}

/// Says where the kills fell, and that this was where they should, if there were enough of them.
fn mix(fell: &[Fell]) {
    let rounds = fell.len();
    let count = |what: fn(&Fell) -> bool| fell.iter().filter(|fell| what(fell)).count();
    let (gateway, replay) = (count(|fell| fell.gateway), count(|fell| fell.in_replay));
    let undurable = count(|fell| fell.between_append_and_durable);
    let (open, recovery) = (count(|fell| fell.permission_open), count(|fell| fell.in_recovery));
    let frames: usize = fell.iter().map(|fell| fell.frames).sum();
    eprintln!(
        "{rounds} rounds, {frames} frames seen: gateway killed in {gateway}, while a client \
         replayed in {replay}, between append and durable in {undurable}, with a permission open \
         in {open}, in recovery in {recovery}, after a complete in 0"
    );
    if rounds >= 12 {
        assert!(replay * 4 >= rounds, "while a client replays: {fell:?}");
        assert!(undurable * 4 >= rounds, "between append and durable: {fell:?}");
        assert!(open * 10 >= rounds, "with a permission open: {fell:?}");
    }
}

/// In the end it stops in good order.
fn ended_well(mut gateway: Gateway) {
    assert!(gateway.terminate().success());
}
