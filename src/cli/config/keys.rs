//! Every key of `config.toml` but the providers', in one table: its default, what it may be, where
//! it goes.

use super::{Auth, Config, ConfigError, Origin, value};
use crate::limits::{
    EVENT_BYTES_CEILING, JOURNAL_BYTES_FLOOR, JOURNAL_LINE_PART, LINE_HEAD_BYTES, Limits,
    UPLOAD_BYTES_CEILING,
};
use crate::server::auth::scope;

/// A value as it was given.
#[derive(Debug)]
pub(super) enum Input<'a> {
    /// In the file.
    Toml(toml::Value),
    /// In the environment.
    Text(&'a str),
}

/// A known key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its table.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// Its default, as one would write it in the file.
    pub default: &'static str,
    /// What it is for: the comment above it in the file that `config init` writes.
    pub help: &'static str,
    set: Setter,
}

/// Puts a value in its place; the error goes on after "`section.key` in FILE".
type Setter = fn(&mut Config, &Input<'_>) -> Result<(), String>;

impl Key {
    /// `section.name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The variable that sets it.
    #[must_use]
    pub fn env(&self) -> String {
        format!("REATTACH_{}_{}", self.section, self.name).to_ascii_uppercase()
    }

    pub(super) fn apply(&self, config: &mut Config, input: &Input<'_>) -> Result<(), String> {
        (self.set)(config, input)
    }
}

const fn key(
    section: &'static str,
    name: &'static str,
    default: &'static str,
    help: &'static str,
    set: Setter,
) -> Key {
    Key { section, name, default, help, set }
}

/// Connections are threads, and a process has room for some 16,000 of them.
const CONNECTIONS_CEILING: usize = 12_000;
/// Agents are three threads and some hundred megabytes each.
const AGENTS_CEILING: usize = 1024;
/// No bound in bytes is above it: far from overflow, far above use.
const BYTES_CEILING: usize = 1 << 40;
/// An event that is cut still needs its envelope and a word of what it was.
const EVENT_BYTES_MIN: usize = 4 << 10;
/// A client frame must at least hold a prompt of some words.
const MESSAGE_BYTES_MIN: usize = 1 << 10;
/// A client frame is read into memory whole.
const MESSAGE_BYTES_CEILING: usize = 64 << 20;
/// A line is held in memory whole, more than once.
const LINE_BYTES_CEILING: usize = 256 << 20;
/// A heartbeat or a stall of less would be noise.
const PERIOD_MS_MIN: i64 = 10;

/// The table.
pub const KEYS: &[Key] = &[
    key(
        "server",
        "bind",
        "\"127.0.0.1:7878\"",
        "Where to listen: an IP address and a port; port 0 is any free one.",
        |c, v| {
            c.server.bind = value::bind(&v.string()?)?;
            Ok(())
        },
    ),
    key(
        "server",
        "metrics_bind",
        "\"\"",
        "An IP address and a port at which /metrics, /healthz and /readyz are told without a \
         credential, 127.0.0.1:9090 say; empty is nowhere.",
        |c, v| {
            let text = v.string()?;
            let bind = (!text.is_empty()).then(|| value::bind(&text));
            c.server.metrics_bind = bind.transpose()?;
            Ok(())
        },
    ),
    key(
        "server",
        "public_url",
        "\"\"",
        "What browsers see, https://agents.example.org/sub say: its origin is allowed, its path \
         is the sub-path. Needed behind a proxy.",
        |c, v| {
            c.server.public_url = value::public_url(&v.string()?)?;
            Ok(())
        },
    ),
    key("server", "behind_proxy", "false", "TLS ends in a proxy in front of it.", |c, v| {
        c.server.behind_proxy = v.boolean()?;
        Ok(())
    }),
    key(
        "server",
        "allowed_hosts",
        "[]",
        "Names that requests may give as Host, beyond those of loopback and of public_url.",
        |c, v| {
            c.server.allowed_hosts =
                v.strings()?.iter().map(|host| value::host(host)).collect::<Result<_, _>>()?;
            Ok(())
        },
    ),
    key(
        "server",
        "project_roots",
        "[\"~\"]",
        "Where sessions may live and the folder picker may look: absolute, or from ~/.",
        |c, v| {
            c.server.project_roots = v.strings()?.into_iter().map(Into::into).collect();
            Ok(())
        },
    ),
    key(
        "auth",
        "proxy_header",
        "\"\"",
        "The header in which a proxy that logs people in says who they are, \"Remote-User\" say. It \
         counts from proxy_networks alone.",
        |c, v| {
            c.auth.proxy_header = value::header(&v.string()?)?;
            Ok(())
        },
    ),
    key(
        "auth",
        "proxy_networks",
        "[]",
        "Where that proxy connects from: addresses or networks, \"10.0.0.2/32\" say.",
        |c, v| {
            c.auth.proxy_networks =
                v.strings()?.iter().map(|text| value::network(text)).collect::<Result<_, _>>()?;
            Ok(())
        },
    ),
    key(
        "auth",
        "proxy_scope",
        "\"control\"",
        "What those may do whom the proxy names: read, control or admin.",
        |c, v| {
            let name = v.string()?;
            c.auth.proxy_scope = scope::named(&name)
                .ok_or_else(|| format!("must be read, control or admin, not \"{name}\""))?;
            Ok(())
        },
    ),
    key(
        "limits",
        "connections_max",
        "4000",
        "Connections at once; one more gets a 503.",
        |c, v| v.count(1, CONNECTIONS_CEILING, &mut c.limits.connections_max),
    ),
    key(
        "limits",
        "connections_http_max",
        "512",
        "Those of them at an HTTP request or between two; one more gets a 503.",
        |c, v| v.count(1, CONNECTIONS_CEILING, &mut c.limits.connections_http_max),
    ),
    key(
        "limits",
        "connections_per_peer_max",
        "256",
        "Those of them from one address, but loopback's or behind a proxy; one more gets a 503.",
        |c, v| v.count(1, CONNECTIONS_CEILING, &mut c.limits.connections_per_peer_max),
    ),
    key(
        "limits",
        "agents_max",
        "16",
        "Agent processes at once; one more send gets BUSY.",
        |c, v| v.count(1, AGENTS_CEILING, &mut c.limits.agents_max),
    ),
    key(
        "limits",
        "ring_events_max",
        "16384",
        "Events in memory, per session; older ones are read from disk.",
        |c, v| v.count(1, BYTES_CEILING, &mut c.limits.ring_events_max),
    ),
    key("limits", "ring_bytes_max", "16777216", "Their bytes, per session.", |c, v| {
        v.count(4 * EVENT_BYTES_MIN, BYTES_CEILING, &mut c.limits.ring_bytes_max)
    }),
    key(
        "limits",
        "ring_total_bytes_max",
        "268435456",
        "Their bytes in all sessions; at least ring_bytes_max.",
        |c, v| v.count(4 * EVENT_BYTES_MIN, BYTES_CEILING, &mut c.limits.ring_total_bytes_max),
    ),
    key(
        "limits",
        "event_bytes_max",
        "262144",
        "One event as sent; a longer one is cut, and whole at its own address. At most a quarter \
         of ring_bytes_max.",
        |c, v| v.count(EVENT_BYTES_MIN, EVENT_BYTES_CEILING, &mut c.limits.event_bytes_max),
    ),
    key(
        "limits",
        "line_bytes_max",
        "16777216",
        "One line of an agent; of a longer one the head is kept. At most a quarter of \
         journal_bytes_max.",
        |c, v| v.count(LINE_HEAD_BYTES, LINE_BYTES_CEILING, &mut c.limits.line_bytes_max),
    ),
    key(
        "limits",
        "message_bytes_max",
        "1048576",
        "One frame of a client; a longer one closes the connection.",
        |c, v| v.count(MESSAGE_BYTES_MIN, MESSAGE_BYTES_CEILING, &mut c.limits.message_bytes_max),
    ),
    key(
        "limits",
        "upload_bytes_max",
        "20971520",
        "One file that is given to a session.",
        |c, v| v.count(1, UPLOAD_BYTES_CEILING, &mut c.limits.upload_bytes_max),
    ),
    key(
        "limits",
        "journal_bytes_max",
        "67108864",
        "What an agent's keeper holds on disk until the server has taken it; when it is full, the \
         agent waits.",
        |c, v| {
            c.limits.journal_bytes_max = v.integer(JOURNAL_BYTES_FLOOR, u64::MAX >> 1)?;
            Ok(())
        },
    ),
    key(
        "timeouts",
        "completed_retention",
        "\"5m\"",
        "How long a finished run stays in memory; on disk it stays.",
        |c, v| v.duration(0, &mut c.limits.completed_retention_ms),
    ),
    key("timeouts", "heartbeat", "\"30s\"", "Between two pings to a client.", |c, v| {
        v.duration(PERIOD_MS_MIN, &mut c.limits.heartbeat_ms)
    }),
    key(
        "timeouts",
        "stall",
        "\"30s\"",
        "A client that takes no byte for this long is dropped; it can come back and loses nothing.",
        |c, v| v.duration(PERIOD_MS_MIN, &mut c.limits.stall_ms),
    ),
    key(
        "timeouts",
        "agent_idle",
        "\"10m\"",
        "How long an agent that can take more prompts is kept warm after a run. 0 is not at all.",
        |c, v| v.duration(0, &mut c.limits.agent_idle_ms),
    ),
    key(
        "timeouts",
        "orphan_grace",
        "\"1h\"",
        "How long an agent works on without a server; then its keeper stops it.",
        |c, v| v.duration(0, &mut c.limits.orphan_grace_ms),
    ),
    key("timeouts", "drain", "\"20s\"", "How long a shutdown may take.", |c, v| {
        v.duration(0, &mut c.limits.drain_ms)
    }),
    key(
        "retention",
        "max_age",
        "\"\"",
        "Finished runs older than this leave the disk, \"30d\" say. Empty or 0 keeps all.",
        |c, v| v.duration(0, &mut c.limits.retention_age_ms),
    ),
    key(
        "retention",
        "max_bytes",
        "0",
        "The oldest finished runs leave the disk until all events fit. 0 keeps all.",
        |c, v| {
            c.limits.retention_bytes = v.integer(0, u64::MAX >> 1)?;
            Ok(())
        },
    ),
];

/// How values hang together, beyond what each may be by itself.
pub(super) fn check_relations(limits: &Limits, auth: &Auth) -> Result<(), ConfigError> {
    let relation = |text: String| Err(ConfigError::Relation(text));
    if auth.proxy_header.is_some() && auth.proxy_networks.is_empty() {
        return relation(
            "auth.proxy_header is set and auth.proxy_networks is empty: anybody could send that \
             header; name the proxy's own address, as proxy_networks = [\"10.0.0.2/32\"]"
                .to_owned(),
        );
    }
    if limits.event_bytes_max > limits.ring_bytes_max / 4 {
        return relation(format!(
            "limits.event_bytes_max is {}, more than a quarter of limits.ring_bytes_max, {}: an \
             event must leave room for others; raise the one or lower the other",
            limits.event_bytes_max, limits.ring_bytes_max
        ));
    }
    if limits.ring_total_bytes_max < limits.ring_bytes_max {
        return relation(format!(
            "limits.ring_total_bytes_max is {}, less than limits.ring_bytes_max, {}: all sessions \
             together cannot hold less than one of them",
            limits.ring_total_bytes_max, limits.ring_bytes_max
        ));
    }
    let line = u64::try_from(limits.line_bytes_max).unwrap_or(u64::MAX);
    if line > limits.journal_bytes_max / JOURNAL_LINE_PART {
        return relation(format!(
            "limits.line_bytes_max is {line}, more than a quarter of limits.journal_bytes_max, {}: \
             a long line must leave room for others; lower the one or raise the other",
            limits.journal_bytes_max
        ));
    }
    Ok(())
}

/// The names of the tables.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    ["server", "auth", "limits", "timeouts", "retention"].into_iter()
}

pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// Whether a variable claims to set a key: ours are the known sections', so that a tag of ours in
/// an agent's environment, or a variable of another tool, is left alone.
pub(super) fn is_ours(variable: &str) -> bool {
    variable.strip_prefix("REATTACH_").is_some_and(|rest| {
        sections().chain(["providers"]).any(|section| {
            rest.len() > section.len()
                && rest.as_bytes()[section.len()] == b'_'
                && rest.is_char_boundary(section.len())
                && rest[..section.len()].eq_ignore_ascii_case(section)
        })
    })
}

/// The error for a key of a known table. A name that stands in another table was meant there.
pub(super) fn unknown(origin: Origin, path: &str) -> ConfigError {
    let name = path.rsplit('.').next().unwrap_or(path);
    let nearest = KEYS
        .iter()
        .find(|key| key.name == name)
        .map_or_else(|| value::nearest(path, KEYS.iter().map(Key::path)), Key::path);
    ConfigError::UnknownKey { key: path.to_owned(), origin, nearest }
}

/// The error for an unknown table, or for a key that stands in none.
pub(super) fn unknown_section(origin: Origin, name: &str) -> ConfigError {
    let nearest = KEYS.iter().find(|key| key.name == name).map_or_else(
        || value::nearest(name, sections().chain(["providers", "notify"]).map(str::to_owned)),
        Key::path,
    );
    ConfigError::UnknownKey { key: name.to_owned(), origin, nearest }
}

