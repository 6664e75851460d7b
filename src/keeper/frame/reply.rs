//! What a keeper says beside the records.

use super::{Fields, Frame, FrameError, exit_fields, put};
use crate::limits;
use crate::provider::Exit;

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
    /// After `Exited`: nothing that the agent started is running any more (I21). Records may
    /// still follow, up to `Exit`.
    Stopped(Stopped),
    /// To `Sweep`: how many processes were killed.
    Swept {
        /// Killed.
        killed: u32,
        /// Alive all the same when the time was up.
        left: u32,
    },
    /// To `Attach` with `Role::Control`, before anything else. `Exited` and `Stopped` follow if
    /// they were said before.
    Welcome(Welcome),
    /// To `Attach`: the keeper speaks another protocol, and closes. Its layout is the same in every
    /// protocol.
    Refused {
        /// The one that it speaks.
        protocol: u32,
        /// The version of its program.
        version: String,
    },
}

/// How a keeper receives a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What is spoken from here on.
    pub protocol: u32,
    /// The control connection's number.
    pub epoch: u64,
    /// The agent's process id; 0 if there is none any more.
    pub pid: u32,
    /// Where the journal begins.
    pub start: u64,
    /// Where it ends so far.
    pub end: u64,
    /// The version of the keeper's program.
    pub version: String,
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

const STARTED: u8 = 1;
const SPAWN_FAILED: u8 = 2;
const WRITTEN: u8 = 3;
const WRITE_FAILED: u8 = 4;
const EXITED: u8 = 5;
const STOPPED: u8 = 6;
const SWEPT: u8 = 7;
const WELCOME: u8 = 16;
const REFUSED: u8 = 17;

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
            Self::Swept { killed, left } => {
                put(to, SWEPT, &[&killed.to_le_bytes(), &left.to_le_bytes()]);
            }
            Self::Welcome(Welcome { protocol, epoch, pid, start, end, version }) => {
                let [epoch, start, end] = [epoch, start, end].map(|field| field.to_le_bytes());
                let (protocol, pid) = (protocol.to_le_bytes(), pid.to_le_bytes());
                let version = version.as_bytes();
                put(to, WELCOME, &[&protocol, &epoch, &pid, &start, &end, version]);
            }
            Self::Refused { protocol, version } => {
                put(to, REFUSED, &[&protocol.to_le_bytes(), version.as_bytes()]);
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
                Self::SpawnFailed(SpawnFailed { kind, message: fields.text() })
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
            SWEPT => Self::Swept { killed: fields.u32()?, left: fields.u32()? },
            WELCOME => Self::Welcome(Welcome {
                protocol: fields.u32()?,
                epoch: fields.u64()?,
                pid: fields.u32()?,
                start: fields.u64()?,
                end: fields.u64()?,
                version: fields.text(),
            }),
            REFUSED => Self::Refused { protocol: fields.u32()?, version: fields.text() },
            kind => return Err(FrameError::UnknownKind(kind)),
        };
        fields.end()?;
        Ok(reply)
    }
}
