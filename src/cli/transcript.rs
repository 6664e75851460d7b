//! A session as Markdown: events to text that reads well and stays in one piece.
//!
//! What an agent says is Markdown itself, and may leave a fence or a comment open. Each thing that
//! was said is therefore an item of a list: whatever is open in it ends with it. Pure; must not know
//! where events come from.

use std::fmt::Write as _;

use serde_json::Value;

use super::text::{self, Paint};
use super::words::{BY_ITSELF, LINE_CHARS, clock, field, id_of, plain, usage};

/// Turns events into Markdown, in the order in which they come. Deltas whose finished block comes
/// later are to be left out before.
#[derive(Debug, Default)]
pub struct Transcript {
    runs: usize,
    /// Blocks of which only deltas have come: id, whether it is thinking, text.
    open: Vec<(String, bool, String)>,
    /// Tool calls as they were shown, by id.
    tools: Vec<(String, String)>,
    /// What the last item was, if the next may go on with it: lines of programs that say one at a
    /// time.
    going_on: Option<String>,
}

/// Tool calls and unfinished blocks that are remembered.
const OPEN_MAX: usize = 1024;

/// The head of a transcript.
#[must_use]
pub fn head(session: &Value) -> String {
    let title = field(session, "title");
    let title = if title.trim().is_empty() { field(session, "id") } else { title };
    let mut out = format!("# {}\n\n| | |\n|---|---|\n", escape(&title));
    for (name, key) in [
        ("session", "id"),
        ("provider", "provider"),
        ("project", "projectPath"),
        ("begun", "createdAt"),
        ("last changed", "updatedAt"),
    ] {
        writeln!(out, "| {name} | {} |", escape(&field(session, key))).ok();
    }
    out
}

/// A range that is not kept any more.
#[must_use]
pub fn gap(gap: &Value) -> String {
    let place = |at: &Value| match at["runId"].as_str() {
        Some(run) => format!("{run}:{}", at["seq"]),
        None => "the beginning".to_owned(),
    };
    let range = format!("{} to {}", place(&gap["from"]), place(&gap["to"]));
    format!("\n*No longer kept: {}.*\n", escape(&range))
}

impl Transcript {
    /// The Markdown that an event gives.
    pub fn event(&mut self, event: &Value) -> String {
        let kind = event["kind"].as_str().unwrap_or_default();
        if kind == "text" && event["blockId"].is_null() {
            return self.line_of_text(event);
        }
        self.going_on = None;
        match kind {
            "run_started" => self.run_started(event),
            "stream_delta" => self.delta(event),
            "stream_end" | "status" => String::new(),
            "text" | "thinking" => self.block(event, kind == "thinking"),
            "tool_use" => self.tool_use(event),
            "tool_result" => tool_result(event),
            "permission_request" => permission(event),
            "permission_resolved" => resolved(event),
            "permission_cancelled" => {
                let why = field(event, "reason").replace('_', " ");
                item(event, &format!("**no answer needed any more**: {}", escape(&why)), &[])
            }
            "task_notification" => task(event),
            "error" => {
                let content = Part::Fence("", event["content"].as_str().unwrap_or_default());
                item(event, &format!("**error** ({})", escape(&field(event, "source"))), &[content])
            }
            "raw" => {
                let content = Part::Fence("", event["content"].as_str().unwrap_or_default());
                item(event, &format!("**{}**", escape(&field(event, "stream"))), &[content])
            }
            "complete" => self.complete(event),
            _ => unknown(event),
        }
    }

    /// What is left at the end: blocks that never were finished.
    pub fn end(&mut self) -> String {
        let mut out = String::new();
        for (_, thinking, said) in std::mem::take(&mut self.open) {
            let what = if thinking { "thinking" } else { "assistant" };
            out.push_str(&item(
                &Value::Null,
                &format!("**{what}** (unfinished)"),
                &[Part::Text(&said)],
            ));
        }
        out
    }

    fn run_started(&mut self, event: &Value) -> String {
        self.runs += 1;
        let started = clock(event["startedAt"].as_str().unwrap_or_default());
        let mut out = format!("\n## Run {} · {}\n", self.runs, escape(&started));
        if event["origin"] == "agent" {
            writeln!(out, "\n*{BY_ITSELF}*").ok();
            return out;
        }
        let by = field(&event["by"], "name");
        let by = if by.is_empty() { String::new() } else { format!(" ({})", escape(&by)) };
        let content = event["content"].as_str().unwrap_or_default();
        out.push_str(&item(&Value::Null, &format!("**prompt**{by}"), &[Part::Text(content)]));
        out
    }

    /// A text that is no streamed block: programs say one line at a time, which belong together.
    fn line_of_text(&mut self, event: &Value) -> String {
        let content = event["content"].as_str().unwrap_or_default();
        let label = speaker(event);
        if self.going_on.as_ref() == Some(&label) {
            return contained(content);
        }
        let out = item(event, &label, &[Part::Text(content)]);
        self.going_on = Some(label);
        out
    }

