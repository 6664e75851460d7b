//! The two byte streams between gateway and keeper, as pure functions.
//!
//! A frame is `u32` length (little endian, of all that follows), `u8` kind, payload. Frames of
//! the data stream carry the time as the first eight bytes of their payload. Decoding is total
//! (I11): any bytes give a frame, "not all here yet", or a typed error; lengths are checked
//! against a bound before anything is allocated for them.
//!
//! Must not know descriptors, processes, what a line means.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::provider::{Exit, Record, RecordBody};
use crate::run::id::{AgentId, Millis};

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

/// How to start an agent: everything that the keeper needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Whose process it is; also the tag in its environment.
    pub agent: AgentId,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The whole environment, tags included; nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs; absolute.
    pub cwd: OsString,
    /// Longer stdout lines become `OutCapped`.
    pub line_bytes_max: usize,
    /// The stop ladder's.
    pub timings: Timings,
}

/// The deadlines of the stop ladder and of the end, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// After stdin was closed, before SIGINT.
    pub close_stdin_ms: u64,
    /// After SIGINT, before SIGTERM.
    pub interrupt_ms: u64,
    /// After SIGTERM, before SIGKILL.
    pub terminate_ms: u64,
    /// After the exit, how long an escaped holder of the agent's output may delay the end.
    pub drain_ms: u64,
    /// After the exit, how long descendants are hunted before some are said to be left.
    pub sweep_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            close_stdin_ms: limits::CLOSE_STDIN_MS.unsigned_abs(),
            interrupt_ms: limits::SIGINT_MS.unsigned_abs(),
            terminate_ms: limits::SIGTERM_MS.unsigned_abs(),
            drain_ms: limits::DRAIN_AFTER_EXIT_MS.unsigned_abs(),
            sweep_ms: limits::SWEEP_MS.unsigned_abs(),
        }
    }
}

/// What a gateway asks of a keeper. The end of the stream means that the gateway is gone: the
/// keeper stops its agent and ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start the agent. The first command, once.
    Launch(Launch),
    /// Write to the agent's stdin, in order. Answered by `Written` or `WriteFailed`.
    Write {
        /// The number of the command's row; rising within one keeper. One that the keeper has
        /// already is not written again, only answered again.
        n: u64,
        /// What to write. May be empty if only the close matters.
        bytes: Vec<u8>,
        /// Close the agent's stdin after them.
        close: bool,
    },
    /// Close the agent's stdin after all writes so far.
    CloseStdin,
    /// Run the stop ladder. Answered by `Stopped`; again while it runs: nothing.
    Stop,
}

/// What a keeper says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The agent runs.
    Started {
        /// Its process id, which is its process group's too.
        pid: u32,
    },
    /// The agent could not be started. The last reply, and there are no records.
    SpawnFailed(SpawnFailed),
    /// This write is wholly in the agent's stdin: it is *delivered*.
    Written {
        /// Its number.
        n: u64,
    },
    /// This write is not in the agent's stdin, or not wholly, and never will be.
    WriteFailed {
        /// Its number.
        n: u64,
        /// Why.
        why: WriteError,
    },
    /// The agent's process has ended. Not held back by records that nobody takes.
    Exited(Exit),
    /// After `Exited`: nothing that the agent started is running any more (I21). The last
    /// reply; records may still follow, up to `Exit`.
    Stopped(Stopped),
}

/// Why an agent could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnFailed {
    /// For exit codes and advice.
    pub kind: SpawnFailure,
    /// For people.
    pub message: String,
}

/// The ways in which a start fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnFailure {
    /// There is no such program.
    NotFound,
    /// It is there and cannot be executed.
    NotExecutable,
    /// The working directory is missing or closed to us.
    Directory,
    /// Anything else: out of processes, arguments too long.
    Other,
}

/// Why a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The agent closed its stdin, we closed it, or the agent is gone or was never started.
    Closed,
    /// The agent does not read, and too much waits already (`limits::STDIN_BYTES_MAX`).
    Full,
}

/// How an agent came to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// The last step of the ladder that was taken before the exit; `None`: it ended by itself.
    pub step: Option<Step>,
    /// How many processes had to be killed after the exit.
    pub swept: u32,
    /// How many are alive all the same, since the system does not let go of them.
    pub left: u32,
}

