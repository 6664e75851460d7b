//! One client's protocol state, pure: messages in, actions and frames out.
//!
//! It holds a cursor per subscription and no events: what is to be sent is read when it can be
//! sent, so a slow client costs a cursor, not a queue. Replies wait in an outbox, some for their
//! commit. Must not know sockets, locks or the registry's inside.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use tungstenite::Utf8Bytes;

use crate::limits;
use crate::protocol::gateway::{Ack, ChatSubscribed, FrameLimits, GatewayFrame};
use crate::protocol::message::{
    Begin, ClientFrame, ClientMessage, ErrorCode, Malformed, VERSION, session_id,
};
use crate::registry::{From, SendPrompt, SubscribeError, Subscribed, Target};
use crate::run::event::{By, ByKind};
use crate::run::id::{
    ClientMessageId, LogEpoch, Millis, Position, QueueId, RequestId, RunId, Seq, SessionId,
};
use crate::run::log::Settled;
use crate::run::state::AnswerRequest;
use crate::server::auth::{Caller, Scope, scope};
use crate::server::statement::statement;

/// How our own command line names itself, before its version.
pub const CLI: &str = "reattach-cli";

/// Something on its way to disk that a reply waits for.
pub trait Ticket {
    /// How it stands.
    fn settled(&self) -> Settled;
}

/// What the server says of itself on open.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// Name and version.
    pub server: String,
    /// How often a client should `ping`.
    pub heartbeat_ms: i64,
    /// What fits into a frame.
    pub limits: FrameLimits,
    /// The incarnation of the log.
    pub epoch: LogEpoch,
}

/// Where the reply to a request goes: its `ref`, and the session as the client named it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyTo {
    /// The client's `ref` (I12).
    pub reference: Option<String>,
    /// For errors.
    pub session: Option<String>,
}

/// What the registry is to be asked. Each is answered with one of the methods named.
#[derive(Clone, Debug)]
pub enum Action {
    /// `accepted`, or `refused`.
    Send {
        /// The prompt.
        prompt: SendPrompt,
        /// Whose.
        reply: ReplyTo,
    },
    /// `acknowledged`, or `refused`.
    Abort {
        /// Of which session.
        session: SessionId,
        /// Which run, if it is named.
        run: Option<RunId>,
        /// Whose.
        reply: ReplyTo,
    },
    /// `acknowledged`, or `refused`.
    Answer {
        /// Which request.
        request: RequestId,
        /// What.
        answer: AnswerRequest,
        /// Whose.
        reply: ReplyTo,
    },
    /// `subscribed`.
    Subscribe {
        /// What, and from where.
        target: Target,
        /// Whose.
        reply: ReplyTo,
    },
    /// `acknowledged`.
    Unsubscribe {
        /// Which.
        session: SessionId,
        /// Whose.
        reply: ReplyTo,
    },
}

/// A run that a prompt began, or had begun before.
#[derive(Clone, Copy, Debug)]
pub struct AcceptedRun {
    /// Of which session.
    pub session: SessionId,
    /// Which.
    pub run: RunId,
    /// Whether it had begun before (I19).
    pub duplicate: bool,
    /// The cursor just before its head.
    pub cursor: Position,
}

/// A prompt that waits, or waited before.
#[derive(Clone, Copy, Debug)]
pub struct QueuedPrompt {
    /// As what.
    pub id: QueueId,
    /// Its place, from 1.
    pub position: usize,
    /// Whether it waited before (I19).
    pub duplicate: bool,
    /// Where the log ended then; `None` for a duplicate, whose sender need not be the first one's.
    pub cursor: Option<Position>,
}

/// One client.
#[derive(Debug)]
pub struct Subscriber<T> {
    greeting: Greeting,
    by: By,
    /// Whether it is ours to say what the client is called.
    named: bool,
    scope: Scope,
    subscriptions: BTreeMap<SessionId, Subscription>,
    /// Subscriptions that have something to read; one leaves only when a read says so (I4c).
    behind: BTreeSet<SessionId>,
    /// Whose turn it was: the next one is after it.
    last_read: Option<SessionId>,
    /// What its messages still ask for. Not empty: no further message is taken.
    todo: VecDeque<Step>,
    outbox: VecDeque<Reply<T>>,
    /// It says that a person sees it.
    visible: bool,
}