    fn delta(&mut self, event: &Value) -> String {
        let id = id_of(event, "blockId");
        let content = event["content"].as_str().unwrap_or_default();
        match self.open.iter_mut().find(|(open, ..)| *open == id) {
            Some((_, _, said)) => said.push_str(content),
            None => {
                if self.open.len() == OPEN_MAX {
                    self.open.remove(0);
                }
                self.open.push((id, event["block"] == "thinking", content.to_owned()));
            }
        }
        String::new()
    }

    fn block(&mut self, event: &Value, thinking: bool) -> String {
        let id = event["blockId"].as_str();
        self.open.retain(|(open, ..)| Some(open.as_str()) != id);
        let content = event["content"].as_str().unwrap_or_default();
        if thinking {
            return item(
                event,
                "**thinking**",
                &[Part::Folded("thinking", Box::new(Part::Text(content)))],
            );
        }
        item(event, &speaker(event), &[Part::Text(content)])
    }

    fn tool_use(&mut self, event: &Value) -> String {
        let id = id_of(event, "toolId");
        let shown = tool(event);
        match self.tools.iter_mut().find(|(tool, _)| *tool == id) {
            // A second one refines the first.
            Some((_, before)) if *before == shown => return String::new(),
            Some((_, before)) => before.clone_from(&shown),
            None => {
                if self.tools.len() == OPEN_MAX {
                    self.tools.remove(0);
                }
                self.tools.push((id, shown.clone()));
            }
        }
        shown
    }

    fn complete(&mut self, event: &Value) -> String {
        let mut out = self.end();
        self.tools.clear();
        let mut parts = vec![field(event, "reason").replace('_', " ")];
        if let Some(by) = event["by"]["name"].as_str() {
            parts.push(format!("by {by}"));
        }
        if let (Some(code), true) = (event["exitCode"].as_i64(), event["success"] != true) {
            parts.push(format!("exit {code}"));
        }
        if let Some(ms) = event["durationMs"].as_u64() {
            parts.push(text::duration(ms));
        }
        let usage = usage(&event["usage"], &event["usage"]["costUsd"]);
        if !usage.is_empty() {
            parts.push(usage);
        }
        let label = format!("**end**: {}", escape(&parts.join(" · ")));
        let error = event["error"].as_str().filter(|error| !error.trim().is_empty());
        let error: Vec<Part<'_>> = error.map(|error| Part::Fence("", error)).into_iter().collect();
        out.push_str(&item(event, &label, &error));
        out
    }
}

fn speaker(event: &Value) -> String {
    if event["role"] == "user" { "**user**".to_owned() } else { "**assistant**".to_owned() }
}

/// A tool call: its name, what it does, its input folded away, its diff.
fn tool(event: &Value) -> String {
    let input = &event["toolInput"];
    let title = event["title"].as_str().filter(|title| !title.trim().is_empty());
    let mut label = format!("**{}**", escape(&field(event, "toolName")));
    if let Some(title) = title {
        write!(label, " {}", escape(&text::one_line(title, LINE_CHARS))).ok();
    }
    let (info, said) = match (&input["command"], input.as_object()) {
        (Value::String(command), _) => ("sh", command.clone()),
        (_, Some(fields)) if fields.is_empty() => ("", String::new()),
        (_, Some(_)) => ("json", serde_json::to_string_pretty(input).unwrap_or_default()),
        _ => ("", plain(input)),
    };
    let diff = event["diff"].as_str().filter(|diff| !diff.is_empty());
    let mut parts = Vec::new();
    match diff {
        Some(diff) => parts.push(Part::Fence("diff", diff)),
        None if said.is_empty() => {}
        None if info == "sh" => parts.push(Part::Fence(info, &said)),
        None => parts.push(Part::Folded("input", Box::new(Part::Fence(info, &said)))),
    }
    item(event, &label, &parts)
}

fn tool_result(event: &Value) -> String {
    let result = &event["toolResult"];
    let mut head = vec![if result["isError"] == true { "failed" } else { "done" }.to_owned()];
    if let Some(code) = event["exitCode"].as_i64() {
        head.push(format!("exit {code}"));
    }
    if let Some(ms) = event["durationMs"].as_u64() {
        head.push(text::duration(ms));
    }
    if event["synthetic"] == true {
        head.push("the agent gave no result".to_owned());
    }
    let body = plain(&result["content"]);
    let lines = body.lines().count();
    if lines > 0 {
        head.push(if lines == 1 { "1 line".to_owned() } else { format!("{lines} lines") });
    }
    let head = head.join(" · ");
    if lines == 0 {
        return item(event, &format!("*result*: {}", escape(&head)), &[]);
    }
    item(event, "*result*", &[Part::Folded(&head, Box::new(Part::Fence("", &body)))])
}

