//! What is stored of an agent process, over all the runs that it served: the beginning of a
//! recovery.
//!
//! Must not know what a checkpoint's state or a command's body says. Must not write.

use rusqlite::{Connection, OptionalExtension, params};

use super::error::ReadError;
use super::reader::{Readers, open_runs};
use super::rows::{RUN_COLUMNS, StoredAgent, StoredCommand, from_json, int, natural, run_summary};
use crate::run::id::{AgentId, RequestId, RunId};
use crate::run::state::AnswerRequest;

/// All runs of agent ?1; the table is `r`. Served by the index `run_agent`.
const RUNS: &str = "FROM run r JOIN session s ON s.id = r.session WHERE r.agent = ?1";

impl Readers {
    /// What is stored of an agent; `None` if no stored run was served by it.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn agent(&self, agent: AgentId) -> Result<Option<StoredAgent>, ReadError> {
        self.read(|conn| Ok(stored(conn, agent)?))
    }
}

fn stored(conn: &Connection, agent: AgentId) -> rusqlite::Result<Option<StoredAgent>> {
    let sql = format!("SELECT {RUN_COLUMNS} {RUNS} ORDER BY r.id DESC LIMIT 1");
    let newest =
        conn.prepare_cached(&sql)?.query_row([agent.as_bytes()], run_summary).optional()?;
    let Some(newest) = newest else { return Ok(None) };
    let checkpoint = checkpoint(conn, agent)?;
    let folded = checkpoint.as_ref().map_or(0, |(offset, _)| *offset);
    let open = open_runs(conn, Some(newest.session))?.pop().filter(|open| open.agent == agent);
    Ok(Some(StoredAgent {
        agent,
        session: newest.session,
        offset: number(conn, "SELECT max(record_offset) FROM run WHERE agent = ?1", agent)?,
        last_n: number(
            conn,
            "SELECT max(c.n) FROM run r JOIN command c ON c.run = r.id WHERE r.agent = ?1",
            agent,
        )?,
        commands: commands(conn, agent)?,
        causes: causes(conn, agent, folded)?,
        answers: answers(conn, agent)?,
        newest,
        checkpoint,
        open,
    }))
}

fn number(conn: &Connection, sql: &str, agent: AgentId) -> rusqlite::Result<u64> {
    let found: Option<i64> =
        conn.prepare_cached(sql)?.query_row([agent.as_bytes()], |row| row.get(0))?;
    Ok(found.map_or(0, natural))
}

fn checkpoint(conn: &Connection, agent: AgentId) -> rusqlite::Result<Option<(u64, Vec<u8>)>> {
    conn.prepare_cached("SELECT record_offset, state FROM checkpoint WHERE agent = ?1")?
        .query_row([agent.as_bytes()], |row| {
            let offset: i64 = row.get(0)?;
            Ok((natural(offset), row.get(1)?))
        })
        .optional()
}

/// Undelivered ones, and the newest command of each request that still says `answered`. A request
/// that has its `answer` was asked again: its commands are of the time before.
fn commands(conn: &Connection, agent: AgentId) -> rusqlite::Result<Vec<StoredCommand>> {
    conn.prepare_cached(
        "SELECT r.rid, c.n, c.body, c.cause, c.request_id \
         FROM run r JOIN command c ON c.run = r.id \
         WHERE r.agent = ?1 AND (c.delivered_ms IS NULL OR EXISTS \
           (SELECT 1 FROM permission m WHERE m.request_id = c.request_id AND m.run = c.run \
              AND m.state = 'answered' AND m.answer IS NULL \
              AND c.n = (SELECT max(n) FROM command o \
                WHERE o.run = c.run AND o.request_id = c.request_id))) \
         ORDER BY c.n",
    )?
    .query_map([agent.as_bytes()], |row| {
        let (n, cause): (i64, i64) = (row.get(1)?, row.get(3)?);
        Ok(StoredCommand {
            run: RunId::from_bytes(row.get(0)?),
            n: natural(n),
            body: row.get(2)?,
            cause: natural(cause),
            request: row.get::<_, Option<String>>(4)?.map(RequestId),
        })
    })?
    .collect()
}

fn causes(conn: &Connection, agent: AgentId, folded: u64) -> rusqlite::Result<Vec<u64>> {
    conn.prepare_cached(
        "SELECT c.cause FROM run r JOIN command c ON c.run = r.id \
         WHERE r.agent = ?1 AND c.cause > ?2 ORDER BY c.cause",
    )?
    .query_map(params![agent.as_bytes(), int(folded)], |row| row.get(0).map(natural))?
    .collect()
}

/// Only a running run has answers on their way: its end settles them.
fn answers(conn: &Connection, agent: AgentId) -> rusqlite::Result<Vec<(RequestId, AnswerRequest)>> {
    conn.prepare_cached(
        "SELECT m.request_id, m.answer FROM run r JOIN permission m ON m.run = r.id \
         WHERE r.agent = ?1 AND r.state = 'running' AND m.answer IS NOT NULL ORDER BY m.seq",
    )?
    .query_map([agent.as_bytes()], |row| {
        let answer: String = row.get(1)?;
        Ok((RequestId(row.get(0)?), from_json(&answer)?))
    })?
    .collect()
}
