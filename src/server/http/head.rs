//! The parser of request heads: strict, and pure.
//!
//! What a proxy and we could understand differently is refused, not repaired: bare line feeds,
//! two lengths, any `Transfer-Encoding`, anything but one `Host`. Must not know sockets.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use crate::limits;
use crate::server::http::response::Refused;

/// A request's head, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Any token that begins with an upper-case letter.
    pub method: Method,
    /// Visible ASCII, from `/`, undecoded.
    pub path: String,
    /// What follows the `?`; empty if there is none.
    pub query: String,
    /// 1.1, or 1.0.
    pub version: Version,
    /// All headers.
    pub headers: HeaderMap,
    /// The body's length.
    pub body_bytes: u64,
    /// Whether the client waits for a `100 Continue`.
    pub expects_continue: bool,
    /// Whether the client wants to send another request.
    pub keep_alive: bool,
}

/// What a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a head.
    Partial,
    /// A head, and how many bytes it took.
    Head(Box<Head>, usize),
}

/// Looks for a head at the beginning of `buffer`, of which the first `seen` bytes have been
/// looked at before.
///
/// # Errors
/// If no continuation could make it a head that we accept.
pub fn parse(buffer: &[u8], seen: usize) -> Result<Parsed, Refused> {
    // Tells TLS and the like at the first byte, instead of by the deadline.
    if buffer.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
        return Err(bad("This is not an HTTP request."));
    }
    let Some(end) = find_end(buffer, seen)? else {
        if buffer.len() >= limits::HEAD_BYTES_MAX {
            return Err(too_large());
        }
        return Ok(Parsed::Partial);
    };
    // Not on the stack: a page touched there stays for the connection's life.
    let mut slots = vec![httparse::EMPTY_HEADER; limits::HEADERS_MAX];
    let mut request = httparse::Request::new(&mut slots);
    match request.parse(&buffer[..end]) {
        Ok(httparse::Status::Complete(length)) if length == end => {}
        Ok(_) => return Err(bad("The request's head ends too early.")),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(error) => return Err(bad(&format!("The request's head is malformed: {error}."))),
    }
    let headers = headers(request.headers)?;
    let target = request.path.unwrap_or_default();
    let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes());
    let version = if request.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let (path, query) = split_target(target)?;
    let head = Head {
        method: method.map_err(|_| bad("The method is malformed."))?,
        path,
        query,
        version,
        body_bytes: body_bytes(&headers)?,
        expects_continue: expects_continue(&headers)?,
        keep_alive: version == Version::HTTP_11 && !mentions_close(&headers),
        headers,
    };
    if head.headers.get_all(header::HOST).iter().count() != 1 {
        return Err(bad("A request needs exactly one Host header."));
    }
    Ok(Parsed::Head(Box::new(head), end))
}

