//! A person at a terminal: permission requests are asked and answered inline.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;

use super::{Said, command};
use crate::support::{Setup, eventually};

/// A command whose stdin and stderr are a terminal.
struct AtTerminal {
    child: Child,
    keys: File,
    screen: Said,
    out: Said,
}

impl AtTerminal {
    fn start(mut command: Command) -> Self {
        let master: OwnedFd =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it is ours");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let name = name.to_str().expect("an ASCII name");
        let slave = OpenOptions::new().read(true).write(true).open(name).expect("just made");
        let again = slave.try_clone().expect("there are descriptors");
        command.stdin(Stdio::from(slave)).stderr(Stdio::from(again)).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let out = Said::collect(child.stdout.take().expect("stdout is piped"));
        let keys = File::from(master);
        let screen = Said::collect(Screen(keys.try_clone().expect("there are descriptors")));
        Self { child, keys, screen, out }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let child = &mut self.child;
        let status =
            eventually("the command ends", || child.try_wait().expect("it was started here"));
        (status.code(), self.out.to_end())
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A terminal's other end; when nobody holds the terminal any more, reading it is an error.
struct Screen(File);

impl Read for Screen {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(bytes).or(Ok(0))
    }
}

#[test]
fn requests_are_answered_inline() {
    let gateway = Setup::with_fake().start();
    let mut person = AtTerminal::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    let choices = json!([{"id": "once", "kind": "allow_once", "label": "Once"},
        {"id": "ever", "kind": "allow_always", "label": "Always", "rule": "Bash(ls)"}]);
    agent.emit(&[json!({"kind": "permission_request", "requestId": "p", "toolName": "Bash",
        "input": {"command": "ls"}, "choices": choices})]);
    person.screen.wait("[y]es [a]lways [n]o [d]etach > ");
    person.type_keys("what?\n");
    person.screen.wait_times("[y]es [a]lways [n]o [d]etach > ", 2);
    person.type_keys("a\n");
    let answer = agent.line("an answer", |line| line["requestId"] == "p");
    assert_eq!(answer["allow"], true);

    agent.emit(&[json!({"kind": "permission_request", "requestId": "q", "toolName": "Ask",
        "interaction": "question", "input": {}, "questions": [
            {"id": "a", "text": "First?", "options": ["x", "y"], "multi": true},
            {"id": "b", "text": "Second?", "multi": false}]})]);
    person.screen.wait("First?");
    person.type_keys("1,2\n");
    person.screen.wait("Second?");
    person.type_keys("own words\n");
    let answer = agent.line("an answer", |line| line["requestId"] == "q");
    assert_eq!(answer["updatedInput"]["answers"], json!({"a": "x, y", "b": "own words"}));

    agent.finish();
    let (code, out) = person.end();
    assert_eq!(code, Some(0));
    assert!(out.contains("Always saves the rule: Bash(ls)"), "{out}");
    assert!(!out.contains('\u{1b}'), "stdout is no terminal: {out}");
}

#[test]
fn a_request_that_somebody_else_answered_is_not_asked_any_more() {
    let gateway = Setup::with_fake().start();
    let mut person = AtTerminal::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    let ask = |id: &str| {
        json!({"kind": "permission_request", "requestId": id, "toolName": id,
        "input": {}})
    };
    agent.emit(&[ask("p1"), ask("p2")]);
    person.screen.wait("[d]etach > ");
    let list = super::run(&gateway, &["permissions", "--json"], 0).json();
    let first = list[0]["requestId"].as_str().expect("an id");
    super::run(&gateway, &["deny", first], 0);
    agent.line("a denial", |line| line["requestId"] == "p1" && line["allow"] == false);
    person.screen.wait_times("[d]etach > ", 2);
    person.type_keys("y\n");
    agent.line("an answer", |line| line["requestId"] == "p2" && line["allow"] == true);
    agent.emit(&[ask("p3")]);
    person.screen.wait_times("[d]etach > ", 3);
    person.type_keys("d\n");
    let (code, _) = person.end();
    assert_eq!(code, Some(0));
    assert!(!agent.gone(), "a detach leaves the agent alone");
}
