//! `config`: what is configured and where that was said, whether it is right, and a file to begin
//! with.
//!
//! Knows files and how they are shown. Must not know what a key means.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::args::OutputArgs;
use crate::cli::config::{Config, ConfigError, Flags, KEYS, Listed, Place, World, commented, list};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::screen::Screen;
use crate::cli::text;

/// `reattach config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What can be done with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every value; secrets are masked
    Show(ShowArgs),
    /// Check a configuration as `serve` would, without starting anything
    Check(CheckArgs),
    /// Write a file with every key, its meaning and its default
    Init(InitArgs),
}

/// `reattach config show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Say for each value where it comes from
    #[arg(long)]
    pub origin: bool,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// As `serve --bind`
    #[arg(long, value_name = "ADDR:PORT")]
    pub bind: Option<String>,
    /// As `serve --behind-proxy`
    #[arg(long)]
    pub behind_proxy: bool,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach config check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file [default: the one that `serve` would read]
    pub file: Option<PathBuf>,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach config init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to write; `-` prints it [default: the one that `serve` would read]
    pub file: Option<PathBuf>,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ConfigArgs {
    /// Whether errors are to be printed as JSON.
    #[must_use]
    pub const fn json(&self) -> bool {
        match &self.command {
            ConfigCommand::Show(args) => args.output.json,
            ConfigCommand::Check(args) => args.output.json,
            ConfigCommand::Init(args) => args.output.json,
        }
    }
}

/// `reattach config`.
///
/// # Errors
/// `Exit::Configuration` for one that `serve` would refuse, `Exit::Conflict` for a file that
/// exists.
pub fn config(args: &ConfigArgs) -> Outcome {
    let world = World::current().map_err(|error| refused(&error))?;
    match &args.command {
        ConfigCommand::Show(args) => show(args, &world),
        ConfigCommand::Check(args) => check(args, &world),
        ConfigCommand::Init(args) => init(args, &world),
    }
}

/// The file that counts, and what stands in it.
///
/// # Errors
/// If it cannot be read, or was named and is not there.
pub fn file(named: Option<&Path>, world: &World) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => match world.config_file().filter(|path| path.exists()) {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) => Err(ConfigError::Unreadable { path, error }),
    }
}

fn show(args: &ShowArgs, world: &World) -> Outcome {
    let flags = Flags {
        config: args.config.clone(),
        bind: args.bind.clone(),
        behind_proxy: args.behind_proxy,
        // What is reachable is not to be judged here: it is to be seen.
        insecure_http: true,
        ..Flags::default()
    };
    let read = file(args.config.as_deref(), world).map_err(|error| refused(&error))?;
    let read = read.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    Config::from_parts(&flags, read, world).map_err(|error| refused(&error))?;
    let listed = list(&flags, read, world);
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|one| {
            let said = format!("{} = {}", one.key, one.value);
            if args.origin { vec![said, format!("# {}", one.place)] } else { vec![said] }
        })
        .collect();
    let mut table = String::new();
    let width = rows.iter().map(|row| row[0].chars().count().min(60)).max().unwrap_or(0);
    for row in &rows {
        match row.as_slice() {
            [said, place] => table.push_str(&format!("{said:width$}  {place}\n")),
            row => table.push_str(&format!("{}\n", row.join(" "))),
        }
    }
    let table = text::clean(&table, text::Paint::Plain);
    let mut screen = Screen::new(args.output);
    let file = read.map(|(path, _)| path);
    let items: Vec<Value> = listed.iter().map(json_of).collect();
    screen.document(&json!({"file": file, "values": items}), &table)?;
    if !screen.is_json() && args.origin {
        screen.say(&match (file, world.config_file()) {
            (Some(path), _) => format!("the file is {}", path.display()),
            (None, Some(path)) => {
                format!("there is no file; `reattach config init` writes {}", path.display())
            }
            (None, None) => "there is no file".to_owned(),
        })?;
    }
    Ok(Exit::Ok)
}

