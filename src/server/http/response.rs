//! Answers, and the headers that all of them carry. Must not know routes.

use std::borrow::Cow;

use http::StatusCode;
use serde_json::{Value, json};

use crate::limits;
use crate::server::http::exchange::{REQUEST_ID, RequestId};

/// Why a request is refused. Every refusal closes the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status line.
    pub status: StatusCode,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Refused {
    /// A refusal.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        Self { status, code, message: message.to_owned() }
    }

    /// A body of more than `max` bytes.
    #[must_use]
    pub fn too_large(max: u64) -> Self {
        let message = format!("This body may have {max} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", &message)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status line.
    pub status: StatusCode,
    /// The body's type; none for an empty body.
    pub content_type: Option<&'static str>,
    /// Beyond the common ones. Values hold no line ends.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Cow<'static, [u8]>,
}

/// What the page may load, and that nobody may frame it.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'self'; \
                      frame-ancestors 'none'; object-src 'none'";

impl Response {
    /// A JSON answer.
    #[must_use]
    pub fn json(status: StatusCode, body: &Value) -> Self {
        Self {
            status,
            content_type: Some("application/json"),
            headers: Vec::new(),
            body: body.to_string().into_bytes().into(),
        }
    }

    /// An answer without a body.
    #[must_use]
    pub fn empty(status: StatusCode) -> Self {
        Self { status, content_type: None, headers: Vec::new(), body: Cow::Borrowed(&[]) }
    }

    /// An error, in the one shape that all errors have.
    #[must_use]
    pub fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::json(status, &json!({ "error": { "code": code, "message": message } }))
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With the id of the request that it answers, which an error's body names, too.
    #[must_use]
    pub fn to(mut self, id: &RequestId) -> Self {
        if self.status.as_u16() >= 400
            && let Ok(mut body) = serde_json::from_slice::<Value>(&self.body)
            && let Some(error) = body.get_mut("error").and_then(Value::as_object_mut)
        {
            error.insert("requestId".to_owned(), id.as_str().into());
            self.body = body.to_string().into_bytes().into();
        }
        self.with(REQUEST_ID, id.as_str())
    }

    /// The bytes. To a `HEAD` request the body is announced and left out.
    #[must_use]
    pub fn encode(&self, body: bool, close: bool) -> Vec<u8> {
        // These two have no body by definition, whatever its length would be.
        let bodiless = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut bytes = self.encode_head((!bodiless).then_some(self.body.len() as u64), close);
        if body {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }

    /// The head of an answer whose body ends with the connection (RFC 9112, 6.3): without a
    /// length, and without chunks, which would say no more and cost each event a line.
    #[must_use]
    pub fn encode_open(&self) -> Vec<u8> {
        self.encode_head(None, true)
    }

    /// The head of an answer whose body, of this length, is not held.
    #[must_use]
    pub fn encode_sized(&self, length: u64, close: bool) -> Vec<u8> {
        self.encode_head(Some(length), close)
    }

    fn encode_head(&self, length: Option<u64>, close: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {}\r\n", self.status);
        let mut header = |name: &str, value: &str| {
            debug_assert!(!value.contains(['\r', '\n']), "a header is one line");
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        header("Date", &jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
        if let Some(content_type) = self.content_type {
            header("Content-Type", content_type);
        }
        if let Some(length) = length {
            header("Content-Length", &length.to_string());
        }
        for (name, value) in [
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Content-Security-Policy", POLICY),
        ] {
            if !self.headers.iter().any(|(own, _)| *own == name) {
                header(name, value);
            }
        }
        if close {
            header("Connection", "close");
        }
        for (name, value) in &self.headers {
            header(name, value);
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

impl From<Refused> for Response {
    fn from(refused: Refused) -> Self {
        let response = Self::error(refused.status, refused.code, &refused.message);
        match refused.status {
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = limits::LOGIN_REFILL_MS / 1000;
                response.with("Retry-After", seconds.to_string())
            }
            _ => response,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_one_shape_and_says_that_it_closes() {
        let refused = Refused::new(StatusCode::NOT_FOUND, "NOT_FOUND", "No \"such\" thing.");
        let text = String::from_utf8(Response::from(refused).encode(true, true)).expect("UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 404 Not Found\r\nDate: "), "{head}");
        assert!(head.contains(" GMT\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
        assert!(head.contains("\r\nConnection: close"), "{head}");
        assert!(head.contains("\r\nX-Content-Type-Options: nosniff\r\n"), "{head}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        let expected = json!({ "code": "NOT_FOUND", "message": "No \"such\" thing." });
        assert_eq!(body, json!({ "error": expected }));
    }

    #[test]
    fn an_open_answer_ends_with_its_connection() {
        let response = Response { content_type: Some("text/x"), ..Response::empty(StatusCode::OK) };
        let text = String::from_utf8(response.encode_open()).expect("UTF-8");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
        assert!(!text.contains("Content-Length") && !text.contains("Transfer-Encoding"), "{text}");
        assert!(text.ends_with("\r\n\r\n"), "{text}");
    }

    #[test]
    fn a_head_request_gets_the_length_without_the_body() {
        let response = Response::json(StatusCode::OK, &json!([1]));
        let text = String::from_utf8(response.encode(false, false)).expect("UTF-8");
        assert!(text.contains("\r\nContent-Length: 3\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n"), "{text}");
    }
}
