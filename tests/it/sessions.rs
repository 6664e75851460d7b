//! Runs, subscriptions, prompts, permissions and aborts, over real sockets.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Agent, Checker, Client, Frame, Gateway, Ledger, Random, Setup, begin, eventually,
    let_time_pass, of_runs, one_session,
};

fn positions(frames: &[Frame]) -> Vec<(&str, u64)> {
    frames.iter().filter_map(|frame| Some((frame.run()?, frame.seq()?))).collect()
}

/// A client that is cut and comes back, and all that it ever saw.
struct Cut {
    session: String,
    seen: Vec<String>,
    checker: Checker,
}

impl Cut {
    /// Comes back at its cursor.
    #[track_caller]
    fn attach(&self, gateway: &Gateway) -> Client {
        let mut client = gateway.connect();
        let target = match self.checker.cursor(&self.session) {
            None => json!({"sessionId": self.session, "from": "start"}),
            Some((run, seq)) => json!({"sessionId": self.session, "runId": run, "lastSeq": seq}),
        };
        let reply = client.subscribe(&target);
        assert_eq!(reply.json["recovered"], true, "{}", reply.text);
        client
    }

    /// Reads `count` frames of runs, takes them in, and is cut.
    #[track_caller]
    fn read_then_cut(&mut self, mut client: Client, count: usize) {
        let reading = |client: &Client| of_runs(client).len();
        while reading(&client) < count {
            client.expect("another frame of the run", |frame| frame.run().is_some());
        }
        for frame in of_runs(&client).into_iter().take(count) {
            self.checker.see(&frame);
            self.seen.push(frame.text);
        }
        client.cut();
    }
}

#[test]
fn two_clients_see_the_same_bytes_through_300_cuts() {
    const CUTS: usize = 300;
    let mut random = Random::new(7);
    // A ring this small makes long replays come from the disk, short ones from memory.
    let gateway = Setup::with_fake().set("limits", "ring_events_max", "64").start();
    let session = gateway.session("fake");
    let mut steady = gateway.connect();
    let (mut run, mut agent) = begin(&gateway, &mut steady, &session, "run 1");
    let (mut runs, mut seq) = (1, 0);
    let mut cut = Cut { session: session.clone(), seen: Vec::new(), checker: Checker::new() };
    let (mut inside, mut ended_away) = (0, 0);
    // The head of run 1 is what it missed so far.
    let mut missed = 1;
    for round in 0..CUTS {
        let count = 1 + random.below(30);
        let lines: Vec<Value> = (0..count)
            .map(|i| json!({"kind": "text", "content": format!("{round}/{i} é\u{1f980}")}))
            .collect();
        if round % 2 == 0 {
            // It is away while the agent goes on, and is cut again inside the replay.
            agent.emit(&lines);
            seq += count as u64;
            missed += count;
            if random.below(10) == 0 {
                agent.finish();
                steady.expect_complete(&run);
                runs += 1;
                (run, agent) = begin(&gateway, &mut steady, &session, &format!("run {runs}"));
                seq = 0;
                // Its complete, and the next run's head.
                missed += 2;
                ended_away += 1;
            }
            let there = |f: &Frame| f.run() == Some(&*run) && f.seq() == Some(seq);
            if !steady.seen.iter().any(there) {
                steady.expect("the last event", there);
            }
            let client = cut.attach(&gateway);
            let read = random.below(missed);
            cut.read_then_cut(client, read);
            missed -= read;
            inside += 1;
        } else {
            // It is cut while it follows live.
            let client = cut.attach(&gateway);
            agent.emit(&lines);
            seq += count as u64;
            missed += count;
            let read = random.below(missed + 1);
            cut.read_then_cut(client, read);
            missed -= read;
        }
    }
    agent.finish();
    steady.expect_complete(&run);
    // The run ended while it was away; what is left comes in one replay.
    let client = cut.attach(&gateway);
    cut.read_then_cut(client, missed + 1);

    assert!(inside >= 100, "only {inside} cuts inside a replay");
    assert!(ended_away >= 5, "only {ended_away} runs ended while it was away");
    let mut checker = Checker::new();
    let all = of_runs(&steady);
    all.iter().for_each(|frame| checker.see(frame));
    let all: Vec<&str> = all.iter().map(|frame| &*frame.text).collect();
    assert_eq!(all.len(), cut.seen.len(), "I4: lost or doubled");
    for (at, (steady, cut)) in all.iter().zip(&cut.seen).enumerate() {
        assert_eq!(steady, cut, "I4: frame {at} differs");
    }
}

