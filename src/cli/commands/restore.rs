//! `restore`: a backup becomes a data directory.
//!
//! Must not know what is in the database.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::backup::{amount, failed, object, unusable};
use super::verify::shown;
use crate::cli::args::OutputArgs;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::screen::Screen;
use crate::cli::target::{self, Target};
use crate::keeper::homes;
use crate::store::{BackupError, RestoreError, RestoreOptions, RestorePlace, Restored};

/// `reattach restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup; `-` is stdin
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where to: the data directory [default: $XDG_DATA_HOME/reattach, else ~/.local/share/reattach]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Move what is there aside, into a folder in it; nothing is deleted
    #[arg(short, long)]
    pub force: bool,
    /// Leave the backup's tokens and devices out
    #[arg(long)]
    pub without_credentials: bool,
    /// Restore it although the examination of its database found something
    #[arg(long)]
    pub accept_damage: bool,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach restore`.
///
/// # Errors
/// If a server or an agent uses the directory, if it is not empty, if the backup is not sound.
pub fn restore(args: &RestoreArgs) -> Outcome {
    let dir = target::data_dir(args.data_dir.as_deref())?;
    let flags = Target::DataDir(dir.clone()).flags();
    // Before the directory is made: a name that was mistyped leaves nothing behind.
    let from = open(&args.file)?;
    let place = RestorePlace::lock(&dir).map_err(|error| unusable(&error, &dir))?;
    no_agents(&dir, &flags)?;
    let contents = place.contents().map_err(|error| failed(&error, &dir))?;
    if let (false, Some(first)) = (args.force, contents.first()) {
        return Err(Failure::new(
            Exit::Conflict,
            "NOT_EMPTY",
            format!("{} is not empty: {} is there", dir.display(), first.display()),
            "--data-dir DIR for an empty place, or --force, which moves what is there aside",
        )
        .into());
    }
    let options = RestoreOptions {
        credentials: !args.without_credentials,
        accept_damage: args.accept_damage,
    };
    let mut screen = Screen::new(args.output);
    let restored = match place.restore(from, options) {
        Ok(restored) => restored,
        Err(RestoreError::Backup(error)) => return Err(failed(&error, &dir).into()),
        Err(RestoreError::Unsound(report)) => {
            if !screen.is_json() {
                screen.say(shown(&report).trim_end())?;
            }
            let count = report.findings.len() + report.more;
            let first = report.findings.first().map_or("", |finding| finding.what.as_str());
            return Err(Failure::new(
                Exit::Data,
                "UNSOUND",
                format!("the database in this backup is not sound: {first} ({count} in all)"),
                "another backup, or --accept-damage to restore it all the same",
            )
            .into());
        }
    };
    let text = format!("{}: {}\n", dir.display(), amount(&restored.manifest.counts));
    screen.document(&as_json(&restored, &dir), &text)?;
    if !screen.is_json() {
        for line in notes(&restored, &flags) {
            screen.say(&line)?;
        }
    }
    Ok(Exit::Ok)
}

/// The backup to read.
pub(super) fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Failure::usage(
                "no backup comes from a terminal",
                "the name of a file, or `zstd -dc FILE | reattach restore -`",
            ));
        }
        return Ok(Box::new(io::stdin()));
    }
    match File::open(file) {
        Ok(opened) => Ok(Box::new(opened)),
        Err(error) => Err(Failure::new(
            if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failure },
            "FILE",
            format!("cannot read {}: {error}", file.display()),
            "the name of a file that `reattach backup` wrote",
        )),
    }
}

/// An agent that is at work belongs to the log that is there; without it, it would be lost.
fn no_agents(dir: &Path, flags: &str) -> Result<(), Failure> {
    let unreadable = |error: io::Error| {
        failed(&BackupError::Io { path: dir.join("agents"), source: error }, dir)
    };
    let mut pids = Vec::new();
    let mut alive = 0;
    for home in homes(dir).map_err(unreadable)? {
        if home.is_alive().map_err(unreadable)? {
            alive += 1;
            pids.extend(home.info().map(|info| info.pid.to_string()));
        }
    }
    if alive == 0 {
        return Ok(());
    }
    let stop = if pids.is_empty() {
        format!("reattach ps --keepers{flags}")
    } else {
        format!(
            "kill {}, then the same command; to see them: reattach ps --keepers{flags}",
            pids.join(" ")
        )
    };
    Err(Failure::new(
        Exit::Data,
        "AGENTS_AT_WORK",
        format!("{alive} of the agents of {} still work, without a server", dir.display()),
        stop,
    ))
}

fn as_json(restored: &Restored, dir: &Path) -> Value {
    let mut json = json!({
        "dataDir": dir,
        "backup": object(&restored.manifest, None, None),
        "logEpoch": restored.epoch,
        "running": restored.running,
        "queuesHeld": restored.held,
        "credentials": restored.credentials,
        "aside": restored.aside,
    });
    json["findings"] = (restored.report.findings.len() + restored.report.more).into();
    json
}

fn notes(restored: &Restored, flags: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let found = restored.report.findings.len() + restored.report.more;
    if found > 0 {
        notes
            .push(format!("it is damaged ({found} findings); to see them: reattach verify{flags}"));
    }
    if let Some(aside) = &restored.aside {
        notes.push(format!("what was there before lies in {}", aside.display()));
    }
    if restored.running > 0 {
        let n = restored.running;
        notes.push(format!("{n} runs were on; the next start ends them as agent_lost"));
    }
    if restored.held > 0 {
        notes.push(format!(
            "the queues of {} sessions are held until you resume them",
            restored.held
        ));
    }
    if !restored.credentials {
        notes.push("no token is in it: the next start makes a new one".to_owned());
    }
    notes.push(format!("to go on: reattach serve{flags}"));
    notes
}
