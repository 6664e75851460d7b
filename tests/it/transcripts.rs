//! Recorded transcripts of real agents, folded.
//!
//! Each `tests/fixtures/claude/NAME.jsonl` is a recording, `NAME.expect` what it must become; the
//! README there explains both. Nothing here writes an expectation: on a mismatch the test leaves
//! what it got under `target/` and prints where.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use reattach::provider::claude::Claude;
use reattach::provider::claude::lines::TABLE;
use reattach::provider::{
    Answer, Command, Ending, Exit, Output, Prompt, Record, RecordBody, Write,
};
use reattach::run::event::Event;
use reattach::run::id::Millis;
use serde_json::{Value, json};

/// Transcripts that were written from documentation, since no recording has such lines.
const HANDMADE: &str = "handmade_";

/// One line of a recording.
struct Line {
    /// Its number in the file, from 1.
    number: usize,
    dir: String,
    raw: String,
    /// What the adapter is given; notes of the recorder are nothing.
    record: Option<Record>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/claude")
}

/// The names of all transcripts.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .expect("the fixtures are there")
        .filter_map(|entry| {
            let name = entry.expect("a readable folder").file_name().into_string().ok()?;
            name.strip_suffix(".jsonl").map(str::to_owned)
        })
        .collect();
    names.sort();
    assert!(names.len() >= 49, "transcripts are missing: {names:?}");
    names
}

fn transcript(name: &str) -> Vec<Line> {
    let text = fs::read_to_string(folder().join(format!("{name}.jsonl"))).expect("a transcript");
    let mut writes = 0;
    text.lines()
        .enumerate()
        .map(|(at, line)| {
            let line: Value = serde_json::from_str(line).expect("a recording is JSON lines");
            let dir = line["dir"].as_str().expect("a direction").to_owned();
            let raw = line["raw"].as_str().expect("a line").to_owned();
            let bytes = raw.clone().into_bytes();
            let body = match dir.as_str() {
                "out" => Some(RecordBody::Out(bytes)),
                "err" => Some(RecordBody::Err(bytes)),
                "in" => {
                    writes += 1;
                    Some(RecordBody::In { n: writes, bytes: [bytes, b"\n".to_vec()].concat() })
                }
                _ => exit(&raw).map(RecordBody::Exit),
            };
            let at_ms = Millis(line["ms"].as_i64().expect("a time"));
            let record = body.map(|body| Record { at: at_ms, body });
            Line { number: at + 1, dir, raw, record }
        })
        .collect()
}

fn exit(meta: &str) -> Option<Exit> {
    let meta: Value = serde_json::from_str(meta).ok()?;
    let code = i32::try_from(meta.get("exit")?.as_i64()?).ok()?;
    Some(if code < 0 { Exit::Signal(-code) } else { Exit::Code(code) })
}

/// What the adapter is given of a transcript.
pub(crate) fn records(name: &str) -> Vec<Record> {
    transcript(name).into_iter().filter_map(|line| line.record).collect()
}

/// What kind of line it is: its type, and what else tells apart.
fn kind(raw: &str) -> String {
    let Ok(line) = serde_json::from_str::<Value>(raw) else { return "text".to_owned() };
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let kind = word(&line["type"]);
    let content = &line["message"]["content"];
    let detail = match kind.as_str() {
        "system" => word(&line["subtype"]),
        "control_request" => word(&line["request"]["subtype"]),
        "control_response" => word(&line["response"]["subtype"]),
        "stream_event" if line["event"]["delta"].get("type").is_some() => {
            let event = word(&line["event"]["type"]);
            format!("{event}/{}", word(&line["event"]["delta"]["type"]))
        }
        "stream_event" => word(&line["event"]["type"]),
        "assistant" if line["message"]["model"] == "<synthetic>" => "synthetic".to_owned(),
        "user" if content.as_str().is_some_and(|text| text.starts_with("<local-command")) => {
            "local_command".to_owned()
        }
        "user" if line["isReplay"] == true => "replay".to_owned(),
        "assistant" | "user" if content.is_array() => word(&content[0]["type"]),
        _ => return kind,
    };
    format!("{kind}/{detail}")
}

