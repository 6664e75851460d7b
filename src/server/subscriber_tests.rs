//! A client without a socket: what it is told, what it is asked to do.

use std::cell::Cell;
use std::rc::Rc;

use serde_json::{Value, json};

use super::*;
use crate::protocol::message::decode;
use crate::run::id::Ordinal;
use crate::run::state::Statement;

#[derive(Clone, Debug)]
struct Fake(Rc<Cell<Settled>>);

impl Ticket for Fake {
    fn settled(&self) -> Settled {
        self.0.get()
    }
}

const NOW: Millis = Millis(0);

fn session(n: u128) -> SessionId {
    SessionId::from_u128(n)
}

fn at(ordinal: u32, seq: u64) -> Position {
    Position::new(Ordinal(ordinal), Seq(seq))
}

fn waiting() -> Fake {
    Fake(Rc::new(Cell::new(Settled::Waiting)))
}

fn client() -> Subscriber<Fake> {
    let greeting = Greeting {
        server: "reattach/0".into(),
        heartbeat_ms: 1,
        limits: FrameLimits { message_bytes_max: 1, event_bytes_max: 1 },
        epoch: LogEpoch::from_u128(9),
    };
    let caller = Caller { scope: Scope::Control, ..Caller::nobody(&http::HeaderMap::new()) };
    let mut client = Subscriber::new(greeting, &caller);
    client.greet();
    assert_eq!(heard(&mut client)[0]["kind"], "hello");
    client
}

/// All that can be sent now.
fn heard(client: &mut Subscriber<Fake>) -> Vec<Value> {
    let mut frames = Vec::new();
    while let Some(text) = client.next_reply(NOW) {
        frames.push(serde_json::from_str(&text).expect("JSON"));
    }
    frames
}

fn say(client: &mut Subscriber<Fake>, frame: &Value) {
    client.message(decode(frame.to_string().as_bytes()), NOW);
}

fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["kind"].as_str().expect("a kind")).collect()
}

fn found(cursor: Position, durable: Position) -> Subscribed {
    let statement = Statement {
        run: Some(RunId::from_u128(7)),
        ordinal: durable.ordinal,
        last_seq: durable.seq,
        is_processing: true,
        pending: Vec::new(),
    };
    Subscribed {
        queue: (Vec::new(), false),
        statement,
        first_seq: Seq(1),
        recovered: true,
        rewound: false,
        gap: None,
        cursor,
        durable,
    }
}

/// Subscribes as the connection would, with what the registry found.
fn follow(client: &mut Subscriber<Fake>, n: u128, cursor: Position, durable: Position) {
    let target = json!({ "sessionId": session(n).to_string() });
    say(client, &json!({ "type": "chat.subscribe", "sessions": [target] }));
    let Some(Action::Subscribe { target, reply }) = client.next_action() else { panic!() };
    client.subscribed(reply, target.session, Ok(found(cursor, durable)));
}

fn send(client: &mut Subscriber<Fake>, n: u128, reference: &str) -> ReplyTo {
    let named = session(n).to_string();
    say(
        client,
        &json!({ "type": "chat.send", "sessionId": named, "content": "x", "ref": reference }),
    );
    match client.next_action() {
        Some(Action::Send { reply, .. }) => reply,
        other => panic!("{other:?}"),
    }
}

fn accepted(n: u128, cursor: Position) -> AcceptedRun {
    AcceptedRun { session: session(n), run: RunId::from_u128(3), duplicate: false, cursor }
}

#[test]
fn replies_follow_their_commits_and_may_overtake_one_another() {
    let mut client = client();
    let (first, second) = (waiting(), waiting());
    let reply = send(&mut client, 1, "first");
    client.accepted(reply, accepted(1, at(0, 9)), None, first.clone());
    let reply = send(&mut client, 2, "second");
    client.accepted(reply, accepted(2, at(0, 9)), None, second.clone());
    say(&mut client, &json!({ "type": "ping", "ref": "p" }));
    assert!(client.next_action().is_none());
    let frames = heard(&mut client);
    assert_eq!((kinds(&frames), &frames[0]["ref"]), (vec!["pong"], &json!("p")));
    second.0.set(Settled::Committed);
    let frames = heard(&mut client);
    assert_eq!((kinds(&frames), &frames[0]["ref"]), (vec!["chat_accepted"], &json!("second")));
    first.0.set(Settled::Rejected);
    let frames = heard(&mut client);
    assert_eq!((kinds(&frames), &frames[0]["ref"]), (vec!["protocol_error"], &json!("first")));
    assert_eq!(frames[0]["sessionId"], session(1).to_string());
    assert_eq!(client.next_read(), Some((session(2), at(0, 9))), "a refused send follows nothing");
}

