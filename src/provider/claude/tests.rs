//! What no recording shows: options, answers in all their forms, bounds, odd lines.
#![allow(clippy::unwrap_used, reason = "a test may end by a panic")]

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::provider::{Answer, Kind};
use crate::run::event::{Choice, Reason, ToolUse};
use crate::run::id::Millis;

fn record(body: RecordBody) -> Record {
    Record { at: Millis(0), body }
}

fn says(claude: &mut Claude, line: &Value) -> Vec<Output> {
    claude.fold(&record(RecordBody::Out(line.to_string().into_bytes())))
}

fn gets(claude: &mut Claude, write: Write) -> Vec<Output> {
    claude.fold(&record(RecordBody::In { n: 1, bytes: write.bytes }))
}

fn lines(write: &Write) -> Vec<Value> {
    let text = std::str::from_utf8(&write.bytes).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn prompted() -> Claude {
    let mut claude = Claude::default();
    let prompt = claude.encode(&Command::Prompt(Prompt::default())).unwrap();
    gets(&mut claude, prompt);
    claude
}

fn ask(id: &str, tool: &str, input: Value, suggestions: Value) -> Value {
    json!({"type": "control_request", "request_id": id, "request": {
        "subtype": "can_use_tool", "tool_name": tool, "tool_use_id": format!("tool-{id}"),
        "input": input, "permission_suggestions": suggestions,
    }})
}

/// The response of the answer's bytes, if there are any.
fn response(claude: &Claude, answer: Answer) -> Option<Value> {
    let write = claude.encode(&Command::Answer(answer))?;
    Some(lines(&write)[0]["response"]["response"].clone())
}

fn launched(options: Value, native_id: Option<&str>) -> Vec<String> {
    let provider = Provider {
        name: "claude".into(),
        kind: Kind::Claude,
        command: vec!["claude".into()],
        env: BTreeMap::from([("DISABLE_TELEMETRY".into(), "0".into())]),
    };
    let prompt = Prompt {
        options: options.as_object().cloned().unwrap(),
        native_id: native_id.map(str::to_owned),
        ..Prompt::default()
    };
    let launch = Claude::launch(&provider, &prompt);
    assert_eq!(launch.env["DISABLE_AUTOUPDATER"], "1");
    assert_eq!(launch.env["DISABLE_TELEMETRY"], "0", "the operator's word counts");
    launch.argv[11..].to_vec()
}

#[test]
fn a_launch_names_the_mode_whatever_is_asked() {
    assert_eq!(launched(json!({}), None), ["--permission-mode", "default"]);
    let options = json!({"permissionMode": "plan", "model": "opus", "effort": "high"});
    assert_eq!(
        launched(options, Some("abc")),
        ["--permission-mode", "plan", "--model", "opus", "--effort", "high", "--resume", "abc"]
    );
    let options = json!({"permissionMode": "root", "model": 7, "effort": "-x"});
    assert_eq!(launched(options, None), ["--permission-mode", "default"]);
}

#[test]
fn a_value_never_becomes_a_flag() {
    let flag = "--dangerously-skip-permissions";
    assert_eq!(
        launched(json!({"model": flag}), Some(flag)),
        ["--permission-mode", "default", &format!("--model={flag}"), &format!("--resume={flag}")]
    );
}

#[test]
fn options_that_cannot_be_used_are_named() {
    let check = |options: Value| Claude::check(options.as_object().unwrap());
    assert_eq!(check(json!({"permissionMode": null, "model": " ", "effort": ""})), Ok(()));
    let error = check(json!({"permissionMode": "yolo"})).unwrap_err();
    assert!(error.to_string().contains("acceptEdits"), "{error}");
    assert_eq!(check(json!({"model": "a\u{0}b"})), Err(OptionError::Model));
    assert_eq!(check(json!({"effort": 3})), Err(OptionError::Effort));
}

#[test]
fn only_the_first_prompt_initializes_and_lines_stay_single() {
    let mut claude = Claude::default();
    let content = "one\ntwo\r\u{2028}three\u{2029}\u{85}\u{0}".to_owned();
    let prompt = Command::Prompt(Prompt { content: content.clone(), ..Prompt::default() });
    let write = claude.encode(&prompt).unwrap();
    let text = String::from_utf8(write.bytes.clone()).unwrap();
    assert!(!text.contains(['\r', '\u{2028}', '\u{2029}', '\u{85}', '\u{0}']));
    assert_eq!(text.matches('\n').count(), 2);
    assert_eq!(lines(&write)[0]["request"]["subtype"], "initialize");
    assert_eq!(lines(&write)[1]["message"]["content"][0]["text"], content);
    assert_eq!(gets(&mut claude, write), [Output::TurnStarted(Origin::User)]);
    assert_eq!(lines(&claude.encode(&prompt).unwrap()).len(), 1);
}

#[test]
fn pictures_are_given_before_the_text_and_other_files_are_named_in_it() {
    let file = |name: &str, picture: Option<&str>| Attachment {
        name: name.into(),
        content_type: "image/png".into(),
        bytes: 3,
        path: format!("/data/{name}").into(),
        picture: picture.map(str::to_owned),
        ..Attachment::default()
    };
    let prompt = Prompt {
        content: "look".into(),
        attachments: vec![file("a", Some("QUJD")), file("b", None), file("c", Some("REVG"))],
        ..Prompt::default()
    };
    let write = Claude::default().encode(&Command::Prompt(prompt)).unwrap();
    let image = |data: &str| {
        json!({"type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": data}})
    };
    let text = "look\n\nAttached files:\n- /data/b (image/png, 3 bytes)";
    assert_eq!(
        lines(&write)[1]["message"]["content"],
        json!([image("QUJD"), image("REVG"), {"type": "text", "text": text}])
    );
}

