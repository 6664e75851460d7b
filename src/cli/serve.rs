//! `reattach serve`: configuration, then the engine, then the server, then signals.
//!
//! Must not know what happens in a request or in a run.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::args::{OnStop, ServeArgs};
use crate::cli::commands::config::file as config_file;
use crate::cli::config::{Config, ConfigError, Flags, World, list};
use crate::cli::exit::Exit;
use crate::cli::logging;
use crate::keeper;
use crate::notify::{self, Notifier};
use crate::registry::{Engine, EngineError, Fatal};
use crate::run::id::Millis;
use crate::run::server_change::ServerChange;
use crate::server::auth::Proxy;
use crate::server::local;
use crate::server::{PageFile, Server, ServerConfig, StartError};
use crate::store::{OpenError, OpenOptions};
use crate::sync::Arc;
use crate::web;

/// The file by which the other commands find a server: the object of `--json`.
pub const SERVER_FILE: &str = "server.json";

/// Serves until a signal, and says how it went.
#[must_use]
pub fn serve(args: &ServeArgs) -> ExitCode {
    logging::start(args.log_format);
    match run(args) {
        Ok(()) => Exit::Ok.into(),
        Err(failed) => {
            // What went wrong is the last thing on stderr, whether or not logs are shown. Where
            // nobody reads it (a closed terminal) the exit code still says it.
            writeln!(io::stderr(), "reattach: {failed}").ok();
            failed.exit().into()
        }
    }
}

/// What `--json` prints and `server.json` holds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Running<'a> {
    url: String,
    port: u16,
    pid: u32,
    data_dir: &'a Path,
    /// Where commands of the same user connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<&'a Path>,
    /// Where metrics are told without a credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    version: &'static str,
}

/// Why the server did not start, or did not stop in order.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Server(#[from] StartError),
    #[error("cannot write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Fatal(#[from] Fatal),
    #[error("not everything ended within `timeouts.drain`; the next start finishes it")]
    Drain,
}

impl Failed {
    const fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Server(StartError::PublicUrl(_)) => Exit::Configuration,
            Self::Engine(EngineError::Open(OpenError::Sqlite { .. }))
            | Self::Engine(_)
            | Self::Fatal(_)
            | Self::Drain => Exit::Data,
            Self::Server(_) | Self::File { .. } | Self::Io(_) => Exit::Failure,
        }
    }
}

fn run(args: &ServeArgs) -> Result<(), Failed> {
    let world = World::current()?;
    let flags = Flags {
        config: args.config.clone(),
        bind: args.bind.clone(),
        no_auth: args.no_auth,
        behind_proxy: args.behind_proxy,
        insecure_http: args.insecure_http,
    };
    let config = Config::load(&flags, &world)?;
    let configured = configured(args, &flags, &config, &world)?;
    let data_dir = match &args.data_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => world.data_dir()?,
    };
    let signals = watch_signals(data_dir.clone(), args.on_stop)?;
    let (sinks, herald) = notify::prepare(config.notify.clone());
    let providers = config.providers.clone();
    let engine = Engine::open(&data_dir, &config.limits, providers, &open_options(), herald)?;
    if let Err(refusal) = engine.registry().record(configured) {
        tracing::warn!(%refusal, "the configuration is not in the audit trail");
    }
    let (registry, readers) = (engine.registry().clone(), engine.readers().clone());
    let notifier = Notifier::start(sinks, registry, readers, &config.server.public_url)?;
    let notifier = Arc::new(notifier);
    let server = Server::start(server_config(&config, &data_dir, notifier.clone()), &engine)?;
    let file = data_dir.join(SERVER_FILE);
    announce(args, &config, &data_dir, &file, &server)?;
    let ended = watch(&engine, &server, &signals);
    // It may be gone already; a stale one names a process that is no more.
    drop(std::fs::remove_file(&file));
    match ended {
        Ended::Signal => stop(engine, server, &notifier, args.on_stop, config.limits.drain_ms),
        Ended::Fatal(error) => Err(Fatal(error).into()),
    }
}

/// What the server runs with, for the audit trail: of a secret only that it is another one.
fn configured(
    args: &ServeArgs,
    flags: &Flags,
    config: &Config,
    world: &World,
) -> Result<ServerChange, ConfigError> {
    let file = config_file(args.config.as_deref(), world)?;
    let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let listed = list(flags, file, world).into_iter().map(|one| (one.key, one.value));
    let mut values: BTreeMap<String, String> = listed.collect();
    for (name, value) in [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("--no-auth", args.no_auth.to_string()),
        ("--insecure-http", args.insecure_http.to_string()),
        ("--on-stop", format!("{:?}", args.on_stop).to_ascii_lowercase()),
    ] {
        values.insert(name.to_owned(), value);
    }
    let whole = format!("{config:?} {values:?}");
    let sha256 = Sha256::digest(whole).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(ServerChange::Configured { sha256, values, at: Millis::now() })
}

enum Ended {
    Signal,
    Fatal(String),
}

/// Serves until a signal or the end of the store, and takes out of memory what is due.
fn watch(engine: &Engine, server: &Server, signals: &Receiver<i32>) -> Ended {
    loop {
        let next = engine.registry().evict(Millis::now());
        let pause = next.map_or(EVICT_PAUSE, |at| {
            let wait = u64::try_from(at.0 - Millis::now().0).unwrap_or(0);
            Duration::from_millis(wait).clamp(EVICT_PAUSE_MIN, EVICT_PAUSE)
        });
        select! {
            recv(signals) -> _ => return Ended::Signal,
            recv(engine.fatal()) -> error => {
                return Ended::Fatal(error.unwrap_or_else(|_| "the store thread ended".into()));
            }
            recv(server.fatal()) -> error => {
                return Ended::Fatal(error.unwrap_or_else(|_| "the listener ended".into()));
            }
            default(pause) => {}
        }
    }
}

