//! Lists with cursors: sessions and runs, newest first; projects by path.
//!
//! A cursor is the place of the last item in the list's order, so a page never repeats an item
//! that did not move. Must not know REST.

use rusqlite::{OptionalExtension, params};

use super::error::ReadError;
use super::reader::{Readers, view};
use super::rows::{
    ProjectRow, RUN_COLUMNS, RunStatus, RunSummary, SESSION_COLUMNS, SessionView, project_row,
    run_summary,
};
use crate::limits::PAGE_MAX;
use crate::run::id::SessionId;

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// The cursor of the page after this one; `None` on the last.
    pub next: Option<String>,
}

/// Which sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Of this project only.
    pub project: Option<i64>,
    /// Only those that are archived, or only those that are not.
    pub archived: Option<bool>,
    /// Only those with this text in title or path, whatever the case of ASCII letters.
    pub q: Option<String>,
}

/// Which runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Of this session only.
    pub session: Option<SessionId>,
    /// Only those that stand so.
    pub status: Option<RunStatus>,
}

impl Readers {
    /// Sessions, the one that changed last first. At most `limit` (and 1,000).
    ///
    /// # Errors
    /// `BadCursor`, or as SQLite says.
    pub fn sessions(
        &self,
        filter: &SessionFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Listed<SessionView>, ReadError> {
        let (before_ms, before_id) = match cursor {
            None => (i64::MAX, i64::MAX),
            Some(text) => text
                .split_once('.')
                .and_then(|(ms, id)| Some((ms.parse().ok()?, id.parse().ok()?)))
                .ok_or_else(|| ReadError::BadCursor(text.into()))?,
        };
        let limit = limit.clamp(1, PAGE_MAX);
        let sql = format!(
            "SELECT {SESSION_COLUMNS} FROM session s JOIN project p ON p.id = s.project \
             WHERE (s.updated_ms, s.id) < (?1, ?2) AND (?3 IS NULL OR s.project = ?3) \
             AND (?4 IS NULL OR s.archived = ?4) \
             AND (?5 IS NULL OR s.title LIKE ?5 ESCAPE '\\' OR p.path LIKE ?5 ESCAPE '\\') \
             ORDER BY s.updated_ms DESC, s.id DESC LIMIT ?6"
        );
        self.read(|conn| {
            let mut found = conn.prepare_cached(&sql)?;
            let found = found.query_map(
                params![
                    before_ms,
                    before_id,
                    filter.project,
                    filter.archived,
                    filter.q.as_deref().map(pattern),
                    one_more(limit)
                ],
                |row| {
                    let place = format!(
                        "{}.{}",
                        row.get::<_, i64>("updated_ms")?,
                        row.get::<_, i64>("session_id")?
                    );
                    Ok((view(conn, row)?, place))
                },
            )?;
            Ok(page(found.collect::<Result<_, _>>()?, limit))
        })
    }

    /// Runs, the newest first, also those whose events are gone. At most `limit` (and 1,000).
    ///
    /// # Errors
    /// `BadCursor`, or as SQLite says.
    pub fn runs(
        &self,
        filter: &RunFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Listed<RunSummary>, ReadError> {
        let before: i64 = match cursor {
            None => i64::MAX,
            Some(text) => text.parse().map_err(|_| ReadError::BadCursor(text.into()))?,
        };
        let limit = limit.clamp(1, PAGE_MAX);
        // Which of these are given decides which index serves, so each has its own statement.
        let session = filter.session.as_ref().map(SessionId::as_bytes);
        let of_session = match session {
            Some(_) => "r.session = (SELECT id FROM session WHERE sid = ?2)",
            None => "?2 IS NULL",
        };
        // Few rows run, many have run: the plus keeps the order from choosing the index.
        let (status, id) = match filter.status {
            Some(RunStatus::Running) => ("r.state = 'running'", "+r.id"),
            Some(RunStatus::Completed) => ("r.state = 'completed'", "r.id"),
            None => ("1", "r.id"),
        };
        let sql = format!(
            "SELECT {RUN_COLUMNS}, r.id AS run_id FROM run r JOIN session s ON s.id = r.session \
             WHERE {id} < ?1 AND {of_session} AND {status} ORDER BY {id} DESC LIMIT ?3"
        );
        self.read(|conn| {
            let mut found = conn.prepare_cached(&sql)?;
            let found = found.query_map(params![before, session, one_more(limit)], |row| {
                Ok((run_summary(row)?, row.get::<_, i64>("run_id")?.to_string()))
            })?;
            Ok(page(found.collect::<Result<_, _>>()?, limit))
        })
    }
}

impl Readers {
    /// One project.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn project(&self, id: i64) -> Result<Option<ProjectRow>, ReadError> {
        self.read(|conn| {
            let found = conn
                .prepare_cached(
                    "SELECT id AS project_id, path, custom_name, starred FROM project \
                     WHERE id = ?1",
                )?
                .query_row([id], project_row)
                .optional()?;
            Ok(found)
        })
    }

    /// Projects by their path, a page of them. At most `limit` (and 1,000).
    ///
    /// # Errors
    /// `BadCursor`, or as SQLite says.
    pub fn projects_page(
        &self,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Listed<ProjectRow>, ReadError> {
        let after: Option<i64> = cursor
            .map(|text| text.parse().map_err(|_| ReadError::BadCursor(text.into())))
            .transpose()?;
        let limit = limit.clamp(1, PAGE_MAX);
        self.read(|conn| {
            let mut found = conn.prepare_cached(
                "SELECT id AS project_id, path, custom_name, starred FROM project \
                 WHERE ?1 IS NULL OR path > (SELECT path FROM project WHERE id = ?1) \
                 ORDER BY path LIMIT ?2",
            )?;
            let found = found.query_map(params![after, one_more(limit)], |row| {
                let project = project_row(row)?;
                let place = project.id.to_string();
                Ok((project, place))
            })?;
            Ok(page(found.collect::<Result<_, _>>()?, limit))
        })
    }
}

/// One more than a page holds tells whether there is another.
pub(super) fn one_more(limit: usize) -> i64 {
    i64::try_from(limit).map_or(i64::MAX, |limit| limit.saturating_add(1))
}

pub(super) fn page<T>(mut found: Vec<(T, String)>, limit: usize) -> Listed<T> {
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(_, place)| place.clone());
    Listed { items: found.into_iter().map(|(item, _)| item).collect(), next }
}

/// What the person typed, for LIKE, taken literally.
fn pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}
