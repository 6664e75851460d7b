//! What the gateway says beside a run's events: replies, and news to every connection.
//!
//! These frames have a `kind` and a `timestamp` and no `seq`. Must not know who gets them.

use serde::Serialize;
use serde_json::Value;
use tungstenite::Utf8Bytes;

use crate::protocol::message::{ErrorCode, Malformed};
use crate::run::event::AnswerState;
use crate::run::id::{
    ClientMessageId, LogEpoch, Millis, QueueId, RequestId, RunId, Seq, SessionId,
};

/// A frame of the gateway's own. Optional fields are absent when unknown; those that are listed
/// as `T|null` in the protocol are always there.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum GatewayFrame {
    /// Who we are; sent on open, and in reply to the client's own.
    Hello {
        /// The version that we speak.
        protocol: u64,
        /// Our name and version.
        server: String,
        /// How often a client should `ping`.
        heartbeat_ms: i64,
        /// What fits into a frame, each way.
        limits: FrameLimits,
        /// The incarnation of the log.
        log_epoch: LogEpoch,
    },
    /// A prompt became a run, which is durable.
    ChatAccepted {
        /// Where.
        session_id: SessionId,
        /// Which run.
        run_id: RunId,
        /// The client's id for the prompt.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_message_id: Option<ClientMessageId>,
        /// Whether it had been accepted before.
        duplicate: bool,
    },
    /// A prompt waits in its session's queue, durably.
    ChatQueued {
        /// Where.
        session_id: SessionId,
        /// As what.
        queue_id: QueueId,
        /// Its place, from 1.
        position: usize,
        /// The client's id for the prompt.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_message_id: Option<ClientMessageId>,
        /// Whether it waited before.
        duplicate: bool,
    },
    /// Done, as far as it depends on us.
    Ack(Ack),
    /// A session is followed from now on, or why not.
    ChatSubscribed(Box<ChatSubscribed>),
    /// What was durable at the time of the subscribe has been sent; what follows is live.
    CaughtUp {
        /// Of which session.
        session_id: SessionId,
        /// Its newest run then.
        run_id: Option<RunId>,
        /// That run's newest seq then.
        seq: Seq,
    },
    /// A range of events is no longer kept.
    Gap {
        /// Of which session.
        session_id: SessionId,
        /// What is gone.
        #[serde(flatten)]
        gap: GapRange,
    },
    /// A session was made or changed.
    SessionUpserted {
        /// Which.
        session_id: SessionId,
        /// The provider's own id, once known (the one frame of ours that names it: I10).
        provider_session_id: Option<String>,
        /// Its provider.
        provider: String,
        /// As REST gives it.
        session: Value,
        /// The project that it belongs to.
        project: Option<Value>,
    },
    /// A session is gone.
    SessionDeleted {
        /// Which.
        session_id: SessionId,
    },
    /// More changed than we can name: fetch the list.
    SessionsChanged {},
    /// Whether the disk takes what we write.
    StoreState {
        /// It does.
        ok: bool,
        /// Why not.
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
    /// Nothing new starts; come back later.
    ServerDraining {
        /// What becomes of the agents: `abort` or `keep`.
        mode: String,
    },
    /// A request failed; the connection lives.
    ProtocolError {
        /// For programs.
        code: ErrorCode,
        /// For people.
        error: String,
        /// What it was about, as the client named it.
        session_id: Option<String>,
        /// The request's `ref`. It stands here and not beside the frame, since it may be `null`.
        #[serde(rename = "ref")]
        reference: Option<String>,
    },
    /// We are here.
    Pong {
        /// Our time.
        server_time: String,
    },
}

/// What fits into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrameLimits {
    /// From the client.
    pub message_bytes_max: usize,
    /// From us, per event.
    pub event_bytes_max: usize,
}

/// The reply to what needs no more than a yes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// The `type` of what is acknowledged.
    #[serde(rename = "type")]
    pub of: &'static str,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Its run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// Its permission request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// How far the answer got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<AnswerState>,
}

/// The reply to one target of `chat.subscribe`. The session's state is its durable one (I17).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChatSubscribed {
    /// As the client named it.
    pub session_id: String,
    /// Whether its newest run is on.
    pub is_processing: bool,
    /// Its newest run.
    pub run_id: Option<RunId>,
    /// That run's newest seq; 0 if none.
    pub last_seq: Seq,
    /// That run's oldest kept seq; 0 if none.
    pub first_seq: Seq,
    /// Whether the client's cursor and what follows are everything.
    pub recovered: bool,
    /// The cursor was from another incarnation of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewound: Option<bool>,
    /// What is gone after the client's cursor.
    pub gap: Option<GapRange>,
    /// Requests that wait for an answer: their events, with `receivedAt`.
    pub pending_permissions: Vec<Value>,
    /// Prompts that wait, in order; long ones are cut.
    pub queue: Vec<Value>,
    /// Whether an abort stopped them.
    pub queue_held: bool,
    /// The incarnation of the log.
    pub log_epoch: LogEpoch,
    /// Why nothing is subscribed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorCode>,
}

