//! A client that sends bytes, whatever they are, and reads the answers apart.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use serde_json::Value;

use crate::support::DEADLINE;

/// All that came back on a connection.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) answers: Vec<Answer>,
    /// What follows them: nothing, or what a WebSocket says.
    pub(crate) rest: Vec<u8>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// Sends bytes, and reads to the connection's end.
#[track_caller]
pub(crate) fn talk(port: u16, bytes: &[u8]) -> Talk {
    let mut stream = connect(port);
    stream.write_all(bytes).expect("it reads");
    to_the_end(stream, bytes.starts_with(b"HEAD "))
}

/// The same as a second request of its connection, and cut in two. The first request makes sure that
/// somebody reads by then: nothing is waited for between the two parts, and without it they would
/// always be one by the time that a thread is there.
#[track_caller]
pub(crate) fn talk_in_two(port: u16, bytes: &[u8], at: usize) -> Talk {
    let mut stream = connect(port);
    stream.write_all(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    stream.write_all(&bytes[..at]).expect("it reads");
    thread::yield_now();
    // It may have answered the first part and gone.
    stream.write_all(&bytes[at..]).ok();
    to_the_end(stream, bytes.starts_with(b"HEAD "))
}

#[track_caller]
fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    // So that two parts are two packets.
    stream.set_nodelay(true).expect("a fresh socket");
    stream
}

#[track_caller]
fn to_the_end(mut stream: TcpStream, head_only: bool) -> Talk {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("it answers and closes");
    Talk::read(&bytes, head_only)
}

impl Talk {
    /// Takes answers apart; the first is without its body if it is one to `HEAD`.
    #[track_caller]
    pub(crate) fn read(mut bytes: &[u8], mut head_only: bool) -> Self {
        let mut answers = Vec::new();
        while bytes.starts_with(b"HTTP/1.1 ") {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
            let (head, rest) = bytes.split_at(end.expect("a head is whole") + 4);
            let mut answer = Answer::of_head(std::str::from_utf8(head).expect("a head is ASCII"));
            bytes = rest;
            // `100 Continue` says nothing of the answer.
            if answer.status == 100 {
                continue;
            }
            let bodiless = head_only || matches!(answer.status, 101 | 204 | 304);
            if !bodiless {
                let length = answer.header("content-length").expect("a length");
                let (body, rest) = bytes.split_at(length.parse().expect("a number"));
                answer.body = body.to_vec();
                bytes = rest;
            }
            head_only = false;
            let upgraded = answer.status == 101;
            answers.push(answer);
            if upgraded {
                break;
            }
        }
        Self { answers, rest: bytes.to_vec() }
    }

    /// The same without what differs from one time to the next.
    pub(crate) fn comparable(&self) -> Self {
        let answers = self.answers.iter().map(|answer| {
            let mut answer = answer.clone();
            answer.headers.retain(|(name, _)| name != "date" && name != "x-request-id");
            if let Ok(mut body) = serde_json::from_slice::<Value>(&answer.body) {
                if let Some(object) = body.as_object_mut() {
                    object.remove("updatedAt");
                }
                if let Some(error) = body["error"].as_object_mut() {
                    error.remove("requestId");
                }
                answer.body = body.to_string().into_bytes();
            }
            answer
        });
        // What a WebSocket says has times in it.
        Self { answers: answers.collect(), rest: Vec::new() }
    }
}

impl PartialEq for Talk {
    fn eq(&self, other: &Self) -> bool {
        (&self.answers, &self.rest) == (&other.answers, &other.rest)
    }
}

impl Answer {
    fn of_head(head: &str) -> Self {
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.get(9..12).and_then(|digits| digits.parse().ok());
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").expect("a header has a colon");
            (name.to_ascii_lowercase(), value.to_owned())
        });
        let headers = headers.collect();
        Self { status: status.expect("a status"), headers, body: Vec::new() }
    }

    /// The value of a header that stands there once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} stands there twice");
        value
    }

    /// What every answer says, so that no browser reads more into it, passes it on, frames it, or
    /// lets another site have it.
    #[track_caller]
    pub(crate) fn assert_guarded(&self) {
        if self.status == 101 {
            return;
        }
        let policy = self.header("content-security-policy").unwrap_or_default();
        let directives: Vec<&str> = policy.split("; ").collect();
        for directive in
            ["default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "object-src 'none'"]
        {
            assert!(directives.contains(&directive), "{directive} in {self:?}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"), "{self:?}");
        assert_eq!(self.header("referrer-policy"), Some("no-referrer"), "{self:?}");
        let cache = self.header("cache-control");
        assert!(
            matches!(cache, Some("no-store" | "no-cache" | "no-cache, no-transform")),
            "{self:?}"
        );
        for (name, _) in &self.headers {
            assert!(!name.starts_with("access-control-") && name != "server", "{self:?}");
        }
    }

    /// The body as JSON; `null` if it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// `error.code`; empty if it is no error.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Answer { status, headers, body } in &self.answers {
            let body = String::from_utf8_lossy(body);
            writeln!(f, "{status} {headers:?} {:.200}", body)?;
        }
        write!(f, "then {:.80}", String::from_utf8_lossy(&self.rest))
    }
}
