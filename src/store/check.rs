//! Is what is on disk a log as the invariants want it? Read-only, for tests and operators.
//!
//! Must not repair anything.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::error::ReadError;
use super::{connect, schema};
use crate::run::id::{RunId, SessionId};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The invariant that is broken (`I1`, `I2`, ...), or `SQLITE` for damage.
    pub invariant: &'static str,
    /// The session concerned, if one is.
    pub session: Option<SessionId>,
    /// The run concerned, if one is.
    pub run: Option<RunId>,
    /// What was found, in words.
    pub what: String,
}

impl Finding {
    /// One of no session.
    pub(super) const fn of(invariant: &'static str, what: String) -> Self {
        Self { invariant, session: None, run: None, what }
    }
}

/// Questions whose every row is a finding: invariant, then SQL with sid, rid, text.
const QUESTIONS: &[(&str, &str)] = &[
    (
        "I2",
        "SELECT s.sid, r.rid, printf('%d events, seqs %d to %d, last_seq %d', \
           count(e.seq), min(e.seq), max(e.seq), r.last_seq) \
         FROM run r JOIN session s ON s.id = r.session LEFT JOIN event e ON e.run = r.id \
         WHERE r.pruned_ms IS NULL GROUP BY r.id \
         HAVING count(e.seq) <> r.last_seq OR ifnull(min(e.seq), 1) <> 1 \
           OR ifnull(max(e.seq), 0) <> r.last_seq",
    ),
    (
        "I1",
        "SELECT s.sid, r.rid, printf('%s with %d complete', r.state, count(e.seq)) \
         FROM run r JOIN session s ON s.id = r.session \
         LEFT JOIN event e ON e.run = r.id AND e.complete = 1 \
         WHERE r.pruned_ms IS NULL GROUP BY r.id \
         HAVING count(e.seq) <> (r.state = 'completed')",
    ),
    (
        "I3",
        "SELECT s.sid, r.rid, printf('complete at %d, last_seq %d', e.seq, r.last_seq) \
         FROM event e JOIN run r ON r.id = e.run JOIN session s ON s.id = r.session \
         WHERE e.complete = 1 AND r.pruned_ms IS NULL AND e.seq <> r.last_seq",
    ),
    (
        "I5",
        "SELECT s.sid, r.rid, 'a running run that is not the newest of its session' \
         FROM run r JOIN session s ON s.id = r.session WHERE r.state = 'running' AND EXISTS \
           (SELECT 1 FROM run n WHERE n.session = r.session AND n.ordinal > r.ordinal)",
    ),
    (
        "I6",
        "SELECT s.sid, NULL, printf('%d runs, ordinals up to %d', count(*), max(r.ordinal)) \
         FROM run r JOIN session s ON s.id = r.session GROUP BY r.session \
         HAVING count(*) <> max(r.ordinal)",
    ),
    (
        "I8",
        "SELECT s.sid, r.rid, 'no head' FROM run r JOIN session s ON s.id = r.session \
         WHERE r.pruned_ms IS NULL AND NOT EXISTS (SELECT 1 FROM head WHERE run = r.id)",
    ),
    (
        "I8",
        "SELECT s.sid, r.rid, printf('%d bytes by its row, %d by its frames', r.bytes, x.n) \
         FROM run r JOIN session s ON s.id = r.session JOIN (SELECT run, sum(n) AS n FROM ( \
             SELECT run, length(body) AS n FROM head UNION ALL \
             SELECT run, length(body) FROM event UNION ALL \
             SELECT run, length(json) FROM blob) GROUP BY run) x ON x.run = r.id \
         WHERE r.pruned_ms IS NULL AND r.bytes <> x.n",
    ),
    (
        "I8",
        "SELECT NULL, NULL, printf('events of run row %d belong to no run', e.run) \
         FROM (SELECT DISTINCT run FROM event UNION SELECT DISTINCT run FROM blob) e \
         WHERE NOT EXISTS (SELECT 1 FROM garbage g WHERE g.run = e.run) AND NOT EXISTS \
           (SELECT 1 FROM run r WHERE r.id = e.run AND r.pruned_ms IS NULL)",
    ),
    (
        "I20",
        "SELECT s.sid, r.rid, printf('permission %s is %s after the end', m.request_id, m.state) \
         FROM permission m JOIN run r ON r.id = m.run JOIN session s ON s.id = r.session \
         WHERE r.state = 'completed' AND m.state IN ('open', 'answered')",
    ),
    (
        "I20",
        "SELECT s.sid, r.rid, printf('permission %s has no event', m.request_id) \
         FROM permission m JOIN run r ON r.id = m.run JOIN session s ON s.id = r.session \
         WHERE NOT EXISTS (SELECT 1 FROM event e WHERE e.run = m.run AND e.seq = m.seq)",
    ),
    (
        "I1",
        "SELECT s.sid, r.rid, printf('tool call %s is open after the end', t.tool_id) \
         FROM open_tool t JOIN run r ON r.id = t.run JOIN session s ON s.id = r.session \
         WHERE r.state = 'completed'",
    ),
];

