//! The documents in `docs/` say no less and no more than the types in use.
//!
//! Each list of samples here is the list of a type's variants as well: a variant that is missing
//! does not compile.

use std::collections::BTreeSet;

use reattach::protocol::frame::{Encoder, Head, encode_head};
use reattach::protocol::gateway::{
    Ack, ChatSubscribed, EventAt, FrameLimits, GapRange, GatewayFrame,
};
use reattach::protocol::message::{
    Begin, ClientFrame, ClientMessage, ErrorCode, Prompt, Target, WhenBusy,
};
use reattach::run::event::{
    AnswerState, Block, By, ByKind, CancelReason, Category, Choice, ChoiceKind, Complete, Custom,
    Decision, ErrorSource, Event, Interaction, PermissionRequest, PermissionResolved, PlanItem,
    Question, Reason, Retry, Role, Status, StatusKind, Stream, TaskStatus, TokenBudget, ToolOutput,
    ToolResult, ToolStatus, ToolUse, Usage,
};
use reattach::run::id::{
    ClientMessageId, LogEpoch, Millis, QueueId, RequestId, RunId, Seq, SessionId,
};
use reattach::run::state::AnswerRequest;
use reattach::server::auth::scope::of_request;
use serde_json::{Map, Value, json};

use crate::support::gateway::whole_http;
use crate::support::schema::{FRAMES, OPENAPI, def, fault, methods_at, server_frame};
use crate::support::{Setup, http};

/// A sample of each variant. The match takes no wildcard.
macro_rules! every {
    ($type:ty: $($pattern:pat => $sample:expr),* $(,)?) => {{
        #[allow(unused)]
        fn all(value: &$type) {
            match value { $($pattern => {})* }
        }
        let samples: Vec<$type> = vec![$($sample),*];
        samples
    }};
}

/// The words of a type without fields.
macro_rules! words {
    ($type:ident: $($variant:ident),* $(,)?) => {{
        let all = every!($type: $($type::$variant => $type::$variant),*);
        all.iter().map(|one| json!(one)).collect::<Vec<Value>>()
    }};
}

