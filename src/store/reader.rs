//! The pool of reading connections, and the small questions.
//!
//! A read finishes its statements before it returns: a reader that waits for a socket while a
//! statement is open would keep the write-ahead log from being folded in. Must not write.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::backup::known_version;
use super::error::{OpenError, ReadError};
use super::files::DATABASE;
use super::queue;
use super::rows::{
    AnsweredPermission, OpenRun, PendingPermission, PermissionState, ProjectRow, RUN_COLUMNS,
    RunSummary, SESSION_COLUMNS, SessionSnapshot, SessionView, frame_text, from_json, from_word,
    natural, project_row, run_summary, session_row,
};
use super::{READER_CACHE_KIB, connect, epoch, schema};
use crate::run::id::{
    AgentId, LogEpoch, Millis, NativeId, Ordinal, Position, RequestId, RunId, Seq, SessionId,
};

/// The reading end of the store: a few connections that any thread may use, one read at a time
/// each. Clones share them.
#[derive(Clone, Debug)]
pub struct Readers {
    idle: Receiver<Connection>,
    home: Sender<Connection>,
    epoch: LogEpoch,
}

/// Gives the connection back, also when a read panics.
struct Loan<'a> {
    conn: Option<Connection>,
    home: &'a Sender<Connection>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            // There is room for every connection, and this is one of them.
            drop(self.home.try_send(conn));
        }
    }
}

impl Readers {
    pub(super) fn open(path: &Path, count: usize, epoch: LogEpoch) -> rusqlite::Result<Self> {
        let (home, idle) = crossbeam_channel::bounded(count);
        for _ in 0..count {
            let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            conn.pragma_update(None, "query_only", true)?;
            conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
            conn.set_prepared_statement_cache_capacity(48);
            drop(home.try_send(conn));
        }
        Ok(Self { idle, home, epoch })
    }

    /// Reads a data directory that no server uses, and writes nothing there.
    ///
    /// # Errors
    /// If its database is none of ours, of another version of the schema, or cannot be read.
    pub fn offline(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(DATABASE);
        let sqlite = |source| OpenError::sqlite(&path, source);
        let conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
        let (found, known) = (known_version(&conn, &path)?, schema::MIGRATIONS.len());
        if usize::try_from(found).unwrap_or(0) < known {
            return Err(OpenError::Older { path, found });
        }
        let epoch = epoch(&conn).map_err(sqlite)?;
        let (home, idle) = crossbeam_channel::bounded(1);
        drop(home.try_send(conn));
        Ok(Self { idle, home, epoch })
    }

