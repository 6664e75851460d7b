//! `backup`: a data directory as one file, also while a server uses it.
//!
//! Reads the directory itself and asks no server, so it works without one. Must not know what is
//! in the database.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::args::OutputArgs;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::screen::Screen;
use crate::cli::target;
use crate::cli::text;
use crate::store::{self, Amounts, BackupError, Manifest, OpenError};

/// `reattach backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file to write: a tar archive, compressed if its name ends in .gz or .tgz; `-` is stdout
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The data directory [default: $XDG_DATA_HOME/reattach, else ~/.local/share/reattach]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Put tokens and devices in as well; without them whoever has the file can log in nowhere
    #[arg(long)]
    pub with_credentials: bool,
    /// Replace FILE if it is there
    #[arg(short, long)]
    pub force: bool,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach backup`.
///
/// # Errors
/// If there is nothing to back up, if it cannot be read, or the file cannot be written.
pub fn backup(args: &BackupArgs) -> Outcome {
    let dir = target::data_dir(args.data_dir.as_deref())?;
    let mut screen = Screen::new(args.output);
    if args.file == Path::new("-") {
        let out = io::stdout();
        if out.is_terminal() {
            return Err(Failure::usage(
                "a backup is nothing for a terminal",
                "reattach backup FILE.tar, or `reattach backup - | zstd > FILE.tar.zst`",
            )
            .into());
        }
        let mut out = out.lock();
        let written =
            store::to_stream(&dir, &mut out, args.with_credentials, &std::env::temp_dir());
        let written = match written {
            // Errors of our stdout are those of whoever reads it.
            Err(BackupError::Write(error)) => return Err(error.into()),
            other => other.map_err(|error| failed(&error, &dir))?,
        };
        out.flush()?;
        let json = object(&written.manifest, None, None);
        let text = summary("stdout", &written.manifest, None);
        screen.say(&if screen.is_json() { json.to_string() } else { text })?;
        return Ok(Exit::Ok);
    }
    let written = store::to_file(&dir, &args.file, args.with_credentials, args.force)
        .map_err(|error| failed(&error, &dir))?;
    let name = args.file.display().to_string();
    let json = object(&written.manifest, Some(&args.file), Some(written.bytes));
    let text = summary(&name, &written.manifest, Some(written.bytes)) + "\n";
    screen.document(&json, &text)?;
    if !screen.is_json() {
        let next =
            format!("to examine it: reattach verify {name}; to use it: reattach restore {name}");
        screen.say(&next)?;
    }
    Ok(Exit::Ok)
}

/// What `--json` says of a backup.
pub(super) fn object(manifest: &Manifest, file: Option<&Path>, bytes: Option<u64>) -> Value {
    json!({
        "file": file,
        "bytes": bytes,
        "createdAt": manifest.created_at,
        "version": manifest.version,
        "schema": manifest.schema,
        "logEpoch": manifest.log_epoch,
        "credentials": manifest.credentials,
        "counts": manifest.counts,
        "files": manifest.files.len(),
    })
}

fn summary(name: &str, manifest: &Manifest, bytes: Option<u64>) -> String {
    let size = bytes.map_or_else(String::new, |bytes| format!("{}, ", text::bytes(bytes)));
    let with = if manifest.credentials { "with" } else { "without" };
    format!("{name}: {}; {size}{with} credentials", amount(&manifest.counts))
}

/// How much is in a database, in words.
pub(super) fn amount(counts: &Amounts) -> String {
    let of = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let on = if counts.running > 0 { format!(" ({} on)", counts.running) } else { String::new() };
    let (sessions, runs) = (of(counts.sessions, "session"), of(counts.runs, "run"));
    format!("{sessions}, {runs}{on}, {}", of(counts.events, "event"))
}

/// What an error of a backup means.
pub(super) fn failed(error: &BackupError, dir: &Path) -> Failure {
    let (exit, code, next) = match error {
        BackupError::NoDatabase { .. } => {
            (Exit::Data, "NO_DATABASE", "--data-dir DIR, the one that `reattach serve` uses".into())
        }
        BackupError::Exists { .. } => {
            (Exit::Conflict, "EXISTS", "another name, or the same command with --force".into())
        }
        BackupError::Busy { .. } => {
            (Exit::Conflict, "BUSY", "wait until it is done, or another name".into())
        }
        BackupError::Database(error) => return unusable(error, dir),
        BackupError::Io { .. } => (
            Exit::Failure,
            "FILE",
            "make it readable and writable for you, and see that there is room".into(),
        ),
        BackupError::Changed { .. } => (Exit::Failure, "CHANGED", "the same command again".into()),
        BackupError::Write(_) => {
            (Exit::Failure, "WRITE", "make room, or write it to another disk".into())
        }
        BackupError::Read(_) => (
            Exit::Data,
            "BACKUP_UNREADABLE",
            "another copy of it; `reattach verify FILE` examines one".into(),
        ),
        BackupError::NotABackup { .. } => (
            Exit::Data,
            "NOT_A_BACKUP",
            "a file that `reattach backup` wrote; `reattach verify FILE` examines one".into(),
        ),
        BackupError::Zstd => {
            (Exit::Usage, "COMPRESSED", "zstd -dc FILE | reattach restore -".into())
        }
        BackupError::NewerFormat { .. } => {
            (Exit::Data, "NEWER", "the version of reattach that made it".to_owned())
        }
    };
    Failure::new(exit, code, error.to_string(), next)
}

/// What it means that a data directory or a database cannot be used.
pub(super) fn unusable(error: &OpenError, dir: &Path) -> Failure {
    let (code, next) = match error {
        OpenError::AlreadyRunning { pid, .. } => {
            let stop = pid.map_or_else(
                || "stop that server".to_owned(),
                |pid| format!("stop that server (kill {pid})"),
            );
            ("ALREADY_RUNNING", format!("{stop}, or --data-dir DIR for another place"))
        }
        OpenError::Damaged { .. } => (
            "DAMAGED",
            format!("keep a copy of {}; then `reattach restore BACKUP --force`", dir.display()),
        ),
        OpenError::Newer { .. } => ("NEWER", "the newer version of reattach".to_owned()),
        OpenError::Older { .. } => {
            ("OLDER", "reattach serve, which brings it up to this version".to_owned())
        }
        OpenError::Foreign { .. } => ("FOREIGN", "--data-dir DIR, or another file".to_owned()),
        OpenError::DataDir { .. } | OpenError::File { .. } | OpenError::Sqlite { .. } => {
            ("DATA_DIR", "make it usable for you, or --data-dir DIR for another one".to_owned())
        }
    };
    Failure::new(Exit::Data, code, error.to_string(), next)
}
