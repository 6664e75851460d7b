//! Notifications of the built binary: who is told of what, when nobody is, and what is recorded.

pub(crate) mod hook;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Agent, Gateway, Setup, begin, eventually, let_time_pass};
use hook::{Answer, Hook};

/// A gateway with a webhook `hook` and a scripted agent.
fn with_hook(hook: &Hook, more: &[(&str, &str)]) -> Setup {
    also_with_hook(Setup::with_fake(), hook, more)
}

fn also_with_hook(setup: Setup, hook: &Hook, more: &[(&str, &str)]) -> Setup {
    let url = format!("{:?}", hook.url("/secret-path"));
    let mut setup = setup.set("notify.hook", "kind", "\"webhook\"");
    setup = setup.set("notify.hook", "url", &url);
    for (key, value) in more {
        setup = setup.set("notify.hook", key, value);
    }
    setup
}

fn ask(agent: &Agent, id: &str, command: &str) {
    agent.emit(&[json!({
        "kind": "permission_request", "requestId": id, "toolName": "Bash",
        "input": {"command": command},
    })]);
}

/// What is recorded of a session, the newest first.
fn recorded(gateway: &Gateway, session: &str) -> Vec<Value> {
    let (status, page) = gateway.get("/api/v1/notifications");
    assert_eq!(status, 200, "{page}");
    let items = page["items"].as_array().expect("a list").clone();
    items.into_iter().filter(|item| session.is_empty() || item["sessionId"] == session).collect()
}

#[track_caller]
fn wait_recorded(gateway: &Gateway, session: &str, event: &str, outcome: &str) -> Value {
    eventually(&format!("{event} is recorded as {outcome}"), || {
        let found = recorded(gateway, session);
        found.into_iter().find(|item| item["event"] == event && item["outcome"] == outcome)
    })
}

#[test]
fn who_is_away_hears_that_an_agent_waits_and_how_it_ends() {
    let hook = Hook::new(&[]);
    let setup = Setup::with_fake().set("server", "public_url", "\"https://box.example/sub\"");
    let more = [("detail", "\"full\""), ("token", "\"tk_hidden\"")];
    let gateway = also_with_hook(setup, &hook, &more).start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "fix it");
    ask(&agent, "p1", "cargo test\r\n--all");
    let posted = hook.event("permission_asked");
    assert_eq!(posted.line, "POST /secret-path HTTP/1.1");
    assert_eq!(posted.header("authorization"), Some("Bearer tk_hidden"));
    let told = &posted.body;
    assert_eq!((&told["sessionId"], &told["runId"]), (&json!(session), &json!(run)));
    assert_eq!(told["title"], "fake wants to use Bash");
    assert_eq!(told["body"], "cargo test --all\nfix it (in demo)");
    assert_eq!(told["tool"], "Bash");
    assert_eq!(told["url"], format!("https://box.example/sub/#s={session}"));
    wait_recorded(&gateway, &session, "permission_asked", "sent");

    agent.emit(&[json!({"kind": "complete", "exitCode": 3, "error": "no room"})]);
    let failed = hook.event("run_failed");
    assert_eq!(failed.body["summary"], "no room", "{:?}", failed.body);
    let row = wait_recorded(&gateway, &session, "run_failed", "sent");
    assert_eq!((&row["detail"], &row["sink"]), (&json!("HTTP 200"), &json!("hook")));
    assert_eq!(row["runId"], json!(run));
    assert!(!gateway.stderr().contains("tk_hidden"), "no secret is logged");
    assert!(!gateway.stderr().contains("secret-path"), "nor the address, which may be one");
    assert_eq!(hook.so_far().len(), 2, "each is told once");
}

