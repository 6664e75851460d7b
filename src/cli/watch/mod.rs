//! Watching a session: connects, follows, asks, reconnects, and knows when to end.
//!
//! The shell around `follow`: one thread, one `poll` over the socket, Ctrl-C and the keyboard.
//! Knows time and terminals. Must not know commands or how events look.

mod frames;
mod person;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use crate::cli::answer::Asking;
use crate::cli::exit::{Exit, Failure, Outcome, Stop};
use crate::cli::follow::Follow;
use crate::cli::http::Rest;
use crate::cli::interrupt::{Interrupts, Woken, timespec};
use crate::cli::link::{Link, Lost};
use crate::cli::screen::Screen;
use crate::cli::text;
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
    /// Whether an earlier connection took it, so that it may have been carried out.
    resent: bool,
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
            waiting.resent |= waiting.sent;
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

    /// A frame that is to be sent until it is acknowledged.
    fn queue(&mut self, mut frame: Value) {
        self.refs += 1;
        let reference = format!("request-{}", self.refs);
        frame["ref"] = json!(reference);
        self.unacked.insert(reference, Unacked { frame, sent: false, resent: false });
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