#[test]
fn a_later_run_reaches_who_subscribed_before_it() {
    let (gateway, session) = one_session();
    let mut watcher = gateway.connect();
    let reply = watcher.subscribe(&json!({"sessionId": session, "from": "start"}));
    assert_eq!((&reply.json["runId"], &reply.json["isProcessing"]), (&Value::Null, &json!(false)));
    let mut sender = gateway.connect();
    let mut ledger = Ledger::new();
    let mut checker = Checker::new();
    for n in 1..=3 {
        let (run, agent) = begin(&gateway, &mut sender, &session, &format!("run {n}"));
        agent.say("hello");
        agent.finish();
        sender.expect_complete(&run);
        let head = watcher.expect("its head", |f| f.is("run_started", &session));
        assert_eq!(head.json["content"], format!("run {n}"));
        watcher.expect_complete(&run);
    }
    of_runs(&sender).iter().for_each(|frame| ledger.see(frame));
    for frame in of_runs(&watcher) {
        checker.see(&frame);
        ledger.see(&frame);
    }
    // Head, text and complete, three times, seen by both.
    assert_eq!(ledger.len(), 9);
}

#[test]
fn the_same_message_ten_times_over_five_connections_is_one_run() {
    let (gateway, session) = one_session();
    let send = json!({
        "type": "chat.send", "sessionId": session, "content": "once", "clientMessageId": "m-1",
    });
    let mut clients: Vec<Client> = (0..5).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(&send);
        client.send(&send);
    }
    let mut replies = Vec::new();
    for client in &mut clients {
        for _ in 0..2 {
            let reply = client
                .expect("a reply", |f| matches!(f.kind(), "chat_accepted" | "protocol_error"));
            assert_eq!(reply.kind(), "chat_accepted", "I19: {}", reply.text);
            assert_eq!(reply.json["clientMessageId"], "m-1");
            replies.push(reply);
        }
    }
    let run = replies[0].json["runId"].clone();
    assert!(replies.iter().all(|reply| reply.json["runId"] == run), "I19: two runs");
    let first = replies.iter().filter(|reply| reply.json["duplicate"] == false).count();
    assert_eq!(first, 1, "one of them began the run, the rest are duplicates");

    let (agent, _) = gateway.hub().prompted("fake", "once");
    agent.finish();
    clients[0].expect_complete(run.as_str().expect("a run id"));
    // Also afterwards, by REST, and after a restart.
    let path = format!("/api/v1/sessions/{session}/runs");
    let body = json!({"content": "once", "clientMessageId": "m-1"});
    let again = (202, json!({"runId": run, "duplicate": true}));
    assert_eq!(gateway.post(&path, &body), again);
    let mut gateway = gateway;
    gateway.kill();
    let gateway = gateway.restart();
    assert_eq!(gateway.post(&path, &body), again);
    let other = gateway.post(&path, &json!({"content": "other", "clientMessageId": "m-1"}));
    assert_eq!((other.0, &other.1["error"]["code"]), (400, &json!("INVALID_FIELD")), "{}", other.1);
    let (_, runs) = gateway.get(&path);
    assert_eq!(runs["items"].as_array().map(Vec::len), Some(1), "I19: {runs}");
    assert_eq!(gateway.hub().count("fake"), 1);
}

