//! Guessing is slow and seen, and keeps nobody out who has the right secret.

use serde_json::json;

use super::{ask, code, device, log_in, reads};
use crate::support::Setup;

#[test]
fn wrong_tokens_run_out_and_right_ones_do_not() {
    let gateway = Setup::new().start();
    let (_, cookie) = device(&gateway, "read");
    let guess = |n: usize| {
        let value = format!("Bearer rat_{n:064}");
        ask(&gateway, "GET", "/api/v1/sessions", &[("Authorization", &value)], None)
    };
    // The same wrong one again is no new guess: a program with an old token hears that it is old.
    for _ in 0..50 {
        assert_eq!(guess(0).status, 401);
    }
    let last = (1..50).map(guess).fold(None, |_, answer| Some(answer)).expect("some");
    assert_eq!((last.status, last.code()), (429, "TOO_MANY_ATTEMPTS"));
    let wait: u64 = last.header("retry-after").and_then(|v| v.parse().ok()).expect("seconds");
    assert!(wait > 0);
    assert_eq!(gateway.get("/version").0, 200, "whoever has the token is not kept out");
    assert_eq!(reads(&gateway, "Cookie", &cookie), 200);
    assert_eq!(log_in(&gateway, &code(&gateway, &json!({}))).status, 200);
}

#[test]
fn wrong_cookies_count_as_well() {
    let gateway = Setup::new().start();
    let name = format!("reattach_{}", gateway.port());
    let statuses: Vec<u16> =
        (0..50).map(|n| reads(&gateway, "Cookie", &format!("{name}={n:064}"))).collect();
    assert_eq!(statuses[0], 401);
    assert_eq!(statuses[49], 429, "{statuses:?}");
    // A cookie of somebody else's is none of ours.
    assert_eq!(reads(&gateway, "Cookie", "session=1"), 401);
    // The page is everybody's, so that its owner can log in.
    let page = ask(&gateway, "GET", "/", &[("Cookie", &format!("{name}=x"))], None);
    assert_eq!(page.status, 200);
}

#[test]
fn links_are_few() {
    let gateway = Setup::new().start();
    let first = code(&gateway, &json!({}));
    for _ in 0..64 {
        code(&gateway, &json!({}));
    }
    assert_eq!(log_in(&gateway, &first).status, 401, "the oldest had to go");
}
