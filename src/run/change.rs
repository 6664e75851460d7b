//! What an append means to the disk, as plain data: the hand-over between log and store.
//!
//! A batch is committed whole or not at all. Must not know SQLite or how frames are encoded.

use serde::{Deserialize, Serialize};
use tungstenite::Utf8Bytes;

use crate::run::event::{AnswerState, By, Complete, Decision};
use crate::run::id::{
    AgentId, ClientMessageId, Millis, NativeId, Position, QueueId, RequestId, RunId, SessionId,
};
use crate::run::queue::Queued;
use crate::run::state::AnswerRequest;
use crate::sync::Arc;

/// An event encoded once for the wire, with what the log and the store must know of it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where it stands in its session. Seq 0 is a run's head, `run_started`.
    pub at: Position,
    /// The bytes that every reader gets.
    pub text: Utf8Bytes,
    /// What it changes in the run's state, for the few kinds that change something.
    pub mark: Option<Box<Mark>>,
    /// The whole of a field that was cut to `event_bytes_max`.
    pub whole: Option<Arc<Whole>>,
    /// Last frame of its group. A store batch never ends elsewhere.
    pub group_end: bool,
    /// On a group's last frame: the end offset of the agent record it came from; 0 for none.
    pub offset: u64,
}

impl Frame {
    /// What it weighs in memory, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.text.len() + self.whole.as_ref().map_or(0, |whole| whole.json.len())
    }
}

/// The uncut form of an event that was cut to fit `event_bytes_max`.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The whole event as JSON, envelope included.
    pub json: Vec<u8>,
}

/// What a frame changes beside the log: kept in the run's state, and mirrored by the store in
/// the frame's own transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A tool call without a result so far.
    ToolOpened(String),
    /// Its result.
    ToolClosed(String),
    /// A permission request that waits for an answer.
    PermissionOpened {
        /// Which request.
        request: RequestId,
        /// When it was asked.
        received_at: Millis,
    },
    /// An answer was recorded, or its state moved on.
    PermissionAnswered {
        /// Which request.
        request: RequestId,
        /// Allow or deny.
        decision: Decision,
        /// How far it got.
        state: AnswerState,
        /// Who answered.
        by: By,
        /// The whole answer, with `Recorded` only: a restart makes the agent's command of it.
        answer: Option<Box<AnswerRequest>>,
    },
    /// Nobody needs to answer any more.
    PermissionCancelled(RequestId),
    /// The end of the run (I1: one per run; I3: nothing after it).
    Complete(Box<RunEnd>),
}

/// What a run's row learns when the run ends.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// When.
    pub at: Millis,
    /// How.
    pub complete: Complete,
}