    /// Runs one read in one snapshot of the database. Waits while all connections are at work.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let conn = self.idle.recv().map_err(|_| ReadError::Sqlite {
            code: "ERROR",
            message: "the pool of readers is gone".into(),
        })?;
        let loan = Loan { conn: Some(conn), home: &self.home };
        let Some(conn) = loan.conn.as_ref() else {
            unreachable!("the loan has its connection until it is dropped")
        };
        let snapshot = conn.unchecked_transaction()?;
        let found = read(&snapshot)?;
        snapshot.finish()?;
        Ok(found)
    }

    /// The incarnation of the database.
    #[must_use]
    pub const fn epoch(&self) -> LogEpoch {
        self.epoch
    }

    /// A session with its newest run and what waits for an answer.
    ///
    /// # Errors
    /// As SQLite says; this holds for all reads here.
    pub fn session(&self, id: SessionId) -> Result<Option<SessionSnapshot>, ReadError> {
        self.read(|conn| {
            let Some(view) = view_of(conn, id)? else { return Ok(None) };
            let pending = pending(conn, Some(id))?;
            Ok(Some(SessionSnapshot { view, pending }))
        })
    }

    /// A session with its newest run.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn session_view(&self, id: SessionId) -> Result<Option<SessionView>, ReadError> {
        self.read(|conn| view_of(conn, id))
    }

    /// The session with this native id; of several providers' the one that changed last.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn session_by_native(&self, native: &NativeId) -> Result<Option<SessionId>, ReadError> {
        self.native("ORDER BY updated_ms DESC, id DESC LIMIT 1", native, None)
    }

    /// The session with this native id of this provider.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn session_by_provider_native(
        &self,
        provider: &str,
        native: &NativeId,
    ) -> Result<Option<SessionId>, ReadError> {
        self.native("AND provider = ?2", native, Some(provider))
    }

    fn native(
        &self,
        rest: &str,
        native: &NativeId,
        provider: Option<&str>,
    ) -> Result<Option<SessionId>, ReadError> {
        self.read(|conn| {
            let sql = format!("SELECT sid FROM session WHERE native_id = ?1 {rest}");
            let mut found = conn.prepare_cached(&sql)?;
            let id = |row: &rusqlite::Row<'_>| row.get(0).map(SessionId::from_bytes);
            let found = match provider {
                Some(provider) => found.query_row(params![native.0, provider], id),
                None => found.query_row(params![native.0], id),
            };
            Ok(found.optional()?)
        })
    }

    /// A run's row, also of one whose events are gone.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn run(&self, id: RunId) -> Result<Option<RunSummary>, ReadError> {
        self.read(|conn| {
            let sql = format!(
                "SELECT {RUN_COLUMNS} FROM run r JOIN session s ON s.id = r.session \
                 WHERE r.rid = ?1"
            );
            let mut found = conn.prepare_cached(&sql)?;
            Ok(found.query_row(params![id.as_bytes()], run_summary).optional()?)
        })
    }

    /// The run at a place in its session, also one whose events are gone.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn run_at(
        &self,
        session: SessionId,
        ordinal: Ordinal,
    ) -> Result<Option<RunSummary>, ReadError> {
        self.read(|conn| {
            let sql = format!(
                "SELECT {RUN_COLUMNS} FROM run r JOIN session s ON s.id = r.session \
                 WHERE s.sid = ?1 AND r.ordinal = ?2"
            );
            let mut found = conn.prepare_cached(&sql)?;
            Ok(found.query_row(params![session.as_bytes(), ordinal.0], run_summary).optional()?)
        })
    }

    /// All permission requests that wait for an answer, oldest first.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn pending_permissions(&self) -> Result<Vec<PendingPermission>, ReadError> {
        self.read(|conn| pending(conn, None))
    }

    /// How a permission request stands, open or not.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn permission(&self, request: &RequestId) -> Result<Option<AnsweredPermission>, ReadError> {
        self.read(|conn| {
            let sql = format!("{PERMISSIONS} WHERE m.request_id = ?1");
            let mut found = conn.prepare_cached(&sql)?;
            Ok(found.query_row(params![request.0], permission).optional()?)
        })
    }

    /// All projects, by path.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn projects(&self) -> Result<Vec<ProjectRow>, ReadError> {
        self.read(|conn| {
            let mut found = conn.prepare_cached(
                "SELECT id AS project_id, path, custom_name, starred FROM project ORDER BY path",
            )?;
            let found = found.query_map([], project_row)?;
            Ok(found.collect::<Result<_, _>>()?)
        })
    }

    /// All runs without a `complete`, with what recovery needs to go on with them, or to end
    /// them.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn open_runs(&self) -> Result<Vec<OpenRun>, ReadError> {
        self.read(|conn| Ok(open_runs(conn, None)?))
    }

    /// A session's run without a `complete`, if it has one.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn open_run(&self, session: SessionId) -> Result<Option<OpenRun>, ReadError> {
        self.read(|conn| Ok(open_runs(conn, Some(session))?.pop()))
    }
}

pub(super) fn open_runs(
    conn: &Connection,
    session: Option<SessionId>,
) -> rusqlite::Result<Vec<OpenRun>> {
    let of = of_session(session);
    // The plus keeps the order from choosing the index: few rows run, many have run.
    let sql = format!(
        "SELECT {RUN_COLUMNS}, r.id AS run_id, r.agent, r.record_offset \
         FROM run r JOIN session s ON s.id = r.session \
         WHERE r.state = 'running' AND {of} ORDER BY +r.id"
    );
    conn.prepare_cached(&sql)?
        .query_map(params![session.as_ref().map(SessionId::as_bytes)], |row| {
            let id: i64 = row.get("run_id")?;
            let offset: i64 = row.get("record_offset")?;
            Ok(OpenRun {
                run: run_summary(row)?,
                agent: AgentId::from_bytes(row.get("agent")?),
                offset: natural(offset),
                open_tools: open_tools(conn, id)?,
                permissions: unsettled(conn, id)?,
            })
        })?
        .collect()
}

pub(super) fn view_of(conn: &Connection, id: SessionId) -> Result<Option<SessionView>, ReadError> {
    let sql = format!(
        "SELECT {SESSION_COLUMNS} FROM session s JOIN project p ON p.id = s.project \
         WHERE s.sid = ?1"
    );
    let mut found = conn.prepare_cached(&sql)?;
    Ok(found.query_row(params![id.as_bytes()], |row| view(conn, row)).optional()?)
}

