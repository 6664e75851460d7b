use super::*;
use proptest::prelude::*;
use serde_json::json;

/// All that is said stays inside its item: each line is the head of an item, inside one, a run's
/// heading, or empty.
#[track_caller]
fn is_in_one_piece(markdown: &str) {
    for line in markdown.split(['\n', '\r']) {
        let ours = line.is_empty()
            || line.starts_with("- **")
            || line.starts_with("- *")
            || line.starts_with("  ")
            || line.starts_with("## Run ")
            || line == format!("*{BY_ITSELF}*");
        assert!(ours, "outside of its item: {line:?} in\n{markdown}");
    }
}

#[test]
fn what_an_agent_leaves_open_ends_with_its_item() {
    let mut transcript = Transcript::default();
    for content in [
        "```\nnever closed",
        "<!-- never closed",
        "# A heading\n## Run 7",
        "a\r# b\r\nc",
        "<details>",
        "---",
        "- a\n- b",
        "\n\n  text",
        "| a |\n|---|",
    ] {
        let text = transcript.event(&json!({"kind": "text", "blockId": "b", "content": content}));
        is_in_one_piece(&text);
        assert!(text.starts_with("\n- **assistant**\n\n"), "{text}");
        let prompt = json!({"kind": "run_started", "content": content, "origin": "user",
            "startedAt": "2026-01-02T03:04:05.000Z"});
        is_in_one_piece(&transcript.event(&prompt));
    }
}

#[test]
fn a_fence_survives_what_is_in_it() {
    let output = "```sh\necho\n````\n`````";
    let mut transcript = Transcript::default();
    let text = transcript.event(&json!({"kind": "tool_result", "toolId": "t",
        "toolResult": {"content": output, "isError": false}, "exitCode": 0}));
    is_in_one_piece(&text);
    assert!(text.contains("  ``````\n  ```sh\n  echo\n  ````\n  `````\n  ``````\n"), "{text}");
    assert!(text.contains("<summary>done · exit 0 · 4 lines</summary>"), "{text}");
}

#[test]
fn names_and_titles_mean_only_themselves() {
    let head = head(&json!({"title": "# *a* | <b>\n`c`", "id": "s", "projectPath": "/a|b_c"}));
    assert!(head.starts_with("# \\# \\*a\\* \\| \\<b\\> \\`c\\`\n"), "{head}");
    assert!(head.contains("| project | /a\\|b\\_c |\n"), "{head}");
}

#[test]
fn a_transcript_reads_well() {
    let mut transcript = Transcript::default();
    let mut out = String::new();
    for event in [
        json!({"kind": "run_started", "content": "Fix it", "origin": "user", "by": {"name": "cli"},
            "startedAt": "2026-01-02T03:04:05.000Z"}),
        json!({"kind": "text", "content": "one line"}),
        json!({"kind": "text", "content": "another"}),
        json!({"kind": "thinking", "content": "Hm.", "blockId": "b1"}),
        json!({"kind": "tool_use", "toolId": "t", "toolName": "Bash",
            "toolInput": {"command": "ls -l"}}),
        json!({"kind": "tool_use", "toolId": "t", "toolName": "Bash",
            "toolInput": {"command": "ls -l"}}),
        json!({"kind": "permission_request", "requestId": "p", "toolName": "Edit",
            "input": {}, "diff": "-a\n+b"}),
        json!({"kind": "permission_resolved", "requestId": "p", "decision": "allow",
            "state": "recorded", "by": {"kind": "web", "name": "phone"}, "edited": false}),
        json!({"kind": "permission_resolved", "requestId": "p", "decision": "allow",
            "state": "delivered", "by": {"kind": "web", "name": "phone"}, "edited": false}),
        json!({"kind": "tool_result", "toolId": "t", "toolResult": {"content": "", "isError": true}}),
        json!({"kind": "stream_delta", "blockId": "b2", "block": "text", "content": "half a "}),
        json!({"kind": "stream_delta", "blockId": "b2", "block": "text", "content": "sentence"}),
        json!({"kind": "complete", "reason": "failed", "success": false, "exitCode": 3,
            "durationMs": 1500, "error": "it broke"}),
    ] {
        out.push_str(&transcript.event(&event));
    }
    is_in_one_piece(&out);
    assert_eq!(
        out,
        "\n## Run 1 · 2026-01-02 03:04:05 UTC\n\
         \n- **prompt** (cli)\n\n  Fix it\n\
         \n- **assistant**\n\n  one line\n  another\n\
         \n- **thinking**\n\n  <details><summary>thinking</summary>\n\n  Hm.\n\n  </details>\n\
         \n- **Bash**\n\n  ```sh\n  ls -l\n  ```\n\
         \n- **permission asked**: Edit\n\n  ```diff\n  -a\n  +b\n  ```\n\
         \n- **allowed** by phone (web)\n\
         \n- *result*: failed\n\
         \n- **assistant** (unfinished)\n\n  half a sentence\n\
         \n- **end**: failed · exit 3 · 1.5 s\n\n  ```\n  it broke\n  ```\n"
    );
}

proptest! {
    /// Whatever is said, by whichever event.
    #[test]
    fn nothing_gets_out_of_its_item(
        kind in "(text|thinking|tool_use|tool_result|error|raw|complete|other\\*|permission_request)",
        content in "([`~#<>!|*_\\\\ \\-\n\r\t]|[a-c]|\\PC|\u{1b}\\[){0,60}",
    ) {
        let event = json!({"kind": kind, "content": content, "toolName": content, "title": content,
            "toolInput": {"command": content}, "toolResult": {"content": content},
            "error": content, "reason": content, "stream": content, "source": content,
            "blockId": "b", "input": {"plan": content}, "interaction": "plan"});
        is_in_one_piece(&Transcript::default().event(&event));
    }
}
