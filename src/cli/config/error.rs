//! What can be wrong with a configuration, said so that it can be mended.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

/// The exit code of a refused configuration.
pub const EXIT_CODE: u8 = 78;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In this file.
    File(PathBuf),
    /// In the environment.
    Environment,
    /// On the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("by default"),
            Self::File(path) => write!(f, "in {}", path.display()),
            Self::Environment => f.write_str("in the environment"),
            Self::Flag => f.write_str("on the command line"),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is no TOML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key that nobody knows.
    #[error("unknown key `{key}` {origin}; the nearest known one is `{nearest}`")]
    UnknownKey {
        /// As given.
        key: String,
        /// Where.
        origin: Origin,
        /// What may have been meant.
        nearest: String,
    },
    /// A value that cannot be.
    #[error("`{key}` {origin} {problem}")]
    Invalid {
        /// Its key, or its variable, or its flag.
        key: String,
        /// Where.
        origin: Origin,
        /// The rest of the sentence.
        problem: String,
    },
    /// Two values that cannot be together.
    #[error("{0}")]
    Relation(String),
    /// A dialect of a later version.
    #[error(
        "kind `{kind}` of provider `{provider}` is not in this version, which knows {known}; \
         remove [providers.{provider}], or give it one of those kinds"
    )]
    KindNotInThisVersion {
        /// The provider's name.
        provider: String,
        /// Its kind.
        kind: String,
        /// The kinds that can be used.
        known: String,
    },
    /// Anybody could run agents.
    #[error(
        "--no-auth is only for a loopback address, and {bind} is none: leave --no-auth away, or \
         bind to 127.0.0.1"
    )]
    NoAuthOffLoopback {
        /// Where it would listen.
        bind: SocketAddr,
    },
    /// The token would cross the network in plain text.
    #[error(
        "{bind} is reachable from other machines, over plain HTTP. There are two ways: \
         --behind-proxy, if TLS ends in a proxy in front of it (and set server.public_url), or \
         --insecure-http, if you mean it. Or bind to 127.0.0.1"
    )]
    PlainHttpOffLoopback {
        /// Where it would listen.
        bind: SocketAddr,
    },
    /// Metrics would be told to other machines.
    #[error(
        "server.metrics_bind is {bind}, which other machines can reach, and it asks nobody for a \
         credential: give a loopback address, or --insecure-http if you mean it"
    )]
    MetricsOffLoopback {
        /// Where they would be told.
        bind: SocketAddr,
    },
    /// Which origin to trust is unknown.
    #[error(
        "behind a proxy `server.public_url` must say what browsers see, as \
         public_url = \"https://agents.example.org\" (or REATTACH_SERVER_PUBLIC_URL)"
    )]
    NoPublicUrl,
    /// There is no place for data.
    #[error("neither XDG_DATA_HOME nor HOME says where data lies: give --data-dir DIR")]
    NoDataDir,
    /// The demo agent cannot be started.
    #[error("the system does not say where this program lies: {error}")]
    NoExe {
        /// Why.
        error: io::Error,
    },
}

impl ConfigError {
    /// A value that cannot be; `problem` goes on after the key and its place.
    pub(super) fn invalid(origin: Origin, key: &str, problem: String) -> Self {
        Self::Invalid { key: key.to_owned(), origin, problem }
    }
}
