//! What this API is, for programs: OpenAPI of REST, JSON Schema of the WebSocket's frames.
//!
//! The two documents are written by hand in `docs/`. Tests hold them against the routes, the types
//! and everything that the black-box tests send and get. Whoever may look may have them: who has
//! no credential learns nothing about what runs here, so not this either.

use http::StatusCode;

use crate::server::http::response::Response;

/// OpenAPI 3.1. Its references lead to the other document, beside it here as in `docs/`.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");
/// JSON Schema 2020-12.
const FRAMES: &str = include_str!("../../../docs/frames.schema.json");

pub(super) fn openapi() -> Response {
    document(OPENAPI)
}

pub(super) fn frames() -> Response {
    document(FRAMES)
}

fn document(text: &'static str) -> Response {
    let content_type = Some("application/json");
    Response { content_type, body: text.as_bytes().into(), ..Response::empty(StatusCode::OK) }
}
