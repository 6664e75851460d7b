//! How events look to people: one place, pure.
//!
//! Knows the vocabulary of events. Must not know where they come from or where the text goes:
//! it gives text for stdout (what was said and done) and for stderr (what goes on).
//!
//! The truth rule: deltas are shown as they come, and the finished block is not shown again, if
//! and only if it is what the deltas said.

use serde_json::Value;

use super::text::{self, Paint};
use super::words::{
    BY_ITSELF, LINE_CHARS, clock, field, id_of, permission, plain, resolved, tool_line, usage,
};

/// Text that one event gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// What was said and done.
    pub out: String,
    /// What goes on.
    pub err: String,
}

/// Turns events into text, in the order in which they come.
#[derive(Debug)]
pub struct Renderer {
    paint: Paint,
    /// Blocks that stream, or whose finished form has not come yet.
    blocks: Vec<Streamed>,
    /// The one whose deltas are shown as they come: there is one line to write on.
    holder: Option<String>,
    /// One line for each tool call that was shown, so that a refined one is shown only if it says
    /// something new.
    tools: Vec<(String, String)>,
    /// Whether stdout stands in the midst of a line.
    midline: bool,
}

#[derive(Debug)]
struct Streamed {
    id: String,
    thinking: bool,
    /// Whether all of it was shown as it came.
    shown: bool,
    /// What was said, or the first part of it if that is long.
    said: String,
    /// Bytes in all.
    bytes: usize,
}

/// Blocks that stream at once, and tool calls remembered. Beyond it the oldest is forgotten.
const OPEN_MAX: usize = 64;
/// What is remembered of a streamed block, to compare it with the finished one.
const SAID_BYTES_MAX: usize = 1 << 20;
/// Lines of a tool's output that are shown.
const OUTPUT_LINES: usize = 12;

impl Renderer {
    /// Renders with or without colour.
    #[must_use]
    pub const fn new(paint: Paint) -> Self {
        Self { paint, blocks: Vec::new(), holder: None, tools: Vec::new(), midline: false }
    }

    /// The text that an event gives.
    pub fn event(&mut self, event: &Value) -> Shown {
        let mut shown = Shown::default();
        match event["kind"].as_str().unwrap_or_default() {
            "run_started" => self.run_started(event, &mut shown),
            "stream_delta" => self.delta(event, &mut shown),
            "stream_end" => {
                // The next block may have the line; this one waits for its finished form.
                self.holder.take_if(|holder| event["blockId"] == holder.as_str());
            }
            "text" => self.block(event, false, &mut shown),
            "thinking" => self.block(event, true, &mut shown),
            "tool_use" => self.tool_use(event, &mut shown),
            "tool_result" => self.tool_result(event, &mut shown),
            "permission_request" => {
                let card = permission(event, self.paint);
                self.line(event, &card, &mut shown);
            }
            "permission_resolved" => {
                let line = resolved(event, self.paint);
                self.line(event, &line, &mut shown);
            }
            "permission_cancelled" => {
                let line = format!(
                    "  no answer needed any more: {}",
                    field(event, "reason").replace('_', " ")
                );
                self.line(event, &self.paint.dim(&line), &mut shown);
            }
            "task_notification" => {
                let line = format!(
                    "  background task {}: {} {}",
                    field(event, "taskId"),
                    field(event, "status"),
                    text::one_line(&field(event, "summary"), LINE_CHARS)
                );
                self.line(event, &self.paint.dim(line.trim_end()), &mut shown);
            }
            "status" => self.status(event, &mut shown),
            "error" => {
                let source = match event["source"].as_str() {
                    Some("stderr") => "stderr",
                    Some("provider") => "provider error",
                    Some("gateway") => "gateway error",
                    _ => "error",
                };
                let content =
                    text::clean(event["content"].as_str().unwrap_or_default(), self.paint);
                let line = format!("{}: {}", self.paint.red(source), content.trim_end());
                self.line(event, &line, &mut shown);
            }
            "raw" => {
                let line = format!("{}| {}", field(event, "stream"), field(event, "content"));
                let line = text::clean(&line, Paint::Plain);
                self.line(event, &self.paint.dim(line.trim_end()), &mut shown);
            }
            "complete" => self.complete(event, &mut shown),
            _ => self.unknown(event, &mut shown),
        }
        shown
    }