#[test]
fn a_busy_session_refuses_and_records_nothing() {
    let gateway = Setup::with_fake().set("limits", "agents_max", "1").start();
    let (session, other) = (gateway.session("fake"), gateway.session("fake"));
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "first");
    let send = |session: &str, more: Value| {
        let mut frame = json!({"type": "chat.send", "sessionId": session, "content": "second"});
        for (key, value) in more.as_object().expect("fields") {
            frame[key] = value.clone();
        }
        frame
    };
    let refusals = [
        (send(&session, json!({})), "RUN_IN_PROGRESS"),
        (send(&session, json!({"whenBusy": "refuse"})), "RUN_IN_PROGRESS"),
        (send(&session, json!({"whenBusy": "sometimes"})), "INVALID_FIELD"),
        (send(&session, json!({"content": "  "})), "INVALID_FIELD"),
        (send(&other, json!({})), "BUSY"),
        (send("no-such", json!({})), "SESSION_NOT_FOUND"),
    ];
    for (frame, code) in refusals {
        let reply = client.request(&frame);
        assert_eq!(reply.json["code"], code, "{frame} gives {}", reply.text);
    }
    let path = format!("/api/v1/sessions/{session}/runs");
    let busy = gateway.post(&path, &json!({"content": "second"}));
    assert_eq!((busy.0, &busy.1["error"]["code"]), (409, &json!("RUN_IN_PROGRESS")));
    agent.finish();
    client.expect_complete(&run);
    for (session, count) in [(&session, 1), (&other, 0)] {
        let (_, runs) = gateway.get(&format!("/api/v1/sessions/{session}/runs"));
        assert_eq!(runs["items"].as_array().map(Vec::len), Some(count), "I5: {runs}");
    }
    // The process is gone, so the other session may start now.
    let reply = eventually("a free agent", || {
        let reply = client.request(&send(&other, json!({})));
        (reply.json["code"] != "BUSY").then_some(reply)
    });
    assert_eq!(reply.kind(), "chat_accepted", "{}", reply.text);
}

#[test]
fn of_two_answers_to_one_permission_the_first_counts() {
    let (gateway, session) = one_session();
    let mut one = gateway.connect();
    let (run, agent) = begin(&gateway, &mut one, &session, "ask");
    let mut two = gateway.connect();
    two.subscribe(&json!({"sessionId": session, "runId": run}));
    let mut allowed = 0;
    for round in 0..20 {
        let own = format!("p{round}");
        agent.emit(&[json!({
            "kind": "permission_request", "requestId": own, "toolName": "Bash",
            "input": {"command": "ls"},
        })]);
        let asked = one.expect("the request", |f| f.is("permission_request", &session));
        let id = asked.json["requestId"].as_str().expect("an id").to_owned();
        assert_ne!(id, own, "ids are unique on the server");
        let (_, pending) = gateway.get("/api/v1/permissions");
        assert_eq!(pending["items"][0]["requestId"], id, "{pending}");
        two.expect("the request", |f| f.is("permission_request", &session));
        let answer = |allow: bool, who: &str| json!({"type": "chat.permission-response", "requestId": id, "allow": allow, "ref": who});
        one.send(&answer(true, "one"));
        two.send(&answer(false, "two"));
        let reply = |client: &mut Client, who: &str| {
            client.expect("a reply", |frame| frame.json["ref"] == who)
        };
        let replies = [reply(&mut one, "one"), reply(&mut two, "two")];
        let won = usize::from(replies[0].kind() != "ack");
        assert_eq!(replies[won].kind(), "ack", "I20: {}", replies[won].text);
        let lost = &replies[1 - won].json;
        assert_eq!(lost["code"], "PERMISSION_ALREADY_RESOLVED", "I20: {lost}");
        allowed += usize::from(won == 0);
        let decision = ["allow", "deny"][won];
        for client in [&mut one, &mut two] {
            for state in ["recorded", "delivered"] {
                let seen =
                    |f: &Frame| f.is("permission_resolved", &session) && f.json["state"] == state;
                let found = client.seen.iter().rev().find(|f| seen(f) && f.json["requestId"] == id);
                let resolved = match found.cloned() {
                    Some(frame) => frame,
                    None => client.expect(state, |f| seen(f) && f.json["requestId"] == id),
                };
                assert_eq!(resolved.json["decision"], decision, "I20: {}", resolved.text);
            }
        }
        let line = agent.line("the answer", |line| line["requestId"] == own);
        assert_eq!(
            (&line["type"], &line["allow"]),
            (&json!("permission-response"), &json!(won == 0))
        );
        let path = format!("/api/v1/permissions/{id}");
        let late = gateway.post(&path, &json!({"allow": true}));
        assert_eq!(late.1["error"]["code"], "PERMISSION_ALREADY_RESOLVED", "{}", late.1);
        assert_eq!(late.0, 409);
    }
    let answers =
        agent.lines_so_far().iter().filter(|l| l["type"] == "permission-response").count();
    assert_eq!(answers, 20, "I20: each request was answered once");
    assert!(allowed <= 20);
    let unknown = one.request(&json!({
        "type": "chat.permission-response", "requestId": "nobody:asked", "allow": true,
    }));
    assert_eq!(unknown.json["code"], "PERMISSION_NOT_FOUND", "{}", unknown.text);
    agent.finish();
    let mut checker = Checker::new();
    one.expect_complete(&run);
    of_runs(&one).iter().for_each(|frame| checker.see(frame));
}

