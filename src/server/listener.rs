//! Accepts connections, gives each a thread, and joins them all.
//!
//! Bounded: a process dies near 16,000 threads, so one connection too many gets a 503. Must not
//! know what a connection does.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use http::StatusCode;

use crate::limits;
use crate::server::crowd::{Caps, Crowd, Full, Place};
use crate::server::http::response::Response;
use crate::server::local::SocketFile;
use crate::server::socket::after;
use crate::server::stream::Door;
pub use crate::server::stream::{Peer, Stream};
use crate::server::wait::{Doorbell, Order, Waiter};
use crate::sync::Arc;

/// What is done with a connection, on its own thread; and what is left to do of it, for long, on
/// a fresh one. What a thread once needed of stack and heap it keeps to its end, so a connection
/// that may idle for days should not be the thread that parsed its handshake.
pub type Serve = dyn Fn(Stream, Peer, &Waiter) -> Option<Rest> + Send + Sync;

/// The long rest of a connection: it counts no more among those that speak HTTP.
pub type Rest = Box<dyn FnOnce(&Waiter) + Send>;

/// The thread that accepts, and the threads that serve.
#[derive(Debug)]
pub struct Listener {
    bell: Doorbell,
    thread: Option<JoinHandle<()>>,
    crowd: Arc<Crowd>,
}

impl Listener {
    /// Accepts on `doors` from now on, as many connections as `caps` says. `file` goes when
    /// accepting ends. `fatal` hears of it if the accepting thread panics, which the program does
    /// not survive.
    ///
    /// # Errors
    /// If no descriptor or thread is to be had.
    pub fn start(
        doors: Vec<Door>,
        file: Option<SocketFile>,
        caps: Caps,
        serve: Arc<Serve>,
        fatal: Sender<String>,
    ) -> io::Result<Self> {
        doors.iter().try_for_each(Door::set_nonblocking)?;
        let waiter = Waiter::new()?;
        let bell = waiter.bell();
        let crowd = Arc::new(Crowd::new(caps, waiter.bell()));
        let own = crowd.clone();
        let thread = thread::Builder::new().name("listener".into()).spawn(move || {
            let _report = ReportPanic(fatal);
            let _file = file;
            accept(&doors, &waiter, &Reception { crowd: own, serve });
        })?;
        Ok(Self { bell, thread: Some(thread), crowd })
    }

    /// Takes no more connections; those that are there come to their ends by themselves.
    pub fn drain(&self) {
        self.bell.give(Order::Drain);
        self.crowd.order(Order::Drain);
    }

    /// Waits for all connections to end, and makes those end that are left at `deadline`. `false`
    /// if some had to be left behind.
    #[must_use]
    pub fn join(mut self, deadline: Instant) -> bool {
        self.drain();
        if !self.crowd.wait_empty(deadline) {
            self.crowd.order(Order::Stop);
        }
        // Good-byes take this long at most.
        let last = after(2 * limits::FAREWELL_MS);
        let empty = self.crowd.wait_empty(last);
        if let Some(thread) = self.thread.take() {
            // It reported its own panic.
            thread.join().ok();
        }
        if empty {
            self.crowd.join_all();
        } else {
            self.crowd.join_gone();
        }
        empty
    }
}

struct ReportPanic(Sender<String>);

impl Drop for ReportPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            // Full: somebody has reported something fatal already.
            self.0.try_send("the listener's thread panicked".into()).ok();
        }
    }
}

