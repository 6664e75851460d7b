//! A backup: consistent while a server is at work, harmless to it, readable with ordinary tools.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use rusqlite::Connection;
use serde_json::json;

use super::{ended, files, reattach, run, text, worked};
use crate::support::stream::Stream;
use crate::support::{Address, Checker, Follower, Ledger, Setup, begin, eventually};

/// The promise of the front door: taken in a flood, it is a dense prefix; and whoever has seen more
/// is told that the log was rewound.
#[test]
fn a_backup_in_a_flood_is_a_dense_prefix_and_who_has_seen_more_is_told() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let follower = Follower::start(&Address::of(&gateway), &[&session]);
    let mut client = gateway.connect();
    let (run_id, agent) = begin(&gateway, &mut client, &session, "flood");
    agent.flood(50_000_000, 200, "x");
    follower.wait("the flood is on", |view| (view.seq(&run_id) > 2000).then_some(()));

    let data = gateway.setup.data_dir();
    let file = gateway.setup.root.path().join("b.tar.gz");
    let before = follower.look(|view| view.seq(&run_id));
    let made = run(&["backup", text(&file), "--data-dir", text(&data), "--json"], 0).json();
    let meanwhile = follower.look(|view| view.seq(&run_id));
    assert!(meanwhile > before, "the flood stood still for the backup: {before} {meanwhile}");
    assert_eq!(made["counts"]["running"], 1, "{made}");
    let saved = made["counts"]["events"].as_u64().expect("a number");
    assert!(saved >= before, "what was seen before is durable: {saved} {before}");
    follower.wait("more than is in it", |view| (view.seq(&run_id) > saved + 1000).then_some(()));

    let old = client.subscribe(&json!({"sessionId": session, "from": "tail"})).json;
    let epoch = old["logEpoch"].as_str().expect("an epoch").to_owned();
    assert_eq!(made["logEpoch"], epoch);
    client.cut();
    let (status, _) = gateway.post(&format!("/api/v1/runs/{run_id}/abort"), &json!({}));
    assert_eq!(status, 202);
    follower.complete(&run_id);
    let view = follower.stop();
    let seen = view.seq(&run_id);
    let mut gateway = gateway;
    // A restore refuses while a keeper lives, also one whose run has just ended.
    gateway.expect_no_agents();
    gateway.terminate();

    // Elsewhere, and in its own place.
    let other = gateway.setup.root.path().join("elsewhere");
    let restored = run(&["restore", text(&file), "--data-dir", text(&other), "--json"], 0).json();
    assert_eq!(restored["running"], 1, "{restored}");
    assert_eq!(restored["aside"], json!(null));
    assert_ne!(restored["logEpoch"], epoch, "another log");
    let sound = run(&["verify", "--data-dir", text(&other), "--json"], 0).json();
    assert_eq!(sound["counts"]["events"], saved, "{sound}");
    run(&["restore", text(&file), "--data-dir", text(&data), "--force"], 0);
    let gateway = gateway.restart();

    // A client from the start: a dense prefix of what was seen, then the end.
    ended(&gateway, &run_id);
    let frames = gateway.replay(&session);
    let (mut checker, mut ledger) = (Checker::new(), Ledger::new());
    for frame in &frames {
        checker.see(frame);
        if frame.kind() != "complete" {
            ledger.see(frame);
        }
    }
    assert!(checker.ended(&session), "its run has its end");
    assert_eq!(ledger.last(&run_id), Some(saved));
    ledger.is_within(&view.ledger);
    let complete = frames.last().expect("the end");
    assert_eq!(complete.json["reason"], "agent_lost", "{}", complete.text);
    assert_eq!(complete.seq(), Some(saved + 1));

    // The old cursor, with its log's name and without, by each way in.
    for (epoch, seq) in [(Some(&epoch), seen), (Some(&epoch), 5), (None, seen)] {
        let mut client = gateway.connect();
        let mut target = json!({"type": "chat.subscribe", "sessions":
            [{"sessionId": session, "runId": run_id, "lastSeq": seq}]});
        if let Some(epoch) = epoch {
            target["logEpoch"] = json!(epoch);
        }
        let reply = client.request(&target);
        assert_eq!(reply.json["rewound"], true, "{seq}: {}", reply.text);
        client.expect_at(&run_id, 0);
        let at = epoch.map_or_else(String::new, |epoch| format!("@{epoch}"));
        let path = format!("/api/v1/sessions/{session}/events?after={run_id}:{seq}{at}&limit=5");
        let (status, page) = gateway.get(&path);
        assert_eq!((status, &page["rewound"]), (200, &json!(true)), "{page}");
        assert_eq!(page["items"][0]["kind"], "run_started", "{page}");
        let last = format!("Last-Event-ID: {run_id}:{seq}{at}\r\n");
        let mut stream = Stream::open(&gateway, &session, "", &last);
        stream.expect("caught up", |frame| frame.is("caught_up", &session));
        assert_eq!(stream.seen[0].frame.json["rewound"], true, "{}", stream.seen[0].frame.text);
        assert_eq!(stream.of_runs()[0].kind(), "run_started");
        stream.cut();
    }
    let (_, new) = gateway.get(&format!("/api/v1/sessions/{session}/events?after={run_id}:5"));
    assert_eq!(new["rewound"], false, "what is there is read on from: {new}");
}

