//! What a client may say. Decoding is total (I11): any bytes give a message or a typed error.
//!
//! Checks run in the order in which a client would fix things: a JSON object, its `ref`, its
//! `type`, the session, then the other fields. Unknown fields are ignored. Must not know
//! connections, nor whether what an id names exists.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::limits;
use crate::protocol::fields::{BadField, Fields, id};
use crate::run::id::{ClientMessageId, LogEpoch, RequestId, RunId, Seq, SessionId};
use crate::run::state::AnswerRequest;

/// The version of the protocol that this program speaks.
pub const VERSION: u64 = 1;

/// Why a request failed: a closed list, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The message needs a `sessionId`.
    SessionIdRequired,
    /// No such session.
    SessionNotFound,
    /// The session's provider is not configured.
    UnsupportedProvider,
    /// The session has a run already.
    RunInProgress,
    /// There is nothing to abort.
    NoActiveRun,
    /// The `type` is none of ours.
    UnknownMessageType,
    /// Not a JSON object.
    InvalidMessage,
    /// A field is missing or cannot be used.
    InvalidField,
    /// No such run, or one of another session.
    RunNotFound,
    /// No such permission request.
    PermissionNotFound,
    /// No such prompt waits.
    QueuedPromptNotFound,
    /// Somebody was faster.
    PermissionAlreadyResolved,
    /// All agents are at work; nothing was recorded, try again.
    Busy,
    /// The disk fails; nothing was accepted.
    StoreUnavailable,
    /// Nothing new starts any more.
    ShuttingDown,
    /// The credential's scope does not allow it.
    Forbidden,
    /// A bug of ours.
    InternalError,
}

/// One frame of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientFrame {
    /// The client's `ref`, which each direct reply echoes (I12).
    pub reference: Option<String>,
    /// What it says.
    pub message: Result<ClientMessage, Malformed>,
}

/// Why a frame, or one target of it, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub error: String,
    /// The session it speaks of, as far as that was read.
    pub session: Option<String>,
}

/// What a client may say. Sessions are as the client named them, trimmed: see `session_id`.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// Who it is.
    Hello {
        /// The version it speaks. We answer with ours.
        protocol: u64,
        /// Its name, for the record of who did what.
        client: Option<String>,
    },
    /// A prompt.
    Send {
        /// To which session.
        session: String,
        /// The prompt.
        prompt: Prompt,
    },
    /// Stop a run.
    Abort {
        /// Of which session.
        session: String,
        /// Which run; the running one if absent.
        run: Option<RunId>,
    },
    /// Follow sessions.
    Subscribe {
        /// Each with where to begin. Malformed ones keep their place, for their error.
        targets: Vec<Result<Target, Malformed>>,
        /// The database that the cursors are from, if the client knows.
        epoch: Option<LogEpoch>,
    },
    /// Follow them no longer.
    Unsubscribe {
        /// Which; malformed ones keep their place, for their error.
        sessions: Vec<Result<String, Malformed>>,
    },
    /// An answer to a permission request.
    Answer {
        /// Which request.
        request: RequestId,
        /// What.
        answer: AnswerRequest,
    },
    /// Whether a person sees the client: only who says so is taken for present.
    Presence {
        /// It is on a screen, in front.
        visible: bool,
    },
    /// Are you there?
    Ping,
}

/// What starts a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What the person says.
    pub content: String,
    /// For the provider; kept as given.
    pub options: Map<String, Value>,
    /// Makes a resend harmless (I19).
    pub client_message_id: Option<ClientMessageId>,
    /// What is to become of it while a run is on.
    pub when_busy: WhenBusy,
}

/// What is to become of a prompt while a run is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenBusy {
    /// It is refused: `RUN_IN_PROGRESS`.
    #[default]
    Refuse,
    /// It waits in the session's queue.
    Queue,
}

/// A session to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which, as named.
    pub session: String,
    /// From where.
    pub begin: Begin,
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// After `last_seq` of a run, through all later runs; with `None` from that run's head.
    After {
        /// Which run.
        run: RunId,
        /// The last seq seen.
        last_seq: Option<Seq>,
    },
    /// From the oldest that is kept.
    Start,
    /// Only what comes.
    Tail,
    /// As older clients do: the running run after this seq; a finished run is only acknowledged.
    Legacy {
        /// The last seq seen of the running run.
        last_seq: Seq,
    },
}

