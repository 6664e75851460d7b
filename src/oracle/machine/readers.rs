//! The machine's clients: what they subscribe to, what they must get (I4, I4b, I4c, I17).

use std::collections::BTreeSet;

use super::{EPOCH, Machine, READERS, label};
use crate::oracle::bell::Alarm;
use crate::oracle::checker::Checker;
use crate::oracle::model::SessionModel;
use crate::registry::{
    AnnouncementCursor, From, Gap, Read, Registry, Session, SubscribeError, Subscribed, Target,
};
use crate::run::id::{LogEpoch, Ordinal, Position, RunId, Seq, SessionId};
use crate::run::state::Statement;
use crate::run::wake::Waker;

/// A client: its waker, and what it follows.
#[derive(Debug)]
pub(super) struct Reader {
    waker: Waker,
    /// Sessions that it was told to look at.
    woken: BTreeSet<SessionId>,
    follows: Option<Follow>,
}

/// A subscription.
#[derive(Debug)]
struct Follow {
    session: usize,
    checker: Checker,
    /// Where it reads on.
    cursor: Position,
    /// It was caught up when it last read.
    caught_up: bool,
    /// The session left memory under it: all that it gets is the end.
    cut_off: bool,
}

/// Hears the broadcasts.
#[derive(Debug)]
pub(super) struct Listener {
    waker: Waker,
    cursor: AnnouncementCursor,
    /// What this operation's commits are to announce.
    pub(super) expected: BTreeSet<SessionId>,
    /// Whether more than that may be announced: a refused round announces in parts.
    pub(super) lenient: bool,
}

impl Reader {
    pub(super) fn new() -> Self {
        let waker = Waker::new(Box::new(Alarm::new()));
        Self { waker, woken: BTreeSet::new(), follows: None }
    }
}

impl Listener {
    pub(super) fn join(registry: &Registry) -> Self {
        let waker = Waker::new(Box::new(Alarm::new()));
        let cursor = registry.broadcasts().join(&waker);
        Self { waker, cursor, expected: BTreeSet::new(), lenient: false }
    }
}

/// What the reference says of a subscribe.
struct Expected {
    cursor: Position,
    rewound: bool,
    /// The run that it names is unknown: a gap up to it.
    unknown: Option<(RunId, Seq)>,
    /// It asked to leave something out.
    skips: bool,
}

impl Machine {
    pub(super) fn subscribe(&mut self, sub: u8, session: u8, from: u8, seq: u8) {
        let Some(index) = self.pick(session) else { return };
        let sub = usize::from(sub) % READERS;
        let stale = from >= 200;
        let target = Target {
            session: self.model.sessions[index].id,
            from: self.choose(index, from, seq),
            epoch: match from % 3 {
                _ if stale => Some(LogEpoch::from_u128(8)),
                0 => None,
                _ => Some(EPOCH),
            },
        };
        // One subscription each: the one before goes, unless it is repeated.
        if self.readers[sub].follows.as_ref().is_some_and(|follow| follow.session != index) {
            self.drop_follow(sub);
        }
        let before = self.model.sessions[index].id;
        let evicted = self.registry.in_memory(before).map(|session| session.look().evicted);
        let answer = self.registry.subscribe(&self.readers[sub].waker, &target);
        let model = &self.model.sessions[index];
        if !model.now.exists {
            assert_eq!(answer.err(), Some(SubscribeError::SessionNotFound), "it is not there");
            return;
        }
        let elsewhere = match target.from {
            From::Cursor { run, .. } => {
                self.model.locate(run).is_some_and(|(session, _)| session != model.id)
            }
            _ => false,
        };
        let subscribed = match answer {
            Ok(subscribed) => subscribed,
            Err(error) => {
                assert_eq!(error, SubscribeError::RunNotFound);
                assert!(elsewhere, "the run is this session's, or nobody's");
                return;
            }
        };
        assert!(!elsewhere, "the run is another session's");
        // What is not in memory is loaded without its past.
        let evicted = evicted.unwrap_or_else(|| model.durable.end());
        let expected = self.expect(model, &target, stale);
        check_subscribed(model, &expected, &subscribed, evicted);
        let cursor = subscribed.cursor;
        let checker = Checker::new(cursor);
        let (caught_up, cut_off) = (false, false);
        self.readers[sub].follows =
            Some(Follow { session: index, checker, cursor, caught_up, cut_off });
    }

