//! The log in pages, forwards and backwards, against the WebSocket's replay; projects, providers,
//! folders.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::support::{Gateway, Setup, eventually, http};

/// A session with runs of these many events, `complete` not counted.
fn runs(gateway: &Gateway, counts: &[u64]) -> (String, Vec<String>) {
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let mut ids = Vec::new();
    for (at, count) in counts.iter().enumerate() {
        let run = client.prompt(&session, &format!("prompt {at}"));
        let (agent, _) = gateway.hub().prompted("fake", &format!("prompt {at}"));
        for n in 0..*count {
            agent.say(&format!("{at} {n}"));
        }
        agent.finish();
        client.expect_complete(&run);
        ids.push(run);
    }
    (session, ids)
}

/// A page: its items as they came, and the rest.
#[track_caller]
fn page(gateway: &Gateway, session: &str, query: &str) -> (Vec<String>, Value) {
    #[derive(serde::Deserialize)]
    struct Items {
        items: Vec<Box<serde_json::value::RawValue>>,
    }
    let path = format!("/api/v1/sessions/{session}/events?{query}");
    let (status, text) = http(gateway.port(), "GET", &path, None, Some(gateway.token()));
    assert_eq!(status, 200, "{text}");
    let items: Items = serde_json::from_str(&text).expect("a page");
    let items = items.items.iter().map(|item| item.get().to_owned()).collect();
    (items, serde_json::from_str(&text).expect("JSON"))
}

