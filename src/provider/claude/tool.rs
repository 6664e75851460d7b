//! What can be said of a tool call for people: its category, one line, a diff.

use serde_json::Value;

use super::field;
use crate::run::event::{Category, Event, PlanItem, Status, StatusKind};

/// A title is cut to this many characters.
const TITLE_CHARS: usize = 120;
/// Edits above this many bytes get no diff: it would only repeat the input.
const DIFF_BYTES_MAX: usize = 64 << 10;

/// What kind of thing a tool does. Tools of other servers (`mcp__...`) may do anything.
pub(super) fn category(tool: &str) -> Category {
    match tool {
        "Bash" | "BashOutput" | "KillShell" | "KillBash" | "Monitor" | "TaskOutput"
        | "TaskStop" => Category::Execute,
        "Read" | "NotebookRead" | "ListMcpResourcesTool" | "ReadMcpResourceTool" => Category::Read,
        "Write" | "Edit" | "MultiEdit" | "NotebookEdit" => Category::Edit,
        "Glob" | "Grep" | "LS" | "ToolSearch" => Category::Search,
        "WebFetch" | "WebSearch" | "web_search" | "web_fetch" => Category::Fetch,
        "Task" | "Agent" | "TodoWrite" | "EnterPlanMode" | "ExitPlanMode" | "Skill"
        | "Workflow" => Category::Think,
        _ => Category::Other,
    }
}

/// One line for people: what the call is about, as its input says.
pub(super) fn title(input: &Value) -> Option<String> {
    const KEYS: [&str; 10] = [
        "command",
        "file_path",
        "notebook_path",
        "pattern",
        "url",
        "query",
        "description",
        "skill",
        "path",
        "plan",
    ];
    let question = || field::text(&input["questions"][0], "question");
    let text = KEYS.iter().find_map(|key| field::text(input, key)).or_else(question)?;
    let line = text.lines().find(|line| !line.trim().is_empty())?.trim();
    if line.chars().count() <= TITLE_CHARS {
        return Some(line.to_owned());
    }
    Some(line.chars().take(TITLE_CHARS).chain(['…']).collect())
}

/// A unified diff of an `Edit`. Claude does not say where in the file it is, so line numbers
/// count from the beginning of the replaced piece. A `Write` has its whole content as input and
/// does not say what was there before: no diff.
pub(super) fn diff(tool: &str, input: &Value) -> Option<String> {
    let path = field::text(input, "file_path")?;
    let edits = match tool {
        "Edit" => std::slice::from_ref(input),
        "MultiEdit" => field::items(input, "edits"),
        _ => return None,
    };
    let pieces: Vec<_> = edits
        .iter()
        .filter_map(|edit| {
            let old = edit.get("old_string").and_then(Value::as_str)?;
            Some((old, edit.get("new_string").and_then(Value::as_str)?))
        })
        .collect();
    let bytes: usize = pieces.iter().map(|(old, new)| old.len() + new.len()).sum();
    if pieces.is_empty() || bytes > DIFF_BYTES_MAX {
        return None;
    }
    let mut diff = format!("--- a/{0}\n+++ b/{0}\n", path.trim_start_matches('/'));
    for (old, new) in pieces {
        hunk(&mut diff, old, new);
    }
    Some(diff)
}

/// One hunk: equal lines at both ends are its context.
fn hunk(diff: &mut String, old: &str, new: &str) {
    let old: Vec<&str> = old.lines().collect();
    let new: Vec<&str> = new.lines().collect();
    let head = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let rest = old.len().min(new.len()) - head;
    let tail = (1..=rest).take_while(|back| old[old.len() - back] == new[new.len() - back]).count();
    let begin = |lines: &[&str]| usize::from(!lines.is_empty());
    diff.push_str(&format!(
        "@@ -{},{} +{},{} @@\n",
        begin(&old),
        old.len(),
        begin(&new),
        new.len()
    ));
    let sides = [
        (' ', &old[..head]),
        ('-', &old[head..old.len() - tail]),
        ('+', &new[head..new.len() - tail]),
        (' ', &old[old.len() - tail..]),
    ];
    for (sign, lines) in sides {
        for line in lines {
            diff.push(sign);
            diff.push_str(line);
            diff.push('\n');
        }
    }
}

/// The plan that a `TodoWrite` call sets.
pub(super) fn plan(tool: &str, input: &Value, parent: Option<&String>) -> Option<Event> {
    if tool != "TodoWrite" {
        return None;
    }
    let plan: Vec<PlanItem> = field::items(input, "todos")
        .iter()
        .filter_map(|todo| {
            Some(PlanItem {
                content: field::owned(todo, "content")?,
                status: field::text(todo, "status").unwrap_or("pending").to_owned(),
            })
        })
        .collect();
    let done = plan.iter().filter(|item| item.status == "completed").count();
    Some(Event::Status(Status {
        status: StatusKind::Plan,
        text: format!("{done} of {} done", plan.len()),
        plan: Some(plan),
        parent_tool_id: parent.cloned(),
        ..Status::default()
    }))
}
