//! A backup as a file: an ordinary tar archive, gzipped if its name says so, whose first member
//! says what is in it.
//!
//! `manifest.json` (version, schema, epoch, counts, length and SHA-256 of each file), then
//! `reattach.db`, then what else belongs to it. Must not know what is in the database.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::backup::BackupError;
use super::files::DATABASE;
use super::uploads::UPLOADS;
use crate::limits::{MANIFEST_BYTES_MAX, MANIFEST_FILES_MAX};
use crate::run::id::LogEpoch;

/// The archive's first member.
pub const MANIFEST: &str = "manifest.json";
/// The file with the first token, in a data directory and in a backup with credentials.
pub(super) const TOKEN: &str = "token";
/// What `format` says in a manifest that this program writes, the newest that it reads.
pub(super) const FORMAT: u32 = 1;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The layout of the archive.
    pub format: u32,
    /// The version of the program that made it.
    pub version: String,
    /// When, in ISO 8601.
    pub created_at: String,
    /// The schema of the database.
    pub schema: u32,
    /// The incarnation of the log that it was taken of. What is restored gets another one.
    pub log_epoch: LogEpoch,
    /// Whether tokens and devices are in it.
    pub credentials: bool,
    /// How much is in the database.
    pub counts: Amounts,
    /// All other members.
    pub files: Vec<Member>,
}

/// How much is in a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Amounts {
    /// Sessions.
    pub sessions: u64,
    /// Runs, those that retention has taken the events of included.
    pub runs: u64,
    /// Of them, those that were on.
    pub running: u64,
    /// Events, heads not counted.
    pub events: u64,
}

/// A file in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where, relative to the data directory, with forward slashes.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// Whether a backup of this name is compressed.
#[must_use]
pub(super) fn is_gzip_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|e| e.eq_ignore_ascii_case("gz") || e.eq_ignore_ascii_case("tgz"))
}

/// A file that goes into a backup: its name there, and where it lies now.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Source {
    /// Its line in the manifest.
    pub(super) fn member(&self) -> Result<Member, BackupError> {
        let io = |source| BackupError::io(&self.path, source);
        let mut file = Hashing::new(File::open(&self.path).map_err(io)?);
        io::copy(&mut file, &mut io::sink()).map_err(io)?;
        let (bytes, sha256) = file.end();
        Ok(Member { path: self.name.clone(), bytes, sha256 })
    }
}

/// Writes the archive; `gzip` compresses it. `sources` are the manifest's files, in its order.
pub(super) fn pack<W: Write>(
    to: W,
    gzip: bool,
    manifest: &Manifest,
    sources: &[Source],
) -> Result<W, BackupError> {
    if gzip {
        let to = pack_plain(GzEncoder::new(to, Compression::fast()), manifest, sources)?;
        return to.finish().map_err(BackupError::Write);
    }
    pack_plain(to, manifest, sources)
}

fn pack_plain<W: Write>(to: W, manifest: &Manifest, sources: &[Source]) -> Result<W, BackupError> {
    let mut tar = tar::Builder::new(to);
    let at = manifest.created_at.parse::<jiff::Timestamp>();
    let at = at.map_or(0, |at| u64::try_from(at.as_second()).unwrap_or(0));
    let header = |bytes: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(at);
        header.set_size(bytes);
        header
    };
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| BackupError::Write(io::Error::other(error)))?;
    text.push(b'\n');
    tar.append_data(&mut header(text.len() as u64), MANIFEST, text.as_slice())
        .map_err(BackupError::Write)?;
    for (member, source) in manifest.files.iter().zip(sources) {
        let file = File::open(&source.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BackupError::Changed { path: source.path.clone() },
            _ => BackupError::io(&source.path, error),
        })?;
        let mut body = Hashing::new(file.take(member.bytes));
        tar.append_data(&mut header(member.bytes), &member.path, &mut body)
            .map_err(BackupError::Write)?;
        if body.end() != (member.bytes, member.sha256.clone()) {
            return Err(BackupError::Changed { path: source.path.clone() });
        }
    }
    tar.into_inner().map_err(BackupError::Write)
}

