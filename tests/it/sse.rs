//! The log as server-sent events, against the WebSocket and the pages: the same bytes, from any
//! id, across cuts, kills and restarts, at the price of a cursor.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::process::resident;
use crate::support::stream::{Event, Stream};
use crate::support::{
    Checker, Client, Frame, Gateway, Ledger, Random, Setup, begin, eventually, http, one_session,
};

/// Runs of all kinds of events: what an agent says, with line ends and quotes inside, a tool, a
/// permission that is answered, a kind of its own, a line that is no event; a failure; an abort.
fn all_kinds(gateway: &Gateway, session: &str) -> Vec<String> {
    let mut client = gateway.connect();
    let (first, agent) = begin(gateway, &mut client, session, "line one\nline two\r\n\u{2028}");
    agent.emit(&[
        json!({"kind": "text", "content": "a\nb\r\nc\rd: e\n\ndata: f\u{0}\u{2029}\"\\", "x": "\n"}),
        json!({"kind": "stream_delta", "content": "p", "blockId": "b", "block": "text"}),
        json!({"kind": "tool_use", "toolId": "t", "toolName": "Bash", "toolInput": {"a": "\r"}}),
        json!({"kind": "odd\nkind", "id: 3": "event: x\n\n"}),
        json!({"kind": "permission_request", "requestId": "q", "toolName": "T", "input": {}}),
    ]);
    agent.emit_bytes(b"no event at all \xff\r\n");
    let asked = client.expect("a question", |frame| frame.kind() == "permission_request");
    let answer = json!({
        "type": "chat.permission-response", "requestId": asked.json["requestId"], "allow": true,
    });
    client.request(&answer);
    agent.line("its answer", |line| line["type"] == "permission-response");
    agent.say("after it");
    agent.finish();
    client.expect_complete(&first);
    let (second, agent) = begin(gateway, &mut client, session, "fail");
    agent.stderr("a line\nand another\n");
    agent.exit(3);
    client.expect_complete(&second);
    let (third, agent) = begin(gateway, &mut client, session, "stop");
    agent.policy(&[], Some(0), None);
    agent.say("x");
    client.expect_at(&third, 1);
    client.request(&json!({"type": "chat.abort", "sessionId": session}));
    client.expect_complete(&third);
    vec![first, second, third]
}

fn epoch(gateway: &Gateway) -> String {
    let (_, version) = gateway.get("/version");
    version["logEpoch"].as_str().expect("an epoch").to_owned()
}

fn texts(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.text.as_str()).collect()
}

/// Every event of the log has its place as its id; gateway frames have none, or the cursor.
#[track_caller]
fn check_ids(events: &[Event], epoch: &str) {
    let mut cursor = None;
    for Event { id, frame } in events {
        match (frame.run(), frame.seq()) {
            (Some(run), Some(seq)) => {
                assert_eq!(id.as_deref(), Some(&*format!("{run}:{seq}@{epoch}")), "{}", frame.text);
            }
            _ if frame.kind() == "caught_up" => assert!(id.is_some(), "{}", frame.text),
            _ if frame.kind() == "gap" => {
                let to = &frame.json["to"];
                let run = to["runId"].as_str().expect("a run");
                assert_eq!(id.as_deref(), Some(&*format!("{run}:{}@{epoch}", to["seq"])));
            }
            _ => assert_eq!(*id, None, "{}", frame.text),
        }
        if frame.kind() == "caught_up" && cursor.is_some() {
            assert_eq!(*id, cursor, "it is where the reader is");
        }
        cursor = id.clone().or(cursor);
    }
}

