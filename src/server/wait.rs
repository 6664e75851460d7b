//! How a thread waits for its socket and for its doorbell at once: `poll(2)`, level-triggered.
//!
//! Level-triggered means that interest is a pure function of the owner's state in each turn, and
//! that not reading is just not asking. The bell also carries the one order that the listener
//! gives its connections: to come to an end. Must not know what the socket carries.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::run::wake::Bell;
use crate::sync::{Arc, AtomicUsize, Ordering};

/// What to wait for, beside the time-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Input on the socket.
    pub read: bool,
    /// Room in the socket's send buffer.
    pub write: bool,
    /// The doorbell.
    pub wake: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is input, or its end.
    pub readable: bool,
    /// There is room.
    pub writable: bool,
    /// The doorbell rang. `Waiter::drain` it before looking at what it was rung for.
    pub woken: bool,
    /// Both directions are shut, or the socket failed: reported whatever the interest.
    pub gone: bool,
}

/// What the listener wants of a connection. It only ever rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Go on.
    Serve,
    /// Come to an end by yourself.
    Drain,
    /// End now.
    Stop,
}

/// One thread's place to wait.
#[derive(Debug)]
pub struct Waiter {
    bell: Doorbell,
}

/// The way to wake that thread. Clones ring the same bell.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: WakeFd,
    order: AtomicUsize,
}

impl Waiter {
    /// A new one.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let inner = Inner { fd: WakeFd::new()?, order: AtomicUsize::new(0) };
        Ok(Self { bell: Doorbell(Arc::new(inner)) })
    }

    /// What others ring.
    #[must_use]
    pub fn bell(&self) -> Doorbell {
        self.bell.clone()
    }

    /// What the listener wants.
    #[must_use]
    pub fn order(&self) -> Order {
        match self.bell.0.order.load(Ordering::SeqCst) {
            0 => Order::Serve,
            1 => Order::Drain,
            _ => Order::Stop,
        }
    }

    /// Silences the bell, so that the next ring is heard.
    pub fn drain(&self) {
        self.bell.0.fd.drain();
    }

    /// Waits for `socket` and the bell, at most for `timeout`; `None` waits without end.
    ///
    /// # Errors
    /// If the system refuses to poll. An interrupted wait is one in which nothing happened.
    pub fn wait(
        &self,
        socket: BorrowedFd<'_>,
        interest: Interest,
        timeout: Option<Duration>,
    ) -> io::Result<Ready> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, interest.read);
        flags.set(PollFlags::OUT, interest.write);
        let bell = self.bell.0.fd.as_fd();
        let mut fds = [PollFd::from_borrowed_fd(socket, flags), PollFd::new(&bell, PollFlags::IN)];
        let watched = if interest.wake { &mut fds[..] } else { &mut fds[..1] };
        // A time-out that does not fit is as good as none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(watched, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let socket = fds[0].revents();
        Ok(Ready {
            readable: socket.contains(PollFlags::IN),
            writable: socket.contains(PollFlags::OUT),
            woken: interest.wake && fds[1].revents().contains(PollFlags::IN),
            gone: socket.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
        })
    }

    /// Waits for input on any of `sockets` and for the bell, at most for `timeout`; says whether
    /// the bell rang.
    ///
    /// # Errors
    /// As `wait`.
    pub fn wait_any(
        &self,
        sockets: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        let bell = self.bell.0.fd.as_fd();
        let mut fds = vec![PollFd::new(&bell, PollFlags::IN)];
        fds.extend(sockets.iter().map(|socket| PollFd::from_borrowed_fd(*socket, PollFlags::IN)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(fds[0].revents().contains(PollFlags::IN)),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Doorbell {
    /// Gives an order, and rings so that it is seen.
    pub fn give(&self, order: Order) {
        self.0.order.fetch_max(order as usize, Ordering::SeqCst);
        self.ring();
    }
}

impl Bell for Doorbell {
    fn ring(&self) {
        self.0.fd.ring();
    }
}

/// A descriptor that becomes readable when rung and stays so until drained.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct WakeFd(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl WakeFd {
    fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
    }

    fn ring(&self) {
        // It fails only when the counter is full, and then it is readable already.
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).ok();
    }

    fn drain(&self) {
        // It fails only when nobody rang.
        rustix::io::read(&self.0, &mut [0_u8; 8]).ok();
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The same elsewhere: a pair of sockets.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct WakeFd {
    ours: std::os::unix::net::UnixStream,
    theirs: std::os::unix::net::UnixStream,
}

#[cfg(not(target_os = "linux"))]
impl WakeFd {
    fn new() -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok(Self { ours, theirs })
    }

    fn ring(&self) {
        // It fails only when the buffer is full, and then it is readable already.
        io::Write::write(&mut &self.theirs, &[1]).ok();
    }

    fn drain(&self) {
        let mut sink = [0_u8; 64];
        while matches!(io::Read::read(&mut &self.ours, &mut sink), Ok(n) if n == sink.len()) {}
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const SOON: Option<Duration> = Some(Duration::from_secs(10));
    const NOW: Option<Duration> = Some(Duration::ZERO);
    const ALL: Interest = Interest { read: true, write: true, wake: true };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        (listener.accept().expect("accepted").0, client)
    }

    #[test]
    fn a_ring_is_heard_until_it_is_drained_and_only_if_asked_for() {
        let (server, _client) = pair();
        let waiter = Waiter::new().expect("a descriptor");
        let bell = waiter.bell();
        let ringer = std::thread::Builder::new().name("ringer".into()).spawn(move || {
            bell.ring();
            bell.ring();
        });
        ringer.expect("a thread").join().expect("rung");
        let only_wake = Interest { wake: true, ..Interest::default() };
        for _ in 0..2 {
            assert!(waiter.wait(server.as_fd(), only_wake, SOON).expect("polled").woken);
        }
        let deaf = Interest { wake: false, ..ALL };
        assert!(!waiter.wait(server.as_fd(), deaf, NOW).expect("polled").woken);
        waiter.drain();
        assert!(!waiter.wait(server.as_fd(), only_wake, NOW).expect("polled").woken);
        waiter.bell().ring();
        assert!(waiter.wait(server.as_fd(), only_wake, SOON).expect("polled").woken);
    }

    #[test]
    fn an_order_is_heard_and_never_taken_back() {
        let waiter = Waiter::new().expect("a descriptor");
        assert_eq!(waiter.order(), Order::Serve);
        waiter.bell().give(Order::Stop);
        waiter.bell().give(Order::Drain);
        assert_eq!(waiter.order(), Order::Stop);
        let (server, _client) = pair();
        assert!(waiter.wait(server.as_fd(), ALL, NOW).expect("polled").woken);
    }

    #[test]
    fn the_socket_is_reported_as_asked() {
        let (mut server, mut client) = pair();
        let waiter = Waiter::new().expect("a descriptor");
        let ready = waiter.wait(server.as_fd(), ALL, SOON).expect("polled");
        assert_eq!(ready, Ready { writable: true, ..Ready::default() });
        client.write_all(b"x").expect("written");
        let only_read = Interest { read: true, ..Interest::default() };
        assert!(waiter.wait(server.as_fd(), only_read, SOON).expect("polled").readable);
        let nothing = Interest::default();
        assert_eq!(waiter.wait(server.as_fd(), nothing, NOW).expect("polled"), Ready::default());
        let mut byte = [0];
        server.read_exact(&mut byte).expect("read");
        drop(client);
        server.shutdown(std::net::Shutdown::Write).expect("shut");
        assert!(waiter.wait(server.as_fd(), nothing, SOON).expect("polled").gone);
    }
}