fn refused(gateway: &Gateway, session: &str, query: &str) -> (u16, String) {
    let (status, body) = gateway.get(&format!("/api/v1/sessions/{session}/events?{query}"));
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn both_ways_through_the_log_give_what_the_websocket_replays() {
    let gateway = Setup::with_fake().start();
    let (session, _) = runs(&gateway, &[3, 0, 5, 1]);
    let replay: Vec<String> =
        gateway.replay(&session).iter().map(|frame| frame.text.clone()).collect();
    assert_eq!(replay.len(), 4 + 9 + 4);
    for limit in 1..16 {
        let mut forwards = Vec::new();
        let mut cursor = "from=start".to_owned();
        loop {
            let (items, rest) = page(&gateway, &session, &format!("limit={limit}&{cursor}"));
            let events = items.iter().filter(|item| !item.contains("\"run_started\"")).count();
            assert!(events <= limit && !items.is_empty(), "{limit}: {items:?}");
            // What leads back from here gives the end of what came before.
            match rest["prevCursor"].as_str() {
                None => assert_eq!(forwards, [""; 0]),
                Some(prev) => {
                    let (back, _) = page(&gateway, &session, &format!("limit=3&before={prev}"));
                    assert_eq!(forwards[forwards.len() - back.len()..], back);
                }
            }
            forwards.extend(items);
            match rest["nextCursor"].as_str() {
                Some(next) => cursor = format!("after={next}"),
                None => break,
            }
        }
        assert_eq!(forwards, replay, "forwards, {limit}");
        let mut backwards: Vec<String> = Vec::new();
        let mut cursor = String::new();
        loop {
            let (items, rest) = page(&gateway, &session, &format!("limit={limit}{cursor}"));
            let events = items.iter().filter(|item| !item.contains("\"run_started\"")).count();
            assert!(events <= limit && !items.is_empty(), "{limit}: {items:?}");
            match rest["nextCursor"].as_str() {
                None => assert!(backwards.is_empty()),
                Some(next) => {
                    let (on, _) = page(&gateway, &session, &format!("limit=1&after={next}"));
                    assert_eq!(backwards[..on.len()], on);
                }
            }
            backwards.splice(0..0, items);
            match rest["prevCursor"].as_str() {
                Some(prev) => cursor = format!("&before={prev}"),
                None => break,
            }
        }
        assert_eq!(backwards, replay, "backwards, {limit}");
    }
}

#[test]
fn a_cursor_that_cannot_be_used_says_why() {
    let gateway = Setup::with_fake().start();
    let (session, ids) = runs(&gateway, &[2]);
    let (other, others) = runs(&gateway, &[0]);
    let run = &ids[0];
    for query in [
        format!("after={run}:1&before={run}:2"),
        format!("after={run}:1&from=start"),
        "from=tail".to_owned(),
        "before=x".to_owned(),
        format!("before={run}"),
        format!("before={run}:-1"),
        "compact=maybe".to_owned(),
        "limit=0".to_owned(),
    ] {
        assert_eq!(refused(&gateway, &session, &query), (400, "INVALID_FIELD".into()), "{query}");
    }
    let unknown = "0193a1b2-0000-7000-8000-000000000001";
    for query in [
        format!("after={}:0", others[0]),
        format!("before={}:1", others[0]),
        format!("before={unknown}:1"),
    ] {
        assert_eq!(refused(&gateway, &session, &query), (404, "RUN_NOT_FOUND".into()), "{query}");
    }
    // The end leads back; a number beyond it hides nothing.
    let (items, rest) = page(&gateway, &session, &format!("after={run}:3"));
    assert_eq!((items.len(), &rest["prevCursor"]), (0, &json!(format!("{run}:4"))));
    let (all, rest) = page(&gateway, &session, &format!("before={run}:4"));
    assert_eq!((all.len(), &rest["rewound"]), (4, &json!(false)));
    let (items, rest) = page(&gateway, &session, &format!("before={run}:99"));
    assert_eq!((&items, &rest["rewound"]), (&all, &json!(true)));
    assert_eq!(page(&gateway, &other, "").0.len(), 2);
    let empty = gateway.session("fake");
    let (items, rest) = page(&gateway, &empty, "");
    assert_eq!((items.len(), &rest["prevCursor"], &rest["gap"]), (0, &json!(null), &json!(null)));
}

#[test]
fn compact_pages_leave_out_deltas_of_finished_blocks_only() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let run = client.prompt(&session, "stream");
    let (agent, _) = gateway.hub().prompted("fake", "stream");
    let delta = |block: &str| json!({"kind": "stream_delta", "content": "x", "blockId": block});
    let mut events: Vec<Value> = (0..7).map(|_| delta("a\"1")).collect();
    events.push(delta("open"));
    events.push(json!({"kind": "stream_end", "blockId": "a\"1"}));
    events.push(json!({"kind": "tool", "blockId": "open", "content": "\"blockId\":\"open\""}));
    events.push(json!({"kind": "text", "content": "xxxxxxx", "blockId": "a\"1"}));
    events.push(delta("open"));
    agent.emit(&events);
    agent.finish();
    client.expect_complete(&run);
    let expected: Vec<String> = page(&gateway, &session, "")
        .0
        .into_iter()
        .filter(|item| !(item.contains("stream_delta") && item.contains("a\\\"1")))
        .collect();
    assert_eq!(expected.len(), 7);
    assert_eq!(page(&gateway, &session, "compact=1").0, expected);
    for (limit, begin, way, cursor) in [
        (1, "from=start", "after", "nextCursor"),
        (2, "from=start", "after", "nextCursor"),
        (1, "", "before", "prevCursor"),
        (3, "", "before", "prevCursor"),
    ] {
        let (mut found, mut query) = (Vec::new(), begin.to_owned());
        loop {
            let (items, rest) =
                page(&gateway, &session, &format!("compact=1&limit={limit}&{query}"));
            let at = if way == "before" { 0 } else { found.len() };
            found.splice(at..at, items);
            match rest[cursor].as_str() {
                Some(next) => query = format!("{way}={next}"),
                None => break,
            }
        }
        assert_eq!(found, expected, "{way} {limit}");
    }
}

#[test]
fn what_retention_took_is_named_walking_back_too() {
    let setup = Setup::with_fake().set("retention", "max_bytes", "65536");
    let gateway = setup.start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let mut ids = Vec::new();
    for at in 0..3 {
        let run = client.prompt(&session, &format!("prompt {at}"));
        let (agent, _) = gateway.hub().prompted("fake", &format!("prompt {at}"));
        agent.flood(10, 4096, "n");
        agent.finish();
        client.expect_complete(&run);
        ids.push(run);
    }
    let gone = eventually("retention takes the first runs", || {
        let (_, rest) = page(&gateway, &session, "from=start");
        rest["gap"].is_object().then(|| rest["gap"].clone())
    });
    assert_eq!(gone["from"], json!({"runId": ids[0], "seq": 0}));
    let (items, rest) = page(&gateway, &session, "");
    assert_eq!((&rest["gap"]["from"], &rest["prevCursor"]), (&gone["from"], &json!(null)));
    assert!(!items.is_empty());
    let (items, rest) = page(&gateway, &session, &format!("before={}:5", ids[0]));
    assert_eq!((items.len(), &rest["gap"]["to"]), (0, &json!({"runId": ids[0], "seq": 4})));
    assert_eq!(rest["nextCursor"], json!(format!("{}:4", ids[0])));
}

