//! `jsonl` providers: any program that speaks JSON lines; `docs/providers/jsonl.md` defines the
//! dialect. One process per run.
//!
//! Each stdout line that is an object with a string `kind` is one event, kept with all its
//! fields. Four kinds mean something to us: `session_created`, `permission_request`,
//! `permission_cancelled` and `complete`. Everything else passes through, so this is the fastest
//! dialect. Must not know the other dialects.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Answer, Command, Ending, NATIVE_ID_KEYS, Origin, Output, Prompt, Record, RecordBody, Write,
    gateway_error, line_too_long, raw_head, raw_text,
};
use crate::limits::AGENT_ITEM_ID_BYTES_MAX;
use crate::run::event::{
    CancelReason, Choice, ChoiceKind, Custom, Event, Interaction, PermissionRequest, Question,
    Reason, Stream, Usage,
};

/// A program's turn, so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jsonl {
    /// The turn has begun: set by the first record.
    started: bool,
    /// It said `complete`; what it says afterwards means nothing (I3).
    ended: bool,
}

/// Field names of the envelope. The gateway sets them, so an agent's own are dropped.
const ENVELOPE_KEYS: [&str; 6] = ["id", "sessionId", "runId", "seq", "provider", "timestamp"];

/// Kinds in which only the gateway speaks. An agent's line of such a kind becomes `raw`, since a
/// client could not tell it from the gateway's own word.
const GATEWAY_KINDS: [&str; 16] = [
    "ack",
    "caught_up",
    "chat_accepted",
    "chat_queued",
    "chat_subscribed",
    "gap",
    "hello",
    "permission_resolved",
    "pong",
    "protocol_error",
    "run_started",
    "server_draining",
    "session_deleted",
    "session_upserted",
    "sessions_changed",
    "store_state",
];

impl Jsonl {
    /// What a record means. After `complete` nothing does.
    pub fn fold(&mut self, record: &Record) -> Vec<Output> {
        if self.ended {
            return Vec::new();
        }
        let mut outputs = Vec::with_capacity(1);
        if !self.started {
            self.started = true;
            outputs.push(Output::TurnStarted(Origin::User));
        }
        match &record.body {
            RecordBody::Out(line) => self.line(line, &mut outputs),
            RecordBody::OutCapped { bytes, head } => {
                outputs.push(raw(raw_head(head)));
                outputs.push(line_too_long(*bytes, head));
            }
            // Its stderr is for the `error` of a failed `complete`, which the worker makes, as it
            // makes the end of a process that never said `complete`.
            RecordBody::Err(_)
            | RecordBody::In { .. }
            | RecordBody::Exit(_)
            | RecordBody::Decision(_) => {}
        }
        outputs
    }

    /// One line of JSON.
    #[must_use]
    pub fn encode(&self, command: &Command) -> Option<Write> {
        let value = match command {
            Command::Prompt(prompt) => prompt_line(prompt),
            Command::Answer(answer) => answer_line(answer),
            Command::Interrupt => json!({"type": "abort"}),
        };
        let mut bytes = value.to_string().into_bytes();
        bytes.push(b'\n');
        Some(Write { bytes, close: false })
    }

    fn line(&mut self, line: &[u8], outputs: &mut Vec<Output>) {
        let Some((kind, mut fields)) = parse(line) else {
            outputs.push(raw(raw_text(line)));
            return;
        };
        match kind.as_str() {
            "session_created" => session_created(&fields, outputs),
            "permission_request" => permission_request(line, fields, outputs),
            "permission_cancelled" => permission_cancelled(line, &fields, outputs),
            "complete" => {
                self.ended = true;
                outputs.push(Output::TurnEnded(ending(fields)));
            }
            reserved if GATEWAY_KINDS.contains(&reserved) => {
                outputs.push(raw(raw_text(line)));
                outputs.push(gateway_error(
                    "RESERVED_KIND",
                    format!(
                        "Only the gateway may say `{reserved}`; the agent's line is kept as raw."
                    ),
                ));
            }
            _ => {
                drop_foreign_ids(&mut fields);
                outputs.push(Output::Event(Event::Custom(Custom { kind, fields })));
            }
        }
    }
}

