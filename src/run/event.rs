//! The vocabulary of events: what every provider is translated into.
//!
//! `docs/protocol.md` has the meaning of each field. The shapes are here; the bytes are made in
//! `protocol/frame` alone. Must not know envelopes (id, seq, timestamp), providers or the wire.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A fact in a run, without its envelope.
///
/// Optional fields are absent when unknown, never `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Event {
    /// A finished block of text; the truth, whatever deltas said before.
    Text {
        /// The block.
        content: String,
        /// `None` is the assistant.
        #[serde(skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
        /// Ties the block to its deltas.
        #[serde(skip_serializing_if = "Option::is_none")]
        block_id: Option<String>,
        /// The tool call of the subagent that said it.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent_tool_id: Option<String>,
    },
    /// A finished block of reasoning.
    Thinking {
        /// The block.
        content: String,
        /// Ties the block to its deltas.
        #[serde(skip_serializing_if = "Option::is_none")]
        block_id: Option<String>,
        /// The tool call of the subagent that thought it.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent_tool_id: Option<String>,
    },
    /// A preview of a block to come.
    StreamDelta {
        /// The next piece.
        content: String,
        /// The block it belongs to.
        block_id: String,
        /// What kind of block.
        block: Block,
        /// The tool call of the subagent that streams it.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent_tool_id: Option<String>,
    },
    /// No more deltas of a block; the finished block with the same `block_id` replaces them.
    StreamEnd {
        /// The block that ended.
        block_id: String,
        /// What kind of block.
        block: Block,
        /// The tool call of the subagent that streamed it.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent_tool_id: Option<String>,
    },
    /// A tool call; a second one with the same `tool_id` refines the first.
    ToolUse(ToolUse),
    /// A tool call's outcome; exactly one per `tool_id`.
    ToolResult(ToolResult),
    /// The agent waits for an answer.
    PermissionRequest(PermissionRequest),
    /// An answer was recorded, or reached the agent, or could not.
    PermissionResolved(PermissionResolved),
    /// Nobody needs to answer any more.
    PermissionCancelled {
        /// Which request.
        request_id: String,
        /// Why.
        reason: CancelReason,
    },
    /// Background work of the agent.
    TaskNotification {
        /// Which task.
        task_id: String,
        /// How it stands.
        status: TaskStatus,
        /// In the agent's words.
        #[serde(skip_serializing_if = "Option::is_none")]
        summary: Option<String>,
        /// The tool call that started it.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent_tool_id: Option<String>,
    },
    /// What goes on; the last one of each `status` value is the current one.
    Status(Status),
    /// Something went wrong; never the end by itself.
    Error {
        /// What, in words.
        content: String,
        /// A word for programs, where there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        /// Who says so.
        source: ErrorSource,
        /// The tool call of the subagent it concerns.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent_tool_id: Option<String>,
    },
    /// A line that nothing else fits; kept so that nothing an agent says is lost.
    Raw {
        /// Where it came from.
        stream: Stream,
        /// The line.
        content: String,
    },
    /// The end, once (I1), and last (I3).
    Complete(Complete),
    /// What a `jsonl` agent says in its own words: any kind, any fields.
    #[serde(untagged)]
    Custom(Custom),
}

impl Event {
    /// The tool call that this event opens, or refines. A `jsonl` agent's own `tool_use` counts.
    #[must_use]
    pub fn tool_opened(&self) -> Option<&str> {
        match self {
            Self::ToolUse(call) => Some(&call.tool_id),
            Self::Custom(custom) => custom.tool_id("tool_use"),
            _ => None,
        }
    }

    /// The tool call that this event closes. A `jsonl` agent's own `tool_result` counts.
    #[must_use]
    pub fn tool_closed(&self) -> Option<&str> {
        match self {
            Self::ToolResult(result) => Some(&result.tool_id),
            Self::Custom(custom) => custom.tool_id("tool_result"),
            _ => None,
        }
    }
}

