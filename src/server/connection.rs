//! One WebSocket, served by one thread: the only user of `tungstenite::WebSocket`.
//!
//! A turn has a fixed order: wake-ups, messages in, replies, news, events while nothing is
//! backlogged, flush. Its result alone asks for write interest. A client is slow when no byte has
//! left for `stall`, never because its cursor is far behind. Must not know what messages mean.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, Utf8Bytes, WebSocket};

use crate::limits::{self, Limits};
use crate::metrics::Metrics;
use crate::notify::presence::Presence;
use crate::protocol::gateway::{Ack, GatewayFrame};
use crate::protocol::message::decode;
use crate::registry::{self, AnnouncementCursor, Pending, Refusal, Registry, Sent};
use crate::run::event::AnswerState;
use crate::run::id::{Millis, Position, SessionId};
use crate::run::log::Settled;
use crate::run::wake::Waker;
use crate::server::allowance::Allowance;
use crate::server::auth::{Auth, Caller, Pass};
use crate::server::counted::Counted;
use crate::server::error_code;
use crate::server::news::{self, News};
use crate::server::socket::{Socket, after};
use crate::server::statement::gap_range;
use crate::server::stream::Stream;
use crate::server::subscriber::{
    AcceptedRun, Action, Greeting, QueuedPrompt, ReplyTo, Subscriber, Ticket,
};
use crate::server::tally::{self, Tally, time_of};
use crate::server::viewer::Viewer;
use crate::server::wait::{Interest, Order, Ready, Waiter};
use crate::store::Readers;
use crate::sync::Arc;

impl Ticket for Pending {
    fn settled(&self) -> Settled {
        Self::settled(self)
    }
}

/// What a connection is given.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The registry.
    pub registry: &'a Arc<Registry>,
    /// For the news of sessions.
    pub readers: &'a Readers,
    /// What is counted.
    pub metrics: &'a Arc<Metrics>,
    /// Who is told that a client is visible.
    pub presence: &'a Arc<Presence>,
    /// The bounds in force.
    pub limits: &'a Limits,
    /// What it is told on open.
    pub greeting: Greeting,
    /// Who may come in.
    pub auth: &'a Auth,
    /// Who came in.
    pub caller: Caller,
}

/// Serves a WebSocket whose handshake is done, to its end, and says how that came: our close code
/// and why, or `None` if the client went. `leftover` had been read beyond the handshake.
pub fn serve(
    stream: Stream,
    leftover: Vec<u8>,
    waiter: &Waiter,
    parts: Parts<'_>,
) -> Option<(u16, &'static str)> {
    let socket = websocket(stream, leftover, parts.limits);
    let mut connection = Connection::open(socket, waiter, parts);
    connection.subscriber.greet();
    let end = loop {
        if let Err(end) = connection.turn() {
            break end;
        }
    };
    connection.tally.ended(tally::why(end.code()));
    connection.farewell(&end);
    match end {
        End::Gone | End::ByClient => None,
        End::ByUs(code, reason) => Some((code.into(), reason)),
    }
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client is gone without a word.
    Gone,
    /// The client closes; its close frame is to be answered.
    ByClient,
    /// We close.
    ByUs(CloseCode, &'static str),
}

impl End {
    const fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Gone | Self::ByClient => None,
            Self::ByUs(code, _) => Some(*code),
        }
    }
}

struct Connection<'a> {
    socket: Box<WebSocket<Counted>>,
    waiter: &'a Waiter,
    waker: Waker,
    parts: Parts<'a>,
    subscriber: Subscriber<Pending>,
    viewer: Viewer,
    news: News,
    tally: Tally,
    /// The last flush left bytes behind.
    backlog: bool,
    /// When a byte last left, or nothing was waiting.
    progress: Instant,
    sent: u64,
    /// tungstenite may hold input that the socket does not signal any more.
    more_input: bool,
    /// Wake-ups are left alone until then.
    deaf_until: Option<Instant>,
    /// The disk could not be read: not again before then.
    retry_at: Option<Instant>,
    heartbeat: Heartbeat,
    allowance: Allowance,
    pass: Pass,
}

