//! Telling people who are elsewhere that an agent waits for them, or how a run ended.
//!
//! The store thread names what is on disk; each sink has a thread of its own that reads the rest,
//! decides and sends. What is promised: each event is told at most once per sink, save that a retry
//! after a time-out may arrive twice (with the same `id`); what the gateway had not sent when it was
//! killed is not sent later. Must not know HTTP as a server, or how a configuration is written.

mod command;
mod fact;
pub mod message;
pub mod presence;
mod send;
pub mod sink;
mod worker;

use std::io;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use uuid::Uuid;

use crate::limits;
use crate::notify::message::Message;
use crate::notify::presence::Presence;
use crate::notify::sink::{EventKind, Sink};
use crate::notify::worker::Worker;
use crate::registry::{Herald, Notable, Registry};
use crate::run::id::Millis;
use crate::store::Readers;
use crate::sync::{Arc, AtomicUsize, Ordering};

/// What became of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sink took it.
    Sent,
    /// Nobody needed it.
    Suppressed,
    /// The sink did not take it.
    Failed,
}

impl Outcome {
    /// The word of the table and the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Suppressed => "suppressed",
            Self::Failed => "failed",
        }
    }
}

/// How a test of a sink went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tested {
    /// Its name.
    pub sink: String,
    /// Its kind.
    pub kind: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// In words.
    pub detail: String,
}

/// What all sinks share.
#[derive(Debug)]
struct Shared {
    registry: Arc<Registry>,
    readers: Arc<Readers>,
    presence: Arc<Presence>,
    public_url: String,
}

/// The sinks at work.
#[derive(Debug)]
pub struct Notifier {
    sinks: Vec<Sink>,
    presence: Arc<Presence>,
    shared: Option<Arc<Shared>>,
    testing: AtomicBool,
    stops: Vec<Sender<Instant>>,
    /// Disconnected once all threads are gone.
    ended: Receiver<()>,
}

/// Sinks that hear already, and are not at work yet.
#[derive(Debug)]
pub struct Prepared(Vec<Ear>);

#[derive(Debug)]
struct Ear {
    sink: Sink,
    inbox: Receiver<Notable>,
    overflow: Arc<AtomicUsize>,
}

/// The registry's side of it.
#[derive(Debug)]
struct Crier(Vec<Mouth>);

#[derive(Debug)]
struct Mouth {
    events: std::collections::BTreeSet<EventKind>,
    inbox: Sender<Notable>,
    overflow: Arc<AtomicUsize>,
}

/// Sinks, and who tells them: to be given to the registry before anything is committed.
#[must_use]
pub fn prepare(sinks: Vec<Sink>) -> (Prepared, Option<Box<dyn Herald>>) {
    let (mut ears, mut mouths) = (Vec::new(), Vec::new());
    for sink in sinks {
        let (tell, inbox) = bounded(limits::NOTIFY_INBOX_MAX);
        let overflow = Arc::new(AtomicUsize::new(0));
        let events = sink.events.clone();
        mouths.push(Mouth { events, inbox: tell, overflow: overflow.clone() });
        ears.push(Ear { sink, inbox, overflow });
    }
    let herald: Option<Box<dyn Herald>> = match mouths.is_empty() {
        true => None,
        false => Some(Box::new(Crier(mouths))),
    };
    (Prepared(ears), herald)
}

