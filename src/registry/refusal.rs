//! Why something was refused: a code for programs, a sentence for people.

use crate::registry::shelf::ShelfError;
use crate::run::id::SessionId;

/// Why something was refused. Nothing was recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs: becomes the error code of the same name.
    pub code: RefusalCode,
    /// For people: what to do.
    pub message: String,
}

/// The closed list of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCode {
    /// No such session.
    SessionNotFound,
    /// No such provider here.
    UnsupportedProvider,
    /// A run is running.
    RunInProgress,
    /// Nothing to stop.
    NoActiveRun,
    /// No such run.
    RunNotFound,
    /// No such permission request.
    PermissionNotFound,
    /// No such prompt waits.
    QueuedPromptNotFound,
    /// Somebody was first.
    PermissionAlreadyResolved,
    /// `agents_max` agents are at work.
    Busy,
    /// The store cannot commit now.
    StoreUnavailable,
    /// The server stops.
    ShuttingDown,
    /// A field says something that cannot be.
    InvalidField,
    /// A bug of ours.
    Internal,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn no_session(id: SessionId) -> Self {
        Self::new(RefusalCode::SessionNotFound, format!("There is no session {id}."))
    }
}

impl From<ShelfError> for Refusal {
    fn from(error: ShelfError) -> Self {
        Self::new(RefusalCode::StoreUnavailable, error.to_string())
    }
}

pub(super) fn shutting_down() -> Refusal {
    Refusal::new(RefusalCode::ShuttingDown, "The server is stopping; try again when it is back.")
}

pub(super) fn busy() -> Refusal {
    Refusal::new(
        RefusalCode::Busy,
        "As many agents are at work as agents_max allows; nothing was recorded, try again.",
    )
}

pub(super) fn queue_full() -> Refusal {
    Refusal::new(
        RefusalCode::Busy,
        "The session's queue is full; nothing was recorded, try again when a prompt has begun.",
    )
}

pub(super) fn no_queued() -> Refusal {
    Refusal::new(
        RefusalCode::QueuedPromptNotFound,
        "That prompt does not wait (any more): it began, or somebody took it out.",
    )
}

/// Another prompt had the id.
pub(super) fn another() -> Refusal {
    Refusal::new(
        RefusalCode::InvalidField,
        "clientMessageId: another prompt of this session had this id; use a new one.",
    )
}

/// A resend of what somebody took out is no new wish (I19).
pub(super) fn removed() -> Refusal {
    Refusal::new(
        RefusalCode::InvalidField,
        "clientMessageId: the prompt with this id was taken out of the queue; use a new one.",
    )
}
