//! What can be told of a database without having it: for whoever examines an installation, beside
//! a server that runs or without one.
//!
//! Reads only, and never longer than it is given. Must not repair or migrate anything.

use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::ReadError;
use super::{connect, schema};
use crate::run::id::Millis;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The version of its tables.
    pub schema: u32,
    /// The version that this program makes.
    pub schema_of_program: u32,
    /// Whether it is a database of ours at all; if not, nothing below counts.
    pub ours: bool,
    /// How many sessions, if its tables are such that this can be told.
    pub sessions: Option<u64>,
    /// How many runs.
    pub runs: Option<u64>,
    /// When a session was last changed.
    pub last_change: Option<Millis>,
    /// What SQLite's own check says.
    pub check: Check,
}

/// What SQLite's own check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Every page is as it should be.
    Sound,
    /// The first damage.
    Damaged(String),
    /// The time was over before all of it was seen; nothing was found until then.
    Unfinished,
}

/// Examines the database at `path` for about `span` at most. Another process may have it open.
///
/// # Errors
/// If it cannot be read at all.
pub fn survey(path: &Path, span: Duration) -> Result<Survey, ReadError> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let schema = schema::version(&conn)?;
    let id: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    // One without tables is ours as well: a server was killed as it began.
    let ours = id == schema::APPLICATION_ID || (schema == 0 && tables == 0);
    let count = |sql: &str| {
        let count: rusqlite::Result<i64> = conn.query_row(sql, [], |row| row.get(0));
        count.ok().and_then(|count| u64::try_from(count).ok())
    };
    let last: Option<i64> =
        conn.query_row("SELECT max(updated_ms) FROM session", [], |row| row.get(0)).ok().flatten();
    Ok(Survey {
        schema,
        schema_of_program: u32::try_from(schema::MIGRATIONS.len()).unwrap_or(u32::MAX),
        ours,
        sessions: count("SELECT count(*) FROM session"),
        runs: count("SELECT count(*) FROM run"),
        last_change: last.map(Millis),
        check: if ours { quick_check(&conn, span)? } else { Check::Unfinished },
    })
}

fn quick_check(conn: &Connection, span: Duration) -> Result<Check, ReadError> {
    let handle = conn.get_interrupt_handle();
    let (done, wait) = bounded::<()>(0);
    let asked = std::thread::scope(|scope| {
        let timer = std::thread::Builder::new().name("survey".into());
        let timer = timer.spawn_scoped(scope, move || {
            if wait.recv_timeout(span) == Err(RecvTimeoutError::Timeout) {
                handle.interrupt();
            }
        });
        // Without a thread to end it, it is not begun.
        if timer.is_err() {
            return Ok(None);
        }
        let asked = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        drop(done);
        asked.map(Some)
    });
    match asked {
        Ok(Some(word)) if word == "ok" => Ok(Check::Sound),
        Ok(Some(damage)) => Ok(Check::Damaged(damage)),
        Ok(None) => Ok(Check::Unfinished),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            Ok(Check::Unfinished)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DATABASE, OpenOptions, Store};

    #[test]
    fn a_store_is_surveyed_while_it_is_open_and_after() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE);
        survey(&path, Duration::from_secs(5)).expect_err("there is none");
        assert!(!path.exists(), "looking makes nothing");
        let (writer, readers) = Store::open(dir.path(), &OpenOptions::default()).expect("opened");
        let look = || survey(&path, Duration::from_secs(60)).expect("it can be read");
        let seen = look();
        assert_eq!((seen.sessions, seen.runs, seen.last_change), (Some(0), Some(0), None));
        assert!(seen.ours && seen.schema == seen.schema_of_program, "{seen:?}");
        assert_eq!(seen.check, Check::Sound);
        drop((writer, readers));
        assert_eq!(look().check, Check::Sound, "also after a life without an end");
        let late = survey(&path, Duration::ZERO).expect("it can be read").check;
        assert!(matches!(late, Check::Unfinished | Check::Sound), "{late:?}");
    }

    #[test]
    fn what_is_no_store_is_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE);
        std::fs::write(&path, "no database at all, but long enough to be read as one".repeat(99))
            .expect("writable");
        survey(&path, Duration::from_secs(5)).expect_err("SQLite says so");
        std::fs::write(&path, "").expect("writable");
        let begun = survey(&path, Duration::from_secs(60)).expect("it can be read");
        assert_eq!((begun.ours, begun.schema, begun.sessions), (true, 0, None));
        std::fs::remove_file(&path).expect("it is there");
        let other = Connection::open(&path).expect("a database");
        other.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").expect("a table");
        assert!(!survey(&path, Duration::from_secs(5)).expect("it can be read").ours);
    }
}