/// Unpacks a backup into the directory `to`, which exists and is empty, and compares all that it
/// unpacks with the manifest. `wanted` chooses members; the others are compared and not kept.
pub(super) fn unpack(
    from: impl Read,
    to: &Path,
    wanted: impl Fn(&Member) -> bool,
) -> Result<Manifest, BackupError> {
    let mut from = BufReader::with_capacity(64 << 10, from);
    let begin = from.fill_buf().map_err(BackupError::Read)?;
    if begin.starts_with(&[0x1f, 0x8b]) {
        return unpack_plain(MultiGzDecoder::new(from), to, wanted);
    }
    if begin.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(BackupError::Zstd);
    }
    unpack_plain(from, to, wanted)
}

fn unpack_plain(
    from: impl Read,
    to: &Path,
    wanted: impl Fn(&Member) -> bool,
) -> Result<Manifest, BackupError> {
    let mut tar = tar::Archive::new(from);
    let mut entries = tar.entries().map_err(BackupError::Read)?;
    let first = entries.next().ok_or_else(|| bad("it is empty"))?;
    let manifest = read_manifest(first.map_err(not_tar)?)?;
    let mut left: BTreeMap<&str, &Member> =
        manifest.files.iter().map(|member| (member.path.as_str(), member)).collect();
    for entry in entries {
        let entry = entry.map_err(BackupError::Read)?;
        let name = name_of(&entry)?;
        let Some(member) = left.remove(name.as_str()) else {
            return Err(bad(format!(
                "its member {name} is not in its manifest, or is there twice"
            )));
        };
        let target = wanted(member).then(|| to.join(&member.path));
        take(entry, member, target.as_deref())?;
    }
    if let Some(missing) = left.keys().next() {
        return Err(bad(format!("it lacks {missing} and {} more", left.len() - 1)));
    }
    // The checksum of a compressed archive stands at its end.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(BackupError::Read)?;
    Ok(manifest)
}

fn read_manifest(entry: tar::Entry<'_, impl Read>) -> Result<Manifest, BackupError> {
    if name_of(&entry)? != MANIFEST {
        return Err(bad(format!("its first member is not {MANIFEST}")));
    }
    let mut text = Vec::new();
    entry.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut text).map_err(BackupError::Read)?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(bad(format!("its {MANIFEST} is longer than {MANIFEST_BYTES_MAX} bytes")));
    }
    /// What is read before the rest, which another format may have otherwise.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unreadable = |error| bad(format!("its {MANIFEST} cannot be read: {error}"));
    let Format { format } = serde_json::from_slice(&text).map_err(unreadable)?;
    if format > FORMAT {
        return Err(BackupError::NewerFormat { found: format });
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(unreadable)?;
    if manifest.files.len() > MANIFEST_FILES_MAX {
        return Err(bad(format!("its {MANIFEST} names more than {MANIFEST_FILES_MAX} files")));
    }
    if let Some(member) = manifest.files.iter().find(|member| !is_ours(&member.path)) {
        return Err(bad(format!("its {MANIFEST} names {:?}, which no backup has", member.path)));
    }
    if !manifest.files.iter().any(|member| member.path == DATABASE) {
        return Err(bad(format!("its {MANIFEST} names no {DATABASE}")));
    }
    Ok(manifest)
}

/// A name that a backup may have: it leads nowhere else.
fn is_ours(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let Some(Component::Normal(first)) = parts.next() else { return false };
    if first == DATABASE || first == TOKEN {
        return parts.next().is_none();
    }
    let rest: Vec<_> = parts.collect();
    let inside = rest.iter().all(|part| matches!(part, Component::Normal(_)));
    first == UPLOADS && inside && !rest.is_empty() && !name.contains("//") && !name.contains('\0')
}