#[test]
fn ntfy_is_published_to_as_json_so_no_text_becomes_a_header() {
    let hook = Hook::new(&[]);
    let url = format!("{:?}", hook.url("/my-topic"));
    let setup = Setup::with_fake().set("server", "public_url", "\"https://box.example\"");
    let setup = setup.set("notify.ntfy", "url", &url);
    let setup = setup.set("notify.ntfy", "token", "\"tk_hidden\"");
    let setup = setup.set("notify.ntfy", "detail", "\"full\"");
    let gateway = setup.start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, agent) = begin(&gateway, &mut client, &session, "grüße\r\nX-Evil: 1");
    ask(&agent, "p1", "echo ✓\r\nPriority: 5");
    let posted = hook.wait("a notification", |_| true);
    assert_eq!(posted.line, "POST / HTTP/1.1", "the topic is in the body");
    assert_eq!(posted.header("authorization"), Some("Bearer tk_hidden"));
    assert_eq!((posted.header("x-evil"), posted.header("priority")), (None, None));
    let told = &posted.body;
    assert_eq!(told["topic"], "my-topic");
    assert_eq!((&told["priority"], &told["tags"]), (&json!(4), &json!(["raised_hand"])));
    assert_eq!(told["title"], "fake wants to use Bash");
    assert_eq!(told["message"], "echo ✓ Priority: 5\ngrüße X-Evil: 1 (in demo)");
    assert_eq!(told["click"], format!("https://box.example/#s={session}"));
}

#[test]
fn only_a_client_that_says_it_is_visible_keeps_a_notification_back() {
    let hook = Hook::new(&[]);
    let gateway = with_hook(&hook, &[("events", "[\"permission_asked\"]")]).start();
    let mut client = gateway.connect();
    let asked = |client: &mut crate::support::Client, name: &str| {
        let session = gateway.session("fake");
        let (_, agent) = begin(&gateway, client, &session, name);
        ask(&agent, name, "true");
        session
    };
    // It follows the session, as every sender does, and says nothing of itself.
    let unsaid = asked(&mut client, "unsaid");
    wait_recorded(&gateway, &unsaid, "permission_asked", "sent");
    let ack = client.request(&json!({"type": "presence", "visible": true}));
    assert_eq!((ack.kind(), &ack.json["type"]), ("ack", &json!("presence")));
    let visible = asked(&mut client, "visible");
    let row = wait_recorded(&gateway, &visible, "permission_asked", "suppressed");
    assert!(row["detail"].as_str().is_some_and(|why| why.contains("visible")), "{row}");
    // It is visible, and shows another session.
    let elsewhere = gateway.session("fake");
    let mut other = gateway.connect();
    let (_, agent) = begin(&gateway, &mut other, &elsewhere, "elsewhere");
    ask(&agent, "elsewhere", "true");
    wait_recorded(&gateway, &elsewhere, "permission_asked", "sent");
    // It is visible and shows the session, and could not answer.
    let (status, made) = gateway.post("/api/v1/tokens", &json!({"name": "wall", "scope": "read"}));
    assert_eq!(status, 201, "{made}");
    let secret = made["token"].as_str().expect("shown once");
    let headers = [("authorization", format!("Bearer {secret}"))];
    let wall = crate::support::Client::connect(gateway.port(), "/ws", &headers);
    let mut wall = wall.expect("who may look may connect");
    let looked_at = gateway.session("fake");
    wall.subscribe(&json!({"sessionId": looked_at, "from": "tail"}));
    let ack = wall.request(&json!({"type": "presence", "visible": true}));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);
    let (_, agent) = begin(&gateway, &mut other, &looked_at, "looked at");
    ask(&agent, "looked", "true");
    wait_recorded(&gateway, &looked_at, "permission_asked", "sent");
    // It shows the session, and says that nobody sees it.
    client.request(&json!({"type": "presence", "visible": false}));
    let hidden = asked(&mut client, "hidden");
    wait_recorded(&gateway, &hidden, "permission_asked", "sent");
    // It said that it is visible, and is gone.
    client.request(&json!({"type": "presence", "visible": true}));
    let gone = asked(&mut client, "gone");
    client.cut();
    wait_recorded(&gateway, &gone, "permission_asked", "sent");
    let told = |session: &str| hook.so_far().iter().any(|one| one.body["sessionId"] == session);
    assert!(!told(&visible));
    for session in [&unsaid, &elsewhere, &hidden, &gone] {
        assert!(told(session));
    }
}

