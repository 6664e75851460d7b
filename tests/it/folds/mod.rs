//! What a restart builds on: fold(all) = fold(checkpoint, rest), for every dialect, at every
//! record.

mod agent;
mod crash;
mod gateway;
mod keeper;
mod script;

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::sample::select;
use reattach::provider::{Adapter, Exit, Kind, Output, Record, RecordBody};
use reattach::registry::{Effect, Fold, Staged, Turn};
use reattach::run::id::{Millis, RunId};
use serde_json::json;

use crate::transcripts;

/// Folds all, and demands that a state which was saved before any record, as a checkpoint saves
/// it, goes on the same.
fn goes_on_the_same(kind: Kind, records: &[Record], name: &str) {
    let mut whole = Adapter::new(kind);
    let mut states = Vec::new();
    let mut outputs = Vec::new();
    for record in records {
        states.push(serde_json::to_vec(&whole).expect("a state is JSON"));
        outputs.push(whole.fold(record));
    }
    for (at, state) in states.iter().enumerate() {
        let mut restored: Adapter = serde_json::from_slice(state).expect("a state");
        let again = serde_json::to_vec(&restored).expect("a state is JSON");
        assert_eq!(&again, state, "{name}: the state before record {} changes", at + 1);
        for (record, (expected, number)) in records[at..].iter().zip(outputs[at..].iter().zip(at..))
        {
            let got = restored.fold(record);
            assert_eq!(&got, expected, "{name}, saved before {}, record {}", at + 1, number + 1);
        }
        assert_eq!(restored, whole, "{name}, saved before record {}", at + 1);
    }
}

#[test]
fn a_transcript_goes_on_the_same_from_any_record() {
    for name in transcripts::names() {
        let records = transcripts::records(&name);
        goes_on_the_same(Kind::Claude, &records, &name);
        runs_go_on_the_same(&records, &name);
    }
}

/// What the worker makes of a record; `end` is the record's.
fn told(fold: &mut Fold, record: &Record, end: u64) -> (Vec<Staged>, Vec<Effect>) {
    let outputs = fold.read(record, end);
    let begun = outputs.iter().find_map(|output| match output {
        Output::TurnStarted(origin) => Some(*origin),
        _ => None,
    });
    if let Some(origin) = begun.filter(|_| !fold.turn().is_on()) {
        fold.turn_mut().begin(RunId::from_u128(end.into()), origin);
    }
    let mut staged = VecDeque::new();
    let effects = fold.stage(record, outputs, &mut staged);
    if effects.iter().any(|effect| matches!(effect, Effect::TurnEnded(_))) {
        fold.turn_mut().end();
    }
    (staged.into(), effects)
}

/// The same of the worker's fold, whose state is what a checkpoint saves: what it tells of records
/// that follow is the same, and of those that are known nothing.
fn runs_go_on_the_same(records: &[Record], name: &str) {
    let fresh = || Turn::new(RunId::from_u128(0), Adapter::new(Kind::Claude), None);
    let mut whole = Fold::new(fresh());
    let mut states = Vec::new();
    let mut all = Vec::new();
    for (record, end) in records.iter().zip(1..) {
        states.push(serde_json::to_vec(whole.turn()).expect("a state is JSON"));
        all.push(told(&mut whole, record, end));
    }
    for (at, state) in states.iter().enumerate() {
        let restored: Turn = serde_json::from_slice(state).expect("a state");
        // The events of the next two records are in the log already, but for an end: that comes
        // with a checkpoint.
        let ends = |(_, effects): &(_, Vec<Effect>)| {
            effects.iter().any(|effect| matches!(effect, Effect::TurnEnded(_)))
        };
        let known = at + all[at..].iter().take(2).take_while(|told| !ends(told)).count();
        let mut fold = Fold::resume(restored, at as u64, known as u64, []);
        for (number, record) in records.iter().enumerate().skip(at) {
            let got = told(&mut fold, record, number as u64 + 1);
            let mut expected = all[number].clone();
            if number < known {
                expected.0.clear();
                expected.1.retain(|effect| matches!(effect, Effect::Reply(_)));
            }
            assert_eq!(got, expected, "{name}, saved before {}, record {}", at + 1, number + 1);
        }
    }
}