    /// A sender hears its run; a cursor that it has is not moved.
    pub(super) fn sender_listens(&mut self, sub: u8, index: usize, cursor: Position) {
        let sub = usize::from(sub) % READERS;
        if self.readers[sub].follows.is_some() {
            return;
        }
        let id = self.model.sessions[index].id;
        assert!(self.registry.watch(&self.readers[sub].waker, id), "the session is there");
        let (caught_up, cut_off) = (false, false);
        let checker = Checker::new(cursor);
        self.readers[sub].follows =
            Some(Follow { session: index, checker, cursor, caught_up, cut_off });
    }

    pub(super) fn unsubscribe(&mut self, sub: u8) {
        self.drop_follow(usize::from(sub) % READERS);
    }

    fn drop_follow(&mut self, sub: usize) {
        if let Some(follow) = self.readers[sub].follows.take() {
            let id = self.model.sessions[follow.session].id;
            self.registry.unsubscribe(&self.readers[sub].waker, id);
        }
    }

    /// The process is gone, and every connection with it.
    pub(super) fn drop_connections(&mut self) {
        self.readers = (0..READERS).map(|_| Reader::new()).collect();
        self.listener = Listener::join(&self.registry);
    }

    /// The session left memory whoever watched.
    pub(super) fn cut_off(&mut self, index: usize) {
        let model = &self.model.sessions[index];
        let running = model.now.running().map(|run| run.id);
        if let Some((run, waker)) = self.workers.remove(&model.id) {
            assert!(running != Some(run) || waker.take().other, "I4c: the worker is told");
        }
        for follow in self.readers.iter_mut().filter_map(|reader| reader.follows.as_mut()) {
            if follow.session == index {
                follow.cut_off = true;
            }
        }
    }

    /// Whether somebody watches the session.
    pub(super) fn is_watched(&self, index: usize) -> bool {
        let mut follows = self.readers.iter().filter_map(|reader| reader.follows.as_ref());
        follows.any(|follow| follow.session == index && !follow.cut_off)
    }

    /// One pull; `false` once there is nothing more to pull.
    pub(super) fn read(&mut self, sub: u8, budget: usize) -> bool {
        let sub = usize::from(sub) % READERS;
        let reader = &mut self.readers[sub];
        let Some(follow) = reader.follows.as_mut() else { return false };
        let model = &self.model.sessions[follow.session];
        reader.woken.remove(&model.id);
        let evicted = self.registry.in_memory(model.id).map(|session| session.look().evicted);
        let next = model.next_after(follow.cursor).map(|(at, _)| at);
        let gone = !model.now.exists;
        match self.registry.read(&reader.waker, model.id, follow.cursor, budget) {
            Read::Frames(frames) => {
                let bytes: usize = frames.iter().map(|(_, text)| text.len()).sum();
                assert!(frames.len() == 1 || bytes <= budget, "I7: {bytes} for {budget}");
                for (at, text) in &frames {
                    let next = model.next_after(follow.cursor);
                    let expected = next.map(|(at, said)| (at, said.to_owned()));
                    assert_eq!(Some((*at, label(text))), expected, "I4: what comes next");
                    follow.checker.frames([(*at, text.as_str())]);
                    follow.cursor = *at;
                }
                follow.caught_up = false;
                true
            }
            Read::Gap { gap, cursor } => {
                let evicted = evicted.unwrap_or_default();
                check_gap(model, &gap, model.gap_after(follow.cursor, evicted), cursor);
                follow.checker.gap(None, cursor);
                follow.cursor = cursor;
                follow.caught_up = false;
                true
            }
            Read::CaughtUp => {
                assert!(!follow.cut_off, "I4c: nobody would wake it");
                assert!(next.is_none(), "I4: {next:?} is there, and it is told to wait");
                follow.caught_up = true;
                false
            }
            Read::Ended => {
                assert!(follow.cut_off || gone, "I14: it has not ended");
                reader.follows = None;
                false
            }
            Read::Unavailable(error) => panic!("I18: the disk can be read: {error}"),
        }
    }

