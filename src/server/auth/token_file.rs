//! The file `token` of the data directory: the first API token, for its owner's programs. Must not
//! know what it opens.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::secret::{Hash, Secret};
use crate::limits;

/// The file in the data directory that holds the token.
pub const TOKEN_FILE: &str = "token";
/// A token shorter than this is no secret.
const TOKEN_BYTES_MIN: usize = 32;

/// The token of a data directory; made if it is missing, readable by its owner alone.
///
/// # Errors
/// If it cannot be read or made, or holds no usable token.
pub fn load(data_dir: &Path) -> io::Result<Secret> {
    let path = data_dir.join(TOKEN_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let token = text.trim();
            if token.len() < TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!(
                    "{} holds no usable token; delete it and start again to get a new one",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // Others may have read it already, which a warning cannot undo: but from now on not.
            let mode = fs::metadata(&path)?.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(file = %path.display(), "the token could be read by others; now it cannot");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            }
            Ok(Secret::of(token))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(data_dir),
        Err(error) => Err(error),
    }
}

/// A new token, in place of what is there. Written beside and renamed, so that a crash leaves a
/// whole token or the one before.
///
/// # Errors
/// If it cannot be written.
pub fn make(data_dir: &Path) -> io::Result<Secret> {
    let path = data_dir.join(TOKEN_FILE);
    let token = Secret::random(limits::TOKEN_PREFIX, limits::TOKEN_BYTES)?;
    let beside = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    writeln!(file, "{}", token.expose())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    Ok(token)
}

/// Removes the file if it holds this token, which opens nothing any more.
///
/// # Errors
/// If it cannot be removed.
pub fn remove(data_dir: &Path, hash: &Hash) -> io::Result<()> {
    let path = data_dir.join(TOKEN_FILE);
    match fs::read_to_string(&path) {
        Ok(text) if super::secret::hash(text.trim()) == *hash => fs::remove_file(&path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = load(dir.path()).expect("made");
        assert_eq!(token.expose().len(), limits::TOKEN_PREFIX.len() + 2 * limits::TOKEN_BYTES);
        let path = dir.path().join(TOKEN_FILE);
        let mode = || fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("opened");
        assert_eq!(load(dir.path()).expect("read"), token);
        assert_eq!(mode(), 0o600);
        fs::write(&path, "short\n").expect("written");
        let error = load(dir.path()).expect_err("unusable");
        assert!(error.to_string().contains("delete it"), "{error}");
    }

    #[test]
    fn only_the_token_that_it_holds_takes_the_file_along() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = load(dir.path()).expect("made");
        remove(dir.path(), &super::super::secret::hash("another")).expect("nothing to do");
        assert_eq!(load(dir.path()).expect("read"), token);
        remove(dir.path(), &token.hash()).expect("removed");
        assert!(!dir.path().join(TOKEN_FILE).exists());
        remove(dir.path(), &token.hash()).expect("nothing to do");
        assert_ne!(load(dir.path()).expect("made anew"), token);
    }
}
