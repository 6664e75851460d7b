//! What is configured and where it was said, as text: for `config show`, `config init` and
//! `doctor`.
//!
//! Reads the same table of keys as `Config::load`, and gives the values as they were written.
//! Secrets are masked here, so that nobody who shows a configuration has to think of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Flags, KEYS, World, keys, providers};

/// A value, as one would write it in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `section.key`, or longer.
    pub key: String,
    /// In TOML; a secret is `"***"`.
    pub value: String,
    /// Where it was said.
    pub place: Place,
}

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Default,
    /// In this line of this file.
    File(PathBuf, usize),
    /// In this variable.
    Variable(String),
    /// By this flag.
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// Every value that counts, in the order of the table of keys, then what else the file holds. For
/// a configuration that `Config::load` takes; of any other one, what can be told.
#[must_use]
pub fn list(flags: &Flags, file: Option<(&Path, &str)>, world: &World) -> Vec<Listed> {
    let mut written = file.map(|(path, text)| written(path, text)).unwrap_or_default();
    let mut listed: Vec<Listed> = KEYS
        .iter()
        .map(|key| {
            let path = key.path();
            let in_file = written.remove(&path);
            let (value, place) = flag(flags, &path)
                .or_else(|| {
                    let text = world.env.get(std::ffi::OsStr::new(&key.env()))?;
                    let text = text.to_string_lossy();
                    let value = if text.trim_start().starts_with('[') || is_bare(key.default) {
                        text.into_owned()
                    } else {
                        quoted(&text)
                    };
                    Some((value, Place::Variable(key.env())))
                })
                .or(in_file)
                .unwrap_or_else(|| (key.default.to_owned(), Place::Default));
            let value = if is_secret(&path) { masked(&value) } else { value };
            Listed { key: path, value, place }
        })
        .collect();
    if !written.keys().any(|key| key.starts_with("providers.")) {
        for provider in providers::defaults(world).into_values() {
            let value = toml::Value::from(provider.command).to_string();
            let key = format!("providers.{}.command", provider.name);
            listed.push(Listed { key, value, place: Place::Default });
        }
    }
    secrets_of_sinks(&mut written, world);
    listed.extend(written.into_iter().map(|(key, (value, place))| {
        let value = if is_secret(&key) { masked(&value) } else { value };
        Listed { key, value, place }
    }));
    listed
}

/// The file that `config init` writes: every key with its meaning and its default, none of them
/// said, so that a default of a later version counts.
#[must_use]
pub fn commented() -> String {
    let mut text = String::from(
        "# The configuration of `reattach serve`. A line that begins with `#` says nothing: what\n\
         # it shows is the default. Flags and REATTACH_<SECTION>_<KEY> variables win over this\n\
         # file. `reattach config check` examines it, `reattach config show --origin` tells what\n\
         # counts in the end; the server reads it when it starts.\n",
    );
    for section in keys::sections() {
        text.push_str(&format!("\n[{section}]\n"));
        for key in KEYS.iter().filter(|key| key.section == section) {
            for line in wrapped(key.help, 90) {
                text.push_str(&format!("# {line}\n"));
            }
            text.push_str(&format!("# {} = {}\n", key.name, key.default));
        }
    }
    text.push_str(
        "\n# Agents. Without any of these tables there are the default ones; with one, those in\n\
         # this file are all there are. `kind` is the dialect, `command` the program and its\n\
         # arguments, `env` is added to the short environment that agents get.\n\
         #\n\
         # [providers.claude]\n\
         # env = { ANTHROPIC_MODEL = \"some-model\" }\n\
         #\n\
         # [providers.mine]\n\
         # kind = \"jsonl\"\n\
         # command = [\"~/bin/my-agent\", \"--fast\"]\n\
         \n\
         # Who is told that an agent waits, or how a run ended: `ntfy`, `webhook` or `command`.\n\
         #\n\
         # [notify.phone]\n\
         # kind = \"ntfy\"\n\
         # url = \"https://ntfy.example.org\"\n\
         # topic = \"a-name-that-nobody-guesses\"\n",
    );
    text
}

