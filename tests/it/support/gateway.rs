//! The built binary as a process: its configuration, its life, its REST interface.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Client, DEADLINE, Hub, ask_for, eventually, schema};

/// What a gateway is started with: a directory of its own, a configuration, agents.
pub(crate) struct Setup {
    /// Everything of this test lies here; removed at the end.
    pub(crate) root: TempDir,
    /// Where its scripted agents report.
    pub(crate) hub: Hub,
    sections: Vec<(&'static str, String)>,
    providers: Vec<(String, String)>,
    /// Added to the gateway's environment.
    pub(crate) env: Vec<(&'static str, String)>,
    /// Added to its arguments.
    pub(crate) arguments: Vec<String>,
    /// Where it listens.
    pub(crate) bind: String,
    /// The program to run: another build, if it is not the one under test.
    pub(crate) program: PathBuf,
}

/// Agents outlive gateways: what a test leaves running is ended here.
impl Drop for Setup {
    fn drop(&mut self) {
        super::process::kill_mentioning(self.root.path());
    }
}

impl Setup {
    /// No providers, default limits, one project directory.
    pub(crate) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("reattach-").tempdir().expect("a temp dir");
        let hub = Hub::new(root.path().join("agents.sock"));
        fs::create_dir_all(root.path().join("projects/demo")).expect("a fresh directory");
        Self {
            root,
            hub,
            sections: Vec::new(),
            providers: Vec::new(),
            env: Vec::new(),
            arguments: Vec::new(),
            bind: "127.0.0.1:0".into(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_reattach")),
        }
    }

    /// Like `new`, with a scripted `jsonl` provider `fake`.
    pub(crate) fn with_fake() -> Self {
        Self::new().scripted("fake")
    }

    /// A line of `[limits]`, `[timeouts]`, ...: `value` as TOML.
    pub(crate) fn set(mut self, section: &'static str, key: &str, value: &str) -> Self {
        self.sections.push((section, format!("{key} = {value}")));
        self
    }

    /// Likewise, for the next start.
    pub(crate) fn add(&mut self, section: &'static str, key: &str, value: &str) {
        self.sections.push((section, format!("{key} = {value}")));
    }

    /// A `jsonl` provider whose program is the scripted agent, which calls under that name.
    pub(crate) fn scripted(mut self, name: &str) -> Self {
        let argv = self.hub.argv(name);
        schema::passes_through(name);
        self.providers.push((name.to_owned(), provider("jsonl", &argv)));
        self
    }

    /// A provider `claude` that is the scripted stand-in; what it is given is at `witness`.
    pub(crate) fn with_fake_claude(self) -> Self {
        let program = super::agent::example("fake_claude");
        let program = program.to_str().expect("target paths are UTF-8").to_owned();
        let witness = self.witness().to_str().expect("test paths are UTF-8").to_owned();
        self.provider("claude", "claude", &[&program, "--witness", &witness])
    }

    /// Where the scripted stand-in for Claude Code writes what it is given.
    pub(crate) fn witness(&self) -> PathBuf {
        self.root.path().join("witness")
    }

    /// A provider of any kind.
    pub(crate) fn provider(mut self, name: &str, kind: &str, argv: &[&str]) -> Self {
        let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
        // The demo agent speaks `jsonl` too.
        if matches!(kind, "jsonl" | "demo") {
            schema::passes_through(name);
        }
        self.providers.push((name.to_owned(), provider(kind, &argv)));
        self
    }

    /// Takes a provider out again: its sessions stay.
    pub(crate) fn without(&mut self, name: &str) {
        self.providers.retain(|(known, _)| known != name);
    }

    /// Adds to the gateway's environment.
    pub(crate) fn env(mut self, key: &'static str, value: &str) -> Self {
        self.env.push((key, value.to_owned()));
        self
    }

    /// The project directory of all sessions.
    pub(crate) fn project(&self) -> PathBuf {
        let path = self.root.path().join("projects/demo");
        path.canonicalize().expect("made with the setup")
    }

    /// The data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// The configuration file's path.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.root.path().join("config.toml")
    }

    fn config(&self) -> String {
        let projects = self.root.path().join("projects");
        let projects = projects.canonicalize().expect("made with the setup");
        let mut text = format!("[server]\nproject_roots = [{projects:?}]\n");
        let mut sections: Vec<&str> = self.sections.iter().map(|(section, _)| *section).collect();
        sections.dedup();
        for section in sections {
            if section != "server" {
                writeln!(text, "[{section}]").expect("a string takes all");
            }
            for (_, line) in self.sections.iter().filter(|(of, _)| *of == section) {
                writeln!(text, "{line}").expect("a string takes all");
            }
        }
        for (name, body) in &self.providers {
            writeln!(text, "[providers.{name}]\n{body}").expect("a string takes all");
        }
        text
    }

    /// The command that `start` runs, with the configuration written.
    pub(crate) fn command(&self) -> Command {
        // Whole at any moment: another gateway may be about to read it.
        let fresh = self.config_path().with_extension("new");
        fs::write(&fresh, self.config()).expect("the root is writable");
        fs::rename(fresh, self.config_path()).expect("the root is writable");
        let mut command = Command::new(&self.program);
        command.args(["serve", "--json", "--bind", &self.bind, "--data-dir"]);
        command.arg(self.data_dir()).arg("--config").arg(self.config_path());
        command.args(&self.arguments);
        // Those that look at the log read it as people do, unless they say otherwise.
        command.env("REATTACH_LOG_FORMAT", "human");
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the gateway and waits until it serves.
    #[track_caller]
    pub(crate) fn start(self) -> Gateway {
        let running = Running::start(&self);
        Gateway { running, setup: self }
    }

    /// Runs a gateway that is expected to refuse to serve: exit code and stderr.
    #[track_caller]
    pub(crate) fn refused(&self) -> (Option<i32>, String) {
        let child = self.command().spawn().expect("the binary runs");
        wait_output(child)
    }
}

/// Waits for the end of a process that is expected to end by itself: exit code and stderr.
#[track_caller]
pub(crate) fn wait_output(mut child: Child) -> (Option<i32>, String) {
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).expect("stderr is UTF-8");
        text
    });
    let mut first = [0];
    let served = stdout.read(&mut first).expect("a pipe") > 0;
    if served {
        child.kill().expect("it runs");
    }
    let status = child.wait().expect("it was started here");
    let text = reader.join().expect("reading does not panic");
    assert!(!served, "it serves although it should refuse to; stderr:\n{text}");
    (status.code(), text)
}