/// The error for an unknown variable.
pub(super) fn unknown_variable(name: &str) -> ConfigError {
    if name.to_ascii_uppercase().starts_with("REATTACH_PROVIDERS_") {
        let problem = "sets a provider, which only the file can: write [providers.NAME] there";
        return ConfigError::invalid(Origin::Environment, name, problem.to_owned());
    }
    ConfigError::UnknownKey {
        key: name.to_owned(),
        origin: Origin::Environment,
        nearest: value::nearest(name, KEYS.iter().map(Key::env)),
    }
}

impl Input<'_> {
    fn string(&self) -> Result<String, String> {
        match self {
            Self::Toml(toml::Value::String(text)) => Ok(text.clone()),
            Self::Toml(other) => Err(format!("must be a string, not {}", other.type_str())),
            Self::Text(text) => Ok((*text).to_owned()),
        }
    }

    fn boolean(&self) -> Result<bool, String> {
        match self {
            Self::Toml(toml::Value::Boolean(value)) => Ok(*value),
            Self::Text("true" | "1") => Ok(true),
            Self::Text("false" | "0") => Ok(false),
            Self::Toml(other) => Err(format!("must be true or false, not {}", other.type_str())),
            Self::Text(text) => Err(format!("must be true or false, not \"{text}\"")),
        }
    }

    /// An array of strings; in the environment such an array, or strings with commas between.
    fn strings(&self) -> Result<Vec<String>, String> {
        let wrong = || "must be an array of strings, such as [\"a\", \"b\"]".to_owned();
        let array = match self {
            Self::Toml(toml::Value::Array(array)) => array.clone(),
            Self::Toml(_) => return Err(wrong()),
            Self::Text(text) if text.trim_start().starts_with('[') => {
                let mut table: toml::Table = format!("a = {text}").parse().map_err(|_| wrong())?;
                match (table.remove("a"), table.is_empty()) {
                    (Some(toml::Value::Array(array)), true) => array,
                    _ => return Err(wrong()),
                }
            }
            Self::Text(text) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                return Ok(parts.map(str::to_owned).collect());
            }
        };
        array
            .into_iter()
            .map(|item| match item {
                toml::Value::String(text) => Ok(text),
                _ => Err(wrong()),
            })
            .collect()
    }

    /// A whole number within these bounds, both included.
    fn integer(&self, min: u64, max: u64) -> Result<u64, String> {
        let number = match self {
            Self::Toml(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
            Self::Toml(other) => {
                return Err(format!("must be a whole number, not {}", other.type_str()));
            }
            Self::Text(text) => match text.trim().parse::<i128>() {
                Ok(number) => u64::try_from(number).ok(),
                Err(_) => return Err(format!("must be a whole number, not \"{text}\"")),
            },
        };
        match number {
            Some(number) if number > max => Err(format!("must be at most {max}")),
            Some(number) if number >= min => Ok(number),
            _ => Err(format!("must be at least {min}")),
        }
    }

    fn count(&self, min: usize, max: usize, into: &mut usize) -> Result<(), String> {
        let bound = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let number = self.integer(bound(min), bound(max))?;
        *into = usize::try_from(number).map_err(|_| "is too large for this machine".to_owned())?;
        Ok(())
    }

    /// A duration of at least `min` milliseconds.
    fn duration(&self, min: i64, into: &mut i64) -> Result<(), String> {
        let ms = match self {
            Self::Toml(toml::Value::String(text)) => value::duration_ms(text)?,
            Self::Toml(toml::Value::Integer(0)) => 0,
            Self::Toml(toml::Value::Integer(number)) => {
                return Err(format!("needs a unit: write \"{number}s\" for seconds"));
            }
            Self::Toml(other) => {
                return Err(format!("must be a duration, \"30s\" say, not {}", other.type_str()));
            }
            Self::Text(text) => value::duration_ms(text)?,
        };
        if ms < min {
            return Err(format!("must be at least \"{min}ms\"; it cannot be switched off"));
        }
        *into = ms;
        Ok(())
    }
}