#[derive(Debug)]
struct Subscription {
    cursor: Position,
    mark: Option<Mark>,
}

/// What was durable at the time of the subscribe: `caught_up` is due on passing it.
#[derive(Debug)]
struct Mark {
    at: Position,
    run: Option<RunId>,
    seq: Seq,
}

#[derive(Debug)]
enum Step {
    Do(Action),
    Say(GatewayFrame, Option<String>),
}

#[derive(Debug)]
struct Reply<T> {
    /// Boxed: replies are moved about, and the stack that this takes is kept by idle clients.
    frame: Box<GatewayFrame>,
    to: ReplyTo,
    /// Not to be said before this is committed.
    ticket: Option<T>,
    /// A session that is followed once it is said, unless it is already.
    follow: Option<(SessionId, Position)>,
}

impl<T: Ticket> Subscriber<T> {
    /// A client that just came; `greet` it first.
    pub fn new(greeting: Greeting, caller: &Caller) -> Self {
        Self {
            greeting,
            by: caller.by.clone(),
            named: caller.is_named(),
            scope: caller.scope,
            subscriptions: BTreeMap::new(),
            behind: BTreeSet::new(),
            last_read: None,
            todo: VecDeque::new(),
            outbox: VecDeque::new(),
            visible: false,
        }
    }

    /// The first thing that a client hears is `hello`.
    pub fn greet(&mut self) {
        let hello = self.hello();
        self.reply(hello, ReplyTo::default());
    }

    /// Who acts through this connection.
    #[must_use]
    pub fn by(&self) -> &By {
        &self.by
    }

