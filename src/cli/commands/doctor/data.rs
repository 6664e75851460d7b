//! The data directory: whose it is, whether there is room, and whether the database is sound.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};
use serde_json::json;

use super::{Patient, Report, quoted};
use crate::cli::text;
use crate::limits;
use crate::run::id::Millis;
use crate::store::{BALLAST, Check, DATABASE, Survey, survey};

const GROUP: &str = "data";

/// Looks at it, and tells when a session was last changed, by the database.
pub(super) fn check(report: &mut Report, patient: &Patient) -> Option<Millis> {
    let dir = &patient.data_dir;
    let meta = match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => {
            let what = format!("{} is no directory", dir.display());
            report.fail(GROUP, what, "move it away, or use --data-dir DIR");
            return None;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.ok(GROUP, format!("{} is not there yet; serve makes it", dir.display()));
            room(report, first_there(dir));
            return None;
        }
        Err(error) => {
            let what = format!("cannot look at {}: {error}", dir.display());
            report.fail(GROUP, what, format!("ls -ld {}", quoted(dir)));
            return None;
        }
    };
    owner(report, dir, &meta);
    room(report, dir);
    let last = database(report, patient);
    files(report, patient);
    last
}

fn owner(report: &mut Report, dir: &Path, meta: &fs::Metadata) {
    let me = rustix::process::geteuid().as_raw();
    let mode = meta.permissions().mode() & 0o7777;
    if meta.uid() != me {
        let what = format!("{} belongs to uid {}, and you are {me}", dir.display(), meta.uid());
        let fix = format!("run as its owner, or: sudo chown -R {me} {}", quoted(dir));
        report.fail(GROUP, what, fix);
    } else if access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let what = format!("{} cannot be written (mode {mode:04o})", dir.display());
        report.fail(GROUP, what, format!("chmod 700 {}", quoted(dir)));
    } else if mode & 0o077 != 0 {
        let what = format!("{} is open to other users (mode {mode:04o})", dir.display());
        report.warn(GROUP, what, format!("chmod 700 {}", quoted(dir)));
    } else {
        report.ok(GROUP, format!("{}, writable, {mode:04o}", dir.display()));
    }
    report.facts(json!({"dir": dir, "mode": format!("{mode:04o}"), "uid": meta.uid()}));
}

/// The directory, or the one above it that is there.
fn first_there(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir)
}

fn room(report: &mut Report, dir: &Path) {
    let Ok(disk) = statvfs(dir) else { return };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let shown = format!("{} free on its disk", text::bytes(free));
    let fix = format!("make room: du -sh {}, or set retention.max_age", quoted(dir));
    if free < limits::DOCTOR_FREE_BYTES_FAIL {
        report.fail(GROUP, shown, fix);
    } else if free < limits::DOCTOR_FREE_BYTES_WARN {
        report.warn(GROUP, shown, fix);
    } else {
        report.ok(GROUP, shown);
    }
    report.facts(json!({"freeBytes": free}));
    if is_on_network(dir) {
        let what = "it lies on a network's file system, where locks and memory maps do not hold";
        report.fail(GROUP, what, "move it to a local disk: --data-dir DIR");
    }
}

/// NFS, SMB and CIFS, by the numbers that Linux gives them.
fn is_on_network(dir: &Path) -> bool {
    const KINDS: [u32; 3] = [0x6969, 0x517b, 0xff53_4d42];
    let Ok(kind) = rustix::fs::statfs(dir) else { return false };
    // The type of this number differs between machines; its low half is the same on all.
    u32::try_from(i128::from(kind.f_type) & 0xffff_ffff).is_ok_and(|kind| KINDS.contains(&kind))
}