/// The steps of the stop ladder, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Its stdin was closed; no signal yet.
    CloseStdin,
    /// SIGINT to its group.
    Interrupt,
    /// SIGTERM to its group.
    Terminate,
    /// SIGKILL to its group.
    Kill,
}

const LAUNCH: u8 = 1;
const WRITE: u8 = 2;
const CLOSE_STDIN: u8 = 3;
const STOP: u8 = 4;

const STARTED: u8 = 1;
const SPAWN_FAILED: u8 = 2;
const WRITTEN: u8 = 3;
const WRITE_FAILED: u8 = 4;
const EXITED: u8 = 5;
const STOPPED: u8 = 6;

const OUT: u8 = 1;
const ERR: u8 = 2;
const OUT_CAPPED: u8 = 3;
const IN: u8 = 4;
const EXIT: u8 = 5;

impl Command {
    /// Appends the frame to `to`.
    ///
    /// # Errors
    /// `TooLong` for a launch or a write over `limits::CONTROL_FRAME_BYTES_MAX`; `to` is then as
    /// it was.
    pub fn encode(&self, to: &mut Vec<u8>) -> Result<(), FrameError> {
        let max = limits::CONTROL_FRAME_BYTES_MAX;
        match self {
            Self::Launch(launch) => {
                let json = serde_json::to_vec(launch)
                    .map_err(|error| FrameError::Launch(error.to_string()))?;
                put(to, max, LAUNCH, &[&json])
            }
            Self::Write { n, bytes, close } => {
                put(to, max, WRITE, &[&n.to_le_bytes(), &[u8::from(*close)], bytes])
            }
            Self::CloseStdin => put(to, max, CLOSE_STDIN, &[]),
            Self::Stop => put(to, max, STOP, &[]),
        }
    }

    /// From a frame of the control stream to the keeper.
    ///
    /// # Errors
    /// Any but `Empty` and `TooLong`.
    pub fn decode(frame: Frame<'_>) -> Result<Self, FrameError> {
        let mut fields = Fields::new(frame);
        let command = match frame.kind {
            LAUNCH => serde_json::from_slice(fields.rest())
                .map(Self::Launch)
                .map_err(|error| FrameError::Launch(error.to_string()))?,
            WRITE => {
                let n = fields.u64()?;
                let close = match fields.u8()? {
                    0 => false,
                    1 => true,
                    value => return Err(fields.unknown(value)),
                };
                Self::Write { n, bytes: fields.rest().to_vec(), close }
            }
            CLOSE_STDIN => Self::CloseStdin,
            STOP => Self::Stop,
            kind => return Err(FrameError::UnknownKind(kind)),
        };
        fields.end()?;
        Ok(command)
    }
}

