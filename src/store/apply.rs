//! One batch as statements: frames become events, marks and changes become rows.
//!
//! Runs inside the writer's transaction; whatever it refuses, the transaction is given up as a
//! whole. Must not know when a transaction begins or ends.

use std::collections::BTreeMap;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use serde::Serialize;

use super::audit;
use super::hash::RunHash;
use super::queue;
use super::rows::{int, to_word};
use crate::run::change::{Batch, Change, Frame, Item, Mark, RunEnd, RunRow, SessionRow};
use crate::run::event::{AnswerState, By};
use crate::run::id::{AgentId, Millis, Ordinal, Position, RequestId, RunId, Seq, SessionId};
use crate::run::state::AnswerRequest;

/// Sessions whose row ids are remembered; above it the memory starts anew.
const KNOWN_MAX: usize = 4096;

/// Why a batch was not applied.
#[derive(Debug)]
pub(super) enum Refusal {
    /// SQLite said no.
    Sqlite(rusqlite::Error),
    /// It contradicts what is stored.
    Contradiction(String),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Row ids that are known without asking: each session's, and that of its newest run. Holds
/// only what was committed, or what the transaction in progress wrote: forget it on a rollback.
#[derive(Debug, Default)]
pub(super) struct Known {
    sessions: BTreeMap<SessionId, KnownSession>,
}

#[derive(Clone, Copy, Debug)]
struct KnownSession {
    row: i64,
    run: Option<(Ordinal, i64)>,
}

impl Known {
    pub(super) fn forget(&mut self) {
        self.sessions.clear();
    }
}

/// What a transaction changed in the whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    /// Events written.
    pub(super) events: u64,
    /// Bytes of heads, events and blobs: added less removed.
    pub(super) bytes: i64,
}

/// Applies one batch.
pub(super) fn apply(
    conn: &Connection,
    known: &mut Known,
    batch: &Batch,
    sum: &mut Sum,
) -> Result<(), Refusal> {
    if known.sessions.len() > KNOWN_MAX {
        known.forget();
    }
    // OR FAIL, like the guard's RAISE(FAIL): with ABORT, SQLite keeps an undo journal for each
    // single insert, which doubles what the guard costs. A failure gives up the transaction anyway.
    let insert = conn.prepare_cached(
        "INSERT OR FAIL INTO event (run, seq, complete, body) VALUES (?1, ?2, ?3, ?4)",
    )?;
    let mut step = Step { conn, known, insert, session: batch.session, sum, tail: None };
    for item in &batch.items {
        match item {
            Item::Frame(frame) => step.frame(frame)?,
            Item::Change(change) => step.change(change)?,
        }
    }
    step.flush()
}

/// A batch on its way into the tables.
struct Step<'a> {
    conn: &'a Connection,
    known: &'a mut Known,
    insert: CachedStatement<'a>,
    session: SessionId,
    sum: &'a mut Sum,
    tail: Option<Tail>,
}

/// What a run's row is still to learn of the events written: one update per run and batch.
struct Tail {
    run: i64,
    ordinal: Ordinal,
    last_seq: Seq,
    offset: u64,
    bytes: i64,
    /// Of all that the run has with it; `None` for a run of before version 3, which has none.
    hash: Option<RunHash>,
}

