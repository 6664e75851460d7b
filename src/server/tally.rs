//! What one WebSocket counts, in values of its own: the shared counters are touched once a turn.
//!
//! Must not know sockets or what a frame says, but for its time.

use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use crate::metrics::Client;
use crate::metrics::labels::{Attach, Drop, Transport};
use crate::registry::{From, Subscribed, Target};
use crate::run::event::{By, ByKind};
use crate::run::id::{Millis, Position, SessionId};

/// The counters of one connection.
#[derive(Debug)]
pub(super) struct Tally {
    client: Client,
    /// Subscriptions that are being sent what they had missed.
    replays: Vec<Replay>,
    /// Live events sent since the client had everything.
    behind: u32,
    /// The time of a live event that tungstenite has and the socket may not have yet.
    unflushed: Option<Millis>,
}

#[derive(Debug)]
struct Replay {
    session: SessionId,
    since: Instant,
    events: u64,
}

impl Tally {
    /// Counts for this client.
    pub(super) const fn new(client: Client) -> Self {
        Self { client, replays: Vec::new(), behind: 0, unflushed: None }
    }

    /// The transport under which such a client counts.
    pub(super) const fn transport(by: &By) -> Transport {
        match by.kind {
            ByKind::Cli => Transport::Cli,
            _ => Transport::WebSocket,
        }
    }

    /// It may have said its name.
    pub(super) fn is(&mut self, by: &By) {
        self.client.is(Self::transport(by));
    }

    /// It follows a session from `subscribed` on.
    pub(super) fn subscribed(&mut self, target: &Target, subscribed: &Subscribed) {
        let resumes = match target.from {
            From::Cursor { last_seq, .. } => last_seq.is_some(),
            From::Legacy { last_seq } => last_seq.0 > 0,
            From::Start | From::Tail => false,
        };
        self.client.attached(if resumes { Attach::Resume } else { Attach::New });
        self.left(target.session);
        if subscribed.cursor < subscribed.durable {
            let (session, since) = (target.session, Instant::now());
            self.replays.push(Replay { session, since, events: 0 });
        }
    }

    /// A frame was handed on.
    pub(super) fn sent(&mut self, session: SessionId, at: Position) {
        // Seq 0 is a run's head, which is no event.
        if at.seq.0 == 0 {
            return;
        }
        match self.replays.iter_mut().find(|replay| replay.session == session) {
            Some(replay) => replay.events += 1,
            None => self.behind = self.behind.saturating_add(1),
        }
    }

    /// Whether what comes of a session is new, and nothing that the client had missed.
    pub(super) fn is_live(&self, session: SessionId) -> bool {
        self.replays.iter().all(|replay| replay.session != session)
    }

    /// A live event of that time was handed on, the last one of a read.
    pub(super) fn sent_live(&mut self, time: Option<Millis>) {
        self.unflushed = time.or(self.unflushed);
    }

    /// The socket has taken everything.
    pub(super) fn flushed(&mut self) {
        if let Some(time) = self.unflushed.take() {
            let after = u64::try_from(Millis::now().0 - time.0).unwrap_or(0);
            self.client.delivered(Duration::from_millis(after));
        }
    }

    /// What it had missed of a session was sent.
    pub(super) fn replayed(&mut self, session: SessionId) {
        if let Some(at) = self.replays.iter().position(|replay| replay.session == session) {
            let replay = self.replays.swap_remove(at);
            self.client.replayed(replay.events, replay.since.elapsed());
            if self.replays.is_empty() {
                // An idle client should cost as little as it can.
                self.replays = Vec::new();
            }
        }
    }

    /// It has everything there is.
    pub(super) fn caught_up(&mut self) {
        if self.behind > 0 {
            self.client.caught_up(std::mem::take(&mut self.behind));
        }
    }

    /// It follows a session no longer.
    pub(super) fn left(&mut self, session: SessionId) {
        self.replays.retain(|replay| replay.session != session);
    }

    /// The connection ends.
    pub(super) fn ended(&self, why: Drop) {
        self.client.dropped(why);
    }
}

/// Why a WebSocket ends that we close with this code, or that its client closes.
pub(super) const fn why(code: Option<CloseCode>) -> Drop {
    match code {
        None => Drop::Peer,
        Some(CloseCode::Away) => Drop::Shutdown,
        Some(CloseCode::Library(4000)) => Drop::Slow,
        Some(CloseCode::Library(4001)) => Drop::Heartbeat,
        Some(CloseCode::Library(4002)) => Drop::Rate,
        Some(CloseCode::Library(4500)) => Drop::Auth,
        Some(_) => Drop::Protocol,
    }
}

/// When an event's frame says that it happened. All frames of events begin alike.
pub(super) fn time_of(frame: &str) -> Option<Millis> {
    const NAME: &str = "\"timestamp\":\"";
    let head = frame.get(..128).unwrap_or(frame);
    let rest = &head[head.find(NAME)? + NAME.len()..];
    let time: jiff::Timestamp = rest.split('"').next()?.parse().ok()?;
    Some(Millis(time.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::Encoder;
    use crate::run::event::Event;
    use crate::run::id::{RunId, Seq};

    #[test]
    fn a_frame_tells_its_time() {
        let session = SessionId::from_u128(1);
        let mut encoder = Encoder::new(session, RunId::from_u128(2), "p", 1 << 20);
        let content = "é".repeat(200);
        let event = Event::Text { content, role: None, block_id: None, parent_tool_id: None };
        let frame = encoder.encode(Seq(u64::MAX), Millis(1_234_567_890_123), &event);
        assert_eq!(time_of(&frame.text), Some(Millis(1_234_567_890_123)));
        assert_eq!(time_of("{}"), None);
        assert_eq!(time_of("{\"timestamp\":\"soon\"}"), None);
    }
}
