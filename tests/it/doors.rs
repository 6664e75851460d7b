//! Who must not come in, in the terms of HTTP: another site's page, a rebound name, a form, a stolen
//! query string, and whoever has no credential, on loopback too. And who must: a browser behind a
//! proxy, at a path of its own.
//!
//! A browser would not even send its cookie in most of these. Here it does: what keeps the others
//! out must not hang on that.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;

use crate::hostile::wire::{self, Answer};
use crate::support::{Client, DEADLINE, Gateway, Setup};

/// What a request needs to become a WebSocket.
const UPGRADE: &[(&str, &str)] = &[
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];
const JSON: (&str, &str) = ("Content-Type", "application/json");

/// One request on a connection of its own. Without `Host` among the headers it has ours.
#[track_caller]
fn ask(port: u16, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut text = format!("{line} HTTP/1.1\r\n");
    let named = |name: &str| headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    let own = format!("127.0.0.1:{port}");
    let length = body.len().to_string();
    let added = [("Host", own.as_str()), ("Content-Length", &length), ("Connection", "close")];
    let added = added.iter().filter(|(name, value)| !named(name) && *value != "0");
    for (name, value) in headers.iter().chain(added) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let talk = wire::talk(port, format!("{text}\r\n{body}").as_bytes());
    let [answer] = &talk.answers[..] else { panic!("{line}: {talk}") };
    answer.assert_guarded();
    answer.clone()
}

/// A gateway with a session, and what its browser would send.
struct House {
    gateway: Gateway,
    session: String,
    cookie: String,
}

impl House {
    #[track_caller]
    fn build() -> Self {
        let setup = Setup::new().provider("sh", "command", &["sh"]).env("REATTACH_LOG", "debug");
        let gateway = setup.start();
        let session = gateway.session("sh");
        let cookie = log_in(gateway.port(), "/api/v1/login", gateway.token(), &[]);
        Self { gateway, session, cookie }
    }

    fn port(&self) -> u16 {
        self.gateway.port()
    }