#[test]
fn a_backup_without_a_server_changes_nothing_and_has_the_newest_events() {
    let (mut gateway, ..) = worked();
    gateway.kill();
    let data = gateway.setup.data_dir();
    assert!(data.join("reattach.db-wal").metadata().is_ok_and(|wal| wal.len() > 0), "a test of it");
    let keep = |all: Vec<(std::path::PathBuf, Vec<u8>)>| -> Vec<_> {
        // The keeper lives on, and the index of the write-ahead log is nobody's data.
        let ours = |path: &std::path::Path| {
            !path.starts_with(data.join("agents")) && !path.ends_with("reattach.db-shm")
        };
        all.into_iter().filter(|(path, _)| ours(path)).collect()
    };
    let before = keep(files(&data));
    let file = gateway.setup.root.path().join("b.tar");
    let made = run(&["backup", text(&file), "--data-dir", text(&data), "--json"], 0).json();
    assert!(keep(files(&data)) == before, "it wrote into the data directory");
    assert_eq!(made["counts"]["sessions"], 1);
    assert_eq!((&made["counts"]["runs"], &made["counts"]["running"]), (&json!(2), &json!(1)));
    run(&["verify", "--data-dir", text(&data)], 0);
    assert!(keep(files(&data)) == before, "verify wrote into the data directory");
    let sound = run(&["verify", text(&file), "--json"], 0).json();
    assert_eq!(sound["counts"], made["counts"]);
    assert_eq!((&sound["hashed"], &sound["unhashed"]), (&json!(2), &json!(0)));
}

