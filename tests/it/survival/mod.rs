//! Agents outlive the gateway: whatever is killed, stopped, upgraded or lost, a run goes on or has
//! its one end, clients miss nothing, and nothing is left running.
//!
//! `REATTACH_CRASH_ROUNDS` sets the number of chaotic rounds; CI runs 40 in its stage `crash`.

mod answers;
mod chaos;
mod journal;
mod queue;
mod stops;
mod upgrade;
mod warm;

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::process::{alive, children, signal};
use crate::support::{Client, Frame, Gateway, eventually};

/// How often something that is a matter of luck is tried: few times in a plain `cargo test`.
fn rounds(few: usize) -> usize {
    number("REATTACH_CRASH_ROUNDS").unwrap_or(few)
}

/// A parameter of the environment.
fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|text| text.parse().expect("it is a number"))
}

/// What the keepers say of themselves, each from its home.
fn keepers(gateway: &Gateway) -> Vec<Value> {
    let agents = gateway.setup.data_dir().join("agents");
    let homes = fs::read_dir(agents).into_iter().flatten().flatten();
    let said = homes.filter_map(|home| fs::read(home.path().join("keeper.json")).ok());
    said.filter_map(|said| serde_json::from_slice(&said).ok()).collect()
}

/// The living keeper of a session's agent.
#[track_caller]
fn keeper_of(gateway: &Gateway, session: &str) -> u32 {
    eventually("the session has a keeper", || {
        let keepers = keepers(gateway);
        let pids = keepers.iter().filter(|keeper| keeper["session"] == session);
        let mut pids = pids.filter_map(|keeper| u32::try_from(keeper["pid"].as_u64()?).ok());
        pids.find(|pid| alive(*pid))
    })
}

/// The agent of that keeper.
#[track_caller]
fn agent_of(keeper: u32) -> u32 {
    eventually("the keeper has an agent", || children(keeper).first().copied())
}

/// kill -9; whether it was there.
fn kill(pid: u32) -> bool {
    signal(pid, Signal::KILL)
}

/// Waits until a process is gone.
#[track_caller]
fn wait_gone(pid: u32) {
    eventually(&format!("process {pid} ends"), || (!alive(pid)).then_some(()));
}

/// Answers a permission request: what came of it.
#[track_caller]
fn answer(gateway: &Gateway, request: &str, allow: bool) -> (u16, Value) {
    gateway.post(&format!("/api/v1/permissions/{request}"), &json!({"allow": allow}))
}

/// Starts a run: its id.
#[track_caller]
fn start_run(gateway: &Gateway, session: &str, content: &str) -> String {
    let path = format!("/api/v1/sessions/{session}/runs");
    let (status, body) = gateway.post(&path, &json!({"content": content}));
    assert_eq!(status, 202, "{body}");
    body["runId"].as_str().expect("a run id").to_owned()
}

/// The row of a run.
#[track_caller]
fn row(gateway: &Gateway, run: &str) -> Value {
    let (status, row) = gateway.get(&format!("/api/v1/runs/{run}"));
    assert_eq!(status, 200, "{row}");
    row
}

/// The end of a run, however late one looks.
#[track_caller]
fn end_of(gateway: &Gateway, session: &str, run: &str) -> Frame {
    let mut client = gateway.connect();
    client.subscribe(&json!({"sessionId": session, "runId": run}));
    client.expect_complete(run)
}

/// Reads until the event of `kind` that `client` has not seen yet.
#[track_caller]
fn expect_kind(client: &mut Client, session: &str, kind: &str) -> Frame {
    client.expect(kind, |frame| frame.is(kind, session))
}

/// Nothing is left: no process, no home of an agent, no run, no question.
#[track_caller]
fn expect_peace(gateway: &Gateway) {
    gateway.expect_no_agents();
    eventually("no home of an agent is left", || {
        let agents = fs::read_dir(gateway.setup.data_dir().join("agents"));
        agents.into_iter().flatten().flatten().next().is_none().then_some(())
    });
    let (_, running) = gateway.get("/api/v1/runs?status=running");
    assert_eq!(running["items"], json!([]), "I9");
    let (_, pending) = gateway.get("/api/v1/permissions");
    assert_eq!(pending["items"], json!([]), "a question that nobody waits on");
}

/// What the stand-in for Claude Code has written down, of all its processes.
fn witnessed(gateway: &Gateway) -> Vec<Value> {
    let text = fs::read_to_string(gateway.setup.witness()).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits for something that it has written down.
#[track_caller]
fn expect_witness(gateway: &Gateway, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || witnessed(gateway).into_iter().find(|note| fits(note)))
}

/// The pids of its processes, in the order of their starts.
fn started(gateway: &Gateway) -> Vec<u32> {
    let notes = witnessed(gateway);
    let starts = notes.iter().filter(|note| note["start"].is_object());
    starts.filter_map(|note| u32::try_from(note["pid"].as_u64()?).ok()).collect()
}

/// The text events of a run, as seen by a fresh client.
#[track_caller]
fn texts(gateway: &Gateway, session: &str, run: &str) -> Vec<String> {
    let log = gateway.replay(session);
    let texts = log.iter().filter(|frame| frame.kind() == "text" && frame.run() == Some(run));
    texts.map(|frame| frame.json["content"].as_str().unwrap_or_default().to_owned()).collect()
}