fn accept(doors: &[Door], waiter: &Waiter, reception: &Reception) {
    let sockets: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
    let mut refused = RefusedOnes::default();
    let mut pause = None;
    while waiter.order() == Order::Serve {
        let watched = if pause.is_none() { &sockets[..] } else { &[] };
        let due = refused.due();
        let timeout: Option<Duration> = [pause.take(), due].into_iter().flatten().min();
        let Ok(woken) = waiter.wait_any(watched, timeout) else {
            return;
        };
        if woken {
            waiter.drain();
            reception.crowd.join_gone();
        }
        refused.forget_old();
        // One of each, so that a crowd at the one does not keep the owner out at the other.
        for door in doors {
            match door.accept() {
                Ok((stream, peer)) => {
                    if let Err((stream, full)) = reception.admit(stream, peer) {
                        refused.add(stream, full);
                    }
                }
                Err(error) if transient(&error) => {}
                Err(error) => {
                    // Out of descriptors, say. The connection waits in the kernel; so do we.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    refused = RefusedOnes::default();
                    pause = Some(Duration::from_millis(limits::ACCEPT_RETRY_MS.unsigned_abs()));
                }
            }
        }
    }
}

/// Errors of a connection that was gone before it was accepted, or of nothing at all.
fn transient(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied | WouldBlock
    )
}

/// Where those who come in are given a place and a thread.
struct Reception {
    crowd: Arc<Crowd>,
    serve: Arc<Serve>,
}

impl Reception {
    /// Gives the stream back if it cannot be served.
    fn admit(&self, stream: Stream, peer: Peer) -> Result<(), (Stream, Full)> {
        let (Ok(()), Ok(waiter)) = (stream.prepare(), Waiter::new()) else {
            return Err((stream, Full::All));
        };
        let place = match self.crowd.enter(peer, waiter.bell()) {
            Ok(place) => Arc::new(place),
            Err(full) => return Err((stream, full)),
        };
        // For the answer if there is no thread to be had.
        let spare = stream.try_clone();
        let (serve, own) = (self.serve.clone(), place.clone());
        let spawned = place.spawn(move || {
            if let Some(rest) = serve(stream, peer, &waiter) {
                go_on(rest, waiter, own);
            }
        });
        match (spawned, spare) {
            (Err(error), Ok(spare)) => {
                tracing::warn!(%error, "no thread for a connection");
                Err((spare, Full::All))
            }
            _ => Ok(()),
        }
    }
}

/// The long rest of a connection, on a thread that has nothing behind it.
fn go_on(rest: Rest, waiter: Waiter, place: Arc<Place>) {
    place.leave_http();
    let own = place.clone();
    let spawned = place.spawn(move || {
        let _place = own;
        rest(&waiter);
    });
    if let Err(error) = spawned {
        // The client sees its connection end, and comes back.
        tracing::warn!(%error, "no thread for a connection");
    }
}

/// Connections that were told no, and whose clients have yet to read that: closing while they
/// still send would reset the connection, and the answer with it.
#[derive(Default)]
struct RefusedOnes(VecDeque<(Stream, Instant)>);

impl RefusedOnes {
    /// Sends a 503, as far as it fits without waiting, and ends our direction.
    fn add(&mut self, stream: Stream, full: Full) {
        // Best effort: the other side sees the end in any case.
        stream.prepare().ok();
        (&mut &stream).write_all(&no_place(full).encode(true, true)).ok();
        stream.shutdown(Shutdown::Write).ok();
        if self.0.len() >= limits::REFUSED_CONNECTIONS_MAX {
            self.0.pop_front().iter().for_each(|(stream, _)| drain(stream));
        }
        self.0.push_back((stream, after(limits::FAREWELL_MS)));
    }

