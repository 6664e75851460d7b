//! Keeping the native session id out of what we write (I10).
//!
//! The adapter does not know the app id, so it removes instead of replacing: in kept structures
//! a known key goes with its value, in text that is kept as it came the value becomes "", and in
//! the CLI's own error texts the id gives way to a word. What the model wrote is left alone.

use serde_json::Value;

use crate::provider::NATIVE_ID_KEYS;

/// Keys of Claude's own under which a session is named, beside those that agents share.
const KEYS: [&str; 2] = ["new_conversation_id", "newConversationId"];

fn is_key(key: &str) -> bool {
    NATIVE_ID_KEYS.contains(&key) || KEYS.contains(&key)
}

/// A structure without native-id keys, at any depth.
pub(super) fn strip(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, _)| !is_key(key))
            .map(|(key, value)| (key.clone(), strip(value)))
            .collect(),
        Value::Array(items) => items.iter().map(strip).collect(),
        other => other.clone(),
    }
}

/// A line as it came, JSON or not, with the string values of native-id keys emptied.
pub(super) fn blank(text: &str) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('"') {
        let tail = &rest[at + 1..];
        let value = tail
            .split_once('"')
            .filter(|(key, _)| is_key(key))
            .and_then(|(_, tail)| tail.trim_start().strip_prefix(':'))
            .and_then(|tail| tail.trim_start().strip_prefix('"'));
        // Everything up to the value's first character, or up to the end of what was found.
        let from = value.unwrap_or(tail);
        done.push_str(&rest[..rest.len() - from.len()]);
        rest = match value {
            Some(value) => &value[string_end(value)..],
            None => tail,
        };
    }
    done.push_str(rest);
    done
}

/// The text with a known id replaced by a word.
pub(super) fn unname(text: &str, ids: &[Option<&str>]) -> String {
    ids.iter()
        .flatten()
        .filter(|id| !id.is_empty())
        .fold(text.to_owned(), |text, id| text.replace(id, "(native id)"))
}

/// Where the string whose inside begins here ends: at its closing quote, or with the text.
fn string_end(inside: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    inside.len()
}
