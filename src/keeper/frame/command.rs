//! What a gateway asks of a keeper.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use super::{Fields, Frame, FrameError, put};
use crate::limits;
use crate::run::id::AgentId;

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
    /// For people: the session that it is started for.
    pub session: String,
    /// For people: its provider.
    pub provider: String,
    /// The journal's bound.
    pub journal_bytes_max: u64,
    /// How long the agent may be without a gateway.
    pub orphan_grace_ms: u64,
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
/// agent is an orphan, until another one attaches or its grace is over.
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
    /// Nothing before this offset of the agent's stream will be asked for again.
    Confirm {
        /// A checkpoint that is durable.
        offset: u64,
    },
    /// Kill what descends from the agent and was born since write `n` was written, the agent
    /// itself excepted. Answered by `Swept`.
    Sweep {
        /// The number of a write.
        n: u64,
    },
    /// The first frame of a connection over the socket. Its layout is the same in every protocol,
    /// so that each can be refused in words.
    Attach {
        /// What the gateway speaks.
        protocol: u32,
        /// What the connection is for.
        role: Role,
    },
}

/// What a connection to a keeper's socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Commands and replies. Whoever had them before is dropped.
    Control,
    /// Blocks of the journal, from the one in which the offset lies or an earlier one.
    Records {
        /// The control connection in whose name it is, as `Welcome` numbered it.
        epoch: u64,
        /// The end of the last record that the gateway has.
        offset: u64,
    },
}

const LAUNCH: u8 = 1;
const WRITE: u8 = 2;
const CLOSE_STDIN: u8 = 3;
const STOP: u8 = 4;
const CONFIRM: u8 = 5;
const SWEEP: u8 = 6;
const ATTACH: u8 = 16;

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
            Self::Confirm { offset } => put(to, max, CONFIRM, &[&offset.to_le_bytes()]),
            Self::Sweep { n } => put(to, max, SWEEP, &[&n.to_le_bytes()]),
            Self::Attach { protocol, role } => {
                let (role, epoch, offset) = match role {
                    Role::Control => (1, 0, 0),
                    Role::Records { epoch, offset } => (2, *epoch, *offset),
                };
                let [epoch, offset] = [epoch, offset].map(u64::to_le_bytes);
                put(to, max, ATTACH, &[&protocol.to_le_bytes(), &[role], &epoch, &offset])
            }
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
            CONFIRM => Self::Confirm { offset: fields.u64()? },
            SWEEP => Self::Sweep { n: fields.u64()? },
            ATTACH => {
                let protocol = fields.u32()?;
                let role = fields.u8()?;
                let (epoch, offset) = (fields.u64()?, fields.u64()?);
                let role = match role {
                    1 => Role::Control,
                    2 => Role::Records { epoch, offset },
                    value => return Err(fields.unknown(value)),
                };
                Self::Attach { protocol, role }
            }
            kind => return Err(FrameError::UnknownKind(kind)),
        };
        fields.end()?;
        Ok(command)
    }
}