impl Reply {
    /// Appends the frame to `to`. A spawn failure's message is cut where it would not fit.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let max = limits::REPLY_BYTES_MAX;
        let put = |to: &mut Vec<u8>, kind, parts: &[&[u8]]| {
            put(to, max, kind, parts).expect("replies are short");
        };
        match self {
            Self::Started { pid } => put(to, STARTED, &[&pid.to_le_bytes()]),
            Self::SpawnFailed(SpawnFailed { kind, message }) => {
                let kind = match kind {
                    SpawnFailure::NotFound => 1,
                    SpawnFailure::NotExecutable => 2,
                    SpawnFailure::Directory => 3,
                    SpawnFailure::Other => 4,
                };
                let message = &message[..message.floor_char_boundary(max / 2)];
                put(to, SPAWN_FAILED, &[&[kind], message.as_bytes()]);
            }
            Self::Written { n } => put(to, WRITTEN, &[&n.to_le_bytes()]),
            Self::WriteFailed { n, why } => {
                let why = match why {
                    WriteError::Closed => 1,
                    WriteError::Full => 2,
                };
                put(to, WRITE_FAILED, &[&n.to_le_bytes(), &[why]]);
            }
            Self::Exited(exit) => {
                let (tag, value) = exit_fields(*exit);
                put(to, EXITED, &[&[tag], &value.to_le_bytes()]);
            }
            Self::Stopped(Stopped { step, swept, left }) => {
                let step = match step {
                    None => 0,
                    Some(Step::CloseStdin) => 1,
                    Some(Step::Interrupt) => 2,
                    Some(Step::Terminate) => 3,
                    Some(Step::Kill) => 4,
                };
                put(to, STOPPED, &[&[step], &swept.to_le_bytes(), &left.to_le_bytes()]);
            }
        }
    }

    /// From a frame of the control stream to the gateway.
    ///
    /// # Errors
    /// Any but `Empty` and `TooLong`.
    pub fn decode(frame: Frame<'_>) -> Result<Self, FrameError> {
        let mut fields = Fields::new(frame);
        let reply = match frame.kind {
            STARTED => Self::Started { pid: fields.u32()? },
            SPAWN_FAILED => {
                let kind = match fields.u8()? {
                    1 => SpawnFailure::NotFound,
                    2 => SpawnFailure::NotExecutable,
                    3 => SpawnFailure::Directory,
                    4 => SpawnFailure::Other,
                    value => return Err(fields.unknown(value)),
                };
                let message = String::from_utf8_lossy(fields.rest()).into_owned();
                Self::SpawnFailed(SpawnFailed { kind, message })
            }
            WRITTEN => Self::Written { n: fields.u64()? },
            WRITE_FAILED => {
                let n = fields.u64()?;
                let why = match fields.u8()? {
                    1 => WriteError::Closed,
                    2 => WriteError::Full,
                    value => return Err(fields.unknown(value)),
                };
                Self::WriteFailed { n, why }
            }
            EXITED => Self::Exited(fields.exit()?),
            STOPPED => {
                let step = match fields.u8()? {
                    0 => None,
                    1 => Some(Step::CloseStdin),
                    2 => Some(Step::Interrupt),
                    3 => Some(Step::Terminate),
                    4 => Some(Step::Kill),
                    value => return Err(fields.unknown(value)),
                };
                Self::Stopped(Stopped { step, swept: fields.u32()?, left: fields.u32()? })
            }
            kind => return Err(FrameError::UnknownKind(kind)),
        };
        fields.end()?;
        Ok(reply)
    }
}

/// A record's body whose bytes still lie in somebody's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// See `RecordBody`.
    Out(&'a [u8]),
    /// See `RecordBody`.
    Err(&'a [u8]),
    /// See `RecordBody`.
    OutCapped {
        /// The whole line's length in bytes.
        bytes: u64,
        /// How it began.
        head: &'a [u8],
    },
    /// See `RecordBody`.
    In {
        /// The number of the command's row.
        n: u64,
        /// What was written.
        bytes: &'a [u8],
    },
    /// See `RecordBody`.
    Exit(Exit),
}

/// Appends a record's frame to `to`.
///
/// # Errors
/// `TooLong` over `RECORD_BYTES_MAX`, which lines and writes within their own bounds never are.
pub fn encode_record(to: &mut Vec<u8>, at: Millis, body: Body<'_>) -> Result<(), FrameError> {
    let time = at.0.to_le_bytes();
    let max = RECORD_BYTES_MAX;
    match body {
        Body::Out(line) => put(to, max, OUT, &[&time, line]),
        Body::Err(line) => put(to, max, ERR, &[&time, line]),
        Body::OutCapped { bytes, head } => {
            put(to, max, OUT_CAPPED, &[&time, &bytes.to_le_bytes(), head])
        }
        Body::In { n, bytes } => put(to, max, IN, &[&time, &n.to_le_bytes(), bytes]),
        Body::Exit(exit) => {
            let (tag, value) = exit_fields(exit);
            put(to, max, EXIT, &[&time, &[tag], &value.to_le_bytes()])
        }
    }
}

/// From a frame of the data stream.
///
/// # Errors
/// Any but `Empty` and `TooLong`.
pub fn decode_record(frame: Frame<'_>) -> Result<Record, FrameError> {
    if !(OUT..=EXIT).contains(&frame.kind) {
        return Err(FrameError::UnknownKind(frame.kind));
    }
    let mut fields = Fields::new(frame);
    let at = Millis(fields.u64()?.cast_signed());
    let body = match frame.kind {
        OUT => RecordBody::Out(fields.rest().to_vec()),
        ERR => RecordBody::Err(fields.rest().to_vec()),
        OUT_CAPPED => RecordBody::OutCapped { bytes: fields.u64()?, head: fields.rest().to_vec() },
        IN => RecordBody::In { n: fields.u64()?, bytes: fields.rest().to_vec() },
        _ => RecordBody::Exit(fields.exit()?),
    };
    fields.end()?;
    Ok(Record { at, body })
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
