//! Adapters: one provider's dialect each, as a pure fold.
//!
//! An adapter is a value with serialisable state. It is fed timestamped records of both
//! directions and gives events and bytes to write. It has no clock, no thread and does no I/O:
//! recorded transcripts test it line by line, and a restart rebuilds it. Folding never fails: a
//! line that it does not know becomes a `raw` event.
//!
//! Must not know pipes, threads, the registry; no dialect knows another.

pub mod claude;
pub mod command;
pub mod jsonl;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::run::event::{Complete, ErrorSource, Event, Reason, Usage};
use crate::run::id::Millis;

/// What passed between an agent and its keeper, in the order in which it passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the keeper saw it.
    pub at: Millis,
    /// What it was.
    pub body: RecordBody,
}

impl Record {
    /// What it weighs in memory, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let content = match &self.body {
            RecordBody::Out(bytes) | RecordBody::Err(bytes) | RecordBody::In { bytes, .. } => bytes,
            RecordBody::OutCapped { head, .. } => head,
            RecordBody::Exit(_) | RecordBody::Decision(_) => return size_of::<Self>(),
        };
        size_of::<Self>() + content.len()
    }
}

/// The kinds of record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordBody {
    /// A line of the agent's stdout, without its line end. Not necessarily UTF-8.
    Out(Vec<u8>),
    /// A line of the agent's stderr, likewise.
    Err(Vec<u8>),
    /// A stdout line over the cap: its length and its first bytes.
    OutCapped {
        /// The whole line's length in bytes.
        bytes: u64,
        /// How it began.
        head: Vec<u8>,
    },
    /// Write number `n` reached the agent's stdin.
    In {
        /// The number of the command's row.
        n: u64,
        /// What was written.
        bytes: Vec<u8>,
    },
    /// The process ended. Always the last record.
    Exit(Exit),
    /// What the keeper decided by itself. Adapters pass over it.
    Decision(Decision),
}

/// Why a keeper stops its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// A gateway asked for it.
    StopAsked,
    /// No gateway was there for too long.
    OrphanGraceOver,
    /// The keeper itself got a signal to end.
    Signalled,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// What a fold gives, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A turn begins: by a prompt of ours, or by the agent itself (background results).
    TurnStarted(Origin),
    /// A fact in the current turn; between turns it is background activity.
    Event(Event),
    /// The agent's own id for this conversation, each time it names it.
    NativeId(String),
    /// An automatic reply to the agent. It becomes a numbered row like every command.
    Write(Write),
    /// The agent withdrew or timed out a permission request; the worker logs
    /// `permission_cancelled` if it was still open.
    PermissionGone {
        /// The agent's own request id.
        request_id: String,
        /// Why.
        reason: crate::run::event::CancelReason,
    },
    /// The current turn's terminal. Only this completes a run, or else the process's exit.
    TurnEnded(Ending),
}

/// Who began a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A prompt.
    User,
    /// The agent.
    Agent,
}

/// How the agent says its turn ended. The worker turns it into `complete`, unless an abort has
/// been asked for, which then decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// `finished` or `failed`; `aborted` when the agent confirms an interrupt.
    pub reason: Reason,
    /// Where the agent gives one.
    pub exit_code: Option<i64>,
    /// As the agent has it: `jsonl` agents may say so themselves.
    pub success: bool,
    /// What went wrong.
    pub error: Option<String>,
    /// What the turn consumed.
    pub usage: Option<Usage>,
    /// What else a `jsonl` agent put in its `complete`; kept.
    pub extra: Map<String, Value>,
}

impl Ending {
    /// The event, `duration_ms` after the run's start.
    #[must_use]
    pub fn complete(self, duration_ms: u64) -> Complete {
        Complete {
            exit_code: self.exit_code,
            success: self.success,
            aborted: self.reason == Reason::Aborted,
            reason: self.reason,
            error: self.error,
            by: None,
            usage: self.usage,
            duration_ms,
            extra: self.extra,
        }
    }
}