#[test]
fn always_is_one_suggestion_that_somebody_chose() {
    let rules = json!({"type": "addRules", "behavior": "allow", "destination": "localSettings",
        "rules": [{"toolName": "Bash", "ruleContent": "touch *"}]});
    let mode = json!({"type": "setMode", "mode": "acceptEdits", "destination": "localSettings"});
    let mut claude = prompted();
    says(&mut claude, &ask("r", "Bash", json!({"command": "touch a"}), json!([rules, mode])));
    let update = |choice: Option<&str>, remember: Value| {
        let answer = Answer {
            request_id: "r".into(),
            allow: true,
            choice_id: choice.map(str::to_owned),
            remember: Some(remember).filter(|remember| !remember.is_null()),
            ..Answer::default()
        };
        response(&claude, answer).unwrap().get("updatedPermissions").cloned()
    };
    let mut session = rules.clone();
    session["destination"] = json!("session");
    assert_eq!(update(None, Value::Null), None);
    assert_eq!(update(Some("allow"), Value::Null), None);
    assert_eq!(update(Some("no such choice"), json!(true)), None);
    assert_eq!(update(Some("always_1"), Value::Null), Some(json!([session])));
    assert_eq!(update(Some("always_1_saved"), Value::Null), Some(json!([rules])));
    assert_eq!(update(None, json!(true)), Some(json!([session])));
    assert_eq!(update(None, json!("Bash(touch *)")), Some(json!([session])));
    let mode = update(Some("mode_2"), Value::Null).unwrap();
    assert_eq!(mode[0]["destination"], "session", "a mode is never saved in a file");
    assert_eq!(update(None, json!("mode_2")), Some(mode), "a choice can be remembered by its id");
    assert_eq!(update(None, json!("allow")), None, "a choice that changes nothing is no rule");
    // A rule of one's own: for this tool only, for the session only.
    let own = update(None, json!("Bash(ls)")).unwrap();
    assert_eq!(own[0]["rules"], json!([{"toolName": "Bash", "ruleContent": "ls"}]));
    assert_eq!(own[0]["destination"], "session");
    assert_eq!(update(None, json!("Bash")).unwrap()[0]["rules"], json!([{"toolName": "Bash"}]));
    assert_eq!(update(None, json!("BashOutput")), None);
    assert_eq!(update(None, json!("Write(x)")), None);
    assert_eq!(update(None, json!({"tool": "Bash"})), None);
}

