//! The `claude` dialect: Claude Code's `stream-json`, both ways, with permission prompts on stdio.
//!
//! Knows what each of its lines means and how to answer them; `docs/providers/claude.md` has the
//! whole mapping, and `lines::TABLE` the lines that become little or nothing. One process may
//! serve many turns: a turn begins when a prompt of ours was written or when the agent starts by
//! itself, and ends at the `result` of the same origin.
//!
//! Must not know pipes, threads, the registry, or another dialect.

mod field;
mod launch;
pub mod lines;
mod message;
mod native;
mod permission;
mod result;
mod stream;
mod system;
mod tool;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::limits::OPEN_ITEMS_MAX;
use crate::provider::{
    Attachment, Command, Launch, Origin, Output, Prompt, Provider, Record, RecordBody, Write,
};
use crate::run::event::{Event, Stream as Pipe, Usage};

pub use launch::OptionError;

/// The adapter: what it must remember of one agent process, and nothing else.
///
/// It is a pure value: folding the same records from the same state gives the same outputs, also
/// after the state went through JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claude {
    /// Whether our `initialize` was written.
    initialized: bool,
    /// Interrupts written so far; numbers our request ids.
    interrupts: u64,
    /// The id of the conversation, once named. Kept to take it out of error texts (I10).
    native_id: Option<String>,
    /// Where the agent runs, as it says.
    cwd: Option<String>,
    /// The turn that is on.
    turn: Option<Turn>,
    /// Turns so far.
    turns: u64,
    /// Prompts written while a turn was on: each will be a turn of its own.
    queued: u64,
    /// What is being streamed, by the tool call of the subagent that speaks; "" is the main one.
    streams: BTreeMap<String, stream::Stream>,
    /// Permission requests that wait, by the agent's request id.
    asked: BTreeMap<String, permission::Asked>,
    /// Inputs of `ExitPlanMode` calls: the request that follows comes without the plan.
    plans: BTreeMap<String, Value>,
    /// Background tasks, by task id.
    tasks: BTreeMap<String, system::Task>,
    /// What was consumed.
    meter: result::Meter,
}

/// A turn in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Turn {
    origin: Origin,
    /// We asked the agent to stop it.
    interrupted: bool,
    /// It said something that a person can read.
    spoke: bool,
    /// An error of the provider was shown and no end of a turn has come since.
    complained: bool,
    /// What turns inside it consumed (background results during a user's turn).
    carried: Option<Usage>,
}

impl Claude {
    /// How to start an agent for a session's next turn. Options that [`Self::check`] would refuse
    /// are left out; the permission mode is then the one that asks.
    #[must_use]
    pub fn launch(provider: &Provider, prompt: &Prompt) -> Launch {
        launch::launch(provider, prompt)
    }

    /// Whether the options of a prompt can be used, with a sentence for the client if not.
    ///
    /// # Errors
    /// The first option that is refused, and what would be accepted.
    pub fn check(options: &Map<String, Value>) -> Result<(), OptionError> {
        launch::check(options)
    }

    /// Takes one record and says what it means. Never fails: a line without a known meaning
    /// becomes a `raw` event (I11).
    pub fn fold(&mut self, record: &Record) -> Vec<Output> {
        let mut out = Vec::new();
        match &record.body {
            RecordBody::Out(line) => self.said(&String::from_utf8_lossy(line), &mut out),
            RecordBody::OutCapped { bytes, head } => {
                let head = String::from_utf8_lossy(head);
                let content = format!("{}... ({bytes} bytes in all)", native::blank(&head));
                out.push(Output::Event(Event::Raw { stream: Pipe::Stdout, content }));
            }
            RecordBody::In { bytes, .. } => {
                for line in String::from_utf8_lossy(bytes).lines() {
                    self.wrote(line, &mut out);
                }
            }
            // The worker keeps the tail of stderr for a failed end.
            RecordBody::Err(_) | RecordBody::Decision(_) => {}
            // The worker ends an open run itself; only previews must not stay open.
            RecordBody::Exit(_) => self.close_streams(&mut out),
        }
        out
    }

    /// The bytes for a command, or `None` if there is nothing (any more) that it could do: an
    /// answer to a request that is unknown, answered or withdrawn.
    ///
    /// Whole single lines of JSON only: Claude exits on anything else. The adapter's state
    /// changes when the bytes come back as an `In` record, not here.
    #[must_use]
    pub fn encode(&self, command: &Command) -> Option<Write> {
        match command {
            Command::Prompt(prompt) => Some(self.prompt(prompt)),
            Command::Answer(answer) => self.answer(answer),
            Command::Interrupt => Some(write(&[json!({
                "type": "control_request",
                "request_id": format!("interrupt-{}", self.interrupts + 1),
                "request": {"subtype": "interrupt"},
            })])),
        }
    }

