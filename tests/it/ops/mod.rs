//! What an operator sees: metrics, readiness, logs, request ids, the audit trail, a drain.

mod audit;
mod health;
mod logs;
mod metrics;
mod openmetrics;

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Agent, Client, DEADLINE, Gateway};

/// A request with more headers: status, head, body.
#[track_caller]
fn ask(gateway: &Gateway, method: &str, path: &str, headers: &[&str]) -> (u16, String, String) {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    for header in headers {
        request.push_str(&format!("{header}\r\n"));
    }
    request.push_str("Connection: close\r\n\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port())).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), head.to_owned(), body.to_owned())
}

/// The header that opens everything.
fn bearer(gateway: &Gateway) -> String {
    format!("Authorization: Bearer {}", gateway.token())
}

/// Has the agent ask for something; gives the request's id as `client` sees it.
#[track_caller]
fn asked(client: &mut Client, session: &str, agent: &Agent, input: &Value) -> String {
    agent.emit(&[json!({
        "kind": "permission_request", "requestId": "own", "toolName": "Bash", "input": input,
    })]);
    let asked = client.expect("the request", |f| f.is("permission_request", session));
    asked.json["requestId"].as_str().expect("an id").to_owned()
}

/// Waits until an answer has reached the agent.
#[track_caller]
fn delivered(client: &mut Client, session: &str) {
    client.expect("the delivery", |f| {
        f.is("permission_resolved", session) && f.json["state"] == "delivered"
    });
}
