//! The store's side of the logs: takes what is new in all sessions, commits it in one
//! transaction, and only then lets it be seen (I8).
//!
//! Group commit needs no timer: while one transaction is written, the next batch gathers. When
//! the disk fails, nothing is lost that was visible: `durable` stands still, agents wait, and
//! what was taken is taken again. Must not know SQLite or threads: the caller runs `round` in its
//! loop.

use std::collections::BTreeSet;

use crate::registry::compose::end;
use crate::registry::shelf::{CommitError, Disk};
use crate::registry::{Registry, StoreState};
use crate::run::change::{Batch, Change, Item, Mark};
use crate::run::event::Reason;
use crate::run::id::{Millis, SessionId};
use crate::run::server_change::ServerChange;
use crate::run::wake::Waker;
use crate::sync::Arc;

/// The store thread's state.
#[derive(Debug)]
pub struct Persist<D> {
    registry: Arc<Registry>,
    disk: D,
    waker: Waker,
    /// Sessions that have, or may have, something to commit.
    behind: BTreeSet<SessionId>,
}

/// What a round did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Round {
    /// Nothing to do: wait for a wake.
    Idle,
    /// Something was committed, and there may be more: go on at once.
    Worked,
    /// The disk cannot take it now: try again in a while.
    Failing(&'static str),
    /// The database is not usable: the process must stop, recovery finishes at the next start.
    Fatal(String),
}

impl<D: Disk> Persist<D> {
    /// The store's side of `registry`'s logs. `waker` is the one that the registry was made with.
    pub const fn new(registry: Arc<Registry>, disk: D, waker: Waker) -> Self {
        Self { registry, disk, waker, behind: BTreeSet::new() }
    }

    /// The disk, between two rounds.
    pub const fn disk(&mut self) -> &mut D {
        &mut self.disk
    }

    /// The disk, when all is done.
    pub fn into_disk(self) -> D {
        self.disk
    }

    /// One round. The caller has drained its bell before.
    pub fn round(&mut self, now: Millis) -> Round {
        self.behind.append(&mut self.waker.take().sessions);
        let server = self.server_changes();
        if let Round::Failing(code) = server {
            self.registry.broadcasts().set_store(StoreState::Bad(code));
        }
        if matches!(server, Round::Failing(_) | Round::Fatal(_)) {
            return server;
        }
        let batches: Vec<Batch> =
            self.behind.iter().filter_map(|id| self.registry.in_memory(*id)?.take()).collect();
        if batches.is_empty() {
            self.behind.clear();
            self.trim();
            if server == Round::Worked {
                self.registry.broadcasts().set_store(StoreState::Good);
            }
            return server;
        }
        let round = match self.disk.commit(&batches) {
            Ok(()) => {
                self.committed(batches);
                Round::Worked
            }
            Err(CommitError::Constraint { .. }) => self.one_by_one(batches, now),
            Err(CommitError::Retry { code, .. }) => Round::Failing(code),
            Err(error @ CommitError::Fatal { .. }) => Round::Fatal(error.to_string()),
        };
        match round {
            Round::Worked => self.registry.broadcasts().set_store(StoreState::Good),
            Round::Failing(code) => self.registry.broadcasts().set_store(StoreState::Bad(code)),
            Round::Idle | Round::Fatal(_) => {}
        }
        self.trim();
        round
    }

    /// Facts of no session, which are few: a transaction of their own, and one for each if a guard
    /// refuses some.
    fn server_changes(&mut self) -> Round {
        let (tickets, changes): (Vec<u64>, Vec<ServerChange>) =
            self.registry.desk.take().into_iter().unzip();
        let Some(last) = tickets.last() else { return Round::Idle };
        let mut refused = Vec::new();
        match self.disk.commit_server(&changes) {
            Ok(()) => {}
            Err(CommitError::Constraint { .. }) => {
                for (ticket, change) in tickets.iter().zip(&changes) {
                    match self.disk.commit_server(std::slice::from_ref(change)) {
                        Ok(()) => {}
                        Err(CommitError::Constraint { .. }) => refused.push(*ticket),
                        Err(error) => {
                            // What is done of it must not be done again.
                            self.registry.desk.settle(ticket - 1, &refused);
                            return failed(&error);
                        }
                    }
                }
            }
            Err(error) => return failed(&error),
        }
        self.registry.desk.settle(*last, &refused);
        Round::Worked
    }

