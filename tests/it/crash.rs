//! kill -9 of the gateway, and what is left.
//!
//! `REATTACH_CRASH_ROUNDS` sets the number of rounds; CI runs 50 in its stage `crash`.

use serde_json::{Value, json};

use crate::support::process::alive;
use crate::support::{Agent, Checker, Client, Gateway, Ledger, Random, Setup, eventually};

/// Lines that an agent may have reported as sent but not yet written: one batch of its flood.
const BATCH: u64 = 400;
const LINE_BYTES: usize = 200;

/// Where a kill fell.
#[derive(Clone, Copy, Debug, Default)]
struct Fell {
    /// A client was in the middle of a replay.
    in_replay: bool,
    /// The agent had sent what no client had been shown: it was on its way to the disk.
    between_append_and_durable: bool,
    /// A permission request was open.
    permission_open: bool,
}

#[test]
fn kill_9_loses_nothing_that_was_seen() {
    let rounds = std::env::var("REATTACH_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok());
    let rounds: usize = rounds.unwrap_or(8);
    let mut random = Random::new(11);
    // A small ring, so that a replay from the start needs the disk.
    let setup = Setup::new().scripted("flood").scripted("ask");
    let mut gateway = setup.set("limits", "ring_events_max", "512").start();
    let mut fell = Vec::new();
    for round in 0..rounds {
        let (next, at) = one_round(gateway, round, &mut random);
        gateway = next;
        eprintln!("round {round}: {at:?}");
        fell.push(at);
    }
    let count = |what: fn(&Fell) -> bool| fell.iter().filter(|fell| what(fell)).count();
    let least = rounds / 4;
    assert!(count(|fell| fell.in_replay) >= least, "kills in a replay: {fell:?}");
    assert!(count(|fell| fell.between_append_and_durable) >= least, "kills on the way: {fell:?}");
    assert!(count(|fell| fell.permission_open) >= least, "kills with a question open: {fell:?}");
}

/// What the round's clients had seen, and which runs they followed.
struct Seen {
    ledger: Ledger,
    runs: Vec<(String, String)>,
}

fn one_round(mut gateway: Gateway, round: usize, random: &mut Random) -> (Gateway, Fell) {
    let flooded = gateway.session("flood");
    let mut live = gateway.connect();
    let run = live.prompt(&flooded, "flood");
    let (agent, _) = gateway.hub().prompted("flood", "flood");
    let mut pids = vec![agent.pid()];
    if round % 2 == 1 {
        // It would go on for long if nobody stopped it.
        agent.policy(&[], None, None);
        agent.ignore_signals();
        pids.push(agent.escape().pid());
    }
    let mut runs = vec![(flooded.clone(), run.clone())];
    let mut asking = None;
    if round % 3 == 2 {
        let (client, agent, asked) = open_question(&gateway);
        pids.push(agent.pid());
        runs.push(asked);
        asking = Some(client);
    }
    agent.flood(u64::MAX, LINE_BYTES, "e");
    // A replay must be longer than what fits into a socket's buffers, to be cut inside.
    let replays = round.is_multiple_of(3);
    let enough = if replays { 8000 } else { 600 } + random.below(1200);
    live.expect_at(&run, enough as u64);
    let mut replaying = None;
    if replays {
        let mut client = gateway.connect();
        client.subscribe(&json!({"sessionId": flooded, "from": "start"}));
        client.expect_at(&run, 1 + random.below(400) as u64);
        replaying = Some(client);
    }
    gateway.kill();

    let mut seen = Seen { ledger: Ledger::new(), runs };
    let mut fell = Fell { permission_open: asking.is_some(), ..Fell::default() };
    if let Some(mut client) = replaying {
        client.read_to_end();
        fell.in_replay = !client.seen.iter().any(|frame| frame.kind() == "caught_up");
        seen.take(&client, round);
    }
    if let Some(mut client) = asking {
        client.read_to_end();
        seen.take(&client, round);
    }
    live.read_to_end();
    seen.take(&live, round);
    let shown = seen.ledger.last(&run).expect("it saw events");
    fell.between_append_and_durable = agent.sent() > shown + BATCH;

    let gateway = gateway.restart();
    check(&gateway, &seen, round);
    let left: Vec<u32> = pids.into_iter().filter(|pid| alive(*pid)).collect();
    assert!(left.is_empty(), "I21: round {round}: {left:?} outlived the gateway's restart");
    gateway.expect_no_agents();
    (gateway, fell)
}

/// A run whose agent waits for an answer.
fn open_question(gateway: &Gateway) -> (Client, Agent, (String, String)) {
    let session = gateway.session("ask");
    let mut client = gateway.connect();
    let run = client.prompt(&session, "ask");
    let (agent, _) = gateway.hub().prompted("ask", "ask");
    agent.emit(&[json!({
        "kind": "permission_request", "requestId": "q", "toolName": "Bash", "input": {},
    })]);
    client.expect("the request", |frame| frame.is("permission_request", &session));
    (client, agent, (session, run))
}

impl Seen {
    fn take(&mut self, client: &Client, round: usize) {
        for frame in &client.seen {
            assert_ne!(frame.kind(), "complete", "round {round}: the kill fell after complete");
            self.ledger.see(frame);
        }
    }
}

/// After the restart: everything seen is there, and each run has its one end.
fn check(gateway: &Gateway, seen: &Seen, round: usize) {
    let mut kept = Ledger::new();
    for (session, run) in &seen.runs {
        // Recovery ends each open run, possibly a moment after the port is open.
        eventually("the run is ended", || {
            let (_, row) = gateway.get(&format!("/api/v1/runs/{run}"));
            (row["status"] == "completed").then_some(())
        });
        let log = gateway.replay(session);
        let mut checker = Checker::new();
        for frame in &log {
            checker.see(frame);
            kept.see(frame);
        }
        assert!(checker.ended(session), "I9: round {round}: no end");
        let last = log.last().expect("a head at least");
        assert_eq!(last.json["reason"], "agent_lost", "round {round}: {}", last.text);
        assert_eq!(last.json["success"], false);
        let texts = log.iter().filter(|frame| frame.kind() == "text");
        for (i, frame) in texts.enumerate() {
            assert_eq!(frame.json["content"], format!("e{i}"), "I8: round {round}: a hole");
        }
    }
    seen.ledger.is_within(&kept);
    let (_, running) = gateway.get("/api/v1/runs?status=running");
    assert_eq!(running["items"], json!([]), "I9: round {round}");
    let (_, pending) = gateway.get("/api/v1/permissions");
    assert_eq!(pending["items"], json!([]), "round {round}: a question that nobody waits on");
    // The sessions are free.
    let (session, _) = &seen.runs[0];
    let mut client = gateway.connect();
    let run = client.prompt(session, "again");
    let (agent, _) = gateway.hub().prompted("flood", "again");
    agent.finish();
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], Value::from("finished"), "{}", complete.text);
}
