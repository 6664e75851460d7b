//! Ends, answers and resends that cross each other, on the built binary.

use serde_json::{Value, json};

use crate::support::process::alive;
use crate::support::{Setup, eventually};

/// The parent of a process.
fn parent(pid: u32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    let parent = rest.split_whitespace().nth(1).expect("a parent");
    parent.parse().expect("a number")
}

#[test]
fn a_run_whose_keeper_is_killed_ends_and_so_does_its_agent() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    // Which of the keeper's two streams is seen to end first is a matter of luck.
    for round in 0..12 {
        let content = format!("round {round}");
        let run = client.prompt(&session, &content);
        let (agent, _) = gateway.hub().prompted("fake", &content);
        let grandchild = agent.escape();
        agent.say("before");
        client.expect_at(&run, 1);
        let keeper = rustix::process::Pid::from_raw(parent(agent.pid())).expect("a keeper");
        rustix::process::kill_process(keeper, rustix::process::Signal::KILL).expect("it runs");
        let complete = client.expect_complete(&run);
        assert_eq!(complete.json["reason"], "agent_lost", "{}", complete.text);
        assert!(!alive(agent.pid()) && !alive(grandchild.pid()), "I21: nothing is left");
    }
}

#[test]
fn a_run_that_never_started_does_not_let_the_next_one_overtake_the_process_before() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let first = client.prompt(&session, "first");
    let (old, _) = gateway.hub().prompted("fake", "first");
    // Its process stays, and has to be stopped.
    old.policy(&[], None, None);
    old.complete();
    client.expect_complete(&first);
    let second = client.prompt(&session, "second");
    client.send(&json!({"type": "chat.abort", "sessionId": session, "runId": second}));
    let complete = client.expect_complete(&second);
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    assert!(alive(old.pid()), "the test is about what lingers");
    let third = client.prompt(&session, "third");
    let (new, _) = gateway.hub().prompted("fake", "third");
    assert!(!alive(old.pid()), "a session has at most one agent process");
    new.finish();
    client.expect_complete(&third);
}

#[test]
fn a_sender_of_a_duplicate_hears_its_run_and_no_older_one() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut steady = gateway.connect();
    for round in 0..12 {
        let content = format!("round {round}");
        let send = json!({
            "type": "chat.send", "sessionId": session, "content": content, "ref": "s",
            "clientMessageId": content,
        });
        let mut clients = [gateway.connect(), gateway.connect()];
        // The second comes while the first is on its way to disk.
        clients.iter_mut().for_each(|client| client.send(&send));
        let mut runs = Vec::new();
        for client in &mut clients {
            let accepted = client.expect("the reply", |frame| frame.json["ref"] == "s");
            assert_eq!(accepted.kind(), "chat_accepted", "{}", accepted.text);
            runs.push(accepted.json["runId"].as_str().expect("a run").to_owned());
        }
        assert_eq!(runs[0], runs[1], "I19: one prompt, one run");
        gateway.hub().prompted("fake", &content).0.finish();
        for client in &mut clients {
            client.expect_complete(&runs[0]);
            let other =
                client.seen.iter().find(|f| f.seq().is_some() && f.run() != Some(&*runs[0]));
            assert!(other.is_none(), "{other:?}");
        }
        // The next prompt needs the session to be known as free here, too.
        steady.barrier();
    }
}

#[test]
fn an_agent_may_ask_again_and_again_under_one_id() {
    const ROUNDS: usize = 200;
    let script = format!(
        "read prompt; i=0; while [ $i -lt {ROUNDS} ]; do i=$((i+1)); \
         echo '{{\"kind\":\"permission_request\",\"requestId\":\"r\",\"toolName\":\"t\",\
         \"input\":{{}}}}'; read answer; done; echo '{{\"kind\":\"complete\",\"exitCode\":0}}'"
    );
    let gateway = Setup::new().provider("loop", "jsonl", &["sh", "-c", &script]).start();
    let session = gateway.session("loop");
    let mut client = gateway.connect();
    let run = client.prompt(&session, "go");
    for round in 0..ROUNDS {
        let asked = client.expect("a request", |frame| frame.is("permission_request", &session));
        let answer = json!({
            "type": "chat.permission-response", "requestId": asked.json["requestId"],
            "allow": true, "ref": format!("a{round}"),
        });
        client.send(&answer);
        let reference = Value::from(format!("a{round}"));
        // Events may overtake the reply; the next request is then looked for among what was seen.
        let from = client.seen.len();
        let ack = client.expect("the ack", |frame| frame.json["ref"] == reference);
        assert_eq!(ack.kind(), "ack", "round {round}: {}", ack.text);
        let asked_meanwhile =
            client.seen[from..].iter().any(|frame| frame.is("permission_request", &session));
        assert!(!asked_meanwhile, "the ack of a recorded answer comes before it is delivered");
    }
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    let log = gateway.log_of(&session);
    let state = |event: &&Value, state: &str| {
        event["kind"] == "permission_resolved" && event["state"] == state
    };
    assert_eq!(log.iter().filter(|event| state(event, "recorded")).count(), ROUNDS);
    assert_eq!(log.iter().filter(|event| state(event, "undeliverable")).count(), 0);
}

