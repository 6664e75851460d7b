//! Warm agents: one process for many runs, runs that the agent begins itself, aborts that leave it
//! warm, and all of that across kills of the gateway.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::process::alive;
use crate::support::{
    Address, Client, Follower, Frame, Gateway, Random, Setup, eventually, let_time_pass,
};

use super::{
    answer, end_of, expect_kind, expect_peace, expect_witness, keepers, number, started, texts,
    wait_gone, witnessed,
};

fn claude() -> (Gateway, String) {
    let gateway = Setup::new().with_fake_claude().start();
    let session = gateway.session("claude");
    (gateway, session)
}

/// A file by which a script is steered.
fn file(gateway: &Gateway, name: &str) -> (PathBuf, String) {
    let path = gateway.setup.root.path().join(name);
    let text = path.to_str().expect("test paths are UTF-8").to_owned();
    (path, text)
}

/// Makes a file that is whole as soon as it is there.
fn put(path: &PathBuf, content: &str) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, content).expect("the root is writable");
    fs::rename(fresh, path).expect("the root is writable");
}

/// The pid that a `tool` step has written.
fn tool_pid(path: &PathBuf) -> u32 {
    eventually("the tool runs", || fs::read_to_string(path).ok()).parse().expect("a pid")
}

/// The head of the next run that `client` sees.
fn next_head(client: &mut Client, session: &str) -> Frame {
    expect_kind(client, session, "run_started")
}

