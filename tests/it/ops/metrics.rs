//! `/metrics`: exact numbers after a mix of runs, the format, the bounds of its labels, and that
//! the documentation lists what there is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::openmetrics::Scrape;
use super::{ask, asked, bearer, delivered};
use crate::support::gateway::whole_http;
use crate::support::{Client, Gateway, Setup, begin, eventually, http};

#[track_caller]
fn scrape(gateway: &Gateway) -> Scrape {
    let (status, head, text) = ask(gateway, "GET", "/metrics", &[&bearer(gateway)]);
    assert_eq!(status, 200, "{text}");
    let content_type = "\r\nContent-Type: application/openmetrics-text; version=1.0.0; ";
    assert!(head.contains(content_type), "{head}");
    Scrape::read(&text)
}

/// Waits until a value is told, and gives the scrape that told it.
#[track_caller]
fn scrape_when(gateway: &Gateway, name: &str, labels: &[(&str, &str)], value: f64) -> Scrape {
    let mut last = None;
    eventually(&format!("{name} {labels:?} is {value}"), || {
        let now = scrape(gateway);
        last = now.value(name, labels);
        (last == Some(value)).then_some(now)
    })
}

/// Three runs, each with another end; a request that was allowed; gives the session.
fn mix(gateway: &Gateway, client: &mut Client) -> String {
    let session = gateway.session("fake");
    let (first, agent) = begin(gateway, client, &session, "one");
    agent.say("a");
    agent.say("b");
    let request = asked(client, &session, &agent, &json!({"command": "ls"}));
    let now = scrape_when(gateway, "reattach_permissions_pending", &[], 1.0);
    assert_eq!(now.value("reattach_sessions", &[("state", "waiting")]), Some(1.0));
    assert_eq!(now.value("reattach_agent_processes", &[("agent", "fake")]), Some(1.0));
    let answer = json!({"type": "chat.permission-response", "requestId": request, "allow": true});
    assert_eq!(client.request(&answer).kind(), "ack");
    delivered(client, &session);
    agent.finish();
    client.expect_complete(&first);
    scrape_when(gateway, "reattach_agent_processes", &[("agent", "fake")], 0.0);

    let (second, agent) = begin(gateway, client, &session, "two");
    agent.exit(3);
    client.expect_complete(&second);
    scrape_when(gateway, "reattach_agent_processes", &[("agent", "fake")], 0.0);

    let (third, agent) = begin(gateway, client, &session, "three");
    agent.policy(&[], Some(0), Some(0));
    asked(client, &session, &agent, &json!({"command": "rm"}));
    let abort = client.request(&json!({"type": "chat.abort", "sessionId": session}));
    assert_eq!(abort.kind(), "ack", "{}", abort.text);
    client.expect_complete(&third);
    scrape_when(gateway, "reattach_agent_processes", &[("agent", "fake")], 0.0);
    session
}

