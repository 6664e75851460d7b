//! `--probe URL`: opens an address as a browser would, step by step, and says at the first step that
//! fails what is wrong with the way there, and which lines of a proxy's configuration mend it.
//!
//! Sends nothing that changes anything. The token goes only where it may: to an address that the
//! configuration calls its own, to this machine, or anywhere if it was given in `REATTACH_TOKEN`.

mod advice;
mod wire;

use std::net::ToSocketAddrs as _;
use std::time::Instant;

use serde_json::{Value, json};
use tungstenite::client::{IntoClientRequest as _, client_with_config};
use tungstenite::handshake::HandshakeError;
use tungstenite::http::HeaderValue;
use tungstenite::{Error, Message};

use self::advice::Trouble;
use self::wire::{Answer, Lost, ask};
use super::{Patient, Report};
use crate::cli::commands::segment;
use crate::cli::exit::Failure;
use crate::cli::stream::Stream;
use crate::cli::target::{Base, Target, Token};
use crate::limits;

const GROUP: &str = "probe";

/// What a browser sends when somebody types the address.
const NAVIGATION: [(&str, &str); 6] = [
    ("Accept", "text/html,application/xhtml+xml"),
    ("User-Agent", "Mozilla/5.0 (compatible; reattach doctor)"),
    ("Sec-Fetch-Site", "none"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Dest", "document"),
    ("Connection", "close"),
];

/// What the page must be allowed and forbidden; without it something stands between.
const POLICY: &str = "frame-ancestors 'none'";

/// By which our page is known.
const TITLE: &str = "<title>reattach</title>";

/// Tries the address.
///
/// # Errors
/// If it is none.
pub(super) fn check(report: &mut Report, patient: &Patient, url: &str) -> Result<(), Failure> {
    let base = Base::parse(url)?;
    let probe = Probe { base: &base, token: token(patient, &base), patient };
    // Each step needs the ones before it; the last three are each their own.
    if probe.reach(report).is_some() && probe.page(report).is_some() {
        probe.admitted(report);
        probe.websocket(report);
        probe.stream(report);
    }
    Ok(())
}

/// The token, if it may go there.
fn token(patient: &Patient, base: &Base) -> Option<Token> {
    let given = std::env::var("REATTACH_TOKEN").ok().filter(|token| !token.is_empty());
    if let Some(given) = given {
        return Some(Token(given));
    }
    let own =
        patient.config.as_ref().and_then(|config| Base::parse(&config.server.public_url).ok());
    let (host, _) = base.host_and_port();
    let loopback = matches!(host, "localhost" | "127.0.0.1" | "::1");
    let may = loopback || own.is_some_and(|own| own == *base);
    may.then(|| Target::DataDir(patient.data_dir.clone()).find().ok()?.token).flatten()
}

#[derive(Debug)]
struct Probe<'a> {
    base: &'a Base,
    token: Option<Token>,
    patient: &'a Patient,
}