/// Two runs: the first ended with events 1, 2, 3 and complete; the second runs, with 1 and 2.
struct TwoRuns {
    gateway: Gateway,
    session: String,
    first: String,
    second: String,
    agent: Agent,
    epoch: String,
}

fn two_runs() -> TwoRuns {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (first, agent) = begin(&gateway, &mut client, &session, "one");
    ["a", "b", "c"].iter().for_each(|content| agent.say(content));
    agent.finish();
    client.expect_complete(&first);
    let (second, agent) = begin(&gateway, &mut client, &session, "two");
    agent.say("d");
    agent.say("e");
    client.expect_at(&second, 2);
    let hello = client.request(&json!({"type": "hello", "protocol": 1}));
    assert_eq!(hello.kind(), "hello", "{}", hello.text);
    assert_eq!(hello.json["protocol"], 1);
    let epoch = hello.json["logEpoch"].as_str().expect("a log epoch").to_owned();
    client.cut();
    TwoRuns { gateway, session, first, second, agent, epoch }
}

impl TwoRuns {
    /// Subscribes on a fresh connection: the reply, and the frames of runs up to `caught_up`.
    #[track_caller]
    fn subscribe(&self, mut target: Value, epoch: Option<&str>) -> (Value, Vec<Frame>) {
        let mut client = self.gateway.connect();
        target["sessionId"] = json!(self.session);
        let mut frame = json!({"type": "chat.subscribe", "sessions": [target]});
        if let Some(epoch) = epoch {
            frame["logEpoch"] = json!(epoch);
        }
        let reply = client.request(&frame);
        assert_eq!(reply.kind(), "chat_subscribed", "{}", reply.text);
        assert_eq!(reply.json["logEpoch"], self.epoch, "{}", reply.text);
        assert_eq!(reply.json["runId"], self.second, "it speaks of the newest run");
        assert_eq!(
            (&reply.json["isProcessing"], &reply.json["lastSeq"]),
            (&json!(true), &json!(2))
        );
        let caught_up = client.expect("caught up", |f| f.is("caught_up", &self.session));
        assert_eq!(
            (&caught_up.json["runId"], &caught_up.json["seq"]),
            (&json!(self.second), &json!(2))
        );
        let at = client.seen.iter().position(|f| f.kind() == "chat_subscribed");
        let early = client.seen[..at.expect("it came")].iter().any(|f| f.run().is_some());
        assert!(!early, "the reply comes before the replay");
        let frames = of_runs(&client);
        client.cut();
        (reply.json, frames)
    }