#[test]
fn a_tick_at_remember_is_a_rule_or_nothing() {
    let mode = json!({"type": "setMode", "mode": "acceptEdits", "destination": "session"});
    let rule = json!({"type": "addRules", "behavior": "allow", "destination": "session",
        "rules": [{"toolName": "Write"}]});
    let update = |suggestions: Value| {
        let mut claude = prompted();
        says(&mut claude, &ask("r", "Write", json!({"file_path": "a"}), suggestions));
        let remember = Some(json!(true));
        let answer = Answer { request_id: "r".into(), allow: true, remember, ..Answer::default() };
        response(&claude, answer).unwrap().get("updatedPermissions").cloned()
    };
    assert_eq!(update(json!([mode])), None, "one file is not all edits");
    assert_eq!(update(json!([mode, rule])), Some(json!([rule])));
}

#[test]
fn an_edited_input_is_what_runs() {
    let mut claude = prompted();
    says(&mut claude, &ask("r", "Bash", json!({"command": "rm a"}), json!([])));
    let answer = |input: Value| Answer {
        request_id: "r".into(),
        allow: true,
        updated_input: Some(input),
        ..Answer::default()
    };
    let odd = response(&claude, answer(json!("rm b"))).unwrap();
    assert_eq!(odd["updatedInput"], json!({"command": "rm a"}), "an input is an object");
    let write = claude.encode(&Command::Answer(answer(json!({"command": "ls"})))).unwrap();
    let outputs = gets(&mut claude, write);
    let [Output::Event(Event::ToolUse(ToolUse { tool_id, tool_input, title, .. }))] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!((tool_id.as_str(), title.as_deref()), ("tool-r", Some("ls")));
    assert_eq!(*tool_input, json!({"command": "ls"}));
}

#[test]
fn several_answers_to_a_question_become_one_text() {
    let mut claude = prompted();
    let questions = json!({"questions": [{"question": "Which?", "multiSelect": true}]});
    says(&mut claude, &ask("q", "AskUserQuestion", questions.clone(), json!([])));
    let answer = |updated_input| Answer {
        request_id: "q".into(),
        allow: true,
        updated_input,
        ..Answer::default()
    };
    let given = json!({"answers": {"Which?": ["Red", "Blue"]}});
    let input = response(&claude, answer(Some(given))).unwrap()["updatedInput"].clone();
    assert_eq!(input["answers"], json!({"Which?": "Red, Blue"}));
    assert_eq!(input["questions"], questions["questions"]);
    let input = response(&claude, answer(None)).unwrap()["updatedInput"].clone();
    assert_eq!(input, questions, "no answer is an answer");
}

#[test]
fn a_denial_always_has_words_and_stops_only_if_chosen() {
    let mut claude = prompted();
    says(&mut claude, &ask("r", "Bash", json!({}), json!([])));
    let deny = |choice: Option<&str>, message: Option<&str>| {
        let answer = Answer {
            request_id: "r".into(),
            choice_id: choice.map(str::to_owned),
            message: message.map(str::to_owned),
            ..Answer::default()
        };
        response(&claude, answer).unwrap()
    };
    let plain = json!({"behavior": "deny", "message": "The user denied this."});
    assert_eq!(deny(None, None), plain);
    assert_eq!(deny(Some("deny"), Some("  ")), plain);
    assert_eq!(deny(Some("always_1"), None), plain, "a denial never allows");
    assert_eq!(deny(None, Some("Not now"))["message"], "Not now");
    assert_eq!(deny(Some("deny_and_stop"), None)["interrupt"], true);
}

#[test]
fn nobody_can_answer_what_is_over() {
    let mut claude = prompted();
    let answer = |id: &str| {
        Command::Answer(Answer { request_id: id.into(), allow: true, ..Answer::default() })
    };
    assert_eq!(claude.encode(&answer("r")), None, "never asked");
    says(&mut claude, &ask("r", "Bash", json!({}), json!([])));
    assert!(claude.encode(&answer("r")).is_some());
    says(&mut claude, &json!({"type": "result", "subtype": "success"}));
    assert_eq!(claude.encode(&answer("r")), None, "its turn ended");
}

