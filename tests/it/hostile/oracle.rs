//! What our parser takes, `hyper` takes too, and reads the same from it: method, path, query, body,
//! and where the next request begins. What a proxy that is less strict than we are passes on can
//! then not be read in two ways.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use reattach::server::http::head::{Parsed, fuzz_head, parse};

use super::table::{self, Words};
use super::{NEXT, with_next};

/// What a request says, and where it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    method: String,
    path: String,
    query: String,
    body: Vec<u8>,
    leftover: Vec<u8>,
}

/// The first request in `bytes` as we read it; `None` if we refuse it or wait for more.
fn we_read(bytes: &[u8]) -> Option<Seen> {
    let Ok(Parsed::Head(head, length)) = parse(bytes, 0) else { return None };
    let after = &bytes[length..];
    let body_bytes = usize::try_from(head.body_bytes).ok()?;
    let (body, leftover) = after.split_at_checked(body_bytes)?;
    let method = head.method.to_string();
    let (body, leftover) = (body.to_vec(), leftover.to_vec());
    Some(Seen { method, path: head.path, query: head.query, body, leftover })
}

/// The same as hyper reads it.
fn hyper_reads(bytes: &[u8]) -> Option<Seen> {
    let seen = Rc::new(RefCell::new(None));
    let told = Rc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let told = Rc::clone(&told);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let mut body = pin!(body);
            let mut whole = Vec::new();
            while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                whole.extend_from_slice(&frame?.into_data().unwrap_or_default());
            }
            *told.borrow_mut() = Some(Seen {
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                body: whole,
                leftover: Vec::new(),
            });
            let last = Response::builder().header("Connection", "close").body(Nothing);
            Ok::<_, hyper::Error>(last.expect("a response"))
        })
    });
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_buf_size(1 << 20);
    let mut connection = builder.serve_connection(Wire { input: bytes.to_vec() }, service);
    let rung = Arc::new(Rung(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&rung));
    // Once nobody has woken us, it waits for bytes that will not come.
    while rung.0.swap(false, Ordering::SeqCst) {
        let polled = connection.poll_without_shutdown(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            break;
        }
    }
    let parts = connection.into_parts();
    let mut seen = seen.borrow_mut().take()?;
    seen.leftover = [&parts.read_buf[..], &parts.io.input].concat();
    Some(seen)
}

struct Rung(AtomicBool);

