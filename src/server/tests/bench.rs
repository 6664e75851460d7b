//! A server over a real store and real sockets; the agents are the test's own hands.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Map, Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, Utf8Bytes, WebSocket};

use crate::limits::Limits;
use crate::notify::Notifier;
use crate::registry::{
    Completed, Crew, Job, Persist, Reading, Refusal, RefusalCode, Registry, Round, Session,
    Started, Writing, end,
};
use crate::run::change::SessionRow;
use crate::run::event::{Complete, Event, Reason};
use crate::run::id::{Millis, RunId};
use crate::run::wake::{Bell, Waker};
use crate::server::{Server, ServerConfig, auth};
use crate::store::{OpenOptions, Store};
use crate::sync::{Arc, Mutex};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Bench {
    pub(super) registry: Arc<Registry>,
    pub(super) address: SocketAddr,
    pub(super) token: String,
    pub(super) server: Option<Server>,
    /// Held by whoever does not want the store to commit.
    pub(super) store_gate: Arc<Mutex<()>>,
    runs: Receiver<Run>,
    dir: tempfile::TempDir,
    stopping: Arc<AtomicBool>,
    bell: Sender<()>,
    store: Option<JoinHandle<()>>,
}

/// A run that the test serves. The place among the agents is held as long as it lives.
pub(super) struct Run {
    pub(super) session: Arc<Session>,
    pub(super) started: Started,
}

struct Hands(Sender<Run>);

impl Crew for Hands {
    fn prepare(
        &self,
        session: &SessionRow,
        content: &str,
        options: &Map<String, Value>,
    ) -> Result<Job, Refusal> {
        if session.provider == "missing" {
            return Err(Refusal::new(RefusalCode::UnsupportedProvider, "It is not available."));
        }
        Ok(Job { content: content.into(), options: options.clone(), ..Job::default() })
    }

    fn start(&self, _: &Arc<Registry>, session: &Arc<Session>, started: Started) {
        self.0.send(Run { session: session.clone(), started }).expect("the test listens");
    }
}

struct StoreBell(Sender<()>);

impl Bell for StoreBell {
    fn ring(&self) {
        self.0.try_send(()).ok();
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(super) fn with(adjust: impl FnOnce(&mut Limits)) -> Self {
        // A heartbeat is also a wake-up: it would hide one that was lost.
        let mut limits = Limits { heartbeat_ms: 3_600_000, ..Limits::default() };
        adjust(&mut limits);
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        std::fs::create_dir_all(dir.path().join("projects/demo")).expect("made");
        let options = OpenOptions { ballast_bytes: 0, ..OpenOptions::default() };
        let (writer, readers) = Store::open(&data, &options).expect("a store");
        let readers = Arc::new(readers);
        let (bell, rings) = bounded(1);
        let waker = Waker::new(Box::new(StoreBell(bell.clone())));
        let shelf = Arc::new(Reading(readers.clone()));
        let registry =
            Arc::new(Registry::new(limits.clone(), readers.epoch(), shelf, waker.clone()));
        let (hand, runs) = bounded(64);
        registry.set_crew(Box::new(Hands(hand)));
        let store_gate = Arc::new(Mutex::new(()));
        let stopping = Arc::new(AtomicBool::new(false));
        let mut persist = Persist::new(registry.clone(), Writing(writer), waker);
        let (gate, stop) = (store_gate.clone(), stopping.clone());
        let store = thread::Builder::new().name("store".into()).spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let round = {
                    let _gate = gate.lock();
                    persist.round(Millis::now())
                };
                assert!(!matches!(round, Round::Fatal(_)), "{round:?}");
                if round == Round::Idle {
                    rings.recv().ok();
                }
            }
        });
        let config = ServerConfig {
            socket: None,
            proxy: None,
            page: |_| None,
            notifier: Arc::new(Notifier::none()),
            bind: "127.0.0.1:0".parse().expect("an address"),
            metrics_bind: None,
            limits,
            allowed_hosts: Vec::new(),
            public_url: String::new(),
            no_auth: false,
            project_roots: vec![dir.path().join("projects")],
            providers: vec!["test".into(), "missing".into()],
            agents: Vec::new(),
            data_dir: data.clone(),
        };
        let server = Server::over(config, registry.clone(), readers).expect("a server");
        Self {
            registry,
            address: server.local_addr(),
            token: auth::token_file::load(&data).expect("a token").expose().to_owned(),
            server: Some(server),
            store_gate,
            runs,
            dir,
            stopping,
            bell,
            store: Some(store.expect("a thread")),
        }
    }

    /// A session's id.
    pub(super) fn session(&self) -> String {
        let path = self.dir.path().join("projects/demo");
        let body = json!({ "provider": "test", "projectPath": path.to_string_lossy() });
        let (status, session) = self.call("POST", "/sessions", Some(&body));
        assert_eq!(status, 201, "{session}");
        session["id"].as_str().expect("an id").to_owned()
    }

    pub(super) fn project(&self) -> String {
        self.dir.path().join("projects/demo").to_string_lossy().into_owned()
    }

    /// The next run that begins.
    pub(super) fn run(&self) -> Run {
        self.runs.recv_timeout(PATIENCE).expect("a run begins")
    }

    pub(super) fn no_run(&self) -> bool {
        self.runs.is_empty()
    }

    /// A REST call with the token.
    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let (status, text) = self.get_text(method, path, body);
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// The same, with the body as it came.
    pub(super) fn get_text(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let body = body.map(Value::to_string).unwrap_or_default();
        let content_type = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let (address, token, length) = (self.address, &self.token, body.len());
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\nContent-Length: {length}\r\n{content_type}\r\n{body}"
        );
        let answer = self.exchange(request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    /// Bytes out, bytes in until the server closes.
    pub(super) fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    /// A client on a WebSocket that has heard `hello`.
    pub(super) fn client(&self) -> Client {
        let mut client = self.raw_client();
        assert_eq!(client.next()["kind"], "hello");
        client
    }

    pub(super) fn raw_client(&self) -> Client {
        let url = format!("ws://{}/ws", self.address);
        let mut request = url.into_client_request().expect("a request");
        let bearer = format!("Bearer {}", self.token).parse().expect("a header");
        request.headers_mut().insert("authorization", bearer);
        let (socket, _) = tungstenite::client(request, self.connect()).expect("a WebSocket");
        Client(socket)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            let stopped = server.stop(Instant::now());
            assert!(stopped || thread::panicking(), "the server leaves no thread behind");
        }
        self.stopping.store(true, Ordering::SeqCst);
        self.bell.try_send(()).ok();
        if let Some(store) = self.store.take() {
            store.join().ok();
        }
    }
}