    /// A guard refused some session's rows: the others go on, that one's run ends.
    fn one_by_one(&mut self, batches: Vec<Batch>, now: Millis) -> Round {
        for batch in batches {
            match self.disk.commit(std::slice::from_ref(&batch)) {
                Ok(()) => self.committed(vec![batch]),
                Err(CommitError::Constraint { message }) => self.quarantine(&batch, &message, now),
                Err(CommitError::Retry { code, .. }) => return Round::Failing(code),
                Err(error @ CommitError::Fatal { .. }) => return Round::Fatal(error.to_string()),
            }
        }
        Round::Worked
    }

    /// What the store refuses is forgotten, and the run that it was of ends `store_rejected`. If
    /// that is refused as well the session leaves memory; recovery ends its run at the next start.
    fn quarantine(&mut self, batch: &Batch, message: &str, now: Millis) {
        let Some(session) = self.registry.in_memory(batch.session) else { return };
        // Nobody but this thread commits, so the disk stays as it is read here.
        let Ok(Some(loaded)) = self.registry.on_disk(batch.session) else {
            self.leave(batch.session);
            return;
        };
        self.registry.release_natives(batch.session, loaded.row.native_id.as_ref());
        let run = self.registry.reject(&session, loaded);
        // Deleted, and the deletion was refused: readers may have been told that it ended, so it
        // comes back as a session of its own.
        let back = run.is_none() || session.is_deleted();
        if back {
            self.leave(batch.session);
        }
        let Some(run) = run else { return };
        let Ok(session) = (if back { self.registry.recover(batch.session) } else { Ok(session) })
        else {
            return;
        };
        let error = Some(format!("The store refused what this run wrote: {message}"));
        session.complete_rejected(run, &end(Reason::StoreRejected, None, error), now);
        let Some(last) = session.take() else { return };
        match self.disk.commit(std::slice::from_ref(&last)) {
            Ok(()) => self.committed(vec![last]),
            Err(CommitError::Constraint { .. }) => self.leave(batch.session),
            // The next round takes it again.
            Err(_) => {}
        }
    }

    fn leave(&mut self, id: SessionId) {
        self.behind.remove(&id);
        self.registry.remove(id);
    }

    fn committed(&mut self, batches: Vec<Batch>) {
        let mut news = Vec::new();
        for batch in batches {
            self.registry.tell_herald(&batch);
            let Some(session) = self.registry.in_memory(batch.session) else { continue };
            if !session.settle(batch.to, batch.ticket) {
                self.behind.remove(&batch.session);
            }
            let archived = session.row().archived;
            match news_of(&batch) {
                News::Deleted => {
                    self.behind.remove(&batch.session);
                    self.registry.remove(batch.session);
                    news.push((batch.session, true));
                }
                News::Always => news.push((batch.session, false)),
                News::UnlessArchived if !archived => news.push((batch.session, false)),
                News::UnlessArchived | News::None => {}
            }
        }
        self.registry.broadcasts().announce(news);
    }

    /// Keeps the total within its bound and lets those try again who were refused room.
    fn trim(&self) {
        let budget = self.registry.budget();
        for completed in [true, false] {
            if budget.excess() == 0 {
                break;
            }
            for session in self.registry.loaded() {
                match budget.excess() {
                    0 => break,
                    excess => session.trim(excess, completed),
                };
            }
        }
        budget.feed();
    }
}

/// How a round ends whose commit failed for another reason than a guard's.
fn failed(error: &CommitError) -> Round {
    match error {
        CommitError::Retry { code, .. } => Round::Failing(code),
        error => Round::Fatal(error.to_string()),
    }
}

/// Whether a batch changes what a session looks like in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    None,
    UnlessArchived,
    Always,
    Deleted,
}

fn news_of(batch: &Batch) -> News {
    batch.items.iter().map(news_of_item).max().unwrap_or(News::None)
}

fn news_of_item(item: &Item) -> News {
    match item {
        Item::Frame(frame) => match frame.mark.as_deref() {
            Some(
                Mark::PermissionOpened { .. }
                | Mark::PermissionAnswered { .. }
                | Mark::PermissionCancelled(_)
                | Mark::Complete(_),
            ) => News::UnlessArchived,
            _ => News::None,
        },
        Item::Change(change) => match change.as_ref() {
            Change::SessionCreated(_)
            | Change::NativeIdLearned { .. }
            | Change::RunStarted(_)
            | Change::Queued(_)
            | Change::QueueRemoved { .. }
            | Change::QueueResumed { .. } => News::UnlessArchived,
            Change::SessionEdited { archived: Some(_), .. } => News::Always,
            Change::SessionEdited { .. } => News::UnlessArchived,
            Change::SessionDeleted => News::Deleted,
            _ => News::None,
        },
    }
}
