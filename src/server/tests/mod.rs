//! The server as clients meet it: real sockets, a real store.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::Message;

use super::tests::bench::Bench;
use crate::limits;
use crate::registry::Mode;
use crate::run::change::Mark;
use crate::run::event::{Event, Interaction, PermissionRequest};
use crate::run::id::{Millis, RequestId};

mod bench;

fn send(session: &str, content: &str) -> Value {
    json!({ "type": "chat.send", "sessionId": session, "content": content, "ref": content })
}

fn subscribe(target: Value) -> Value {
    json!({ "type": "chat.subscribe", "sessions": [target], "ref": "s" })
}

fn seq_of(frame: &str) -> u64 {
    let frame: Value = serde_json::from_str(frame).expect("JSON");
    frame["seq"].as_u64().expect("a seq")
}

#[test]
fn a_prompt_becomes_a_run_that_every_client_sees_alike() {
    let bench = Bench::new();
    let session = bench.session();
    let mut sender = bench.client();
    sender.say(&send(&session, "hello"));
    let accepted = sender.reply();
    assert_eq!(accepted["kind"], "chat_accepted");
    assert_eq!((&accepted["ref"], &accepted["duplicate"]), (&json!("hello"), &json!(false)));
    let run = bench.run();
    assert_eq!(accepted["runId"], run.id().to_string());
    run.says("one");
    let mut watcher = bench.client();
    watcher.say(&subscribe(json!({ "sessionId": session, "from": "start" })));
    let statement = watcher.reply();
    assert_eq!((&statement["kind"], &statement["ref"]), (&json!("chat_subscribed"), &json!("s")));
    assert_eq!((&statement["recovered"], &statement["queue"]), (&json!(true), &json!([])));
    run.says("two");
    run.ends();
    let seen = [sender.events_until("complete"), watcher.events_until("complete")];
    assert_eq!(seen[0], seen[1]);
    let seqs: Vec<_> = seen[0].iter().map(|frame| seq_of(frame)).collect();
    assert_eq!(seqs, [0, 1, 2, 3]);
}

#[test]
fn a_client_comes_back_with_its_cursor_across_runs() {
    let bench = Bench::new();
    let session = bench.session();
    let mut client = bench.client();
    let mut log = Vec::new();
    for content in ["first", "second", "third"] {
        client.say(&send(&session, content));
        let run = bench.run();
        for n in 0..5 {
            run.says(format!("{content} {n}"));
        }
        run.ends();
        log.extend(client.events_until("complete"));
    }
    let start = json!({ "sessionId": session, "from": "start" });
    let mut targets = vec![(start, 0)];
    for (at, text) in log.iter().enumerate() {
        let frame: Value = serde_json::from_str(text).expect("JSON");
        let target = json!({ "sessionId": session, "runId": frame["runId"],
            "lastSeq": frame["seq"] });
        targets.push((target, at + 1));
    }
    for (target, skipped) in targets {
        let mut again = bench.client();
        again.say(&subscribe(target.clone()));
        assert_eq!(again.reply()["recovered"], true, "{target}");
        let mut rest = Vec::new();
        let caught_up = loop {
            let text = again.next_text();
            match serde_json::from_str::<Value>(&text).expect("JSON") {
                frame if frame["kind"] == "caught_up" => break frame,
                _ => rest.push(text),
            }
        };
        assert_eq!(rest, log[skipped..], "{target}");
        assert_eq!(caught_up["seq"], 6);
    }
}

#[test]
fn a_reply_waits_for_its_commit_and_others_overtake_it() {
    let bench = Bench::new();
    let session = bench.session();
    let mut client = bench.client();
    let gate = bench.store_gate.lock();
    client.say(&send(&session, "hello"));
    client.say(&json!({ "type": "ping", "ref": "p" }));
    let pong = client.reply();
    assert_eq!((&pong["kind"], &pong["ref"]), (&json!("pong"), &json!("p")));
    bench.run().says("one");
    drop(gate);
    let kinds: Vec<_> = (0..3).map(|_| client.reply()["kind"].clone()).collect();
    assert_eq!(kinds, ["chat_accepted", "run_started", "text"]);
}

