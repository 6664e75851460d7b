//! `--server https://...`: the built binary through a proxy that ends TLS, by an authority of the
//! test's own.

use std::process::Command;

use serde_json::Value;

use super::proxies::{Authority, Front};
use super::{bare, json_lines, ran};
use crate::support::{Gateway, Setup};

/// A gateway behind a proxy that ends TLS.
fn behind_tls() -> (Gateway, Authority, Front) {
    let setup = Setup::with_fake();
    let authority = Authority::new(setup.root.path());
    let front = authority.front();
    let url = format!("\"https://localhost:{}\"", front.port);
    let gateway = setup.set("server", "public_url", &url).start();
    front.leads_to(gateway.port());
    (gateway, authority, front)
}

fn command(gateway: &Gateway, url: &str, args: &[&str]) -> Command {
    let mut command = bare(args);
    command.args(["--server", url]).env("REATTACH_TOKEN", gateway.token());
    command.env_remove("REATTACH_CA_FILE").current_dir(gateway.setup.project());
    command
}

#[test]
fn requests_and_events_go_through_tls() {
    let (gateway, authority, front) = behind_tls();
    let url = format!("https://localhost:{}", front.port);
    let trusting = |args: &[&str]| {
        let mut command = command(&gateway, &url, args);
        command.env("REATTACH_CA_FILE", &authority.file);
        command
    };
    let version = ran(trusting(&["version", "--json"])).expect(0).json();
    assert_eq!(version["server"]["version"], env!("CARGO_PKG_VERSION"), "{version}");

    let run = super::Live::start(trusting(&["run", "x", "-a", "fake", "--json"]));
    let (agent, _) = gateway.hub().prompted("fake", "x");
    // Longer than a record of TLS and than a buffer of its socket: all of it is to be seen.
    let long = "0123456789".repeat(20_000);
    for _ in 0..20 {
        agent.say(&long);
    }
    agent.complete();
    let events = json_lines(&run.end().expect(0).out);
    let texts = events.iter().filter(|event| event["kind"] == "text").count();
    assert_eq!(texts, 20, "no event is left in a buffer");
    assert_eq!(events.last().map(|event| &event["kind"]), Some(&Value::from("complete")));
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused() {
    let (gateway, authority, front) = behind_tls();
    let url = format!("https://localhost:{}", front.port);
    for args in [&["sessions"][..], &["attach", "-"]] {
        let ran = ran(command(&gateway, &url, args)).expect(5);
        assert!(ran.err.contains("not trusted"), "{}", ran.err);
        assert!(ran.err.contains("REATTACH_CA_FILE"), "it says what to do: {}", ran.err);
    }
    // The address is not on the certificate.
    let by_number = format!("https://127.0.0.1:{}", front.port);
    let mut other_name = command(&gateway, &by_number, &["sessions"]);
    other_name.env("REATTACH_CA_FILE", &authority.file);
    let refused = ran(other_name).expect(5);
    assert!(refused.err.contains("a name that stands on the certificate"), "{}", refused.err);
    // Nor is a file without one a certificate.
    for file in ["nowhere.pem", "config.toml"] {
        let mut nothing = command(&gateway, &url, &["sessions"]);
        nothing.env("REATTACH_CA_FILE", gateway.setup.root.path().join(file));
        let refused = ran(nothing).expect(78);
        assert!(refused.err.contains(file), "{}", refused.err);
    }
    // What does not speak TLS is not spoken to without it.
    let plain = format!("https://localhost:{}", gateway.port());
    let mut wrong = command(&gateway, &plain, &["sessions"]);
    wrong.env("REATTACH_CA_FILE", &authority.file);
    ran(wrong).expect(5);
}
