//! The session log: a bounded ring of frames with two ends, and those who watch it.
//!
//! `end` is the last frame appended, `durable` the last on disk; both are session positions, so
//! that a reader that is still in run 1 keeps its place when run 2 begins. The store is the log's
//! first reader: it takes what lies between the two and raises `durable`. All other readers see
//! only what is durable (I8), and none of them has a queue: it has a cursor, and pulls.
//!
//! Every method runs under the session's lock and does only pushes, compares and clones of
//! shared bytes (I16). Must not know threads, sockets, SQLite or what a frame says.

use std::collections::VecDeque;

use tungstenite::Utf8Bytes;

use crate::limits;
use crate::run::change::{Batch, Change, Frame, Item};
use crate::run::id::{Position, SessionId};
use crate::run::wake::{Waker, Wakes};

/// One session's log.
#[derive(Debug)]
pub struct Log {
    session: SessionId,
    /// Everything in (`evicted`, `end`], in order. The front is the oldest.
    ring: VecDeque<Frame>,
    ring_bytes: usize,
    /// The newest position that memory does not hold: `evicted <= durable <= end`.
    evicted: Position,
    durable: Position,
    end: Position,
    /// Facts that go to disk between frames: each after the position that was the end then.
    changes: VecDeque<(Position, u64, Box<Change>)>,
    /// The last ticket given out, and the last one settled.
    ticket: u64,
    settled: u64,
    /// Tickets whose change was refused for good, as ranges with both ends; neighbours are joined.
    rejected: Vec<(u64, u64)>,
    watchers: Vec<Watcher>,
    waiting: Vec<(u64, Waker)>,
    closed: bool,
}

/// A subscription: one waker's slot in this session.
#[derive(Debug)]
struct Watcher {
    waker: Waker,
    armed: bool,
}

/// The ring's bounds for what agents say.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Frames.
    pub frames_max: usize,
    /// Bytes of frames.
    pub bytes_max: usize,
}

/// What a reader gets.
#[derive(Debug)]
pub enum Read {
    /// The next frames after the cursor; at least one.
    Frames(Vec<(Position, Utf8Bytes)>),
    /// Memory does not hold what comes next: everything up to `to` is the store's to give.
    Evicted {
        /// From after this on, memory has it.
        to: Position,
    },
    /// Nothing after the cursor is durable. The reader's slot is armed.
    CaughtUp,
    /// The session was deleted, or the registry is closed, and the reader has all of it; or the
    /// reader has no slot.
    Ended,
}

/// How a ticket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Not yet.
    Waiting,
    /// On disk.
    Committed,
    /// The store refused it.
    Rejected,
}

impl Log {
    /// A log whose past, up to `last`, is on disk only.
    #[must_use]
    pub fn new(session: SessionId, last: Position) -> Self {
        Self {
            session,
            ring: VecDeque::new(),
            ring_bytes: 0,
            evicted: last,
            durable: last,
            end: last,
            changes: VecDeque::new(),
            ticket: 0,
            settled: 0,
            rejected: Vec::new(),
            watchers: Vec::new(),
            waiting: Vec::new(),
            closed: false,
        }
    }

    /// The last position appended.
    #[must_use]
    pub const fn end(&self) -> Position {
        self.end
    }

    /// The last position on disk.
    #[must_use]
    pub const fn durable(&self) -> Position {
        self.durable
    }

    /// The newest position that memory does not hold.
    #[must_use]
    pub const fn evicted(&self) -> Position {
        self.evicted
    }

    /// The last ticket that is settled.
    #[must_use]
    pub const fn settled_ticket(&self) -> u64 {
        self.settled
    }