/// A session from `SESSION_COLUMNS`, with its newest run.
pub(super) fn view(conn: &Connection, row: &rusqlite::Row<'_>) -> rusqlite::Result<SessionView> {
    let id: i64 = row.get("session_id")?;
    let sql = format!(
        "SELECT {RUN_COLUMNS}, r.state = 'running' AND EXISTS (SELECT 1 FROM permission m \
         WHERE m.run = r.id AND m.state = 'open') AS waiting \
         FROM run r JOIN session s ON s.id = r.session \
         WHERE r.session = ?1 ORDER BY r.ordinal DESC LIMIT 1"
    );
    let last = conn
        .prepare_cached(&sql)?
        .query_row([id], |row| Ok((run_summary(row)?, row.get("waiting")?)))
        .optional()?;
    let (last_run, waiting) = last.map_or((None, false), |(run, waiting)| (Some(run), waiting));
    let (queued, queue_held) = queue::waiting(conn, id)?;
    Ok(SessionView {
        row: session_row(row)?,
        project: project_row(row)?,
        last_run,
        waiting,
        queued,
        queue_held,
    })
}

/// The condition that a run `r` is of this session, given as ?1; without one any run will do. A
/// statement of its own each, since an index can only serve the first.
const fn of_session(session: Option<SessionId>) -> &'static str {
    match session {
        Some(_) => "r.session = (SELECT id FROM session WHERE sid = ?1)",
        None => "?1 IS NULL",
    }
}

fn pending(
    conn: &Connection,
    session: Option<SessionId>,
) -> Result<Vec<PendingPermission>, ReadError> {
    let of = of_session(session);
    let sql = format!(
        "SELECT m.request_id, s.sid, r.rid, r.ordinal, m.seq, m.received_ms, e.body \
         FROM run r CROSS JOIN permission m ON m.run = r.id AND m.state = 'open' \
         JOIN session s ON s.id = r.session JOIN event e ON e.run = m.run AND e.seq = m.seq \
         WHERE r.state = 'running' AND {of} ORDER BY +m.run, m.seq"
    );
    let mut found = conn.prepare_cached(&sql)?;
    let found = found.query_map(params![session.as_ref().map(SessionId::as_bytes)], |row| {
        let seq: i64 = row.get("seq")?;
        Ok(PendingPermission {
            request: RequestId(row.get("request_id")?),
            session: SessionId::from_bytes(row.get("sid")?),
            run: RunId::from_bytes(row.get("rid")?),
            at: Position::new(Ordinal(row.get("ordinal")?), Seq(natural(seq))),
            text: frame_text(row.get("body")?)?,
            received_at: Millis(row.get("received_ms")?),
        })
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

const PERMISSIONS: &str = "SELECT m.request_id, s.sid, r.rid, r.ordinal, m.seq, m.received_ms, \
     m.state, m.decision, m.answered_by, e.body \
     FROM permission m JOIN run r ON r.id = m.run JOIN session s ON s.id = r.session \
     JOIN event e ON e.run = m.run AND e.seq = m.seq";

fn permission(row: &rusqlite::Row<'_>) -> rusqlite::Result<AnsweredPermission> {
    let state: String = row.get("state")?;
    let decision: Option<String> = row.get("decision")?;
    let by: Option<String> = row.get("answered_by")?;
    let seq: i64 = row.get("seq")?;
    Ok(AnsweredPermission {
        request: RequestId(row.get("request_id")?),
        run: RunId::from_bytes(row.get("rid")?),
        session: SessionId::from_bytes(row.get("sid")?),
        at: Position::new(Ordinal(row.get("ordinal")?), Seq(natural(seq))),
        text: frame_text(row.get("body")?)?,
        received_at: Millis(row.get("received_ms")?),
        // The table's own check allows no other word.
        state: PermissionState::parse(&state).unwrap_or(PermissionState::Cancelled),
        decision: decision.map(|word| from_word(&word)).transpose()?,
        by: by.map(|text| from_json(&text)).transpose()?,
    })
}

fn unsettled(conn: &Connection, run: i64) -> rusqlite::Result<Vec<AnsweredPermission>> {
    let sql = format!(
        "{PERMISSIONS} WHERE m.run = ?1 AND m.state IN ('open', 'answered') ORDER BY m.seq"
    );
    conn.prepare_cached(&sql)?.query_map([run], permission)?.collect()
}

fn open_tools(conn: &Connection, run: i64) -> rusqlite::Result<Vec<String>> {
    conn.prepare_cached("SELECT tool_id FROM open_tool WHERE run = ?1")?
        .query_map([run], |row| row.get(0))?
        .collect()
}
