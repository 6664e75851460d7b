//! A gateway that is stopped, in good order or not: what lives on, what does not, and who may come
//! after it.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::support::client::Ended;
use crate::support::process::{alive, mentioning, signal};
use crate::support::{
    Agent, Checker, Client, Gateway, Setup, begin, eventually, let_time_pass, one_session,
};

use super::{end_of, expect_kind, expect_peace, keeper_of, number, row, started, texts, wait_gone};

#[test]
fn a_gateway_that_is_stopped_for_a_while_goes_on() {
    const LINES: u64 = 6000;
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "flood");
    agent.flood(LINES, 1000, "e");
    client.expect_at(&run, 50);
    gateway.signal(Signal::STOP);
    // The agent goes on: what it says lies in the journal.
    eventually("the agent is done", || (agent.sent() == LINES).then_some(()));
    let seconds = number("REATTACH_STOP_SECONDS").unwrap_or(1);
    let_time_pass(Duration::from_secs(seconds as u64));
    gateway.signal(Signal::CONT);
    client.expect_at(&run, LINES);
    agent.finish();
    let complete = client.expect_complete(&run);
    assert_eq!((&complete.json["reason"], complete.seq()), (&json!("finished"), Some(LINES + 1)));
    let mut checker = Checker::new();
    client.seen.iter().for_each(|frame| checker.see(frame));
    assert_eq!(client.ended, None, "nobody was dropped");
    expect_peace(&gateway);
}

/// SIGTERM: the connection closes with 1001, the process ends with 0 and says so before.
#[track_caller]
fn stop(gateway: &mut Gateway, client: &mut Client, mode: &str) {
    gateway.signal(Signal::TERM);
    let draining = expect_kind(client, "", "server_draining");
    assert_eq!(draining.json["mode"], mode, "{}", draining.text);
    assert_eq!(client.read_to_end(), Ended::Closed(1001));
    let status = gateway.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn sigterm_keeps_agents_and_the_next_start_goes_on() {
    let mut gateway = Setup::with_fake().with_fake_claude().start();
    let session = gateway.session("fake");
    let warm = gateway.session("claude");
    let mut client = gateway.connect();
    let idle = client.prompt(&warm, "say one");
    client.expect_complete(&idle);
    let (run, agent) = begin(&gateway, &mut client, &session, "long");
    agent.say("before");
    client.expect_at(&run, 1);
    stop(&mut gateway, &mut client, "keep");
    assert!(
        !client.seen.iter().any(|frame| frame.kind() == "complete" && frame.run() == Some(&run))
    );
    assert!(alive(agent.pid()), "it lives on");
    assert!(alive(started(&gateway)[0]), "the idle one, too");
    agent.say("meanwhile");
    gateway = gateway.restart();
    assert_eq!(row(&gateway, &run)["status"], "running", "I9");
    agent.say("after");
    agent.finish();
    let complete = end_of(&gateway, &session, &run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    assert_eq!(texts(&gateway, &session, &run), ["before", "meanwhile", "after"]);
    let mut client = gateway.connect();
    let again = client.prompt(&warm, "say two");
    client.expect_complete(&again);
    assert_eq!(started(&gateway).len(), 1, "the warm one serves on");
}

#[test]
fn sigterm_with_abort_leaves_nothing() {
    let mut setup = Setup::with_fake().with_fake_claude();
    setup.arguments.extend(["--on-stop".to_owned(), "abort".to_owned()]);
    let mut gateway = setup.start();
    let session = gateway.session("fake");
    let warm = gateway.session("claude");
    let mut client = gateway.connect();
    let idle = client.prompt(&warm, "say one");
    client.expect_complete(&idle);
    let (run, agent) = begin(&gateway, &mut client, &session, "long");
    let grandchild = agent.escape();
    agent.say("at work");
    client.expect_at(&run, 1);
    stop(&mut gateway, &mut client, "abort");
    let complete = client.seen.iter().find(|f| f.kind() == "complete" && f.run() == Some(&run));
    let complete = complete.expect("the run ended before the gateway").clone();
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    assert!(!alive(agent.pid()) && !alive(grandchild.pid()), "I21");
    let left = mentioning(gateway.setup.root.path(), &[]);
    assert!(left.is_empty(), "I21: {left:?}");
    gateway = gateway.restart();
    assert_eq!(end_of(&gateway, &session, &run).text, complete.text);
    expect_peace(&gateway);
    // The conversation goes on in another process.
    let mut client = gateway.connect();
    let again = client.prompt(&warm, "say two");
    client.expect_complete(&again);
    assert_eq!(started(&gateway).len(), 2);
}

#[test]
fn a_second_gateway_is_refused_and_the_agents_stay_with_the_first() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "mine");
    for _ in 0..3 {
        let (code, stderr) = gateway.setup.refused();
        assert_eq!(code, Some(75), "{stderr}");
        assert!(stderr.contains(&gateway.pid().to_string()), "it names the first: {stderr}");
    }
    agent.say("still yours");
    client.expect_at(&run, 1);
    agent.finish();
    client.expect_complete(&run);
    expect_peace(&gateway);
}