/// Lines that a `jsonl` program may say: each kind that means something, well and badly, and what
/// passes through.
fn jsonl_lines() -> Vec<Vec<u8>> {
    let lines = [
        json!({"kind": "session_created", "newSessionId": "n-1"}),
        json!({"kind": "session_created", "sessionId": "n".repeat(2000)}),
        json!({"kind": "text", "content": "hello", "sessionId": "n-1", "seq": 7}),
        json!({"kind": "text", "float": 0.1, "big": u64::MAX, "deep": [[{"a": null}]]}),
        json!({"kind": "stream_delta", "content": "he"}),
        json!({"kind": "tool_use", "toolId": "t1", "toolName": "Bash"}),
        json!({"kind": "tool_result", "toolId": "t1", "toolResult": {"content": "x"}}),
        json!({"kind": "permission_request", "requestId": "r1", "toolName": "Write", "mine": 1}),
        json!({"kind": "permission_request", "requestId": "r2", "interaction": "question",
            "questions": [{"id": "q", "text": "Which?", "options": ["a", "b"]}]}),
        json!({"kind": "permission_request", "requestId": ""}),
        json!({"kind": "permission_cancelled", "requestId": "r1", "reason": "timeout"}),
        json!({"kind": "permission_cancelled"}),
        json!({"kind": "status", "status": "usage", "tokenBudget": {"used": 5}}),
        json!({"kind": "run_started"}),
        json!({"kind": "complete", "exitCode": 0, "usage": {"inputTokens": 1, "outputTokens": 2}}),
        json!({"kind": "complete", "success": false, "error": {"code": 5}, "reason": "mine"}),
        json!({"kind": 5}),
        json!([1, 2]),
    ];
    let mut lines: Vec<_> = lines.iter().map(|line| line.to_string().into_bytes()).collect();
    lines.extend([b"plain".to_vec(), Vec::new(), b"\xff\xfe{".to_vec(), b"{\"kind\":".to_vec()]);
    lines
}

/// Records of each kind, in any order: what a keeper may ever journal, and more.
fn records(lines: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<Record>> {
    let line = prop_oneof![9 => select(lines), 1 => any::<Vec<u8>>()];
    let exit = prop_oneof![any::<i32>().prop_map(Exit::Code), (1..64).prop_map(Exit::Signal)];
    let body = prop_oneof![
        8 => line.clone().prop_map(RecordBody::Out),
        2 => line.clone().prop_map(RecordBody::Err),
        1 => (any::<u64>(), line.clone())
            .prop_map(|(bytes, head)| RecordBody::OutCapped { bytes, head }),
        2 => (any::<u64>(), line).prop_map(|(n, bytes)| RecordBody::In { n, bytes }),
        1 => exit.prop_map(RecordBody::Exit),
    ];
    let record =
        (body, any::<i32>()).prop_map(|(body, at)| Record { at: Millis(i64::from(at)), body });
    proptest::collection::vec(record, 0..24)
}

/// Every line that a recording has in either direction.
fn claude_lines() -> Vec<Vec<u8>> {
    let all = transcripts::names().into_iter().flat_map(|name| transcripts::records(&name));
    let lines = all.filter_map(|record| match record.body {
        RecordBody::Out(line) | RecordBody::In { bytes: line, .. } => Some(line),
        _ => None,
    });
    // The few large ones are folded in their own transcripts.
    lines.filter(|line| line.len() < 4096).collect()
}

proptest! {
    #[test]
    fn any_jsonl_program_goes_on_the_same(records in records(jsonl_lines())) {
        goes_on_the_same(Kind::Jsonl, &records, "jsonl");
    }

    #[test]
    fn any_program_goes_on_the_same(records in records(jsonl_lines())) {
        goes_on_the_same(Kind::Command, &records, "command");
    }

    #[test]
    fn any_order_of_recorded_lines_goes_on_the_same(records in records(claude_lines())) {
        goes_on_the_same(Kind::Claude, &records, "claude");
    }
}
