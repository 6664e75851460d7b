//! Conversations over real sockets with a site that tells what it got.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::*;

/// A site that tells what it got.
struct Echo(Gate);

impl Site for Echo {
    type Events = &'static str;

    fn gate(&self) -> &Gate {
        &self.0
    }

    fn body_bytes_max(&self) -> u64 {
        1 << 20
    }

    fn caller(&self, head: &Head, _: Peer) -> Result<Option<Caller>, Refused> {
        if head.path == "/locked" {
            return Err(Refused::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "Say who you are."));
        }
        Ok(None)
    }

    fn told(&self, _: &Exchange<'_>) {}

    fn answer(&self, request: &Request) -> Answer<Self::Events> {
        let path = &request.head.path;
        match path.as_str() {
            "/ws" => Answer::WebSocket,
            "/stream" => Answer::Events(Response::empty(StatusCode::OK), "told"),
            "/missing" => Answer::Response(Response::error(StatusCode::NOT_FOUND, "NOT_FOUND", "")),
            _ => {
                let body = String::from_utf8_lossy(&request.body);
                let echo = json!({ "path": path, "body": body });
                Answer::Response(Response::json(StatusCode::OK, &echo))
            }
        }
    }
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().name("conn-test".into()).spawn(work).expect("a thread")
}

/// Serves one connection; the handle gives what was left for a WebSocket.
fn serve() -> (TcpStream, thread::JoinHandle<Option<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let server = listener.accept().expect("accepted").0;
    let handle = spawn(move || {
        server.set_nonblocking(true).expect("a socket");
        let waiter = Waiter::new().expect("a descriptor");
        let gate = Gate::new("127.0.0.1".parse().expect("an address"), &[], "http://x/base");
        let echo = Echo(gate.expect("a gate"));
        let upgrade = converse(&Stream::Tcp(server), Peer::Local, &waiter, &echo);
        upgrade.map(|upgrade| match upgrade {
            Upgrade::WebSocket { leftover, .. } => leftover,
            Upgrade::Events { events, .. } => events.into(),
        })
    });
    (client, handle)
}

/// Sends `bytes` and reads until the server closes.
fn exchange(bytes: &[u8]) -> String {
    let (mut client, server) = serve();
    client.write_all(bytes).expect("sent");
    let mut text = String::new();
    client.read_to_string(&mut text).expect("an answer and the end");
    drop(client);
    server.join().expect("no panic");
    text
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

const JSON: &str = "Content-Type: application/json\r\n";
const CLOSE: &str = "Content-Type: application/json; charset=utf-8\r\nConnection: close\r\n";

#[test]
fn requests_follow_each_other_on_one_connection() {
    let bytes = [post("/a", JSON, "[1]"), post("/base/b", CLOSE, "[2]")].concat();
    let text = exchange(bytes.as_bytes());
    assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{text}");
    assert!(text.contains(r#"{"body":"[1]","path":"/a"}"#), "{text}");
    assert!(text.ends_with(r#"{"body":"[2]","path":"/b"}"#), "{text}");
    assert_eq!(text.matches("Connection: close\r\n").count(), 1, "{text}");
}

#[test]
fn any_error_closes_and_what_follows_is_not_answered() {
    let next = post("/next", CLOSE, "");
    let get = |head: &str| format!("GET {head}\r\n\r\n");
    for (status, request) in [
        ("404 Not Found", get("/missing HTTP/1.1\r\nHost: localhost")),
        ("401 Unauthorized", get("/locked HTTP/1.1\r\nHost: localhost")),
        ("421 Misdirected Request", get("/ HTTP/1.1\r\nHost: evil.example")),
        ("403 Forbidden", get("/ HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example")),
        ("415 Unsupported Media Type", post("/", "", "a=b")),
        ("415 Unsupported Media Type", post("/", "Content-Type: text/plain\r\n", "")),
        ("426 Upgrade Required", get("/ws HTTP/1.1\r\nHost: localhost")),
        ("426 Upgrade Required", post("/ws", JSON, "{}")),
        ("400 Bad Request", get("/ HTTP/1.1")),
    ] {
        let text = exchange(format!("{request}{next}").as_bytes());
        assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}\n{text}");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
        assert!(!text.contains("/next"), "{text}");
    }
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2097152\r\n\r\n";
    assert!(exchange(head.as_bytes()).starts_with("HTTP/1.1 413 "));
}

#[test]
fn a_client_that_waits_for_it_is_told_to_go_on() {
    let (mut client, server) = serve();
    let head = "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\
                Expect: 100-continue\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    client.write_all(head.as_bytes()).expect("sent");
    let mut go_on = [0; 25];
    client.read_exact(&mut go_on).expect("told to go on");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"{}").expect("sent");
    let mut text = String::new();
    client.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    drop(client);
    server.join().expect("no panic");
}

#[test]
fn what_follows_an_upgrade_is_kept_for_the_websocket() {
    let (mut client, server) = serve();
    let head = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
                Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nfirst frame";
    client.write_all(head.as_bytes()).expect("sent");
    assert_eq!(server.join().expect("no panic"), Some(b"first frame".to_vec()));
    let mut text = String::new();
    client.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    assert!(text.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="));
}

#[test]
fn a_stream_takes_the_connection_and_what_follows_is_not_answered() {
    let (mut client, server) = serve();
    let head = "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.write_all([head, head].concat().as_bytes()).expect("sent");
    assert_eq!(server.join().expect("no panic"), Some(b"told".to_vec()));
    let mut text = String::new();
    client.read_to_string(&mut text).expect("a head, and no body by anybody else");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    assert!(!text.contains("Content-Length"), "{text}");

    let (mut client, server) = serve();
    client.write_all(head.replace("GET", "HEAD").as_bytes()).expect("sent");
    let mut text = String::new();
    client.read_to_string(&mut text).expect("the head alone");
    assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
    drop(client);
    assert_eq!(server.join().expect("no panic"), None);
}

#[test]
fn a_head_that_trickles_in_meets_its_deadline() {
    let (mut client, server) = serve();
    client.write_all(b"GET / HTTP/1.1\r\nHo").expect("sent");
    let mut text = String::new();
    client.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    drop(client);
    server.join().expect("no panic");
}

#[test]
fn an_idle_connection_ends_when_told_to_drain() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let server = listener.accept().expect("accepted").0;
    server.set_nonblocking(true).expect("a socket");
    let waiter = Waiter::new().expect("a descriptor");
    let bell = waiter.bell();
    let handle = spawn(move || {
        let gate = Gate::new("127.0.0.1".parse().expect("an address"), &[], "");
        converse(&Stream::Tcp(server), Peer::Local, &waiter, &Echo(gate.expect("a gate"))).is_none()
    });
    client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    let mut first = [0; 12];
    client.read_exact(&mut first).expect("an answer");
    bell.give(Order::Drain);
    assert!(handle.join().expect("no panic"));
}