/// One output as a line of an expectation: a word, then its details as JSON.
fn shown(output: &Output) -> String {
    match output {
        Output::TurnStarted(origin) => format!("turn_started {}", json!(origin)),
        Output::Event(event) => format!("event {}", json!(event)),
        Output::NativeId(id) => format!("native_id {}", json!(id)),
        Output::Write(write) => format!("write {}", String::from_utf8_lossy(&write.bytes).trim()),
        Output::PermissionGone { request_id, reason } => {
            format!("permission_gone {}", json!({"requestId": request_id, "reason": reason}))
        }
        Output::TurnEnded(ending) => format!("turn_ended {}", ended(ending)),
    }
}

fn ended(ending: &Ending) -> Value {
    json!({
        "reason": ending.reason,
        "success": ending.success,
        "exitCode": ending.exit_code,
        "error": ending.error,
        "usage": ending.usage,
    })
}

/// The whole expectation of a transcript.
fn unfolded(name: &str) -> String {
    let mut claude = Claude::default();
    let mut text = String::new();
    for line in transcript(name) {
        let Some(record) = &line.record else { continue };
        let kind = if line.dir == "meta" { "exit".to_owned() } else { kind(&line.raw) };
        writeln!(text, "{} {} {kind}", line.number, line.dir).expect("a string takes all");
        for output in claude.fold(record) {
            writeln!(text, "    {}", shown(&output)).expect("a string takes all");
        }
    }
    text
}

/// The first lines that differ, with what stands around them.
fn difference(expected: &str, got: &str) -> String {
    let (expected, got): (Vec<_>, Vec<_>) = (expected.lines().collect(), got.lines().collect());
    let at = expected.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let show = |lines: &[&str], sign| {
        lines.iter().skip(at).take(6).fold(String::new(), |text, line| text + sign + line + "\n")
    };
    let before = expected[at.saturating_sub(3)..at].join("\n  ");
    format!("line {}:\n  {before}\n{}{}", at + 1, show(&expected, "- "), show(&got, "+ "))
}

