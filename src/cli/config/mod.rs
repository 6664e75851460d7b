//! Configuration: flags over environment over `config.toml` over defaults, checked as a whole.
//!
//! Everything that can be wrong is found before anything is opened, and is said with its place
//! and what to do. Must not know who uses which value.

mod error;
mod exposure;
mod keys;
mod listing;
mod notify;
mod providers;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use error::{ConfigError, EXIT_CODE, Origin};
pub use keys::{KEYS, Key};
pub use listing::{Listed, MASK, Place, commented, list};

use crate::limits::Limits;
use crate::notify::sink::Sink;
use crate::provider::Provider;
use crate::server::auth::Scope;
use keys::Input;

/// Where a gateway listens if nobody says otherwise.
pub const BIND_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7878);

/// All that a gateway needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[server]`, and the flags that go with it.
    pub server: Server,
    /// `[auth]`.
    pub auth: Auth,
    /// `[providers.NAME]`: by name, the demo agent and others among them.
    pub providers: BTreeMap<String, Provider>,
    /// `[limits]`, `[timeouts]` and `[retention]`.
    pub limits: Limits,
    /// `[notify.NAME]`: who is told.
    pub notify: Vec<Sink>,
}

/// How the gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it listens. Port 0 is any free port.
    pub bind: SocketAddr,
    /// Where metrics are told without a credential, if anywhere.
    pub metrics_bind: Option<SocketAddr>,
    /// What browsers see, an http or https URL; empty if that is `bind`.
    pub public_url: String,
    /// TLS ends in front of it.
    pub behind_proxy: bool,
    /// Host names, with or without a port, that requests may name beyond loopback's and
    /// `public_url`'s.
    pub allowed_hosts: Vec<String>,
    /// Absolute paths: where sessions may live.
    pub project_roots: Vec<PathBuf>,
    /// Nobody is asked for a token. A flag only.
    pub no_auth: bool,
    /// Plain HTTP off loopback is meant. A flag only.
    pub insecure_http: bool,
}

/// Who is let in beyond devices and tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The header in which a proxy says who somebody is.
    pub proxy_header: Option<http::HeaderName>,
    /// Where that proxy connects from.
    pub proxy_networks: Vec<ipnet::IpNet>,
    /// What those may do whom it names.
    pub proxy_scope: Scope,
}

/// The flags of `reattach serve` that are configuration.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config FILE`: must exist if given.
    pub config: Option<PathBuf>,
    /// `--bind ADDR:PORT`.
    pub bind: Option<String>,
    /// `--no-auth`.
    pub no_auth: bool,
    /// `--behind-proxy`.
    pub behind_proxy: bool,
    /// `--insecure-http`.
    pub insecure_http: bool,
}

/// What configuration takes from the process that it runs in.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The environment.
    pub env: BTreeMap<OsString, OsString>,
    /// This binary, which is also the demo agent.
    pub exe: PathBuf,
}

impl World {
    /// That of this process.
    ///
    /// # Errors
    /// If the system does not say which file this program was started from.
    pub fn current() -> Result<Self, ConfigError> {
        let exe = std::env::current_exe().map_err(|error| ConfigError::NoExe { error })?;
        Ok(Self { env: std::env::vars_os().collect(), exe })
    }

    /// A variable that names an absolute path, as the XDG rules want it.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.env.get(&OsString::from(name))?);
        path.is_absolute().then_some(path)
    }

    fn home(&self) -> Option<PathBuf> {
        self.path("HOME")
    }

    /// Where sessions and their logs live if nobody says otherwise: `$XDG_DATA_HOME/reattach`,
    /// else `~/.local/share/reattach`.
    ///
    /// # Errors
    /// If neither `XDG_DATA_HOME` nor `HOME` is an absolute path.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        self.path("XDG_DATA_HOME")
            .or_else(|| Some(self.home()?.join(".local/share")))
            .map(|dir| dir.join("reattach"))
            .ok_or(ConfigError::NoDataDir)
    }

    /// Where `config.toml` lies if nobody says otherwise: `$XDG_CONFIG_HOME/reattach`, else
    /// `~/.config/reattach`. It need not exist.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        self.path("XDG_CONFIG_HOME")
            .or_else(|| Some(self.home()?.join(".config")))
            .map(|dir| dir.join("reattach/config.toml"))
    }
}

