//! The agent process as its keeper sees it: its start, its output, its end.
//!
//! The end goes in this order: the exit is observed while the process stays a zombie (so that
//! its group's number cannot be another's), the group is killed, then every descendant until
//! none is left (I21), then the output is drained, then the `Exit` record closes the stream.
//! Must not know the control stream's framing or the poll loop.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};

use super::environment::AGENT_TAG;
use super::frame::{
    self, Body, Launch, RECORD_HEADER_BYTES, Reply, SpawnFailed, SpawnFailure, Step, Stopped,
    Timings,
};
use super::hunt::{Caught, Hunt};
use super::journal::Backlog;
use super::ladder::{Ladder, later};
use super::lines::{Line, Over, Splitter};
use super::outbox::Outbox;
use super::processes::{self, Process};
use super::stdin::Stdin;
use crate::limits::{
    ERR_LINE_BYTES_MAX, OUTPUT_BACKLOG_BYTES, OUTPUT_GAP_MS, OUTPUT_READ_BYTES, SWEEP_PASS_MS,
};
use crate::provider::{Decision, Exit};
use crate::run::id::Millis;

/// What a pipe can hold at the most, for all that an unprivileged process can make of it.
const PIPE_BYTES_MAX: usize = 1 << 20;

/// What one turn of the loop lends to the agent.
pub(super) struct Turn<'a> {
    /// Monotonic.
    pub(super) now: Instant,
    /// The wall clock's, for records.
    pub(super) at: Millis,
    /// A child's state changed.
    pub(super) children: bool,
    pub(super) replies: &'a mut Outbox,
    /// What every gateway has to hear, those that come later as well.
    pub(super) last_words: &'a mut Vec<Reply>,
    pub(super) records: &'a mut Backlog,
    /// For reading, `OUTPUT_READ_BYTES` long.
    pub(super) scratch: &'a mut [u8],
}

/// An agent that was started.
#[derive(Debug)]
pub(super) struct Agent {
    pid: Pid,
    /// `REATTACH_AGENT=<id>`, by which strays are found.
    mark: String,
    timings: Timings,
    pub(super) stdin: Stdin,
    out: Output<ChildStdout>,
    err: Output<ChildStderr>,
    ladder: Option<Ladder>,
    hunt: Option<Hunt>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Alive,
    /// The process has ended; what it left is being killed.
    Sweeping {
        exit: Exit,
        deadline: Instant,
        next: Instant,
        killed: BTreeSet<(u32, u64)>,
    },
    /// Nothing is left; what it said is still on its way.
    Draining {
        exit: Exit,
        deadline: Instant,
    },
    /// The `Exit` record was given.
    Over,
}

