//! `logs`, `sessions`, `version`, `attach` from a place.

use serde_json::json;

use super::{Live, command, json_lines, run};
use crate::support::{Gateway, Setup};

/// A session with two finished runs of three events each, their heads not counted.
fn two_runs() -> (Gateway, String) {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    for prompt in ["first", "second"] {
        run(&gateway, &["send", &session, prompt], 0);
        let agent = gateway.hub().prompted("fake", prompt).0;
        agent.say(&format!("{prompt} a"));
        agent.say(&format!("{prompt} b"));
        agent.finish();
        run(&gateway, &["attach", &session, "--until-complete", "--from", "tail"], 0);
    }
    (gateway, session)
}

#[test]
fn logs_prints_what_is_asked_for() {
    let (gateway, session) = two_runs();
    let all = run(&gateway, &["logs", &session, "--json"], 0).out;
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.len(), 8, "{all}");
    for count in 0..10_usize {
        let tail = run(&gateway, &["logs", &session, "--json", "-n", &count.to_string()], 0).out;
        let tail: Vec<&str> = tail.lines().collect();
        assert_eq!(tail, lines[8_usize.saturating_sub(count)..], "-n {count}");
    }
    let events = json_lines(&all);
    let since = format!("{}:2", events[0]["runId"].as_str().expect("an id"));
    let rest = run(&gateway, &["logs", &session, "--json", "--since", &since], 0).out;
    assert_eq!(rest.lines().collect::<Vec<_>>(), lines[3..]);
    let attached = ["attach", &session, "--json", "--since", &since, "--until-complete"];
    assert_eq!(run(&gateway, &attached, 0).out, rest);
    let human = run(&gateway, &["logs", &session], 0).out;
    for words in ["> first", "first a", "first b", "> second", "second b", "--- finished"] {
        assert!(human.contains(words), "{words} in {human}");
    }
}

#[test]
fn logs_can_go_on_with_what_comes() {
    let (gateway, session) = two_runs();
    let live = Live::start(command(&gateway, &["logs", &session, "-f", "-n", "1", "--json"]));
    live.out.wait("\"complete\"");
    run(&gateway, &["send", &session, "third"], 0);
    let agent = gateway.hub().prompted("fake", "third").0;
    agent.finish();
    live.out.wait_times("\"complete\"", 2);
    live.interrupt();
    let ran = live.end().expect(0);
    let all = run(&gateway, &["logs", &session, "--json", "-n", "3"], 0).out;
    assert_eq!(ran.out, all);
}

#[test]
fn who_reads_no_more_ends_us_without_a_fuss() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    run(&gateway, &["send", &session, "x"], 0);
    let agent = gateway.hub().next("fake");
    agent.flood(5000, 200, "n");
    agent.finish();
    run(&gateway, &["attach", &session, "--until-complete", "--from", "tail"], 0);
    let mut logs = command(&gateway, &["logs", &session]);
    let mut child = logs
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it was started here");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn sessions_are_listed() {
    let (gateway, session) = two_runs();
    let other = gateway.session("fake");
    let all = run(&gateway, &["sessions", "--json"], 0).json();
    assert_eq!(all.as_array().map(Vec::len), Some(2), "{all}");
    let named = run(&gateway, &["sessions", "-q", "first", "--json"], 0).json();
    assert_eq!((&named[0]["id"], &named[1]), (&json!(session), &json!(null)));
    let one = run(&gateway, &["sessions", "-n", "1", "--json"], 0).json();
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    let table = run(&gateway, &["sessions"], 0).out;
    assert!(table.starts_with("SESSION "), "{table}");
    assert!(table.contains(&session) && table.contains(&other), "{table}");
    assert_eq!(run(&gateway, &["sessions", "--archived", "--json"], 0).json(), json!([]));
}

#[test]
fn versions_are_told() {
    let gateway = Setup::new().start();
    let version = run(&gateway, &["version", "--json"], 0).json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["server"]["version"], env!("CARGO_PKG_VERSION"));
    let human = run(&gateway, &["version"], 0).out;
    assert!(human.starts_with("reattach ") && human.contains("\nserver "), "{human}");
}

#[test]
fn attach_without_a_name_takes_the_one_that_needs_somebody() {
    let gateway = Setup::with_fake().start();
    let waits = gateway.session("fake");
    run(&gateway, &["send", &waits, "ask"], 0);
    let asker = gateway.hub().prompted("fake", "ask").0;
    asker.emit(&[json!({"kind": "permission_request", "requestId": "p", "toolName": "Bash",
        "input": {}})]);
    let runs = gateway.session("fake");
    run(&gateway, &["send", &runs, "work"], 0);
    gateway.hub().prompted("fake", "work").0.say("busy");
    gateway.session("fake");
    // Live, so that what the list is made of has been written.
    let live = Live::start(command(&gateway, &["attach", &waits]));
    live.err.wait("waits for an answer");
    drop(live);
    let ran = run(&gateway, &["attach", "--no-input"], 12);
    assert!(ran.err.starts_with(&format!("session {waits}\n")), "{}", ran.err);
}
