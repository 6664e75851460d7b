//! Sessions and runs as REST and the broadcasts show them: their durable state (I17).

use serde_json::{Value, json};

use crate::run::queue::Queued;
use crate::store::{ProjectRow, RunStatus, RunSummary, SessionView};

/// A session.
#[must_use]
pub fn session(view: &SessionView) -> Value {
    let SessionView { row, project, last_run, waiting, queued, queue_held } = view;
    let running = last_run.as_ref().is_some_and(|run| run.status == RunStatus::Running);
    json!({
        "id": row.id,
        "provider": row.provider,
        "providerSessionId": row.native_id,
        "projectId": project.id.to_string(),
        "projectPath": row.project_path,
        "title": row.title,
        "archived": row.archived,
        "running": running,
        "lastRunId": last_run.as_ref().map(|run| run.id),
        "lastRunOrigin": last_run.as_ref().map(|run| &run.origin),
        "waiting": waiting,
        "queued": queued,
        "queueHeld": queue_held,
        "createdAt": row.created_at.to_string(),
        "updatedAt": row.updated_at.to_string(),
    })
}

/// A queue, in order; prompts are cut to `preview` characters, and say so.
#[must_use]
pub fn queue(waiting: &[Queued], preview: Option<usize>) -> Vec<Value> {
    let item = |(queued, position): (&Queued, u64)| {
        let mut item = json!({
            "queueId": queued.id,
            "position": position,
            "content": queued.content,
            "clientMessageId": queued.client_message_id,
            "by": queued.by,
            "queuedAt": queued.at.to_string(),
        });
        match preview.and_then(|most| queued.content.char_indices().nth(most)) {
            Some((cut, _)) => {
                item["content"] = json!(&queued.content[..cut]);
                item["cut"] = json!(true);
            }
            None if preview.is_none() => item["options"] = json!(queued.options),
            None => {}
        }
        item
    };
    waiting.iter().zip(1..).map(item).collect()
}

/// A project.
#[must_use]
pub fn project(row: &ProjectRow) -> Value {
    json!({
        "id": row.id.to_string(),
        "path": row.path,
        "customName": row.custom_name,
        "starred": row.starred,
    })
}

/// A run.
#[must_use]
pub fn run(run: &RunSummary) -> Value {
    json!({
        "id": run.id,
        "sessionId": run.session,
        "provider": run.provider,
        "origin": run.origin,
        "status": run.status.as_str(),
        "startedAt": run.started_at.to_string(),
        "completedAt": run.ended_at.map(|at| at.to_string()),
        "lastSeq": run.last_seq,
        "exitCode": run.exit_code,
        "success": run.success,
        "aborted": run.aborted,
        "reason": run.reason,
    })
}
