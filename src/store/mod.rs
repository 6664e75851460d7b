//! The durable log: what was appended, on disk, with guards that stand in SQL.
//!
//! One `Writer` commits batches and is owned by one thread; `Readers` is a pool that any thread
//! may read through. Both are plain values: no thread is started here. Must not know sockets,
//! providers, or how a frame is encoded.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use crate::limits;
use crate::run::id::LogEpoch;

mod agents;
mod apply;
mod archive;
mod audit;
mod backup;
mod check;
mod counts;
mod credentials;
mod error;
mod files;
mod frames;
mod hash;
mod listing;
mod notifications;
mod pages;
mod queue;
mod reader;
mod restore;
mod retention;
mod rows;
mod schema;
mod server_change;
mod survey;
mod uploads;
mod verify;
mod writer;

pub use archive::{Amounts, MANIFEST, Manifest, Member};
pub use audit::{AuditFilter, AuditRow};
pub use backup::{BackupError, Written, to_file, to_stream};
pub use check::{Finding, check};
pub use counts::Counts;
pub use error::{CommitError, OpenError, ReadError};
pub use files::{BALLAST, DATABASE, LOCK};
pub use frames::{Gone, Place, Read, Stored};
pub use listing::{Listed, RunFilter, SessionFilter};
pub use notifications::StoredNotification;
pub use pages::{EventsPage, PageLimit};
pub use queue::KnownMessage;
pub use reader::Readers;
pub use restore::{
    Place as RestorePlace, RestoreError, RestoreOptions, Restored, is_database, verify_backup,
};
pub use retention::{Keep, Leaving, Plan, Retained, Why, plan as plan_retention};
pub use rows::{
    Abort, AnsweredPermission, OpenRun, PendingPermission, PermissionState, ProjectRow, RunStatus,
    RunSummary, SessionSnapshot, SessionView, StoredAgent, StoredCommand,
};
pub use survey::{Check, Survey, survey};
pub use uploads::{Incoming, KeepError, UPLOADS, Upload, Uploads};
pub use verify::{Report, verify, verify_uploads};
pub use writer::{Committed, Writer};

/// How long one connection waits for another's lock. Tools for backups need it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Large pages: long bodies then need few of them.
const PAGE_BYTES: u32 = 8192;
/// What is kept of the write-ahead log's file between checkpoints.
const WAL_BYTES_KEPT: u32 = 64 << 20;
/// Page cache of the writer and of each reader, in KiB.
const WRITER_CACHE_KIB: i32 = 4096;
const READER_CACHE_KIB: i32 = 1024;

/// How to open the store.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The database may not have more pages than this: how tests fill a disk. The ballast
    /// counts as pages that can be set free.
    pub max_page_count: Option<u32>,
    /// Size of the ballast in bytes; 0 makes none.
    pub ballast_bytes: u64,
    /// Connections for reading, at least one.
    pub readers: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            max_page_count: None,
            ballast_bytes: limits::BALLAST_BYTES,
            readers: limits::READERS,
        }
    }
}

/// Where a data directory's store begins.
#[derive(Debug)]
pub struct Store;

impl Store {
    /// Locks `dir` (made if missing), opens its database (made if missing, brought up to this
    /// version if older, examined if the last stop was not an orderly one).
    ///
    /// # Errors
    /// Each with the path and what to do; nothing is moved or deleted.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<(Writer, Readers), OpenError> {
        let files = files::DataDir::open(dir, options.ballast_bytes)?;
        let path = files.database()?;
        let conn = match open_writable(&path, options) {
            // The ballast is there for exactly this; without room not even a start is possible.
            Err(OpenError::Sqlite { code: "FULL", .. }) if files.drop_ballast() => {
                open_writable(&path, options)
            }
            other => other,
        }?;
        let epoch = epoch(&conn).map_err(|source| OpenError::sqlite(&path, source))?;
        let readers = Readers::open(&path, options.readers.max(1), epoch)
            .map_err(|source| OpenError::sqlite(&path, source))?;
        let writer = Writer::new(conn, files, options.max_page_count)
            .map_err(|source| OpenError::sqlite(&path, source))?;
        Ok((writer, readers))
    }
}

fn open_writable(path: &Path, options: &OpenOptions) -> Result<Connection, OpenError> {
    let sqlite = |source| OpenError::sqlite(path, source);
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    let version = schema::version(&conn).map_err(sqlite)?;
    refuse_foreign(&conn, path, version)?;
    configure_writer(&conn, options).map_err(sqlite)?;
    if version > 0 && !was_closed(&conn).map_err(sqlite)? {
        quick_check(&conn, path)?;
    }
    schema::migrate(&mut conn, path, schema::MIGRATIONS)?;
    begin_life(&conn).map_err(sqlite)?;
    Ok(conn)
}

/// A connection with what all connections have in common.
fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    Ok(conn)
}

/// The order counts: page size and vacuum mode only take effect before the first table, and
/// before the change to WAL.
fn configure_writer(conn: &Connection, options: &OpenOptions) -> rusqlite::Result<()> {
    conn.pragma_update(None, "page_size", PAGE_BYTES)?;
    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    if cfg!(target_os = "macos") {
        conn.pragma_update(None, "fullfsync", true)?;
        conn.pragma_update(None, "checkpoint_fullfsync", true)?;
    }
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_KEPT, |_| Ok(()))?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    conn.set_prepared_statement_cache_capacity(64);
    if let Some(pages) = options.max_page_count {
        set_max_page_count(conn, pages)?;
    }
    Ok(())
}

fn set_max_page_count(conn: &Connection, pages: u32) -> rusqlite::Result<()> {
    conn.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
}

fn refuse_foreign(conn: &Connection, path: &Path, version: u32) -> Result<(), OpenError> {
    let sqlite = |source| OpenError::sqlite(path, source);
    let id: i32 =
        conn.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(sqlite)?;
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sqlite)?;
    if (version > 0 || tables > 0) && id != schema::APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.into() });
    }
    Ok(())
}

/// Whether the last life ended with `Writer::close`.
fn was_closed(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("SELECT v FROM meta WHERE k = 'clean'", [], |row| row.get(0))
}

fn quick_check(conn: &Connection, path: &Path) -> Result<(), OpenError> {
    let detail: String = conn
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|source| OpenError::sqlite(path, source))?;
    if detail == "ok" {
        return Ok(());
    }
    Err(OpenError::Damaged { path: path.into(), code: "CORRUPT", detail })
}

/// From here on a stop without `Writer::close` is an unclean one.
fn begin_life(conn: &Connection) -> rusqlite::Result<()> {
    let tx = conn.unchecked_transaction()?;
    tx.execute(
        "INSERT INTO meta (k, v) VALUES ('epoch', ?1) ON CONFLICT (k) DO NOTHING",
        params![LogEpoch::random().as_bytes()],
    )?;
    tx.execute("UPDATE meta SET v = 0 WHERE k = 'clean'", [])?;
    tx.commit()
}

fn epoch(conn: &Connection) -> rusqlite::Result<LogEpoch> {
    conn.query_row("SELECT v FROM meta WHERE k = 'epoch'", [], |row| row.get(0))
        .map(LogEpoch::from_bytes)
}
