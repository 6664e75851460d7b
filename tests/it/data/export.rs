//! An export: everything of a session, with a server and without one, byte for byte.

use std::fs;

use serde_json::{Value, json};

use super::{ended, run, stopped, text, worked};
use crate::support::{Setup, begin};

#[test]
fn as_json_it_has_every_event_as_it_is_stored_with_a_server_and_without() {
    let (gateway, session, runs, _) = stopped();
    let data = gateway.setup.data_dir();
    let offline = run(&["export", &session, "--json", "--data-dir", text(&data)], 0);
    let gateway = gateway.restart();
    let online = run(&["export", &session, "--json", "--data-dir", text(&data)], 0);
    let (offline, online) = (offline.json(), online.json());
    for field in ["events", "runs", "whole", "gaps"] {
        assert_eq!(offline[field], online[field], "{field}");
    }
    let stable = |json: &Value| -> Vec<Value> {
        ["id", "title", "providerSessionId", "projectPath", "createdAt"]
            .iter()
            .map(|name| json["session"][name].clone())
            .collect()
    };
    assert_eq!(stable(&offline), stable(&online));
    assert_eq!(online["format"], "reattach-session");
    assert_eq!(online["session"]["id"], *session);
    let ids: Vec<_> = online["runs"].as_array().expect("a list").iter().map(|r| &r["id"]).collect();
    assert_eq!(ids, [&json!(runs[0]), &json!(runs[1])]);

    // Byte for byte what a client gets.
    let raw = run(&["export", &session, "--json", "--data-dir", text(&data)], 0);
    let raw = String::from_utf8(raw.out).expect("UTF-8");
    let frames = gateway.replay(&session);
    assert_eq!(online["events"].as_array().map(Vec::len), Some(frames.len()));
    for frame in &frames {
        assert!(raw.contains(&frame.text), "{}", &frame.text[..200.min(frame.text.len())]);
    }
    // What was cut is there as a whole too.
    let cut: Vec<_> = frames.iter().filter(|frame| !frame.json["truncated"].is_null()).collect();
    let whole = online["whole"].as_array().expect("a list");
    assert_eq!((cut.len(), whole.len()), (1, 1));
    assert_eq!(whole[0]["content"].as_str().map(str::len), Some(400 << 10));
}

#[test]
fn as_markdown_it_reads_well_and_what_an_agent_says_stays_inside() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let data = gateway.setup.data_dir();
    let mut client = gateway.connect();
    let (first, agent) = begin(&gateway, &mut client, &session, "# Fix | it\n```");
    agent.emit(&[
        json!({"kind": "text", "content": "```\nleft open"}),
        json!({"kind": "tool_use", "toolId": "t1", "toolName": "Bash", "toolInput": {"command": "ls"}}),
        json!({"kind": "tool_result", "toolId": "t1",
            "toolResult": {"content": "````\nout\u{1b}[2J", "isError": false}}),
        json!({"kind": "stream_delta", "blockId": "b", "block": "text", "content": "previewed"}),
        json!({"kind": "stream_end", "blockId": "b", "block": "text"}),
        json!({"kind": "text", "blockId": "b", "content": "the finished text"}),
    ]);
    agent.finish();
    ended(&gateway, &first);
    let out = gateway.setup.root.path().join("session.md");
    let said = run(&["export", "-", "-o", text(&out), "--data-dir", text(&data)], 0);
    assert!(String::from_utf8_lossy(&said.out).contains("events"), "{said:?}");
    let markdown = fs::read_to_string(&out).expect("UTF-8");
    assert!(markdown.starts_with("# \\# Fix \\| it \\`\\`\\`\n"), "{markdown}");
    assert!(markdown.contains("\n- **prompt**"), "{markdown}");
    assert!(markdown.contains("\n- **Bash**\n\n  ```sh\n  ls\n  ```\n"), "{markdown}");
    assert!(markdown.contains("  `````\n  ````\n  out\n  `````\n"), "{markdown}");
    assert!(markdown.contains("the finished text") && !markdown.contains("previewed"));
    assert!(markdown.contains("\n- **end**: finished"), "{markdown}");
    let outside = markdown.lines().skip_while(|line| !line.starts_with("## Run"));
    for line in outside {
        let ours = line.is_empty() || ["  ", "- *", "## Run 1"].iter().any(|b| line.starts_with(b));
        assert!(ours, "{line:?}");
    }

    let refused = run(&["export", "-", "-o", text(&out), "--data-dir", text(&data)], 6);
    assert!(refused.err.contains("--force"), "{}", refused.err);
    run(&["export", "-", "--force", "-o", text(&out), "--data-dir", text(&data)], 0);
    let named = gateway.setup.root.path().join("s.json");
    let said =
        run(&["export", "-", "--json", "-o", text(&named), "--data-dir", text(&data)], 0).json();
    assert_eq!((&said["format"], &said["sessionId"]), (&json!("json"), &json!(session)));
    let whole: Value = serde_json::from_slice(&fs::read(&named).expect("readable")).expect("JSON");
    assert_eq!(whole["events"].as_array().map(|all| all.len() as u64 - 1), said["events"].as_u64());
    let left: Vec<_> = fs::read_dir(gateway.setup.root.path())
        .expect("readable")
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_not_there_is_said() {
    let (mut gateway, ..) = worked();
    let data = gateway.setup.data_dir();
    run(&["export", "nothing-like-it", "--data-dir", text(&data)], 3);
    gateway.kill();
    run(&["export", "nothing-like-it", "--data-dir", text(&data)], 3);
    let nowhere = gateway.setup.root.path().join("nowhere");
    run(&["export", "-", "--data-dir", text(&nowhere)], 5);
}
