//! Floods, stalled clients, long lines, bad bytes: what memory and order have to stand.
//!
//! `REATTACH_PRESSURE_MB` sets how much the agent prints in front of a client that stopped
//! reading: 64 by default, 1024 is what docs/operations.md speaks of.

use serde_json::{Value, json};
use tungstenite::Message;

use crate::support::client::Ended;
use crate::support::process::resident;
use crate::support::{Checker, Client, Frame, Gateway, Ledger, Setup, begin, eventually};

const MIB: u64 = 1 << 20;

#[test]
fn a_client_that_stops_reading_delays_nobody_and_costs_no_memory() {
    let megabytes = std::env::var("REATTACH_PRESSURE_MB").ok().and_then(|n| n.parse().ok());
    let count = megabytes.unwrap_or(64_u64) * 64;
    let gateway = Setup::with_fake().set("timeouts", "stall", "\"1s\"").start();
    let session = gateway.session("fake");
    let mut live = gateway.connect();
    let mut stalled = gateway.connect();
    stalled.subscribe(&json!({"sessionId": session, "from": "start"}));
    let (run, agent) = begin(&gateway, &mut live, &session, "go");
    agent.flood(100, 16 << 10, "warm");
    live.expect_at(&run, 100);
    let before = resident(gateway.pid());
    let mut most = before;

    // From here on `stalled` reads nothing until the flood is over.
    agent.flood(count, 16 << 10, "e");
    live.forget();
    let mut seq = 100;
    while seq < 100 + count {
        let frame = live.expect("the flood goes on", |frame| frame.seq().is_some());
        seq += 1;
        assert_eq!(frame.seq(), Some(seq), "I4/I15: the client that reads sees all of it");
        assert_eq!(frame.json["content"], format!("e{}", seq - 101));
        if seq % 64 == 0 {
            most = most.max(resident(gateway.pid()));
        }
    }
    let grown = most.saturating_sub(before);
    assert!(grown <= 64 * MIB, "I7: grew by {} MiB", grown / MIB);

    eventually("the log says who was dropped", || {
        gateway.stderr().contains("stalled").then_some(())
    });
    let ended = stalled.read_to_end();
    assert!(matches!(ended, Ended::Closed(4000) | Ended::Dropped), "{ended:?}");
    let mut checker = Checker::new();
    stalled.seen.iter().for_each(|frame| checker.see(frame));
    let (_, at) = checker.cursor(&session).expect("it saw the beginning");
    assert!(at < 100 + count, "it was dropped on its way, not at the end");
    // It comes back and misses nothing.
    let mut back = gateway.connect();
    back.forget();
    back.subscribe(&json!({"sessionId": session, "runId": run, "lastSeq": at}));
    while checker.cursor(&session) != Some((run.clone(), 100 + count)) {
        checker.see(&back.expect("the rest", |frame| frame.seq().is_some()));
    }
    agent.finish();
    live.expect_complete(&run);
    back.expect_complete(&run);
}

#[test]
fn a_line_of_12_mb_is_one_event_and_whole_over_rest() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    let bytes = 12 << 20;
    agent.emit_long("{\"kind\":\"text\",\"content\":\"", 'x', bytes, "\"}");
    agent.say("after it");
    let event = client.expect_at(&run, 1);
    let after = client.expect_at(&run, 2);
    assert_eq!(after.json["content"], "after it");
    check_cut(&gateway, &event, "content", 256 << 10, |whole| {
        whole["content"].as_str().map(str::len) == Some(bytes)
    });
    // The blob is the log's: it survives a restart.
    agent.finish();
    client.expect_complete(&run);
    let mut gateway = gateway;
    gateway.kill();
    let gateway = gateway.restart();
    let log = gateway.replay(&session);
    assert_eq!(log[1].text, event.text);
    check_cut(&gateway, &event, "content", 256 << 10, |whole| {
        whole["content"].as_str().map(str::len) == Some(bytes)
    });
}

