//! Comparing what was expected with what came.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::Frame;
use crate::support::checker::{is_time, is_uuid};

/// Names of a scenario that stand for values of this run.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// `$S1` -> session id.
    pub(super) sessions: BTreeMap<String, String>,
    /// An agent's request id -> the one that clients see.
    pub(super) requests: BTreeMap<String, String>,
    /// In the place of `/workspace/demo`.
    pub(super) project: String,
}

impl Names {
    /// `value` with all names replaced, in strings at any depth.
    pub(super) fn put_into(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.put_into_text(text)),
            Value::Array(items) => items.iter().map(|item| self.put_into(item)).collect(),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| (key.clone(), self.put_into(value)));
                Value::Object(fields.collect())
            }
            other => other.clone(),
        }
    }

    /// The same for one string.
    pub(super) fn put_into_text(&self, text: &str) -> String {
        let mut text = text.replace("/workspace/demo", &self.project);
        for (alias, id) in &self.sessions {
            text = text.replace(alias, id);
        }
        for (own, ours) in &self.requests {
            text = text.replace(&format!("<request:{own}>"), ours);
        }
        text
    }
}

/// Whether `actual` has all that `expected` has; more fields are allowed, more items are not.
pub(super) fn matches(expected: &Value, actual: &Value) -> Result<(), String> {
    let differ = || Err(format!("expected {expected}, got {actual}"));
    match (expected, actual) {
        (Value::Object(fields), Value::Object(given)) => {
            for (key, value) in fields {
                let Some(given) = given.get(key) else {
                    return Err(format!("{key} is missing in {actual}"));
                };
                // Error texts carry no meaning: there must be one.
                if key == "error" && expected["kind"] == "protocol_error" {
                    if given.as_str().is_none_or(str::is_empty) {
                        return Err(format!("no error text in {actual}"));
                    }
                    continue;
                }
                matches(value, given).map_err(|error| format!("{key}: {error}"))?;
            }
            Ok(())
        }
        (Value::Array(items), Value::Array(given)) => {
            if items.len() != given.len() {
                return differ();
            }
            items.iter().zip(given).try_for_each(|(item, given)| matches(item, given))
        }
        (Value::String(text), _) if text.starts_with('<') && text.ends_with('>') => {
            let fits = match text.trim_matches(['<', '>']).split_once(':') {
                _ if actual == expected => true,
                None => match text.as_str() {
                    "<ts>" | "<epoch-ms>" => is_time(actual) && is_near_now(actual),
                    "<project-id>" | "<string>" => actual.as_str().is_some_and(|s| !s.is_empty()),
                    _ => false,
                },
                Some(("id", _)) => is_uuid(actual),
                Some(("request", own)) => actual.as_str().is_some_and(|id| is_prefixed(id, own)),
                Some(("contains", part)) => actual.as_str().is_some_and(|s| s.contains(part)),
                Some(_) => false,
            };
            if fits { Ok(()) } else { differ() }
        }
        _ if expected == actual => Ok(()),
        _ => differ(),
    }
}

/// A request id as clients see it: the agent's own, behind a prefix.
fn is_prefixed(id: &str, own: &str) -> bool {
    id.len() > own.len() && id.ends_with(own)
}

/// Within ten minutes of the wall clock.
fn is_near_now(time: &Value) -> bool {
    let time = time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    time.is_some_and(|time| (jiff::Timestamp::now().as_second() - time.as_second()).abs() < 600)
}

/// Where a frame is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// In its place among the others.
    Ordered,
    /// If expected it must come, wherever; else it may.
    Free,
}

/// Gateway frames that the original did not have, or whose place carries no meaning.
pub(super) fn lane(frame: &Value) -> Lane {
    match frame["kind"].as_str() {
        Some(
            "hello" | "chat_accepted" | "ack" | "caught_up" | "run_started" | "session_upserted"
            | "pong",
        ) => Lane::Free,
        _ => Lane::Ordered,
    }
}

/// What was recorded, under our names: the shape of broadcasts, and error codes.
pub(super) fn renamed(frame: &Value, codes: &Value) -> Value {
    let mut frame = frame.clone();
    if frame["kind"] == "session_upserted" {
        // `session` is as in REST, `project` has our fields; the ids and the path are the same.
        frame["session"] = serde_json::json!({"id": frame["session"]["id"]});
        frame["project"] = serde_json::json!({"path": frame["project"]["path"]});
    }
    if let Some(code) = frame["code"].as_str().and_then(|code| codes.get(code)) {
        frame["code"] = code.clone();
    }
    frame
}

/// Ranges written out.
pub(super) fn expanded(frames: &[Value]) -> Vec<Value> {
    let mut all = Vec::new();
    for frame in frames {
        let range = &frame["$range"];
        if range.is_null() {
            all.push(frame.clone());
            continue;
        }
        let number = |key: &str| range[key].as_u64().expect("a range has numbers");
        let prefix = range["contentPrefix"].as_str().expect("a range has a prefix");
        for i in 0..number("count") {
            let mut frame = range["template"].clone();
            frame["seq"] = (number("seqFrom") + i).into();
            frame["content"] = format!("{prefix}{}", number("contentFrom") + i).into();
            all.push(frame);
        }
    }
    all
}

/// Frames sorted by session, each session's own order kept.
pub(super) fn by_session(mut frames: Vec<Value>) -> Vec<Value> {
    frames.sort_by(|a, b| a["sessionId"].as_str().cmp(&b["sessionId"].as_str()));
    frames
}

/// Whether the harness itself asked for it.
pub(super) fn is_barrier(frame: &Frame) -> bool {
    frame.kind() == "pong" && frame.json["ref"].is_string()
}
