//! One HTTP/1.1 conversation: requests in, answers out, all with deadlines and bounds.
//!
//! Any error closes the connection. Deadlines are absolute: a client that sends a byte now and
//! then gains nothing. Must not know routes, sessions or runs.

mod body;
pub mod exchange;
pub mod gate;
pub mod head;
pub mod response;

use std::fs::File;
use std::time::Instant;

use http::{Method, StatusCode, Version, header};

use crate::limits;
use crate::server::auth::{Caller, How};
use crate::server::http::exchange::{Exchange, REQUEST_ID, RequestId};
use crate::server::http::gate::Gate;
use crate::server::http::head::{Head, Parsed};
use crate::server::http::response::{Refused, Response};
use crate::server::socket::{Failure, Socket, after};
use crate::server::stream::{Peer, Stream};
use crate::server::wait::{Order, Waiter};
use crate::store::Incoming;
use crate::sync::Arc;

/// A request that passed every check but that of its meaning.
#[derive(Clone, Debug)]
pub struct Request {
    /// By what name it is spoken of.
    pub id: RequestId,
    /// Its head. The path is without the public URL's.
    pub head: Head,
    /// Who is at the other end of the connection.
    pub peer: Peer,
    /// Who sends it; `None` only where `Site::caller` lets it.
    pub caller: Option<Caller>,
    /// Its body, whole.
    pub body: Vec<u8>,
    /// Its body, if the site wanted it as a file; the other one is empty then.
    pub file: Option<Arc<Incoming>>,
}

/// What becomes of a request. `E` is what a stream of events is to tell.
#[derive(Debug)]
pub enum Answer<E> {
    /// An answer.
    Response(Response),
    /// An answer whose body is so much of a file.
    File(Response, File, u64),
    /// The connection goes on as a WebSocket.
    WebSocket,
    /// An answer whose body has no known end: its head, and what is to follow until we close.
    Events(Response, E),
}

/// A connection for which this conversation is over, and which goes on for long.
#[derive(Debug)]
pub enum Upgrade<E> {
    /// As a WebSocket.
    WebSocket {
        /// The request that asked for it.
        request: Request,
        /// What had been read beyond it.
        leftover: Vec<u8>,
    },
    /// As the body of an answer whose head is sent.
    Events {
        /// The request that asked for it.
        request: Request,
        /// What is to be told.
        events: E,
    },
}

/// Who answers.
pub trait Site {
    /// What a stream of events is to tell.
    type Events;

    /// The names under which it is reached.
    fn gate(&self) -> &Gate;

    /// How large a body may be, in bytes.
    fn body_bytes_max(&self) -> u64;

    /// Who is asking.
    ///
    /// # Errors
    /// If that is not known and what is asked for needs it.
    fn caller(&self, head: &Head, peer: Peer) -> Result<Option<Caller>, Refused>;

    /// Where this request's body is to go, if not into memory. Then it may be of any type and as
    /// large as this allows.
    ///
    /// # Errors
    /// If the body is not wanted.
    fn receive(&self, _head: &Head) -> Result<Option<Incoming>, Refused> {
        Ok(None)
    }

    /// Answers.
    fn answer(&self, request: &Request) -> Answer<Self::Events>;