    /// How long the next one has left.
    fn due(&self) -> Option<Duration> {
        let (_, until) = self.0.front()?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn forget_old(&mut self) {
        let now = Instant::now();
        while let Some((stream, _)) = self.0.pop_front_if(|(_, until)| *until <= now) {
            drain(&stream);
        }
    }
}

/// Takes what a client has sent by now, so that closing is an end and no reset.
fn drain(mut stream: &Stream) {
    let mut sink = [0; 4096];
    for _ in 0..limits::HEAD_BYTES_MAX / sink.len() {
        if !matches!(stream.read(&mut sink), Ok(1..)) {
            return;
        }
    }
}

fn no_place(full: Full) -> Response {
    let (code, message) = match full {
        Full::All => (
            "TOO_MANY_CONNECTIONS",
            "As many connections are served as limits.connections_max or the system allows; \
             try again.",
        ),
        Full::Http => (
            "TOO_MANY_CONNECTIONS",
            "As many connections are at a request, or between two, as limits.connections_http_max \
             allows; try again.",
        ),
        Full::PerPeer => (
            "TOO_MANY_CONNECTIONS",
            "As many connections come from your address as limits.connections_per_peer_max \
             allows; close some, or try again.",
        ),
        Full::Stopping => ("SHUTTING_DOWN", "The server stops; try again."),
    };
    Response::error(StatusCode::SERVICE_UNAVAILABLE, code, message).with("Retry-After", "1")
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use crossbeam_channel::bounded;

    use super::*;
    use crate::server::wait::Interest;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn connect(address: std::net::SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        stream
    }

    /// Greets, then waits for the end of the input, or for an order.
    fn hold(stream: &Stream, waiter: &Waiter) {
        (&mut &*stream).write_all(b"!").expect("greeted");
        let interest = Interest { read: true, write: false, wake: true };
        let mut byte = [0];
        loop {
            if waiter.order() == Order::Stop {
                return;
            }
            match (&mut &*stream).read(&mut byte) {
                Ok(0) => return,
                Ok(_) => assert_ne!(byte[0], b'p', "told to panic"),
                Err(_) => {
                    waiter.wait(stream.as_fd(), interest, None).expect("polled");
                    waiter.drain();
                }
            }
        }
    }

    fn listen(max: usize) -> (Listener, std::net::SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let (fatal, _) = bounded(1);
        let caps = Caps { all: max, http: max, per_peer: max };
        let serve: Arc<Serve> = Arc::new(|stream, _, _: &Waiter| {
            Some(Box::new(move |waiter: &Waiter| hold(&stream, waiter)))
        });
        (
            Listener::start(vec![Door::Tcp(socket)], None, caps, serve, fatal).expect("started"),
            address,
        )
    }

    fn greeted(stream: &mut TcpStream) -> u8 {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a byte");
        byte[0]
    }

    #[test]
    fn one_too_many_is_told_so_and_a_place_is_given_back() {
        let (listener, address) = listen(2);
        let mut first = connect(address);
        let mut second = connect(address);
        assert_eq!([greeted(&mut first), greeted(&mut second)], *b"!!");
        let mut text = String::new();
        let mut third = connect(address);
        third.read_to_string(&mut text).expect("an answer");
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        // It may still be sending: what it sends is taken, so that nothing resets its connection.
        for _ in 0..2 {
            third.write_all(b"GET / HTTP/1.1\r\n").expect("taken");
        }
        drop(first);
        // Its thread needs a moment to notice: until then the answer is the same.
        let until = soon();
        while Instant::now() < until {
            if greeted(&mut connect(address)) == b'!' {
                break;
            }
        }
        assert!(Instant::now() < until, "a place was given back");
        drop(second);
        assert!(listener.join(soon()));
    }

    #[test]
    fn a_panic_is_one_connections_own() {
        let (listener, address) = listen(1);
        let mut first = connect(address);
        assert_eq!(greeted(&mut first), b'!');
        first.write_all(b"p").expect("sent");
        let mut rest = Vec::new();
        // Closed or reset, whichever: it is gone.
        first.read_to_end(&mut rest).ok();
        let until = soon();
        while Instant::now() < until && greeted(&mut connect(address)) != b'!' {}
        assert!(Instant::now() < until, "the place was given back");
        assert!(listener.join(Instant::now()));
    }

    #[test]
    fn those_who_do_not_go_by_themselves_are_stopped() {
        let (listener, address) = listen(8);
        let mut client = connect(address);
        assert_eq!(greeted(&mut client), b'!');
        listener.drain();
        assert!(listener.join(Instant::now()));
        assert_eq!(client.read(&mut [0]).expect("the end"), 0);
    }
}
