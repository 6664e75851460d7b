//! One request and its answer, as the log and the counters hear of it; and the id by which a
//! client, the log and the audit name it.
//!
//! Holds no query string, no body and no header: secrets and prompts travel in those.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::limits;
use crate::server::http::head::Head;
use crate::server::stream::Peer;

/// The header that carries a request's id, both ways.
pub const REQUEST_ID: &str = "X-Request-Id";

/// The id of one request: the client's, if that can stand in a log, else ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Box<str>);

impl RequestId {
    /// A fresh one.
    #[must_use]
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string().into())
    }

    /// What the client calls its request.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        match given.filter(|id| fits(id)) {
            Some(id) => Self(id.into()),
            None => Self::fresh(),
        }
    }

    /// The span of what is logged meanwhile.
    #[must_use]
    pub fn span(&self) -> tracing::Span {
        tracing::error_span!("request", request_id = self.as_str())
    }

    /// Its text: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn fits(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !id.is_empty() && id.len() <= limits::REQUEST_ID_BYTES_MAX && id.bytes().all(plain)
}

/// What became of a request.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// Its id.
    pub id: &'a RequestId,
    /// Who was at the other end.
    pub peer: Peer,
    /// Its head; `None` if there was none that we could read.
    pub head: Option<&'a Head>,
    /// Who asked, in words for the log; empty if that is not known.
    pub caller: &'a str,
    /// The answer's status; 101 for a connection that goes on as a WebSocket.
    pub status: StatusCode,
    /// The refusal's code, if it was refused before it was looked at.
    pub refused: Option<&'static str>,
    /// The answer's bytes, head included.
    pub bytes: usize,
    /// From the end of the request's head to the answer's last byte.
    pub took: Duration,
}

impl Exchange<'_> {
    /// Its method, of a closed list.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self.head.map(|head| &head.method) {
            Some(&Method::GET) => "GET",
            Some(&Method::HEAD) => "HEAD",
            Some(&Method::POST) => "POST",
            Some(&Method::PUT) => "PUT",
            Some(&Method::PATCH) => "PATCH",
            Some(&Method::DELETE) => "DELETE",
            Some(&Method::OPTIONS) => "OPTIONS",
            Some(_) => "other",
            None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_clients_id_is_kept_if_it_can_stand_in_a_log() {
        let of = |value: &str| {
            let value = HeaderValue::from_str(value).expect("a header");
            let name = http::HeaderName::from_static("x-request-id");
            RequestId::of(&HeaderMap::from_iter([(name, value)])).as_str().to_owned()
        };
        let long = "x".repeat(limits::REQUEST_ID_BYTES_MAX);
        for id in ["a", "A.b_c-9", &long] {
            assert_eq!(of(id), id);
        }
        for id in ["", "a b", "a\"b", "a;b", "\u{e9}", &format!("{long}x")] {
            let made = of(id);
            assert_ne!(made, id);
            assert!(fits(&made), "{made}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
