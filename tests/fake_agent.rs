//! A scripted agent for the black-box tests: a real process that speaks `jsonl` and does what a
//! test tells it over a Unix socket.
//!
//! `fake_agent --control SOCKET --name NAME`. It says hello, reports every line of its stdin, and
//! takes commands, one JSON object a line; each is answered with `{"done": id}` once carried out.
//! When the socket closes (the test is over) it exits, whatever else it was told to ignore.
//!
//! Must not know the gateway: only the `jsonl` contract.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::exit, reason = "ending at once, from whatever thread, is what it is for")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "no model runs this process; its threads are two"
)]

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::process::{Command, Stdio, exit};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::Deserialize;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// What it does when the gateway asks it to stop.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    /// On `{"type":"abort"}`: print these lines first.
    abort_lines: Vec<String>,
    /// On `{"type":"abort"}`: then exit with this code; `None` goes on.
    abort_exit: Option<i32>,
    /// On the end of stdin: exit with this code; `None` goes on.
    eof_exit: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Order {
    /// Print lines, each with its end.
    Emit { lines: Vec<String> },
    /// Print bytes as they are.
    Bytes { bytes: Vec<u8> },
    /// Print one line: `head`, `count` times the byte `fill`, `tail`.
    Long { head: String, fill: char, count: usize, tail: String },
    /// Print `count` text events `PREFIX0`, `PREFIX1`, ... padded to about `bytes` each.
    Flood { count: u64, bytes: usize, prefix: String },
    /// Print to stderr.
    Stderr { text: String },
    /// End.
    Exit { code: i32 },
    /// Send itself a signal.
    Kill { signal: i32 },
    /// Ignore SIGINT, SIGTERM and SIGHUP; each is reported.
    IgnoreSignals,
    /// Change the policy.
    Policy { policy: Policy },
    /// Start a child in a session of its own that ignores signals too.
    Escape,
    /// Put /dev/null in the place of stdout.
    CloseStdout,
}

#[derive(Debug, Deserialize)]
struct Ordered {
    id: u64,
    #[serde(flatten)]
    order: Order,
}

/// The way back to the test.
#[derive(Clone)]
struct Control(Arc<Mutex<UnixStream>>);

impl Control {
    fn report(&self, value: &Value) {
        let mut line = value.to_string();
        line.push('\n');
        // A test that is gone needs no report; the reader of the socket ends this process.
        drop(lock(&self.0).write_all(line.as_bytes()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1).cloned()
    };
    let (Some(socket), Some(name)) = (value("--control"), value("--name")) else {
        return Err(io::Error::other("usage: fake_agent --control SOCKET --name NAME [--escaped]"));
    };
    let escaped = args.iter().any(|arg| arg == "--escaped");
    if escaped {
        rustix::process::setsid()?;
        ignore_signals(None)?;
    }
    let stream = UnixStream::connect(&socket)?;
    let orders = BufReader::new(stream.try_clone()?);
    let control = Control(Arc::new(Mutex::new(stream)));
    control.report(&json!({"hello": {
        "pid": std::process::id(),
        "parent": parent_id(),
        "name": name,
        "cwd": std::env::current_dir()?,
    }}));
    let policy = Arc::new(Mutex::new(Policy {
        abort_lines: Vec::new(),
        abort_exit: Some(0),
        eof_exit: Some(0),
    }));
    if !escaped {
        let (control, policy) = (control.clone(), Arc::clone(&policy));
        thread::spawn(move || listen(&control, &policy));
    }
    for line in orders.lines() {
        let Ok(line) = line else { break };
        let ordered: Ordered = match serde_json::from_str(&line) {
            Ok(ordered) => ordered,
            Err(error) => {
                control.report(&json!({"problem": format!("{error} in {line}")}));
                continue;
            }
        };
        if let Err(error) = obey(ordered.order, &control, &policy, (&socket, &name)) {
            control.report(&json!({"problem": error.to_string()}));
        }
        control.report(&json!({"done": ordered.id}));
    }
    exit(0)
}

/// Reports what comes on stdin, and keeps to the policy.
fn listen(control: &Control, policy: &Mutex<Policy>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        control.report(&json!({ "line": line }));
        let parsed: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        if parsed["type"] != "abort" {
            continue;
        }
        let Policy { abort_lines, abort_exit, .. } = lock(policy).clone();
        if !abort_lines.is_empty() && print_lines(&abort_lines).is_err() {
            control.report(&json!({"problem": "stdout is closed"}));
        }
        if let Some(code) = abort_exit {
            exit(code);
        }
    }
    control.report(&json!({"eof": true}));
    let code = lock(policy).eof_exit;
    if let Some(code) = code {
        exit(code);
    }
}

