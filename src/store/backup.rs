//! A backup of a data directory, whether a server uses it or not.
//!
//! The snapshot is taken through a connection of its own, in one read transaction: whoever writes
//! goes on meanwhile, and only the write-ahead log grows until it is done. Must not know where a
//! backup goes, nor keepers: what they hold is of no use elsewhere and is left out.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use thiserror::Error;

use super::archive::{Amounts, FORMAT, Manifest, Source, TOKEN, is_gzip_name, pack};
use super::error::{OpenError, uid};
use super::files::{self, DATABASE};
use super::uploads::UPLOADS;
use super::{connect, epoch, refuse_foreign, schema};
use crate::limits::MANIFEST_FILES_MAX;
use crate::run::id::Millis;

/// Why there is no backup, or why one cannot be used.
#[derive(Debug, Error)]
pub enum BackupError {
    /// Nothing to back up.
    #[error("there is no database in {}", dir.display())]
    NoDatabase {
        /// Where none is.
        dir: PathBuf,
    },
    /// The target exists.
    #[error("{} exists already", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// Another process writes the same backup.
    #[error("another backup is being written to {}", path.display())]
    Busy {
        /// The target.
        path: PathBuf,
    },
    /// The database cannot be read, is damaged, foreign, or of a newer version.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// A file of the data directory, or one on its way.
    #[error("cannot use {} (as user {}): {source}", path.display(), uid())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was not the same when it was read again.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The backup cannot be written.
    #[error("cannot write the backup: {0}")]
    Write(io::Error),
    /// The backup cannot be read, or ends too early.
    #[error("cannot read the backup: {0}")]
    Read(io::Error),
    /// It is something else, or damaged.
    #[error("this is no sound backup: {what}")]
    NotABackup {
        /// What is wrong with it.
        what: String,
    },
    /// Compressed by somebody else.
    #[error(
        "this is compressed with zstd: unpack it on the way, as in `zstd -dc FILE | reattach restore -`"
    )]
    Zstd,
    /// Written by a newer version.
    #[error(
        "this backup has format {found}, this program knows up to {FORMAT}: use a newer version"
    )]
    NewerFormat {
        /// Its format.
        found: u32,
    },
}

impl BackupError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The length of the file; 0 for a stream.
    pub bytes: u64,
}

/// Writes a backup of the data directory `dir` to the file `to`: beside it first, fsynced, then
/// renamed, with mode 0600. `force` replaces a file that is there.
///
/// # Errors
/// See `BackupError`; a file that was there is then as it was.
pub fn to_file(
    dir: &Path,
    to: &Path,
    credentials: bool,
    force: bool,
) -> Result<Written, BackupError> {
    if !force && to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists { path: to.to_owned() });
    }
    let part = beside(to, ".part");
    let io = |source| BackupError::io(&part, source);
    let file = files::ours(&part).map_err(io)?;
    // Held until the rename: what a backup that was killed has left is overwritten, what another
    // one is writing is not.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(BackupError::Busy { path: to.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    if !is_at(&file, &part) {
        return Err(BackupError::Busy { path: to.to_owned() });
    }
    let written = (|| {
        file.set_len(0).map_err(io)?;
        let snapshot = beside(to, ".part.db");
        let manifest = write(dir, &file, is_gzip_name(to), credentials, &snapshot)?;
        file.sync_all().map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        if !force && to.symlink_metadata().is_ok() {
            return Err(BackupError::Exists { path: to.to_owned() });
        }
        std::fs::rename(&part, to).map_err(io)?;
        sync_folder(to)?;
        Ok(Written { manifest, bytes })
    })();
    if written.is_err() {
        // It may be gone already; the next backup to this name takes it as well.
        drop(std::fs::remove_file(&part));
    }
    written
}

/// Writes a backup of the data directory `dir` to a stream, uncompressed. The snapshot lies in
/// `folder` meanwhile.
///
/// # Errors
/// See `BackupError`.
pub fn to_stream(
    dir: &Path,
    to: impl Write,
    credentials: bool,
    folder: &Path,
) -> Result<Written, BackupError> {
    let snapshot = folder.join(format!("reattach-backup-{}.db", std::process::id()));
    let manifest = write(dir, to, false, credentials, &snapshot)?;
    Ok(Written { manifest, bytes: 0 })
}

/// Whether this is still the file of that name: one that was renamed since it was opened is a
/// finished backup, which must not be touched.
fn is_at(file: &File, path: &Path) -> bool {
    let of = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(file), Ok(path)) => of(file) == of(path),
        _ => false,
    }
}

/// A hidden name in the same folder.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

