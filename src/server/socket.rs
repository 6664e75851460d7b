//! A non-blocking socket, used with absolute deadlines. Must not know what it carries.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::limits;
use crate::server::wait::{Interest, Order, Waiter};

/// Read at once.
const FILL_BYTES: usize = 2048;

/// The time `ms` from now.
pub fn after(ms: i64) -> Instant {
    Instant::now() + Duration::from_millis(ms.unsigned_abs())
}

/// A non-blocking socket, used with deadlines.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    /// Non-blocking.
    pub stream: &'a TcpStream,
    /// Its owner's place to wait.
    pub waiter: &'a Waiter,
}

/// Why nothing more can be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The other side is gone, or the listener's order was reached.
    Gone,
    /// The deadline passed.
    Late,
}

impl Socket<'_> {
    /// Appends what comes next to `buffer`: at least one byte.
    pub fn fill(&self, buffer: &mut Vec<u8>, until: Instant, end_at: Order) -> Result<(), Failure> {
        // Not into an array: on the stack of an idle connection it would stay resident.
        let start = buffer.len();
        buffer.resize(start + FILL_BYTES, 0);
        let filled = loop {
            match (&mut &*self.stream).read(&mut buffer[start..]) {
                Ok(0) => break Err(Failure::Gone),
                Ok(count) => break Ok(count),
                Err(error) => {
                    if let Err(failure) = self.wait_after(&error, false, until, end_at) {
                        break Err(failure);
                    }
                }
            }
        };
        buffer.truncate(start + filled.unwrap_or(0));
        filled.map(|_| ())
    }

    /// Sends all of `bytes`.
    pub fn send(&self, mut bytes: &[u8], within_ms: i64) -> Result<(), Failure> {
        let until = after(within_ms);
        while !bytes.is_empty() {
            match (&mut &*self.stream).write(bytes) {
                Ok(0) => return Err(Failure::Gone),
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.wait_after(&error, true, until, Order::Stop)?,
            }
        }
        Ok(())
    }

    /// Waits until it is worth trying again what just failed with `error`.
    pub fn wait_after(
        &self,
        error: &io::Error,
        write: bool,
        until: Instant,
        end_at: Order,
    ) -> Result<(), Failure> {
        match error.kind() {
            io::ErrorKind::Interrupted => return Ok(()),
            io::ErrorKind::WouldBlock => {}
            _ => return Err(Failure::Gone),
        }
        if self.waiter.order() >= end_at {
            return Err(Failure::Gone);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Late);
        }
        let interest = Interest { read: !write, write, wake: true };
        let ready = self.waiter.wait(self.stream.as_fd(), interest, Some(left));
        if ready.map_err(|_| Failure::Gone)?.woken {
            self.waiter.drain();
        }
        Ok(())
    }

    /// Lets the client read the last answer: closing while input is unread would reset the
    /// connection, and the answer with it.
    pub fn farewell(&self) {
        let until = after(limits::FAREWELL_MS);
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut sink = Vec::new();
        let mut budget = limits::HEAD_BYTES_MAX * 16;
        while self.fill(&mut sink, until, Order::Drain).is_ok() {
            budget = budget.saturating_sub(sink.len());
            sink.clear();
            if budget == 0 {
                return;
            }
        }
    }
}
