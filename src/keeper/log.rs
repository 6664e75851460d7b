//! The keeper's own log: its stderr, which is a file in its home.
//!
//! Few lines, and bounded: when it is full it begins anew. Must not know what happened.

use std::fmt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::stderr;

use crate::limits::KEEPER_LOG_BYTES_MAX;
use crate::run::id::Millis;

/// A line in the log, if it takes one without waiting.
pub(super) fn log(message: fmt::Arguments<'_>) {
    let stderr = stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if !poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
        return;
    }
    let size = rustix::fs::fstat(stderr).map_or(0, |stat| stat.st_size.unsigned_abs());
    // There is nobody to tell that nobody can be told.
    if size > KEEPER_LOG_BYTES_MAX {
        rustix::fs::ftruncate(stderr, 0).ok();
    }
    let line = format!("{} reattach keeper: {message}\n", Millis::now());
    rustix::io::write(stderr, line.as_bytes()).ok();
}