    /// Pulls until there is nothing more.
    pub(super) fn read_all(&mut self, sub: usize) {
        let sub = u8::try_from(sub).unwrap_or(u8::MAX);
        while self.read(sub, 300) {}
    }

    pub(super) fn check_statement(&self, session: &Session, model: &SessionModel) {
        same_statement(&session.look().statement, model);
    }

    /// Who sleeps and has something to read was told so (I4c); who listens hears of commits, and
    /// only of those.
    pub(super) fn check_readers(&mut self) {
        for reader in &mut self.readers {
            let woken = reader.waker.take();
            reader.woken.extend(woken.sessions);
            let Some(follow) = &reader.follows else { continue };
            let model = &self.model.sessions[follow.session];
            let news = follow.cut_off || model.next_after(follow.cursor).is_some();
            if follow.caught_up && news {
                assert!(reader.woken.contains(&model.id), "I4c: a reader sleeps over news");
            }
        }
        let Listener { waker, cursor, expected, lenient } = &mut self.listener;
        let woken = waker.take().broadcast;
        let news = self.registry.broadcasts().read(waker, cursor);
        assert!(!news.lost, "the ring has room");
        let heard: BTreeSet<_> = news.changed.iter().chain(&news.deleted).copied().collect();
        assert!(woken || heard.is_empty(), "I4c: a listener sleeps over news");
        let mut expected = std::mem::take(expected);
        if std::mem::take(lenient) {
            expected.extend(&heard);
        }
        assert_eq!(heard, expected, "I8: what is announced is what was committed");
    }

    fn choose(&self, index: usize, from: u8, seq: u8) -> From {
        let seq = Seq(u64::from(seq % 8));
        let runs = |index: usize| self.model.sessions[index].now.runs.iter().map(|run| run.id);
        match from % 10 {
            0 => From::Start,
            1 => From::Tail,
            2 | 3 => From::Legacy { last_seq: seq },
            4 => From::Cursor { run: RunId::from_u128(404), last_seq: Some(seq) },
            5 => {
                // A run of whatever session.
                let all: Vec<_> = (0..self.model.sessions.len()).flat_map(runs).collect();
                match all.get(usize::from(from) % all.len().max(1)) {
                    Some(run) => From::Cursor { run: *run, last_seq: Some(seq) },
                    None => From::Start,
                }
            }
            other => {
                let own: Vec<_> = runs(index).collect();
                match own.get(usize::from(from) % own.len().max(1)) {
                    Some(run) => From::Cursor { run: *run, last_seq: (other != 6).then_some(seq) },
                    None => From::Start,
                }
            }
        }
    }

    /// Where a subscribe starts to read, from the words of the protocol.
    fn expect(&self, model: &SessionModel, target: &Target, stale: bool) -> Expected {
        let durable = model.durable.end();
        let newest = model.durable.runs.last();
        let mut expected =
            Expected { cursor: durable, rewound: false, unknown: None, skips: false };
        match target.from {
            From::Start => expected.cursor = Position::START,
            From::Tail => expected.skips = durable > Position::START,
            From::Legacy { last_seq } => match newest.filter(|run| run.ended_at.is_none()) {
                Some(run) => {
                    let known = !stale && last_seq <= run.last_seq();
                    let seq = if known { last_seq } else { Seq(0) };
                    expected.cursor = Position::new(durable.ordinal, seq);
                    expected.rewound = stale && last_seq > Seq(0);
                }
                None => {
                    expected.skips = last_seq != newest.map_or(Seq(0), |run| run.last_seq());
                }
            },
            From::Cursor { run, last_seq } => match self.model.locate(run) {
                Some((_, ordinal)) => {
                    let end = model.durable.at(ordinal).map_or(Seq(0), |run| run.last_seq());
                    expected.rewound = stale || last_seq.is_some_and(|seq| seq > end);
                    expected.cursor = match last_seq {
                        Some(seq) if !expected.rewound => Position::new(ordinal, seq),
                        _ => Position::before_run(ordinal),
                    };
                }
                None => {
                    expected.cursor = Position::START;
                    expected.rewound = stale;
                    expected.unknown = Some((run, last_seq.unwrap_or_default()));
                }
            },
        }
        expected
    }
}