/// One value as JSON: `{"key","value","origin",...}`. `value` is JSON where TOML's is.
#[must_use]
pub fn json_of(listed: &Listed) -> Value {
    let parsed: Option<toml::Table> = format!("v = {}", listed.value).parse().ok();
    let value = parsed
        .and_then(|mut table| table.remove("v"))
        .and_then(|value| serde_json::to_value(value).ok())
        .unwrap_or_else(|| Value::from(listed.value.clone()));
    let mut json = json!({"key": listed.key, "value": value});
    match &listed.place {
        Place::Default => json["origin"] = "default".into(),
        Place::File(path, line) => {
            json["origin"] = "file".into();
            json["file"] = json!(path);
            json["line"] = json!(line);
        }
        Place::Variable(name) => {
            json["origin"] = "environment".into();
            json["variable"] = json!(name);
        }
        Place::Flag(name) => {
            json["origin"] = "flag".into();
            json["flag"] = json!(name);
        }
    }
    json
}

fn check(args: &CheckArgs, world: &World) -> Outcome {
    // A bind beyond loopback may be meant: the flag that says so is given to `serve`.
    let flags = Flags { config: args.file.clone(), insecure_http: true, ..Flags::default() };
    let read = file(args.file.as_deref(), world).map_err(|error| refused(&error))?;
    let read = read.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let config = Config::from_parts(&flags, read, world).map_err(|error| refused(&error))?;
    let listed = list(&flags, read, world);
    let file_keys = listed.iter().filter(|one| matches!(one.place, Place::File(..))).count();
    let variables: Vec<&str> = listed
        .iter()
        .filter_map(|one| match &one.place {
            Place::Variable(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let path = read.map(|(path, _)| path);
    let providers: Vec<&String> = config.providers.keys().collect();
    let mut text = match path {
        Some(path) => format!("{} is right: {}\n", path.display(), text::count(file_keys, "value")),
        None => "there is no file, which is right too: the defaults count\n".to_owned(),
    };
    if !variables.is_empty() {
        text.push_str(&format!("from the environment: {}\n", variables.join(", ")));
    }
    let mut screen = Screen::new(args.output);
    let json = json!({
        "ok": true,
        "file": path,
        "values": file_keys,
        "variables": variables,
        "providers": providers,
    });
    screen.document(&json, &text)?;
    let secure = Flags { insecure_http: false, ..flags };
    if let Err(error) = Config::from_parts(&secure, read, world) {
        screen.say(&format!("serve will want a flag: {error}"))?;
    }
    Ok(Exit::Ok)
}

fn init(args: &InitArgs, world: &World) -> Outcome {
    let mut screen = Screen::new(args.output);
    let text = commented();
    let path = match &args.file {
        Some(path) if path.as_os_str() == "-" => {
            screen.document(&json!({"text": text}), &text)?;
            return Ok(Exit::Ok);
        }
        Some(path) => path.clone(),
        None => world.config_file().ok_or_else(|| {
            Failure::new(
                Exit::Configuration,
                "NO_CONFIG_DIR",
                "neither XDG_CONFIG_HOME nor HOME says where configuration lies",
                "reattach config init FILE",
            )
        })?,
    };
    write_new(&path, &text).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(
            Exit::Conflict,
            "FILE_EXISTS",
            format!("{} exists, and stays as it is", path.display()),
            "reattach config init - (which prints), or another FILE",
        ),
        _ => Failure::new(
            Exit::Failure,
            "FILE",
            format!("cannot write {}: {error}", path.display()),
            "reattach config init FILE, where you may write",
        ),
    })?;
    let shown = format!("wrote {}\n", path.display());
    screen.document(&json!({"file": path, "keys": KEYS.len()}), &shown)?;
    Ok(Exit::Ok)
}

/// For its owner alone: keys of agents may come to stand in it.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn refused(error: &ConfigError) -> Failure {
    Failure::new(
        Exit::Configuration,
        "CONFIGURATION",
        error.to_string(),
        "mend it there; `reattach config init -` shows every key",
    )
}
