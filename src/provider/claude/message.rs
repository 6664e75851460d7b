//! Finished messages: `assistant` lines (one content block each) and `user` lines (outcomes of
//! tools, markers, what a subagent was told).

use serde_json::Value;

use super::{Claude, field, native, remember, tool};
use crate::provider::Output;
use crate::run::event::{
    Block, CancelReason, ErrorSource, Event, Role, Status, StatusKind, ToolOutput, ToolResult,
    ToolStatus, ToolUse,
};

impl Claude {
    pub(super) fn assistant(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        let message = &line["message"];
        let parent = field::parent(line);
        if parent.is_none() {
            self.ensure_turn(out);
        }
        if field::text(message, "model") == Some("<synthetic>") {
            return self.synthetic(line, parent, out);
        }
        let id = field::text(message, "id").unwrap_or_default();
        if parent.is_none() {
            self.meter.message_came(id, &message["usage"]);
        }
        let mut understood = message.get("content").is_some_and(Value::is_array);
        for content in field::items(message, "content") {
            understood &= self.block(content, id, parent.as_ref(), out);
        }
        understood
    }

    /// One finished block of a message.
    fn block(
        &mut self,
        content: &Value,
        message: &str,
        parent: Option<&String>,
        out: &mut Vec<Output>,
    ) -> bool {
        let speaker = parent.map(String::as_str);
        match field::text(content, "type").unwrap_or_default() {
            "text" => {
                let block_id = Some(self.finish_block(speaker, message, Block::Text, out));
                let Some(text) = field::owned(content, "text") else { return true };
                if parent.is_none() {
                    self.spoke();
                }
                let parent_tool_id = parent.cloned();
                out.push(Output::Event(Event::Text {
                    content: text,
                    role: None,
                    block_id,
                    parent_tool_id,
                }));
                // No field has room for the sources of what is said: the whole line is kept.
                return field::items(content, "citations").is_empty();
            }
            "thinking" => {
                let block_id = Some(self.finish_block(speaker, message, Block::Thinking, out));
                // Only a signature came if the thoughts are not to be shown.
                let Some(text) = field::owned(content, "thinking") else { return true };
                let parent_tool_id = parent.cloned();
                out.push(Output::Event(Event::Thinking {
                    content: text,
                    block_id,
                    parent_tool_id,
                }));
            }
            // Encrypted: nobody here can read it.
            "redacted_thinking" => self.pass_block(speaker, message, out),
            "tool_use" | "server_tool_use" | "mcp_tool_use" => {
                self.pass_block(speaker, message, out);
                return self.tool_use(content, parent, out);
            }
            // Tools that ran at the provider have their outcome in the same message.
            _ if content.get("tool_use_id").is_some() => {
                self.pass_block(speaker, message, out);
                return self.tool_result(content, None, parent, out);
            }
            _ => return false,
        }
        true
    }

    fn tool_use(
        &mut self,
        content: &Value,
        parent: Option<&String>,
        out: &mut Vec<Output>,
    ) -> bool {
        let (Some(tool_id), Some(tool_name)) =
            (field::owned(content, "id"), field::owned(content, "name"))
        else {
            return false;
        };
        let tool_input = content.get("input").cloned().unwrap_or_default();
        if tool_name == "ExitPlanMode" {
            remember(&mut self.plans, &tool_id, tool_input.clone());
        }
        let plan = tool::plan(&tool_name, &tool_input, parent);
        out.push(Output::Event(Event::ToolUse(ToolUse {
            tool_id,
            category: tool::category(&tool_name),
            title: tool::title(&tool_input),
            diff: tool::diff(&tool_name, &tool_input),
            tool_name,
            tool_input,
            // Whether it must ask shows only later.
            status: ToolStatus::Pending,
            parent_tool_id: parent.cloned(),
        })));
        out.extend(plan.map(Output::Event));
        true
    }

    /// What the CLI says in the model's place: errors of the provider, answers to slash commands.
    fn synthetic(&mut self, line: &Value, parent: Option<String>, out: &mut Vec<Output>) -> bool {
        let text = joined(&line["message"]["content"]);
        let failed =
            field::flag(line, "is_api_error_message") || field::text(line, "error").is_some();
        if parent.is_none() {
            self.spoke();
            if let Some(turn) = self.turn.as_mut().filter(|_| failed) {
                turn.complained = true;
            }
        }
        out.push(Output::Event(if failed {
            Event::Error {
                content: self.unnamed(&text, line),
                code: field::owned(line, "error"),
                source: ErrorSource::Provider,
                parent_tool_id: parent,
            }
        } else {
            // The answer to a slash command that needs no model.
            Event::Text { content: text, role: None, block_id: None, parent_tool_id: parent }
        }));
        line["message"].get("content").is_some_and(Value::is_array)
    }

