//! Files that were given to sessions: plain files below `uploads/SESSION/`, each with a card.
//!
//! The card (`ID.json`) says what the file is and comes into being last, so a file without one
//! was never given. A file's name on disk is its id and what is harmless of the name that it came
//! with. Not in the database: no row could make a file be there. Must not know requests, nor what
//! a prompt does with a file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::run::id::{Millis, SessionId, UploadId};
use crate::sync::{Arc, Mutex};

/// Where they lie in the data directory.
pub const UPLOADS: &str = "uploads";
/// How the name of a file begins that is still on its way.
const INCOMING: &str = ".incoming-";
/// What is kept of a file's name.
const NAME_BYTES_MAX: usize = 100;

/// The files of all sessions.
#[derive(Clone, Debug)]
pub struct Uploads {
    dir: PathBuf,
    /// Held while a session's sum is looked at and added to.
    sums: Arc<Mutex<()>>,
}

/// A file that was given to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// What it says of itself.
    pub card: Card,
    /// Where it lies.
    pub path: PathBuf,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Card {
    /// By which prompts name it.
    pub id: UploadId,
    /// Its name: what is harmless of the one that it came with.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its type, as its sender says.
    pub content_type: String,
    /// When it came.
    pub created_at: Millis,
}

/// Why a file is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The session's files together would be too many or too large.
    #[error(
        "a session may have {} files of {} bytes together; delete some first",
        limits::UPLOADS_MAX,
        limits::UPLOADS_BYTES_MAX
    )]
    Full,
    /// The disk does not take it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A file on its way; it is gone when this is dropped, unless it was kept.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // One that was kept has another name by now.
        fs::remove_file(&self.path).ok();
    }
}

impl Incoming {
    /// Adds what came.
    ///
    /// # Errors
    /// As the disk says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// How much came.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Uploads {
    /// Those of a data directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        // Agents are told paths, and run elsewhere.
        let dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        Self { dir: dir.join(UPLOADS), sums: Arc::new(Mutex::new(())) }
    }

    /// A place for a file that is about to come.
    ///
    /// # Errors
    /// As the disk says.
    pub fn receive(&self) -> io::Result<Incoming> {
        private_dir(&self.dir)?;
        let path = self.dir.join(format!("{INCOMING}{}", UploadId::random()));
        let file = new_file(&path)?;
        Ok(Incoming { path, file, bytes: 0 })
    }

    /// Keeps what came, on disk for good.
    ///
    /// # Errors
    /// If there are too many already, or as the disk says.
    pub fn keep(
        &self,
        session: SessionId,
        incoming: &Incoming,
        (name, content_type): (&str, &str),
        now: Millis,
    ) -> Result<Upload, KeepError> {
        incoming.file.sync_all()?;
        let _held = self.sums.lock();
        let others = self.list(session)?;
        let sum: u64 = others.iter().map(|one| one.card.bytes).sum();
        if others.len() >= limits::UPLOADS_MAX || sum + incoming.bytes > limits::UPLOADS_BYTES_MAX {
            return Err(KeepError::Full);
        }
        let dir = self.dir_of(session);
        private_dir(&dir)?;
        let card = Card {
            id: UploadId::random(),
            name: safe_name(name),
            bytes: incoming.bytes,
            content_type: content_type.to_owned(),
            created_at: now,
        };
        let path = file_of(&dir, &card);
        fs::rename(&incoming.path, &path)?;
        let written = write_card(&dir, &card);
        if written.is_err() {
            fs::remove_file(&path).ok();
        }
        written?;
        Ok(Upload { card, path })
    }

    /// A session's files, the oldest first.
    ///
    /// # Errors
    /// As the disk says.
    pub fn list(&self, session: SessionId) -> io::Result<Vec<Upload>> {
        let dir = self.dir_of(session);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            if let Some(id) = id {
                found.extend(self.find(session, id)?);
            }
        }
        // Their ids begin with the time of their making.
        found.sort_by_key(|upload| upload.card.id);
        Ok(found)
    }

    /// One of a session's files.
    ///
    /// # Errors
    /// As the disk says.
    pub fn find(&self, session: SessionId, id: UploadId) -> io::Result<Option<Upload>> {
        let dir = self.dir_of(session);
        let bytes = match fs::read(card_of(&dir, id)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let card = serde_json::from_slice::<Card>(&bytes).ok().filter(|card| card.id == id);
        let card = card.filter(|card| card.name == safe_name(&card.name));
        Ok(card.map(|card| Upload { path: file_of(&dir, &card), card }))
    }

    /// Removes one. `false` if there is none such.
    ///
    /// # Errors
    /// As the disk says.
    pub fn remove(&self, session: SessionId, id: UploadId) -> io::Result<bool> {
        let Some(upload) = self.find(session, id)? else { return Ok(false) };
        fs::remove_file(card_of(&self.dir_of(session), id))?;
        fs::remove_file(upload.path)?;
        Ok(true)
    }

    /// The session is deleted: so are its files.
    pub fn forget(&self, session: SessionId) {
        remove_dir(&self.dir_of(session));
    }

    /// Removes what a gateway before this one left: files that did not come whole, files without
    /// a card, files of sessions that are gone.
    pub fn sweep(&self, mut is_gone: impl FnMut(SessionId) -> bool) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(INCOMING) {
                fs::remove_file(entry.path()).ok();
            } else if let Ok(session) = name.parse::<SessionId>() {
                match is_gone(session) {
                    true => remove_dir(&entry.path()),
                    false => self.sweep_session(session),
                }
            }
        }
    }

    fn sweep_session(&self, session: SessionId) {
        let (Ok(given), Ok(entries)) = (self.list(session), fs::read_dir(self.dir_of(session)))
        else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let known = |one: &Upload| {
                one.path == path || card_of(&self.dir_of(session), one.card.id) == path
            };
            if !given.iter().any(known) {
                fs::remove_file(path).ok();
            }
        }
    }

    fn dir_of(&self, session: SessionId) -> PathBuf {
        self.dir.join(session.to_string())
    }
}

