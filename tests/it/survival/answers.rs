//! What was said to the gateway before it was killed: answers, questions, prompts. Each reaches its
//! agent once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Gateway, Random, Setup, begin, eventually, let_time_pass};

use super::{
    answer, end_of, expect_kind, expect_peace, expect_witness, keepers, kill, rounds, texts,
    witnessed,
};

/// Tells the gateway of an answer and gives the request as it went out.
fn respond(client: &mut Client, request: &str, allow: bool) -> Value {
    let answer = json!({
        "type": "chat.permission-response", "requestId": request, "allow": allow,
    });
    client.send(&answer);
    answer
}

/// How often the agent was given an answer to its own request `id`.
fn given(agent: &crate::support::Agent, id: &str) -> Vec<Value> {
    let lines = agent.lines_so_far();
    lines.into_iter().filter(|line| line["requestId"] == id).collect()
}

#[test]
fn an_answer_given_right_before_the_kill_reaches_the_agent_once() {
    let mut gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "ask much");
    let rounds = rounds(6);
    for round in 0..rounds {
        let id = format!("q{round}");
        agent.emit(&[json!({
            "kind": "permission_request", "requestId": id, "toolName": "Bash", "input": {},
        })]);
        let asked = expect_kind(&mut client, &session, "permission_request");
        let request = asked.json["requestId"].as_str().expect("an id").to_owned();
        let allow = round % 2 == 0;
        let acked = round % 3 != 2;
        if acked {
            let ack = client.request(&json!({
                "type": "chat.permission-response", "requestId": request, "allow": allow,
            }));
            assert_eq!(ack.kind(), "ack", "{}", ack.text);
        } else {
            respond(&mut client, &request, allow);
        }
        gateway.kill();
        gateway = gateway.restart();
        // Who has had no ack asks again, and is told either way.
        let (status, body) = answer(&gateway, &request, allow);
        match status {
            409 => assert_eq!(body["error"]["code"], "PERMISSION_ALREADY_RESOLVED", "{body}"),
            status => assert!(status == 200 && !acked, "round {round}: {status}: {body}"),
        }
        let line = agent.line("the answer", |line| line["requestId"] == id);
        assert_eq!(line["allow"], allow, "{line}");
        client = gateway.connect();
        client.subscribe(&json!({"sessionId": session, "from": "start"}));
        let request = Value::from(request);
        client.expect("its delivery", |frame| {
            frame.is("permission_resolved", &session)
                && frame.json["requestId"] == request
                && frame.json["state"] == "delivered"
        });
    }
    for round in 0..rounds {
        let lines = given(&agent, &format!("q{round}"));
        assert_eq!(lines.len(), 1, "I20: round {round}: {lines:?}");
    }
    agent.finish();
    client.expect_complete(&run);
    let log = gateway.replay(&session);
    let count = |state: &str| {
        let of = |frame: &&crate::support::Frame| {
            frame.kind() == "permission_resolved" && frame.json["state"] == state
        };
        log.iter().filter(of).count()
    };
    assert_eq!((count("recorded"), count("delivered")), (rounds, rounds), "I20");
    expect_peace(&gateway);
}