/// A frame that was cut: it says so, fits the limit, and the whole is where it says.
#[track_caller]
fn check_cut(
    gateway: &Gateway,
    event: &Frame,
    field: &str,
    max: usize,
    fits: impl Fn(&Value) -> bool,
) {
    assert!(event.text.len() <= max, "{} bytes", event.text.len());
    let truncated = &event.json["truncated"];
    assert!(truncated["bytes"].is_u64(), "{truncated}");
    let named = truncated["field"].as_str().unwrap_or_default();
    assert!(named.contains(field), "{truncated}");
    let href = truncated["href"].as_str().expect("where the whole is");
    let (status, whole) = gateway.get(href);
    assert_eq!(status, 200, "{href}");
    assert!(fits(&whole), "{href} is not the whole");
    assert_eq!((&whole["seq"], &whole["id"]), (&event.json["seq"], &event.json["id"]));
}

#[test]
fn long_events_are_cut_at_a_character() {
    let gateway = Setup::with_fake().set("limits", "event_bytes_max", "4096").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    for (i, fill) in ['x', 'é', '\u{1f980}', '"', '\n', '\\'].into_iter().enumerate() {
        let content = fill.to_string().repeat(6000);
        agent.say(&content);
        let event = client.expect_at(&run, i as u64 + 1);
        check_cut(&gateway, &event, "content", 4096, |whole| whole["content"] == *content);
        let cut = event.json["content"].as_str().expect("still a string");
        assert!(content.starts_with(cut), "it is cut, not changed: {fill:?}");
        assert!(!cut.is_empty(), "something of it is left: {fill:?}");
    }
    // Long by its many fields, or deep inside.
    let deep = json!({"kind": "odd", "a": {"b": ["y".repeat(9000)]}, "c": "z".repeat(9000)});
    agent.emit(std::slice::from_ref(&deep));
    let event = client.expect_at(&run, 7);
    check_cut(&gateway, &event, "", 4096, |whole| {
        whole["c"] == deep["c"] && whole["a"] == deep["a"]
    });
    let many: Vec<String> = (0..3000).map(|i| format!("n{i}")).collect();
    agent.emit(&[json!({"kind": "odd", "many": many})]);
    let event = client.expect_at(&run, 8);
    assert!(event.text.len() <= 4096, "{} bytes", event.text.len());
}

#[test]
fn of_a_line_over_the_cap_its_head_is_kept_and_its_length_said() {
    let gateway = Setup::with_fake().set("limits", "line_bytes_max", "1048576").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.emit_long("{\"kind\":\"text\",\"content\":\"", 'x', 3 << 20, "\"}");
    agent.say("after it");
    let event = client.expect_at(&run, 1);
    assert_eq!((event.kind(), &event.json["stream"]), ("raw", &json!("stdout")));
    let content = event.json["content"].as_str().expect("its head");
    assert!(content.starts_with("{\"kind\":\"text\",\"content\":\"xxx"), "{}", &content[..40]);
    let error = client.expect_at(&run, 2);
    assert_eq!((error.kind(), &error.json["source"]), ("error", &json!("gateway")));
    let said = error.json["content"].as_str().unwrap_or_default();
    assert!(said.contains(&((3 << 20) + 28).to_string()), "the line's length: {said}");
    assert_eq!(client.expect_at(&run, 3).json["content"], "after it");
    agent.finish();
    client.expect_complete(&run);
}

#[test]
fn bytes_that_are_no_utf_8_become_raw_events() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    agent.emit_bytes(b"{\"kind\":\"text\",\"content\":\"a\xff\xfeb\"}\n");
    agent.emit_bytes(b"\x00\x01\x02\n");
    agent.emit_bytes(b"\n");
    agent.emit_bytes(b"  plain words\r\n");
    agent.say("after");
    let mut checker = Checker::new();
    client.expect("the text after", |frame| frame.json["content"] == "after");
    client.seen.iter().for_each(|frame| checker.see(frame));
    let raws: Vec<&Frame> = client.seen.iter().filter(|frame| frame.kind() == "raw").collect();
    let content = |at: usize| raws[at].json["content"].as_str().expect("a raw line").to_owned();
    assert!(content(0).contains("\u{fffd}"), "{:?}", content(0));
    assert_eq!(content(1), "\u{0}\u{1}\u{2}");
    assert!(
        raws.iter()
            .any(|raw| raw.json["content"].as_str().unwrap_or_default().contains("plain words"))
    );
    agent.emit_bytes(b"no line end");
    agent.exit(0);
    let complete = client.expect_complete(&run);
    let last = client.seen.iter().rfind(|frame| frame.kind() == "raw").expect("raws came");
    assert_eq!(last.json["content"], "no line end", "also what has no line end");
    assert_eq!(complete.json["reason"], "agent_exited");
}

