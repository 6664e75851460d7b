//! Files for prompts: given to a session, listed, fetched, removed. `options.attachments` of a
//! prompt names them.

use std::fmt::Write as _;
use std::fs::File;
use std::io;

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::protocol::message::ErrorCode;
use crate::run::id::UploadId;
use crate::server::api::{Api, Call, Outcome, Problem, decode, is_reading, listed};
use crate::server::http::Request;
use crate::server::http::head::Head;
use crate::server::http::response::{Refused, Response};
use crate::store::{Incoming, KeepError, Upload, Uploads};

/// A file may be of any type, the three of forms among them, which a page of another site can make
/// a browser send. A header of our own it cannot: a browser asks us first, and gets no for an
/// answer. So this takes the place of `application/json`.
const UPLOAD: &str = "x-reattach-upload";

/// A place for the body of a request that gives a file; `None` if it is another one.
///
/// # Errors
/// If it may not, or the disk does not take it.
pub(in crate::server) fn receive(
    uploads: &Uploads,
    bytes_max: usize,
    head: &Head,
) -> Result<Option<Incoming>, Refused> {
    let named = head.path.strip_prefix("/api/v1/sessions/");
    let named = named.and_then(|rest| rest.strip_suffix("/uploads"));
    if head.method != Method::POST || named.is_none_or(|named| named.contains('/')) {
        return Ok(None);
    }
    if head.headers.get(UPLOAD).is_none_or(|value| value != "1") {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let message = "Send X-Reattach-Upload: 1 with a file.";
        return Err(Refused::new(status, "UNSUPPORTED_MEDIA_TYPE", message));
    }
    let max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    if head.body_bytes > max {
        return Err(Refused::too_large(max));
    }
    uploads.receive().map(Some).map_err(|error| {
        tracing::warn!(%error, "a file that comes in has no place");
        let message = "The disk does not take the file now; send it again later.";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", message)
    })
}

pub(super) fn create(call: &Call<'_>, named: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let content_type = content_type(&call.request.head.headers)?;
    let incoming = call.request.file.as_ref().filter(|incoming| incoming.bytes() > 0);
    let incoming = incoming.ok_or_else(|| Problem::field("The body must be the file."))?;
    let given = (call.query.get("name").unwrap_or_default(), content_type.as_str());
    let uploads = &call.api.uploads;
    let upload = uploads.keep(session, incoming, given, call.now).map_err(|error| match error {
        KeepError::Full => Problem {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "PAYLOAD_TOO_LARGE".into(),
            message: format!("This is too much: {error}."),
        },
        KeepError::Io(error) => unavailable(&error),
    })?;
    // Deleted meanwhile, perhaps; then nobody else would remove it.
    if let Err(gone) = call.session(&session.to_string()) {
        uploads.forget(session);
        return Err(gone);
    }
    Ok(Response::json(StatusCode::CREATED, &view(&upload)))
}

pub(super) fn list(call: &Call<'_>, named: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let uploads = call.api.uploads.list(session).map_err(|error| unavailable(&error))?;
    Ok(listed(uploads.iter().map(view).collect(), None))
}

pub(super) fn remove(call: &Call<'_>, named: &str, id: &str) -> Outcome {
    let session = call.session(named)?.row.id;
    let id = id.parse::<UploadId>().map_err(|_| no_upload())?;
    match call.api.uploads.remove(session, id) {
        Ok(true) => Ok(Response::empty(StatusCode::NO_CONTENT)),
        Ok(false) => Err(no_upload()),
        Err(error) => Err(unavailable(&error)),
    }
}

impl Api {
    /// The file that a request asks for, with the head of the answer and its length. `None`: it
    /// asks for something else.
    pub fn file(&self, request: &Request) -> Option<Result<(Response, File, u64), Problem>> {
        let rest = request.head.path.strip_prefix("/api/v1/sessions/")?;
        let mut segments = rest.split('/');
        let (named, uploads) = (segments.next()?, segments.next()?);
        let (id, end) = (segments.next()?, segments.next());
        if uploads != "uploads" || end.is_some() || !is_reading(&request.head.method) {
            return None;
        }
        Some(self.call(request).and_then(|call| open(&call, &decode(named)?, &decode(id)?)))
    }
}

/// Whatever its type, it is not shown in our origin: it is a download, of the type that its sender
/// said and no other, and were it opened all the same, it could run nothing.
fn open(call: &Call<'_>, named: &str, id: &str) -> Result<(Response, File, u64), Problem> {
    let session = call.session(named)?.row.id;
    let id = id.parse::<UploadId>().map_err(|_| no_upload())?;
    let upload = call.api.uploads.find(session, id).map_err(|error| unavailable(&error))?;
    let Upload { card, path } = upload.ok_or_else(no_upload)?;
    let file = File::open(path).map_err(|error| unavailable(&error))?;
    let head = Response::empty(StatusCode::OK)
        .with("Content-Type", card.content_type)
        .with("Content-Disposition", disposition(&card.name))
        .with("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'");
    Ok((head, file, card.bytes))
}

/// The name in ASCII for those who know no better, and whole for all others (RFC 6266).
fn disposition(name: &str) -> String {
    let ascii: String = name.chars().map(|c| if c.is_ascii() { c } else { '_' }).collect();
    let mut whole = String::new();
    for byte in name.bytes() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'-' | b'_' => {
                whole.push(char::from(byte));
            }
            // A string takes everything.
            _ => drop(write!(whole, "%{byte:02X}")),
        }
    }
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{whole}")
}

/// The essence of `Content-Type`, in lower case; what says nothing is just bytes.
fn content_type(headers: &HeaderMap) -> Result<String, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok("application/octet-stream".into());
    };
    let value = value.to_str().unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let token = |text: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte);
        !text.is_empty() && text.bytes().all(fits)
    };
    let fits = |(kind, sub): (&str, &str)| token(kind) && token(sub) && essence.len() <= 127;
    if essence.split_once('/').is_some_and(fits) {
        return Ok(essence);
    }
    Err(Problem::field("Content-Type must be a type such as image/png."))
}

fn view(upload: &Upload) -> Value {
    let Upload { card, path } = upload;
    json!({
        "id": card.id, "name": card.name, "bytes": card.bytes, "contentType": card.content_type,
        "createdAt": card.created_at.to_string(), "path": path,
    })
}

fn unavailable(error: &io::Error) -> Problem {
    Problem::of(ErrorCode::StoreUnavailable, &format!("The disk does not do it: {error}."))
}

fn no_upload() -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        code: "UPLOAD_NOT_FOUND".into(),
        message: "This session has no such file.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_two_tokens() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(value));
            content_type(&headers).ok()
        };
        assert_eq!(of("image/PNG").as_deref(), Some("image/png"));
        assert_eq!(of("text/plain; charset=utf-8").as_deref(), Some("text/plain"));
        assert_eq!(of("image/svg+xml ;x").as_deref(), Some("image/svg+xml"));
        for bad in ["", "png", "/png", "image/", "a b/c", "image/png, text/html", "a/b/c"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(
            content_type(&HeaderMap::new()).ok().as_deref(),
            Some("application/octet-stream")
        );
    }

    #[test]
    fn a_name_of_any_script_is_a_header() {
        assert_eq!(
            disposition("a-1_b.png"),
            "attachment; filename=\"a-1_b.png\"; filename*=UTF-8''a-1_b.png"
        );
        assert_eq!(
            disposition("\u{e9}.png"),
            "attachment; filename=\"_.png\"; filename*=UTF-8''%C3%A9.png"
        );
    }
}