fn name_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<String, BackupError> {
    let name = entry.path_bytes();
    let shown = String::from_utf8_lossy(&name).into_owned();
    if !entry.header().entry_type().is_file() {
        return Err(bad(format!("its member {shown:?} is not an ordinary file")));
    }
    match String::from_utf8(name.into_owned()) {
        // Another tar may write it so.
        Ok(name) => Ok(name.strip_prefix("./").unwrap_or(&name).to_owned()),
        Err(_) => Err(bad(format!("the name of its member {shown:?} is not UTF-8"))),
    }
}

fn take(entry: impl Read, member: &Member, target: Option<&Path>) -> Result<(), BackupError> {
    let mut body = Hashing::new(entry);
    match target {
        None => drop(io::copy(&mut body, &mut io::sink()).map_err(BackupError::Read)?),
        Some(path) => {
            let io = |source| BackupError::io(path, source);
            if let Some(folder) = path.parent() {
                let mut made = std::fs::DirBuilder::new();
                made.recursive(true).mode(0o700).create(folder).map_err(io)?;
            }
            let mut options = File::options();
            let mut file =
                options.write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
            copy(&mut body, &mut file, path)?;
            file.sync_all().map_err(io)?;
        }
    }
    let (bytes, sha256) = body.end();
    if (bytes, sha256.as_str()) != (member.bytes, member.sha256.as_str()) {
        return Err(bad(format!(
            "its {} is not what its {MANIFEST} says: it is damaged",
            member.path
        )));
    }
    Ok(())
}

/// Copies, and tells an error of reading from one of writing.
fn copy(from: &mut impl Read, to: &mut File, path: &Path) -> Result<(), BackupError> {
    let mut block = vec![0; 128 << 10];
    loop {
        let n = match from.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(BackupError::Read(error)),
        };
        to.write_all(&block[..n]).map_err(|source| BackupError::io(path, source))?;
    }
}

fn bad(what: impl Into<String>) -> BackupError {
    BackupError::NotABackup { what: what.into() }
}

fn not_tar(error: io::Error) -> BackupError {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            bad("it is no tar archive")
        }
        _ => BackupError::Read(error),
    }
}

/// A reader that hashes what passes.
struct Hashing<R> {
    from: R,
    hash: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    fn new(from: R) -> Self {
        Self { from, hash: Sha256::new(), bytes: 0 }
    }

