//! Links, devices and tokens: from the first login to the revocation.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::{ask, code, device, files_with, log_in, reads, text, token, with_bearer, with_cookie};
use crate::support::client::Ended;
use crate::support::{Client, DEADLINE, Gateway, Setup, eventually};

/// A stream of the session's events, whose first event has come.
fn follow(gateway: &Gateway, session: &str, cookie: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port())).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    let request = format!(
        "GET /api/v1/sessions/{session}/events HTTP/1.1\r\nHost: localhost\r\n\
         Accept: text/event-stream\r\nCookie: {cookie}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).expect("a status");
    assert!(line.contains(" 200 "), "{line}");
    while !line.contains("chat_subscribed") {
        line.clear();
        assert!(stream.read_line(&mut line).expect("it goes on") > 0, "it ended");
    }
    stream
}

/// Reads until the server closes.
fn rest_of(mut stream: BufReader<TcpStream>) {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the server ends it");
}

/// The cookie under the name that it has at the port where the server is now.
fn at_port(gateway: &Gateway, cookie: &str) -> String {
    let (_, secret) = cookie.split_once('=').expect("a pair");
    format!("reattach_{}={secret}", gateway.port())
}

#[test]
fn a_link_opens_once_and_makes_a_named_device() {
    let gateway = Setup::new().start();
    let (_, made) = gateway.post("/api/v1/pair", &json!({"scope": "read"}));
    let code = text(&made, "code");
    assert!(code.len() >= 32, "128 bits: {code}");
    let link = made["links"][0].as_str().expect("a link");
    let base = gateway.announced()["url"].as_str().expect("a url");
    assert_eq!(link, format!("{base}/#code={code}"), "in the part that no browser sends");

    let answer = log_in(&gateway, code);
    let cookie = answer.cookie();
    let set = answer.header("set-cookie").expect("a cookie");
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(set.split("; ").any(|one| one == attribute), "{attribute} in {set}");
    }
    let shown = &answer.body["device"];
    assert_eq!((text(shown, "name"), text(shown, "scope")), ("Firefox on Linux", "read"));

    let again = log_in(&gateway, code);
    assert_eq!((again.status, again.code()), (401, "UNAUTHORIZED"), "a link opens once");

    let (_, list) = gateway.get("/api/v1/devices");
    let listed = &list["items"][0];
    assert_eq!(text(listed, "id"), text(shown, "id"));
    assert!(listed["lastUsedAt"].is_string() && listed["expiresAt"].is_string(), "{listed}");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(reads(&gateway, "Cookie", &cookie), 200);
    with_cookie(&gateway, &cookie).expect("it opens the WebSocket").close();
}

#[test]
fn a_name_that_was_given_is_the_devices_own() {
    let gateway = Setup::new().start();
    let named = |body: &Value, login: &Value| {
        let code = code(&gateway, body);
        let mut login = login.clone();
        login["code"] = code.into();
        let answer = ask(&gateway, "POST", "/api/v1/login", &[], Some(&login));
        text(&answer.body["device"], "name").to_owned()
    };
    assert_eq!(named(&json!({"name": "tv"}), &json!({})), "tv");
    assert_eq!(named(&json!({"name": "tv"}), &json!({"name": "  my phone "})), "my phone");
    let long = "x".repeat(65);
    for bad in [json!(""), json!("  "), json!("a\nb"), json!(long), json!(7)] {
        let (status, answer) = gateway.post("/api/v1/pair", &json!({"name": bad}));
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("INVALID_FIELD")), "{bad}");
    }
    let (status, _) = gateway.post("/api/v1/pair", &json!({"scope": "root"}));
    assert_eq!(status, 400);
}

