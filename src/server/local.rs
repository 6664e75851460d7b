//! The local socket: a file that only the user who serves can connect to, for commands on the same
//! machine. Must not know what they say.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Its name in the data directory.
const NAME: &str = "sock";

/// Where the socket of this data directory lies: in it, or in `runtime_dir` (the value of
/// `XDG_RUNTIME_DIR`) if that path is too long for a socket. `None` if neither can be.
#[must_use]
pub fn path(data_dir: &Path, runtime_dir: Option<OsString>) -> Option<PathBuf> {
    let inside = data_dir.join(NAME);
    if fits(&inside) {
        return Some(inside);
    }
    let runtime = PathBuf::from(runtime_dir?);
    // What others may write to, others may put their own socket into.
    let private = fs::metadata(&runtime).is_ok_and(|meta| {
        meta.is_dir()
            && meta.uid() == rustix::process::geteuid().as_raw()
            && meta.mode() & 0o077 == 0
    });
    // Whichever way the directory's path is written.
    let whole = data_dir.canonicalize().ok()?;
    let mut name = "reattach-".to_owned();
    for byte in Sha256::digest(whole.as_os_str().as_bytes()).iter().take(8) {
        write!(name, "{byte:02x}").ok()?;
    }
    let outside = runtime.join(name + ".sock");
    (private && runtime.is_absolute() && fits(&outside)).then_some(outside)
}

fn fits(path: &Path) -> bool {
    SocketAddr::from_pathname(path).is_ok()
}

/// A socket's file, which goes with this value.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

/// Listens at `path`, for this user alone. Whoever holds the data directory's lock may call this:
/// a socket that lies there is nobody's any more.
///
/// # Errors
/// If something else than a socket lies there, or the system refuses.
pub fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            let message = "something that is no socket lies there";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    // Until here the file mask decided, in a directory that is the user's alone; `Door::accept`
    // looks at who connected as well.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok((listener, file))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone with its directory.
        fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_socket_is_its_users_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = path(dir.path(), None).expect("a short path");
        assert_eq!(at, dir.path().join("sock"));
        // As a server that was killed leaves it.
        drop(UnixListener::bind(&at).expect("bound"));
        let (_listener, file) = bind(&at).expect("a stale socket is no hindrance");
        assert_eq!(fs::metadata(&at).expect("there").permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&at).expect("it listens");
        drop(file);
        assert!(!at.exists());
        fs::write(&at, "kept").expect("written");
        bind(&at).expect_err("a file is not ours to remove");
        assert_eq!(fs::read_to_string(&at).expect("there"), "kept");
    }

    #[test]
    fn a_long_path_moves_the_socket_to_the_runtime_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = dir.path().join("x".repeat(120));
        fs::create_dir(&long).expect("made");
        assert_eq!(path(&long, None), None);
        let runtime = tempfile::tempdir().expect("a directory");
        fs::set_permissions(runtime.path(), Permissions::from_mode(0o700)).expect("closed");
        let given = || Some(runtime.path().as_os_str().to_owned());
        let at = path(&long, given()).expect("there is room");
        assert_eq!(at.parent(), Some(runtime.path()));
        let name = at.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(name.starts_with("reattach-") && name.ends_with(".sock"), "{name}");
        assert_eq!(name.len(), "reattach-.sock".len() + 16);
        fs::set_permissions(runtime.path(), Permissions::from_mode(0o777)).expect("opened");
        assert_eq!(path(&long, given()), None, "others could write there");
    }
}
