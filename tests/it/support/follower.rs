//! A client that comes back by itself: a thread that connects, subscribes with its cursors, checks
//! what it sees, and does so again whenever the connection ends.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Checker, Client, DEADLINE, Frame, Gateway, Ledger, ask_for};

/// How long it reads before it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);

/// Where the gateway is now; followers look here before they connect.
#[derive(Clone)]
pub(crate) struct Address(Arc<Inner>);

struct Inner {
    port: AtomicU16,
    token: String,
}

impl Address {
    /// This gateway's.
    pub(crate) fn of(gateway: &Gateway) -> Self {
        let token = gateway.token().to_owned();
        Self(Arc::new(Inner { port: AtomicU16::new(gateway.port()), token }))
    }

    /// It was started again, and may have another port.
    pub(crate) fn moved(&self, gateway: &Gateway) {
        self.0.port.store(gateway.port(), Ordering::SeqCst);
    }

    fn connect(&self) -> Option<Client> {
        let headers = [("authorization", format!("Bearer {}", self.0.token))];
        Client::try_connect(self.0.port.load(Ordering::SeqCst), "/ws", &headers).ok()
    }
}

/// What a follower has seen so far.
#[derive(Default)]
pub(crate) struct View {
    /// Every position, with its bytes.
    pub(crate) ledger: Ledger,
    /// The order in which they came.
    pub(crate) checker: Checker,
    /// The ends of runs.
    pub(crate) completes: BTreeMap<String, Frame>,
    /// Open permission requests: their ids, with the session that they are of.
    pub(crate) open: BTreeMap<String, String>,
    /// How often it has subscribed to all of its sessions.
    pub(crate) subscribed: usize,
}

impl View {
    /// Takes the next frame. Panics if it breaks an invariant.
    pub(crate) fn see(&mut self, frame: &Frame) {
        self.checker.see(frame);
        self.ledger.see(frame);
        let request = || frame.json["requestId"].as_str().expect("an id").to_owned();
        match frame.kind() {
            "chat_subscribed" => {
                let json = &frame.json;
                assert_eq!(json["recovered"], true, "I4: {}", frame.text);
                assert_eq!((&json["gap"], &json["error"]), (&Value::Null, &Value::Null), "{json}");
                assert_eq!(json["rewound"], Value::Null, "I2: its cursor is ahead: {json}");
            }
            "permission_request" => {
                let session = frame.json["sessionId"].as_str().expect("an event has a session");
                self.open.insert(request(), session.to_owned());
            }
            "permission_resolved" | "permission_cancelled" => drop(self.open.remove(&request())),
            "complete" => {
                let run = frame.run().expect("an event has a run").to_owned();
                self.completes.insert(run, frame.clone());
            }
            _ => {}
        }
    }

    /// The newest seq that it has of `run`, 0 if none.
    pub(crate) fn seq(&self, run: &str) -> u64 {
        self.ledger.last(run).unwrap_or(0)
    }

    /// Open permission requests of `session`.
    pub(crate) fn open_of(&self, session: &str) -> Option<String> {
        self.open.iter().find(|(_, of)| *of == session).map(|(request, _)| request.clone())
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    view: View,
    problem: Option<String>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, and what it has seen.
pub(crate) struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows these sessions from their beginning.
    pub(crate) fn start(address: &Address, sessions: &[&str]) -> Self {
        Self::go_on(address, sessions, View::default())
    }

    /// Follows these sessions on from what was seen already.
    pub(crate) fn go_on(address: &Address, sessions: &[&str], view: View) -> Self {
        let shared = Arc::new(Shared::default());
        shared.lock().view = view;
        let sessions: Vec<String> = sessions.iter().map(|&session| session.to_owned()).collect();
        let (for_thread, address) = (Arc::clone(&shared), address.clone());
        let thread = thread::spawn(move || {
            let shared = &*for_thread;
            let ended = catch_unwind(AssertUnwindSafe(|| follow(shared, &address, &sessions)));
            if let Err(panic) = ended {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                shared.lock().problem = Some(text.unwrap_or_else(|| "a panic".to_owned()));
            }
            shared.changed.notify_all();
        });
        Self { shared, thread: Some(thread) }
    }

    /// Looks at what it has seen so far.
    #[track_caller]
    pub(crate) fn look<T>(&self, ask: impl FnOnce(&View) -> T) -> T {
        let state = self.shared.lock();
        if let Some(problem) = &state.problem {
            panic!("a follower saw what must not be: {problem}");
        }
        ask(&state.view)
    }

    /// Waits until what it has seen gives an answer.
    #[track_caller]
    pub(crate) fn wait<T>(&self, what: &str, ask: impl FnMut(&View) -> Option<T>) -> T {
        self.wait_for(DEADLINE, what, ask)
    }

    /// Likewise, for at most `span`.
    #[track_caller]
    pub(crate) fn wait_for<T>(
        &self,
        span: Duration,
        what: &str,
        mut ask: impl FnMut(&View) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if let Some(problem) = &state.problem {
                let problem = problem.clone();
                drop(state);
                panic!("a follower saw what must not be: {problem}");
            }
            if let Some(answer) = ask(&state.view) {
                return answer;
            }
            let Some(left) = span.checked_sub(start.elapsed()) else {
                let (frames, subscribed) = (state.view.ledger.len(), state.view.subscribed);
                let open = format!("{:?}", state.view.open);
                drop(state);
                panic!(
                    "waited {span:?} in vain: {what}; {frames} frames seen, {subscribed} times \
                     subscribed, open: {open}"
                );
            };
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of `run`.
    #[track_caller]
    pub(crate) fn complete(&self, run: &str) -> Frame {
        self.wait(&format!("complete of {run}"), |view| view.completes.get(run).cloned())
    }

    /// Ends it, and gives all that it has seen.
    #[track_caller]
    pub(crate) fn stop(mut self) -> View {
        self.look(|_| ());
        self.halt();
        self.look(|_| ());
        std::mem::take(&mut self.shared.lock().view)
    }

    fn halt(&mut self) {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            // Its panic was caught, and is in `problem`.
            drop(thread.join());
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Connects again and again until it is told to stop.
fn follow(shared: &Shared, address: &Address, sessions: &[String]) {
    while !shared.lock().stop {
        let Some(mut client) = ask_for(LOOK, || address.connect()) else { continue };
        client.forget();
        let targets: Vec<Value> = {
            let state = shared.lock();
            let target = |session: &String| match state.view.checker.cursor(session) {
                Some((run, seq)) => json!({"sessionId": session, "runId": run, "lastSeq": seq}),
                None => json!({"sessionId": session, "from": "start"}),
            };
            sessions.iter().map(target).collect()
        };
        client.send(&json!({"type": "chat.subscribe", "sessions": targets}));
        let mut subscribed = 0;
        while client.ended.is_none() && !shared.lock().stop {
            let Some(frame) = client.read(LOOK) else { continue };
            let mut state = shared.lock();
            state.view.see(&frame);
            subscribed += usize::from(frame.kind() == "chat_subscribed");
            if frame.kind() == "chat_subscribed" && subscribed == sessions.len() {
                state.view.subscribed += 1;
            }
            drop(state);
            shared.changed.notify_all();
        }
    }
}
