//! The rules of a hand-over: which gateway counts, what a follower may have, what may be
//! dropped from the journal, when an agent has been without a gateway for too long, and when
//! its keeper may end.
//!
//! Pure: the keeper's loop tells it what happened and asks it what follows; time is passed in,
//! and so are the journal's bounds, which are the journal's own to know. That is why the models
//! in `tests/models` explore this very code. Must not know descriptors, frames, threads, or what
//! an agent says.

use std::time::{Duration, Instant};

/// An orphan's grace longer than this is this: no number of a gateway's overflows a clock.
const GRACE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The state of a keeper between its gateways. `W` is what every gateway has to hear: the
/// replies that tell of the agent's end (`Reply` in a keeper).
#[derive(Debug)]
pub struct Handover<W> {
    /// The newest control connection; the one that counts, if it is still there.
    epoch: u64,
    control: Control,
    follower: Follower,
    /// The highest confirm that counted.
    confirmed: u64,
    grace: Duration,
    last_words: Vec<W>,
    agent: Agent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Attached,
    /// Nobody is there; the agent is to be stopped at that time.
    Orphaned {
        due: Instant,
    },
    /// Nobody is there, and there is nothing to wait for: no agent, or its stop was decided.
    Gone,
}

/// The data connection of the gateway that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follower {
    /// It has yet to come.
    Expected,
    /// It was given everything up to this offset.
    At(u64),
    /// It was there and is lost. Its gateway goes on with the journal's files.
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    /// Nobody has said what to start.
    Awaited,
    /// It runs, or the journal does not have its last record so far.
    On,
    /// The journal has its last record, or there never was an agent and never will be.
    Over,
}

/// Offsets between which the journal has records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Where the oldest record begins that was not dropped.
    pub start: u64,
    /// Where the newest ends.
    pub end: u64,
}

/// What a gateway has to be told as it attaches: the `Welcome`, then each of `repeat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached<W> {
    /// The number of its control connection, to be given with each thing that it sends.
    pub epoch: u64,
    /// What was said of the agent's end before it came.
    pub repeat: Vec<W>,
}

/// Why a data connection is closed without a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFollowed {
    /// It belongs to a gateway that no longer counts.
    Stale,
    /// The journal does not reach back to its offset, or not up to it.
    Outside,
}

impl<W: Clone> Handover<W> {
    /// A keeper as it begins: the gateway that spawned it holds control connection 1, and the
    /// data connection that follows from offset 0.
    #[must_use]
    pub fn spawned() -> Self {
        Self {
            epoch: 1,
            control: Control::Attached,
            follower: Follower::At(0),
            confirmed: 0,
            grace: Duration::ZERO,
            last_words: Vec::new(),
            agent: Agent::Awaited,
        }
    }

    /// The agent is about to be started. From here on it outlives gateways, for `grace` without
    /// one.
    pub fn launched(&mut self, grace: Duration) {
        self.grace = grace.min(GRACE_MAX);
        self.agent = Agent::On;
    }

    /// A gateway has opened a control connection: it counts from now on, and whoever counted
    /// before does not. The caller drops the older control connection with what waits in it,
    /// and the older data connection.
    pub fn attach(&mut self) -> Attached<W> {
        self.epoch += 1;
        self.control = Control::Attached;
        self.follower = Follower::Expected;
        Attached { epoch: self.epoch, repeat: self.last_words.clone() }
    }

    /// Whether what comes over control connection `epoch` is to be obeyed.
    #[must_use]
    pub fn counts(&self, epoch: u64) -> bool {
        self.is_attached() && epoch == self.epoch
    }