    /// Whether another message may be read: a client that does not take its replies is not
    /// listened to (I7).
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.todo.is_empty() && self.outbox.len() < limits::OUTBOX_MAX
    }

    /// A message came.
    pub fn message(&mut self, frame: ClientFrame, now: Millis) {
        let reference = frame.reference;
        let step = match frame.message {
            Err(malformed) => say_error(malformed, reference),
            Ok(message) if scope::of_frame(&message) > self.scope => {
                let error = scope::forbidden(scope::of_frame(&message));
                let session = named_session(&message);
                let malformed = Malformed { code: ErrorCode::Forbidden, error, session };
                say_error(malformed, reference)
            }
            Ok(ClientMessage::Hello { client, .. }) => {
                self.introduce(client);
                Step::Say(self.hello(), reference)
            }
            Ok(ClientMessage::Ping) => {
                Step::Say(GatewayFrame::Pong { server_time: now.to_string() }, reference)
            }
            Ok(ClientMessage::Presence { visible }) => {
                self.visible = visible;
                Step::Say(GatewayFrame::Ack(Ack::of("presence")), reference)
            }
            Ok(ClientMessage::Send { session: named, prompt }) => match session_id(&named) {
                None => unknown_session(named, ErrorCode::SessionNotFound, reference),
                Some(session) => Step::Do(Action::Send {
                    prompt: SendPrompt {
                        session,
                        content: prompt.content,
                        options: prompt.options,
                        client_message_id: prompt.client_message_id,
                        when_busy: prompt.when_busy,
                        by: self.by.clone(),
                    },
                    reply: ReplyTo { reference, session: Some(named) },
                }),
            },
            Ok(ClientMessage::Abort { session: named, run }) => match session_id(&named) {
                None => unknown_session(named, ErrorCode::NoActiveRun, reference),
                Some(session) => {
                    let reply = ReplyTo { reference, session: Some(named) };
                    Step::Do(Action::Abort { session, run, reply })
                }
            },
            Ok(ClientMessage::Answer { request, answer }) => {
                let reply = ReplyTo { reference, session: None };
                Step::Do(Action::Answer { request, answer, reply })
            }
            Ok(ClientMessage::Subscribe { targets, epoch }) => {
                let steps = targets.into_iter().map(|target| match target {
                    Ok(target) => self.subscribe(target.session, target.begin, epoch, &reference),
                    Err(malformed) => say_error(malformed, reference.clone()),
                });
                let steps: Vec<_> = steps.collect();
                self.todo.extend(steps);
                return;
            }
            Ok(ClientMessage::Unsubscribe { sessions }) => {
                let steps = sessions.into_iter().map(|session| match session {
                    Ok(named) => unsubscribe(named, &reference),
                    Err(malformed) => say_error(malformed, reference.clone()),
                });
                self.todo.extend(steps);
                return;
            }
        };
        self.todo.push_back(step);
    }

    /// What is to be done next, while the outbox has room for the reply.
    pub fn next_action(&mut self) -> Option<Action> {
        while self.outbox.len() < limits::OUTBOX_MAX {
            match self.todo.pop_front()? {
                Step::Do(action) => return Some(action),
                Step::Say(frame, reference) => {
                    self.reply(frame, ReplyTo { reference, session: None });
                }
            }
        }
        None
    }

    /// The registry said no.
    pub fn refused(&mut self, reply: ReplyTo, code: ErrorCode, error: String) {
        let malformed = Malformed { code, error, session: reply.session.clone() };
        self.reply(GatewayFrame::error(malformed, reply.reference.as_deref()), reply);
    }

    /// A prompt became a run. The client follows it from its head, once it was told of it and
    /// unless it follows the session already: no cursor that it has is moved.
    pub fn accepted(
        &mut self,
        reply: ReplyTo,
        accepted: AcceptedRun,
        client_message_id: Option<ClientMessageId>,
        ticket: T,
    ) {
        let AcceptedRun { session, run, duplicate, cursor } = accepted;
        let frame = GatewayFrame::ChatAccepted {
            session_id: session,
            run_id: run,
            client_message_id,
            duplicate,
        };
        let follow = Some((session, cursor));
        let frame = Box::new(frame);
        self.outbox.push_back(Reply { frame, to: reply, ticket: Some(ticket), follow });
    }

    /// A prompt waits. The client follows the session from there, unless it does already: the run
    /// that its prompt becomes arrives by itself.
    pub fn queued(
        &mut self,
        reply: ReplyTo,
        session: SessionId,
        queued: QueuedPrompt,
        client_message_id: Option<ClientMessageId>,
        ticket: T,
    ) {
        let QueuedPrompt { id, position, duplicate, cursor } = queued;
        let frame = GatewayFrame::ChatQueued {
            session_id: session,
            queue_id: id,
            position,
            client_message_id,
            duplicate,
        };
        let follow = cursor.map(|cursor| (session, cursor));
        let frame = Box::new(frame);
        self.outbox.push_back(Reply { frame, to: reply, ticket: Some(ticket), follow });
    }

    /// Something was done, or will be once `ticket` is committed.
    pub fn acknowledged(&mut self, reply: ReplyTo, ack: Ack, ticket: Option<T>) {
        let frame = Box::new(GatewayFrame::Ack(ack));
        self.outbox.push_back(Reply { frame, to: reply, ticket, follow: None });
    }

    /// A session is followed from now on, or is not.
    pub fn subscribed(
        &mut self,
        reply: ReplyTo,
        session: SessionId,
        outcome: Result<Subscribed, SubscribeError>,
    ) {
        let named = reply.session.clone().unwrap_or_else(|| session.to_string());
        let refused = |code| ChatSubscribed::refused(named.clone(), code, self.greeting.epoch);
        let subscribed = match outcome {
            Ok(subscribed) => subscribed,
            Err(SubscribeError::SessionNotFound) => {
                let frame = refused(ErrorCode::SessionNotFound);
                return self.reply(GatewayFrame::ChatSubscribed(Box::new(frame)), reply);
            }
            Err(SubscribeError::RunNotFound) => {
                let frame = refused(ErrorCode::RunNotFound);
                return self.reply(GatewayFrame::ChatSubscribed(Box::new(frame)), reply);
            }
            Err(SubscribeError::StoreUnavailable(error)) => {
                return self.refused(reply, ErrorCode::StoreUnavailable, error);
            }
        };
        let Subscribed { cursor, durable, .. } = subscribed;
        let mark =
            Mark { at: durable, run: subscribed.statement.run, seq: subscribed.statement.last_seq };
        let frame = GatewayFrame::ChatSubscribed(Box::new(statement(
            named,
            subscribed,
            self.greeting.epoch,
        )));
        self.reply(frame, reply);
        let mut subscription = Subscription { cursor, mark: Some(mark) };
        if let Some(frame) = subscription.pass_mark(session) {
            self.reply(frame, ReplyTo::default());
        }
        self.subscriptions.insert(session, subscription);
        self.behind.insert(session);
    }

    /// The client follows a session no longer, nor will it because of a prompt that it sent
    /// before.
    pub fn unsubscribed(&mut self, session: SessionId) {
        self.ended(session);
        for reply in &mut self.outbox {
            reply.follow.take_if(|(followed, _)| *followed == session);
        }
    }

    /// The next frame to send, if one is ready: later ones may overtake one that waits.
    pub fn next_reply(&mut self, now: Millis) -> Option<Utf8Bytes> {
        let settled = |reply: &Reply<T>| match &reply.ticket {
            None => Settled::Committed,
            Some(ticket) => ticket.settled(),
        };
        let mut ready = self.outbox.iter().enumerate().map(|(at, reply)| (at, settled(reply)));
        let (at, outcome) = ready.find(|(_, outcome)| *outcome != Settled::Waiting)?;
        let reply = self.outbox.remove(at)?;
        if self.outbox.is_empty() {
            // An idle client should cost as little as it can.
            self.outbox = VecDeque::new();
        }
        let reference = reply.to.reference.as_deref();
        if outcome == Settled::Rejected {
            let error = "The store refused to write this; the run's end says more.".to_owned();
            let session = reply.to.session;
            let malformed = Malformed { code: ErrorCode::InternalError, error, session };
            return Some(GatewayFrame::error(malformed, reference).encode(reference, now));
        }
        if let Some((session, cursor)) = reply.follow
            && self.has_room()
        {
            let follow = || Subscription { cursor, mark: None };
            self.subscriptions.entry(session).or_insert_with(follow);
            self.behind.insert(session);
        }
        Some(reply.frame.encode(reference, now))
    }

    /// These sessions have something new.
    pub fn woken(&mut self, sessions: BTreeSet<SessionId>) {
        let followed = sessions.into_iter().filter(|one| self.subscriptions.contains_key(one));
        self.behind.extend(followed);
    }

    /// Where to read next: round robin over the sessions that are behind.
    pub fn next_read(&mut self) -> Option<(SessionId, Position)> {
        let after = self.last_read.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.behind.range((after, Bound::Unbounded));
        let session = rest.next().or_else(|| self.behind.first()).copied()?;
        self.last_read = Some(session);
        let subscription = self.subscriptions.get(&session)?;
        Some((session, subscription.cursor))
    }

    /// Whether the client says that a person sees it, and that person could do something about it:
    /// who may only look keeps no notification from those who can answer.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        self.visible && self.scope >= Scope::Control
    }

    /// The sessions that it follows, in their order.
    pub fn followed(&self) -> impl Iterator<Item = SessionId> {
        self.subscriptions.keys().copied()
    }

    /// How far a followed session was read.
    #[must_use]
    pub fn cursor(&self, session: SessionId) -> Option<Position> {
        self.subscriptions.get(&session).map(|subscription| subscription.cursor)
    }

    /// A frame was sent, or a gap told: the cursor moves. Gives the `caught_up` that is due.
    pub fn passed(&mut self, session: SessionId, at: Position) -> Option<GatewayFrame> {
        let subscription = self.subscriptions.get_mut(&session)?;
        debug_assert!(subscription.cursor <= at, "I4: a cursor only moves on");
        subscription.cursor = at;
        subscription.pass_mark(session)
    }

    /// A read found nothing more, for now.
    pub fn caught_up(&mut self, session: SessionId) {
        self.behind.remove(&session);
    }

    /// Nothing more will come of a session.
    pub fn ended(&mut self, session: SessionId) {
        self.subscriptions.remove(&session);
        self.behind.remove(&session);
    }

    /// Whether nothing is left to read, for now.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.behind.is_empty()
    }

    /// Whether the client is owed nothing and follows nothing: a draining server may go.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.subscriptions.is_empty() && self.outbox.is_empty() && self.todo.is_empty()
    }

    /// A client names itself: kept for the record of who did what.
    fn introduce(&mut self, client: Option<String>) {
        let Some(client) = client.filter(|client| !client.trim().is_empty()) else { return };
        if self.by.kind == ByKind::Api && client.starts_with(CLI) {
            self.by.kind = ByKind::Cli;
        }
        if !self.named {
            self.by.name = client.chars().take(64).collect();
        }
    }

    fn hello(&self) -> GatewayFrame {
        let Greeting { server, heartbeat_ms, limits, epoch } = self.greeting.clone();
        GatewayFrame::Hello { protocol: VERSION, server, heartbeat_ms, limits, log_epoch: epoch }
    }

    fn reply(&mut self, frame: GatewayFrame, to: ReplyTo) {
        let frame = Box::new(frame);
        self.outbox.push_back(Reply { frame, to, ticket: None, follow: None });
    }

    fn has_room(&self) -> bool {
        self.subscriptions.len() < limits::SUBSCRIPTIONS_MAX
    }

    fn subscribe(
        &self,
        named: String,
        begin: Begin,
        epoch: Option<LogEpoch>,
        reference: &Option<String>,
    ) -> Step {
        let reference = reference.clone();
        let Some(session) = session_id(&named) else {
            let epoch = self.greeting.epoch;
            let refused = ChatSubscribed::refused(named, ErrorCode::SessionNotFound, epoch);
            return Step::Say(GatewayFrame::ChatSubscribed(Box::new(refused)), reference);
        };
        if !self.subscriptions.contains_key(&session) && !self.has_room() {
            let error = "A connection may follow 1024 sessions; unsubscribe from some first.";
            let code = ErrorCode::InvalidField;
            let malformed = Malformed { code, error: error.to_owned(), session: Some(named) };
            return say_error(malformed, reference);
        }
        let from = match begin {
            Begin::After { run, last_seq } => From::Cursor { run, last_seq },
            Begin::Start => From::Start,
            Begin::Tail => From::Tail,
            Begin::Legacy { last_seq } => From::Legacy { last_seq },
        };
        let target = Target { session, from, epoch };
        Step::Do(Action::Subscribe { target, reply: ReplyTo { reference, session: Some(named) } })
    }
}