impl Run {
    pub(super) fn id(&self) -> RunId {
        self.started.run
    }

    pub(super) fn says(&self, text: impl Into<String>) {
        let event =
            Event::Text { content: text.into(), role: None, block_id: None, parent_tool_id: None };
        let said = self.session.record(self.id(), &event, None, Millis::now());
        said.expect("the run is on");
    }

    pub(super) fn ends(self) {
        let end = Complete { success: true, ..end(Reason::Finished, Some(0), None) };
        assert_eq!(self.session.complete(self.id(), &end, Millis::now()), Completed::Won);
    }
}

pub(super) struct Client(pub(super) WebSocket<TcpStream>);

impl Client {
    pub(super) fn say(&mut self, frame: &Value) {
        self.0.send(Message::text(frame.to_string())).expect("sent");
    }

    /// The next text frame, as it came.
    pub(super) fn next_text(&mut self) -> Utf8Bytes {
        loop {
            match self.0.read().expect("a frame") {
                Message::Text(text) => return text,
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn next(&mut self) -> Value {
        serde_json::from_str(&self.next_text()).expect("JSON")
    }

    /// The next frame that is not news of sessions.
    pub(super) fn reply(&mut self) -> Value {
        loop {
            let frame = self.next();
            let kind = frame["kind"].as_str().expect("a kind");
            if !kind.starts_with("session") {
                return frame;
            }
        }
    }

    /// Reads until a frame of this kind.
    pub(super) fn until(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next();
            if frame["kind"] == kind {
                return frame;
            }
        }
    }

    /// Run events as they came, through one of this kind.
    pub(super) fn events_until(&mut self, kind: &str) -> Vec<Utf8Bytes> {
        let mut events = Vec::new();
        loop {
            let text = self.next_text();
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            if frame.get("seq").is_some() && frame["kind"] != "caught_up" {
                events.push(text);
                if frame["kind"] == kind {
                    return events;
                }
            }
        }
    }

    /// The code with which the server closes.
    pub(super) fn closed(&mut self) -> u16 {
        loop {
            match self.0.read() {
                Ok(Message::Close(frame)) => return frame.expect("a code").code.into(),
                Ok(_) => {}
                Err(error) => panic!("closed without a word: {error}"),
            }
        }
    }
}