/// The registry forgets the connection however it ends.
impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.parts.registry.forget(&self.waker);
    }
}

impl<'a> Connection<'a> {
    /// On the heap, and made in a frame of its own: a thread keeps each page of stack that it
    /// ever touched, so the depth of a turn is part of what an idle connection costs.
    #[inline(never)]
    fn open(socket: Box<WebSocket<Counted>>, waiter: &'a Waiter, parts: Parts<'a>) -> Box<Self> {
        let waker = Waker::new(Box::new(waiter.bell()));
        let now = Instant::now();
        let pass = Pass::of(&parts.caller, waiter.bell());
        Box::new(Self {
            more_input: true,
            socket,
            waiter,
            pass,
            subscriber: Subscriber::new(parts.greeting.clone(), &parts.caller),
            tally: Tally::new(parts.metrics.client(Tally::transport(&parts.caller.by))),
            viewer: Viewer::default(),
            news: News::new(parts.registry.broadcasts().join(&waker)),
            waker,
            backlog: false,
            progress: now,
            sent: 0,
            deaf_until: None,
            retry_at: None,
            heartbeat: Heartbeat::new(parts.limits.heartbeat_ms, now),
            allowance: Allowance::new(now),
            parts,
        })
    }

    fn turn(&mut self) -> Result<(), End> {
        let ready = self.wait()?;
        if ready.woken {
            // The bell first, then what it rang for: another order loses wake-ups (I4c).
            self.waiter.drain();
            let woken = self.waker.take();
            self.subscriber.woken(woken.sessions);
            self.news.stale |= woken.broadcast;
        }
        if self.waiter.order() == Order::Stop {
            return Err(End::ByUs(CloseCode::Away, "the server stops"));
        }
        if self.pass.is_over() {
            return Err(End::ByUs(CloseCode::Library(4500), "the credential has ended"));
        }
        if ready.writable {
            self.flush()?;
        }
        if ready.readable || ready.gone || self.more_input {
            if ready.gone && !self.subscriber.wants_input() {
                return Err(End::Gone);
            }
            self.read()?;
        }
        self.answer()?;
        self.tell_news()?;
        self.pull()?;
        self.flush()?;
        self.beat()?;
        self.viewer.update(self.parts.presence, &self.subscriber, self.heartbeat.heard.take());
        self.check_stall()?;
        self.check_drained()
    }

    /// Waits until there is something to do. What to wait for is a function of the state alone.
    fn wait(&mut self) -> Result<Ready, End> {
        let now = Instant::now();
        self.deaf_until.take_if(|until| *until <= now);
        self.retry_at.take_if(|until| *until <= now);
        let to_read = self.more_input && self.subscriber.wants_input();
        let behind = self.retry_at.is_none() && !self.subscriber.is_caught_up();
        let to_write = !self.backlog && (behind || !self.news.is_empty());
        let deadlines = [
            (to_read || to_write).then_some(now),
            Some(self.heartbeat.next),
            self.backlog.then(|| self.progress + millis(self.parts.limits.stall_ms)),
            self.deaf_until,
            self.retry_at,
            self.pass.deadline(now),
        ];
        let deadline = deadlines.into_iter().flatten().min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let interest = Interest {
            read: self.subscriber.wants_input(),
            write: self.backlog,
            wake: self.deaf_until.is_none(),
        };
        let socket = self.socket.get_ref().stream.as_fd();
        self.waiter.wait(socket, interest, timeout).map_err(|_| End::Gone)
    }

