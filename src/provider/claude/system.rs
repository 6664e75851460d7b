//! `system` lines (where the agent stands, its background tasks) and the small line types.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::message::working;
use super::result::Meter;
use super::{Claude, field, remember};
use crate::provider::Output;
use crate::run::event::{ErrorSource, Event, Retry, Status, StatusKind, TaskStatus};

/// A background task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Task {
    /// The tool call that started it.
    pub(super) tool_id: Option<String>,
}

impl Claude {
    pub(super) fn system(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        match field::text(line, "subtype").unwrap_or_default() {
            "init" => self.init(line, out),
            "status" => self.status(line, out),
            "api_retry" => out.push(Output::Event(retrying(line))),
            "thinking_tokens" => {
                if !self.shows_thoughts() {
                    let tokens = field::number(line, "estimated_tokens").unwrap_or_default();
                    let text = format!("thinking, about {tokens} tokens");
                    out.push(Output::Event(working(text, field::parent(line))));
                }
            }
            "task_started" => self.task(line, TaskStatus::Started, "description", out),
            "task_progress" => self.task(line, TaskStatus::Running, "description", out),
            "task_updated" => {
                let status = task_status(&line["patch"]);
                self.task(line, status, "", out);
            }
            "task_notification" => {
                let status = task_status(line);
                self.task(line, status, "summary", out);
            }
            // Its tasks come one by one as well.
            "background_tasks_changed" | "session_state_changed" => {}
            "compact_boundary" => out.push(info("the conversation was compacted", line)),
            "permission_denied" => {
                let tool = field::text(line, "tool_name").unwrap_or("a tool");
                out.push(info(&format!("permission denied: {tool}"), line));
            }
            "hook_progress" => {
                let hook = field::text(line, "hook_name").unwrap_or("hook");
                let printed = ["output", "stdout", "stderr"]
                    .iter()
                    .find_map(|key| field::text(line, key))
                    .unwrap_or("running");
                out.push(info(&format!("{hook}: {}", printed.trim_end()), line));
            }
            "informational" | "notification" => self.banner(line, out),
            "model_refusal_fallback" | "model_refusal_no_fallback" => self.refused(line, out),
            "hook_started" | "hook_response" => {
                let hook = field::text(line, "hook_name").unwrap_or("hook");
                let what = field::text(line, "outcome").or_else(|| field::text(line, "subtype"));
                out.push(info(&format!("{hook}: {}", what.unwrap_or_default()), line));
            }
            "local_command_output" => {
                self.spoke();
                out.push(Output::Event(Event::Text {
                    content: field::owned(line, "content").unwrap_or_default(),
                    role: None,
                    block_id: None,
                    parent_tool_id: field::parent(line),
                }));
            }
            _ => return false,
        }
        true
    }

    /// The beginning of each turn's work. Nothing but a turn sends it.
    fn init(&mut self, line: &Value, out: &mut Vec<Output>) {
        self.ensure_turn(out);
        if let Some(native_id) = field::owned(line, "session_id") {
            self.native_id = Some(native_id.clone());
            out.push(Output::NativeId(native_id));
        }
        self.cwd = field::owned(line, "cwd").or_else(|| self.cwd.take());
        out.extend(field::text(line, "model").map(model));
        mode(line, out);
    }

    /// What the CLI's own screen would show in passing. An error only if the turn stops at it.
    fn banner(&self, line: &Value, out: &mut Vec<Output>) {
        let said = ["content", "text"].iter().find_map(|key| field::text(line, key));
        let said = self.unnamed(said.unwrap_or_default(), line);
        out.push(match field::flag(line, "prevent_continuation") {
            true => error(said, None, ErrorSource::Agent, line),
            false => info(&said, line),
        });
    }

    /// The model declined to answer: another one does, or nobody.
    fn refused(&self, line: &Value, out: &mut Vec<Output>) {
        let said = field::text(line, "content").unwrap_or("the model declined to answer");
        let said = self.unnamed(said, line);
        let Some(fallback) = field::text(line, "fallback_model") else {
            let category = field::owned(line, "api_refusal_category");
            out.push(error(said, category, ErrorSource::Provider, line));
            return;
        };
        out.push(info(&said, line));
        // A subagent's refusal leaves the session's model as it is.
        if field::text(line, "scope") != Some("local") {
            let back = field::text(line, "direction") == Some("revert");
            let before = field::text(line, "original_model").filter(|_| back);
            out.push(model(before.unwrap_or(fallback)));
        }
    }

    /// The conversation begins anew under another id, and so do the CLI's totals.
    fn reset(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        let Some(native_id) = field::owned(line, "new_conversation_id") else { return false };
        self.meter = Meter::default();
        self.native_id = Some(native_id.clone());
        out.push(Output::NativeId(native_id));
        out.push(info("the conversation was reset", line));
        true
    }

