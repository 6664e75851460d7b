//! Parts of events as words: tool calls, permission cards, usage.
//!
//! Pure, and what comes out is fit for a terminal. Must not know what was shown before.

use serde_json::Value;

use super::text::{self, Paint};

/// Characters of one line about a tool.
pub const LINE_CHARS: usize = 160;

/// What stands where a prompt would, of a run that nobody asked for.
pub const BY_ITSELF: &str = "(the agent went on by itself)";

/// A permission request, as a card of a few lines. The `requestId` is what `allow` takes.
#[must_use]
pub fn permission(event: &Value, paint: Paint) -> String {
    let what = match event["interaction"].as_str() {
        Some("question") => "asks",
        Some("plan") => "proposes a plan",
        _ => "wants to use",
    };
    let mut lines = match event["interaction"].as_str() {
        Some("question") => format!("{} the agent {what}", paint.yellow("?")),
        Some("plan") => format!("{} the agent {what}", paint.yellow("?")),
        _ => format!("{} the agent {what} {}", paint.yellow("?"), tool_line(event, paint)),
    };
    let mut more = |label: &str, value: &Value| {
        if let Some(value) = value.as_str().filter(|value| !value.trim().is_empty()) {
            let value = text::clean(value, Paint::Plain);
            lines.push_str(&format!("\n  {label}{}", value.trim_end().replace('\n', "\n  ")));
        }
    };
    more("", &event["description"]);
    more("in ", &event["cwd"]);
    more("", &event["input"]["plan"]);
    if let Some(diff) = event["diff"].as_str().filter(|diff| !diff.is_empty()) {
        lines.push('\n');
        lines.push_str(&text::diff(diff, paint));
    }
    for question in event["questions"].as_array().into_iter().flatten() {
        let words = field(question, "text");
        lines.push_str(&format!("\n  {}", paint.bold(words.trim_end())));
        for (at, option) in question["options"].as_array().into_iter().flatten().enumerate() {
            let option = text::one_line(&text::clean(&plain(option), Paint::Plain), LINE_CHARS);
            lines.push_str(&format!("\n    {}) {option}", at + 1));
        }
    }
    for choice in event["choices"].as_array().into_iter().flatten() {
        if let Some(rule) = choice["rule"].as_str() {
            let line = format!("{} saves the rule: {rule}", field(choice, "label"));
            lines.push_str(&format!("\n  {}", text::clean(&line, Paint::Plain)));
        }
    }
    lines
        .push_str(&format!("\n  {}", paint.dim(&format!("request {}", field(event, "requestId")))));
    lines
}

/// How a request was answered, and how far the answer got.
#[must_use]
pub fn resolved(event: &Value, paint: Paint) -> String {
    let by = text::one_line(&field(&event["by"], "name"), LINE_CHARS);
    let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
    let edited = if event["edited"] == true { ", with changes" } else { "" };
    let message = match event["message"].as_str() {
        Some(message) if !message.is_empty() => {
            format!(": {}", text::one_line(message, LINE_CHARS))
        }
        _ => String::new(),
    };
    let (word, state) = (field(event, "decision"), field(event, "state"));
    let word = match word.as_str() {
        "allow" => paint.green("allowed"),
        "deny" => paint.red("denied"),
        other => text::clean(other, Paint::Plain),
    };
    let state = match state.as_str() {
        "delivered" => "the agent has the answer".to_owned(),
        "undeliverable" => "the agent was gone before it had the answer".to_owned(),
        other => text::clean(other, Paint::Plain),
    };
    format!("  {word}{}", text::clean(&format!("{by}{edited} ({state}){message}"), Paint::Plain))
}

/// A tool call on one line.
#[must_use]
pub fn tool_line(event: &Value, paint: Paint) -> String {
    let name = field(event, "toolName");
    let input = if event["toolInput"].is_null() { &event["input"] } else { &event["toolInput"] };
    let said = match event["title"].as_str().filter(|title| !title.trim().is_empty()) {
        Some(title) => title.to_owned(),
        None => summary(input),
    };
    let said = text::one_line(&text::clean(&said, Paint::Plain), LINE_CHARS);
    match said.as_str() {
        "" => paint.bold(&name),
        said if said == name => paint.bold(&name),
        said => format!("{}: {said}", paint.bold(&name)),
    }
}

/// What of a tool's input says most, by the names that tools use.
fn summary(input: &Value) -> String {
    for name in ["command", "file_path", "path", "pattern", "query", "url", "description", "prompt"]
    {
        match &input[name] {
            Value::String(value) => return value.clone(),
            Value::Array(words) if name == "command" => {
                return words.iter().map(plain).collect::<Vec<_>>().join(" ");
            }
            _ => {}
        }
    }
    match input {
        Value::Null => String::new(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => plain(other),
    }
}

/// Tokens and money, as far as they are known.
#[must_use]
pub fn usage(tokens: &Value, cost: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(used) = tokens["used"].as_u64() {
        parts.push(match tokens["total"].as_u64() {
            Some(total) => format!("{used} of {total} tokens"),
            None => format!("{used} tokens"),
        });
    }
    for (name, word) in [("inputTokens", "in"), ("outputTokens", "out")] {
        if let Some(count) = tokens[name].as_u64() {
            parts.push(format!("{count} {word}"));
        }
    }
    if let Some(cost) = cost.as_f64() {
        parts.push(format!("${cost:.4}"));
    }
    parts.join(", ")
}

/// A string field, fit for a terminal, or empty.
#[must_use]
pub fn field(value: &Value, name: &str) -> String {
    text::clean(value[name].as_str().unwrap_or_default(), Paint::Plain)
}

/// A string field as it is, to compare with.
#[must_use]
pub fn id_of(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// A string as it is, a list of text parts as their text, anything else as JSON.
#[must_use]
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(parts) if parts.iter().all(|part| part["text"].is_string()) => {
            parts.iter().map(|part| id_of(part, "text")).collect::<Vec<_>>().join("\n")
        }
        other => other.to_string(),
    }
}

/// The time of day of an ISO time, in UTC as all times here are.
#[must_use]
pub fn clock(time: &str) -> String {
    match (time.get(..10), time.get(11..19)) {
        (Some(day), Some(clock)) => text::clean(&format!("{day} {clock} UTC"), Paint::Plain),
        _ => text::clean(time, Paint::Plain),
    }
}
