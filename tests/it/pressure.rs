//! Floods, stalled clients, long lines, bad bytes, full disks, unusable data.
//!
//! `REATTACH_PRESSURE_MB` sets how much the agent prints in front of a client that stopped
//! reading: 64 by default, 1024 is what docs/operations.md speaks of.

use std::fs;
use std::net::TcpListener;

use serde_json::{Value, json};
use tungstenite::Message;

use crate::support::client::Ended;
use crate::support::gateway::wait_output;
use crate::support::process::resident;
use crate::support::{Agent, Checker, Client, Frame, Gateway, Ledger, Setup, eventually};

const MIB: u64 = 1 << 20;

fn begin(gateway: &Gateway, client: &mut Client, session: &str) -> (String, Agent) {
    let run = client.prompt(session, "go");
    let (agent, _) = gateway.hub().prompted("fake", "go");
    (run, agent)
}

#[test]
fn a_client_that_stops_reading_delays_nobody_and_costs_no_memory() {
    let megabytes = std::env::var("REATTACH_PRESSURE_MB").ok().and_then(|n| n.parse().ok());
    let count = megabytes.unwrap_or(64_u64) * 64;
    let gateway = Setup::with_fake().set("timeouts", "stall", "\"1s\"").start();
    let session = gateway.session("fake");
    let mut live = gateway.connect();
    let mut stalled = gateway.connect();
    stalled.subscribe(&json!({"sessionId": session, "from": "start"}));
    let (run, agent) = begin(&gateway, &mut live, &session);
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
    let (run, agent) = begin(&gateway, &mut client, &session);
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
    let (run, agent) = begin(&gateway, &mut client, &session);
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
    let (run, agent) = begin(&gateway, &mut client, &session);
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
    let (run, agent) = begin(&gateway, &mut client, &session);
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
    let (run, agent) = begin(&gateway, &mut client, &session);
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
        let (run, agent) = begin(&gateway, &mut client, &session);
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
fn a_full_disk_is_said_and_loses_nothing_that_was_visible() {
    let setup = Setup::with_fake().env("REATTACH_TEST_MAX_PAGE_COUNT", "400");
    let mut gateway = setup.start();
    let session = gateway.session("fake");
    let other = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session);
    agent.flood(u64::MAX, 2000, "e");
    // It is a current value: while the ballast helps, "it works again" may be all that is seen.
    let failing = |frame: &Frame| frame.kind() == "store_state" && frame.json["ok"] == false;
    let state = client.expect("store_state", failing);
    assert!(state.json["code"].is_string(), "{}", state.text);
    // First the ballast is given up, which makes room for a moment; then it stays full.
    eventually("the store tries again and again", || {
        let tries = gateway.stderr().matches("the store cannot write; it tries again").count();
        (tries >= 3).then_some(())
    });
    let refused = client.request(&json!({
        "type": "chat.send", "sessionId": other, "content": "not now",
    }));
    assert_eq!(refused.json["code"], "STORE_UNAVAILABLE", "{}", refused.text);
    assert_eq!(gateway.get("/readyz").0, 503);
    assert_eq!(gateway.get("/healthz").0, 200);
    // A client that comes now is told at once.
    let mut late = gateway.connect();
    late.expect("store_state", failing);
    // Abort stops the process although nothing can be written.
    assert!(!agent.gone(), "I18: agents wait, none is killed");
    client.send(&json!({"type": "chat.abort", "sessionId": session}));
    agent.wait_gone();
    let completed = client.seen.iter().any(|frame| frame.kind() == "complete");
    assert!(!completed, "I8: what can not be written is not shown");
    let mut ledger = Ledger::new();
    gateway.kill();
    client.read_to_end();
    client.seen.iter().for_each(|frame| ledger.see(frame));

    gateway.setup.env.clear();
    let gateway = gateway.restart();
    eventually("the run is ended", || {
        let (_, row) = gateway.get(&format!("/api/v1/runs/{run}"));
        (row["status"] == "completed").then_some(())
    });
    let (mut kept, mut checker) = (Ledger::new(), Checker::new());
    for frame in gateway.replay(&session) {
        kept.see(&frame);
        checker.see(&frame);
    }
    ledger.is_within(&kept);
    assert!(checker.ended(&session), "I9");
    let mut client = gateway.connect();
    let reply = client.request(&json!({
        "type": "chat.send", "sessionId": other, "content": "now",
    }));
    assert_eq!(reply.kind(), "chat_accepted", "{}", reply.text);
    let (_, runs) = gateway.get(&format!("/api/v1/sessions/{other}/runs"));
    assert_eq!(runs["items"].as_array().map(Vec::len), Some(1), "a refused send recorded nothing");
}

#[test]
fn a_data_dir_that_can_not_be_used_exits_75() {
    let setup = Setup::with_fake();
    fs::write(setup.data_dir(), "a file").expect("the root is writable");
    let (code, stderr) = setup.refused();
    assert_eq!(code, Some(75), "{stderr}");
    assert!(stderr.contains(&*setup.data_dir().to_string_lossy()), "it names it: {stderr}");
}