    fn read(&mut self) -> Result<(), End> {
        for _ in 0..limits::MESSAGES_PER_TURN {
            if !self.subscriber.wants_input() {
                break;
            }
            let message = match self.socket.read() {
                Ok(message) => message,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.more_input = false;
                    return Ok(());
                }
                Err(error) => return Err(end_of(&error)),
            };
            self.heartbeat.answered = true;
            self.heartbeat.heard = Some(Instant::now());
            self.parts.auth.used_by(&self.parts.caller);
            if !matches!(message, Message::Pong(_)) && !self.allowance.take(Instant::now()) {
                return Err(End::ByUs(CloseCode::Library(4002), "too many messages"));
            }
            match message {
                Message::Text(text) => self.message(text.as_bytes()),
                Message::Binary(bytes) => self.message(&bytes),
                Message::Close(_) => return Err(End::ByClient),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        self.more_input = true;
        Ok(())
    }

    fn message(&mut self, bytes: &[u8]) {
        self.subscriber.message(decode(bytes), Millis::now());
        self.tally.is(self.subscriber.by());
        self.act();
    }

    /// Does what the messages ask for, as far as the outbox has room for the replies.
    fn act(&mut self) {
        while let Some(action) = self.subscriber.next_action() {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        let registry = self.parts.registry;
        let (now, by) = (Millis::now(), self.subscriber.by().clone());
        match action {
            Action::Send { prompt, reply } => {
                let (session, id) = (prompt.session, prompt.client_message_id.clone());
                match registry.send(prompt, now) {
                    Ok(Sent::Queued(queued)) => {
                        self.await_settled(&queued.pending);
                        registry.watch(&self.waker, session);
                        let registry::AcceptedToQueue { id: queue_id, pending, .. } = queued;
                        let queued = QueuedPrompt {
                            id: queue_id,
                            position: queued.position,
                            duplicate: queued.duplicate,
                            cursor: queued.cursor,
                        };
                        self.subscriber.queued(reply, session, queued, id, pending);
                    }
                    Ok(Sent::Run(accepted)) => {
                        self.await_settled(&accepted.pending);
                        // From here on the session stays in memory, so that it can be followed.
                        registry.watch(&self.waker, session);
                        let registry::Accepted { run, duplicate, cursor, pending } = accepted;
                        let accepted = AcceptedRun { session, run, duplicate, cursor };
                        self.subscriber.accepted(reply, accepted, id, pending);
                    }
                    Err(refusal) => self.refuse(reply, refusal),
                }
            }
            Action::Abort { session, run, reply } => match registry.abort(session, run, &by, now) {
                Ok(aborting) => {
                    let ack = Ack { run_id: Some(aborting.run), ..Ack::of("chat.abort") };
                    self.acknowledge(reply, ack, aborting.pending);
                }
                Err(refusal) => self.refuse(reply, refusal),
            },
            Action::Answer { request, answer, reply } => {
                match registry.answer(&request, &answer, &by, now) {
                    Ok(accepted) => {
                        let ack = Ack {
                            session_id: Some(accepted.session.to_string()),
                            run_id: Some(accepted.run),
                            request_id: Some(request),
                            state: Some(AnswerState::Recorded),
                            ..Ack::of("chat.permission-response")
                        };
                        self.acknowledge(reply, ack, accepted.pending);
                    }
                    Err(refusal) => self.refuse(reply, refusal),
                }
            }
            Action::Subscribe { target, reply } => {
                let outcome = registry.subscribe(&self.waker, &target);
                if let Ok(subscribed) = &outcome {
                    self.tally.subscribed(&target, subscribed);
                }
                self.subscriber.subscribed(reply, target.session, outcome);
            }
            Action::Unsubscribe { session, reply } => {
                registry.unsubscribe(&self.waker, session);
                self.subscriber.unsubscribed(session);
                self.tally.left(session);
                self.acknowledge(reply, Ack::of("chat.unsubscribe"), Pending::done());
            }
        }
    }

    fn acknowledge(&mut self, reply: ReplyTo, mut ack: Ack, pending: Pending) {
        self.await_settled(&pending);
        ack.session_id = ack.session_id.or_else(|| reply.session.clone());
        self.subscriber.acknowledged(reply, ack, Some(pending));
    }

    fn refuse(&mut self, reply: ReplyTo, refusal: Refusal) {
        self.subscriber.refused(reply, error_code(refusal.code), refusal.message);
    }

    /// Has this thread woken when a ticket is settled. How it stands is asked for each reply.
    fn await_settled(&self, pending: &Pending) {
        let _already: Settled = pending.wake(&self.waker);
    }

    /// Sends the replies that are ready, and goes on with what waited for room for more.
    fn answer(&mut self) -> Result<(), End> {
        self.act();
        while !self.backlog
            && let Some(reply) = self.subscriber.next_reply(Millis::now())
        {
            self.put(reply)?;
            self.act();
        }
        Ok(())
    }

    fn tell_news(&mut self) -> Result<(), End> {
        if self.news.stale && self.news.is_empty() {
            let cursor: &mut AnnouncementCursor = &mut self.news.cursor;
            let announced = self.parts.registry.broadcasts().read(&self.waker, cursor);
            self.news.add(announced);
        }
        let mut budget = limits::PULL_BYTES;
        while !self.backlog
            && budget > 0
            && let Some(item) = self.news.pop()
        {
            if let Some(frame) = news::frame(item, self.parts.readers) {
                let text = frame.encode(None, Millis::now());
                budget = budget.saturating_sub(text.len());
                self.put(text)?;
            }
        }
        Ok(())
    }

    /// Reads events and sends them, about `limits::PULL_BYTES` and at least one.
    fn pull(&mut self) -> Result<(), End> {
        let mut budget = limits::PULL_BYTES;
        let mut sent = false;
        while !self.backlog
            && budget > 0
            && self.retry_at.is_none()
            && let Some((session, cursor)) = self.subscriber.next_read()
        {
            match self.parts.registry.read(&self.waker, session, cursor, budget) {
                registry::Read::Frames(frames) => {
                    // A commit that made frames readable also settled its tickets: their replies
                    // go first.
                    self.answer()?;
                    if self.subscriber.cursor(session) != Some(cursor) {
                        // An unsubscribe or another subscribe was among what waited.
                        continue;
                    }
                    let live = self.tally.is_live(session);
                    let last = frames.last().filter(|_| live).and_then(|(_, text)| time_of(text));
                    for (at, text) in frames {
                        if self.backlog {
                            break;
                        }
                        self.tally.sent(session, at);
                        budget = budget.saturating_sub(text.len());
                        sent = true;
                        self.put(text)?;
                        self.pass(session, at)?;
                    }
                    self.tally.sent_live(last.filter(|_| !self.backlog));
                }
                registry::Read::Gap { gap, cursor } => {
                    let gap = GatewayFrame::Gap { session_id: session, gap: gap_range(gap) };
                    self.put(gap.encode(None, Millis::now()))?;
                    self.pass(session, cursor)?;
                }
                registry::Read::CaughtUp => self.subscriber.caught_up(session),
                registry::Read::Ended => {
                    if !self.parts.registry.watch_on(&self.waker, session) {
                        self.subscriber.ended(session);
                    }
                }
                registry::Read::Unavailable(error) => {
                    tracing::warn!(%session, error, "the log cannot be read; trying again");
                    self.retry_at = Some(after(limits::STORE_RETRY_MS));
                }
            }
        }
        if sent && self.subscriber.is_caught_up() {
            self.tally.caught_up();
            self.deaf_until = Some(after(limits::WAKE_GAP_MS));
        }
        Ok(())
    }

    fn pass(&mut self, session: SessionId, at: Position) -> Result<(), End> {
        match self.subscriber.passed(session, at) {
            Some(caught_up) => {
                self.tally.replayed(session);
                self.put(caught_up.encode(None, Millis::now()))
            }
            None => Ok(()),
        }
    }

    /// Hands a frame to tungstenite. `WouldBlock` means that it was taken and waits; it must not
    /// be given twice. Nothing is put while something waits, so each frame finds room.
    fn put(&mut self, text: Utf8Bytes) -> Result<(), End> {
        match self.socket.write(Message::Text(text)) {
            Ok(()) => Ok(()),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.backlog = true;
                Ok(())
            }
            Err(error) => Err(end_of(&error)),
        }
    }

    fn flush(&mut self) -> Result<(), End> {
        let flushed = self.socket.flush();
        let sent = self.socket.get_ref().sent;
        self.backlog = match flushed {
            Ok(()) => false,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => return Err(end_of(&error)),
        };
        if !self.backlog {
            self.tally.flushed();
        }
        if sent != self.sent || !self.backlog {
            self.sent = sent;
            self.progress = Instant::now();
        }
        Ok(())
    }

    /// Pings, and ends a connection whose client left the last ping unanswered. While bytes wait
    /// or we do not read, an answer cannot be expected: that is `check_stall`'s case.
    fn beat(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if now < self.heartbeat.next {
            return Ok(());
        }
        let excused = self.backlog || !self.subscriber.wants_input();
        if !self.heartbeat.answered && !excused {
            return Err(End::ByUs(CloseCode::Library(4001), "no answer to a ping"));
        }
        self.heartbeat.next = now + millis(self.parts.limits.heartbeat_ms);
        self.heartbeat.answered = excused;
        if excused {
            return Ok(());
        }
        match self.socket.write(Message::Ping(tungstenite::Bytes::new())) {
            Ok(()) => self.flush(),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => self.flush(),
            Err(error) => Err(end_of(&error)),
        }
    }

    fn check_stall(&self) -> Result<(), End> {
        if self.backlog && self.progress.elapsed() >= millis(self.parts.limits.stall_ms) {
            return Err(End::ByUs(CloseCode::Library(4000), "stalled"));
        }
        Ok(())
    }

    /// A server that drains lets a client go once it has all that it will get.
    fn check_drained(&self) -> Result<(), End> {
        let told = self.news.draining_told && self.news.is_empty();
        let done = self.subscriber.is_done() && !self.backlog && told;
        if done && self.waiter.order() == Order::Drain {
            return Err(End::ByUs(CloseCode::Away, "the server stops"));
        }
        Ok(())
    }

    /// Says good-bye, as far as the client still listens, and waits a moment for it to hang up.
    fn farewell(&mut self, end: &End) {
        match end {
            End::Gone => return,
            End::ByClient => {}
            End::ByUs(code, reason) => {
                let frame = CloseFrame { code: *code, reason: Utf8Bytes::from_static(reason) };
                // Whatever it says, the flushes below tell how it went.
                self.socket.close(Some(frame)).ok();
            }
        }
        let until = after(limits::FAREWELL_MS);
        let stalled = matches!(end, End::ByUs(CloseCode::Library(4000), _));
        while let Err(Error::Io(error)) = self.socket.flush() {
            let socket = Socket { stream: &self.socket.get_ref().stream, waiter: self.waiter };
            let waited = socket.wait_after(&error, true, until, Order::Stop);
            if stalled || waited != Ok(()) {
                return;
            }
        }
        Socket { stream: &self.socket.get_ref().stream, waiter: self.waiter }.farewell();
    }
}

/// A WebSocket with all its bounds set: two of tungstenite's defaults are "unlimited". On the heap
/// and in a frame of its own, for the same reason as `Connection::open`.
#[inline(never)]
fn websocket(stream: Stream, leftover: Vec<u8>, limits: &Limits) -> Box<WebSocket<Counted>> {
    let bytes_max = Some(limits.message_bytes_max);
    let config = WebSocketConfig::default()
        .read_buffer_size(limits::READ_BUFFER_BYTES)
        .write_buffer_size(limits::PULL_BYTES)
        .max_write_buffer_size(limits::WRITE_BUFFER_BYTES_MAX)
        .max_message_size(bytes_max)
        .max_frame_size(bytes_max);
    let counted = Counted { stream, sent: 0 };
    Box::new(WebSocket::from_partially_read(counted, leftover, Role::Server, Some(config)))
}

/// What an error of the WebSocket means for the connection.
fn end_of(error: &Error) -> End {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            End::ByUs(CloseCode::Size, "the message is too large")
        }
        Error::WriteBufferFull(_) => End::ByUs(CloseCode::Error, "a frame did not fit"),
        Error::Utf8(_) => End::ByUs(CloseCode::Invalid, "a text frame must be UTF-8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
        Error::Protocol(_) => End::ByUs(CloseCode::Protocol, "not the WebSocket protocol"),
        _ => End::Gone,
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

struct Heartbeat {
    next: Instant,
    /// The client said something since the last ping.
    answered: bool,
    /// When it was last heard from, if that was not told yet.
    heard: Option<Instant>,
}

impl Heartbeat {
    fn new(every_ms: i64, now: Instant) -> Self {
        Self { next: now + millis(every_ms), answered: true, heard: None }
    }
}
