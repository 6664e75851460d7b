//! What each scope may do: a table of all routes and all frames.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{ask, text, token, with_bearer};
use crate::support::{Gateway, Setup};

const READ: usize = 0;
const CONTROL: usize = 1;
const ADMIN: usize = 2;

/// Every route and the scope that it needs. `{}` is an id that nobody has: what is allowed gets as
/// far as not finding it.
const ROUTES: &[(&str, &str, usize)] = &[
    ("GET", "sessions", READ),
    ("POST", "sessions", CONTROL),
    ("GET", "sessions/{}", READ),
    ("PATCH", "sessions/{}", CONTROL),
    ("DELETE", "sessions/{}", CONTROL),
    ("GET", "sessions/{}/runs", READ),
    ("POST", "sessions/{}/runs", CONTROL),
    ("GET", "sessions/{}/events", READ),
    ("GET", "sessions/{}/queue", READ),
    ("DELETE", "sessions/{}/queue/{}", CONTROL),
    ("POST", "sessions/{}/queue/resume", CONTROL),
    ("GET", "sessions/{}/uploads", READ),
    ("POST", "sessions/{}/uploads", CONTROL),
    ("DELETE", "sessions/{}/uploads/{}", CONTROL),
    ("GET", "runs", READ),
    ("GET", "runs/{}", READ),
    ("POST", "runs/{}/abort", CONTROL),
    ("GET", "runs/{}/events/{}", READ),
    ("GET", "projects", READ),
    ("PATCH", "projects/{}", CONTROL),
    ("GET", "providers", READ),
    ("GET", "folders", READ),
    ("GET", "openapi.json", READ),
    ("GET", "frames.schema.json", READ),
    ("GET", "permissions", READ),
    ("POST", "permissions/{}", CONTROL),
    ("POST", "logout", READ),
    ("POST", "pair", ADMIN),
    ("GET", "devices", ADMIN),
    ("DELETE", "devices/{}", ADMIN),
    ("GET", "audit", ADMIN),
    ("GET", "notifications", ADMIN),
    ("POST", "notifications/test", ADMIN),
    ("GET", "tokens", ADMIN),
    ("POST", "tokens", ADMIN),
    ("DELETE", "tokens/{}", ADMIN),
];

/// Open to everybody.
const OPEN: &[(&str, &str)] = &[("POST", "login")];

const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

fn tokens(gateway: &Gateway) -> [String; 3] {
    ["read", "control", "admin"].map(|scope| {
        let made = token(gateway, &json!({"name": scope, "scope": scope}));
        text(&made, "token").to_owned()
    })
}

/// The routes as the program has them, `METHOD path`.
fn routes_of_the_program() -> BTreeSet<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/api/mod.rs");
    let source = std::fs::read_to_string(path).expect("it is there");
    let arms = source.split("(\"").skip(1).filter_map(|rest| {
        let (method, rest) = rest.split_once("\", [")?;
        let (segments, rest) = rest.split_once(']')?;
        let is_arm = rest.trim_start().starts_with([')', ',']);
        let is_method = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
        if !is_arm || !is_method {
            return None;
        }
        let segments = segments.split(',').map(|one| match one.trim().strip_prefix('"') {
            Some(word) => word.trim_end_matches('"').to_owned(),
            None => "{}".to_owned(),
        });
        Some(format!("{method} {}", segments.collect::<Vec<_>>().join("/")))
    });
    arms.collect()
}

#[test]
fn every_route_stands_in_the_table() {
    let table = ROUTES.iter().map(|(method, path, _)| (method, path));
    let table = table.chain(OPEN.iter().map(|(method, path)| (method, path)));
    let table: BTreeSet<String> = table.map(|(method, path)| format!("{method} {path}")).collect();
    let program = routes_of_the_program();
    assert!(program.len() >= 26, "{program:?}");
    let missing: Vec<_> = program.difference(&table).collect();
    let gone: Vec<_> = table.difference(&program).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not in the table: {missing:?}; gone: {gone:?}");
}

#[test]
fn a_scope_opens_its_routes_and_no_others() {
    let gateway = Setup::new().start();
    let tokens = tokens(&gateway);
    for (method, path, needed) in ROUTES {
        let path = format!("/api/v1/{}", path.replace("{}", NOBODY));
        // Nothing comes of it: a body that no write takes.
        let body = matches!(*method, "POST" | "PATCH").then(|| json!({"scope": "none"}));
        let status = |headers: &[(&str, &str)]| {
            let answer = ask(&gateway, method, &path, headers, body.as_ref());
            (answer.status, answer.code().to_owned())
        };
        assert_eq!(status(&[]).0, 401, "{method} {path} without a credential");
        for (scope, token) in tokens.iter().enumerate() {
            let bearer = format!("Bearer {token}");
            let (status, code) = status(&[("Authorization", &bearer)]);
            let refused = (status, code.as_str()) == (403, "FORBIDDEN");
            assert_eq!(refused, scope < *needed, "{method} {path} with {scope}: {status} {code}");
            assert!(status != 401 && status < 500, "{method} {path} with {scope}: {status}");
        }
    }
    for path in ["/version", "/metrics"] {
        assert_eq!(ask(&gateway, "GET", path, &[], None).status, 401, "{path}");
        assert_eq!(gateway.request("GET", path, None, Some(&tokens[READ])).0, 200, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&gateway, "GET", path, &[], None).status, 200, "{path}");
    }
    for (method, path) in OPEN {
        let body = json!({"code": "wrong"});
        let answer = ask(&gateway, method, &format!("/api/v1/{path}"), &[], Some(&body));
        assert_eq!(answer.status, 401, "it is tried: {}", answer.body);
    }
}

#[test]
fn what_acts_needs_control_on_a_websocket_too() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let tokens = tokens(&gateway);
    let acting = [
        json!({"type": "chat.send", "sessionId": session, "content": "x"}),
        json!({"type": "chat.abort", "sessionId": session}),
        json!({"type": "chat.permission-response", "requestId": "r", "allow": true}),
    ];
    let reading = [
        json!({"type": "hello", "protocol": 1}),
        json!({"type": "ping"}),
        json!({"type": "chat.subscribe", "sessions": [{"sessionId": session}]}),
        json!({"type": "chat.unsubscribe", "sessions": [session]}),
    ];
    for (scope, token) in tokens.iter().enumerate() {
        let mut client = with_bearer(&gateway, token).expect("each may connect");
        let mut code = |frame: &Value| client.request(frame).json["code"].clone();
        for frame in &reading {
            assert_ne!(code(frame), "FORBIDDEN", "{frame} with {scope}");
        }
        for frame in &acting {
            assert_eq!(code(frame) == "FORBIDDEN", scope < CONTROL, "{frame} with {scope}");
        }
    }
    let (_, runs) = gateway.get("/api/v1/runs");
    let runs = runs["items"].as_array().expect("a list").len();
    assert!(runs >= 1, "those who may have sent it");
    // What is not understood is not understood, whoever says it.
    let mut client = with_bearer(&gateway, &tokens[READ]).expect("it may connect");
    assert_eq!(client.request(&json!({"type": "chat.nope"})).json["code"], "UNKNOWN_MESSAGE_TYPE");
}