impl Agent {
    /// Starts it, in a process group of its own.
    pub(super) fn spawn(launch: &Launch) -> Result<Self, SpawnFailed> {
        let Some((program, arguments)) = launch.argv.split_first() else {
            let message = "no program is given".to_owned();
            return Err(SpawnFailed { kind: SpawnFailure::Other, message });
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&launch.cwd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| why(program, Path::new(&launch.cwd), &error))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid is > 0");
        let stdin: ChildStdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true).expect("a pipe can be told not to block");
        }
        let cap = launch.line_bytes_max;
        Ok(Self {
            pid,
            mark: format!("{AGENT_TAG}={}", launch.agent),
            timings: launch.timings,
            stdin: Stdin::open(stdin, lines_max(cap)),
            out: Output::new(stdout, Splitter::new(cap, Over::Head), |line| Body::Out(line)),
            err: Output::new(stderr, Splitter::new(ERR_LINE_BYTES_MAX, Over::Cut), |line| {
                Body::Err(line)
            }),
            ladder: None,
            hunt: None,
            phase: Phase::Alive,
        })
    }

    /// The agent's process id.
    pub(super) fn pid(&self) -> u32 {
        processes::number(self.pid)
    }

    /// Whether it has not ended.
    pub(super) const fn is_alive(&self) -> bool {
        matches!(self.phase, Phase::Alive)
    }

    /// Whether the last record was given.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// The output pipes that are to be read now.
    pub(super) fn wants(
        &self,
        now: Instant,
        records: &Backlog,
    ) -> (Option<&ChildStdout>, Option<&ChildStderr>) {
        if !self.has_room(records) {
            return (None, None);
        }
        (self.out.wants(now), self.err.wants(now))
    }

    /// When the next thing is due that no descriptor announces.
    pub(super) fn due(&self, now: Instant, records: &Backlog) -> Option<Instant> {
        let own = match &self.phase {
            Phase::Alive => self.ladder.and_then(|ladder| ladder.due),
            Phase::Sweeping { next, .. } => Some(*next),
            Phase::Draining { deadline, .. } => Some(*deadline),
            Phase::Over => None,
        };
        let gaps = [self.out.quiet_until, self.err.quiet_until];
        let gaps =
            gaps.into_iter().flatten().filter(|until| *until > now && self.has_room(records));
        let hunt = self.hunt.as_ref().map(Hunt::due);
        own.into_iter().chain(gaps).chain(hunt).min()
    }

    /// I7: without room the agent waits.
    fn has_room(&self, records: &Backlog) -> bool {
        let held = self.out.lines.held() + self.err.lines.held();
        records.takes_lines(held + self.stdin.waiting_bytes())
    }

    /// Begins the stop ladder, unless it has begun or the agent has ended.
    pub(super) fn stop(&mut self, why: Decision, turn: &mut Turn<'_>) {
        if self.ladder.is_none() && matches!(self.phase, Phase::Alive) {
            push(turn.records, turn.at, Body::Decision(why));
            self.ladder = Some(Ladder::start(turn.now, &self.timings));
            self.stdin.close_now(turn.replies);
        }
    }

    /// Kills what was born since write `n` was written.
    pub(super) fn hunt(&mut self, n: u64, turn: &mut Turn<'_>) {
        if matches!(self.phase, Phase::Sweeping { .. }) {
            // The agent's end takes all with it: `Stopped` says when.
            return;
        }
        let since = self.stdin.began(n).filter(|_| matches!(self.phase, Phase::Alive));
        let Some(since) = since else {
            // Nothing was born since, or nothing is left.
            return Reply::Swept { killed: 0, left: 0 }.encode(turn.replies.buffer());
        };
        let hunt = Hunt::new(since, turn.now, self.timings.sweep_ms);
        match &mut self.hunt {
            Some(before) => before.join(&hunt),
            none => *none = Some(hunt),
        }
    }

    /// Kills the group, for a keeper that can do no more.
    pub(super) fn abandon(&self) {
        if matches!(self.phase, Phase::Alive) {
            self.signal(Signal::KILL);
        }
    }

    /// Reads what the pipes have, once each.
    pub(super) fn read(&mut self, out: bool, err: bool, turn: &mut Turn<'_>) {
        // First what it complains, since a crash's words explain the lines after which it died.
        if err {
            self.err.read(turn);
        }
        if out {
            self.out.read(turn);
        }
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.phase, Phase::Alive) {
            if let Some(exit) = observe(self.pid) {
                self.begin_end(exit, turn);
            } else {
                if turn.children {
                    reap_orphans(self.pid);
                }
                self.climb(turn.now);
            }
        }
        if !matches!(self.phase, Phase::Alive) {
            // What the agent's end has to kill it kills without us, and `Stopped` says when.
            self.hunt = None;
        }
        if let Some(hunt) = &mut self.hunt {
            let caught = hunt.pass(self.pid, turn.now);
            if let Some(Caught { killed, left }) = caught {
                for _ in 0..hunt.asked {
                    Reply::Swept { killed, left }.encode(turn.replies.buffer());
                }
                self.hunt = None;
            }
        }
        if matches!(self.phase, Phase::Sweeping { .. }) {
            self.sweep(turn);
        }
        if matches!(self.phase, Phase::Draining { .. }) {
            self.drain(turn);
        }
    }

    fn climb(&mut self, now: Instant) {
        let Some(next) = self.ladder.and_then(|ladder| ladder.next(now, &self.timings)) else {
            return;
        };
        match next.step {
            Step::CloseStdin => {}
            Step::Interrupt => self.signal(Signal::INT),
            Step::Terminate => self.signal(Signal::TERM),
            Step::Kill => self.signal(Signal::KILL),
        }
        self.ladder = Some(next);
    }

    /// To the group, which exists while its leader is not reaped.
    fn signal(&self, signal: Signal) {
        // It fails only if no member is left that may be signalled.
        rustix::process::kill_process_group(self.pid, signal).ok();
    }

    fn begin_end(&mut self, exit: Exit, turn: &mut Turn<'_>) {
        turn.last_words.push(Reply::Exited(exit));
        self.stdin.close_now(turn.replies);
        self.signal(Signal::KILL);
        self.phase = Phase::Sweeping {
            exit,
            deadline: later(turn.now, self.timings.sweep_ms),
            next: turn.now,
            killed: BTreeSet::new(),
        };
    }

    /// One look at what is left. Nothing is left when no tagged process is there and we have no
    /// child any more: since orphans become ours, that is exact where there are subreapers.
    fn sweep(&mut self, turn: &mut Turn<'_>) {
        let Phase::Sweeping { exit, deadline, next, killed } = &mut self.phase else { return };
        let childless = reap_all();
        if turn.now < *next && !childless {
            return;
        }
        let strays = strays(&self.mark);
        let mut left = strays.len();
        for process in &strays {
            processes::kill(*process);
            killed.insert((processes::number(process.pid), process.start));
        }
        if left == 0 && !reap_all() {
            left = 1;
        }
        if left > 0 && turn.now < *deadline {
            *next = later(turn.now, SWEEP_PASS_MS.unsigned_abs());
            return;
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let stopped = Stopped {
            step: self.ladder.map(|ladder| ladder.step),
            swept: count(killed.len()),
            left: count(left),
        };
        turn.last_words.push(Reply::Stopped(stopped));
        let deadline = later(turn.now, self.timings.drain_ms);
        self.phase = Phase::Draining { exit: *exit, deadline };
    }

    /// Waits for the end of the output, or for the deadline if somebody else holds the pipes or
    /// the journal is full.
    fn drain(&mut self, turn: &mut Turn<'_>) {
        let Phase::Draining { exit, deadline } = self.phase else { return };
        let open = !self.out.is_closed() || !self.err.is_closed();
        if open && turn.now < deadline {
            return;
        }
        // What was in the pipes at the exit is not lost: for that the journal has a reserve (I7).
        self.err.read_rest(turn);
        self.out.read_rest(turn);
        self.err.end(turn);
        self.out.end(turn);
        push(turn.records, turn.at, Body::Exit(exit));
        self.phase = Phase::Over;
    }
}