    /// Whether a gateway is there.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.control == Control::Attached
    }

    /// Control connection `epoch` has ended, or what came over it made no sense. If it is the one
    /// that counts, the grace begins. Its data connection may stay: it does no harm, and what it
    /// takes is read.
    pub fn lose(&mut self, epoch: u64, now: Instant) {
        if !self.counts(epoch) {
            return;
        }
        self.control = match self.agent {
            Agent::On => Control::Orphaned { due: now + self.grace },
            Agent::Awaited | Agent::Over => Control::Gone,
        };
    }

    /// A data connection wants everything after `offset`, in the name of control connection
    /// `epoch`. If it is taken, an older one is to be dropped.
    ///
    /// # Errors
    /// It is to be closed; nothing has changed.
    pub fn follow(&mut self, epoch: u64, offset: u64, journal: Bounds) -> Result<(), NotFollowed> {
        if !self.counts(epoch) {
            return Err(NotFollowed::Stale);
        }
        // Before the start it would silently miss what was dropped; beyond the end it tells of
        // another journal than this one.
        if !(journal.start..=journal.end).contains(&offset) {
            return Err(NotFollowed::Outside);
        }
        self.follower = Follower::At(offset);
        Ok(())
    }

    /// The data connection has taken everything before `offset`.
    pub fn sent(&mut self, offset: u64) {
        if let Follower::At(at) = &mut self.follower {
            *at = offset.max(*at);
        }
    }

    /// The data connection is lost. What its gateway still lacks it reads from the files.
    pub fn unfollow(&mut self) {
        self.follower = Follower::Left;
    }

    /// The gateway of control connection `epoch` will never again ask for anything before
    /// `offset`: a checkpoint there is durable. Whether that counts: not from a gateway that
    /// itself does not, since the next one's database may be an older one; nor of what the
    /// journal does not have, since that was of another journal.
    pub fn confirm(&mut self, epoch: u64, offset: u64, journal: Bounds) -> bool {
        let counts = self.counts(epoch) && offset <= journal.end;
        if counts {
            self.confirmed = offset.max(self.confirmed);
        }
        counts
    }

    /// Records that end at or before this offset may be dropped. Never lower than before, save
    /// that a follower keeps what it has yet to be given.
    #[must_use]
    pub fn droppable(&self) -> u64 {
        match self.follower {
            Follower::At(at) => self.confirmed.min(at),
            Follower::Expected | Follower::Left => self.confirmed,
        }
    }

    /// When the agent will have been without a gateway for too long.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match self.control {
            Control::Orphaned { due } => Some(due),
            Control::Attached | Control::Gone => None,
        }
    }

    /// Whether the agent has been without a gateway for too long and is to be stopped now. Says
    /// so once.
    pub fn orphan_is_due(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.control = Control::Gone;
        }
        due
    }

    /// Something is to be said that every gateway has to hear, those that come later as well:
    /// `attach` repeats it. Whether it is to be said now, since a gateway is there.
    #[must_use]
    pub fn say(&mut self, word: W) -> bool {
        self.last_words.push(word);
        self.is_attached()
    }

    /// The journal has the agent's last record, or there will be no agent at all. (Not before: a
    /// record that waits for room on the disk has to be waited for.)
    pub fn over(&mut self) {
        self.agent = Agent::Over;
        if !self.is_attached() {
            self.control = Control::Gone;
        }
    }

    /// Whether the keeper may end: nobody needs it any more. `replies_wait`: something that was
    /// said is not written so far; `end`: the journal's.
    #[must_use]
    pub fn may_end(&self, replies_wait: bool, end: u64) -> bool {
        match (self.agent, self.is_attached()) {
            (Agent::On, _) | (Agent::Awaited, true) => false,
            // The journal stays, with all that there is to know.
            (Agent::Awaited | Agent::Over, false) => true,
            (Agent::Over, true) => {
                !replies_wait
                    && match self.follower {
                        Follower::Expected => false,
                        Follower::At(at) => at >= end,
                        Follower::Left => true,
                    }
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);
    const JOURNAL: Bounds = Bounds { start: 100, end: 900 };

    fn running() -> Handover<&'static str> {
        let mut handover = Handover::spawned();
        handover.launched(GRACE);
        handover
    }

    #[test]
    fn the_newest_gateway_counts_and_it_alone() {
        let mut handover = running();
        assert!(handover.counts(1));
        let second = handover.attach().epoch;
        assert!(handover.counts(second));
        assert!(!handover.counts(1));
        assert_eq!(handover.follow(1, 100, JOURNAL), Err(NotFollowed::Stale));
        assert!(!handover.confirm(1, 900, JOURNAL));
        assert_eq!(handover.droppable(), 0);
        handover.lose(1, Instant::now());
        assert!(handover.counts(second), "the loss of a connection that does not count is none");
        assert_eq!(handover.due(), None);
        handover.lose(second, Instant::now());
        assert!(!handover.counts(second), "nobody is there");
        assert_eq!(handover.follow(second, 100, JOURNAL), Err(NotFollowed::Stale));
    }

    #[test]
    fn a_follower_begins_within_the_journal_its_ends_included() {
        let mut handover = running();
        let epoch = handover.attach().epoch;
        for outside in [0, 99, 901] {
            assert_eq!(handover.follow(epoch, outside, JOURNAL), Err(NotFollowed::Outside));
        }
        for inside in [100, 500, 900] {
            assert_eq!(handover.follow(epoch, inside, JOURNAL), Ok(()));
        }
    }

    #[test]
    fn a_confirm_counts_up_to_the_journals_end_and_never_goes_back() {
        let mut handover = running();
        let epoch = handover.attach().epoch;
        assert!(!handover.confirm(epoch, 901, JOURNAL));
        assert_eq!(handover.droppable(), 0);
        assert!(handover.confirm(epoch, 900, JOURNAL));
        assert!(handover.confirm(epoch, 500, JOURNAL));
        assert_eq!(handover.droppable(), 900);
    }

    #[test]
    fn what_a_follower_has_yet_to_be_given_is_kept() {
        let mut handover = running();
        let epoch = handover.attach().epoch;
        assert_eq!(handover.follow(epoch, 100, JOURNAL), Ok(()));
        assert!(handover.confirm(epoch, 500, JOURNAL));
        assert_eq!(handover.droppable(), 100);
        handover.sent(300);
        handover.sent(200);
        assert_eq!(handover.droppable(), 300);
        handover.sent(800);
        assert_eq!(handover.droppable(), 500);
        handover.unfollow();
        assert_eq!(handover.droppable(), 500);
    }

    #[test]
    fn an_orphan_has_its_grace_and_an_attach_takes_the_clock_away() {
        let mut handover = running();
        let begin = Instant::now();
        assert_eq!(handover.due(), None);
        handover.lose(1, begin);
        assert_eq!(handover.due(), Some(begin + GRACE));
        assert!(!handover.orphan_is_due(begin + GRACE - Duration::from_millis(1)));
        let epoch = handover.attach().epoch;
        assert_eq!(handover.due(), None);
        assert!(!handover.orphan_is_due(begin + 2 * GRACE));
        handover.lose(epoch, begin + GRACE);
        assert!(!handover.orphan_is_due(begin + GRACE), "a grace of its own");
        assert!(handover.orphan_is_due(begin + 2 * GRACE));
        assert!(!handover.orphan_is_due(begin + 3 * GRACE), "once");
        assert_eq!(handover.due(), None);
        assert!(!handover.may_end(false, 0), "the stop takes its time");
    }

    #[test]
    fn a_grace_without_end_does_not_overflow() {
        let mut handover = Handover::<()>::spawned();
        handover.launched(Duration::MAX);
        handover.lose(1, Instant::now());
        assert!(handover.due().is_some());
    }

    #[test]
    fn the_agents_end_is_repeated_to_each_gateway_that_comes_after_it() {
        let mut handover = running();
        assert!(handover.say("exited"));
        assert_eq!(handover.attach().repeat, ["exited"]);
        handover.lose(2, Instant::now());
        assert!(!handover.say("stopped"), "nobody is there to hear it");
        assert_eq!(handover.attach().repeat, ["exited", "stopped"]);
    }

    #[test]
    fn a_keeper_ends_when_nobody_needs_it() {
        let mut handover = Handover::<()>::spawned();
        assert!(!handover.may_end(false, 0), "a launch may come");
        handover.lose(1, Instant::now());
        assert!(handover.may_end(false, 0), "none will come");

        let mut handover = running();
        handover.lose(1, Instant::now());
        assert!(!handover.may_end(false, 0), "an agent outlives its gateway");
        handover.over();
        assert_eq!(handover.due(), None, "there is nothing left to stop");
        assert!(handover.may_end(true, 900), "replies to nobody are not waited for");

        let epoch = handover.attach().epoch;
        assert!(!handover.may_end(false, 900), "its data connection is on its way");
        assert_eq!(handover.follow(epoch, 100, JOURNAL), Ok(()));
        assert!(!handover.may_end(false, 900), "it lacks something");
        handover.sent(900);
        assert!(!handover.may_end(true, 900), "something is not said so far");
        assert!(handover.may_end(false, 900));
        assert_eq!(handover.follow(epoch, 100, JOURNAL), Ok(()));
        handover.unfollow();
        assert!(handover.may_end(false, 900), "it goes on with the files");
    }
}