#[test]
fn an_ack_comes_with_its_commit_to_a_client_that_follows_nothing() {
    let bench = Bench::new();
    let session = bench.session();
    let mut sender = bench.client();
    sender.say(&send(&session, "hello"));
    let run = bench.run();
    sender.until("run_started");
    let mut other = bench.client();
    let gate = bench.store_gate.lock();
    other.say(&json!({ "type": "chat.abort", "sessionId": session, "ref": "a" }));
    other.say(&json!({ "type": "ping" }));
    other.until("pong");
    // It is asleep by now, and nothing but the commit wakes it.
    drop(gate);
    let ack = other.until("ack");
    assert_eq!((&ack["type"], &ack["ref"]), (&json!("chat.abort"), &json!("a")));
    assert_eq!(ack["runId"], run.id().to_string());
    run.ends();
    assert_eq!(sender.until("complete")["aborted"], true);
}

#[test]
fn the_same_message_is_one_run_over_any_number_of_connections() {
    let bench = Bench::new();
    let session = bench.session();
    let frame = json!({ "type": "chat.send", "sessionId": session, "content": "x",
        "clientMessageId": "m" });
    let mut clients: Vec<_> = (0..5).map(|_| bench.client()).collect();
    for client in &mut clients {
        client.say(&frame);
        client.say(&frame);
    }
    let run = bench.run();
    let mut fresh = 0;
    for client in &mut clients {
        for _ in 0..2 {
            let accepted = client.until("chat_accepted");
            assert_eq!(accepted["runId"], run.id().to_string());
            fresh += u32::from(accepted["duplicate"] == false);
        }
    }
    assert_eq!(fresh, 1);
    assert!(bench.no_run());
    run.ends();
    for client in &mut clients {
        client.until("complete");
    }
}

#[test]
fn requests_that_cannot_be_fulfilled_are_answered_in_kind() {
    let bench = Bench::new();
    let session = bench.session();
    let mut client = bench.client();
    let mut code = |frame: Value| {
        client.say(&frame);
        let reply = client.reply();
        assert_eq!(reply["kind"], "protocol_error", "{reply}");
        reply["code"].as_str().expect("a code").to_owned()
    };
    let ghost = "00000000-0000-4000-8000-000000000001";
    assert_eq!(code(send(ghost, "x")), "SESSION_NOT_FOUND");
    assert_eq!(code(json!({ "type": "chat.abort", "sessionId": session })), "NO_ACTIVE_RUN");
    assert_eq!(code(json!({ "type": "chat.abort", "sessionId": ghost })), "NO_ACTIVE_RUN");
    let answer = json!({ "type": "chat.permission-response", "requestId": "x", "allow": true });
    assert_eq!(code(answer), "PERMISSION_NOT_FOUND");
    let body = json!({ "provider": "missing", "projectPath": bench.project() });
    let (_, missing) = bench.call("POST", "/sessions", Some(&body));
    let missing = missing["id"].as_str().expect("an id");
    assert_eq!(code(send(missing, "x")), "UNSUPPORTED_PROVIDER");
    client.say(&send(&session, "first"));
    assert_eq!(client.until("chat_accepted")["ref"], "first");
    client.say(&send(&session, "second"));
    assert_eq!(client.until("protocol_error")["code"], "RUN_IN_PROGRESS");
    let target = json!({ "sessionId": ghost, "ref": "s" });
    client.say(&subscribe(target));
    assert_eq!(client.until("chat_subscribed")["error"], "SESSION_NOT_FOUND");
    client.0.send(Message::binary(&b"\xff\xfe"[..])).expect("sent");
    assert_eq!(client.until("protocol_error")["code"], "INVALID_MESSAGE");
}

