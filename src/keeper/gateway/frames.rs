//! Frames out of a byte stream that blocks.
//!
//! Must not know what a frame means.

use std::io::{self, Read};

use super::super::frame::{self, FrameError};
use crate::limits;

/// Frames out of a byte stream, through one buffer that grows with the longest frame.
#[derive(Debug)]
pub(super) struct Frames<R> {
    pub(super) from: R,
    max: usize,
    buffer: Vec<u8>,
    /// `buffer[start..end]` is read and not yet given.
    start: usize,
    end: usize,
}

impl<R: Read> Frames<R> {
    pub(super) const fn new(from: R, max: usize) -> Self {
        Self { from, max, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Whether `next` would answer without reading.
    pub(super) fn is_ready(&self) -> bool {
        !matches!(frame::split(&self.buffer[self.start..self.end], self.max), Ok(None))
    }

    /// The next frame; `None` at the end. `UnexpectedEof`: the end lies within a frame.
    pub(super) fn next(&mut self) -> io::Result<Option<frame::Frame<'_>>> {
        while !self.is_ready() {
            self.make_room();
            let count = match self.from.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // It ended with a command unread, which is an end like any other.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                other => other?,
            };
            if count == 0 {
                let torn = self.start < self.end;
                return if torn { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
            }
            self.end += count;
        }
        let ready = &self.buffer[self.start..self.end];
        let frame = frame::split(ready, self.max).map_err(invalid)?;
        self.start += frame.map_or(0, |frame| frame.bytes);
        Ok(frame)
    }

    /// Room behind `end`: by moving what is left to the front, else by growing. The buffer
    /// grows with what arrived, not with what a length field promises.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let want = limits::OUTPUT_READ_BYTES;
        if self.end == 0 && self.buffer.len() > 4 * want {
            self.buffer.truncate(want);
            self.buffer.shrink_to_fit();
        }
        if self.buffer.len() - self.end < want / 2 {
            self.buffer.resize((self.end * 2).max(want), 0);
        }
    }
}

pub(super) fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use crate::keeper::frame::{Body, RECORD_BYTES_MAX, Reply};
    use crate::run::id::Millis;

    /// A reader that gives its chunks one by one.
    struct Chunks(Vec<Vec<u8>>);

    impl Read for Chunks {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let chunk = &mut self.0[0];
            let count = chunk.len().min(into.len());
            into[..count].copy_from_slice(&chunk[..count]);
            chunk.drain(..count);
            if chunk.is_empty() {
                self.0.remove(0);
            }
            Ok(count)
        }
    }

    fn stream(lines: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for len in lines {
            let line = vec![b'x'; *len];
            frame::encode_record(&mut bytes, Millis(1), Body::Out(&line)).expect("it fits");
        }
        bytes
    }

    fn lengths(bytes: &[u8], chunk: usize) -> (Vec<usize>, io::Result<()>) {
        let chunks = Chunks(bytes.chunks(chunk).map(<[u8]>::to_vec).collect());
        let mut frames = Frames::new(chunks, RECORD_BYTES_MAX);
        let mut lengths = Vec::new();
        loop {
            match frames.next() {
                Ok(Some(frame)) => lengths.push(frame.payload.len() - 8),
                Ok(None) => return (lengths, Ok(())),
                Err(error) => return (lengths, Err(error)),
            }
        }
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let lines = [0, 5, 3_000_000, 1, 70_000, 64 << 10, 200];
        for chunk in [1_000, 65_536, 4_000_000] {
            assert!(lengths(&stream(&lines), chunk).1.is_ok());
            assert_eq!(lengths(&stream(&lines), chunk).0, lines);
        }
    }

    #[test]
    fn a_keeper_that_ends_with_a_command_unread_has_ended_all_the_same() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        (&ours).write_all(b"a command").expect("written");
        let mut reply = Vec::new();
        Reply::Written { n: 1 }.encode(&mut reply);
        theirs.write_all(&reply).expect("written");
        drop(theirs);
        let mut replies = Frames::new(ours, limits::REPLY_BYTES_MAX);
        let frame = replies.next().expect("a frame").expect("no end");
        assert_eq!(Reply::decode(frame), Ok(Reply::Written { n: 1 }));
        assert_eq!(replies.next().expect("the end"), None);
    }

    #[test]
    fn a_torn_tail_is_told_from_an_end_and_rubbish_from_both() {
        let mut bytes = stream(&[3, 4]);
        bytes.pop();
        let (lines, end) = lengths(&bytes, 7);
        assert_eq!(lines, [3]);
        assert_eq!(end.expect_err("torn").kind(), io::ErrorKind::UnexpectedEof);
        let (_, end) = lengths(&[0xff; 20], 7);
        assert_eq!(end.expect_err("rubbish").kind(), io::ErrorKind::InvalidData);
    }
}
