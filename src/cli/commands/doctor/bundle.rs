//! The archive for a bug report: what doctor found, the configuration without its secrets, and
//! which files are there. Never tokens, prompts, events or what agents said.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::{DoctorArgs, Patient, Report};
use crate::cli::commands::config;
use crate::cli::config::{Flags, Listed, MASK, list};
use crate::cli::exit::{Exit, Failure};
use crate::cli::text::Paint;
use crate::run::id::Millis;

/// Writes the archive; a file that exists stays.
pub(super) fn write(
    file: &Path,
    report: &Report,
    patient: &Patient,
    args: &DoctorArgs,
) -> Result<(), Failure> {
    let parts = [
        ("doctor.json", pretty(&report.json(args.strict))),
        ("doctor.txt", report.table(Paint::Plain)),
        ("config.json", pretty(&configuration(patient, args))),
        ("files.json", pretty(&files(&patient.data_dir))),
        ("README", README.to_owned()),
    ];
    let secrets = secrets(patient);
    let done = pack(file, &parts.map(|(name, text)| (name, without(&text, &secrets))));
    done.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(
            Exit::Conflict,
            "FILE_EXISTS",
            format!("{} exists, and stays as it is", file.display()),
            "reattach doctor --bundle ANOTHER.tar",
        ),
        _ => Failure::new(
            Exit::Failure,
            "FILE",
            format!("cannot write {}: {error}", file.display()),
            "reattach doctor --bundle FILE.tar, where you may write",
        ),
    })
}

const README: &str = "\
What `reattach doctor --bundle` writes. doctor.json and doctor.txt are its findings, config.json the
configuration with its secrets replaced, files.json the names and sizes of files in the data
directory. There are no tokens, no prompts, no events and no output of agents in it. Names of
directories, hosts and agents are: look through it before you give it to anybody.
";

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// The configuration, less than `config show` shows: arguments of programs may hold anything.
fn configuration(patient: &Patient, args: &DoctorArgs) -> Value {
    let read = config::file(args.config.as_deref(), &patient.world).ok().flatten();
    let read = read.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let values =
        list(&Flags::default(), read, &patient.world).into_iter().map(|mut one: Listed| {
            if one.key.ends_with(".command") {
                one.value = first_alone(&one.value);
            }
            config::json_of(&one)
        });
    json!({"values": values.collect::<Vec<_>>()})
}

/// A command with its arguments hidden.
fn first_alone(command: &str) -> String {
    let parsed: Option<toml::Table> = format!("v = {command}").parse().ok();
    let argv = parsed.as_ref().and_then(|table| table["v"].as_array());
    let Some(argv) = argv else { return toml::Value::from(MASK).to_string() };
    let shown = argv
        .iter()
        .enumerate()
        .map(|(at, word)| if at == 0 { word.clone() } else { toml::Value::from(MASK) });
    toml::Value::Array(shown.collect()).to_string()
}

/// Names and sizes, homes of keepers included.
fn files(dir: &Path) -> Value {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten().take(FILES_MAX) {
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            let name = path.strip_prefix(dir).unwrap_or(&path).to_owned();
            // Of what clients uploaded, the names are theirs.
            if name.starts_with("uploads") && name.components().count() > 1 {
                continue;
            }
            if meta.is_dir() {
                dirs.push(path);
            }
            if found.len() < FILES_MAX {
                found.push(json!({"name": name, "bytes": meta.len(), "dir": meta.is_dir()}));
            }
        }
    }
    json!({"files": found})
}

const FILES_MAX: usize = 1000;

/// What must not be in it whatever the way: the tokens that are known here.
fn secrets(patient: &Patient) -> Vec<String> {
    let token = fs::read_to_string(patient.data_dir.join(super::TOKEN)).ok();
    let given = std::env::var("REATTACH_TOKEN").ok();
    let of_agents = patient.config.iter().flat_map(|config| config.providers.values());
    let of_agents = of_agents.flat_map(|provider| provider.env.values().cloned());
    // A shorter one would be found in words that are none.
    let long = |secret: &String| secret.len() >= 8;
    token
        .into_iter()
        .chain(given)
        .map(|token| token.trim().to_owned())
        .chain(of_agents)
        .filter(long)
        .collect()
}

fn without(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
}

fn pack(file: &Path, parts: &[(&str, String)]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let out = options.write(true).create_new(true).mode(0o600).open(file)?;
    let mut archive = tar::Builder::new(io::BufWriter::new(out));
    let now = u64::try_from(Millis::now().0 / 1000).unwrap_or(0);
    for (name, text) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or(0));
        header.set_mode(0o600);
        header.set_mtime(now);
        header.set_cksum();
        archive.append_data(&mut header, format!("reattach-doctor/{name}"), text.as_bytes())?;
    }
    let mut out = archive.into_inner()?;
    out.flush()?;
    out.get_ref().sync_all()
}