/// The object's `kind` and its other fields; `None` if it is no object with a string `kind`.
fn parse(line: &[u8]) -> Option<(String, Map<String, Value>)> {
    let mut fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    match fields.remove("kind")? {
        Value::String(kind) => Some((kind, fields)),
        _ => None,
    }
}

/// The envelope's names, which the gateway sets, and the native id's (I10).
fn drop_foreign_ids(fields: &mut Map<String, Value>) {
    for key in ENVELOPE_KEYS.iter().chain(&NATIVE_ID_KEYS) {
        fields.remove(*key);
    }
}

fn raw(content: String) -> Output {
    Output::Event(Event::Raw { stream: Stream::Stdout, content })
}

/// Sets the native id: `newSessionId`, else `sessionId`. The event itself is not forwarded.
fn session_created(fields: &Map<String, Value>, outputs: &mut Vec<Output>) {
    let id = ["newSessionId", "sessionId"]
        .into_iter()
        .filter_map(|key| fields.get(key)?.as_str())
        .find(|id| !id.is_empty());
    match id {
        Some(id) if id.len() <= AGENT_ITEM_ID_BYTES_MAX => {
            outputs.push(Output::NativeId(id.to_owned()));
        }
        Some(id) => outputs.push(gateway_error(
            "ID_TOO_LONG",
            format!(
                "The agent's session id has {} bytes; at most {AGENT_ITEM_ID_BYTES_MAX} are \
                 kept, so this conversation cannot be resumed.",
                id.len()
            ),
        )),
        None => {}
    }
}

/// The agent waits for an answer. Without a usable `requestId` nobody could answer it: then the
/// line is kept as `raw`, and an `error` says why nothing can be clicked.
fn permission_request(line: &[u8], mut fields: Map<String, Value>, outputs: &mut Vec<Output>) {
    let request_id = match request_id(&fields) {
        Ok(id) => id,
        Err(error) => {
            outputs.push(raw(raw_text(line)));
            outputs.push(gateway_error("INVALID_REQUEST_ID", error));
            return;
        }
    };
    drop_foreign_ids(&mut fields);
    fields.remove("requestId");
    let request = PermissionRequest {
        request_id,
        interaction: take(&mut fields, "interaction", |value| Interaction::deserialize(value).ok())
            .unwrap_or(Interaction::Tool),
        tool_id: take(&mut fields, "toolId", string),
        tool_name: take(&mut fields, "toolName", string).unwrap_or_else(|| "tool".to_owned()),
        input: fields.remove("input").unwrap_or_else(|| Value::Object(Map::new())),
        cwd: take(&mut fields, "cwd", string),
        title: take(&mut fields, "title", string),
        description: take(&mut fields, "description", string),
        diff: take(&mut fields, "diff", string),
        choices: take(&mut fields, "choices", choices).unwrap_or_else(default_choices),
        editable: take(&mut fields, "editable", Value::as_bool).unwrap_or(true),
        questions: take(&mut fields, "questions", questions),
        parent_tool_id: take(&mut fields, "parentToolId", string),
        extra: Map::new(),
    };
    // These are always written, so a value of the wrong type cannot be kept beside ours.
    for key in ["interaction", "toolName", "choices", "editable"] {
        fields.remove(key);
    }
    outputs.push(Output::Event(Event::PermissionRequest(PermissionRequest {
        extra: fields,
        ..request
    })));
}

/// The agent needs no answer any more.
fn permission_cancelled(line: &[u8], fields: &Map<String, Value>, outputs: &mut Vec<Output>) {
    match request_id(fields) {
        Ok(request_id) => outputs.push(Output::PermissionGone {
            request_id,
            reason: match fields.get("reason").and_then(Value::as_str) {
                Some("timeout") => CancelReason::Timeout,
                _ => CancelReason::Withdrawn,
            },
        }),
        Err(error) => {
            outputs.push(raw(raw_text(line)));
            outputs.push(gateway_error("INVALID_REQUEST_ID", error));
        }
    }
}