/// A durable fact that is no event.
#[derive(Clone, Debug)]
pub enum Change {
    /// Nothing to write: a place in the order, for a ticket that waits for the frames before it.
    Nothing,
    /// A new session.
    SessionCreated(SessionRow),
    /// Its title or its archive flag changed.
    SessionEdited {
        /// The new title, if it changed.
        title: Option<String>,
        /// The new flag, if it changed.
        archived: Option<bool>,
        /// When.
        at: Millis,
    },
    /// The session, its runs and their events are gone.
    SessionDeleted,
    /// The provider's own id became known. Unique per provider; the registry checked that first.
    NativeIdLearned {
        /// The id.
        native_id: NativeId,
        /// When.
        at: Millis,
    },
    /// A run began. Its head frame follows at (k, 0) and is kept in this row.
    RunStarted(RunRow),
    /// Another process serves the run than the one it began with: a warm one of the session, or a
    /// fresh one after that turned out to be dead. Comes before the run's prompt is delivered.
    RunAdopted {
        /// Which run.
        run: RunId,
        /// The process that takes it.
        agent: AgentId,
    },
    /// A prompt waits for the run to end.
    Queued(Box<Queued>),
    /// Somebody took a waiting prompt out.
    QueueRemoved {
        /// Which.
        id: QueueId,
        /// When.
        at: Millis,
    },
    /// A queue that an abort held goes on.
    QueueResumed {
        /// When.
        at: Millis,
    },
    /// Somebody asked that the run stop.
    AbortAsked {
        /// Which run.
        run: RunId,
        /// Who.
        by: By,
        /// When.
        at: Millis,
    },
    /// A command to the agent, numbered; durable before it is sent.
    CommandRecorded {
        /// Which run.
        run: RunId,
        /// Its number, from 1, rising over the agent's whole life, also from run to run.
        n: u64,
        /// What the worker needs to send it again, as JSON that only the worker reads.
        body: Vec<u8>,
        /// The end offset of the agent record that this replies to by itself; 0 for a command of
        /// a person's.
        cause: u64,
        /// The permission request that this answers.
        request: Option<RequestId>,
        /// When.
        at: Millis,
    },
    /// The keeper wrote it.
    CommandDelivered {
        /// Which run.
        run: RunId,
        /// Its number.
        n: u64,
        /// When.
        at: Millis,
    },
    /// How far an agent's records are folded, and the state to go on from: fold(all) =
    /// fold(checkpoint, rest). Follows all that those records gave. Replaces the one before.
    Checkpoint {
        /// Which agent.
        agent: AgentId,
        /// The end offset of the last record in it.
        offset: u64,
        /// What the worker needs to go on, as bytes that only the worker reads.
        state: Vec<u8>,
        /// When.
        at: Millis,
    },
    /// The agent's process is gone and all that it said is folded: no restart looks for it.
    AgentEnded {
        /// Which agent.
        agent: AgentId,
        /// When.
        at: Millis,
    },
    /// Something for the audit table only (a confirmation after the end, say).
    Audit {
        /// Which run, if any.
        run: Option<RunId>,
        /// One word for what happened.
        what: &'static str,
        /// The details as JSON.
        detail: String,
        /// When.
        at: Millis,
        /// Who, if it is known.
        by: Option<By>,
    },
}

impl Change {
    /// What the audit table says of a session that `by` deletes.
    #[must_use]
    pub fn session_deleted(provider: &str, by: &By, at: Millis) -> Self {
        let detail = serde_json::json!({ "provider": provider }).to_string();
        Self::Audit { run: None, what: "session_deleted", detail, at, by: Some(by.clone()) }
    }
}

/// A session as its row has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRow {
    /// The app id.
    pub id: SessionId,
    /// Which provider.
    pub provider: String,
    /// The provider's own id, once known.
    pub native_id: Option<NativeId>,
    /// An absolute path. The store gives each path a project id.
    pub project_path: String,
    /// As given, else the first prompt's beginning, `None` before.
    pub title: Option<String>,
    /// Out of the ordinary list.
    pub archived: bool,
    /// When it was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

/// A run as its row has it when it begins.
#[derive(Clone, Debug)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// Where in the session: (k, 0).
    pub at: Position,
    /// Which agent process serves it, unless a warm one adopts it; its tag finds leftovers.
    pub agent: AgentId,
    /// `user` or `agent`.
    pub origin: &'static str,
    /// The prompt's content and options as JSON, for duplicates of the same message.
    pub prompt_hash: [u8; 32],
    /// The sender's id for the prompt, if it gave one.
    pub client_message_id: Option<ClientMessageId>,
    /// The place in the queue that its prompt leaves in the same step (I19).
    pub queued: Option<QueueId>,
    /// When it began.
    pub started_at: Millis,
    /// The head frame, `run_started`, as sent.
    pub head: Utf8Bytes,
    /// A title for a session that has none.
    pub title: Option<String>,
}

/// What the store commits of one session, in order.
#[derive(Debug)]
pub struct Batch {
    /// Whose.
    pub session: SessionId,
    /// Frames and changes in the order in which they were appended.
    pub items: Vec<Item>,
    /// The log position that is durable once this is committed.
    pub to: Position,
    /// The ticket that is settled once this is committed.
    pub ticket: u64,
}

/// One thing to commit.
#[derive(Clone, Debug)]
pub enum Item {
    /// An event, or a run's head.
    Frame(Frame),
    /// A fact that is no event.
    Change(Box<Change>),
}