/// Decodes one frame.
#[must_use]
pub fn decode(bytes: &[u8]) -> ClientFrame {
    let fields = serde_json::from_slice::<Value>(bytes).ok().and_then(Fields::of);
    let Some(mut fields) = fields else {
        let error = "A message must be one JSON object, as UTF-8 text.";
        let message = Err(Malformed::new(ErrorCode::InvalidMessage, error));
        return ClientFrame { reference: None, message };
    };
    match reference(&mut fields) {
        Ok(reference) => ClientFrame { reference, message: message(&mut fields) },
        Err(bad) => ClientFrame { reference: None, message: Err(bad.into()) },
    }
}

/// The id of a session as a client named it, if it can be one: each id has one spelling.
#[must_use]
pub fn session_id(named: &str) -> Option<SessionId> {
    named.parse::<SessionId>().ok().filter(|id| id.to_string() == named)
}

/// The id of a run as a client named it. What cannot be a run's id names no run, and so is
/// answered as an unknown run is.
#[must_use]
pub fn run_id(named: &str) -> RunId {
    let parsed = named.parse::<RunId>().ok().filter(|id| id.to_string() == named);
    parsed.unwrap_or(RunId::from_u128(0))
}

impl Malformed {
    /// An error that names no session.
    fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        Self { code, error: error.into(), session: None }
    }

    fn of_session(self, session: &str) -> Self {
        Self { session: Some(session.to_owned()), ..self }
    }
}

impl From<BadField> for Malformed {
    fn from(bad: BadField) -> Self {
        Self::new(ErrorCode::InvalidField, bad.to_string())
    }
}

impl Prompt {
    /// Reads a prompt's fields, of `chat.send` or of a REST body.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn read(fields: &mut Fields) -> Result<Self, BadField> {
        let content = fields.text("content")?;
        let options = fields.object("options")?.unwrap_or_default();
        let client_message_id = match fields.string("clientMessageId")? {
            None => None,
            Some(id) if (1..=limits::CLIENT_MESSAGE_ID_BYTES_MAX).contains(&id.len()) => {
                Some(ClientMessageId(id))
            }
            Some(_) => {
                let must_be = "1 to 256 bytes long";
                return Err(BadField { field: "clientMessageId", must_be });
            }
        };
        let when_busy = match fields.string("whenBusy")?.as_deref() {
            None | Some("refuse") => WhenBusy::Refuse,
            Some("queue") => WhenBusy::Queue,
            Some(_) => {
                return Err(BadField { field: "whenBusy", must_be: "\"refuse\" or \"queue\"" });
            }
        };
        Ok(Self { content, options, client_message_id, when_busy })
    }
}

/// Reads the fields of an answer to a permission request, but for its id.
///
/// # Errors
/// If one of them cannot be used.
pub fn read_answer(fields: &mut Fields) -> Result<AnswerRequest, BadField> {
    Ok(AnswerRequest {
        allow: fields.boolean("allow")?,
        choice_id: fields.string("choiceId")?,
        updated_input: fields.any("updatedInput"),
        message: fields.string("message")?,
        remember: fields.any("remember").or_else(|| fields.any("rememberEntry")),
    })
}

fn reference(fields: &mut Fields) -> Result<Option<String>, BadField> {
    let reference = fields.string("ref")?;
    if reference.as_ref().is_some_and(|text| text.len() > limits::REF_BYTES_MAX) {
        return Err(BadField { field: "ref", must_be: "at most 64 bytes long" });
    }
    Ok(reference)
}

