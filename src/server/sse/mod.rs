//! One session's log as server-sent events: an HTTP answer without an end, served by one thread.
//!
//! The same frames from the same read path as a WebSocket's, read when they can be sent: a slow
//! client costs a cursor and one turn's bytes, not a queue. A client that comes back names the
//! last id that it saw. Must not know HTTP requests, nor what a frame says.

mod wire;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::limits::{self, Limits};
use crate::metrics::Metrics;
use crate::metrics::labels::{Drop as Dropped, Transport};
use crate::protocol::gateway::GatewayFrame;
use crate::registry::{self, AnnouncementCursor, From, Registry, SubscribeError, Target};
use crate::run::id::{Millis, Position, Seq};
use crate::run::wake::Waker;
use crate::server::auth::{Caller, Pass};
use crate::server::http::response::Response;
use crate::server::news::mode_word;
use crate::server::socket::{Socket, after};
use crate::server::statement::{gap_range, statement};
use crate::server::stream::Stream;
use crate::server::tally::{Tally, time_of};
use crate::server::wait::{Interest, Order, Ready, Waiter};
use crate::sync::Arc;

pub use wire::NO_RUN;
use wire::{Outgoing, Place, Reading};

/// What a stream tells.
#[derive(Clone, Debug)]
pub struct Follow {
    /// Of which session, and from where.
    pub target: Target,
    /// Something before that is left out, which the client did not ask for by a cursor.
    pub skips: bool,
}

/// What a stream is given.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The registry.
    pub registry: &'a Arc<Registry>,
    /// What is counted.
    pub metrics: &'a Arc<Metrics>,
    /// The bounds in force.
    pub limits: &'a Limits,
    /// Who asked.
    pub caller: Caller,
}

/// The head of the answer. Nothing on the way may keep it, change it or hold it back: a proxy
/// that gathers an answer before it passes it on would never pass this one on.
#[must_use]
pub fn head() -> Response {
    let content_type = Some("text/event-stream");
    Response { content_type, ..Response::empty(StatusCode::OK) }
        .with("Cache-Control", "no-store, no-transform")
        .with("X-Accel-Buffering", "no")
        .with("Vary", "Accept")
}

/// Tells `follow` on a socket to which the head was sent, to its end.
pub fn serve(stream: Stream, waiter: &Waiter, follow: Follow, parts: Parts<'_>) {
    let mut telling = Telling::open(stream, waiter, follow, parts);
    let end = loop {
        if let Err(end) = telling.turn() {
            break end;
        }
    };
    telling.tally.ended(match end {
        End::Gone => Dropped::Peer,
        End::Stalled => Dropped::Slow,
        End::ByUs if telling.parts.registry.is_closing() => Dropped::Shutdown,
        End::ByUs => Dropped::Deleted,
    });
    telling.farewell(end);
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client is gone.
    Gone,
    /// The client takes nothing.
    Stalled,
    /// We end it; what waits is sent as far as it goes.
    ByUs,
}

struct Telling<'a> {
    socket: Stream,
    waiter: &'a Waiter,
    waker: Waker,
    parts: Parts<'a>,
    follow: Follow,
    /// `None` until the session is subscribed to.
    reading: Option<Reading>,
    /// What was durable at the time of the subscribe: `caught_up` is due on passing it.
    mark: Option<(Position, Place)>,
    /// There may be something to read.
    behind: bool,
    broadcasts: AnnouncementCursor,
    /// There may be news.
    stale: bool,
    /// Nothing more will come.
    over: bool,
    out: Outgoing,
    tally: Tally,
    /// When a byte last left, or nothing was waiting.
    progress: Instant,
    beat_at: Instant,
    /// Wake-ups are left alone until then.
    deaf_until: Option<Instant>,
    /// The disk could not be read: not again before then.
    retry_at: Option<Instant>,
    /// What the client sent after its request.
    input: usize,
    /// What the client came in by.
    pass: Pass,
}

/// The registry forgets the stream however it ends.
impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.parts.registry.forget(&self.waker);
    }
}

impl<'a> Telling<'a> {
    /// On the heap and in a frame of its own, as a WebSocket: what a thread's stack once held it
    /// keeps.
    #[inline(never)]
    fn open(socket: Stream, waiter: &'a Waiter, follow: Follow, parts: Parts<'a>) -> Box<Self> {
        let waker = Waker::new(Box::new(waiter.bell()));
        let now = Instant::now();
        let mut out = Outgoing::new(parts.registry.epoch());
        out.retry(limits::SSE_RETRY_MS);
        give_up_on_the_dead(&socket, parts.limits);
        let pass = Pass::of(&parts.caller, waiter.bell());
        Box::new(Self {
            pass,
            broadcasts: parts.registry.broadcasts().join(&waker),
            beat_at: now + millis(parts.limits.heartbeat_ms),
            tally: Tally::new(parts.metrics.client(Transport::Events)),
            socket,
            waiter,
            waker,
            parts,
            follow,
            reading: None,
            mark: None,
            behind: true,
            stale: true,
            over: false,
            out,
            progress: now,
            deaf_until: None,
            retry_at: None,
            input: 0,
        })
    }