impl Herald for Crier {
    fn tell(&self, notable: Notable) {
        let wants = |mouth: &&Mouth| EventKind::may_be_wanted(&mouth.events, &notable.what);
        for mouth in self.0.iter().filter(wants) {
            match mouth.inbox.try_send(notable.clone()) {
                Ok(()) => {}
                // It is said with the next one that fits.
                Err(TrySendError::Full(_)) => {
                    mouth.overflow.fetch_add(1, Ordering::AcqRel);
                }
                // It stops.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

impl Notifier {
    /// Starts a thread for each sink.
    ///
    /// # Errors
    /// If there are no threads to be had.
    pub fn start(
        prepared: Prepared,
        registry: Arc<Registry>,
        readers: Arc<Readers>,
        public_url: &str,
    ) -> io::Result<Self> {
        let presence = Arc::new(Presence::new(lately(registry.limits().heartbeat_ms)));
        let public_url = public_url.to_owned();
        let shared = Shared { registry, readers, presence: presence.clone(), public_url };
        let shared = Arc::new(shared);
        let (ending, ended) = bounded::<()>(0);
        let (mut sinks, mut stops) = (Vec::new(), Vec::new());
        for Ear { sink, inbox, overflow } in prepared.0 {
            let (stop, stopped) = bounded(1);
            let (own, shared, ending) = (sink.clone(), shared.clone(), ending.clone());
            thread::Builder::new().name(format!("notify-{}", sink.name)).spawn(move || {
                Worker::new(own, shared, inbox, overflow, stopped).run();
                drop(ending);
            })?;
            sinks.push(sink);
            stops.push(stop);
        }
        let testing = AtomicBool::new(false);
        Ok(Self { sinks, presence, shared: Some(shared), testing, stops, ended })
    }

    /// Nobody is told anything.
    #[must_use]
    pub fn none() -> Self {
        let presence = Arc::new(Presence::new(lately(0)));
        let testing = AtomicBool::new(false);
        let (_, ended) = bounded(0);
        Self { sinks: Vec::new(), presence, shared: None, testing, stops: Vec::new(), ended }
    }

    /// Who looks at what.
    #[must_use]
    pub const fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// The names of the sinks.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sinks.iter().map(|sink| sink.name.as_str())
    }

    /// Sends a test to the sink of this name, or to all of them: one try each, all at once. `None`
    /// if a test is going on.
    ///
    /// # Errors
    /// If there are no threads to be had.
    pub fn test(&self, name: Option<&str>) -> io::Result<Option<Vec<Tested>>> {
        if self.testing.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        let chosen = self.sinks.iter().filter(|sink| name.is_none_or(|name| name == sink.name));
        let tested = thread::scope(|scope| {
            let tries = chosen.map(|sink| {
                let thread = thread::Builder::new().name("notify-test".into());
                thread.spawn_scoped(scope, move || self.try_sink(sink)).map(|handle| (sink, handle))
            });
            let tries = tries.collect::<io::Result<Vec<_>>>()?;
            let tested = tries.into_iter().map(|(sink, handle)| {
                handle.join().unwrap_or_else(|_| tested(sink, Outcome::Failed, "a bug of ours"))
            });
            Ok(tested.collect())
        });
        self.testing.store(false, Ordering::Release);
        tested.map(Some)
    }

    fn try_sink(&self, sink: &Sink) -> Tested {
        let public_url = self.shared.as_ref().map_or("", |shared| &shared.public_url);
        let id = Uuid::new_v4().to_string();
        let message = Message::test(&sink.name, public_url, &id, Millis::now());
        let (outcome, detail) = match send::Sender::new(sink).send(&message) {
            Ok(detail) => (Outcome::Sent, detail),
            Err(failed) => (Outcome::Failed, failed.detail),
        };
        if let Some(shared) = &self.shared {
            shared.record(&sink.name, "test", outcome, &detail);
        }
        tested(sink, outcome, &detail)
    }

    /// Lets each sink try once what waits, and take nothing more, until `deadline`.
    pub fn begin_stop(&self, deadline: Instant) {
        for stop in &self.stops {
            // Full: it was told already. Disconnected: it has ended.
            stop.try_send(deadline).ok();
        }
    }

    /// Waits for that; `false` if a try goes on at `deadline`.
    #[must_use]
    pub fn wait(&self, deadline: Instant) -> bool {
        // Nothing is ever sent: this ends when the last thread drops its end, or at the deadline.
        !matches!(
            self.ended.recv_deadline(deadline),
            Err(crossbeam_channel::RecvTimeoutError::Timeout)
        )
    }
}

fn tested(sink: &Sink, outcome: Outcome, detail: &str) -> Tested {
    let kind = sink.kind.word();
    Tested { sink: sink.name.clone(), kind, outcome, detail: detail.to_owned() }
}

/// A client that lives is heard from with each answer to a ping.
fn lately(heartbeat_ms: i64) -> Duration {
    Duration::from_millis(heartbeat_ms.unsigned_abs()) + limits::CLIENT_PONG
}
