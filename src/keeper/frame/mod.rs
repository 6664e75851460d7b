//! The two byte streams between gateway and keeper, as pure functions.
//!
//! A frame is `u32` length (little endian, of all that follows), `u8` kind, payload. Frames of
//! the data stream carry the time as the first eight bytes of their payload. Decoding is total
//! (I11): any bytes give a frame, "not all here yet", or a typed error; lengths are checked
//! against a bound before anything is allocated for them.
//!
//! Must not know descriptors, processes, what a line means.

mod command;
mod record;
mod reply;

use crate::limits;
use crate::provider::Exit;

pub use command::{Command, Launch, Role, Timings};
pub use record::{Body, decode_record, encode_record};
pub use reply::{Reply, SpawnFailed, SpawnFailure, Step, Stopped, Welcome, WriteError};

/// What keepers and gateways of this version speak to each other.
pub const PROTOCOL: u32 = 1;

/// The oldest one that a gateway of this version speaks.
pub const PROTOCOL_MIN: u32 = 1;

/// The variable by which tests make a keeper speak another one.
pub const TEST_PROTOCOL: &str = "REATTACH_TEST_KEEPER_PROTOCOL";

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 5;

/// Bytes of a data frame before the line itself.
pub const RECORD_HEADER_BYTES: usize = HEADER_BYTES + 8;

/// The largest length field that a data frame may have.
pub const RECORD_BYTES_MAX: usize = limits::LINE_BYTES_CEILING + 64;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The length field says that not even a kind follows.
    #[error("a frame of length 0")]
    Empty,
    /// The length field is over the stream's bound.
    #[error("a frame of {len} bytes, and at most {max} are allowed")]
    TooLong {
        /// What the length field says.
        len: usize,
        /// The stream's bound.
        max: usize,
    },
    /// No such kind in this stream: the two sides are not of the same version.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The payload is shorter or longer than its kind needs.
    #[error("the payload of frame kind {kind} does not have the right length ({len} bytes)")]
    Length {
        /// The frame's kind.
        kind: u8,
        /// Its payload's length.
        len: usize,
    },
    /// A byte that must be one of a few is none of them.
    #[error("frame kind {kind} holds an unknown value {value}")]
    Value {
        /// The frame's kind.
        kind: u8,
        /// The byte.
        value: u8,
    },
    /// A launch's JSON does not have the right shape.
    #[error("not a launch: {0}")]
    Launch(String),
}

/// A frame whose payload has not been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: u8,
    /// The rest.
    pub payload: &'a [u8],
    /// The whole frame's length, its header included.
    pub bytes: usize,
}

/// The first frame in `input`, or `None` if it is not all there. `max` bounds the length field.
///
/// # Errors
/// `Empty` and `TooLong`, as soon as the length field is there.
pub fn split(input: &[u8], max: usize) -> Result<Option<Frame<'_>>, FrameError> {
    let Some((len, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    if len == 0 {
        return Err(FrameError::Empty);
    }
    let Some((kind, payload)) = rest.get(..len).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    Ok(Some(Frame { kind: *kind, payload, bytes: len + 4 }))
}

fn exit_fields(exit: Exit) -> (u8, i32) {
    match exit {
        Exit::Code(code) => (1, code),
        Exit::Signal(signal) => (2, signal),
    }
}

fn put(to: &mut Vec<u8>, max: usize, kind: u8, parts: &[&[u8]]) -> Result<(), FrameError> {
    let len = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let field = u32::try_from(len).ok().filter(|_| len <= max);
    let Some(field) = field else { return Err(FrameError::TooLong { len, max }) };
    to.reserve(4 + len);
    to.extend_from_slice(&field.to_le_bytes());
    to.push(kind);
    for part in parts {
        to.extend_from_slice(part);
    }
    Ok(())
}

/// A payload that is taken apart from its front.
struct Fields<'a> {
    frame: Frame<'a>,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(frame: Frame<'a>) -> Self {
        Self { frame, rest: frame.payload }
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let Some((chunk, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.length());
        };
        self.rest = rest;
        Ok(*chunk)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.chunk::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.chunk().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.chunk().map(u64::from_le_bytes)
    }

    fn exit(&mut self) -> Result<Exit, FrameError> {
        let tag = self.u8()?;
        let value = self.chunk().map(i32::from_le_bytes)?;
        match tag {
            1 => Ok(Exit::Code(value)),
            2 => Ok(Exit::Signal(value)),
            tag => Err(self.unknown(tag)),
        }
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(self.rest()).into_owned()
    }

    fn end(&self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.length()) }
    }

    fn length(&self) -> FrameError {
        FrameError::Length { kind: self.frame.kind, len: self.frame.payload.len() }
    }

    fn unknown(&self, value: u8) -> FrameError {
        FrameError::Value { kind: self.frame.kind, value }
    }
}

#[cfg(test)]
mod tests;