    /// The end of the line that stdout stands in, if it does.
    pub fn break_line(&mut self) -> &'static str {
        if std::mem::take(&mut self.midline) { "\n" } else { "" }
    }

    /// Writes lines of their own, indented if a subagent says them.
    fn line(&mut self, event: &Value, lines: &str, shown: &mut Shown) {
        shown.out.push_str(self.break_line());
        let indent = if event["parentToolId"].is_string() { "  | " } else { "" };
        for line in lines.lines() {
            shown.out.push_str(indent);
            shown.out.push_str(line);
            shown.out.push('\n');
        }
        if truncated(event) {
            let href = event["truncated"]["href"].as_str().unwrap_or_default();
            let bytes = event["truncated"]["bytes"].as_u64().unwrap_or_default();
            let note = format!(
                "{indent}  ... cut; all {bytes} bytes are at {}",
                text::clean(href, Paint::Plain)
            );
            shown.out.push_str(&self.paint.dim(&note));
            shown.out.push('\n');
        }
    }

    fn run_started(&mut self, event: &Value, shown: &mut Shown) {
        let started = event["startedAt"].as_str().unwrap_or_default();
        let head = format!(
            "--- {} · {} · run {}",
            field(event, "provider"),
            clock(started),
            field(event, "runId"),
        );
        self.line(event, &self.paint.dim(&head), shown);
        if event["origin"] == "agent" {
            self.line(event, &self.paint.dim(BY_ITSELF), shown);
            return;
        }
        let content = field(event, "content");
        let prompt: Vec<String> = content.lines().map(|line| format!("> {line}")).collect();
        self.line(event, &self.paint.bold(&prompt.join("\n")), shown);
    }

    fn delta(&mut self, event: &Value, shown: &mut Shown) {
        let id = id_of(event, "blockId");
        let content = event["content"].as_str().unwrap_or_default();
        let thinking = event["block"] == "thinking";
        let known = self.blocks.iter().position(|block| block.id == id);
        if known.is_none() {
            // A subagent's text is indented, which a stream of pieces cannot be.
            let show = self.holder.is_none() && !event["parentToolId"].is_string();
            if self.blocks.len() == OPEN_MAX {
                self.blocks.remove(0);
            }
            self.blocks.push(Streamed::new(id.clone(), thinking, show));
            if show {
                self.holder = Some(id.clone());
                shown.out.push_str(self.break_line());
                if thinking {
                    shown.out.push_str(&self.paint.dim("thinking: "));
                    self.midline = true;
                }
            }
        }
        let at = known.unwrap_or(self.blocks.len() - 1);
        let block = &mut self.blocks[at];
        block.add(content);
        block.shown &= self.holder.as_deref() == Some(id.as_str());
        let content = if block.shown { text::clean(content, Paint::Plain) } else { String::new() };
        if !content.is_empty() {
            self.midline = !content.ends_with('\n');
            shown.out.push_str(&if thinking { self.paint.dim(&content) } else { content });
        }
    }

    /// A finished block: the truth, whatever deltas said before.
    fn block(&mut self, event: &Value, thinking: bool, shown: &mut Shown) {
        let content = event["content"].as_str().unwrap_or_default();
        let id = event["blockId"].as_str();
        self.holder.take_if(|holder| Some(holder.as_str()) == id);
        let at = self.blocks.iter().position(|block| Some(block.id.as_str()) == id);
        let streamed = at.map(|at| self.blocks.remove(at));
        if let Some(block) = streamed.filter(|block| block.shown) {
            if block.thinking == thinking && block.said_it(content, event) {
                shown.out.push_str(self.break_line());
                return;
            }
            let note = "  (the finished text differs from what was streamed)";
            self.line(&Value::Null, &self.paint.dim(note), shown);
        }
        if event["role"] == "user" {
            let lines = text::clean(content, Paint::Plain);
            let lines: Vec<String> = lines.lines().map(|line| format!("> {line}")).collect();
            self.line(event, &self.paint.bold(&lines.join("\n")), shown);
        } else if thinking {
            let lines = format!("thinking: {}", text::clean(content, Paint::Plain));
            self.line(event, &self.paint.dim(&lines), shown);
        } else {
            self.line(event, &text::clean(content, Paint::Plain), shown);
        }
    }

    fn tool_use(&mut self, event: &Value, shown: &mut Shown) {
        let id = id_of(event, "toolId");
        let mut lines = format!("{} {}", self.paint.cyan("*"), tool_line(event, self.paint));
        if let Some(diff) = event["diff"].as_str().filter(|diff| !diff.is_empty()) {
            lines.push('\n');
            lines.push_str(&text::diff(diff, self.paint));
        }
        match self.tools.iter_mut().find(|(tool, _)| *tool == id) {
            Some((_, before)) if *before == lines => return,
            Some((_, before)) => before.clone_from(&lines),
            None => {
                if self.tools.len() == OPEN_MAX {
                    self.tools.remove(0);
                }
                self.tools.push((id, lines.clone()));
            }
        }
        self.line(event, &lines, shown);
    }

    fn tool_result(&mut self, event: &Value, shown: &mut Shown) {
        let id = id_of(event, "toolId");
        self.tools.retain(|(tool, _)| *tool != id);
        let result = &event["toolResult"];
        let failed = result["isError"] == true;
        let mut head = String::from(if failed { "failed" } else { "done" });
        if let Some(code) = event["exitCode"].as_i64() {
            head.push_str(&format!(" · exit {code}"));
        }
        if let Some(ms) = event["durationMs"].as_u64() {
            head.push_str(&format!(" · {}", text::duration(ms)));
        }
        if event["synthetic"] == true {
            head.push_str(" · the agent gave no result");
        }
        let head = if failed { self.paint.red(&head) } else { self.paint.dim(&head) };
        let body = text::clean(&plain(&result["content"]), self.paint);
        let body = body.trim_end_matches('\n');
        let total = body.lines().count();
        let mut lines = format!("  {head}");
        for line in body.lines().take(OUTPUT_LINES) {
            lines.push_str(&format!("\n    {line}{}", self.paint.reset_after(line)));
        }
        if total > OUTPUT_LINES {
            let more = format!("    ... {} more lines", total - OUTPUT_LINES);
            lines.push('\n');
            lines.push_str(&self.paint.dim(&more));
        }
        self.line(event, &lines, shown);
    }

    fn status(&mut self, event: &Value, shown: &mut Shown) {
        let kind = field(event, "status");
        let mut line = field(event, "text").trim_end().to_owned();
        match kind.as_str() {
            "plan" => {
                for item in event["plan"].as_array().into_iter().flatten() {
                    let mark = match item["status"].as_str() {
                        Some("completed") => "[x]",
                        Some("in_progress") => "[>]",
                        _ => "[ ]",
                    };
                    let content = field(item, "content");
                    line.push_str(&format!(
                        "\n    {mark} {}",
                        text::one_line(&content, LINE_CHARS)
                    ));
                }
            }
            "usage" => {
                let usage = usage(&event["tokenBudget"], &event["costUsd"]);
                if !usage.is_empty() {
                    line = format!("{line} {usage}").trim().to_owned();
                }
            }
            _ => {}
        }
        let line = self.paint.dim(&format!("  {kind}: {line}"));
        // stdout and stderr are often one terminal: no status in the midst of a line.
        shown.out.push_str(self.break_line());
        shown.err.push_str(line.trim_end());
        shown.err.push('\n');
    }

    fn complete(&mut self, event: &Value, shown: &mut Shown) {
        self.tools.clear();
        self.holder = None;
        for block in std::mem::take(&mut self.blocks).iter().filter(|block| !block.shown) {
            let what = if block.thinking { "unfinished thinking" } else { "unfinished text" };
            let lines = format!("({what}) {}", text::clean(&block.said, Paint::Plain));
            self.line(&Value::Null, &lines, shown);
        }
        let reason = field(event, "reason").replace('_', " ");
        let mut parts = vec![reason];
        if let Some(by) = event["by"]["name"].as_str() {
            parts.push(format!("by {}", text::one_line(by, LINE_CHARS)));
        }
        match &event["exitCode"] {
            Value::Number(code) if event["success"] != true => parts.push(format!("exit {code}")),
            _ => {}
        }
        if let Some(ms) = event["durationMs"].as_u64() {
            parts.push(text::duration(ms));
        }
        let usage = usage(&event["usage"], &event["usage"]["costUsd"]);
        if !usage.is_empty() {
            parts.push(usage);
        }
        let head = format!("--- {}", text::clean(&parts.join(" · "), Paint::Plain));
        let good = event["success"] == true;
        let head = if good { self.paint.green(&head) } else { self.paint.red(&head) };
        self.line(event, &head, shown);
        if let Some(error) = event["error"].as_str().filter(|error| !error.trim().is_empty()) {
            let error = text::clean(error, self.paint);
            let error: Vec<String> = error.lines().map(|line| format!("    {line}")).collect();
            self.line(&Value::Null, &error.join("\n"), shown);
        }
    }

    /// What a `jsonl` agent says in its own words.
    fn unknown(&mut self, event: &Value, shown: &mut Shown) {
        let mut own = event.as_object().cloned().unwrap_or_default();
        for name in ["id", "kind", "sessionId", "runId", "seq", "timestamp", "provider"] {
            own.remove(name);
        }
        let line = format!("{}: {}", field(event, "kind"), Value::Object(own));
        let line = text::clean(&line, Paint::Plain);
        self.line(event, &self.paint.dim(&text::one_line(&line, LINE_CHARS)), shown);
    }
}

impl Streamed {
    const fn new(id: String, thinking: bool, shown: bool) -> Self {
        Self { id, thinking, shown, said: String::new(), bytes: 0 }
    }

    fn add(&mut self, content: &str) {
        if self.said.len() == self.bytes && self.bytes + content.len() <= SAID_BYTES_MAX {
            self.said.push_str(content);
        }
        self.bytes += content.len();
    }

    /// Whether the deltas said what the finished block says. Of very long blocks the beginning
    /// and the length are compared.
    fn said_it(&self, content: &str, event: &Value) -> bool {
        let bytes = match event["truncated"]["bytes"].as_u64() {
            Some(bytes) if event["truncated"]["field"] == "content" => bytes,
            _ => content.len() as u64,
        };
        let both = self.said.len().min(content.len());
        self.bytes as u64 == bytes && self.said.as_bytes()[..both] == content.as_bytes()[..both]
    }
}

fn truncated(event: &Value) -> bool {
    event["truncated"].is_object()
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
