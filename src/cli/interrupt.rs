//! Ctrl-C as something that can be waited for, besides sockets and the keyboard.
//!
//! Knows signals. Must not know what an interrupt means.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::exit::{Exit, Failure};

/// Interrupts of this process, in the order in which they came.
#[derive(Debug)]
pub struct Interrupts {
    pipe: UnixStream,
    pending: usize,
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// An interrupt came.
    Interrupted,
    /// The time is over.
    Elapsed,
}

impl Interrupts {
    /// From now on Ctrl-C ends nothing by itself. With `term`, neither does SIGTERM, nor SIGHUP,
    /// which comes when the terminal is closed.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn catch(term: bool) -> Result<Self, Failure> {
        let caught = || -> io::Result<Self> {
            let (pipe, write) = UnixStream::pair()?;
            pipe.set_nonblocking(true)?;
            write.set_nonblocking(true)?;
            if term {
                for signal in [SIGTERM, SIGHUP] {
                    signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
                }
            }
            signal_hook::low_level::pipe::register(SIGINT, write)?;
            Ok(Self { pipe, pending: 0 })
        };
        caught().map_err(|error| {
            Failure::new(
                Exit::Failure,
                "SIGNALS",
                format!("cannot listen for Ctrl-C: {error}"),
                "ulimit -n 1024, then the same command",
            )
        })
    }

    /// Whether one came since the last that was taken.
    pub fn take(&mut self) -> bool {
        let mut bytes = [0; 16];
        // An empty pipe is an error of kind `WouldBlock`: nothing came.
        self.pending += (&self.pipe).read(&mut bytes).unwrap_or(0);
        let came = self.pending > 0;
        self.pending = self.pending.saturating_sub(1);
        came
    }

    /// Waits until an interrupt comes or the time is over.
    pub fn wait(&mut self, time: Duration) -> Woken {
        let end = Instant::now() + time;
        loop {
            if self.take() {
                return Woken::Interrupted;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::Elapsed;
            }
            // A failed poll (a signal came) is a turn of the loop like any other.
            poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&timespec(left))).ok();
        }
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// A duration as `poll` takes it; what is too long for it is for ever.
#[must_use]
pub fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
