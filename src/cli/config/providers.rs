//! `[providers.NAME]`: which agents there are.

use std::collections::BTreeMap;
use std::path::Path;

use super::{ConfigError, Origin, World, value};
use crate::provider::{Kind, Provider};

/// The kinds that this version can run, by the name that the file gives them.
const KINDS: [(&str, Kind); 4] = [
    ("claude", Kind::Claude),
    ("command", Kind::Command),
    ("demo", Kind::Demo),
    ("jsonl", Kind::Jsonl),
];

/// Kinds that are promised, and not here yet.
const LATER_KINDS: [&str; 2] = ["acp", "codex"];

/// What a provider's table may hold.
const FIELDS: [&str; 3] = ["command", "env", "kind"];

/// A session's `provider` is at most this long.
const NAME_BYTES_MAX: usize = 64;

/// The providers when the file names none: what works without being told where it is.
pub(super) fn defaults(world: &World) -> BTreeMap<String, Provider> {
    ["claude", "command", "demo"]
        .into_iter()
        .filter_map(|name| {
            let kind = KINDS.iter().find(|(known, _)| *known == name)?.1;
            let provider = Provider {
                name: name.to_owned(),
                kind,
                command: default_command(kind, world)?,
                env: BTreeMap::new(),
            };
            Some((name.to_owned(), provider))
        })
        .collect()
}

/// The program of a kind, unless the file names one; `None` if only the file can.
fn default_command(kind: Kind, world: &World) -> Option<Vec<String>> {
    match kind {
        Kind::Claude => Some(vec!["claude".to_owned()]),
        Kind::Demo => Some(vec![world.exe.to_string_lossy().into_owned(), "demo-agent".to_owned()]),
        // The prompt is then a script.
        Kind::Command => Some(vec!["sh".to_owned()]),
        Kind::Jsonl => None,
    }
}

/// The providers that the file names.
pub(super) fn from_file(
    origin: &Origin,
    content: toml::Value,
    world: &World,
) -> Result<BTreeMap<String, Provider>, ConfigError> {
    let toml::Value::Table(tables) = content else {
        let problem = "must be tables: write `[providers.NAME]`".to_owned();
        return Err(ConfigError::invalid(origin.clone(), "providers", problem));
    };
    tables
        .into_iter()
        .map(|(name, table)| Ok((name.clone(), provider(origin, name, table, world)?)))
        .collect()
}

fn provider(
    origin: &Origin,
    name: String,
    table: toml::Value,
    world: &World,
) -> Result<Provider, ConfigError> {
    let path = format!("providers.{name}");
    let invalid = |key: &str, problem: String| {
        let key = if key.is_empty() { path.clone() } else { format!("{path}.{key}") };
        ConfigError::invalid(origin.clone(), &key, problem)
    };
    if !is_name(&name) {
        let problem =
            format!("must have a name of at most {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`");
        return Err(invalid("", problem));
    }
    let toml::Value::Table(mut table) = table else {
        return Err(invalid("", format!("must be a table: write `[providers.{name}]`")));
    };
    let kind = match table.remove("kind") {
        Some(toml::Value::String(kind)) => kind,
        Some(other) => {
            return Err(invalid("kind", format!("must be a string, not {}", other.type_str())));
        }
        // A provider called `claude` needs no second word.
        None if is_kind(&name) => name.clone(),
        None => return Err(invalid("kind", format!("is missing; it is one of {}", known_kinds()))),
    };
    let Some((_, kind)) = KINDS.iter().copied().find(|(known, _)| *known == kind) else {
        return Err(unknown_kind(origin, name, &kind));
    };
    let command = match table.remove("command") {
        Some(value) => command(value, world).map_err(|problem| invalid("command", problem))?,
        None => default_command(kind, world).ok_or_else(|| {
            let problem = "is missing: a `jsonl` provider has no default program".to_owned();
            invalid("command", problem)
        })?,
    };
    let env = match table.remove("env") {
        Some(value) => environment(value).map_err(|problem| invalid("env", problem))?,
        None => BTreeMap::new(),
    };
    if let Some(unknown) = table.keys().next() {
        return Err(ConfigError::UnknownKey {
            key: format!("{path}.{unknown}"),
            origin: origin.clone(),
            nearest: format!(
                "{path}.{}",
                value::nearest(unknown, FIELDS.into_iter().map(str::to_owned))
            ),
        });
    }
    Ok(Provider { name, kind, command, env })
}

pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_kind(name: &str) -> bool {
    KINDS.iter().any(|(known, _)| *known == name) || LATER_KINDS.contains(&name)
}

fn known_kinds() -> String {
    KINDS.map(|(name, _)| format!("`{name}`")).join(", ")
}

fn unknown_kind(origin: &Origin, provider: String, kind: &str) -> ConfigError {
    if LATER_KINDS.contains(&kind) {
        return ConfigError::KindNotInThisVersion {
            provider,
            kind: kind.to_owned(),
            known: known_kinds(),
        };
    }
    let nearest = value::nearest(kind, KINDS.iter().map(|(name, _)| (*name).to_owned()));
    let problem = format!(
        "is \"{kind}\", which is no kind; the nearest known one is \"{nearest}\" (of {})",
        known_kinds()
    );
    ConfigError::invalid(origin.clone(), &format!("providers.{provider}.kind"), problem)
}

/// An argv: a program and its arguments.
pub(super) fn command(value: toml::Value, world: &World) -> Result<Vec<String>, String> {
    let wrong = "must be an array of strings, program first, such as [\"program\", \"argument\"]";
    let toml::Value::Array(items) = value else { return Err(wrong.to_owned()) };
    let mut argv = items
        .into_iter()
        .map(|item| match item {
            toml::Value::String(text) if text.contains('\0') => {
                Err("must not hold a NUL".to_owned())
            }
            toml::Value::String(text) => Ok(text),
            _ => Err(wrong.to_owned()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    match argv.first_mut() {
        Some(program) if !program.is_empty() => {
            if program.starts_with("~/") {
                let path = value::expand(Path::new(program), world.home().as_deref())?;
                *program = path.to_string_lossy().into_owned();
            }
            Ok(argv)
        }
        _ => Err("must name a program".to_owned()),
    }
}

/// Variables for the agent.
pub(super) fn environment(value: toml::Value) -> Result<BTreeMap<String, String>, String> {
    let toml::Value::Table(table) = value else {
        return Err("must be a table of strings, such as { KEY = \"value\" }".to_owned());
    };
    table
        .into_iter()
        .map(|(name, value)| match value {
            _ if name.is_empty() || name.contains(['=', '\0']) => {
                Err(format!("names a variable {name:?}, which cannot be"))
            }
            toml::Value::String(text) if text.contains('\0') => Err(format!("has a NUL in {name}")),
            toml::Value::String(text) => Ok((name, text)),
            other => Err(format!("must hold strings; {name} is {}", other.type_str())),
        })
        .collect()
}
