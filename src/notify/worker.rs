//! One sink's thread: gathers what happened in a session, decides whether somebody is to be told,
//! tries, and records what became of it.
//!
//! Nobody waits for it: what comes too fast is counted and recorded as failed (I7). A sink that
//! hangs delays its own notifications only. Must not know how a try is made.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use uuid::Uuid;

use crate::limits;
use crate::notify::fact::{Found, find};
use crate::notify::message::{Fact, Message};
use crate::notify::send::{Failed, Sender};
use crate::notify::sink::{EventKind, Sink};
use crate::notify::{Outcome, Shared};
use crate::registry::{Notable, Occasion};
use crate::run::id::{Millis, RunId, SessionId};
use crate::run::server_change::{NotificationRow, ServerChange};
use crate::sync::{Arc, AtomicUsize, Ordering};

/// A sink's thread.
pub(super) struct Worker {
    sink: Sink,
    sender: Sender,
    shared: Arc<Shared>,
    inbox: Receiver<Notable>,
    /// What did not fit the inbox.
    overflow: Arc<AtomicUsize>,
    /// Says that it has to end, and until when.
    stop: Receiver<Instant>,
    waiting: BTreeMap<SessionId, Bundle>,
    /// When somebody was last told of a session.
    told: BTreeMap<SessionId, Instant>,
}

/// What is to be told of one session, as one notification.
#[derive(Debug)]
struct Bundle {
    id: String,
    items: Vec<Item>,
    /// Items that were too many to be kept.
    more: usize,
    due: Instant,
    tries: usize,
}

#[derive(Clone, Debug)]
struct Item {
    notable: Notable,
    since: Instant,
    /// It was recorded that nobody was told, because somebody seemed to look.
    passed_over: bool,
}

/// What a look at a bundle gives.
#[derive(Default)]
struct Sorted {
    /// To be told now.
    facts: Vec<Fact>,
    items: Vec<Item>,
    /// To be looked at again: requests that somebody seems to look at.
    later: Vec<Item>,
    /// Nobody is told, since somebody seems to look.
    seen: Option<EventKind>,
    /// Nobody is told, since it was answered meanwhile.
    settled: Option<EventKind>,
}

impl Worker {
    pub(super) fn new(
        sink: Sink,
        shared: Arc<Shared>,
        inbox: Receiver<Notable>,
        overflow: Arc<AtomicUsize>,
        stop: Receiver<Instant>,
    ) -> Self {
        let sender = Sender::new(&sink);
        let (waiting, told) = (BTreeMap::new(), BTreeMap::new());
        Self { sink, sender, shared, inbox, overflow, stop, waiting, told }
    }

    /// Works until it is told to stop; what waits then gets one try each, while there is time.
    pub(super) fn run(mut self) {
        let until = loop {
            let due = self.waiting.values().map(|bundle| bundle.due).min();
            let idle = Duration::from_millis(limits::NOTIFY_IDLE_MS.unsigned_abs());
            let pause = due.map_or(idle, |due| due.saturating_duration_since(Instant::now()));
            select! {
                recv(self.inbox) -> notable => match notable {
                    Ok(notable) => self.file(notable, Instant::now()),
                    Err(_) => break Instant::now(),
                },
                recv(self.stop) -> until => break until.unwrap_or_else(|_| Instant::now()),
                default(pause) => {}
            }
            self.note_overflow();
            let now = Instant::now();
            let due = self.waiting.iter().filter(|(_, bundle)| bundle.due <= now);
            for session in due.map(|(session, _)| *session).collect::<Vec<_>>() {
                self.take_on(session, true);
            }
        };
        while let Ok(notable) = self.inbox.try_recv() {
            self.file(notable, Instant::now());
        }
        self.note_overflow();
        for session in self.waiting.keys().copied().collect::<Vec<_>>() {
            if Instant::now() < until {
                self.take_on(session, false);
            } else if let Some(bundle) = self.waiting.remove(&session) {
                self.give_up(session, &bundle, "the server stopped before it could be sent");
            }
        }
    }

