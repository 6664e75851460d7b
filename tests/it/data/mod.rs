//! Data that is taken away and comes back: `backup`, `restore`, `verify`, `export`, `retention`, on
//! the built binary.

mod backup;
mod corrupt;
mod export;
mod restore;
mod retention;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{Gateway, Setup, begin, eventually};

/// What a command that ended has said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| {
            panic!("not JSON ({error}): {:?}; {}", String::from_utf8_lossy(&self.out), self.err)
        })
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        let out = String::from_utf8_lossy(&self.out);
        assert_eq!(self.code, Some(code), "stdout:\n{out}\nstderr:\n{}", self.err);
        self
    }
}

/// The built binary with these arguments.
fn reattach(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reattach"));
    command.args(args).env_remove("REATTACH_TOKEN").env_remove("NO_COLOR");
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end, which is to be this exit code.
#[track_caller]
fn run(args: &[&str], code: i32) -> Ran {
    let Output { status, stdout, stderr } = reattach(args).output().expect("the binary runs");
    let err = String::from_utf8_lossy(&stderr).into_owned();
    Ran { code: status.code(), out: stdout, err }.expect(code)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A gateway, a session with a finished run of many kinds of events, and one that is on.
fn worked() -> (Gateway, String, [String; 2]) {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (first, agent) = begin(&gateway, &mut client, &session, "first");
    agent.emit(&[
        json!({"kind": "text", "content": "one"}),
        json!({"kind": "tool_use", "toolId": "t1", "toolName": "Bash", "toolInput": {"command": "ls"}}),
        json!({"kind": "tool_result", "toolId": "t1", "toolResult": {"content": "x", "isError": false}}),
        json!({"kind": "permission_request", "requestId": "p1", "toolName": "Bash", "input": {}}),
    ]);
    agent.emit_long(r#"{"kind":"text","content":""#, 'y', 400 << 10, r#""}"#);
    agent.finish();
    client.subscribe(&json!({"sessionId": session, "from": "start"}));
    client.expect_complete(&first);
    let (second, agent) = begin(&gateway, &mut client, &session, "second");
    agent.say("before the backup");
    agent.emit(&[
        json!({"kind": "permission_request", "requestId": "p2", "toolName": "Bash", "input": {}}),
    ]);
    client.expect_at(&second, 2);
    (gateway, session, [first, second])
}

/// A data directory that no server uses any more, with its agents ended, and a backup of it.
fn stopped() -> (Gateway, String, [String; 2], PathBuf) {
    let (mut gateway, session, runs) = worked();
    let file = gateway.setup.root.path().join("b.tar");
    run(&["backup", text(&file), "--data-dir", text(&gateway.setup.data_dir())], 0);
    let (status, _) = gateway.post(&format!("/api/v1/runs/{}/abort", runs[1]), &json!({}));
    assert_eq!(status, 202);
    ended(&gateway, &runs[1]);
    gateway.expect_no_agents();
    gateway.terminate();
    (gateway, session, runs, file)
}

/// Waits until a run has its end.
#[track_caller]
fn ended(gateway: &Gateway, run: &str) {
    eventually("the run ends", || {
        let (_, found) = gateway.get(&format!("/api/v1/runs/{run}"));
        (found["status"] == "completed").then_some(())
    });
}

/// Runs SQL as a broken disk would: past all guards, which are as before afterwards.
#[track_caller]
fn unguarded(database: &Path, sql: &str) {
    let conn = Connection::open(database).expect("opens");
    let guards: Vec<(String, String)> = conn
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        .and_then(|mut found| found.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .expect("readable");
    for (name, _) in &guards {
        conn.execute_batch(&format!("DROP TRIGGER {name}")).expect("it is there");
    }
    conn.execute_batch(sql).expect(sql);
    for (_, guard) in &guards {
        conn.execute_batch(guard).expect("it was there");
    }
    conn.close().expect("closes");
}

/// Everything below a folder that is a file: its name and what is in it.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                let bytes = std::fs::read(&path).expect("readable");
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}