/// An event of a `jsonl` agent: `kind` as it gave it, all other fields kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Custom {
    /// The agent's word.
    pub kind: String,
    /// The agent's fields. Names of the envelope are dropped when the frame is made.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl Custom {
    /// The `toolId` of an event of this kind. One that is too long to be kept in the run's state
    /// (I7) does not count: its call is forwarded, but not tracked.
    fn tool_id(&self, kind: &str) -> Option<&str> {
        if self.kind != kind {
            return None;
        }
        let id = self.fields.get("toolId")?.as_str()?;
        (!id.is_empty() && id.len() <= crate::limits::AGENT_ITEM_ID_BYTES_MAX).then_some(id)
    }
}

/// Who speaks in a text block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The agent.
    Assistant,
    /// The person.
    User,
}

/// What a stream of deltas will become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// A `text` event.
    Text,
    /// A `thinking` event.
    Thinking,
}

/// A tool call.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolUse {
    /// The agent's id for the call.
    pub tool_id: String,
    /// The agent's name for the tool.
    pub tool_name: String,
    /// Its arguments, as the agent gives them.
    pub tool_input: Value,
    /// What kind of thing it does.
    pub category: Category,
    /// One line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// A unified diff of what it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// Waiting or at work.
    pub status: ToolStatus,
    /// The tool call of the subagent that makes this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_tool_id: Option<String>,
}

/// What kind of thing a tool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Runs a command.
    Execute,
    /// Reads a file.
    Read,
    /// Changes a file.
    Edit,
    /// Searches files.
    Search,
    /// Reads from the network.
    Fetch,
    /// Thinks, plans, delegates.
    Think,
    /// Anything else.
    Other,
}

/// How a tool call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolStatus {
    /// It may still need an answer.
    Pending,
    /// It is at work.
    Running,
}

/// A tool call's outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    /// The call.
    pub tool_id: String,
    /// What came out.
    pub tool_result: ToolOutput,
    /// Of a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// `Some(true)` when the agent gave none and we made this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<bool>,
    /// The tool call of the subagent that made the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_tool_id: Option<String>,
}

/// What a tool gave back.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolOutput {
    /// Text, mostly; some tools give structure.
    pub content: Value,
    /// Whether it failed.
    pub is_error: bool,
    /// The structured form, where the agent has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_use_result: Option<Value>,
}

/// The agent waits for an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PermissionRequest {
    /// The agent's own id while in the adapter; the worker puts the prefix on (see `RequestId`).
    pub request_id: String,
    /// What kind of answer it waits for.
    pub interaction: Interaction,
    /// The tool call it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_id: Option<String>,
    /// The tool's name.
    pub tool_name: String,
    /// The tool's arguments.
    pub input: Value,
    /// Where it would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// One line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The agent's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A unified diff of what it would change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// What one may choose.
    pub choices: Vec<Choice>,
    /// Whether `updatedInput` may be given with an allow.
    pub editable: bool,
    /// For `interaction: question`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions: Option<Vec<Question>>,
    /// The tool call of the subagent that asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_tool_id: Option<String>,
    /// What else a `jsonl` agent put in its request; kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What kind of answer a permission request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interaction {
    /// Allow or deny a tool call.
    Tool,
    /// Answers to questions, in `updatedInput.answers`.
    Question,
    /// Allow or deny a plan.
    Plan,
}

/// One way to answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// What `choiceId` names.
    pub id: String,
    /// What it means.
    pub kind: ChoiceKind,
    /// For people.
    pub label: String,
    /// The rule that it would save, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// What a choice means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceKind {
    /// This time.
    AllowOnce,
    /// From now on.
    AllowAlways,
    /// Not this time.
    RejectOnce,
    /// Never.
    RejectAlways,
}

/// A question to the person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// What `answers` is keyed by.
    pub id: String,
    /// The question.
    pub text: String,
    /// Offered answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
    /// Whether several may be given.
    pub multi: bool,
}

/// An answer to a permission request, and how far it got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PermissionResolved {
    /// Which request.
    pub request_id: String,
    /// What was decided.
    pub decision: Decision,
    /// Which choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_id: Option<String>,
    /// How far it got.
    pub state: AnswerState,
    /// Who decided.
    pub by: By,
    /// Whether the input was changed.
    pub edited: bool,
    /// The changed input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_input: Option<Value>,
    /// A note to the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Let it.
    Allow,
    /// Do not.
    Deny,
}

