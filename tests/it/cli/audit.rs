//! `reattach audit`.

use serde_json::json;

use super::run;
use crate::support::{Setup, begin};

#[test]
fn the_trail_is_a_table_for_people_and_an_array_for_programs() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run_id, agent) = begin(&gateway, &mut client, &session, "go");
    agent.policy(&[], Some(0), Some(0));
    client.request(&json!({"type": "chat.abort", "sessionId": session}));
    client.expect_complete(&run_id);
    let ran = run(&gateway, &["audit", "--since", "1h", "--session", &session[..8], "--json"], 0);
    let rows = ran.json();
    assert_eq!(rows.as_array().expect("an array").len(), 1, "{rows}");
    assert_eq!((&rows[0]["what"], &rows[0]["runId"]), (&json!("abort_asked"), &json!(run_id)));
    let ran = run(&gateway, &["audit"], 0);
    assert!(ran.out.contains("WHAT") && ran.out.contains("abort_asked"), "{}", ran.out);
    assert!(ran.out.contains("configuration"), "{}", ran.out);
    let ran = run(&gateway, &["audit", "--what", "nothing_like_it"], 0);
    assert_eq!((ran.out.as_str(), ran.err.trim()), ("", "nothing was done"));
    let gone = "00000000-0000-4000-8000-000000000000";
    assert_eq!(run(&gateway, &["audit", "--session", gone, "--json"], 0).json(), json!([]));
    run(&gateway, &["audit", "--session", "no-such"], 3);
    run(&gateway, &["audit", "--since", "soon"], 2);
}