#[test]
fn a_permission_is_answered_once_and_everybody_hears_of_it() {
    let bench = Bench::new();
    let session = bench.session();
    let mut first = bench.client();
    first.say(&send(&session, "hello"));
    let run = bench.run();
    let request = RequestId(format!("{}:r", run.id()));
    let event = Event::PermissionRequest(PermissionRequest {
        request_id: request.0.clone(),
        interaction: Interaction::Tool,
        tool_id: None,
        tool_name: "Bash".into(),
        input: json!({ "command": "ls" }),
        cwd: None,
        title: None,
        description: None,
        diff: None,
        choices: Vec::new(),
        editable: true,
        questions: None,
        parent_tool_id: None,
        extra: serde_json::Map::new(),
    });
    let now = Millis::now();
    let mark = Mark::PermissionOpened { request: request.clone(), received_at: now };
    run.session.record(run.id(), &event, Some(&mark), now).expect("asked");
    assert_eq!(first.until("permission_request")["requestId"], request.0);
    let mut second = bench.client();
    second.say(&subscribe(json!({ "sessionId": session, "from": "tail" })));
    let statement = second.until("chat_subscribed");
    assert_eq!(statement["pendingPermissions"][0]["requestId"], request.0);
    assert_eq!(statement["pendingPermissions"][0]["receivedAt"], now.to_string());
    let (_, list) = bench.call("GET", "/permissions", None);
    assert_eq!(list["items"], statement["pendingPermissions"]);
    second.say(&json!({ "type": "chat.permission-response", "requestId": request.0,
        "allow": true, "message": "go", "ref": "a" }));
    let ack = second.until("ack");
    assert_eq!(ack["type"], "chat.permission-response");
    assert_eq!((&ack["ref"], &ack["state"]), (&json!("a"), &json!("recorded")));
    assert_eq!((&ack["sessionId"], &ack["requestId"]), (&json!(session), &json!(request.0)));
    assert_eq!(first.until("permission_resolved")["decision"], "allow");
    let path = format!("/permissions/{}", request.0.replace(':', "%3A"));
    let (status, error) = bench.call("POST", &path, Some(&json!({ "allow": false })));
    assert_eq!(status, 409);
    assert_eq!(error["error"]["code"], "PERMISSION_ALREADY_RESOLVED");
    run.ends();
}

#[test]
fn a_client_that_does_not_read_costs_nobody_and_comes_back_without_loss() {
    let bench = Bench::with(|limits| limits.stall_ms = 300);
    let session = bench.session();
    let mut reader = bench.client();
    let mut sleeper = bench.client();
    for client in [&mut reader, &mut sleeper] {
        client.say(&subscribe(json!({ "sessionId": session, "from": "start" })));
        client.until("caught_up");
    }
    reader.say(&send(&session, "flood"));
    let run = bench.run();
    // More than any socket buffers hold. The reader's progress paces it.
    let line = "x".repeat(16 << 10);
    let mut read = reader.events_until("run_started");
    for _ in 0..100 {
        (0..20).for_each(|_| run.says(line.clone()));
        for _ in 0..20 {
            read.extend(reader.events_until("text"));
        }
    }
    run.ends();
    read.extend(reader.events_until("complete"));
    assert_eq!(read.len(), 2002);
    // What the sleeper finds when it wakes is a beginning of the log, and the end of its socket.
    let mut found = Vec::new();
    while let Ok(message) = sleeper.0.read() {
        match message {
            Message::Text(text) if text.contains("\"seq\"") => found.push(text),
            _ => {}
        }
    }
    assert!(found.len() < read.len(), "it was dropped");
    assert_eq!(found[..], read[..found.len()]);
    let last: Value = serde_json::from_str(found.last().expect("some")).expect("JSON");
    let mut again = bench.client();
    let target = json!({ "sessionId": session, "runId": last["runId"], "lastSeq": last["seq"] });
    again.say(&subscribe(target));
    found.extend(again.events_until("complete"));
    assert_eq!(found, read);
}

#[test]
fn a_client_that_answers_no_ping_is_closed() {
    let bench = Bench::with(|limits| limits.heartbeat_ms = 1000);
    let mut quick = bench.client();
    let mut mute = bench.connect();
    let handshake = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Bearer {}\r\n\r\n",
        bench.address, bench.token
    );
    mute.write_all(handshake.as_bytes()).expect("sent");
    // Reading answers pings: this one outlives several of them.
    let mut pings = 0;
    while pings < 4 {
        match quick.0.read().expect("still open") {
            Message::Ping(_) => pings += 1,
            Message::Close(frame) => panic!("{frame:?}"),
            _ => {}
        }
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut mute, &mut bytes).expect("the end");
    let code = 4001_u16.to_be_bytes();
    assert!(bytes.windows(4).any(|at| at[0] == 0x88 && at[2..] == code), "4001 in {bytes:?}");
}