fn database(report: &mut Report, patient: &Patient) -> Option<Millis> {
    let path = patient.data_dir.join(DATABASE);
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    if !path.exists() {
        report.ok(GROUP, "no database yet");
        return None;
    }
    let seen = match survey(&path, limits::DOCTOR_CHECK) {
        Ok(seen) => seen,
        Err(error) => {
            let what = format!("{}: {error}", path.display());
            let fix = "reattach verify says more; then reattach restore BACKUP --force, which moves \
                       the old one aside";
            report.fail(GROUP, what, fix);
            return None;
        }
    };
    let size = bytes(&path);
    let wal = bytes(&path.with_extension("db-wal"));
    let facts = json!({
        "schema": seen.schema,
        "schemaOfProgram": seen.schema_of_program,
        "sessions": seen.sessions,
        "runs": seen.runs,
        "bytes": size,
        "walBytes": wal,
        "check": match &seen.check {
            Check::Sound => "ok",
            Check::Damaged(_) => "damaged",
            Check::Unfinished => "unfinished",
        },
    });
    if !seen.ours {
        let what = format!("{} is another program's database", path.display());
        report.fail(GROUP, what, "use another --data-dir DIR");
        return None;
    }
    if seen.schema == 0 {
        report.ok(GROUP, "the database is empty: a server was killed as it began").facts(facts);
        return None;
    }
    let counts = match (seen.sessions, seen.runs) {
        (Some(sessions), Some(runs)) => {
            format!("{sessions} sessions, {runs} runs, {}", text::bytes(size + wal))
        }
        _ => text::bytes(size + wal),
    };
    match &seen.check {
        Check::Damaged(damage) => {
            let what = format!("the database is damaged: {damage}");
            let fix = "stop the server; reattach verify says more; then reattach restore BACKUP \
                       --force, which moves the old one aside";
            report.fail(GROUP, what, fix);
        }
        Check::Sound => {
            report.ok(GROUP, format!("{counts}; SQLite finds no damage"));
        }
        Check::Unfinished => {
            let span = limits::DOCTOR_CHECK.as_secs();
            report.ok(GROUP, format!("{counts}; no damage found in {span} s, not all was seen"));
        }
    }
    report.facts(facts);
    schema(report, &seen);
    seen.last_change
}

/// Whether this program can read its tables.
fn schema(report: &mut Report, seen: &Survey) {
    if seen.schema > seen.schema_of_program {
        let what = format!(
            "its schema is version {}, and this program knows up to {}",
            seen.schema, seen.schema_of_program
        );
        report.fail(GROUP, what, "install the newer reattach that wrote it");
    } else if seen.schema < seen.schema_of_program {
        let what = format!(
            "its schema is version {}; the next serve brings it up to {} and keeps a copy",
            seen.schema, seen.schema_of_program
        );
        report.ok(GROUP, what);
    }
}

/// What else lies there: modes of secrets, the ballast, leftovers.
fn files(report: &mut Report, patient: &Patient) {
    let dir = &patient.data_dir;
    for name in ["token", DATABASE, "server.json"] {
        let path = dir.join(name);
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.permissions().mode() & 0o077 != 0 {
            let what = format!("{} can be read by other users", path.display());
            report.warn(GROUP, what, format!("chmod 600 {}", quoted(&path)));
        }
    }
    if dir.join(DATABASE).exists() && !dir.join(BALLAST).exists() && patient.server.is_some() {
        let what = "the ballast is gone: the disk was full, or nearly so";
        report.warn(GROUP, what, "make room; the server makes it again by itself");
    }
    let left = leftovers(dir);
    if !left.is_empty() && patient.server.is_none() {
        let names: Vec<String> = left.iter().map(|path| quoted(path)).collect();
        let what = format!("{} of something that did not end", text::count(left.len(), "leftover"));
        report.warn(GROUP, what, format!("rm -r {}", names.join(" ")));
    }
    let copies = named(dir, |name| name.ends_with(".bak"));
    if !copies.is_empty() {
        let bytes: u64 =
            copies.iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum();
        let what = format!(
            "{} from before an upgrade, {}; to be deleted once the new version serves you well",
            text::count(copies.len(), "copy").replace("copys", "copies"),
            text::bytes(bytes)
        );
        report.ok(GROUP, what);
    }
}

/// Files that are renamed when they are whole, and never were.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    named(dir, |name| name.ends_with(".new"))
}

fn named(dir: &Path, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let fits = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(&fits);
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(fits).collect();
    found.sort();
    found
}