    /// Hears of every request that got an answer, once that is sent.
    fn told(&self, exchange: &Exchange<'_>);
}

/// Answers requests until the connection closes, or goes on for long. The socket is non-blocking.
pub fn converse<S: Site>(
    stream: &Stream,
    peer: Peer,
    waiter: &Waiter,
    site: &S,
) -> Option<Upgrade<S::Events>> {
    let socket = Socket { stream, waiter };
    let mut buffer = Vec::new();
    for count in 1.. {
        let mut told = Told::new(&socket, site, peer);
        let mut head = match read_head(&socket, &mut buffer) {
            Ok(head) => head,
            Err(end) => return told.refuse(None, end),
        };
        told.begin(&head);
        let with_body = head.method != Method::HEAD;
        let last = count >= limits::REQUESTS_PER_CONNECTION_MAX || !head.keep_alive;
        let (caller, body, file) = match admit(&socket, site, &mut head, peer, &mut buffer) {
            Ok(admitted) => admitted,
            Err(end) => return told.refuse(Some(&head), end),
        };
        let request = Request { id: told.id.clone(), head, peer, caller, body, file };
        let ends =
            |status: StatusCode| last || waiter.order() > Order::Serve || status.as_u16() >= 400;
        let response = match told.id.span().in_scope(|| site.answer(&request)) {
            Answer::Response(response) => response,
            Answer::File(response, file, length) => {
                let last = ends(response.status);
                let response = response.to(&request.id);
                told.send(&request, response.status, &response.encode_sized(length, last))?;
                if with_body {
                    body::send_file(&socket, file, length)?;
                }
                if last {
                    socket.farewell();
                    return None;
                }
                continue;
            }
            Answer::WebSocket => match handshake(&request.head, &request.id) {
                Ok(accepted) => {
                    told.send(&request, StatusCode::SWITCHING_PROTOCOLS, &accepted)?;
                    // A copy of what there is: the buffer was made for heads.
                    let leftover = buffer.as_slice().into();
                    return Some(Upgrade::WebSocket { request, leftover });
                }
                Err(refused) => return told.refuse(Some(&request.head), End::Refused(refused)),
            },
            Answer::Events(response, events) => {
                let response = response.to(&request.id);
                told.send(&request, response.status, &response.encode_open())?;
                if with_body {
                    return Some(Upgrade::Events { request, events });
                }
                // A `HEAD` request learns what a stream begins with.
                socket.farewell();
                return None;
            }
        };
        let (status, last) = (response.status, ends(response.status));
        let bytes = response.to(&request.id).encode(with_body, last);
        told.send(&request, status, &bytes)?;
        if last {
            socket.farewell();
            return None;
        }
    }
    None
}

/// A request on its way to its answer, which the site is told of.
struct Told<'a, S> {
    socket: &'a Socket<'a>,
    site: &'a S,
    peer: Peer,
    id: RequestId,
    begun: Instant,
}

impl<'a, S: Site> Told<'a, S> {
    fn new(socket: &'a Socket<'a>, site: &'a S, peer: Peer) -> Self {
        Self { socket, site, peer, id: RequestId::fresh(), begun: Instant::now() }
    }

    /// Its head is there.
    fn begin(&mut self, head: &Head) {
        self.id = RequestId::of(&head.headers);
        self.begun = Instant::now();
    }

    /// Sends its answer; `None` if the client is gone.
    fn send(&self, request: &Request, status: StatusCode, bytes: &[u8]) -> Option<()> {
        let sent = self.socket.send(bytes);
        let caller = request.caller.as_ref().map_or("", label);
        self.tell(Some(&request.head), caller, (status, None), bytes.len());
        sent.ok()
    }

    /// Ends the connection, with an answer if the client is to learn why.
    fn refuse<T>(&self, head: Option<&Head>, end: End) -> Option<T> {
        if let End::Refused(refused) = end {
            let (status, code) = (refused.status, refused.code);
            let bytes = Response::from(refused).to(&self.id).encode(true, true);
            let sent = self.socket.send(&bytes);
            self.tell(head, "", (status, Some(code)), bytes.len());
            if sent.is_ok() {
                self.socket.farewell();
            }
        }
        None
    }

