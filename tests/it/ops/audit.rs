//! The audit trail: what is in it, and what never is.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{ask, asked, bearer, delivered};
use crate::support::{Gateway, Setup, begin};

/// The trail, the oldest first, without the configuration.
#[track_caller]
fn trail(gateway: &Gateway, query: &str) -> Vec<Value> {
    let (status, page) = gateway.get(&format!("/api/v1/audit?{query}"));
    assert_eq!(status, 200, "{page}");
    assert_eq!(page["nextCursor"], Value::Null, "{page}");
    let items = page["items"].as_array().expect("a list").iter().rev();
    items.filter(|row| row["what"] != "configuration").cloned().collect()
}

fn words(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["what"].as_str().expect("a word")).collect()
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn answers_aborts_and_deletions_are_there_with_who_and_no_more_than_hashes() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    client.request(&json!({"type": "hello", "protocol": 1, "client": "the-phone"}));
    let (run, agent) = begin(&gateway, &mut client, &session, "prompt-5ecret");
    let request = asked(&mut client, &session, &agent, &json!({"command": "rm -rf 5ecret"}));
    let event =
        client.seen.iter().find(|f| f.kind() == "permission_request").expect("seen").clone();
    let answer = json!({
        "type": "chat.permission-response", "requestId": request, "allow": true,
        "updatedInput": {"command": "ls 5ecret"}, "message": "5ecret",
    });
    assert_eq!(client.request(&answer).kind(), "ack");
    delivered(&mut client, &session);
    // It takes the wish and goes on, so that it can be told twice.
    agent.policy(&[], None, None);
    for _ in 0..2 {
        let abort = client.request(&json!({"type": "chat.abort", "sessionId": session}));
        assert_eq!(abort.kind(), "ack", "{}", abort.text);
    }
    agent.exit(0);
    client.expect_complete(&run);

    let rows = trail(&gateway, "");
    assert_eq!(words(&rows), ["permission_answered", "permission_delivered", "abort_asked"]);
    for row in &rows {
        // Whatever a client calls itself: its token has a name.
        assert_eq!(row["by"], json!({"kind": "api", "name": "token file"}), "{row}");
        assert_eq!((&row["sessionId"], &row["runId"]), (&json!(session), &json!(run)), "{row}");
    }
    let detail = &rows[0]["detail"];
    // The bytes of the input as they stand in the event.
    let (_, rest) = event.text.split_once("\"input\":").expect("an input");
    let input = &rest[..=rest.find('}').expect("an object")];
    assert_eq!(detail["inputSha256"], sha256(input), "{input} {detail}");
    assert_eq!(detail["updatedInputSha256"], sha256("{\"command\":\"ls 5ecret\"}"), "{detail}");
    assert_eq!((&detail["edited"], &detail["decision"]), (&json!(true), &json!("allow")));
    assert_eq!((&detail["tool"], &detail["requestId"]), (&json!("Bash"), &json!(request)));
    assert_eq!(detail["seq"], event.json["seq"], "{detail}");

    // It outlives what it is about, and a kill.
    let path = format!("/api/v1/sessions/{session}");
    let (status, _) = gateway.request("DELETE", &path, None, Some(gateway.token()));
    assert_eq!(status, 204);
    let mut gateway = gateway;
    gateway.kill();
    let gateway = gateway.restart();
    let of_session = trail(&gateway, &format!("session={session}"));
    assert_eq!(of_session[..3], rows, "nothing changed");
    assert_eq!(words(&of_session[3..]), ["session_deleted"]);
    assert_eq!(of_session[3]["by"]["kind"], "api");
    assert_eq!(words(&trail(&gateway, "what=abort_asked")), ["abort_asked"]);
    assert_eq!(trail(&gateway, "since=2100-01-01T00:00:00Z"), Vec::<Value>::new());
    assert_eq!(trail(&gateway, "since=2020-01-01T00:00:00Z").len(), 4);
    let (_, all) = gateway.get("/api/v1/audit");
    assert!(!all.to_string().contains("5ecret"), "{all}");

    // Page by page it is the same.
    let (mut cursor, mut paged) = (String::new(), Vec::new());
    loop {
        let (_, page) = gateway.get(&format!("/api/v1/audit?limit=1&cursor={cursor}"));
        paged.extend(page["items"].as_array().expect("a list").clone());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(json!(paged), all["items"]);
    for bad in ["since=soon", "session=x", "limit=0", "cursor=x"] {
        let (status, answer) = gateway.get(&format!("/api/v1/audit?{bad}"));
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("INVALID_FIELD")), "{bad}");
    }
    assert_eq!(ask(&gateway, "GET", "/api/v1/audit", &[]).0, 401);
    assert_eq!(ask(&gateway, "DELETE", "/api/v1/audit", &[&bearer(&gateway)]).0, 405);
}

#[test]
fn another_configuration_is_told_once_and_its_secrets_never() {
    // A session's commit follows that of the configuration.
    let configurations = |gateway: &Gateway| -> Vec<Value> {
        gateway.session("fake");
        let (_, page) = gateway.get("/api/v1/audit?what=configuration");
        page["items"].as_array().expect("a list").clone()
    };
    let mut gateway = Setup::with_fake().set("timeouts", "agent_idle", "\"5m\"").start();
    let first = configurations(&gateway);
    assert_eq!(first.len(), 1);
    assert_eq!((&first[0]["detail"]["first"], &first[0]["by"]), (&json!(true), &Value::Null));
    gateway.terminate();
    let mut gateway = gateway.restart();
    assert_eq!(configurations(&gateway), first, "it is the same");
    gateway.terminate();
    gateway.setup.env.push(("REATTACH_TIMEOUTS_AGENT_IDLE", "7m".into()));
    let mut gateway = gateway.restart();
    let second = configurations(&gateway);
    assert_eq!(second.len(), 2);
    assert_eq!(second[0]["detail"]["changed"], json!(["timeouts.agent_idle"]), "{second:?}");
    assert_ne!(second[0]["detail"]["sha256"], second[1]["detail"]["sha256"]);
    gateway.terminate();
    gateway.setup.arguments.extend(["--on-stop".into(), "abort".into()]);
    let gateway = gateway.restart();
    let third = configurations(&gateway);
    assert_eq!(third[0]["detail"]["changed"], json!(["--on-stop"]), "{third:?}");
}
