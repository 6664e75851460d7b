//! The access log and the counters of requests: which route, how it went, how long it took.
//!
//! A route is its template, of a closed list: an id in a path is a person's business, and a label
//! without a bound would fill the memory of whoever watches us.

use std::time::Duration;

use http::{Method, StatusCode, header};

use crate::metrics::Metrics;
use crate::metrics::labels::AuthFailure;
use crate::server::http::exchange::{Exchange, RequestId};
use crate::server::http::head::Head;
use crate::server::stream::Peer;

/// The routes, as templates. `{...}` stands for any one segment.
pub(super) const ROUTES: &[&str] = &[
    "/healthz",
    "/readyz",
    "/version",
    "/metrics",
    "/ws",
    "/api/v1/audit",
    "/api/v1/credentials",
    "/api/v1/credentials/{id}",
    "/api/v1/devices",
    "/api/v1/devices/{id}",
    "/api/v1/folders",
    "/api/v1/frames.schema.json",
    "/api/v1/login",
    "/api/v1/logout",
    "/api/v1/me",
    "/api/v1/notifications",
    "/api/v1/notifications/test",
    "/api/v1/openapi.json",
    "/api/v1/pair",
    "/api/v1/permissions",
    "/api/v1/permissions/{id}",
    "/api/v1/projects",
    "/api/v1/projects/{id}",
    "/api/v1/providers",
    "/api/v1/runs",
    "/api/v1/runs/{id}",
    "/api/v1/runs/{id}/abort",
    "/api/v1/runs/{id}/events/{seq}",
    "/api/v1/sessions",
    "/api/v1/sessions/{id}",
    "/api/v1/sessions/{id}/events",
    "/api/v1/sessions/{id}/queue",
    "/api/v1/sessions/{id}/queue/resume",
    "/api/v1/sessions/{id}/queue/{id}",
    "/api/v1/sessions/{id}/runs",
    "/api/v1/sessions/{id}/uploads",
    "/api/v1/sessions/{id}/uploads/{id}",
    "/api/v1/tokens",
    "/api/v1/tokens/{id}",
];

/// Of a file of the page.
const PAGE: &str = "page";
/// Of a path at which there is nothing, or of no path at all.
const OTHER: &str = "other";

/// The template of a request's path; `is_page` knows the page's files.
fn route(head: &Head, is_page: impl Fn(&str) -> bool) -> &'static str {
    let path = head.path.as_str();
    match template(path) {
        Some(route) => route,
        None if is_page(path) => PAGE,
        None => OTHER,
    }
}

fn template(path: &str) -> Option<&'static str> {
    ROUTES.iter().copied().find(|route| {
        let (mut expected, mut segments) = (route.split('/'), path.split('/'));
        loop {
            match (expected.next(), segments.next()) {
                (None, None) => return true,
                (Some(word), Some(segment)) if word == segment || word.starts_with('{') => {}
                _ => return false,
            }
        }
    })
}

/// Counts a request that was answered, and logs it.
pub(super) fn told(exchange: &Exchange<'_>, metrics: &Metrics, is_page: impl Fn(&str) -> bool) {
    let method = exchange.method();
    let route = exchange.head.map_or(OTHER, |head| route(head, is_page));
    let status = exchange.status.as_u16();
    metrics.answered(method, route, status, exchange.took);
    if let Some(kind) = auth_failure(exchange, route) {
        metrics.auth_failed(kind);
    }
    let ms = millis(exchange.took);
    let Exchange { bytes, caller, .. } = exchange;
    let code = exchange.refused.unwrap_or_default();
    let peer = Named(exchange.peer);
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                target: "reattach::access",
                method, route, status, ms, bytes, %peer, caller, code, "request"
            )
        };
    }
    match level(exchange) {
        Level::Warn => log!(warn),
        Level::Info => log!(info),
        Level::Debug => log!(debug),
    }
}