#[test]
fn each_transcript_becomes_what_is_expected() {
    let mut wrong = String::new();
    for name in names() {
        let expected =
            fs::read_to_string(folder().join(format!("{name}.expect"))).unwrap_or_default();
        let got = unfolded(&name);
        if expected == got {
            continue;
        }
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/transcripts/claude");
        fs::create_dir_all(&target).expect("target is writable");
        let left = target.join(format!("{name}.expect"));
        fs::write(&left, &got).expect("target is writable");
        let difference = difference(&expected, &got);
        writeln!(wrong, "{name}, {difference}all of it: {}\n", left.display()).expect("a string");
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// The command that a person gave when the recording was made, for each kind of answer.
fn answer(name: &str, request_id: String) -> Answer {
    let yes = Answer { request_id: request_id.clone(), allow: true, ..Answer::default() };
    let no = Answer { request_id, message: Some("The user said no".into()), ..Answer::default() };
    match name {
        "permission_allow" | "tool_write_ask" | "plan_mode_exit" => yes,
        "permission_suggestions_always" => {
            Answer { choice_id: Some("always_1_saved".into()), ..yes }
        }
        // Recorded as the adapter would do it: the rule for the session, and its own words.
        "permission_rule_session" => Answer { choice_id: Some("always_1".into()), ..yes },
        "plan_mode_denied" => Answer { message: None, ..no },
        "edit_after_read" => {
            let input = json!({"file_path": "/workspace/demo/edit-me.txt", "old_string": "two",
                "new_string": "zwei", "replace_all": false});
            Answer { updated_input: Some(input), ..yes }
        }
        "ask_user_question" => {
            Answer { updated_input: Some(json!({"answers": {"Which colour?": "Blue"}})), ..yes }
        }
        "permission_deny" => no,
        "permission_deny_interrupt" => Answer { choice_id: Some("deny_and_stop".into()), ..no },
        other => panic!("which answer was given in {other}?"),
    }
}

/// A written line without what differs for a reason: ids of ours, and the recorder's optional
/// `uuid` on a prompt. The recording of "always" echoed every suggestion; we send the rule alone.
fn compared(line: &str) -> Value {
    let mut line: Value = serde_json::from_str(line).expect("a written line is JSON");
    if line["type"] == "control_request" {
        line["request_id"] = json!("ours");
    }
    if let Some(line) = line.as_object_mut() {
        line.remove("uuid");
    }
    if let Some(Value::Array(updates)) = line.pointer_mut("/response/response/updatedPermissions") {
        updates.retain(|update| update["type"] == "addRules");
    }
    line
}

fn written(write: Option<Write>) -> Vec<Value> {
    let write = write.expect("a command that has bytes");
    assert!(!write.close);
    let text = String::from_utf8(write.bytes).expect("UTF-8");
    assert!(text.ends_with('\n'));
    text.lines().map(compared).collect()
}

#[test]
fn commands_are_written_as_they_were_recorded() {
    let mut checked = BTreeSet::new();
    for name in names() {
        let mut claude = Claude::default();
        // The state before the first write, whose first line is `initialize`.
        let fresh = Claude::default();
        let mut before = Vec::new();
        for line in transcript(&name) {
            let Some(record) = &line.record else { continue };
            if line.dir == "in" {
                let kind = kind(&line.raw);
                checked.insert(kind.clone());
                match kind.as_str() {
                    "control_request/initialize" => before.push(compared(&line.raw)),
                    "user/text" => {
                        let content = compared(&line.raw);
                        let content = &content["message"]["content"][0]["text"];
                        let content = content.as_str().expect("a text").to_owned();
                        let from = if before.is_empty() { &claude } else { &fresh };
                        let prompt = Prompt { content, ..Prompt::default() };
                        before.push(compared(&line.raw));
                        assert_eq!(written(from.encode(&Command::Prompt(prompt))), before);
                        before.clear();
                    }
                    "control_request/interrupt" => {
                        let ours = written(claude.encode(&Command::Interrupt));
                        assert_eq!(ours, [compared(&line.raw)]);
                    }
                    "control_response/success" => {
                        let recorded = compared(&line.raw);
                        let id = recorded["response"]["request_id"].as_str().expect("an id");
                        let answer = Command::Answer(answer(&name, id.to_owned()));
                        assert_eq!(written(claude.encode(&answer)), [recorded], "{name}");
                        claude.fold(record);
                        assert_eq!(claude.encode(&answer), None, "{name}: answered twice");
                    }
                    // The recorder tried what we never send.
                    "control_request/set_model"
                    | "control_request/set_permission_mode"
                    | "control_request/no_such_thing"
                    | "text" => {}
                    other => panic!("{name}: what is {other}?"),
                }
            }
            claude.fold(record);
        }
    }
    assert!(checked.len() >= 5, "{checked:?}");
}

/// The words of the table for an output.
fn word(output: &Output) -> String {
    match output {
        Output::Event(Event::Status(status)) => {
            format!("status {}", json!(status.status).as_str().expect("a word"))
        }
        Output::Event(event) => json!(event)["kind"].as_str().expect("a kind").to_owned(),
        other => shown(other).split(' ').next().unwrap_or_default().to_owned(),
    }
}

#[test]
fn every_line_is_in_the_table_and_gives_what_it_says() {
    let mut seen = BTreeSet::new();
    let mut recorded = BTreeSet::new();
    let mut wrong = BTreeSet::new();
    for name in names() {
        let mut claude = Claude::default();
        for line in transcript(&name) {
            let Some(record) = &line.record else { continue };
            let outputs = claude.fold(record);
            if line.dir != "out" {
                continue;
            }
            let kind = kind(&line.raw);
            let Some(row) = TABLE.iter().find(|row| row.line == kind) else {
                // Only a transcript that was made to show it has lines that nobody knows.
                let kept = outputs.iter().any(|output| word(output) == "raw");
                if !kept || !name.starts_with(HANDMADE) {
                    wrong.insert(format!("{name}: {kind} is not in the table"));
                }
                continue;
            };
            for word in outputs.iter().map(word) {
                let told = format!("{word}*");
                seen.insert(format!("{kind} {word}"));
                if !name.starts_with(HANDMADE) {
                    recorded.insert(format!("{kind} {word}"));
                }
                if !row.becomes.iter().any(|known| *known == word || *known == told) {
                    wrong.insert(format!("{name}: {kind} became {word}"));
                }
            }
            if !name.starts_with(HANDMADE) {
                recorded.insert(kind.clone());
            }
            seen.insert(kind);
        }
    }
    for row in TABLE {
        if !seen.contains(row.line) {
            wrong.insert(format!("{} is in the table, but in no transcript", row.line));
        }
        if recorded.contains(row.line) != row.recorded {
            wrong.insert(format!("{}: recorded is {}", row.line, !row.recorded));
        }
        for word in row.becomes {
            let became = format!("{} {}", row.line, word.trim_end_matches('*'));
            if !seen.contains(&became) {
                wrong.insert(format!("never: {became}"));
            }
            if recorded.contains(&became) == word.ends_with('*') {
                wrong.insert(format!("the star is wrong: {} {word}", row.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The native id put into every object, under names that Claude uses.
fn taint(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(taint);
            object.insert("session_id".into(), json!("TAINT"));
            object.insert("sessionId".into(), json!("TAINT"));
            object.insert("new_conversation_id".into(), json!("TAINT"));
        }
        Value::Array(items) => items.iter_mut().for_each(taint),
        _ => {}
    }
}

#[test]
fn no_event_names_the_native_session_i10() {
    for name in names() {
        let mut claude = Claude::default();
        for line in transcript(&name) {
            let Some(mut record) = line.record else { continue };
            if let (RecordBody::Out(bytes), Ok(mut value)) =
                (&mut record.body, serde_json::from_str::<Value>(&line.raw))
            {
                taint(&mut value);
                *bytes = value.to_string().into_bytes();
            }
            for output in claude.fold(&record) {
                let Output::Event(event) = output else { continue };
                let mut event = json!(event);
                // The input of a tool is the model's own text and left alone.
                if let Some(event) = event.as_object_mut() {
                    event.remove("toolInput");
                    event.remove("input");
                }
                let event = event.to_string();
                assert!(!event.contains("TAINT"), "{name}, line {}: {event}", line.number);
            }
        }
    }
}

#[test]
fn the_documentation_shows_the_table() {
    let mut table = "| line | becomes | seen in | why, or when |\n|---|---|---|---|\n".to_owned();
    for row in TABLE {
        let becomes = match row.becomes {
            [] => "nothing".to_owned(),
            words => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        };
        let seen = if row.recorded { "recordings" } else { "documentation" };
        writeln!(table, "| `{}` | {becomes} | {seen} | {} |", row.line, row.why).expect("a string");
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/providers/claude.md");
    let page = fs::read_to_string(page).expect("the page is there");
    assert!(page.contains(&table), "docs/providers/claude.md must have this table:\n\n{table}");
    for row in TABLE {
        let small = row.becomes.iter().all(|word| word.starts_with("status"));
        assert!(!small || !row.why.is_empty(), "{}: why is it so little?", row.line);
    }
}

proptest! {
    #[test]
    fn any_line_gives_something_i11(line in any::<Vec<u8>>()) {
        let blank = String::from_utf8_lossy(&line).trim().is_empty();
        let record = Record { at: Millis(0), body: RecordBody::Out(line) };
        let outputs = Claude::default().fold(&record);
        prop_assert_eq!(outputs.is_empty(), blank);
    }
}
