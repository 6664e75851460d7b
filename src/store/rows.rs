//! What the store's tables look like to the rest of the program, and how their columns are read.
//!
//! Must not know who asks.

use rusqlite::Row;
use rusqlite::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tungstenite::Utf8Bytes;

use crate::run::change::SessionRow;
use crate::run::event::{By, Decision, Reason};
use crate::run::id::{
    AgentId, Millis, NativeId, Ordinal, Position, RequestId, RunId, Seq, SessionId,
};
use crate::run::state::AnswerRequest;

/// A directory in which sessions live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectRow {
    /// Given by the store, from 1, never used again.
    pub id: i64,
    /// An absolute path.
    pub path: String,
    /// What a person calls it.
    pub custom_name: Option<String>,
    /// Whether a person marked it.
    pub starred: bool,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// No `complete` is on disk.
    Running,
    /// Its `complete` is on disk, or was before retention took it.
    Completed,
}

impl RunStatus {
    /// The word of REST and of the column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
        }
    }
}

/// A wish that a run stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// Whose.
    pub by: By,
    /// Since when.
    pub at: Millis,
}

/// A run's row, without its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSummary {
    /// Its id.
    pub id: RunId,
    /// Its session.
    pub session: SessionId,
    /// Its session's provider.
    pub provider: String,
    /// Where in the session it stands.
    pub ordinal: Ordinal,
    /// `user` or `agent`.
    pub origin: String,
    /// Whether it has ended.
    pub status: RunStatus,
    /// When it began.
    pub started_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// The seq of its last stored event; 0 before the first. Kept when the events are gone.
    pub last_seq: Seq,
    /// The oldest seq that is still stored; 0 if none is.
    pub first_seq: Seq,
    /// The exit code of its `complete`.
    pub exit_code: Option<i64>,
    /// Of its `complete`.
    pub success: Option<bool>,
    /// Of its `complete`.
    pub aborted: Option<bool>,
    /// Of its `complete`.
    pub reason: Option<Reason>,
    /// Whether somebody asked that it stop.
    pub abort: Option<Abort>,
    /// When retention took its events; its row stays as a tombstone.
    pub pruned_at: Option<Millis>,
}

impl RunSummary {
    /// The position of its last stored event, or of its head.
    #[must_use]
    pub const fn end(&self) -> Position {
        Position::new(self.ordinal, self.last_seq)
    }
}

/// A session with what lists and broadcasts say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its row.
    pub row: SessionRow,
    /// Its project.
    pub project: ProjectRow,
    /// Its newest run.
    pub last_run: Option<RunSummary>,
    /// Whether a permission request waits for an answer.
    pub waiting: bool,
    /// How many prompts wait in its queue.
    pub queued: u64,
    /// Whether an abort stopped them.
    pub queue_held: bool,
}

/// A session with all that a subscriber is told at first.
#[derive(Clone, Debug)]
pub struct SessionSnapshot {
    /// Its row, project and newest run.
    pub view: SessionView,
    /// What waits for an answer, oldest first.
    pub pending: Vec<PendingPermission>,
}

/// A permission request that waits for an answer.
#[derive(Clone, Debug)]
pub struct PendingPermission {
    /// Its id, as clients see it.
    pub request: RequestId,
    /// Its session.
    pub session: SessionId,
    /// Its run.
    pub run: RunId,
    /// Its event's position.
    pub at: Position,
    /// Its event.
    pub text: Utf8Bytes,
    /// When it was asked.
    pub received_at: Millis,
}

/// How a permission request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionState {
    /// It waits for an answer.
    Open,
    /// An answer is recorded.
    Answered,
    /// The answer reached the agent.
    Delivered,
    /// The agent was gone before.
    Undeliverable,
    /// Nobody needs to answer any more.
    Cancelled,
}

impl PermissionState {
    /// The word of the column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Answered => "answered",
            Self::Delivered => "delivered",
            Self::Undeliverable => "undeliverable",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        [Self::Open, Self::Answered, Self::Delivered, Self::Undeliverable, Self::Cancelled]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// How a permission request stands, and what was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnsweredPermission {
    /// Its id.
    pub request: RequestId,
    /// Its run.
    pub run: RunId,
    /// Its session.
    pub session: SessionId,
    /// Its event's position.
    pub at: Position,
    /// Its event.
    pub text: Utf8Bytes,
    /// When it was asked.
    pub received_at: Millis,
    /// How it stands.
    pub state: PermissionState,
    /// What was decided, once answered.
    pub decision: Option<Decision>,
    /// Who decided.
    pub by: Option<By>,
}

/// A command that a restart has to do something for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCommand {
    /// The run that it belongs to.
    pub run: RunId,
    /// Its number in the agent's life.
    pub n: u64,
    /// What the worker recorded, as JSON that only the worker reads.
    pub body: Vec<u8>,
    /// The end offset of the agent record that it replies to by itself; 0 for a person's.
    pub cause: u64,
    /// The permission request that it answers.
    pub request: Option<RequestId>,
}

