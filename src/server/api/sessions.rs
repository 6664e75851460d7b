//! Sessions: made, listed, shown, changed, deleted.

use std::path::{Path, PathBuf};

use http::StatusCode;

use crate::limits;
use crate::protocol::fields::Fields;
use crate::protocol::message::ErrorCode;
use crate::registry::NewSession;
use crate::run::id::NativeId;
use crate::server::api::{Call, Outcome, Problem, listed};
use crate::server::http::response::Response;
use crate::server::view;
use crate::store::SessionFilter;

pub(super) fn list(call: &Call<'_>) -> Outcome {
    let project = call
        .query
        .get("project")
        .map(|id| id.parse().map_err(|_| Problem::field("project must be a project's id.")));
    let filter = SessionFilter {
        project: project.transpose()?,
        archived: call.query.boolean("archived")?,
        q: call.query.get("q").map(str::to_owned),
    };
    let limit = call.query.limit()?;
    let page = call.api.readers.sessions(&filter, limit, call.query.get("cursor"))?;
    Ok(listed(page.items.iter().map(view::session).collect(), page.next))
}

pub(super) fn create(call: &Call<'_>) -> Outcome {
    let mut fields = call.fields()?;
    let provider = fields.id("provider")?;
    if !call.api.providers.contains(&provider) {
        let known = call.api.providers.join(", ");
        let message = format!("There is no provider \"{provider}\" here. There are: {known}.");
        return Err(Problem::of(ErrorCode::UnsupportedProvider, &message));
    }
    let project_path = project_path(&fields.text("projectPath")?, &call.api.project_roots)?;
    let new = NewSession {
        provider,
        project_path,
        title: title(&mut fields)?,
        native_id: match fields.any("providerSessionId") {
            None => None,
            Some(id) => Some(NativeId(
                id.as_str()
                    .map(str::trim)
                    .filter(|id| (1..=limits::ID_BYTES_MAX).contains(&id.len()))
                    .ok_or_else(|| {
                        Problem::field("providerSessionId must be an id, 1 to 512 bytes long.")
                    })?
                    .to_owned(),
            )),
        },
    };
    let (id, pending) = call.api.registry.create_session(new, call.now)?;
    call.commit(&pending)?;
    call.show(StatusCode::CREATED, id)
}

pub(super) fn show(call: &Call<'_>, named: &str) -> Outcome {
    Ok(Response::json(StatusCode::OK, &view::session(&call.session(named)?)))
}

pub(super) fn edit(call: &Call<'_>, named: &str) -> Outcome {
    let id = call.session(named)?.row.id;
    let mut fields = call.fields()?;
    let title = title(&mut fields)?;
    let archived = fields.optional_boolean("archived")?;
    if title.is_none() && archived.is_none() {
        return Err(Problem::field("Give a title, or archived, or both."));
    }
    let pending = call.api.registry.edit_session(id, title, archived, call.now)?;
    call.commit(&pending)?;
    call.show(StatusCode::OK, id)
}

pub(super) fn delete(call: &Call<'_>, named: &str) -> Outcome {
    let id = call.session(named)?.row.id;
    let pending = call.api.registry.delete_session(id, &call.by, call.now)?;
    call.commit(&pending)?;
    call.api.uploads.forget(id);
    Ok(Response::empty(StatusCode::NO_CONTENT))
}

fn title(fields: &mut Fields) -> Result<Option<String>, Problem> {
    let Some(title) = fields.string("title")? else {
        return Ok(None);
    };
    let title = title.trim();
    if !(1..=limits::TITLE_BYTES_MAX).contains(&title.len()) {
        return Err(Problem::field("title must be 1 to 500 bytes long."));
    }
    Ok(Some(title.to_owned()))
}

/// The real path of a directory that exists below one of the roots. Links are resolved first, so
/// that none leads out.
fn project_path(given: &str, roots: &[PathBuf]) -> Result<String, Problem> {
    let real = directory("projectPath", given, roots)?.into_os_string().into_string();
    real.map_err(|_| Problem::field("projectPath must be a path in UTF-8."))
}

/// The same of any field or parameter, which errors name.
pub(super) fn directory(field: &str, given: &str, roots: &[PathBuf]) -> Result<PathBuf, Problem> {
    let path = Path::new(given);
    if !path.is_absolute() {
        return Err(Problem::field(&format!("{field} must be an absolute path.")));
    }
    let real = path.canonicalize().ok().filter(|real| real.is_dir());
    let inside = real.filter(|real| roots.iter().any(|root| real.starts_with(root)));
    // One answer for what is missing and what is elsewhere: else it would tell what exists.
    inside.ok_or_else(|| {
        let roots: Vec<_> = roots.iter().map(|root| root.to_string_lossy()).collect();
        let roots = roots.join(", ");
        Problem::field(&format!("{field} must be an existing directory under {roots}."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_lies_under_a_root_whatever_its_spelling() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().canonicalize().expect("a real path");
        let roots = [base.join("root")];
        std::fs::create_dir_all(base.join("root/project")).expect("made");
        std::fs::create_dir_all(base.join("root-other")).expect("made");
        std::fs::write(base.join("root/file"), "").expect("made");
        std::os::unix::fs::symlink(base.join("root-other"), base.join("root/out")).expect("made");
        std::os::unix::fs::symlink(base.join("root/project"), base.join("in")).expect("made");
        let check = |path: &str| {
            let path = base.join(path).into_os_string().into_string().expect("UTF-8");
            project_path(&path, &roots)
        };
        let project = base.join("root/project").to_string_lossy().into_owned();
        assert_eq!(check("root/project"), Ok(project.clone()));
        assert_eq!(check("root/./project/../project/"), Ok(project.clone()));
        assert_eq!(check("in"), Ok(project));
        for bad in ["root-other", "root/../root-other", "root/out", "root/none", "root/file", ""] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(project_path("relative", &roots).is_err());
    }
}