    /// All positions of both runs from the `from`th on, counted from run 1's head.
    fn from(&self, from: usize) -> Vec<(&str, u64)> {
        let first = (0..=4).map(|seq| (&*self.first, seq));
        first.chain((0..=2).map(|seq| (&*self.second, seq))).skip(from).collect()
    }
}

#[test]
fn each_form_of_subscribe_gives_its_range() {
    let runs = two_runs();
    let (first, second) = (&runs.first, &runs.second);
    let cases = [
        (json!({"runId": first, "lastSeq": 2}), 3),
        (json!({"runId": first, "lastSeq": 4}), 5),
        (json!({"runId": first}), 0),
        (json!({"runId": first, "lastSeq": 0}), 1),
        (json!({"runId": second}), 5),
        (json!({"runId": second, "lastSeq": 2}), 8),
        (json!({"from": "start"}), 0),
        (json!({"from": "tail"}), 8),
    ];
    for (target, from) in cases {
        let (reply, frames) = runs.subscribe(target.clone(), Some(&runs.epoch));
        assert_eq!(positions(&frames), runs.from(from), "I4: {target}");
        assert_eq!(reply["gap"], Value::Null, "{target}: {reply}");
        assert_ne!(reply["rewound"], true, "{target}: {reply}");
        if target["from"] != "tail" {
            assert_eq!(reply["recovered"], true, "{target}: {reply}");
        }
    }
    // Without runId: the running run after lastSeq; a number above its newest counts as 0.
    for (last, from) in [(1, 7), (0, 6), (99, 6)] {
        let (_, frames) = runs.subscribe(json!({"lastSeq": last}), None);
        let events: Vec<_> = positions(&frames).into_iter().filter(|(_, seq)| *seq > 0).collect();
        assert_eq!(events, runs.from(from), "lastSeq {last}");
    }
}

#[test]
fn a_cursor_that_can_not_be_ours_is_rewound() {
    let runs = two_runs();
    let beyond = json!({"runId": runs.first, "lastSeq": 99});
    let stale = json!({"runId": runs.first, "lastSeq": 3});
    let foreign = "00000000-0000-4000-8000-000000000000";
    for (target, epoch) in [(beyond, None), (stale, Some(foreign))] {
        let (reply, frames) = runs.subscribe(target.clone(), epoch);
        assert_eq!(reply["rewound"], true, "{target}: {reply}");
        let events: Vec<_> =
            positions(&frames).into_iter().filter(|p| *p != (&*runs.first, 0)).collect();
        assert_eq!(events, runs.from(1), "{target}: that run from its start");
    }
}

#[test]
fn a_run_that_is_not_the_sessions_is_said_so_and_changes_nothing() {
    let runs = two_runs();
    let other = runs.gateway.session("fake");
    let mut client = runs.gateway.connect();
    let at = json!({"sessionId": runs.session, "runId": runs.second, "lastSeq": 2});
    client.subscribe(&at);
    let wrong = client.subscribe(&json!({"sessionId": other, "runId": runs.first, "lastSeq": 1}));
    assert_eq!(wrong.json["error"], "RUN_NOT_FOUND", "{}", wrong.text);
    let unknown = client.subscribe(&json!({"sessionId": "no-such"}));
    assert_eq!(unknown.json["error"], "SESSION_NOT_FOUND", "{}", unknown.text);
    assert_eq!(
        (&unknown.json["isProcessing"], &unknown.json["runId"]),
        (&json!(false), &Value::Null)
    );
    // The subscription that it had goes on.
    runs.agent.say("f");
    client.expect_at(&runs.second, 3);
    // A run that nobody knows is taken for one that is gone: a gap, then all that is kept.
    let gone = "0190a000-0000-7000-8000-000000000000";
    let reply = client.subscribe(&json!({"sessionId": runs.session, "runId": gone, "lastSeq": 1}));
    assert!(reply.json["gap"].is_object(), "{}", reply.text);
    assert_eq!(reply.json["recovered"], false, "{}", reply.text);
    client.expect_at(&runs.first, 0);
    client.expect_at(&runs.second, 3);
}

