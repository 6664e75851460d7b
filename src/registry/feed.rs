//! The one read path: the ring, else the disk, else a gap. Replay and live are the same read.
//!
//! Must not know who reads or how it is sent.

use tungstenite::Utf8Bytes;

use crate::registry::session::{EndOfSession, Session, Watched};
use crate::registry::shelf::{Gap, Kept, Place, ShelfError};
use crate::registry::{Registry, StoreState};
use crate::run::id::{LogEpoch, Ordinal, Position, RunId, Seq, SessionId};
use crate::run::log;
use crate::run::queue::Queued;
use crate::run::state::Statement;
use crate::run::wake::Waker;
use crate::sync::Arc;

/// What a client asks to hear.
#[derive(Clone, Debug)]
pub struct Target {
    /// Of which session.
    pub session: SessionId,
    /// From where.
    pub from: From,
    /// The incarnation of the log that its cursor speaks of, if it says so.
    pub epoch: Option<LogEpoch>,
}

/// From where a client wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// After the last thing it saw of a run; without `last_seq` from that run's head on.
    Cursor {
        /// Which run.
        run: RunId,
        /// The last seq it saw.
        last_seq: Option<Seq>,
    },
    /// From the oldest that is kept.
    Start,
    /// Only what comes.
    Tail,
    /// As older clients mean it: the running run after `last_seq`; of a finished run nothing.
    Legacy {
        /// The last seq it saw, of whatever run.
        last_seq: Seq,
    },
}

/// A subscription, as `chat_subscribed` says it.
#[derive(Clone, Debug)]
pub struct Subscribed {
    /// The session's durable state.
    pub statement: Statement,
    /// The oldest kept seq of the newest run; 0 if none is kept.
    pub first_seq: Seq,
    /// Whether what the client has and what follows is everything.
    pub recovered: bool,
    /// Its cursor was ahead of the log, or of another incarnation.
    pub rewound: bool,
    /// What of it is gone.
    pub gap: Option<Gap>,
    /// Where reading starts.
    pub cursor: Position,
    /// What was durable at this moment: on passing it the reader is caught up.
    pub durable: Position,
    /// The prompts that wait, and whether they are held.
    pub queue: (Vec<Queued>, bool),
}

/// Why nothing was subscribed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscribeError {
    /// No such session.
    SessionNotFound,
    /// The run is another session's.
    RunNotFound,
    /// The disk cannot be read.
    StoreUnavailable(String),
}

/// What a reader gets.
#[derive(Debug)]
pub enum Read {
    /// The next frames, at least one.
    Frames(Vec<(Position, Utf8Bytes)>),
    /// The next part is gone; read on from `cursor`.
    Gap {
        /// What.
        gap: Gap,
        /// The position after it.
        cursor: Position,
    },
    /// Nothing more yet; the reader will be woken.
    CaughtUp,
    /// Nothing more ever: the session is deleted, or the server stops.
    Ended,
    /// The disk cannot be read now; try again later.
    Unavailable(String),
}

impl std::convert::From<ShelfError> for SubscribeError {
    fn from(error: ShelfError) -> Self {
        Self::StoreUnavailable(error.to_string())
    }
}

impl Registry {
    /// Gives `waker` a slot in a session and says where its reading starts. A repeated subscribe
    /// replaces the cursor, which is the caller's.
    pub fn subscribe(&self, waker: &Waker, target: &Target) -> Result<Subscribed, SubscribeError> {
        loop {
            let session = self.look_up(target.session)?.filter(|session| !session.is_deleted());
            let session = session.ok_or(SubscribeError::SessionNotFound)?;
            let named = match target.from {
                From::Cursor { run, .. } => self.place_of(&session, run)?,
                _ => Named::Unknown,
            };
            if named == Named::Elsewhere {
                return Err(SubscribeError::RunNotFound);
            }
            // What is gone is looked up before the slot is given, so that no lock is held across
            // the disk; what retention takes in between is told as a gap in mid-stream.
            let start = self.start(&session, target, named)?;
            let queue = self.shelf.queue(target.session)?;
            match session.watch(waker) {
                Ok(watched) if start.still_holds(target, &watched) => {
                    return Ok(subscribed(&start, target, watched, queue));
                }
                // A run began or ended in between, which decides what is left out: look again.
                Ok(_) => {}
                Err(EndOfSession::Evicted) => {}
                Err(_) => return Err(SubscribeError::SessionNotFound),
            }
        }
    }

