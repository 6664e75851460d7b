//! The home of an agent's keeper: a directory under the data dir, and how it is reached.
//!
//! `<data-dir>/agents/<agent id>/` holds `keeper.json` (who it is, for gateways and people),
//! `lock` (held by the living keeper for its whole life), `sock` (where a gateway attaches),
//! `log` (the keeper's own) and the journal. `keeper.json` is written before the agent is started:
//! without it, and without the lock held, the agent never was. Must not know what passes over the
//! socket or what the journal holds.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits::{LOCK_MS, LOOK_AGAIN_MS};
use crate::run::id::{AgentId, Millis};

/// Names in a home. The keeper's working directory is its home, so that there they are its files.
pub(super) const SOCKET: &str = "sock";
const LOCK: &str = "lock";
const LOG: &str = "log";
const INFO: &str = "keeper.json";
const INFO_NEW: &str = "keeper.json.new";
const AGENTS: &str = "agents";

/// The longest path that an address of a Unix socket takes everywhere: 104 bytes on macOS, 108 on
/// Linux, with a byte for the end.
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// Where one agent's keeper lives. The directory may be there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    agent: AgentId,
    path: PathBuf,
}

/// What `keeper.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeeperInfo {
    /// Whose keeper it is.
    pub agent: AgentId,
    /// The keeper's process id.
    pub pid: u32,
    /// The agent's; 0 before it is started.
    pub agent_pid: u32,
    /// The keeper protocol that it speaks.
    pub protocol: u32,
    /// The version of the program.
    pub version: String,
    /// The session that the agent was started for.
    pub session: String,
    /// The agent's provider.
    pub provider: String,
    /// When the keeper began.
    pub started_at: Millis,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Home {
    /// The home of this agent under this data dir.
    #[must_use]
    pub fn of(data_dir: &Path, agent: AgentId) -> Self {
        Self { agent, path: data_dir.join(AGENTS).join(agent.to_string()) }
    }

    /// Makes the directory, for its owner alone.
    ///
    /// # Errors
    /// As `mkdir`; that it is there already is none.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    /// Whose it is.
    #[must_use]
    pub const fn agent(&self) -> AgentId {
        self.agent
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the keeper says of itself. `None`: it never came so far as to start its agent.
    #[must_use]
    pub fn info(&self) -> Option<KeeperInfo> {
        let json = std::fs::read(self.path.join(INFO)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Whether the keeper lives: whether it holds its lock.
    ///
    /// # Errors
    /// The lock's file is there and cannot be looked at.
    pub fn is_alive(&self) -> io::Result<bool> {
        let file = match File::open(self.path.join(LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // Shared, so that two who look do not take each other for the keeper.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the directory with all that it holds, the journal first of all. For a keeper that
    /// is gone.
    ///
    /// # Errors
    /// As `remove_dir_all`; that it is gone already is none.
    pub fn remove(&self) -> io::Result<()> {
        if let Some(info) = self.info().filter(|info| !self.has(&info.socket)) {
            // It may be gone with its directory.
            std::fs::remove_file(info.socket).ok();
        }
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether this is our own socket, whichever way the home's path is written.
    fn has(&self, socket: &Path) -> bool {
        socket.ends_with(Path::new(&self.agent.to_string()).join(SOCKET))
    }

    /// The keeper's log, for its stderr.
    pub(super) fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.path.join(LOG))
    }

    /// Connects to the keeper's socket.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let own = self.path.join(SOCKET);
        if let Some(info) = self.info().filter(|info| !self.has(&info.socket)) {
            return UnixStream::connect(info.socket);
        }
        if own.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return UnixStream::connect(own);
        }
        // An address has no room for the path, but for one through the directory's descriptor.
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;

            let dir = File::open(&self.path)?;
            UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
        }
        #[cfg(not(target_os = "linux"))]
        UnixStream::connect(own)
    }
}

/// All homes under this data dir, in the order of their names.
///
/// # Errors
/// The directory is there and cannot be read.
pub fn homes(data_dir: &Path) -> io::Result<Vec<Home>> {
    let entries = match std::fs::read_dir(data_dir.join(AGENTS)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut homes = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let agent = name.to_str().and_then(|name| name.parse().ok());
        homes.extend(agent.map(|agent| Home::of(data_dir, agent)));
    }
    homes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(homes)
}

/// The keeper's side: its own home, which is its working directory.
#[derive(Debug)]
pub(super) struct Inside {
    path: PathBuf,
    /// Held until the process ends.
    _lock: File,
    /// Where gateways attach.
    pub(super) listener: UnixListener,
    socket: PathBuf,
}

impl Inside {
    /// Takes the lock and opens the socket.
    pub(super) fn enter() -> io::Result<Self> {
        let path = std::env::current_dir()?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(LOCK)?;
        take(&lock)?;
        let (listener, socket) = listen(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { path, _lock: lock, listener, socket })
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Writes `keeper.json`, so that nobody sees half of it.
    pub(super) fn announce(&self, info: &KeeperInfo) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(info)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(INFO_NEW)?;
        io::Write::write_all(&mut file, &json)?;
        std::fs::rename(INFO_NEW, INFO)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if !self.socket.starts_with(&self.path) {
            // In a directory that is not ours alone nothing is to be left.
            std::fs::remove_file(&self.socket).ok();
        }
    }
}

/// Whoever looks whether we live holds the lock for a moment.
fn take(lock: &File) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_millis(LOCK_MS.unsigned_abs());
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(LOOK_AGAIN_MS.unsigned_abs()));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another keeper lives here"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// In the home if that can be: by its relative name, which is never too long. Else in the user's
/// runtime directory, under a name that no other home has.
fn listen(home: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let path = home.join(SOCKET);
    // Elsewhere than on Linux nobody could connect to a path that is too long.
    let reachable = cfg!(target_os = "linux") || path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX;
    let refused = if reachable {
        match bind(Path::new(SOCKET)) {
            Ok(listener) => return Ok((listener, path)),
            Err(error) => error,
        }
    } else {
        io::Error::new(io::ErrorKind::InvalidInput, "the home's path is too long for a socket")
    };
    let runtime = std::env::var_os(RUNTIME_DIR).filter(|dir| !dir.is_empty()).ok_or(refused)?;
    let mut name = "reattach-".to_owned();
    for byte in Sha256::digest(home.as_os_str().as_bytes()).iter().take(8) {
        write!(name, "{byte:02x}").expect("a string takes all");
    }
    let path = Path::new(&runtime).join(name + ".sock");
    Ok((bind(&path)?, path))
}

/// The variable that says where sockets of the user belong.
pub(super) const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// For its owner alone, from the first moment on.
fn bind(path: &Path) -> io::Result<UnixListener> {
    use rustix::fs::Mode;

    // What an earlier keeper of this home left; we hold the lock. Usually there is nothing.
    std::fs::remove_file(path).ok();
    // The agent inherits the mask, so it is put back. We are a process of one thread.
    let before = rustix::process::umask(Mode::from_bits_retain(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}
