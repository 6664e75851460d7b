//! The queue's rows: prompts that wait for their session's run to end (I19).
//!
//! Must not know when a run begins.

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::ReadError;
use super::reader::Readers;
use super::rows::from_json;
use crate::run::event::By;
use crate::run::id::{ClientMessageId, Millis, QueueId, RunId, SessionId};
use crate::run::queue::Queued;

/// What is known of a prompt's id on disk, unless it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownMessage {
    /// It began this run, and what it said has this hash.
    Run(RunId, [u8; 32]),
    /// It was taken out of the queue.
    Removed,
}

/// The part of a row that only we read.
#[derive(Serialize, Deserialize)]
struct Body {
    content: String,
    options: Map<String, Value>,
    by: By,
}

impl Readers {
    /// The prompts that wait in a session, in order, and whether they are held.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn queue(&self, session: SessionId) -> Result<(Vec<Queued>, bool), ReadError> {
        self.read(|conn| {
            let held = conn
                .prepare_cached("SELECT queue_held FROM session WHERE sid = ?1")?
                .query_row([session.as_bytes()], |row| row.get(0))
                .optional()?;
            let mut found = conn.prepare_cached(
                "SELECT qid, client_message_id, prompt_hash, body, queued_ms FROM queued \
                 WHERE session = (SELECT id FROM session WHERE sid = ?1) AND state = 'waiting' \
                 ORDER BY id",
            )?;
            let found = found.query_map([session.as_bytes()], |row| {
                let body: Body = from_json(&row.get::<_, String>("body")?)?;
                Ok(Queued {
                    id: QueueId::from_bytes(row.get("qid")?),
                    content: body.content,
                    options: body.options,
                    client_message_id: row
                        .get::<_, Option<String>>("client_message_id")?
                        .map(ClientMessageId),
                    hash: row.get("prompt_hash")?,
                    by: body.by,
                    at: Millis(row.get("queued_ms")?),
                })
            })?;
            let waiting: Vec<_> = found.collect::<Result<_, _>>()?;
            // Nothing is held where nothing waits.
            let held = held.unwrap_or(false) && !waiting.is_empty();
            Ok((waiting, held))
        })
    }

    /// Sessions in which a prompt waits and is not held.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn queues(&self) -> Result<Vec<SessionId>, ReadError> {
        self.read(|conn| {
            let mut found = conn.prepare_cached(
                "SELECT sid FROM session WHERE queue_held = 0 AND id IN \
                 (SELECT session FROM queued WHERE state = 'waiting')",
            )?;
            let found = found.query_map([], |row| Ok(SessionId::from_bytes(row.get(0)?)))?;
            Ok(found.collect::<Result<_, _>>()?)
        })
    }

    /// What became of the prompt with this id, unless it waits.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn find_message(
        &self,
        session: SessionId,
        message: &ClientMessageId,
    ) -> Result<Option<KnownMessage>, ReadError> {
        self.read(|conn| {
            let key = params![session.as_bytes(), message.0];
            let run = conn
                .prepare_cached(
                    "SELECT rid, prompt_hash FROM run WHERE client_message_id = ?2 \
                     AND session = (SELECT id FROM session WHERE sid = ?1)",
                )?
                .query_row(key, |row| {
                    Ok(KnownMessage::Run(RunId::from_bytes(row.get(0)?), row.get(1)?))
                })
                .optional()?;
            if run.is_some() {
                return Ok(run);
            }
            let removed = conn
                .prepare_cached(
                    "SELECT 1 FROM queued WHERE client_message_id = ?2 AND state = 'removed' \
                     AND session = (SELECT id FROM session WHERE sid = ?1)",
                )?
                .exists(key)?;
            Ok(removed.then_some(KnownMessage::Removed))
        })
    }
}

/// How many prompts wait in a session, and whether they are held.
pub(super) fn waiting(conn: &Connection, session: i64) -> rusqlite::Result<(u64, bool)> {
    conn.prepare_cached(
        "SELECT count(*), ifnull(max(s.queue_held), 0) FROM queued q \
         JOIN session s ON s.id = q.session WHERE q.session = ?1 AND q.state = 'waiting'",
    )?
    .query_row([session], |row| Ok((super::rows::natural(row.get(0)?), row.get(1)?)))
}

/// A prompt waits.
pub(super) fn add(conn: &Connection, session: i64, queued: &Queued) -> rusqlite::Result<()> {
    let body = Body {
        content: queued.content.clone(),
        options: queued.options.clone(),
        by: queued.by.clone(),
    };
    conn.prepare_cached(
        "INSERT INTO queued (qid, session, prompt_hash, client_message_id, body, queued_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        queued.id.as_bytes(),
        session,
        queued.hash,
        queued.client_message_id.as_ref().map(|id| &id.0),
        serde_json::json!(body).to_string(),
        queued.at.0,
    ])?;
    touch(conn, session, queued.at)
}

/// Its run begins: the row leaves in the same transaction.
pub(super) fn start(conn: &Connection, session: i64, id: QueueId) -> rusqlite::Result<bool> {
    let rows = conn
        .prepare_cached("DELETE FROM queued WHERE qid = ?1 AND session = ?2 AND state = 'waiting'")?
        .execute(params![id.as_bytes(), session])?;
    Ok(rows > 0)
}

/// Somebody took it out. What had an id is still known by it.
pub(super) fn remove(
    conn: &Connection,
    session: i64,
    id: QueueId,
    at: Millis,
) -> rusqlite::Result<bool> {
    let key = params![id.as_bytes(), session];
    let kept = conn
        .prepare_cached(
            "UPDATE queued SET state = 'removed', body = '' WHERE qid = ?1 AND session = ?2 \
             AND state = 'waiting' AND client_message_id IS NOT NULL",
        )?
        .execute(key)?;
    touch(conn, session, at)?;
    Ok(kept > 0 || start(conn, session, id)?)
}

/// Holds what waits, or lets it go on.
pub(super) fn hold(conn: &Connection, session: i64, held: bool) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE session SET queue_held = ?2 AND EXISTS \
         (SELECT 1 FROM queued WHERE session = ?1 AND state = 'waiting') WHERE id = ?1",
    )?
    .execute(params![session, held])
    .map(|_| ())
}

fn touch(conn: &Connection, session: i64, at: Millis) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE session SET updated_ms = ?2 WHERE id = ?1")?
        .execute(params![session, at.0])
        .map(|_| ())
}
