//! `demo`: everything that it shows, and nothing of it left behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::{Live, bare, ran};
use crate::support::{eventually, process};

/// A demo with a place of its own for temporary files.
fn demo(temporary: &Path, args: &[&str]) -> Live {
    let mut command = bare(&["demo", "--speed", "0"]);
    command.args(args).env("TMPDIR", temporary);
    Live::start(command)
}

/// The data directory of the demo that has just said where it serves.
fn data_dir(temporary: &Path) -> PathBuf {
    let entries = std::fs::read_dir(temporary).expect("it is there");
    let mut dirs = entries.filter_map(Result::ok).map(|entry| entry.path());
    let ours = |dir: &PathBuf| dir.join("demo.toml").exists();
    dirs.find(ours).expect("the demo made its directory")
}

fn at(dir: &Path, args: &[&str]) -> Command {
    let mut command = bare(args);
    command.arg("--data-dir").arg(dir);
    command
}

/// Answers whatever waits, until the demo has ended.
fn answer_all(dir: &Path, live: &mut Live) {
    eventually("the demo ends", || {
        let list = ran(at(dir, &["permissions", "--json"]));
        let list: Value = serde_json::from_str(&list.out).unwrap_or(Value::Null);
        for request in list.as_array().into_iter().flatten() {
            let id = request["requestId"].as_str().expect("an id");
            let mut args = vec!["allow", id];
            if request["interaction"] == "question" {
                args.extend(["--answer", "1"]);
            }
            ran(at(dir, &args));
        }
        live.child.try_wait().expect("it was started here")
    });
}

#[test]
fn the_demo_shows_everything_and_leaves_nothing() {
    let temporary = tempfile::tempdir().expect("a temp dir");
    let mut live = demo(temporary.path(), &[]);
    live.err.wait("close the tab");
    let dir = data_dir(temporary.path());
    answer_all(&dir, &mut live);
    let ran = live.end().expect(0);
    assert!(ran.err.contains("http://127.0.0.1:"), "{}", ran.err);
    assert!(ran.err.contains("token "), "{}", ran.err);
    for words in ["thinking: ", "* Read", "* Edit", "the agent asks", "allowed by", "--- finished"]
    {
        assert!(ran.out.contains(words), "{words} in {}", ran.out);
    }
    super::wait_path(&dir, false);
    eventually("nothing of it runs", || process::mentioning(&dir, &[]).is_empty().then_some(()));
}

#[test]
fn an_interrupted_demo_takes_its_server_and_its_agent_along() {
    // Ctrl-C, and the end of the terminal.
    for signal in [Signal::INT, Signal::HUP] {
        let temporary = tempfile::tempdir().expect("a temp dir");
        let live = demo(temporary.path(), &[]);
        live.err.wait("waits for an answer");
        let dir = data_dir(temporary.path());
        let running = process::mentioning(&dir, &[]).len();
        assert!(running >= 3, "server, keeper and agent: {running}");
        kill_process(live.pid(), signal).expect("it runs");
        live.end().expect(0);
        super::wait_path(&dir, false);
        let left = || process::mentioning(&dir, &[]).is_empty().then_some(());
        eventually("nothing of it runs", left);
    }
}

#[test]
fn a_demo_that_may_not_ask_says_that_somebody_is_needed() {
    let temporary = tempfile::tempdir().expect("a temp dir");
    let ran = demo(temporary.path(), &["--no-input", "--json"]).end().expect(12);
    for line in ran.out.lines() {
        let event: Value = serde_json::from_str(line).expect("events, as JSON Lines");
        assert!(event["kind"].is_string());
    }
}
