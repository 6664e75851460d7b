//! The log: its shape, the ids of requests in it, and what is never in it.

use serde_json::{Value, json};

use super::{ask, asked, bearer, delivered};
use crate::support::{Client, Gateway, Setup, begin, eventually};

/// The lines of the log so far, each an object; one that is still being written is left out.
#[track_caller]
fn lines(gateway: &Gateway) -> Vec<Value> {
    let text = gateway.stderr();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| -> Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    whole.lines().map(parse).collect()
}

/// Waits for the line of a request.
#[track_caller]
fn line_of(gateway: &Gateway, request: &str) -> Value {
    eventually(&format!("the log has {request}"), || {
        lines(gateway).into_iter().find(|line| line["request_id"] == request)
    })
}

fn logging(level: &str) -> Setup {
    // Where no terminal is, `auto` is JSON.
    Setup::with_fake().env("REATTACH_LOG", level).env("REATTACH_LOG_FORMAT", "auto")
}

#[test]
fn a_request_has_an_id_in_its_answer_its_error_and_the_log() {
    let gateway = logging("debug").start();
    let bearer = bearer(&gateway);
    let id_in = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("X-Request-Id: "));
        line.expect("every answer names its request").to_owned()
    };
    let (status, head, _) =
        ask(&gateway, "GET", "/api/v1/runs", &[&bearer, "X-Request-Id: a.B_1-c"]);
    assert_eq!((status, id_in(&head).as_str()), (200, "a.B_1-c"));
    let line = line_of(&gateway, "a.B_1-c");
    for (field, value) in [
        ("level", json!("debug")),
        ("target", json!("reattach::access")),
        ("msg", json!("request")),
        ("method", json!("GET")),
        ("route", json!("/api/v1/runs")),
        ("status", json!(200)),
        ("peer", json!("127.0.0.1")),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert!(line["ms"].is_number() && line["bytes"].is_number(), "{line}");
    assert!(line["ts"].as_str().is_some_and(|ts| ts.ends_with('Z')), "{line}");

    // What cannot stand in a log is replaced.
    let path = "/api/v1/sessions/00000000-0000-0000-0000-000000000000";
    let (status, head, body) = ask(&gateway, "GET", path, &[&bearer, "X-Request-Id: a b\"c"]);
    let id = id_in(&head);
    assert_eq!(status, 404);
    assert!(!id.contains(' ') && id.len() >= 16, "{id}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (&body["error"]["code"], &body["error"]["requestId"]),
        (&json!("SESSION_NOT_FOUND"), &json!(id))
    );
    assert_eq!(line_of(&gateway, &id)["route"], "/api/v1/sessions/{id}");

    // So do refusals of every kind.
    for (headers, expected) in [
        (vec!["X-Request-Id: r-401"], (401, "r-401")),
        (
            vec![bearer.as_str(), "X-Request-Id: r-403", "Origin: http://evil.example"],
            (403, "r-403"),
        ),
    ] {
        let (status, head, body) = ask(&gateway, "GET", "/api/v1/runs", &headers);
        assert_eq!((status, id_in(&head).as_str()), expected);
        assert!(body.contains(&format!("\"requestId\":\"{}\"", expected.1)), "{body}");
        assert_eq!(line_of(&gateway, expected.1)["level"], "info");
    }
    let (status, head, _) = ask(&gateway, "PRI", "no-path", &[]);
    assert_eq!(status, 400);
    assert_eq!(line_of(&gateway, &id_in(&head))["route"], "other");
    let session = gateway.session("fake");
    eventually("a write has a line at info", || {
        lines(&gateway).into_iter().find(|line| {
            line["route"] == "/api/v1/sessions"
                && line["method"] == "POST"
                && line["level"] == "info"
        })
    });
    assert!(!session.is_empty());
    let headers = [
        ("authorization", format!("Bearer {}", gateway.token())),
        ("x-request-id", "ws-1".to_owned()),
    ];
    let Ok(client) = Client::connect(gateway.port(), "/ws", &headers) else { panic!("it opens") };
    assert_eq!(line_of(&gateway, "ws-1")["status"], 101);
    client.close();
    eventually("its end is logged", || {
        lines(&gateway).into_iter().find(|line| {
            line["request_id"] == "ws-1"
                && line["msg"] == "websocket closed"
                && line["reason"] == "by the client"
        })
    });
}

