//! Watching a session: connects, follows, asks, reconnects, and knows when to end.
//!
//! The shell around `follow`: one thread, one `poll` over the socket, Ctrl-C and the keyboard.
//! Knows time and terminals. Must not know commands or how events look.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use super::answer::{Asking, Typed};
use super::exit::{Exit, Failure, Outcome, Stop};
use super::follow::{Follow, Taken, position};
use super::http::{self, Rest};
use super::interrupt::{Interrupts, Woken, timespec};
use super::link::{Link, Lost};
use super::render;
use super::screen::Screen;
use super::text;
use crate::limits;

/// How to watch.
#[derive(Debug)]
pub struct Options {
    /// When to end.
    pub until: Until,
    /// What Ctrl-C does.
    pub ctrl_c: CtrlC,
    /// Ask nothing, and end when somebody needs to answer.
    pub no_input: bool,
    /// Watch at most until then.
    pub deadline: Option<Instant>,
    /// Show nothing but how it ends.
    pub quiet: bool,
}

/// When to end.
#[derive(Debug)]
pub enum Until {
    /// Never by itself.
    Detached,
    /// With the end of this run.
    Complete(String),
    /// When nothing runs.
    Idle,
}

/// What Ctrl-C does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtrlC {
    /// Leaves; the run goes on.
    Detach,
    /// Asks the agent to stop, and the second time leaves.
    AbortThenDetach,
    /// Leaves without a word, and so does SIGTERM: whoever watches says what follows.
    End,
}

/// A session being watched.
#[derive(Debug)]
pub struct Watch<'a> {
    rest: &'a Rest,
    screen: &'a mut Screen,
    follow: Follow,
    options: Options,
    interrupts: Interrupts,
    /// Requests that wait for an answer, in the order of their ids.
    pending: BTreeMap<String, Value>,
    /// The one that the person at the keyboard is asked about.
    asking: Option<Asking>,
    /// A request that was said to wait, so that it is said once.
    told: Option<String>,
    /// What was typed of a line that has no end yet.
    typed: Vec<u8>,
    /// Whether there is a keyboard to answer with.
    keyboard: bool,
    /// Frames that wait for their `ack`, by `ref`; sent again on a new connection, which is
    /// harmless: the first answer wins, and an abort names its run.
    unacked: BTreeMap<String, Unacked>,
    refs: u64,
    /// The last `complete` seen.
    last_complete: Option<Value>,
    /// The run that is on, as far as was seen.
    running: Option<String>,
    stopping: bool,
    /// Connections so far, and whether the last loss was spoken of.
    connections: u64,
    announced: bool,
    heartbeat: Duration,
}

#[derive(Debug)]
struct Unacked {
    frame: Value,
    /// Whether this connection took it.
    sent: bool,
}

/// Why a connection's turn ended.
enum Ended {
    Watch(Exit),
    Connection(Lost),
    Stop(Stop),
}

impl From<Lost> for Ended {
    fn from(lost: Lost) -> Self {
        Self::Connection(lost)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Stop(error.into())
    }
}

/// Frames taken before the keyboard and Ctrl-C get their turn.
const FRAMES_PER_TURN: usize = 256;

impl<'a> Watch<'a> {
    /// Prepares to watch.
    ///
    /// # Errors
    /// If Ctrl-C cannot be listened for.
    pub fn new(
        rest: &'a Rest,
        screen: &'a mut Screen,
        follow: Follow,
        options: Options,
    ) -> Result<Self, Failure> {
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        let keyboard = terminal && !options.no_input && !options.quiet && !screen.is_json();
        let interrupts = Interrupts::catch(options.ctrl_c == CtrlC::End)?;
        Ok(Self {
            rest,
            screen,
            follow,
            options,
            interrupts,
            pending: BTreeMap::new(),
            asking: None,
            told: None,
            typed: Vec::new(),
            keyboard,
            unacked: BTreeMap::new(),
            refs: 0,
            last_complete: None,
            running: None,
            stopping: false,
            connections: 0,
            announced: false,
            heartbeat: Duration::from_secs(30),
        })
    }

