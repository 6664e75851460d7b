//! The test's side of `fake_agent`: a socket that agents call, and a handle for each.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::DEADLINE;

/// Where agents report. Dropping it ends all of them.
pub(crate) struct Hub {
    socket: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closing: bool,
    orders: u64,
    agents: Vec<Known>,
}

/// What an agent has reported so far.
struct Known {
    hello: Value,
    writer: UnixStream,
    claimed: bool,
    lines: Vec<Value>,
    eof: bool,
    signals: Vec<i64>,
    sent: u64,
    done: u64,
    problems: Vec<String>,
    gone: bool,
}

impl Hub {
    /// Listens on `socket`.
    pub(crate) fn new(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).expect("a socket in a fresh directory");
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if for_thread.lock().closing {
                    return;
                }
                let shared = Arc::clone(&for_thread);
                thread::spawn(move || shared.follow(stream));
            }
        });
        Self { socket, shared }
    }

    /// The argv of an agent that reports here under `name`.
    pub(crate) fn argv(&self, name: &str) -> Vec<String> {
        let program = example("fake_agent").to_str().expect("target paths are UTF-8").to_owned();
        let socket = self.socket.to_str().expect("test paths are UTF-8").to_owned();
        vec![program, "--control".into(), socket, "--name".into(), name.into()]
    }

    /// The next agent that called under `name` and was not yet handed out.
    #[track_caller]
    pub(crate) fn next(&self, name: &str) -> Agent {
        let index = self.shared.wait(&format!("an agent called {name} starts"), |state| {
            let found = state.agents.iter().position(|a| !a.claimed && a.hello["name"] == name)?;
            state.agents[found].claimed = true;
            Some(found)
        });
        Agent { index, shared: Arc::clone(&self.shared) }
    }

    /// Like `next`, without waiting.
    pub(crate) fn poll(&self, name: &str) -> Option<Agent> {
        let mut state = self.shared.lock();
        let index = state.agents.iter().position(|a| !a.claimed && a.hello["name"] == name)?;
        state.agents[index].claimed = true;
        Some(Agent { index, shared: Arc::clone(&self.shared) })
    }

    /// The agent of the run whose prompt is `content`, and that prompt.
    #[track_caller]
    pub(crate) fn prompted(&self, name: &str, content: &str) -> (Agent, Value) {
        let agent = self.next(name);
        let prompt = agent.line("its prompt", |line| line["type"] == "prompt");
        assert_eq!(prompt["content"], content, "another run's agent: {prompt}");
        (agent, prompt)
    }

    /// How many agents ever called under `name`.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.shared.lock().agents.iter().filter(|agent| agent.hello["name"] == name).count()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        for agent in &state.agents {
            // An agent that is gone already has closed its end.
            drop(agent.writer.shutdown(std::net::Shutdown::Both));
        }
        drop(state);
        // Wakes the listener, which then ends.
        drop(UnixStream::connect(&self.socket));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, mut ask: impl FnMut(&mut State) -> Option<T>) -> T {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(answer) = ask(&mut state) {
                return answer;
            }
            let left = DEADLINE.checked_sub(start.elapsed());
            let Some(left) = left else {
                let agents: Vec<_> = state.agents.iter().map(Known::describe).collect();
                drop(state);
                panic!("waited {DEADLINE:?} in vain: {what}; agents:\n{}", agents.join("\n"));
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reads one agent's reports to their end.
    fn follow(&self, stream: UnixStream) {
        let Ok(writer) = stream.try_clone() else { return };
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let hello = lines.next().and_then(|line| serde_json::from_str::<Value>(&line).ok());
        let Some(hello) = hello.map(|hello| hello["hello"].clone()) else { return };
        let index = {
            let mut state = self.lock();
            state.agents.push(Known::new(hello, writer));
            state.agents.len() - 1
        };
        self.changed.notify_all();
        for line in lines {
            let report: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            self.lock().agents[index].take(&report);
            self.changed.notify_all();
        }
        self.lock().agents[index].gone = true;
        self.changed.notify_all();
    }
}

impl Known {
    fn new(hello: Value, writer: UnixStream) -> Self {
        Self {
            hello,
            writer,
            claimed: false,
            lines: Vec::new(),
            eof: false,
            signals: Vec::new(),
            sent: 0,
            done: 0,
            problems: Vec::new(),
            gone: false,
        }
    }

    fn take(&mut self, report: &Value) {
        if let Some(line) = report["line"].as_str() {
            let value = serde_json::from_str(line).unwrap_or_else(|_| Value::from(line));
            self.lines.push(value);
        } else if let Some(done) = report["done"].as_u64() {
            self.done = done;
        } else if let Some(sent) = report["sent"].as_u64() {
            self.sent = sent;
        } else if let Some(signal) = report["signal"].as_i64() {
            self.signals.push(signal);
        } else if report["eof"] == true {
            self.eof = true;
        } else {
            self.problems.push(report.to_string());
        }
    }

    fn describe(&self) -> String {
        format!(
            "  {} lines={:?} eof={} signals={:?} sent={} gone={} problems={:?}",
            self.hello, self.lines, self.eof, self.signals, self.sent, self.gone, self.problems
        )
    }
}

/// One scripted agent process.
#[derive(Clone)]
pub(crate) struct Agent {
    index: usize,
    shared: Arc<Shared>,
}

impl Agent {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        pid(&self.shared.lock().agents[self.index].hello)
    }

    /// Its parent's: the keeper, of an agent that a gateway started.
    pub(crate) fn parent(&self) -> u64 {
        let state = self.shared.lock();
        state.agents[self.index].hello["parent"].as_u64().expect("hello has a parent")
    }

    /// Waits for the first line of its stdin that `fits`.
    #[track_caller]
    pub(crate) fn line(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.shared.wait(&format!("the agent is given {what}"), |state| {
            state.agents[self.index].lines.iter().find(|line| fits(line)).cloned()
        })
    }

    /// Waits until it was given `count` lines, and gives all that came.
    #[track_caller]
    pub(crate) fn lines(&self, count: usize) -> Vec<Value> {
        self.shared.wait(&format!("the agent is given {count} lines"), |state| {
            let lines = &state.agents[self.index].lines;
            (lines.len() >= count).then(|| lines.clone())
        })
    }

    /// The lines that it was given so far.
    pub(crate) fn lines_so_far(&self) -> Vec<Value> {
        self.shared.lock().agents[self.index].lines.clone()
    }

    /// How many lines of floods it has sent, or is about to.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.lock().agents[self.index].sent
    }

    /// Whether its process has ended (its socket closed).
    pub(crate) fn gone(&self) -> bool {
        self.shared.lock().agents[self.index].gone
    }

    /// Waits for the end of its process.
    #[track_caller]
    pub(crate) fn wait_gone(&self) {
        self.shared.wait("the agent ends", |state| state.agents[self.index].gone.then_some(()));
    }

    /// Waits until it saw `signal`, which it ignores.
    #[track_caller]
    pub(crate) fn wait_signal(&self, signal: i64) {
        self.shared.wait(&format!("the agent is sent signal {signal}"), |state| {
            state.agents[self.index].signals.contains(&signal).then_some(())
        });
    }

    /// Prints events. Returns when they are in the pipe, or the agent is gone.
    #[track_caller]
    pub(crate) fn emit(&self, events: &[Value]) {
        let lines = events.iter().map(Value::to_string).collect();
        self.emit_lines(lines);
    }

    /// Prints lines as they are.
    #[track_caller]
    pub(crate) fn emit_lines(&self, lines: Vec<String>) {
        self.order(json!({"do": "emit", "lines": lines}));
    }

    /// Prints bytes as they are.
    #[track_caller]
    pub(crate) fn emit_bytes(&self, bytes: &[u8]) {
        self.order(json!({"do": "bytes", "bytes": bytes}));
    }

    /// Prints one line: `head`, `count` times `fill`, `tail`. Does not wait for it.
    pub(crate) fn emit_long(&self, head: &str, fill: char, count: usize, tail: &str) {
        self.post(json!({"do": "long", "head": head, "fill": fill, "count": count, "tail": tail}));
    }

    /// A text event.
    #[track_caller]
    pub(crate) fn say(&self, content: &str) {
        self.emit(&[json!({"kind": "text", "content": content})]);
    }

    /// The end of the turn, in success.
    #[track_caller]
    pub(crate) fn complete(&self) {
        self.emit(&[json!({"kind": "complete", "exitCode": 0, "success": true})]);
    }

    /// The end of the turn, then of the process.
    #[track_caller]
    pub(crate) fn finish(&self) {
        self.complete();
        self.exit(0);
    }

    /// Likewise, once it has done what it was told before. Does not wait, nor mind if it is gone.
    pub(crate) fn complete_later(&self) {
        let complete = json!({"kind": "complete", "exitCode": 0, "success": true}).to_string();
        self.post(json!({"do": "emit", "lines": [complete]}));
        self.post(json!({"do": "exit", "code": 0}));
    }

    /// Asks for the native id to be mapped.
    #[track_caller]
    pub(crate) fn name_session(&self, native_id: &str) {
        self.emit(&[json!({"kind": "session_created", "newSessionId": native_id})]);
    }

    /// Starts to print `count` events of about `bytes` each. Does not wait.
    pub(crate) fn flood(&self, count: u64, bytes: usize, prefix: &str) {
        self.post(json!({"do": "flood", "count": count, "bytes": bytes, "prefix": prefix}));
    }

    /// Prints to stderr.
    #[track_caller]
    pub(crate) fn stderr(&self, text: &str) {
        self.order(json!({"do": "stderr", "text": text}));
    }

    /// Ends the process, and waits for that. Nothing happens if it is gone.
    #[track_caller]
    pub(crate) fn exit(&self, code: i32) {
        self.post(json!({"do": "exit", "code": code}));
        self.wait_gone();
    }

    /// Makes it send itself a signal. Does not wait.
    pub(crate) fn kill(&self, signal: i32) {
        self.post(json!({"do": "kill", "signal": signal}));
    }

    /// Makes it ignore SIGINT, SIGTERM and SIGHUP.
    #[track_caller]
    pub(crate) fn ignore_signals(&self) {
        self.order(json!({"do": "ignoreSignals"}));
    }

    /// What it does on an abort line (prints `lines`, then exits or not) and at the end of stdin.
    #[track_caller]
    pub(crate) fn policy(&self, lines: &[String], abort_exit: Option<i32>, eof_exit: Option<i32>) {
        self.order(json!({"do": "policy", "policy": {
            "abortLines": lines, "abortExit": abort_exit, "eofExit": eof_exit,
        }}));
    }

    /// Starts a grandchild in a session of its own that ignores signals.
    #[track_caller]
    pub(crate) fn escape(&self) -> Self {
        self.order(json!({"do": "escape"}));
        let name = {
            let state = self.shared.lock();
            format!("{}/escaped", state.agents[self.index].hello["name"].as_str().expect("a name"))
        };
        let parent = self.pid();
        let index = self.shared.wait("the grandchild calls", |state| {
            let found = state.agents.iter().position(|agent| {
                !agent.claimed && agent.hello["name"] == name && agent.hello["parent"] == parent
            })?;
            state.agents[found].claimed = true;
            Some(found)
        });
        Self { index, shared: Arc::clone(&self.shared) }
    }

    /// Closes its stdout; the process lives on.
    #[track_caller]
    pub(crate) fn close_stdout(&self) {
        self.order(json!({"do": "closeStdout"}));
    }

    /// Sends an order and waits until it is carried out, or the agent gone.
    #[track_caller]
    fn order(&self, order: Value) {
        let id = self.post(order);
        self.shared.wait("the agent obeys", |state| {
            let agent = &state.agents[self.index];
            (agent.done >= id || agent.gone).then_some(())
        });
    }

    fn post(&self, mut order: Value) -> u64 {
        let mut state = self.shared.lock();
        state.orders += 1;
        let id = state.orders;
        order["id"] = json!(id);
        // If it is gone its reader says so, and `order` returns.
        drop(writeln!(state.agents[self.index].writer, "{order}"));
        id
    }
}

fn pid(hello: &Value) -> u32 {
    let pid = hello["pid"].as_u64().expect("hello has a pid");
    u32::try_from(pid).expect("a pid fits 32 bits")
}

/// A built example, beside the built binary.
pub(crate) fn example(name: &str) -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_reattach"));
    let program = binary.with_file_name("examples").join(name);
    assert!(program.exists(), "build the scripted agents first: cargo build --examples");
    program
}