#[test]
fn what_was_asked_before_the_kill_can_be_answered_after_it() {
    let mut gateway = Setup::new().with_fake_claude().start();
    let session = gateway.session("claude");
    let mut client = gateway.connect();
    let run = client.prompt(&session, "ask\nquestion");
    let asked = expect_kind(&mut client, &session, "permission_request");
    gateway.kill();
    gateway = gateway.restart();
    let (_, pending) = gateway.get("/api/v1/permissions");
    assert_eq!(pending["items"][0]["requestId"], asked.json["requestId"], "{pending}");
    let mut client = gateway.connect();
    let seq = asked.seq().expect("an event");
    let subscribed = client.subscribe(&json!({"sessionId": session, "runId": run, "lastSeq": seq}));
    let pending = &subscribed.json["pendingPermissions"];
    assert_eq!(pending[0]["requestId"], asked.json["requestId"], "{}", subscribed.text);
    assert_eq!(subscribed.json["isProcessing"], true);
    let ack = client.request(&json!({
        "type": "chat.permission-response", "requestId": asked.json["requestId"], "allow": true,
    }));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);

    let asked = expect_kind(&mut client, &session, "permission_request");
    assert_eq!(asked.json["interaction"], "question", "{}", asked.text);
    gateway.kill();
    gateway = gateway.restart();
    let mut client = gateway.connect();
    let seq = asked.seq().expect("an event");
    client.subscribe(&json!({"sessionId": session, "runId": run, "lastSeq": seq}));
    let ack = client.request(&json!({
        "type": "chat.permission-response", "requestId": asked.json["requestId"], "allow": true,
        "updatedInput": {"answers": {"Which colour?": "Blue"}},
    }));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    let texts = texts(&gateway, &session, &run);
    assert_eq!(texts, ["allowed", r#"answered {"Which colour?":"Blue"}"#]);
    let answers = witnessed(&gateway)
        .into_iter()
        .filter(|note| note["given"]["type"] == "control_response")
        .count();
    assert_eq!(answers, 2, "I20: each answer once");
}

#[test]
fn a_prompt_accepted_right_before_the_kill_runs_once() {
    let mut gateway = Setup::with_fake().start();
    let rounds = rounds(6);
    for round in 0..rounds {
        let session = gateway.session("fake");
        let content = format!("round {round}");
        let mut client = gateway.connect();
        let send = json!({
            "type": "chat.send", "sessionId": session, "content": content,
            "clientMessageId": content,
        });
        let accepted = round % 3 != 2;
        let mut run = Value::Null;
        if accepted {
            let reply = client.request(&send);
            assert_eq!(reply.kind(), "chat_accepted", "{}", reply.text);
            run = reply.json["runId"].clone();
        } else {
            client.send(&send);
        }
        gateway.kill();
        gateway = gateway.restart();
        let mut client = gateway.connect();
        let again = client.request(&send);
        assert_eq!(again.kind(), "chat_accepted", "{}", again.text);
        if accepted {
            assert_eq!(again.json["runId"], run, "I19: {}", again.text);
            assert_eq!(again.json["duplicate"], true, "I19: {}", again.text);
        }
        let run = again.json["runId"].as_str().expect("a run").to_owned();
        let (agent, _) = gateway.hub().prompted("fake", &content);
        agent.finish();
        let complete = end_of(&gateway, &session, &run);
        assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
        let prompts = agent.lines_so_far();
        let prompts = prompts.iter().filter(|line| line["type"] == "prompt").count();
        assert_eq!(prompts, 1, "I19: round {round}");
    }
    assert_eq!(gateway.hub().count("fake"), rounds, "I19: one agent for each prompt");
    expect_peace(&gateway);
}

#[test]
fn whatever_dies_as_an_agent_starts_its_run_ends_once() {
    let mut gateway = Setup::with_fake().start();
    let mut random = Random::new(5);
    let mut reasons = std::collections::BTreeMap::new();
    for round in 0..2 * rounds(6) {
        let session = gateway.session("fake");
        let mut client = gateway.connect();
        let run = client.prompt(&session, &format!("round {round}"));
        // Somewhere between the home, the keeper, its agent, and the prompt on its way.
        let_time_pass(Duration::from_micros(random.below(20_000) as u64));
        let keepers = keepers(&gateway);
        let keeper = keepers.iter().find(|keeper| keeper["session"] == session);
        let keeper = keeper.and_then(|keeper| u32::try_from(keeper["pid"].as_u64()?).ok());
        let (with_gateway, with_keeper) = [(true, false), (true, true), (false, true)][round % 3];
        if with_gateway {
            gateway.kill();
        }
        if let Some(keeper) = keeper.filter(|_| with_keeper) {
            kill(keeper);
        }
        if with_gateway {
            gateway = gateway.restart();
        }
        let mut client = gateway.connect();
        client.subscribe(&json!({"sessionId": session, "runId": run}));
        let complete = eventually("its end", || {
            if let Some(agent) = gateway.hub().poll("fake") {
                agent.complete_later();
            }
            client.read(Duration::from_millis(20)).filter(|frame| frame.kind() == "complete")
        });
        let reason = complete.json["reason"].as_str().expect("a reason").to_owned();
        if !with_keeper {
            assert_eq!(reason, "finished", "round {round}: {}", complete.text);
        }
        *reasons.entry(reason).or_insert(0) += 1;
        expect_peace(&gateway);
    }
    eprintln!("killed as an agent starts: {reasons:?}");
}

#[test]
fn a_prompt_to_a_warm_agent_right_before_the_kill_reaches_it_once() {
    let mut gateway = Setup::new().with_fake_claude().start();
    let session = gateway.session("claude");
    let mut client = gateway.connect();
    let first = client.prompt(&session, "say hello");
    client.expect_complete(&first);
    let rounds = rounds(6);
    for round in 0..rounds {
        let content = format!("say round {round}");
        let run = client.prompt(&session, &content);
        gateway.kill();
        gateway = gateway.restart();
        let complete = end_of(&gateway, &session, &run);
        assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
        assert_eq!(texts(&gateway, &session, &run), [format!("round {round}")]);
        client = gateway.connect();
    }
    let prompts = |gateway: &Gateway| {
        let notes = witnessed(gateway);
        notes.into_iter().filter(|note| note["given"]["type"] == "user").count()
    };
    assert_eq!(prompts(&gateway), 1 + rounds, "I19: each prompt once");
    assert_eq!(super::started(&gateway).len(), 1, "one process for all of them");
}

#[test]
fn an_answer_to_a_warm_agent_right_before_the_kill_reaches_it_once() {
    let mut gateway = Setup::new().with_fake_claude().start();
    let session = gateway.session("claude");
    for round in 0..rounds(4) {
        let mut client = gateway.connect();
        let run = client.prompt(&session, "ask");
        let asked = expect_kind(&mut client, &session, "permission_request");
        let ack = client.request(&json!({
            "type": "chat.permission-response", "requestId": asked.json["requestId"],
            "allow": round % 2 == 0,
        }));
        assert_eq!(ack.kind(), "ack", "{}", ack.text);
        gateway.kill();
        gateway = gateway.restart();
        let complete = end_of(&gateway, &session, &run);
        assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
        let decided = if round % 2 == 0 { "allowed" } else { "denied" };
        assert_eq!(texts(&gateway, &session, &run), [decided], "round {round}");
    }
    // Every one of them, and none twice.
    let notes = witnessed(&gateway);
    let answers: Vec<&Value> = notes
        .iter()
        .filter(|note| note["given"]["type"] == "control_response")
        .map(|note| &note["given"]["response"]["request_id"])
        .collect();
    let mut distinct = answers.clone();
    distinct.dedup();
    assert_eq!(distinct.len(), answers.len(), "I20: {answers:?}");
    assert_eq!(answers.len(), rounds(4), "I20");
    expect_witness(&gateway, "a turn", |note| note["turn"] == rounds(4));
    eventually("it idles", || {
        let (_, running) = gateway.get("/api/v1/runs?status=running");
        (running["items"] == json!([])).then_some(())
    });
}
