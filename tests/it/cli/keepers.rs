//! Agents without a server: `ps --keepers`, `abort --all`, and a server that nobody listens to.

use std::io::Read as _;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::run;
use crate::support::{Gateway, Setup, eventually, gateway::http};

/// The keepers of the gateway's data directory.
fn keepers(gateway: &Gateway) -> Vec<Value> {
    let list = run(gateway, &["ps", "--keepers", "--json"], 0).json();
    list.as_array().expect("an array").clone()
}

/// The only one, once it is in this state.
#[track_caller]
fn keeper(gateway: &Gateway, state: &str) -> Value {
    eventually(&format!("a keeper is {state}"), || {
        let all = keepers(gateway);
        assert!(all.len() <= 1, "{all:?}");
        all.into_iter().find(|keeper| keeper["state"] == state)
    })
}

#[track_caller]
fn terminate(keeper: &Value) {
    let pid = keeper["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).expect("a keeper has a pid");
    kill_process(pid, Signal::TERM).expect("it runs");
}

#[test]
fn keepers_are_seen_with_a_server_and_without() {
    let mut gateway = Setup::with_fake().start();
    assert_eq!(run(&gateway, &["ps", "--keepers"], 0).err.lines().count(), 1, "there are none");
    let started = run(&gateway, &["run", "x", "-a", "fake", "--detach", "--json"], 0).json();
    let agent = gateway.hub().prompted("fake", "x").0;
    let attached = keeper(&gateway, "attached");
    assert_eq!(attached["agentPid"], agent.pid());
    assert_eq!(attached["pid"], agent.parent());
    assert_eq!(
        (&attached["session"], &attached["provider"]),
        (&started["sessionId"], &json!("fake"))
    );
    assert_eq!(attached["version"], env!("CARGO_PKG_VERSION"));
    assert!(attached["journalBytes"].as_u64() > Some(0), "the prompt is in it: {attached}");
    assert!(attached["startedAt"].is_string() && attached["protocol"].is_u64(), "{attached}");

    gateway.kill();
    let orphaned = keeper(&gateway, "orphaned");
    assert_eq!(
        (&orphaned["agent"], &orphaned["agentPid"]),
        (&attached["agent"], &attached["agentPid"])
    );
    let table = run(&gateway, &["ps", "--keepers"], 0);
    assert!(table.out.contains("orphaned"), "{}", table.out);
    assert!(table.err.contains("no server runs, 1 agent works on"), "{}", table.err);
    let advice = format!("kill {}", orphaned["pid"]);
    for args in [&["abort", "--all"][..], &["ps"]] {
        let ran = run(&gateway, args, 5);
        assert!(ran.err.contains("1 agent works on without it"), "{}", ran.err);
        assert!(ran.err.contains("reattach serve") && ran.err.contains(&advice), "{}", ran.err);
    }

    agent.policy(&[], None, Some(0));
    terminate(&orphaned);
    agent.wait_gone();
    keeper(&gateway, "gone");
    let gateway = gateway.restart();
    let session = started["sessionId"].as_str().expect("an id");
    let ran = run(&gateway, &["attach", session, "--until-complete"], 10);
    assert!(ran.out.contains("told by a signal to stop"), "{}", ran.out);
    eventually("the server has removed what it has read", || {
        keepers(&gateway).is_empty().then_some(())
    });
}

#[test]
fn a_keeper_of_another_version_is_seen_and_can_be_stopped() {
    let mut gateway = Setup::with_fake().env("REATTACH_TEST_KEEPER_PROTOCOL", "99").start();
    run(&gateway, &["run", "x", "-a", "fake", "--detach"], 0);
    let agent = gateway.hub().prompted("fake", "x").0;
    let other = keeper(&gateway, "other_version");
    assert_eq!(other["protocol"], 99);
    gateway.kill();
    let table = run(&gateway, &["ps", "--keepers"], 0);
    assert!(table.out.contains("other version"), "{}", table.out);
    assert!(table.err.contains("kill KEEPER"), "{}", table.err);
    agent.policy(&[], None, Some(0));
    terminate(&other);
    agent.wait_gone();
    keeper(&gateway, "gone");
}

#[test]
fn what_is_no_list_of_keepers_is_said() {
    let gateway = Setup::new().start();
    run(&gateway, &["ps", "--keepers", "--all"], 2);
    let mut elsewhere = super::bare(&["ps", "--keepers", "--server", "http://127.0.0.1:1"]);
    elsewhere.env("HOME", gateway.setup.root.path());
    super::ran(elsewhere).expect(2);
    std::fs::write(gateway.setup.data_dir().join("agents"), "no directory").ok();
    let ran = run(&gateway, &["ps", "--keepers", "--json"], 75);
    assert!(ran.err.contains("cannot read the keepers"), "{}", ran.err);
}

/// As after the terminal was closed, or the reader of a pipe has ended.
#[test]
fn a_server_whose_log_cannot_be_written_serves_on() {
    let setup = Setup::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = setup.command();
    command.stderr(writer).stdout(Stdio::piped()).env("REATTACH_LOG", "debug");
    let mut child = command.spawn().expect("the binary runs");
    let mut line = Vec::new();
    let stdout = child.stdout.as_mut().expect("stdout is piped");
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).expect("it says where it serves");
        line.extend(byte);
    }
    let announced: Value = serde_json::from_slice(&line).expect("one object");
    let port = announced["port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let (status, _) = http(port.expect("a port"), "GET", "/healthz", None, None);
    assert_eq!(status, 200);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::TERM).expect("it runs");
    let ended = eventually("it stops", || child.try_wait().expect("it was started here"));
    assert_eq!(ended.code(), Some(0), "in order, although its log lines could not be written");
}
