//! Files for prompts: what comes in, by whom and how much, and what agents get of it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{DEADLINE, Gateway, Setup, eventually};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\nthe rest of it \xff\x00\r\n";

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    #[track_caller]
    fn code(&self) -> (u16, String) {
        let code = self.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
        (self.status, code)
    }
}

/// One exchange on a connection of its own, with exactly these headers beside the usual ones.
#[track_caller]
fn exchange(gateway: &Gateway, line: &str, headers: &str, body: &[u8]) -> Answer {
    let port = gateway.port();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    let head =
        format!("{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).expect("it reads");
    // A body that is refused is not read.
    drop(stream.write_all(body));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers and closes");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).expect("ASCII");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head, body }
}

fn bearer(gateway: &Gateway) -> String {
    format!("Authorization: Bearer {}\r\n", gateway.token())
}

/// Gives a file to a session.
#[track_caller]
fn give(gateway: &Gateway, session: &str, name: &str, content_type: &str, body: &[u8]) -> Answer {
    let line = format!("POST /api/v1/sessions/{session}/uploads?name={name}");
    let headers = format!(
        "{}X-Reattach-Upload: 1\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n",
        bearer(gateway),
        body.len()
    );
    exchange(gateway, &line, &headers, body)
}

/// The same, and what the answer says of it.
#[track_caller]
pub(crate) fn given(
    gateway: &Gateway,
    session: &str,
    name: &str,
    content_type: &str,
    body: &[u8],
) -> Value {
    let answer = give(gateway, session, name, content_type, body);
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

fn fetch(gateway: &Gateway, method: &str, session: &str, id: &str) -> Answer {
    let line = format!("{method} /api/v1/sessions/{session}/uploads/{id}");
    exchange(gateway, &line, &bearer(gateway), b"")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn a_file_is_kept_shown_as_a_download_only_and_removed() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let name = "..%2F..%2Fphoto%20%C3%A9%22.png";
    let upload = given(&gateway, &session, name, "image/PNG; x=y", PNG);
    let id = upload["id"].as_str().expect("an id");
    assert_eq!(
        (&upload["name"], &upload["contentType"], &upload["bytes"]),
        (&json!("photo_\u{e9}_.png"), &json!("image/png"), &json!(PNG.len()))
    );
    let path = Path::new(upload["path"].as_str().expect("a path"));
    let dir = gateway.setup.data_dir().join("uploads").join(&session);
    assert_eq!(path, dir.canonicalize().expect("made").join(format!("{id}-photo_\u{e9}_.png")));
    assert_eq!(fs::read(path).expect("kept"), PNG);
    assert_eq!(fs::metadata(path).expect("kept").permissions().mode() & 0o777, 0o600);
    let (_, list) = gateway.get(&format!("/api/v1/sessions/{session}/uploads"));
    assert_eq!(list, json!({"items": [upload], "nextCursor": null}));

    let fetched = fetch(&gateway, "GET", &session, id);
    assert_eq!((fetched.status, &*fetched.body), (200, PNG));
    for header in [
        "Content-Type: image/png",
        "X-Content-Type-Options: nosniff",
        "Content-Disposition: attachment; filename=\"photo___.png\"; \
         filename*=UTF-8''photo_%C3%A9_.png",
        "Content-Security-Policy: sandbox; default-src 'none'; frame-ancestors 'none'",
    ] {
        assert!(fetched.head.contains(&format!("\r\n{header}\r\n")), "{header}: {}", fetched.head);
    }
    assert_eq!(fetched.head.matches("Content-Security-Policy").count(), 1);
    let alone = fetch(&gateway, "HEAD", &session, id);
    assert!(alone.head.contains(&format!("\r\nContent-Length: {}\r\n", PNG.len())));
    assert!(alone.body.is_empty());

    // It is this session's alone.
    let other = gateway.session("fake");
    let missing = (404, "UPLOAD_NOT_FOUND".to_owned());
    assert_eq!(fetch(&gateway, "GET", &other, id).code(), missing);
    assert_eq!(fetch(&gateway, "DELETE", &other, id).code(), missing);
    assert_eq!(fetch(&gateway, "GET", &session, "..%2F..%2Ftoken").code(), missing);
    let unknown = fetch(&gateway, "GET", "0193a1b2-0000-4000-8000-000000000001", id);
    assert_eq!(unknown.code(), (404, "SESSION_NOT_FOUND".to_owned()));

    assert_eq!(fetch(&gateway, "DELETE", &session, id).status, 204);
    assert_eq!(fetch(&gateway, "GET", &session, id).code(), missing);
    assert!(files(&dir).is_empty());
    assert_eq!(fetch(&gateway, "PUT", &session, id).status, 405);
}

#[test]
fn what_may_not_come_in_leaves_nothing_behind() {
    let gateway = Setup::with_fake().set("limits", "upload_bytes_max", "1000").start();
    let session = gateway.session("fake");
    let line = format!("POST /api/v1/sessions/{session}/uploads?name=a");
    let (auth, upload) = (bearer(&gateway), "X-Reattach-Upload: 1\r\n");
    let refused = |headers: String, body: &[u8]| {
        let headers = format!("{headers}Content-Length: {}\r\n", body.len());
        exchange(&gateway, &line, &headers, body).code()
    };
    // Nobody; a page of another site, of which a browser would send all of these.
    assert_eq!(refused(upload.into(), b"x"), (401, "UNAUTHORIZED".into()));
    let no = (415, "UNSUPPORTED_MEDIA_TYPE".to_owned());
    for form in [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "image/png",
    ] {
        assert_eq!(refused(format!("{auth}Content-Type: {form}\r\n"), b"x"), no, "{form}");
    }
    assert_eq!(refused(auth.clone(), b"x"), no, "no type at all");
    let foreign = format!("{auth}{upload}Origin: http://evil.example\r\n");
    assert_eq!(refused(foreign, b"x"), (403, "ORIGIN_NOT_ALLOWED".into()));
    // Nor is the header a way for other routes to take what they should not.
    let elsewhere = format!("{auth}{upload}Content-Type: text/plain\r\nContent-Length: 2\r\n");
    assert_eq!(exchange(&gateway, "POST /api/v1/sessions", &elsewhere, b"{}").code(), no);
    let good = format!("{auth}{upload}");
    let invalid = (400, "INVALID_FIELD".to_owned());
    assert_eq!(refused(good.clone(), b""), invalid, "an empty file");
    assert_eq!(refused(format!("{good}Content-Type: a\r\n"), b"x"), invalid);
    assert_eq!(refused(good.clone(), &[0; 1001]), (413, "PAYLOAD_TOO_LARGE".into()));
    let line = "POST /api/v1/sessions/0193a1b2-0000-4000-8000-000000000001/uploads";
    let headers = format!("{good}Content-Length: 1\r\n");
    let unknown = exchange(&gateway, line, &headers, b"x").code();
    assert_eq!(unknown, (404, "SESSION_NOT_FOUND".into()));
    let chunked = format!("{good}Transfer-Encoding: chunked\r\n");
    assert_eq!(exchange(&gateway, line, &chunked, b"0\r\n\r\n").status, 411);
    // One whose client goes away in the middle.
    let mut half = TcpStream::connect(("127.0.0.1", gateway.port())).expect("it listens");
    let head = format!(
        "POST /api/v1/sessions/{session}/uploads HTTP/1.1\r\nHost: localhost\r\n\
         {good}Content-Length: 1000\r\n\r\n"
    );
    half.write_all(head.as_bytes()).expect("it reads");
    let dir = gateway.setup.data_dir().join("uploads");
    eventually("it is on its way", || (files(&dir).len() == 1).then_some(()));
    drop(half);
    eventually("nothing is left", || files(&dir).is_empty().then_some(()));
    // What just fits.
    given(&gateway, &session, "a", "text/plain", &[b'x'; 1000]);
    assert_eq!(files(&dir).len(), 2, "it and its card");
}

#[test]
fn files_outlive_the_gateway_but_not_their_session() {
    let gateway = Setup::with_fake().start();
    let (session, deleted) = (gateway.session("fake"), gateway.session("fake"));
    let upload = given(&gateway, &session, "a.txt", "text/plain", b"abc");
    given(&gateway, &deleted, "b.txt", "text/plain", b"abc");
    let dir = gateway.setup.data_dir().join("uploads");
    let path = format!("/api/v1/sessions/{deleted}");
    assert_eq!(gateway.request("DELETE", &path, None, Some(gateway.token())).0, 204);
    assert!(!dir.join(&deleted).exists());
    // What a kill leaves is swept at the next start.
    let mut gateway = gateway;
    gateway.kill();
    fs::create_dir(dir.join(&deleted)).expect("made");
    fs::write(dir.join(&deleted).join("x"), "x").expect("made");
    fs::write(dir.join(".incoming-x"), "x").expect("made");
    fs::write(dir.join(&session).join("no-card"), "x").expect("made");
    let gateway = gateway.restart();
    assert_eq!(files(&dir).len(), 2, "{:?}", files(&dir));
    let (_, list) = gateway.get(&format!("/api/v1/sessions/{session}/uploads"));
    assert_eq!(list["items"], json!([upload]));
}

#[test]
fn a_large_file_costs_no_memory() {
    use crate::support::process::resident;
    const MIB: u64 = 1 << 20;
    let gateway = Setup::with_fake().set("limits", "upload_bytes_max", "268435456").start();
    let session = gateway.session("fake");
    let warm = given(&gateway, &session, "warm", "a/b", &[7; 1 << 16]);
    fetch(&gateway, "GET", &session, warm["id"].as_str().expect("an id"));
    let before = resident(gateway.pid());
    let large = vec![7; 128 << 20];
    let upload = given(&gateway, &session, "large", "a/b", &large);
    let between = resident(gateway.pid());
    let fetched = fetch(&gateway, "GET", &session, upload["id"].as_str().expect("an id"));
    assert!(fetched.body == large, "the same bytes come back");
    for after in [between, resident(gateway.pid())] {
        let grown = after.saturating_sub(before);
        assert!(grown <= 16 * MIB, "I7: grew by {} MiB", grown / MIB);
    }
}

#[test]
fn a_jsonl_agent_is_told_where_the_files_lie() {
    let gateway = Setup::with_fake().start();
    let (session, other) = (gateway.session("fake"), gateway.session("fake"));
    let upload = given(&gateway, &session, "a.png", "image/png", PNG);
    let id = &upload["id"];
    let mut client = gateway.connect();
    for bad in [
        json!("x"),
        json!([7]),
        json!(["x"]),
        json!([{"path": "/etc/passwd"}]),
        json!(["0193a1b2-0000-7000-8000-000000000001"]),
    ] {
        let refused = client.request(&json!({
            "type": "chat.send", "sessionId": session, "content": "x",
            "options": {"attachments": bad},
        }));
        assert_eq!(refused.json["code"], "INVALID_FIELD", "{bad}: {}", refused.text);
    }
    let refused = client.request(&json!({
        "type": "chat.send", "sessionId": other, "content": "x", "options": {"attachments": [id]},
    }));
    assert_eq!(refused.json["code"], "INVALID_FIELD", "another session's");
    let options = json!({"attachments": [id, {"id": id}], "model": "m"});
    let accepted = client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "look", "options": options,
    }));
    assert_eq!(accepted.kind(), "chat_accepted", "{}", accepted.text);
    let (agent, prompt) = gateway.hub().prompted("fake", "look");
    let told = json!({
        "id": id, "name": "a.png", "contentType": "image/png", "bytes": PNG.len(),
        "path": upload["path"],
    });
    assert_eq!(prompt["options"], json!({"attachments": [told, told], "model": "m"}));
    agent.finish();
    let run = accepted.json["runId"].as_str().expect("a run");
    client.expect_complete(run);
    // The log keeps what the client said: the files have no place of their own in it.
    let head = gateway.replay(&session).remove(0);
    assert_eq!(head.json["options"], options);
}