/// How many records of an agent's journal the newest start of the gateway had to fold.
fn folded(gateway: &Gateway) -> u64 {
    eventually("the log says how much was folded", || {
        let log = gateway.stderr();
        let line = log.lines().rfind(|line| line.contains("are folded up to the present"))?;
        let (_, rest) = line.split_once("records=")?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

#[test]
fn one_process_serves_many_runs_and_a_restart_folds_only_the_last() {
    let runs = number("REATTACH_WARM_RUNS").unwrap_or(40);
    let (mut gateway, session) = claude();
    let mut client = gateway.connect();
    let (few, mut early) = (5, 0);
    for turn in 1..=runs {
        let (go_on, wait) = file(&gateway, &format!("go-on-{turn}"));
        let run = client.prompt(&session, &format!("say turn {turn}\nwait {wait}"));
        client.expect("its words", |frame| frame.json["content"] == format!("turn {turn}"));
        if turn == few || turn == runs {
            gateway.kill();
            gateway = gateway.restart();
            client = gateway.connect();
            client.subscribe(&json!({"sessionId": session, "runId": run}));
        }
        put(&go_on, "");
        let complete = client.expect_complete(&run);
        assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
        client.seen.clear();
        if turn == few {
            early = folded(&gateway);
        }
    }
    let late = folded(&gateway);
    eprintln!("a restart folded {early} records after {few} runs, {late} after {runs}");
    assert!(late <= early + 8, "it grows with the runs: {early}, then {late}");
    assert_eq!(started(&gateway).len(), 1, "one process for all runs");
    let log = gateway.replay(&session);
    let said = log.iter().filter(|f| f.kind() == "text").map(|f| f.json["content"].clone());
    assert!(said.eq((1..=runs).map(|turn| Value::from(format!("turn {turn}")))), "I6");
}

#[test]
fn an_idle_agent_is_closed_and_resumed_later() {
    let setup = Setup::new().with_fake_claude().set("timeouts", "agent_idle", "\"300ms\"");
    let mut gateway = setup.start();
    let session = gateway.session("claude");
    let mut client = gateway.connect();
    let first = client.prompt(&session, "say one");
    client.expect_complete(&first);
    let pid = started(&gateway)[0];
    wait_gone(pid);
    expect_peace(&gateway);
    // Also if the gateway was killed while it idled.
    let second = client.prompt(&session, "say two");
    client.expect_complete(&second);
    gateway.kill();
    let pid = started(&gateway)[1];
    assert!(alive(pid), "nobody is there to close it");
    gateway = gateway.restart();
    wait_gone(pid);
    expect_peace(&gateway);
    let mut client = gateway.connect();
    let third = client.prompt(&session, "say three");
    client.expect_complete(&third);
    let notes = witnessed(&gateway);
    let resumed: Vec<&Value> =
        notes.iter().filter_map(|note| note.get("start").map(|start| &start["resume"])).collect();
    assert_eq!(resumed.len(), 3);
    let (_, row) = gateway.get(&format!("/api/v1/sessions/{session}"));
    assert_eq!(resumed, [&Value::Null, &row["providerSessionId"], &row["providerSessionId"]]);
}

#[test]
fn a_background_report_opens_a_run_of_the_agents_own() {
    let (mut gateway, session) = claude();
    let (report, path) = file(&gateway, "report");
    let (go_on, wait) = file(&gateway, "go-on");
    let mut client = gateway.connect();
    let first = client.prompt(&session, &format!("say I start it\nbackground {path}"));
    let complete = client.expect_complete(&first);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);

    put(&report, &format!("say it is done\nwait {wait}\nsay and that was all"));
    let head = next_head(&mut client, &session);
    assert_eq!(head.json["origin"], "agent", "{}", head.text);
    let run = head.run().expect("a head has a run").to_owned();
    assert_ne!(run, first);
    client.expect("its words", |frame| frame.json["content"] == "it is done");
    let send = json!({"type": "chat.send", "sessionId": session, "content": "say mine"});
    let busy = client.request(&send);
    assert_eq!(busy.json["code"], "RUN_IN_PROGRESS", "{}", busy.text);
    let (_, row) = gateway.get(&format!("/api/v1/runs/{run}"));
    assert_eq!((&row["origin"], &row["status"]), (&json!("agent"), &json!("running")), "{row}");

    gateway.kill();
    gateway = gateway.restart();
    let (_, row) = gateway.get(&format!("/api/v1/runs/{run}"));
    assert_eq!((&row["origin"], &row["status"]), (&json!("agent"), &json!("running")), "{row}");
    let mut client = gateway.connect();
    let busy = client.request(&send);
    assert_eq!(busy.json["code"], "RUN_IN_PROGRESS", "{}", busy.text);
    put(&go_on, "");
    let complete = end_of(&gateway, &session, &run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    assert_eq!(texts(&gateway, &session, &run), ["it is done", "and that was all"]);
    // The session is free, and the agent is the same.
    let mine = client.prompt(&session, "say mine");
    client.expect_complete(&mine);
    assert_eq!(texts(&gateway, &session, &mine), ["mine"]);
    assert_eq!(started(&gateway).len(), 1);
}

#[test]
fn a_report_that_comes_while_no_gateway_is_there_is_a_run_when_one_is() {
    let (mut gateway, session) = claude();
    let (report, path) = file(&gateway, "report");
    let mut client = gateway.connect();
    let first = client.prompt(&session, &format!("background {path}"));
    client.expect_complete(&first);
    gateway.kill();
    put(&report, "say nobody was there");
    expect_witness(&gateway, "the report", |note| note["origin"] == "task-notification");
    gateway = gateway.restart();
    let mut client = gateway.connect();
    client.subscribe(&json!({"sessionId": session, "runId": first}));
    client.expect_complete(&first);
    let head = next_head(&mut client, &session);
    assert_eq!(head.json["origin"], "agent", "{}", head.text);
    let run = head.run().expect("a head has a run").to_owned();
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    assert_eq!(texts(&gateway, &session, &run), ["nobody was there"]);
}

#[test]
fn an_aborted_turn_leaves_the_agent_warm_and_its_tools_dead() {
    let (gateway, session) = claude();
    let (pid, path) = file(&gateway, "tool");
    let mut client = gateway.connect();
    let first = client.prompt(&session, "say hello");
    client.expect_complete(&first);
    let run = client.prompt(&session, &format!("tool {path}\nhold"));
    let tool = tool_pid(&pid);
    let ack = client.request(&json!({"type": "chat.abort", "sessionId": session}));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);
    let complete = client.expect_complete(&run);
    assert!(!alive(tool), "I21: a tool of the aborted turn after complete");
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    assert_eq!(
        (&complete.json["reason"], &complete.json["exitCode"]),
        (&json!("aborted"), &json!(0))
    );
    let agent = started(&gateway)[0];
    assert!(alive(agent), "it confirmed: it stays warm");
    let next = client.prompt(&session, "say still here");
    client.expect_complete(&next);
    assert_eq!(texts(&gateway, &session, &next), ["still here"]);
    assert_eq!(started(&gateway), [agent], "the same process");
}

#[test]
fn a_tool_of_an_earlier_turn_is_left_alone_by_an_abort() {
    let (gateway, session) = claude();
    let (pid, path) = file(&gateway, "tool");
    let mut client = gateway.connect();
    let first = client.prompt(&session, &format!("tool {path}"));
    client.expect_complete(&first);
    let tool = tool_pid(&pid);
    // A process's birth is known to a hundredth of a second.
    let_time_pass(Duration::from_millis(50));
    let run = client.prompt(&session, "say now\nhold");
    client.expect("its words", |frame| frame.json["content"] == "now");
    client.request(&json!({"type": "chat.abort", "sessionId": session}));
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    assert!(alive(tool), "it was born before this turn");
    let mut gateway = gateway;
    gateway.setup.arguments.extend(["--on-stop".to_owned(), "abort".to_owned()]);
    assert!(gateway.terminate().success());
    let mut gateway = gateway.restart();
    assert!(gateway.terminate().success());
    wait_gone(tool);
}

#[test]
fn an_agent_that_takes_no_interrupt_is_stopped() {
    let (gateway, session) = claude();
    let (pid, path) = file(&gateway, "tool");
    let mut client = gateway.connect();
    let run = client.prompt(&session, &format!("deaf\ntool {path}\nhold"));
    let tool = tool_pid(&pid);
    client.request(&json!({"type": "chat.abort", "sessionId": session}));
    let complete = client.expect_complete(&run);
    let agent = started(&gateway)[0];
    assert!(!alive(agent) && !alive(tool), "I21: after complete");
    assert_eq!((&complete.json["aborted"], &complete.json["exitCode"]), (&json!(true), &json!(1)));
    let next = client.prompt(&session, "say another");
    client.expect_complete(&next);
    assert_eq!(started(&gateway).len(), 2);
}

#[test]
fn an_abort_asked_right_before_the_kill_ends_aborted_after_it() {
    let setup = Setup::with_fake().with_fake_claude();
    let mut gateway = setup.start();
    for round in 0..super::rounds(6) {
        let warm = round % 2 == 0;
        let session = gateway.session(if warm { "claude" } else { "fake" });
        let mut client = gateway.connect();
        let (pid, path) = file(&gateway, &format!("tool{round}"));
        let content = format!("tool {path}\nhold");
        let run = client.prompt(&session, &content);
        let left = if warm {
            vec![tool_pid(&pid)]
        } else {
            let (agent, _) = gateway.hub().prompted("fake", &content);
            if round % 4 == 1 {
                agent.policy(&[], None, None);
                agent.ignore_signals();
            }
            vec![agent.pid(), agent.escape().pid()]
        };
        let ack =
            client.request(&json!({"type": "chat.abort", "sessionId": session, "runId": run}));
        assert_eq!(ack.kind(), "ack", "{}", ack.text);
        gateway.kill();
        gateway = gateway.restart();
        let complete = end_of(&gateway, &session, &run);
        let living: Vec<&u32> = left.iter().filter(|pid| alive(**pid)).collect();
        assert!(living.is_empty(), "I21: round {round}: {living:?} after complete");
        assert_eq!(complete.json["aborted"], true, "round {round}: {}", complete.text);
        assert_eq!(complete.json["reason"], "aborted", "{}", complete.text);
        assert_eq!(complete.json["success"], false, "{}", complete.text);
    }
}

#[test]
fn an_agent_that_dies_between_its_runs_is_followed_by_another() {
    let (mut gateway, session) = claude();
    let mut client = gateway.connect();
    for round in 0..4 {
        let run = client.prompt(&session, &format!("say round {round}"));
        let complete = client.expect_complete(&run);
        assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
        let pid = *started(&gateway).last().expect("one");
        // Alone, with its keeper, or while no gateway is there.
        let keeper = keepers(&gateway);
        let keeper = keeper.iter().find(|keeper| keeper["session"] == session);
        let keeper = keeper.and_then(|keeper| keeper["pid"].as_u64()).expect("a keeper");
        if round % 2 == 1 {
            gateway.kill();
        }
        if round >= 2 {
            super::kill(u32::try_from(keeper).expect("a pid fits 32 bits"));
        }
        super::kill(pid);
        if round % 2 == 1 {
            gateway = gateway.restart();
            client = gateway.connect();
        } else {
            // A prompt may still reach it as long as nobody has noticed.
            expect_peace(&gateway);
        }
    }
    let last = client.prompt(&session, "say at last");
    let complete = client.expect_complete(&last);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    assert_eq!(started(&gateway).len(), 5);
    let log = gateway.replay(&session);
    let completes = log.iter().filter(|frame| frame.kind() == "complete").count();
    assert_eq!(completes, 5, "I1: no run of nobody's");
}

#[test]
fn kills_anywhere_in_the_turns_of_a_warm_agent_lose_nothing() {
    let (mut gateway, session) = claude();
    let mut random = Random::new(7);
    let address = Address::of(&gateway);
    let followers = [(); 2].map(|()| Follower::start(&address, &[&session]));
    let rounds = super::rounds(8);
    for round in 0..rounds {
        let lines = random.below(400);
        let content = format!("flood {lines} 100\nask\nsay end of {round}");
        let send = json!({"content": content, "clientMessageId": format!("m{round}")});
        let path = format!("/api/v1/sessions/{session}/runs");
        let (status, accepted) = gateway.post(&path, &send);
        assert_eq!(status, 202, "{accepted}");
        let run = accepted["runId"].as_str().expect("a run id").to_owned();
        let mut answered = false;
        for _ in 0..1 + random.below(3) {
            let_time_pass(Duration::from_micros(random.below(60_000) as u64));
            if !answered && let Some(request) = followers[0].look(|view| view.open_of(&session)) {
                answered = answer(&gateway, &request, true).0 == 200;
            }
            gateway.kill();
            gateway = gateway.restart();
            address.moved(&gateway);
        }
        let (status, again) = gateway.post(&path, &send);
        assert_eq!((status, &again["runId"]), (202, &accepted["runId"]), "I19: {again}");
        while let Some(request) = followers[0].wait("it asks, or ends", |view| {
            let over = view.completes.contains_key(&run);
            if over { Some(None) } else { view.open_of(&session).map(Some) }
        }) {
            let (status, body) = answer(&gateway, &request, true);
            // What was said before the kill counts, if it was recorded.
            assert!(matches!(status, 200 | 409), "{status}: {body}");
            followers[0].wait("the answer is seen", |view| {
                let over = view.completes.contains_key(&run);
                (over || !view.open.contains_key(&request)).then_some(())
            });
        }
        for follower in &followers {
            let complete = follower.complete(&run);
            assert_eq!(complete.json["reason"], "finished", "round {round}: {}", complete.text);
        }
        let texts = texts(&gateway, &session, &run);
        let said: Vec<&str> =
            texts.iter().map(|text| text.split(" x").next().unwrap_or_default()).collect();
        let mut expected: Vec<String> = (0..lines).map(|n| format!("e{n}")).collect();
        expected.extend(["allowed".to_owned(), format!("end of {round}")]);
        assert_eq!(said, expected, "I8: round {round}");
    }
    assert_eq!(started(&gateway).len(), 1, "one process for all of them");
    let log = gateway.replay(&session);
    for follower in followers {
        assert_eq!(follower.stop().ledger.len(), log.len(), "I4: it has seen all");
    }
    let notes = witnessed(&gateway);
    let answers = notes.iter().filter(|note| note["given"]["type"] == "control_response");
    assert_eq!(answers.count(), rounds, "I20");
}