    fn tell(
        &self,
        head: Option<&Head>,
        caller: &str,
        (status, refused): (StatusCode, Option<&'static str>),
        bytes: usize,
    ) {
        let took = self.begun.elapsed();
        let Self { id, peer, .. } = self;
        let exchange = Exchange { id, peer: *peer, head, caller, status, refused, bytes, took };
        id.span().in_scope(|| self.site.told(&exchange));
    }
}

/// Who somebody is, as the log says it: the name of what they came in by, where that has one.
fn label(caller: &Caller) -> &str {
    match caller.how {
        How::Nobody => "",
        How::Open => "open",
        How::Local => "local",
        How::Bearer | How::Cookie | How::Proxy => &caller.by.name,
    }
}

/// Why a conversation ends without an answer from the site.
enum End {
    /// The client is gone, silent between requests, or we are stopping.
    Silent,
    /// The client learns why.
    Refused(Refused),
}

impl From<Refused> for End {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// The next head. `buffer` keeps what follows it.
fn read_head(socket: &Socket<'_>, buffer: &mut Vec<u8>) -> Result<Head, End> {
    if buffer.is_empty() {
        // A client that stays silent between two requests is not at fault: it just goes.
        let idle = socket.fill(buffer, after(limits::KEEP_ALIVE_MS), Order::Drain);
        idle.map_err(|_| End::Silent)?;
    }
    let deadline = after(limits::HEAD_MS);
    let mut seen = 0;
    loop {
        match head::parse(buffer, seen)? {
            Parsed::Head(head, length) => {
                buffer.drain(..length);
                return Ok(*head);
            }
            Parsed::Partial => seen = buffer.len(),
        }
        fill_or_late(socket, buffer, deadline)?;
    }
}

/// Who sends a request, and its body: in memory or in a file.
type Admitted = (Option<Caller>, Vec<u8>, Option<Arc<Incoming>>);

/// Checks the request from the outside in, and only then reads its body.
fn admit(
    socket: &Socket<'_>,
    site: &impl Site,
    head: &mut Head,
    peer: Peer,
    buffer: &mut Vec<u8>,
) -> Result<Admitted, End> {
    site.gate().admit(&head.headers)?;
    let base = site.gate().base_path();
    if let Some(rest) = head.path.strip_prefix(base).filter(|rest| rest.starts_with('/')) {
        head.path = rest.to_owned();
    }
    let caller = site.caller(head, peer)?;
    let mut incoming = site.receive(head)?;
    if incoming.is_none() {
        if head.body_bytes > site.body_bytes_max() {
            return Err(Refused::too_large(site.body_bytes_max()).into());
        }
        check_type(head)?;
    }
    if head.expects_continue && (buffer.len() as u64) < head.body_bytes {
        let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
        socket.send(go_on).map_err(|_| End::Silent)?;
    }
    let body = match &mut incoming {
        Some(incoming) => {
            body::store(socket, head, buffer, incoming)?;
            Vec::new()
        }
        None => body::read(socket, head, buffer)?,
    };
    Ok((caller, body, incoming.map(Arc::new)))
}

/// A body is JSON and says so: a form that another site makes a browser send is not.
fn check_type(head: &Head) -> Result<(), Refused> {
    let content_type = head.headers.get(header::CONTENT_TYPE);
    if head.body_bytes == 0 && content_type.is_none() {
        return Ok(());
    }
    let value = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "Send a body as Content-Type: application/json.";
    Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message))
}

/// The bytes that turn the connection into a WebSocket.
fn handshake(head: &Head, id: &RequestId) -> Result<Vec<u8>, Refused> {
    let refused =
        |message: &str| Refused::new(StatusCode::UPGRADE_REQUIRED, "WEBSOCKET_REQUIRED", message);
    let mut request = http::Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().clone_from(&head.headers);
    if head.version != Version::HTTP_11 || head.body_bytes != 0 {
        return Err(refused("A WebSocket begins with a GET of HTTP/1.1 without a body."));
    }
    let mut response = tungstenite::handshake::server::create_response(&request)
        .map_err(|error| refused(&format!("This is for WebSockets: {error}.")))?;
    if let Ok(id) = id.as_str().parse() {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let mut bytes = Vec::new();
    tungstenite::handshake::server::write_response(&mut bytes, &response)
        .map_err(|error| refused(&error.to_string()))?;
    Ok(bytes)
}

fn fill_or_late(socket: &Socket<'_>, buffer: &mut Vec<u8>, until: Instant) -> Result<(), End> {
    socket.fill(buffer, until, Order::Stop).map_err(|failure| match failure {
        Failure::Gone => End::Silent,
        Failure::Late => {
            let message = "The request took too long.";
            Refused::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", message).into()
        }
    })
}

#[cfg(test)]
mod tests;
