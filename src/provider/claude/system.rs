//! `system` lines (where the agent stands, its background tasks) and the small line types.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::message::working;
use super::{Claude, field, remember};
use crate::provider::Output;
use crate::run::event::{Event, Retry, Status, StatusKind, TaskStatus};

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
            "hook_started" | "hook_progress" | "hook_response" => {
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
        if let Some(model) = field::owned(line, "model") {
            out.push(Output::Event(Event::Status(Status {
                status: StatusKind::Model,
                text: model.clone(),
                model: Some(model),
                ..Status::default()
            })));
        }
        mode(line, out);
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

/// Line types that say little; false if it is none of them.
pub(super) fn aside(kind: &str, line: &Value, out: &mut Vec<Output>) -> bool {
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
        "auth_status" => {
            let said = field::text(line, "error").unwrap_or("authentication changed");
            out.push(info(said, line));
        }
        "rate_limit_event" => {
            let limit = &line["rate_limit_info"];
            // Each turn reports that there is room: only its end is news.
            match field::text(limit, "status") {
                Some("allowed") | None => {}
                Some(status) => {
                    let which = field::text(limit, "rateLimitType").unwrap_or("requests");
                    out.push(info(&format!("rate limit for {which}: {status}"), line));
                }
            }
        }
        "command_lifecycle" | "keep_alive" | "prompt_suggestion" => {}
        _ => return false,
    }
    true
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