#[test]
fn a_browser_that_is_in_stays_the_device_that_it_is() {
    let gateway = Setup::new().start();
    let (id, cookie) = device(&gateway, "control");
    let again = |scope: &str, cookie: &str| {
        let body = json!({"code": code(&gateway, &json!({"scope": scope}))});
        ask(&gateway, "POST", "/api/v1/login", &[("Cookie", cookie)], Some(&body))
    };
    let same = again("read", &cookie);
    assert_eq!((same.status, text(&same.body["device"], "id")), (200, id.as_str()));
    assert!(same.header("set-cookie").is_none());
    let more = again("admin", &cookie);
    let better = more.cookie();
    assert_ne!(text(&more.body["device"], "id"), id, "it may do more now");
    assert_eq!(reads(&gateway, "Cookie", &cookie), 401, "and is not there twice");
    assert_eq!(reads(&gateway, "Cookie", &better), 200);
    let (_, list) = gateway.get("/api/v1/devices");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_stolen_cookie_opens_nothing_once_its_device_is_revoked() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let (id, cookie) = device(&gateway, "admin");
    let (_, other) = device(&gateway, "control");
    let mut open = with_cookie(&gateway, &cookie).expect("it is in");
    let mut others = with_cookie(&gateway, &other).expect("it is in");
    open.barrier();
    let stream = follow(&gateway, &session, &cookie);
    let path = format!("/api/v1/devices/{id}");
    assert_eq!(gateway.request("DELETE", &path, None, Some(gateway.token())).0, 204);
    assert_eq!(open.read_to_end(), Ended::Closed(4500));
    rest_of(stream);
    assert_eq!(with_cookie(&gateway, &cookie).err(), Some(401));
    assert_eq!(reads(&gateway, "Cookie", &cookie), 401);
    others.barrier();
    let again = gateway.request("DELETE", &path, None, Some(gateway.token()));
    assert_eq!((again.0, &again.1["error"]["code"]), (404, &json!("DEVICE_NOT_FOUND")));
}

#[test]
fn a_device_logs_itself_out() {
    let gateway = Setup::new().start();
    let (_, cookie) = device(&gateway, "read");
    let mut open = with_cookie(&gateway, &cookie).expect("it is in");
    let answer = ask(&gateway, "POST", "/api/v1/logout", &[("Cookie", &cookie)], None);
    assert_eq!(answer.status, 204);
    let set = answer.header("set-cookie").expect("the cookie is taken away");
    assert!(set.contains("=; ") && set.contains("Max-Age=0"), "{set}");
    assert_eq!(open.read_to_end(), Ended::Closed(4500));
    assert_eq!(reads(&gateway, "Cookie", &cookie), 401);
    assert_eq!(ask(&gateway, "POST", "/api/v1/logout", &[("Cookie", &cookie)], None).status, 401);
}

#[test]
fn a_token_is_shown_once_and_revoked_at_once() {
    let gateway = Setup::new().start();
    let made = token(&gateway, &json!({"name": "ci", "scope": "control"}));
    let secret = text(&made, "token");
    assert!(secret.starts_with("rat_") && secret.len() == 4 + 64, "{secret}");
    let (_, list) = gateway.get("/api/v1/tokens");
    assert!(!list.to_string().contains(secret), "{list}");
    let mut names: Vec<&str> =
        list["items"].as_array().expect("a list").iter().map(|one| text(one, "name")).collect();
    names.sort_unstable();
    assert_eq!(names, ["ci", "token file"]);
    let taken = gateway.post("/api/v1/tokens", &json!({"name": "ci"}));
    assert_eq!((taken.0, &taken.1["error"]["code"]), (409, &json!("NAME_TAKEN")));
    assert_eq!(gateway.post("/api/v1/tokens", &json!({"name": "token file"})).0, 409);
    assert_eq!(gateway.post("/api/v1/tokens", &json!({})).0, 400);
    for bad in [json!(0), json!(-5), json!("30d"), json!(1.5), json!(i64::MAX)] {
        let body = json!({"name": "x", "expiresInMs": bad});
        assert_eq!(gateway.post("/api/v1/tokens", &body).0, 400, "{bad}");
    }

    let mut open = with_bearer(&gateway, secret).expect("it is in");
    open.barrier();
    let path = format!("/api/v1/tokens/{}", text(&made, "id"));
    assert_eq!(gateway.request("DELETE", &path, None, Some(gateway.token())).0, 204);
    assert_eq!(open.read_to_end(), Ended::Closed(4500));
    assert_eq!(gateway.request("GET", "/version", None, Some(secret)).0, 401);
    token(&gateway, &json!({"name": "ci"}));
    let gone = gateway.request("DELETE", &path, None, Some(gateway.token()));
    assert_eq!((gone.0, &gone.1["error"]["code"]), (404, &json!("TOKEN_NOT_FOUND")));
}

#[test]
fn a_token_that_expires_closes_what_it_holds_open() {
    let gateway = Setup::new().start();
    let made = token(&gateway, &json!({"name": "short", "expiresInMs": 1500}));
    let secret = text(&made, "token");
    let mut open = with_bearer(&gateway, secret).expect("it is in");
    let login = log_in(&gateway, secret);
    let mut of_device = with_cookie(&gateway, &login.cookie()).expect("it is in");
    // Nobody says anything meanwhile: the connection itself knows when.
    assert_eq!(open.read_to_end(), Ended::Closed(4500));
    assert_eq!(of_device.read_to_end(), Ended::Closed(4500), "a device ends with its token");
    assert_eq!(gateway.request("GET", "/version", None, Some(secret)).0, 401);
    let (_, list) = gateway.get("/api/v1/tokens");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
}

