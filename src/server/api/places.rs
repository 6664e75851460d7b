//! Where sessions live and who runs there: projects, the folders under the project roots, the
//! providers. Must not know runs.

use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use http::StatusCode;
use serde_json::{Value, json};

use crate::keeper;
use crate::limits;
use crate::protocol::fields::Fields;
use crate::provider::{Kind, Provider};
use crate::run::server_change::ServerChange;
use crate::server::api::sessions::directory;
use crate::server::api::{Call, Outcome, Problem, listed};
use crate::server::http::response::Response;
use crate::server::view;
use crate::store::SessionFilter;

pub(super) fn projects(call: &Call<'_>) -> Outcome {
    let limit = call.query.limit()?;
    let page = call.api.readers.projects_page(limit, call.query.get("cursor"))?;
    Ok(listed(page.items.iter().map(view::project).collect(), page.next))
}

/// Renames or marks a project. Its sessions carry its name, so they are announced.
pub(super) fn edit_project(call: &Call<'_>, named: &str) -> Outcome {
    let unknown = || {
        let named: String = named.chars().take(limits::ID_BYTES_MAX).collect();
        Problem::not_found("PROJECT_NOT_FOUND", &format!("Project \"{named}\" was not found."))
    };
    let project: i64 = named.parse().map_err(|_| unknown())?;
    let readers = &call.api.readers;
    readers.project(project)?.ok_or_else(unknown)?;
    let mut fields = call.fields()?;
    let custom_name = custom_name(&mut fields)?;
    let starred = fields.optional_boolean("starred")?;
    if custom_name.is_none() && starred.is_none() {
        return Err(Problem::field("Give customName, or starred, or both."));
    }
    let change = ServerChange::ProjectEdited { project, custom_name, starred };
    call.commit(&call.api.registry.record(change)?)?;
    // One more than the ring holds makes every client fetch the whole list, which is right then.
    let filter = SessionFilter { project: Some(project), ..SessionFilter::default() };
    let sessions = readers.sessions(&filter, limits::PAGE_MAX, None)?.items;
    let broadcasts = call.api.registry.broadcasts();
    broadcasts.announce(sessions.iter().rev().map(|session| (session.row.id, false)));
    let row = readers.project(project)?.ok_or_else(unknown)?;
    Ok(Response::json(StatusCode::OK, &view::project(&row)))
}

/// `Some("")` takes the name away, which `null` and a blank one ask for.
fn custom_name(fields: &mut Fields) -> Result<Option<String>, Problem> {
    if !fields.has("customName") {
        return Ok(None);
    }
    let name = fields.string("customName")?.unwrap_or_default();
    let name = name.trim();
    if name.len() > limits::TITLE_BYTES_MAX {
        return Err(Problem::field("customName must be at most 500 bytes long."));
    }
    Ok(Some(name.to_owned()))
}

pub(super) fn providers(call: &Call<'_>) -> Response {
    let show = |provider: &Provider| {
        let path = keeper::search_path(&provider.env);
        let found = provider.command.first().is_some_and(|program| is_found(program, &path));
        json!({ "name": provider.name, "kind": word(provider.kind), "found": found })
    };
    listed(call.api.agents.iter().map(show).collect(), None)
}

/// The directories in a directory under a project root, by name; without `path` the roots.
pub(super) fn folders(call: &Call<'_>) -> Outcome {
    let roots = &call.api.project_roots;
    let Some(path) = call.query.get("path") else {
        let roots = roots.iter().map(|root| Value::from(root.to_string_lossy())).collect();
        return Ok(listed(roots, None));
    };
    let folder = directory("path", path, roots)?;
    let (names, truncated) = names_in(&folder, roots)?;
    let body = json!({
        "path": folder.to_string_lossy(), "items": names, "nextCursor": null,
        "truncated": truncated,
    });
    Ok(Response::json(StatusCode::OK, &body))
}

/// The first names, and whether there are more. Links that lead out of the roots are no folders.
fn names_in(folder: &Path, roots: &[PathBuf]) -> Result<(Vec<String>, bool), Problem> {
    let unread = |error| Problem::field(&format!("path cannot be read: {error}."));
    let mut names = BinaryHeap::new();
    let mut truncated = false;
    for (count, entry) in std::fs::read_dir(folder).map_err(unread)?.enumerate() {
        if count >= limits::FOLDER_ENTRIES_MAX {
            truncated = true;
            break;
        }
        let entry = entry.map_err(unread)?;
        // What is not UTF-8 cannot be asked for, nor be a project.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_folder = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => entry
                .path()
                .canonicalize()
                .is_ok_and(|real| real.is_dir() && roots.iter().any(|root| real.starts_with(root))),
            kind => kind.is_ok_and(|kind| kind.is_dir()),
        };
        if is_folder {
            names.push(name);
            if names.len() > limits::FOLDERS_MAX {
                names.pop();
                truncated = true;
            }
        }
    }
    Ok((names.into_sorted_vec(), truncated))
}

const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Claude => "claude",
        Kind::Jsonl => "jsonl",
        Kind::Command => "command",
        Kind::Demo => "demo",
    }
}

/// Whether a program is where `execvp` would look for it.
fn is_found(program: &str, path: &OsStr) -> bool {
    if program.contains('/') {
        return is_program(Path::new(program));
    }
    std::env::split_paths(path).any(|dir| is_program(&dir.join(program)))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
