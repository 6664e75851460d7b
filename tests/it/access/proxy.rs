//! Those whom a trusted proxy names, and everybody who says that they are one.

use serde_json::json;

use super::ask;
use crate::support::{Gateway, Setup};

fn behind(networks: &str) -> Setup {
    Setup::new().set("auth", "proxy_header", "\"Remote-User\"").set(
        "auth",
        "proxy_networks",
        networks,
    )
}

fn as_ada(gateway: &Gateway, method: &str, path: &str) -> u16 {
    let body = (method == "POST").then(|| json!({}));
    ask(gateway, method, path, &[("Remote-User", "ada")], body.as_ref()).status
}

#[test]
fn whom_the_proxy_names_is_in_as_far_as_its_scope_goes() {
    let gateway = behind("[\"127.0.0.1/32\"]").start();
    assert_eq!(as_ada(&gateway, "GET", "/api/v1/sessions"), 200);
    assert_eq!(as_ada(&gateway, "GET", "/api/v1/tokens"), 403, "control, by default");
    assert_eq!(as_ada(&gateway, "POST", "/api/v1/pair"), 403);
    let nobody = ask(&gateway, "GET", "/api/v1/sessions", &[], None);
    assert_eq!(nobody.status, 401, "the proxy names nobody");
    let twice = [("Remote-User", "ada"), ("Remote-User", "bob")];
    assert_eq!(ask(&gateway, "GET", "/api/v1/sessions", &twice, None).status, 401);
    let wrong = [("Remote-User", "ada"), ("Authorization", "Bearer wrong")];
    assert_eq!(ask(&gateway, "GET", "/api/v1/sessions", &wrong, None).status, 401);
    assert_eq!(gateway.get("/api/v1/tokens").0, 200, "tokens open as ever");

    let admin = behind("[\"127.0.0.1/32\"]").set("auth", "proxy_scope", "\"admin\"").start();
    assert_eq!(as_ada(&admin, "GET", "/api/v1/tokens"), 200);
}

#[test]
fn the_header_of_anybody_else_is_ignored() {
    let gateway = behind("[\"10.0.0.2/32\"]").start();
    assert_eq!(as_ada(&gateway, "GET", "/api/v1/sessions"), 401);
    let plain = Setup::new().start();
    assert_eq!(as_ada(&plain, "GET", "/api/v1/sessions"), 401);
}

#[test]
fn attempts_are_counted_for_whom_the_proxy_speaks() {
    let gateway = Setup::new().set("auth", "proxy_networks", "[\"127.0.0.1\"]").start();
    let guess = |client: &str| {
        let headers = [("X-Forwarded-For", client)];
        ask(&gateway, "POST", "/api/v1/login", &headers, Some(&json!({"code": "wrong"}))).status
    };
    let statuses: Vec<u16> = (0..11).map(|_| guess("192.0.2.7")).collect();
    assert_eq!((statuses[0], statuses[10]), (401, 429), "{statuses:?}");
    assert_eq!(guess("192.0.2.8"), 401, "somebody else");
    // What stands further left may be anybody's invention.
    assert_eq!(guess("192.0.2.9, 192.0.2.7"), 429);

    let direct = Setup::new().start();
    let lie = |n: usize| {
        let client = format!("192.0.2.{n}");
        let headers = [("X-Forwarded-For", client.as_str())];
        ask(&direct, "POST", "/api/v1/login", &headers, Some(&json!({"code": "wrong"}))).status
    };
    let statuses: Vec<u16> = (0..11).map(lie).collect();
    assert_eq!(statuses[10], 429, "nobody may say that they are somebody else: {statuses:?}");
}

#[test]
fn a_header_that_anybody_could_send_is_refused() {
    let (code, stderr) = Setup::new().set("auth", "proxy_header", "\"Remote-User\"").refused();
    assert_eq!(code, Some(78), "{stderr}");
    assert!(stderr.contains("auth.proxy_networks"), "{stderr}");
    for (key, value) in [
        ("proxy_networks", "[\"0.0.0.0/0\"]"),
        ("proxy_networks", "[\"somewhere\"]"),
        ("proxy_header", "\"Authorization\""),
        ("proxy_header", "\"not a header\""),
        ("proxy_scope", "\"root\""),
    ] {
        let (code, stderr) = Setup::new().set("auth", key, value).refused();
        assert_eq!(code, Some(78), "{key} = {value}: {stderr}");
        assert!(stderr.contains(key), "{stderr}");
    }
}