#[test]
fn a_corrupt_database_exits_75_and_is_left_alone() {
    let mut gateway = Setup::with_fake().start();
    gateway.session("fake");
    assert!(gateway.terminate().success());
    let database = fs::read_dir(gateway.setup.data_dir())
        .expect("the data dir")
        .map(|entry| entry.expect("readable").path())
        .find(|path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3")))
        .expect("a database");
    let mut bytes = fs::read(&database).expect("readable");
    bytes[..100].fill(b'?');
    fs::write(&database, &bytes).expect("writable");
    let (code, stderr) = gateway.setup.refused();
    assert_eq!(code, Some(75), "{stderr}");
    assert_eq!(fs::read(&database).expect("readable"), bytes, "it is not touched");
}

#[test]
fn a_second_process_on_a_data_dir_exits_75_and_names_the_first() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let (code, stderr) = gateway.setup.refused();
    assert_eq!(code, Some(75), "{stderr}");
    let said = format!("already running, pid {}", gateway.pid());
    assert!(stderr.contains(&said), "{stderr}");
    // The first one is not disturbed.
    assert_eq!(gateway.get(&format!("/api/v1/sessions/{session}")).0, 200);
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session);
    agent.finish();
    client.expect_complete(&run);
}

#[test]
fn a_port_in_use_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let setup = Setup::with_fake();
    let mut command = setup.command();
    let mut arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let bind = arguments.iter().position(|arg| arg == "--bind").expect("it is given");
    arguments[bind + 1] = address.clone().into();
    command = {
        let mut again = std::process::Command::new(command.get_program());
        again.args(arguments).stdin(std::process::Stdio::null());
        again.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        again
    };
    let (code, stderr) = wait_output(command.spawn().expect("the binary runs"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&address), "it names the address: {stderr}");
}

#[test]
fn configuration_that_is_wrong_exits_78_and_says_what_to_do() {
    let cases = [
        ("limits", "agent_max", "3", "agents_max"),
        ("timeouts", "stal", "\"3s\"", "stall"),
        ("limits", "agents_max", "\"many\"", "agents_max"),
        ("timeouts", "stall", "\"3 parsecs\"", "stall"),
        ("limits", "event_bytes_max", "999999999999", "event_bytes_max"),
    ];
    for (section, key, value, named) in cases {
        let (code, stderr) = Setup::with_fake().set(section, key, value).refused();
        assert_eq!(code, Some(78), "{key} = {value}: {stderr}");
        assert!(stderr.contains(named), "{key} = {value}: it names {named}: {stderr}");
    }
}

#[test]
fn a_session_whose_row_is_rejected_ends_alone() {
    let mut gateway = Setup::with_fake().start();
    assert!(gateway.terminate().success());
    let data = gateway.setup.data_dir();
    let entries = fs::read_dir(data).expect("the data dir");
    let database = entries
        .map(|entry| entry.expect("readable").path())
        .find(|path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3")))
        .expect("a database");
    let connection = rusqlite::Connection::open(database).expect("it opens");
    connection
        .execute_batch(
            "CREATE TRIGGER poison BEFORE INSERT ON event
             WHEN instr(CAST(NEW.body AS TEXT), 'poison') > 0
             BEGIN SELECT RAISE(ABORT, 'a constraint for the test'); END;",
        )
        .expect("there is a table of events");
    drop(connection);
    let gateway = gateway.restart();
    let (bad, good) = (gateway.session("fake"), gateway.session("fake"));
    let mut client = gateway.connect();
    let (bad_run, bad_agent) = begin(&gateway, &mut client, &bad);
    let (good_run, good_agent) = begin(&gateway, &mut client, &good);
    good_agent.flood(500, 200, "e");
    bad_agent.say("fine");
    client.expect("the first event", |frame| frame.is("text", &bad));
    bad_agent.say("poison");
    let complete = client.expect("its end", |frame| frame.is("complete", &bad));
    assert_eq!(complete.json["reason"], "store_rejected", "{}", complete.text);
    assert_eq!(complete.seq(), Some(2), "I2: the rejected event took no seq");
    good_agent.finish();
    let end = client.seen.iter().find(|frame| frame.is("complete", &good)).cloned();
    let end = end.unwrap_or_else(|| client.expect_complete(&good_run));
    assert_eq!((&end.json["reason"], end.seq()), (&json!("finished"), Some(501)));
    bad_agent.wait_gone();
    let mut checker = Checker::new();
    client.seen.iter().for_each(|frame| checker.see(frame));
    let mut gateway = gateway;
    gateway.kill();
    let gateway = gateway.restart();
    let log = gateway.replay(&bad);
    let kept: Vec<_> = log.iter().map(|frame| (frame.run(), frame.seq())).collect();
    let run = Some(&*bad_run);
    assert_eq!(kept, [(run, Some(0)), (run, Some(1)), (run, Some(2))]);
}
