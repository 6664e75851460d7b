//! The server of the data directory: whether it runs, answers, is of this version, and who can
//! reach it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Patient, Report};
use crate::cli::exit::Exit;
use crate::cli::http::Rest;
use crate::cli::interrupt::timespec;
use crate::cli::link::{Link, Lost};
use crate::cli::serve::SERVER_FILE;
use crate::cli::target::Target;
use crate::cli::text;
use crate::limits;

const GROUP: &str = "server";

/// A server that runs, by its `server.json`.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) pid: u32,
    pub(super) json: Value,
}

impl Running {
    /// A variable of its environment, if that can be read: as its user, on Linux.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        environment.split(|byte| *byte == 0).find_map(|pair| {
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(OsString::from_vec(value.to_vec()))
        })
    }

    /// Whether the variable is set there; its value is nobody's business.
    pub(super) fn has_variable(&self, name: &str) -> bool {
        self.variable(name).is_some_and(|value| value != OsStr::new(""))
    }
}

/// The server of a data directory, if one lives.
pub(super) fn find(dir: &Path) -> Option<Running> {
    let text = fs::read_to_string(dir.join(SERVER_FILE)).ok()?;
    let json: Value = serde_json::from_str(&text).ok()?;
    let pid = u32::try_from(json["pid"].as_u64()?).ok()?;
    let alive = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH));
    (alive && crate::cli::commands::keepers::is_served(dir)).then_some(Running { pid, json })
}

pub(super) fn check(report: &mut Report, patient: &Patient) {
    let flags = &patient.flags;
    let Some(running) = &patient.server else {
        if patient.data_dir.join(SERVER_FILE).exists() {
            let what = "no server runs; the last one was killed (its server.json is still there)";
            report.warn(GROUP, what, format!("reattach serve{flags}"));
        } else {
            report.warn(GROUP, "no server runs", format!("reattach serve{flags}"));
        }
        network(report, patient);
        auth(report, patient, None);
        return;
    };
    let target = Target::DataDir(patient.data_dir.clone());
    let rest = match Rest::new(target.clone()) {
        Ok(rest) => rest,
        Err(failure) => {
            report.fail(GROUP, failure.message, failure.next);
            return;
        }
    };
    answers(report, patient, running, &rest);
    websocket(report, &target);
    network(report, patient);
    auth(report, patient, Some(&rest));
    notifications(report, &rest);
}

fn answers(report: &mut Report, patient: &Patient, running: &Running, rest: &Rest) {
    let pid = running.pid;
    let flags = &patient.flags;
    let begun = Instant::now();
    if let Err(failure) = rest.get_at::<Value>("/healthz", &[]) {
        let what = format!("pid {pid} runs and does not answer: {}", failure.message);
        report.fail(GROUP, what, format!("look at its log; kill -9 {pid}; reattach serve{flags}"));
        return;
    }
    let ms = begun.elapsed().as_millis();
    let version: Value = match rest.get_at("/version", &[]) {
        Ok(version) => version,
        Err(failure) => {
            let what = format!("pid {pid} answers, and not to us: {}", failure.message);
            report.fail(GROUP, what, failure.next);
            return;
        }
    };
    let theirs = version["version"].as_str().unwrap_or("?");
    let what = format!("pid {pid}, version {theirs}, answers in {ms} ms");
    report.ok(GROUP, what).facts(json!({
        "pid": pid,
        "version": theirs,
        "answerMs": u64::try_from(ms).unwrap_or(u64::MAX),
        "url": running.json["url"],
    }));
    if theirs != env!("CARGO_PKG_VERSION") {
        let what =
            format!("the server is version {theirs}, this program {}", env!("CARGO_PKG_VERSION"));
        let fix = format!("kill {pid}; reattach serve{flags} (agents work on meanwhile)");
        report.warn(GROUP, what, fix);
    }
    match rest.get_at::<Value>("/readyz", &[]) {
        Ok(ready) => {
            for warning in ready["warnings"].as_array().into_iter().flatten() {
                let code = warning["code"].as_str().unwrap_or("?");
                report.warn(GROUP, format!("it warns: {code}"), "make room on its disk");
            }
        }
        Err(failure) => {
            let what = format!("it takes no work: {}", failure.message);
            report.fail(GROUP, what, "look at its log, and at `data` above");
        }
    }
}

fn websocket(report: &mut Report, target: &Target) {
    match hello(target) {
        Ok(hello) => {
            let protocol = hello["protocol"].as_u64().unwrap_or(0);
            report.ok(GROUP, format!("WebSocket opens, protocol {protocol}"));
        }
        Err((what, next)) => {
            report.fail(GROUP, format!("the WebSocket does not open: {what}"), next);
        }
    }
}

