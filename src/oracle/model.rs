//! The reference: what sessions and runs are, as plain history that is never truncated.
//!
//! It is written from the promises, not from the code: two states per session, as appended and as
//! on disk; a commit copies the first to the second, a crash or a refusal the second to the
//! first. It says what a reader must get, and where a gap is *not* allowed (I4b). Must not know
//! rings, wakers or locks.

use std::collections::{BTreeMap, BTreeSet};

use crate::run::id::{NativeId, Ordinal, Position, QueueId, RequestId, RunId, Seq, SessionId};

/// All sessions that ever were.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// In the order of their ids.
    pub(super) sessions: Vec<SessionModel>,
    /// Whether the last round of the store failed.
    pub(super) store_bad: bool,
}

/// One session.
#[derive(Clone, Debug)]
pub(super) struct SessionModel {
    /// Its id.
    pub(super) id: SessionId,
    /// As appended: what decisions use.
    pub(super) now: State,
    /// As on disk: what statements and readers use.
    pub(super) durable: State,
    /// Facts appended, and how many of them are on disk.
    pub(super) version: u64,
    /// See `version`.
    pub(super) durable_version: u64,
    /// Runs whose events retention took.
    pub(super) pruned: BTreeSet<u32>,
    /// Whether a commit of what is appended is to be announced.
    pub(super) news: News,
}

/// Whether a list of sessions looks different after a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum News {
    /// It does not.
    #[default]
    None,
    /// It does, if the session is in the ordinary list.
    UnlessArchived,
    /// It does.
    Always,
}

/// A session's facts.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Made, and not deleted.
    pub(super) exists: bool,
    /// Its title.
    pub(super) title: Option<String>,
    /// Out of the ordinary list.
    pub(super) archived: bool,
    /// The provider's own id.
    pub(super) native: Option<NativeId>,
    /// Oldest first; run k is the (k - 1)th.
    pub(super) runs: Vec<RunModel>,
    /// What waits, in order.
    pub(super) queue: Vec<QueuedModel>,
    /// Whether an abort holds it.
    pub(super) held: bool,
    /// Messages that were taken out.
    pub(super) removed: BTreeSet<u8>,
}

/// A prompt that waits.
#[derive(Clone, Debug)]
pub(super) struct QueuedModel {
    /// As what.
    pub(super) id: QueueId,
    /// What it says.
    pub(super) content: u8,
    /// Its message's id; 0 for none.
    pub(super) message: u8,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct RunModel {
    /// Its id.
    pub(super) id: RunId,
    /// What each frame says, by seq; 0 is the head.
    pub(super) said: Vec<String>,
    /// When it ended, if it has.
    pub(super) ended_at: Option<i64>,
    /// Whether somebody asked it to stop.
    pub(super) abort: bool,
    /// Tool calls without a result.
    pub(super) tools: Vec<String>,
    /// Permission requests.
    pub(super) asked: BTreeMap<RequestId, Asked>,
    /// The message that began it: its id and content.
    pub(super) message: Option<(u8, u8)>,
}

/// A permission request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// At which seq.
    pub(super) seq: u64,
    /// How it stands.
    pub(super) answer: Answer,
}

/// How a permission request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It waits.
    Open,
    /// It has an answer that the agent does not have yet.
    Recorded,
    /// Nothing more is to happen.
    Done,
}

impl Model {
    /// Who has this native id, as decided or on disk.
    #[must_use]
    pub(super) fn owner(&self, native: &NativeId) -> Option<SessionId> {
        // A deleted one has it until the deletion is on disk.
        let has = |state: &State| state.native.as_ref() == Some(native);
        let owner = self.sessions.iter().find(|session| has(&session.now) || has(&session.durable));
        owner.map(|session| session.id)
    }

    /// The session and place of a run that is on disk.
    #[must_use]
    pub(super) fn locate(&self, run: RunId) -> Option<(SessionId, Ordinal)> {
        self.sessions
            .iter()
            .filter(|session| session.durable.exists)
            .find_map(|session| Some((session.id, session.durable.ordinal_of(run)?)))
    }
}

impl SessionModel {
    /// A session that is not made yet.
    #[must_use]
    pub(super) fn new(id: SessionId) -> Self {
        Self {
            id,
            now: State::default(),
            durable: State::default(),
            version: 0,
            durable_version: 0,
            pruned: BTreeSet::new(),
            news: News::None,
        }
    }

    /// A fact was appended.
    pub(super) fn note(&mut self, news: News) -> u64 {
        self.version += 1;
        self.news = self.news.max(news);
        self.version
    }

    /// Whether something waits for the store.
    #[must_use]
    pub(super) const fn is_behind(&self) -> bool {
        self.version != self.durable_version
    }

    /// Everything appended is on disk. Says whether that is announced.
    pub(super) fn commit(&mut self) -> bool {
        if !self.now.exists {
            self.now = State::default();
        }
        self.durable = self.now.clone();
        self.durable_version = self.version;
        match std::mem::take(&mut self.news) {
            News::None => false,
            News::UnlessArchived => !self.now.archived,
            News::Always => true,
        }
    }

    /// What is not on disk is gone.
    pub(super) fn roll_back(&mut self) {
        self.now = self.durable.clone();
        self.version += 1;
        self.durable_version = self.version;
        self.news = News::None;
    }

