//! The demo agent as a real process, spoken to as a gateway would.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use reattach::provider::{Adapter, Exit, Kind, Output, Record, RecordBody};
use reattach::run::event::Event;
use reattach::run::id::Millis;

use crate::support::{DEADLINE, eventually, let_time_pass};

/// A running demo agent. Dropping it kills it.
struct Demo {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// All that it said so far.
    said: Vec<Value>,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        Self::start_in(args, &std::env::temp_dir())
    }

    /// Starts it with a directory for its temporary files.
    fn start_in(args: &[&str], tmp: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_reattach"))
            .arg("demo-agent")
            .args(args)
            .env("TMPDIR", tmp)
            .current_dir(tmp)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines, said: Vec::new() }
    }

    fn prompt(&mut self, content: &str, options: &Value) {
        self.tell(&json!({
            "type": "prompt", "content": content, "options": options, "cwd": "/",
            "providerSessionId": null,
        }));
    }

    fn tell(&mut self, line: &Value) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}").expect("it reads");
    }

    fn answer(&mut self, request: &Value, allow: bool, updated: &Value) {
        let id = &request["requestId"];
        let mut line = json!({"type": "permission-response", "requestId": id, "allow": allow});
        if !updated.is_null() {
            line["updatedInput"] = updated.clone();
        }
        self.tell(&line);
    }

    /// Its next line, or `None` at the end of its output.
    #[track_caller]
    fn next(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                let value: Value = serde_json::from_str(&line).expect("every line is JSON");
                self.said.push(value.clone());
                Some(value)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(error) => panic!("{error}, after {:?}", self.said.last()),
        }
    }

    #[track_caller]
    fn until(&mut self, kind: &str) -> Value {
        loop {
            let line = self.next().unwrap_or_else(|| panic!("it ended without {kind}"));
            if line["kind"] == kind {
                return line;
            }
        }
    }

    /// Reads it to its end.
    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        while self.next().is_some() {}
        eventually("it exits", || self.child.try_wait().expect("our child"))
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut text).expect("UTF-8");
        text
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it lives");
    }

    fn kinds(&self) -> Vec<&str> {
        self.said.iter().filter_map(|line| line["kind"].as_str()).collect()
    }

    /// The text of the result of a tool call.
    fn result(&self, tool_id: &str) -> &Value {
        self.said
            .iter()
            .find(|line| line["kind"] == "tool_result" && line["toolId"] == tool_id)
            .map(|line| &line["toolResult"])
            .expect("the call has a result")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// Plays a turn to its end, with the same decision on both requests.
fn whole_turn(args: &[&str], allow: bool) -> Demo {
    let mut demo = Demo::start(args);
    demo.prompt("hello", &json!({}));
    let question = demo.until("permission_request");
    assert_eq!(question["interaction"], "question");
    demo.answer(&question, allow, &json!({"answers": {"tone": "Formal"}}));
    let permission = demo.until("permission_request");
    assert_eq!(permission["interaction"], "tool");
    demo.answer(&permission, allow, &Value::Null);
    let status = demo.end();
    assert!(status.success(), "{status}");
    demo
}

#[test]
fn a_turn_has_every_kind_of_event_and_the_adapter_understands_them_all() {
    let demo = whole_turn(&["--speed", "0"], true);
    let kinds = demo.kinds();
    for kind in [
        "session_created",
        "status",
        "thinking",
        "stream_delta",
        "stream_end",
        "text",
        "tool_use",
        "tool_result",
        "permission_request",
    ] {
        assert!(kinds.contains(&kind), "no {kind}");
    }
    assert_eq!(kinds.last(), Some(&"complete"));
    for status in ["model", "mode", "plan", "working", "usage"] {
        assert!(demo.said.iter().any(|line| line["status"] == status), "no status {status}");
    }
    assert!(demo.result("tool-3")["content"].as_str().is_some_and(|s| s.contains("\u{1b}[32m")));
    assert_eq!(demo.result("tool-2")["isError"], false);
    let permission = demo.said.iter().rfind(|line| line["kind"] == "permission_request");
    let diff = permission.and_then(|line| line["diff"].as_str()).expect("a diff");
    assert!(diff.contains("+    String::from(\"Good day"), "the answer counts: {diff}");
    assert!(demo.said.iter().any(|line| line["parentToolId"] == "tool-4"), "no subagent");

    let mut adapter = Adapter::new(Kind::Demo);
    let mut open: Vec<String> = Vec::new();
    let mut endings = 0;
    for line in &demo.said {
        let body = RecordBody::Out(line.to_string().into_bytes());
        for output in adapter.fold(&Record { at: Millis(0), body }) {
            match output {
                Output::Event(event @ (Event::Raw { .. } | Event::Error { .. })) => {
                    panic!("not understood: {event:?}");
                }
                Output::Event(event) => {
                    open.extend(event.tool_opened().map(str::to_owned));
                    open.retain(|id| Some(id.as_str()) != event.tool_closed());
                }
                Output::TurnEnded(ending) => {
                    assert!(ending.success && ending.usage.is_some());
                    endings += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(open, Vec::<String>::new(), "every call has its result");
    assert_eq!(endings, 1);
    let exit = Record { at: Millis(0), body: RecordBody::Exit(Exit::Code(0)) };
    assert_eq!(adapter.fold(&exit), []);
}

#[test]
fn finished_blocks_are_what_their_deltas_said() {
    let demo = whole_turn(&["--speed", "0"], true);
    let blocks: Vec<&Value> = demo
        .said
        .iter()
        .filter(|line| {
            line["blockId"].is_string()
                && matches!(line["kind"].as_str(), Some("text" | "thinking"))
        })
        .collect();
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        let deltas: String = demo
            .said
            .iter()
            .filter(|line| line["kind"] == "stream_delta" && line["blockId"] == block["blockId"])
            .filter_map(|line| line["content"].as_str())
            .collect();
        assert_eq!(block["content"], deltas);
    }
}

#[test]
fn a_denied_edit_is_not_made() {
    let demo = whole_turn(&["--speed", "0"], false);
    assert_eq!(demo.result("tool-2")["isError"], true);
    let mut texts = demo.said.iter().filter(|line| line["kind"] == "text");
    assert!(
        texts
            .next_back()
            .is_some_and(|text| text["content"].to_string().contains("left as it was"))
    );
}

#[test]
fn the_same_seed_plays_the_same_turn() {
    let told = |seed: &str| {
        let demo = whole_turn(&["--speed", "0", "--seed", seed], true);
        let mut said = demo.said.clone();
        for line in &mut said {
            // The two things that are new each time.
            if line["kind"] == "session_created" {
                *line = json!("the native id");
            } else if line["cwd"].is_string() {
                line["cwd"] = json!("the directory");
                line["text"] = json!("the directory");
            }
        }
        said
    };
    assert_eq!(told("7"), told("7"));
    assert_ne!(told("7"), told("8"));
}

#[test]
fn it_leaves_nothing_behind() {
    let tmp = tempfile::tempdir().expect("a directory");
    let entries = || std::fs::read_dir(tmp.path()).expect("it is there").count();
    let ends: [fn(&mut Demo); 3] = [
        |demo| demo.tell(&json!({"type": "abort"})),
        |demo| demo.signal(Signal::TERM),
        |demo| drop(demo.stdin.take()),
    ];
    for end in ends {
        let mut demo = Demo::start_in(&["--speed", "0"], tmp.path());
        demo.prompt("hello", &json!({}));
        demo.until("permission_request");
        let shown = demo.said.iter().find_map(|line| line["cwd"].as_str()).expect("it shows it");
        assert!(Path::new(shown).starts_with(tmp.path()) && Path::new(shown).is_dir());
        assert_eq!(entries(), 1, "nothing else");
        end(&mut demo);
        demo.end();
        assert_eq!(entries(), 0);
    }
    let mut demo = Demo::start_in(&["--speed", "0", "--crash"], tmp.path());
    demo.prompt("hello", &json!({}));
    demo.end();
    assert_eq!(entries(), 0, "after a crash too");
}

#[test]
fn an_abort_ends_it_wherever_it_is() {
    let in_a_flood = ["--flood", "1000000000"];
    let at_a_request = ["--speed", "0"];
    let in_a_pause = ["--speed", "0.000001"];
    for (args, seen) in [
        (&in_a_flood, "text"),
        (&at_a_request, "permission_request"),
        (&in_a_pause, "stream_delta"),
    ] {
        let mut demo = Demo::start(args);
        demo.prompt("hello", &json!({}));
        demo.until(seen);
        demo.tell(&json!({"type": "abort"}));
        let status = demo.end();
        assert!(status.success(), "{status}");
        assert_eq!(
            demo.said.last(),
            Some(&json!({
                "kind": "complete", "exitCode": 0, "success": false, "aborted": true,
            }))
        );
    }
}

#[test]
fn a_flood_is_that_many_numbered_texts_of_that_size() {
    let mut demo = Demo::start(&["--flood", "1000"]);
    demo.prompt("hello", &json!({}));
    assert!(demo.end().success());
    let texts: Vec<&str> = demo
        .said
        .iter()
        .filter(|line| line["kind"] == "text")
        .filter_map(|line| line["content"].as_str())
        .collect();
    assert_eq!(texts.len(), 1000);
    for (n, text) in (1..).zip(texts) {
        assert_eq!(text.len(), 200);
        assert!(text.starts_with(&format!("{n} ")), "{text}");
    }
    assert_eq!(demo.kinds().last(), Some(&"complete"));
}

#[test]
fn prompts_steer_it_by_options_and_by_words() {
    let count = |content: &str, options: &Value| {
        let mut demo = Demo::start(&["--flood", "1"]);
        demo.prompt(content, options);
        demo.end();
        demo.kinds().iter().filter(|kind| **kind == "text").count()
    };
    assert_eq!(count("hello", &json!({})), 1);
    assert_eq!(count("hello", &json!({"demo": {"flood": 2}})), 2);
    assert_eq!(count("flood 3 flood-bytes 10", &json!({"demo": {"flood": 2}})), 3);

    let mut demo = Demo::start(&[]);
    demo.prompt("hello", &json!({"demo": {"fload": 2}}));
    assert_eq!(demo.end().code(), Some(1));
    let end = demo.said.last().expect("it says why");
    assert_eq!((&end["kind"], &end["success"]), (&json!("complete"), &json!(false)));
    assert!(end["error"].to_string().contains("fload"), "{end}");
}

#[test]
fn a_crash_is_an_exit_in_mid_turn_with_words_on_stderr() {
    let mut demo = Demo::start(&["--speed", "0", "--crash"]);
    demo.prompt("hello", &json!({}));
    assert_eq!(demo.end().code(), Some(3));
    assert_eq!(demo.kinds().last(), Some(&"tool_use"), "the call stays open");
    assert!(demo.stderr().contains("pretending to crash"));
}

#[test]
fn it_fails_in_the_place_of_the_event_it_is_told() {
    let mut demo = Demo::start(&["--speed", "0", "--fail-at", "3"]);
    demo.prompt("hello", &json!({}));
    assert_eq!(demo.end().code(), Some(1));
    assert_eq!(demo.kinds(), ["session_created", "status", "status", "complete"]);
    assert_eq!(demo.said[3]["success"], false);
}

#[test]
fn a_hanging_one_ends_only_by_force() {
    let mut demo = Demo::start(&["--hang"]);
    demo.prompt("hello", &json!({}));
    let status = demo.until("status");
    assert_eq!(status["pid"], demo.child.id());
    demo.tell(&json!({"type": "abort"}));
    drop(demo.stdin.take());
    demo.signal(Signal::INT);
    demo.signal(Signal::TERM);
    // Longer than a healthy one may take.
    let_time_pass(Duration::from_millis(600));
    assert!(demo.child.try_wait().expect("our child").is_none(), "it hangs");
    demo.signal(Signal::KILL);
    assert_eq!(demo.end().code(), None, "a signal");
}

#[test]
fn a_signal_ends_it_even_if_nobody_takes_its_output() {
    // Not a `Demo`, whose thread would take its output.
    let mut child = Command::new(env!("CARGO_BIN_EXE_reattach"))
        .args(["demo-agent", "--flood", "1000000000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    writeln!(stdin, "{}", json!({"type": "prompt", "content": "x"})).expect("it reads");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut byte = [0];
    stdout.read_exact(&mut byte).expect("it began");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it lives");
    let status = eventually("it ends", || child.try_wait().expect("our child"));
    assert!(!status.success());
}

#[test]
fn without_a_prompt_it_says_what_it_is() {
    let mut demo = Demo::start(&[]);
    drop(demo.stdin.take());
    assert_eq!(demo.end().code(), Some(2));
    assert!(demo.stderr().contains("reattach run -a demo"));
}