#[test]
fn a_stream_has_the_bytes_of_the_websocket_and_of_the_pages() {
    let (gateway, session) = one_session();
    let mut early = Stream::open(&gateway, &session, "", "");
    let runs = all_kinds(&gateway, &session);
    let replay = gateway.replay(&session);
    let kinds: Vec<&str> = replay.iter().map(Frame::kind).collect();
    for kind in ["run_started", "text", "raw", "odd\nkind", "permission_resolved", "complete"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    early.expect_complete(&runs[2]);
    assert_eq!(texts(&early.of_runs()), texts(&replay), "followed live");
    let mut late = Stream::open(&gateway, &session, "from=start", "");
    late.expect("caught up", |frame| frame.is("caught_up", &session));
    assert_eq!(texts(&late.of_runs()), texts(&replay), "read later");
    let first = &late.seen[0].frame;
    assert_eq!((first.kind(), &first.json["recovered"]), ("chat_subscribed", &json!(true)));
    for stream in [&early, &late] {
        check_ids(&stream.seen, &epoch(&gateway));
    }
    #[derive(serde::Deserialize)]
    struct Page {
        items: Vec<Box<serde_json::value::RawValue>>,
    }
    let path = format!("/api/v1/sessions/{session}/events?from=start&limit=1000");
    let (_, page) = http(gateway.port(), "GET", &path, None, Some(gateway.token()));
    let page: Page = serde_json::from_str(&page).expect("a page");
    let items: Vec<&str> = page.items.iter().map(|item| item.get()).collect();
    assert_eq!(items, texts(&replay));
}

#[test]
fn the_head_forbids_to_keep_it_back_and_a_head_request_gets_it_alone() {
    let (gateway, session) = one_session();
    let head = Stream::open(&gateway, &session, "", "").head;
    for header in [
        "Content-Type: text/event-stream",
        "Cache-Control: no-store, no-transform",
        "X-Accel-Buffering: no",
        "Connection: close",
        "X-Content-Type-Options: nosniff",
        "Vary: Accept",
    ] {
        assert!(head.contains(&format!("\r\n{header}\r\n")), "{header} in {head}");
    }
    assert!(!head.contains("Content-Length") && !head.contains("Transfer-Encoding"), "{head}");
    let alone = Stream::ask(&gateway, "HEAD", &session, "", "");
    assert!(alone.head.contains("Content-Type: text/event-stream\r\n"), "{}", alone.head);
    assert_eq!(alone.body(), "");
    // The same address without that `Accept` has pages.
    for accept in ["application/json", "*/*", "text/event-stream;q=0"] {
        let path = format!("/api/v1/sessions/{session}/events");
        let request = format!("Accept: {accept}\r\n");
        assert!(raw_get(&gateway, &path, &request).contains("application/json"), "{accept}");
    }
}

fn raw_get(gateway: &Gateway, path: &str, headers: &str) -> String {
    use std::io::{Read, Write};
    let port = gateway.port();
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let token = gateway.token();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers and closes");
    answer
}

#[test]
fn where_a_stream_begins_is_the_clients_choice() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    for n in 1..=9 {
        agent.say(&n.to_string());
    }
    client.expect_at(&run, 9);
    let begins = |query: &str, headers: &str| {
        let mut stream = Stream::open(&gateway, &session, query, headers);
        stream.expect("caught up", |frame| frame.is("caught_up", &session));
        let first = stream.of_runs().first().and_then(Frame::seq);
        let subscribed = stream.seen[0].frame.json.clone();
        assert_eq!(stream.last_id, Some(format!("{run}:9@{}", epoch(&gateway))), "{query}");
        stream.cut();
        (first, subscribed["recovered"] == true, subscribed["rewound"] == true)
    };
    assert_eq!(begins("", ""), (Some(0), true, false), "all of it is one page");
    assert_eq!(begins("limit=4", ""), (Some(6), false, false), "the newest page");
    assert_eq!(begins("from=start&limit=4", ""), (Some(0), true, false));
    assert_eq!(begins("from=tail", ""), (None, false, false));
    assert_eq!(begins(&format!("after={run}:3"), ""), (Some(4), true, false));
    assert_eq!(begins(&format!("after={run}:0"), ""), (Some(1), true, false));
    assert_eq!(begins(&format!("after={run}:9"), ""), (None, true, false));
    let here = epoch(&gateway);
    assert_eq!(begins(&format!("after={run}:7%40{here}"), ""), (Some(8), true, false));
    // The header is newer than the address.
    let header = format!("Last-Event-ID: {run}:6@{here}\r\n");
    for query in [&format!("after={run}:1"), "from=start", "from=tail", "limit=1", ""] {
        assert_eq!(begins(query, &header), (Some(7), true, false), "{query}");
    }
    assert_eq!(begins(&format!("after={run}:3"), "Last-Event-ID: \r\n"), (Some(4), true, false));
    // Ahead of the log, or of another log: all of that run, and the client learns it.
    let ahead = format!("Last-Event-ID: {run}:10@{here}\r\n");
    let foreign = format!("Last-Event-ID: {run}:3@{run}\r\n");
    for header in [&ahead, &foreign] {
        assert_eq!(begins("", header), (Some(0), false, true), "{header}");
    }
    agent.finish();
    client.expect_complete(&run);
}