    /// Length and hash of what has passed.
    fn end(self) -> (u64, String) {
        (self.bytes, hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(files: Vec<Member>) -> Manifest {
        Manifest {
            format: FORMAT,
            version: "0.1.0".into(),
            created_at: "2026-01-02T03:04:05.000Z".into(),
            schema: 2,
            log_epoch: LogEpoch::from_bytes([7; 16]),
            credentials: false,
            counts: Amounts::default(),
            files,
        }
    }

    /// A backup of a database that is none, and two uploads.
    fn packed(dir: &Path, gzip: bool) -> Vec<u8> {
        let long = format!("uploads/{}/a file", "x".repeat(150));
        let names = [DATABASE, "uploads/s/one", &long];
        let sources: Vec<Source> = names
            .iter()
            .zip(["db", "first", "second"])
            .map(|(name, text)| {
                let path = dir.join(text);
                std::fs::write(&path, text.repeat(1000)).expect("a fresh directory");
                Source { name: (*name).to_owned(), path }
            })
            .collect();
        let files = sources.iter().map(|source| source.member().expect("readable")).collect();
        pack(Vec::new(), gzip, &manifest(files), &sources).expect("packs")
    }

    fn unpacked(bytes: &[u8]) -> Result<Manifest, BackupError> {
        let to = tempfile::tempdir().expect("a directory");
        let found = unpack(bytes, to.path(), |_| true)?;
        let db = std::fs::read(to.path().join(DATABASE)).expect("it is unpacked");
        assert_eq!(db, "db".repeat(1000).as_bytes());
        Ok(found)
    }

    #[test]
    fn what_is_packed_is_unpacked_and_a_cut_or_a_changed_byte_is_seen() {
        for gzip in [false, true] {
            let dir = tempfile::tempdir().expect("a directory");
            let bytes = packed(dir.path(), gzip);
            assert_eq!(unpacked(&bytes).expect("sound").files.len(), 3);
            // The last two blocks of a tar are its end: without them it is all there.
            let end = if gzip { bytes.len() - 1 } else { bytes.len() - 1024 };
            for cut in (0..end).step_by(97) {
                unpacked(&bytes[..cut]).expect_err(&format!("cut at {cut}"));
            }
            // In a tar: any byte of a member's content. In a gzip: any byte but of its head.
            let spoilt: Vec<usize> = if gzip {
                (10..bytes.len()).step_by(7).collect()
            } else {
                let at = |text: &str| {
                    let text = text.as_bytes();
                    bytes.windows(text.len()).position(|w| w == text).expect("it is plain")
                };
                vec![at("dbdbdb"), at("firstfirst") + 999, at("secondsecond") + 5]
            };
            let sound = unpacked(&bytes).expect("sound");
            for at in spoilt {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1;
                // Two compressed texts may stand for the same one.
                if let Ok(found) = unpacked(&bytes) {
                    assert!(gzip && found == sound, "byte {at} is another");
                }
            }
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for good in [DATABASE, TOKEN, "uploads/a", "uploads/a/b"] {
            assert!(is_ours(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "..",
            "../x",
            "/etc/passwd",
            "uploads",
            "uploads/",
            "uploads/../x",
            "other",
            "uploads//x",
            "reattach.db/x",
            "token/x",
            "agents/x",
            "uploads/a/../../../x",
        ] {
            assert!(!is_ours(bad), "{bad}");
        }
    }

    #[test]
    fn a_member_that_no_manifest_names_is_refused_and_so_are_links() {
        let dir = tempfile::tempdir().expect("a directory");
        let with = |change: &dyn Fn(&mut tar::Builder<Vec<u8>>)| {
            let path = dir.path().join("db");
            std::fs::write(&path, "db".repeat(1000)).expect("a fresh directory");
            let source = Source { name: DATABASE.into(), path };
            let files = vec![source.member().expect("readable")];
            let text = serde_json::to_vec(&manifest(files)).expect("JSON");
            let mut tar = tar::Builder::new(Vec::new());
            let mut add = |name: &str, body: &[u8]| {
                let mut header = tar::Header::new_gnu();
                header.set_size(body.len() as u64);
                tar.append_data(&mut header, name, body).expect("it is memory");
            };
            add(MANIFEST, &text);
            add(DATABASE, "db".repeat(1000).as_bytes());
            change(&mut tar);
            unpacked(&tar.into_inner().expect("it is memory")).map(drop)
        };
        with(&|_| ()).expect("sound");
        let said = with(&|tar| {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            tar.append_data(&mut header, "uploads/x", &b"x"[..]).expect("it is memory");
        });
        assert!(said.expect_err("not in the manifest").to_string().contains("uploads/x"));
        let said = with(&|tar| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, "uploads/x", "/etc").expect("it is memory");
        });
        assert!(said.expect_err("a link").to_string().contains("not an ordinary file"));
    }

    #[test]
    fn what_is_no_backup_is_said_to_be_none() {
        for other in [&b""[..], b"hello", b"\x1f\x8bnonsense", &[0; 2048], b"SQLite format 3\0"] {
            unpacked(other).expect_err("no backup");
        }
        let zstd = unpacked(&[0x28, 0xb5, 0x2f, 0xfd, 0]).expect_err("compressed otherwise");
        assert!(zstd.to_string().contains("zstd -d"), "{zstd}");
    }
}