#[test]
fn open_requests_are_bounded() {
    let mut claude = prompted();
    for n in 0..OPEN_ITEMS_MAX {
        let outputs = says(&mut claude, &ask(&n.to_string(), "Bash", json!({}), json!([])));
        assert!(matches!(outputs[..], [Output::Event(Event::PermissionRequest(_))]));
    }
    let outputs = says(&mut claude, &ask("one more", "Bash", json!({}), json!([])));
    let [Output::Write(write)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(lines(write)[0]["response"]["response"]["behavior"], "deny");
}

#[test]
fn a_request_that_nobody_knows_is_refused_and_shown() {
    let line = json!({"type": "control_request", "request_id": "m", "request": {
        "subtype": "mcp_message", "message": {"session_id": "secret"}}});
    let outputs = says(&mut prompted(), &line);
    let [Output::Write(write), Output::Event(Event::Raw { content, .. })] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    let reply = &lines(write)[0]["response"];
    assert_eq!((&reply["subtype"], &reply["request_id"]), (&json!("error"), &json!("m")));
    assert_eq!(*content, line.to_string().replace("secret", ""));
}

#[test]
fn raw_lines_lose_the_native_id_and_nothing_else() {
    let raw = |text: &str| native::blank(text);
    assert_eq!(raw("plain \"session\" text"), "plain \"session\" text");
    assert_eq!(raw(r#"{"a":1,"session_id" : "x\"y","b":2}"#), r#"{"a":1,"session_id" : "","b":2}"#);
    assert_eq!(raw(r#"no json "sessionId":"x"#), r#"no json "sessionId":""#);
    assert_eq!(
        raw(r#""session_id":null,"sessionId":"é"}"#),
        r#""session_id":null,"sessionId":""}"#
    );
    assert_eq!(
        raw(r#"{"new_conversation_id":"x","a":["sessionID",{"sessionID": "y"}]}"#),
        r#"{"new_conversation_id":"","a":["sessionID",{"sessionID": ""}]}"#
    );
    let capped = RecordBody::OutCapped { bytes: 99, head: br#"{"session_id":"x"#.to_vec() };
    let outputs = prompted().fold(&record(capped));
    let [Output::Event(Event::Raw { content, .. })] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(content, r#"{"session_id":"... (99 bytes in all)"#);
}

#[test]
fn a_turn_that_was_done_before_the_interrupt_is_finished() {
    let reason = |line: &Value| {
        let mut claude = prompted();
        let interrupt = claude.encode(&Command::Interrupt).unwrap();
        gets(&mut claude, interrupt);
        let Some(Output::TurnEnded(ending)) = says(&mut claude, line).pop() else { panic!() };
        ending.reason
    };
    let success = json!({"type": "result", "subtype": "success", "is_error": false});
    assert_eq!(reason(&success), Reason::Finished);
    let stopped = json!({"type": "result", "subtype": "error_during_execution", "is_error": true});
    assert_eq!(reason(&stopped), Reason::Aborted);
}

#[test]
fn an_interrupt_between_turns_does_not_reach_the_next() {
    let mut claude = prompted();
    says(&mut claude, &json!({"type": "result", "subtype": "success"}));
    let first = claude.encode(&Command::Interrupt).unwrap();
    gets(&mut claude, first.clone());
    assert_ne!(claude.encode(&Command::Interrupt), Some(first), "each has its own id");
    let prompt = claude.encode(&Command::Prompt(Prompt::default())).unwrap();
    gets(&mut claude, prompt);
    let failed = says(&mut claude, &json!({"type": "result", "is_error": true, "result": "no"}));
    let [Output::TurnEnded(ending)] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!((ending.reason, ending.error.as_deref()), (Reason::Failed, Some("no")));
}

#[test]
fn a_dangerous_mode_is_no_choice() {
    let suggestions = json!([{"type": "setMode", "mode": "bypassPermissions"}]);
    let outputs = says(&mut prompted(), &ask("r", "Bash", json!({}), suggestions));
    let [Output::Event(Event::PermissionRequest(request))] = &outputs[..] else { panic!() };
    let ids: Vec<&str> = request.choices.iter().map(|Choice { id, .. }| id.as_str()).collect();
    assert_eq!(ids, ["allow", "deny", "deny_and_stop"]);
}

/// JSON out of the words that matter, so that lines are nearly right; the native id is `TAINT`.
fn nearly() -> impl Strategy<Value = Value> {
    const WORDS: &[&str] = &[
        "assistant",
        "user",
        "system",
        "stream_event",
        "result",
        "control_request",
        "text",
        "init",
        "control_response",
        "tool_use",
        "tool_result",
        "thinking",
        "can_use_tool",
        "success",
        "",
        "message_start",
        "content_block_start",
        "content_block_delta",
        "text_delta",
        "status",
        "task_updated",
        "api_retry",
        "TodoWrite",
        "ExitPlanMode",
        "AskUserQuestion",
        "Edit",
        "x",
        "<synthetic>",
        "addRules",
        "setMode",
        "allow",
        "[Request interrupted by user",
        "conversation_reset",
        "informational",
        "model_refusal_fallback",
        "auth_status",
    ];
    const KEYS: &[&str] = &[
        "type",
        "subtype",
        "message",
        "content",
        "id",
        "name",
        "text",
        "event",
        "delta",
        "index",
        "content_block",
        "request",
        "request_id",
        "tool_name",
        "tool_use_id",
        "response",
        "model",
        "permission_suggestions",
        "rules",
        "toolName",
        "questions",
        "question",
        "options",
        "todos",
        "parent_tool_use_id",
        "tool_use_result",
        "usage",
        "input_tokens",
        "is_error",
        "errors",
        "modelUsage",
        "model_usage_since_last_result",
        "total_cost_usd",
        "task_id",
        "patch",
        "origin",
        "kind",
        "status",
        "estimated_tokens",
        "error",
        "isReplay",
        "old_string",
        "new_string",
        "file_path",
        "behavior",
        "mode",
        "result",
    ];
    let leaf = prop_oneof![
        4 => prop::sample::select(WORDS).prop_map(|word| json!(word)),
        1 => any::<i64>().prop_map(|n| json!(n)),
        1 => any::<f64>().prop_map(|n| json!(n)),
        1 => any::<bool>().prop_map(|b| json!(b)),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(5, 48, 8, |inner| {
        let object = prop::collection::btree_map(prop::sample::select(KEYS), inner.clone(), 0..8);
        prop_oneof![
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::Array),
            3 => (object, any::<bool>()).prop_map(|(object, tainted)| {
                let mut object: Map<String, Value> =
                    object.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
                if tainted {
                    object.insert("session_id".into(), json!("TAINT"));
                    object.insert("new_conversation_id".into(), json!("TAINT"));
                }
                Value::Object(object)
            }),
        ]
    })
}

/// Outputs as JSON, without what the agent itself wrote as a tool's input.
fn events(outputs: &[Output]) -> String {
    let mut text = String::new();
    for output in outputs {
        let Output::Event(event) = output else { continue };
        let mut event = json!(event);
        if let Some(event) = event.as_object_mut() {
            event.remove("toolInput");
            event.remove("input");
        }
        text.push_str(&event.to_string());
    }
    text
}

proptest! {
    #[test]
    fn nearly_right_lines_are_folded_without_the_native_id_i10_i11(
        given in prop::collection::vec((nearly(), any::<bool>()), 1..12),
    ) {
        let mut claude = Claude::default();
        for (line, ours) in given {
            let line = line.to_string();
            let blank = line.trim().is_empty();
            let body = match ours {
                true => RecordBody::In { n: 1, bytes: line.into_bytes() },
                false => RecordBody::Out(line.into_bytes()),
            };
            let outputs = claude.fold(&record(body));
            prop_assert!(!blank);
            let said = events(&outputs);
            prop_assert!(!said.contains("TAINT"), "{}", said);
            let state = serde_json::to_string(&claude).unwrap();
            prop_assert_eq!(serde_json::from_str::<Claude>(&state).unwrap(), claude.clone());
        }
    }
}