/// Definitions with this prefix, without it.
fn names(prefix: &str) -> BTreeSet<String> {
    let all = FRAMES["$defs"].as_object().expect("definitions").keys();
    all.filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect()
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn by() -> By {
    By { kind: ByKind::Cli, name: text("reattach-cli") }
}

fn fields(value: &Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

/// Every kind of event, with all that it can have.
fn events() -> Vec<Event> {
    let tool_use = ToolUse {
        tool_id: text("t"),
        tool_name: text("Bash"),
        tool_input: json!({ "command": "ls" }),
        category: Category::Execute,
        title: some("ls"),
        diff: some("--- a"),
        status: ToolStatus::Running,
        parent_tool_id: some("p"),
    };
    let tool_result = ToolResult {
        tool_id: text("t"),
        tool_result: ToolOutput {
            content: json!("out"),
            is_error: false,
            tool_use_result: Some(json!([1])),
        },
        exit_code: Some(-1),
        duration_ms: Some(5),
        synthetic: Some(true),
        parent_tool_id: some("p"),
    };
    let choice = Choice {
        id: text("allow"),
        kind: ChoiceKind::AllowOnce,
        label: text("Allow"),
        rule: some("Bash(ls:*)"),
    };
    let question = Question {
        id: text("q"),
        text: text("Which?"),
        options: Some(vec![text("a")]),
        multi: false,
    };
    let request = PermissionRequest {
        request_id: text("r"),
        interaction: Interaction::Question,
        tool_id: some("t"),
        tool_name: text("Bash"),
        input: json!({}),
        cwd: some("/"),
        title: some("ls"),
        description: some("why"),
        diff: some("--- a"),
        choices: vec![choice],
        editable: true,
        questions: Some(vec![question]),
        parent_tool_id: some("p"),
        extra: fields(&json!({ "own": 1 })),
    };
    let resolved = PermissionResolved {
        request_id: text("r"),
        decision: Decision::Allow,
        choice_id: some("allow"),
        state: AnswerState::Recorded,
        by: by(),
        edited: true,
        updated_input: Some(json!({ "command": "pwd" })),
        message: some("ok"),
    };
    let complete = Complete {
        exit_code: None,
        success: false,
        aborted: true,
        reason: Reason::Aborted,
        error: some("why"),
        by: Some(by()),
        usage: Some(Usage {
            input_tokens: 1,
            output_tokens: 2,
            cache_read_tokens: Some(3),
            cost_usd: Some(0.5),
        }),
        duration_ms: 7,
        extra: fields(&json!({ "own": 1 })),
    };
    every!(Event:
        Event::Text { .. } => Event::Text {
            content: text("x"), role: Some(Role::User), block_id: some("b"),
            parent_tool_id: some("p"),
        },
        Event::Thinking { .. } => Event::Thinking {
            content: text("x"), block_id: some("b"), parent_tool_id: some("p"),
        },
        Event::StreamDelta { .. } => Event::StreamDelta {
            content: text("x"), block_id: text("b"), block: Block::Text,
            parent_tool_id: some("p"),
        },
        Event::StreamEnd { .. } => Event::StreamEnd {
            block_id: text("b"), block: Block::Thinking, parent_tool_id: some("p"),
        },
        Event::ToolUse(_) => Event::ToolUse(tool_use),
        Event::ToolResult(_) => Event::ToolResult(tool_result),
        Event::PermissionRequest(_) => Event::PermissionRequest(request),
        Event::PermissionResolved(_) => Event::PermissionResolved(resolved),
        Event::PermissionCancelled { .. } => Event::PermissionCancelled {
            request_id: text("r"), reason: CancelReason::Withdrawn,
        },
        Event::TaskNotification { .. } => Event::TaskNotification {
            task_id: text("t"), status: TaskStatus::Started, summary: some("s"),
            parent_tool_id: some("p"),
        },
        Event::Status(_) => Event::Status(status()),
        Event::Error { .. } => Event::Error {
            content: text("x"), code: some("C"), source: ErrorSource::Agent,
            parent_tool_id: some("p"),
        },
        Event::Raw { .. } => Event::Raw { stream: Stream::Stderr, content: text("x") },
        Event::Complete(_) => Event::Complete(complete),
        Event::Custom(_) => Event::Custom(Custom {
            kind: text("passthrough"), fields: fields(&json!({ "content": 5 })),
        }),
    )
}

fn status() -> Status {
    Status {
        status: StatusKind::Usage,
        text: text("x"),
        can_interrupt: Some(true),
        retry: Some(Retry {
            attempt: 1,
            max: Some(2),
            delay_ms: Some(3),
            cause: some("overloaded"),
        }),
        plan: Some(vec![PlanItem { content: text("x"), status: text("pending") }]),
        token_budget: Some(TokenBudget {
            used: 1,
            total: Some(2),
            input_tokens: Some(3),
            output_tokens: Some(4),
            cache_read_tokens: Some(5),
        }),
        cost_usd: Some(0.1),
        mode: some("plan"),
        model: some("m"),
        parent_tool_id: some("p"),
    }
}

fn encoder(bytes_max: usize) -> Encoder {
    Encoder::new(SessionId::from_u128(1), RunId::from_u128(2), "claude", bytes_max)
}

fn head() -> Value {
    let options = Map::new();
    let message = ClientMessageId(text("m"));
    let by = by();
    let head = Head {
        session: SessionId::from_u128(1),
        run: RunId::from_u128(2),
        provider: "claude",
        content: "x",
        options: &options,
        origin: "user",
        client_message_id: Some(&message),
        queue_id: Some(QueueId::from_u128(3)),
        by: Some(&by),
        started_at: Millis(0),
    };
    serde_json::from_str(&encode_head(&head, 4096).text).expect("JSON")
}

#[test]
fn every_event_is_in_the_schema_and_nothing_else_is() {
    let mut found = BTreeSet::from([text("run_started"), text("cut")]);
    assert_eq!(fault(&def("event.run_started"), &head()), None);
    for event in events() {
        let encoded = encoder(1 << 20).encode(Seq(1), Millis(0), &event);
        let mut frame: Value = serde_json::from_str(&encoded.text).expect("JSON");
        let kind = text(frame["kind"].as_str().expect("a kind"));
        assert_eq!(fault(&def(&format!("event.{kind}")), &frame), None);
        assert_eq!(fault(&def("ServerFrame"), &frame), None);
        // Closed where it is ours alone to say.
        frame["surprise"] = json!(1);
        let open = ["permission_request", "complete", "passthrough"].contains(&&*kind);
        assert_eq!(fault(&def(&format!("event.{kind}")), &frame).is_none(), open, "{kind}");
        let cut = encoder(300).encode(Seq(1), Millis(0), &event);
        if cut.whole.is_some() {
            let frame: Value = serde_json::from_str(&cut.text).expect("JSON");
            assert_eq!(fault(&def("event.cut"), &frame), None);
            assert_eq!(fault(&def("ServerFrame"), &frame), None);
        }
        found.insert(kind);
    }
    assert_eq!(names("event."), found);
}

/// Every gateway frame, with all that it can have.
fn gateway_frames() -> Vec<GatewayFrame> {
    let (session_id, run_id) = (SessionId::from_u128(1), RunId::from_u128(2));
    let log_epoch = LogEpoch::from_u128(3);
    let to = EventAt { run_id, seq: Seq(1) };
    let gap = GapRange { from: Some(to), to };
    let client_message_id = Some(ClientMessageId(text("m")));
    let ack = Ack {
        of: "chat.permission-response",
        session_id: some("s"),
        run_id: Some(run_id),
        request_id: Some(RequestId(text("r"))),
        state: Some(AnswerState::Recorded),
    };
    let subscribed = ChatSubscribed {
        rewound: Some(true),
        gap: Some(gap),
        ..ChatSubscribed::refused(text("s"), ErrorCode::RunNotFound, log_epoch)
    };
    let limits = FrameLimits { message_bytes_max: 1, event_bytes_max: 2 };
    let session = json!({
        "id": session_id, "provider": "claude", "providerSessionId": null, "projectId": "1",
        "projectPath": "/", "title": null, "archived": false, "running": true,
        "lastRunId": run_id, "lastRunOrigin": "user", "waiting": false, "queued": 0,
        "queueHeld": false, "createdAt": Millis(0).to_string(), "updatedAt": Millis(0).to_string(),
    });
    every!(GatewayFrame:
        GatewayFrame::Hello { .. } => GatewayFrame::Hello {
            protocol: 1, server: text("reattach/1"), heartbeat_ms: 30_000, limits, log_epoch,
        },
        GatewayFrame::ChatAccepted { .. } => GatewayFrame::ChatAccepted {
            session_id, run_id, client_message_id: client_message_id.clone(), duplicate: false,
        },
        GatewayFrame::ChatQueued { .. } => GatewayFrame::ChatQueued {
            session_id, queue_id: QueueId::from_u128(4), position: 1,
            client_message_id: client_message_id.clone(), duplicate: true,
        },
        GatewayFrame::Ack(_) => GatewayFrame::Ack(ack),
        GatewayFrame::ChatSubscribed(_) => GatewayFrame::ChatSubscribed(Box::new(subscribed)),
        GatewayFrame::CaughtUp { .. } => GatewayFrame::CaughtUp {
            session_id, run_id: None, seq: Seq(0),
        },
        GatewayFrame::Gap { .. } => GatewayFrame::Gap { session_id, gap },
        GatewayFrame::SessionUpserted { .. } => GatewayFrame::SessionUpserted {
            session_id, provider_session_id: some("n"), provider: text("claude"), session,
            project: None,
        },
        GatewayFrame::SessionDeleted { .. } => GatewayFrame::SessionDeleted { session_id },
        GatewayFrame::SessionsChanged {} => GatewayFrame::SessionsChanged {},
        GatewayFrame::StoreState { .. } => GatewayFrame::StoreState {
            ok: false, code: some("FULL"),
        },
        GatewayFrame::ServerDraining { .. } => GatewayFrame::ServerDraining { mode: text("keep") },
        GatewayFrame::ProtocolError { .. } => GatewayFrame::ProtocolError {
            code: ErrorCode::Busy, error: text("x"), session_id: some("s"), reference: some("r"),
        },
        GatewayFrame::Pong { .. } => GatewayFrame::Pong { server_time: Millis(0).to_string() },
    )
}

#[test]
fn every_gateway_frame_is_in_the_schema_and_nothing_else_is() {
    let mut found = BTreeSet::new();
    for frame in gateway_frames() {
        let encoded = frame.encode(None, Millis(0));
        let mut frame: Value = serde_json::from_str(&encoded).expect("JSON");
        let kind = text(frame["kind"].as_str().expect("a kind"));
        assert_eq!(fault(&def(&format!("gateway.{kind}")), &frame), None);
        assert_eq!(fault(&def("ServerFrame"), &frame), None);
        // What an agent says of such a kind never passes through.
        let mut pretence = head();
        pretence["kind"] = json!(kind);
        pretence["seq"] = json!(1);
        assert!(fault(&def("event.passthrough"), &pretence).is_some(), "{kind}");
        frame["surprise"] = json!(1);
        assert!(fault(&def(&format!("gateway.{kind}")), &frame).is_some(), "{kind} is open");
        found.insert(kind);
    }
    assert_eq!(names("gateway."), found);
}

#[test]
fn every_client_frame_is_in_the_schema_and_nothing_else_is() {
    let run = RunId::from_u128(2);
    let prompt = Prompt {
        content: text("x"),
        options: fields(&json!({ "model": "m" })),
        client_message_id: Some(ClientMessageId(text("m"))),
        when_busy: WhenBusy::Queue,
    };
    let begins = every!(Begin:
        Begin::After { .. } => Begin::After { run, last_seq: Some(Seq(3)) },
        Begin::Start => Begin::Start,
        Begin::Tail => Begin::Tail,
        Begin::Legacy { .. } => Begin::Legacy { last_seq: Seq(3) },
    );
    let targets = begins.into_iter().map(|begin| Ok(Target { session: text("s"), begin }));
    let answer = AnswerRequest {
        allow: true,
        choice_id: some("allow"),
        updated_input: Some(json!({})),
        message: some("ok"),
        remember: Some(json!("Bash(ls:*)")),
    };
    let messages = every!(ClientMessage:
        ClientMessage::Hello { .. } => ClientMessage::Hello { protocol: 1, client: some("c") },
        ClientMessage::Send { .. } => ClientMessage::Send { session: text("s"), prompt },
        ClientMessage::Abort { .. } => ClientMessage::Abort { session: text("s"), run: Some(run) },
        ClientMessage::Subscribe { .. } => ClientMessage::Subscribe {
            targets: targets.collect(), epoch: Some(LogEpoch::from_u128(3)),
        },
        ClientMessage::Unsubscribe { .. } => ClientMessage::Unsubscribe {
            sessions: vec![Ok(text("s"))],
        },
        ClientMessage::Answer { .. } => ClientMessage::Answer {
            request: RequestId(text("r")), answer,
        },
        ClientMessage::Presence { .. } => ClientMessage::Presence { visible: true },
        ClientMessage::Ping => ClientMessage::Ping,
    );
    let mut found = BTreeSet::new();
    for message in messages {
        let frame = ClientFrame { reference: some("r"), message: Ok(message) }.encode();
        let kind = text(frame["type"].as_str().expect("a type"));
        assert_eq!(fault(&def(&format!("client.{kind}")), &frame), None);
        assert_eq!(fault(&def("ClientFrame"), &frame), None);
        found.insert(kind);
    }
    assert_eq!(names("client."), found);
}

#[test]
fn closed_lists_have_the_words_of_their_types() {
    let frames = [
        ("event.text/properties/role", words!(Role: Assistant, User)),
        ("event.stream_delta/properties/block", words!(Block: Text, Thinking)),
        (
            "event.tool_use/properties/category",
            words!(Category: Execute, Read, Edit, Search, Fetch, Think, Other),
        ),
        ("event.tool_use/properties/status", words!(ToolStatus: Pending, Running)),
        (
            "event.permission_request/properties/interaction",
            words!(Interaction: Tool, Question, Plan),
        ),
        (
            "Choice/properties/kind",
            words!(ChoiceKind: AllowOnce, AllowAlways, RejectOnce, RejectAlways),
        ),
        ("event.permission_resolved/properties/decision", words!(Decision: Allow, Deny)),
        (
            "event.permission_resolved/properties/state",
            words!(AnswerState: Recorded, Delivered, Undeliverable),
        ),
        ("gateway.ack/properties/state", words!(AnswerState: Recorded, Delivered, Undeliverable)),
        ("By/properties/kind", words!(ByKind: Web, Cli, Api, Rule)),
        (
            "event.permission_cancelled/properties/reason",
            words!(CancelReason: Timeout, Withdrawn, RunEnded),
        ),
        (
            "event.task_notification/properties/status",
            words!(TaskStatus: Started, Running, Completed, Failed, Stopped),
        ),
        (
            "event.status/properties/status",
            words!(StatusKind: Starting, Working, Retrying, Waiting, Quiet, Stopping, Mode, Model,
                Plan, Usage, Info),
        ),
        ("event.error/properties/source", words!(ErrorSource: Agent, Provider, Stderr, Gateway)),
        ("event.raw/properties/stream", words!(Stream: Stdout, Stderr)),
        (
            "Reason",
            words!(Reason: Finished, Failed, Aborted, AgentExited, AgentLost, SpawnFailed, Timeout,
                Shutdown, StoreRejected, InternalError),
        ),
        ("ErrorCode", error_codes()),
    ];
    for (place, words) in frames {
        let listed = FRAMES.pointer(&format!("/$defs/{place}/enum")).and_then(Value::as_array);
        let mut listed = listed.unwrap_or_else(|| panic!("no list at {place}")).clone();
        let mut words = words;
        listed.sort_by_key(Value::to_string);
        words.sort_by_key(Value::to_string);
        assert_eq!(listed, words, "{place}");
    }
}

fn error_codes() -> Vec<Value> {
    words!(ErrorCode: SessionIdRequired, SessionNotFound, UnsupportedProvider, RunInProgress,
        NoActiveRun, UnknownMessageType, InvalidMessage, InvalidField, RunNotFound,
        PermissionNotFound, QueuedPromptNotFound, PermissionAlreadyResolved, Busy,
        StoreUnavailable, ShuttingDown, Forbidden, InternalError)
}

/// Of an answer's `code`s, the closed list's: those that a WebSocket alone has are not REST's.
#[test]
fn every_error_code_of_rest_is_documented_with_a_status() {
    let responses = OPENAPI["components"]["responses"].to_string();
    for code in error_codes() {
        let of_frames = ["SESSION_ID_REQUIRED", "UNKNOWN_MESSAGE_TYPE"];
        let of_frames = of_frames.iter().any(|one| code == *one);
        assert_eq!(responses.contains(&code.to_string()), !of_frames, "{code}");
    }
}

#[test]
fn both_documents_are_what_they_say_they_are() {
    jsonschema::meta::validate(&FRAMES).expect("a schema");
    for (name, schema) in FRAMES["$defs"].as_object().expect("definitions") {
        jsonschema::meta::validate(schema).expect("a schema");
        assert_eq!(fault(&def(name), &json!(5)).is_some(), *name != "nothing", "{name}");
    }
    assert_eq!(OPENAPI["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (path, item) in OPENAPI["paths"].as_object().expect("paths") {
        let names: BTreeSet<&str> =
            path.split('/').filter_map(|one| one.strip_prefix('{')?.strip_suffix('}')).collect();
        for (method, operation) in item.as_object().expect("methods") {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id), "{id} is not the only one");
            let mut named = BTreeSet::new();
            for one in operation["parameters"].as_array().into_iter().flatten() {
                let reference = one["$ref"].as_str().map(|at| at.trim_start_matches('#'));
                let one = reference.map_or(Some(one), |at| OPENAPI.pointer(at)).expect("a $ref");
                if one["in"] == "path" {
                    named.insert(one["name"].as_str().expect("a name"));
                }
            }
            assert_eq!(named, names, "{method} {path}");
        }
    }
    references(&OPENAPI);
}

/// Every reference leads somewhere.
fn references(value: &Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(at)) = fields.get("$ref") {
                let (document, pointer) = at.split_once('#').expect("a fragment");
                let document = if document.is_empty() { &*OPENAPI } else { &*FRAMES };
                assert!(document.pointer(pointer).is_some(), "{at} leads nowhere");
            }
            fields.values().for_each(references);
        }
        Value::Array(items) => items.iter().for_each(references),
        _ => {}
    }
}

