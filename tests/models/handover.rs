//! From gateway to gateway: an agent's keeper goes on, and nothing is lost, doubled or done twice.

use reattach::keeper::handover::NotFollowed;
use reattach::oracle::Alarm;
use reattach::registry::{Completed, end};
use reattach::run::event::Reason;
use reattach::run::wake::Bell;
use reattach::sync::{Arc, Mutex};

use super::keeper::{Clock, Gone, Keeper, Record, Word};
use super::world::{NOW, S, World, by, finished, spawn};

/// What gateways leave to each other on disk: what was folded, and up to where the fold can be
/// resumed.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Saved>>);

#[derive(Clone, Default)]
struct Saved {
    log: Vec<Record>,
    /// The end of the last record in the log.
    offset: u64,
    /// Offset and state of the fold; its state is how many records it was fed.
    checkpoint: (u64, u64),
}

impl Disk {
    fn load(&self) -> Saved {
        self.0.lock().clone()
    }

    /// One batch: a record's events with its end offset.
    fn commit(&self, record: Record, to: u64) {
        let mut saved = self.0.lock();
        saved.log.push(record);
        saved.offset = to;
    }

    fn checkpoint(&self, offset: u64, state: u64) {
        self.0.lock().checkpoint = (offset, state);
    }
}

/// A gateway's fold of one agent, resumed from the disk.
struct Fold {
    disk: Disk,
    saved: Saved,
    at: u64,
    state: u64,
}

impl Fold {
    fn resume(disk: &Disk) -> Self {
        let saved = disk.load();
        let (at, state) = saved.checkpoint;
        Self { disk: disk.clone(), saved, at, state }
    }

    /// Takes the next record, and commits what it says unless an earlier gateway has.
    fn step(&mut self, keeper: &Keeper, epoch: u64) -> Record {
        let record = keeper.read(epoch, self.at);
        assert_eq!(self.state, self.at, "a fold misses nothing and is fed nothing twice");
        (self.at, self.state) = (self.at + 1, self.state + 1);
        if self.at > self.saved.offset {
            self.disk.commit(record, self.at);
        }
        record
    }

    /// A checkpoint, durable before it is confirmed.
    fn confirm(&self, keeper: &Keeper, epoch: u64) {
        self.disk.checkpoint(self.at, self.state);
        keeper.confirm(epoch, self.at);
    }
}

/// A gateway follows, folds and confirms, is killed at some point, and the next one goes on from
/// what is on disk, while what the first one sent is still arriving: nothing of the agent's words
/// is lost or doubled, and what was confirmed is dropped.
pub(crate) fn follow_and_confirm() {
    let clock = Clock::new();
    let (keeper, disk, killed) = (Keeper::launched(&clock), Disk::default(), Alarm::new());
    let agent = {
        let keeper = keeper.clone();
        spawn(move || {
            keeper.append(Record::Out(1));
            keeper.append(Record::Out(2));
            keeper.over();
            keeper.end();
        })
    };
    let first = {
        let (keeper, disk, killed) = (keeper.clone(), disk.clone(), killed.clone());
        spawn(move || {
            let mut fold = Fold::resume(&disk);
            fold.step(&keeper, 1);
            let checkpoint = fold.at;
            disk.checkpoint(checkpoint, fold.state);
            fold.step(&keeper, 1);
            killed.ring();
            // What the socket still holds of a gateway that is dead.
            keeper.confirm(1, checkpoint);
            keeper.lose(1, clock.begin);
        })
    };
    killed.wait();
    let mut fold = Fold::resume(&disk);
    let epoch = match keeper.attach() {
        Ok((epoch, _)) => {
            let followed = keeper.follow(epoch, fold.at);
            assert_eq!(followed, Ok(()), "nobody confirmed what the next gateway needs");
            epoch
        }
        // It goes on with the files.
        Err(Gone) => 2,
    };
    let mut confirmed = fold.at;
    while fold.step(&keeper, epoch) != Record::Exit {
        fold.confirm(&keeper, epoch);
        confirmed = fold.at;
    }
    keeper.lose(epoch, clock.begin);
    first.join().unwrap();
    agent.join().unwrap();
    let said = [Record::Out(1), Record::Out(2), Record::Exit];
    assert_eq!(disk.load().log, said, "nothing is lost and nothing doubled");
    assert!(keeper.start() <= confirmed, "only what was confirmed is dropped");
}

/// Two gateways in turn, the first slow and still acting, each with a database of its own (the
/// second's was restored from a backup): only the newest counts, a confirm of the first does not
/// take away what the second was promised, and each write reaches the agent once.
pub(crate) fn two_gateways() {
    let clock = Clock::new();
    let keeper = Keeper::launched(&clock);
    keeper.append(Record::Out(1));
    let slow = {
        let keeper = keeper.clone();
        spawn(move || {
            keeper.read(1, 0);
            keeper.write(1, 1);
            keeper.write(1, 2);
            keeper.confirm(1, 1);
            keeper.lose(1, clock.begin);
        })
    };
    let (epoch, journal) = keeper.attach().expect("its agent runs");
    let followed = keeper.follow(epoch, 0);
    if journal.start == 0 {
        assert_eq!(followed, Ok(()), "what it found as it attached is kept for it");
    } else {
        assert_eq!(followed, Err(NotFollowed::Outside), "it is told that something is missing");
    }
    for n in [1, 2] {
        assert!(keeper.write(epoch, n), "the newest gateway counts");
    }
    slow.join().unwrap();
    assert_eq!(keeper.stdin(), [1, 2], "I20: each write reaches the agent once, in order");
    assert_eq!(keeper.follow(1, 1), Err(NotFollowed::Stale), "the older one is no longer served");
    let written = keeper.journal().into_iter().filter(|record| matches!(record, Record::In(_)));
    assert_eq!(written.count(), 2, "and has one record");
}