fn provider(kind: &str, argv: &[String]) -> String {
    format!("kind = {kind:?}\ncommand = {argv:?}\n")
}

/// A gateway that serves.
pub(crate) struct Gateway {
    /// Dropped first: the process ends before its directory goes.
    running: Running,
    /// What it was started with.
    pub(crate) setup: Setup,
}

struct Running {
    child: Child,
    announced: Value,
    token: String,
    stderr: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Running {
    #[track_caller]
    fn start(setup: &Setup) -> Self {
        let mut child = setup.command().spawn().expect("the binary runs");
        let stderr = Arc::new(Mutex::new(String::new()));
        let reader = collect(child.stderr.take().expect("stderr is piped"), Arc::clone(&stderr));
        let (tell, first) = mpsc::channel();
        let stdout = child.stdout.take().expect("stdout is piped");
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            // Nobody listens any more if the test has failed meanwhile.
            drop(tell.send(lines.next()));
            lines.for_each(drop);
        });
        let line = first.recv_timeout(DEADLINE).ok().flatten();
        let Some(line) = line else {
            drop(child.kill());
            let status = child.wait();
            ask_for(Duration::from_secs(1), || reader.is_finished().then_some(()));
            let text = stderr.lock().unwrap_or_else(PoisonError::into_inner);
            panic!("the gateway does not serve ({status:?}); stderr:\n{text}");
        };
        let announced: Value = serde_json::from_str(&line).expect("--json prints JSON first");
        let token = fs::read_to_string(setup.data_dir().join("token")).expect("a token is made");
        let token = token.trim().to_owned();
        Self { child, announced, token, stderr, reader }
    }

    fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        // Its stderr is not waited for: keepers that outlive it still hold that.
        eventually("the gateway ends", || child.try_wait().expect("it was started here"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let reader = &self.reader;
            ask_for(Duration::from_secs(1), || reader.is_finished().then_some(()));
            let text = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
            let from = text.len().saturating_sub(8 << 10);
            let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("--- stderr of the gateway, its end:\n{}\n---", &text[from..]);
        }
    }
}

fn collect(mut from: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            let text = String::from_utf8_lossy(&chunk[..n]).into_owned();
            into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    })
}

