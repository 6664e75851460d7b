//! How a disk in memory is made to fail.
//!
//! Must not know what is committed.

use crate::registry::CommitError;

/// What a commit answers instead of committing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No room: it may go well later.
    Retry,
    /// A guard refuses the rows.
    Constraint,
    /// The database is broken.
    Fatal,
}

impl Fault {
    pub(super) fn error(self) -> CommitError {
        let message = String::from("made to fail");
        match self {
            Self::Retry => CommitError::Retry { code: "FULL", message },
            Self::Constraint => CommitError::Constraint { message },
            Self::Fatal => CommitError::Fatal { code: "CORRUPT", message },
        }
    }
}