    /// Puts it to what waits of its session. The first of a session waits a moment for more, and
    /// what follows soon after a notification waits longer.
    fn file(&mut self, notable: Notable, now: Instant) {
        let session = notable.session;
        let item = Item { notable, since: now, passed_over: false };
        let gathered = now + ms(limits::NOTIFY_GATHER_MS);
        let rested = self.told.get(&session).map(|told| *told + ms(limits::NOTIFY_REST_MS));
        let due = rested.map_or(gathered, |rested| rested.max(gathered));
        if let Some(bundle) = self.waiting.get_mut(&session) {
            if bundle.items.len() < limits::NOTIFY_BUNDLE_MAX {
                bundle.items.push(item);
            } else {
                bundle.more += 1;
            }
            if bundle.tries == 0 {
                bundle.due = bundle.due.min(due);
            }
        } else if self.waiting.len() < limits::NOTIFY_SESSIONS_MAX {
            self.waiting.insert(session, Bundle::new(vec![item], due));
        } else {
            let detail = "too many notifications waited";
            self.record(Some(session), None, kind_of(&item.notable), Outcome::Failed, detail);
        }
    }

    /// Sees to what waits of a session. A panic in it costs that notification only.
    fn take_on(&mut self, session: SessionId, again: bool) {
        let Some(bundle) = self.waiting.remove(&session) else { return };
        let kind = bundle.items.first().map_or(EventKind::RunFailed, |item| kind_of(&item.notable));
        let taken = catch_unwind(AssertUnwindSafe(|| self.see_to(session, bundle, again)));
        if taken.is_err() {
            self.record(Some(session), None, kind, Outcome::Failed, "a bug of ours");
        }
    }

    fn see_to(&mut self, session: SessionId, bundle: Bundle, again: bool) {
        let view = match self.shared.readers.session_view(session) {
            Ok(Some(view)) => view,
            // Deleted: nobody wants to hear of it.
            Ok(None) => return,
            Err(error) => return self.give_up(session, &bundle, &error.to_string()),
        };
        let Bundle { id, items, more, tries, .. } = bundle;
        let sorted = match self.sort(items, Instant::now()) {
            Ok(sorted) => sorted,
            Err((kind, error)) => {
                return self.record(Some(session), None, kind, Outcome::Failed, &error);
            }
        };
        let Sorted { facts, items, later, seen, settled } = sorted;
        if let Some(kind) = seen {
            let detail = "a visible client shows the session";
            self.record(Some(session), None, kind, Outcome::Suppressed, detail);
        }
        let public_url = &self.shared.public_url;
        let message = Message::of(&facts, &view, self.sink.detail, public_url, &id);
        let Some(mut message) = message else {
            if let (None, Some(kind)) = (seen, settled) {
                let detail = "answered before it was sent";
                self.record(Some(session), None, kind, Outcome::Suppressed, detail);
            }
            return self.look_again(session, later);
        };
        message.count += more;
        let kind = message.kind.unwrap_or(EventKind::RunFailed);
        match self.sender.send(&message) {
            Ok(detail) => {
                self.record(Some(session), message.run, kind, Outcome::Sent, &detail);
                let now = Instant::now();
                self.told.retain(|_, told| now < *told + ms(limits::NOTIFY_REST_MS));
                self.told.insert(session, now);
                self.look_again(session, later);
            }
            Err(Failed { detail, passing, wait }) => {
                let pause = limits::NOTIFY_RETRIES_MS.get(tries).filter(|_| passing && again);
                let Some(pause) = pause else {
                    self.record(Some(session), message.run, kind, Outcome::Failed, &detail);
                    return self.look_again(session, later);
                };
                tracing::debug!(sink = self.sink.name, detail, "a notification is tried again");
                let longest = ms(limits::NOTIFY_RETRY_AFTER_MS_MAX);
                let due = Instant::now() + wait.unwrap_or_default().min(longest).max(ms(*pause));
                let items = items.into_iter().chain(later).collect();
                self.waiting.insert(session, Bundle { id, items, more, due, tries: tries + 1 });
            }
        }
    }

