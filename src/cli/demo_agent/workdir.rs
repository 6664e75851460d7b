//! The demo agent's temporary directory: made, shown and removed by it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A new directory that only this user can enter. Dropping it removes it with all that is in it.
#[derive(Debug)]
pub(super) struct Workdir(PathBuf);

impl Workdir {
    /// Makes one under the system's directory for temporary files.
    pub(super) fn new() -> io::Result<Self> {
        let name = format!("reattach-demo-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        // `create` fails if something stands there, so that nothing of anybody's is taken over.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it.
    pub(super) fn write(&self, name: &str, content: &str) -> io::Result<()> {
        fs::write(self.0.join(name), content)
    }

    /// Reads a file in it.
    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(name))
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        // If it cannot be removed now, the system's own cleaning will.
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}
