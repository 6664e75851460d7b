//! A listener of its own for whoever watches the server: what is counted and how it stands,
//! without a credential, and nothing else. Off unless configured. Must not know routes of the API.

use std::convert::Infallible;

use ::http::{Method, StatusCode};

use crate::server::access;
use crate::server::auth::Caller;
use crate::server::http::exchange::Exchange;
use crate::server::http::gate::Gate;
use crate::server::http::head::Head;
use crate::server::http::response::{Refused, Response};
use crate::server::http::{Answer, Request, Site, Upgrade, converse};
use crate::server::listener::Serve;
use crate::server::stream::{Peer, Stream};
use crate::server::wait::Waiter;
use crate::server::{Api, Front};
use crate::sync::Arc;

/// The site at that listener.
struct Monitor {
    gate: Gate,
    front: Arc<Front>,
}

/// What the listener does with a connection: requests and answers, to the end.
pub(super) fn serve(front: Arc<Front>, gate: Gate) -> Arc<Serve> {
    let site = Monitor { gate, front };
    Arc::new(move |stream: Stream, peer: Peer, waiter: &Waiter| {
        match converse(&stream, peer, waiter, &site)? {
            Upgrade::Events { events, .. } => match events {},
            // Nothing here is answered with one.
            Upgrade::WebSocket { .. } => None,
        }
    })
}

impl Site for Monitor {
    type Events = Infallible;

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn body_bytes_max(&self) -> u64 {
        0
    }

    fn caller(&self, _: &Head, _: Peer) -> Result<Option<Caller>, Refused> {
        Ok(None)
    }

    fn answer(&self, request: &Request) -> Answer<Infallible> {
        let api: &Api = &self.front.api;
        let reading = matches!(request.head.method, Method::GET | Method::HEAD);
        Answer::Response(match request.head.path.as_str() {
            "/metrics" | "/healthz" | "/readyz" if !reading => {
                let message = "This path does not take that method.";
                Response::error(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
            }
            "/metrics" => api.metrics(),
            "/healthz" => Api::health(),
            "/readyz" => api.ready(false),
            _ => {
                let message = "Here are /metrics, /healthz and /readyz only.";
                Response::error(StatusCode::NOT_FOUND, "NOT_FOUND", message)
            }
        })
    }

    fn told(&self, exchange: &Exchange<'_>) {
        access::told(exchange, &self.front.api.metrics, |_| false);
    }
}