impl Wake for Rung {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// All input is there; output goes nowhere.
#[derive(Debug)]
struct Wire {
    input: Vec<u8>,
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.input.is_empty() {
            // The client holds the connection open, and says no more.
            return Poll::Pending;
        }
        let count = into.remaining().min(self.input.len());
        into.put_slice(&self.input[..count]);
        self.input.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The body of an answer that has none.
struct Nothing;

impl Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

#[test]
fn what_the_table_lets_in_hyper_reads_alike() {
    let rows = table::rows(&Words { token: "0123456789abcdef", session: "a-session" });
    let mut let_in = 0;
    for row in &rows {
        if let Some(ours) = we_read(&with_next(row)) {
            let_in += 1;
            assert_eq!(hyper_reads(&with_next(row)), Some(ours), "[{}]", row.name);
        }
    }
    assert!(let_in >= 40, "only {let_in} rows have a head that we take");
}

#[test]
fn a_head_is_read_alike_wherever_its_bytes_are_cut() {
    let rows = table::rows(&Words { token: "0123456789abcdef", session: "a-session" });
    for row in &rows {
        let bytes = with_next(row);
        let whole = parse(&bytes, 0);
        // A parser that has refused is not asked again.
        for at in (1..bytes.len()).filter(|at| at % (1 + bytes.len() / 4000) == 0) {
            match parse(&bytes[..at], 0) {
                Ok(Parsed::Partial) => assert_eq!(parse(&bytes, at), whole, "[{}] {at}", row.name),
                settled => assert_eq!(settled, whole, "[{}] {at}", row.name),
            }
        }
    }
}

#[test]
fn whatever_we_let_in_hyper_reads_alike() {
    let mut runner =
        TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
    let (tried, let_in) = (Cell::new(0), Cell::new(0));
    let outcome = runner.run(&requests(), |bytes| {
        tried.set(tried.get() + 1);
        // What the fuzzer demands of any bytes, of these too.
        fuzz_head(&bytes);
        if let Some(ours) = we_read(&bytes) {
            let_in.set(let_in.get() + 1);
            let text = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(hyper_reads(&bytes), Some(ours), "{}", text);
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let (tried, let_in) = (tried.get(), let_in.get());
    assert!(let_in > tried / 20 && let_in < tried / 10 * 9, "let in {let_in} of {tried}");
}

/// Requests that are right or nearly so, with another one behind.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let first = (
        often(&["GET", "POST", "PUT"], &["get", "BREW", "G@T", "", "G\0T", "GeT", "TRACE"]),
        often(&[" "], &["  ", "\t", ""]),
        target(),
        often(
            &[" HTTP/1.1", " HTTP/1.0"],
            &[" HTTP/1.2", " http/1.1", "", "  HTTP/1.1", " HTTP/1.1 "],
        ),
        line_end(),
    );
    let body = prop_oneof![Just(""), Just("{}"), Just("2\r\n{}\r\n0\r\n\r\n"), Just("\r\n")];
    let change = (any::<Index>(), 0..4_u8, any::<u8>());
    let changes = prop_oneof![6 => Just(Vec::new()).boxed(), 1 => vec(change, 1..3).boxed()];
    (first, vec(header(), 0..5), line_end(), body, changes).prop_map(
        |((method, space, target, version, end), headers, last, body, changes)| {
            let mut bytes = [&method, &space, &target, &version, &end].map(String::as_str).concat();
            bytes.push_str("Host: localhost\r\n");
            headers.iter().for_each(|header| bytes.push_str(header));
            bytes.push_str(&last);
            bytes.push_str(body);
            let mut bytes = bytes.into_bytes();
            bytes.extend_from_slice(NEXT);
            for (place, kind, byte) in changes {
                let at = place.index(bytes.len());
                match kind {
                    0 => drop(bytes.remove(at)),
                    1 => bytes.insert(at, byte),
                    2 => bytes[at] = byte,
                    _ => bytes[at] ^= 0x20,
                }
            }
            bytes
        },
    )
}

fn often(usual: &'static [&'static str], odd: &'static [&'static str]) -> BoxedStrategy<String> {
    let word = prop_oneof![15 => select(usual), 1 => select(odd)];
    word.prop_map(str::to_owned).boxed()
}

fn line_end() -> BoxedStrategy<String> {
    let word =
        prop_oneof![40 => Just("\r\n"), 1 => select(&["\n", "\r", "\r\r\n", "", "\n\r"][..])];
    word.prop_map(str::to_owned).boxed()
}

fn target() -> BoxedStrategy<String> {
    prop_oneof![
        8 => select(&["/", "/healthz", "/a/b?c=d&e=f", "//a", "/?", "/a?b?c", "/%2f%", "/a:b@c"][..])
            .prop_map(str::to_owned),
        4 => "/[!-~]{0,8}(\\?[!-~]{0,8})?",
        1 => "[ -~]{0,12}",
        1 => select(&["*", "localhost:80", "http://localhost/a", "/a b", "/a\tb", "/\u{e9}"][..])
            .prop_map(str::to_owned),
    ]
    .boxed()
}

fn header() -> BoxedStrategy<String> {
    let framing = (
        select(
            &["Content-Length", "content-length", "Transfer-Encoding", "Expect", "Connection"][..],
        ),
        select(&["2", "0", "2, 2", "+2", "02", "chunked", "identity", "100-continue", "close"][..]),
    );
    let length = prop_oneof![Just("2"), Just("0"), Just("14"), Just("1")]
        .prop_map(|length| ("Content-Length", length));
    let other = (
        select(&["X", "x-y_z", "A!#$%&'*+.^`|~9", "Upgrade", "Cookie", "Te", "X Y", "X\u{e9}"][..]),
        select(
            &["", "y", "a, b", "\"q\"", "h2c", "\u{e9}", "y\0", "y\u{7f}", "y\tz", "trailers"][..],
        ),
    );
    let pair = prop_oneof![3 => length.boxed(), 2 => framing.boxed(), 4 => other.boxed()];
    let colon = often(&[":", ": "], &[" :", ":\t ", "", ": \r\n "]);
    (pair, colon, line_end())
        .prop_map(|((name, value), colon, end)| format!("{name}{colon}{value}{end}"))
        .boxed()
}
