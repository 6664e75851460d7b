//! What the server counts of itself, and the OpenMetrics text in which `/metrics` tells it.
//!
//! Counting costs an atomic or two: once a batch in the store thread, once a turn in a
//! connection, never once an event under a lock. What can be read from the state is read when
//! somebody asks (`Snapshot`). Labels are closed lists, names of configured providers and sinks,
//! and our own routes: never an id, a path or a person. Must not know runs, sessions or sockets.

pub mod labels;
mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::sync::Arc;
use labels::{Attach, AuthFailure, Decision, Drop as Dropped, Exit, Session, Source, Transport};

/// The value of the label `agent` for a provider that is not configured any more.
pub const OTHER: &str = "other";

/// How the text is announced.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The counters of one server.
pub struct Metrics {
    registry: Registry,
    sessions: Family<labels::State, Gauge>,
    agents: BTreeMap<String, AgentCounters>,
    runs_finished: Family<labels::AgentOutcome, Counter>,
    run_duration: Family<labels::AgentOutcome, Histogram, Buckets>,
    agent_processes: Family<labels::Agent, Gauge>,
    agent_exits: Family<labels::AgentReason, Counter>,
    log_append: Histogram,
    log_sync: Histogram,
    log_bytes: Gauge,
    /// In the order of `Transport::ALL`.
    transports: Vec<TransportCounters>,
    client_lag: Histogram,
    client_drops: Family<labels::Reason, Counter>,
    permissions_pending: Gauge,
    decisions: Family<labels::Decided, Counter>,
    decision_waits: Family<labels::Waited, Histogram, Buckets>,
    notifications: Family<labels::Sent, Counter>,
    http_requests: Family<labels::Request, Counter>,
    http_durations: Family<labels::Request, Histogram, Buckets>,
    auth_failures: Family<labels::Kind, Counter>,
}

/// What is looked up when somebody asks. `None` or absent: it could not be.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// How many sessions are in which state.
    pub sessions: Option<BTreeMap<Session, i64>>,
    /// Permission requests that wait for an answer.
    pub permissions_pending: Option<i64>,
    /// Agents' processes by provider.
    pub agent_processes: BTreeMap<String, i64>,
}

#[derive(Debug)]
struct AgentCounters {
    started: Counter,
    events: Counter,
    bytes: Counter,
}

#[derive(Debug)]
struct TransportCounters {
    clients: Gauge,
    attaches: [Counter; 2],
    replayed: Counter,
    replay: Histogram,
    delivery: Histogram,
}

/// One client, from its handshake to its end.
#[derive(Debug)]
pub struct Client {
    metrics: Arc<Metrics>,
    transport: Transport,
}