    pub(super) fn user(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        let content = &line["message"]["content"];
        let parent = field::parent(line);
        if let Value::String(text) = content {
            return self.user_text(text, line, parent, out);
        }
        let Some(blocks) = content.as_array() else { return false };
        // The structured form belongs to the line, so to its only result.
        let structured =
            Some(&line["tool_use_result"]).filter(|value| !value.is_null() && blocks.len() == 1);
        let mut understood = true;
        for block in blocks {
            understood &= match field::text(block, "type").unwrap_or_default() {
                "tool_result" => self.tool_result(block, structured, parent.as_ref(), out),
                "text" => {
                    let text = field::text(block, "text").unwrap_or_default();
                    self.user_text(text, line, parent.clone(), out)
                }
                // The echo of a prompt says nothing new, whatever it holds.
                _ => field::flag(line, "isReplay"),
            };
        }
        understood
    }

    fn user_text(
        &mut self,
        text: &str,
        line: &Value,
        parent: Option<String>,
        out: &mut Vec<Output>,
    ) -> bool {
        let event = if let Some(output) = local_command(text, "stdout") {
            self.spoke();
            Event::Status(Status { text: output, ..Status::default() })
        } else if let Some(output) = local_command(text, "stderr") {
            self.spoke();
            let source = ErrorSource::Agent;
            Event::Error { content: output, code: None, source, parent_tool_id: parent }
        } else if field::flag(line, "isReplay") {
            return true;
        } else if text.starts_with("[Request interrupted by user") {
            let (text, parent_tool_id) = (text.to_owned(), parent);
            Event::Status(Status { text, parent_tool_id, ..Status::default() })
        } else {
            // What a subagent is told, or what the CLI puts into the conversation.
            Event::Text {
                content: text.to_owned(),
                role: Some(Role::User),
                block_id: None,
                parent_tool_id: parent,
            }
        };
        out.push(Output::Event(event));
        true
    }

    fn tool_result(
        &mut self,
        block: &Value,
        structured: Option<&Value>,
        parent: Option<&String>,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(tool_id) = field::owned(block, "tool_use_id") else { return false };
        self.no_more_questions(&tool_id, out);
        self.plans.remove(&tool_id);
        // A subagent in the background goes on after its call's result.
        if !self.tasks.values().any(|task| task.tool_id.as_ref() == Some(&tool_id)) {
            self.close_stream(&tool_id, out);
        }
        let is_error = field::flag(block, "is_error");
        let content = flat(block.get("content").unwrap_or(&Value::Null));
        out.push(Output::Event(Event::ToolResult(ToolResult {
            exit_code: is_error.then(|| exit_code(&content)).flatten(),
            duration_ms: structured.and_then(|value| field::number(value, "durationMs")),
            tool_result: ToolOutput {
                content,
                is_error,
                tool_use_result: structured.map(native::strip),
            },
            tool_id,
            synthetic: None,
            parent_tool_id: parent.cloned(),
        })));
        true
    }

    /// Requests about a call that has its result need no answer.
    fn no_more_questions(&mut self, tool_id: &str, out: &mut Vec<Output>) {
        let gone: Vec<String> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.tool_id.as_deref() == Some(tool_id))
            .map(|(request_id, _)| request_id.clone())
            .collect();
        for request_id in gone {
            self.asked.remove(&request_id);
            out.push(Output::PermissionGone { request_id, reason: CancelReason::Withdrawn });
        }
    }

    /// A text of the CLI's own without the native id.
    pub(super) fn unnamed(&self, text: &str, line: &Value) -> String {
        native::unname(text, &[self.native_id.as_deref(), field::text(line, "session_id")])
    }
}

/// The state that a status of kind `working` shows.
pub(super) fn working(text: String, parent: Option<String>) -> Event {
    Event::Status(Status {
        status: StatusKind::Working,
        text,
        can_interrupt: Some(true),
        parent_tool_id: parent,
        ..Status::default()
    })
}

/// Content that is text only as one string; anything else as it is.
fn flat(content: &Value) -> Value {
    let texts = content.as_array().and_then(|blocks| {
        let text = |block| match field::text(block, "type") {
            Some("text") => block.get("text").and_then(Value::as_str),
            _ => None,
        };
        blocks.iter().map(text).collect::<Option<Vec<_>>>()
    });
    match (texts, content) {
        (Some(texts), _) => Value::String(texts.join("\n")),
        (None, Value::Null) => Value::String(String::new()),
        (None, other) => native::strip(other),
    }
}

/// The text of a message.
fn joined(content: &Value) -> String {
    match flat(content) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A failed command's result begins with its exit code.
fn exit_code(content: &Value) -> Option<i64> {
    let rest = content.as_str()?.trim_start_matches("Error: ").strip_prefix("Exit code ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What a slash command printed, which comes as a user line in a tag.
fn local_command(text: &str, pipe: &str) -> Option<String> {
    let rest = text.trim().strip_prefix(&format!("<local-command-{pipe}>"))?;
    Some(rest.strip_suffix(&format!("</local-command-{pipe}>")).unwrap_or(rest).to_owned())
}
