//! A client on a real socket. It reads only when asked to, so a test decides how slow it is and
//! where it is cut; it answers protocol pings as it reads.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, Message, WebSocket};

use super::{DEADLINE, schema};

/// A text frame as it came, byte for byte, and as JSON.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// The bytes.
    pub(crate) text: String,
    /// The same, parsed.
    pub(crate) json: Value,
}

impl Frame {
    /// From the bytes. Everything the gateway sends is a JSON object with a `kind`.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let json: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
        assert!(json["kind"].is_string(), "a frame without a kind: {text}");
        Self { text: text.to_owned(), json }
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> &str {
        self.json["kind"].as_str().expect("checked when it came")
    }

    /// Its seq: events have one, and `run_started` has 0. (`caught_up` names another frame's.)
    pub(crate) fn seq(&self) -> Option<u64> {
        self.json["seq"].as_u64().filter(|_| self.kind() != "caught_up")
    }

    /// The run whose log it stands in; `None` for gateway frames.
    pub(crate) fn run(&self) -> Option<&str> {
        self.seq()?;
        self.json["runId"].as_str()
    }

    /// Whether it is of this kind and, unless `session` is empty, of this session.
    pub(crate) fn is(&self, kind: &str, session: &str) -> bool {
        self.kind() == kind && (session.is_empty() || self.json["sessionId"] == session)
    }
}

/// How a connection ended, as the client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With a close frame of this code.
    Closed(u16),
    /// Without one.
    Dropped,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotConnected {
    /// The gateway said no, with this HTTP status.
    Refused(u16),
    /// There is no gateway, or it went away meanwhile.
    Nobody(String),
}

/// One WebSocket connection.
pub(crate) struct Client {
    socket: WebSocket<TcpStream>,
    /// Every text frame so far, unless `forget` was asked.
    pub(crate) seen: Vec<Frame>,
    /// How the connection ended, once it has.
    pub(crate) ended: Option<Ended>,
    /// Protocol pings so far.
    pub(crate) pings: usize,
    keep: bool,
    refs: u64,
    checked: schema::Sampler,
}

impl Client {
    /// Connects to `path` with these headers, or gives the HTTP status of the refusal.
    pub(crate) fn connect(
        port: u16,
        path: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Self, u16> {
        match Self::try_connect(port, path, headers) {
            Ok(client) => Ok(client),
            Err(NotConnected::Refused(status)) => Err(status),
            Err(NotConnected::Nobody(why)) => panic!("the gateway does not answer: {why}"),
        }
    }

    /// The same, where nobody may be there to answer.
    pub(crate) fn try_connect(
        port: u16,
        path: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Self, NotConnected> {
        let stream = TcpStream::connect(("127.0.0.1", port));
        let stream = stream.map_err(|error| NotConnected::Nobody(error.to_string()))?;
        stream.set_nodelay(true).expect("a fresh socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
        stream.set_write_timeout(Some(DEADLINE)).expect("a fresh socket");
        let mut request = format!("ws://127.0.0.1:{port}{path}")
            .into_client_request()
            .expect("a well-formed URL");
        for (name, value) in headers {
            let value = value.parse().expect("a well-formed header");
            request.headers_mut().insert(*name, value);
        }
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        match tungstenite::client::client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => {
                let (seen, checked) = (Vec::new(), schema::Sampler::default());
                Ok(Self { socket, seen, ended: None, pings: 0, keep: true, refs: 0, checked })
            }
            Err(tungstenite::HandshakeError::Failure(Error::Http(answer))) => {
                Err(NotConnected::Refused(answer.status().as_u16()))
            }
            Err(other) => Err(NotConnected::Nobody(other.to_string())),
        }
    }

    /// Takes little at a time: what it does not read soon waits at the gateway.
    pub(crate) fn narrow(&self) {
        rustix::net::sockopt::set_socket_recv_buffer_size(self.socket.get_ref(), 32 << 10)
            .expect("an open socket");
    }

    /// From here on frames are given out but not kept in `seen`.
    pub(crate) fn forget(&mut self) {
        self.keep = false;
        self.seen.clear();
    }

    /// Sends a client frame.
    #[track_caller]
    pub(crate) fn send(&mut self, frame: &Value) {
        self.send_raw(Message::text(frame.to_string()));
    }

    /// Sends any message. A connection that the gateway closed meanwhile shows when reading.
    pub(crate) fn send_raw(&mut self, message: Message) {
        drop(self.socket.send(message));
    }

    /// `chat.send`, with the reply awaited: the run's id.
    #[track_caller]
    pub(crate) fn prompt(&mut self, session: &str, content: &str) -> String {
        let accepted = self.request(&json!({
            "type": "chat.send", "sessionId": session, "content": content,
        }));
        assert_eq!(accepted.kind(), "chat_accepted", "{}", accepted.text);
        accepted.json["runId"].as_str().expect("a run id").to_owned()
    }

    /// Sends a frame with a `ref` of its own and gives the reply that echoes it (I12).
    #[track_caller]
    pub(crate) fn request(&mut self, frame: &Value) -> Frame {
        self.refs += 1;
        let mut frame = frame.clone();
        let reference = format!("r{}", self.refs);
        frame["ref"] = json!(reference);
        self.send(&frame);
        let what = format!("the reply to {frame}");
        let reply = self.expect(&what, |reply| reply.json["ref"] == reference);
        if reply.kind() != "protocol_error" {
            schema::accepted(&frame);
        }
        reply
    }

    /// Subscribes to one session and gives the `chat_subscribed`.
    #[track_caller]
    pub(crate) fn subscribe(&mut self, target: &Value) -> Frame {
        let reply = self.request(&json!({"type": "chat.subscribe", "sessions": [target]}));
        assert_eq!(reply.kind(), "chat_subscribed", "{}", reply.text);
        reply
    }

    /// Sends `ping` and reads until its `pong`: replies to what was sent before have come.
    #[track_caller]
    pub(crate) fn barrier(&mut self) {
        let pong = self.request(&json!({"type": "ping"}));
        assert_eq!(pong.kind(), "pong", "{}", pong.text);
    }

    /// Reads until a frame `fits`, and gives that one.
    #[track_caller]
    pub(crate) fn expect(&mut self, what: &str, fits: impl Fn(&Frame) -> bool) -> Frame {
        let start = Instant::now();
        let from = self.seen.len();
        loop {
            let left = DEADLINE.saturating_sub(start.elapsed());
            match self.read(left) {
                Some(frame) if fits(&frame) => return frame,
                Some(_) if start.elapsed() < DEADLINE => {}
                _ => {
                    let tail: Vec<&str> =
                        self.seen[from.min(self.seen.len())..].iter().map(|f| &*f.text).collect();
                    let tail = tail[tail.len().saturating_sub(12)..].join("\n  ");
                    let ended = &self.ended;
                    panic!("in vain: {what}; connection: {ended:?}; frames meanwhile:\n  {tail}");
                }
            }
        }
    }

    /// Reads until the event or head at (`run`, `seq`).
    #[track_caller]
    pub(crate) fn expect_at(&mut self, run: &str, seq: u64) -> Frame {
        self.expect(&format!("{run}:{seq}"), |f| f.run() == Some(run) && f.seq() == Some(seq))
    }

    /// Reads until the `complete` of `run`.
    #[track_caller]
    pub(crate) fn expect_complete(&mut self, run: &str) -> Frame {
        let what = format!("complete of {run}");
        self.expect(&what, |f| f.kind() == "complete" && f.run() == Some(run))
    }

    /// The next text frame; `None` if none came within `within` or the connection has ended.
    pub(crate) fn read(&mut self, within: Duration) -> Option<Frame> {
        let start = Instant::now();
        while self.ended.is_none() {
            let left = within.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            self.socket.get_ref().set_read_timeout(Some(left)).expect("an open socket");
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let frame = Frame::parse(&text);
                    self.checked.see(&frame.json);
                    if self.keep {
                        self.seen.push(frame.clone());
                    }
                    return Some(frame);
                }
                Ok(Message::Ping(_)) => self.pings += 1,
                Ok(Message::Close(close)) => {
                    let code = close.map_or(1005, |close| u16::from(close.code));
                    self.ended = Some(Ended::Closed(code));
                }
                Ok(_) => {}
                Err(Error::Io(error)) if is_timeout(&error) => return None,
                Err(_) => self.ended = Some(Ended::Dropped),
            }
            if start.elapsed() >= within {
                return None;
            }
        }
        None
    }

