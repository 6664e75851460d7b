//! A stream that counts what leaves. Must not know what leaves.

use std::io::{self, Read, Write};

use crate::server::stream::Stream;

/// A stream that knows how much has left, which tells a slow client from a stalled one.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) stream: Stream,
    pub(super) sent: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&mut &self.stream).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Write for Counted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match (&mut &self.stream).write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.sent += count as u64;
                    return Ok(count);
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        (&mut &self.stream).flush()
    }
}