#[test]
fn a_client_that_is_visible_and_silent_counts_for_a_heartbeat_only() {
    let hook = Hook::new(&[]);
    let gateway = with_hook(&hook, &[]).set("timeouts", "heartbeat", "\"20s\"");
    // A client that is gone without a word: nothing is read from its socket any more.
    let gateway = gateway.start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    client.subscribe(&json!({"sessionId": session, "from": "tail"}));
    client.request(&json!({"type": "presence", "visible": true}));
    // 20 s and 2 s for a pong, which never comes since this client does not read.
    let_time_pass(Duration::from_secs(23));
    let mut sender = gateway.connect();
    let (_, agent) = begin(&gateway, &mut sender, &session, "go");
    ask(&agent, "p", "true");
    wait_recorded(&gateway, &session, "permission_asked", "sent");
    drop(client);
}

#[test]
fn a_request_that_nobody_answers_is_told_of_after_all() {
    let hook = Hook::new(&[]);
    let gateway = with_hook(&hook, &[("unanswered", "\"3s\"")]).start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    client.request(&json!({"type": "presence", "visible": true}));
    let (_, agent) = begin(&gateway, &mut client, &session, "go");
    ask(&agent, "p", "true");
    wait_recorded(&gateway, &session, "permission_asked", "suppressed");
    assert_eq!(hook.so_far().len(), 0);
    wait_recorded(&gateway, &session, "permission_asked", "sent");
    assert_eq!(hook.so_far().len(), 1);
    // A failure is told of in any case.
    agent.emit(&[json!({"kind": "complete", "exitCode": 1, "error": "no"})]);
    hook.event("run_failed");
}

#[test]
fn a_burst_in_a_session_is_one_notification_and_what_was_answered_is_none() {
    let hook = Hook::new(&[]);
    let gateway = with_hook(&hook, &[]).start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, agent) = begin(&gateway, &mut client, &session, "go");
    for n in 0..100 {
        ask(&agent, &format!("p{n}"), "true");
    }
    let told = hook.event("permission_asked");
    let count = told.body["count"].as_u64().expect("a count");
    assert!(count > 1, "they are told of together: {count}");
    // All of them are answered within the rest that follows a notification.
    let (_, page) = gateway.get("/api/v1/permissions?limit=1000");
    for request in page["items"].as_array().expect("a list") {
        let id = request["requestId"].as_str().expect("an id");
        let (status, answer) =
            gateway.post(&format!("/api/v1/permissions/{id}"), &json!({"allow": true}));
        assert_eq!(status, 200, "{answer}");
    }
    agent.complete();
    let done = hook.event("run_finished");
    assert_eq!(done.body["count"], 1, "requests that were answered do not count: {done:?}");
    assert_eq!(hook.so_far().len(), 2);
    wait_recorded(&gateway, &session, "run_finished", "sent");
    let sent = recorded(&gateway, &session);
    assert_eq!(sent.iter().filter(|row| row["outcome"] == "sent").count(), 2, "{sent:?}");
}

#[test]
fn who_stops_a_run_is_not_told_that_it_ended() {
    let hook = Hook::new(&[]);
    let gateway = with_hook(&hook, &[]).start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, _agent) = begin(&gateway, &mut client, &session, "stop me");
    client.request(&json!({"type": "chat.abort", "sessionId": session}));
    client.expect_complete(&run);
    let other = gateway.session("fake");
    let (_, agent) = begin(&gateway, &mut client, &other, "let me");
    agent.complete();
    wait_recorded(&gateway, &other, "run_finished", "sent");
    assert_eq!(recorded(&gateway, &session), Vec::<Value>::new());
}