#[test]
fn a_scrape_after_a_mix_of_runs_has_exact_numbers() {
    let gateway = Setup::with_fake().scripted("unused").start();
    let mut client = gateway.connect();
    let session = mix(&gateway, &mut client);
    let log = gateway.log_of(&session);
    let heads = log.iter().filter(|frame| frame["kind"] == "run_started").count();
    // The first page leaves the first run's head out.
    assert_eq!(heads, 2);
    #[allow(clippy::cast_precision_loss, reason = "a test's numbers are small")]
    let events = (log.len() - heads) as f64;

    // One comes new, and again with all it has seen but one event.
    let mut second = gateway.connect();
    second.subscribe(&json!({"sessionId": session, "from": "start"}));
    second.expect("caught up", |f| f.is("caught_up", &session));
    let last = log.last().expect("events");
    let before = last["seq"].as_u64().expect("a seq") - 1;
    second.subscribe(&json!({"sessionId": session, "runId": last["runId"], "lastSeq": before}));
    second.expect("caught up", |f| f.is("caught_up", &session));
    second.close();
    // Who may not, in three ways.
    for headers in [vec![], vec!["Authorization: Bearer x"]] {
        assert_eq!(ask(&gateway, "GET", "/version", &headers).0, 401);
    }
    let login = json!({"code": "wrong"});
    assert_eq!(gateway.request("POST", "/api/v1/login", Some(&login), None).0, 401);

    let now = scrape_when(&gateway, "reattach_client_drops_total", &[("reason", "peer")], 1.0);
    let fake = ("agent", "fake");
    let expected: &[(&str, &[(&str, &str)], f64)] = &[
        ("reattach_sessions", &[("state", "idle")], 1.0),
        ("reattach_sessions", &[("state", "running")], 0.0),
        ("reattach_sessions", &[("state", "waiting")], 0.0),
        ("reattach_sessions", &[("state", "archived")], 0.0),
        ("reattach_runs_started_total", &[fake], 3.0),
        ("reattach_runs_started_total", &[("agent", "unused")], 0.0),
        ("reattach_runs_finished_total", &[fake, ("outcome", "finished")], 1.0),
        ("reattach_runs_finished_total", &[fake, ("outcome", "agent_exited")], 1.0),
        ("reattach_runs_finished_total", &[fake, ("outcome", "aborted")], 1.0),
        ("reattach_runs_finished_total", &[fake, ("outcome", "failed")], 0.0),
        ("reattach_run_duration_seconds_count", &[fake, ("outcome", "finished")], 1.0),
        ("reattach_agent_exits_total", &[fake, ("reason", "exited")], 2.0),
        ("reattach_agent_exits_total", &[fake, ("reason", "failed")], 1.0),
        ("reattach_events_appended_total", &[fake], events),
        ("reattach_clients", &[("transport", "ws")], 1.0),
        ("reattach_clients", &[("transport", "sse")], 0.0),
        ("reattach_clients", &[("transport", "cli")], 0.0),
        ("reattach_client_attaches_total", &[("transport", "ws"), ("kind", "new")], 1.0),
        ("reattach_client_attaches_total", &[("transport", "ws"), ("kind", "resume")], 1.0),
        ("reattach_replayed_events_total", &[("transport", "ws")], events + 1.0),
        ("reattach_replay_seconds_count", &[("transport", "ws")], 2.0),
        ("reattach_permissions_pending", &[], 0.0),
        (
            "reattach_permission_decisions_total",
            &[("decision", "allow_once"), ("source", "api")],
            1.0,
        ),
        (
            "reattach_permission_decisions_total",
            &[("decision", "run_ended"), ("source", "agent")],
            1.0,
        ),
        ("reattach_permission_wait_seconds_count", &[("decision", "allow_once")], 1.0),
        ("reattach_auth_failures_total", &[("kind", "missing")], 1.0),
        ("reattach_auth_failures_total", &[("kind", "token")], 1.0),
        ("reattach_auth_failures_total", &[("kind", "login")], 1.0),
        (
            "reattach_http_requests_total",
            &[("method", "POST"), ("route", "/api/v1/sessions"), ("code", "201")],
            1.0,
        ),
        (
            "reattach_http_requests_total",
            &[("method", "GET"), ("route", "/ws"), ("code", "101")],
            2.0,
        ),
    ];
    for (name, labels, value) in expected {
        assert_eq!(now.value(name, labels), Some(*value), "{name} {labels:?}");
    }
    // What `client` saw live, from the first run's start: some turn was timed.
    assert!(now.sum("reattach_event_delivery_seconds_count", &[("transport", "ws")]) >= 1.0);
    assert!(now.sum("reattach_client_lag_events_count", &[]) >= 1.0);
    assert!(now.sum("reattach_log_sync_seconds_count", &[]) >= 3.0);
    assert_eq!(
        now.sum("reattach_log_append_seconds_count", &[]),
        now.sum("reattach_log_sync_seconds_count", &[])
    );
    let bytes = now.value("reattach_event_bytes_total", &[fake]).expect("told");
    let kept = now.value("reattach_log_bytes", &[]).expect("told");
    assert!(bytes > 0.0 && kept >= bytes, "{kept} {bytes}");
    assert!(now.value("process_resident_memory_bytes", &[]).expect("told") > 1e6);
    assert!(now.value("process_start_time_seconds", &[]).expect("told") > 1e9);
    assert_no_person_in_labels(&gateway, &now, &session);
}