impl Config {
    /// Reads and checks everything: file, environment, flags, relations, exposure.
    ///
    /// # Errors
    /// The first thing that is wrong; the exit code for all of them is [`EXIT_CODE`].
    pub fn load(flags: &Flags, world: &World) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => Some((path.clone(), read(path)?)),
            None => match world.config_file() {
                Some(path) if path.exists() => {
                    let text = read(&path)?;
                    Some((path, text))
                }
                _ => None,
            },
        };
        let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
        Self::from_parts(flags, file, world)
    }

    /// The same from a file's text that was already read.
    ///
    /// # Errors
    /// As `load`.
    pub fn from_parts(
        flags: &Flags,
        file: Option<(&Path, &str)>,
        world: &World,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::defaults();
        let mut roots_from = Origin::Default;
        let mut sinks = None;
        if let Some((path, text)) = file {
            config.take_file(path, text, world, &mut roots_from, &mut sinks)?;
        }
        // What the environment says of a sink is checked with it.
        let sinks = sinks.as_ref().map(|(path, content)| (path.as_path(), content.clone()));
        config.notify = notify::load(sinks, world)?;
        config.take_environment(world, &mut roots_from)?;
        config.take_flags(flags)?;
        if config.providers.is_empty() {
            config.providers = providers::defaults(world);
        }
        value::expand_roots(&mut config.server.project_roots, world.home().as_deref())
            .map_err(|problem| ConfigError::invalid(roots_from, "server.project_roots", problem))?;
        keys::check_relations(&config.limits, &config.auth)?;
        config.check_exposure()?;
        Ok(config)
    }

    /// Before anybody has said anything. Providers come later, since any provider in the file
    /// replaces the default ones.
    fn defaults() -> Self {
        Self {
            server: Server {
                bind: BIND_DEFAULT,
                metrics_bind: None,
                public_url: String::new(),
                behind_proxy: false,
                allowed_hosts: Vec::new(),
                project_roots: vec![PathBuf::from("~")],
                no_auth: false,
                insecure_http: false,
            },
            auth: Auth {
                proxy_header: None,
                proxy_networks: Vec::new(),
                proxy_scope: Scope::Control,
            },
            providers: BTreeMap::new(),
            limits: Limits::default(),
            notify: Vec::new(),
        }
    }

    fn take_file(
        &mut self,
        path: &Path,
        text: &str,
        world: &World,
        roots_from: &mut Origin,
        sinks: &mut Option<(PathBuf, toml::Value)>,
    ) -> Result<(), ConfigError> {
        let origin = Origin::File(path.to_owned());
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            ConfigError::Syntax { path: path.to_owned(), message: error.to_string() }
        })?;
        for (section, content) in table {
            if section == "providers" {
                self.providers = providers::from_file(&origin, content, world)?;
                continue;
            }
            if section == "notify" {
                *sinks = Some((path.to_owned(), content));
                continue;
            }
            if !keys::sections().any(|known| known == section) {
                return Err(keys::unknown_section(origin, &section));
            }
            let toml::Value::Table(content) = content else {
                let problem = format!("must be a table: write `[{section}]` above its keys");
                return Err(ConfigError::invalid(origin, &section, problem));
            };
            for (name, value) in content {
                let Some(key) = keys::find(&section, &name) else {
                    return Err(keys::unknown(origin, &format!("{section}.{name}")));
                };
                key.apply(self, &Input::Toml(value)).map_err(|problem| {
                    ConfigError::invalid(origin.clone(), &key.path(), problem)
                })?;
                if key.path() == "server.project_roots" {
                    *roots_from = origin.clone();
                }
            }
        }
        Ok(())
    }

    /// `REATTACH_<SECTION>_<KEY>`. Variables of no known section are not ours to judge.
    fn take_environment(
        &mut self,
        world: &World,
        roots_from: &mut Origin,
    ) -> Result<(), ConfigError> {
        for (name, value) in &world.env {
            let Some(name) = name.to_str().filter(|name| keys::is_ours(name)) else { continue };
            let origin = Origin::Environment;
            let Some(key) = KEYS.iter().find(|key| key.env() == name) else {
                return Err(keys::unknown_variable(name));
            };
            let Some(text) = value.to_str() else {
                return Err(ConfigError::invalid(origin, name, "is no UTF-8".to_owned()));
            };
            key.apply(self, &Input::Text(text))
                .map_err(|problem| ConfigError::invalid(origin.clone(), name, problem))?;
            if key.path() == "server.project_roots" {
                *roots_from = origin;
            }
        }
        Ok(())
    }

    fn take_flags(&mut self, flags: &Flags) -> Result<(), ConfigError> {
        if let Some(bind) = &flags.bind {
            self.server.bind = value::bind(bind)
                .map_err(|problem| ConfigError::invalid(Origin::Flag, "--bind", problem))?;
        }
        // A flag can only switch these on; the file's or the environment's `true` stands.
        self.server.behind_proxy |= flags.behind_proxy;
        self.server.no_auth = flags.no_auth;
        self.server.insecure_http = flags.insecure_http;
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests;