impl Gateway {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        let port = self.announced()["port"].as_u64().expect("the announcement has a port");
        u16::try_from(port).expect("a port fits 16 bits")
    }

    /// The first line on its stdout.
    pub(crate) fn announced(&self) -> &Value {
        &self.running.announced
    }

    /// Its token.
    pub(crate) fn token(&self) -> &str {
        &self.running.token
    }

    /// Its scripted agents.
    pub(crate) fn hub(&self) -> &Hub {
        &self.setup.hub
    }

    /// What it has logged so far.
    pub(crate) fn stderr(&self) -> String {
        self.running.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.running.child.kill().expect("it runs");
        self.running.wait();
    }

    /// After its end: all that it has logged.
    pub(crate) fn last_words(&self) -> String {
        let reader = &self.running.reader;
        eventually("its stderr is read to the end", || reader.is_finished().then_some(()));
        self.stderr()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid fits 31 bits");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid is not 0");
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// SIGTERM, then waits for its end.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.running.wait()
    }

    /// Waits for an end that it was brought to otherwise.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.running.wait()
    }

    /// Starts it again on the same data directory; the old process must have ended.
    #[track_caller]
    pub(crate) fn restart(self) -> Self {
        let Self { running, setup } = self;
        drop(running);
        let running = Running::start(&setup);
        Self { running, setup }
    }

    /// Runs a gateway on the same data directory that is killed after `span`, as early as in its
    /// first steps; the old process must have ended.
    #[track_caller]
    pub(crate) fn start_and_kill(&self, span: Duration) {
        let mut child = self.setup.command().spawn().expect("the binary runs");
        let ended = ask_for(span, || child.try_wait().expect("it was started here"));
        assert_eq!(ended, None, "it ends by itself");
        child.kill().expect("it runs");
        child.wait().expect("it was started here");
    }

    /// A client with the token.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        let headers = [("authorization", format!("Bearer {}", self.token()))];
        match Client::connect(self.port(), "/ws", &headers) {
            Ok(client) => client,
            Err(status) => panic!("the upgrade was refused with {status}"),
        }
    }

    /// A new session of `provider` in the test's project: its id.
    #[track_caller]
    pub(crate) fn session(&self, provider: &str) -> String {
        let body = json!({"provider": provider, "projectPath": self.setup.project()});
        let (status, session) = self.post("/api/v1/sessions", &body);
        assert_eq!(status, 201, "{session}");
        session["id"].as_str().expect("a session has an id").to_owned()
    }

    /// GET with the token: status and body.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, None, Some(self.token()))
    }

    /// POST with the token: status and body.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.request("POST", path, Some(body), Some(self.token()))
    }

    /// A request with or without a token: status and body (`null` if it is empty).
    #[track_caller]
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        token: Option<&str>,
    ) -> (u16, Value) {
        let (status, text) = http(self.port(), method, path, body, token);
        if text.is_empty() {
            return (status, Value::Null);
        }
        let value = serde_json::from_str(&text);
        (status, value.unwrap_or_else(|_| Value::from(text)))
    }

    /// All events of a session as REST gives them, page by page, without the first run's head.
    #[track_caller]
    pub(crate) fn log_of(&self, session: &str) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        let (status, runs) = self.get(&format!("/api/v1/sessions/{session}/runs"));
        assert_eq!(status, 200, "{runs}");
        let runs = runs["items"].as_array().expect("a list");
        // Run ids sort by the time of their start.
        let first = runs.iter().filter_map(|run| run["id"].as_str()).min();
        let Some(first) = first else { return all };
        let mut after = format!("{first}:0");
        loop {
            let path = format!("/api/v1/sessions/{session}/events?after={after}&limit=500");
            let (status, page) = self.get(&path);
            assert_eq!(status, 200, "{page}");
            all.extend(page["items"].as_array().expect("a list").iter().cloned());
            match page["nextCursor"].as_str() {
                Some(cursor) => after = cursor.to_owned(),
                None => return all,
            }
        }
    }

    /// The whole log of a session through a fresh client, from the oldest kept to the newest.
    #[track_caller]
    pub(crate) fn replay(&self, session: &str) -> Vec<super::Frame> {
        let mut client = self.connect();
        client.subscribe(&json!({"sessionId": session, "from": "start"}));
        client.expect("caught up", |frame| frame.is("caught_up", session));
        let ours = |frame: &super::Frame| frame.run().is_some() || frame.kind() == "gap";
        let frames = client.seen.iter().filter(|frame| ours(frame)).cloned().collect();
        client.cut();
        frames
    }

    /// Nothing that the gateway started is alive, however long ago.
    #[track_caller]
    pub(crate) fn expect_no_agents(&self) {
        let root: &Path = self.setup.root.path();
        let but = [self.pid()];
        let mut left = Vec::new();
        eventually(&format!("nothing started under {} is left", root.display()), || {
            left = super::process::mentioning(root, &but);
            left.is_empty().then_some(())
        });
    }
}

/// One HTTP/1.1 exchange on a connection of its own: status and body.
#[track_caller]
pub(crate) fn http(
    port: u16,
    method: &str,
    path: &str,
    body: Option<&Value>,
    token: Option<&str>,
) -> (u16, String) {
    let (status, _, answer) = whole_http(port, method, path, body, token);
    schema::exchange(method, path, body, status, &answer);
    (status, answer)
}

/// The same, whatever listens there: status, head and body.
#[track_caller]
pub(crate) fn whole_http(
    port: u16,
    method: &str,
    path: &str,
    body: Option<&Value>,
    token: Option<&str>,
) -> (u16, String, String) {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n");
    if let Some(token) = token {
        write!(request, "Authorization: Bearer {token}\r\n").expect("a string takes all");
    }
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        let length = body.len();
        write!(request, "Content-Type: application/json\r\nContent-Length: {length}\r\n")
            .expect("a string takes all");
    }
    request.push_str("Connection: close\r\n\r\n");
    request.push_str(body.as_deref().unwrap_or_default());
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the gateway listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    stream.write_all(request.as_bytes()).expect("the gateway reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the gateway answers and closes");
    let answer = String::from_utf8(answer).expect("an answer is UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.expect("an answer has a status");
    (status, format!("{head}\r\n"), body.to_owned())
}
