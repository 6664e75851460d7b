//! The demo agent's pipes: what it hears, what it says, and how it waits.
//!
//! Every wait also listens: an abort, a signal or an answer comes through the same channel. Must
//! not know the script.

use std::io::{self, BufRead, BufWriter, Stdout, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Bytes gathered before a flood writes.
const BUFFER_BYTES: usize = 64 << 10;
/// Events of a flood between two looks at what was heard.
const FLOOD_LOOK: u64 = 256;
/// Messages heard and not yet looked at.
const HEARD_MAX: usize = 64;
/// How long after a signal it may take to end in good order, should its output be stuck.
const SIGNAL_GRACE: Duration = Duration::from_millis(250);
/// Nobody should meet a hanging demo agent from last month.
const HANG_MAX: Duration = Duration::from_secs(3600);

/// The prompt line.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    /// What the person says.
    pub(super) content: String,
    /// As the client gave them.
    pub(super) options: Map<String, Value>,
    /// The conversation to go on with.
    pub(super) native_id: Option<String>,
}

/// Why the turn stops before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The gateway asked for it.
    Aborted,
    /// It is to fail, with these words.
    Failed(String),
    /// It is to crash.
    Crashed,
    /// This signal came.
    Signal(i32),
    /// Nobody reads what it says.
    Gone(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

/// An answer to a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// Allow or deny.
    pub(super) allow: bool,
    /// Changed input, or answers to questions.
    pub(super) updated_input: Value,
    /// A note.
    pub(super) message: Option<String>,
}

/// What comes in.
#[derive(Debug)]
enum Heard {
    Line(Value),
    /// stdin is closed: no answer can come any more.
    Closed,
    Signal(i32),
}

/// Its pipes and its pace.
#[derive(Debug)]
pub(super) struct Stage {
    out: BufWriter<Stdout>,
    heard: Receiver<Heard>,
    /// It hangs: signals are to be ignored.
    deaf: Arc<AtomicBool>,
    closed: bool,
    speed: f64,
    fail_at: Option<u64>,
    said: u64,
}