#[test]
fn over_a_limit_the_close_code_says_why() {
    let bench = Bench::with(|limits| limits.message_bytes_max = 4096);
    let mut client = bench.client();
    client.say(&json!({ "type": "ping", "ref": "fits", "more": "x".repeat(4000) }));
    assert_eq!(client.reply()["ref"], "fits");
    // The server may hang up while this is on its way.
    client.0.send(Message::text("x".repeat(1 << 20))).ok();
    assert_eq!(client.closed(), 1009);
    let mut client = bench.client();
    let flood = std::iter::repeat_n((), limits::MESSAGES_BURST_MAX as usize * 2);
    let all_sent = flood.map(|()| client.0.write(Message::text("{}"))).all(|sent| sent.is_ok());
    assert!(all_sent && client.0.flush().is_ok() || client.0.can_read());
    assert_eq!(client.closed(), 4002);
}

#[test]
fn a_draining_server_lets_clients_have_the_end() {
    let mut bench = Bench::new();
    let session = bench.session();
    let mut client = bench.client();
    client.say(&send(&session, "hello"));
    let run = bench.run();
    client.events_until("run_started");
    let mut idle = bench.client();
    bench.registry.close(Mode::Abort);
    let server = bench.server.take().expect("it serves");
    server.drain();
    assert_eq!(idle.until("server_draining")["mode"], "abort");
    assert_eq!(idle.closed(), 1001);
    client.until("server_draining");
    client.say(&send(&session, "more"));
    assert_eq!(client.until("protocol_error")["code"], "SHUTTING_DOWN");
    run.ends();
    assert_eq!(client.events_until("complete").len(), 1);
    assert_eq!(client.closed(), 1001);
    assert!(server.stop(Instant::now() + Duration::from_secs(30)));
}

#[test]
fn everybody_hears_of_sessions() {
    let bench = Bench::new();
    let mut client = bench.client();
    let session = bench.session();
    let upserted = client.until("session_upserted");
    assert_eq!(upserted["sessionId"], session);
    let (status, shown) = bench.call("GET", &format!("/sessions/{session}"), None);
    assert_eq!((status, &shown), (200, &upserted["session"]));
    assert_eq!(upserted["project"]["displayName"], "demo");
    assert_eq!((&shown["running"], &shown["title"]), (&json!(false), &Value::Null));
    let path = format!("/sessions/{session}");
    let edit = json!({ "title": " A new name ", "archived": true });
    let (status, edited) = bench.call("PATCH", &path, Some(&edit));
    assert_eq!((status, &edited["title"]), (200, &json!("A new name")));
    assert_eq!(client.until("session_upserted")["session"], edited);
    assert_eq!(bench.call("DELETE", &path, None).0, 204);
    assert_eq!(client.until("session_deleted")["sessionId"], session);
    assert_eq!(bench.call("GET", &path, None).0, 404);
}

