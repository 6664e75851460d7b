//! Signals as bytes in a socket, so that `poll` sees them.
//!
//! Must not know what is done about them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// The keeper's handlers.
#[derive(Debug)]
pub(super) struct Signals {
    wake: UnixStream,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// A handler of our own for each, also because an *ignored* signal would stay ignored in
    /// the agent: a gateway started in the background of a script has SIGINT ignored, and its
    /// agents must not. SIGHUP, the end of some terminal, and SIGXFSZ, a file that may not grow,
    /// do nothing here.
    pub(super) fn register() -> io::Result<Self> {
        let (wake, notify) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        for signal in [SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGXFSZ] {
            signal_hook::low_level::pipe::register(signal, notify.try_clone()?)?;
        }
        Ok(Self { wake, stop })
    }

    /// Readable when a signal came.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Empties the socket; `true` if anything was in it.
    pub(super) fn take(&self) -> bool {
        let mut any = false;
        let mut bytes = [0; 64];
        while rustix::io::read(&self.wake, &mut bytes).is_ok_and(|count| count > 0) {
            any = true;
        }
        any
    }

    /// Whether a signal to end came since the last time.
    pub(super) fn take_stop(&self) -> bool {
        self.stop.swap(false, Ordering::Relaxed)
    }
}
