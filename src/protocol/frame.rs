//! Frames: an event encoded once for the wire. The only encoder of events.
//!
//! A frame is the event's own fields behind the envelope that every run event has. What does not
//! fit `event_bytes_max` is cut here, with `truncated` to say so, and the whole is kept beside it.
//! Must not know connections or cursors.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tungstenite::Utf8Bytes;

use crate::run::event::{By, Custom, Event};
use crate::run::id::{ClientMessageId, Millis, QueueId, RunId, Seq, SessionId, event_id};

/// Names of the envelope: an agent's fields of these names are dropped.
pub const ENVELOPE: [&str; 9] = [
    "id",
    "kind",
    "sessionId",
    "runId",
    "seq",
    "timestamp",
    "provider",
    "truncated",
    "actualSessionId",
];

/// Encodes the events of one run.
#[derive(Debug)]
pub struct Encoder {
    session: SessionId,
    run: RunId,
    bytes_max: usize,
    /// The part of the envelope that all events of the run share.
    shared: String,
    /// The last timestamp, printed: events come in bursts of the same millisecond.
    time: (Millis, String),
}

/// An encoded event.
#[derive(Debug)]
pub struct Encoded {
    /// The frame.
    pub text: Utf8Bytes,
    /// The uncut JSON, if the frame was cut.
    pub whole: Option<Vec<u8>>,
}

/// What `run_started` says: the head of a run's log, seq 0.
#[derive(Debug)]
pub struct Head<'a> {
    /// Whose.
    pub session: SessionId,
    /// Which run.
    pub run: RunId,
    /// Which provider.
    pub provider: &'a str,
    /// The prompt.
    pub content: &'a str,
    /// As the client gave them.
    pub options: &'a Map<String, Value>,
    /// `user` or `agent`.
    pub origin: &'a str,
    /// The sender's id for the prompt.
    pub client_message_id: Option<&'a ClientMessageId>,
    /// Its place in the queue, if it waited there.
    pub queue_id: Option<QueueId>,
    /// Who sent it.
    pub by: Option<&'a By>,
    /// When.
    pub started_at: Millis,
}

impl Encoder {
    /// An encoder for a run's events, each at most `bytes_max` bytes.
    #[must_use]
    pub fn new(session: SessionId, run: RunId, provider: &str, bytes_max: usize) -> Self {
        let shared = format!(
            r#","sessionId":"{session}","runId":"{run}","provider":{},"#,
            Value::from(provider)
        );
        Self { session, run, bytes_max, shared, time: (Millis(i64::MIN), String::new()) }
    }

    /// The frame of an event. The same arguments give the same bytes.
    pub fn encode(&mut self, seq: Seq, at: Millis, event: &Event) -> Encoded {
        let body = self.body(event);
        self.encode_body(seq, at, &body)
    }

    fn encode_body(&mut self, seq: Seq, at: Millis, body: &str) -> Encoded {
        let whole = self.wrap(seq, at, body);
        if whole.len() <= self.bytes_max {
            return Encoded { text: whole.into(), whole: None };
        }
        let cut = self.cut(seq, at, body);
        Encoded { text: cut.into(), whole: Some(whole.into_bytes()) }
    }