#[test]
fn the_documents_are_served_to_whoever_may_look() {
    let gateway = Setup::new().start();
    let documents = [("openapi.json", &*OPENAPI), ("frames.schema.json", &*FRAMES)];
    for (name, document) in documents {
        let path = format!("/api/v1/{name}");
        assert_eq!(gateway.get(&path), (200, document.clone()));
        assert_eq!(http(gateway.port(), "GET", &path, None, None).0, 401);
        assert_eq!(gateway.post(&path, &json!({})).0, 405);
    }
}

#[test]
fn what_no_schema_has_is_a_fault() {
    let mut frame = head();
    assert_eq!(server_frame(&frame), None);
    frame["by"] = json!({ "kind": "nobody", "name": "x" });
    assert!(server_frame(&frame).is_some());
    assert!(server_frame(&json!({ "kind": "news" })).is_some());
    let custom = json!({ "kind": "news", "id": 1, "provider": "not-a-jsonl-agent" });
    assert!(server_frame(&custom).is_some());
}

/// Where REST's routes stand. Its `match` is the table, so it is read as text: an arm that is not
/// documented is found without being called.
const ROUTES: &str = include_str!("../../src/server/api/mod.rs");

/// What is answered before that table is asked.
const BESIDE: [(&str, &str); 6] = [
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/version"),
    ("get", "/metrics"),
    ("get", "/ws"),
    ("get", "/api/v1/sessions/{}/uploads/{}"),
];