#[test]
fn a_client_frame_over_its_limit_closes_with_1009() {
    let gateway = Setup::with_fake().set("limits", "message_bytes_max", "65536").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
    let mut other = gateway.connect();
    let fits = json!({"type": "ping", "pad": "x".repeat(60_000)});
    assert_eq!(other.request(&fits).kind(), "pong");
    other.send_raw(Message::text("x".repeat(70_000)));
    assert_eq!(other.read_to_end(), Ended::Closed(1009));
    // A limit is the connection's, not the run's.
    agent.say("still here");
    client.expect_at(&run, 1);
    // The same for what no client library would send: an unmasked frame, a reserved opcode.
    for bytes in [&[0x81, 0x02, b'h', b'i'][..], &[0x83, 0x80, 0, 0, 0, 0]] {
        let mut raw = gateway.connect().into_raw();
        raw.write(bytes);
        eventually("the connection is closed", || {
            raw.read(std::time::Duration::from_millis(5));
            raw.ended.then_some(())
        });
    }
    agent.finish();
    client.expect_complete(&run);
}

#[test]
fn five_floods_at_once_keep_their_order() {
    const EVENTS: u64 = 3000;
    let gateway = Setup::with_fake().start();
    let mut client = gateway.connect();
    let mut runs = Vec::new();
    for _ in 0..5 {
        let session = gateway.session("fake");
        let (run, agent) = begin(&gateway, &mut client, &session, "go");
        runs.push((session, run, agent));
    }
    for (_, _, agent) in &runs {
        agent.flood(EVENTS, 200, "e");
    }
    let mut left = 5;
    let mut checker = Checker::new();
    client.seen.iter().for_each(|frame| checker.see(frame));
    client.forget();
    while left > 0 {
        let frame = client.expect("the floods go on", |frame| frame.seq().is_some());
        checker.see(&frame);
        if frame.kind() == "text" {
            let seq = frame.seq().expect("just looked at");
            assert_eq!(frame.json["content"], format!("e{}", seq - 1), "I4");
            if seq == EVENTS {
                let (_, _, agent) =
                    runs.iter().find(|(_, run, _)| frame.run() == Some(run)).expect("one of ours");
                agent.finish();
            }
        }
        left -= usize::from(frame.kind() == "complete");
    }
    for (session, run, _) in &runs {
        assert_eq!(checker.cursor(session), Some((run.clone(), EVENTS + 1)));
    }
}

#[test]
fn what_retention_takes_from_under_a_slow_reader_is_a_gap_in_mid_stream() {
    const LINES: u64 = 1500;
    // Each run is more than what the sockets' buffers hold, and only one of them may stay.
    let setup = Setup::with_fake()
        .set("limits", "ring_events_max", "64")
        .set("timeouts", "completed_retention", "\"10ms\"")
        .set("retention", "max_bytes", "30000000");
    let gateway = setup.start();
    let session = gateway.session("fake");
    let mut slow = gateway.connect();
    slow.subscribe(&json!({"sessionId": session, "from": "start"}));
    let mut live = gateway.connect();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let (run, agent) = begin(&gateway, &mut live, &session, "go");
        live.forget();
        agent.flood(LINES, 16 << 10, "e");
        live.expect_at(&run, LINES);
        agent.finish();
        live.expect_complete(&run);
        runs.push(run);
    }
    eventually("retention takes the first run", || {
        let (_, page) = gateway
            .get(&format!("/api/v1/sessions/{session}/events?after={}:{LINES}&limit=1", runs[0]));
        page["gap"].is_object().then_some(())
    });
    // Now it reads on: the first run up to some point, what is gone, the second run whole.
    slow.forget();
    let mut seen = Vec::new();
    let mut gap = None;
    loop {
        let frame = slow.expect("the rest", |f| f.run().is_some() || f.kind() == "gap");
        if frame.kind() == "gap" {
            assert!(gap.is_none(), "I4b: consecutive gaps join");
            gap = Some((seen.len() as u64, frame.json.clone()));
            continue;
        }
        seen.push((frame.run().expect("of a run").to_owned(), frame.seq().expect("a seq")));
        if frame.is("complete", &session) && frame.run() == Some(&runs[1]) {
            break;
        }
    }
    let (before, gap) = gap.expect("it was too slow for the first run");
    assert_eq!(gap["sessionId"], session);
    assert_eq!(gap["from"], json!({"runId": runs[0], "seq": before}), "after the last that it saw");
    assert_eq!(gap["to"], json!({"runId": runs[0], "seq": LINES + 1}), "I4b: to the run's end");
    let first = (0..before).map(|seq| (runs[0].clone(), seq));
    let second = (0..=LINES + 1).map(|seq| (runs[1].clone(), seq));
    assert!(seen.into_iter().eq(first.chain(second)), "I4: the rest in order, once");
}