fn message(fields: &mut Fields) -> Result<ClientMessage, Malformed> {
    let kind = match fields.any("type") {
        Some(Value::String(kind)) => kind,
        _ => String::new(),
    };
    match kind.as_str() {
        "hello" => Ok(hello(fields)?),
        "chat.send" => {
            let session = session(fields, "chat.send")?;
            let prompt = Prompt::read(fields);
            let prompt = prompt.map_err(|bad| Malformed::from(bad).of_session(&session))?;
            Ok(ClientMessage::Send { session, prompt })
        }
        "chat.abort" => {
            let session = session(fields, "chat.abort")?;
            let run = fields.string("runId");
            let run = run.map_err(|bad| Malformed::from(bad).of_session(&session))?;
            Ok(ClientMessage::Abort { session, run: run.map(|named| run_id(&named)) })
        }
        "chat.subscribe" => Ok(subscribe(fields)?),
        "chat.unsubscribe" => {
            let sessions = sessions(fields)?.into_iter().map(|item| match item {
                Value::String(named) => Ok(id("sessions[]", &named)?),
                _ => Err(BadField { field: "sessions[]", must_be: "a session's id" }.into()),
            });
            Ok(ClientMessage::Unsubscribe { sessions: sessions.collect() })
        }
        "chat.permission-response" => {
            let request = RequestId(fields.id("requestId")?);
            Ok(ClientMessage::Answer { request, answer: read_answer(fields)? })
        }
        "presence" => Ok(ClientMessage::Presence { visible: fields.boolean("visible")? }),
        "ping" => Ok(ClientMessage::Ping),
        unknown => {
            let shown: String = unknown.chars().take(64).collect();
            let error = format!("Unknown message type \"{shown}\".");
            Err(Malformed::new(ErrorCode::UnknownMessageType, error))
        }
    }
}

fn hello(fields: &mut Fields) -> Result<ClientMessage, BadField> {
    let protocol = fields.any("protocol").as_ref().and_then(Value::as_u64);
    let protocol = protocol.filter(|version| *version > 0);
    let must_be = "the version that the client speaks, a whole number from 1";
    let protocol = protocol.ok_or(BadField { field: "protocol", must_be })?;
    let client = fields.string("client")?;
    Ok(ClientMessage::Hello { protocol, client })
}

/// The session of a message that is about one.
fn session(fields: &mut Fields, kind: &str) -> Result<String, Malformed> {
    match fields.any("sessionId") {
        Some(Value::String(named)) if !named.trim().is_empty() => Ok(id("sessionId", &named)?),
        _ => {
            let error = format!("{kind} requires a sessionId.");
            Err(Malformed::new(ErrorCode::SessionIdRequired, error))
        }
    }
}

fn sessions(fields: &mut Fields) -> Result<Vec<Value>, BadField> {
    let items = fields.items("sessions")?;
    if items.len() > limits::SUBSCRIPTIONS_MAX {
        let must_be = "at most 1024 items long";
        return Err(BadField { field: "sessions", must_be });
    }
    Ok(items)
}

fn subscribe(fields: &mut Fields) -> Result<ClientMessage, BadField> {
    let targets = sessions(fields)?.into_iter().map(target).collect();
    // An epoch that cannot be one of ours is one that is not ours.
    let epoch = fields.string("logEpoch")?;
    let epoch = epoch.map(|named| named.parse().unwrap_or(LogEpoch::from_u128(0)));
    Ok(ClientMessage::Subscribe { targets, epoch })
}

fn target(item: Value) -> Result<Target, Malformed> {
    let Some(mut fields) = Fields::of(item) else {
        let must_be = "an object with a sessionId";
        return Err(BadField { field: "sessions[]", must_be }.into());
    };
    let session = fields.id("sessionId")?;
    match begin(&mut fields) {
        Ok(begin) => Ok(Target { session, begin }),
        Err(bad) => Err(Malformed::from(bad).of_session(&session)),
    }
}

/// A cursor, if there is one, wins over `from`: so a client may always say both, "where I was,
/// else from here".
fn begin(fields: &mut Fields) -> Result<Begin, BadField> {
    let run = fields.string("runId")?;
    let from = fields.string("from")?;
    let last_seq = fields.any("lastSeq");
    match (run, from.as_deref()) {
        (Some(run), None | Some("start" | "tail")) => {
            let must_be = "a whole number from 0";
            let bad = BadField { field: "lastSeq", must_be };
            let seq = last_seq.map(|value| value.as_u64().ok_or(bad)).transpose()?;
            Ok(Begin::After { run: run_id(&run), last_seq: seq.map(Seq) })
        }
        (None, Some("start")) => Ok(Begin::Start),
        (None, Some("tail")) => Ok(Begin::Tail),
        (None, None) => {
            let last_seq = Seq(last_seq.as_ref().map_or(0, lenient_seq));
            Ok(Begin::Legacy { last_seq })
        }
        (_, Some(_)) => Err(BadField { field: "from", must_be: "\"start\" or \"tail\"" }),
    }
}

