//! HTTP as a browser sends it, one request to a connection, read as it comes.
//!
//! Knows bytes and deadlines. Must not know what an answer means.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::cli::exit::Failure;
use crate::cli::stream::{ConnectError, Stream};
use crate::cli::target::Base;
use crate::limits;

/// An answer, or as much of one as came in time.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// One that somebody else has read.
    pub(super) fn of(status: u16, body: Option<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.unwrap_or_default() }
    }

    /// A header's first value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of one of our own errors.
    pub(super) fn code(&self) -> Option<String> {
        let json: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        json["error"]["code"].as_str().map(str::to_owned)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// No connection, and why: `CERTIFICATE` among the codes.
    Refused(Failure),
    /// The network's word.
    Io(io::Error),
    /// The time was over, with what had come by then.
    Late(Box<Answer>),
    /// What came is no HTTP.
    NotHttp,
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ConnectError> for Lost {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Io(error) => Self::Io(error),
            ConnectError::Refused(failure) => Self::Refused(failure),
        }
    }
}

/// Sends a request for `path` with these headers, and reads the answer to its end, or until `enough`
/// says of what has come that it will do.
pub(super) fn ask(
    base: &Base,
    path: &str,
    headers: &[(&str, &str)],
    span: Duration,
    enough: impl Fn(&Answer) -> bool,
) -> Result<Answer, Lost> {
    let mut stream = Stream::connect(base)?;
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", base.authority());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    read(&mut stream, span, enough)
}

fn read(
    stream: &mut Stream,
    span: Duration,
    enough: impl Fn(&Answer) -> bool,
) -> Result<Answer, Lost> {
    let deadline = Instant::now() + span;
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let answer = parse(&bytes)?;
        if let Some((answer, whole)) = answer
            && (whole || enough(&answer) || bytes.len() > limits::PROBE_ANSWER_BYTES)
        {
            return Ok(answer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(&bytes));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            // The end may be the end of a body without a length; of a head it is none.
            Ok(0) => return ended(&bytes),
            Ok(n) => bytes.extend(&chunk[..n]),
            Err(error) if is_late(&error) => return Err(late(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return ended(&bytes),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn late(bytes: &[u8]) -> Lost {
    let answer = parse(bytes).ok().flatten().map(|(answer, _)| answer);
    Lost::Late(Box::new(answer.unwrap_or_default()))
}

fn ended(bytes: &[u8]) -> Result<Answer, Lost> {
    match parse(bytes)? {
        Some((answer, _)) => Ok(answer),
        None if bytes.is_empty() => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up without an answer").into())
        }
        None => Err(Lost::NotHttp),
    }
}

/// The answer so far and whether it is whole; `None` before its head is.
fn parse(bytes: &[u8]) -> Result<Option<(Answer, bool)>, Lost> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Lost::NotHttp),
    };
    let word = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let mut answer = Answer {
        status: response.code.unwrap_or(0),
        headers: response.headers.iter().map(|h| (h.name.to_owned(), word(h.value))).collect(),
        body: Vec::new(),
    };
    let body = &bytes[length..];
    let chunked = answer
        .header("transfer-encoding")
        .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    let whole = if chunked {
        let (joined, whole) = unchunked(body);
        answer.body = joined;
        whole
    } else {
        answer.body = body.to_vec();
        let given = answer.header("content-length").and_then(|value| value.parse().ok());
        given.is_some_and(|given: usize| body.len() >= given)
            || matches!(answer.status, 101 | 204 | 304)
    };
    Ok(Some((answer, whole)))
}

/// The chunks that have come, joined, and whether the last one is among them.
fn unchunked(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut joined = Vec::new();
    while let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(bytes) {
        if size == 0 {
            return (joined, true);
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let rest = bytes.get(at..).unwrap_or_default();
        let there = rest.len().min(size);
        joined.extend(&rest[..there]);
        // Behind a chunk stands a line's end.
        match rest.get(size.saturating_add(2)..) {
            Some(next) => bytes = next,
            None => break,
        }
    }
    (joined, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_come() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b \r\n\r\nhello";
        for at in 0..whole.len() {
            let part = parse(&whole[..at]).expect("it is HTTP");
            assert!(part.is_none_or(|(_, whole)| !whole), "{at}");
        }
        let (answer, done) = parse(whole).expect("HTTP").expect("a head");
        assert!(done);
        assert_eq!(
            (answer.status, answer.header("x-a"), answer.text().as_str()),
            (200, Some("b"), "hello")
        );
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let (answer, done) = parse(chunks).expect("HTTP").expect("a head");
        assert!(done && answer.text() == "abcde", "{answer:?}");
        let (part, done) = parse(&chunks[..chunks.len() - 7]).expect("HTTP").expect("a head");
        assert!(!done && part.text() == "abcde", "{part:?}");
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_err());
    }

    #[test]
    fn our_own_errors_are_known() {
        let body = br#"{"error":{"code":"HOST_NOT_ALLOWED","message":"x"}}"#.to_vec();
        let answer = Answer { status: 421, headers: Vec::new(), body };
        assert_eq!(answer.code().as_deref(), Some("HOST_NOT_ALLOWED"));
        assert_eq!(Answer::default().code(), None);
    }
}