/// What version 2 of the schema added.
const QUESTIONS_2: &[(&str, &str)] = &[
    (
        "I20",
        "SELECT s.sid, max(r.rid), printf('%d commands of an agent have number %d', count(*), c.n) \
         FROM command c JOIN run r ON r.id = c.run JOIN session s ON s.id = r.session \
         GROUP BY r.agent, c.n HAVING count(*) > 1",
    ),
    (
        "I6",
        "SELECT s.sid, NULL, printf('a checkpoint at %d of an agent without a run', \
           k.record_offset) \
         FROM checkpoint k JOIN session s ON s.id = k.session WHERE NOT EXISTS \
           (SELECT 1 FROM run r WHERE r.agent = k.agent AND r.session = k.session)",
    ),
];

/// What version 3 added.
const QUESTIONS_3: &[(&str, &str)] = &[(
    "I19",
    "SELECT s.sid, r.rid, 'the prompt of this run still waits in the queue' \
     FROM queued q JOIN run r ON r.session = q.session \
       AND r.client_message_id = q.client_message_id \
     JOIN session s ON s.id = q.session WHERE q.state = 'waiting'",
)];

/// Examines the database at `path`, which another process may have open. Runs in slices of
/// nothing: it takes as long as the database is large.
///
/// # Errors
/// If it cannot be read at all; damage that can be read is a finding.
pub fn check(path: &Path) -> Result<Vec<Finding>, ReadError> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.pragma_update(None, "query_only", true)?;
    let mut findings = damage(&conn)?;
    let snapshot = conn.unchecked_transaction()?;
    ask(&snapshot, schema::version(&snapshot)?, &mut |finding| findings.push(finding))?;
    Ok(findings)
}

/// Asks a database of this version of the schema all questions that it has tables for.
pub(super) fn ask(
    conn: &Connection,
    version: u32,
    found: &mut dyn FnMut(Finding),
) -> Result<(), ReadError> {
    for (_, questions) in
        [(1, QUESTIONS), (2, QUESTIONS_2), (3, QUESTIONS_3)].iter().filter(|(v, _)| *v <= version)
    {
        for (invariant, sql) in *questions {
            let mut asked = conn.prepare(sql)?;
            let rows = asked.query_map([], |row| {
                Ok(Finding {
                    invariant,
                    session: row.get::<_, Option<[u8; 16]>>(0)?.map(SessionId::from_bytes),
                    run: row.get::<_, Option<[u8; 16]>>(1)?.map(RunId::from_bytes),
                    what: row.get(2)?,
                })
            })?;
            for finding in rows {
                found(finding?);
            }
        }
    }
    Ok(())
}

/// What SQLite itself finds.
pub(super) fn damage(conn: &Connection) -> Result<Vec<Finding>, ReadError> {
    let mut asked = conn.prepare("PRAGMA integrity_check(100)")?;
    let mut findings = Vec::new();
    for line in asked.query_map([], |row| row.get::<_, String>(0))? {
        let what = line?;
        if what != "ok" {
            findings.push(Finding::of("SQLITE", what));
        }
    }
    Ok(findings)
}