/// One agent's dialect and how far its conversation has got: the value that a worker folds with,
/// and that a checkpoint saves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "dialect", content = "state", rename_all = "snake_case")]
pub enum Adapter {
    /// Any program that speaks JSON lines; the demo agent is one.
    Jsonl(jsonl::Jsonl),
    /// Any program: prompt in, lines out.
    Command(command::Lines),
    /// Claude Code.
    Claude(Box<claude::Claude>),
}

impl Adapter {
    /// A fresh one, for a process that is about to start.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Jsonl | Kind::Demo => Self::Jsonl(jsonl::Jsonl::default()),
            Kind::Command => Self::Command(command::Lines::default()),
            Kind::Claude => Self::Claude(Box::default()),
        }
    }

    /// What a record means. The same records always give the same outputs, also when the state
    /// went through serde in between: fold(all) = fold(checkpoint, rest).
    pub fn fold(&mut self, record: &Record) -> Vec<Output> {
        match self {
            Self::Jsonl(jsonl) => jsonl.fold(record),
            Self::Command(lines) => lines.fold(record),
            Self::Claude(claude) => claude.fold(record),
        }
    }

    /// The bytes that tell the agent this; `None` if its dialect has no word for it (then an
    /// interrupt is the stop ladder's business, and an answer is undeliverable).
    #[must_use]
    pub fn encode(&self, command: &Command) -> Option<Write> {
        match self {
            Self::Jsonl(jsonl) => jsonl.encode(command),
            Self::Command(lines) => lines.encode(command),
            Self::Claude(claude) => claude.encode(command),
        }
    }

    /// Whether the worker closes the agent's stdin at the end of the turn, because the process
    /// serves one run. Another stays warm for the session's next run.
    #[must_use]
    pub const fn ends_stdin_with_turn(&self) -> bool {
        match self {
            Self::Jsonl(_) | Self::Command(_) => true,
            Self::Claude(_) => false,
        }
    }
}

/// What we want of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A new turn.
    Prompt(Prompt),
    /// An answer to a permission request, under the agent's own request id.
    Answer(Answer),
    /// Please stop this turn.
    Interrupt,
}

/// A new turn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// What the person says.
    pub content: String,
    /// As the client gave them.
    pub options: Map<String, Value>,
    /// The files that go with it.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// The working directory, already confined to the project.
    pub cwd: PathBuf,
    /// The conversation to go on with.
    pub native_id: Option<String>,
}

/// A file that goes with a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// As the prompt names it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its type, as its sender says.
    pub content_type: String,
    /// Its length.
    pub bytes: u64,
    /// Where it lies.
    pub path: PathBuf,
    /// What is in it as base64, if it is a picture that an agent can be given as such.
    #[serde(skip)]
    pub picture: Option<String>,
}

/// An answer to a permission request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The agent's own request id.
    pub request_id: String,
    /// Allow or deny.
    pub allow: bool,
    /// Which of the request's choices.
    pub choice_id: Option<String>,
    /// Changed input, or answers to questions.
    pub updated_input: Option<Value>,
    /// A note to the agent.
    pub message: Option<String>,
    /// Save a rule; as the client gave it (`remember`, or `rememberEntry`).
    pub remember: Option<Value>,
}

/// Bytes for the agent's stdin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Whole lines, ends included. May be empty if only the close matters.
    #[serde(with = "as_text")]
    pub bytes: Vec<u8>,
    /// Close the agent's stdin after them.
    pub close: bool,
}

/// Bytes that are text, as nearly all are, as a string: a list of numbers is four times as long.
mod as_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match str::from_utf8(bytes) {
            Ok(text) => text.serialize(to),
            Err(_) => bytes.serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Either::deserialize(from)? {
            Either::Text(text) => text.into_bytes(),
            Either::Bytes(bytes) => bytes,
        })
    }
}

/// How to start an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the short, allow-listed environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs.
    pub cwd: PathBuf,
}

