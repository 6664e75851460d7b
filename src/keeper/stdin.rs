//! The agent's stdin: numbered writes, in order, each answered once it is wholly written.
//!
//! Must not know what the bytes mean.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::process::ChildStdin;

use rustix::io::Errno;

use super::frame::{self, Body, Reply, WriteError};
use super::hunt::WriteTimes;
use super::journal::Backlog;
use super::numbers::{Fate, Numbers};
use super::outbox::Outbox;
use super::processes;
use crate::limits::STDIN_BYTES_MAX;
use crate::run::id::Millis;

/// What a waiting write costs beside its bytes.
const WRITE_OVERHEAD_BYTES: usize = 64;

/// The queue of writes and the pipe that they go to.
#[derive(Debug, Default)]
pub(super) struct Stdin {
    pipe: Option<ChildStdin>,
    /// Records may wait up to this sum when a write is taken.
    records_max: usize,
    waiting: VecDeque<Waiting>,
    /// Bytes in `waiting`, their overhead included; at most `STDIN_BYTES_MAX` (I7).
    bytes: usize,
    /// Close once nothing waits.
    close: bool,
    numbers: Numbers,
    times: WriteTimes,
}

#[derive(Debug)]
struct Waiting {
    n: u64,
    bytes: Vec<u8>,
    at: usize,
    close: bool,
}

impl Stdin {
    /// `lines_max` is what the agent's lines alone may come to among the records that wait.
    pub(super) fn open(pipe: ChildStdin, lines_max: usize) -> Self {
        let records_max = lines_max + STDIN_BYTES_MAX;
        Self { pipe: Some(pipe), records_max, ..Self::default() }
    }

    /// The pipe, if something waits to be written to it.
    pub(super) fn wants(&self) -> Option<&ChildStdin> {
        self.pipe.as_ref().filter(|_| !self.waiting.is_empty())
    }

    /// What the writes that wait will come to in the journal.
    pub(super) const fn waiting_bytes(&self) -> usize {
        self.bytes
    }

    /// When write `n` began; `None` if it has not.
    pub(super) fn began(&self, n: u64) -> Option<u64> {
        self.times.of(n)
    }

    /// Takes write number `n`, unless it has it already: then it is only answered again.
    pub(super) fn take(
        &mut self,
        n: u64,
        bytes: Vec<u8>,
        close: bool,
        replies: &mut Outbox,
        records: &Backlog,
    ) {
        if !self.numbers.take(n) {
            return self.answer_again(n, replies);
        }
        if self.pipe.is_none() || self.close {
            return reply(replies, Reply::WriteFailed { n, why: WriteError::Closed });
        }
        let cost = bytes.len() + WRITE_OVERHEAD_BYTES;
        // What is written goes on to the records, for which the disk may have no room: both count.
        // Lines that wait in memory cannot alone make a write fail.
        let sum = records.pending() + self.bytes + cost;
        let fits = self.bytes + cost <= STDIN_BYTES_MAX && sum <= self.records_max;
        if !fits || !records.takes_writes(self.bytes + cost) {
            self.numbers.refuse(n);
            return reply(replies, Reply::WriteFailed { n, why: WriteError::Full });
        }
        self.bytes += cost;
        self.waiting.push_back(Waiting { n, bytes, at: 0, close });
    }

    /// Closes the pipe after what waits.
    pub(super) fn close_after_writes(&mut self) {
        self.close = true;
        if self.waiting.is_empty() {
            self.pipe = None;
        }
    }

    /// Closes the pipe now; what waits has failed.
    pub(super) fn close_now(&mut self, replies: &mut Outbox) {
        self.pipe = None;
        self.bytes = 0;
        for waiting in self.waiting.drain(..) {
            reply(replies, Reply::WriteFailed { n: waiting.n, why: WriteError::Closed });
        }
    }

    /// Writes what the pipe takes.
    pub(super) fn pump(&mut self, at: Millis, replies: &mut Outbox, records: &mut Backlog) {
        while let (Some(pipe), Some(front)) = (&self.pipe, self.waiting.front_mut()) {
            self.times.note(front.n, processes::this_moment());
            while front.at < front.bytes.len() {
                match rustix::io::write(pipe.as_fd(), &front.bytes[front.at..]) {
                    Ok(count) => front.at += count,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => return,
                    Err(_) => return self.close_now(replies),
                }
            }
            self.finish_front(at, replies, records);
        }
    }

    fn finish_front(&mut self, at: Millis, replies: &mut Outbox, records: &mut Backlog) {
        let Some(Waiting { n, bytes, close, .. }) = self.waiting.pop_front() else { return };
        self.bytes -= bytes.len() + WRITE_OVERHEAD_BYTES;
        self.numbers.written(n);
        // The record stands before anything that the agent says in return, since its output is
        // read by the same thread, later.
        frame::encode_record(records.buffer(), at, Body::In { n, bytes: &bytes })
            .expect("a write that was let through fits a record");
        reply(replies, Reply::Written { n });
        if close {
            self.close_now(replies);
        } else if self.close && self.waiting.is_empty() {
            self.pipe = None;
        }
    }