#[test]
fn who_unsubscribes_gets_broadcasts_only() {
    let runs = two_runs();
    let mut client = runs.gateway.connect();
    client.subscribe(&json!({"sessionId": runs.session, "from": "tail"}));
    let reply = client.request(&json!({"type": "chat.unsubscribe", "sessions": [runs.session]}));
    assert_eq!((reply.kind(), &reply.json["type"]), ("ack", &json!("chat.unsubscribe")));
    let mut watcher = runs.gateway.connect();
    watcher.subscribe(&json!({"sessionId": runs.session, "runId": runs.second, "lastSeq": 2}));
    runs.agent.finish();
    watcher.expect_complete(&runs.second);
    let ended = |f: &Frame| {
        f.is("session_upserted", &runs.session) && f.json["session"]["running"] == false
    };
    client.expect("the announcement of the end", ended);
    client.barrier();
    assert_eq!(positions(&of_runs(&client)), [], "it was sent events");
}

#[test]
fn what_retention_took_is_named_as_a_gap() {
    // What is still in memory is still given: so runs leave it soon.
    let setup = Setup::with_fake().set("retention", "max_bytes", "60000");
    let gateway = setup.set("timeouts", "completed_retention", "\"50ms\"").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let mut runs = Vec::new();
    for n in 1..=4 {
        let (run, agent) = begin(&gateway, &mut client, &session, &format!("run {n}"));
        agent.flood(30, 1000, "e");
        client.expect_at(&run, 30);
        agent.finish();
        client.expect_complete(&run);
        runs.push(run);
    }
    client.cut();
    let reply = eventually("retention takes the first run", || {
        let mut client = gateway.connect();
        let reply =
            client.subscribe(&json!({"sessionId": session, "runId": runs[0], "lastSeq": 3}));
        if reply.json["gap"].is_null() {
            return None;
        }
        client.expect("caught up", |f| f.is("caught_up", &session));
        Some((reply, of_runs(&client)))
    });
    let (reply, frames) = reply;
    assert_eq!(reply.json["recovered"], false, "{}", reply.text);
    assert_eq!(reply.json["gap"]["from"], json!({"runId": runs[0], "seq": 4}), "{}", reply.text);
    let to = &reply.json["gap"]["to"];
    assert_eq!(to["seq"], 31, "I4b: through the end of the last run that is gone: {to}");
    let taken = runs.iter().position(|run| to["runId"] == **run).expect("a run of this session");
    // Everything after the gap is there, whole runs, from a head on.
    let mut checker = Checker::new();
    frames.iter().for_each(|frame| checker.see(frame));
    assert_eq!(frames[0].run(), Some(&*runs[taken + 1]), "I4b: a gap only where events are gone");
    assert_eq!(frames.len(), 32 * (3 - taken), "I4: the rest is complete");
    // The running list and the run's row still speak of it.
    let (status, run) = gateway.get(&format!("/api/v1/runs/{}", runs[0]));
    assert_eq!((status, &run["lastSeq"]), (200, &json!(31)), "{run}");
}