/// A configured provider, `[providers.NAME]` of `config.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// What a session's `provider` says.
    pub name: String,
    /// Which dialect it speaks.
    pub kind: Kind,
    /// Its argv; each kind has its default.
    pub command: Vec<String>,
    /// Added to the agent's environment.
    pub env: BTreeMap<String, String>,
}

impl Provider {
    /// How to start its agent for this prompt. `command` is not empty: configuration saw to it,
    /// and put each kind's default there.
    #[must_use]
    pub fn launch(&self, prompt: &Prompt) -> Launch {
        match self.kind {
            Kind::Claude => claude::Claude::launch(self, prompt),
            Kind::Command => command::Lines::launch(self, prompt),
            Kind::Jsonl | Kind::Demo => Launch {
                argv: self.command.clone(),
                env: self.env.clone(),
                cwd: prompt.cwd.clone(),
            },
        }
    }

    /// Whether a prompt may have these options; what they mean is the dialect's to say.
    ///
    /// # Errors
    /// A sentence for the client: which option is refused, and what would be accepted.
    pub fn check(&self, options: &Map<String, Value>) -> Result<(), String> {
        match self.kind {
            Kind::Claude => claude::Claude::check(options).map_err(|error| error.to_string()),
            // They get any options, and say themselves what they think of them.
            Kind::Jsonl | Kind::Command | Kind::Demo => Ok(()),
        }
    }
}

/// The dialects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Claude Code, stream-json both ways.
    Claude,
    /// Any program that speaks JSON lines.
    Jsonl,
    /// Any program: prompt in, lines out.
    Command,
    /// The demo agent: `jsonl`, spoken by this binary.
    Demo,
}

impl Kind {
    /// Whether its agents can be given pictures, and not only told where they lie.
    #[must_use]
    pub const fn takes_pictures(self) -> bool {
        matches!(self, Self::Claude)
    }
}

/// Top-level keys under which agents give their own id for the conversation. They are dropped
/// from what is kept of an agent's line, since the app id stands in the envelope (I10).
pub const NATIVE_ID_KEYS: [&str; 7] = [
    "sessionId",
    "session_id",
    "sessionID",
    "newSessionId",
    "providerSessionId",
    "actualSessionId",
    "nativeSessionId",
];

/// The text of a line that becomes a `raw` event: bytes that are no UTF-8 are replaced, and the
/// native id's keys are dropped where the line is a JSON object (I10).
pub(crate) fn raw_text(line: &[u8]) -> String {
    if line.trim_ascii_start().first() == Some(&b'{')
        && let Ok(mut object) = serde_json::from_slice::<Map<String, Value>>(line)
    {
        let before = object.len();
        for key in NATIVE_ID_KEYS {
            object.remove(key);
        }
        if object.len() < before {
            return Value::Object(object).to_string();
        }
    }
    String::from_utf8_lossy(line).into_owned()
}

/// The text of a line's head: like `raw_text`, for JSON that is cut off. The values of the native
/// id's keys are emptied (I10), also one that the cut hit.
pub(crate) fn raw_head(head: &[u8]) -> String {
    let text = String::from_utf8_lossy(head).into_owned();
    if !text.trim_start().starts_with('{') {
        return text;
    }
    NATIVE_ID_KEYS.iter().fold(text, |text, key| empty_values(&text, &format!("\"{key}\"")))
}

/// Empties the string that follows each `quoted_key` and its colon.
fn empty_values(text: &str, quoted_key: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(quoted_key) {
        let after_key = &rest[at + quoted_key.len()..];
        let value = after_key
            .trim_start()
            .strip_prefix(':')
            .and_then(|tail| tail.trim_start().strip_prefix('"'));
        let tail = value.unwrap_or(after_key);
        kept.push_str(&rest[..rest.len() - tail.len()]);
        rest = match value {
            Some(inside) => &inside[string_end(inside)..],
            None => tail,
        };
    }
    kept.push_str(rest);
    kept
}

/// Where the string whose inside begins here ends: at its closing quote, or with the text.
fn string_end(inside: &str) -> usize {
    let mut escaped = false;
    inside
        .bytes()
        .position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })
        .unwrap_or(inside.len())
}