    /// The event's own fields as a JSON object.
    fn body(&self, event: &Event) -> String {
        let json = match event {
            Event::Custom(custom) => to_json(&cleaned_custom(custom).as_ref().unwrap_or(custom)),
            Event::Complete(complete) if has_envelope(&complete.extra) => {
                let mut complete = complete.clone();
                drop_envelope(&mut complete.extra);
                to_json(&Event::Complete(complete))
            }
            Event::PermissionRequest(request) if has_envelope(&request.extra) => {
                let mut request = request.clone();
                drop_envelope(&mut request.extra);
                to_json(&Event::PermissionRequest(request))
            }
            _ => to_json(event),
        };
        match event {
            Event::Complete(_) => {
                format!(r#"{{"actualSessionId":"{}",{}"#, self.session, &json[1..])
            }
            _ => json,
        }
    }

    fn wrap(&mut self, seq: Seq, at: Millis, body: &str) -> String {
        if self.time.0 != at {
            self.time = (at, at.to_string());
        }
        let mut text = String::with_capacity(body.len() + self.shared.len() + 128);
        let id = event_id(self.run, seq);
        let time = &self.time.1;
        // Writing to a string cannot fail.
        write!(text, r#"{{"id":"{}","seq":{},"timestamp":"{time}""#, id.as_hyphenated(), seq.0)
            .unwrap_or_default();
        text.push_str(&self.shared);
        text.push_str(&body[1..]);
        text
    }

    /// Cuts the longest strings until the frame fits.
    fn cut(&mut self, seq: Seq, at: Millis, body: &str) -> String {
        let mut value: Value = serde_json::from_str(body).unwrap_or_else(|_| json!({}));
        let href = format!("/api/v1/runs/{}/events/{}", self.run, seq.0);
        // The first string cut is the longest: the one that `truncated` names. Each further round
        // cuts the next longest, so the number of rounds is bounded by what can be too long.
        for _ in 0..CUTS_MAX {
            let text = self.wrap(seq, at, &value.to_string());
            if text.len() <= self.bytes_max {
                return text;
            }
            let excess = text.len() - self.bytes_max + CUT_RESERVE_BYTES;
            let Some((path, length)) = longest_string(&value) else { break };
            if length <= CUT_RESERVE_BYTES {
                break;
            }
            cut_string(&mut value, &path, excess, &href);
        }
        self.cut_fields(seq, at, value, &href)
    }

    /// No string is long, yet the whole is: the largest fields give way.
    fn cut_fields(&mut self, seq: Seq, at: Millis, mut value: Value, href: &str) -> String {
        loop {
            let text = self.wrap(seq, at, &value.to_string());
            if text.len() <= self.bytes_max {
                return text;
            }
            let Some(fields) = value.as_object_mut() else { return text };
            let largest = fields
                .iter()
                .filter(|(name, _)| *name != "kind" && *name != "truncated")
                .map(|(name, field)| (field.to_string().len(), name.clone()))
                .max();
            let Some((bytes, name)) = largest else { return text };
            fields.remove(&name);
            fields
                .entry("truncated")
                .or_insert_with(|| json!({ "field": name, "bytes": bytes, "href": href }));
        }
    }
}

/// `run_started`, the head of a run's log. Content and options that do not fit `bytes_max` are cut
/// like an event's.
#[must_use]
pub fn encode_head(head: &Head<'_>, bytes_max: usize) -> Encoded {
    let mut fields = json!({
        "kind": "run_started",
        "content": head.content,
        "options": head.options,
        "origin": head.origin,
        "startedAt": head.started_at.to_string(),
    });
    if let Some(id) = head.client_message_id {
        fields["clientMessageId"] = json!(id);
    }
    if let Some(id) = head.queue_id {
        fields["queueId"] = json!(id);
    }
    if let Some(by) = head.by {
        fields["by"] = json!(by);
    }
    let mut encoder = Encoder::new(head.session, head.run, head.provider, bytes_max);
    let body = fields.to_string();
    encoder.encode_body(Seq(0), head.started_at, &body)
}

/// Rounds of cutting before fields give way.
const CUTS_MAX: usize = 64;
/// Room for `truncated` itself.
const CUT_RESERVE_BYTES: usize = 512;

fn to_json<T: Serialize>(value: &T) -> String {
    // The vocabulary's types have string keys only, so this cannot fail.
    serde_json::to_string(value).unwrap_or_else(|_| String::from(r#"{"kind":"raw"}"#))
}

fn has_envelope(fields: &Map<String, Value>) -> bool {
    !fields.is_empty() && ENVELOPE.iter().any(|name| fields.contains_key(*name))
}

fn drop_envelope(fields: &mut Map<String, Value>) {
    for name in ENVELOPE {
        fields.remove(name);
    }
}

fn cleaned_custom(custom: &Custom) -> Option<Custom> {
    has_envelope(&custom.fields).then(|| {
        let mut custom = custom.clone();
        drop_envelope(&mut custom.fields);
        custom
    })
}

/// A way into a JSON value: object keys and array indices.
type Path = Vec<String>;

/// The longest string outside `kind` and `truncated`, and its length in bytes.
fn longest_string(value: &Value) -> Option<(Path, usize)> {
    fn walk(value: &Value, path: &mut Path, best: &mut Option<(Path, usize)>) {
        match value {
            Value::String(text) if best.as_ref().is_none_or(|(_, length)| text.len() > *length) => {
                *best = Some((path.clone(), text.len()));
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(index.to_string());
                    walk(item, path, best);
                    path.pop();
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    if path.is_empty() && (name == "truncated" || name == "kind") {
                        continue;
                    }
                    path.push(name.clone());
                    walk(field, path, best);
                    path.pop();
                }
            }
            _ => {}
        }
    }
    let mut best = None;
    walk(value, &mut Vec::new(), &mut best);
    best
}

/// Cuts the string at `path` at a character, so that about `excess` encoded bytes go.
fn cut_string(value: &mut Value, path: &[String], excess: usize, href: &str) {
    let mut target = &mut *value;
    for step in path {
        let next = match target {
            Value::Array(items) => {
                step.parse::<usize>().ok().and_then(|index| items.get_mut(index))
            }
            Value::Object(fields) => fields.get_mut(step),
            _ => None,
        };
        let Some(next) = next else { return };
        target = next;
    }
    let Value::String(text) = target else { return };
    let bytes = text.len();
    // Escapes make a character longer on the wire than in the string.
    let mut gone = 0;
    let mut keep = bytes;
    for (at, character) in text.char_indices().rev() {
        if gone >= excess {
            break;
        }
        gone += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            c if c < ' ' => 6,
            c => c.len_utf8(),
        };
        keep = at;
    }
    text.truncate(keep);
    if let Some(fields) = value.as_object_mut() {
        let field = path.join(".");
        fields
            .entry("truncated")
            .or_insert_with(|| json!({ "field": field, "bytes": bytes, "href": href }));
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::run::event::{Complete, Reason, ToolOutput, ToolResult};

    fn encoder(bytes_max: usize) -> Encoder {
        Encoder::new(SessionId::from_u128(1), RunId::from_u128(2), "demo \"x\"", bytes_max)
    }

    fn text(content: &str) -> Event {
        Event::Text { content: content.into(), role: None, block_id: None, parent_tool_id: None }
    }

    fn decode(text: &str) -> Value {
        serde_json::from_str(text).expect("a frame is JSON")
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_frame_is_the_event_behind_its_envelope() {
        let frame = encoder(4096).encode(Seq(7), Millis(0), &text("hé"));
        assert!(frame.whole.is_none());
        assert_eq!(
            decode(&frame.text),
            json!({
                "id": "00000000-0000-8000-8000-000000000009",
                "kind": "text",
                "sessionId": "00000000-0000-0000-0000-000000000001",
                "runId": "00000000-0000-0000-0000-000000000002",
                "seq": 7,
                "timestamp": "1970-01-01T00:00:00.000Z",
                "provider": "demo \"x\"",
                "content": "hé",
            })
        );
    }

    #[test]
    fn an_agents_own_envelope_is_dropped_and_its_other_fields_kept() {
        let fields = object(json!({ "seq": 9, "sessionId": "spoof", "x": 1, "sessionid": "kept" }));
        let custom = Event::Custom(Custom { kind: "news".into(), fields });
        let frame = decode(&encoder(4096).encode(Seq(1), Millis(0), &custom).text);
        assert_eq!(frame["seq"], 1);
        assert_eq!(frame["sessionId"], "00000000-0000-0000-0000-000000000001");
        assert_eq!((&frame["x"], &frame["sessionid"]), (&json!(1), &json!("kept")));
    }

    #[test]
    fn complete_names_the_session_as_the_actual_one() {
        let complete = Event::Complete(Complete {
            exit_code: None,
            success: false,
            aborted: false,
            reason: Reason::AgentExited,
            error: None,
            by: None,
            usage: None,
            duration_ms: 5,
            extra: object(json!({ "actualSessionId": "native", "cost": 1 })),
        });
        let frame = decode(&encoder(4096).encode(Seq(1), Millis(0), &complete).text);
        assert_eq!(frame["actualSessionId"], frame["sessionId"]);
        assert_eq!(frame["exitCode"], Value::Null);
        assert_eq!(frame["cost"], 1);
    }

    #[test]
    fn a_long_string_is_cut_at_a_character_and_the_whole_is_kept() {
        let long = "é\n".repeat(4000);
        let encoded = encoder(2048).encode(Seq(3), Millis(0), &text(&long));
        assert!(encoded.text.len() <= 2048, "{}", encoded.text.len());
        let frame = decode(&encoded.text);
        let content = frame["content"].as_str().expect("text");
        assert!(long.starts_with(content) && content.len() > 500);
        assert_eq!(frame["truncated"]["field"], "content");
        assert_eq!(frame["truncated"]["bytes"], long.len());
        assert_eq!(
            frame["truncated"]["href"],
            "/api/v1/runs/00000000-0000-0000-0000-000000000002/events/3"
        );
        let whole = encoded.whole.expect("the whole");
        assert_eq!(decode(std::str::from_utf8(&whole).expect("UTF-8"))["content"], long);
    }

    #[test]
    fn a_nested_string_and_a_field_of_many_small_things_are_cut_too() {
        let result = |content| {
            Event::ToolResult(ToolResult {
                tool_id: "t".into(),
                tool_result: ToolOutput { content, is_error: false, tool_use_result: None },
                exit_code: None,
                duration_ms: None,
                synthetic: None,
                parent_tool_id: None,
            })
        };
        let nested = encoder(2048).encode(Seq(1), Millis(0), &result(json!("x".repeat(9000))));
        assert_eq!(decode(&nested.text)["truncated"]["field"], "toolResult.content");
        let many = encoder(2048).encode(Seq(1), Millis(0), &result(json!(vec![1; 9000])));
        assert!(many.text.len() <= 2048);
        assert_eq!(decode(&many.text)["truncated"]["field"], "toolResult");
    }
}