#[test]
fn what_cannot_be_streamed_is_refused_with_a_status() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.finish();
    client.expect_complete(&run);
    let other = gateway.session("fake");
    let unknown = "0193a1b2-0000-7000-8000-000000000001";
    let refused = |session: &str, query: &str, headers: &str| {
        let answer = Stream::ask(&gateway, "GET", session, query, headers);
        let status = answer.head.split(' ').nth(1).map(str::to_owned).expect("a status");
        assert!(answer.head.contains("Content-Type: application/json"), "{}", answer.head);
        let body: Value = serde_json::from_str(&answer.body()).expect("JSON");
        (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let invalid = ("400".to_owned(), "INVALID_FIELD".to_owned());
    for query in [
        "before=x:1",
        "compact=1",
        "from=end",
        "after=x",
        "after=x:y",
        "after=x:1&from=start",
        "limit=0",
    ] {
        assert_eq!(refused(&session, query, ""), invalid, "{query}");
    }
    for id in ["x", "\u{e9}", "x:-1", "x:1:2"] {
        assert_eq!(refused(&session, "", &format!("Last-Event-ID: {id}\r\n")), invalid, "{id}");
    }
    let missing = ("404".to_owned(), "RUN_NOT_FOUND".to_owned());
    assert_eq!(refused(&other, &format!("after={run}:1"), ""), missing);
    let missing = ("404".to_owned(), "SESSION_NOT_FOUND".to_owned());
    assert_eq!(refused(unknown, "", ""), missing);
    let (status, _) =
        http(gateway.port(), "GET", &format!("/api/v1/sessions/{session}/events"), None, None);
    assert_eq!(status, 401);
    // An unknown run is a gap, not an error: retention may have taken it.
    let mut stream = Stream::open(&gateway, &session, &format!("after={unknown}:7"), "");
    let gap = stream.expect("how it begins", |frame| frame.kind() == "chat_subscribed");
    assert_eq!(gap.frame.json["gap"], json!({"from": null, "to": {"runId": unknown, "seq": 7}}));
    assert_eq!(stream.expect("the oldest", |_| true).frame.seq(), Some(0));
}

#[test]
fn a_cursor_from_before_the_first_run_misses_nothing() {
    let (gateway, session) = one_session();
    let mut stream = Stream::open(&gateway, &session, "from=tail", "");
    stream.expect("caught up", |frame| frame.is("caught_up", &session));
    let id = stream.last_id.clone().expect("a cursor, though there is nothing yet");
    stream.cut();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.finish();
    client.expect_complete(&run);
    let mut stream = Stream::resume(&gateway, &session, &id);
    stream.expect_complete(&run);
    assert_eq!(stream.of_runs().len(), 2);
    let begun = &stream.seen[0].frame.json;
    assert_eq!((&begun["gap"], &begun["recovered"]), (&json!(null), &json!(true)), "{begun}");
    let page = id.split('@').next().expect("a cursor");
    let (_, page) = gateway.get(&format!("/api/v1/sessions/{session}/events?after={page}"));
    assert_eq!((page["items"].as_array().map(Vec::len), &page["gap"]), (Some(2), &json!(null)));
}

#[test]
fn a_stream_that_was_cut_at_any_event_goes_on_after_it() {
    let (gateway, session) = one_session();
    all_kinds(&gateway, &session);
    let replay = gateway.replay(&session);
    for cut in 0..replay.len() {
        let mut before = Stream::open(&gateway, &session, "from=start", "");
        while before.of_runs().len() <= cut {
            before.expect("the next event", |_| true);
        }
        let id = before.last_id.clone().expect("an id");
        before.cut();
        let mut after = Stream::resume(&gateway, &session, &id);
        after.expect("caught up", |frame| frame.is("caught_up", &session));
        assert_eq!(texts(&after.of_runs()), texts(&replay[cut + 1..]), "after {id}");
        after.cut();
    }
}

#[test]
fn a_stream_goes_on_over_kills_of_the_gateway_without_loss_or_double() {
    let (mut gateway, session) = one_session();
    let mut random = Random::new(31);
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    let (mut checker, mut ledger) = (Checker::new(), Ledger::new());
    let mut last_id: Option<String> = None;
    for round in 0..4_u64 {
        let mut stream = match &last_id {
            Some(id) => Stream::resume(&gateway, &session, id),
            None => Stream::open(&gateway, &session, "from=start", ""),
        };
        agent.flood(400, 64, "n");
        let enough = 400 * round + 1 + random.below(350) as u64;
        let mut take = |event: &Event| {
            checker.see(&event.frame);
            ledger.see(&event.frame);
        };
        loop {
            let event = stream.expect("the flood", |frame| frame.run().is_some());
            take(&event);
            if event.frame.seq() >= Some(enough) {
                break;
            }
        }
        gateway.kill();
        // What was on its way still comes; an event that did not come whole does not count.
        while let Some(event) = stream.read(Duration::from_secs(20)) {
            take(&event);
        }
        last_id = stream.last_id.clone();
        gateway = gateway.restart();
    }
    let mut stream = Stream::resume(&gateway, &session, &last_id.expect("events came"));
    agent.finish();
    stream.expect_complete(&run);
    for event in &stream.seen {
        checker.see(&event.frame);
        ledger.see(&event.frame);
    }
    let mut log = Ledger::new();
    gateway.replay(&session).iter().for_each(|frame| log.see(frame));
    ledger.is_within(&log);
    assert_eq!((ledger.len(), log.len()), (1602, 1602), "nothing is lost");
}

#[test]
fn what_retention_took_is_a_gap_and_the_stream_goes_on_after_it() {
    let gateway = Setup::with_fake().set("retention", "max_bytes", "65536").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let mut runs = Vec::new();
    for at in 0..3 {
        let (run, agent) = begin(&gateway, &mut client, &session, &format!("prompt {at}"));
        agent.flood(10, 4096, "n");
        agent.finish();
        client.expect_complete(&run);
        runs.push(run);
    }
    eventually("retention takes the first runs", || {
        let (_, page) = gateway.get(&format!("/api/v1/sessions/{session}/events?from=start"));
        page["gap"].is_object().then_some(())
    });
    // What is still in memory is still served.
    let mut gateway = gateway;
    gateway.terminate();
    let gateway = gateway.restart();
    let here = epoch(&gateway);
    let mut stream = Stream::resume(&gateway, &session, &format!("{}:4@{here}", runs[0]));
    stream.expect("caught up", |frame| frame.is("caught_up", &session));
    let begun = &stream.seen[0].frame.json;
    assert_eq!(begun["gap"]["from"], json!({"runId": runs[0], "seq": 5}), "{begun}");
    assert_eq!(begun["recovered"], false);
    let first = stream.of_runs().first().cloned().expect("something is kept");
    assert_eq!(first.seq(), Some(0));
    assert_ne!(first.run(), Some(&*runs[0]));
    check_ids(&stream.seen, &here);
}

#[test]
fn a_client_that_stops_reading_costs_no_memory_and_delays_nobody() {
    const MIB: u64 = 1 << 20;
    let gateway = Setup::with_fake().set("timeouts", "stall", "\"1s\"").start();
    let session = gateway.session("fake");
    let mut live = gateway.connect();
    let mut stalled = Stream::open(&gateway, &session, "from=start", "");
    stalled.narrow();
    let (run, agent) = begin(&gateway, &mut live, &session, "go");
    agent.flood(100, 16 << 10, "warm");
    live.expect_at(&run, 100);
    let before = resident(gateway.pid());
    let mut most = before;
    // From here on `stalled` reads nothing until the flood is over.
    let count = 64 * 64;
    agent.flood(count, 16 << 10, "e");
    live.forget();
    for seq in 101..=100 + count {
        let frame = live.expect("the flood goes on", |frame| frame.seq().is_some());
        assert_eq!(frame.seq(), Some(seq), "I4/I15: the client that reads sees all of it");
        if seq % 64 == 0 {
            most = most.max(resident(gateway.pid()));
        }
    }
    let grown = most.saturating_sub(before);
    assert!(grown <= 64 * MIB, "I7: grew by {} MiB", grown / MIB);
    eventually("the log says who was dropped", || {
        gateway.stderr().contains("stalled").then_some(())
    });
    let mut checker = Checker::new();
    while let Some(event) = stalled.read(Duration::from_secs(20)) {
        checker.see(&event.frame);
    }
    assert!(stalled.ended);
    let id = stalled.last_id.clone().expect("it saw the beginning");
    let (_, at) = checker.cursor(&session).expect("it saw the beginning");
    assert!(at < 100 + count, "it was dropped on its way, not at the end");
    // It comes back and misses nothing.
    let mut back = Stream::resume(&gateway, &session, &id);
    while checker.cursor(&session) != Some((run.clone(), 100 + count)) {
        checker.see(&back.expect("the rest", |frame| frame.seq().is_some()).frame);
    }
    agent.finish();
    live.expect_complete(&run);
    back.expect_complete(&run);
}

#[test]
fn an_idle_stream_has_a_comment_in_each_heartbeat() {
    let gateway = Setup::with_fake().set("timeouts", "heartbeat", "\"1s\"").start();
    let session = gateway.session("fake");
    let mut stream = Stream::open(&gateway, &session, "", "");
    stream.expect("caught up", |frame| frame.is("caught_up", &session));
    let seen = stream.seen.len();
    eventually("two comments", || {
        stream.read(Duration::from_millis(100));
        (stream.comments >= 2).then_some(())
    });
    assert_eq!(stream.seen.len(), seen, "comments are no events");
}

#[test]
fn streams_and_websockets_of_one_session_see_the_same() {
    let (gateway, session) = one_session();
    let mut streams: Vec<Stream> =
        (0..2).map(|_| Stream::open(&gateway, &session, "from=tail", "")).collect();
    for stream in &mut streams {
        stream.expect("caught up", |frame| frame.is("caught_up", &session));
    }
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.flood(500, 40, "n");
    agent.finish();
    client.expect_complete(&run);
    let seen: Vec<Frame> = crate::support::of_runs(&client);
    assert_eq!(seen.len(), 502);
    for stream in &mut streams {
        stream.expect_complete(&run);
        assert_eq!(texts(&stream.of_runs()), texts(&seen));
    }
}

#[test]
fn a_server_that_stops_tells_its_streams_the_end_of_their_runs() {
    let (mut gateway, session) = {
        let mut setup = Setup::with_fake();
        setup.arguments.extend(["--on-stop".into(), "abort".into()]);
        let gateway = setup.start();
        let session = gateway.session("fake");
        (gateway, session)
    };
    let mut client = gateway.connect();
    let mut stream = Stream::open(&gateway, &session, "", "");
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.policy(&[], Some(0), None);
    agent.say("x");
    stream.expect("the run", |frame| frame.seq() == Some(1));
    let idle = gateway.session("fake");
    let mut idle = Stream::open(&gateway, &idle, "", "");
    idle.expect("caught up", |frame| frame.kind() == "caught_up");
    assert_eq!(gateway.terminate().code(), Some(0));
    for stream in [&mut stream, &mut idle] {
        stream.read_to_end();
        let draining = stream.seen.iter().find(|event| event.frame.kind() == "server_draining");
        let draining = draining.expect("it is told");
        assert_eq!((&draining.frame.json["mode"], &draining.id), (&json!("abort"), &None));
    }
    let last = stream.of_runs().last().cloned().expect("events");
    assert_eq!((last.kind(), last.run()), ("complete", Some(&*run)));
    // It comes back by itself, with what it has.
    let gateway = gateway.restart();
    let mut back = Stream::resume(&gateway, &session, &stream.last_id.expect("an id"));
    back.expect("caught up", |frame| frame.kind() == "caught_up");
    assert_eq!(back.of_runs().len(), 0);
    let mut back = Stream::resume(&gateway, &session, &idle.last_id.expect("an id"));
    back.expect("caught up", |frame| frame.kind() == "caught_up");
}

#[test]
fn a_deleted_session_ends_its_streams_and_takes_no_more() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.finish();
    client.expect_complete(&run);
    let mut stream = Stream::open(&gateway, &session, "", "");
    stream.expect("caught up", |frame| frame.kind() == "caught_up");
    let path = format!("/api/v1/sessions/{session}");
    assert_eq!(gateway.request("DELETE", &path, None, Some(gateway.token())).0, 204);
    stream.read_to_end();
    let last = stream.seen.last().expect("events");
    assert!(last.frame.is("session_deleted", &session), "{}", last.frame.text);
    // At this an `EventSource` stops for good.
    let id = stream.last_id.expect("an id");
    let again = Stream::ask(&gateway, "GET", &session, "", &format!("Last-Event-ID: {id}\r\n"));
    assert!(again.head.starts_with("HTTP/1.1 404 "), "{}", again.head);
}

