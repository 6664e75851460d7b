//! What can go wrong in the store, sorted by what the caller has to do about it.
//!
//! Must not know who retries, who quarantines and who exits.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::run::id::SessionId;

/// Why the store could not be opened. Each message says where and what to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process holds the data directory.
    #[error("{} is in use: already running{}", dir.display(), pid_text(*pid))]
    AlreadyRunning {
        /// The data directory.
        dir: PathBuf,
        /// The process that holds it, where it has written its id already.
        pid: Option<u32>,
    },
    /// The data directory cannot be made, is no directory, or cannot be written to.
    #[error(
        "cannot use {} as the data directory (as user {uid}): {source}; choose another with \
         --data-dir, or make it a directory that this user may write to",
        path.display()
    )]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The user that tried.
        uid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the store cannot be opened, or something else lies in its place.
    #[error(
        "cannot use {} (as user {uid}): {source}; move it away or give this user access to it",
        path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The user that tried.
        uid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The database is damaged. It was left as it is.
    #[error(
        "{} is damaged ({code}: {detail}); it was left in place: keep a copy, then restore a \
         backup or move it aside to begin with an empty one",
        path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// SQLite's word for it.
        code: &'static str,
        /// What SQLite found.
        detail: String,
    },
    /// A database of another program.
    #[error("{} is a database of another program; choose another --data-dir", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// The database was written by a newer version of this program.
    #[error(
        "{} has schema {found}, this program knows up to {known}: run a newer version, or \
         restore the backup that was made before the upgrade",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest schema that is known here.
        known: u32,
    },
    /// The database is of an older version of this program, and was not to be changed.
    #[error("{} has schema {found}, of an older version of this program", path.display())]
    Older {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// Anything else that SQLite refused, disk full among it.
    #[error("cannot open {} ({code}): {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// SQLite's word for it.
        code: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", pid {pid}"))
}

impl OpenError {
    /// Sorts an error of SQLite at `path`.
    pub(super) fn sqlite(path: impl Into<PathBuf>, source: rusqlite::Error) -> Self {
        let (path, code) = (path.into(), word(&source));
        match Class::of(&source) {
            Class::Damage => Self::Damaged { path, code, detail: source.to_string() },
            _ => Self::Sqlite { path, code, source },
        }
    }
}

/// Why a commit did not happen. Nothing of it is on disk then.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The disk is full, broken or locked: the same batches may be tried again later.
    #[error("the store cannot write now ({code}): {message}")]
    Retry {
        /// `FULL`, `IOERR`, `BUSY`, ...
        code: &'static str,
        /// What SQLite said.
        message: String,
    },
    /// One session's rows were refused, by a guard or since they contradict what is stored. The
    /// same batch will be refused again; the other sessions' batches are fine.
    #[error("rows were refused: {message}")]
    Constraint {
        /// Whose rows; `None` for facts of no session.
        session: Option<SessionId>,
        /// Which guard, in words.
        message: String,
    },
    /// The database cannot be trusted any more; the process has to end (exit code 75).
    #[error("the database is unusable ({code}): {message}")]
    Fatal {
        /// `CORRUPT`, `NOTADB`, ...
        code: &'static str,
        /// What SQLite said.
        message: String,
    },
}

/// Why a read gave nothing.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A cursor that no answer of ours contained.
    #[error("no such cursor: {0}")]
    BadCursor(String),
    /// SQLite could not read. `CORRUPT` and `NOTADB` mean that the process has to end.
    #[error("the store cannot read ({code}): {message}")]
    Sqlite {
        /// SQLite's word for it.
        code: &'static str,
        /// What SQLite said.
        message: String,
    },
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite { code: word(&error), message: error.to_string() }
    }
}

/// What to do about an error of SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It may go away.
    Retry,
    /// The rows are at fault.
    Rows,
    /// The file is at fault.
    Damage,
    /// We are at fault, or the file is not ours any more.
    Broken,
}

impl Class {
    /// Sorts an error of SQLite.
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(inner, _) = error else {
            // A column of a type that our schema cannot hold: the file is not what we wrote.
            return match error {
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..) => Self::Damage,
                _ => Self::Broken,
            };
        };
        if inner.extended_code == rusqlite::ffi::SQLITE_READONLY_DBMOVED {
            return Self::Broken;
        }
        match inner.code {
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory
            | ErrorCode::CannotOpen
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OperationInterrupted
            | ErrorCode::ReadOnly => Self::Retry,
            ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig => {
                Self::Rows
            }
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Damage,
            _ => Self::Broken,
        }
    }
}

/// SQLite's name for an error, without its prefix.
pub(super) fn word(error: &rusqlite::Error) -> &'static str {
    let rusqlite::Error::SqliteFailure(inner, _) = error else {
        return if Class::of(error) == Class::Damage { "CORRUPT" } else { "ERROR" };
    };
    if inner.extended_code == rusqlite::ffi::SQLITE_READONLY_DBMOVED {
        return "READONLY_DBMOVED";
    }
    match inner.code {
        ErrorCode::DiskFull => "FULL",
        ErrorCode::SystemIoFailure => "IOERR",
        ErrorCode::DatabaseBusy => "BUSY",
        ErrorCode::DatabaseLocked => "LOCKED",
        ErrorCode::OutOfMemory => "NOMEM",
        ErrorCode::CannotOpen => "CANTOPEN",
        ErrorCode::FileLockingProtocolFailed => "PROTOCOL",
        ErrorCode::OperationInterrupted => "INTERRUPT",
        ErrorCode::ReadOnly => "READONLY",
        ErrorCode::ConstraintViolation => "CONSTRAINT",
        ErrorCode::TypeMismatch => "MISMATCH",
        ErrorCode::TooBig => "TOOBIG",
        ErrorCode::DatabaseCorrupt => "CORRUPT",
        ErrorCode::NotADatabase => "NOTADB",
        _ => "ERROR",
    }
}

/// The uid for messages about access.
pub(super) fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
    }

    #[test]
    fn each_error_is_sorted_by_what_to_do() {
        use rusqlite::ffi;
        for (code, class, name) in [
            (ffi::SQLITE_FULL, Class::Retry, "FULL"),
            (ffi::SQLITE_IOERR_FSYNC, Class::Retry, "IOERR"),
            (ffi::SQLITE_BUSY_SNAPSHOT, Class::Retry, "BUSY"),
            (ffi::SQLITE_READONLY, Class::Retry, "READONLY"),
            (ffi::SQLITE_READONLY_DBMOVED, Class::Broken, "READONLY_DBMOVED"),
            (ffi::SQLITE_CONSTRAINT_TRIGGER, Class::Rows, "CONSTRAINT"),
            (ffi::SQLITE_TOOBIG, Class::Rows, "TOOBIG"),
            (ffi::SQLITE_CORRUPT_INDEX, Class::Damage, "CORRUPT"),
            (ffi::SQLITE_NOTADB, Class::Damage, "NOTADB"),
            (ffi::SQLITE_ERROR, Class::Broken, "ERROR"),
        ] {
            let error = failure(code);
            assert_eq!((Class::of(&error), word(&error)), (class, name), "code {code}");
        }
    }
}