/// Whatever clients and agents do, labels are of closed lists.
fn assert_no_person_in_labels(gateway: &Gateway, now: &Scrape, session: &str) {
    let long = format!("/api/v1/sessions/{session}/no/such/thing");
    for path in [long.as_str(), "/a%20b", "/x", "/api/v1/sessions/y"] {
        assert_eq!(gateway.get(path).0, 404, "{path}");
    }
    assert_eq!(ask(gateway, "BREW", "/pot", &[&bearer(gateway)]).0, 404);
    let later = scrape(gateway);
    let known: BTreeSet<String> = now.values_of("route").into_iter().collect();
    let new: Vec<String> = later.values_of("route").difference(&known).cloned().collect();
    assert_eq!(new, ["/api/v1/sessions/{id}", "other"], "only templates are added");
    assert!(later.values_of("method").contains("other"));
    let text = format!("{:?}", later.families);
    let project = gateway.setup.project();
    let project = project.to_str().expect("test paths are UTF-8");
    for secret in [session, project, gateway.token(), "BREW", "such", "%20"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[test]
fn metrics_need_a_credential() {
    let gateway = Setup::new().start();
    assert_eq!(ask(&gateway, "GET", "/metrics", &[]).0, 401);
    assert_eq!(ask(&gateway, "HEAD", "/metrics", &[&bearer(&gateway)]).0, 200);
}

/// `docs/operations.md` has a table of all that there is, and of nothing else: name, type, labels.
#[test]
fn the_documented_table_is_what_is_told() {
    let gateway = Setup::with_fake().start();
    let mut client = gateway.connect();
    mix(&gateway, &mut client);
    let now = scrape(&gateway);
    let mut told: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for (name, family) in &now.families {
        let labels = family.samples.iter().flat_map(|(_, labels, _)| labels);
        let labels = labels.map(|(name, _)| name.clone()).filter(|name| name != "le").collect();
        let name = match family.kind.as_str() {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.clone(),
        };
        told.insert(name, (family.kind.clone(), labels));
    }
    let mut documented = documented();
    // Told once something was sent somewhere.
    let unsent = documented.remove("reattach_notifications_total");
    let labels = BTreeSet::from(["outcome".to_owned(), "sink".to_owned()]);
    assert_eq!(unsent, Some(("counter".to_owned(), labels)));
    assert_eq!(told, documented);
}

fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, ..] = cells[..] else { return None };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        let ours = name.starts_with("reattach_") || name.starts_with("process_");
        ours.then(|| (name.to_owned(), (kind.to_owned(), names(labels))))
    });
    rows.collect()
}

/// The labels in a cell: each stands before its values, if those are listed in parentheses.
fn names(cell: &str) -> BTreeSet<String> {
    let mut depth = 0;
    let mut names = BTreeSet::new();
    for part in cell.split_inclusive(['(', ')', ',']) {
        if depth == 0 {
            names.extend(part.split('`').nth(1).map(str::to_owned));
        }
        depth += i32::from(part.ends_with('(')) - i32::from(part.ends_with(')'));
    }
    names
}

#[test]
fn a_listener_of_its_own_tells_metrics_and_nothing_else() {
    let gateway = Setup::with_fake().set("server", "metrics_bind", "\"127.0.0.1:0\"").start();
    let address = gateway.announced()["metrics"].as_str().expect("it is announced").to_owned();
    let port =
        address.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.strip_suffix("/metrics"));
    let port: u16 = port.and_then(|port| port.parse().ok()).expect("a port");
    assert_ne!(port, gateway.port());
    let (status, text) = http(port, "GET", "/metrics", None, None);
    assert_eq!(status, 200, "{text}");
    let now = Scrape::read(&text);
    assert_eq!(now.value("reattach_sessions", &[("state", "idle")]), Some(0.0));
    assert_eq!(http(port, "GET", "/healthz", None, None), (200, "{\"ok\":true}".into()));
    let (status, ready) = http(port, "GET", "/readyz", None, Some(gateway.token()));
    assert_eq!((status, ready.as_str()), (200, "{\"ok\":true}"), "no details here");
    let token = Some(gateway.token());
    for (method, path, expected) in [
        ("GET", "/api/v1/sessions", 404),
        ("GET", "/ws", 404),
        ("GET", "/", 404),
        ("GET", "/version", 404),
        ("POST", "/metrics", 405),
    ] {
        // It is not the API that is documented.
        assert_eq!(whole_http(port, method, path, None, token).0, expected, "{method} {path}");
    }
    let body = json!({});
    assert_eq!(http(port, "POST", "/metrics", Some(&body), None).0, 413, "no bodies");
    let mut gateway = gateway;
    assert!(gateway.terminate().success(), "it ends with the server");
}

#[test]
fn metrics_are_not_told_to_other_machines_by_accident() {
    let setup = Setup::with_fake().set("server", "metrics_bind", "\"0.0.0.0:0\"");
    let (code, stderr) = setup.refused();
    assert_eq!(code, Some(78), "{stderr}");
    assert!(
        stderr.contains("server.metrics_bind") && stderr.contains("--insecure-http"),
        "{stderr}"
    );
    let mut setup = setup;
    setup.arguments.push("--insecure-http".into());
    let gateway = setup.start();
    assert!(gateway.announced()["metrics"].as_str().is_some_and(|at| at.contains("0.0.0.0:")));
}