/// As the original gateway reads it: a finite number is rounded down, at least 0; anything else
/// is 0.
fn lenient_seq(value: &Value) -> u64 {
    let Some(float) = value.as_f64().filter(|float| *float >= 1.0) else {
        return 0;
    };
    // The detour over the digits saturates where a cast would too, and needs no cast.
    value.as_u64().unwrap_or_else(|| format!("{:.0}", float.floor()).parse().unwrap_or(u64::MAX))
}

impl ClientFrame {
    /// The frame as JSON. A malformed part, which has no form of its own, becomes `null`.
    #[must_use]
    pub fn encode(&self) -> Value {
        let mut frame = match &self.message {
            Ok(message) => message.encode(),
            Err(_) => return Value::Null,
        };
        if let Some(reference) = &self.reference {
            frame["ref"] = json!(reference);
        }
        frame
    }
}

impl ClientMessage {
    fn encode(&self) -> Value {
        match self {
            Self::Hello { protocol, client } => {
                json!({ "type": "hello", "protocol": protocol, "client": client })
            }
            Self::Send { session, prompt } => json!({
                "type": "chat.send", "sessionId": session, "content": prompt.content,
                "options": prompt.options, "clientMessageId": prompt.client_message_id,
                "whenBusy": match prompt.when_busy {
                    WhenBusy::Refuse => "refuse",
                    WhenBusy::Queue => "queue",
                },
            }),
            Self::Abort { session, run } => {
                json!({ "type": "chat.abort", "sessionId": session, "runId": run })
            }
            Self::Subscribe { targets, epoch } => {
                let targets = targets.iter().map(|target| match target {
                    Ok(target) => target.encode(),
                    Err(_) => Value::Null,
                });
                let targets: Vec<Value> = targets.collect();
                json!({ "type": "chat.subscribe", "sessions": targets, "logEpoch": epoch })
            }
            Self::Unsubscribe { sessions } => {
                let sessions: Vec<_> = sessions.iter().map(|one| one.as_ref().ok()).collect();
                json!({ "type": "chat.unsubscribe", "sessions": sessions })
            }
            Self::Answer { request, answer } => json!({
                "type": "chat.permission-response", "requestId": request, "allow": answer.allow,
                "choiceId": answer.choice_id, "updatedInput": answer.updated_input,
                "message": answer.message, "remember": answer.remember,
            }),
            Self::Presence { visible } => json!({ "type": "presence", "visible": visible }),
            Self::Ping => json!({ "type": "ping" }),
        }
    }
}

impl Target {
    fn encode(&self) -> Value {
        let session = &self.session;
        match self.begin {
            Begin::After { run, last_seq } => {
                json!({ "sessionId": session, "runId": run, "lastSeq": last_seq })
            }
            Begin::Start => json!({ "sessionId": session, "from": "start" }),
            Begin::Tail => json!({ "sessionId": session, "from": "tail" }),
            Begin::Legacy { last_seq } => json!({ "sessionId": session, "lastSeq": last_seq }),
        }
    }
}