fn obey(
    order: Order,
    control: &Control,
    policy: &Mutex<Policy>,
    (socket, name): (&str, &str),
) -> io::Result<()> {
    match order {
        Order::Emit { lines } => print_lines(&lines),
        Order::Bytes { bytes } => {
            let mut out = io::stdout().lock();
            out.write_all(&bytes)?;
            out.flush()
        }
        Order::Long { head, fill, count, tail } => {
            let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
            out.write_all(head.as_bytes())?;
            let chunk = fill.to_string().repeat(4096);
            let mut left = count;
            while left > 0 {
                let now = left.min(4096);
                out.write_all(&chunk.as_bytes()[..now * fill.len_utf8()])?;
                left -= now;
            }
            out.write_all(tail.as_bytes())?;
            out.write_all(b"\n")?;
            out.flush()
        }
        Order::Flood { count, bytes, prefix } => flood(control, count, bytes, &prefix),
        Order::Stderr { text } => {
            let mut err = io::stderr().lock();
            err.write_all(text.as_bytes())?;
            err.flush()
        }
        Order::Exit { code } => exit(code),
        Order::Kill { signal } => {
            let signal = rustix::process::Signal::from_named_raw(signal)
                .ok_or_else(|| io::Error::other("no such signal"))?;
            rustix::process::kill_process(rustix::process::getpid(), signal)?;
            Ok(())
        }
        Order::IgnoreSignals => ignore_signals(Some(control.clone())),
        Order::Policy { policy: new } => {
            *lock(policy) = new;
            Ok(())
        }
        Order::Escape => escape(socket, name),
        Order::CloseStdout => {
            let null = std::fs::File::options().write(true).open("/dev/null")?;
            rustix::stdio::dup2_stdout(&null)?;
            Ok(())
        }
    }
}

fn print_lines(lines: &[String]) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for line in lines {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Prints as fast as the pipe takes it, and reports before each batch how far it will be then,
/// so that the test never believes less than what was sent.
fn flood(control: &Control, count: u64, bytes: usize, prefix: &str) -> io::Result<()> {
    let batch = u64::try_from(((64 << 10) / bytes.max(64)).max(1)).unwrap_or(1);
    let padding = "x".repeat(bytes.saturating_sub(48));
    let mut at = 0;
    while at < count {
        let end = count.min(at + batch);
        let mut text = String::with_capacity(bytes * 2);
        for i in at..end {
            text.push_str(&format!(
                "{{\"kind\":\"text\",\"content\":\"{prefix}{i}\",\"pad\":\"{padding}\"}}\n"
            ));
        }
        control.report(&json!({ "sent": end }));
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        at = end;
    }
    Ok(())
}

/// Takes the signals that a polite program would die of, and reports them if it can.
fn ignore_signals(control: Option<Control>) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if let Some(control) = &control {
                control.report(&json!({ "signal": signal }));
            }
        }
    });
    Ok(())
}

/// A grandchild that a group kill does not reach. It reports itself to the test.
fn escape(socket: &str, name: &str) -> io::Result<()> {
    let child = Command::new(std::env::current_exe()?)
        .args(["--control", socket, "--name", &format!("{name}/escaped"), "--escaped"])
        .stdin(Stdio::null())
        .spawn()?;
    // Nobody waits for it here: whoever adopts it must.
    drop(child);
    Ok(())
}
