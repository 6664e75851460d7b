use super::*;
use serde_json::json;

fn all(paint: Paint, events: &[Value]) -> (String, String) {
    let mut renderer = Renderer::new(paint);
    let mut whole = (String::new(), String::new());
    for event in events {
        let shown = renderer.event(event);
        whole.0.push_str(&shown.out);
        whole.1.push_str(&shown.err);
    }
    whole.0.push_str(renderer.break_line());
    whole
}

fn out(events: &[Value]) -> String {
    all(Paint::Plain, events).0
}

fn delta(block: &str, content: &str) -> Value {
    json!({"kind": "stream_delta", "blockId": block, "block": "text", "content": content})
}

fn text_block(block: &str, content: &str) -> Value {
    json!({"kind": "text", "blockId": block, "content": content})
}

#[test]
fn a_finished_block_is_not_said_twice() {
    let shown = out(&[delta("a", "Hel"), delta("a", "lo\nyou"), text_block("a", "Hello\nyou")]);
    assert_eq!(shown, "Hello\nyou\n");
}

#[test]
fn a_finished_block_that_differs_is_the_truth() {
    let shown = out(&[delta("a", "Hallo"), text_block("a", "Hello")]);
    assert!(shown.starts_with("Hallo\n"), "{shown}");
    assert!(shown.ends_with("differs from what was streamed)\nHello\n"), "{shown}");
}

#[test]
fn two_blocks_at_once_do_not_mix() {
    let shown = out(&[
        delta("a", "first "),
        delta("b", "second"),
        delta("a", "block"),
        text_block("b", "second"),
        text_block("a", "first block"),
    ]);
    assert!(shown.contains("second\n"), "{shown}");
    assert_eq!(shown.matches("second").count(), 1, "{shown}");
    assert_eq!(shown, "first block\nsecond\n");
}

#[test]
fn after_its_end_a_block_gives_the_line_to_the_next_one() {
    let end = json!({"kind": "stream_end", "blockId": "a", "block": "text"});
    let shown = out(&[
        delta("a", "one"),
        end,
        delta("b", "two"),
        text_block("a", "one"),
        text_block("b", "two"),
    ]);
    assert_eq!(shown, "one\ntwo\n");
}

#[test]
fn what_streamed_unseen_and_never_finished_is_shown_at_the_end() {
    let complete = json!({"kind": "complete", "success": false, "reason": "aborted"});
    let shown = out(&[delta("a", "seen"), delta("b", "unseen"), complete]);
    assert_eq!(shown, "seen\n(unfinished text) unseen\n--- aborted\n");
}

#[test]
fn a_cut_block_is_compared_by_its_beginning_and_length() {
    let mut cut = text_block("a", "Hel");
    cut["truncated"] = json!({"field": "content", "bytes": 5, "href": "x"});
    assert_eq!(out(&[delta("a", "Hello"), cut]), "Hello\n");
}

#[test]
fn a_subagents_text_is_indented_and_shown_once() {
    let mut piece = delta("a", "deep");
    piece["parentToolId"] = json!("t");
    let mut whole = text_block("a", "deep\nthought");
    whole["parentToolId"] = json!("t");
    assert_eq!(out(&[piece, whole]), "  | deep\n  | thought\n");
}

#[test]
fn tools_take_one_line_and_their_results_few() {
    let call = json!({"kind": "tool_use", "toolId": "t", "toolName": "Bash",
        "toolInput": {"command": "seq 100"}, "category": "execute", "status": "pending"});
    let mut again = call.clone();
    again["status"] = json!("running");
    let numbers: Vec<String> = (1..=100).map(|n: u32| n.to_string()).collect();
    let result = json!({"kind": "tool_result", "toolId": "t", "exitCode": 0, "durationMs": 1500,
        "toolResult": {"content": numbers.join("\n"), "isError": false}});
    let shown = out(&[call, again, result]);
    assert!(shown.starts_with("* Bash: seq 100\n  done · exit 0 · 1.5 s\n    1\n"), "{shown}");
    assert!(shown.ends_with("    12\n    ... 88 more lines\n"), "{shown}");
}

#[test]
fn a_refined_tool_call_is_shown_if_it_says_something_new() {
    let call = json!({"kind": "tool_use", "toolId": "t", "toolName": "Edit", "toolInput": {}});
    let mut refined = call.clone();
    refined["title"] = json!("Edit a.txt");
    refined["diff"] = json!("-x\n+y");
    assert_eq!(out(&[call, refined]), "* Edit\n* Edit: Edit a.txt\n    -x\n    +y\n");
}

#[test]
fn status_goes_to_stderr_and_never_into_a_line() {
    let status = json!({"kind": "status", "status": "working", "text": "thinking hard"});
    let (out, err) = all(Paint::Plain, &[delta("a", "half"), status, delta("a", " line")]);
    assert_eq!((out.as_str(), err.as_str()), ("half\n line\n", "  working: thinking hard\n"));
}

#[test]
fn plans_and_usage_are_spelled_out() {
    let plan = json!({"kind": "status", "status": "plan", "text": "", "plan": [
        {"content": "look", "status": "completed"}, {"content": "act", "status": "in_progress"},
        {"content": "rest", "status": "pending"}]});
    let usage = json!({"kind": "status", "status": "usage", "text": "",
        "tokenBudget": {"used": 10, "total": 100}, "costUsd": 0.5});
    let (_, err) = all(Paint::Plain, &[plan, usage]);
    assert_eq!(
        err,
        "  plan: \n    [x] look\n    [>] act\n    [ ] rest\n  usage: 10 of 100 tokens, $0.5000\n"
    );
}