    fn turn(&mut self) -> Result<(), End> {
        let ready = self.wait()?;
        if ready.woken {
            // The bell first, then what it rang for: another order loses wake-ups (I4c).
            self.waiter.drain();
            let woken = self.waker.take();
            self.behind |= woken.sessions.contains(&self.follow.target.session);
            self.stale |= woken.broadcast;
        }
        if self.waiter.order() == Order::Stop {
            return Err(End::ByUs);
        }
        if self.pass.is_over() {
            // What waits is for somebody who may not see it any more.
            return Err(End::Gone);
        }
        if ready.readable || ready.gone {
            self.discard_input()?;
        }
        self.flush()?;
        if self.out.waiting().is_empty() {
            self.tell_news();
            self.pull();
            self.beat();
            self.flush()?;
        }
        self.check_stall()?;
        match self.over && self.out.waiting().is_empty() {
            true => Err(End::ByUs),
            false => Ok(()),
        }
    }

    /// Waits until there is something to do. What to wait for is a function of the state alone.
    fn wait(&mut self) -> Result<Ready, End> {
        let now = Instant::now();
        self.deaf_until.take_if(|until| *until <= now);
        self.retry_at.take_if(|until| *until <= now);
        let backlog = !self.out.waiting().is_empty();
        let to_tell = self.stale || (self.behind && self.retry_at.is_none());
        let deadlines = [
            (to_tell && !backlog).then_some(now),
            (!backlog).then_some(self.beat_at),
            backlog.then(|| self.progress + millis(self.parts.limits.stall_ms)),
            self.deaf_until,
            self.retry_at,
            self.pass.deadline(now),
        ];
        let deadline = deadlines.into_iter().flatten().min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let interest = Interest { read: true, write: backlog, wake: self.deaf_until.is_none() };
        self.waiter.wait(self.socket.as_fd(), interest, timeout).map_err(|_| End::Gone)
    }

    /// The request was the last one of its connection, so whatever comes after it is not read;
    /// only that the client hangs up is.
    fn discard_input(&mut self) -> Result<(), End> {
        let mut sink = [0; 256];
        while self.input <= limits::SSE_INPUT_BYTES_MAX {
            match (&mut &self.socket).read(&mut sink) {
                Ok(0) => return Err(End::Gone),
                Ok(count) => self.input += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(End::Gone),
            }
        }
        Err(End::Gone)
    }

    /// Of what everybody hears, a stream tells that the server stops.
    fn tell_news(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let news = self.parts.registry.broadcasts().read(&self.waker, &mut self.broadcasts);
        if let Some(mode) = news.draining {
            self.tell(None, &GatewayFrame::ServerDraining { mode: mode_word(mode).to_owned() });
        }
    }

    /// Reads what comes next, about `limits::PULL_BYTES` of it.
    fn pull(&mut self) {
        let registry = self.parts.registry;
        let session = self.follow.target.session;
        let mut sent = false;
        while self.behind && !self.over && self.retry_at.is_none() {
            let budget = limits::PULL_BYTES.saturating_sub(self.out.waiting().len());
            if budget == 0 {
                break;
            }
            let Some(reading) = &mut self.reading else {
                self.begin();
                continue;
            };
            match registry.read(&self.waker, session, reading.cursor, budget) {
                registry::Read::Frames(frames) => {
                    sent = true;
                    let live = self.tally.is_live(session);
                    let last = frames.last().filter(|_| live).and_then(|(_, text)| time_of(text));
                    self.tally.sent_live(last);
                    for (at, text) in frames {
                        let place = reading.pass(at, &text);
                        self.out.event(place, &text);
                        self.tally.sent(session, at);
                        if self.mark.is_some_and(|(mark, _)| mark <= at) {
                            break;
                        }
                    }
                    self.pass_mark();
                }
                registry::Read::Gap { gap, cursor } => {
                    let place = Place { run: gap.to.0, seq: gap.to.1 };
                    reading.skip(cursor, place);
                    let gap = GatewayFrame::Gap { session_id: session, gap: gap_range(gap) };
                    self.tell(Some(place), &gap);
                    self.pass_mark();
                }
                registry::Read::CaughtUp => self.behind = false,
                registry::Read::Ended => self.ended(),
                registry::Read::Unavailable(error) => self.try_later(&error),
            }
        }
        if sent && !self.behind {
            self.tally.caught_up();
            self.deaf_until = Some(after(limits::WAKE_GAP_MS));
        }
    }