#[test]
fn every_reply_echoes_its_ref() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let cases = [
        (json!({"type": "hello", "protocol": 1, "client": "test"}), "hello"),
        (json!({"type": "ping"}), "pong"),
        (json!({"type": "presence", "visible": true}), "ack"),
        (json!({"type": "presence", "visible": "yes"}), "protocol_error"),
        (json!({"type": "no-such-type"}), "protocol_error"),
        (json!({}), "protocol_error"),
        (json!({"type": "chat.send"}), "protocol_error"),
        (json!({"type": "chat.send", "sessionId": session, "content": 7}), "protocol_error"),
        (json!({"type": "chat.abort", "sessionId": session}), "protocol_error"),
        (json!({"type": "chat.subscribe"}), "protocol_error"),
        (json!({"type": "chat.subscribe", "sessions": [7]}), "protocol_error"),
        (
            json!({"type": "chat.subscribe", "sessions": [{"sessionId": session}]}),
            "chat_subscribed",
        ),
        (json!({"type": "chat.subscribe", "sessions": [{"sessionId": "x"}]}), "chat_subscribed"),
        (json!({"type": "chat.permission-response", "requestId": "x"}), "protocol_error"),
        (
            json!({"type": "chat.permission-response", "requestId": "x", "allow": true}),
            "protocol_error",
        ),
        (json!({"type": "chat.unsubscribe", "sessions": [session]}), "ack"),
        (json!({"type": "chat.send", "sessionId": session, "content": "go"}), "chat_accepted"),
        (json!({"type": "chat.send", "sessionId": session, "content": "go"}), "protocol_error"),
        (json!({"type": "chat.abort", "sessionId": session}), "ack"),
    ];
    for (frame, kind) in cases {
        // `request` fails if no frame with the ref comes (I12).
        let reply = client.request(&frame);
        assert_eq!(reply.kind(), kind, "{frame} gives {}", reply.text);
    }
    let refs = client.seen.iter().filter(|f| f.json["ref"].is_string()).count();
    assert_eq!(refs, 19, "one reply each");
}

#[test]
fn the_native_id_is_mapped_announced_and_given_back_to_the_agent() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let mut bystander = gateway.connect();
    bystander.barrier();
    let (run, agent) = begin(&gateway, &mut client, &session, "first");
    agent.name_session("native-1");
    let named =
        |f: &Frame| f.is("session_upserted", &session) && f.json["providerSessionId"] == "native-1";
    for client in [&mut client, &mut bystander] {
        let upserted = client.expect("the announcement", named);
        assert_eq!(upserted.json["provider"], "fake");
        assert_eq!(upserted.json["session"]["id"], session);
        assert_eq!(upserted.json["session"]["providerSessionId"], "native-1");
    }
    // The native id stands in no event, whatever the agent writes into its own fields.
    agent.emit(&[json!({"kind": "text", "content": "hi", "sessionId": "native-1"})]);
    agent.emit(&[json!({"kind": "complete", "exitCode": 0, "actualSessionId": "native-1"})]);
    agent.exit(0);
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["actualSessionId"], session, "{}", complete.text);
    for frame in of_runs(&client) {
        assert!(!frame.text.contains("native-1"), "I10: {}", frame.text);
    }
    let mut gateway = gateway;
    assert!(gateway.terminate().success());
    let gateway = gateway.restart();
    let (status, found) = gateway.get("/api/v1/sessions/native-1");
    assert_eq!((status, &found["id"]), (200, &json!(session)), "{found}");
    let mut client = gateway.connect();
    client.prompt(&session, "second");
    let (agent, prompt) = gateway.hub().prompted("fake", "second");
    assert_eq!(prompt["providerSessionId"], "native-1", "{prompt}");
    agent.finish();
    // A conversation begun elsewhere is resumed the same way.
    let body = json!({
        "provider": "fake", "projectPath": gateway.setup.project(), "providerSessionId": "native-2",
    });
    let (status, taken_up) = gateway.post("/api/v1/sessions", &body);
    assert_eq!((status, &taken_up["providerSessionId"]), (201, &json!("native-2")), "{taken_up}");
    client.prompt(taken_up["id"].as_str().expect("an id"), "go on");
    let (_, prompt) = gateway.hub().prompted("fake", "go on");
    assert_eq!(prompt["providerSessionId"], "native-2", "{prompt}");
}