    /// Watches until the end that the options name, over as many connections as it takes.
    ///
    /// # Errors
    /// When nothing can be watched (any more).
    pub fn run(mut self) -> Outcome {
        let mut tries = 0;
        loop {
            let before = self.connections;
            let ended = self.connection();
            self.follow.disconnected();
            let why = match ended {
                Ended::Watch(exit) => {
                    self.screen.end()?;
                    return Ok(exit);
                }
                Ended::Stop(stop) => return Err(stop),
                Ended::Connection(Lost::Fatal(failure)) => {
                    self.screen.end()?;
                    return Err(failure.into());
                }
                Ended::Connection(Lost::Again(why)) => why,
            };
            // The connection held: count the tries anew.
            tries = if self.connections > before { 0 } else { tries + 1 };
            if let Some(exit) = self.pause(&why, tries)? {
                self.screen.end()?;
                return Ok(exit);
            }
        }
    }

    /// Between two connections.
    fn pause(&mut self, why: &str, tries: u32) -> Result<Option<Exit>, Stop> {
        let wait = back_off(tries);
        if !self.announced && !self.options.quiet {
            let line =
                format!("-- connection lost ({}); trying again --", text::one_line(why, 120));
            self.say_dim(&line)?;
        }
        self.announced = true;
        let left = self.left().map_or(wait, |left| left.min(wait));
        match self.interrupts.wait(left) {
            Woken::Interrupted => self.interrupted(),
            Woken::Elapsed => self.timed_out(),
        }
    }

    /// One connection, from its first frame to its loss or the end.
    fn connection(&mut self) -> Ended {
        match self.over_one_connection() {
            Ok(exit) => Ended::Watch(exit),
            Err(ended) => ended,
        }
    }

    fn over_one_connection(&mut self) -> Result<Exit, Ended> {
        let mut link = Link::connect(self.rest.target())?;
        self.connections += 1;
        let client = concat!("reattach-cli/", env!("CARGO_PKG_VERSION"));
        link.send(&json!({"type": "hello", "protocol": 1, "client": client}))?;
        link.send(&self.follow.subscribe())?;
        for waiting in self.unacked.values_mut() {
            waiting.sent = false;
        }
        let mut pinged = Instant::now();
        // With a ping on its way, the time by which something has to have come.
        let mut dead_at: Option<Instant> = None;
        loop {
            let mut frames = 0;
            while frames < FRAMES_PER_TURN
                && let Some(frame) = link.read()?
            {
                frames += 1;
                dead_at = None;
                if let Some(exit) = self.frame(&mut link, &frame)? {
                    link.close();
                    return Ok(exit);
                }
            }
            self.screen.flush()?;
            while self.interrupts.take() {
                if let Some(exit) = self.interrupted().map_err(Ended::Stop)? {
                    link.close();
                    return Ok(exit);
                }
            }
            if let Some(exit) = self.timed_out().map_err(Ended::Stop)? {
                link.close();
                return Ok(exit);
            }
            let now = Instant::now();
            // Only what was not there to be read counts against the server, not our own slowness.
            if frames == 0 && dead_at.is_some_and(|dead| dead <= now) {
                return Err(Lost::Again("no answer to a ping".to_owned()).into());
            }
            // The server's greeting says how often, so this is not known before.
            if dead_at.is_none() && pinged + self.heartbeat <= now {
                link.send(&json!({"type": "ping"}))?;
                pinged = now;
                dead_at = Some(now + limits::CLIENT_PONG);
            }
            self.send_new(&mut link)?;
            if frames == FRAMES_PER_TURN {
                continue;
            }
            let next = dead_at.unwrap_or(pinged + self.heartbeat);
            let timer = self.options.deadline.map_or(next, |deadline| next.min(deadline));
            if let Some(line) = self.wait(&mut link, timer)?
                && let Some(exit) = self.line(&line)?
            {
                link.close();
                return Ok(exit);
            }
        }
    }