impl Subscription {
    fn pass_mark(&mut self, session_id: SessionId) -> Option<GatewayFrame> {
        let mark = self.mark.take_if(|mark| self.cursor >= mark.at)?;
        Some(GatewayFrame::CaughtUp { session_id, run_id: mark.run, seq: mark.seq })
    }
}

/// The session that a frame of which nothing comes speaks of, for its error.
fn named_session(message: &ClientMessage) -> Option<String> {
    match message {
        ClientMessage::Send { session, .. } | ClientMessage::Abort { session, .. } => {
            Some(session.clone())
        }
        _ => None,
    }
}

fn say_error(malformed: Malformed, reference: Option<String>) -> Step {
    Step::Say(GatewayFrame::error(malformed, reference.as_deref()), reference)
}

fn unknown_session(named: String, code: ErrorCode, reference: Option<String>) -> Step {
    let error = match code {
        ErrorCode::NoActiveRun => format!("Session \"{named}\" has no active run."),
        _ => format!("Session \"{named}\" was not found. Create it first."),
    };
    say_error(Malformed { code, error, session: Some(named) }, reference)
}

fn unsubscribe(named: String, reference: &Option<String>) -> Step {
    let reference = reference.clone();
    match session_id(&named) {
        Some(session) => {
            let reply = ReplyTo { reference, session: Some(named) };
            Step::Do(Action::Unsubscribe { session, reply })
        }
        // What nobody can follow is followed no longer: the wish is fulfilled.
        None => {
            let ack = Ack { session_id: Some(named), ..Ack::of("chat.unsubscribe") };
            Step::Say(GatewayFrame::Ack(ack), reference)
        }
    }
}

#[cfg(test)]
#[path = "subscriber_tests.rs"]
mod tests;