/// Opens a WebSocket and waits for the greeting.
fn hello(target: &Target) -> Result<Value, (String, String)> {
    let in_words = |lost: Lost| match lost {
        Lost::Again(why) => (why, "look at the server's log".to_owned()),
        Lost::Fatal(failure) => (failure.message, failure.next),
    };
    let mut link = Link::connect(target).map_err(in_words)?;
    link.send(&json!({"type": "hello", "protocol": 1, "client": "reattach-doctor"}))
        .map_err(in_words)?;
    let deadline = Instant::now() + limits::CLIENT_CONNECT;
    loop {
        while let Some(frame) = link.read().map_err(in_words)? {
            let frame: Value = serde_json::from_str(&frame).unwrap_or_default();
            if frame["kind"] == "hello" {
                link.close();
                return Ok(frame);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(("no greeting comes".into(), "look at the server's log".into()));
        }
        let mut fds = [rustix::event::PollFd::new(&link, rustix::event::PollFlags::IN)];
        // A failed poll is another look.
        rustix::event::poll(&mut fds, Some(&timespec(left))).ok();
    }
}

/// Who can reach it.
fn network(report: &mut Report, patient: &Patient) {
    const GROUP: &str = "network";
    let Some(config) = &patient.config else { return };
    let server = &config.server;
    let listens = patient.server.as_ref().and_then(|running| running.json["url"].as_str());
    let bound = listens.map_or_else(|| server.bind.to_string(), str::to_owned);
    let mut hosts: Vec<&str> = server.allowed_hosts.iter().map(String::as_str).collect();
    let public = server.public_url.as_str();
    if !public.is_empty() {
        hosts.push(public);
    }
    let mut what = format!("{bound}; Host: loopback");
    for host in &hosts {
        what.push_str(", ");
        what.push_str(host);
    }
    let loopback = server.bind.ip().to_canonical().is_loopback();
    let facts = json!({
        "bind": server.bind.to_string(),
        "listens": listens,
        "loopback": loopback,
        "behindProxy": server.behind_proxy,
        "publicUrl": public,
    });
    if loopback && public.is_empty() {
        report.ok(GROUP, format!("{what}; reachable from this machine only"));
    } else if loopback || server.behind_proxy {
        report.ok(GROUP, format!("{what}; to try the way through the proxy: --probe {public}"));
    } else {
        let what = format!("{what}; other machines reach it by plain HTTP");
        report.warn(
            GROUP,
            what,
            "put a TLS proxy in front (docs/operations.md), or bind to 127.0.0.1",
        );
    }
    report.facts(facts);
    if public.starts_with("http://") && !loopback {
        let what = "public_url is http: browsers send the credential in plain text";
        report.warn(GROUP, what, "serve it by https, and say so in server.public_url");
    }
}

/// What opens it: how many, never which.
fn auth(report: &mut Report, patient: &Patient, rest: Option<&Rest>) {
    const GROUP: &str = "auth";
    let token = patient.data_dir.join(super::TOKEN);
    let mut parts = Vec::new();
    let mut facts = json!({"tokenFile": token.exists()});
    parts.push(
        if token.exists() { "the data directory's token" } else { "no token's file" }.to_owned(),
    );
    if let Some(rest) = rest {
        for (path, what) in [("/devices", "device"), ("/tokens", "token")] {
            // A server of an older version has no such list.
            let Ok(list) = rest.get::<Value>(path, &[]) else { continue };
            let Some(items) = list["items"].as_array() else { continue };
            let good = items.iter().filter(|item| item["revokedAt"].is_null()).count();
            parts.push(text::count(good, what));
            facts[&path[1..]] = json!(good);
        }
    }
    report.ok(GROUP, parts.join(", ")).facts(facts);
}

/// How the last notifications went, if the server knows.
fn notifications(report: &mut Report, rest: &Rest) {
    const GROUP: &str = "notify";
    let list: Value = match rest.get("/notifications", &[("limit", "20")]) {
        Ok(list) => list,
        Err(failure) if failure.exit == Exit::NotFound => return,
        Err(failure) => {
            report.warn(GROUP, failure.message, failure.next);
            return;
        }
    };
    let items: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    let failed = items.iter().filter(|item| item["outcome"] == "failed").count();
    match (items.len(), failed) {
        (0, _) => report.ok(GROUP, "none was sent yet"),
        (all, 0) => report.ok(GROUP, format!("none of the last {all} failed")),
        (all, failed) => {
            let what = format!("{failed} of the last {all} failed");
            report.warn(GROUP, what, "reattach notify test")
        }
    };
}
