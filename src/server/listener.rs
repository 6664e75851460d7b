//! Accepts connections, gives each a thread, and joins them all.
//!
//! Bounded: a process dies near 16,000 threads, so one connection too many gets a 503. Must not
//! know what a connection does.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use http::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits;
use crate::run::wake::Bell;
use crate::server::http::response::Response;
use crate::server::local::SocketFile;
use crate::server::stream::Door;
pub use crate::server::stream::{Peer, Stream};
use crate::server::wait::{Doorbell, Order, Waiter};
use crate::sync::{Arc, Condvar, Mutex};

/// What is done with a connection, on its own thread; and what is left to do of it, for long, on
/// a fresh one. What a thread once needed of stack and heap it keeps to its end, so a connection
/// that may idle for days should not be the thread that parsed its handshake.
pub type Serve = dyn Fn(Stream, Peer, &Waiter) -> Option<Rest> + Send + Sync;

/// The long rest of a connection.
pub type Rest = Box<dyn FnOnce(&Waiter) + Send>;

/// The thread that accepts, and the threads that serve.
#[derive(Debug)]
pub struct Listener {
    bell: Doorbell,
    thread: Option<JoinHandle<()>>,
    crowd: Arc<Crowd>,
}

/// The connections that are served.
#[derive(Debug)]
struct Crowd {
    max: usize,
    state: Mutex<State>,
    /// Somebody left.
    left: Condvar,
    /// The listener's, which joins those who left.
    bell: Doorbell,
}

#[derive(Debug, Default)]
struct State {
    /// Of connections and threads, so that each has a number of its own.
    count: u64,
    live: BTreeMap<u64, Doorbell>,
    threads: BTreeMap<u64, JoinHandle<()>>,
    /// Threads that are at their ends.
    gone: Vec<u64>,
    order: Option<Order>,
}

impl Listener {
    /// Accepts on `doors` from now on, `max` connections at once. `file` goes when accepting ends.
    /// `fatal` hears of it if the accepting thread panics, which the program does not survive.
    ///
    /// # Errors
    /// If no descriptor or thread is to be had.
    pub fn start(
        doors: Vec<Door>,
        file: Option<SocketFile>,
        max: usize,
        serve: Arc<Serve>,
        fatal: Sender<String>,
    ) -> io::Result<Self> {
        doors.iter().try_for_each(Door::set_nonblocking)?;
        raise_descriptors();
        let waiter = Waiter::new()?;
        let bell = waiter.bell();
        let crowd = Arc::new(Crowd {
            max,
            state: Mutex::new(State::default()),
            left: Condvar::new(),
            bell: waiter.bell(),
        });
        let own = crowd.clone();
        let thread = thread::Builder::new().name("listener".into()).spawn(move || {
            let _report = ReportPanic(fatal);
            let _file = file;
            accept(&doors, &waiter, &own, &serve);
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
        let last = Instant::now() + millis(2 * limits::FAREWELL_MS);
        let empty = self.crowd.wait_empty(last);
        if let Some(thread) = self.thread.take() {
            // It reported its own panic.
            thread.join().ok();
        }
        if empty {
            // Whoever has given its place back has nothing left to do.
            let mut state = self.crowd.state.lock();
            let State { threads, gone, .. } = &mut *state;
            gone.extend(threads.keys());
        }
        self.crowd.join_gone();
        empty
    }
}

impl Crowd {
    fn order(&self, order: Order) {
        let bells: Vec<Doorbell> = {
            let mut state = self.state.lock();
            state.order = state.order.max(Some(order));
            state.live.values().cloned().collect()
        };
        for bell in bells {
            bell.give(order);
        }
    }

    fn wait_empty(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.live.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.left.wait_for(state, left);
        }
        true
    }

    /// A place for one more; `None` if there is none.
    fn enter(self: &Arc<Self>, bell: Doorbell) -> Option<Place> {
        let mut state = self.state.lock();
        if state.live.len() >= self.max || state.order.is_some() {
            return None;
        }
        state.count += 1;
        let number = state.count;
        state.live.insert(number, bell);
        drop(state);
        Some(Place { crowd: self.clone(), number })
    }

    /// Runs `work` on a thread of the connection's name.
    fn spawn(
        self: &Arc<Self>,
        connection: u64,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let thread = {
            let mut state = self.state.lock();
            state.count += 1;
            state.count
        };
        let leaving = Leaving { crowd: self.clone(), thread };
        let handle =
            thread::Builder::new().name(format!("conn-{connection}")).spawn(move || {
                let _leaving = leaving;
                work();
            })?;
        self.state.lock().threads.insert(thread, handle);
        Ok(())
    }

    fn join_gone(&self) {
        let threads: Vec<JoinHandle<()>> = {
            let mut state = self.state.lock();
            let State { threads, gone, .. } = &mut *state;
            let mut joined = Vec::new();
            // One that is not there yet is just being put there; its turn comes.
            gone.retain(|thread| match threads.remove(thread) {
                Some(handle) => {
                    joined.push(handle);
                    false
                }
                None => true,
            });
            joined
        };
        for thread in threads {
            // A panic is that connection's own: its hook has printed it, and the others go on.
            if thread.join().is_err() {
                tracing::error!("a connection's thread panicked");
            }
        }
    }
}

/// Says that a thread is at its end, however it came to it.
struct Leaving {
    crowd: Arc<Crowd>,
    thread: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.crowd.state.lock().gone.push(self.thread);
        self.crowd.bell.ring();
    }
}