/// Where the head ends: after the first empty line. What lies beyond the bound is not looked at, so
/// that the answer does not depend on how much of it has come.
fn find_end(buffer: &[u8], seen: usize) -> Result<Option<usize>, Refused> {
    let buffer = &buffer[..buffer.len().min(limits::HEAD_BYTES_MAX)];
    let seen = seen.min(buffer.len());
    for at in memchr::memchr_iter(b'\n', &buffer[seen..]).map(|offset| seen + offset) {
        if at == 0 || buffer[at - 1] != b'\r' {
            return Err(bad("A line of the request ends without a carriage return."));
        }
        if at >= 3 && buffer[at - 3..at - 1] == *b"\r\n" {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

fn headers(parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, Refused> {
    let mut headers = HeaderMap::with_capacity(parsed.len());
    for one in parsed {
        let name = HeaderName::from_bytes(one.name.as_bytes());
        let name = name.map_err(|_| bad("A header's name is malformed."))?;
        let value = HeaderValue::from_bytes(one.value);
        let value = value.map_err(|_| bad("A header's value is malformed."))?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn split_target(target: &str) -> Result<(String, String), Refused> {
    // Without a fragment, which it would cut off, and of no other bytes than an address may have.
    let is_path = PathAndQuery::try_from(target).is_ok_and(|parsed| parsed.as_str() == target);
    let clean = target.starts_with('/') && target.is_ascii() && is_path;
    if !clean {
        return Err(bad("The request's target must be a path."));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok((path.to_owned(), query.to_owned()))
}

fn body_bytes(headers: &HeaderMap) -> Result<u64, Refused> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        let message = "Send the body whole, with a Content-Length.";
        return Err(Refused::new(StatusCode::LENGTH_REQUIRED, "LENGTH_REQUIRED", message));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(0);
    };
    let digits = length.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match (digits.map(str::parse), lengths.next()) {
        (Some(Ok(length)), None) => Ok(length),
        _ => Err(bad("A request has at most one Content-Length, of digits only.")),
    }
}

fn expects_continue(headers: &HeaderMap) -> Result<bool, Refused> {
    match headers.get(header::EXPECT) {
        None => Ok(false),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(true),
        Some(_) => {
            let message = "Only 100-continue can be expected.";
            Err(Refused::new(StatusCode::EXPECTATION_FAILED, "EXPECTATION_FAILED", message))
        }
    }
}

fn mentions_close(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case("close"))
}

fn bad(message: &str) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message)
}

fn too_large() -> Refused {
    let message = "The request's head is too large.";
    Refused::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEAD_TOO_LARGE", message)
}

/// What the fuzzer calls: that a head is read alike however it arrives, that what is taken keeps the
/// rules above, and that it says the same when it is written again.
///
/// # Panics
/// If one of them does not hold.
pub fn fuzz_head(bytes: &[u8]) {
    let whole = parse(bytes, 0);
    let cuts = (1..8).map(|n| bytes.len() * n / 8).chain([bytes.len().saturating_sub(1)]);
    for cut in cuts {
        match parse(&bytes[..cut], 0) {
            Ok(Parsed::Partial) => assert_eq!(parse(bytes, cut), whole, "cut at {cut}"),
            settled => assert_eq!(settled, whole, "cut at {cut}"),
        }
    }
    let Ok(Parsed::Head(head, end)) = whole else {
        return;
    };
    assert!(end <= limits::HEAD_BYTES_MAX && bytes[..end].ends_with(b"\r\n\r\n"));
    assert!(head.path.starts_with('/') && !head.path.contains('?'), "{}", head.path);
    assert!(head.headers.len() <= limits::HEADERS_MAX);
    assert!(!head.headers.contains_key(header::TRANSFER_ENCODING));
    assert_eq!(head.headers.get_all(header::HOST).iter().count(), 1);
    let mut again = format!("{} {}", head.method, head.path).into_bytes();
    if !head.query.is_empty() {
        again.push(b'?');
        again.extend_from_slice(head.query.as_bytes());
    }
    again.extend_from_slice(format!(" {:?}\r\n", head.version).as_bytes());
    for (name, value) in &head.headers {
        again.extend_from_slice(name.as_str().as_bytes());
        again.push(b':');
        again.extend_from_slice(value.as_bytes());
        again.extend_from_slice(b"\r\n");
    }
    again.extend_from_slice(b"\r\n");
    let length = again.len();
    assert_eq!(parse(&again, 0), Ok(Parsed::Head(head, length)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of `fuzz/`: replayed here so that a plain `cargo test` covers them.
    #[test]
    fn the_fuzzers_seeds_pass() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/head");
        let mut count = 0;
        for entry in std::fs::read_dir(seeds).expect("the seeds are in the repository") {
            fuzz_head(&std::fs::read(entry.expect("a seed").path()).expect("a readable seed"));
            count += 1;
        }
        assert!(count >= 30, "only {count} seeds");
    }

    fn status(head: &[u8]) -> u16 {
        match parse(head, 0) {
            Ok(Parsed::Head(..)) => 200,
            Ok(Parsed::Partial) => 0,
            Err(refused) => refused.status.as_u16(),
        }
    }

    #[test]
    fn a_head_is_the_same_however_it_is_cut() {
        let bytes = b"POST /a%20b?x=1&y=/ HTTP/1.1\r\nHost: localhost\r\ncontent-length: 3\r\n\
            Expect: 100-Continue\r\nCookie: a=b\r\nCookie: c=d\r\n\r\nabcGET";
        let head_bytes = bytes.len() - 6;
        let Ok(Parsed::Head(whole, length)) = parse(bytes, 0) else { panic!("a head") };
        assert_eq!(length, head_bytes);
        assert_eq!((whole.path.as_str(), whole.query.as_str()), ("/a%20b", "x=1&y=/"));
        assert_eq!((whole.body_bytes, whole.expects_continue, whole.keep_alive), (3, true, true));
        assert_eq!(whole.headers.get_all("cookie").iter().count(), 2);
        for cut in 0..head_bytes {
            assert_eq!(parse(&bytes[..cut], 0), Ok(Parsed::Partial), "cut at {cut}");
            let Ok(Parsed::Head(again, _)) = parse(bytes, cut) else { panic!("cut at {cut}") };
            assert_eq!(again, whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let cases: &[(u16, &str)] = &[
            (200, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, "GET / HTTP/1.1\nHost: x\n\n"),
            (400, "GET / HTTP/1.1\r\nHost: x\n\r\n"),
            (400, "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost : x\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: x\0\r\n\r\n"),
            (400, "GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
            (400, "PRI * HTTP/2.0\r\n\r\n"),
            (400, "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, "GET /#a HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, "GET /<b> HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, "GET /\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            (411, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (411, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n"),
            (
                411,
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
            ),
            (417, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\n\r\n"),
            (400, "\u{16}\u{3}\u{1}"),
        ];
        for (expected, head) in cases {
            assert_eq!(status(head.as_bytes()), *expected, "{head:?}");
        }
    }

    #[test]
    fn a_head_has_bounds() {
        let many: String = (0..=limits::HEADERS_MAX).map(|n| format!("a{n}: b\r\n")).collect();
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()), 431);
        let long = "x".repeat(limits::HEAD_BYTES_MAX);
        assert_eq!(status(format!("GET /{long}").as_bytes()), 431);
        let whole = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {long}\r\n\r\n");
        assert_eq!(status(whole.as_bytes()), 431);
    }

    #[test]
    fn old_clients_and_those_that_say_so_are_closed() {
        let keep_alive = |head: &str| match parse(head.as_bytes(), 0) {
            Ok(Parsed::Head(head, _)) => head.keep_alive,
            other => panic!("{other:?}"),
        };
        assert!(!keep_alive("GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!keep_alive("GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, Close\r\n\r\n"));
        assert!(keep_alive("GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\r\n"));
    }
}