#[test]
fn a_sink_in_trouble_is_tried_again_and_one_that_refuses_is_not() {
    let hook = Hook::new(&[Answer::Status(500), Answer::Status(429), Answer::Status(200)]);
    let gateway = with_hook(&hook, &[]).start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, agent) = begin(&gateway, &mut client, &session, "go");
    agent.complete();
    wait_recorded(&gateway, &session, "run_finished", "sent");
    let tries = hook.so_far();
    assert_eq!(tries.len(), 3);
    assert!(tries.iter().all(|one| one.body["id"] == tries[0].body["id"]), "one notification");
    for (status, says) in [(404, "HTTP 404: what else"), (302, "redirects are not followed")] {
        hook.answer(Answer::Status(status));
        let session = gateway.session("fake");
        let (_, agent) = begin(&gateway, &mut client, &session, &format!("again {status}"));
        agent.complete();
        let row = wait_recorded(&gateway, &session, "run_finished", "failed");
        assert!(row["detail"].as_str().is_some_and(|why| why.contains(says)), "{row}");
    }
    assert_eq!(hook.so_far().len(), 5, "what refuses is not asked again, nor what it names");
}

#[test]
fn a_sink_that_hangs_delays_neither_runs_nor_other_sinks() {
    let dead = Hook::new(&[Answer::Never, Answer::Never, Answer::Never, Answer::Never]);
    let alive = Hook::new(&[]);
    let url = format!("{:?}", alive.url("/"));
    let setup = with_hook(&dead, &[("timeout", "\"15s\"")]);
    let setup = setup.set("notify.other", "kind", "\"webhook\"").set("notify.other", "url", &url);
    let gateway = setup.start();
    let mut client = gateway.connect();
    let first = gateway.session("fake");
    let (run, agent) = begin(&gateway, &mut client, &first, "first");
    agent.complete();
    client.expect_complete(&run);
    dead.wait("the first try", |_| true);
    // Its thread hangs now.
    for n in 0..3 {
        let session = gateway.session("fake");
        let (run, agent) = begin(&gateway, &mut client, &session, &format!("more {n}"));
        agent.complete();
        client.expect_complete(&run);
        alive.wait("the other sink's", |one| one.body["sessionId"] == session);
    }
    assert_eq!(dead.so_far().len(), 1);
}

#[test]
fn a_command_gets_the_notification_on_its_stdin() {
    let setup = Setup::with_fake();
    let file = setup.root.path().join("told");
    let script = "cat > \"$OUT.new\" && echo \"$REATTACH_TITLE\" >> \"$OUT.new\" && \
                  echo \"$REATTACH_TOKEN\" >> \"$OUT.new\" && mv \"$OUT.new\" \"$OUT\"";
    let setup = setup.set("notify.command", "command", &format!("[\"sh\", \"-c\", {script:?}]"));
    let setup = setup.set("notify.command", "env", &format!("{{ OUT = {file:?} }}"));
    let gateway = setup.env("REATTACH_TOKEN", "not-for-others").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, agent) = begin(&gateway, &mut client, &session, "go");
    agent.emit(&[json!({
        "kind": "permission_request", "requestId": "q", "toolName": "AskUserQuestion",
        "interaction": "question", "input": {},
        "questions": [{"id": "1", "text": "Which one?", "multi": false}],
    })]);
    let told = eventually("the command has written", || std::fs::read_to_string(&file).ok());
    let mut lines = told.lines();
    let json: Value = serde_json::from_str(lines.next().expect("a line")).expect("JSON");
    assert_eq!(json["event"], "question_asked");
    assert!(json.get("summary").is_none(), "the default says no more than the tool: {json}");
    assert_eq!(lines.next(), Some("fake has a question"));
    assert_eq!(lines.next(), Some(""), "the server's own secrets are not passed on");
    let row = wait_recorded(&gateway, &session, "question_asked", "sent");
    assert_eq!(row["detail"], "exit 0");
}