#[test]
fn many_sessions_share_one_bound_of_memory() {
    let setup = Setup::with_fake().set("limits", "ring_bytes_max", "4194304");
    let gateway = setup.set("limits", "ring_total_bytes_max", "8388608").start();
    let mut client = gateway.connect();
    let mut runs = Vec::new();
    for _ in 0..8 {
        let session = gateway.session("fake");
        let (run, agent) = begin(&gateway, &mut client, &session, "go");
        runs.push((session, run, agent));
    }
    client.cut();
    let before = resident(gateway.pid());
    for (_, _, agent) in &runs {
        agent.flood(800, 16 << 10, "e");
    }
    let mut most = before;
    for (_, run, _) in &runs {
        eventually("all of it is durable", || {
            most = most.max(resident(gateway.pid()));
            let (_, row) = gateway.get(&format!("/api/v1/runs/{run}"));
            (row["lastSeq"] == 800).then_some(())
        });
    }
    let grown = most.saturating_sub(before);
    assert!(grown <= 64 * MIB, "I7: 100 MiB of events made it grow by {} MiB", grown / MIB);
    for (session, run, _) in &runs {
        let log = gateway.replay(session);
        assert_eq!(log.len(), 801, "I4: {run}");
    }
}

#[test]
fn forty_clients_see_the_same_bytes() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut sender = gateway.connect();
    let (run, agent) = begin(&gateway, &mut sender, &session, "go");
    let mut clients: Vec<Client> = (0..40).map(|_| gateway.connect()).collect();
    agent.flood(1000, 150, "e");
    sender.expect_at(&run, 40);
    for (at, client) in clients.iter_mut().enumerate() {
        let target = match at % 3 {
            0 => json!({"sessionId": session, "from": "start"}),
            1 => json!({"sessionId": session, "runId": run}),
            _ => json!({"sessionId": session, "runId": run, "lastSeq": at}),
        };
        client.subscribe(&target);
    }
    let mut ledger = Ledger::new();
    agent.finish();
    sender.expect_complete(&run);
    sender.seen.iter().for_each(|frame| ledger.see(frame));
    assert_eq!(ledger.len(), 1002);
    for (at, client) in clients.iter_mut().enumerate() {
        client.expect_complete(&run);
        let mut checker = Checker::new();
        if at % 3 == 2 {
            checker.begin_at(&session, &run, at as u64);
        }
        for frame in &client.seen {
            checker.see(frame);
            ledger.see(frame);
        }
        assert!(checker.ended(&session));
    }
}

#[test]
fn a_long_prompt_reaches_the_agent_whole() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let content = format!("begin {} end", "ü".repeat(400_000));
    let run = client.prompt(&session, &content);
    let (agent, _) = gateway.hub().prompted("fake", &content);
    let head = client.seen.iter().find(|f| f.is("run_started", &session)).cloned();
    let head = head.unwrap_or_else(|| client.expect_at(&run, 0));
    assert!(head.text.len() <= 256 << 10, "a frame is a frame: {} bytes", head.text.len());
    agent.finish();
    client.expect_complete(&run);
    let (_, row) = gateway.get(&format!("/api/v1/sessions/{session}"));
    let title = row["title"].as_str().expect("a title").to_owned();
    assert!(title.starts_with("begin ü") && title.chars().count() <= 80, "{title}");
    // It is the same message, however long.
    let send = json!({
        "type": "chat.send", "sessionId": session, "content": content, "clientMessageId": "long",
    });
    let first = client.request(&send);
    let again = client.request(&send);
    assert_eq!(first.json["runId"], again.json["runId"], "I19");
    assert_eq!(again.json["duplicate"], true, "{}", again.text);
}