    fn answer_again(&self, n: u64, replies: &mut Outbox) {
        if self.waiting.iter().any(|waiting| waiting.n == n) {
            return;
        }
        let answer = match self.numbers.fate(n) {
            Fate::Written => Reply::Written { n },
            Fate::Refused => Reply::WriteFailed { n, why: WriteError::Full },
            Fate::Failed => Reply::WriteFailed { n, why: WriteError::Closed },
        };
        reply(replies, answer);
    }
}

fn reply(replies: &mut Outbox, reply: Reply) {
    reply.encode(replies.buffer());
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::limits;

    fn said(outbox: &mut Outbox) -> Vec<Reply> {
        let mut rest = &std::mem::take(outbox.buffer())[..];
        let mut replies = Vec::new();
        while let Some(frame) = frame::split(rest, limits::REPLY_BYTES_MAX).expect("a frame") {
            replies.push(Reply::decode(frame).expect("a reply"));
            rest = &rest[frame.bytes..];
        }
        replies
    }

    /// A pipe that nobody reads: a `sleep` that ends when it is killed.
    fn sleeper() -> (std::process::Child, Stdin) {
        let mut child =
            Command::new("sleep").arg("1000").stdin(Stdio::piped()).spawn().expect("sleep");
        let pipe = child.stdin.take().expect("piped");
        rustix::io::ioctl_fionbio(&pipe, true).expect("nonblocking");
        (child, Stdin::open(pipe, 0))
    }

    #[test]
    fn a_number_is_written_once_and_answered_each_time() {
        let (mut child, mut stdin) = sleeper();
        let (mut replies, mut records) = (Outbox::default(), Backlog::new(u64::MAX));
        for n in [5, 5, 9, 5] {
            stdin.take(n, b"x\n".to_vec(), false, &mut replies, &records);
            stdin.pump(Millis(0), &mut replies, &mut records);
        }
        let written = |n| Reply::Written { n };
        assert_eq!(said(&mut replies), [written(5), written(5), written(9), written(5)]);
        let in_bytes = records.pending();
        stdin.take(9, b"again\n".to_vec(), false, &mut replies, &records);
        stdin.pump(Millis(0), &mut replies, &mut records);
        assert_eq!(records.pending(), in_bytes, "a duplicate leaves no record");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[test]
    fn what_is_over_the_bound_is_refused_and_stays_refused() {
        let (mut child, mut stdin) = sleeper();
        let (mut replies, mut records) = (Outbox::default(), Backlog::new(u64::MAX));
        let half = STDIN_BYTES_MAX / 2 + 1;
        let full = |n| Reply::WriteFailed { n, why: WriteError::Full };
        stdin.take(1, vec![b'x'; half], false, &mut replies, &records);
        stdin.take(2, vec![b'x'; half], false, &mut replies, &records);
        stdin.take(3, b"short\n".to_vec(), false, &mut replies, &records);
        stdin.pump(Millis(0), &mut replies, &mut records);
        assert_eq!(said(&mut replies), [full(2)], "1 and 3 wait");
        stdin.take(2, vec![b'x'; half], false, &mut replies, &records);
        stdin.take(3, b"short\n".to_vec(), false, &mut replies, &records);
        assert_eq!(said(&mut replies), [full(2)], "what waits is answered when it is written");
        let closed = |n| Reply::WriteFailed { n, why: WriteError::Closed };
        stdin.close_now(&mut replies);
        stdin.take(4, b"late\n".to_vec(), false, &mut replies, &records);
        stdin.take(3, b"short\n".to_vec(), false, &mut replies, &records);
        assert_eq!(said(&mut replies), [closed(1), closed(3), closed(4), closed(3)]);
        assert_eq!(records.pending(), 0);
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[test]
    fn a_write_for_which_the_journal_has_no_room_is_refused() {
        let (mut child, mut stdin) = sleeper();
        let mut replies = Outbox::default();
        let records = Backlog::new(limits::JOURNAL_RESERVE_BYTES + 150);
        stdin.take(1, vec![b'x'; 36], false, &mut replies, &records);
        stdin.take(2, vec![b'x'; 36], false, &mut replies, &records);
        assert_eq!(said(&mut replies), [Reply::WriteFailed { n: 2, why: WriteError::Full }]);
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[test]
    fn a_close_comes_after_the_writes_before_it_and_fails_those_after() {
        let (mut child, mut stdin) = sleeper();
        let (mut replies, mut records) = (Outbox::default(), Backlog::new(u64::MAX));
        stdin.take(1, b"last\n".to_vec(), false, &mut replies, &records);
        stdin.close_after_writes();
        stdin.take(2, b"late\n".to_vec(), false, &mut replies, &records);
        stdin.pump(Millis(0), &mut replies, &mut records);
        assert!(stdin.pipe.is_none());
        let closed = Reply::WriteFailed { n: 2, why: WriteError::Closed };
        assert_eq!(said(&mut replies), [closed, Reply::Written { n: 1 }]);
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}