/// An abort against the agent's own end: its gateway hears of the end once, the exit is in the
/// journal, the run has one `complete` (I1), and the keeper stays until its gateway has it all.
pub(crate) fn stop_and_exit() {
    let clock = Clock::new();
    let (world, keeper) = (World::new(), Keeper::launched(&clock));
    let (session, run) = world.running();
    let agent = {
        let keeper = keeper.clone();
        spawn(move || {
            end_of_agent(&keeper);
            keeper.end();
        })
    };
    let control = {
        let (keeper, session) = (keeper.clone(), session.clone());
        spawn(move || {
            let heard = hear_all(&keeper, 1);
            assert_eq!(heard, [Word::Exited, Word::Stopped], "its gateway hears it exactly once");
            let asked = session.orders(run).abort.is_some();
            assert!(asked, "the keeper stays until its gateway has read the end");
            session.complete(run, &end(Reason::Aborted, Some(1), None), NOW)
        })
    };
    let asked = session.ask_abort(Some(run), &by("a"), NOW).is_some();
    assert!(asked, "nobody has ended it: its records are not read");
    keeper.stop(1);
    let mut offset = 0;
    while keeper.read(1, offset) != Record::Exit {
        offset += 1;
    }
    let natural = session.complete_after(run, &finished(), NOW, offset + 1, |_| Vec::new());
    let aborted = control.join().unwrap();
    agent.join().unwrap();
    assert_eq!(aborted, Completed::Won, "I1: the abort was accepted, so it ends the run");
    assert_ne!(natural, Completed::Won, "I1: one caller is told that it won");
    let exits = keeper.journal().into_iter().filter(|record| *record == Record::Exit);
    assert_eq!(exits.count(), 1, "the end is in the journal");
    world.settle();
    assert!(world.check_disk().has_end_of(1), "I1: it has its end");
    assert!(world.disk.runs(S).remove(0).end.unwrap().complete.aborted);
}

/// The agent's end against a gateway that is lost and one that attaches: each that stays hears of
/// the end exactly once, however late it came, and reads up to the exit; a keeper that is gone by
/// then has left it all in the journal.
pub(crate) fn end_and_attach() {
    let clock = Clock::new();
    let keeper = Keeper::launched(&clock);
    let agent = {
        let keeper = keeper.clone();
        spawn(move || {
            end_of_agent(&keeper);
            keeper.end();
        })
    };
    let first = {
        let keeper = keeper.clone();
        spawn(move || keeper.lose(1, clock.begin))
    };
    let attached = keeper.attach().ok();
    if let Some((epoch, _)) = attached {
        assert_eq!(keeper.follow(epoch, 0), Ok(()));
        assert_eq!(keeper.read(epoch, 0), Record::Exit);
        let heard = hear_all(&keeper, epoch);
        assert_eq!(heard, [Word::Exited, Word::Stopped], "each gateway hears it exactly once");
    }
    first.join().unwrap();
    agent.join().unwrap();
    assert_eq!(keeper.journal(), [Record::Exit], "the end is in the journal");
}

/// An orphan's grace against a gateway that attaches, while the loss of the first one arrives:
/// the agent of a gateway that is there is not stopped.
pub(crate) fn grace_and_attach() {
    let clock = Clock::new();
    let keeper = Keeper::launched(&clock);
    let due = clock.after_the_grace();
    let first = {
        let keeper = keeper.clone();
        spawn(move || keeper.lose(1, clock.begin))
    };
    let timer = {
        let keeper = keeper.clone();
        spawn(move || [keeper.look_at_the_clock(due), keeper.look_at_the_clock(due)])
    };
    let (epoch, journal) = keeper.attach().expect("its agent runs");
    let stopping = journal.end > 0;
    first.join().unwrap();
    let stopped = timer.join().unwrap().contains(&true);
    assert!(!keeper.look_at_the_clock(due), "a gateway is there");
    assert_eq!(stopped, stopping, "the agent of a gateway that is there is not stopped");
    assert_eq!(
        keeper.journal().len(),
        usize::from(stopped),
        "the decision is in the journal, once"
    );
    assert!(keeper.write(epoch, 1), "it counts, also while the agent is being stopped");
}

/// The process ends, then nothing that it started is left, then the journal has it all.
fn end_of_agent(keeper: &Keeper) {
    keeper.exit();
    keeper.swept();
    keeper.over();
}

fn hear_all(keeper: &Keeper, epoch: u64) -> Vec<Word> {
    std::iter::from_fn(|| keeper.hear(epoch)).collect()
}