impl Step<'_> {
    fn frame(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let run = self.tail_of(frame.at)?;
        let seq = frame.at.seq;
        let mut bytes = 0;
        // Seq 0 is the head; it came with the run's row, and so did its hash.
        if seq > Seq(0) {
            self.hash(frame.text.as_bytes());
            let end = matches!(frame.mark.as_deref(), Some(Mark::Complete(_)));
            self.insert.execute(params![run, int(seq.0), end, frame.text.as_bytes()])?;
            bytes += length(frame.text.as_bytes());
            self.sum.events += 1;
        }
        if let Some(whole) = &frame.whole {
            self.hash(&whole.json);
            self.conn
                .prepare_cached("INSERT INTO blob (run, seq, json) VALUES (?1, ?2, ?3)")?
                .execute(params![run, int(seq.0), whole.json])?;
            bytes += length(&whole.json);
        }
        if let Some(tail) = &mut self.tail {
            tail.last_seq = seq;
            tail.offset = tail.offset.max(frame.offset);
            tail.bytes += bytes;
        }
        self.sum.bytes += bytes;
        match frame.mark.as_deref() {
            Some(mark) => self.mark(run, frame.at, mark),
            None => Ok(()),
        }
    }

    /// The next bytes of the run whose tail is begun.
    fn hash(&mut self, bytes: &[u8]) {
        if let Some(hash) = self.tail.as_mut().and_then(|tail| tail.hash.as_mut()) {
            hash.add(bytes);
        }
    }

    /// The row id of the run that holds `at`, with its tail begun.
    fn tail_of(&mut self, at: Position) -> Result<i64, Refusal> {
        if let Some(tail) = &self.tail {
            if tail.ordinal == at.ordinal {
                return Ok(tail.run);
            }
            self.flush()?;
        }
        let run = self.run_at(at.ordinal)?;
        let hash: Option<[u8; 32]> = self
            .conn
            .prepare_cached("SELECT hash FROM run WHERE id = ?1")?
            .query_row([run], |row| row.get(0))?;
        let hash = hash.map(RunHash::from_bytes);
        let tail = Tail { run, ordinal: at.ordinal, last_seq: Seq(0), offset: 0, bytes: 0, hash };
        self.tail = Some(tail);
        Ok(run)
    }

    /// Writes what the run's row is to learn. Needed before anything else reads that row.
    fn flush(&mut self) -> Result<(), Refusal> {
        let Some(tail) = self.tail.take() else { return Ok(()) };
        let hash = tail.hash.map(|hash| hash.bytes());
        // The guard `run_tail` asks for a rise, so a tail of a head alone is none.
        if tail.last_seq > Seq(0) {
            let (seq, offset) = (int(tail.last_seq.0), int(tail.offset));
            self.conn
                .prepare_cached(
                    "UPDATE run SET last_seq = ?2, record_offset = max(record_offset, ?3), \
                     bytes = bytes + ?4, hash = ?5 WHERE id = ?1",
                )?
                .execute(params![tail.run, seq, offset, tail.bytes, hash])?;
        } else if tail.bytes > 0 || tail.offset > 0 {
            self.conn
                .prepare_cached(
                    "UPDATE run SET record_offset = max(record_offset, ?2), \
                     bytes = bytes + ?3, hash = ?4 WHERE id = ?1",
                )?
                .execute(params![tail.run, int(tail.offset), tail.bytes, hash])?;
        }
        Ok(())
    }

    fn mark(&mut self, run: i64, at: Position, mark: &Mark) -> Result<(), Refusal> {
        match mark {
            // A second `tool_use` of the same id refines the first.
            Mark::ToolOpened(tool) => self.run_sql(
                "INSERT INTO open_tool (run, tool_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                params![run, tool],
            ),
            Mark::ToolClosed(tool) => self.run_sql(
                "DELETE FROM open_tool WHERE run = ?1 AND tool_id = ?2",
                params![run, tool],
            ),
            // An agent may ask again under an id that it used before; the guard
            // `permission_once` says when.
            Mark::PermissionOpened { request, received_at } => self.run_sql(
                "INSERT INTO permission (request_id, run, seq, received_ms) \
                 VALUES (?1, ?2, ?3, ?4) ON CONFLICT (request_id) DO UPDATE SET \
                 run = excluded.run, seq = excluded.seq, received_ms = excluded.received_ms, \
                 state = 'open', decision = NULL, answered_by = NULL, answer = NULL",
                params![request.0, run, int(at.seq.0), received_at.0],
            ),
            Mark::PermissionAnswered { request, decision, state, by, answer } => {
                self.answer(run, request, &to_word(decision), *state, by, answer.as_deref())
            }
            Mark::PermissionCancelled(request) => self.run_one(
                "UPDATE permission SET state = 'cancelled', answer = NULL \
                 WHERE request_id = ?1 AND run = ?2",
                params![request.0, run],
                || format!("no permission request {}", request.0),
            ),
            Mark::Complete(end) => self.complete(run, end),
        }
    }

    fn answer(
        &self,
        run: i64,
        request: &RequestId,
        decision: &str,
        state: AnswerState,
        by: &By,
        answer: Option<&AnswerRequest>,
    ) -> Result<(), Refusal> {
        let word = match state {
            AnswerState::Recorded => "answered",
            AnswerState::Delivered => "delivered",
            AnswerState::Undeliverable => "undeliverable",
        };
        self.run_one(
            "UPDATE permission SET state = ?2, decision = ?3, answered_by = ?4, answer = ?6 \
             WHERE request_id = ?1 AND run = ?5",
            params![request.0, word, decision, json(by), run, answer.map(json)],
            || format!("no permission request {}", request.0),
        )?;
        let of = (self.session, run);
        let told = match state {
            AnswerState::Recorded => {
                audit::answered(self.conn, of, request, (decision, answer), by)
            }
            AnswerState::Delivered => audit::delivered(self.conn, of, request, true, by),
            AnswerState::Undeliverable => audit::delivered(self.conn, of, request, false, by),
        };
        Ok(told?)
    }

    fn complete(&mut self, run: i64, end: &RunEnd) -> Result<(), Refusal> {
        self.flush()?;
        let complete = &end.complete;
        self.run_sql(
            "UPDATE run SET state = 'completed', ended_ms = ?2, exit_code = ?3, success = ?4, \
             aborted = ?5, reason = ?6 WHERE id = ?1",
            params![
                run,
                end.at.0,
                complete.exit_code,
                complete.success,
                complete.aborted,
                to_word(complete.reason)
            ],
        )?;
        if complete.aborted {
            queue::hold(self.conn, self.session()?.row, true)?;
        }
        Ok(())
    }

    fn change(&mut self, change: &Change) -> Result<(), Refusal> {
        self.flush()?;
        match change {
            Change::Nothing => Ok(()),
            Change::SessionCreated(row) => self.create_session(row),
            Change::SessionEdited { title, archived, at } => {
                self.edit_session(title.as_deref(), *archived, *at)
            }
            Change::SessionDeleted => self.delete_session(),
            Change::NativeIdLearned { native_id, at } => {
                let session = self.session()?.row;
                self.run_sql(
                    "UPDATE session SET native_id = ?2, updated_ms = ?3 \
                     WHERE id = ?1",
                    params![session, native_id.0, at.0],
                )
            }
            Change::RunStarted(row) => self.start_run(row),
            Change::Queued(queued) => Ok(queue::add(self.conn, self.session()?.row, queued)?),
            Change::QueueRemoved { id, at } => {
                let session = self.session()?.row;
                match queue::remove(self.conn, session, *id, *at)? {
                    true => Ok(()),
                    false => contradiction(format!("no prompt {id} waits")),
                }
            }
            Change::QueueResumed { .. } => Ok(queue::hold(self.conn, self.session()?.row, false)?),
            // Offsets are those of its journal from now on. One that has its end is taken by nobody.
            Change::RunAdopted { run, agent } => {
                let row = self.run_of(*run)?;
                self.run_sql(
                    "UPDATE run SET agent = ?2, record_offset = 0 \
                     WHERE id = ?1 AND state = 'running'",
                    params![row, agent.as_bytes()],
                )
            }
            // The first to ask is the one that is remembered; after the end nobody is.
            Change::AbortAsked { run, by, at } => {
                let row = self.run_of(*run)?;
                self.run_sql(
                    "UPDATE run SET abort_asked_ms = ?2, abort_by = ?3 \
                     WHERE id = ?1 AND abort_asked_ms IS NULL AND state = 'running'",
                    params![row, at.0, json(by)],
                )?;
                Ok(audit::abort_asked(self.conn, (self.session, row), by)?)
            }
            Change::CommandRecorded { run, n, body, cause, request, at } => {
                let row = self.run_of(*run)?;
                self.record_command(row, *n, body, *cause, request.as_ref(), *at)
            }
            Change::CommandDelivered { run, n, at } => {
                let row = self.run_of(*run)?;
                // A run that has ended may be retired before its last delivery is told.
                if self.is_pruned(row)? {
                    return Ok(());
                }
                self.run_one(
                    "UPDATE command SET delivered_ms = ifnull(delivered_ms, ?3) \
                     WHERE run = ?1 AND n = ?2",
                    params![row, int(*n), at.0],
                    || format!("no command {n} of run {run}"),
                )
            }
            Change::Checkpoint { agent, offset, state, at } => {
                self.checkpoint(*agent, *offset, state, *at)
            }
            Change::AgentEnded { agent, .. } => {
                self.run_sql("DELETE FROM checkpoint WHERE agent = ?1", params![agent.as_bytes()])
            }
            Change::Audit { run, what, detail, at, by } => {
                let (session, by) = (Some(self.session), by.as_ref());
                let new = audit::New { at: *at, session, run: *run, what, detail, by };
                Ok(audit::insert(self.conn, &new)?)
            }
        }
    }

    fn record_command(
        &self,
        run: i64,
        n: u64,
        body: &[u8],
        cause: u64,
        request: Option<&RequestId>,
        at: Millis,
    ) -> Result<(), Refusal> {
        self.run_sql(
            "INSERT INTO command (run, n, body, recorded_ms, cause, request_id) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![run, int(n), body, at.0, int(cause), request.map(|id| &id.0)],
        )?;
        let Some(request) = request else { return Ok(()) };
        // From here on the command carries the answer: a restart must not make another of it.
        self.run_sql(
            "UPDATE permission SET answer = NULL WHERE request_id = ?1 AND run = ?2",
            params![request.0, run],
        )
    }

    fn checkpoint(
        &mut self,
        agent: AgentId,
        offset: u64,
        state: &[u8],
        at: Millis,
    ) -> Result<(), Refusal> {
        let session = self.session()?.row;
        self.run_sql(
            "INSERT INTO checkpoint (agent, session, record_offset, state, at_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (agent) DO UPDATE SET \
             session = excluded.session, record_offset = excluded.record_offset, \
             state = excluded.state, at_ms = excluded.at_ms",
            params![agent.as_bytes(), session, int(offset), state, at.0],
        )
    }

    fn create_session(&mut self, row: &SessionRow) -> Result<(), Refusal> {
        if row.id != self.session {
            return contradiction(format!("a row of session {} in another's batch", row.id));
        }
        self.run_sql(
            "INSERT INTO project (path) VALUES (?1) ON CONFLICT (path) DO NOTHING",
            params![row.project_path],
        )?;
        self.run_sql(
            "INSERT INTO session (sid, project, provider, native_id, title, archived, \
             created_ms, updated_ms) VALUES (?1, (SELECT id FROM project WHERE path = ?2), ?3, \
             ?4, ?5, ?6, ?7, ?8)",
            params![
                row.id.as_bytes(),
                row.project_path,
                row.provider,
                row.native_id.as_ref().map(|id| &id.0),
                row.title,
                row.archived,
                row.created_at.0,
                row.updated_at.0
            ],
        )?;
        let known = KnownSession { row: self.conn.last_insert_rowid(), run: None };
        self.known.sessions.insert(row.id, known);
        Ok(())
    }

    fn edit_session(
        &mut self,
        title: Option<&str>,
        archived: Option<bool>,
        at: Millis,
    ) -> Result<(), Refusal> {
        let session = self.session()?.row;
        self.run_sql(
            "UPDATE session SET title = ifnull(?2, title), archived = ifnull(?3, archived), \
             updated_ms = ?4 WHERE id = ?1",
            params![session, title, archived, at.0],
        )
    }

    /// Short whatever the session's size: its events go to the garbage, and from there in
    /// slices.
    fn delete_session(&mut self) -> Result<(), Refusal> {
        let session = self.session()?.row;
        let bytes: i64 = self
            .conn
            .prepare_cached(
                "SELECT ifnull(sum(bytes), 0) FROM run WHERE session = ?1 AND pruned_ms IS NULL",
            )?
            .query_row(params![session], |row| row.get(0))?;
        self.sum.bytes -= bytes;
        for sql in [
            "INSERT INTO garbage SELECT id FROM run WHERE session = ?1 ON CONFLICT DO NOTHING",
            "DELETE FROM open_tool WHERE run IN (SELECT id FROM run WHERE session = ?1)",
            "DELETE FROM permission WHERE run IN (SELECT id FROM run WHERE session = ?1)",
            "DELETE FROM command WHERE run IN (SELECT id FROM run WHERE session = ?1)",
            "DELETE FROM head WHERE run IN (SELECT id FROM run WHERE session = ?1)",
            "DELETE FROM checkpoint WHERE session = ?1",
            "DELETE FROM queued WHERE session = ?1",
            "DELETE FROM run WHERE session = ?1",
            "DELETE FROM session WHERE id = ?1",
        ] {
            self.run_sql(sql, params![session])?;
        }
        self.known.sessions.remove(&self.session);
        Ok(())
    }

    fn start_run(&mut self, row: &RunRow) -> Result<(), Refusal> {
        let session = self.session()?.row;
        match row.queued {
            Some(id) if !queue::start(self.conn, session, id)? => {
                return contradiction(format!("no prompt {id} waits"));
            }
            None if row.origin == "user" => queue::hold(self.conn, session, false)?,
            _ => {}
        }
        let bytes = length(row.head.as_bytes());
        let mut hash = RunHash::default();
        hash.add(row.head.as_bytes());
        self.run_sql(
            "INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, \
             client_message_id, started_ms, bytes, hash) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                row.id.as_bytes(),
                session,
                row.at.ordinal.0,
                row.agent.as_bytes(),
                row.origin,
                row.prompt_hash,
                row.client_message_id.as_ref().map(|id| &id.0),
                row.started_at.0,
                bytes,
                hash.bytes()
            ],
        )?;
        let run = self.conn.last_insert_rowid();
        self.run_sql(
            "INSERT INTO head (run, body) VALUES (?1, ?2)",
            params![run, row.head.as_bytes()],
        )?;
        self.run_sql(
            "UPDATE session SET title = ifnull(title, ?2), updated_ms = ?3 WHERE id = ?1",
            params![session, row.title, row.started_at.0],
        )?;
        self.sum.bytes += bytes;
        let known = KnownSession { row: session, run: Some((row.at.ordinal, run)) };
        self.known.sessions.insert(self.session, known);
        Ok(())
    }

    fn session(&mut self) -> Result<KnownSession, Refusal> {
        if let Some(known) = self.known.sessions.get(&self.session) {
            return Ok(*known);
        }
        let row = self
            .conn
            .prepare_cached("SELECT id FROM session WHERE sid = ?1")?
            .query_row(params![self.session.as_bytes()], |row| row.get(0))
            .optional()?;
        let Some(row) = row else {
            return contradiction("the session is not stored");
        };
        let known = KnownSession { row, run: None };
        self.known.sessions.insert(self.session, known);
        Ok(known)
    }

    fn run_at(&mut self, ordinal: Ordinal) -> Result<i64, Refusal> {
        let session = self.session()?;
        if let Some((_, run)) = session.run.filter(|(known, _)| *known == ordinal) {
            return Ok(run);
        }
        let run = self
            .conn
            .prepare_cached("SELECT id FROM run WHERE session = ?1 AND ordinal = ?2")?
            .query_row(params![session.row, ordinal.0], |row| row.get(0))
            .optional()?;
        let Some(run) = run else {
            return contradiction(format!("run {} of the session is not stored", ordinal.0));
        };
        let known = KnownSession { run: Some((ordinal, run)), ..session };
        self.known.sessions.insert(self.session, known);
        Ok(run)
    }

    fn run_of(&mut self, run: RunId) -> Result<i64, Refusal> {
        let session = self.session()?.row;
        let row = self
            .conn
            .prepare_cached("SELECT id FROM run WHERE rid = ?1 AND session = ?2")?
            .query_row(params![run.as_bytes(), session], |row| row.get(0))
            .optional()?;
        row.map_or_else(|| contradiction(format!("run {run} is not stored")), Ok)
    }

    fn is_pruned(&self, run: i64) -> Result<bool, Refusal> {
        let mut pruned =
            self.conn.prepare_cached("SELECT pruned_ms IS NOT NULL FROM run WHERE id = ?1")?;
        Ok(pruned.query_row([run], |row| row.get(0))?)
    }

    fn run_sql(&self, sql: &str, params: impl rusqlite::Params) -> Result<(), Refusal> {
        self.conn.prepare_cached(sql)?.execute(params)?;
        Ok(())
    }

    /// Like `run_sql`, where a row has to be found.
    fn run_one(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        missing: impl FnOnce() -> String,
    ) -> Result<(), Refusal> {
        match self.conn.prepare_cached(sql)?.execute(params)? {
            0 => contradiction(missing()),
            _ => Ok(()),
        }
    }
}

fn contradiction<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Contradiction(what.into()))
}

fn length(bytes: &[u8]) -> i64 {
    int(bytes.len() as u64)
}

/// For values of ours whose fields are words, names and JSON.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("names and words are always JSON")
}