fn write(
    dir: &Path,
    to: impl Write,
    gzip: bool,
    credentials: bool,
    snapshot: &Path,
) -> Result<Manifest, BackupError> {
    let io = |source| BackupError::io(snapshot, source);
    // What a backup that was killed has left is in the way of SQLite.
    if snapshot.symlink_metadata().is_ok() {
        std::fs::remove_file(snapshot).map_err(io)?;
    }
    drop(files::ours(snapshot).map_err(io)?);
    let guard = Removed(snapshot.to_owned());
    let taken = take(dir, snapshot, credentials)?;
    let mut sources = vec![Source { name: DATABASE.to_owned(), path: snapshot.to_owned() }];
    if credentials && dir.join(TOKEN).is_file() {
        sources.push(Source { name: TOKEN.to_owned(), path: dir.join(TOKEN) });
    }
    list(&dir.join(UPLOADS), UPLOADS, &mut sources)?;
    let mut files = Vec::with_capacity(sources.len());
    let mut found = Vec::with_capacity(sources.len());
    for source in sources {
        match source.member() {
            Ok(member) => {
                files.push(member);
                found.push(source);
            }
            // An upload that was deleted since it was listed.
            Err(BackupError::Io { source: error, .. })
                if error.kind() == io::ErrorKind::NotFound && source.name != DATABASE => {}
            Err(error) => return Err(error),
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        created_at: Millis::now().to_string(),
        schema: taken.schema,
        log_epoch: taken.epoch,
        credentials,
        counts: taken.counts,
        files,
    };
    let to = pack(BufWriter::with_capacity(128 << 10, to), gzip, &manifest, &found)?;
    to.into_inner().map_err(|error| BackupError::Write(error.into_error()))?;
    drop(guard);
    Ok(manifest)
}

/// A file that is gone at the end, whatever comes.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Nothing can be done about it here; the next backup tries again.
        drop(std::fs::remove_file(&self.0));
    }
}

struct Taken {
    schema: u32,
    epoch: crate::run::id::LogEpoch,
    counts: Amounts,
}

/// Copies the database as it is at this moment to `to`, an empty file, and takes credentials out
/// of the copy if they are not wanted.
fn take(dir: &Path, to: &Path, credentials: bool) -> Result<Taken, BackupError> {
    let path = dir.join(DATABASE);
    if !path.is_file() {
        return Err(BackupError::NoDatabase { dir: dir.to_owned() });
    }
    let sqlite = |source| OpenError::sqlite(&path, source);
    // For reading alone: what a server that was killed has left in the write-ahead log stays there.
    let conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
    let schema = known_version(&conn, &path)?;
    let name = to
        .to_str()
        .ok_or_else(|| BackupError::io(to, io::Error::other("the path is not UTF-8")))?;
    conn.execute("VACUUM INTO ?1", [name]).map_err(|source| OpenError::sqlite(to, source))?;
    drop(conn);
    let copied = |source| OpenError::sqlite(to, source);
    let copy = connect(to, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(copied)?;
    // One file, whoever opens it.
    copy.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).map_err(copied)?;
    if !credentials {
        forget_credentials(&copy).map_err(copied)?;
    }
    let epoch = epoch(&copy).map_err(copied)?;
    let counts = counts(&copy).map_err(copied)?;
    Ok(Taken { schema, epoch, counts })
}

/// The schema of a database that this program can read.
pub(super) fn known_version(conn: &Connection, path: &Path) -> Result<u32, OpenError> {
    let found = schema::version(conn).map_err(|source| OpenError::sqlite(path, source))?;
    refuse_foreign(conn, path, found)?;
    let known = u32::try_from(schema::MIGRATIONS.len()).unwrap_or(u32::MAX);
    match found {
        0 => Err(OpenError::Foreign { path: path.to_owned() }),
        found if found > known => Err(OpenError::Newer { path: path.to_owned(), found, known }),
        found => Ok(found),
    }
}

/// Takes credentials out of a database, its free pages included.
pub(super) fn forget_credentials(conn: &Connection) -> rusqlite::Result<()> {
    if !has_table(conn, "credential")? {
        return Ok(());
    }
    conn.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    conn.execute("DELETE FROM credential", [])?;
    Ok(())
}

pub(super) fn has_table(conn: &Connection, name: &str) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)",
        [name],
        |row| row.get(0),
    )
}

/// How much is in a database.
pub(super) fn counts(conn: &Connection) -> rusqlite::Result<Amounts> {
    let count =
        |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map(super::rows::natural);
    Ok(Amounts {
        sessions: count("SELECT count(*) FROM session")?,
        runs: count("SELECT count(*) FROM run")?,
        running: count("SELECT count(*) FROM run WHERE state = 'running'")?,
        events: count("SELECT count(*) FROM event WHERE run NOT IN (SELECT run FROM garbage)")?,
    })
}

/// All ordinary files under a folder, by name. What is no file and no folder is left out, and so is
/// what is hidden: files on their way.
fn list(folder: &Path, name: &str, found: &mut Vec<Source>) -> Result<(), BackupError> {
    let io = |source| BackupError::io(folder, source);
    let mut entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>().map_err(io)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let of = entry.file_name();
        let of = of
            .to_str()
            .ok_or_else(|| BackupError::io(&path, io::Error::other("the name is not UTF-8")))?;
        if of.starts_with('.') {
            continue;
        }
        let name = format!("{name}/{of}");
        let kind = entry.file_type().map_err(|source| BackupError::io(&path, source))?;
        if kind.is_dir() {
            list(&path, &name, found)?;
        } else if kind.is_file() {
            found.push(Source { name, path });
        }
        if found.len() > MANIFEST_FILES_MAX {
            return Err(BackupError::io(
                folder,
                io::Error::other(format!("there are more than {MANIFEST_FILES_MAX} files in it")),
            ));
        }
    }
    Ok(())
}

/// Makes a rename durable.
pub(super) fn sync_folder(of: &Path) -> Result<(), BackupError> {
    let folder = match of.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| BackupError::io(folder, source))
}