impl Ack {
    /// An acknowledgement of a message of this `type`.
    #[must_use]
    pub fn of(of: &'static str) -> Self {
        Self { of, ..Self::default() }
    }
}

impl ChatSubscribed {
    /// What an unknown session gets: idle, and the reason.
    #[must_use]
    pub fn refused(session_id: String, error: ErrorCode, log_epoch: LogEpoch) -> Self {
        Self {
            session_id,
            is_processing: false,
            run_id: None,
            last_seq: Seq(0),
            first_seq: Seq(0),
            recovered: false,
            rewound: None,
            gap: None,
            pending_permissions: Vec::new(),
            queue: Vec::new(),
            queue_held: false,
            log_epoch,
            error: Some(error),
        }
    }
}

/// What is gone, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GapRange {
    /// `None`: from the beginning.
    pub from: Option<EventAt>,
    /// The newest that is gone.
    pub to: EventAt,
}

/// An event, as clients name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventAt {
    /// Its run.
    pub run_id: RunId,
    /// Its number there.
    pub seq: Seq,
}

impl GatewayFrame {
    /// A failed request.
    #[must_use]
    pub fn error(malformed: Malformed, reference: Option<&str>) -> Self {
        Self::ProtocolError {
            code: malformed.code,
            error: malformed.error,
            session_id: malformed.session,
            reference: reference.map(str::to_owned),
        }
    }

    /// The bytes, said at `now`, in reply to what had this `ref`.
    #[must_use]
    pub fn encode(&self, reference: Option<&str>, now: Millis) -> Utf8Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(flatten)]
            frame: &'a GatewayFrame,
            #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
            reference: Option<&'a str>,
            timestamp: String,
        }
        let reference = reference.filter(|_| !matches!(self, Self::ProtocolError { .. }));
        let wire = Wire { frame: self, reference, timestamp: now.to_string() };
        // Most fit at once; growing costs a copy, and stack that an idle connection would keep.
        let mut json = Vec::with_capacity(512);
        serde_json::to_writer(&mut json, &wire).expect("these names and values are all JSON");
        String::from_utf8(json).expect("JSON is UTF-8").into()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent(frame: &GatewayFrame, reference: Option<&str>) -> Value {
        serde_json::from_str(&frame.encode(reference, Millis(0))).expect("JSON")
    }

    const NOW: &str = "1970-01-01T00:00:00.000Z";

    #[test]
    fn an_error_always_has_its_fields() {
        let malformed =
            Malformed { code: ErrorCode::InvalidField, error: "x".into(), session: None };
        let frame = GatewayFrame::error(malformed, None);
        assert_eq!(
            sent(&frame, None),
            json!({ "kind": "protocol_error", "code": "INVALID_FIELD", "error": "x",
                "sessionId": null, "ref": null, "timestamp": NOW })
        );
        let malformed = Malformed {
            code: ErrorCode::SessionNotFound,
            error: "x".into(),
            session: Some("ghost".into()),
        };
        let text = GatewayFrame::error(malformed, Some("r")).encode(Some("r"), Millis(0));
        assert_eq!(text.matches("\"ref\"").count(), 1, "{text}");
    }

    #[test]
    fn a_reply_echoes_its_ref() {
        let pong = GatewayFrame::Pong { server_time: NOW.into() };
        let expected = json!({ "kind": "pong", "serverTime": NOW, "ref": "r", "timestamp": NOW });
        assert_eq!(sent(&pong, Some("r")), expected);
        let changed = GatewayFrame::SessionsChanged {};
        assert_eq!(sent(&changed, None), json!({ "kind": "sessions_changed", "timestamp": NOW }));
    }

    #[test]
    fn a_refused_subscribe_looks_idle() {
        let epoch = LogEpoch::from_u128(1);
        let refused = ChatSubscribed::refused("ghost".into(), ErrorCode::SessionNotFound, epoch);
        assert_eq!(
            sent(&GatewayFrame::ChatSubscribed(Box::new(refused)), None),
            json!({ "kind": "chat_subscribed", "sessionId": "ghost", "isProcessing": false,
                "runId": null, "lastSeq": 0, "firstSeq": 0, "recovered": false, "gap": null,
                "pendingPermissions": [], "queue": [], "queueHeld": false, "logEpoch": epoch.to_string(),
                "error": "SESSION_NOT_FOUND", "timestamp": NOW })
        );
    }

    #[test]
    fn a_gap_names_both_ends() {
        let run_id = RunId::from_u128(2);
        let gap = GapRange { from: None, to: EventAt { run_id, seq: Seq(9) } };
        let session_id = SessionId::from_u128(1);
        assert_eq!(
            sent(&GatewayFrame::Gap { session_id, gap }, None),
            json!({ "kind": "gap", "sessionId": session_id.to_string(), "from": null,
                "to": { "runId": run_id.to_string(), "seq": 9 }, "timestamp": NOW })
        );
    }
}