/// The methods and paths of the arms such as `("GET", ["sessions", id, "runs"]) =>`.
fn routes() -> BTreeSet<(String, String)> {
    let arms = ROUTES.lines().filter_map(|line| {
        let (method, rest) = line.trim().strip_prefix("(\"")?.split_once("\", [")?;
        let (segments, _) = rest.split_once("]) =>")?;
        let segments = segments.split(", ").map(|one| match one.strip_prefix('"') {
            Some(literal) => literal.trim_end_matches('"'),
            None => "{}",
        });
        let path = segments.collect::<Vec<_>>().join("/");
        Some((method.to_lowercase(), format!("/api/v1/{path}")))
    });
    let beside = BESIDE.iter().map(|(method, path)| (text(method), text(path)));
    arms.chain(beside).collect()
}

#[test]
fn every_route_is_documented_and_nothing_else_is() {
    let mut documented = BTreeSet::new();
    for (path, item) in OPENAPI["paths"].as_object().expect("paths") {
        let unnamed = path.split('/').map(|one| if one.starts_with('{') { "{}" } else { one });
        let path = unnamed.collect::<Vec<_>>().join("/");
        let methods = item.as_object().expect("methods").keys();
        documented.extend(methods.map(|method| (method.clone(), path.clone())));
    }
    assert!(routes().len() > 25, "the table is not found: {:?}", routes());
    assert_eq!(documented, routes());
}

