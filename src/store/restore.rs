//! A backup becomes a data directory again: unpacked and examined beside what is there, made a log
//! of its own, then put in its place.
//!
//! The directory stays where it is, since it may be a mount, and its lock is held throughout: no
//! server can start in the midst. What was in it is moved aside, never deleted. Must not know
//! keepers: whoever restores makes sure that none is at work.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use super::archive::{Manifest, TOKEN, unpack};
use super::backup::{BackupError, counts, forget_credentials, known_version, sync_folder};
use super::error::OpenError;
use super::files::{BALLAST, DATABASE, DataDir, LOCK};
use super::uploads::UPLOADS;
use super::verify::{Report, verify};
use super::{connect, schema};
use crate::run::id::{LogEpoch, Millis};

/// Where a backup is unpacked, in the data directory.
const STAGING: &str = "restoring";
/// How the folders begin that hold what was in a data directory before.
const ASIDE: &str = "before-restore-";

/// A data directory that no server uses, for as long as this lives.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    _lock: DataDir,
}

/// What to do with a backup.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Tokens and devices, where the backup has them, go in too.
    pub credentials: bool,
    /// It is restored although its examination found something.
    pub accept_damage: bool,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// The examination of its database.
    pub report: Report,
    /// The log's new incarnation.
    pub epoch: LogEpoch,
    /// Runs that were on: the next start ends them.
    pub running: u64,
    /// Sessions whose queue is held from now on.
    pub held: u64,
    /// Whether credentials are in it.
    pub credentials: bool,
    /// Where what was there before lies now.
    pub aside: Option<PathBuf>,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup is none, or the directory cannot be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The database in the backup is not what it should be.
    #[error("the database in this backup is not sound")]
    Unsound(Box<Report>),
}

impl From<OpenError> for RestoreError {
    fn from(error: OpenError) -> Self {
        Self::Backup(error.into())
    }
}

