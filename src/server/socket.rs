//! A non-blocking socket, used with absolute deadlines. Must not know what it carries.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::limits;
use crate::server::stream::Stream;
use crate::server::wait::{Interest, Order, Waiter};

/// The time `ms` from now.
pub fn after(ms: i64) -> Instant {
    Instant::now() + Duration::from_millis(ms.unsigned_abs())
}

/// A non-blocking socket, used with deadlines.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    /// Non-blocking.
    pub stream: &'a Stream,
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
        // Not by way of the stack: a page touched there stays for the connection's life. Small at
        // first, since most heads are; then as much again as there is.
        let held = buffer.len();
        let more = held.clamp(1 << 10, 64 << 10);
        loop {
            buffer.resize(held + more, 0);
            let read = (&mut &*self.stream).read(&mut buffer[held..]);
            buffer.truncate(held + read.as_ref().copied().unwrap_or(0));
            match read {
                Ok(0) => return Err(Failure::Gone),
                Ok(_) => return Ok(()),
                Err(error) => self.wait_after(&error, false, until, end_at)?,
            }
        }
    }

    /// Sends all of `bytes`, within `limits::ANSWER_MS` for each step of their length.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), Failure> {
        let steps = 1 + bytes.len() / limits::ANSWER_STEP_BYTES;
        let until = after(limits::ANSWER_MS.saturating_mul(steps.try_into().unwrap_or(1)));
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
        while self.fill(&mut sink, until, Order::Stop).is_ok() {
            budget = budget.saturating_sub(sink.len());
            sink.clear();
            if budget == 0 {
                return;
            }
        }
    }
}
