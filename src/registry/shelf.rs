//! What the registry needs of a disk: to read what is durable, and to commit what is new.
//!
//! Two traits, so that the models and the property tests run the registry that ships over a disk
//! in memory. Must not know SQLite.

use tungstenite::Utf8Bytes;

use crate::run::change::{Batch, SessionRow};
use crate::run::id::{
    ClientMessageId, NativeId, Ordinal, Position, RequestId, RunId, Seq, SessionId,
};
use crate::run::queue::{Queue, Queued};
use crate::run::server_change::ServerChange;
use crate::run::state::{Permission, Run};

/// Reads what is durable.
pub trait Shelf: Send + Sync {
    /// A session and its newest run.
    fn session(&self, id: SessionId) -> Result<Option<Loaded>, ShelfError>;
    /// Where a run stands.
    fn locate(&self, run: RunId) -> Result<Option<Place>, ShelfError>;
    /// The id of a session's run with this place.
    fn run_at(&self, session: SessionId, ordinal: Ordinal) -> Result<Option<RunId>, ShelfError>;
    /// What follows `after`, up to `upto`: about `bytes` of frames, or what is gone of it.
    fn frames(
        &self,
        session: SessionId,
        after: Position,
        upto: Position,
        bytes: usize,
    ) -> Result<Kept, ShelfError>;
    /// What became of a prompt with this id, unless it waits.
    fn message(
        &self,
        session: SessionId,
        id: &ClientMessageId,
    ) -> Result<Option<Message>, ShelfError>;
    /// The prompts that wait in a session, in order, and whether they are held.
    fn queue(&self, session: SessionId) -> Result<(Vec<Queued>, bool), ShelfError>;
    /// Whose a provider's own id is.
    fn native(&self, provider: &str, id: &NativeId) -> Result<Option<SessionId>, ShelfError>;
    /// Whether a permission request was ever asked.
    fn permission(&self, request: &RequestId) -> Result<Option<SessionId>, ShelfError>;
}

/// Commits what is new.
pub trait Disk: Send {
    /// Commits all of it or nothing.
    fn commit(&mut self, batches: &[Batch]) -> Result<(), CommitError>;

    /// The same for facts of no session.
    fn commit_server(&mut self, changes: &[ServerChange]) -> Result<(), CommitError>;
}

/// A session as the disk has it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its row.
    pub row: SessionRow,
    /// Its newest run.
    pub newest: Option<Run>,
    /// What waits in that run, if it has no `complete`.
    pub permissions: Vec<(RequestId, Permission)>,
    /// The prompts that wait for it to end.
    pub queue: Queue,
}

/// What is known of a prompt's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It began this run, and what it said has this hash.
    Run(RunId, [u8; 32]),
    /// It was taken out of the queue.
    Removed,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose it is.
    pub session: SessionId,
    /// Its place there.
    pub ordinal: Ordinal,
    /// Its newest seq.
    pub last_seq: Seq,
    /// Whether retention took its events.
    pub pruned: bool,
}

/// What the disk has after a cursor.
#[derive(Clone, Debug)]
pub enum Kept {
    /// Frames in order; none if there is nothing up to the given position.
    Frames(Vec<(Position, Utf8Bytes)>),
    /// The next part is gone.
    Gone {
        /// What.
        gap: Gap,
        /// The cursor after it.
        to: Position,
    },
}

/// A range that was asked for and is no longer kept, both ends included (I4b).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its first event, if known.
    pub from: Option<(RunId, Seq)>,
    /// Its last event.
    pub to: (RunId, Seq),
}

/// The disk could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be read: {0}")]
pub struct ShelfError(pub String);

/// Why a commit failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// It may go well later: no room, an I/O error, a lock.
    #[error("{code}: {message}")]
    Retry {
        /// SQLite's word.
        code: &'static str,
        /// In words.
        message: String,
    },
    /// A guard refused the rows of one session (or of an unknown one of several).
    #[error("constraint: {message}")]
    Constraint {
        /// In words.
        message: String,
    },
    /// The database is not usable.
    #[error("{code}: {message}")]
    Fatal {
        /// SQLite's word.
        code: &'static str,
        /// In words.
        message: String,
    },
}