/// What the environment says of the tables `[notify.NAME]`: `REATTACH_NOTIFY_<NAME>_TOKEN` say.
fn secrets_of_sinks(written: &mut BTreeMap<String, (String, Place)>, world: &World) {
    let names: BTreeSet<String> = written
        .keys()
        .filter_map(|key| key.strip_prefix("notify.")?.split_once('.'))
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in names {
        for key in ["token", "token_file", "url", "url_file"] {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let variable: String =
                format!("REATTACH_NOTIFY_{name}_{key}").chars().map(plain).collect();
            let variable = variable.to_ascii_uppercase();
            if let Some(value) = world.env.get(std::ffi::OsStr::new(&variable)) {
                let value = quoted(&value.to_string_lossy());
                written.insert(format!("notify.{name}.{key}"), (value, Place::Variable(variable)));
            }
        }
    }
}

fn flag(flags: &Flags, key: &str) -> Option<(String, Place)> {
    match key {
        "server.bind" => Some((quoted(flags.bind.as_ref()?), Place::Flag("--bind"))),
        "server.behind_proxy" if flags.behind_proxy => {
            Some(("true".to_owned(), Place::Flag("--behind-proxy")))
        }
        _ => None,
    }
}

/// The leaves of a file's tables, by their paths.
fn written(path: &Path, text: &str) -> BTreeMap<String, (String, Place)> {
    let mut leaves = BTreeMap::new();
    if let Ok(table) = DeTable::parse(text) {
        gather("", table.get_ref(), path, text, &mut leaves);
    }
    leaves
}

fn gather(
    above: &str,
    table: &DeTable<'_>,
    path: &Path,
    text: &str,
    leaves: &mut BTreeMap<String, (String, Place)>,
) {
    for (name, value) in table {
        let key = if above.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{above}.{}", name.get_ref())
        };
        match value.get_ref() {
            DeValue::Table(inner) => gather(&key, inner, path, text, leaves),
            DeValue::Array(items)
                if items.iter().any(|item| matches!(item.get_ref(), DeValue::Table(_))) =>
            {
                for (at, item) in items.iter().enumerate() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        gather(&format!("{key}.{at}"), inner, path, text, leaves);
                    }
                }
            }
            _ => {
                let written = text.get(value.span()).unwrap_or_default();
                // As it was written, on one line.
                let value = written.split_whitespace().collect::<Vec<_>>().join(" ");
                let line = text.get(..name.span().start).unwrap_or_default().matches('\n').count();
                leaves.insert(key, (value, Place::File(path.to_owned(), line + 1)));
            }
        }
    }
}

/// Whether a key's value is to be hidden. Environments of agents hold keys, addresses of webhooks
/// are secrets by themselves, so all of those are; else the name tells.
fn is_secret(key: &str) -> bool {
    const WORDS: [&str; 7] =
        ["token", "secret", "password", "passwd", "credential", "authorization", "api_key"];
    let mut parts = key.split('.');
    let section = parts.next().unwrap_or_default();
    if section == "limits" || section == "timeouts" {
        return false;
    }
    let rest: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
    // Where a secret lies is none.
    if rest.last().is_some_and(|name| name.ends_with("_file")) {
        return false;
    }
    let named =
        |words: &[&str]| rest.iter().any(|part| words.iter().any(|word| part.contains(word)));
    let inside = rest.iter().any(|part| part == "env" || part == "headers");
    let address = section != "server" && named(&["url", "topic"]);
    inside || address || named(&WORDS)
}

/// Nothing said is no secret.
fn masked(value: &str) -> String {
    if matches!(value, "\"\"" | "[]" | "{}" | "''") { value.to_owned() } else { quoted(MASK) }
}