impl Stage {
    /// Begins to listen to stdin and to the signals that ask a program to end.
    pub(super) fn open() -> io::Result<Self> {
        let (sender, heard) = sync_channel(HEARD_MAX);
        let deaf = Arc::new(AtomicBool::new(false));
        let signals = Signals::new([SIGINT, SIGTERM])?;
        // Both threads end with the process.
        let (to_signals, deaf_too) = (sender.clone(), Arc::clone(&deaf));
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || heed(signals, &to_signals, &deaf_too))?;
        thread::Builder::new().name("stdin".into()).spawn(move || listen(&sender))?;
        Ok(Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, io::stdout()),
            heard,
            deaf,
            closed: false,
            speed: 1.0,
            fail_at: None,
            said: 0,
        })
    }

    /// Waits for the prompt line; the error says what came instead.
    pub(super) fn prompt(&mut self) -> Result<Prompt, String> {
        match self.heard.recv() {
            Ok(Heard::Line(line)) if line["type"] == "prompt" => Ok(Prompt {
                content: line["content"].as_str().unwrap_or_default().to_owned(),
                options: line["options"].as_object().cloned().unwrap_or_default(),
                native_id: line["providerSessionId"].as_str().map(str::to_owned),
            }),
            Ok(Heard::Line(line)) => Err(format!("not a prompt: {line}")),
            Ok(Heard::Closed) | Err(_) => Err("no prompt came on stdin".to_owned()),
            Ok(Heard::Signal(signal)) => Err(format!("stopped by signal {signal}")),
        }
    }

    /// How fast to play, and at which event to fail.
    pub(super) fn set_pace(&mut self, speed: f64, fail_at: Option<u64>) {
        self.speed = speed;
        self.fail_at = fail_at;
    }

    /// Says one event.
    pub(super) fn say(&mut self, event: Value) -> Result<(), Stop> {
        self.count()?;
        self.say_uncounted(&event)
    }

    /// Says something that is no event of the run.
    pub(super) fn say_uncounted(&mut self, line: &Value) -> Result<(), Stop> {
        // Before it is said: what comes after it may be its answer.
        self.look()?;
        Ok(self.last_words(line)?)
    }

    /// Says a line whatever was heard meanwhile.
    pub(super) fn last_words(&mut self, line: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }

    /// Writes out what is gathered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Says that the turn is over, and all is well.
    pub(super) fn complete(&mut self) -> Result<(), Stop> {
        Ok(self.last_words(&json!({"kind": "complete", "exitCode": 0, "success": true}))?)
    }

    /// Waits so many milliseconds of a lifelike turn.
    pub(super) fn pause(&mut self, ms: u32) -> Result<(), Stop> {
        self.out.flush()?;
        if self.speed == 0.0 {
            return self.look();
        }
        let wait = f64::from(ms) / 1000.0 / self.speed;
        // A speed near 0 asks for more than a clock can count: an hour is as good.
        let wait = Duration::try_from_secs_f64(wait).unwrap_or(HANG_MAX).min(HANG_MAX);
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.heard.recv_timeout(left) {
                Ok(heard) => drop(self.stop_or_answer(heard)?),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(left);
                    return Ok(());
                }
            }
        }
    }

    /// Says a request and waits for its answer. If stdin is closed nobody can give one: denied.
    pub(super) fn ask(&mut self, request_id: &str, request: Value) -> Result<Answer, Stop> {
        self.say(request)?;
        while !self.closed {
            let Ok(heard) = self.heard.recv() else { break };
            if let Some((id, answer)) = self.stop_or_answer(heard)?
                && id == request_id
            {
                return Ok(answer);
            }
        }
        Ok(Answer { message: Some("stdin is closed".to_owned()), ..Answer::default() })
    }

    /// Says `count` numbered text events with `bytes` bytes of text each, as fast as possible.
    pub(super) fn flood(&mut self, count: u64, bytes: usize) -> Result<(), Stop> {
        let filler = "x".repeat(bytes);
        for n in 1..=count {
            self.count()?;
            let number = format!("{n} ");
            let filler = filler.get(number.len()..).unwrap_or_default();
            self.out.write_all(br#"{"kind":"text","content":""#)?;
            self.out.write_all(number.as_bytes())?;
            self.out.write_all(filler.as_bytes())?;
            self.out.write_all(b"\"}\n")?;
            if n % FLOOD_LOOK == 0 {
                self.look()?;
            }
        }
        self.out.flush()?;
        Ok(())
    }

    /// Says its process id, then hears nothing: no line, no closed pipe, no signal that it can
    /// refuse.
    pub(super) fn hang(&mut self) -> Result<(), Stop> {
        self.deaf.store(true, Ordering::SeqCst);
        let pid = std::process::id();
        self.last_words(&json!({
            "kind": "status", "status": "info", "text": format!("Hanging as pid {pid}."),
            "pid": pid, "canInterrupt": false,
        }))?;
        let until = Instant::now() + HANG_MAX;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Stop::Failed("hung for an hour, which is enough".to_owned()));
            }
            match self.heard.recv_timeout(left) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(left),
            }
        }
    }

    /// Counts an event, or fails in its place.
    fn count(&mut self) -> Result<(), Stop> {
        self.said += 1;
        if self.fail_at == Some(self.said) {
            return Err(Stop::Failed(format!("failed at event {}, as asked", self.said)));
        }
        Ok(())
    }

    /// Takes in what was heard, without waiting.
    fn look(&mut self) -> Result<(), Stop> {
        loop {
            match self.heard.try_recv() {
                Ok(heard) => drop(self.stop_or_answer(heard)?),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    /// What a message asks for: the end, or an answer to the request of this id.
    fn stop_or_answer(&mut self, heard: Heard) -> Result<Option<(String, Answer)>, Stop> {
        match heard {
            Heard::Signal(signal) => Err(Stop::Signal(signal)),
            Heard::Closed => {
                self.closed = true;
                Ok(None)
            }
            Heard::Line(line) if line["type"] == "abort" => Err(Stop::Aborted),
            Heard::Line(line) if line["type"] == "permission-response" => {
                let answer = Answer {
                    allow: line["allow"] == true,
                    updated_input: line["updatedInput"].clone(),
                    message: line["message"].as_str().map(str::to_owned),
                };
                Ok(line["requestId"].as_str().map(|id| (id.to_owned(), answer)))
            }
            Heard::Line(_) => Ok(None),
        }
    }
}

/// Passes signals on. If the process is then stuck in a write that nobody takes, it ends all the
/// same, as it would without a handler.
fn heed(mut signals: Signals, sender: &SyncSender<Heard>, deaf: &AtomicBool) {
    for signal in signals.forever() {
        if deaf.load(Ordering::SeqCst) {
            continue;
        }
        // A full channel means that nobody looks: then only the grace is left.
        drop(sender.try_send(Heard::Signal(signal)));
        thread::sleep(SIGNAL_GRACE);
        if !deaf.load(Ordering::SeqCst) {
            // It fails only for signals that have no default, and these have.
            signal_hook::low_level::emulate_default_handler(signal).unwrap_or_default();
        }
    }
}

/// Reads stdin to its end. A line that is no JSON is passed over, as by any tolerant agent.
fn listen(sender: &SyncSender<Heard>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(value) = serde_json::from_str(&line) else { continue };
        if sender.send(Heard::Line(value)).is_err() {
            return;
        }
    }
    // If nobody listens any more the process is about to end.
    sender.send(Heard::Closed).unwrap_or_default();
}
