//! What a `jsonl` agent's lines become, and what it is told.

use serde_json::{Value, json};

use super::*;
use crate::provider::{Attachment, Exit};
use crate::run::event::ErrorSource;
use crate::run::id::Millis;

/// Folds lines in a turn that has begun.
fn fold(lines: &[&[u8]]) -> Vec<Output> {
    let mut jsonl = Jsonl { started: true, ended: false };
    lines.iter().flat_map(|line| jsonl.fold(&record(RecordBody::Out(line.to_vec())))).collect()
}

fn record(body: RecordBody) -> Record {
    Record { at: Millis(0), body }
}

fn one(line: &Value) -> Output {
    let mut outputs = fold(&[line.to_string().as_bytes()]);
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    outputs.remove(0)
}

/// The event as it will stand in a frame, without its envelope.
fn event(line: &Value) -> Value {
    match one(line) {
        Output::Event(event) => serde_json::to_value(event).unwrap(),
        other => panic!("no event: {other:?}"),
    }
}

fn ended(line: &Value) -> Ending {
    match one(line) {
        Output::TurnEnded(ending) => ending,
        other => panic!("no end: {other:?}"),
    }
}

#[test]
fn an_event_keeps_its_fields_and_loses_the_envelope_and_native_ids() {
    let fields = json!({
        "kind": "brand_new_kind", "x": 1, "float": 0.1, "big": u64::MAX, "none": null,
        "deep": {"sessionId": "native", "list": [1, "ü\u{1F600}\u{0}", -0.5e-7]},
    });
    let mut line = fields.clone();
    for key in ["id", "sessionId", "runId", "seq", "provider", "timestamp"] {
        line[key] = json!("spoofed");
    }
    for key in NATIVE_ID_KEYS {
        line[key] = json!("native");
    }
    assert_eq!(event(&line), fields);
}

#[test]
fn tool_calls_pass_through_and_are_recognised() {
    let call = json!({"kind": "tool_use", "toolId": "t1", "toolName": "Bash", "mine": [1]});
    let result = json!({"kind": "tool_result", "toolId": "t1", "toolResult": {"content": "x"}});
    assert_eq!(event(&call), call);
    let opened = |line: &Value| match one(line) {
        Output::Event(event) => {
            (event.tool_opened().map(str::to_owned), event.tool_closed().map(str::to_owned))
        }
        other => panic!("no event: {other:?}"),
    };
    assert_eq!(opened(&call), (Some("t1".into()), None));
    assert_eq!(opened(&result), (None, Some("t1".into())));
    assert_eq!(opened(&json!({"kind": "tool_use", "toolId": 7})), (None, None));
    assert_eq!(opened(&json!({"kind": "text", "toolId": "t1"})), (None, None));
    let long = "t".repeat(AGENT_ITEM_ID_BYTES_MAX + 1);
    assert_eq!(opened(&json!({"kind": "tool_use", "toolId": long})), (None, None), "I7");
}

