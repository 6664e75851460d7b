//! Who may come in: links, devices, tokens, scopes, the local socket, a proxy that logs people in.
//! All in the terms of HTTP, on the built binary.

mod commands;
mod credentials;
mod limits;
mod proxy;
mod scopes;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Client, DEADLINE, Gateway};

/// An answer, whole.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    /// The value of a header.
    fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{}: ", name.to_ascii_lowercase());
        self.head.lines().find_map(|line| {
            let same = line.get(..prefix.len())?.eq_ignore_ascii_case(&prefix);
            same.then(|| &line[prefix.len()..])
        })
    }

    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// The cookie that it sets, as the browser sends it back.
    #[track_caller]
    fn cookie(&self) -> String {
        assert_eq!(self.status, 200, "{} {}", self.head, self.body);
        let cookie = self.header("set-cookie").expect("a login gives a cookie");
        cookie.split(';').next().expect("a pair").to_owned()
    }
}

/// One request on a connection of its own, with these headers.
#[track_caller]
fn ask(
    gateway: &Gateway,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Answer {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        let length = body.len();
        let lines = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        request.push_str(&lines);
    }
    request.push_str("\r\n");
    request.push_str(body.as_deref().unwrap_or_default());
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port())).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers and closes");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
}

/// A code for one device.
#[track_caller]
fn code(gateway: &Gateway, body: &Value) -> String {
    let (status, made) = gateway.post("/api/v1/pair", body);
    assert_eq!(status, 201, "{made}");
    made["code"].as_str().expect("a code").to_owned()
}

fn log_in(gateway: &Gateway, code: &str) -> Answer {
    ask(gateway, "POST", "/api/v1/login", &[("User-Agent", FIREFOX)], Some(&json!({"code": code})))
}

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

/// A device of this scope: its id and its cookie.
#[track_caller]
fn device(gateway: &Gateway, scope: &str) -> (String, String) {
    let answer = log_in(gateway, &code(gateway, &json!({"scope": scope})));
    let cookie = answer.cookie();
    let id = answer.body["device"]["id"].as_str().expect("an id").to_owned();
    (id, cookie)
}

/// A token: what its creation gave.
#[track_caller]
fn token(gateway: &Gateway, body: &Value) -> Value {
    let (status, made) = gateway.post("/api/v1/tokens", body);
    assert_eq!(status, 201, "{made}");
    made
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

fn with_cookie(gateway: &Gateway, cookie: &str) -> Result<Client, u16> {
    Client::connect(gateway.port(), "/ws", &[("cookie", cookie.to_owned())])
}

fn with_bearer(gateway: &Gateway, token: &str) -> Result<Client, u16> {
    Client::connect(gateway.port(), "/ws", &[("authorization", format!("Bearer {token}"))])
}

/// What a credential gets for a plain read.
fn reads(gateway: &Gateway, name: &str, value: &str) -> u16 {
    ask(gateway, "GET", "/api/v1/sessions", &[(name, value)], None).status
}

/// Files below `dir` that hold one of these.
fn files_with(dir: &Path, secrets: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("it is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, secrets));
        } else if let Ok(bytes) = fs::read(&path) {
            let holds =
                |secret: &&str| bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            if secrets.iter().any(holds) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}
