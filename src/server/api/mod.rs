//! REST: routes, and what they share. Reads show the durable state; a 2xx of a write follows its
//! commit. Must not know sockets or tungstenite.

mod audit;
mod devices;
mod events;
mod health;
mod login;
mod notifications;
mod pair;
mod permissions;
mod places;
pub mod query;
mod queue;
mod runs;
mod schema;
mod sessions;
mod tokens;
pub(super) mod uploads;

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::limits;
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::protocol::fields::{BadField, Fields};
use crate::protocol::message::{ErrorCode, session_id};
use crate::provider::Provider;
use crate::registry::{Pending, Refusal, Registry, Workers};
use crate::run::event::By;
use crate::run::id::{Millis, NativeId, SessionId};
use crate::run::log::Settled;
use crate::run::wake::{Bell, Waker};
use crate::server::api::query::{Query, decode};
use crate::server::auth::{Auth, Caller, How, Scope, scope};
use crate::server::http::Request;
use crate::server::http::response::Response;
use crate::server::links::Links;
use crate::server::sse::Follow;
use crate::server::{error_code, view};
use crate::store::{ReadError, Readers, SessionView, Uploads};
use crate::sync::Arc;

/// What the routes work on.
#[derive(Debug)]
pub struct Api {
    /// Decides and writes.
    pub registry: Arc<Registry>,
    /// Reads.
    pub readers: Arc<Readers>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// Where they come in.
    pub links: Links,
    /// Directories under which sessions may live, resolved.
    pub project_roots: Vec<PathBuf>,
    /// The names that a session's `provider` may have.
    pub providers: Vec<String>,
    /// The same, as they are configured.
    pub agents: Vec<Provider>,
    /// Tells people who are elsewhere.
    pub notifier: Arc<Notifier>,
    /// This program's version.
    pub version: String,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who has agents at work; `None` where nobody can have.
    pub workers: Option<Workers>,
    /// Where everything lies.
    pub data_dir: PathBuf,
    /// Files that were given to sessions.
    pub uploads: Uploads,
}

/// Why a request is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: String,
    message: String,
}

/// A request on its way through the routes.
struct Call<'a> {
    api: &'a Api,
    request: &'a Request,
    query: Query,
    caller: Caller,
    by: By,
    now: Millis,
}

type Outcome = Result<Response, Problem>;

impl Api {
    /// Answers a request below `/api/v1`, or of the few paths beside it. `None`: not ours.
    #[must_use]
    pub fn answer(&self, request: &Request) -> Option<Response> {
        let path = request.head.path.as_str();
        let method = &request.head.method;
        let outcome = match path {
            "/healthz" | "/readyz" | "/version" | "/metrics" if !is_reading(method) => {
                Ok(not_allowed("GET, HEAD"))
            }
            "/healthz" => Ok(Self::health()),
            "/readyz" => Ok(self.ready(request.caller.is_some())),
            "/version" => Ok(self.version()),
            "/metrics" => Ok(self.metrics()),
            _ => {
                let rest = path.strip_prefix("/api/v1/")?;
                self.route(request, rest)
            }
        };
        Some(outcome.unwrap_or_else(Response::from))
    }

    /// What a request wants to follow, if it asks for a session's log as a stream. `None`: it
    /// asks for something else.
    pub fn follow(&self, request: &Request) -> Option<Result<Follow, Problem>> {
        let path = request.head.path.strip_prefix("/api/v1/sessions/")?;
        let named = path.strip_suffix("/events").filter(|named| !named.contains('/'))?;
        if !is_reading(&request.head.method) || !events::wants_stream(&request.head.headers) {
            return None;
        }
        let follow = || {
            let call = self.call(request)?;
            call.require(Scope::Read)?;
            events::follow(&call, &decode(named)?)
        };
        Some(follow())
    }

    fn call<'a>(&'a self, request: &'a Request) -> Result<Call<'a>, Problem> {
        let query = Query::read(&request.head.query)?;
        let caller = request.caller.clone();
        let caller = caller.unwrap_or_else(|| Caller::nobody(&request.head.headers));
        let by = caller.by.clone();
        Ok(Call { api: self, request, query, caller, by, now: Millis::now() })
    }