    /// Frames in memory.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.ring.len()
    }

    /// Bytes of frames in memory.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.ring_bytes
    }

    /// Whether something waits for the store.
    #[must_use]
    pub fn has_undurable(&self) -> bool {
        self.durable < self.end || !self.changes.is_empty()
    }

    /// Whether anybody watches, or waits for a ticket.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        !self.watchers.is_empty() || !self.waiting.is_empty()
    }

    /// Makes room for a group within `bounds` by dropping the oldest durable frames; says whether
    /// it fits now. A group that exceeds the bounds by itself fits when nothing undurable is left.
    pub fn make_room(&mut self, frames: usize, bytes: usize, bounds: Bounds) -> bool {
        let fits = |log: &Self| {
            log.ring.len() + frames <= bounds.frames_max
                && log.ring_bytes + bytes <= bounds.bytes_max
        };
        while !fits(self) && self.drop_oldest_durable() {}
        fits(self) || self.durable == self.end
    }

    /// Appends a group. The caller has checked its position under this same lock (I2).
    pub fn push(&mut self, group: Vec<Frame>) {
        let count = group.len();
        for (index, mut frame) in group.into_iter().enumerate() {
            assert!(frame.at > self.end, "I2: a frame is appended after the end");
            assert!(
                frame.at.seq.0 == 0 || frame.at == self.after_end(),
                "I2: seqs of a run are dense"
            );
            frame.group_end = index + 1 == count;
            self.end = frame.at;
            self.ring_bytes += frame.weight();
            self.ring.push_back(frame);
        }
    }

    /// Records a fact that goes to disk after what is appended now, and gives its ticket.
    pub fn record(&mut self, change: Change) -> u64 {
        self.ticket += 1;
        self.changes.push_back((self.end, self.ticket, Box::new(change)));
        self.ticket
    }

    /// A ticket for what has been appended and recorded so far.
    pub fn ticket(&mut self) -> u64 {
        // Frames have no ticket of their own; an empty place in the order of changes serves. Who
        // asks again before anything was appended shares it, so that asking costs no memory (I7).
        match self.changes.back() {
            Some((after, number, _)) if *after == self.end => *number,
            _ => self.record(Change::Nothing),
        }
    }

    /// A ticket that is refused already, for a fact that nothing will take to disk.
    pub fn refuse(&mut self) -> u64 {
        self.ticket += 1;
        let number = self.ticket;
        self.mark_rejected(number, number);
        number
    }

    /// What the store is to commit next: whole groups, within its bounds.
    #[must_use]
    pub fn take(&self) -> Option<Batch> {
        let start = self.ring.partition_point(|frame| frame.at <= self.durable);
        let mut items = Vec::new();
        let mut changes = self.changes.iter().peekable();
        let (mut to, mut ticket, mut bytes, mut frames) = (self.durable, self.settled, 0, 0);
        let mut cut = false;
        for frame in self.ring.range(start..) {
            if cut {
                break;
            }
            while let Some((_, number, change)) = changes.next_if(|(after, ..)| *after < frame.at) {
                items.push(Item::Change(change.clone()));
                ticket = *number;
            }
            bytes += frame.text.len();
            frames += 1;
            to = frame.at;
            items.push(Item::Frame(frame.clone()));
            cut = frame.group_end
                && (frames >= limits::BATCH_FRAMES_MAX || bytes >= limits::BATCH_BYTES_MAX);
        }
        // A run's row and its head are one group: a row whose head is cut off waits for it.
        while let Some((_, number, change)) = changes.next_if(|(after, _, change)| {
            *after <= to && !matches!(change.as_ref(), Change::RunStarted(_))
        }) {
            items.push(Item::Change(change.clone()));
            ticket = *number;
        }
        if items.is_empty() {
            return None;
        }
        Some(Batch { session: self.session, items, to, ticket })
    }

    /// A batch is on disk: raises `durable` and gives the wakes that are due (I4c, I8).
    pub fn settle(&mut self, to: Position, ticket: u64) -> Wakes {
        assert!(self.durable <= to && to <= self.end, "I8: durable rises, up to the end");
        let rose = to > self.durable;
        self.drop_wholes(to);
        self.durable = to;
        self.settled = self.settled.max(ticket);
        while self.changes.front().is_some_and(|(_, number, _)| *number <= ticket) {
            self.changes.pop_front();
        }
        let mut wakes = Wakes::default();
        self.wake_waiting(&mut wakes);
        if rose {
            self.wake_watchers(&mut wakes);
        }
        wakes
    }

    /// The store refused what is not durable: forgets it, and tells those who wait for it.
    ///
    /// Nothing of it was visible, so its positions are free again. Watchers look again: to one
    /// that waited for the rest of a closed log, what is left may be all.
    pub fn reject(&mut self) -> Wakes {
        while self.ring.back().is_some_and(|frame| frame.at > self.durable) {
            if let Some(frame) = self.ring.pop_back() {
                self.ring_bytes -= frame.weight();
            }
        }
        self.end = self.durable;
        if let (Some((_, first, _)), Some((_, last, _))) =
            (self.changes.front(), self.changes.back())
        {
            let (first, last) = (*first, *last);
            self.mark_rejected(first, last);
        }
        self.changes.clear();
        self.settled = self.ticket;
        let mut wakes = Wakes::default();
        self.wake_waiting(&mut wakes);
        self.wake_watchers(&mut wakes);
        wakes
    }

    /// How a ticket stands.
    #[must_use]
    pub fn settled(&self, ticket: u64) -> Settled {
        if self.is_rejected(ticket) {
            Settled::Rejected
        } else if self.settled >= ticket {
            Settled::Committed
        } else {
            Settled::Waiting
        }
    }

    /// Wakes `waker` when the ticket is settled; says whether it is already.
    pub fn wake_when_settled(&mut self, ticket: u64, waker: &Waker) -> Settled {
        let settled = self.settled(ticket);
        let known = |(number, waiting): &(u64, Waker)| *number == ticket && waiting.is(waker);
        if settled == Settled::Waiting && !self.waiting.iter().any(known) {
            self.waiting.push((ticket, waker.clone()));
        }
        settled
    }

    /// Gives `waker` a slot, if it has none yet. The slot begins disarmed: its owner reads first.
    pub fn watch(&mut self, waker: &Waker) {
        if !self.watchers.iter().any(|slot| slot.waker.is(waker)) {
            self.watchers.push(Watcher { waker: waker.clone(), armed: false });
        }
    }

    /// Takes `waker`'s slot away. What it waits for stays.
    pub fn unwatch(&mut self, waker: &Waker) {
        self.watchers.retain(|slot| !slot.waker.is(waker));
    }

    /// Forgets that `waker` waits for any ticket.
    pub fn stop_waiting(&mut self, waker: &Waker) {
        self.waiting.retain(|(_, waiting)| !waiting.is(waker));
    }

    /// What comes after `cursor`, at least one frame and about `budget` bytes; a reader that is
    /// caught up is armed here, under the lock that appenders take (I4c).
    pub fn read(&mut self, cursor: Position, budget: usize, waker: &Waker) -> Read {
        if cursor < self.evicted {
            return Read::Evicted { to: self.evicted };
        }
        let start = self.ring.partition_point(|frame| frame.at <= cursor);
        let mut bytes = 0;
        let frames: Vec<_> = self
            .ring
            .range(start..)
            .take_while(|frame| frame.at <= self.durable)
            .take_while(|frame| {
                let first = bytes == 0;
                bytes += frame.text.len();
                first || bytes <= budget
            })
            .map(|frame| (frame.at, frame.text.clone()))
            .collect();
        if !frames.is_empty() {
            return Read::Frames(frames);
        }
        if self.closed && self.durable == self.end {
            return Read::Ended;
        }
        // Nobody would wake a reader without a slot: it must not wait.
        match self.watchers.iter_mut().find(|slot| slot.waker.is(waker)) {
            Some(slot) => {
                slot.armed = true;
                Read::CaughtUp
            }
            None => Read::Ended,
        }
    }

    /// No run will follow: readers that have everything get `Ended`.
    pub fn close(&mut self) -> Wakes {
        self.closed = true;
        let mut wakes = Wakes::default();
        self.wake_watchers(&mut wakes);
        wakes
    }

    /// Drops durable frames up to `to`.
    pub fn evict(&mut self, to: Position) {
        while self.ring.front().is_some_and(|frame| frame.at <= to) && self.drop_oldest_durable() {}
    }

    /// Drops durable frames, oldest first, until `bytes` are freed or none is left.
    pub fn trim(&mut self, bytes: usize) -> usize {
        let before = self.ring_bytes;
        while before - self.ring_bytes < bytes && self.drop_oldest_durable() {}
        before - self.ring_bytes
    }

    fn drop_oldest_durable(&mut self) -> bool {
        if self.ring.front().is_none_or(|frame| frame.at > self.durable) {
            return false;
        }
        if let Some(frame) = self.ring.pop_front() {
            self.ring_bytes -= frame.weight();
            self.evicted = frame.at;
        }
        true
    }

    /// What was cut off is the store's to give once it is there.
    fn drop_wholes(&mut self, to: Position) {
        let start = self.ring.partition_point(|frame| frame.at <= self.durable);
        for frame in self.ring.range_mut(start..).take_while(|frame| frame.at <= to) {
            if frame.whole.is_some() {
                let before = frame.weight();
                frame.whole = None;
                self.ring_bytes -= before - frame.weight();
            }
        }
    }

    fn after_end(&self) -> Position {
        Position::new(self.end.ordinal, self.end.seq.next())
    }

    fn is_rejected(&self, ticket: u64) -> bool {
        self.rejected.iter().any(|(first, last)| (*first..=*last).contains(&ticket))
    }

    fn mark_rejected(&mut self, first: u64, last: u64) {
        match self.rejected.last_mut() {
            Some((_, end)) if *end + 1 == first => *end = last,
            _ => self.rejected.push((first, last)),
        }
    }

    fn wake_waiting(&mut self, wakes: &mut Wakes) {
        let settled = self.settled;
        self.waiting.retain(|(ticket, waker)| {
            let waits = *ticket > settled;
            if !waits {
                wakes.other(waker.clone());
            }
            waits
        });
    }

    fn wake_watchers(&mut self, wakes: &mut Wakes) {
        for slot in self.watchers.iter_mut().filter(|slot| slot.armed) {
            slot.armed = false;
            wakes.session(slot.waker.clone(), self.session);
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::oracle::Alarm;
    use crate::run::change::{RunRow, Whole};
    use crate::run::id::{AgentId, Millis, Ordinal, RunId, Seq};
    use crate::sync::Arc;

    const WIDE: Bounds = Bounds { frames_max: 100, bytes_max: 10_000 };

    fn at(ordinal: u32, seq: u64) -> Position {
        Position::new(Ordinal(ordinal), Seq(seq))
    }

    fn frame(at: Position, bytes: usize) -> Frame {
        let text = "x".repeat(bytes).into();
        Frame { at, text, mark: None, whole: None, group_end: false, offset: 0 }
    }

    /// A log with the head of run 1 and seqs 1 to `events`, ten bytes each, none durable.
    fn log(events: u64) -> Log {
        let mut log = Log::new(SessionId::from_u128(1), Position::START);
        for seq in 0..=events {
            log.push(vec![frame(at(1, seq), 10)]);
        }
        log
    }

    fn settle(log: &mut Log, to: Position) {
        log.settle(to, 0).wake();
    }

    fn watcher(log: &mut Log) -> (Waker, Alarm) {
        let bell = Alarm::new();
        let waker = Waker::new(Box::new(bell.clone()));
        log.watch(&waker);
        (waker, bell)
    }

    fn positions(read: &Read) -> Vec<Position> {
        match read {
            Read::Frames(frames) => frames.iter().map(|(at, _)| *at).collect(),
            other => panic!("no frames: {other:?}"),
        }
    }

    fn frames_of(batch: &Batch) -> usize {
        batch.items.iter().filter(|item| matches!(item, Item::Frame(_))).count()
    }

    fn run_started(ordinal: u32) -> Change {
        Change::RunStarted(RunRow {
            id: RunId::from_u128(ordinal.into()),
            at: at(ordinal, 0),
            agent: AgentId::from_u128(1),
            origin: "user",
            prompt_hash: [0; 32],
            client_message_id: None,
            queued: None,
            started_at: Millis(0),
            head: "head".into(),
            title: None,
        })
    }

    #[test]
    fn room_is_exact_in_frames_and_in_bytes() {
        let mut log = log(3);
        assert!(log.make_room(2, 20, Bounds { frames_max: 6, bytes_max: 60 }), "I7: just fits");
        assert!(!log.make_room(3, 20, Bounds { frames_max: 6, bytes_max: 100 }), "I7: a frame");
        assert!(!log.make_room(2, 21, Bounds { frames_max: 10, bytes_max: 60 }), "I7: a byte");
        assert_eq!(log.frames(), 4, "I8: what is not durable stays");
        settle(&mut log, at(1, 1));
        assert!(log.make_room(3, 20, Bounds { frames_max: 6, bytes_max: 100 }));
        assert_eq!(log.evicted(), at(1, 0), "no more goes than must");
    }

    #[test]
    fn a_group_beyond_the_bounds_is_admitted_once_all_is_durable() {
        let mut log = log(3);
        let bounds = Bounds { frames_max: 4, bytes_max: 1000 };
        settle(&mut log, at(1, 2));
        assert!(!log.make_room(5, 10, bounds), "I7: something waits for the store");
        settle(&mut log, at(1, 3));
        assert!(log.make_room(5, 10, bounds));
        assert_eq!((log.frames(), log.bytes()), (0, 0), "I7: and it is alone then");
    }

    #[test]
    fn a_batch_takes_whole_groups_and_stops_at_its_bound() {
        let mut log = log(0);
        let max = u64::try_from(limits::BATCH_FRAMES_MAX).unwrap();
        log.push((1..=max + 5).map(|seq| frame(at(1, seq), 1)).collect());
        log.push(vec![frame(at(1, max + 6), 1)]);
        let batch = log.take().unwrap();
        assert_eq!(batch.to, at(1, max + 5), "a group is never cut");
        settle(&mut log, batch.to);
        assert_eq!(log.take().unwrap().to, at(1, max + 6), "the next group is the next batch's");
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let mut log = log(0);
        for seq in 1..=6 {
            log.push(vec![frame(at(1, seq), limits::BATCH_BYTES_MAX / 4)]);
        }
        let batch = log.take().unwrap();
        assert_eq!(batch.to, at(1, 4));
    }

    #[test]
    fn changes_are_taken_in_their_place() {
        let mut log = log(0);
        settle(&mut log, at(1, 0));
        let first = log.record(Change::Nothing);
        log.push(vec![frame(at(1, 1), 1)]);
        let second = log.record(Change::SessionDeleted);
        let batch = log.take().unwrap();
        let shape: Vec<_> = batch.items.iter().map(|item| matches!(item, Item::Frame(_))).collect();
        assert_eq!(shape, [false, true, false]);
        assert_eq!((batch.ticket, first), (second, second - 1));
    }

    #[test]
    fn a_runs_row_waits_for_its_head() {
        let mut log = log(0);
        let max = u64::try_from(limits::BATCH_FRAMES_MAX).unwrap();
        for seq in 1..max {
            log.push(vec![frame(at(1, seq), 1)]);
        }
        log.record(run_started(2));
        log.push(vec![frame(at(2, 0), 1)]);
        let batch = log.take().unwrap();
        assert_eq!(frames_of(&batch), limits::BATCH_FRAMES_MAX);
        assert_eq!(batch.items.len(), limits::BATCH_FRAMES_MAX, "the row is not taken alone");
        settle(&mut log, batch.to);
        let batch = log.take().unwrap();
        assert!(matches!(batch.items[0], Item::Change(_)), "the row, then its head");
        assert_eq!((batch.items.len(), batch.to), (2, at(2, 0)));
    }

    #[test]
    fn eviction_takes_what_is_durable_and_due_and_nothing_else() {
        let mut log = log(3);
        log.evict(at(1, 3));
        assert_eq!(log.frames(), 4, "I8: nothing is durable");
        settle(&mut log, at(1, 2));
        log.evict(at(1, 1));
        assert_eq!((log.frames(), log.evicted()), (2, at(1, 1)));
        assert_eq!(log.trim(1), 10, "a whole frame");
        assert_eq!(log.trim(usize::MAX), 0, "I8: the last one is not durable");
        assert_eq!((log.frames(), log.bytes(), log.evicted()), (1, 10, at(1, 2)));
    }

    #[test]
    fn a_read_gives_at_least_one_frame_and_keeps_to_its_budget() {
        let mut log = log(4);
        let (waker, _) = watcher(&mut log);
        settle(&mut log, at(1, 3));
        assert_eq!(positions(&log.read(Position::START, 0, &waker)), [at(1, 0)]);
        assert_eq!(positions(&log.read(at(1, 0), 20, &waker)), [at(1, 1), at(1, 2)]);
        assert_eq!(positions(&log.read(at(1, 0), 29, &waker)), [at(1, 1), at(1, 2)]);
        let durable = [at(1, 1), at(1, 2), at(1, 3)];
        assert_eq!(positions(&log.read(at(1, 0), 10_000, &waker)), durable, "I8");
        assert!(matches!(log.read(at(1, 3), 10_000, &waker), Read::CaughtUp));
    }

    #[test]
    fn what_memory_does_not_hold_is_said() {
        let mut log = log(2);
        let (waker, _) = watcher(&mut log);
        settle(&mut log, at(1, 2));
        log.evict(at(1, 1));
        let evicted = |read| matches!(read, Read::Evicted { to } if to == at(1, 1));
        assert!(evicted(log.read(at(1, 0), 100, &waker)));
        assert!(evicted(log.read(Position::before_run(Ordinal(1)), 100, &waker)));
        assert_eq!(positions(&log.read(at(1, 1), 100, &waker)), [at(1, 2)]);
    }

    #[test]
    fn a_reader_is_woken_once_and_only_when_durable_rises() {
        let mut log = log(1);
        let (waker, bell) = watcher(&mut log);
        settle(&mut log, at(1, 0));
        assert!(!bell.drain(), "it was not armed: it reads first");
        assert!(matches!(log.read(at(1, 0), 100, &waker), Read::CaughtUp));
        let ticket = log.record(Change::Nothing);
        log.settle(at(1, 0), ticket).wake();
        assert!(!bell.drain(), "I8: nothing more can be seen");
        settle(&mut log, at(1, 1));
        assert!(bell.drain(), "I4c");
        waker.take();
        log.push(vec![frame(at(1, 2), 1)]);
        settle(&mut log, at(1, 2));
        assert!(!bell.drain(), "it has not read since");
    }

    #[test]
    fn a_reader_without_a_slot_is_not_told_to_wait() {
        let mut log = log(0);
        let waker = Waker::new(Box::new(Alarm::new()));
        settle(&mut log, at(1, 0));
        assert_eq!(positions(&log.read(Position::START, 100, &waker)), [at(1, 0)]);
        assert!(matches!(log.read(at(1, 0), 100, &waker), Read::Ended), "I4c");
    }

    #[test]
    fn a_closed_log_ends_when_all_of_it_is_durable() {
        let mut log = log(0);
        let (waker, bell) = watcher(&mut log);
        log.close().wake();
        assert!(matches!(log.read(Position::START, 100, &waker), Read::CaughtUp), "I14: drain");
        log.reject().wake();
        assert!(bell.drain(), "I4c: what is left is all there is");
        assert!(matches!(log.read(Position::START, 100, &waker), Read::Ended));
    }

    #[test]
    fn a_refusal_frees_positions_and_rejects_what_was_not_settled() {
        let mut log = log(1);
        let kept = log.record(Change::Nothing);
        log.settle(at(1, 1), kept).wake();
        log.push(vec![frame(at(1, 2), 7)]);
        let lost = log.ticket();
        assert_eq!(log.settled(lost), Settled::Waiting);
        log.reject().wake();
        assert_eq!((log.settled(kept), log.settled(lost)), (Settled::Committed, Settled::Rejected));
        assert_eq!((log.end(), log.bytes()), (at(1, 1), 20));
        log.push(vec![frame(at(1, 2), 1)]);
        let next = log.ticket();
        assert_eq!(log.settled(next), Settled::Waiting, "a new ticket is a new one");
        log.settle(at(1, 2), next).wake();
        assert_eq!((log.settled(lost), log.settled(next)), (Settled::Rejected, Settled::Committed));
        assert_eq!(log.settled(log.settled_ticket() + 1), Settled::Waiting);
        let refused = log.refuse();
        assert_eq!(log.settled(refused), Settled::Rejected, "nothing will take it to disk");
        assert!(!log.has_undurable());
    }

    #[test]
    fn asking_again_costs_no_memory() {
        let mut log = log(0);
        let ticket = log.ticket();
        assert_eq!(log.ticket(), ticket, "I7: nothing was appended since");
        log.push(vec![frame(at(1, 1), 1)]);
        assert_eq!(log.ticket(), ticket + 1);
        let waker = Waker::new(Box::new(Alarm::new()));
        for _ in 0..3 {
            assert_eq!(log.wake_when_settled(ticket, &waker), Settled::Waiting);
        }
        assert_eq!(log.waiting.len(), 1, "I7");
        log.unwatch(&waker);
        assert!(log.is_watched(), "it still waits for its ticket");
        log.stop_waiting(&waker);
        assert!(!log.is_watched());
    }

    #[test]
    fn the_whole_of_a_cut_event_leaves_memory_with_its_commit() {
        let mut log = log(0);
        let mut cut = frame(at(1, 1), 10);
        cut.whole = Some(Arc::new(Whole { json: vec![b'x'; 500] }));
        log.push(vec![cut]);
        assert_eq!(log.bytes(), 520, "I7: it weighs until then");
        settle(&mut log, at(1, 1));
        assert_eq!(log.bytes(), 20, "I7");
        assert!(log.make_room(1, 1, WIDE));
    }

    #[test]
    #[should_panic(expected = "I2")]
    fn a_hole_is_refused() {
        log(0).push(vec![frame(at(1, 2), 1)]);
    }

    #[test]
    #[should_panic(expected = "I8")]
    fn what_was_not_appended_is_not_durable() {
        settle(&mut log(0), at(1, 1));
    }
}