#[test]
fn permission_cards_name_the_request_and_the_rule() {
    let request = json!({"kind": "permission_request", "requestId": "p-1", "interaction": "tool",
        "toolName": "Bash", "input": {"command": "rm x"}, "cwd": "/w", "description": "to tidy up",
        "choices": [{"id": "always", "kind": "allow_always", "label": "Always", "rule": "Bash(rm:*)"}],
        "editable": true});
    let shown = out(&[request]);
    assert_eq!(
        shown,
        "? the agent wants to use Bash: rm x\n  to tidy up\n  in /w\n  \
         Always saves the rule: Bash(rm:*)\n  request p-1\n"
    );
}

#[test]
fn questions_show_their_options() {
    let request = json!({"kind": "permission_request", "requestId": "q", "interaction": "question",
        "toolName": "AskUserQuestion", "input": {}, "choices": [], "editable": false,
        "questions": [{"id": "1", "text": "Which?", "options": ["red", "blue"], "multi": false}]});
    let shown = out(&[request]);
    assert_eq!(shown, "? the agent asks\n  Which?\n    1) red\n    2) blue\n  request q\n");
}

#[test]
fn answers_say_how_far_they_got() {
    let mut resolved = json!({"kind": "permission_resolved", "requestId": "p", "decision": "allow",
        "state": "recorded", "by": {"kind": "cli", "name": "desk"}, "edited": true});
    assert_eq!(out(&[resolved.clone()]), "  allowed by desk, with changes (recorded)\n");
    resolved["state"] = json!("delivered");
    assert!(out(&[resolved]).contains("the agent has the answer"));
}

#[test]
fn the_end_says_why_and_what_it_cost() {
    let failed = json!({"kind": "complete", "success": false, "aborted": false,
        "reason": "agent_exited", "exitCode": 3, "error": "boom\nbang", "durationMs": 2149,
        "usage": {"inputTokens": 5, "outputTokens": 7, "costUsd": 0.01}});
    assert_eq!(
        out(&[failed]),
        "--- agent exited · exit 3 · 2.1 s · 5 in, 7 out, $0.0100\n    boom\n    bang\n"
    );
}

#[test]
fn a_run_begins_with_its_prompt() {
    let started = json!({"kind": "run_started", "seq": 0, "provider": "demo", "runId": "r",
        "content": "do\nit", "startedAt": "2025-11-24T16:00:00.123Z"});
    assert_eq!(out(&[started]), "--- demo · 2025-11-24 16:00:00 UTC · run r\n> do\n> it\n");
}

#[test]
fn kinds_that_nobody_knows_are_shown() {
    let custom = json!({"kind": "weather", "id": "i", "seq": 1, "runId": "r", "sky": "blue"});
    assert_eq!(out(&[custom]), "weather: {\"sky\":\"blue\"}\n");
    assert_eq!(out(&[json!({"kind": "stream_end", "blockId": "a"})]), "");
}

#[test]
fn no_event_speaks_to_the_terminal() {
    let evil = "\u{1b}]0;pwned\u{7}\u{1b}[2Jx";
    for kind in [
        "text",
        "thinking",
        "error",
        "raw",
        "tool_use",
        "tool_result",
        "status",
        "permission_request",
        "permission_resolved",
        "permission_cancelled",
        "task_notification",
        "complete",
        "run_started",
        "stream_delta",
        "odd",
    ] {
        let event = json!({"kind": kind, "content": evil, "toolName": evil, "title": evil,
            "toolInput": {"command": evil}, "input": {"plan": evil}, "text": evil, "error": evil,
            "toolResult": {"content": evil}, "description": evil, "cwd": evil, "message": evil,
            "by": {"name": evil}, "summary": evil, "taskId": evil, "requestId": evil,
            "reason": evil, "provider": evil, "runId": evil, "status": evil, "state": evil,
            "decision": evil, "stream": evil, "startedAt": evil, "blockId": "b", "diff": evil,
            "questions": [{"text": evil, "options": [evil]}],
            "choices": [{"label": evil, "rule": evil}],
            "truncated": {"field": "content", "bytes": 1, "href": evil}});
        let (out, err) = all(Paint::Plain, std::slice::from_ref(&event));
        for text in [out, err] {
            assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{kind}: {text:?}");
        }
        let (out, err) = all(Paint::Colour, &[event]);
        for text in [out, err] {
            assert!(!text.contains("\u{1b}]") && !text.contains("\u{1b}[2J"), "{kind}: {text:?}");
        }
    }
}

#[test]
fn a_run_that_nobody_asked_for_says_so() {
    let started = |origin: &str, content: &str| {
        json!({"kind": "run_started", "seq": 0, "provider": "claude", "runId": "r",
            "startedAt": "2025-01-02T03:04:05.000Z", "origin": origin, "content": content})
    };
    let by_itself = out(&[started("agent", "")]);
    assert!(by_itself.ends_with("(the agent went on by itself)\n"), "{by_itself}");
    let asked = out(&[started("user", "hello")]);
    assert!(asked.ends_with("> hello\n") && !asked.contains("by itself"), "{asked}");
}