    fn route(&self, request: &Request, path: &str) -> Outcome {
        let segments = path.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let call = self.call(request)?;
        let method = match request.head.method.as_str() {
            "HEAD" => "GET",
            other => other,
        };
        if let Some(scope) = scope::of_request(method, &segments) {
            call.require(scope)?;
        }
        match (method, segments.as_slice()) {
            ("GET", ["sessions"]) => sessions::list(&call),
            ("POST", ["sessions"]) => sessions::create(&call),
            ("GET", ["sessions", id]) => sessions::show(&call, id),
            ("PATCH", ["sessions", id]) => sessions::edit(&call, id),
            ("DELETE", ["sessions", id]) => sessions::delete(&call, id),
            ("GET", ["sessions", id, "runs"]) => runs::of_session(&call, id),
            ("POST", ["sessions", id, "runs"]) => runs::start(&call, id),
            ("GET", ["sessions", id, "events"]) => events::page(&call, id),
            ("GET", ["sessions", id, "queue"]) => queue::list(&call, id),
            ("DELETE", ["sessions", id, "queue", queued]) => queue::remove(&call, id, queued),
            ("POST", ["sessions", id, "queue", "resume"]) => queue::resume(&call, id),
            ("GET", ["sessions", id, "uploads"]) => uploads::list(&call, id),
            ("POST", ["sessions", id, "uploads"]) => uploads::create(&call, id),
            ("DELETE", ["sessions", id, "uploads", upload]) => uploads::remove(&call, id, upload),
            ("GET", ["runs"]) => runs::list(&call),
            ("GET", ["runs", id]) => runs::show(&call, id),
            ("POST", ["runs", id, "abort"]) => runs::abort(&call, id),
            ("GET", ["runs", id, "events", seq]) => events::whole(&call, id, seq),
            ("GET", ["audit"]) => audit::list(&call),
            ("GET", ["projects"]) => places::projects(&call),
            ("PATCH", ["projects", id]) => places::edit_project(&call, id),
            ("GET", ["providers"]) => Ok(places::providers(&call)),
            ("GET", ["folders"]) => places::folders(&call),
            ("GET", ["notifications"]) => notifications::list(&call),
            ("POST", ["notifications", "test"]) => notifications::test(&call),
            ("GET", ["openapi.json"]) => Ok(schema::openapi()),
            ("GET", ["frames.schema.json"]) => Ok(schema::frames()),
            ("POST", ["login"]) => login::login(&call),
            ("POST", ["logout"]) => login::logout(&call),
            ("POST", ["pair"]) => pair::create(&call),
            ("GET", ["devices"]) => devices::list(&call),
            ("DELETE", ["devices", id]) => devices::revoke(&call, id),
            ("GET", ["tokens"]) => tokens::list(&call),
            ("POST", ["tokens"]) => tokens::create(&call),
            ("DELETE", ["tokens", id]) => tokens::revoke(&call, id),
            ("GET", ["permissions"]) => permissions::list(&call),
            ("POST", ["permissions", id]) => permissions::answer(&call, id),
            (_, path) => match methods(path) {
                Some(allow) => Ok(not_allowed(allow)),
                None => Err(not_found()),
            },
        }
    }
}

impl Call<'_> {
    /// Lets those through who may do as much. Every route has been asked for the scope that
    /// `scope::of_request` says; this is for what depends on more.
    fn require(&self, needed: Scope) -> Result<(), Problem> {
        if self.caller.how == How::Nobody {
            let message = "Send a token: Authorization: Bearer TOKEN, or log in for a cookie.";
            let (status, code) = (StatusCode::UNAUTHORIZED, "UNAUTHORIZED".to_owned());
            return Err(Problem { status, code, message: message.to_owned() });
        }
        if self.caller.scope >= needed {
            return Ok(());
        }
        Err(Problem::of(ErrorCode::Forbidden, &scope::forbidden(needed)))
    }

    /// The body's fields.
    fn fields(&self) -> Result<Fields, Problem> {
        let body = serde_json::from_slice::<Value>(&self.request.body).ok();
        body.and_then(Fields::of).ok_or_else(|| {
            let message = "The body must be one JSON object, as UTF-8 text.";
            Problem::of(ErrorCode::InvalidMessage, message)
        })
    }

    /// A session by its app id, or else by its provider's.
    fn session(&self, named: &str) -> Result<SessionView, Problem> {
        let readers = &self.api.readers;
        let by_app_id = match session_id(named) {
            Some(id) => readers.session_view(id)?,
            None => None,
        };
        let found = match by_app_id {
            Some(view) => Some(view),
            None => match readers.session_by_native(&NativeId(named.to_owned()))? {
                Some(id) => readers.session_view(id)?,
                None => None,
            },
        };
        found.ok_or_else(|| no_session(named))
    }

    /// The same, as REST shows it, after a write.
    fn show(&self, status: StatusCode, id: SessionId) -> Outcome {
        let view = self.api.readers.session_view(id)?;
        let view = view.ok_or_else(|| no_session(&id.to_string()))?;
        Ok(Response::json(status, &view::session(&view)))
    }

    /// Waits until a write is on disk, at most `limits::COMMIT_WAIT_MS`.
    fn commit(&self, pending: &Pending) -> Result<(), Problem> {
        let (knock, knocked) = bounded(1);
        let waker = Waker::new(Box::new(Knock(knock)));
        let deadline = Duration::from_millis(limits::COMMIT_WAIT_MS.unsigned_abs());
        let until = std::time::Instant::now() + deadline;
        loop {
            match pending.wake(&waker) {
                Settled::Committed => return Ok(()),
                Settled::Rejected => {
                    let message = "The store refused to write this; the run's end says more.";
                    return Err(Problem::of(ErrorCode::InternalError, message));
                }
                Settled::Waiting => {}
            }
            if knocked.recv_deadline(until).is_err() {
                self.api.registry.forget(&waker);
                let message = "It is not known whether this was recorded: the store cannot write \
                               now. Send it again later, with the same clientMessageId.";
                return Err(Problem::of(ErrorCode::StoreUnavailable, message));
            }
            // As every owner of a bell: first it is silenced, then what it rang for is taken.
            waker.take();
        }
    }
}