#[test]
fn a_rejected_run_with_more_to_say_ends_with_its_process() {
    let gateway = Setup::with_fake().set("limits", "ring_events_max", "16").start();
    let session = gateway.session("fake");
    let database = rusqlite::Connection::open(gateway.setup.data_dir().join("reattach.db"));
    let database = database.expect("the database");
    database
        .execute_batch(
            "CREATE TRIGGER poisoned BEFORE INSERT ON event \
             WHEN instr(NEW.body, CAST('poison' AS BLOB)) > 0 \
             BEGIN SELECT RAISE(ABORT, 'for the test'); END",
        )
        .expect("a trigger");
    let mut client = gateway.connect();
    let run = client.prompt(&session, "go");
    let (agent, _) = gateway.hub().prompted("fake", "go");
    agent.flood(5000, 100, "poison");
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "store_rejected", "{}", complete.text);
    agent.wait_gone();
    eventually("its threads end", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).ok()?;
        let names = tasks
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        let mut names = names.filter(|name| name.starts_with("agent-"));
        names.next().is_none().then_some(())
    });
}

#[test]
fn a_long_prompt_is_cut_in_the_log_and_whole_at_its_address() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let content = "prompt ".repeat(60_000);
    let run = client.prompt(&session, &content);
    let head = client.expect_at(&run, 0);
    assert_eq!(head.json["truncated"]["field"], "content", "{}", head.json["truncated"]);
    let address = head.json["truncated"]["href"].as_str().expect("an address");
    let (status, whole) = gateway.get(address);
    assert_eq!(status, 200);
    assert_eq!(whole["content"], content.as_str());
    let (_, agent) = (run, gateway.hub().next("fake"));
    agent.finish();
}

#[test]
fn an_agent_that_names_ever_new_ids_is_told_once_and_goes_on() {
    let script = "read prompt; i=0; while [ $i -lt 500 ]; do i=$((i+1)); \
         echo \"{\\\"kind\\\":\\\"session_created\\\",\\\"newSessionId\\\":\\\"n$i\\\"}\"; done; \
         echo '{\"kind\":\"complete\",\"exitCode\":0}'";
    let gateway = Setup::new().provider("names", "jsonl", &["sh", "-c", script]).start();
    let session = gateway.session("names");
    let mut client = gateway.connect();
    let run = client.prompt(&session, "go");
    let complete = client.expect_complete(&run);
    assert_eq!(complete.seq(), Some(2), "one error, one end: {}", complete.text);
    let (status, found) = gateway.get(&format!("/api/v1/sessions/{session}"));
    assert_eq!((status, &found["providerSessionId"]), (200, &json!("n64")));
}

#[test]
fn a_prompt_that_no_agent_can_be_given_ends_its_run() {
    let gateway = Setup::with_fake().set("limits", "message_bytes_max", "16777216").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let run = client.prompt(&session, &"x".repeat(9 << 20));
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "failed", "{}", complete.text);
    gateway.hub().next("fake").wait_gone();
}

#[test]
fn who_follows_a_session_follows_it_through_a_refusal_of_the_store() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let (mut reader, mut sender) = (gateway.connect(), gateway.connect());
    reader.subscribe(&json!({"sessionId": session, "from": "start"}));
    let first = sender.prompt(&session, "first");
    gateway.hub().prompted("fake", "first").0.finish();
    reader.expect_complete(&first);
    let database = rusqlite::Connection::open(gateway.setup.data_dir().join("reattach.db"));
    let database = database.expect("the database");
    database
        .execute_batch(
            "CREATE TRIGGER refused BEFORE INSERT ON run \
             BEGIN SELECT RAISE(ABORT, 'for the test'); END",
        )
        .expect("a trigger");
    let refused = sender.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "refused",
    }));
    assert_eq!(refused.json["code"], "INTERNAL_ERROR", "{}", refused.text);
    // A barrier each: the reader has seen that its session left memory.
    reader.barrier();
    database.execute_batch("DROP TRIGGER refused").expect("dropped");
    let second = sender.prompt(&session, "second");
    gateway.hub().prompted("fake", "second").0.finish();
    reader.expect_at(&second, 0);
    reader.expect_complete(&second);
}
