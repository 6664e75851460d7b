//! A client of server-sent events on a real socket: strict about the form, and as slow as a test
//! wants it to be.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::client::Frame;
use super::gateway::Gateway;
use super::{DEADLINE, schema};

/// An event as it came.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Its id, if it has one.
    pub(crate) id: Option<String>,
    /// Its data.
    pub(crate) frame: Frame,
}

/// One stream.
pub(crate) struct Stream {
    socket: TcpStream,
    /// The answer's head.
    pub(crate) head: String,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
    /// Every event so far.
    pub(crate) seen: Vec<Event>,
    /// The id of the last event that had one.
    pub(crate) last_id: Option<String>,
    /// Comments so far.
    pub(crate) comments: usize,
    /// The gateway has ended it.
    pub(crate) ended: bool,
    checked: schema::Sampler,
}

impl Stream {
    /// Asks for the events of a session with this query and these further headers.
    #[track_caller]
    pub(crate) fn open(gateway: &Gateway, session: &str, query: &str, headers: &str) -> Self {
        let stream = Self::ask(gateway, "GET", session, query, headers);
        assert!(stream.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", stream.head);
        stream
    }

    /// Comes back with the last id.
    #[track_caller]
    pub(crate) fn resume(gateway: &Gateway, session: &str, last_id: &str) -> Self {
        Self::open(gateway, session, "", &format!("Last-Event-ID: {last_id}\r\n"))
    }

    /// The same, whatever the answer is: its head is there when this returns.
    #[track_caller]
    pub(crate) fn ask(
        gateway: &Gateway,
        method: &str,
        session: &str,
        query: &str,
        headers: &str,
    ) -> Self {
        let (port, token) = (gateway.port(), gateway.token());
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the gateway listens");
        let request = format!(
            "{method} /api/v1/sessions/{session}/events?{query} HTTP/1.1\r\n\
             Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\
             Accept: text/event-stream\r\n{headers}\r\n"
        );
        let mut stream = Self {
            socket,
            head: String::new(),
            buffer: Vec::new(),
            ready: VecDeque::new(),
            seen: Vec::new(),
            last_id: None,
            comments: 0,
            ended: false,
            checked: schema::Sampler::default(),
        };
        stream.socket.write_all(request.as_bytes()).expect("the gateway reads");
        let start = Instant::now();
        loop {
            assert!(!stream.ended && start.elapsed() < DEADLINE, "no head of an answer");
            if let Some(end) = stream.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = stream.buffer.split_off(end + 4);
                let head = std::mem::replace(&mut stream.buffer, rest);
                stream.head = String::from_utf8(head).expect("a head is ASCII");
                return stream;
            }
            stream.fill(DEADLINE);
        }
    }

    /// Takes little at a time: what it does not read soon waits at the gateway.
    pub(crate) fn narrow(&self) {
        rustix::net::sockopt::set_socket_recv_buffer_size(&self.socket, 32 << 10)
            .expect("an open socket");
    }

    /// The next event; `None` if none came within `within` or the stream has ended.
    #[track_caller]
    pub(crate) fn read(&mut self, within: Duration) -> Option<Event> {
        let start = Instant::now();
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last_id = event.id.clone().or(self.last_id.take());
                self.seen.push(event.clone());
                return Some(event);
            }
            self.parse();
            if self.ready.is_empty() {
                let left = within.checked_sub(start.elapsed())?;
                if self.ended {
                    return None;
                }
                self.fill(left);
            }
        }
    }

    /// Reads until an event `fits`, and gives that one.
    #[track_caller]
    pub(crate) fn expect(&mut self, what: &str, fits: impl Fn(&Frame) -> bool) -> Event {
        let start = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(start.elapsed());
            match self.read(left) {
                Some(event) if fits(&event.frame) => return event,
                Some(_) => {}
                None => {
                    let tail = &self.seen[self.seen.len().saturating_sub(8)..];
                    panic!("in vain: {what}; ended: {}; last: {tail:#?}", self.ended);
                }
            }
        }
    }

    /// Reads until the `complete` of `run`.
    #[track_caller]
    pub(crate) fn expect_complete(&mut self, run: &str) -> Event {
        let what = format!("complete of {run}");
        self.expect(&what, |f| f.kind() == "complete" && f.run() == Some(run))
    }

    /// Reads whatever still comes until the gateway ends the stream.
    #[track_caller]
    pub(crate) fn read_to_end(&mut self) {
        while self.read(DEADLINE).is_some() {}
        assert!(self.ended, "the stream does not end");
        assert!(self.buffer.is_empty(), "it ends with a whole event");
    }

    /// The body of an answer that is no stream.
    #[track_caller]
    pub(crate) fn body(mut self) -> String {
        let start = Instant::now();
        while !self.ended {
            assert!(start.elapsed() < DEADLINE, "the answer does not end");
            self.fill(DEADLINE);
        }
        String::from_utf8(self.buffer).expect("UTF-8")
    }

    /// The frames of runs, in the order in which they came.
    pub(crate) fn of_runs(&self) -> Vec<Frame> {
        let frames = self.seen.iter().map(|event| &event.frame);
        frames.filter(|frame| frame.run().is_some()).cloned().collect()
    }

    /// Sends bytes that nobody asked for. A gateway that closed meanwhile shows when reading.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        drop(self.socket.write_all(bytes));
    }

    /// Goes away without a word.
    pub(crate) fn cut(self) {
        // The peer may have closed first.
        drop(self.socket.shutdown(Shutdown::Both));
    }

    /// Whatever was sent, once.
    fn fill(&mut self, within: Duration) {
        let within = within.max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(within)).expect("an open socket");
        let mut chunk = vec![0; 64 << 10];
        match self.socket.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => self.ended = true,
        }
    }

    /// Takes whole events out of the buffer. The form is ours to choose, so it is checked to be
    /// the narrow one that any parser understands.
    #[track_caller]
    fn parse(&mut self) {
        while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
            let rest = self.buffer.split_off(end + 2);
            let block = std::mem::replace(&mut self.buffer, rest);
            let block = String::from_utf8(block).expect("UTF-8");
            let lines: Vec<&str> = block.trim_end_matches('\n').split('\n').collect();
            match lines.as_slice() {
                [": ping"] => self.comments += 1,
                [retry] if retry.starts_with("retry: ") => {
                    assert!(retry[7..].parse::<u32>().is_ok(), "{retry}");
                }
                [data] => self.event(None, data),
                [id, data] => {
                    let id = id.strip_prefix("id: ").unwrap_or_else(|| panic!("{block}"));
                    self.event(Some(id.to_owned()), data);
                }
                _ => panic!("not an event of ours: {block}"),
            }
        }
    }

    #[track_caller]
    fn event(&mut self, id: Option<String>, data: &str) {
        let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("no data: {data}"));
        let frame = Frame::parse(data);
        self.checked.see(&frame.json);
        self.ready.push_back(Event { id, frame });
    }
}