#[test]
fn at_info_reads_are_not_logged() {
    let gateway = logging("info").start();
    let bearer = bearer(&gateway);
    ask(&gateway, "GET", "/api/v1/runs", &[&bearer, "X-Request-Id: quiet"]);
    ask(&gateway, "GET", "/api/v1/runs", &["X-Request-Id: refused"]);
    line_of(&gateway, "refused");
    assert!(lines(&gateway).iter().all(|line| line["request_id"] != "quiet"));
}

/// Secrets in every place in which they travel, with everything logged that may be.
#[test]
fn nothing_that_is_said_or_that_opens_is_ever_logged() {
    let gateway = logging("debug").start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "prompt-5ecret");
    agent.say("output-5ecret");
    agent.emit(&[json!({"kind": "tool_use", "toolId": "t", "toolName": "Bash",
        "toolInput": {"command": "tool-5ecret"}})]);
    agent.emit_lines(vec!["raw-5ecret".into()]);
    agent.stderr("stderr-5ecret\n");
    let request = asked(&mut client, &session, &agent, &json!({"command": "input-5ecret"}));
    let answer = json!({
        "type": "chat.permission-response", "requestId": request, "allow": true,
        "updatedInput": {"command": "updated-5ecret"}, "message": "message-5ecret",
    });
    assert_eq!(client.request(&answer).kind(), "ack");
    delivered(&mut client, &session);
    client.send_raw(tungstenite::Message::text("{\"type\": \"frame-5ecret\"}"));
    client.send_raw(tungstenite::Message::text("no JSON, frame-5ecret"));
    client.barrier();
    agent.finish();
    client.expect_complete(&run);
    let (failed, agent) = begin(&gateway, &mut client, &session, "prompt-5ecret again");
    agent.stderr("stderr-5ecret\n");
    agent.exit(3);
    client.expect_complete(&failed);

    let bearer = bearer(&gateway);
    let runs = format!("/api/v1/sessions/{session}/runs");
    gateway.post(&runs, &json!({"content": 7, "options": {"x": "body-5ecret"}}));
    for headers in [
        vec!["Authorization: Bearer token-5ecret", "X-Request-Id: q1"],
        vec!["Cookie: reattach_1=cookie-5ecret", "X-Request-Id: q2"],
        vec![bearer.as_str(), "X-Request-Id: q3", "User-Agent: agent-5ecret"],
    ] {
        ask(&gateway, "GET", "/api/v1/sessions?q=query-5ecret&token=query-5ecret", &headers);
    }
    let wrong = json!({"code": "login-5ecret"});
    gateway.request("POST", "/api/v1/login", Some(&wrong), None);
    let title = json!({"title": "title-5ecret"});
    gateway.request(
        "PATCH",
        &format!("/api/v1/sessions/{session}"),
        Some(&title),
        Some(gateway.token()),
    );
    let token = gateway.token().to_owned();
    client.close();
    line_of(&gateway, "q3");
    let mut gateway = gateway;
    gateway.terminate();
    let log = gateway.stderr();
    assert!(log.contains("\"level\":\"debug\"") && log.lines().count() > 10, "{log}");
    let planted = log.lines().find(|line| line.contains("5ecret"));
    assert_eq!(planted, None, "nothing of it stands there");
    assert!(!log.contains(&token), "nor the token");
    let project = gateway.setup.project();
    assert!(!log.contains(project.to_str().expect("UTF-8")), "nor where people work");
}