impl Probe<'_> {
    fn path(&self, rest: &str) -> String {
        format!("{}{rest}", self.base.path())
    }

    /// The origin that a page from there has.
    fn origin(&self) -> String {
        let scheme = if self.base.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}", self.base.authority())
    }

    fn tell(&self, report: &mut Report, trouble: &Trouble) {
        let (what, fix) = trouble.words(self.base);
        report.fail(GROUP, what, fix).facts(json!({"trouble": trouble.code()}));
    }

    /// Name, port, TLS.
    fn reach(&self, report: &mut Report) -> Option<()> {
        let (host, port) = self.base.host_and_port();
        let addresses = match (host, port).to_socket_addrs() {
            Ok(addresses) => addresses.collect::<Vec<_>>(),
            Err(error) => {
                self.tell(report, &Trouble::Name(error.to_string()));
                return None;
            }
        };
        let begun = Instant::now();
        if let Err(error) = Stream::connect(self.base) {
            match Lost::from(error) {
                Lost::Refused(failure) => {
                    report.fail(GROUP, failure.message, failure.next);
                    report.facts(json!({"trouble": failure.code.to_ascii_lowercase()}));
                }
                lost => self.tell(report, &Trouble::lost(&lost, "connecting")),
            }
            return None;
        }
        let ms = begun.elapsed().as_millis();
        let tls = if self.base.is_tls() { ", its certificate is trusted" } else { "" };
        let list = addresses.iter().map(|one| one.ip().to_string()).collect::<Vec<_>>().join(", ");
        report.ok(GROUP, format!("{} is {list}, connected in {ms} ms{tls}", self.base));
        if !self.base.is_tls() && !addresses.iter().all(|one| one.ip().to_canonical().is_loopback())
        {
            let what = "plain HTTP: whoever is on the way can read the credential, and browsers \
                        keep notifications and installation for https";
            report.warn(GROUP, what, "let a proxy end TLS in front of it: docs/operations.md");
        }
        Some(())
    }

    /// The page and what it loads.
    fn page(&self, report: &mut Report) -> Option<()> {
        let path = self.path("/");
        let answer = match ask(self.base, &path, &NAVIGATION, limits::PROBE_STEP, |_| false) {
            Ok(answer) => answer,
            Err(lost) => {
                self.tell(report, &Trouble::lost(&lost, "the page"));
                return None;
            }
        };
        if let Some(trouble) = self.page_trouble(&answer) {
            self.tell(report, &trouble);
            return None;
        }
        let page = answer.text();
        let links = links(&page);
        for link in &links {
            if link.starts_with('/') || link.contains("://") {
                self.tell(report, &Trouble::Rewritten(link.clone()));
                return None;
            }
            let loaded = ask(
                self.base,
                &self.path(&format!("/{link}")),
                &[("Accept", "*/*"), ("Sec-Fetch-Site", "same-origin"), ("Connection", "close")],
                limits::PROBE_STEP,
                |_| false,
            );
            let right = match &loaded {
                Ok(file) => {
                    let kind = file.header("content-type").unwrap_or_default();
                    file.status == 200 && !kind.starts_with("text/html")
                }
                Err(_) => false,
            };
            if !right {
                let status = loaded.map_or(0, |file| file.status);
                self.tell(report, &Trouble::Asset { name: link.clone(), status });
                return None;
            }
        }
        let count = links.len();
        report.ok(GROUP, format!("the page comes as we send it, and all {count} files it names"));
        if !answer.header("content-security-policy").is_some_and(|value| value.contains(POLICY)) {
            let what = "the page's Content-Security-Policy is not ours: something on the way \
                        replaces or removes it";
            report.warn(GROUP, what, "remove the line about Content-Security-Policy in the proxy");
        }
        Some(())
    }

    fn page_trouble(&self, answer: &Answer) -> Option<Trouble> {
        if let Some(trouble) = self.gate_trouble(answer) {
            return Some(trouble);
        }
        let ours = answer.text().contains(TITLE);
        match answer.status {
            200 if ours => None,
            301 | 302 | 303 | 307 | 308 => {
                let place = answer.header("location").unwrap_or("?").to_owned();
                Some(Trouble::Redirect(place))
            }
            // The page is for everybody, what is at any other path is not.
            401 | 404 => Some(Trouble::SubPath),
            status => Some(Trouble::Status { status, what: "the page" }),
        }
    }

    /// What our own gate refuses, and what a proxy says when it does not reach us.
    fn gate_trouble(&self, answer: &Answer) -> Option<Trouble> {
        match (answer.status, answer.code().as_deref()) {
            (421, Some("HOST_NOT_ALLOWED")) => {
                let public = self.patient.config.as_ref().map(|config| &config.server.public_url);
                let own = public.and_then(|url| Base::parse(url).ok());
                let configured = own.is_some_and(|own| own.authority() == self.base.authority());
                Some(Trouble::Host { configured })
            }
            (403, Some("ORIGIN_NOT_ALLOWED")) => Some(Trouble::Origin),
            (502..=504, None) => Some(Trouble::Gateway(answer.status)),
            (401, None) => Some(Trouble::ProxyLogin),
            _ => None,
        }
    }

    /// Whether requests of the page itself are let in: they name their origin.
    fn admitted(&self, report: &mut Report) {
        let origin = self.origin();
        let headers = [
            ("Origin", origin.as_str()),
            ("Accept", "application/json"),
            ("Sec-Fetch-Site", "same-origin"),
            ("Connection", "close"),
        ];
        match ask(self.base, &self.path("/healthz"), &headers, limits::PROBE_STEP, |_| false) {
            Ok(answer) if answer.status == 200 => {
                report.ok(GROUP, format!("Host and Origin {origin} are accepted"));
            }
            Ok(answer) => {
                let other = Trouble::Status { status: answer.status, what: "/healthz" };
                self.tell(report, &self.gate_trouble(&answer).unwrap_or(other));
            }
            Err(lost) => self.tell(report, &Trouble::lost(&lost, "/healthz")),
        }
    }

    fn websocket(&self, report: &mut Report) {
        match self.greeting() {
            Ok(Some(protocol)) => {
                report.ok(GROUP, format!("the WebSocket opens, protocol {protocol}"));
            }
            Ok(None) => {
                let what = "a WebSocket's request reaches the server, which wants a token";
                report.warn(
                    GROUP,
                    what,
                    "REATTACH_TOKEN=... reattach doctor --probe ... tries it whole",
                );
            }
            Err(trouble) => self.tell(report, &trouble),
        }
    }

    /// The protocol that the greeting names; `None` if there was no token to come so far.
    fn greeting(&self) -> Result<Option<u64>, Trouble> {
        let stream = Stream::connect(self.base)
            .map_err(|error| Trouble::lost(&Lost::from(error), "the WebSocket"))?;
        let broken = |why: String| Trouble::WebSocket(why);
        let mut request =
            self.base.ws().into_client_request().map_err(|error| broken(error.to_string()))?;
        let mut header = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                request.headers_mut().insert(name, value);
            }
        };
        header("Origin", &self.origin());
        if let Some(token) = &self.token {
            header("Authorization", &format!("Bearer {}", token.0));
        }
        let mut socket = match client_with_config(request, stream, None) {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Failure(Error::Http(answer))) => {
                return self.refused(&answer).map(|()| None);
            }
            Err(HandshakeError::Interrupted(_)) => return Err(Trouble::UpgradeSilent),
            Err(HandshakeError::Failure(Error::Io(error))) => {
                let late = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                return Err(if late { Trouble::UpgradeSilent } else { broken(error.to_string()) });
            }
            Err(HandshakeError::Failure(error)) => return Err(broken(error.to_string())),
        };
        let hello = json!({"type": "hello", "protocol": 1, "client": "reattach-doctor"});
        socket
            .send(Message::text(hello.to_string()))
            .map_err(|error| broken(format!("it opens and takes nothing: {error}")))?;
        let deadline = Instant::now() + limits::PROBE_STEP;
        while Instant::now() < deadline {
            let frame = match socket.read() {
                Ok(Message::Text(text)) => text,
                Ok(_) => continue,
                Err(error) => return Err(broken(format!("it opens and says nothing: {error}"))),
            };
            let frame: Value = serde_json::from_str(&frame).unwrap_or_default();
            if frame["kind"] == "hello" {
                // Whatever it says to that, the greeting has come.
                socket.close(None).and_then(|()| socket.flush()).ok();
                return Ok(Some(frame["protocol"].as_u64().unwrap_or(0)));
            }
        }
        Err(broken("it opens, and no greeting comes".to_owned()))
    }

    /// What an answer means that is no WebSocket.
    fn refused(
        &self,
        answer: &tungstenite::http::Response<Option<Vec<u8>>>,
    ) -> Result<(), Trouble> {
        let answer = Answer::of(answer.status().as_u16(), answer.body().clone());
        if let Some(trouble) = self.gate_trouble(&answer) {
            return Err(trouble);
        }
        match answer.status {
            401 if self.token.is_none() => Ok(()),
            401 => Err(Trouble::Token),
            // Our own word for a request without the header.
            426 => Err(Trouble::UpgradeStripped),
            // A page instead of an answer of ours.
            status => Err(Trouble::UpgradeStatus(status)),
        }
    }

    /// Whether a stream arrives as it is sent.
    fn stream(&self, report: &mut Report) {
        let Some(token) = &self.token else { return };
        let bearer = format!("Bearer {}", token.0);
        let get = |path: &str, accept: &str, span, enough: &dyn Fn(&Answer) -> bool| {
            let headers = [
                ("Authorization", bearer.as_str()),
                ("Accept", accept),
                ("Sec-Fetch-Site", "same-origin"),
                ("Cache-Control", "no-cache"),
            ];
            ask(self.base, &self.path(path), &headers, span, enough)
        };
        let list =
            match get("/api/v1/sessions?limit=1", "application/json", limits::PROBE_STEP, &|_| {
                false
            }) {
                Ok(list) if list.status == 200 => list,
                Ok(list) if list.status == 401 => return self.tell(report, &Trouble::Token),
                Ok(list) => {
                    let other = Trouble::Status { status: list.status, what: "/api/v1/sessions" };
                    return self.tell(report, &self.gate_trouble(&list).unwrap_or(other));
                }
                Err(lost) => return self.tell(report, &Trouble::lost(&lost, "/api/v1/sessions")),
            };
        let list: Value = serde_json::from_slice(&list.body).unwrap_or_default();
        let Some(session) = list["items"][0]["id"].as_str() else {
            report.ok(GROUP, "streaming was not tried: there is no session yet");
            return;
        };
        let path = format!("/api/v1/sessions/{}/events?from=tail", segment(session));
        let begun = Instant::now();
        // The first bytes come at once; what holds them back holds back all that follow.
        let first = |answer: &Answer| !answer.body.is_empty();
        match get(&path, "text/event-stream", limits::PROBE_STREAM, &first) {
            Ok(answer) if answer.status == 200 => {
                let ms = begun.elapsed().as_millis();
                report.ok(GROUP, format!("a stream arrives as it is sent, first bytes in {ms} ms"));
            }
            Ok(answer) => {
                let other = Trouble::Status { status: answer.status, what: "an event stream" };
                self.tell(report, &self.gate_trouble(&answer).unwrap_or(other));
            }
            Err(Lost::Late(_)) => self.tell(report, &Trouble::Buffered),
            Err(lost) => self.tell(report, &Trouble::lost(&lost, "an event stream")),
        }
    }
}

/// What a page loads: the values of `href` and `src` in its head.
fn links(page: &str) -> Vec<String> {
    let head = page.split("</head>").next().unwrap_or_default();
    let mut links = Vec::new();
    for attribute in ["href=\"", "src=\""] {
        let mut rest = head;
        while let Some(at) = rest.find(attribute) {
            rest = &rest[at + attribute.len()..];
            let end = rest.find('"').unwrap_or(rest.len());
            links.push(rest[..end].to_owned());
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_loads_is_found() {
        let page = r#"<head><link rel="icon" href="a.svg"><script src="b.js"></script></head>
                      <a href="c">"#;
        assert_eq!(links(page), ["a.svg", "b.js"]);
        let own = crate::web::asset("/").expect("the page");
        let own = String::from_utf8_lossy(own.bytes);
        assert!(own.contains(TITLE), "our page is known by it");
        let own = links(&own);
        assert!(own.len() >= 3 && own.iter().all(|link| !link.contains('/')), "{own:?}");
    }
}