/// What the fuzzer calls: I11, and that a message says the same after a round trip.
///
/// # Panics
/// If one of them does not hold.
pub fn fuzz_decode(bytes: &[u8]) {
    let frame = decode(bytes);
    assert!(
        frame.reference.as_ref().is_none_or(|text| text.len() <= limits::REF_BYTES_MAX),
        "I12: a ref that is echoed is short"
    );
    let Ok(message) = &frame.message else {
        return;
    };
    let encoded = frame.encode();
    let again = decode(encoded.to_string().as_bytes());
    assert_eq!(again.reference, frame.reference);
    assert_eq!(again.encode(), encoded, "I11: a message survives its own encoding: {message:?}");
    if let ClientMessage::Subscribe { targets, .. } = message {
        assert!(targets.len() <= limits::SUBSCRIPTIONS_MAX, "I7: targets are bounded");
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const SESSION: &str = "6f1f2a58-8f0e-4a3c-9a44-0d5f0a1b2c3d";
    const RUN: &str = "0193a1b2-0000-7000-8000-000000000001";

    fn code(text: &str) -> ErrorCode {
        decode(text.as_bytes()).message.expect_err("should be malformed").code
    }

    fn message_of(value: &Value) -> ClientMessage {
        decode(value.to_string().as_bytes()).message.expect("should be well formed")
    }

    #[test]
    fn what_is_not_an_object_is_an_invalid_message() {
        for text in ["", "   ", "not json", "[]", "42", "\"chat.send\"", "null", "true", "{,}"] {
            assert_eq!(code(text), ErrorCode::InvalidMessage, "{text}");
        }
        let nan = r#"{"type":"chat.subscribe","sessions":[{"sessionId":"x","lastSeq":NaN}]}"#;
        assert_eq!(code(nan), ErrorCode::InvalidMessage);
        assert_eq!(code(r#"{"type":"\ud800"}"#), ErrorCode::InvalidMessage);
        let deep = "[".repeat(100_000);
        assert_eq!(code(&deep), ErrorCode::InvalidMessage);
        let not_utf8 = decode(b"{\"type\":\"ping\xff\"}").message.expect_err("malformed");
        assert_eq!(not_utf8.code, ErrorCode::InvalidMessage);
    }

    #[test]
    fn an_unknown_type_is_named_in_the_error() {
        for text in ["{}", r#"{"type":7}"#, r#"{"type":""}"#, r#"{"kind":"chat.send"}"#] {
            let malformed = decode(text.as_bytes()).message.expect_err("malformed");
            assert_eq!(malformed.code, ErrorCode::UnknownMessageType);
            assert_eq!(malformed.error, "Unknown message type \"\".");
        }
        for kind in ["CHAT.SEND", " chat.send"] {
            let text = json!({ "type": kind, "sessionId": "x" }).to_string();
            let malformed = decode(text.as_bytes()).message.expect_err("malformed");
            assert_eq!(malformed.error, format!("Unknown message type \"{kind}\"."));
        }
        let long = json!({ "type": "x".repeat(1 << 20) }).to_string();
        assert!(decode(long.as_bytes()).message.expect_err("malformed").error.len() < 200);
    }

    #[test]
    fn a_reference_is_kept_beside_errors_and_refused_when_long() {
        let frame = decode(br#"{"type":"nope","ref":"r1"}"#);
        assert_eq!(frame.reference.as_deref(), Some("r1"));
        assert!(frame.message.is_err());
        let long = json!({ "type": "ping", "ref": "x".repeat(65) }).to_string();
        assert_eq!(code(&long), ErrorCode::InvalidField);
        assert_eq!(code(r#"{"type":"ping","ref":1}"#), ErrorCode::InvalidField);
        let fits = json!({ "type": "ping", "ref": "x".repeat(64) });
        assert_eq!(message_of(&fits), ClientMessage::Ping);
    }

    #[test]
    fn a_send_needs_a_session_before_anything_else() {
        for session in [json!(null), json!(""), json!("   "), json!(5), json!([SESSION])] {
            let text = json!({ "type": "chat.send", "sessionId": session }).to_string();
            assert_eq!(code(&text), ErrorCode::SessionIdRequired, "{text}");
        }
        let trimmed = json!({ "type": "chat.send", "sessionId": "  a ", "content": "x" });
        let ClientMessage::Send { session, .. } = message_of(&trimmed) else { panic!("a send") };
        assert_eq!(session, "a");
    }

    #[test]
    fn fields_of_a_send_that_cannot_be_used_are_refused_with_the_session() {
        let bad = [
            json!({}),
            json!({ "content": 42 }),
            json!({ "content": " \n" }),
            json!({ "content": "x", "options": "ab" }),
            json!({ "content": "x", "options": null }),
            json!({ "content": "x", "clientMessageId": "" }),
            json!({ "content": "x", "clientMessageId": "x".repeat(257) }),
            json!({ "content": "x", "clientMessageId": 1 }),
            json!({ "content": "x", "whenBusy": "wait" }),
            json!({ "content": "x", "whenBusy": true }),
        ];
        for mut frame in bad {
            frame["type"] = json!("chat.send");
            frame["sessionId"] = json!("s");
            let malformed = decode(frame.to_string().as_bytes()).message.expect_err("malformed");
            assert_eq!(malformed.code, ErrorCode::InvalidField, "{frame}");
            assert_eq!(malformed.session.as_deref(), Some("s"));
        }
        let good = json!({ "type": "chat.send", "sessionId": "s", "content": " x ",
            "options": { "a": 1 }, "clientMessageId": "m", "whenBusy": "refuse", "more": [] });
        let ClientMessage::Send { prompt, .. } = message_of(&good) else { panic!("a send") };
        assert_eq!(prompt.content, " x ");
        assert_eq!(prompt.client_message_id, Some(ClientMessageId("m".into())));
    }

    #[test]
    fn each_malformed_target_is_one_error_and_the_others_stand() {
        let frame = json!({ "type": "chat.subscribe", "sessions":
            [null, 3, "str", [], {}, { "sessionId": 9 }, { "sessionId": " " },
             { "sessionId": " s ", "lastSeq": 1 }, { "sessionId": "s", "from": "middle" }] });
        let ClientMessage::Subscribe { targets, .. } = message_of(&frame) else { panic!() };
        assert_eq!(targets.len(), 9);
        assert!(targets[..7].iter().all(Result::is_err));
        let begin = Begin::Legacy { last_seq: Seq(1) };
        assert_eq!(targets[7], Ok(Target { session: "s".into(), begin }));
        let bad = targets[8].as_ref().expect_err("malformed");
        assert_eq!(bad.session.as_deref(), Some("s"));
        for sessions in [json!(null), json!("x"), json!({}), json!([])] {
            let text = json!({ "type": "chat.subscribe", "sessions": sessions }).to_string();
            assert_eq!(code(&text), ErrorCode::InvalidField);
        }
        let many = json!({ "type": "chat.subscribe", "sessions": vec![0; 1025] }).to_string();
        assert_eq!(code(&many), ErrorCode::InvalidField);
    }

    #[test]
    fn a_target_says_where_to_begin() {
        let begin = |mut target: Value| {
            target["sessionId"] = json!("s");
            let frame = json!({ "type": "chat.subscribe", "sessions": [target] });
            let ClientMessage::Subscribe { targets, .. } = message_of(&frame) else { panic!() };
            targets[0].clone().map(|target| target.begin).map_err(|bad| bad.code)
        };
        let run = run_id(RUN);
        assert_eq!(begin(json!({ "runId": RUN })), Ok(Begin::After { run, last_seq: None }));
        let after = Begin::After { run, last_seq: Some(Seq(3)) };
        assert_eq!(begin(json!({ "runId": RUN, "lastSeq": 3, "from": "tail" })), Ok(after));
        for bad in [json!("3"), json!(-1), json!(1.5), json!([])] {
            let target = json!({ "runId": RUN, "lastSeq": bad });
            assert_eq!(begin(target), Err(ErrorCode::InvalidField));
        }
        let unknown = Begin::After { run: RunId::from_u128(0), last_seq: Some(Seq(1)) };
        assert_eq!(begin(json!({ "runId": "nope", "lastSeq": 1 })), Ok(unknown));
        assert_eq!(begin(json!({ "from": "start" })), Ok(Begin::Start));
        assert_eq!(begin(json!({ "from": "tail", "runId": null })), Ok(Begin::Tail));
        let lenient = [
            (json!(3.9), 3),
            (json!(-4), 0),
            (json!("7"), 0),
            (json!(true), 0),
            (json!(1e18), 1_000_000_000_000_000_000),
            (json!(1e300), u64::MAX),
            (json!(u64::MAX), u64::MAX),
            (json!(null), 0),
        ];
        for (given, seq) in lenient {
            let target = json!({ "lastSeq": given });
            assert_eq!(begin(target), Ok(Begin::Legacy { last_seq: Seq(seq) }), "{given}");
        }
    }

    #[test]
    fn an_epoch_that_cannot_be_ours_counts_as_another_one() {
        let frame = |epoch: Value| {
            json!({ "type": "chat.subscribe", "sessions": [{ "sessionId": "s" }],
                "logEpoch": epoch })
        };
        let epoch = |value| match message_of(&frame(value)) {
            ClientMessage::Subscribe { epoch, .. } => epoch,
            other => panic!("{other:?}"),
        };
        assert_eq!(epoch(json!(null)), None);
        assert_eq!(epoch(json!("nope")), Some(LogEpoch::from_u128(0)));
        assert_eq!(epoch(json!(SESSION)), SESSION.parse().ok());
        assert_eq!(code(&frame(json!(7)).to_string()), ErrorCode::InvalidField);
    }

    #[test]
    fn an_answer_is_strict_about_what_it_allows() {
        let answer = |mut frame: Value| {
            frame["type"] = json!("chat.permission-response");
            decode(frame.to_string().as_bytes()).message.map_err(|bad| bad.code)
        };
        for bad in [
            json!({}),
            json!({ "requestId": "" }),
            json!({ "requestId": " ", "allow": true }),
            json!({ "requestId": 5, "allow": true }),
            json!({ "requestId": "r", "allow": "yes" }),
            json!({ "requestId": "r", "message": "x" }),
            json!({ "requestId": "r", "allow": true, "message": 7 }),
            json!({ "requestId": "r", "allow": true, "choiceId": {} }),
        ] {
            assert_eq!(answer(bad.clone()), Err(ErrorCode::InvalidField), "{bad}");
        }
        let good = json!({ "requestId": "r", "allow": true, "updatedInput": { "a": 1 },
            "message": "ok", "rememberEntry": "Bash(ls:*)" });
        let Ok(ClientMessage::Answer { request, answer }) = answer(good) else { panic!() };
        assert_eq!(request.0, "r");
        assert_eq!(answer.remember, Some(json!("Bash(ls:*)")));
    }

    #[test]
    fn an_abort_of_a_run_that_cannot_be_names_a_run_that_is_not() {
        let frame = json!({ "type": "chat.abort", "sessionId": "s", "runId": "x" });
        let run = Some(RunId::from_u128(0));
        assert_eq!(message_of(&frame), ClientMessage::Abort { session: "s".into(), run });
        let text = r#"{"type":"chat.abort","sessionId":"s","runId":1}"#;
        assert_eq!(code(text), ErrorCode::InvalidField);
        assert_eq!(code(r#"{"type":"chat.abort","sessionId":" "}"#), ErrorCode::SessionIdRequired);
    }

    #[test]
    fn a_session_has_one_spelling() {
        assert!(session_id(SESSION).is_some());
        for other in ["no-such", &SESSION.to_uppercase(), &SESSION.replace('-', "")] {
            assert_eq!(session_id(other), None, "{other}");
        }
    }

    #[test]
    fn a_hello_names_a_version() {
        let hello = json!({ "type": "hello", "protocol": 3, "client": "x" });
        let client = Some("x".into());
        assert_eq!(message_of(&hello), ClientMessage::Hello { protocol: 3, client });
        assert_eq!(code(r#"{"type":"hello"}"#), ErrorCode::InvalidField);
        assert_eq!(code(r#"{"type":"hello","protocol":0}"#), ErrorCode::InvalidField);
    }

    /// The seeds of `fuzz/`, by hand: replayed here so that a plain `cargo test` covers them.
    #[test]
    fn the_fuzzers_seeds_decode() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/decode");
        let mut count = 0;
        for entry in std::fs::read_dir(seeds).expect("the seeds are in the repository") {
            let bytes = std::fs::read(entry.expect("a seed").path()).expect("a readable seed");
            fuzz_decode(&bytes);
            count += 1;
        }
        assert!(count >= 30, "only {count} seeds");
    }
}