/// One of the agent's output pipes.
#[derive(Debug)]
struct Output<P> {
    pipe: Option<P>,
    lines: Splitter,
    /// Which record its lines become.
    body: fn(&[u8]) -> Body<'_>,
    /// Not to be read before, since the last read took little.
    quiet_until: Option<Instant>,
}

enum Took {
    Some(usize),
    Nothing,
}

impl<P: AsFd> Output<P> {
    fn new(pipe: P, lines: Splitter, body: fn(&[u8]) -> Body<'_>) -> Self {
        Self { pipe: Some(pipe), lines, body, quiet_until: None }
    }

    fn is_closed(&self) -> bool {
        self.pipe.is_none()
    }

    fn wants(&self, now: Instant) -> Option<&P> {
        self.pipe.as_ref().filter(|_| self.quiet_until.is_none_or(|until| until <= now))
    }

    fn read(&mut self, turn: &mut Turn<'_>) -> Took {
        let Some(pipe) = &self.pipe else { return Took::Nothing };
        match rustix::io::read(pipe, &mut *turn.scratch) {
            Ok(count) if count > 0 => {
                let (body, at) = (self.body, turn.at);
                let records = &mut *turn.records;
                self.lines.push(&turn.scratch[..count], |line| push_line(records, at, body, line));
                let little = count < OUTPUT_READ_BYTES / 2;
                self.quiet_until = little.then(|| later(turn.now, OUTPUT_GAP_MS.unsigned_abs()));
                Took::Some(count)
            }
            Err(Errno::AGAIN | Errno::INTR) => Took::Nothing,
            Ok(_) | Err(_) => {
                self.pipe = None;
                Took::Nothing
            }
        }
    }