#[test]
fn a_send_follows_from_its_runs_head_once_told_and_moves_no_cursor() {
    let mut client = client();
    let ticket = waiting();
    let reply = send(&mut client, 1, "a");
    client.accepted(reply, accepted(1, at(4, u64::MAX)), None, ticket.clone());
    assert_eq!(client.next_read(), None);
    ticket.0.set(Settled::Committed);
    assert_eq!(kinds(&heard(&mut client)), ["chat_accepted"]);
    assert_eq!(client.next_read(), Some((session(1), at(4, u64::MAX))));
    assert_eq!(client.passed(session(1), at(5, 3)), None);

    let reply = send(&mut client, 1, "b");
    client.accepted(reply, accepted(1, at(5, u64::MAX)), None, ticket);
    heard(&mut client);
    assert_eq!(client.next_read(), Some((session(1), at(5, 3))));
}

#[test]
fn an_unsubscribe_also_undoes_a_send_that_is_on_its_way() {
    let mut client = client();
    let ticket = waiting();
    let reply = send(&mut client, 1, "a");
    client.accepted(reply, accepted(1, at(0, 9)), None, ticket.clone());
    let named = session(1).to_string();
    say(&mut client, &json!({ "type": "chat.unsubscribe", "sessions": [named, "ghost", 7] }));
    let Some(Action::Unsubscribe { session: one, reply }) = client.next_action() else { panic!() };
    client.unsubscribed(one);
    let ack = Ack { of: "chat.unsubscribe", session_id: reply.session.clone(), ..Ack::default() };
    client.acknowledged(reply, ack, None);
    assert!(client.next_action().is_none());
    ticket.0.set(Settled::Committed);
    assert_eq!(kinds(&heard(&mut client)), ["chat_accepted", "ack", "ack", "protocol_error"]);
    assert_eq!(client.next_read(), None);
}

#[test]
fn caught_up_is_said_once_on_passing_what_was_durable() {
    let mut client = client();
    follow(&mut client, 1, at(1, 2), at(1, 4));
    assert_eq!(kinds(&heard(&mut client)), ["chat_subscribed"]);
    assert_eq!(client.passed(session(1), at(1, 3)), None);
    let due = client.passed(session(1), at(1, 4)).expect("caught up");
    let caught_up: Value = serde_json::from_str(&due.encode(None, NOW)).expect("JSON");
    assert_eq!((&caught_up["kind"], &caught_up["seq"]), (&json!("caught_up"), &json!(4)));
    assert_eq!(client.passed(session(1), at(1, 5)), None);
}

#[test]
fn a_client_that_missed_nothing_is_caught_up_at_once_and_again_when_it_asks_again() {
    let mut client = client();
    for _ in 0..2 {
        follow(&mut client, 1, at(1, 4), at(1, 4));
        assert_eq!(kinds(&heard(&mut client)), ["chat_subscribed", "caught_up"]);
    }
    follow(&mut client, 1, at(1, 1), at(1, 4));
    heard(&mut client);
    assert_eq!(client.next_read(), Some((session(1), at(1, 1))), "the last cursor holds");
}

#[test]
fn each_target_has_its_answer_in_its_place() {
    let mut client = client();
    let (one, two) = (session(1).to_string(), session(2).to_string());
    let sessions = json!([{ "sessionId": one, "from": "start" }, null,
        { "sessionId": "ghost" }, { "sessionId": two }]);
    say(&mut client, &json!({ "type": "chat.subscribe", "sessions": sessions, "ref": "r" }));
    assert!(!client.wants_input());
    let Some(Action::Subscribe { target, reply }) = client.next_action() else { panic!() };
    assert_eq!(target.from, From::Start);
    client.subscribed(reply, target.session, Ok(found(at(0, 0), at(0, 0))));
    let Some(Action::Subscribe { target, reply }) = client.next_action() else { panic!() };
    client.subscribed(reply, target.session, Err(SubscribeError::RunNotFound));
    assert!(client.next_action().is_none() && client.wants_input());
    let frames = heard(&mut client);
    let expected = ["chat_subscribed", "caught_up", "protocol_error", "chat_subscribed"];
    assert_eq!(kinds(&frames), [&expected[..], &["chat_subscribed"]].concat());
    assert_eq!(frames[2]["code"], "INVALID_FIELD");
    assert_eq!(frames[3]["error"], "SESSION_NOT_FOUND");
    assert_eq!(frames[4]["error"], "RUN_NOT_FOUND");
    assert!(frames.iter().all(|frame| frame["kind"] == "caught_up" || frame["ref"] == "r"));
    assert_eq!(client.next_read(), Some((session(1), at(0, 0))));
    client.ended(session(1));
    assert_eq!(client.next_read(), None);
}