    /// Waits for the socket, Ctrl-C, the keyboard or the time. A typed line is returned.
    fn wait(&mut self, link: &mut Link, timer: Instant) -> Result<Option<String>, Ended> {
        let time = timespec(timer.saturating_duration_since(Instant::now()));
        let stdin = io::stdin();
        let out = if link.has_unsent() { PollFlags::OUT } else { PollFlags::empty() };
        let typing = self.asking.is_some() && self.keyboard;
        let keyboard = {
            let mut fds = vec![
                PollFd::new(link, PollFlags::IN | out),
                PollFd::new(&self.interrupts, PollFlags::IN),
            ];
            if typing {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            // A failed poll (a signal came) is a turn of the loop like any other.
            poll(&mut fds, Some(&time)).is_ok() && typing && !fds[2].revents().is_empty()
        };
        if link.has_unsent() {
            link.flush()?;
        }
        if keyboard { Ok(self.type_line()) } else { Ok(None) }
    }

    fn type_line(&mut self) -> Option<String> {
        let mut bytes = [0; 1024];
        let read = rustix::io::read(io::stdin(), &mut bytes).unwrap_or(0);
        if read == 0 {
            // Nobody types here any more; others may still answer.
            self.keyboard = false;
            self.asking = None;
            return None;
        }
        self.typed.extend_from_slice(&bytes[..read]);
        let end = self.typed.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.typed.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    /// Takes one frame.
    fn frame(&mut self, link: &mut Link, text: &str) -> Result<Option<Exit>, Ended> {
        let frame: Value = serde_json::from_str(text).map_err(|error| {
            Lost::Fatal(Failure::new(
                Exit::Failure,
                "NOT_REATTACH",
                format!("the server sent something that is not JSON: {error}"),
                "check the address: reattach version --server URL",
            ))
        })?;
        match self.follow.take(&frame) {
            Taken::Event => return self.event(text, &frame),
            Taken::EventAfterLoss { lost } => {
                self.screen.say(&format!("-- {lost} never came --"))?;
                return self.event(text, &frame);
            }
            Taken::Repeat => {}
            Taken::Hole => link.send(&self.follow.subscribe())?,
            Taken::Gap { from, to } => return self.gap(&from, &to),
            Taken::Subscribed { rewound, gap, processing } => {
                return self.subscribed(&frame, rewound, gap, processing);
            }
            Taken::Refused(code) => return Err(Lost::Fatal(refused(&code, &frame)).into()),
            Taken::CaughtUp { events } => return self.caught_up(events),
            Taken::Other => self.other(&frame)?,
        }
        Ok(None)
    }

    fn event(&mut self, text: &str, event: &Value) -> Result<Option<Exit>, Ended> {
        if !self.options.quiet {
            // Every frame is one line of JSON; one that were not would tear `--json` apart.
            if text.contains('\n') {
                self.screen.event(&event.to_string(), event)?;
            } else {
                self.screen.event(text, event)?;
            }
        }
        let request = || event["requestId"].as_str().unwrap_or_default();
        match event["kind"].as_str() {
            Some("run_started") => self.running = event["runId"].as_str().map(str::to_owned),
            Some("permission_request") => {
                self.pending.insert(request().to_owned(), event.clone());
            }
            Some("permission_resolved" | "permission_cancelled") => {
                self.pending.remove(request());
            }
            Some("complete") => {
                self.running = None;
                self.pending.retain(|_, pending| pending["runId"] != event["runId"]);
                self.last_complete = Some(event.clone());
            }
            _ => {}
        }
        if let Some(exit) = self.is_over() {
            return Ok(Some(exit));
        }
        self.ask()
    }

    /// Whether what was seen is the end that the options name.
    fn is_over(&self) -> Option<Exit> {
        let complete = self.last_complete.as_ref();
        match &self.options.until {
            Until::Detached => None,
            Until::Complete(run) => {
                complete.filter(|complete| complete["runId"] == run.as_str()).map(Exit::of_complete)
            }
            Until::Idle if !self.follow.is_live() || self.running.is_some() => None,
            Until::Idle => Some(complete.map_or(Exit::Ok, Exit::of_complete)),
        }
    }

    fn subscribed(
        &mut self,
        frame: &Value,
        rewound: bool,
        gap: Option<(Value, Value)>,
        processing: bool,
    ) -> Result<Option<Exit>, Ended> {
        if rewound {
            self.screen
                .say("-- the server's log was restored; this run again from its start --")?;
        }
        if processing {
            self.running = frame["runId"].as_str().map(str::to_owned);
        }
        for pending in frame["pendingPermissions"].as_array().into_iter().flatten() {
            let id = pending["requestId"].as_str().unwrap_or_default().to_owned();
            let unseen = self.pending.insert(id, pending.clone()).is_none();
            // Who begins at the tail does not get its event.
            if unseen && self.follow.is_tail() && !self.screen.is_json() && !self.options.quiet {
                let card = render::permission(pending, self.screen.err_paint());
                self.screen.say(&card)?;
            }
        }
        match gap {
            Some((from, to)) => self.gap(&from, &to),
            None => Ok(None),
        }
    }

    /// Events are gone for good. If the end of our run is among them, the run's record has it.
    fn gap(&mut self, from: &Value, to: &Value) -> Result<Option<Exit>, Ended> {
        let place = |at: &Value| match position(at) {
            Some(mark) => format!("{}:{}", text::clean(&mark.run, text::Paint::Plain), mark.seq),
            None => "the beginning".to_owned(),
        };
        if self.screen.is_json() && !self.options.quiet {
            let session = self.follow.session();
            let line = json!({"kind": "gap", "sessionId": session, "from": from, "to": to});
            self.screen.json_line(&line.to_string())?;
        } else {
            let line = format!("-- no longer kept: {} to {} --", place(from), place(to));
            self.screen.say(&line)?;
        }
        let Until::Complete(run) = &self.options.until else { return Ok(None) };
        let run = self.rest.get::<Value>(&format!("/runs/{run}"), &[]);
        let run = run.map_err(|failure| Ended::Stop(failure.into()))?;
        Ok((run["status"] == "completed").then(|| Exit::of_complete(&run)))
    }

    fn caught_up(&mut self, events: u64) -> Result<Option<Exit>, Ended> {
        let back = std::mem::take(&mut self.announced);
        let first = self.connections == 1 && matches!(self.options.until, Until::Complete(_));
        if !self.options.quiet && (back || !first) {
            let what = if events == 1 { "event" } else { "events" };
            self.say_dim(&format!("-- caught up {events} {what} --")).map_err(Ended::Stop)?;
        }
        if let Some(exit) = self.is_over() {
            return Ok(Some(exit));
        }
        self.ask()
    }

    fn other(&mut self, frame: &Value) -> io::Result<()> {
        match frame["kind"].as_str() {
            Some("hello") => {
                if let Some(ms) = frame["heartbeatMs"].as_u64().filter(|ms| *ms > 0) {
                    self.heartbeat = Duration::from_millis(ms);
                }
            }
            Some("ack") => {
                self.unacked.remove(frame["ref"].as_str().unwrap_or_default());
            }
            Some("protocol_error") => {
                let reference = frame["ref"].as_str().unwrap_or_default();
                if self.unacked.remove(reference).is_some() && frame["code"] != "NO_ACTIVE_RUN" {
                    let why = frame["error"].as_str().unwrap_or("refused");
                    self.screen.say(&text::clean(why, text::Paint::Plain))?;
                }
            }
            Some("server_draining") => {
                self.screen.say("-- the server is stopping; waiting for it to come back --")?;
            }
            Some("store_state") if frame["ok"] == false => {
                self.screen.say("-- the server cannot write to its disk; waiting --")?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Asks the person about the next request, or says who could be asked.
    fn ask(&mut self) -> Result<Option<Exit>, Ended> {
        if !self.follow.is_live() {
            return Ok(None);
        }
        if self.asking.as_ref().is_some_and(|asking| !self.pending.contains_key(asking.id())) {
            self.asking = None;
            self.typed.clear();
        }
        if self.asking.is_some() {
            return Ok(None);
        }
        let answered: Vec<&str> =
            self.unacked.values().filter_map(|it| it.frame["requestId"].as_str()).collect();
        let next = self.pending.iter().find(|(id, _)| !answered.contains(&id.as_str()));
        let Some((id, request)) = next else { return Ok(None) };
        if self.options.no_input {
            let line = format!("waiting for a permission: {}", self.how_to_answer(id));
            self.screen.say(&line)?;
            return Ok(Some(Exit::Waiting));
        }
        if self.keyboard {
            let asking = Asking::new(request.clone());
            self.screen.say_part(&asking.question())?;
            self.asking = Some(asking);
        } else if !self.options.quiet && self.told.as_ref() != Some(id) {
            let line = format!("-- waits for an answer: {} --", self.how_to_answer(id));
            self.told = Some(id.clone());
            self.screen.say(&line)?;
        }
        Ok(None)
    }

    fn how_to_answer(&self, id: &str) -> String {
        let flags = self.rest.target().flags();
        let id = text::clean(id, text::Paint::Plain);
        format!("reattach allow {id}{flags}  (or deny)")
    }

    /// A typed line.
    fn line(&mut self, line: &str) -> Result<Option<Exit>, Ended> {
        let Some(asking) = &mut self.asking else { return Ok(None) };
        match asking.line(line) {
            Typed::Answer(mut answer) => {
                answer["type"] = json!("chat.permission-response");
                answer["requestId"] = json!(asking.id());
                self.asking = None;
                self.queue(answer);
                self.ask()
            }
            Typed::Detach => self.detach().map(Some).map_err(Ended::Stop),
            Typed::Ask => {
                let question = asking.question();
                self.screen.say_part(&question)?;
                Ok(None)
            }
            Typed::Help(help) => {
                let question = asking.question();
                self.screen.say_part(&format!("{help}\n{question}"))?;
                Ok(None)
            }
        }
    }

    /// Ctrl-C.
    fn interrupted(&mut self) -> Result<Option<Exit>, Stop> {
        if let (CtrlC::AbortThenDetach, Until::Complete(run), false) =
            (self.options.ctrl_c, &self.options.until, self.stopping)
        {
            let abort = json!({"type": "chat.abort", "sessionId": self.follow.session(),
                "runId": run});
            self.stopping = true;
            self.queue(abort);
            self.screen.say("stopping... (Ctrl-C again to leave it alone and detach)")?;
            return Ok(None);
        }
        self.detach().map(Some)
    }

    fn detach(&mut self) -> Result<Exit, Stop> {
        if self.options.ctrl_c == CtrlC::End {
            return Ok(Exit::Ok);
        }
        let session = self.follow.session();
        let flags = self.rest.target().flags();
        let goes_on = match (&self.options.until, &self.running) {
            (Until::Complete(_), _) | (_, Some(_)) => "the run goes on: ",
            _ => "",
        };
        self.screen.say(&format!("detached; {goes_on}reattach attach {session}{flags}"))?;
        Ok(Exit::Ok)
    }

    fn timed_out(&mut self) -> Result<Option<Exit>, Stop> {
        if self.left().is_none_or(|left| !left.is_zero()) {
            return Ok(None);
        }
        let session = self.follow.session();
        let flags = self.rest.target().flags();
        let line = format!(
            "time is over; the run goes on: reattach attach {session}{flags}, \
             or reattach abort {session}{flags}"
        );
        self.screen.say(&line)?;
        Ok(Some(Exit::TimedOut))
    }

    fn left(&self) -> Option<Duration> {
        Some(self.options.deadline?.saturating_duration_since(Instant::now()))
    }

    /// A frame that is to be sent until it is acknowledged.
    fn queue(&mut self, mut frame: Value) {
        self.refs += 1;
        let reference = format!("request-{}", self.refs);
        frame["ref"] = json!(reference);
        self.unacked.insert(reference, Unacked { frame, sent: false });
    }

    fn send_new(&mut self, link: &mut Link) -> Result<(), Lost> {
        for waiting in self.unacked.values_mut().filter(|waiting| !waiting.sent) {
            waiting.sent = true;
            link.send(&waiting.frame)?;
        }
        Ok(())
    }

    fn say_dim(&mut self, line: &str) -> Result<(), Stop> {
        let line = self.screen.err_paint().dim(line);
        Ok(self.screen.say(&line)?)
    }
}

/// How long to wait before the try after `tries` that failed, with some chance in it, so that
/// many clients do not come back at one moment.
fn back_off(tries: u32) -> Duration {
    let full = limits::CLIENT_RETRY_FIRST
        .saturating_mul(1 << tries.min(16))
        .min(limits::CLIENT_RETRY_LONGEST);
    let mut chance = [0];
    // Without a source of chance the wait is just not spread.
    getrandom::fill(&mut chance).ok();
    full - full / 2 * u32::from(chance[0]) / 255
}

/// A refused subscribe, as a failure of the command.
fn refused(code: &str, frame: &Value) -> Failure {
    let message = match (code, frame["error"].as_str()) {
        ("SESSION_NOT_FOUND", _) => "the session does not exist (any more)",
        ("RUN_NOT_FOUND", _) => "the run does not exist in this session",
        (_, Some(error)) if error != code => error,
        _ => "the server does not let us follow the session",
    };
    let (exit, next) = http::meaning(code, 0, true);
    Failure::new(exit, code, text::clean(message, text::Paint::Plain), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_growing() {
        for tries in [0, 1, 5, 40, u32::MAX] {
            let wait = back_off(tries);
            assert!(wait <= limits::CLIENT_RETRY_LONGEST, "{tries}: {wait:?}");
            assert!(wait >= limits::CLIENT_RETRY_FIRST / 2, "{tries}: {wait:?}");
        }
        assert!(back_off(10) >= limits::CLIENT_RETRY_LONGEST / 2);
    }
}
