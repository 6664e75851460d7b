//! `attach` over dying connections and gateways: no line twice, none missing.

use rustix::process::Signal;

use serde_json::Value;

use super::{Live, command, json_lines, run};
use crate::support::{Random, Setup};

#[test]
fn a_gateway_that_is_killed_and_restarted_costs_no_line_and_repeats_none() {
    const ROUNDS: usize = 5;
    let mut random = Random::new(7);
    let mut gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let live = Live::start(command(&gateway, &["attach", &session, "--json"]));
    for round in 1..=ROUNDS {
        let prompt = format!("round {round}");
        run(&gateway, &["send", &session, &prompt], 0);
        let agent = gateway.hub().prompted("fake", &prompt).0;
        agent.flood(20_000, 100, &format!("r{round}-"));
        // In the midst of what the watcher sees.
        live.out.wait(&format!("\"r{round}-{}\"", random.below(3000)));
        gateway.kill();
        gateway = gateway.restart();
        // The run goes on to the end that it would have had.
        agent.finish();
        live.out.wait_times("\"kind\":\"complete\"", round);
    }
    live.interrupt();
    let ran = live.end().expect(0);
    assert!(ran.err.contains("detached"), "{}", ran.err);
    assert!(ran.err.matches("connection lost").count() >= ROUNDS, "{}", ran.err);
    let logs = run(&gateway, &["logs", &session, "--json"], 0);
    // Whole texts of this size are no help in a failure: the first difference is.
    let differs = ran.out.lines().zip(logs.out.lines()).find(|(seen, stored)| seen != stored);
    assert_eq!(differs, None);
    assert_eq!(ran.out.lines().count(), logs.out.lines().count());
    let events = json_lines(&logs.out);
    let ends: Vec<&Value> = events.iter().filter(|event| event["kind"] == "complete").collect();
    assert_eq!(ends.len(), ROUNDS);
    assert!(ends.iter().all(|end| end["success"] == true), "{ends:?}");
    let said = events.iter().filter(|event| event["kind"] == "text").count();
    assert_eq!(said, ROUNDS * 20_000, "each line of each flood, once");
}

#[test]
fn a_gateway_that_answers_no_more_is_found_dead_and_found_again() {
    let gateway = Setup::with_fake().set("timeouts", "heartbeat", "\"1s\"").start();
    let session = gateway.session("fake");
    run(&gateway, &["send", &session, "x"], 0);
    let agent = gateway.hub().next("fake");
    let live = Live::start(command(&gateway, &["attach", &session, "--json", "--wait"]));
    agent.say("before");
    live.out.wait("before");
    gateway.signal(Signal::STOP);
    live.err.wait("no answer to a ping");
    gateway.signal(Signal::CONT);
    agent.say("after");
    agent.finish();
    let ran = live.end().expect(0);
    assert_eq!(ran.out, run(&gateway, &["logs", &session, "--json"], 0).out);
    assert!(ran.err.contains("-- caught up"), "{}", ran.err);
}

#[test]
fn a_run_outlives_the_one_who_watches_it_and_a_gateway_that_stops() {
    let mut gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    agent.say("the one half");
    live.out.wait("the one half");
    assert!(gateway.terminate().success());
    agent.say("said while no gateway ran");
    let gateway = gateway.restart();
    live.out.wait("said while no gateway ran");
    agent.say("the other half");
    agent.finish();
    let ran = live.end().expect(0);
    let said = "the one half\nsaid while no gateway ran\nthe other half\n";
    assert!(ran.out.contains(said), "{}", ran.out);
    drop(gateway);
}

#[test]
fn a_gateway_that_is_to_take_its_agents_along_does() {
    let mut setup = Setup::with_fake();
    setup.arguments.extend(["--on-stop", "abort"].map(str::to_owned));
    let mut gateway = setup.start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    agent.policy(&[], Some(0), None);
    agent.say("half");
    live.out.wait("half");
    assert!(gateway.terminate().success());
    assert!(agent.gone(), "nothing is left behind");
    // The gateway said so before it went, or says so later.
    let gateway = gateway.restart();
    let ran = live.end().expect(11);
    assert_eq!(ran.out.matches("half").count(), 1, "{}", ran.out);
    drop(gateway);
}

#[test]
fn an_interrupt_while_there_is_no_connection_detaches() {
    let mut gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let live = Live::start(command(&gateway, &["attach", &session]));
    live.err.wait("-- caught up 0 events --");
    gateway.kill();
    live.err.wait("connection lost");
    live.interrupt();
    live.end().expect(0);
}

#[test]
fn attach_leaves_the_agent_alone() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    run(&gateway, &["send", &session, "x"], 0);
    let agent = gateway.hub().next("fake");
    let live = Live::start(command(&gateway, &["attach", &session]));
    agent.say("one");
    live.out.wait("one");
    live.err.wait("-- caught up ");
    live.interrupt();
    let ran = live.end().expect(0);
    let wish = format!("detached; the run goes on: reattach attach {session}");
    assert!(ran.err.contains(&wish), "{}", ran.err);
    agent.say("two");
    agent.finish();
    let again = run(&gateway, &["attach", &session, "--wait"], 0);
    assert!(again.out.contains("one\ntwo\n"), "{}", again.out);
}
