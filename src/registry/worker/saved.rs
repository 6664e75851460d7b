//! What a worker leaves on disk for the one that comes after a restart: its checkpoints, and its
//! commands with what each is for.
//!
//! Must not know when either is written.

use serde::{Deserialize, Serialize};

use super::turn::Turn;
use crate::provider::{Launch, Write};
use crate::run::event::PermissionResolved;

/// The state of a worker at the end of a record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The fold's.
    pub(super) turn: Turn,
    /// The number of its next command.
    pub(super) next_n: u64,
    /// How the process was started, without the conversation that it went on with: a prompt that
    /// needs another start needs another process.
    pub(super) launch: Launch,
}

/// A command's row.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Body {
    /// What is written.
    pub(super) write: Write,
    /// What for.
    pub(super) purpose: Purpose,
}

/// What a command is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Purpose {
    /// It begins a turn.
    Prompt,
    /// A person's answer.
    Answer(Box<PermissionResolved>),
    /// The provider's own interrupt.
    Interrupt,
    /// An automatic reply.
    Reply,
}

/// As the store keeps it. Both kinds are plain data: this cannot fail.
pub(super) fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
