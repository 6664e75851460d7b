//! Whether it lives, whether it takes work, and how it stops.

use serde_json::{Value, json};

use super::{ask, bearer};
use crate::support::{Setup, begin, eventually};

#[test]
fn who_has_no_credential_learns_only_whether_it_is_ready() {
    let gateway = Setup::new().start();
    let bearer = bearer(&gateway);
    for (path, headers, body) in [
        ("/healthz", vec![], json!({"ok": true})),
        ("/readyz", vec![], json!({"ok": true})),
        ("/healthz", vec![bearer.as_str()], json!({"ok": true})),
    ] {
        let (status, _, text) = ask(&gateway, "GET", path, &headers);
        assert_eq!((status, serde_json::from_str(&text).ok()), (200, Some(body)), "{path}");
    }
    let (status, ready) = gateway.get("/readyz");
    assert_eq!((status, &ready["ok"], &ready["reasons"]), (200, &json!(true), &json!([])));
    assert!(ready["warnings"].is_array(), "{ready}");
    let (status, _, _) = ask(&gateway, "GET", "/version", &[]);
    assert_eq!(status, 401);
    let (_, version) = gateway.get("/version");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"), "{version}");
    assert!(version.get("revision").is_some(), "{version}");
    for path in ["/healthz", "/readyz", "/version", "/metrics"] {
        assert_eq!(gateway.post(path, &json!({})).0, 405, "{path}");
    }
}

#[test]
fn a_drain_is_seen_by_all_and_ends_in_order() {
    let mut setup = Setup::with_fake();
    setup.arguments.extend(["--on-stop".into(), "abort".into()]);
    let mut gateway = setup.start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "takes its time");
    // It is stopped by the whole ladder, which takes seconds: time to look.
    agent.ignore_signals();
    let mut other = gateway.connect();
    other.barrier();
    gateway.signal(rustix::process::Signal::TERM);
    for client in [&mut client, &mut other] {
        let told =
            client.expect("the server says that it stops", |f| f.kind() == "server_draining");
        assert_eq!(told.json["mode"], "abort");
    }
    let (status, _, text) = ask(&gateway, "GET", "/readyz", &[]);
    let body: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, body), (503, json!({"ok": false})), "no details for everybody");
    let (status, ready) = gateway.get("/readyz");
    assert_eq!((status, &ready["reasons"]), (503, &json!([{"code": "draining"}])), "{ready}");
    assert_eq!(gateway.request("GET", "/healthz", None, None).0, 200, "it lives");
    let refused = other.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "more",
    }));
    assert_eq!(refused.json["code"], "SHUTTING_DOWN", "{}", refused.text);
    let runs = format!("/api/v1/sessions/{session}/runs");
    let (status, refused) = gateway.post(&runs, &json!({"content": "more"}));
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("SHUTTING_DOWN")), "{refused}");
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    let ended = client.read_to_end();
    assert_eq!(format!("{ended:?}"), "Closed(1001)");
    assert!(gateway.wait().success(), "a drain ends with 0");
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut setup = Setup::with_fake();
    setup.arguments.extend(["--on-stop".into(), "abort".into()]);
    let mut gateway = setup.start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, agent) = begin(&gateway, &mut client, &session, "takes its time");
    agent.ignore_signals();
    gateway.signal(rustix::process::Signal::TERM);
    client.expect("the server says that it stops", |f| f.kind() == "server_draining");
    gateway.signal(rustix::process::Signal::TERM);
    assert_eq!(gateway.wait().code(), Some(128 + 15));
}

#[test]
fn a_store_that_cannot_write_is_a_reason_until_it_can() {
    // The database fits, what the run says does not.
    let gateway = Setup::with_fake().env("REATTACH_TEST_MAX_PAGE_COUNT", "120").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (_, agent) = begin(&gateway, &mut client, &session, "much");
    agent.flood(20_000, 1000, "x");
    eventually("the store is full", || (gateway.get("/readyz").0 == 503).then_some(()));
    let (_, ready) = gateway.get("/readyz");
    let reason = json!([{"code": "store_unavailable", "detail": "FULL"}]);
    assert_eq!((&ready["ok"], &ready["reasons"]), (&json!(false), &reason), "{ready}");
}
