//! The durable queue: a prompt that waits is seen by every device, begins after the run that is
//! on, in order, once (I19), and is held after an abort.

use serde_json::{Value, json};

use crate::support::{Client, Frame, Gateway, Setup, begin, eventually};

fn queue(client: &mut Client, session: &str, content: &str, message: Option<&str>) -> Frame {
    client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": content, "whenBusy": "queue",
        "clientMessageId": message,
    }))
}

/// A prompt that has to wait: its queue id.
#[track_caller]
fn queued(client: &mut Client, session: &str, content: &str) -> String {
    let reply = queue(client, session, content, None);
    assert_eq!(reply.kind(), "chat_queued", "{}", reply.text);
    reply.json["queueId"].as_str().expect("an id").to_owned()
}

fn listed(gateway: &Gateway, session: &str) -> Value {
    let (status, list) = gateway.get(&format!("/api/v1/sessions/{session}/queue"));
    assert_eq!(status, 200, "{list}");
    list
}

fn contents(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["content"].as_str().expect("a prompt").to_owned()).collect()
}

fn abort(client: &mut Client, session: &str) {
    let ack = client.request(&json!({"type": "chat.abort", "sessionId": session}));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);
}

#[test]
fn prompts_wait_for_the_run_and_begin_in_order() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let mut other = gateway.connect();
    let (first, agent) = begin(&gateway, &mut client, &session, "one");
    let two = queue(&mut client, &session, "two", Some("m2"));
    assert_eq!(two.kind(), "chat_queued", "{}", two.text);
    assert_eq!(
        (&two.json["position"], &two.json["duplicate"], &two.json["clientMessageId"]),
        (&json!(1), &json!(false), &json!("m2"))
    );
    // Another device, by REST, which has not followed the session.
    let (status, three) = gateway.post(
        &format!("/api/v1/sessions/{session}/runs"),
        &json!({"content": "three", "whenBusy": "queue", "options": {"a": 1}}),
    );
    assert_eq!((status, &three["position"], &three["duplicate"]), (202, &json!(2), &json!(false)));
    other.expect("that two wait", |f| {
        f.is("session_upserted", &session) && f.json["session"]["queued"] == 2
    });
    let list = listed(&gateway, &session);
    assert_eq!(contents(&list), ["two", "three"], "{list}");
    assert_eq!((&list["held"], &list["items"][1]["options"]), (&json!(false), &json!({"a": 1})));
    assert_eq!(list["items"][0]["queueId"], two.json["queueId"]);
    let subscribed = other.subscribe(&json!({"sessionId": session, "from": "tail"}));
    let shown = &subscribed.json["queue"];
    assert_eq!((&shown[0]["content"], &shown[1]["position"]), (&json!("two"), &json!(2)));
    assert_eq!(gateway.hub().count("fake"), 1, "nothing begins while a run is on (I5)");

    agent.finish();
    client.expect_complete(&first);
    let (agent, _) = gateway.hub().prompted("fake", "two");
    let head = client
        .expect("the next run", |f| f.is("run_started", &session) && f.json["content"] == "two");
    assert_eq!(
        (&head.json["queueId"], &head.json["clientMessageId"]),
        (&two.json["queueId"], &json!("m2"))
    );
    assert_eq!(contents(&listed(&gateway, &session)), ["three"]);
    agent.finish();
    let (agent, _) = gateway.hub().prompted("fake", "three");
    agent.finish();
    let last = other
        .expect("the last run", |f| f.is("run_started", &session) && f.json["content"] == "three");
    other.expect_complete(last.run().expect("a run"));
    let empty = listed(&gateway, &session);
    assert_eq!((&empty["items"], &empty["held"]), (&json!([]), &json!(false)));
}

/// What is not busy need not wait, whatever was asked for.
#[test]
fn a_prompt_to_an_idle_session_begins_at_once() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let reply = queue(&mut client, &session, "now", None);
    assert_eq!(reply.kind(), "chat_accepted", "{}", reply.text);
    gateway.hub().prompted("fake", "now").0.finish();
    client.expect_complete(reply.json["runId"].as_str().expect("a run"));
}

#[test]
fn a_resend_finds_its_place_its_run_or_that_it_was_taken_out() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, agent) = begin(&gateway, &mut client, &session, "one");
    let waits = queue(&mut client, &session, "two", Some("m2"));
    let gone = queue(&mut client, &session, "three", Some("m3"));
    let again = queue(&mut client, &session, "two", Some("m2"));
    assert_eq!(again.kind(), "chat_queued", "{}", again.text);
    assert_eq!(
        (&again.json["queueId"], &again.json["position"], &again.json["duplicate"]),
        (&waits.json["queueId"], &json!(1), &json!(true))
    );
    let other = queue(&mut client, &session, "two!", Some("m2"));
    assert_eq!(other.json["code"], "INVALID_FIELD", "{}", other.text);
    let path = format!(
        "/api/v1/sessions/{session}/queue/{}",
        gone.json["queueId"].as_str().expect("an id")
    );
    let remove = |gateway: &Gateway| gateway.request("DELETE", &path, None, Some(gateway.token()));
    assert_eq!(remove(&gateway).0, 204);
    let (status, refused) = remove(&gateway);
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("QUEUED_PROMPT_NOT_FOUND")));
    let resent = queue(&mut client, &session, "three", Some("m3"));
    assert_eq!(
        resent.json["code"], "INVALID_FIELD",
        "I19: it is not wanted any more: {}",
        resent.text
    );

    // Across a restart too.
    let gateway = gateway.restart();
    let mut client = gateway.connect();
    let resent = queue(&mut client, &session, "three", Some("m3"));
    assert_eq!(resent.json["code"], "INVALID_FIELD", "{}", resent.text);
    let again = queue(&mut client, &session, "two", Some("m2"));
    assert_eq!((again.kind(), &again.json["queueId"]), ("chat_queued", &waits.json["queueId"]));
    agent.finish();
    let (agent, _) = gateway.hub().prompted("fake", "two");
    let ran = queue(&mut client, &session, "two", Some("m2"));
    assert_eq!((ran.kind(), &ran.json["duplicate"]), ("chat_accepted", &json!(true)));
    agent.finish();
    client.expect_complete(ran.json["runId"].as_str().expect("a run"));
}