/// Whether values of a key with this default are written without quotes.
fn is_bare(default: &str) -> bool {
    !default.starts_with(['"', '['])
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let full = lines.last().is_some_and(|line| line.len() + 1 + word.len() > width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config::Config;

    fn world(env: &[(&str, &str)]) -> World {
        let env = [("HOME", "/home/me")].iter().chain(env);
        World {
            env: env.map(|(name, value)| (name.into(), value.into())).collect(),
            exe: PathBuf::from("/bin/reattach"),
        }
    }

    /// What is listed, as a file.
    fn as_file(listed: &[Listed]) -> String {
        let keys = listed.iter().filter(|listed| KEYS.iter().any(|key| key.path() == listed.key));
        keys.map(|listed| format!("{} = {}\n", listed.key, listed.value)).collect()
    }

    #[test]
    fn what_is_listed_is_what_counts() {
        let text = "[server]\nbind = '127.0.0.1:1'\npublic_url = \"https://a.b/c\"\n\
                    allowed_hosts = [\n  \"x\",\n  \"y\",\n]\n[limits]\nagents_max = 0x10\n\
                    [timeouts]\nheartbeat = \"1m\"\ndrain = \"7s\"\n";
        let env: [(&str, &str); 4] = [
            ("REATTACH_TIMEOUTS_DRAIN", "3s"),
            ("REATTACH_SERVER_PROJECT_ROOTS", "~/a,~/b"),
            ("REATTACH_LIMITS_CONNECTIONS_MAX", "77"),
            ("REATTACH_RETENTION_MAX_BYTES", "5"),
        ];
        let flags = Flags { bind: Some("127.0.0.1:9".into()), ..Flags::default() };
        let path = Path::new("config.toml");
        let world = world(&env);
        let real = Config::from_parts(&flags, Some((path, text)), &world).expect("it is good");
        let mut listed = list(&flags, Some((path, text)), &world);
        let roots = listed.iter_mut().find(|listed| listed.key == "server.project_roots");
        // With commas only a variable can say it.
        let roots = roots.expect("a key");
        assert_eq!(roots.value, "\"~/a,~/b\"");
        roots.value = "[\"~/a\", \"~/b\"]".into();
        let again = as_file(&listed);
        let same = Config::from_parts(&Flags::default(), Some((path, &again)), &self::world(&[]));
        assert_eq!(same.expect(&again), real, "{again}");
        let place = |key: &str| {
            listed.iter().find(|listed| listed.key == key).expect(key).place.to_string()
        };
        assert_eq!(place("server.bind"), "--bind");
        assert_eq!(place("server.public_url"), "config.toml:3");
        assert_eq!(place("limits.agents_max"), "config.toml:9");
        assert_eq!(place("timeouts.heartbeat"), "config.toml:11");
        assert_eq!(place("timeouts.drain"), "REATTACH_TIMEOUTS_DRAIN");
        assert_eq!(place("retention.max_age"), "default");
        assert_eq!(place("providers.claude.command"), "default");
    }

    #[test]
    fn secrets_are_hidden() {
        let text = "[providers.a]\nkind='command'\nenv={K='hush'}\n\
                    [notify.my-phone]\nkind='ntfy'\nurl='https://hush'\nheaders={A='hush'}\n\
                    url_file='/a/path'\n[[list]]\ntoken='hush'\n\
                    [server]\npublic_url='https://seen'\n";
        let env = [("REATTACH_NOTIFY_MY_PHONE_TOKEN", "hush")];
        let listed = list(&Flags::default(), Some((Path::new("f"), text)), &world(&env));
        let shown = format!("{listed:?}");
        assert!(!shown.contains("hush"), "{shown}");
        assert!(shown.contains("https://seen") && shown.contains("/a/path"), "{shown}");
        let token = listed.iter().find(|one| one.key == "notify.my-phone.token").expect("listed");
        assert_eq!(token.place, Place::Variable("REATTACH_NOTIFY_MY_PHONE_TOKEN".into()));
        for key in ["providers.a.env.K", "notify.my-phone.url", "list.0.token"] {
            assert!(listed.iter().any(|listed| listed.key == key), "{key} is listed: {shown}");
        }
    }

    #[test]
    fn the_file_that_init_writes_says_nothing_and_shows_the_defaults() {
        let text = commented();
        let flags = Flags::default();
        let path = Path::new("config.toml");
        let of = |text: &str| {
            Config::from_parts(&flags, Some((path, text)), &world(&[])).map_err(|e| e.to_string())
        };
        let default = Config::from_parts(&flags, None, &world(&[])).expect("defaults");
        assert_eq!(of(&text), Ok(default.clone()), "{text}");
        let mut said = 0;
        let spoken: Vec<String> = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if KEYS.iter().any(|key| rest.starts_with(&format!("{} = ", key.name))) =>
                {
                    said += 1;
                    rest.to_owned()
                }
                _ => line.to_owned(),
            })
            .collect();
        assert_eq!(said, KEYS.len(), "every key stands in it");
        assert_eq!(of(&spoken.join("\n")), Ok(default), "the defaults shown are the real ones");
    }

    #[test]
    fn every_key_says_what_it_is_for() {
        for key in KEYS {
            assert!(key.help.ends_with('.') && key.help.len() > 15, "{}: {}", key.path(), key.help);
            assert!(!key.help.contains('\n'), "{} is one paragraph", key.path());
        }
    }
}
