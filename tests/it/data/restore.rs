//! A restore: into an empty place or beside what was there, never under a server or an agent, never
//! of something that is damaged.

use std::fs;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::{ended, run, stopped, text, unguarded, worked};
use crate::support::eventually;

#[test]
fn not_while_a_server_or_an_agent_has_the_directory() {
    let (mut gateway, ..) = worked();
    let data = gateway.setup.data_dir();
    let file = gateway.setup.root.path().join("b.tar");
    run(&["backup", text(&file), "--data-dir", text(&data)], 0);
    let args = ["restore", text(&file), "--data-dir", text(&data), "--force"];
    let refused = run(&args, 75);
    assert!(refused.err.contains(&format!("pid {}", gateway.pid())), "{}", refused.err);

    gateway.kill();
    let refused = run(&args, 75);
    assert!(refused.err.contains("still work"), "{}", refused.err);
    let keepers = run(&["ps", "--keepers", "--json", "--data-dir", text(&data)], 0).json();
    let pid = keepers[0]["pid"].to_string();
    assert!(refused.err.contains(&format!("kill {pid}")), "{} {pid}", refused.err);
    run(&["verify", "--data-dir", text(&data)], 0);
    let gateway = gateway.restart();
    let (_, running) = gateway.get("/api/v1/runs?status=running");
    assert_eq!(running["items"].as_array().map(Vec::len), Some(1), "it works on: {running}");
}

#[test]
fn what_was_there_is_moved_aside_and_runs_that_were_on_end_as_lost() {
    let (gateway, session, runs, file) = stopped();
    let data = gateway.setup.data_dir();
    let before = run(&["verify", "--data-dir", text(&data), "--json"], 0).json();
    let args = ["restore", text(&file), "--data-dir", text(&data), "--json"];
    let refused = run(&args, 6);
    let said: Value = serde_json::from_str(&refused.err).expect("JSON");
    assert_eq!(said["error"]["code"], "NOT_EMPTY", "{said}");
    assert_eq!(run(&["verify", "--data-dir", text(&data), "--json"], 0).json(), before);

    let restored = run(&[&args[..], &["--force"]].concat(), 0).json();
    let aside = std::path::PathBuf::from(restored["aside"].as_str().expect("a folder"));
    assert_eq!(aside.parent(), Some(&*data));
    let mut old = run(&["verify", text(&aside.join("reattach.db")), "--json"], 0).json();
    old["path"] = before["path"].clone();
    assert_eq!(old, before, "nothing of it is lost");
    assert!(aside.join("token").is_file() && !data.join("token").exists());
    assert!(!data.join("restoring").exists());

    let gateway = gateway.restart();
    ended(&gateway, &runs[1]);
    let frames = gateway.replay(&session);
    let ends: Vec<_> = frames.iter().filter(|frame| frame.kind() == "complete").collect();
    assert_eq!(ends.len(), 2);
    assert_eq!(ends[0].run(), Some(&*runs[0]));
    assert_eq!((ends[1].run(), &ends[1].json["reason"]), (Some(&*runs[1]), &json!("agent_lost")));
    let cancelled = frames
        .iter()
        .any(|frame| frame.kind() == "permission_cancelled" && frame.run() == Some(&*runs[1]));
    assert!(cancelled, "what it asked waits no more");
    let (_, waiting) = gateway.get("/api/v1/permissions");
    assert_eq!(waiting["items"], json!([]));
    assert_eq!(gateway.hub().count("fake"), 2, "no agent was started for it");
    // The session goes on.
    let mut client = gateway.connect();
    let (third, agent) = crate::support::begin(&gateway, &mut client, &session, "third");
    agent.finish();
    client.expect_complete(&third);
    run(&["verify", "--data-dir", text(&data)], 0);
}

/// A prompt that was accepted and not yet sent when the backup was taken: it was sent since, and is
/// not sent a second time.
#[test]
fn a_prompt_that_waited_is_not_sent_again() {
    let (gateway, session, runs, file) = stopped();
    let root = gateway.setup.root.path();
    let unpacked = root.join("unpacked");
    run(&["restore", text(&file), "--data-dir", text(&unpacked)], 0);
    // As if the backup had been taken a moment earlier.
    let database = unpacked.join("reattach.db");
    unguarded(
        &database,
        "DELETE FROM permission WHERE run = 2; DELETE FROM event WHERE run = 2; \
         UPDATE run SET last_seq = 0, record_offset = 0, hash = NULL, \
           bytes = (SELECT length(body) FROM head WHERE run = 2) WHERE id = 2; \
         UPDATE command SET delivered_ms = NULL WHERE run = 2;",
    );
    let earlier = root.join("earlier.tar");
    run(&["backup", text(&earlier), "--data-dir", text(&unpacked)], 0);
    let data = gateway.setup.data_dir();
    run(&["restore", text(&earlier), "--force", "--data-dir", text(&data)], 0);
    let gateway = gateway.restart();
    ended(&gateway, &runs[1]);
    let frames = gateway.replay(&session);
    let last = frames.last().expect("the end");
    assert_eq!((last.run(), &last.json["reason"]), (Some(&*runs[1]), &json!("agent_lost")));
    assert_eq!(gateway.hub().count("fake"), 2, "no agent was started for it");
}