#[test]
fn a_commands_environment_says_where_they_lie() {
    let gateway = Setup::new().provider("sh", "command", &["sh"]).start();
    let session = gateway.session("sh");
    let first = given(&gateway, &session, "a.txt", "text/plain", b"abc\n");
    let second = given(&gateway, &session, "b.txt", "text/plain", b"def\n");
    let said = |options: Value| {
        let mut client = gateway.connect();
        client.request(&json!({
            "type": "chat.send", "sessionId": session, "options": options,
            "content": "cat $REATTACH_ATTACHMENTS /dev/null",
        }));
        client.expect("its end", |frame| frame.kind() == "complete");
        let texts = client.seen.iter().filter(|frame| frame.kind() == "text");
        texts.map(|frame| frame.json["content"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(said(json!({"attachments": [second["id"], first["id"]]})), ["def", "abc"]);
    assert_eq!(said(json!({})), [""; 0]);
}

#[test]
fn claude_is_given_pictures_and_told_of_other_files() {
    let gateway = Setup::new().with_fake_claude().start();
    let session = gateway.session("claude");
    let picture = given(&gateway, &session, "a.png", "image/png", PNG);
    let text = given(&gateway, &session, "b.txt", "text/plain", b"abc");
    let false_one = given(&gateway, &session, "c.jpg", "image/jpeg", PNG);
    let mut client = gateway.connect();
    let sent = |client: &mut crate::support::Client, content: &str, ids: Value| {
        let accepted = client.request(&json!({
            "type": "chat.send", "sessionId": session, "content": content,
            "options": {"attachments": ids},
        }));
        assert_eq!(accepted.kind(), "chat_accepted", "{}", accepted.text);
        client.expect_complete(accepted.json["runId"].as_str().expect("a run"));
    };
    sent(&mut client, "say one", json!([picture["id"], text["id"], false_one["id"]]));
    // The warm agent gets the next one.
    sent(&mut client, "say two", json!([picture["id"]]));
    let notes = fs::read_to_string(gateway.setup.witness()).expect("a witness");
    let given: Vec<Value> = notes
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["given"].clone())
        .filter(|line| line["type"] == "user")
        .map(|line| line["message"]["content"].clone())
        .collect();
    let image = json!({"type": "image", "source": {
        "type": "base64", "media_type": "image/png",
        "data": "iVBORw0KGgp0aGUgcmVzdCBvZiBpdCD/AA0K",
    }});
    let path = |upload: &Value| upload["path"].as_str().expect("a path").to_owned();
    let told = format!(
        "say one\n\nAttached files:\n- {} (text/plain, 3 bytes)\n- {} (image/jpeg, {} bytes)",
        path(&text),
        path(&false_one),
        PNG.len()
    );
    assert_eq!(
        given,
        [
            json!([image, {"type": "text", "text": told}]),
            json!([image, {"type": "text", "text": "say two"}]),
        ]
    );
}