/// Also says that no path was forgotten where the server tells 405 from 404.
#[test]
fn a_documented_path_takes_the_documented_methods_alone() {
    let gateway = Setup::new().start();
    for path in OPENAPI["paths"].as_object().expect("paths").keys() {
        // Whatever asks for it, it is to be a WebSocket.
        if path == "/ws" {
            continue;
        }
        let unnamed = path.split('/').map(|one| if one.starts_with('{') { "0" } else { one });
        let concrete = unnamed.collect::<Vec<_>>().join("/");
        // Those of a neighbour count: `queue/resume` is also what `queue/{queueId}` may mean.
        let mut methods: BTreeSet<String> =
            methods_at(&concrete).map(|one| one.to_uppercase()).collect();
        if methods.contains("GET") {
            methods.insert(text("HEAD"));
        }
        let allow: Vec<&str> = methods.iter().map(String::as_str).collect();
        let allow = format!("\r\nAllow: {}\r\n", allow.join(", "));
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"] {
            let body = json!({});
            let body = (method != "GET").then_some(&body);
            let (port, token) = (gateway.port(), Some(gateway.token()));
            let (status, head, answer) = whole_http(port, method, &concrete, body, token);
            let known = methods.contains(method);
            assert_eq!(status == 405, !known, "{method} {path}: {status} {answer}");
            assert!(known || head.contains(&allow), "{method} {path}: no {allow} in {head}");
        }
    }
}

#[test]
fn the_scopes_that_are_documented_are_those_that_are_asked_for() {
    for (path, item) in OPENAPI["paths"].as_object().expect("paths") {
        let Some(below) = path.strip_prefix("/api/v1/") else { continue };
        let segments: Vec<&str> = below.split('/').collect();
        for (method, operation) in item.as_object().expect("methods") {
            let needed = of_request(&method.to_uppercase(), &segments);
            let told = operation.get("x-scope").cloned();
            assert_eq!(told, needed.map(|scope| json!(scope)), "{method} {path}");
        }
    }
}