/// Something that we say about what the agent sent.
pub(crate) fn gateway_error(code: &str, content: String) -> Output {
    Output::Event(Event::Error {
        content,
        code: Some(code.to_owned()),
        source: ErrorSource::Gateway,
        parent_tool_id: None,
    })
}

/// What is said about a line over the cap.
pub(crate) fn line_too_long(bytes: u64, head: &[u8]) -> Output {
    gateway_error(
        "LINE_TOO_LONG",
        format!(
            "The agent printed a line of {bytes} bytes, more than `line_bytes_max`; \
             only its first {} bytes were kept.",
            head.len()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_object_loses_its_native_id_and_nothing_else() {
        assert_eq!(
            raw_text(br#"{"session_id":"n-1","type":"x","deep":{"session_id":"n-1"}}"#),
            r#"{"deep":{"session_id":"n-1"},"type":"x"}"#
        );
        assert_eq!(raw_text(br#"{ "b":1, "a":2 }"#), r#"{ "b":1, "a":2 }"#, "left alone");
        assert_eq!(raw_text(b"sessionId=n-1"), "sessionId=n-1");
        assert_eq!(raw_text(b"\xffab"), "\u{fffd}ab");
    }

    #[test]
    fn what_is_written_is_saved_as_text_where_it_is_text() {
        let saved = |bytes: &[u8]| {
            let write = Write { bytes: bytes.to_vec(), close: false };
            let saved = serde_json::to_string(&write).unwrap();
            assert_eq!(serde_json::from_str::<Write>(&saved).unwrap(), write);
            saved
        };
        assert_eq!(saved("{\"ü\"}\n".as_bytes()), r#"{"bytes":"{\"ü\"}\n","close":false}"#);
        assert_eq!(saved(&[0xff, 0]), r#"{"bytes":[255,0],"close":false}"#);
    }

    #[test]
    fn a_head_loses_its_native_id_even_where_it_was_cut() {
        assert_eq!(
            raw_head(br#"{"sessionId" : "n\"1","n":5,"session_id":"n1"#),
            r#"{"sessionId" : "","n":5,"session_id":""#
        );
        assert_eq!(raw_head(br#"{"sessionId":5,"sessionId"#), r#"{"sessionId":5,"sessionId"#);
        let text = r#"{"content":"she said \"sessionId\":\"n1"#;
        assert_eq!(raw_head(text.as_bytes()), text, "what the agent wrote is left alone");
        assert_eq!(raw_head(b"plain \"sessionId\":\"n1\""), "plain \"sessionId\":\"n1\"");
    }

    #[test]
    fn a_launch_is_the_configured_command_in_the_prompts_directory() {
        let provider = Provider {
            name: "mine".into(),
            kind: Kind::Jsonl,
            command: vec!["agent".into(), "--fast".into()],
            env: BTreeMap::from([("KEY".into(), "value".into())]),
        };
        let prompt = Prompt { cwd: "/project".into(), ..Prompt::default() };
        let launch = provider.launch(&prompt);
        assert_eq!(launch.argv, ["agent", "--fast"]);
        assert_eq!(launch.env["KEY"], "value");
        assert_eq!(launch.cwd, PathBuf::from("/project"));
    }

    #[test]
    fn an_adapters_state_survives_serde() {
        let record = |body| Record { at: Millis(1), body };
        for kind in [Kind::Jsonl, Kind::Demo, Kind::Command, Kind::Claude] {
            let mut adapter = Adapter::new(kind);
            adapter.fold(&record(RecordBody::Out(br#"{"kind":"text","content":"a"}"#.to_vec())));
            let saved = serde_json::to_string(&adapter).unwrap();
            let mut loaded: Adapter = serde_json::from_str(&saved).unwrap();
            assert_eq!(loaded, adapter);
            let rest = record(RecordBody::Out(br#"{"kind":"complete"}"#.to_vec()));
            assert_eq!(loaded.fold(&rest), adapter.fold(&rest));
        }
    }
}