/// One connection's place, given back however its threads end.
struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.state.lock().live.remove(&self.number);
        self.crowd.left.notify_all();
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

fn accept(doors: &[Door], waiter: &Waiter, crowd: &Arc<Crowd>, serve: &Arc<Serve>) {
    let mut pause = None;
    let sockets: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
    while waiter.order() == Order::Serve {
        let watched = if pause.is_none() { &sockets[..] } else { &[] };
        let Ok(woken) = waiter.wait_any(watched, pause.take()) else {
            return;
        };
        if woken {
            waiter.drain();
            crowd.join_gone();
        }
        // One of each, so that a crowd at the one does not keep the owner out at the other.
        for door in doors {
            match door.accept() {
                Ok((stream, peer)) => admit(stream, peer, crowd, serve),
                Err(error) if transient(&error) => {}
                Err(error) => {
                    // Out of descriptors, say. The connection waits in the kernel; so do we.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    pause = Some(millis(limits::ACCEPT_RETRY_MS));
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

fn admit(stream: Stream, peer: Peer, crowd: &Arc<Crowd>, serve: &Arc<Serve>) {
    let (Ok(()), Ok(waiter)) = (stream.prepare(), Waiter::new()) else {
        return refuse(&stream);
    };
    let Some(place) = crowd.enter(waiter.bell()) else {
        return refuse(&stream);
    };
    let number = place.number;
    // For the answer if there is no thread to be had.
    let spare = stream.try_clone();
    let serve = serve.clone();
    let spawned = crowd.spawn(number, move || {
        if let Some(rest) = serve(stream, peer, &waiter) {
            go_on(rest, waiter, place);
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a connection");
        if let Ok(stream) = spare {
            refuse(&stream);
        }
    }
}

/// The long rest of a connection, on a thread that has nothing behind it.
fn go_on(rest: Rest, waiter: Waiter, place: Place) {
    let (crowd, number) = (place.crowd.clone(), place.number);
    let spawned = crowd.spawn(number, move || {
        let _place = place;
        rest(&waiter);
    });
    if let Err(error) = spawned {
        // The client sees its connection end, and comes back.
        tracing::warn!(%error, "no thread for a connection");
    }
}

/// A 503, as far as it fits without waiting.
fn refuse(mut stream: &Stream) {
    let message = "As many connections are served as connections_max allows; try again.";
    let response =
        Response::error(StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_CONNECTIONS", message)
            .with("Retry-After", "1");
    // Best effort: the other side sees the end in any case.
    stream.prepare().ok();
    stream.write_all(&response.encode(true, true)).ok();
    stream.shutdown(Shutdown::Write).ok();
}

/// As many descriptors as the system lets us have: each connection needs two.
fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
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
        let serve: Arc<Serve> = Arc::new(|stream, _, _: &Waiter| {
            Some(Box::new(move |waiter: &Waiter| hold(&stream, waiter)))
        });
        (
            Listener::start(vec![Door::Tcp(socket)], None, max, serve, fatal).expect("started"),
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
        connect(address).read_to_string(&mut text).expect("an answer");
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
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