#[test]
fn a_session_that_cannot_be_is_answered_without_asking() {
    let mut client = client();
    say(&mut client, &json!({ "type": "chat.send", "sessionId": "no-such", "content": "x" }));
    say(&mut client, &json!({ "type": "chat.abort", "sessionId": "no-such" }));
    assert!(client.next_action().is_none());
    let frames = heard(&mut client);
    let told = |n: usize| (&frames[n]["code"], &frames[n]["sessionId"]);
    assert_eq!(told(0), (&json!("SESSION_NOT_FOUND"), &json!("no-such")));
    assert_eq!(told(1), (&json!("NO_ACTIVE_RUN"), &json!("no-such")));
}

#[test]
fn a_full_outbox_stops_the_reading_and_holds_what_is_left_to_do() {
    let mut client = client();
    for _ in 0..limits::OUTBOX_MAX {
        assert!(client.wants_input());
        let reply = send(&mut client, 1, "x");
        client.accepted(reply, accepted(1, at(0, 9)), None, waiting());
    }
    assert!(!client.wants_input());
    say(&mut client, &json!({ "type": "ping" }));
    assert!(client.next_action().is_none());
    assert!(heard(&mut client).is_empty());
    assert!(!client.is_done());
}

#[test]
fn sessions_that_are_behind_take_turns() {
    let mut client = client();
    for n in 1..=3 {
        follow(&mut client, n, at(0, 0), at(0, 0));
    }
    let mut turns = || client.next_read().map(|(session, _)| session);
    let five: Vec<_> = std::iter::from_fn(&mut turns).take(5).collect();
    assert_eq!(five, [1, 2, 3, 1, 2].map(session));
    client.caught_up(session(3));
    client.caught_up(session(1));
    assert_eq!(client.next_read(), Some((session(2), at(0, 0))));
    client.caught_up(session(2));
    assert!(client.is_caught_up());
    client.woken(BTreeSet::from([session(3), session(4)]));
    assert_eq!(client.next_read(), Some((session(3), at(0, 0))));
    client.caught_up(session(3));
    assert_eq!(client.next_read(), None, "who follows nothing of it is not woken");
}

#[test]
fn a_connection_follows_a_bounded_number_of_sessions() {
    let mut client = client();
    for n in 0..limits::SUBSCRIPTIONS_MAX {
        follow(&mut client, 1000 + n as u128, at(0, 0), at(0, 0));
        heard(&mut client);
    }
    let target = json!({ "sessionId": session(1).to_string() });
    say(&mut client, &json!({ "type": "chat.subscribe", "sessions": [target] }));
    assert!(client.next_action().is_none());
    assert_eq!(heard(&mut client)[0]["code"], "INVALID_FIELD");
    follow(&mut client, 1000, at(0, 0), at(0, 0));
    let ticket = Fake(Rc::new(Cell::new(Settled::Committed)));
    let reply = send(&mut client, 1, "x");
    client.accepted(reply, accepted(1, at(0, 9)), None, ticket);
    heard(&mut client);
    client.woken(BTreeSet::from([session(1)]));
    assert!((0..2000).all(|_| client.next_read().is_none_or(|(one, _)| one != session(1))));
}

#[test]
fn a_client_may_say_who_it_is() {
    let mut client = client();
    say(
        &mut client,
        &json!({ "type": "hello", "protocol": 1, "client": "reattach-cli/1", "ref": "h" }),
    );
    assert!(client.next_action().is_none());
    assert_eq!(heard(&mut client)[0]["ref"], "h");
    assert_eq!(client.by(), &By { kind: ByKind::Cli, name: "reattach-cli/1".into() });
}

/// I12: whatever comes, each request is answered, with its `ref`; the seeds of the fuzzer stand
/// for what may come.
#[test]
fn every_seed_of_the_fuzzer_is_answered_with_its_ref() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/decode");
    for entry in std::fs::read_dir(seeds).expect("the seeds are in the repository") {
        let path = entry.expect("a seed").path();
        let frame = decode(&std::fs::read(&path).expect("a readable seed"));
        let reference = frame.reference.clone();
        let expected = match &frame.message {
            Ok(ClientMessage::Subscribe { targets, .. }) => targets.len(),
            Ok(ClientMessage::Unsubscribe { sessions }) => sessions.len(),
            _ => 1,
        };
        let mut client = client();
        client.message(frame, NOW);
        while let Some(action) = client.next_action() {
            match action {
                Action::Send { reply, .. }
                | Action::Abort { reply, .. }
                | Action::Answer { reply, .. } => {
                    client.refused(reply, ErrorCode::Busy, "no".into());
                }
                Action::Subscribe { target, reply } => {
                    client.subscribed(reply, target.session, Err(SubscribeError::SessionNotFound));
                }
                Action::Unsubscribe { session, reply } => {
                    client.unsubscribed(session);
                    client.acknowledged(reply, Ack::of("chat.unsubscribe"), None);
                }
            }
        }
        let frames = heard(&mut client);
        assert_eq!(frames.len(), expected, "{}", path.display());
        let told = frames.iter().all(|frame| frame["ref"].as_str() == reference.as_deref());
        assert!(told, "{frames:?}");
    }
}