/// Drains: nothing new starts, runs end as `on_stop` says, subscribers get their last frames, the
/// store commits; all within `drain_ms`.
fn stop(
    engine: Engine,
    server: Server,
    notifier: &Notifier,
    on_stop: OnStop,
    drain_ms: i64,
) -> Result<(), Failed> {
    let deadline = Instant::now() + Duration::from_millis(drain_ms.unsigned_abs());
    tracing::info!(?on_stop, "stopping");
    let all_ended = match on_stop {
        OnStop::Keep => engine.let_go(deadline),
        OnStop::Abort => engine.abort_all(deadline),
    };
    notifier.begin_stop(deadline);
    let all_left = server.stop(deadline);
    if !notifier.wait(deadline) {
        tracing::warn!("a notification was still on its way");
    }
    engine.close()?;
    if all_ended && all_left { Ok(()) } else { Err(Failed::Drain) }
}

fn announce(
    args: &ServeArgs,
    config: &Config,
    data_dir: &Path,
    file: &Path,
    server: &Server,
) -> Result<(), Failed> {
    let address = server.local_addr();
    let running = Running {
        url: format!("http://{address}"),
        port: address.port(),
        pid: std::process::id(),
        data_dir,
        socket: server.local_socket(),
        metrics: server.metrics_addr().map(|address| format!("http://{address}/metrics")),
        version: env!("CARGO_PKG_VERSION"),
    };
    let json = serde_json::to_string(&running).map_err(io::Error::other)?;
    write_private(file, json.as_bytes())
        .map_err(|source| Failed::File { path: file.to_owned(), source })?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{json}")?;
    } else {
        writeln!(out, "reattach {} listens on {}", running.version, running.url)?;
        if let Some(metrics) = &running.metrics {
            writeln!(out, "metrics are told to everybody at {metrics}")?;
        }
        if !config.server.public_url.is_empty() {
            writeln!(out, "browsers reach it at {}", config.server.public_url)?;
        }
        if config.server.no_auth {
            writeln!(out, "nobody is asked for a token (--no-auth)")?;
        } else if out.is_terminal() {
            if let Some(link) = server.first_link()? {
                writeln!(out, "open it with   {link}")?;
                writeln!(out, "which works once, for ten minutes; another one: reattach open")?;
                writeln!(out, "for a phone:   reattach pair")?;
            }
        } else {
            // What a log keeps should open nothing.
            writeln!(out, "to let a browser in: reattach open; a phone: reattach pair")?;
        }
    }
    Ok(out.flush()?)
}

fn server_config(config: &Config, data_dir: &Path, notifier: Arc<Notifier>) -> ServerConfig {
    let mut limits = config.limits.clone();
    if config.server.behind_proxy {
        // Everybody comes from the proxy's address.
        limits.connections_per_peer_max = usize::MAX;
    }
    let socket = local::path(data_dir, std::env::var_os("XDG_RUNTIME_DIR"));
    if socket.is_none() {
        let dir = data_dir.display();
        tracing::warn!(%dir, "there is no local socket: the path is too long for one");
    }
    ServerConfig {
        bind: config.server.bind,
        metrics_bind: config.server.metrics_bind,
        public_url: config.server.public_url.clone(),
        allowed_hosts: config.server.allowed_hosts.clone(),
        project_roots: config.server.project_roots.clone(),
        no_auth: config.server.no_auth,
        proxy: (!config.auth.proxy_networks.is_empty()).then(|| Proxy {
            header: config.auth.proxy_header.clone(),
            networks: config.auth.proxy_networks.clone(),
            scope: config.auth.proxy_scope,
        }),
        data_dir: data_dir.to_owned(),
        socket,
        limits,
        providers: config.providers.keys().cloned().collect(),
        agents: config.providers.values().cloned().collect(),
        notifier,
        page: |path| {
            let file = web::asset(path)?;
            let web::Asset { content_type, bytes, etag } = file;
            Some(PageFile { content_type, bytes, etag })
        },
    }
}

/// A second signal does not wait for the first one's drain. Agents that were to end with the server
/// are ended by their keepers then; the next start tells how.
fn watch_signals(data_dir: PathBuf, on_stop: OnStop) -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (seen, received) = bounded(1);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut draining = false;
        for signal in signals.forever() {
            if draining {
                if on_stop == OnStop::Abort {
                    stop_keepers(&data_dir);
                }
                #[allow(clippy::exit, reason = "that is what a second signal asks for")]
                std::process::exit(128 + signal);
            }
            draining = true;
            // Full or nobody there: it stops already.
            seen.try_send(signal).unwrap_or_default();
        }
    })?;
    Ok(received)
}

fn stop_keepers(data_dir: &Path) {
    let stopped = keeper::homes(data_dir)
        .and_then(|homes| homes.iter().try_for_each(|home| home.terminate().map(drop)));
    if let Err(error) = stopped {
        tracing::error!(%error, "an agent may work on; `reattach ps --keepers` shows it");
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let fresh = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    std::fs::rename(&fresh, path)
}

/// `REATTACH_TEST_MAX_PAGE_COUNT` fills the disk at that many pages: for tests of the failure.
fn open_options() -> OpenOptions {
    let max_page_count =
        std::env::var("REATTACH_TEST_MAX_PAGE_COUNT").ok().and_then(|pages| pages.parse().ok());
    OpenOptions { max_page_count, ..OpenOptions::default() }
}

/// Between two looks for what may leave memory.
const EVICT_PAUSE: Duration = Duration::from_secs(1);
/// However much is due.
const EVICT_PAUSE_MIN: Duration = Duration::from_millis(10);