/// Makes the histograms of a family.
#[derive(Clone, Copy, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Of work on this machine, in seconds.
const FAST: Buckets = Buckets(&[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
]);
/// Of the way to a client, in seconds.
const DELIVERY: Buckets =
    Buckets(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
/// Of runs, in seconds.
const RUNS: Buckets =
    Buckets(&[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0]);
/// Of people, in seconds.
const PEOPLE: Buckets =
    Buckets(&[1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0]);
/// Of events.
const EVENTS: Buckets =
    Buckets(&[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0]);

impl Metrics {
    /// Counters that all are zero. `agents` are the names of the configured providers,
    /// `outcomes` the words for how a run may end.
    #[must_use]
    pub fn new(
        agents: impl IntoIterator<Item = String>,
        outcomes: &[&'static str],
        version: &'static str,
        revision: Option<&'static str>,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let mut ours = Ours(registry.sub_registry_with_prefix("reattach"));
        let build = labels::Build { version, revision: revision.unwrap_or("unknown") };
        ours.0.register("build", "The version that runs", Info::new(build));
        let names: Vec<String> = agents.into_iter().chain([OTHER.to_owned()]).collect();
        let agents = ours.agents(&names);
        let runs_finished: Family<labels::AgentOutcome, Counter> =
            ours.add("runs_finished", "Runs that have their end", Family::default());
        for agent in &names {
            for outcome in outcomes {
                let labels = labels::AgentOutcome { agent: agent.clone(), outcome };
                drop(runs_finished.get_or_create(&labels));
            }
        }
        Self {
            agents,
            runs_finished,
            transports: ours.transports(),
            sessions: ours.add("sessions", "Sessions", Family::default()),
            run_duration: ours.seconds(
                "run_duration",
                "How long runs took",
                Family::new_with_constructor(RUNS),
            ),
            agent_processes: ours.add("agent_processes", "Agents at work", Family::default()),
            agent_exits: ours.add("agent_exits", "Agents that have ended", Family::default()),
            log_append: ours.seconds(
                "log_append",
                "How long a transaction took to write, its flush not counted",
                FAST.new_metric(),
            ),
            log_sync: ours.seconds(
                "log_sync",
                "How long a transaction took to be flushed to the disk",
                FAST.new_metric(),
            ),
            log_bytes: ours.bytes("log", "Heads, events and blobs that are kept", Gauge::default()),
            client_lag: ours.add(
                "client_lag_events",
                "Events that a live client was behind until it had them all again",
                EVENTS.new_metric(),
            ),
            client_drops: ours.reasons(),
            permissions_pending: ours.add(
                "permissions_pending",
                "Permission requests that wait for an answer",
                Gauge::default(),
            ),
            decisions: ours.add(
                "permission_decisions",
                "Permission requests that were decided",
                Family::default(),
            ),
            decision_waits: ours.seconds(
                "permission_wait",
                "How long permission requests waited",
                Family::new_with_constructor(PEOPLE),
            ),
            notifications: ours.add(
                "notifications",
                "Notifications that were sent, or could not be",
                Family::default(),
            ),
            http_requests: ours.add("http_requests", "Requests answered", Family::default()),
            http_durations: ours.seconds(
                "http_request_duration",
                "How long requests took, from the end of their head to the answer's last byte",
                Family::new_with_constructor(FAST),
            ),
            auth_failures: ours.auth_failures(),
            registry,
        }
    }

    /// All of it, as `/metrics` tells it.
    ///
    /// # Errors
    /// Never, since a string takes everything.
    pub fn text(&self, now: &Snapshot) -> Result<String, fmt::Error> {
        for state in Session::ALL {
            let labels = labels::State { state: state.word() };
            match &now.sessions {
                Some(sessions) => {
                    let count = sessions.get(state).copied().unwrap_or(0);
                    self.sessions.get_or_create(&labels).set(count);
                }
                // A number that is not known is not told, rather than an old one.
                None => drop(self.sessions.remove(&labels)),
            }
        }
        if let Some(pending) = now.permissions_pending {
            self.permissions_pending.set(pending);
        }
        let mut processes: BTreeMap<&str, i64> = BTreeMap::new();
        for (agent, count) in &now.agent_processes {
            *processes.entry(self.known(agent)).or_default() += count;
        }
        for agent in self.agents.keys() {
            let count = processes.get(agent.as_str()).copied().unwrap_or(0);
            let labels = labels::Agent { agent: agent.clone() };
            self.agent_processes.get_or_create(&labels).set(count);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Events of an agent's runs are on disk: so many, of so many bytes.
    pub fn appended(&self, agent: &str, events: u64, bytes: u64) {
        if let Some(counters) = self.agents.get(self.known(agent)) {
            counters.events.inc_by(events);
            counters.bytes.inc_by(bytes);
        }
    }

    /// A run has begun.
    pub fn run_started(&self, agent: &str) {
        if let Some(counters) = self.agents.get(self.known(agent)) {
            counters.started.inc();
        }
    }

    /// A run has its end; `outcome` is one of those that `new` was given.
    pub fn run_finished(&self, agent: &str, outcome: &'static str, took: Duration) {
        let labels = labels::AgentOutcome { agent: self.known(agent).to_owned(), outcome };
        self.runs_finished.get_or_create(&labels).inc();
        self.run_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An agent's process has ended, or was never to be had.
    pub fn agent_ended(&self, agent: &str, exit: Exit) {
        let agent = self.known(agent).to_owned();
        let labels = labels::AgentReason { agent, reason: exit.word() };
        self.agent_exits.get_or_create(&labels).inc();
    }

    /// A transaction is on disk: what it took to write and to flush, and what is kept now.
    pub fn committed(&self, append: Duration, sync: Duration, log_bytes: u64) {
        self.log_append.observe(append.as_secs_f64());
        self.log_sync.observe(sync.as_secs_f64());
        self.log_holds(log_bytes);
    }

    /// Bytes of heads, events and blobs that are kept.
    pub fn log_holds(&self, bytes: u64) {
        self.log_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// A permission request was decided. `waited` is how long it waited, if that is known.
    pub fn decided(&self, decision: Decision, source: Source, waited: Option<Duration>) {
        let (decision, source) = (decision.word(), source.word());
        self.decisions.get_or_create(&labels::Decided { decision, source }).inc();
        if let Some(waited) = waited {
            let labels = labels::Waited { decision };
            self.decision_waits.get_or_create(&labels).observe(waited.as_secs_f64());
        }
    }

    /// A notification went out, or did not. Both words are of closed lists: the configured sinks,
    /// and what the notifier says of a delivery.
    pub fn notified(&self, sink: &str, outcome: &'static str) {
        let labels = labels::Sent { sink: sink.to_owned(), outcome };
        self.notifications.get_or_create(&labels).inc();
    }

    /// A request was answered. `method` and `route` are of closed lists.
    pub fn answered(&self, method: &'static str, route: &'static str, code: u16, took: Duration) {
        let labels = labels::Request { method, route, code };
        self.http_requests.get_or_create(&labels).inc();
        self.http_durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A request was refused for want of a right.
    pub fn auth_failed(&self, kind: AuthFailure) {
        self.auth_failures.get_or_create(&labels::Kind { kind: kind.word() }).inc();
    }

    /// A client is there, until the value is dropped.
    #[must_use]
    pub fn client(self: &Arc<Self>, transport: Transport) -> Client {
        self.of(transport).clients.inc();
        Client { metrics: self.clone(), transport }
    }

    fn known<'a>(&self, agent: &'a str) -> &'a str {
        if self.agents.contains_key(agent) { agent } else { OTHER }
    }

    fn of(&self, transport: Transport) -> &TransportCounters {
        &self.transports[transport as usize]
    }
}

impl Client {
    /// It follows a session from now on.
    pub fn attached(&self, how: Attach) {
        self.counters().attaches[how as usize].inc();
    }

    /// It was sent what it had missed: so many events.
    pub fn replayed(&self, events: u64, took: Duration) {
        self.counters().replayed.inc_by(events);
        self.counters().replay.observe(took.as_secs_f64());
    }

    /// It has all there is again, after so many live events.
    pub fn caught_up(&self, events: u32) {
        self.metrics.client_lag.observe(f64::from(events));
    }

    /// A live event was written to its socket, so long after the agent's line was read.
    pub fn delivered(&self, after: Duration) {
        self.counters().delivery.observe(after.as_secs_f64());
    }

    /// Its connection ended.
    pub fn dropped(&self, why: Dropped) {
        let labels = labels::Reason { reason: why.word() };
        self.metrics.client_drops.get_or_create(&labels).inc();
    }

    /// It turned out to be another kind of client than it seemed at first.
    pub fn is(&mut self, transport: Transport) {
        if transport != self.transport {
            self.counters().clients.dec();
            self.transport = transport;
            self.counters().clients.inc();
        }
    }

    fn counters(&self) -> &TransportCounters {
        self.metrics.of(self.transport)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.counters().clients.dec();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Our part of the registry.
struct Ours<'a>(&'a mut Registry);

impl Ours<'_> {
    fn add<M>(&mut self, name: &str, help: &str, metric: M) -> M
    where
        M: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static,
    {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn seconds<M>(&mut self, name: &str, help: &str, metric: M) -> M
    where
        M: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static,
    {
        self.0.register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }

    fn bytes<M>(&mut self, name: &str, help: &str, metric: M) -> M
    where
        M: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static,
    {
        self.0.register_with_unit(name, help, Unit::Bytes, metric.clone());
        metric
    }

    fn agents(&mut self, names: &[String]) -> BTreeMap<String, AgentCounters> {
        let started: Family<labels::Agent, Counter> =
            self.add("runs_started", "Runs that have begun", Family::default());
        let events: Family<labels::Agent, Counter> =
            self.add("events_appended", "Events that are on disk", Family::default());
        let bytes: Family<labels::Agent, Counter> =
            self.bytes("event", "What these events take, as sent", Family::default());
        let counters = names.iter().map(|name| {
            let labels = labels::Agent { agent: name.clone() };
            let counters = AgentCounters {
                started: started.get_or_create_owned(&labels),
                events: events.get_or_create_owned(&labels),
                bytes: bytes.get_or_create_owned(&labels),
            };
            (name.clone(), counters)
        });
        counters.collect()
    }

    fn transports(&mut self) -> Vec<TransportCounters> {
        let clients: Family<labels::Of, Gauge> =
            self.add("clients", "Clients that are connected", Family::default());
        let attaches: Family<labels::OfKind, Counter> =
            self.add("client_attaches", "Subscriptions to sessions", Family::default());
        let replayed: Family<labels::Of, Counter> = self.add(
            "replayed_events",
            "Events sent to clients that had missed them",
            Family::default(),
        );
        let replay: Family<labels::Of, Histogram, Buckets> = self.seconds(
            "replay",
            "How long clients took to be sent what they had missed",
            Family::new_with_constructor(FAST),
        );
        let delivery: Family<labels::Of, Histogram, Buckets> = self.seconds(
            "event_delivery",
            "From an agent's line to the socket of a live client, one event a turn",
            Family::new_with_constructor(DELIVERY),
        );
        let counters = Transport::ALL.iter().map(|transport| {
            let transport = transport.word();
            let labels = labels::Of { transport };
            let attach = |kind: Attach| {
                attaches.get_or_create_owned(&labels::OfKind { transport, kind: kind.word() })
            };
            TransportCounters {
                clients: clients.get_or_create_owned(&labels),
                attaches: [attach(Attach::New), attach(Attach::Resume)],
                replayed: replayed.get_or_create_owned(&labels),
                replay: replay.get_or_create_owned(&labels),
                delivery: delivery.get_or_create_owned(&labels),
            }
        });
        counters.collect()
    }

    fn reasons(&mut self) -> Family<labels::Reason, Counter> {
        let drops = self.add("client_drops", "Connections that have ended", Family::default());
        for reason in Dropped::ALL {
            let reason = labels::Reason { reason: reason.word() };
            drop(Family::<_, Counter>::get_or_create(&drops, &reason));
        }
        drops
    }

    fn auth_failures(&mut self) -> Family<labels::Kind, Counter> {
        let failures =
            self.add("auth_failures", "Requests refused for want of a right", Family::default());
        for kind in AuthFailure::ALL {
            let kind = labels::Kind { kind: kind.word() };
            drop(Family::<_, Counter>::get_or_create(&failures, &kind));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new(["a".to_owned()], &["finished"], "1.0", None))
    }

    fn line(metrics: &Metrics, begins: &str) -> Option<String> {
        let text = metrics.text(&Snapshot::default()).expect("a string takes it");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        text.lines().find(|line| line.starts_with(begins)).map(str::to_owned)
    }

    #[test]
    fn an_agent_that_is_not_configured_has_no_label_of_its_own() {
        let metrics = metrics();
        metrics.appended("a", 2, 10);
        metrics.appended("whatever", 3, 11);
        metrics.run_finished("whatever else", "finished", Duration::from_secs(1));
        let at = |begins: &str| line(&metrics, begins);
        let events = |agent| format!("reattach_events_appended_total{{agent=\"{agent}\"}}");
        assert_eq!(at(&events("a")).expect("there"), events("a") + " 2");
        assert_eq!(at(&events(OTHER)).expect("there"), events(OTHER) + " 3");
        assert_eq!(at(&events("whatever")), None);
        let bytes = "reattach_event_bytes_total{agent=\"other\"} 11";
        assert_eq!(at(bytes).as_deref(), Some(bytes));
    }

    #[test]
    fn a_client_counts_as_long_as_it_is_there() {
        let metrics = metrics();
        let count = |transport: Transport| {
            let begins = format!("reattach_clients{{transport=\"{}\"}} ", transport.word());
            let line = line(&metrics, &begins).expect("always told");
            line.rsplit(' ').next().expect("a number").to_owned()
        };
        let mut client = metrics.client(Transport::WebSocket);
        assert_eq!(count(Transport::WebSocket), "1");
        client.is(Transport::Cli);
        assert_eq!((count(Transport::WebSocket), count(Transport::Cli)), ("0".into(), "1".into()));
        drop(client);
        assert_eq!(count(Transport::Cli), "0");
    }

    #[test]
    fn what_cannot_be_looked_up_is_not_told() {
        let metrics = metrics();
        let known = Snapshot {
            sessions: Some(BTreeMap::from([(Session::Idle, 4)])),
            ..Snapshot::default()
        };
        let text = metrics.text(&known).expect("a string takes it");
        assert!(text.contains("reattach_sessions{state=\"idle\"} 4\n"), "{text}");
        assert!(text.contains("reattach_sessions{state=\"running\"} 0\n"), "{text}");
        assert_eq!(line(&metrics, "reattach_sessions{"), None);
    }
}
