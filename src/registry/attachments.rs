//! The files that a prompt names: found among those of its session, and what an agent can be
//! given of them. Must not know how they came or what a dialect makes of them.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::limits;
use crate::provider::{Attachment, Kind, Prompt};
use crate::registry::{Refusal, RefusalCode};
use crate::run::id::{SessionId, UploadId};
use crate::store::{Upload, Uploads};

/// The files that `options.attachments` names: a list of ids, or of objects with an `id`.
///
/// # Errors
/// If it is anything else, or names what this session does not have.
pub(super) fn resolve(
    uploads: &Uploads,
    session: SessionId,
    options: &Map<String, Value>,
) -> Result<Vec<Attachment>, Refusal> {
    let refuse = |why: &str| {
        let message = format!("options.attachments: {why}.");
        Refusal::new(RefusalCode::InvalidField, message)
    };
    let named = match options.get("attachments") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(named)) if named.len() <= limits::ATTACHMENTS_MAX => named,
        Some(Value::Array(_)) => {
            return Err(refuse(&format!("at most {} files", limits::ATTACHMENTS_MAX)));
        }
        Some(_) => return Err(refuse("it must be a list of ids of this session's uploads")),
    };
    let mut found = Vec::with_capacity(named.len());
    for one in named {
        let id = one.as_str().or_else(|| one.get("id").and_then(Value::as_str));
        let id = id.ok_or_else(|| refuse("each must be the id of an upload, or {\"id\": ...}"))?;
        let upload = match id.parse::<UploadId>() {
            Ok(id) => uploads.find(session, id).map_err(|error| {
                let message = format!("The session's files cannot be read: {error}.");
                Refusal::new(RefusalCode::StoreUnavailable, message)
            })?,
            Err(_) => None,
        };
        let Upload { card, path } = upload.ok_or_else(|| {
            let id: String = id.chars().take(64).collect();
            refuse(&format!("this session has no upload \"{id}\""))
        })?;
        found.push(Attachment {
            id: card.id.to_string(),
            name: card.name,
            content_type: card.content_type,
            bytes: card.bytes,
            path,
            picture: None,
        });
    }
    Ok(found)
}

/// With the pictures that the agent is given as such: as many as fit, each of the type that it
/// says. One that cannot be read, or is none, would spoil its whole conversation.
pub(super) fn with_pictures(mut prompt: Prompt, kind: Kind) -> Prompt {
    if !kind.takes_pictures() {
        return prompt;
    }
    let mut room = limits::PICTURES_BYTES_MAX;
    for file in &mut prompt.attachments {
        if file.bytes <= room.min(limits::PICTURE_BYTES_MAX) {
            file.picture = picture(&file.path, &file.content_type);
            room -= file.picture.as_ref().map_or(0, |_| file.bytes);
        }
    }
    prompt
}

fn picture(path: &Path, content_type: &str) -> Option<String> {
    let begins: fn(&[u8]) -> bool = match content_type {
        "image/png" => |bytes| bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
        "image/jpeg" => |bytes| bytes.starts_with(b"\xff\xd8\xff"),
        "image/gif" => |bytes| bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a"),
        "image/webp" => |bytes| bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"),
        _ => return None,
    };
    let bytes = std::fs::read(path).ok()?;
    begins(&bytes).then(|| STANDARD.encode(&bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::run::id::Millis;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

    fn given(uploads: &Uploads, session: SessionId, content_type: &str, bytes: &[u8]) -> Upload {
        let mut incoming = uploads.receive().expect("a place");
        incoming.write(bytes).expect("written");
        uploads.keep(session, &incoming, ("a", content_type), Millis(0)).expect("kept")
    }

    fn options(attachments: &Value) -> Map<String, Value> {
        Map::from_iter([("attachments".to_owned(), attachments.clone())])
    }

    #[test]
    fn only_the_sessions_own_files_can_be_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let uploads = Uploads::of(dir.path());
        let (session, other) = (SessionId::random(), SessionId::random());
        let upload = given(&uploads, session, "image/png", PNG);
        let id = upload.card.id.to_string();
        let resolved = |session, attachments: &Value| {
            resolve(&uploads, session, &options(attachments)).map_err(|refusal| refusal.code)
        };
        for named in [json!([id]), json!([{"id": id, "path": "/etc/passwd"}])] {
            let found = resolved(session, &named).expect("found");
            assert_eq!((found.len(), &found[0].path), (1, &upload.path));
        }
        assert_eq!(resolved(session, &json!(null)), Ok(Vec::new()));
        assert_eq!(resolved(session, &json!([])), Ok(Vec::new()));
        let many = vec![id.clone(); limits::ATTACHMENTS_MAX + 1];
        for bad in [
            json!(id),
            json!([7]),
            json!([{}]),
            json!([{"path": "/etc/passwd"}]),
            json!({}),
            json!(["../x"]),
            json!(many),
        ] {
            assert_eq!(resolved(session, &bad), Err(RefusalCode::InvalidField), "{bad}");
        }
        assert_eq!(resolved(other, &json!([id])), Err(RefusalCode::InvalidField));
    }

    #[test]
    fn a_picture_is_given_as_such_if_it_is_one_and_fits() {
        let dir = tempfile::tempdir().expect("a directory");
        let uploads = Uploads::of(dir.path());
        let session = SessionId::random();
        let mut large = PNG.to_vec();
        large.resize(usize::try_from(limits::PICTURE_BYTES_MAX).expect("small"), 0);
        let mut larger = large.clone();
        larger.push(0);
        let files = [
            given(&uploads, session, "image/png", PNG),
            given(&uploads, session, "image/jpeg", PNG),
            given(&uploads, session, "application/pdf", PNG),
            given(&uploads, session, "image/png", &larger),
            given(&uploads, session, "image/png", &large),
            given(&uploads, session, "image/png", &large),
            given(&uploads, session, "image/gif", b"GIF89a..."),
        ];
        let named: Vec<String> = files.iter().map(|file| file.card.id.to_string()).collect();
        let attachments = resolve(&uploads, session, &options(&json!(named))).expect("found");
        let prompt = Prompt { attachments, ..Prompt::default() };
        let pictures = |kind| {
            let prompt = with_pictures(prompt.clone(), kind);
            let given = prompt.attachments.iter().map(|file| file.picture.is_some());
            given.collect::<Vec<_>>()
        };
        assert_eq!(pictures(Kind::Claude), [true, false, false, false, true, false, true]);
        assert_eq!(pictures(Kind::Jsonl), [false; 7]);
        let first = with_pictures(prompt, Kind::Claude).attachments.remove(0);
        assert_eq!(first.picture.as_deref(), Some("iVBORw0KGgpyZXN0"));
    }
}