/// Logs the end of a WebSocket that `request` opened: by us, with a code and why, or by the client.
pub(super) fn closed(id: &RequestId, after: Duration, by_us: Option<(u16, &'static str)>) {
    let ms = millis(after);
    id.span().in_scope(|| match by_us {
        Some((code, reason)) => tracing::info!(
            target: "reattach::access", ms, code, reason, "websocket closed"
        ),
        None => tracing::debug!(
            target: "reattach::access", ms, reason = "by the client",
            "websocket closed"
        ),
    });
}

/// In milliseconds, to the microsecond.
fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

#[derive(Debug, PartialEq, Eq)]
enum Level {
    Debug,
    Info,
    Warn,
}

/// Writes and refusals for want of a right are worth a line each; reads only for who looks closer.
fn level(exchange: &Exchange<'_>) -> Level {
    let reads = exchange
        .head
        .is_none_or(|head| matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS));
    let refused = matches!(
        exchange.status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::MISDIRECTED_REQUEST
            | StatusCode::TOO_MANY_REQUESTS
    );
    match exchange.status.as_u16() {
        500.. => Level::Warn,
        _ if refused || !reads => Level::Info,
        _ => Level::Debug,
    }
}

/// For want of what right a request was refused, if that is why.
fn auth_failure(exchange: &Exchange<'_>, route: &str) -> Option<AuthFailure> {
    let has = |name| exchange.head.is_some_and(|head| head.headers.contains_key(name));
    match exchange.status {
        StatusCode::TOO_MANY_REQUESTS => Some(AuthFailure::Limited),
        StatusCode::MISDIRECTED_REQUEST => Some(AuthFailure::Host),
        StatusCode::FORBIDDEN if exchange.refused == Some("ORIGIN_NOT_ALLOWED") => {
            Some(AuthFailure::Origin)
        }
        StatusCode::FORBIDDEN => Some(AuthFailure::Scope),
        StatusCode::UNAUTHORIZED if route == "/api/v1/login" => Some(AuthFailure::Login),
        StatusCode::UNAUTHORIZED if has(header::AUTHORIZATION) => Some(AuthFailure::Token),
        StatusCode::UNAUTHORIZED if has(header::COOKIE) => Some(AuthFailure::Cookie),
        StatusCode::UNAUTHORIZED => Some(AuthFailure::Missing),
        _ => None,
    }
}

/// A peer, as the log says it.
pub(super) struct Named(pub(super) Peer);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Peer::Local => f.write_str("local"),
            Peer::Tcp(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_never_in_a_route() {
        assert_eq!(template("/api/v1/sessions"), Some("/api/v1/sessions"));
        assert_eq!(template("/api/v1/sessions/x-1/events"), Some("/api/v1/sessions/{id}/events"));
        let queue = "/api/v1/sessions/x/queue/";
        assert_eq!(template(&format!("{queue}resume")), Some("/api/v1/sessions/{id}/queue/resume"));
        assert_eq!(template(&format!("{queue}7")), Some("/api/v1/sessions/{id}/queue/{id}"));
        let event = "/api/v1/runs/{id}/events/{seq}";
        assert_eq!(template("/api/v1/runs/a/events/7"), Some(event));
        for nothing in ["/", "", "/api/v1", "/api/v1/sessions/x/y", "/api/v1/runs/a/events"] {
            assert_eq!(template(nothing), None, "{nothing}");
        }
    }

    /// Whoever adds a route adds its template; else it would be counted among those that are none.
    #[test]
    fn every_route_has_its_template() {
        let source = include_str!("api/mod.rs");
        let mut found = 0;
        for line in source.lines() {
            let Some((method, rest)) = line.trim().split_once("\", [") else { continue };
            let Some((pattern, _)) = rest.split_once("]) =>") else { continue };
            if !method.starts_with("(\"") {
                continue;
            }
            let segments = pattern.split(", ").map(|one| {
                let word = one.trim_matches('"');
                if word.len() < one.len() { word } else { "some-id" }
            });
            let path = format!("/api/v1/{}", segments.collect::<Vec<_>>().join("/"));
            assert!(template(&path).is_some(), "{path} has no template in ROUTES");
            found += 1;
        }
        assert!(found > 15, "the routes were found: {found}");
    }
}