    fn read_rest(&mut self, turn: &mut Turn<'_>) {
        let mut total = 0;
        while let Took::Some(count) = self.read(turn) {
            total += count;
            if total >= PIPE_BYTES_MAX {
                break;
            }
        }
    }

    /// What follows the last line end is a line too.
    fn end(&mut self, turn: &mut Turn<'_>) {
        let (body, at) = (self.body, turn.at);
        self.lines.end(|line| push_line(turn.records, at, body, line));
        self.pipe = None;
    }
}

fn push_line(records: &mut Backlog, at: Millis, body: fn(&[u8]) -> Body<'_>, line: Line<'_>) {
    match line {
        Line::Whole(line) => push(records, at, body(line)),
        Line::Capped { bytes, head } => push(records, at, Body::OutCapped { bytes, head }),
    }
}

fn push(records: &mut Backlog, at: Millis, body: Body<'_>) {
    frame::encode_record(records.buffer(), at, body).expect("lines are capped below a frame");
}

/// What the agent's lines may come to among the waiting records: the backlog, then one read of
/// each pipe, which may end a line of cap length or consist of line ends alone.
const fn lines_max(cap: usize) -> usize {
    OUTPUT_BACKLOG_BYTES + cap + 2 * OUTPUT_READ_BYTES * (1 + RECORD_HEADER_BYTES)
}

/// How the agent ended, if it has. It stays a zombie.
fn observe(pid: Pid) -> Option<Exit> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match rustix::process::waitid(WaitId::Pid(pid), options) {
        Ok(status) => {
            let status = status?;
            let code = status.exit_status().map(Exit::Code);
            code.or_else(|| status.terminating_signal().map(Exit::Signal))
        }
        Err(Errno::INTR) => None,
        // Only we reap it, so this cannot be; but if it were, waiting would never end.
        Err(_) => Some(Exit::Signal(Signal::KILL.as_raw())),
    }
}

/// Orphans that ended while the agent lives; the agent itself stays.
fn reap_orphans(agent: Pid) {
    for child in processes::own_children() {
        if child != agent {
            // Nothing to do for one that lives.
            rustix::process::waitpid(Some(child), WaitOptions::NOHANG).ok();
        }
    }
}

/// Reaps every child that has ended, the agent included. `true` if none is left at all.
fn reap_all() -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// What is left of the agent: our descendants, and whatever carries its tag.
fn strays(mark: &str) -> Vec<Process> {
    let own = rustix::process::getpid();
    let Ok(all) = processes::list() else { return Vec::new() };
    let mut strays = processes::descendants_of(&all, [own]);
    for tagged in processes::tagged(&all, |env| env.has(mark)) {
        if tagged.pid != own && !strays.contains(&tagged) {
            strays.push(tagged);
        }
    }
    strays
}

/// The reason of a failed start, in words that say what to do.
fn why(program: &OsString, cwd: &Path, error: &io::Error) -> SpawnFailed {
    let program = program.display();
    let enter = rustix::fs::Access::EXEC_OK;
    let (kind, message) = match error.kind() {
        _ if !cwd.is_dir() || rustix::fs::access(cwd, enter).is_err() => {
            let cwd = cwd.display();
            (SpawnFailure::Directory, format!("the working directory {cwd} cannot be entered"))
        }
        io::ErrorKind::NotFound => {
            let message =
                format!("{program}: not found (is it installed, and on the PATH of the gateway?)");
            (SpawnFailure::NotFound, message)
        }
        io::ErrorKind::PermissionDenied => {
            (SpawnFailure::NotExecutable, format!("{program}: not an executable file"))
        }
        _ => (SpawnFailure::Other, format!("{program}: cannot be started: {error}")),
    };
    SpawnFailed { kind, message }
}