#[test]
fn devices_and_revocations_outlive_the_server() {
    let gateway = Setup::new().start();
    let (kept_id, kept) = device(&gateway, "control");
    let (id, gone) = device(&gateway, "control");
    let ci = token(&gateway, &json!({"name": "ci", "scope": "read"}));
    let old = token(&gateway, &json!({"name": "old", "scope": "read"}));
    let of_old = log_in(&gateway, text(&old, "token")).cookie();
    for path in [format!("devices/{id}"), format!("tokens/{}", text(&old, "id"))] {
        let path = format!("/api/v1/{path}");
        assert_eq!(gateway.request("DELETE", &path, None, Some(gateway.token())).0, 204);
    }
    let unused = code(&gateway, &json!({}));
    let mut gateway = gateway;
    gateway.kill();
    let gateway = gateway.restart();
    let status = |cookie: &str| reads(&gateway, "Cookie", &at_port(&gateway, cookie));
    assert_eq!(status(&kept), 200);
    assert_eq!(status(&gone), 401);
    assert_eq!(status(&of_old), 401, "it went with its token");
    assert_eq!(gateway.request("GET", "/version", None, Some(text(&ci, "token"))).0, 200);
    assert_eq!(gateway.request("GET", "/version", None, Some(text(&old, "token"))).0, 401);
    assert_eq!(log_in(&gateway, &unused).status, 401, "links are in memory only");
    let (_, list) = gateway.get("/api/v1/devices");
    let ids: Vec<&str> =
        list["items"].as_array().expect("a list").iter().map(|one| text(one, "id")).collect();
    assert_eq!(ids, [kept_id.as_str()]);
}

#[test]
fn the_token_file_is_a_token_like_others() {
    let gateway = Setup::new().start();
    let path = gateway.setup.data_dir().join("token");
    let first = gateway.token().to_owned();
    let (_, list) = gateway.get("/api/v1/tokens");
    let own = &list["items"][0];
    assert_eq!((text(own, "name"), text(own, "scope")), ("token file", "admin"));
    assert_eq!(own["current"], true);
    let helper = token(&gateway, &json!({"name": "helper", "scope": "admin"}));
    let helper = text(&helper, "token");
    let revoke = format!("/api/v1/tokens/{}", text(own, "id"));
    assert_eq!(gateway.request("DELETE", &revoke, None, Some(helper)).0, 204);
    assert!(!path.exists(), "a file that opens nothing helps nobody");
    assert_eq!(gateway.request("GET", "/version", None, Some(&first)).0, 401);

    // Somebody puts it back, from a backup say: it was revoked, and stays so.
    fs::write(&path, format!("{first}\n")).expect("written");
    let mut gateway = gateway;
    gateway.terminate();
    let gateway = gateway.restart();
    assert_ne!(gateway.token(), first);
    assert_eq!(gateway.request("GET", "/version", None, Some(&first)).0, 401);
    assert_eq!(gateway.get("/version").0, 200);

    // One that is put there by hand takes the place of the one before.
    let second = gateway.token().to_owned();
    let by_hand = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let of_second = log_in(&gateway, &second).cookie();
    fs::write(&path, format!("{by_hand}\n")).expect("written");
    let mut gateway = gateway;
    gateway.terminate();
    let gateway = gateway.restart();
    assert_eq!(gateway.token(), by_hand);
    assert_eq!(gateway.get("/version").0, 200);
    assert_eq!(gateway.request("GET", "/version", None, Some(&second)).0, 401);
    let of_second = at_port(&gateway, &of_second);
    assert_eq!(reads(&gateway, "Cookie", &of_second), 401, "a new token logs devices out");
}

