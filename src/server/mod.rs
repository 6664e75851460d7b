//! The front door: one port for REST, the page and WebSockets.
//!
//! `Server` puts it together; what each part may know stands at its head.

mod access;
mod allowance;
pub mod api;
pub mod auth;
pub mod connection;
mod counted;
pub mod crowd;
pub mod http;
pub mod links;
pub mod listener;
pub mod local;
mod monitor;
pub mod news;
pub mod room;
pub mod socket;
pub mod sse;
pub mod statement;
pub mod stream;
pub mod subscriber;
mod tally;
pub mod view;
pub mod viewer;
pub mod wait;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::limits::{self, Limits};
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::protocol::gateway::FrameLimits;
use crate::protocol::message::ErrorCode;
use crate::provider::Provider;
use crate::registry::{Engine, OUTCOMES, RefusalCode, Registry, Workers};
use crate::run::id::Millis;
use crate::server::api::query::decode;
use crate::server::api::{Api, uploads};
use crate::server::auth::{Auth, AuthConfig, AuthError, Caller, Proxy, Scope, scope};
use crate::server::crowd::Caps;
use crate::server::http::exchange::Exchange;
use crate::server::http::gate::{BadUrl, Gate};
use crate::server::http::head::Head;
use crate::server::http::response::{Refused, Response};
use crate::server::http::{Answer, Request, Site, Upgrade, converse};
use crate::server::links::Links;
use crate::server::listener::{Listener, Rest, Serve};
use crate::server::local::SocketFile;
use crate::server::sse::Follow;
use crate::server::stream::{Door, Peer, Stream};
use crate::server::subscriber::Greeting;
use crate::server::wait::Waiter;
use crate::store::{Incoming, Readers, Uploads};
use crate::sync::Arc;
use ::http::{Method, StatusCode, header};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen; port 0 is any free one.
    pub bind: SocketAddr,
    /// Where metrics are told without a credential, if anywhere.
    pub metrics_bind: Option<SocketAddr>,
    /// The bounds and deadlines in force.
    pub limits: Limits,
    /// Host names beyond loopback and `public_url`'s.
    pub allowed_hosts: Vec<String>,
    /// What browsers see; empty for none.
    pub public_url: String,
    /// Let everybody in.
    pub no_auth: bool,
    /// A proxy that logs people in, or says whom it speaks for.
    pub proxy: Option<Proxy>,
    /// Directories under which sessions may live. Those that do not exist count for nothing.
    pub project_roots: Vec<PathBuf>,
    /// The names that a session's `provider` may have.
    pub providers: Vec<String>,
    /// The same, as they are configured.
    pub agents: Vec<Provider>,
    /// Where the token lies.
    pub data_dir: PathBuf,
    /// Where the local socket is to lie (`local::path`); `None` for none.
    pub socket: Option<PathBuf>,
    /// Who tells people who are elsewhere, and is told who is here.
    pub notifier: Arc<Notifier>,
    /// The page's file at a path, if there is one; it is given to everybody who asks.
    pub page: fn(&str) -> Option<PageFile>,
}

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A file of the page.
#[derive(Clone, Debug)]
pub struct PageFile {
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    /// The value of `ETag`, quoted.
    pub etag: String,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    PublicUrl(#[from] BadUrl),
    /// The address cannot be listened on.
    #[error("cannot listen on {bind}: {source}; choose another with --bind ADDR:PORT")]
    Bind {
        /// Which.
        bind: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The same, for metrics.
    #[error("cannot listen on {bind} for metrics: {source}; set another server.metrics_bind")]
    BindMetrics {
        /// Which.
        bind: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The token cannot be read or made, or the other credentials cannot be read.
    #[error("cannot use the token in {}: {source}", dir.display())]
    Token {
        /// The data directory.
        dir: PathBuf,
        /// What the system or the store says.
        source: AuthError,
    },
    /// No thread or descriptor is to be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A server that serves.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    socket: Option<PathBuf>,
    listener: Listener,
    /// Where metrics are told without a credential.
    monitor: Option<(SocketAddr, Listener)>,
    fatal: Receiver<String>,
    auth: Arc<Auth>,
    links: Links,
}

impl Server {
    /// Listens and serves from now on.
    ///
    /// # Errors
    /// See `StartError`.
    pub fn start(config: ServerConfig, engine: &Engine) -> Result<Self, StartError> {
        let parts = (engine.registry().clone(), engine.readers().clone());
        Self::with(config, parts, engine.metrics().clone(), Some(engine.workers().clone()))
    }

    /// The same over the parts of an engine.
    ///
    /// # Errors
    /// See `StartError`.
    pub fn over(
        config: ServerConfig,
        registry: Arc<Registry>,
        readers: Arc<Readers>,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::new(config.providers.iter().cloned(), OUTCOMES, VERSION, None);
        Self::with(config, (registry, readers), Arc::new(metrics), None)
    }

    fn with(
        config: ServerConfig,
        (registry, readers): (Arc<Registry>, Arc<Readers>),
        metrics: Arc<Metrics>,
        workers: Option<Workers>,
    ) -> Result<Self, StartError> {
        let gate = Gate::new(config.bind.ip(), &config.allowed_hosts, &config.public_url)?;
        let bind = config.bind;
        let refused = |source| StartError::Bind { bind, source };
        let socket = TcpListener::bind(bind).map_err(refused)?;
        let address = socket.local_addr().map_err(refused)?;
        let auth = AuthConfig {
            no_auth: config.no_auth,
            data_dir: config.data_dir.clone(),
            port: address.port(),
            path: format!("{}/", gate.base_path()),
            secure: gate.is_https(),
            proxy: config.proxy,
        };
        let dir = config.data_dir.clone();
        let auth = Auth::new(auth, registry.clone(), &readers, Millis::now())
            .map_err(|source| StartError::Token { dir, source })?;
        let auth = Arc::new(auth);
        let links = Links::new(address, &config.public_url);
        let roots = config.project_roots.iter().filter_map(|root| root.canonicalize().ok());
        let front = Front {
            gate,
            auth: auth.clone(),
            page: config.page,
            limits: config.limits.clone(),
            api: Api {
                uploads: swept(Uploads::of(&config.data_dir), &readers),
                registry,
                readers,
                auth: auth.clone(),
                links: links.clone(),
                project_roots: roots.collect(),
                providers: config.providers,
                agents: config.agents,
                notifier: config.notifier,
                version: VERSION.to_owned(),
                metrics,
                workers,
                data_dir: config.data_dir,
            },
        };
        let (report, fatal) = bounded(1);
        let front = Arc::new(front);
        let monitor = match config.metrics_bind {
            Some(bind) => Some(listen_for_metrics(bind, &config.allowed_hosts, &front, &report)?),
            None => None,
        };
        let serve: Arc<Serve> = Arc::new(move |stream, peer, waiter: &Waiter| {
            Front::serve(&front, stream, peer, waiter)
        });
        let local = config.socket.as_deref().and_then(open_local);
        let all = room::connections(config.limits.connections_max);
        let caps = Caps {
            all,
            http: config.limits.connections_http_max,
            per_peer: config.limits.connections_per_peer_max,
        };
        let mut doors = vec![Door::Tcp(socket)];
        let mut file = None;
        if let Some((door, socket_file)) = local {
            doors.push(door);
            file = Some(socket_file);
        }
        let socket = config.socket.filter(|_| file.is_some());
        let listener = Listener::start(doors, file, caps, serve, report)?;
        Ok(Self { address, socket, listener, monitor, fatal, auth, links })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where the local socket lies, if there is one.
    #[must_use]
    pub fn local_socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Where metrics are told without a credential, if anywhere.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.monitor.as_ref().map(|(address, _)| *address)
    }

    /// A link that lets one browser in, once, as its owner's; it is for the owner's eyes alone.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn first_link(&self) -> io::Result<Option<String>> {
        let (code, _) = self.auth.issue_code(Scope::Admin, None, None, Millis::now())?;
        Ok(self.links.with(&code).into_iter().next())
    }

    /// Says so once if accepting had to stop: the process must end.
    #[must_use]
    pub const fn fatal(&self) -> &Receiver<String> {
        &self.fatal
    }

    /// Takes no more connections. Those that are there end once their clients have what they will
    /// get: `Registry::close`, to be called before this, says in which mode and when that is.
    pub fn drain(&self) {
        self.listener.drain();
    }

    /// Drains, waits for the connections to end, stops those left at `deadline`, joins all
    /// threads. `false` if a thread had to be left behind.
    #[must_use]
    pub fn stop(self, deadline: Instant) -> bool {
        let all_left = self.listener.join(deadline);
        self.monitor.is_none_or(|(_, monitor)| monitor.join(deadline)) && all_left
    }
}

/// Whoever watches has a place of its own, so that a full server can still be seen to be full.
fn listen_for_metrics(
    bind: SocketAddr,
    allowed_hosts: &[String],
    front: &Arc<Front>,
    report: &Sender<String>,
) -> Result<(SocketAddr, Listener), StartError> {
    let refused = |source| StartError::BindMetrics { bind, source };
    let socket = TcpListener::bind(bind).map_err(refused)?;
    let address = socket.local_addr().map_err(refused)?;
    let gate = Gate::new(bind.ip(), allowed_hosts, "")?;
    let most = limits::MONITOR_CONNECTIONS_MAX;
    let caps = Caps { all: most, http: most, per_peer: most };
    let serve = monitor::serve(front.clone(), gate);
    let doors = vec![Door::Tcp(socket)];
    Ok((address, Listener::start(doors, None, caps, serve, report.clone())?))
}

/// The local socket is a convenience: a server without one serves.
fn open_local(path: &Path) -> Option<(Door, SocketFile)> {
    match local::bind(path) {
        Ok((listener, file)) => Some((Door::Unix(listener), file)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "there is no local socket");
            None
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Front {
    gate: Gate,
    auth: Arc<Auth>,
    limits: Limits,
    api: Api,
    page: fn(&str) -> Option<PageFile>,
}

impl Front {
    /// One connection: its requests here and now, its WebSocket or its stream as the rest.
    fn serve(self: &Arc<Self>, stream: Stream, peer: Peer, waiter: &Waiter) -> Option<Rest> {
        let front = self.clone();
        match converse(&stream, peer, waiter, &**self)? {
            Upgrade::WebSocket { request, leftover } => {
                // Whoever is nobody was not let through to it.
                let caller = request.caller?;
                let id = request.id;
                Some(Box::new(move |waiter| {
                    let opened = Instant::now();
                    let end = front.serve_websocket(stream, leftover, waiter, caller);
                    access::closed(&id, opened.elapsed(), end);
                }))
            }
            Upgrade::Events { request, events } => {
                let caller = request.caller?;
                let serve = move |waiter: &_| front.serve_events(stream, waiter, events, caller);
                Some(Box::new(serve))
            }
        }
    }

    fn serve_events(&self, stream: Stream, waiter: &Waiter, follow: Follow, caller: Caller) {
        let parts = sse::Parts {
            registry: &self.api.registry,
            metrics: &self.api.metrics,
            limits: &self.limits,
            caller,
        };
        sse::serve(stream, waiter, follow, parts);
    }

    fn serve_websocket(
        &self,
        stream: Stream,
        leftover: Vec<u8>,
        waiter: &Waiter,
        caller: Caller,
    ) -> Option<(u16, &'static str)> {
        let parts = connection::Parts {
            registry: &self.api.registry,
            readers: &self.api.readers,
            metrics: &self.api.metrics,
            presence: self.api.notifier.presence(),
            limits: &self.limits,
            greeting: Greeting {
                server: format!("reattach/{}", self.api.version),
                heartbeat_ms: self.limits.heartbeat_ms,
                limits: FrameLimits {
                    message_bytes_max: self.limits.message_bytes_max,
                    event_bytes_max: self.limits.event_bytes_max,
                },
                epoch: self.api.registry.epoch(),
            },
            auth: &self.auth,
            caller,
        };
        connection::serve(stream, leftover, waiter, parts)
    }
}

/// Where a browser exchanges a code or a token for a cookie.
const LOGIN: &str = "/api/v1/login";

impl Site for Front {
    type Events = Follow;

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn body_bytes_max(&self) -> u64 {
        u64::try_from(self.limits.message_bytes_max).unwrap_or(u64::MAX)
    }

    fn caller(&self, head: &Head, peer: Peer) -> Result<Option<Caller>, Refused> {
        let found = self.auth.identify(&head.headers, peer, Millis::now());
        let wrong = match found {
            Ok(Some(caller)) => {
                check_scope(head, &caller)?;
                return Ok(Some(caller));
            }
            Ok(None) => None,
            Err(wrong) => Some(wrong),
        };
        let reading = matches!(head.method, Method::GET | Method::HEAD);
        let open = match head.path.as_str() {
            "/healthz" | "/readyz" => true,
            LOGIN => head.method == Method::POST,
            path => reading && (path == self.gate.base_path() || (self.page)(path).is_some()),
        };
        if open {
            return Ok(None);
        }
        if let Some(wrong) = wrong
            && self.auth.guessed(wrong, &head.headers, peer).is_err()
        {
            let message = "Too many wrong tokens; try again later.";
            let status = StatusCode::TOO_MANY_REQUESTS;
            return Err(Refused::new(status, "TOO_MANY_ATTEMPTS", message));
        }
        let message = "Send a token: Authorization: Bearer TOKEN, or log in for a cookie.";
        Err(Refused::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message))
    }

    fn told(&self, exchange: &Exchange<'_>) {
        let is_page = |path: &str| path == self.gate.base_path() || (self.page)(path).is_some();
        access::told(exchange, &self.api.metrics, is_page);
    }

    fn receive(&self, head: &Head) -> Result<Option<Incoming>, Refused> {
        uploads::receive(&self.api.uploads, self.limits.upload_bytes_max, head)
    }

    fn answer(&self, request: &Request) -> Answer<Follow> {
        let path = request.head.path.as_str();
        if path == "/ws" {
            return Answer::WebSocket;
        }
        match self.api.follow(request) {
            Some(Ok(follow)) => return Answer::Events(sse::head(), follow),
            Some(Err(problem)) => return Answer::Response(problem.into()),
            None => {}
        }
        match self.api.file(request) {
            Some(Ok((head, file, bytes))) => return Answer::File(head, file, bytes),
            Some(Err(problem)) => return Answer::Response(problem.into()),
            None => {}
        }
        let reading = matches!(request.head.method, Method::GET | Method::HEAD);
        let response = match (self.page)(path).filter(|_| reading) {
            Some(file) => page_file(file, &request.head),
            // The page's addresses are relative: without the slash they would lead elsewhere.
            None if path == self.gate.base_path() && reading => {
                Response::empty(StatusCode::PERMANENT_REDIRECT).with("Location", format!("{path}/"))
            }
            None => self.api.answer(request).unwrap_or_else(|| {
                let message = "There is nothing at this path.";
                Response::error(StatusCode::NOT_FOUND, "NOT_FOUND", message)
            }),
        };
        let headers = &request.head.headers;
        let renewal = request.caller.as_ref();
        let renewal = renewal.and_then(|who| self.auth.renewal(who, headers, Millis::now()));
        Answer::Response(match renewal {
            Some(cookie) if !response.headers.iter().any(|(name, _)| *name == "Set-Cookie") => {
                response.with("Set-Cookie", cookie)
            }
            _ => response,
        })
    }
}

/// Without what a gateway before this one left behind: the files of sessions that are gone, say.
fn swept(uploads: Uploads, readers: &Readers) -> Uploads {
    uploads.sweep(|session| matches!(readers.session_view(session), Ok(None)));
    uploads
}

/// Refuses what the caller's scope does not cover before anything of its body is read.
fn check_scope(head: &Head, caller: &Caller) -> Result<(), Refused> {
    let Some(path) = head.path.strip_prefix("/api/v1/") else { return Ok(()) };
    // What cannot be decoded has its own answer.
    let Ok(segments) = path.split('/').map(decode).collect::<Result<Vec<_>, _>>() else {
        return Ok(());
    };
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match scope::of_request(head.method.as_str(), &segments) {
        Some(needed) if caller.scope < needed => {
            let message = scope::forbidden(needed);
            Err(Refused::new(StatusCode::FORBIDDEN, "FORBIDDEN", &message))
        }
        _ => Ok(()),
    }
}

/// A file of the page, or that the browser has it already.
fn page_file(file: PageFile, head: &Head) -> Response {
    let known = head.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let has_it = known.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == file.etag));
    let response = if has_it {
        Response::empty(StatusCode::NOT_MODIFIED)
    } else {
        let content_type = Some(file.content_type);
        Response { content_type, body: file.bytes.into(), ..Response::empty(StatusCode::OK) }
    };
    // Asked about at each use, so that a new program's page is seen at once.
    response.with("Cache-Control", "no-cache").with("ETag", file.etag)
}

/// The wire's word for a refusal.
fn error_code(code: RefusalCode) -> ErrorCode {
    match code {
        RefusalCode::SessionNotFound => ErrorCode::SessionNotFound,
        RefusalCode::UnsupportedProvider => ErrorCode::UnsupportedProvider,
        RefusalCode::RunInProgress => ErrorCode::RunInProgress,
        RefusalCode::NoActiveRun => ErrorCode::NoActiveRun,
        RefusalCode::RunNotFound => ErrorCode::RunNotFound,
        RefusalCode::PermissionNotFound => ErrorCode::PermissionNotFound,
        RefusalCode::QueuedPromptNotFound => ErrorCode::QueuedPromptNotFound,
        RefusalCode::PermissionAlreadyResolved => ErrorCode::PermissionAlreadyResolved,
        RefusalCode::Busy => ErrorCode::Busy,
        RefusalCode::StoreUnavailable => ErrorCode::StoreUnavailable,
        RefusalCode::ShuttingDown => ErrorCode::ShuttingDown,
        RefusalCode::InvalidField => ErrorCode::InvalidField,
        RefusalCode::Internal => ErrorCode::InternalError,
    }
}

#[cfg(test)]
mod tests;