fn check_subscribed(
    model: &SessionModel,
    expected: &Expected,
    subscribed: &Subscribed,
    evicted: Position,
) {
    same_statement(&subscribed.statement, model);
    assert_eq!(subscribed.durable, model.durable.end(), "I8: what is durable");
    assert_eq!(subscribed.rewound, expected.rewound, "a number that is ahead is rewound");
    let gone = model.gap_after(expected.cursor, evicted);
    match (&subscribed.gap, gone, expected.unknown) {
        (None, None, None) => {
            assert_eq!(subscribed.cursor, expected.cursor, "I4: where reading starts");
        }
        (Some(gap), Some(_), _) => {
            if expected.unknown.is_some() {
                assert_eq!(gap.from, None, "I4b: nobody knows where an unknown run began");
            }
            let from = gap.from.or_else(|| gone.and_then(|(first, _)| name(model, first)));
            check_gap(model, &Gap { from, to: gap.to }, gone, subscribed.cursor);
        }
        (Some(gap), None, Some(to)) => {
            assert_eq!((gap.from, gap.to), (None, to), "I4b: up to what it named");
            assert_eq!(subscribed.cursor, Position::START, "I4: from the oldest kept");
        }
        (gap, gone, _) => panic!("I4b: {gap:?}, but {gone:?} is gone"),
    }
    let whole = subscribed.gap.is_none() && !expected.rewound && !expected.skips;
    assert_eq!(subscribed.recovered, whole, "recovered means that nothing is missing");
    let newest = u32::try_from(model.durable.runs.len()).unwrap_or(u32::MAX);
    let first = match model.durable.runs.last() {
        Some(run) if !model.pruned.contains(&newest) || evicted < model.durable.end() => {
            run.last_seq().min(Seq(1))
        }
        _ => Seq(0),
    };
    assert_eq!(subscribed.first_seq, first, "the oldest kept seq of the newest run");
}

fn same_statement(statement: &Statement, model: &SessionModel) {
    let newest = model.durable.runs.last();
    assert_eq!(statement.run, newest.map(|run| run.id), "I17: the newest run");
    let running = newest.is_some_and(|run| run.ended_at.is_none());
    assert_eq!(statement.is_processing, running, "I17: whether it runs");
    let last = newest.map_or(Seq(0), |run| run.last_seq());
    assert_eq!(statement.last_seq, last, "I17: its newest seq");
    let pending: Vec<_> = statement.pending.iter().map(|asked| asked.request.clone()).collect();
    let waiting = newest.map(|run| run.waiting()).unwrap_or_default();
    assert_eq!(pending, waiting, "I17, I20: what waits for an answer");
}

/// A gap names exactly what is gone, and reading goes on right after it.
fn check_gap(
    model: &SessionModel,
    gap: &Gap,
    gone: Option<(Position, Position)>,
    cursor: Position,
) {
    let Some((first, last)) = gone else { panic!("I4b: nothing is gone, yet {gap:?}") };
    assert_eq!(gap.from, name(model, first), "I4b: a gap begins where the reader is");
    assert_eq!(Some(gap.to), name(model, last), "I4b: a gap ends where something is kept");
    assert_eq!(cursor, last, "I4: reading goes on after the gap");
}

fn name(model: &SessionModel, at: Position) -> Option<(RunId, Seq)> {
    let Position { ordinal, seq } = at;
    assert!(ordinal > Ordinal(0), "there is nothing before the first run");
    Some((model.durable.at(ordinal)?.id, seq))
}