    /// Tells apart what is to be told, what is not, and what perhaps later.
    fn sort(&self, items: Vec<Item>, now: Instant) -> Result<Sorted, (EventKind, String)> {
        let mut sorted = Sorted::default();
        for item in items {
            let found = find(&self.shared.readers, &item.notable);
            let found = found.map_err(|error| (kind_of(&item.notable), error.to_string()))?;
            match found {
                Found::Fact(fact) if self.sink.events.contains(&fact.kind) => {
                    let session = item.notable.session;
                    let waited = now.saturating_duration_since(item.since);
                    let patience = ms(self.sink.unanswered_ms);
                    let again = fact.kind.waits() && !patience.is_zero();
                    if fact.kind.always()
                        || again && waited >= patience
                        || !self.shared.presence.sees(session, now)
                    {
                        sorted.facts.push(fact);
                        sorted.items.push(item);
                    } else {
                        if !item.passed_over {
                            sorted.seen = sorted.seen.max(Some(fact.kind));
                        }
                        if again {
                            sorted.later.push(Item { passed_over: true, ..item });
                        }
                    }
                }
                Found::Settled(kind) if self.sink.events.contains(&kind) && !item.passed_over => {
                    sorted.settled = Some(kind);
                }
                Found::Fact(_) | Found::Settled(_) | Found::Nothing => {}
            }
        }
        Ok(sorted)
    }

    /// Requests that somebody seems to look at are looked at again when they have waited long.
    fn look_again(&mut self, session: SessionId, later: Vec<Item>) {
        let Some(since) = later.iter().map(|item| item.since).min() else { return };
        self.waiting.insert(session, Bundle::new(later, since + ms(self.sink.unanswered_ms)));
    }

    fn give_up(&self, session: SessionId, bundle: &Bundle, detail: &str) {
        // What was passed over is recorded already.
        let mut items = bundle.items.iter().filter(|item| !item.passed_over);
        if let Some(item) = items.next() {
            let kind = kind_of(&item.notable);
            self.record(Some(session), None, kind, Outcome::Failed, detail);
        }
    }

    fn note_overflow(&self) {
        let lost = self.overflow.swap(0, Ordering::AcqRel);
        if lost > 0 {
            let detail = format!("{lost} events came faster than they could be looked at");
            self.shared.record(&self.sink.name, "overflow", Outcome::Failed, &detail);
        }
    }

    fn record(
        &self,
        session: Option<SessionId>,
        run: Option<RunId>,
        kind: EventKind,
        outcome: Outcome,
        detail: &str,
    ) {
        let row = NotificationRow {
            at: Millis::now(),
            session,
            run,
            event: kind.word(),
            sink: self.sink.name.clone(),
            outcome: outcome.word(),
            detail: detail.to_owned(),
        };
        self.shared.keep(row);
    }
}

impl Bundle {
    fn new(items: Vec<Item>, due: Instant) -> Self {
        Self { id: Uuid::new_v4().to_string(), items, more: 0, due, tries: 0 }
    }
}

impl Shared {
    /// Records what became of something that is of no session.
    pub(super) fn record(&self, sink: &str, event: &'static str, outcome: Outcome, detail: &str) {
        self.keep(NotificationRow {
            at: Millis::now(),
            session: None,
            run: None,
            event,
            sink: sink.to_owned(),
            outcome: outcome.word(),
            detail: detail.to_owned(),
        });
    }

    fn keep(&self, row: NotificationRow) {
        let NotificationRow { event, sink, outcome, detail, .. } = &row;
        if *outcome == Outcome::Failed.word() {
            tracing::warn!(sink, event, detail, "a notification was not delivered");
        } else {
            tracing::debug!(sink, event, outcome, detail, "a notification");
        }
        if let Err(refusal) = self.registry.record(ServerChange::Notified(row)) {
            tracing::warn!(%refusal, "what became of a notification is not recorded");
        }
    }
}

/// What it seems to be, as far as can be said without reading.
fn kind_of(notable: &Notable) -> EventKind {
    match &notable.what {
        Occasion::Asked(_) => EventKind::PermissionAsked,
        Occasion::Ended { reason, success, aborted } => {
            EventKind::of_end(*reason, *success, *aborted).unwrap_or(EventKind::RunFinished)
        }
    }
}

fn ms(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}