/// An agent process that served runs: what a gateway needs to go on with it after a restart.
#[derive(Clone, Debug)]
pub struct StoredAgent {
    /// Its id.
    pub agent: AgentId,
    /// Its session.
    pub session: SessionId,
    /// The newest run that it served.
    pub newest: RunSummary,
    /// The end offset of the last record whose events are stored, over all its runs.
    pub offset: u64,
    /// The offset and the state to fold on from, if it has a checkpoint.
    pub checkpoint: Option<(u64, Vec<u8>)>,
    /// Commands of all its runs that are not known to be delivered, and those whose delivery is
    /// recorded while their request still says `answered` (the crash fell between the two), by
    /// `n`. Sending one of these again is harmless: its keeper has that number.
    pub commands: Vec<StoredCommand>,
    /// The causes of all its commands that lie behind the checkpoint, in order, as often as they
    /// have commands: the automatic replies that are recorded already.
    pub causes: Vec<u64>,
    /// The highest number among its commands; 0 if there are none (retention may have taken
    /// them).
    pub last_n: u64,
    /// The run that it is in.
    pub open: Option<OpenRun>,
    /// Answers that are recorded and have no command yet, by the place of their requests.
    pub answers: Vec<(RequestId, AnswerRequest)>,
}

/// A run without a `complete`: what recovery needs to go on with it, or to end it.
#[derive(Clone, Debug)]
pub struct OpenRun {
    /// Its row.
    pub run: RunSummary,
    /// Its agent process, whose tag finds leftovers.
    pub agent: AgentId,
    /// The end offset of the last agent record whose events are stored.
    pub offset: u64,
    /// Tool calls without a result.
    pub open_tools: Vec<String>,
    /// Permission requests that are open, or answered and not known to be delivered.
    pub permissions: Vec<AnsweredPermission>,
}

/// Columns of a run for `run_summary`; the tables are `r` (run) and `s` (session).
pub(super) const RUN_COLUMNS: &str = "r.rid, s.sid, s.provider, r.ordinal, r.origin, r.state, \
     r.started_ms, r.ended_ms, r.last_seq, r.exit_code, r.success, r.aborted, r.reason, \
     r.abort_asked_ms, r.abort_by, r.pruned_ms";

/// A run from `RUN_COLUMNS`.
pub(super) fn run_summary(row: &Row<'_>) -> rusqlite::Result<RunSummary> {
    let state: String = row.get("state")?;
    let last_seq: i64 = row.get("last_seq")?;
    let pruned_at = row.get::<_, Option<i64>>("pruned_ms")?.map(Millis);
    let abort = match (row.get("abort_asked_ms")?, row.get::<_, Option<String>>("abort_by")?) {
        (Some(at), Some(by)) => Some(Abort { by: from_json(&by)?, at: Millis(at) }),
        _ => None,
    };
    Ok(RunSummary {
        id: RunId::from_bytes(row.get("rid")?),
        session: SessionId::from_bytes(row.get("sid")?),
        provider: row.get("provider")?,
        ordinal: Ordinal(row.get("ordinal")?),
        origin: row.get("origin")?,
        status: if state == "running" { RunStatus::Running } else { RunStatus::Completed },
        started_at: Millis(row.get("started_ms")?),
        ended_at: row.get::<_, Option<i64>>("ended_ms")?.map(Millis),
        last_seq: Seq(natural(last_seq)),
        first_seq: Seq(u64::from(pruned_at.is_none() && last_seq > 0)),
        exit_code: row.get("exit_code")?,
        success: row.get("success")?,
        aborted: row.get("aborted")?,
        reason: row.get::<_, Option<String>>("reason")?.map(|word| from_word(&word)).transpose()?,
        abort,
        pruned_at,
    })
}

/// Columns of a session for `session_row` and `project_row`; the tables are `s` and `p`.
pub(super) const SESSION_COLUMNS: &str = "s.id AS session_id, s.sid, s.provider, s.native_id, \
     s.title, s.archived, s.created_ms, s.updated_ms, p.id AS project_id, p.path, p.custom_name, \
     p.starred";

/// A session from `SESSION_COLUMNS`.
pub(super) fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    Ok(SessionRow {
        id: SessionId::from_bytes(row.get("sid")?),
        provider: row.get("provider")?,
        native_id: row.get::<_, Option<String>>("native_id")?.map(NativeId),
        project_path: row.get("path")?,
        title: row.get("title")?,
        archived: row.get("archived")?,
        created_at: Millis(row.get("created_ms")?),
        updated_at: Millis(row.get("updated_ms")?),
    })
}

/// A project from `SESSION_COLUMNS`.
pub(super) fn project_row(row: &Row<'_>) -> rusqlite::Result<ProjectRow> {
    Ok(ProjectRow {
        id: row.get("project_id")?,
        path: row.get("path")?,
        custom_name: row.get("custom_name")?,
        starred: row.get("starred")?,
    })
}

/// An unsigned number as SQLite keeps it; what it cannot keep is beyond everything it has.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A number that is never negative.
pub(super) fn natural(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The word of an enum that is serialised as one.
pub(super) fn to_word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        other => unreachable!("an enum without fields is serialised as a word, not {other:?}"),
    }
}

/// The enum of such a word.
pub(super) fn from_word<T: DeserializeOwned>(word: &str) -> rusqlite::Result<T> {
    serde_json::from_value(Value::String(word.into())).map_err(unreadable)
}

/// A value that was stored as JSON.
pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(unreadable)
}

/// A frame's bytes, back as text.
pub(super) fn frame_text(bytes: Vec<u8>) -> rusqlite::Result<Utf8Bytes> {
    Utf8Bytes::try_from(bytes).map_err(unreadable)
}

/// A column that we would never have written so: counts as damage.
pub(super) fn unreadable<E>(error: E) -> rusqlite::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error))
}