#[test]
fn rest_has_the_same_frames_in_pages() {
    let bench = Bench::with(|limits| limits.event_bytes_max = 4096);
    let session = bench.session();
    let mut client = bench.client();
    let body = json!({ "content": "first", "clientMessageId": "m" });
    let path = format!("/sessions/{session}/runs");
    client.say(&subscribe(json!({ "sessionId": session })));
    client.until("caught_up");
    let (status, accepted) = bench.call("POST", &path, Some(&body));
    assert_eq!((status, &accepted["duplicate"]), (202, &json!(false)));
    let run = bench.run();
    run.says("short");
    run.says("long ".repeat(4096));
    run.ends();
    let (status, again) = bench.call("POST", &path, Some(&body));
    assert_eq!((status, &again["duplicate"]), (202, &json!(true)));
    let log = client.events_until("complete");
    let events = format!("/sessions/{session}/events");
    let mut pages = Vec::new();
    let mut after = String::from("&from=start");
    loop {
        let (status, text) = bench.get_text("GET", &format!("{events}?limit=1{after}"), None);
        assert_eq!(status, 200, "{text}");
        let page: Value = serde_json::from_str(&text).expect("JSON");
        pages.push(text);
        match page["nextCursor"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(pages.len(), 3);
    let mut at = 0;
    for page in &pages {
        let items = page.strip_prefix("{\"items\":[").expect("items first");
        let head = log[at].as_str();
        let count = if head.contains("run_started") { 2 } else { 1 };
        let expected = log[at..at + count].iter().map(|text| text.as_str()).collect::<Vec<_>>();
        assert!(items.starts_with(&expected.join(",")), "{page}");
        at += count;
    }
    let run = accepted["runId"].as_str().expect("a run");
    let (status, whole) = bench.call("GET", &format!("/runs/{run}/events/2"), None);
    assert_eq!((status, &whole["content"]), (200, &json!("long ".repeat(4096))));
    let (_, shown) = bench.call("GET", &format!("/runs/{run}"), None);
    assert_eq!((&shown["status"], &shown["lastSeq"]), (&json!("completed"), &json!(3)));
    assert_eq!((&shown["reason"], &shown["success"]), (&json!("finished"), &json!(true)));
    let (_, list) = bench.call("GET", &format!("/sessions/{session}/runs"), None);
    assert_eq!(list["items"], json!([shown]));
    let (_, running) = bench.call("GET", "/runs?status=running", None);
    assert_eq!(running, json!({ "items": [], "nextCursor": null }));
    let (status, _) = bench.call("POST", &format!("/runs/{run}/abort"), None);
    assert_eq!(status, 409);
    let unknown = format!("{events}?after=0193a1b2-0000-7000-8000-000000000001:7");
    let (_, page) = bench.call("GET", &unknown, None);
    assert_eq!(
        (&page["gap"]["to"]["seq"], page["items"].as_array().map(Vec::len)),
        (&json!(7), Some(4))
    );
    let stale = format!("{events}?after={run}:2@00000000-0000-4000-8000-000000000000");
    let (_, page) = bench.call("GET", &stale, None);
    assert_eq!((&page["rewound"], page["items"].as_array().map(Vec::len)), (&json!(true), Some(4)));
}

#[test]
fn rest_refuses_what_it_cannot_use() {
    let bench = Bench::new();
    let session = bench.session();
    let project = bench.project();
    for (method, path, body, status, code) in [
        ("GET", "/nothing".into(), None, 404, "NOT_FOUND"),
        ("PUT", "/sessions".into(), None, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/sessions/ghost".into(), None, 404, "SESSION_NOT_FOUND"),
        ("GET", "/sessions/bad%2".into(), None, 400, "BAD_REQUEST"),
        ("GET", "/sessions?limit=abc".into(), None, 400, "INVALID_FIELD"),
        ("GET", "/sessions?cursor=abc".into(), None, 400, "INVALID_FIELD"),
        ("GET", "/runs?status=odd".into(), None, 400, "INVALID_FIELD"),
        ("GET", "/runs/ghost".into(), None, 404, "RUN_NOT_FOUND"),
        ("GET", format!("/sessions/{session}/events?after=x"), None, 400, "INVALID_FIELD"),
        ("POST", "/sessions".into(), Some(json!([])), 400, "INVALID_MESSAGE"),
        ("POST", "/sessions".into(), Some(json!({})), 400, "INVALID_FIELD"),
        (
            "POST",
            "/sessions".into(),
            Some(json!({ "provider": "other", "projectPath": project })),
            400,
            "UNSUPPORTED_PROVIDER",
        ),
        (
            "POST",
            "/sessions".into(),
            Some(json!({ "provider": "test", "projectPath": "/" })),
            400,
            "INVALID_FIELD",
        ),
        ("PATCH", format!("/sessions/{session}"), Some(json!({})), 400, "INVALID_FIELD"),
        (
            "POST",
            format!("/sessions/{session}/runs"),
            Some(json!({ "content": "x", "whenBusy": "wait" })),
            400,
            "INVALID_FIELD",
        ),
        (
            "POST",
            "/permissions/x".into(),
            Some(json!({ "allow": true })),
            404,
            "PERMISSION_NOT_FOUND",
        ),
    ] {
        let (found, error) = bench.call(method, &path, body.as_ref());
        assert_eq!((found, &error["error"]["code"]), (status, &json!(code)), "{method} {path}");
    }
}

#[test]
fn a_commit_that_does_not_come_is_said_to_be_unknown() {
    let bench = Bench::new();
    let session = bench.session();
    let gate = bench.store_gate.lock();
    let body = json!({ "content": "x", "clientMessageId": "m" });
    let path = format!("/sessions/{session}/runs");
    let (status, error) = bench.call("POST", &path, Some(&body));
    assert_eq!((status, &error["error"]["code"]), (503, &json!("STORE_UNAVAILABLE")));
    drop(gate);
    let (status, accepted) = bench.call("POST", &path, Some(&body));
    assert_eq!((status, &accepted["duplicate"]), (202, &json!(true)));
}

#[test]
fn the_door_opens_to_the_token_and_to_its_cookie_only() {
    let bench = Bench::new();
    let status = |request: String| {
        let answer = bench.exchange(request.as_bytes());
        answer[9..12].parse::<u16>().expect("a status")
    };
    let host = bench.address.to_string();
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")
    };
    for path in ["/api/v1/sessions", "/version", "/ws", "/nothing", "/api/v1/login"] {
        assert_eq!(status(get(path, "")), 401, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(get(path, "")), 200, "{path}");
    }
    let bearer = format!("Authorization: Bearer {}\r\n", bench.token);
    assert_eq!(status(get("/version", &bearer)), 200);
    assert_eq!(status(get("/nothing", &bearer)), 404);
    assert_eq!(status(get("/version", &format!("{bearer}Origin: http://evil.example\r\n"))), 403);
    assert_eq!(status(get("/version", &bearer).replace(&host, "evil.example")), 421);
    let login = |code: &str| {
        let body = json!({ "code": code }).to_string();
        let length = body.len();
        bench.exchange(
            format!(
                "POST /api/v1/login HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        )
    };
    assert!(login("wrong").starts_with("HTTP/1.1 401 "));
    let welcome = login(&bench.token);
    assert!(welcome.starts_with("HTTP/1.1 200 "), "{welcome}");
    let cookie = welcome.lines().find_map(|line| line.strip_prefix("Set-Cookie: "));
    let cookie = cookie.and_then(|line| line.split(';').next()).expect("a cookie");
    let with_cookie = format!("Cookie: {cookie}\r\n");
    assert_eq!(status(get("/version", &with_cookie)), 200);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let ws =
        |more: &str| get("/ws", &format!("{upgrade}{more}")).replace("Connection: close\r\n", "");
    let foreign = ws(&format!("{with_cookie}Origin: http://evil.example\r\n"));
    assert_eq!(status(foreign), 403);
    let mut own = bench.connect();
    own.write_all(ws(&format!("{with_cookie}Origin: http://{host}\r\n")).as_bytes()).expect("sent");
    let mut line = [0; 12];
    std::io::Read::read_exact(&mut own, &mut line).expect("an answer");
    assert_eq!(&line, b"HTTP/1.1 101");
}

#[test]
fn many_sessions_on_one_connection_all_arrive() {
    let bench = Bench::with(|limits| limits.agents_max = 64);
    let sessions: Vec<_> = (0..20).map(|_| bench.session()).collect();
    let mut client = bench.client();
    let targets: Vec<_> =
        sessions.iter().map(|id| json!({ "sessionId": id, "from": "start" })).collect();
    client.say(&json!({ "type": "chat.subscribe", "sessions": targets }));
    for _ in &sessions {
        client.until("caught_up");
    }
    let mut other = bench.client();
    let mut runs = Vec::new();
    for session in &sessions {
        other.say(&send(session, "x"));
        runs.push(bench.run());
    }
    for n in 0..50 {
        for run in &runs {
            run.says(n.to_string());
        }
    }
    runs.into_iter().for_each(bench::Run::ends);
    let mut seen: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    let mut ended = 0;
    while ended < sessions.len() {
        let frame = client.next();
        let Some(seq) = frame["seq"].as_u64() else { continue };
        let session = frame["sessionId"].as_str().expect("a session").to_owned();
        let next = seen.entry(session).or_insert(0);
        assert_eq!(seq, *next, "I4: in order, once");
        *next += 1;
        ended += usize::from(frame["kind"] == "complete");
    }
    assert!(seen.values().all(|count| *count == 52));
}