/// How far an answer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerState {
    /// Its row is durable.
    Recorded,
    /// The keeper wrote it to the agent.
    Delivered,
    /// The agent was gone before it could be delivered.
    Undeliverable,
}

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// Through what.
    pub kind: ByKind,
    /// Its name.
    pub name: String,
}

/// Through what somebody acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByKind {
    /// The page.
    Web,
    /// The command line.
    Cli,
    /// REST or a third-party client.
    Api,
    /// A saved rule, or the gateway itself.
    Rule,
}

/// Why a permission request needs no answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// The agent gave up waiting.
    Timeout,
    /// The agent took it back.
    Withdrawn,
    /// Its run ended.
    RunEnded,
}

/// How background work stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// It began.
    Started,
    /// It goes on.
    Running,
    /// It is done.
    Completed,
    /// It failed.
    Failed,
    /// It was stopped.
    Stopped,
}

/// What goes on.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Which aspect.
    pub status: StatusKind,
    /// For people.
    pub text: String,
    /// Whether an abort would do something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_interrupt: Option<bool>,
    /// For `retrying`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// For `plan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Vec<PlanItem>>,
    /// For `usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_budget: Option<TokenBudget>,
    /// Of this turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// For `mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// For `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The tool call of the subagent it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_tool_id: Option<String>,
}

/// Which aspect a status speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusKind {
    /// The agent starts.
    Starting,
    /// It works.
    Working,
    /// Its provider failed and it tries again.
    Retrying,
    /// It waits for a person.
    Waiting,
    /// No news for a while.
    Quiet,
    /// It is being stopped.
    Stopping,
    /// Its permission mode.
    Mode,
    /// Its model.
    Model,
    /// Its plan.
    Plan,
    /// Its consumption.
    Usage,
    /// Anything else.
    #[default]
    Info,
}

/// A retry in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Which attempt this is.
    pub attempt: u64,
    /// How many there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// How long until it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanItem {
    /// What to do.
    pub content: String,
    /// The agent's word for how it stands (`pending`, `in_progress`, `completed`).
    pub status: String,
}

/// Tokens used, of how many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenBudget {
    /// In the context now.
    pub used: u64,
    /// The context's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Read by the model in this turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Written by the model in this turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Of the input, from the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_read_tokens: Option<u64>,
}

/// Who says that something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorSource {
    /// The agent.
    Agent,
    /// The model's provider, through the agent.
    Provider,
    /// The agent's stderr.
    Stderr,
    /// We.
    Gateway,
}

/// Where a raw line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// The agent's stdout.
    Stdout,
    /// The agent's stderr.
    Stderr,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Complete {
    /// The process's exit code, or the agent's own; `null` if a signal killed it or it lives on.
    pub exit_code: Option<i64>,
    /// Only for `finished`, with exit code 0 where there is one.
    pub success: bool,
    /// Whether somebody stopped it.
    pub aborted: bool,
    /// Why it ended.
    pub reason: Reason,
    /// What went wrong, with the stderr tail where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Who aborted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// What the turn consumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// From start to end.
    pub duration_ms: u64,
    /// What else a `jsonl` agent put in its `complete`; kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Why a run ended: a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The agent said that the turn is over.
    Finished,
    /// The agent said that the turn failed.
    Failed,
    /// Somebody stopped it.
    Aborted,
    /// The process ended without saying so.
    AgentExited,
    /// Gone while nobody watched.
    AgentLost,
    /// Nothing could be started.
    SpawnFailed,
    /// A deadline passed.
    Timeout,
    /// The gateway shut down.
    Shutdown,
    /// The store refused its rows.
    StoreRejected,
    /// A bug of ours.
    InternalError,
}

/// What a turn consumed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Read by the model.
    pub input_tokens: u64,
    /// Written by the model.
    pub output_tokens: u64,
    /// Of the input, from the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_read_tokens: Option<u64>,
    /// Money.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}