/// A project's name and mark are kept across a restart, and whoever shows its sessions is told.
#[test]
fn a_project_is_renamed_and_marked_for_everybody() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let (_, projects) = gateway.get("/api/v1/projects");
    let id = projects["items"][0]["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/v1/projects/{id}");
    let mut client = gateway.connect();
    let edit = |gateway: &Gateway, body: Value| {
        gateway.request("PATCH", &path, Some(&body), Some(gateway.token()))
    };
    let (status, edited) = edit(&gateway, json!({"customName": " Mine ", "starred": true}));
    assert_eq!(
        (status, &edited["customName"], &edited["starred"]),
        (200, &json!("Mine"), &json!(true))
    );
    let told = client.expect("the new name", |f| {
        f.is("session_upserted", &session) && f.json["project"]["displayName"] == "Mine"
    });
    assert_eq!(told.json["project"]["isStarred"], json!(true));
    for (bad, code) in [
        (json!({}), "INVALID_FIELD"),
        (json!({"customName": 5}), "INVALID_FIELD"),
        (json!({"starred": "yes"}), "INVALID_FIELD"),
        (json!({"customName": "x".repeat(501)}), "INVALID_FIELD"),
    ] {
        let (status, refused) = edit(&gateway, bad);
        assert_eq!((status, &refused["error"]["code"]), (400, &json!(code)), "{refused}");
    }
    for unknown in ["/api/v1/projects/99", "/api/v1/projects/x"] {
        let (status, refused) = gateway.request(
            "PATCH",
            unknown,
            Some(&json!({"starred": true})),
            Some(gateway.token()),
        );
        assert_eq!((status, &refused["error"]["code"]), (404, &json!("PROJECT_NOT_FOUND")));
    }
    let gateway = gateway.restart();
    let (_, projects) = gateway.get("/api/v1/projects");
    let one = &projects["items"][0];
    assert_eq!((&one["customName"], &one["starred"]), (&json!("Mine"), &json!(true)), "{projects}");
    let (_, edited) = edit(&gateway, json!({"customName": null}));
    assert_eq!((&edited["customName"], &edited["starred"]), (&json!(null), &json!(true)));
}

#[test]
fn projects_providers_and_folders_are_listed() {
    let setup = Setup::with_fake().provider("lost", "command", &["no-such-program-anywhere"]);
    let gateway = setup.start();
    gateway.session("fake");
    let project = gateway.setup.project();
    let (_, projects) = gateway.get("/api/v1/projects?limit=1");
    let one = &projects["items"][0];
    assert_eq!((&one["path"], &one["customName"]), (&json!(project), &json!(null)), "{projects}");
    assert_eq!((&one["starred"], &projects["nextCursor"]), (&json!(false), &json!(null)));
    let (_, providers) = gateway.get("/api/v1/providers");
    assert_eq!(
        providers["items"],
        json!([
            {"name": "fake", "kind": "jsonl", "found": true},
            {"name": "lost", "kind": "command", "found": false},
        ])
    );
    for name in ["b", "a", ".hidden"] {
        std::fs::create_dir(project.join(name)).expect("made");
    }
    std::fs::write(project.join("file"), "").expect("made");
    symlink(project.join("a"), project.join("in")).expect("made");
    symlink(gateway.setup.root.path(), project.join("out")).expect("made");
    let folders =
        |path: &std::path::Path| gateway.get(&format!("/api/v1/folders?path={}", path.display()));
    let (status, found) = folders(&project);
    assert_eq!((status, &found["items"]), (200, &json!([".hidden", "a", "b", "in"])), "{found}");
    assert_eq!(found["truncated"], json!(false));
    for outside in ["out", "../..", "file", "none"] {
        let (status, refused) = folders(&project.join(outside));
        assert_eq!(
            (status, &refused["error"]["code"]),
            (400, &json!("INVALID_FIELD")),
            "{outside}"
        );
    }
    let (_, roots) = gateway.get("/api/v1/folders");
    assert_eq!(roots["items"], json!([project.parent()]));
    assert_eq!(gateway.post("/api/v1/projects", &json!({})).0, 405);
}