#[test]
fn what_is_no_object_with_a_string_kind_becomes_raw() {
    let lines: [&[u8]; 9] = [
        b"plain text",
        b"",
        br#""string""#,
        b"[1]",
        br#"{"type":"raw"}"#,
        br#"{"kind":5}"#,
        br#"{"kind":"text""#,
        br#"{"kind":"text"} trailing"#,
        br#"{"kind":"\ud800"}"#,
    ];
    for line in lines {
        let raw = Event::Raw {
            stream: Stream::Stdout,
            content: String::from_utf8(line.to_vec()).unwrap(),
        };
        assert_eq!(fold(&[line]), [Output::Event(raw)]);
    }
    let deep = "[".repeat(100_000);
    let nested = format!(r#"{{"kind":"text","content":{deep}"#);
    assert!(matches!(fold(&[nested.as_bytes()])[..], [Output::Event(Event::Raw { .. })]));
}

#[test]
fn bytes_that_are_no_utf8_are_replaced_in_raw() {
    let outputs = fold(&[b"\xff\xfe{", b"{\"kind\":\"text\",\"content\":\"\xff\"}"]);
    let content = |n: usize| match &outputs[n] {
        Output::Event(Event::Raw { content, .. }) => content.as_str(),
        other => panic!("no raw: {other:?}"),
    };
    assert_eq!(content(0), "\u{fffd}\u{fffd}{");
    assert_eq!(content(1), "{\"kind\":\"text\",\"content\":\"\u{fffd}\"}");
}

#[test]
fn a_capped_line_keeps_its_head_and_says_its_length() {
    let mut jsonl = Jsonl { started: true, ended: false };
    let outputs = jsonl
        .fold(&record(RecordBody::OutCapped { bytes: 20_000_000, head: b"{\"kind\":".to_vec() }));
    assert!(
        matches!(&outputs[0], Output::Event(Event::Raw { content, .. }) if content == "{\"kind\":")
    );
    assert!(matches!(
        &outputs[1],
        Output::Event(Event::Error { content, source: ErrorSource::Gateway, .. })
            if content.contains("20000000")
    ));
}

#[test]
fn only_the_gateway_speaks_the_gateways_kinds() {
    for kind in GATEWAY_KINDS {
        let line = json!({"kind": kind, "sessionId": "native"}).to_string();
        let outputs = fold(&[line.as_bytes()]);
        let Output::Event(Event::Raw { content, .. }) = &outputs[0] else { panic!("{outputs:?}") };
        assert_eq!(*content, json!({"kind": kind}).to_string(), "I10");
        assert!(matches!(outputs[1], Output::Event(Event::Error { .. })));
    }
}

#[test]
fn session_created_names_the_native_id_and_is_not_forwarded() {
    let line = json!({"kind": "session_created", "newSessionId": "n", "sessionId": "s"});
    assert_eq!(one(&line), Output::NativeId("n".into()));
    let line = json!({"kind": "session_created", "newSessionId": "", "sessionId": "s"});
    assert_eq!(one(&line), Output::NativeId("s".into()));
    let line = json!({"kind": "session_created", "newSessionId": 5});
    assert_eq!(fold(&[line.to_string().as_bytes()]), []);
    let line = json!({"kind": "session_created", "newSessionId": "n".repeat(2000)});
    assert!(matches!(one(&line), Output::Event(Event::Error { .. })));
}

#[test]
fn a_plain_permission_request_gets_defaults() {
    let line = json!({
        "kind": "permission_request", "provider": "claude", "sessionId": "native",
        "requestId": "req-1", "toolName": "Bash", "input": {"command": "ls"}, "mine": true,
    });
    assert_eq!(
        event(&line),
        json!({
            "kind": "permission_request", "requestId": "req-1", "interaction": "tool",
            "toolName": "Bash", "input": {"command": "ls"}, "editable": true, "mine": true,
            "choices": [
                {"id": "allow", "kind": "allow_once", "label": "Allow once"},
                {"id": "deny", "kind": "reject_once", "label": "Deny"},
            ],
        })
    );
}

#[test]
fn a_full_permission_request_is_kept_as_it_is() {
    let line = json!({
        "kind": "permission_request", "requestId": "q", "interaction": "question",
        "toolId": "t", "toolName": "Ask", "input": null, "cwd": "/p", "title": "T",
        "description": "D", "diff": "--- a", "editable": false, "parentToolId": "p",
        "choices": [{"id": "a", "kind": "allow_always", "label": "Always", "rule": "Bash(ls)"}],
        "questions": [{"id": "1", "text": "Which?", "options": ["a", "b"], "multi": true}],
    });
    assert_eq!(event(&line), line);
}

#[test]
fn a_permission_request_of_odd_types_is_one_object_without_doubled_keys() {
    let line = json!({
        "kind": "permission_request", "requestId": "q", "interaction": "dance", "toolName": 1,
        "choices": [], "editable": "yes", "questions": "none", "title": 5,
    });
    let Output::Event(event) = one(&line) else { panic!("no event") };
    let text = serde_json::to_string(&event).unwrap();
    let parsed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(parsed.to_string().len(), text.len(), "a doubled key would vanish: {text}");
    assert_eq!(parsed["interaction"], "tool");
    assert_eq!(parsed["questions"], "none", "kept");
    assert_eq!(parsed["title"], 5, "kept");
}

#[test]
fn a_permission_request_that_nobody_could_answer_is_raw_and_an_error() {
    for id in [json!(null), json!(5), json!(" "), json!("x".repeat(2000))] {
        for kind in ["permission_request", "permission_cancelled"] {
            let line = json!({"kind": kind, "requestId": id}).to_string();
            let outputs = fold(&[line.as_bytes()]);
            assert!(matches!(outputs[0], Output::Event(Event::Raw { .. })));
            assert!(matches!(outputs[1], Output::Event(Event::Error { .. })));
        }
    }
}

#[test]
fn the_agent_may_take_a_request_back() {
    let gone = |reason: &str| {
        one(&json!({"kind": "permission_cancelled", "requestId": "r", "reason": reason}))
    };
    let expect = |reason| Output::PermissionGone { request_id: "r".into(), reason };
    assert_eq!(gone("timeout"), expect(CancelReason::Timeout));
    assert_eq!(gone("whatever"), expect(CancelReason::Withdrawn));
}

#[test]
fn complete_ends_the_turn_as_the_agent_says() {
    let said = |line: Value| {
        let ending = ended(&line);
        (ending.reason, ending.success, ending.exit_code)
    };
    let complete = |fields: Value| {
        let mut line = json!({"kind": "complete"});
        for (key, value) in fields.as_object().unwrap() {
            line[key] = value.clone();
        }
        line
    };
    assert_eq!(said(complete(json!({}))), (Reason::Finished, true, None));
    assert_eq!(said(complete(json!({"exitCode": 0}))), (Reason::Finished, true, Some(0)));
    assert_eq!(said(complete(json!({"exitCode": 2}))), (Reason::Failed, false, Some(2)));
    assert_eq!(said(complete(json!({"exitCode": null}))), (Reason::Finished, true, None));
    assert_eq!(said(complete(json!({"success": false}))), (Reason::Failed, false, None));
    assert_eq!(
        said(complete(json!({"success": true, "exitCode": 2}))),
        (Reason::Finished, true, Some(2)),
        "its own success stands"
    );
    assert_eq!(
        said(complete(json!({"aborted": true, "exitCode": 0, "success": false}))),
        (Reason::Aborted, false, Some(0))
    );
}

#[test]
fn what_else_stands_in_complete_is_kept_once() {
    let ending = ended(&json!({
        "kind": "complete", "provider": "claude", "sessionId": "native-1",
        "actualSessionId": "native-1", "exitCode": 1, "error": {"a": 1}, "reason": "max_turns",
        "usage": {"inputTokens": 1, "outputTokens": 2}, "durationMs": 1, "by": "me", "mine": 7,
    }));
    assert_eq!(ending.error.as_deref(), Some(r#"{"a":1}"#));
    assert_eq!(ending.usage.as_ref().map(|usage| usage.output_tokens), Some(2));
    assert_eq!(Value::Object(ending.extra.clone()), json!({"agentReason": "max_turns", "mine": 7}));
    let text = serde_json::to_string(&ending.complete(5)).unwrap();
    let parsed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(parsed.to_string().len(), text.len(), "a doubled key would vanish: {text}");
    assert!(!text.contains("native-1"), "I10");
    let odd = ended(&json!({"kind": "complete", "usage": {"tokens": 5}}));
    assert_eq!(odd.extra["usage"], json!({"tokens": 5}), "kept as given");
}

#[test]
fn a_turn_starts_with_the_first_record_and_nothing_follows_complete() {
    let mut jsonl = Jsonl::default();
    let line = |text: &str| record(RecordBody::Out(text.as_bytes().to_vec()));
    let started = [Output::TurnStarted(Origin::User)];
    assert_eq!(jsonl.fold(&record(RecordBody::In { n: 1, bytes: Vec::new() })), started);
    assert_eq!(jsonl.fold(&record(RecordBody::Err(b"warning".to_vec()))), []);
    assert!(matches!(jsonl.fold(&line(r#"{"kind":"complete"}"#))[..], [Output::TurnEnded(_)]));
    assert_eq!(jsonl.fold(&line(r#"{"kind":"complete"}"#)), [], "I1");
    assert_eq!(jsonl.fold(&line(r#"{"kind":"text"}"#)), [], "I3");
    assert_eq!(jsonl.fold(&record(RecordBody::Exit(Exit::Code(0)))), []);
}

#[test]
fn an_exit_is_no_terminal() {
    let mut jsonl = Jsonl { started: true, ended: false };
    assert_eq!(jsonl.fold(&record(RecordBody::Exit(Exit::Code(0)))), []);
}

#[test]
fn the_agent_is_told_one_line_for_each_command() {
    let told = |command: &Command| {
        let write = Jsonl::default().encode(command).unwrap();
        assert!(!write.close, "answers may have to follow");
        let text = String::from_utf8(write.bytes).unwrap();
        assert_eq!(text.find('\n'), Some(text.len() - 1), "one line");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let prompt = Prompt {
        content: "two\nlines".into(),
        options: json!({"model": "m"}).as_object().unwrap().clone(),
        cwd: "/project".into(),
        ..Prompt::default()
    };
    assert_eq!(
        told(&Command::Prompt(prompt)),
        json!({
            "type": "prompt", "content": "two\nlines", "options": {"model": "m"},
            "cwd": "/project", "providerSessionId": null,
        })
    );
    let file = Attachment {
        id: "i".into(),
        name: "a.png".into(),
        content_type: "image/png".into(),
        bytes: 3,
        path: "/data/i-a.png".into(),
        picture: Some("never told".into()),
    };
    let attached = Prompt {
        options: json!({"attachments": ["i"]}).as_object().unwrap().clone(),
        attachments: vec![file],
        ..Prompt::default()
    };
    assert_eq!(
        told(&Command::Prompt(attached))["options"],
        json!({"attachments": [{
            "id": "i", "name": "a.png", "contentType": "image/png", "bytes": 3,
            "path": "/data/i-a.png",
        }]})
    );
    let bare = Answer { request_id: "r".into(), ..Answer::default() };
    assert_eq!(
        told(&Command::Answer(bare)),
        json!({"type": "permission-response", "requestId": "r", "allow": false})
    );
    let full = Answer {
        request_id: "r".into(),
        allow: true,
        choice_id: Some("always".into()),
        updated_input: Some(json!({"command": "ls -l"})),
        message: Some("ok".into()),
        remember: Some(json!("Bash(ls:*)")),
    };
    assert_eq!(
        told(&Command::Answer(full)),
        json!({
            "type": "permission-response", "requestId": "r", "allow": true, "message": "ok",
            "updatedInput": {"command": "ls -l"}, "choiceId": "always",
            "rememberEntry": "Bash(ls:*)",
        })
    );
    assert_eq!(told(&Command::Interrupt), json!({"type": "abort"}));
}
