//! What waits to be written to a descriptor that must not block.
//!
//! Must not know what the bytes mean.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// A buffer of bytes on their way out. Whoever pushes keeps an eye on `pending` (I7).
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// How much of `bytes` is written.
    written: usize,
    /// The reader is gone: whatever comes is thrown away.
    broken: bool,
}

impl Outbox {
    /// Bytes that wait.
    pub(super) fn pending(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether the reader is gone.
    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Throws away what waits: there is nobody to read it.
    pub(super) fn discard(&mut self) {
        *self = Self::default();
    }

    /// Where to append. What is appended after the reader went is thrown away at the next flush.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Writes until nothing waits or the descriptor would block. `true` if anything was written.
    pub(super) fn flush(&mut self, fd: impl AsFd) -> bool {
        let mut moved = false;
        while !self.broken && self.written < self.bytes.len() {
            match rustix::io::write(&fd, &self.bytes[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    moved |= count > 0;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.broken = true,
            }
        }
        if self.broken || self.written == self.bytes.len() {
            self.clear();
        } else if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        moved
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(1 << 20);
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_does_not_fit_waits_in_order_and_a_lost_reader_ends_the_wait() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("nonblocking");
        let mut outbox = Outbox::default();
        let sent: Vec<u8> = (0..4_000_000u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
        outbox.buffer().extend_from_slice(&sent);
        assert!(outbox.flush(&ours));
        assert!(outbox.pending() > 0, "the socket took all of it");
        let mut received = Vec::new();
        let mut chunk = vec![0; 100_000];
        while received.len() < sent.len() {
            let count = theirs.read(&mut chunk).expect("read");
            received.extend_from_slice(&chunk[..count]);
            outbox.flush(&ours);
        }
        assert_eq!(received, sent);
        assert_eq!(outbox.pending(), 0);
        drop(theirs);
        outbox.buffer().push(1);
        outbox.flush(&ours);
        assert_eq!(outbox.pending(), 0, "the reader is gone");
    }
}