/// Rings by a message that nobody needs to have taken.
struct Knock(Sender<()>);

impl Bell for Knock {
    fn ring(&self) {
        // Full means that it has been rung and not been heard yet.
        self.0.try_send(()).ok();
    }
}

impl Problem {
    /// A problem with a code of the closed list.
    #[must_use]
    pub fn of(code: ErrorCode, message: &str) -> Self {
        let word = match serde_json::to_value(code) {
            Ok(Value::String(word)) => word,
            _ => String::from("INTERNAL_ERROR"),
        };
        Self { status: status_of(code), code: word, message: message.to_owned() }
    }

    /// Something that REST alone names and that is not there.
    #[must_use]
    pub fn not_found(code: &str, message: &str) -> Self {
        Self { status: StatusCode::NOT_FOUND, code: code.to_owned(), message: message.to_owned() }
    }

    /// A field or parameter that cannot be used.
    #[must_use]
    pub fn field(message: &str) -> Self {
        Self::of(ErrorCode::InvalidField, message)
    }

    /// A request that cannot be read.
    #[must_use]
    pub fn bad_request(message: &str) -> Self {
        let code = "BAD_REQUEST".to_owned();
        Self { status: StatusCode::BAD_REQUEST, code, message: message.to_owned() }
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Self {
        let response = Self::error(problem.status, &problem.code, &problem.message);
        match problem.status {
            StatusCode::SERVICE_UNAVAILABLE => response.with("Retry-After", "1"),
            _ => response,
        }
    }
}

impl From<BadField> for Problem {
    fn from(bad: BadField) -> Self {
        Self::field(&bad.to_string())
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::of(error_code(refusal.code), &refusal.message)
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::BadCursor(_) => Self::field("cursor must be one that this list gave."),
            error => Self::of(ErrorCode::StoreUnavailable, &error.to_string()),
        }
    }
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::SessionNotFound
        | ErrorCode::RunNotFound
        | ErrorCode::PermissionNotFound
        | ErrorCode::QueuedPromptNotFound => StatusCode::NOT_FOUND,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::RunInProgress
        | ErrorCode::NoActiveRun
        | ErrorCode::PermissionAlreadyResolved => StatusCode::CONFLICT,
        ErrorCode::Busy | ErrorCode::StoreUnavailable | ErrorCode::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorCode::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::SessionIdRequired
        | ErrorCode::UnsupportedProvider
        | ErrorCode::UnknownMessageType
        | ErrorCode::InvalidMessage
        | ErrorCode::InvalidField => StatusCode::BAD_REQUEST,
    }
}

/// A page of a list.
fn listed(items: Vec<Value>, next: Option<String>) -> Response {
    Response::json(StatusCode::OK, &json!({ "items": items, "nextCursor": next }))
}

fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn no_session(named: &str) -> Problem {
    let named: String = named.chars().take(limits::ID_BYTES_MAX).collect();
    Problem::of(ErrorCode::SessionNotFound, &format!("Session \"{named}\" was not found."))
}

fn not_found() -> Problem {
    let message = "There is nothing at this path.".to_owned();
    Problem { status: StatusCode::NOT_FOUND, code: "NOT_FOUND".into(), message }
}

/// What a path below `/api/v1` takes, as `Allow` says it; `None` if there is nothing at it.
fn methods(path: &[&str]) -> Option<&'static str> {
    Some(match path {
        ["sessions"] => "GET, HEAD, POST",
        ["sessions", _] => "DELETE, GET, HEAD, PATCH",
        ["sessions", _, "runs" | "uploads"] => "GET, HEAD, POST",
        ["sessions", _, "events" | "queue"] => "GET, HEAD",
        ["sessions", _, "queue", "resume"] => "DELETE, POST",
        ["sessions", _, "queue", _] => "DELETE",
        ["sessions", _, "uploads", _] => "DELETE, GET, HEAD",
        ["runs"] | ["runs", _] | ["runs", _, "events", _] => "GET, HEAD",
        ["runs", _, "abort"] => "POST",
        ["permissions"] | ["projects"] | ["providers"] | ["folders"] => "GET, HEAD",
        ["permissions", _] | ["notifications", "test"] => "POST",
        ["login" | "logout" | "pair"] => "POST",
        ["devices"] => "GET, HEAD",
        ["tokens"] => "GET, HEAD, POST",
        ["devices" | "tokens", _] => "DELETE",
        ["projects", _] => "PATCH",
        ["audit"] | ["notifications"] => "GET, HEAD",
        ["openapi.json" | "frames.schema.json"] => "GET, HEAD",
        _ => return None,
    })
}

fn not_allowed(allow: &'static str) -> Response {
    let message = "This path does not take that method; see Allow.";
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Response::error(status, "METHOD_NOT_ALLOWED", message).with("Allow", allow)
}
