//! What became of notifications.
//!
//! Must not know sinks.

use rusqlite::params;

use super::error::ReadError;
use super::reader::Readers;
use crate::run::id::{Millis, RunId, SessionId};

/// What became of a notification, as its row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredNotification {
    /// Its number; later ones have higher numbers.
    pub id: i64,
    /// When.
    pub at: Millis,
    /// Whose session, if any.
    pub session: Option<SessionId>,
    /// In which run, if any.
    pub run: Option<RunId>,
    /// `permission_asked`, `run_finished`, ...
    pub event: String,
    /// The sink's name.
    pub sink: String,
    /// `sent`, `suppressed` or `failed`.
    pub outcome: String,
    /// Why, in words.
    pub detail: String,
}

impl Readers {
    /// At most `limit` of them, the newest first, those before number `before` if that is given.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn notifications(
        &self,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<StoredNotification>, ReadError> {
        self.read(|conn| {
            let mut found = conn.prepare_cached(
                "SELECT id, at_ms, sid, rid, event, sink, outcome, detail FROM notification \
                 WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = found.query_map(params![before.unwrap_or(i64::MAX), limit], |row| {
                let session: Option<[u8; 16]> = row.get("sid")?;
                let run: Option<[u8; 16]> = row.get("rid")?;
                Ok(StoredNotification {
                    id: row.get("id")?,
                    at: Millis(row.get("at_ms")?),
                    session: session.map(SessionId::from_bytes),
                    run: run.map(RunId::from_bytes),
                    event: row.get("event")?,
                    sink: row.get("sink")?,
                    outcome: row.get("outcome")?,
                    detail: row.get("detail")?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