    /// What comes after `cursor` on disk: its position and what it says.
    #[must_use]
    pub(super) fn next_after(&self, cursor: Position) -> Option<(Position, &str)> {
        self.durable.frames().find(|(at, _)| *at > cursor)
    }

    /// The gap that a reader at `cursor` must be told of, if memory has only what comes after
    /// `evicted`: its first and its last position. `None`: no gap is allowed.
    #[must_use]
    pub(super) fn gap_after(
        &self,
        cursor: Position,
        evicted: Position,
    ) -> Option<(Position, Position)> {
        let gone = |at: &Position| *at <= evicted && self.pruned.contains(&at.ordinal.0);
        let after = self.durable.frames().map(|(at, _)| at).skip_while(|at| *at <= cursor);
        let range: Vec<_> = after.take_while(gone).collect();
        Some((*range.first()?, *range.last()?))
    }
}

impl State {
    /// The run without an end.
    #[must_use]
    pub(super) fn running(&self) -> Option<&RunModel> {
        self.runs.last().filter(|run| run.ended_at.is_none())
    }

    /// See `running`.
    pub(super) fn running_mut(&mut self) -> Option<&mut RunModel> {
        self.runs.last_mut().filter(|run| run.ended_at.is_none())
    }

    /// The last position.
    #[must_use]
    pub(super) fn end(&self) -> Position {
        self.frames().last().map_or(Position::START, |(at, _)| at)
    }

    /// A run's place.
    #[must_use]
    pub(super) fn ordinal_of(&self, run: RunId) -> Option<Ordinal> {
        let index = self.runs.iter().position(|known| known.id == run)?;
        Some(ordinal(index))
    }

    /// A run by its place.
    #[must_use]
    pub(super) fn at(&self, ordinal: Ordinal) -> Option<&RunModel> {
        self.runs.get((ordinal.0 as usize).checked_sub(1)?)
    }

    /// Every frame, in order.
    pub(super) fn frames(&self) -> impl Iterator<Item = (Position, &str)> {
        self.runs.iter().enumerate().flat_map(|(index, run)| {
            let positions = (0..).map(move |seq| Position::new(ordinal(index), Seq(seq)));
            positions.zip(run.said.iter().map(String::as_str))
        })
    }

    /// The prompt whose turn has come, unless a run is on.
    #[must_use]
    pub(super) fn ready(&self) -> Option<&QueuedModel> {
        self.queue.first().filter(|_| !self.held && self.exists)
    }

    /// A run ends; an abort holds what waits.
    pub(super) fn end_run(&mut self, index: usize, aborted: bool, now: i64) {
        let aborted = aborted || self.runs[index].abort;
        self.runs[index].end(aborted, now);
        if aborted {
            self.held = !self.queue.is_empty();
        }
    }

    /// The running one ends.
    pub(super) fn end_running(&mut self, aborted: bool, now: i64) {
        if self.running().is_some() {
            self.end_run(self.runs.len() - 1, aborted, now);
        }
    }

    /// The run that this message began.
    #[must_use]
    pub(super) fn began_by(&self, message: u8) -> Option<&RunModel> {
        self.runs.iter().find(|run| run.message.is_some_and(|(id, _)| id == message))
    }
}

impl RunModel {
    /// A run that begins.
    #[must_use]
    pub(super) fn new(id: RunId, message: Option<(u8, u8)>) -> Self {
        Self {
            id,
            said: vec!["run_started".into()],
            ended_at: None,
            abort: false,
            tools: Vec::new(),
            asked: BTreeMap::new(),
            message,
        }
    }

    /// The newest seq.
    #[must_use]
    pub(super) fn last_seq(&self) -> Seq {
        Seq(self.said.len() as u64 - 1)
    }

    /// It ends: what is open is closed first. Once somebody asked for an abort each end is one.
    pub(super) fn end(&mut self, aborted: bool, now: i64) {
        for tool in std::mem::take(&mut self.tools) {
            self.said.push(format!("tool_result {tool}"));
        }
        let by = |answer: Answer, asked: &BTreeMap<RequestId, Asked>| -> Vec<String> {
            let of = asked.iter().filter(|(_, asked)| asked.answer == answer);
            of.map(|(request, _)| request.0.clone()).collect()
        };
        let open = by(Answer::Open, &self.asked);
        let undelivered = by(Answer::Recorded, &self.asked);
        self.said.extend(open.iter().map(|id| format!("permission_cancelled {id}")));
        self.said.extend(undelivered.iter().map(|id| format!("permission_resolved {id}")));
        for asked in self.asked.values_mut() {
            asked.answer = Answer::Done;
        }
        self.said.push(format!("complete {}", aborted || self.abort));
        self.ended_at = Some(now);
    }

    /// Requests that wait, oldest first.
    #[must_use]
    pub(super) fn waiting(&self) -> Vec<RequestId> {
        let open = self.asked.iter().filter(|(_, asked)| asked.answer == Answer::Open);
        let mut open: Vec<_> = open.map(|(id, asked)| (asked.seq, id.clone())).collect();
        open.sort();
        open.into_iter().map(|(_, id)| id).collect()
    }
}

fn ordinal(index: usize) -> Ordinal {
    Ordinal(u32::try_from(index + 1).unwrap_or(u32::MAX))
}
