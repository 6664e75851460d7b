//! Another build of the gateway in the middle of a run, and keepers that it cannot speak to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::process::{alive, signal};
use crate::support::{Gateway, Setup, begin, eventually};

use super::{answer, end_of, expect_kind, expect_peace, keeper_of, row, texts};

/// A copy of the binary at `to` that says another version: of the same length, nothing else is
/// different.
fn other_build(to: &Path, version: &str) {
    let ours = env!("CARGO_PKG_VERSION").as_bytes();
    assert_eq!(ours.len(), version.len());
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_reattach")).expect("the binary");
    let mut at = 0;
    while let Some(next) = bytes[at..].windows(ours.len()).position(|window| window == ours) {
        bytes[at + next..at + next + ours.len()].copy_from_slice(version.as_bytes());
        at += next + ours.len();
    }
    install(to, &bytes);
}

/// As a package manager does it: a new file in the place of the old one, which may be running.
fn install(to: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    let fresh = to.with_extension("new");
    fs::write(&fresh, bytes).expect("the root is writable");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("ours");
    fs::rename(fresh, to).expect("the root is writable");
}

/// `ps --keepers --json`, by the given build.
fn ps_keepers(gateway: &Gateway) -> Value {
    let output = Command::new(&gateway.setup.program)
        .args(["ps", "--keepers", "--json", "--data-dir"])
        .arg(gateway.setup.data_dir())
        .env_remove("REATTACH_TOKEN")
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}: {text}{error}", output.status);
    serde_json::from_str(&text).unwrap_or_else(|problem| panic!("{problem}: {text}"))
}

/// What `ps --keepers` says of the keeper with that pid.
fn listed(gateway: &Gateway, keeper: u32) -> Value {
    let all = ps_keepers(gateway);
    let items = all.get("items").unwrap_or(&all).as_array().expect("a list").clone();
    let found = items.into_iter().find(|item| item["pid"] == keeper);
    found.unwrap_or_else(|| panic!("no keeper {keeper} in {all}"))
}

fn installed() -> (Gateway, PathBuf) {
    let mut setup = Setup::with_fake().with_fake_claude();
    let program = setup.root.path().join("reattach");
    let bytes = fs::read(env!("CARGO_BIN_EXE_reattach")).expect("the binary");
    install(&program, &bytes);
    setup.program.clone_from(&program);
    (setup.start(), program)
}

#[test]
fn an_upgrade_in_the_middle_of_a_run_is_not_noticed() {
    let (mut gateway, program) = installed();
    let ours = env!("CARGO_PKG_VERSION");
    assert_eq!(gateway.announced()["version"], ours);
    let session = gateway.session("fake");
    let warm = gateway.session("claude");
    let mut client = gateway.connect();
    let idle = client.prompt(&warm, "say before");
    client.expect_complete(&idle);
    let (run, agent) = begin(&gateway, &mut client, &session, "long");
    agent.say("before");
    agent.emit(&[json!({
        "kind": "permission_request", "requestId": "q", "toolName": "Bash", "input": {},
    })]);
    let asked = expect_kind(&mut client, &session, "permission_request");
    let keeper = keeper_of(&gateway, &session);

    other_build(&program, "9.9.9");
    assert!(gateway.terminate().success());
    agent.say("between");
    gateway = gateway.restart();
    assert_eq!(gateway.announced()["version"], "9.9.9", "another build serves");
    assert!(alive(agent.pid()) && keeper_of(&gateway, &session) == keeper);
    let said = listed(&gateway, keeper);
    assert_eq!(said["version"], ours, "a keeper stays what it was: {said}");
    let request = asked.json["requestId"].as_str().expect("an id");
    let (status, body) = answer(&gateway, request, true);
    assert_eq!(status, 200, "{body}");
    agent.line("the answer", |line| line["requestId"] == "q");
    agent.say("after");
    // And back again, by a kill.
    gateway.kill();
    install(&program, &fs::read(env!("CARGO_BIN_EXE_reattach")).expect("the binary"));
    gateway = gateway.restart();
    assert_eq!(gateway.announced()["version"], ours);
    agent.finish();
    let complete = end_of(&gateway, &session, &run);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    assert_eq!(texts(&gateway, &session, &run), ["before", "between", "after"]);
    let mut client = gateway.connect();
    let again = client.prompt(&warm, "say after");
    client.expect_complete(&again);
    assert_eq!(super::started(&gateway).len(), 1, "the warm agent served on");
}

/// A run whose keeper speaks a protocol of the future, and a gateway that does not.
fn strangers() -> (Gateway, String, String, crate::support::Agent, u32) {
    let mut setup = Setup::with_fake();
    setup.env.push(("REATTACH_TEST_KEEPER_PROTOCOL", "99".to_owned()));
    let mut gateway = setup.start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "from the future");
    agent.say("before");
    client.expect_at(&run, 1);
    let keeper = keeper_of(&gateway, &session);
    gateway.kill();
    gateway.setup.env.clear();
    let gateway = gateway.restart();
    (gateway, session, run, agent, keeper)
}

#[test]
fn a_keeper_of_another_protocol_is_left_alone_and_reported() {
    let (mut gateway, session, run, agent, keeper) = strangers();
    assert!(alive(keeper) && alive(agent.pid()), "it is left alone");
    assert_eq!(row(&gateway, &run)["status"], "running", "I9: its agent really runs");
    let said = listed(&gateway, keeper);
    assert_eq!(said["protocol"], 99, "{said}");
    eventually("the log says so", || {
        let log = gateway.stderr();
        log.lines().any(|line| line.contains("protocol") && line.contains("99")).then_some(())
    });
    let mut client = gateway.connect();
    let busy = client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "more",
    }));
    assert_eq!(busy.json["code"], "RUN_IN_PROGRESS", "{}", busy.text);
    // A gateway that speaks its protocol finds everything.
    gateway.kill();
    agent.say("meanwhile");
    agent.finish();
    gateway = gateway.restart();
    let complete = end_of(&gateway, &session, &run);
    assert_eq!(complete.run(), Some(&*run));
    expect_peace(&gateway);
}

#[test]
fn a_keeper_of_another_protocol_is_stopped_by_an_abort() {
    let (gateway, session, run, agent, keeper) = strangers();
    let grandchild = agent.escape();
    let mut client = gateway.connect();
    client.subscribe(&json!({"sessionId": session, "runId": run}));
    let ack = client.request(&json!({"type": "chat.abort", "sessionId": session, "runId": run}));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);
    let complete = client.expect_complete(&run);
    assert!(!alive(agent.pid()) && !alive(grandchild.pid()) && !alive(keeper), "I21");
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    expect_peace(&gateway);
    assert!(!signal(keeper, rustix::process::Signal::TERM) || !alive(keeper));
    let (next, agent) = begin(&gateway, &mut client, &session, "after");
    agent.finish();
    client.expect_complete(&next);
}
