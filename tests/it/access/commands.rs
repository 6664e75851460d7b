//! The same by the command line: `open`, `pair`, `token`, `devices`, and the local socket.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::{log_in, reads, text};
use crate::support::{Gateway, Setup};

fn run(gateway: &Gateway, args: &[&str]) -> Output {
    let mut command = command(args);
    command.arg("--data-dir").arg(gateway.setup.data_dir());
    command.output().expect("the binary runs")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reattach"));
    command.args(args).stdin(Stdio::null()).env_remove("REATTACH_TOKEN");
    command
}

#[track_caller]
fn json(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{err}");
    err
}

#[test]
fn the_owner_needs_no_token_on_this_machine() {
    let gateway = Setup::new().start();
    fs::remove_file(gateway.setup.data_dir().join("token")).expect("it was made");
    json(&run(&gateway, &["sessions", "--json"]));
    json(&run(&gateway, &["token", "list", "--json"]));
    // By the address alone there is no way in.
    let base = gateway.announced()["url"].as_str().expect("a url").to_owned();
    let by_address = command(&["sessions", "--server", &base]).output().expect("runs");
    fails(&by_address, 4);
    // A token in the environment is meant to be used.
    let mut wrong = command(&["sessions", "--data-dir"]);
    wrong.arg(gateway.setup.data_dir()).env("REATTACH_TOKEN", "wrong");
    fails(&wrong.output().expect("runs"), 4);
}

#[test]
fn without_the_socket_the_tokens_file_opens() {
    let gateway = Setup::new().start();
    let socket = gateway.announced()["socket"].as_str().expect("a socket");
    fs::remove_file(socket).expect("it was made");
    json(&run(&gateway, &["sessions", "--json"]));
}

#[test]
fn open_and_pair_give_links_that_let_one_browser_in() {
    let gateway = Setup::new().start();
    let code_of = |link: &str| link.split_once("#code=").expect("a code").1.trim().to_owned();
    let opened = run(&gateway, &["open", "--print"]);
    let link = String::from_utf8(opened.stdout).expect("UTF-8");
    let answer = log_in(&gateway, &code_of(&link));
    assert_eq!(text(&answer.body["device"], "scope"), "admin");

    let paired = json(&run(&gateway, &["pair", "--name", "phone", "--json"]));
    assert_eq!(paired["loopbackOnly"], true);
    let link = paired["links"][0].as_str().expect("a link");
    let answer = log_in(&gateway, &code_of(link));
    let device = &answer.body["device"];
    assert_eq!((text(device, "scope"), text(device, "name")), ("control", "phone"));

    let shown = run(&gateway, &["pair", "--scope", "read"]);
    let err = String::from_utf8_lossy(&shown.stderr);
    assert!(err.contains("this machine alone"), "no phone reaches loopback: {err}");
    let out = String::from_utf8_lossy(&shown.stdout);
    assert!(out.starts_with("http://127.0.0.1:") && out.lines().count() == 1, "{out}");
}

#[test]
fn behind_a_public_url_the_code_for_the_camera_leads_there() {
    let gateway =
        Setup::new().set("server", "public_url", "\"https://box.example/agents\"").start();
    let out = run(&gateway, &["pair"]);
    let out = String::from_utf8(out.stdout).expect("UTF-8");
    let (qr, link) = out.trim_end().rsplit_once('\n').expect("a code and a link");
    assert!(link.starts_with("https://box.example/agents/#code="), "{link}");
    assert!(qr.lines().count() > 10 && qr.contains('\u{2580}'), "{qr}");
}

#[test]
fn tokens_and_devices_are_listed_and_revoked_by_name() {
    let gateway = Setup::new().start();
    let made = run(&gateway, &["token", "create", "ci", "--scope", "read", "--expires", "30d"]);
    let secret = String::from_utf8(made.stdout).expect("UTF-8");
    let secret = secret.trim();
    assert!(secret.starts_with("rat_") && !secret.contains(' '), "the token alone: {secret}");
    assert_eq!(gateway.request("GET", "/version", None, Some(secret)).0, 200);
    let err = fails(&run(&gateway, &["token", "create", "ci"]), 6);
    assert!(err.contains("reattach token list"), "{err}");

    let list = run(&gateway, &["token", "list"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(
        list.contains("token file") && list.contains(" read ") && !list.contains(secret),
        "{list}"
    );

    // A program that may read only is told what it lacks.
    let mut reader = command(&["token", "list", "--data-dir"]);
    reader.arg(gateway.setup.data_dir()).env("REATTACH_TOKEN", secret);
    let err = fails(&reader.output().expect("runs"), 4);
    assert!(err.contains("admin"), "{err}");

    json(&run(&gateway, &["token", "revoke", "ci", "--json"]));
    assert_eq!(gateway.request("GET", "/version", None, Some(secret)).0, 401);
    let err = fails(&run(&gateway, &["token", "revoke", "ci"]), 3);
    assert!(err.contains("reattach token list"), "{err}");

    let cookie = log_in(&gateway, gateway.token()).cookie();
    let devices = json(&run(&gateway, &["devices", "--json"]));
    assert_eq!(text(&devices[0], "name"), "Firefox on Linux");
    let id = text(&devices[0], "id")[..8].to_owned();
    assert_eq!(json(&run(&gateway, &["devices", "list", "--json"])), devices);
    let revoked = json(&run(&gateway, &["devices", "revoke", &id, "--json"]));
    assert_eq!(revoked.as_array().map(Vec::len), Some(1));
    assert_eq!(reads(&gateway, "Cookie", &cookie), 401);
    assert_eq!(
        json(&run(&gateway, &["devices", "revoke", "--all", "--json"])),
        Value::Array(vec![])
    );
}

#[test]
fn what_serve_says_off_a_terminal_opens_nothing() {
    let setup = Setup::new();
    let command = setup.command();
    let args: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let mut plain = Command::new(command.get_program());
    plain.args(args.iter().filter(|arg| *arg != "--json"));
    plain.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = plain.spawn().expect("the binary runs");
    let mut out = std::io::BufReader::new(child.stdout.take().expect("it is piped"));
    let mut said = String::new();
    while !said.contains("reattach open") {
        let count = std::io::BufRead::read_line(&mut out, &mut said).expect("UTF-8");
        assert!(count > 0, "it says how to get in: {said}");
    }
    assert!(!said.contains("#code="), "{said}");
    child.kill().expect("it runs");
    child.wait().expect("it was started here");
}