fn remove_dir(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "a deleted session's files cannot be removed");
        }
        _ => {}
    }
}

fn card_of(dir: &Path, id: UploadId) -> PathBuf {
    dir.join(format!("{id}.json"))
}

fn file_of(dir: &Path, card: &Card) -> PathBuf {
    dir.join(format!("{}-{}", card.id, card.name))
}

/// The last step of a file's coming: with its card it is there.
fn write_card(dir: &Path, card: &Card) -> io::Result<()> {
    let path = dir.join(format!("{INCOMING}{}", card.id));
    let mut file = new_file(&path)?;
    file.write_all(&serde_json::to_vec(card)?)?;
    file.sync_all()?;
    fs::rename(&path, card_of(dir, card.id))?;
    File::open(dir)?.sync_all()
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// What is harmless of a name: its last part, letters and digits of any script, and `.`, `-`, `_`
/// between them. Short enough for any file system, its end (which tells the kind) kept.
fn safe_name(given: &str) -> String {
    let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
    let kept = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = last.chars().map(kept).collect();
    let name = name.trim_matches('.');
    let end = name.rfind('.').filter(|at| name.len() - at <= 16).unwrap_or(name.len());
    let (stem, end) = name.split_at(end);
    let room = NAME_BYTES_MAX - end.len();
    let stem: String = stem
        .char_indices()
        .take_while(|(at, c)| at + c.len_utf8() <= room)
        .map(|(_, c)| c)
        .collect();
    match stem.is_empty() {
        true => format!("file{end}"),
        false => format!("{stem}{end}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn upload(uploads: &Uploads, session: SessionId, name: &str, bytes: &[u8]) -> Upload {
        let mut incoming = uploads.receive().expect("a place");
        incoming.write(bytes).expect("written");
        let given = (name, "image/png");
        uploads.keep(session, &incoming, given, Millis(5)).expect("kept")
    }

    #[test]
    fn no_name_leads_anywhere_or_hides() {
        for (given, kept) in [
            ("photo.png", "photo.png"),
            ("../../etc/passwd", "passwd"),
            ("C:\\dir\\a b.txt", "a_b.txt"),
            ("..", "file"),
            ("", "file"),
            (".bashrc", "bashrc"),
            ("a\0b\nc\u{202e}d\"e'f;g", "a_b_c_d_e_f_g"),
            ("\u{e9}\u{4e16}.PNG", "\u{e9}\u{4e16}.PNG"),
            ("/.png", "png"),
            ("-rf", "-rf"),
        ] {
            assert_eq!(safe_name(given), kept, "{given:?}");
        }
        let long = safe_name(&format!("{}.jpeg", "\u{4e16}".repeat(200)));
        assert!(long.len() <= NAME_BYTES_MAX && long.ends_with("\u{4e16}.jpeg"), "{long}");
        let odd = safe_name(&format!("a.{}", "x".repeat(300)));
        assert_eq!(odd.len(), NAME_BYTES_MAX);
        for name in [long, odd] {
            assert_eq!(safe_name(&name), name, "what is safe stays");
        }
    }

    #[test]
    fn a_file_is_its_owners_and_is_found_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let uploads = Uploads::of(dir.path());
        let (one, other) = (SessionId::random(), SessionId::random());
        assert_eq!(uploads.list(one).expect("read"), []);
        let first = upload(&uploads, one, "a.png", b"abc");
        let second = upload(&uploads, one, "a.png", b"");
        let mode = fs::metadata(&first.path).expect("there").permissions().mode();
        assert_eq!((mode & 0o777, fs::read(&first.path).expect("read")), (0o600, b"abc".to_vec()));
        assert_eq!(uploads.list(one).expect("read"), [first.clone(), second.clone()]);
        assert_eq!(uploads.find(other, first.card.id).expect("read"), None, "another session's");
        assert!(uploads.remove(one, first.card.id).expect("removed"));
        assert!(!uploads.remove(one, first.card.id).expect("looked for"));
        assert!(!first.path.exists());
        uploads.forget(one);
        assert!(!second.path.exists());
        uploads.forget(one);
    }

    #[test]
    fn what_did_not_come_whole_and_whose_session_is_gone_is_swept() {
        let dir = tempfile::tempdir().expect("a directory");
        let uploads = Uploads::of(dir.path());
        let (kept, gone) = (SessionId::random(), SessionId::random());
        let stays = upload(&uploads, kept, "a.png", b"abc");
        let goes = upload(&uploads, gone, "a.png", b"abc");
        let cardless = upload(&uploads, kept, "b.png", b"abc");
        fs::remove_file(card_of(&uploads.dir_of(kept), cardless.card.id)).expect("removed");
        let incoming = uploads.receive().expect("a place");
        let left = incoming.path.clone();
        std::mem::forget(incoming);
        uploads.sweep(|session| session == gone);
        assert!(stays.path.exists() && uploads.list(kept).expect("read") == [stays]);
        assert!(!goes.path.exists() && !cardless.path.exists() && !left.exists());
        let dropped = uploads.receive().expect("a place");
        let path = dropped.path.clone();
        drop(dropped);
        assert!(!path.exists());
    }

    #[test]
    fn a_session_has_no_more_than_its_part() {
        let dir = tempfile::tempdir().expect("a directory");
        let uploads = Uploads::of(dir.path());
        let session = SessionId::random();
        for _ in 0..limits::UPLOADS_MAX {
            upload(&uploads, session, "a", b"x");
        }
        let incoming = uploads.receive().expect("a place");
        let full = uploads.keep(session, &incoming, ("a", "b/c"), Millis(0));
        assert!(matches!(full, Err(KeepError::Full)), "{full:?}");
        let other = uploads.keep(SessionId::random(), &incoming, ("a", "b/c"), Millis(0));
        assert!(other.is_ok(), "{other:?}");
    }
}