    /// Pictures stand before the text that speaks of them; of other files it is told the path.
    fn prompt(&self, prompt: &Prompt) -> Write {
        let pictures = prompt.attachments.iter().filter_map(|file| {
            let source = json!({
                "type": "base64", "media_type": file.content_type, "data": file.picture.as_ref()?,
            });
            Some(json!({"type": "image", "source": source}))
        });
        let mut content: Vec<Value> = pictures.collect();
        content.push(json!({"type": "text", "text": text_with_paths(prompt)}));
        let user = json!({
            "type": "user",
            "message": {"role": "user", "content": content},
            "parent_tool_use_id": null,
            "session_id": "",
        });
        if self.initialized {
            return write(&[user]);
        }
        let initialize = json!({
            "type": "control_request",
            "request_id": "initialize",
            "request": {"subtype": "initialize", "hooks": {}},
        });
        write(&[initialize, user])
    }

    /// What our own bytes change.
    fn wrote(&mut self, line: &str, out: &mut Vec<Output>) {
        let Ok(line) = serde_json::from_str::<Value>(line) else { return };
        match field::text(&line, "type") {
            Some("user") if self.turn.is_some() => self.queued += 1,
            Some("user") => self.begin(Origin::User, out),
            Some("control_request") => match field::text(&line["request"], "subtype") {
                Some("initialize") => self.initialized = true,
                Some("interrupt") => {
                    self.interrupts += 1;
                    self.interrupting();
                }
                _ => {}
            },
            Some("control_response") => self.answered(&line["response"], out),
            _ => {}
        }
    }

    /// What a line of the agent means.
    fn said(&mut self, text: &str, out: &mut Vec<Output>) {
        if text.trim().is_empty() {
            return;
        }
        let understood = match serde_json::from_str::<Value>(text) {
            Ok(line) if line.is_object() => self.understood(&line, out),
            _ => false,
        };
        if !understood {
            let content = native::blank(text);
            out.push(Output::Event(Event::Raw { stream: Pipe::Stdout, content }));
        }
    }

    /// Whether all of the line could be understood; what could be is in `out` in any case.
    fn understood(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        match field::text(line, "type").unwrap_or_default() {
            "assistant" => self.assistant(line, out),
            "user" => self.user(line, out),
            "stream_event" => self.stream_event(line, out),
            "system" => self.system(line, out),
            "result" => self.result(line, out),
            "control_request" => self.asks(line, out),
            "control_cancel_request" => self.withdrawn(line, out),
            "control_response" => self.replied(line, out),
            other => self.aside(other, line, out),
        }
    }

    /// Opens a turn.
    fn begin(&mut self, origin: Origin, out: &mut Vec<Output>) {
        self.turns += 1;
        self.turn = Some(Turn {
            origin,
            interrupted: false,
            spoke: false,
            complained: false,
            carried: None,
        });
        out.push(Output::TurnStarted(origin));
    }

    /// Opens a turn if none is on, at a line that only a turn has. It is a prompt's if one waits,
    /// or if it is the process's first: an agent does not start before somebody spoke to it.
    fn ensure_turn(&mut self, out: &mut Vec<Output>) {
        if self.turn.is_some() {
            return;
        }
        let origin = if self.queued > 0 || self.turns == 0 { Origin::User } else { Origin::Agent };
        self.queued = self.queued.saturating_sub(1);
        self.begin(origin, out);
    }

    /// We asked for the end of the turn that is on, if one is.
    const fn interrupting(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.interrupted = true;
        }
    }

    /// Something that a person can read was said in this turn.
    const fn spoke(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.spoke = true;
        }
    }
}

/// What the person says, and where the files lie that are no pictures.
fn text_with_paths(prompt: &Prompt) -> String {
    let mut text = prompt.content.clone();
    let files: Vec<_> = prompt.attachments.iter().filter(|file| file.picture.is_none()).collect();
    if !files.is_empty() {
        text.push_str("\n\nAttached files:");
    }
    for Attachment { path, content_type, bytes, .. } in files {
        text.push_str(&format!("\n- {} ({content_type}, {bytes} bytes)", path.display()));
    }
    text
}

/// Lines for the agent's stdin.
fn write(lines: &[Value]) -> Write {
    let mut text = String::new();
    for line in lines {
        // JSON may hold these as they are, yet some readers take them for line ends.
        let line = line
            .to_string()
            .replace('\u{2028}', "\\u2028")
            .replace('\u{2029}', "\\u2029")
            .replace('\u{85}', "\\u0085");
        text.push_str(&line);
        text.push('\n');
    }
    Write { bytes: text.into_bytes(), close: false }
}

/// Adds to a map that must stay bounded (I7): the first key goes if it is full.
fn remember<V>(map: &mut BTreeMap<String, V>, key: &str, value: V) {
    if map.len() >= OPEN_ITEMS_MAX && !map.contains_key(key) {
        map.pop_first();
    }
    map.insert(key.to_owned(), value);
}

#[cfg(test)]
mod tests;
