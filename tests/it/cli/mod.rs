//! The command line as a user types it: the built binary against a running gateway.

mod audit;
mod completions;
mod config;
mod demo;
mod doctor;
mod documented;
mod errors;
mod keepers;
mod keyboard;
mod notify;
mod proxies;
mod reading;
mod reconnect;
mod running;
mod service;
mod tls;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{DEADLINE, Gateway, ask_for, eventually};

/// A command of ours, for the gateway's data directory, in the test's project.
fn command(gateway: &Gateway, args: &[&str]) -> Command {
    let mut command = bare(args);
    command.arg("--data-dir").arg(gateway.setup.data_dir());
    command.current_dir(gateway.setup.project());
    command
}

/// A command of ours that nobody told where the server is.
fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reattach"));
    command.args(args);
    command.env_remove("REATTACH_TOKEN").env_remove("NO_COLOR").env("TERM", "xterm");
    command.stdin(Stdio::null());
    command
}

/// What a command that ended has said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// The one JSON document that it printed.
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {:?}; {}", self.out, self.err))
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }
}

/// Runs a command to its end.
#[track_caller]
fn ran(command: Command) -> Ran {
    Live::start(command).end()
}

/// Runs a command for the gateway to its end, which is to be this exit code.
#[track_caller]
fn run(gateway: &Gateway, args: &[&str], code: i32) -> Ran {
    ran(command(gateway, args)).expect(code)
}

/// A running command, read while it runs.
struct Live {
    child: Child,
    out: Said,
    err: Said,
}

impl Live {
    #[track_caller]
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let out = Said::collect(child.stdout.take().expect("stdout is piped"));
        let err = Said::collect(child.stderr.take().expect("stderr is piped"));
        Self { child, out, err }
    }

    fn pid(&self) -> Pid {
        let pid = i32::try_from(self.child.id()).expect("a pid fits 31 bits");
        Pid::from_raw(pid).expect("a pid is not 0")
    }

    /// Ctrl-C.
    fn interrupt(&self) {
        kill_process(self.pid(), Signal::INT).expect("it runs");
    }

    /// Waits for its end.
    #[track_caller]
    fn end(mut self) -> Ran {
        let child = &mut self.child;
        let ended = ask_for(DEADLINE, || child.try_wait().expect("it was started here"));
        let Some(status) = ended else {
            let (out, err) = (self.out.text(), self.err.text());
            panic!("the command does not end; stdout:\n{out}\nstderr:\n{err}");
        };
        let out = self.out.to_end();
        let err = self.err.to_end();
        Ran { code: status.code(), out, err }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What came out of a pipe so far.
struct Said {
    shared: Arc<(Mutex<String>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

impl Said {
    fn collect(from: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let into = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut from = BufReader::new(from);
            loop {
                let mut chunk = Vec::new();
                // Up to a line's end, so that no character is cut; a prompt has none and comes
                // with what the pipe holds.
                let n = match from.fill_buf() {
                    Ok(bytes) if !bytes.is_empty() => {
                        chunk.extend_from_slice(bytes);
                        bytes.len()
                    }
                    _ => break,
                };
                from.consume(n);
                let mut text = into.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&chunk));
                drop(text);
                into.1.notify_all();
            }
        });
        Self { shared, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn to_end(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading does not panic");
        }
        self.text()
    }

    /// Waits until `words` were said `times` times.
    #[track_caller]
    fn wait_times(&self, words: &str, times: usize) {
        let start = Instant::now();
        let mut text = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while text.matches(words).count() < times {
            let left = DEADLINE.checked_sub(start.elapsed());
            let Some(left) = left else { panic!("waited in vain for {words:?} in:\n{text}") };
            let waited = self.shared.1.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until `words` were said.
    #[track_caller]
    fn wait(&self, words: &str) {
        self.wait_times(words, 1);
    }
}

/// The lines of a text as JSON.
#[track_caller]
fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// The session id that `run` says first.
#[track_caller]
fn session_in(err: &str) -> String {
    let first = err.lines().next().expect("it says something");
    first.strip_prefix("session ").expect("it begins with the session").to_owned()
}

/// Waits until `path` is as wished.
#[track_caller]
fn wait_path(path: &Path, there: bool) {
    let wish = if there { "there" } else { "gone" };
    eventually(&format!("{} is {wish}", path.display()), || (path.exists() == there).then_some(()));
}