#[test]
fn secrets_are_nowhere() {
    let gateway = Setup::new().set("timeouts", "heartbeat", "\"1s\"").env("REATTACH_LOG", "debug");
    let gateway = gateway.start();
    let used = code(&gateway, &json!({"name": "phone"}));
    let cookie = log_in(&gateway, &used).cookie();
    let (_, cookie_secret) = cookie.split_once('=').expect("a pair");
    let unused = code(&gateway, &json!({}));
    let made = token(&gateway, &json!({"name": "ci", "scope": "admin"}));
    let secret = text(&made, "token");
    with_bearer(&gateway, secret).expect("it is in").barrier();
    with_cookie(&gateway, &cookie).expect("it is in").barrier();
    // Wrong ones are near misses, and as such no less secret.
    let wrong = format!("{secret}0");
    assert_eq!(gateway.request("GET", "/version", None, Some(&wrong)).0, 401);
    assert_eq!(log_in(&gateway, &wrong).status, 401);
    // A query string is no place for one: it does not open.
    for key in ["token", "code", "access_token"] {
        let path = format!("/api/v1/sessions?{key}={secret}");
        assert_eq!(gateway.request("GET", &path, None, None).0, 401);
    }
    let secrets = [used.as_str(), unused.as_str(), cookie_secret, secret, wrong.as_str()];
    for path in ["tokens", "devices", "audit"] {
        let (_, body) = gateway.get(&format!("/api/v1/{path}"));
        for secret in secrets {
            assert!(!body.to_string().contains(secret), "{path}: {body}");
        }
    }
    let mut gateway = gateway;
    gateway.terminate();
    let stderr = gateway.last_words();
    for secret in secrets {
        assert!(!stderr.contains(secret), "{stderr}");
    }
    assert!(!stderr.contains(gateway.token()), "{stderr}");
    assert_eq!(files_with(&gateway.setup.data_dir(), &secrets), Vec::<String>::new());
    let with_own = files_with(&gateway.setup.data_dir(), &[gateway.token()]);
    assert!(with_own.len() == 1 && with_own[0].ends_with("/token"), "{with_own:?}");
}

#[test]
fn what_happened_at_the_door_is_in_the_audit_table() {
    let gateway = Setup::new().start();
    let (id, _) = device(&gateway, "control");
    let made = token(&gateway, &json!({"name": "ci"}));
    for path in [format!("devices/{id}"), format!("tokens/{}", text(&made, "id"))] {
        let path = format!("/api/v1/{path}");
        assert_eq!(gateway.request("DELETE", &path, None, Some(gateway.token())).0, 204);
    }
    log_in(&gateway, "wrong");
    let database = gateway.setup.data_dir().join("reattach.db");
    let expected = [
        ("link_created", "token file"),
        ("login", "Firefox on Linux"),
        ("token_created", "token file"),
        ("device_revoked", "token file"),
        ("token_revoked", "token file"),
        ("login_failed", ""),
    ];
    // Nobody waits for these lines.
    eventually("six lines", || {
        let conn = rusqlite::Connection::open(&database).expect("it is there");
        let sql = "SELECT what, ifnull(json_extract(actor, '$.name'), '') FROM audit \
                   WHERE what <> 'configuration' ORDER BY id";
        let mut rows = conn.prepare(sql).expect("a table");
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("read");
        let rows: Vec<(String, String)> = rows.map(|row| row.expect("read")).collect();
        let rows: Vec<(&str, &str)> = rows.iter().map(|(what, by)| (&**what, &**by)).collect();
        (rows == expected).then_some(())
    });
}

#[test]
fn who_acted_has_the_name_of_the_device() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let made = token(&gateway, &json!({"name": "nightly", "scope": "control"}));
    let headers = [("authorization", format!("Bearer {}", text(&made, "token")))];
    let mut client = Client::connect(gateway.port(), "/ws", &headers).expect("it is in");
    // What it calls itself does not change who it is.
    client.request(&json!({"type": "hello", "protocol": 1, "client": "somebody else"}));
    let run = client.prompt(&session, "hi");
    let (agent, _) = gateway.hub().prompted("fake", "hi");
    let head = client.expect_at(&run, 0);
    assert_eq!(head.json["by"], json!({"kind": "api", "name": "nightly"}), "{}", head.text);
    agent.finish();
    client.expect_complete(&run);
}

#[test]
fn a_cookie_is_given_again_when_the_browser_would_forget_it() {
    let gateway = Setup::new().start();
    let (_, cookie) = device(&gateway, "read");
    let get = |gateway: &Gateway| {
        let cookie = at_port(gateway, &cookie);
        ask(gateway, "GET", "/api/v1/sessions", &[("Cookie", &cookie)], None)
    };
    assert!(get(&gateway).header("set-cookie").is_none(), "it has just got it");
    let mut gateway = gateway;
    gateway.terminate();
    let gateway = gateway.restart();
    // This process does not know when that was.
    let set = get(&gateway).header("set-cookie").map(str::to_owned).expect("it is given again");
    assert!(
        set.starts_with(&at_port(&gateway, &cookie)) && set.contains("HttpOnly; SameSite=Strict"),
        "{set}"
    );
    assert!(get(&gateway).header("set-cookie").is_none(), "once a day");
}