#[test]
fn it_is_a_private_tar_that_ordinary_tools_read() {
    let (gateway, ..) = worked();
    let data = gateway.setup.data_dir();
    let folder = gateway.setup.root.path().join("out");
    fs::create_dir(&folder).expect("a fresh directory");
    let (plain, gz) = (folder.join("b.tar"), folder.join("b.tar.gz"));
    run(&["backup", text(&plain), "--data-dir", text(&data)], 0);
    run(&["backup", text(&gz), "--data-dir", text(&data)], 0);
    let (plain_size, gz_size) = (plain.metadata().unwrap().len(), gz.metadata().unwrap().len());
    assert!(gz_size < plain_size / 2, "{gz_size} {plain_size}");
    let mut left: Vec<_> =
        fs::read_dir(&folder).expect("readable").map(|e| e.unwrap().path()).collect();
    left.sort();
    assert_eq!(left, [plain.clone(), gz.clone()], "nothing else is left there");
    assert_eq!(plain.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let names = |args: &[&str], file: &std::path::Path| {
        let listed = Command::new("tar").args(args).arg(file).output().expect("tar is everywhere");
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8(listed.stdout).expect("names")
    };
    assert_eq!(names(&["-tf"], &plain), "manifest.json\nreattach.db\n");
    assert_eq!(names(&["-tzf"], &gz), "manifest.json\nreattach.db\n");
    let manifest = Command::new("tar").arg("-xOf").arg(&plain).arg("manifest.json").output();
    let manifest: serde_json::Value =
        serde_json::from_slice(&manifest.expect("tar is everywhere").stdout).expect("JSON");
    assert_eq!(manifest["format"], 1);
    assert_eq!(manifest["files"][0]["path"], "reattach.db");
    assert_eq!(manifest["credentials"], false);

    // By hand: what lies in it is an ordinary data directory.
    let by_hand = folder.join("by-hand");
    fs::create_dir(&by_hand).expect("a fresh directory");
    let status = Command::new("tar").arg("-xf").arg(&plain).arg("-C").arg(&by_hand).status();
    assert!(status.expect("tar is everywhere").success());
    run(&["verify", text(&by_hand.join("reattach.db"))], 0);
}

#[test]
fn a_file_that_is_there_is_not_overwritten() {
    let (gateway, ..) = worked();
    let data = gateway.setup.data_dir();
    let file = gateway.setup.root.path().join("b.tar");
    fs::write(&file, "precious").expect("writable");
    let refused = run(&["backup", text(&file), "--data-dir", text(&data), "--json"], 6);
    let said: serde_json::Value = serde_json::from_str(&refused.err).expect("JSON");
    assert_eq!(said["error"]["code"], "EXISTS");
    assert!(said["error"]["next"].as_str().is_some_and(|next| next.contains("--force")), "{said}");
    assert_eq!(fs::read(&file).expect("readable"), b"precious");
    run(&["backup", text(&file), "--data-dir", text(&data), "--force"], 0);
    run(&["verify", text(&file)], 0);

    let nowhere = gateway.setup.root.path().join("nowhere");
    run(&["backup", text(&file), "--force", "--data-dir", text(&nowhere)], 75);
    run(&["verify", text(&file)], 0);
    assert!(!nowhere.exists(), "it makes no data directory");
    run(&["backup", "/dev/null/b.tar", "--data-dir", text(&data)], 1);
}

#[test]
fn through_a_pipe_it_goes_where_one_likes() {
    let (gateway, ..) = worked();
    let data = gateway.setup.data_dir();
    let out = run(&["backup", "-", "--data-dir", text(&data), "--json"], 0);
    let said: serde_json::Value = serde_json::from_str(&out.err).expect("its JSON is on stderr");
    assert_eq!(said["counts"]["sessions"], 1, "{said}");
    let other = gateway.setup.root.path().join("elsewhere");
    let mut child = reattach(&["restore", "-", "--data-dir", text(&other), "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("it is piped"), &out.out)
        .expect("it reads");
    assert!(child.wait().expect("it ends").success());
    run(&["verify", "--data-dir", text(&other)], 0);
    let copy = gateway.setup.root.path().join("copy.tar");
    fs::write(&copy, &out.out).expect("writable");
    run(&["verify", text(&copy)], 0);
}

#[test]
fn credentials_stay_at_home_unless_they_are_asked_for() {
    let (mut gateway, ..) = worked();
    gateway.kill();
    let data = gateway.setup.data_dir();
    let secret = [0x5e_u8; 32];
    let conn = Connection::open(data.join("reattach.db")).expect("opens");
    conn.execute(
        "INSERT INTO credential (cid, kind, name, hash, scope, created_ms) \
         VALUES (zeroblob(16), 'token', 'a name', ?1, 'admin', 1)",
        [&secret[..]],
    )
    .expect("it fits");
    drop(conn);
    let token = fs::read(data.join("token")).expect("a token");
    let holds = |file: &std::path::Path, needle: &[u8]| {
        let bytes = fs::read(file).expect("readable");
        bytes.windows(needle.len()).any(|window| window == needle)
    };
    for (with, name) in [(false, "without.tar"), (true, "with.tar")] {
        let file = gateway.setup.root.path().join(name);
        let mut args = vec!["backup", text(&file), "--data-dir", text(&data)];
        if with {
            args.push("--with-credentials");
        }
        run(&args, 0);
        assert_eq!(holds(&file, &secret), with, "{name}: the hash of a credential");
        assert_eq!(holds(&file, &token[..32]), with, "{name}: the token");
        let count = |dir: &std::path::Path| -> i64 {
            let conn = Connection::open(dir.join("reattach.db")).expect("opens");
            let counted = conn.query_row(
                "SELECT count(*) FROM credential WHERE name = 'a name'",
                [],
                |row| row.get(0),
            );
            counted.expect("counts")
        };
        let kept = gateway.setup.root.path().join(format!("{name}.kept"));
        run(&["restore", text(&file), "--data-dir", text(&kept)], 0);
        assert_eq!((count(&kept), kept.join("token").exists()), (i64::from(with), with));
        let dropped = gateway.setup.root.path().join(format!("{name}.dropped"));
        run(&["restore", text(&file), "--data-dir", text(&dropped), "--without-credentials"], 0);
        assert_eq!((count(&dropped), dropped.join("token").exists()), (0, false));
        assert!(!holds(&dropped.join("reattach.db"), &secret));
    }
}

/// What a backup that was killed leaves is no hindrance, and a second one at the same time is told.
#[test]
fn leftovers_are_overwritten_and_two_at_once_are_not_mixed() {
    let (gateway, ..) = worked();
    let data = gateway.setup.data_dir();
    let root = gateway.setup.root.path();
    let file = root.join("b.tar");
    for name in [".b.tar.part", ".b.tar.part.db"] {
        fs::write(root.join(name), "left by one that was killed").expect("writable");
    }
    run(&["backup", text(&file), "--data-dir", text(&data)], 0);
    run(&["verify", text(&file)], 0);
    let part = fs::File::create(root.join(".b.tar.part")).expect("writable");
    part.lock().expect("nobody has it");
    let refused = run(&["backup", text(&file), "--force", "--data-dir", text(&data)], 6);
    assert!(refused.err.contains("another backup"), "{}", refused.err);
    drop(part);
    eventually("its lock is gone", || {
        let code = reattach(&["backup", text(&file), "--force", "--data-dir", text(&data)])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status();
        code.expect("the binary runs").success().then_some(())
    });
}
