//! The store's files: their directory, their modes, the lock and the ballast.
//!
//! Must not know what is in the database.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{OpenError, uid};
use crate::limits::{DATA_LOCK_MS, LOOK_AGAIN_MS};

/// The database's name in the data directory.
pub const DATABASE: &str = "reattach.db";
/// The lock file's name in the data directory. It holds the pid of the process that serves.
pub const LOCK: &str = "reattach.lock";
/// The ballast's name in the data directory.
pub const BALLAST: &str = "ballast";

/// Ours alone.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;
/// Space that must be free beside the ballast before it is made again, as a multiple of its
/// size: else it would take what the last commits need.
const BALLAST_ROOM: u64 = 4;

/// The locked data directory. The lock ends with the value, or with the process.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    ballast_bytes: u64,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if there is none (mode 0700; one that exists keeps its mode) and
    /// locks it.
    pub(super) fn open(path: &Path, ballast_bytes: u64) -> Result<Self, OpenError> {
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(path)
            .map_err(|source| OpenError::DataDir { path: path.into(), uid: uid(), source })?;
        let lock = lock(path)?;
        Ok(Self { path: path.into(), ballast_bytes, _lock: lock })
    }

    /// Where the database lies. Makes an empty file if there is none, so that SQLite never
    /// chooses the mode; the files that SQLite puts beside it take over its mode.
    pub(super) fn database(&self) -> Result<PathBuf, OpenError> {
        let path = self.path.join(DATABASE);
        ours(&path).map_err(|source| OpenError::File { path: path.clone(), uid: uid(), source })?;
        Ok(path)
    }

    /// Makes the ballast if it is missing and there is ample room. True if it is there.
    pub(super) fn make_ballast(&self) -> bool {
        let path = self.path.join(BALLAST);
        if self.ballast_bytes == 0 {
            return false;
        }
        if path.metadata().is_ok_and(|file| file.len() == self.ballast_bytes) {
            return true;
        }
        let room = rustix::fs::statvfs(&self.path)
            .is_ok_and(|fs| fs.f_bavail * fs.f_frsize >= self.ballast_bytes * BALLAST_ROOM);
        if !room {
            return false;
        }
        if fill(&path, self.ballast_bytes).is_ok() {
            return true;
        }
        // A part of a ballast would only take room away.
        self.drop_ballast();
        false
    }

    /// Deletes the ballast. True if there was one.
    pub(super) fn drop_ballast(&self) -> bool {
        std::fs::remove_file(self.path.join(BALLAST)).is_ok()
    }

    /// How much room the ballast stands for.
    pub(super) const fn ballast_bytes(&self) -> u64 {
        self.ballast_bytes
    }
}

/// Makes sure that an ordinary file of mode 0600 is at `path`.
pub(super) fn ours(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("not an ordinary file"));
    }
    if meta.permissions().mode() & 0o777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    Ok(file)
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::DataDir { path: dir.into(), uid: uid(), source }
        }
        _ => OpenError::File { path: path.clone(), uid: uid(), source },
    };
    let mut file = ours(&path).map_err(refused)?;
    let deadline = Instant::now() + Duration::from_millis(DATA_LOCK_MS.unsigned_abs());
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                let pid = owner(&mut file);
                // A process that was killed as it started another one: until that has become what
                // it is to be, it holds what the dead one held.
                if pid.is_some_and(is_gone) && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(LOOK_AGAIN_MS.unsigned_abs()));
                    continue;
                }
                return Err(OpenError::AlreadyRunning { dir: dir.into(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(refused(source)),
        }
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // On a full disk the pid may not fit; the lock holds without it.
    match write(&mut file) {
        Err(source) if source.kind() != io::ErrorKind::StorageFull => Err(refused(source)),
        _ => Ok(file),
    }
}

/// Who holds the lock; `None` if it has not written its pid yet.
fn owner(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn is_gone(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// Random bytes, since a file system may store zeros or a hole in no room at all.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = ours(path)?;
    file.set_len(0)?;
    let mut block = [0_u8; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        let part = &mut block[..part];
        getrandom::fill(part).map_err(io::Error::other)?;
        file.write_all(part)?;
        left -= part.len() as u64;
    }
    file.sync_data()
}