#[test]
fn a_restart_tells_nothing_twice_and_tells_of_what_was_lost_meanwhile() {
    let hook = Hook::new(&[]);
    let mut gateway = with_hook(&hook, &[]).start();
    let (done, lost) = (gateway.session("fake"), gateway.session("fake"));
    let mut client = gateway.connect();
    let (_, finished) = begin(&gateway, &mut client, &done, "done");
    let (_, victim) = begin(&gateway, &mut client, &lost, "lost");
    ask(&victim, "p", "true");
    finished.complete();
    wait_recorded(&gateway, &done, "run_finished", "sent");
    wait_recorded(&gateway, &lost, "permission_asked", "sent");
    gateway.kill();
    // The keeper goes as well, so nobody can say how the run ended.
    let keeper = u32::try_from(victim.parent()).expect("a pid");
    crate::support::process::signal(keeper, rustix::process::Signal::KILL);
    victim.wait_gone();
    let gateway = gateway.restart();
    let told = hook.event("agent_lost");
    assert_eq!(told.body["sessionId"], json!(lost));
    wait_recorded(&gateway, &lost, "agent_lost", "sent");
    let events: Vec<_> = hook.so_far().iter().map(|one| one.body["event"].clone()).collect();
    assert_eq!(events.len(), 3, "nothing was told twice: {events:?}");
}

#[test]
fn a_server_that_stops_tells_what_waits() {
    let hook = Hook::new(&[]);
    let mut gateway = with_hook(&hook, &[]).start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.complete();
    client.expect_complete(&run);
    // The notification waits for more of its session now.
    assert!(gateway.terminate().success());
    hook.event("run_finished");
    let gateway = gateway.restart();
    assert_eq!(recorded(&gateway, &session).len(), 1, "and that is recorded");
}

#[test]
fn the_list_has_pages_and_the_test_names_its_sinks() {
    let hook = Hook::new(&[]);
    let gateway = with_hook(&hook, &[]).start();
    for _ in 0..3 {
        let (status, tested) = gateway.post("/api/v1/notifications/test", &json!({}));
        assert_eq!(status, 200, "{tested}");
        assert_eq!(tested["items"][0]["outcome"], "sent", "{tested}");
    }
    let all = eventually("three are recorded", || {
        Some(recorded(&gateway, "")).filter(|rows| rows.len() == 3)
    });
    let (_, page) = gateway.get("/api/v1/notifications?limit=2");
    assert_eq!(page["items"].as_array().expect("a list")[..], all[..2]);
    let cursor = page["nextCursor"].as_str().expect("there is more");
    let (_, page) = gateway.get(&format!("/api/v1/notifications?limit=2&cursor={cursor}"));
    assert_eq!(page["items"].as_array().expect("a list")[..], all[2..]);
    assert_eq!(page["nextCursor"], Value::Null);
    for (method, path, body, expected) in [
        ("GET", "/api/v1/notifications?cursor=x", None, 400),
        ("DELETE", "/api/v1/notifications", None, 405),
        ("GET", "/api/v1/notifications/test", None, 405),
        ("POST", "/api/v1/notifications/test", Some(json!({"sink": "nobody"})), 404),
        ("POST", "/api/v1/notifications/test", Some(json!({"sink": 7})), 400),
    ] {
        let (status, answer) = gateway.request(method, path, body.as_ref(), Some(gateway.token()));
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
    let (status, metrics) = gateway.get("/metrics");
    let counted = metrics.as_str().unwrap_or_default();
    let line = "reattach_notifications_total{sink=\"hook\",outcome=\"sent\"} 3";
    assert!(status == 200 && counted.contains(line), "{counted}");
    let nobody = gateway.request("GET", "/api/v1/notifications", None, None);
    assert_eq!(nobody.0, 401, "{}", nobody.1);
}