#[test]
fn within_a_provider_the_first_session_keeps_a_native_id() {
    let (gateway, first) = one_session();
    let second = gateway.session("fake");
    let mut client = gateway.connect();
    let (run_1, agent_1) = begin(&gateway, &mut client, &first, "one");
    agent_1.name_session("shared");
    client.expect("the announcement", |f| f.json["providerSessionId"] == "shared");
    let (run_2, agent_2) = begin(&gateway, &mut client, &second, "two");
    agent_2.name_session("shared");
    let error = client.expect("an error event", |f| f.is("error", &second));
    assert_eq!(error.json["source"], "gateway", "{}", error.text);
    agent_2.say("it goes on");
    client.expect("its text", |f| f.is("text", &second));
    agent_1.finish();
    agent_2.finish();
    client.expect("both ends", |f| f.kind() == "complete");
    eventually("both runs end", || {
        let (_, running) = gateway.get("/api/v1/runs?status=running");
        (running["items"] == json!([])).then_some(())
    });
    let native =
        |id: &str| gateway.get(&format!("/api/v1/sessions/{id}")).1["providerSessionId"].clone();
    assert_eq!((native(&first), native(&second)), (json!("shared"), Value::Null));
    assert_eq!(gateway.get("/api/v1/sessions/shared").1["id"], first);
    for run in [run_1, run_2] {
        let (_, run) = gateway.get(&format!("/api/v1/runs/{run}"));
        assert_eq!(run["reason"], "finished", "{run}");
    }
}

#[test]
fn rest_gives_the_same_log_as_the_socket() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    for n in 1..=2 {
        let (run, agent) = begin(&gateway, &mut client, &session, &format!("run {n}"));
        agent.flood(700, 100, "e");
        client.expect_at(&run, 700);
        agent.finish();
        client.expect_complete(&run);
    }
    let frames = of_runs(&client);
    // REST leaves out the head of the run whose cursor (R, 0) it was given.
    let expected: Vec<&Value> = frames.iter().skip(1).map(|frame| &frame.json).collect();
    let log = gateway.log_of(&session);
    assert_eq!(log.len(), expected.len());
    assert!(log.iter().zip(expected).all(|(a, b)| a == b), "I4: REST differs from the socket");
    let last = frames.last().expect("there are frames");
    let (run, seq) = (last.run().expect("of a run"), last.seq().expect("with a seq"));
    let (status, event) = gateway.get(&format!("/api/v1/runs/{run}/events/{seq}"));
    assert_eq!((status, &event), (200, &last.json));
    let (_, row) = gateway.get(&format!("/api/v1/runs/{run}"));
    assert_eq!((&row["lastSeq"], &row["status"]), (&json!(seq), &json!("completed")), "I17: {row}");
}

#[test]
fn finished_runs_leave_memory_but_not_the_log() {
    let gateway = Setup::with_fake().set("timeouts", "completed_retention", "\"50ms\"").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "short");
    agent.say("hello");
    agent.finish();
    client.expect_complete(&run);
    let before = of_runs(&client);
    client.cut();
    let_time_pass(Duration::from_millis(300));
    let after = gateway.replay(&session);
    assert_eq!(positions(&after), positions(&before), "I13: it is read from the disk");
    assert!(before.iter().zip(&after).all(|(a, b)| a.text == b.text), "I4: other bytes");
    // The session takes a next run, and its ordinal follows.
    let mut client = gateway.connect();
    client.subscribe(&json!({"sessionId": session, "runId": run, "lastSeq": 2}));
    let (next, agent) = begin(&gateway, &mut client, &session, "next");
    agent.finish();
    client.expect_complete(&next);
    assert_eq!(positions(&of_runs(&client)), [(&*next, 0), (&*next, 1)]);
}