#[test]
fn a_damaged_backup_is_refused_and_nothing_is_changed() {
    let (gateway, _, _, file) = stopped();
    let root = gateway.setup.root.path();
    let data = gateway.setup.data_dir();
    let before = run(&["verify", "--data-dir", text(&data), "--json"], 0).json();
    let bytes = fs::read(&file).expect("readable");
    let find = |needle: &[u8]| bytes.windows(needle.len()).position(|w| w == needle);
    let spoilt = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::write(&path, bytes).expect("writable");
        path
    };
    let mut flipped = bytes.clone();
    flipped[find(b"before the backup").expect("it is in an event")] ^= 0x20;
    let mut newer = bytes.clone();
    let at = find(b"\"format\": 1").expect("it is in the manifest") + 10;
    newer[at] = b'9';
    for (name, bytes) in [
        ("cut", &bytes[..bytes.len() / 2]),
        ("flipped", &flipped),
        ("newer", &newer),
        ("empty", &[]),
        ("other", b"no backup at all"),
    ] {
        let path = spoilt(name, bytes);
        let refused = run(&["restore", text(&path), "--force", "--data-dir", text(&data)], 75);
        assert!(refused.err.contains("try: "), "{name}: {}", refused.err);
        run(&["verify", text(&path)], 75);
        assert_eq!(run(&["verify", "--data-dir", text(&data), "--json"], 0).json(), before);
        assert!(!data.join("restoring").exists(), "{name}");
    }
    run(&["restore", text(&root.join("none")), "--data-dir", text(&root.join("new"))], 3);
    assert!(!root.join("new").exists(), "a mistyped name leaves nothing behind");
}

#[test]
fn a_database_that_is_not_sound_is_restored_only_if_one_insists() {
    let (gateway, session, runs, file) = stopped();
    let root = gateway.setup.root.path();
    let bad = root.join("bad");
    run(&["restore", text(&file), "--data-dir", text(&bad)], 0);
    let conn = Connection::open(bad.join("reattach.db")).expect("opens");
    conn.execute_batch("DROP TRIGGER event_next").expect("it is there");
    drop(conn);
    let spoilt = root.join("spoilt.tar");
    run(&["backup", text(&spoilt), "--data-dir", text(&bad)], 0);
    let new = root.join("new");
    let refused = run(&["restore", text(&spoilt), "--data-dir", text(&new)], 75);
    assert!(refused.err.contains("event_next"), "{}", refused.err);
    assert!(!new.join("reattach.db").exists());
    let restored =
        run(&["restore", text(&spoilt), "--data-dir", text(&new), "--accept-damage", "--json"], 0);
    assert_eq!(restored.json()["findings"], 1);
    drop((session, runs));
}

/// They may be done since, and are old in any case: a person decides.
#[test]
fn prompts_in_queues_are_held() {
    let (gateway, session, runs) = worked();
    let body = json!({"content": "third", "whenBusy": "queue"});
    let (status, queued) = gateway.post(&format!("/api/v1/sessions/{session}/runs"), &body);
    assert_eq!(status, 202, "{queued}");
    let file = gateway.setup.root.path().join("queued.tar");
    let data = gateway.setup.data_dir();
    run(&["backup", text(&file), "--data-dir", text(&data)], 0);
    let mut gateway = gateway;
    gateway.post(&format!("/api/v1/runs/{}/abort", runs[1]), &json!({}));
    ended(&gateway, &runs[1]);
    gateway.terminate();
    gateway.expect_no_agents();
    let args = ["restore", text(&file), "--data-dir", text(&data), "--force"];
    let restored = run(&[&args[..], &["--json"]].concat(), 0).json();
    assert_eq!(restored["queuesHeld"], 1, "{restored}");

    let gateway = gateway.restart();
    ended(&gateway, &runs[1]);
    let (_, queue) = gateway.get(&format!("/api/v1/sessions/{session}/queue"));
    assert_eq!((&queue["held"], &queue["items"][0]["content"]), (&json!(true), &json!("third")));
    assert_eq!(gateway.hub().count("fake"), 2, "no agent was started for it");
    let (status, _) = gateway.post(&format!("/api/v1/sessions/{session}/queue/resume"), &json!({}));
    assert_eq!(status, 202);
    let (agent, _) = gateway.hub().prompted("fake", "third");
    agent.finish();
    eventually("its run ends, and nothing waits", || {
        let (_, session) = gateway.get(&format!("/api/v1/sessions/{session}"));
        (session["running"] == false && session["lastRunId"] != *runs[1]).then_some(())
    });
    run(&["verify", "--data-dir", text(&data)], 0);
}

#[test]
fn files_that_were_given_come_back_and_one_that_is_cut_is_found() {
    let (gateway, session, _) = worked();
    let root = gateway.setup.root.path();
    let data = gateway.setup.data_dir();
    let given = crate::uploads::given(&gateway, &session, "a.png", "image/png", b"not a picture");
    let folder = std::path::Path::new("uploads").join(&session);
    let name = format!("{}-a.png", given["id"].as_str().expect("an id"));
    fs::write(data.join("uploads/.incoming-x"), "on its way").expect("writable");
    let file = root.join("b.tar.gz");
    let made = run(&["backup", text(&file), "--data-dir", text(&data), "--json"], 0).json();
    assert_eq!(made["files"], 3, "the database, the file and its card: {made}");
    let new = root.join("new");
    run(&["restore", text(&file), "--data-dir", text(&new)], 0);
    let whole = fs::read(new.join(&folder).join(&name)).expect("it is there");
    assert_eq!(whole, b"not a picture");
    run(&["verify", "--data-dir", text(&new)], 0);
    fs::write(new.join(&folder).join(&name), "not").expect("writable");
    let report = run(&["verify", "--data-dir", text(&new), "--json"], 75).json();
    assert_eq!(report["findings"][0]["invariant"], "UPLOAD", "{report}");
    assert_eq!(report["findings"][0]["sessionId"], *session);
    fs::remove_file(new.join(&folder).join(&name)).expect("it is there");
    let report = run(&["verify", "--data-dir", text(&new)], 75);
    assert!(String::from_utf8_lossy(&report.out).contains("is missing"), "{report:?}");
}