#[test]
fn an_abort_holds_the_queue_until_somebody_goes_on() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (first, _agent) = begin(&gateway, &mut client, &session, "one");
    queued(&mut client, &session, "two");
    let third = queued(&mut client, &session, "three");
    abort(&mut client, &session);
    client.expect_complete(&first);
    let (_, shown) = gateway.get(&format!("/api/v1/sessions/{session}"));
    assert_eq!(
        (&shown["queueHeld"], &shown["queued"], &shown["running"]),
        (&json!(true), &json!(2), &json!(false)),
        "what a client has seen ended is held: {shown}"
    );
    assert_eq!(listed(&gateway, &session)["held"], json!(true));
    // It stays held across a restart.
    let gateway = gateway.restart();
    let mut client = gateway.connect();
    let subscribed = client.subscribe(&json!({"sessionId": session, "from": "tail"}));
    assert_eq!(
        (&subscribed.json["queueHeld"], &subscribed.json["isProcessing"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(gateway.hub().count("fake"), 1);

    let (status, resumed) =
        gateway.post(&format!("/api/v1/sessions/{session}/queue/resume"), &json!({}));
    assert_eq!((status, &resumed), (202, &json!({"held": false})));
    let (agent, _) = gateway.hub().prompted("fake", "two");
    let head = client.expect("its run", |f| f.is("run_started", &session));
    abort(&mut client, &session);
    client.expect_complete(head.run().expect("a run"));
    agent.wait_gone();
    assert_eq!(contents(&listed(&gateway, &session)), ["three"]);

    // Whoever sends goes on: the prompt that was sent first, then what waits.
    let sent = client.prompt(&session, "four");
    let (agent, _) = gateway.hub().prompted("fake", "four");
    let list = listed(&gateway, &session);
    assert_eq!((&list["items"][0]["queueId"], &list["held"]), (&json!(third), &json!(false)));
    agent.finish();
    client.expect_complete(&sent);
    gateway.hub().prompted("fake", "three").0.finish();
}

#[test]
fn a_full_queue_refuses_and_records_nothing() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, _agent) = begin(&gateway, &mut client, &session, "one");
    for n in 0..reattach::limits::QUEUE_MAX {
        queued(&mut client, &session, &format!("{n}"));
    }
    let refused = queue(&mut client, &session, "too many", Some("m"));
    assert_eq!(refused.json["code"], "BUSY", "{}", refused.text);
    assert_eq!(contents(&listed(&gateway, &session)).len(), reattach::limits::QUEUE_MAX);
    let bad = client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "x", "whenBusy": "later",
    }));
    assert_eq!(bad.json["code"], "INVALID_FIELD", "{}", bad.text);
}

/// A prompt that cannot be served any more is a run that says why, and the next one follows.
#[test]
fn what_cannot_be_served_is_a_run_that_says_why() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let place = gateway.setup.project().join("place");
    std::fs::create_dir(&place).expect("made");
    let mut client = gateway.connect();
    let (first, agent) = begin(&gateway, &mut client, &session, "one");
    let reply = client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "there", "whenBusy": "queue",
        "options": {"cwd": "place"},
    }));
    assert_eq!(reply.kind(), "chat_queued", "{}", reply.text);
    queued(&mut client, &session, "here");
    std::fs::remove_dir(&place).expect("removed");
    agent.finish();
    client.expect_complete(&first);
    let head =
        client.expect("its run", |f| f.is("run_started", &session) && f.json["content"] == "there");
    let end = client.expect_complete(head.run().expect("a run"));
    assert_eq!(end.json["reason"], "spawn_failed", "{}", end.text);
    assert!(end.json["error"].as_str().is_some_and(|why| why.contains("cwd")), "{}", end.text);
    gateway.hub().prompted("fake", "here").0.finish();
}

#[test]
fn a_queued_prompt_waits_for_a_place_among_the_agents() {
    let gateway = Setup::with_fake().set("limits", "agents_max", "1").start();
    let (one, two) = (gateway.session("fake"), gateway.session("fake"));
    let mut client = gateway.connect();
    let (first, agent) = begin(&gateway, &mut client, &one, "one");
    queued(&mut client, &one, "next");
    abort(&mut client, &one);
    client.expect_complete(&first);
    agent.wait_gone();
    // The only place is the other session's now.
    let run = eventually("the place to be free", || {
        let sent =
            client.request(&json!({"type": "chat.send", "sessionId": two, "content": "other"}));
        (sent.kind() == "chat_accepted")
            .then(|| sent.json["runId"].as_str().expect("an id").to_owned())
    });
    let (other, _) = gateway.hub().prompted("fake", "other");
    let (status, _) = gateway.post(&format!("/api/v1/sessions/{one}/queue/resume"), &json!({}));
    assert_eq!(status, 202);
    let refused =
        client.request(&json!({"type": "chat.send", "sessionId": one, "content": "me first"}));
    assert_eq!(refused.json["code"], "RUN_IN_PROGRESS", "its turn has come: {}", refused.text);
    assert_eq!(contents(&listed(&gateway, &one)), ["next"]);
    other.finish();
    client.expect_complete(&run);
    gateway.hub().prompted("fake", "next").0.finish();
}