    /// A sender hears its run without asking: a slot, and no cursor that it already has is moved
    /// (that is the caller's).
    pub fn watch(&self, waker: &Waker, session: SessionId) -> bool {
        loop {
            let Ok(Some(session)) = self.look_up(session) else { return false };
            match session.watch(waker) {
                Ok(_) => return true,
                Err(EndOfSession::Evicted) => {}
                Err(_) => return false,
            }
        }
    }

    /// A read gave `Ended`: a new slot, if that was because the session left memory (the store
    /// refused what it wrote) and is still there. `false`: it is deleted, or the server stops.
    pub fn watch_on(&self, waker: &Waker, session: SessionId) -> bool {
        let closing = self.map.lock().closing;
        closing.is_none() && self.watch(waker, session)
    }

    /// Whether the server stops: what ends then was not deleted.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.map.lock().closing.is_some()
    }

    /// Takes `waker`'s slot in a session away.
    pub fn unsubscribe(&self, waker: &Waker, session: SessionId) {
        if let Some(session) = self.in_memory(session) {
            session.unwatch(waker);
        }
    }

    /// What comes after `cursor`: about `budget` bytes, at least one frame whatever the budget.
    #[must_use]
    pub fn read(&self, waker: &Waker, session: SessionId, cursor: Position, budget: usize) -> Read {
        // A session that somebody subscribed to stays in memory; gone, it was deleted.
        let Some(session) = self.in_memory(session) else { return Read::Ended };
        let mut cursor = cursor;
        loop {
            match session.read(cursor, budget, waker) {
                log::Read::Frames(frames) => return Read::Frames(frames),
                log::Read::CaughtUp => return Read::CaughtUp,
                log::Read::Ended => return Read::Ended,
                log::Read::Evicted { to } => {
                    match self.shelf.frames(session.id(), cursor, to, budget) {
                        Ok(Kept::Frames(frames)) if frames.is_empty() => cursor = to,
                        Ok(Kept::Frames(frames)) => return Read::Frames(frames),
                        Ok(Kept::Gone { gap, to }) => return Read::Gap { gap, cursor: to },
                        Err(error) => return Read::Unavailable(error.to_string()),
                    }
                }
            }
        }
    }

    /// The id of the run with this place.
    pub fn run_at(
        &self,
        session: SessionId,
        ordinal: Ordinal,
    ) -> Result<Option<RunId>, ShelfError> {
        if let Some(run) = self.in_memory(session).and_then(|session| session.run_at(ordinal)) {
            return Ok(Some(run));
        }
        self.shelf.run_at(session, ordinal)
    }

    fn place_of(&self, session: &Session, run: RunId) -> Result<Named, ShelfError> {
        if let Some((ordinal, last_seq)) = session.locate(run) {
            return Ok(Named::Here { ordinal, last_seq });
        }
        Ok(match self.shelf.locate(run)? {
            None => Named::Unknown,
            Some(place) if place.session != session.id() => Named::Elsewhere,
            Some(Place { ordinal, last_seq, .. }) => Named::Here { ordinal, last_seq },
        })
    }

    fn start(
        &self,
        session: &Arc<Session>,
        target: &Target,
        named: Named,
    ) -> Result<Start, ShelfError> {
        let Watched { statement, durable, evicted } = session.look();
        let stale = target.epoch.is_some_and(|epoch| epoch != self.epoch);
        let mut start = Start {
            seen: (statement.run, statement.is_processing),
            cursor: durable,
            rewound: false,
            gap: None,
            skips: false,
            pruned: None,
        };
        if let Some(newest) = statement.run.filter(|_| evicted >= durable) {
            let pruned = self.shelf.locate(newest)?.is_some_and(|place| place.pruned);
            start.pruned = pruned.then_some(newest);
        }
        match (target.from, named) {
            (From::Cursor { last_seq, .. }, Named::Here { ordinal, last_seq: newest }) => {
                let ahead = last_seq.is_some_and(|seq| seq > newest);
                start.rewound = ahead || stale;
                start.cursor = match last_seq {
                    Some(seq) if !start.rewound => Position::new(ordinal, seq),
                    _ => Position::before_run(ordinal),
                };
            }
            (From::Cursor { run, last_seq }, _) => {
                // Unknown or pruned with its row: what the client names is gone.
                start.cursor = Position::START;
                start.rewound = stale;
                let to = (run, last_seq.unwrap_or_default());
                start.gap = Some(Gap { from: None, to });
            }
            (From::Start, _) => start.cursor = Position::START,
            (From::Tail, _) => start.skips = durable > Position::START,
            (From::Legacy { last_seq }, _) if statement.is_processing => {
                let seq = if last_seq > statement.last_seq || stale { Seq(0) } else { last_seq };
                start.cursor = Position::new(statement.ordinal, seq);
                start.rewound = stale && last_seq > Seq(0);
            }
            (From::Legacy { last_seq }, _) => start.skips = last_seq != statement.last_seq,
        }
        if start.cursor < evicted {
            // One frame is enough to learn whether the next part is there.
            if let Kept::Gone { gap, to } =
                self.shelf.frames(session.id(), start.cursor, evicted, 1)?
            {
                start.cursor = to;
                let from = start.gap.map_or(gap.from, |unknown| unknown.from);
                start.gap = Some(Gap { from, to: gap.to });
            }
        }
        Ok(start)
    }
}