fn permission(event: &Value) -> String {
    let what = match event["interaction"].as_str() {
        Some("question") => "**question**".to_owned(),
        Some("plan") => "**plan**, to be allowed".to_owned(),
        _ => format!("**permission asked**: {}", escape(&field(event, "toolName"))),
    };
    let diff = event["diff"].as_str().filter(|diff| !diff.is_empty());
    let input = serde_json::to_string_pretty(&event["input"]).unwrap_or_default();
    let plan = event["input"]["plan"].as_str();
    let mut questions = String::new();
    for question in event["questions"].as_array().into_iter().flatten() {
        writeln!(questions, "{}\n", escape(&field(question, "text"))).ok();
        for option in question["options"].as_array().into_iter().flatten() {
            writeln!(questions, "1. {}", escape(&plain(option))).ok();
        }
    }
    let part = match (diff, plan) {
        _ if !questions.is_empty() => Part::Text(&questions),
        (Some(diff), _) => Part::Fence("diff", diff),
        (None, Some(plan)) => Part::Text(plan),
        (None, None) => Part::Folded("input", Box::new(Part::Fence("json", &input))),
    };
    item(event, &what, &[part])
}

fn resolved(event: &Value) -> String {
    let state = field(event, "state");
    if state == "delivered" {
        // That it was given was said when it was recorded.
        return String::new();
    }
    let word = match event["decision"].as_str() {
        Some("allow") => "allowed",
        Some("deny") => "denied",
        _ => "answered",
    };
    let (name, kind) = (field(&event["by"], "name"), field(&event["by"], "kind"));
    let mut label = format!("**{word}** by {} ({})", escape(&name), escape(&kind));
    if event["edited"] == true {
        label.push_str(", with changes");
    }
    if state == "undeliverable" {
        label.push_str("; the agent was gone before it had the answer");
    }
    let input = serde_json::to_string_pretty(&event["updatedInput"]).unwrap_or_default();
    let mut parts = Vec::new();
    if let Some(message) = event["message"].as_str().filter(|message| !message.is_empty()) {
        parts.push(Part::Text(message));
    }
    if !event["updatedInput"].is_null() {
        parts.push(Part::Folded("answer", Box::new(Part::Fence("json", &input))));
    }
    item(event, &label, &parts)
}

fn task(event: &Value) -> String {
    let (task, status) = (field(event, "taskId"), field(event, "status"));
    let label = format!("*background task {}*: {}", escape(&task), escape(&status));
    let summary = event["summary"].as_str().filter(|summary| !summary.trim().is_empty());
    let parts: Vec<Part<'_>> = summary.map(Part::Text).into_iter().collect();
    item(event, &label, &parts)
}

/// What a `jsonl` agent says in its own words.
fn unknown(event: &Value) -> String {
    let mut own = event.as_object().cloned().unwrap_or_default();
    for name in ["id", "kind", "sessionId", "runId", "seq", "timestamp", "provider"] {
        own.remove(name);
    }
    let own = serde_json::to_string_pretty(&Value::Object(own)).unwrap_or_default();
    let folded = Part::Folded("fields", Box::new(Part::Fence("json", &own)));
    item(event, &format!("*{}*", escape(&field(event, "kind"))), &[folded])
}

/// A part of an item.
enum Part<'a> {
    /// Markdown of an agent's or a person's, as it is.
    Text(&'a str),
    /// Text as it is, with what its language is called.
    Fence(&'a str, &'a str),
    /// Something to unfold, with the line that stands for it.
    Folded(&'a str, Box<Self>),
}

/// An item of the list, with parts in it.
fn item(event: &Value, label: &str, parts: &[Part<'_>]) -> String {
    let of = if event["parentToolId"].is_string() { " (subagent)" } else { "" };
    let cut = if event["truncated"].is_object() { " *(cut)*" } else { "" };
    let mut out = format!("\n- {label}{of}{cut}\n");
    for part in parts {
        let text = shown(part);
        if !text.trim().is_empty() {
            out.push('\n');
            out.push_str(&contained(&text));
        }
    }
    out
}

fn shown(part: &Part<'_>) -> String {
    match part {
        Part::Text(text) => lines(text),
        Part::Fence(info, text) => fence(info, &lines(text)),
        Part::Folded(summary, part) => {
            let inside = shown(part);
            if inside.trim().is_empty() {
                return String::new();
            }
            let summary = html(&text::one_line(&text::clean(summary, Paint::Plain), LINE_CHARS));
            format!(
                "<details><summary>{summary}</summary>\n\n{}\n\n</details>",
                inside.trim_end_matches('\n')
            )
        }
    }
}

/// Text with nothing in it that steers a terminal, and one kind of line end: a carriage return ends
/// a line of Markdown too.
fn lines(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    text::clean(&text, Paint::Plain)
}

/// Lines inside the item that they belong to.
fn contained(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for line in lines(text).trim_matches('\n').lines() {
        if !line.is_empty() {
            out.push_str("  ");
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// A fence that no line of the text can close.
fn fence(info: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let ticks = "`".repeat(longest.max(2) + 1);
    format!("{ticks}{info}\n{}\n{ticks}", text.trim_end_matches('\n'))
}

/// Words on one line that mean only themselves.
fn escape(text: &str) -> String {
    let text = lines(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Points, commas and the like mean nothing in the midst of a line.
        if c.is_ascii_punctuation() && !matches!(c, '.' | ',' | '/' | '-' | ':' | ';' | '?' | '\'')
        {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
#[path = "transcript_tests.rs"]
mod tests;