    /// Subscribes, and says how things stand.
    fn begin(&mut self) {
        let session = self.follow.target.session;
        let registry = self.parts.registry;
        match registry.subscribe(&self.waker, &self.follow.target) {
            Ok(mut subscribed) => {
                subscribed.recovered &= !self.follow.skips;
                let newest = match subscribed.statement.run {
                    Some(run) => Place { run, seq: subscribed.statement.last_seq },
                    None => Place { run: NO_RUN, seq: Seq(0) },
                };
                self.reading = Some(Reading::from(subscribed.cursor));
                self.mark = Some((subscribed.durable, newest));
                self.tally.subscribed(&self.follow.target, &subscribed);
                // Without an id: who does not get what follows comes back with the cursor that it
                // has, and is told the same.
                let frame = statement(session.to_string(), subscribed, registry.epoch());
                self.tell(None, &GatewayFrame::ChatSubscribed(Box::new(frame)));
                self.pass_mark();
            }
            Err(SubscribeError::StoreUnavailable(error)) => self.try_later(&error),
            // It was there when the request was answered.
            Err(SubscribeError::SessionNotFound | SubscribeError::RunNotFound) => self.deleted(),
        }
    }

    /// Says `caught_up` if that is due. Its id is the cursor that the client has by now, so that
    /// one that has seen no event yet has a cursor too.
    fn pass_mark(&mut self) {
        let Some(reading) = &self.reading else { return };
        let Some((_, newest)) = self.mark.take_if(|(mark, _)| *mark <= reading.cursor) else {
            return;
        };
        let place = reading.told(newest);
        self.tally.replayed(self.follow.target.session);
        let caught_up = GatewayFrame::CaughtUp {
            session_id: self.follow.target.session,
            run_id: Some(newest.run).filter(|run| *run != NO_RUN),
            seq: newest.seq,
        };
        self.tell(Some(place), &caught_up);
    }

    /// A read says that nothing more will come: the server stops, or the session is deleted, or
    /// it only left memory.
    fn ended(&mut self) {
        let registry = self.parts.registry;
        if registry.is_closing() {
            self.over = true;
            return;
        }
        // A probe: it gives a slot again, or says why there is none.
        let probe = Target { from: From::Tail, epoch: None, ..self.follow.target.clone() };
        match registry.subscribe(&self.waker, &probe) {
            Ok(_) => {}
            Err(SubscribeError::StoreUnavailable(error)) => self.try_later(&error),
            Err(SubscribeError::SessionNotFound | SubscribeError::RunNotFound) => self.deleted(),
        }
    }

    /// The end; a client that comes back nevertheless gets a 404, at which it stops.
    fn deleted(&mut self) {
        let session_id = self.follow.target.session;
        self.tell(None, &GatewayFrame::SessionDeleted { session_id });
        self.over = true;
    }

    fn try_later(&mut self, error: &str) {
        let session = self.follow.target.session;
        tracing::warn!(%session, error, "the log cannot be read; trying again");
        self.retry_at = Some(after(limits::STORE_RETRY_MS));
    }

    fn tell(&mut self, place: Option<Place>, frame: &GatewayFrame) {
        self.out.event(place, &frame.encode(None, Millis::now()));
    }

    /// A comment now and then, while nothing else waits: it keeps proxies from closing what looks
    /// idle, and meets the client that is no longer there.
    fn beat(&mut self) {
        let now = Instant::now();
        if now >= self.beat_at {
            self.out.ping();
            self.beat_at = now + millis(self.parts.limits.heartbeat_ms);
        }
    }

    fn flush(&mut self) -> Result<(), End> {
        while !self.out.waiting().is_empty() {
            match (&mut &self.socket).write(self.out.waiting()) {
                Ok(0) => return Err(End::Gone),
                Ok(count) => {
                    self.out.left(count);
                    self.progress = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(End::Gone),
            }
        }
        self.tally.flushed();
        self.progress = Instant::now();
        Ok(())
    }

    fn check_stall(&self) -> Result<(), End> {
        let waits = !self.out.waiting().is_empty();
        if waits && self.progress.elapsed() >= millis(self.parts.limits.stall_ms) {
            tracing::info!("closing a stream: stalled");
            return Err(End::Stalled);
        }
        Ok(())
    }

    /// Sends what waits, as far as the client still takes it, and lets it read that.
    fn farewell(&mut self, end: End) {
        if end != End::ByUs {
            return;
        }
        let until = after(limits::FAREWELL_MS);
        let socket = Socket { stream: &self.socket, waiter: self.waiter };
        while !self.out.waiting().is_empty() {
            match (&mut &self.socket).write(self.out.waiting()) {
                Ok(count) if count > 0 => self.out.left(count),
                Ok(_) => return,
                Err(error) => {
                    if socket.wait_after(&error, true, until, Order::Stop).is_err() {
                        return;
                    }
                }
            }
        }
        socket.farewell();
    }
}

/// A client whose network went away takes our comments for as long as the system keeps them, and
/// no answer of its own tells us: so the system is asked to give up when nothing was acknowledged
/// for as long as a WebSocket would be given.
fn give_up_on_the_dead(socket: &Stream, limits: &Limits) {
    #[cfg(target_os = "linux")]
    {
        let ms = limits.heartbeat_ms.saturating_add(limits.stall_ms);
        let ms = u32::try_from(ms).unwrap_or(u32::MAX);
        // Not every socket has it; then the stall rule alone stands.
        rustix::net::sockopt::set_tcp_user_timeout(socket, ms).ok();
    }
    #[cfg(not(target_os = "linux"))]
    let _: (&Stream, &Limits) = (socket, limits);
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}