impl Place {
    /// Takes the directory, made if it is not there, for itself.
    ///
    /// # Errors
    /// `OpenError::AlreadyRunning` while a server uses it.
    pub fn lock(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self { dir: dir.to_owned(), _lock: DataDir::open(dir, 0)? })
    }

    /// What is there and would have to be moved aside.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn contents(&self) -> Result<Vec<PathBuf>, BackupError> {
        let io = |source| BackupError::io(&self.dir, source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let text = name.to_string_lossy();
            let kept = [LOCK, BALLAST, STAGING, "lost+found"].contains(&&*text);
            if !kept && !text.starts_with(ASIDE) {
                found.push(self.dir.join(name));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Restores the backup `from`. Whatever is there meanwhile is moved aside.
    ///
    /// # Errors
    /// See `RestoreError`; the directory is then as it was.
    pub fn restore(
        &self,
        from: impl Read,
        options: RestoreOptions,
    ) -> Result<Restored, RestoreError> {
        let staging = self.dir.join(STAGING);
        let prepared = prepare(&staging, from, options);
        let done = prepared.and_then(|mut restored| {
            restored.aside = self.put(&staging)?;
            Ok(restored)
        });
        // All that is left in it is a part of a backup.
        drop(fs::remove_dir_all(&staging));
        done
    }

    /// Puts what was unpacked into its place. The database comes last, in one step.
    fn put(&self, staging: &Path) -> Result<Option<PathBuf>, BackupError> {
        let database = self.dir.join(DATABASE);
        fold_in(&database);
        let there = self.contents()?;
        let aside = if there.is_empty() { None } else { Some(self.make_aside()?) };
        if let Some(aside) = &aside {
            for path in there.iter().filter(|path| **path != database) {
                rename(path, &aside.join(path.file_name().unwrap_or_default()))?;
            }
            let old = aside.join(DATABASE);
            // A second name first, so that at no moment there is no database.
            if database.is_file() && fs::hard_link(&database, &old).is_err() {
                rename(&database, &old)?;
            }
            sync_folder(&old)?;
        }
        for name in [TOKEN, UPLOADS] {
            let path = staging.join(name);
            if path.exists() {
                rename(&path, &self.dir.join(name))?;
            }
        }
        rename(&staging.join(DATABASE), &database)?;
        sync_folder(&database)?;
        Ok(aside)
    }

    fn make_aside(&self) -> Result<PathBuf, BackupError> {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut count = 1;
        loop {
            let name = if count == 1 { now.clone() } else { format!("{now}-{count}") };
            let path = self.dir.join(format!("{ASIDE}{name}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
                Err(source) => return Err(BackupError::io(&path, source)),
            }
        }
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::rename(from, to).map_err(|source| BackupError::io(from, source))
}

/// Folds the write-ahead log of the old database in, so that it is one file. One that is damaged
/// stays as it is, and so does its log.
fn fold_in(database: &Path) {
    let fold = || -> rusqlite::Result<()> {
        let conn = connect(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    };
    if database.is_file() {
        drop(fold());
    }
}

/// Unpacks, examines and makes anew.
fn prepare(
    staging: &Path,
    from: impl Read,
    options: RestoreOptions,
) -> Result<Restored, RestoreError> {
    let io = |source| BackupError::io(staging, source);
    match fs::remove_dir_all(staging) {
        // Left by a restore that was killed.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error).into()),
    }
    DirBuilder::new().mode(0o700).create(staging).map_err(io)?;
    let wanted = |name: &str| options.credentials || name != TOKEN;
    let manifest = unpack(from, staging, |member| wanted(&member.path))?;
    let database = staging.join(DATABASE);
    let report = verify(&database)?;
    if !report.is_sound() && !options.accept_damage {
        return Err(RestoreError::Unsound(Box::new(report)));
    }
    let credentials = options.credentials && manifest.credentials;
    let (epoch, running, held) = renew(&database, credentials, &manifest.created_at)?;
    Ok(Restored { manifest, report, epoch, running, held, credentials, aside: None })
}

/// Makes the database a log of its own: its epoch, the running runs, the queues.
fn renew(path: &Path, credentials: bool, made: &str) -> Result<(LogEpoch, u64, u64), OpenError> {
    let sqlite = |source| OpenError::sqlite(path, source);
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    let version = known_version(&conn, path)?;
    // Without the copy that an upgrade in place makes: the backup is that.
    schema::step_up(&mut conn, path, schema::MIGRATIONS, version)?;
    let epoch = LogEpoch::random();
    let running = counts(&conn).map_err(sqlite)?.running;
    let held = new_life(&mut conn, epoch, made, Millis::now()).map_err(sqlite)?;
    if !credentials {
        forget_credentials(&conn).map_err(sqlite)?;
    }
    conn.close().map_err(|(_, error)| sqlite(error))?;
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|source| OpenError::File {
        path: path.into(),
        uid: super::error::uid(),
        source,
    })?;
    Ok((epoch, running, held))
}

/// The number of sessions whose queue is held.
fn new_life(
    conn: &mut Connection,
    epoch: LogEpoch,
    made: &str,
    now: Millis,
) -> rusqlite::Result<u64> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute(
        "INSERT INTO meta (k, v) VALUES ('epoch', ?1) ON CONFLICT (k) DO UPDATE SET v = ?1",
        params![epoch.as_bytes()],
    )?;
    tx.execute("UPDATE meta SET v = 1 WHERE k = 'clean'", [])?;
    // Its agents are gone, and so is what their keepers held.
    tx.execute("DELETE FROM checkpoint", [])?;
    // A prompt that waited to be sent when the backup was taken was sent since, or is old: it is
    // not sent again, and its run ends as lost like those that were on.
    tx.execute("UPDATE run SET record_offset = max(record_offset, 1) WHERE state = 'running'", [])?;
    tx.execute("UPDATE command SET delivered_ms = ?1 WHERE delivered_ms IS NULL", [now.0])?;
    // The same holds for prompts in queues: a person decides.
    let held = tx.execute(
        "UPDATE session SET queue_held = 1 \
         WHERE id IN (SELECT session FROM queued WHERE state = 'waiting')",
        [],
    )?;
    tx.execute(
        "INSERT INTO audit (at_ms, what, detail) VALUES (?1, 'restored', ?2)",
        params![now.0, format!("from a backup of {made}")],
    )?;
    tx.commit()?;
    Ok(held as u64)
}

/// Whether a file begins like a database, and not like a backup.
///
/// # Errors
/// If it cannot be read.
pub fn is_database(path: &Path) -> io::Result<bool> {
    let mut begin = [0; 16];
    let mut file = fs::File::open(path)?;
    match file.read_exact(&mut begin) {
        Ok(()) => Ok(begin == *b"SQLite format 3\0"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Unpacks the database of a backup into `folder`, an empty directory, and examines it.
///
/// # Errors
/// See `BackupError`.
pub fn verify_backup(from: impl Read, folder: &Path) -> Result<(Manifest, Report), BackupError> {
    let manifest = unpack(from, folder, |member| OsStr::new(&member.path) == DATABASE)?;
    let report = verify(&folder.join(DATABASE))?;
    Ok((manifest, report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::id::AgentId;
    use crate::store::backup::to_file;
    use crate::store::schema::tests::LEFT_BY_V1;
    use crate::store::{OpenOptions, Store};

    /// A backup of a database of version 1, with a run that is on, an answer on its way and a
    /// command that is not known to be delivered.
    fn backup_of_version_1(dir: &Path) -> PathBuf {
        let old = dir.join("old");
        fs::create_dir(&old).expect("a fresh directory");
        let conn = Connection::open(old.join(DATABASE)).expect("opens");
        conn.execute_batch(schema::MIGRATIONS[0]).expect("to version 1");
        conn.pragma_update(None, "user_version", 1).expect("set");
        conn.execute_batch(LEFT_BY_V1).expect("as version 1 wrote it");
        drop(conn);
        let file = dir.join("old.tar.gz");
        let written = to_file(&old, &file, false, false).expect("a backup");
        assert_eq!((written.manifest.schema, written.manifest.counts.running), (1, 1));
        file
    }

    #[test]
    fn a_backup_of_an_older_version_is_brought_up_to_this_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = backup_of_version_1(dir.path());
        let place = Place::lock(&dir.path().join("new")).expect("nobody has it");
        let open = || fs::File::open(&file).expect("it is there");
        // Its frames are no real ones, which is found.
        let refused = place.restore(open(), RestoreOptions::default());
        assert!(
            matches!(refused, Err(RestoreError::Unsound(report)) if report.findings.len() == 5)
        );
        assert_eq!(place.contents().expect("readable"), Vec::<PathBuf>::new());
        let options = RestoreOptions { accept_damage: true, ..RestoreOptions::default() };
        let restored = place.restore(open(), options).expect("restores");
        assert_eq!((restored.report.schema, restored.running, restored.held), (1, 1, 0));
        assert_ne!(restored.epoch, restored.manifest.log_epoch);
        let left: Vec<_> = fs::read_dir(dir.path().join("new"))
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name())
            .filter(|name| name != LOCK)
            .collect();
        assert_eq!(left, [DATABASE], "one file, and no copy of before the upgrade");
        drop(place);

        let options = OpenOptions { ballast_bytes: 0, ..OpenOptions::default() };
        let opened = Store::open(&dir.path().join("new"), &options);
        let (_writer, readers) = opened.expect("it is an ordinary data directory");
        assert_eq!(readers.epoch(), restored.epoch);
        let agent = readers.agent(AgentId::from_u128(0xa2)).expect("readable").expect("a run");
        assert!(agent.open.is_some_and(|open| open.offset > 0), "its prompt was sent");
        let waits = agent.commands.iter().filter(|command| command.request.is_none()).count();
        assert_eq!((waits, agent.checkpoint), (0, None), "nothing is sent again");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = backup_of_version_1(dir.path());
        let other = dir.path().join("other");
        fs::create_dir(&other).expect("a fresh directory");
        unpack(fs::File::open(file).expect("it is there"), &other, |_| true).expect("sound");
        let conn = Connection::open(other.join(DATABASE)).expect("opens");
        conn.pragma_update(None, "user_version", 99).expect("set");
        drop(conn);
        let refused = to_file(&other, &dir.path().join("b.tar"), false, false);
        let error = refused.expect_err("this program does not know it");
        assert!(matches!(error, BackupError::Database(OpenError::Newer { found: 99, .. })));
        assert!(!dir.path().join(".b.tar.part").exists() && !dir.path().join("b.tar").exists());
        let refused = verify(&other.join(DATABASE));
        assert!(matches!(refused, Err(OpenError::Newer { found: 99, .. })));
    }
}
