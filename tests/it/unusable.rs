//! Full disks, data and configuration that cannot be used, rows that are rejected: what is said,
//! what is left alone, and that nothing visible is lost.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::json;

use crate::support::gateway::wait_output;
use crate::support::{Checker, Frame, Gateway, Ledger, Setup, begin, eventually};

/// The file in the data directory that is a database.
fn database_of(gateway: &Gateway) -> PathBuf {
    fs::read_dir(gateway.setup.data_dir())
        .expect("the data dir")
        .map(|entry| entry.expect("readable").path())
        .find(|path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3")))
        .expect("a database")
}

#[test]
fn a_full_disk_is_said_and_loses_nothing_that_was_visible() {
    let setup = Setup::with_fake().env("REATTACH_TEST_MAX_PAGE_COUNT", "400");
    let mut gateway = setup.start();
    let session = gateway.session("fake");
    let other = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
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
    let database = database_of(&gateway);
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
    let (run, agent) = begin(&gateway, &mut client, &session, "go");
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
    let connection = rusqlite::Connection::open(database_of(&gateway)).expect("it opens");
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
    let (bad_run, bad_agent) = begin(&gateway, &mut client, &bad, "go");
    let (good_run, good_agent) = begin(&gateway, &mut client, &good, "go");
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