    /// Line types that say little; false if it is none of them.
    pub(super) fn aside(&mut self, kind: &str, line: &Value, out: &mut Vec<Output>) -> bool {
        match kind {
            "tool_progress" => {
                let tool = field::text(line, "tool_name").unwrap_or("tool");
                let seconds = line["elapsed_time_seconds"].as_f64().unwrap_or_default();
                let text = format!("{tool} has been running for {seconds:.0} s");
                out.push(Output::Event(working(text, field::parent(line))));
            }
            "tool_use_summary" => {
                out.push(info(field::text(line, "summary").unwrap_or_default(), line));
            }
            "auth_status" => self.signing_in(line, out),
            "rate_limit_event" => rate_limit(&line["rate_limit_info"], line, out),
            "conversation_reset" => return self.reset(line, out),
            "command_lifecycle" | "keep_alive" | "prompt_suggestion" => {}
            _ => return false,
        }
        true
    }

    /// How signing in goes: what it prints (where to sign in, say), and what went wrong.
    fn signing_in(&self, line: &Value, out: &mut Vec<Output>) {
        let printed: Vec<&str> =
            field::items(line, "output").iter().filter_map(Value::as_str).collect();
        let failed = field::text(line, "error");
        if !printed.is_empty() {
            out.push(info(&self.unnamed(&printed.join("\n"), line), line));
        } else if failed.is_none() {
            out.push(info("authentication changed", line));
        }
        if let Some(failed) = failed {
            out.push(error(self.unnamed(failed, line), None, ErrorSource::Provider, line));
        }
    }

    fn status(&mut self, line: &Value, out: &mut Vec<Output>) {
        mode(line, out);
        if let Some(status) = field::owned(line, "status") {
            if field::parent(line).is_none() && status == "requesting" {
                self.ensure_turn(out);
            }
            out.push(Output::Event(working(status, field::parent(line))));
        }
    }

    fn task(&mut self, line: &Value, status: TaskStatus, summary: &str, out: &mut Vec<Output>) {
        let Some(task_id) = field::owned(line, "task_id") else { return };
        let tool_id = field::owned(line, "tool_use_id")
            .or_else(|| self.tasks.get(&task_id).and_then(|task| task.tool_id.clone()));
        let task = Task { tool_id: tool_id.clone() };
        remember(&mut self.tasks, &task_id, task);
        out.push(Output::Event(Event::TaskNotification {
            task_id,
            status,
            summary: field::owned(line, summary),
            parent_tool_id: tool_id,
        }));
    }
}

/// Each turn reports that there is room: only its end is news.
fn rate_limit(limit: &Value, line: &Value, out: &mut Vec<Output>) {
    match field::text(limit, "status") {
        Some("allowed") | None => {}
        Some(status) => {
            let which = field::text(limit, "rateLimitType").unwrap_or("requests");
            out.push(info(&format!("rate limit for {which}: {status}"), line));
        }
    }
}

/// The model that answers from here on.
fn model(model: &str) -> Output {
    Output::Event(Event::Status(Status {
        status: StatusKind::Model,
        text: model.to_owned(),
        model: Some(model.to_owned()),
        ..Status::default()
    }))
}

/// The permission mode, if the line tells it.
fn mode(line: &Value, out: &mut Vec<Output>) {
    if let Some(mode) = field::owned(line, "permissionMode") {
        out.push(Output::Event(Event::Status(Status {
            status: StatusKind::Mode,
            text: mode.clone(),
            mode: Some(mode),
            ..Status::default()
        })));
    }
}

fn info(text: &str, line: &Value) -> Output {
    Output::Event(Event::Status(Status {
        text: text.to_owned(),
        parent_tool_id: field::parent(line),
        ..Status::default()
    }))
}

fn error(content: String, code: Option<String>, source: ErrorSource, line: &Value) -> Output {
    let parent_tool_id = field::parent(line);
    Output::Event(Event::Error { content, code, source, parent_tool_id })
}

fn retrying(line: &Value) -> Event {
    let code = field::number(line, "error_status").map(|code| code.to_string());
    let word = field::owned(line, "error");
    let cause = match (code, word) {
        (Some(code), Some(word)) => Some(format!("{code} {word}")),
        (code, word) => code.or(word),
    };
    let attempt = field::number(line, "attempt").unwrap_or_default();
    let max = field::number(line, "max_retries");
    let of = max.map(|max| format!(" of {max}")).unwrap_or_default();
    let why = cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
    Event::Status(Status {
        status: StatusKind::Retrying,
        text: format!("attempt {attempt}{of}{why}"),
        can_interrupt: Some(true),
        retry: Some(Retry { attempt, max, delay_ms: field::number(line, "retry_delay_ms"), cause }),
        parent_tool_id: field::parent(line),
        ..Status::default()
    })
}

/// The CLI's word for how a task stands.
fn task_status(value: &Value) -> TaskStatus {
    match field::text(value, "status").unwrap_or_default() {
        "completed" => TaskStatus::Completed,
        "failed" => TaskStatus::Failed,
        "stopped" | "killed" | "cancelled" => TaskStatus::Stopped,
        _ => TaskStatus::Running,
    }
}
