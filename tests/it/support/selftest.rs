//! The harness itself: a checker that lets everything pass proves nothing.

use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::agent::example;
use super::process::{alive, mentioning};
use super::{Checker, Frame, Hub, Ledger, eventually};

/// Kind, run and seq.
type Short<'a> = (&'a str, &'a str, u64);

fn frame(kind: &str, run: &str, seq: u64) -> Frame {
    let json = json!({"kind": kind, "sessionId": "s", "runId": run, "seq": seq});
    Frame::parse(&json.to_string())
}

/// What the checker says to these frames; `None` if it has nothing against them.
fn verdict(begin: impl Fn(&mut Checker), frames: &[Short<'_>]) -> Option<String> {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let mut checker = Checker::new();
        begin(&mut checker);
        frames.iter().for_each(|(kind, run, seq)| checker.see(&frame(kind, run, *seq)));
    }));
    let panic = checked.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.unwrap_or_else(|| panic.downcast_ref::<&str>().copied().unwrap_or("?").to_owned()))
}

#[test]
fn the_checker_knows_good_streams() {
    let whole = [
        ("run_started", "r1", 0),
        ("text", "r1", 1),
        ("complete", "r1", 2),
        ("run_started", "r2", 0),
        ("complete", "r2", 1),
    ];
    assert_eq!(verdict(|_| {}, &whole), None);
    assert_eq!(verdict(|c| c.begin_at("s", "r1", 0), &whole[1..]), None);
    assert_eq!(verdict(|c| c.begin_at("s", "r1", 2), &whole[3..]), None);
    assert_eq!(verdict(|c| c.begin_anywhere("s"), &whole[2..]), None);
}

#[test]
fn the_checker_finds_each_kind_of_harm() {
    let head = ("run_started", "r1", 0);
    let cases: [(&str, Vec<Short<'_>>); 9] = [
        ("I4", vec![("text", "r1", 1)]),
        ("I2", vec![head, ("text", "r1", 2)]),
        ("I2", vec![head, ("text", "r1", 1), ("text", "r1", 1)]),
        ("I2", vec![head, ("text", "r1", 1), ("text", "r1", 3)]),
        ("I3", vec![head, ("complete", "r1", 1), ("text", "r1", 2)]),
        ("I3", vec![head, ("complete", "r1", 1), ("complete", "r1", 2)]),
        ("I3", vec![head, ("text", "r1", 1), ("run_started", "r2", 0)]),
        ("I4", vec![head, ("complete", "r1", 1), ("text", "r2", 1)]),
        (
            "I1",
            vec![
                head,
                ("complete", "r1", 1),
                ("run_started", "r2", 0),
                ("complete", "r2", 1),
                ("run_started", "r1", 0),
            ],
        ),
    ];
    for (invariant, frames) in cases {
        let said = verdict(|_| {}, &frames).unwrap_or_else(|| panic!("{frames:?} passed"));
        assert!(said.contains(invariant), "{frames:?}: {said}");
    }
    assert!(verdict(|c| c.begin_at("s", "r1", 3), &[("text", "r1", 5)]).is_some());
}

#[test]
fn the_ledger_finds_other_bytes_and_losses() {
    let mut one = Ledger::new();
    one.see(&frame("text", "r1", 1));
    let other = catch_unwind(AssertUnwindSafe(|| one.clone().see(&frame("error", "r1", 1))));
    assert!(other.is_err(), "other bytes at one position");
    let lost = catch_unwind(|| one.is_within(&Ledger::new()));
    assert!(lost.is_err(), "a loss");
    one.is_within(&one.clone());
}

#[test]
fn the_scripted_agent_does_as_it_is_told() {
    let root = tempfile::tempdir().expect("a temp dir");
    let hub = Hub::new(root.path().join("agents.sock"));
    let argv = hub.argv("a");
    let mut child = Command::new(&argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut line = || lines.next().expect("a line").expect("readable");
    stdin.write_all(b"{\"type\":\"prompt\",\"content\":\"hi\"}\n").expect("it reads");
    let (agent, _) = hub.prompted("a", "hi");
    assert_eq!(agent.pid(), child.id());
    agent.say("hello");
    assert_eq!(line(), r#"{"content":"hello","kind":"text"}"#);
    agent.emit_long("<", 'y', 10_000, ">");
    assert_eq!(line().len(), 10_002);
    agent.flood(3, 100, "e");
    assert!(line().contains("\"e0\"") && line().contains("\"e1\"") && line().contains("\"e2\""));
    agent.ignore_signals();
    agent.kill(15);
    agent.wait_signal(15);
    let grandchild = agent.escape();
    assert!(alive(grandchild.pid()) && alive(agent.pid()));
    assert_eq!(mentioning(root.path(), &[]).len(), 2);
    agent.policy(&["bye".into()], Some(7), None);
    stdin.write_all(b"{\"type\":\"abort\"}\n").expect("it reads");
    agent.wait_gone();
    assert_eq!(line(), "bye");
    assert_eq!(child.wait().expect("it ends").code(), Some(7));
    assert!(alive(grandchild.pid()), "it outlives its parent");
    drop(hub);
    eventually("the end of the test ends it", || (!alive(grandchild.pid())).then_some(()));
}

#[test]
fn the_stand_in_for_claude_code_does_as_its_prompts_say() {
    let root = tempfile::tempdir().expect("a temp dir");
    let (witness, report) = (root.path().join("witness"), root.path().join("report"));
    let mut child = Command::new(example("fake_claude"))
        .arg("--witness")
        .arg(&witness)
        .args(["--resume", "n1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut until = |kind: &str| loop {
        let line = lines.next().expect("a line").expect("readable");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["session_id"], "n1");
        if line["type"] == kind {
            return line;
        }
    };
    let mut tell = |line: Value| writeln!(stdin, "{line}").expect("it reads");
    let user = |text: &str| {
        let content = json!([{"type": "text", "text": text}]);
        json!({"type": "user", "message": {"role": "user", "content": content}})
    };
    let request = |subtype: &str| {
        json!({
            "type": "control_request", "request_id": subtype, "request": {"subtype": subtype},
        })
    };
    tell(request("initialize"));
    assert_eq!(until("control_response")["response"]["request_id"], "initialize");
    tell(user(&format!("say hello\nask\nbackground {}", report.display())));
    assert_eq!(until("system")["subtype"], "init");
    assert_eq!(until("assistant")["message"]["content"][0]["text"], "hello");
    let asked = until("control_request");
    tell(json!({"type": "control_response", "response": {
        "subtype": "success", "request_id": asked["request_id"], "response": {"behavior": "allow"},
    }}));
    let result = until("result");
    assert_eq!((&result["is_error"], &result["origin"]), (&json!(false), &Value::Null));

    // Whole as soon as it is there.
    let fresh = root.path().join("fresh");
    std::fs::write(&fresh, "say done").expect("writable");
    std::fs::rename(fresh, &report).expect("writable");
    assert_eq!(until("result")["origin"]["kind"], "task-notification");

    tell(user("hold"));
    until("system");
    tell(request("interrupt"));
    assert_eq!(until("control_response")["response"]["request_id"], "interrupt");
    assert_eq!(until("result")["subtype"], "error_during_execution");
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
    let notes = std::fs::read_to_string(&witness).expect("it takes notes");
    let given = notes.lines().filter(|line| line.contains("\"given\"")).count();
    assert_eq!(given, 5, "{notes}");
}