    /// Reads whatever still comes until the connection ends, and gives how.
    #[track_caller]
    pub(crate) fn read_to_end(&mut self) -> Ended {
        let start = Instant::now();
        while self.ended.is_none() {
            assert!(start.elapsed() < DEADLINE, "the connection does not end");
            self.read(DEADLINE);
        }
        self.ended.clone().expect("the loop ended")
    }

    /// Goes away without a word.
    pub(crate) fn cut(self) {
        // The peer may have closed first.
        drop(self.socket.get_ref().shutdown(Shutdown::Both));
    }

    /// Closes properly, with 1000.
    pub(crate) fn close(mut self) {
        drop(self.socket.close(None));
        while self.ended.is_none() {
            self.read(DEADLINE);
        }
    }

    /// The bare socket, of a client that speaks no WebSocket any more (never answers a ping).
    pub(crate) fn into_raw(self) -> Mute {
        let stream = self.socket.get_ref().try_clone().expect("an open socket");
        // Forgetting would leak the descriptor; the clone keeps the connection open.
        drop(self.socket);
        Mute { stream, buffer: Vec::new(), pings: 0, ended: false }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A client that reads, but never answers: it only counts pings and notices the end.
pub(crate) struct Mute {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Protocol pings so far.
    pub(crate) pings: usize,
    /// Whether the gateway has ended the connection.
    pub(crate) ended: bool,
}

impl Mute {
    /// Reads for at most `within`.
    pub(crate) fn read(&mut self, within: Duration) {
        if self.ended {
            return;
        }
        self.stream.set_read_timeout(Some(within)).expect("an open socket");
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
            Err(error) if is_timeout(&error) => {}
            Err(_) => self.ended = true,
        }
        while let Some((opcode, length)) = self.header() {
            self.buffer.drain(..length);
            match opcode {
                9 => self.pings += 1,
                8 => self.ended = true,
                _ => {}
            }
        }
    }

    /// Opcode and whole length of the frame at the buffer's front, if it is all there.
    fn header(&self) -> Option<(u8, usize)> {
        let (&first, &second) = (self.buffer.first()?, self.buffer.get(1)?);
        let (start, length) = match second & 0x7f {
            126 => {
                (4, usize::from(u16::from_be_bytes([*self.buffer.get(2)?, *self.buffer.get(3)?])))
            }
            127 => panic!("a frame of more than 64 KiB at a mute client"),
            short => (2, usize::from(short)),
        };
        (self.buffer.len() >= start + length).then_some((first & 0x0f, start + length))
    }

    /// Writes bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }
}