#[test]
fn of_two_gateways_that_start_at_once_one_gets_the_agents() {
    let (mut gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "whose");
    gateway.kill();
    let mut rivals = [(); 3].map(|()| gateway.setup.command().spawn().expect("the binary runs"));
    // All but one end, and say that there is another.
    let mut ended = Vec::new();
    eventually("one is left", || {
        ended = rivals.iter_mut().map(|rival| rival.try_wait().expect("our child")).collect();
        (ended.iter().filter(|status| status.is_none()).count() == 1).then_some(())
    });
    for status in ended.iter().flatten() {
        assert_eq!(status.code(), Some(75));
    }
    agent.say("to whoever it is");
    for mut rival in rivals {
        drop(rival.kill());
        rival.wait().expect("our child");
    }
    let gateway = gateway.restart();
    agent.finish();
    let complete = end_of(&gateway, &session, &run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    assert_eq!(texts(&gateway, &session, &run), ["to whoever it is"]);
}

#[test]
fn an_orphan_is_stopped_when_its_grace_is_over_and_the_next_start_says_so() {
    let mut gateway = Setup::with_fake().set("timeouts", "orphan_grace", "\"300ms\"").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "alone");
    let grandchild = agent.escape();
    agent.say("before");
    client.expect_at(&run, 1);
    let keeper = keeper_of(&gateway, &session);
    gateway.kill();
    agent.wait_gone();
    grandchild.wait_gone();
    wait_gone(keeper);
    gateway = gateway.restart();
    let complete = end_of(&gateway, &session, &run);
    assert_eq!(complete.json["success"], false, "{}", complete.text);
    let error = complete.json["error"].as_str().unwrap_or_default();
    assert!(error.contains("orphan_grace"), "it says why: {}", complete.text);
    assert_eq!(texts(&gateway, &session, &run), ["before"]);
    expect_peace(&gateway);
}

#[test]
fn a_gateway_that_comes_back_in_time_ends_the_grace() {
    let mut gateway = Setup::with_fake().set("timeouts", "orphan_grace", "\"2s\"").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "not alone for long");
    gateway.kill();
    gateway = gateway.restart();
    // Longer than the grace.
    let_time_pass(Duration::from_millis(2500));
    assert!(alive(agent.pid()));
    agent.finish();
    let complete = end_of(&gateway, &session, &run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
}

/// What an agent is told still reaches it.
#[track_caller]
fn expect_reachable(client: &mut Client, session: &str, agent: &Agent, id: &str) {
    agent.emit(&[json!({
        "kind": "permission_request", "requestId": id, "toolName": "Bash", "input": {},
    })]);
    let asked = expect_kind(client, session, "permission_request");
    client.request(&json!({
        "type": "chat.permission-response", "requestId": asked.json["requestId"], "allow": true,
    }));
    agent.line("the answer", |line| line["requestId"] == id);
}

#[test]
fn a_keeper_does_not_die_of_a_hangup_and_ends_its_agent_when_told() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "be kept");
    let keeper = keeper_of(&gateway, &session);
    for stubborn in [Signal::HUP, Signal::PIPE] {
        assert!(signal(keeper, stubborn));
    }
    expect_reachable(&mut client, &session, &agent, "q");
    assert!(alive(keeper));
    assert!(signal(keeper, Signal::TERM));
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["success"], false, "{}", complete.text);
    assert_eq!(complete.json["aborted"], false, "nobody asked the gateway: {}", complete.text);
    expect_peace(&gateway);
}

#[test]
fn many_gateways_in_turn_follow_one_agent() {
    let (mut gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "follow me");
    for turn in 0..8 {
        agent.say(&format!("e{turn}"));
        if turn % 2 == 0 {
            gateway.kill();
        } else {
            gateway.signal(Signal::TERM);
            assert!(gateway.wait().success());
        }
        gateway = gateway.restart();
        let mut client = gateway.connect();
        client.subscribe(&json!({"sessionId": session, "runId": run}));
        client.expect_at(&run, turn + 1);
    }
    agent.finish();
    end_of(&gateway, &session, &run);
    let texts = texts(&gateway, &session, &run);
    assert!(texts.into_iter().eq((0..8).map(|turn| format!("e{turn}"))), "I2");
    expect_peace(&gateway);
}