    /// What would change something here, as a page of ours would ask for it.
    fn unsafe_requests(&self) -> Vec<(String, String)> {
        let session = &self.session;
        let project = self.gateway.setup.project();
        let new = json!({"provider": "sh", "projectPath": project}).to_string();
        let prompt = json!({"content": "touch stolen"}).to_string();
        let requests = [
            ("POST", "/api/v1/sessions".to_owned(), new.as_str()),
            ("POST", format!("/api/v1/sessions/{session}/runs"), &prompt),
            ("PATCH", format!("/api/v1/sessions/{session}"), r#"{"title":"stolen"}"#),
            ("DELETE", format!("/api/v1/sessions/{session}"), ""),
            ("POST", "/api/v1/permissions/x".to_owned(), r#"{"allow":true}"#),
            ("POST", "/api/v1/runs/x/abort".to_owned(), ""),
            ("POST", format!("/api/v1/sessions/{session}/uploads?name=stolen"), "a=b"),
            ("POST", "/api/v1/login".to_owned(), r#"{"code":"x"}"#),
        ];
        requests.map(|(method, path, body)| (format!("{method} {path}"), body.to_owned())).into()
    }

    /// Nothing of what was asked for was done.
    #[track_caller]
    fn assert_untouched(&self) {
        let (status, sessions) = self.gateway.get("/api/v1/sessions");
        assert_eq!(status, 200);
        let items = sessions["items"].as_array().expect("a list");
        let [session] = &items[..] else { panic!("one session: {sessions}") };
        assert_eq!(session["id"], self.session);
        assert_eq!((&session["title"], &session["lastRunId"]), (&Value::Null, &Value::Null));
        assert!(!self.gateway.setup.project().join("stolen").exists());
        let (_, uploads) = self.gateway.get(&format!("/api/v1/sessions/{}/uploads", self.session));
        assert_eq!(uploads["items"], json!([]));
    }
}

/// Logs in as the page does: the cookie's name and value.
#[track_caller]
fn log_in(port: u16, path: &str, token: &str, headers: &[(&str, &str)]) -> String {
    let body = json!({ "code": token }).to_string();
    let answer = ask(port, &format!("POST {path}"), &[&[JSON], headers].concat(), &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let cookie = answer.header("set-cookie").expect("a login gives a cookie");
    cookie.split(';').next().expect("a pair").to_owned()
}

#[test]
fn its_own_page_comes_in() {
    let house = House::build();
    let origin = format!("http://127.0.0.1:{}", house.port());
    let own = [
        ("Cookie", house.cookie.as_str()),
        ("Origin", &origin),
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Mode", "cors"),
        ("Sec-Fetch-Dest", "empty"),
        JSON,
    ];
    // So that the tests below do not pass since nothing works at all.
    let path = format!("PATCH /api/v1/sessions/{}", house.session);
    assert_eq!(ask(house.port(), &path, &own, r#"{"title":"mine"}"#).status, 200);
    assert_eq!(ask(house.port(), "GET /api/v1/sessions", &own[..5], "").status, 200);
    let origin = ("origin", origin.clone());
    let client = Client::connect(house.port(), "/ws", &[("cookie", house.cookie.clone()), origin]);
    assert!(client.is_ok(), "{:?}", client.err());
}

#[test]
fn a_page_of_another_origin_gets_nothing() {
    let house = House::build();
    let port = house.port();
    let near = format!("http://localhost:{port}");
    let cookie = ("Cookie", house.cookie.as_str());
    let bearer = format!("Bearer {}", house.gateway.token());
    let sisters =
        ["http://evil.example", "https://evil.example", "null", &near, "http://127.0.0.1"];
    for origin in sisters {
        let origin = ("Origin", origin);
        for (line, body) in house.unsafe_requests() {
            // Whatever it has: a cookie, or a token that it was told.
            for credential in [cookie, ("Authorization", &bearer)] {
                let answer = ask(port, &line, &[credential, origin, JSON], &body);
                assert_eq!(answer.code(), "ORIGIN_NOT_ALLOWED", "{line} {origin:?}: {answer:?}");
                assert_eq!(answer.status, 403);
            }
        }
        for path in ["/", "/api/v1/sessions", "/healthz", "/metrics", "/app.js"] {
            let answer = ask(port, &format!("GET {path}"), &[cookie, origin], "");
            assert_eq!(answer.status, 403, "{path} {origin:?}: {answer:?}");
        }
        let upgrade = [&[cookie, origin], UPGRADE].concat();
        assert_eq!(ask(port, "GET /ws", &upgrade, "").status, 403, "{origin:?}");
        let stream = format!("GET /api/v1/sessions/{}/events", house.session);
        let events = [cookie, origin, ("Accept", "text/event-stream")];
        assert_eq!(ask(port, &stream, &events, "").status, 403, "{origin:?}");
        // A preflight is not answered with what would let the request follow.
        let preflight = [
            origin,
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type"),
            ("Access-Control-Request-Private-Network", "true"),
        ];
        assert_eq!(ask(port, "OPTIONS /api/v1/sessions", &preflight, "").status, 403);
    }
    // Requests that have no Origin: images, scripts, frames, forms of old browsers. New ones say it.
    for (site, mode, dest) in [
        ("cross-site", "no-cors", "image"),
        ("cross-site", "no-cors", "script"),
        ("cross-site", "cors", "empty"),
        ("cross-site", "navigate", "iframe"),
        ("cross-site", "navigate", "embed"),
        ("cross-site", "websocket", "websocket"),
        ("same-site", "no-cors", "image"),
        ("same-site", "cors", "empty"),
    ] {
        let from =
            [cookie, ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)];
        for line in ["GET /api/v1/sessions", "GET /", "POST /api/v1/runs/x/abort"] {
            let answer = ask(port, line, &from, "");
            assert_eq!(answer.code(), "ORIGIN_NOT_ALLOWED", "{line} {from:?}: {answer:?}");
        }
        assert_eq!(ask(port, "GET /ws", &[&from, UPGRADE].concat(), "").status, 403, "{from:?}");
    }
    // A link that is followed shows the page, which that site cannot read; it asks for nothing.
    let link = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")];
    let link = [&link[..], &[("Sec-Fetch-Dest", "document")]].concat();
    assert_eq!(ask(port, "GET /", &link, "").status, 200);
    assert_eq!(ask(port, "GET /api/v1/sessions", &link, "").status, 401);
    house.assert_untouched();
}

#[test]
fn a_rebound_name_gets_nothing() {
    let house = House::build();
    let port = house.port();
    for name in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.2"] {
        // To the browser all of it is one origin: its own page asks its own server.
        let (host, origin) = (format!("{name}:{port}"), format!("http://{name}:{port}"));
        let rebound = [
            ("Host", host.as_str()),
            ("Origin", &origin),
            ("Cookie", &house.cookie),
            ("Sec-Fetch-Site", "same-origin"),
            JSON,
        ];
        for (line, body) in house.unsafe_requests() {
            let answer = ask(port, &line, &rebound, &body);
            assert_eq!(answer.code(), "HOST_NOT_ALLOWED", "{line} {host}: {answer:?}");
            assert_eq!(answer.status, 421);
        }
        for path in ["/", "/app.js", "/api/v1/sessions", "/healthz", "/readyz", "/metrics"] {
            // A plain GET of a page has no Origin.
            let answer = ask(port, &format!("GET {path}"), &[rebound[0], rebound[2]], "");
            assert_eq!(answer.status, 421, "{path} {host}: {answer:?}");
        }
        let upgrade = [&rebound[..4], UPGRADE].concat();
        assert_eq!(ask(port, "GET /ws", &upgrade, "").status, 421, "{host}");
    }
    house.assert_untouched();
}

#[test]
fn a_form_gets_nothing() {
    let house = House::build();
    let port = house.port();
    let cookie = ("Cookie", house.cookie.as_str());
    let forms = [
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=x"),
        Some("text/plain"),
        Some("text/plain; charset=application/json"),
        Some("application/jsonx"),
        // `fetch` and `sendBeacon` with a blob of no type.
        None,
    ];
    for form in forms {
        let kind = form.map(|form| ("Content-Type", form));
        for (line, body) in house.unsafe_requests() {
            // A form's body can be JSON but for an equals sign somewhere.
            if body.is_empty() || !line.starts_with("POST") {
                continue;
            }
            let old: Vec<_> = [Some(cookie), kind].into_iter().flatten().collect();
            let answer = ask(port, &line, &old, &body);
            assert_eq!(answer.code(), "UNSUPPORTED_MEDIA_TYPE", "{line} {form:?}: {answer:?}");
            assert_eq!(answer.status, 415);
            let new = [&old[..], &[("Origin", "http://evil.example")]].concat();
            assert_eq!(ask(port, &line, &new, &body).status, 403, "{line} {form:?}");
        }
    }
    house.assert_untouched();
}

#[test]
fn a_stolen_query_string_opens_nothing_and_is_not_logged() {
    let mut house = House::build();
    let port = house.port();
    let token = house.gateway.token().to_owned();
    let (name, value) = house.cookie.split_once('=').expect("a pair");
    let names = [
        "token",
        "access_token",
        "auth_token",
        "auth",
        "code",
        "key",
        "api_key",
        "apikey",
        "bearer",
        "authorization",
        "Authorization",
        "cookie",
        "credential",
        "t",
        "session",
        name,
    ];
    for key in names {
        for secret in [&token, &format!("Bearer%20{token}"), value] {
            let query = format!("?{key}={secret}");
            for path in ["/api/v1/sessions", "/version", "/api/v1/permissions"] {
                let answer = ask(port, &format!("GET {path}{query}"), &[], "");
                assert_eq!(answer.status, 401, "{path}?{key}: {answer:?}");
                assert!(answer.header("set-cookie").is_none(), "{answer:?}");
            }
        }
        let query = format!("?{key}={token}");
        assert_eq!(ask(port, &format!("GET /ws{query}"), UPGRADE, "").status, 401, "{key}");
        let page = ask(port, &format!("GET /{query}"), &[], "");
        assert!(page.header("set-cookie").is_none(), "the page takes no secret: {page:?}");
        let new = format!("POST /api/v1/sessions{query}");
        assert_eq!(ask(port, &new, &[JSON], "{}").status, 401, "{key}");
    }
    house.assert_untouched();
    house.gateway.terminate();
    let log = house.gateway.last_words();
    assert!(!log.contains(&token) && !log.contains(value), "a secret is in the log");
}

#[test]
fn without_a_credential_loopback_gets_nothing() {
    let house = House::build();
    let port = house.port();
    let session = &house.session;
    let mut lines: Vec<(String, String)> = house.unsafe_requests();
    lines.retain(|(line, _)| !line.ends_with("/login"));
    for path in [
        "/version",
        "/metrics",
        "/nope",
        "/ws",
        "/api/v1",
        "/api/v1/",
        "/api/v1/nope",
        "/api/v1/login",
        "/api/v1/sessions",
        &format!("/api/v1/sessions/{session}"),
        &format!("/api/v1/sessions/{session}/runs"),
        &format!("/api/v1/sessions/{session}/events"),
        &format!("/api/v1/sessions/{session}/queue"),
        &format!("/api/v1/sessions/{session}/uploads"),
        &format!("/api/v1/sessions/{session}/uploads/x"),
        "/api/v1/runs?status=running",
        "/api/v1/projects",
        "/api/v1/providers",
        "/api/v1/folders",
        "/api/v1/permissions",
        "/api/v1/tokens",
        "/api/v1/devices",
        "/api/v1/audit",
        "/api/v1/notifications",
    ] {
        lines.push((format!("GET {path}"), String::new()));
    }
    for line in ["POST /api/v1/tokens", "POST /api/v1/pair", "DELETE /", "PUT /ws"] {
        lines.push((line.to_owned(), String::new()));
    }
    let basic = "Basic dG9rZW46dG9rZW4=";
    let token = house.gateway.token();
    let (most, short) = (format!("Bearer {}", &token[1..]), format!("Bearer {token}0"));
    let other_port = house.cookie.replace(&port.to_string(), "1");
    let credentials: &[&[(&str, &str)]] = &[
        &[],
        &[("Authorization", basic)],
        &[("Authorization", "Bearer ")],
        &[("Authorization", &most)],
        &[("Authorization", &short)],
        &[("Authorization", token)],
        &[("Cookie", &other_port)],
        &[("Cookie", token)],
        // A wrong one is not made good by a right one of another kind.
        &[("Authorization", basic), ("Cookie", &house.cookie)],
        // Whatever says that it came from here.
        &[("X-Forwarded-For", "127.0.0.1"), ("X-Remote-User", "admin"), ("X-Real-IP", "::1")],
        &[("Forwarded", "for=127.0.0.1"), ("Remote-User", "admin"), ("X-Forwarded-User", "admin")],
    ];
    for credential in credentials {
        for (line, body) in &lines {
            let kind: &[(&str, &str)] = if body.is_empty() { &[] } else { &[JSON] };
            let answer = ask(port, line, &[*credential, kind].concat(), body);
            assert_eq!(answer.status, 401, "{line} {credential:?}: {answer:?}");
            assert_eq!(answer.code(), "UNAUTHORIZED");
        }
        let upgrade = [*credential, UPGRADE].concat();
        assert_eq!(ask(port, "GET /ws", &upgrade, "").status, 401, "{credential:?}");
    }
    house.assert_untouched();
}

/// A proxy in front: it takes the head of a request, changes what a proxy changes, and passes on
/// what follows in both directions.
struct Proxy {
    port: u16,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of `to`; takes `prefix` off the path, if there is one to take off.
    fn start(to: u16, prefix: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let stopping = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopping);
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if told.load(Ordering::SeqCst) {
                    return;
                }
                let client = client.expect("a connection");
                thread::spawn(move || pass(client, to, prefix));
            }
        });
        Self { port, stopping, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        self.thread.take().map(JoinHandle::join);
    }
}

fn pass(mut client: TcpStream, to: u16, prefix: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(client.read(&mut byte), Ok(1)) {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("an ASCII head");
    let (method, rest) = head.split_once(' ').expect("a request line");
    let rest = rest.strip_prefix(prefix).unwrap_or(rest);
    let more = "X-Forwarded-Proto: https\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    let head = format!("{method} {}\r\n{more}", rest.trim_end());
    let mut server = TcpStream::connect(("127.0.0.1", to)).expect("the gateway listens");
    server.write_all(head.as_bytes()).expect("it reads");
    let back = (server.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
    let back = thread::spawn(move || copy(back.0, back.1));
    copy(client, server);
    back.join().expect("no panic");
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    // However it ends, the other side is told.
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

#[test]
fn behind_a_proxy_at_a_path_everything_works() {
    for prefix in ["", "/agents"] {
        let setup = Setup::new().set("server", "public_url", "\"https://box.example/agents/\"");
        let setup = setup.set("server", "behind_proxy", "true");
        let gateway = setup.provider("sh", "command", &["sh"]).start();
        let proxy = Proxy::start(gateway.port(), prefix);
        let public = [("Host", "box.example"), ("Origin", "https://box.example")];
        let fetch = [&public[..], &[("Sec-Fetch-Site", "same-origin")]].concat();
        // The page, and what it loads by relative addresses.
        let page = ask(proxy.port, "GET /agents/", &public[..1], "");
        assert_eq!(page.status, 200, "{page:?}");
        let html = String::from_utf8(page.body.clone()).expect("UTF-8");
        let links = html
            .split(['"'])
            .filter(|text| [".js", ".css", ".svg"].iter().any(|ending| text.ends_with(ending)));
        let links: Vec<&str> = links.collect();
        assert!(links.len() >= 3, "{html}");
        for link in links {
            assert!(!link.starts_with('/') && !link.contains("://"), "{link} is not relative");
            let answer = ask(proxy.port, &format!("GET /agents/{link}"), &fetch, "");
            assert_eq!(answer.status, 200, "{link}: {answer:?}");
        }
        // Its login, whose cookie stays at this path and on https.
        let body = json!({ "code": gateway.token() }).to_string();
        let headers = [&fetch[..], &[JSON]].concat();
        let login = ask(proxy.port, "POST /agents/api/v1/login", &headers, &body);
        assert_eq!(login.status, 200, "{login:?}");
        let cookie = login.header("set-cookie").expect("a cookie");
        let attributes: Vec<&str> = cookie.split("; ").collect();
        for attribute in ["Path=/agents/", "Secure", "HttpOnly", "SameSite=Strict"] {
            assert!(attributes.contains(&attribute), "{attribute} in {cookie}");
        }
        let cookie = attributes[0];
        // REST with it.
        let new = json!({"provider": "sh", "projectPath": gateway.setup.project()}).to_string();
        let with_cookie = [&headers[..], &[("Cookie", cookie)]].concat();
        let session = ask(proxy.port, "POST /agents/api/v1/sessions", &with_cookie, &new);
        assert_eq!(session.status, 201, "{session:?}");
        let session = session.json()["id"].as_str().expect("an id").to_owned();
        let other = [("Host", "box.example"), ("Origin", "https://other.example"), JSON];
        let other = [&other[..], &[("Cookie", cookie)]].concat();
        assert_eq!(ask(proxy.port, "POST /agents/api/v1/sessions", &other, &new).status, 403);
        // The WebSocket.
        let mut request = format!("ws://127.0.0.1:{}/agents/ws", proxy.port)
            .into_client_request()
            .expect("a well-formed URL");
        for (name, value) in public.into_iter().chain([("Cookie", cookie)]) {
            let value = value.parse().expect("a well-formed header");
            request.headers_mut().insert(name.parse::<http::HeaderName>().expect("a name"), value);
        }
        let stream = TcpStream::connect(("127.0.0.1", proxy.port)).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
        let (mut socket, _) = tungstenite::client(request, stream).expect("a WebSocket");
        let prompt = json!({"type": "chat.send", "sessionId": session, "content": "echo hello"});
        socket.send(tungstenite::Message::text(prompt.to_string())).expect("it reads");
        let mut seen = Vec::new();
        while !seen.iter().any(|frame: &Value| frame["kind"] == "complete") {
            let message = socket.read().expect("a frame before the deadline");
            if let tungstenite::Message::Text(text) = message {
                seen.push(serde_json::from_str(&text).expect("JSON"));
            }
        }
        let said = seen.iter().any(|f| f["kind"] == "text" && f["content"] == "hello");
        assert!(said, "{seen:?}");
    }
}
