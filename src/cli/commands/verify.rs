//! `verify`: is a data directory, a database or a backup what it is to be?
//!
//! Reads files and asks no server. Must not know what is in the database.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::backup::{amount, failed, unusable};
use super::restore::open;
use crate::cli::args::OutputArgs;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::screen::Screen;
use crate::cli::target;
use crate::cli::text::{self, Paint};
use crate::run::id::AgentId;
use crate::store::{self, BackupError, DATABASE, Report};

/// `reattach verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A backup (`-` is stdin) or a database [default: the database of the data directory]
    #[arg(value_name = "FILE", conflicts_with = "data_dir")]
    pub file: Option<PathBuf>,
    /// The data directory [default: $XDG_DATA_HOME/reattach, else ~/.local/share/reattach]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach verify`: exit code 75 if something was found.
///
/// # Errors
/// If it cannot be examined at all.
pub fn verify(args: &VerifyArgs) -> Outcome {
    let (path, report) = match &args.file {
        Some(file) => (file.clone(), examine(file)?),
        None => {
            let dir = target::data_dir(args.data_dir.as_deref())?;
            let path = dir.join(DATABASE);
            if !path.is_file() {
                return Err(failed(&BackupError::NoDatabase { dir: dir.clone() }, &dir).into());
            }
            let mut report = store::verify(&path).map_err(|error| unusable(&error, &dir))?;
            store::verify_uploads(&dir, &mut report).map_err(|source| {
                failed(&BackupError::Io { path: dir.join(store::UPLOADS), source }, &dir)
            })?;
            (path, report)
        }
    };
    let mut screen = Screen::new(args.output);
    let said = format!("{}: {}\n", path.display(), conclusion(&report));
    screen.document(&as_json(&report, &path), &(shown(&report) + &said))?;
    if report.is_sound() {
        return Ok(Exit::Ok);
    }
    if !screen.is_json() {
        screen.say(
            "keep a copy of it before anything else; then `reattach restore BACKUP --force`",
        )?;
    }
    Ok(Exit::Data)
}

fn examine(file: &Path) -> Result<Report, Failure> {
    let from = open(file)?;
    let folder = file.parent().unwrap_or(file);
    if file != Path::new("-") && store::is_database(file).unwrap_or(false) {
        return store::verify(file).map_err(|error| unusable(&error, folder));
    }
    let temporary = std::env::temp_dir().join(format!("reattach-verify-{}", AgentId::random()));
    let made = fs::DirBuilder::new().mode(0o700).create(&temporary);
    made.map_err(|source| failed(&BackupError::Io { path: temporary.clone(), source }, folder))?;
    let verified = store::verify_backup(from, &temporary);
    // It was ours alone.
    drop(fs::remove_dir_all(&temporary));
    verified.map(|(_, report)| report).map_err(|error| failed(&error, folder))
}

/// Findings, one a line.
pub(super) fn shown(report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let what = text::one_line(&text::clean(&finding.what, Paint::Plain), 300);
        write!(out, "{:<7}", finding.invariant).ok();
        for (name, id) in [
            ("session", finding.session.map(|id| id.to_string())),
            ("run", finding.run.map(|id| id.to_string())),
        ] {
            if let Some(id) = id {
                write!(out, " {name} {id}").ok();
            }
        }
        writeln!(out, " {what}").ok();
    }
    if report.more > 0 {
        writeln!(out, "... and {} more", report.more).ok();
    }
    out
}

fn conclusion(report: &Report) -> String {
    let found = report.findings.len() + report.more;
    let amount = amount(&report.counts);
    let hashes = match (report.hashed, report.unhashed) {
        (_, 0) => "all hashes match".to_owned(),
        (_, none) => format!("{none} runs of before schema 3 have no hash"),
    };
    match found {
        0 => format!("sound; {amount}; {hashes}"),
        1 => format!("NOT sound: 1 finding; {amount}"),
        found => format!("NOT sound: {found} findings; {amount}"),
    }
}

fn as_json(report: &Report, path: &Path) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "invariant": finding.invariant,
                "sessionId": finding.session,
                "runId": finding.run,
                "what": finding.what,
            })
        })
        .collect();
    json!({
        "path": path,
        "sound": report.is_sound(),
        "schema": report.schema,
        "logEpoch": report.epoch,
        "counts": report.counts,
        "hashed": report.hashed,
        "unhashed": report.unhashed,
        "findings": findings,
        "more": report.more,
    })
}