#[test]
fn a_client_that_hangs_up_or_talks_on_loses_its_place() {
    let gateway = Setup::with_fake().set("limits", "connections_max", "2").start();
    let session = gateway.session("fake");
    // A connection that the test closed before may hold its place for a moment.
    let open = || {
        eventually("there is a place", || {
            let stream = Stream::ask(&gateway, "GET", &session, "", "");
            stream.head.starts_with("HTTP/1.1 200 ").then_some(stream)
        })
    };
    let stream = open();
    let headers = [("authorization", format!("Bearer {}", gateway.token()))];
    let other =
        eventually("there is a place", || Client::connect(gateway.port(), "/ws", &headers).ok());
    let free = || {
        eventually("a place is given back", || {
            let answer = raw_get(&gateway, "/healthz", "");
            answer.starts_with("HTTP/1.1 200 ").then_some(())
        });
    };
    stream.cut();
    free();
    // Requests after the one for the stream are not answered, and too many end it.
    let mut chatty = open();
    let more = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
    chatty.send(more.as_bytes());
    while chatty.read(Duration::from_secs(20)).is_some() {}
    assert!(chatty.ended, "it is cut");
    assert!(chatty.seen.iter().all(|event| event.frame.json["ok"].is_null()));
    free();
    other.close();
}