/// What is known of the run that a cursor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// This session's.
    Here { ordinal: Ordinal, last_seq: Seq },
    /// Another session's.
    Elsewhere,
    /// Nobody's.
    Unknown,
}

struct Start {
    /// The newest run that it was made for, and whether that run was on.
    seen: (Option<RunId>, bool),
    cursor: Position,
    rewound: bool,
    gap: Option<Gap>,
    /// The client asked to leave something out.
    skips: bool,
    /// The session's newest run, if retention took its events.
    pruned: Option<RunId>,
}

impl Start {
    /// Whether what is left out is still the same.
    fn still_holds(&self, target: &Target, watched: &Watched) -> bool {
        match target.from {
            From::Cursor { .. } | From::Start => true,
            From::Tail | From::Legacy { .. } => {
                self.seen == (watched.statement.run, watched.statement.is_processing)
            }
        }
    }
}

fn subscribed(
    start: &Start,
    target: &Target,
    watched: Watched,
    queue: (Vec<Queued>, bool),
) -> Subscribed {
    let Watched { statement, durable, .. } = watched;
    // The tail is whatever is durable when the slot is given.
    let cursor = match target.from {
        From::Tail => durable,
        From::Legacy { .. } if !statement.is_processing => durable,
        _ => start.cursor,
    };
    let pruned = statement.run.is_some() && start.pruned == statement.run;
    let first_seq = if pruned { Seq(0) } else { statement.last_seq.min(Seq(1)) };
    Subscribed {
        queue,
        first_seq,
        recovered: start.gap.is_none() && !start.skips && !start.rewound,
        rewound: start.rewound,
        gap: start.gap,
        cursor,
        durable,
        statement,
    }
}

/// The store's state, for whom it concerns.
impl Registry {
    /// Whether the store can commit.
    #[must_use]
    pub fn store_state(&self) -> StoreState {
        self.broadcasts.store()
    }
}
