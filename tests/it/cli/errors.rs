//! What goes wrong: its exit code, and the next command to try.

use super::{bare, ran, run};
use crate::support::Setup;

#[test]
fn what_was_typed_wrongly_is_a_usage_error() {
    for args in [
        &["frobnicate"][..],
        &["run"],
        &["attach", "--since", "nonsense"],
        &["run", "x", "--timeout", "soon"],
        &["ps", "--server", "http://x", "--data-dir", "y"],
        &["ps", "--server", "ftp://127.0.0.1"],
        &["ps", "--server", "nonsense"],
        &["run", "  "],
        &["abort"],
        &["abort", "s", "--all"],
        &["abort", "--all", "--timeout", "1s"],
        &["serve", "--on-stop", "perhaps"],
    ] {
        ran(bare(args)).expect(2);
    }
    ran(bare(&["--help"])).expect(0);
    ran(bare(&["--version"])).expect(0);
    assert!(!ran(bare(&["help"])).expect(0).out.contains("demo-agent"), "it is hidden");
}

#[test]
fn without_a_server_it_says_how_to_start_one() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let at = dir.path().to_str().expect("test paths are UTF-8");
    for args in [
        &["ps"][..],
        &["sessions"],
        &["permissions"],
        &["logs", "x"],
        &["attach"],
        &["abort", "x"],
        &["abort", "--all"],
        &["allow", "x"],
        &["deny", "x"],
        &["send", "x", "y"],
        &["run", "x"],
    ] {
        let mut command = bare(args);
        command.args(["--data-dir", at]);
        let ran = ran(command).expect(5);
        assert!(ran.err.ends_with("try: reattach serve\n"), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
    }
    let mut version = bare(&["version"]);
    version.args(["--data-dir", at]);
    ran(version).expect(0);
}

#[test]
fn a_server_that_is_gone_is_unreachable() {
    let mut gateway = Setup::new().start();
    gateway.kill();
    let ran = run(&gateway, &["ps", "--json"], 5);
    let error: serde_json::Value = serde_json::from_str(&ran.err).expect("JSON on stderr");
    assert_eq!(error["error"]["code"], "UNREACHABLE", "{error}");
    assert_eq!(error["error"]["exit"], 5);
    assert_eq!(error["error"]["next"], "reattach serve");
}

#[test]
fn names_of_nothing_are_not_found() {
    let gateway = Setup::with_fake().start();
    for args in [
        &["logs", "ghost"][..],
        &["attach", "ghost"],
        &["send", "ghost", "x"],
        &["abort", "ghost"],
        &["attach"],
        &["logs", "-"],
        &["allow", "ghost"],
        &["deny", "ghost"],
    ] {
        let ran = run(&gateway, args, 3);
        assert!(ran.err.contains("\n  try: reattach "), "{args:?}: {}", ran.err);
    }
    let session = gateway.session("fake");
    let elsewhere = "01900000-0000-7000-8000-000000000000:5";
    let ran = run(&gateway, &["logs", &session, "--since", "no-run:5", "--json"], 0);
    assert_eq!(ran.out, "");
    run(&gateway, &["attach", &session, "--since", elsewhere, "--until-complete"], 0);
}

#[test]
fn what_the_server_refuses_is_told_with_its_words() {
    let gateway = Setup::with_fake().start();
    let ran = run(&gateway, &["run", "x", "-a", "nobody"], 2);
    assert!(ran.err.contains("There are: fake"), "{}", ran.err);
    let ran = run(&gateway, &["run", "x", "-a", "fake", "--cwd", "/"], 2);
    assert!(ran.err.contains("try: "), "{}", ran.err);
    run(&gateway, &["run", "x", "-a", "fake", "--cwd", "not/there"], 2);
    gateway.session("fake");
    gateway.session("fake");
    let ran = run(&gateway, &["logs", ""], 3);
    assert!(ran.err.contains("try: reattach sessions"), "{}", ran.err);
}

#[test]
fn the_wrong_token_does_not_open() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let url = gateway.announced()["url"].as_str().expect("a url");
    for args in [&["ps"][..], &["attach", &session]] {
        let mut command = bare(args);
        command.args(["--server", url]);
        let ran = ran(command).expect(4);
        assert!(ran.err.contains("REATTACH_TOKEN"), "{}", ran.err);
        let mut command = bare(args);
        command.args(["--server", url]).env("REATTACH_TOKEN", "wrong");
        super::ran(command).expect(4);
    }
    let mut command = bare(&["ps"]);
    command.args(["--server", url]).env("REATTACH_TOKEN", gateway.token());
    ran(command).expect(0);
}
