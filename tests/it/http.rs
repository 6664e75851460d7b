//! The front door: HTTP, login, Host and Origin, REST.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Client, DEADLINE, Gateway, Setup, eventually};

/// Sends bytes and reads until the server closes, which it always does after an error.
#[track_caller]
fn exchange(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port())).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    stream.write_all(bytes).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers and closes");
    text
}

fn status(answer: &str) -> u16 {
    answer.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn code(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    body["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// The cookie of a right login.
#[track_caller]
fn log_in(gateway: &Gateway) -> String {
    let answer = login(gateway, gateway.token());
    assert_eq!(status(&answer), 200, "{answer}");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("Set-Cookie: "));
    let cookie = cookie.expect("a login gives a cookie");
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.split("; ").any(|one| one == attribute), "{attribute} in {cookie}");
    }
    cookie.split(';').next().expect("a pair").to_owned()
}

fn login(gateway: &Gateway, code: &str) -> String {
    let body = json!({ "code": code }).to_string();
    let head = format!(
        "POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(gateway, [head, body].concat().as_bytes())
}

#[test]
fn the_token_is_its_owners_and_lasts() {
    let gateway = Setup::new().start();
    let path = gateway.setup.data_dir().join("token");
    let mode = fs::metadata(&path).expect("a token").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = gateway.token().to_owned();
    assert!(token.len() >= 43, "256 bits");
    assert!(!gateway.stderr().contains(&token), "a secret is not logged");
    let mut gateway = gateway;
    gateway.terminate();
    let gateway = gateway.restart();
    assert_eq!(gateway.token(), token);
}

#[test]
fn a_browser_logs_in_and_opens_its_websocket() {
    let gateway = Setup::new().start();
    let cookie = log_in(&gateway);
    let port = gateway.port();
    let connect = |origin: String| {
        Client::connect(port, "/ws", &[("cookie", cookie.clone()), ("origin", origin)])
    };
    let Ok(mut client) = connect(format!("http://127.0.0.1:{port}")) else {
        panic!("its own page may connect");
    };
    client.expect("hello", |frame| frame.is("hello", ""));
    assert_eq!(connect("http://evil.example".into()).err(), Some(403));
    assert_eq!(Client::connect(port, "/ws", &[]).err(), Some(401));
    let wrong = vec![("authorization", "Bearer wrong".to_owned()), ("cookie", cookie.clone())];
    assert_eq!(Client::connect(port, "/ws", &wrong).err(), Some(401));
    let bearer = vec![("authorization", format!("Bearer {}", gateway.token()))];
    assert_eq!(Client::connect(port, "/nope", &bearer).err(), Some(404));
    assert_eq!(Client::connect(port, "/nope", &[]).err(), Some(401));
}

#[test]
fn the_page_is_served_to_everybody_and_only_when_it_changed() {
    let gateway = Setup::new().start();
    let get = |more: &str| {
        let head = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
        exchange(&gateway, format!("{head}{more}\r\n").as_bytes())
    };
    let page = get("");
    assert_eq!(status(&page), 200, "{page}");
    for header in [
        "Content-Type: text/html; charset=utf-8",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Content-Security-Policy: default-src 'self'",
    ] {
        assert!(page.contains(&format!("\r\n{header}")), "{header} in {page}");
    }
    assert!(page.contains("frame-ancestors 'none'"), "{page}");
    let tag = page.lines().find_map(|line| line.strip_prefix("ETag: ")).expect("a tag");
    let again = get(&format!("If-None-Match: \"x\", {tag}\r\n"));
    assert_eq!(status(&again), 304, "{again}");
    assert_eq!(status(&get("If-None-Match: \"x\"\r\n")), 200);
}

#[test]
fn guessing_is_slowed_down() {
    let gateway = Setup::new().start();
    let mut answer = login(&gateway, "wrong");
    assert_eq!((status(&answer), code(&answer).as_str()), (401, "UNAUTHORIZED"));
    for _ in 0..20 {
        answer = login(&gateway, "wrong");
    }
    assert_eq!((status(&answer), code(&answer).as_str()), (429, "TOO_MANY_ATTEMPTS"));
    assert!(answer.contains("\r\nRetry-After: "), "{answer}");
    assert_eq!(status(&login(&gateway, gateway.token())), 429);
    assert_eq!(gateway.get("/version").0, 200, "programs are not affected");
}

#[test]
fn without_a_door_other_web_sites_are_still_kept_out() {
    let mut setup = Setup::new();
    setup.arguments.push("--no-auth".into());
    let gateway = setup.start();
    assert_eq!(gateway.request("GET", "/api/v1/sessions", None, None).0, 200);
    let port = gateway.port();
    assert!(Client::connect(port, "/ws", &[]).is_ok());
    let foreign = vec![("origin", "http://evil.example".to_owned())];
    assert_eq!(Client::connect(port, "/ws", &foreign).err(), Some(403));
}

#[test]
fn one_connection_too_many_is_told_so() {
    let gateway = Setup::new().set("limits", "connections_max", "2").start();
    let first = gateway.connect();
    let second = gateway.connect();
    let answer = exchange(&gateway, b"");
    assert_eq!((status(&answer), code(&answer).as_str()), (503, "TOO_MANY_CONNECTIONS"));
    first.cut();
    eventually("a place is given back", || {
        let get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        (status(&exchange(&gateway, get)) == 200).then_some(())
    });
    second.close();
}

#[test]
fn a_public_url_names_host_origin_and_path() {
    let gateway =
        Setup::new().set("server", "public_url", "\"https://box.example/agents/\"").start();
    let get = |path: &str, more: &str| {
        let bearer = format!("Authorization: Bearer {}", gateway.token());
        let request =
            format!("GET {path} HTTP/1.1\r\n{bearer}\r\nConnection: close\r\n{more}\r\n\r\n");
        status(&exchange(&gateway, request.as_bytes()))
    };
    let origin = "Origin: https://box.example";
    assert_eq!(get("/agents/version", &format!("Host: box.example\r\n{origin}")), 200);
    assert_eq!(get("/version", &format!("Host: box.example\r\n{origin}")), 200);
    assert_eq!(get("/version", "Host: box.example\r\nOrigin: https://other.example"), 403);
    assert_eq!(get("/version", "Host: other.example"), 421);
    assert_eq!(get("/agents/", "Host: box.example"), 200);
    assert_eq!(get("/agents", "Host: box.example"), 308);
    let answer = login(&gateway, gateway.token());
    assert!(answer.contains("; Path=/agents/; ") && answer.contains("; Secure"), "{answer}");
}

#[test]
fn the_local_socket_serves_its_owner_and_goes_with_the_server() {
    let mut gateway = Setup::new().start();
    let socket = PathBuf::from(gateway.announced()["socket"].as_str().expect("there is one"));
    assert_eq!(socket, gateway.setup.data_dir().join("sock"));
    let mode = fs::metadata(&socket).expect("it lies there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let file = fs::read_to_string(gateway.setup.data_dir().join("server.json")).expect("a file");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    assert_eq!(&file, gateway.announced());
    let get = |head: &str| {
        let mut stream = UnixStream::connect(&socket).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
        let request = format!("GET /healthz HTTP/1.1\r\nConnection: close\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers and closes");
        status(&text)
    };
    assert_eq!(get("Host: localhost"), 200);
    assert_eq!(get("Host: evil.example"), 421, "the same rules as at the port");
    let stream = UnixStream::connect(&socket).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    let mut request =
        tungstenite::client::IntoClientRequest::into_client_request("ws://localhost/ws")
            .expect("a well-formed URL");
    let bearer = format!("Bearer {}", gateway.token()).parse().expect("a header");
    request.headers_mut().insert("authorization", bearer);
    let (mut client, _) = tungstenite::client(request, stream).expect("a WebSocket");
    assert!(client.read().expect("a frame").to_string().contains("hello"));
    gateway.kill();
    assert!(socket.exists(), "nobody removed it");
    gateway = gateway.restart();
    UnixStream::connect(&socket).expect("the next server listens there");
    gateway.terminate();
    assert!(!socket.exists(), "it goes with the server");
}