/// The agent's own id of a permission request, or what is wrong with it.
fn request_id(fields: &Map<String, Value>) -> Result<String, String> {
    let wrong = match fields.get("requestId") {
        Some(Value::String(id)) if id.trim().is_empty() => "is blank".to_owned(),
        Some(Value::String(id)) if id.len() > AGENT_ITEM_ID_BYTES_MAX => {
            format!("has {} bytes, more than {AGENT_ITEM_ID_BYTES_MAX}", id.len())
        }
        Some(Value::String(id)) => return Ok(id.clone()),
        Some(_) => "is no string".to_owned(),
        None => "is missing".to_owned(),
    };
    Err(format!("The agent's `requestId` {wrong}, so that nobody can answer it."))
}

/// Takes a field out if `read` can make something of it; else it stays where it is, and is kept.
fn take<T>(
    fields: &mut Map<String, Value>,
    key: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Option<T> {
    let value = read(fields.get(key)?)?;
    fields.remove(key);
    Some(value)
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// The offered choices, if there are any and all of them have the documented shape.
fn choices(value: &Value) -> Option<Vec<Choice>> {
    let choices = Vec::<Choice>::deserialize(value).ok()?;
    (!choices.is_empty()).then_some(choices)
}

fn default_choices() -> Vec<Choice> {
    let choice = |id: &str, kind, label: &str| Choice {
        id: id.to_owned(),
        kind,
        label: label.to_owned(),
        rule: None,
    };
    vec![
        choice("allow", ChoiceKind::AllowOnce, "Allow once"),
        choice("deny", ChoiceKind::RejectOnce, "Deny"),
    ]
}

/// The questions; `multi` may be left out.
fn questions(value: &Value) -> Option<Vec<Question>> {
    value
        .as_array()?
        .iter()
        .map(|question| {
            Some(Question {
                id: string(question.get("id")?)?,
                text: string(question.get("text")?)?,
                options: match question.get("options") {
                    Some(options) => Some(Vec::<String>::deserialize(options).ok()?),
                    None => None,
                },
                multi: question.get("multi").and_then(Value::as_bool).unwrap_or(false),
            })
        })
        .collect()
}

/// How the agent says its turn ended. Its own `success` stands; else it is what its exit code
/// says, and no exit code is success.
fn ending(mut fields: Map<String, Value>) -> Ending {
    drop_foreign_ids(&mut fields);
    let exit_code = fields.remove("exitCode").as_ref().and_then(Value::as_i64);
    let success = match fields.remove("success") {
        Some(Value::Bool(success)) => success,
        _ => exit_code.is_none_or(|code| code == 0),
    };
    let reason = if fields.remove("aborted") == Some(Value::Bool(true)) {
        Reason::Aborted
    } else if success {
        Reason::Finished
    } else {
        Reason::Failed
    };
    let error = match fields.remove("error") {
        None | Some(Value::Null) => None,
        Some(Value::String(error)) => Some(error),
        Some(other) => Some(other.to_string()),
    };
    // `reason` is a closed list and ours; the agent's own word stays under another name.
    if let Some(word) = fields.remove("reason")
        && serde_json::to_value(reason).ok().as_ref() != Some(&word)
    {
        fields.insert("agentReason".to_owned(), word);
    }
    // `by` and `durationMs` are the gateway's to say.
    fields.remove("by");
    fields.remove("durationMs");
    let usage = take(&mut fields, "usage", |value| Usage::deserialize(value).ok());
    Ending { reason, exit_code, success, error, usage, extra: fields }
}

fn prompt_line(prompt: &Prompt) -> Value {
    let mut options = prompt.options.clone();
    if !prompt.attachments.is_empty() {
        // Clients name files by their ids, which mean nothing to a program.
        options.insert("attachments".into(), json!(prompt.attachments));
    }
    json!({
        "type": "prompt",
        "content": prompt.content,
        "options": options,
        "cwd": prompt.cwd.to_string_lossy(),
        "providerSessionId": prompt.native_id,
    })
}

fn answer_line(answer: &Answer) -> Value {
    let mut line = json!({
        "type": "permission-response",
        "requestId": answer.request_id,
        "allow": answer.allow,
    });
    let optional = [
        ("updatedInput", answer.updated_input.clone()),
        ("message", answer.message.clone().map(Value::String)),
        ("choiceId", answer.choice_id.clone().map(Value::String)),
        ("rememberEntry", answer.remember.clone()),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            line[key] = value;
        }
    }
    line
}

#[cfg(test)]
mod tests;
