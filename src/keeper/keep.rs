//! The keeper process: one `poll(2)` loop that never blocks on a descriptor.
//!
//! Its stdin is the control stream, both ways; its stdout the data stream; its stderr is the
//! gateway's, for the rare line of its own. Control is served whatever becomes of the data.
//! Must not know what the agent says or how it ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::agent::{Agent, Turn};
use super::frame::{self, Command, Launch, Reply, Stopped, WriteError};
use super::ladder::later;
use super::outbox::Outbox;
use crate::limits::{
    CONTROL_FRAME_BYTES_MAX, FLUSH_WITHOUT_GATEWAY_MS, OUTPUT_READ_BYTES, REPLY_BACKLOG_BYTES,
};
use crate::run::id::Millis;

/// The exit code for somebody who starts a keeper by hand.
const USAGE: u8 = 2;

/// The keeper process, from its first act to its end.
#[must_use]
pub fn run() -> ExitCode {
    if !is_socket(stdin()) {
        log(format_args!("this command is started by `reattach serve` alone"));
        return ExitCode::from(USAGE);
    }
    match Keeper::start().and_then(Keeper::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

struct Keeper {
    signals: Signals,
    /// Commands as bytes, up to the last whole frame's end.
    input: Vec<u8>,
    /// The gateway is there. Once it is not, it never is again.
    commands_open: bool,
    replies: Outbox,
    records: Outbox,
    agent: Option<Agent>,
    /// There is no agent and there will be none.
    without_agent: bool,
    scratch: Vec<u8>,
}

/// Which descriptors have something.
#[derive(Clone, Copy, Default)]
struct Ready {
    signals: bool,
    commands: bool,
    agent_stdin: bool,
    agent_stdout: bool,
    agent_stderr: bool,
}

impl Keeper {
    fn start() -> io::Result<Self> {
        // First of all, so that a Ctrl-C in the gateway's terminal does not reach us.
        rustix::process::setsid()?;
        // Second: whoever loses its parent below us becomes our child and cannot escape (I21).
        #[cfg(target_os = "linux")]
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let signals = Signals::register()?;
        std::env::set_current_dir("/")?;
        rustix::io::ioctl_fionbio(stdin(), true)?;
        rustix::io::ioctl_fionbio(stdout(), true)?;
        Ok(Self {
            signals,
            input: Vec::new(),
            commands_open: true,
            replies: Outbox::default(),
            records: Outbox::default(),
            agent: None,
            without_agent: false,
            scratch: vec![0; OUTPUT_READ_BYTES],
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut now = Instant::now();
        let mut give_up = None;
        loop {
            let ready = match self.wait(now, give_up) {
                Ok(ready) => ready,
                Err(error) => {
                    // Blind as it is it can do no more, and its gateway sweeps what is left.
                    self.agent.iter().for_each(Agent::abandon);
                    return Err(error);
                }
            };
            now = Instant::now();
            self.turn(ready, now);
            let moved = self.replies.flush(stdin()) | self.records.flush(stdout());
            let over = self.without_agent || self.agent.as_ref().is_some_and(Agent::is_over);
            if !over {
                continue;
            }
            if self.replies.pending() + self.records.pending() == 0 {
                return Ok(());
            }
            if !self.commands_open && (moved || give_up.is_none()) {
                give_up = Some(later(now, FLUSH_WITHOUT_GATEWAY_MS.unsigned_abs()));
            }
            if give_up.is_some_and(|at| at <= now) {
                return Ok(());
            }
        }
    }

    fn turn(&mut self, ready: Ready, now: Instant) {
        let at = Millis::now();
        let children = ready.signals && self.signals.take();
        if ready.commands {
            self.read_commands(now);
        }
        if self.signals.stop.load(Ordering::Relaxed) {
            self.stop(now);
        }
        let Some(agent) = &mut self.agent else { return };
        let mut turn = Turn {
            now,
            at,
            children,
            gateway_gone: !self.commands_open,
            replies: &mut self.replies,
            records: &mut self.records,
            scratch: &mut self.scratch,
        };
        if ready.agent_stdin {
            agent.stdin.pump(at, turn.replies, turn.records);
        }
        agent.read(ready.agent_stdout, ready.agent_stderr, &mut turn);
        agent.advance(&mut turn);
    }

    /// Waits until a descriptor has something or something is due.
    fn wait(&self, now: Instant, give_up: Option<Instant>) -> io::Result<Ready> {
        let mut wanted = Vec::with_capacity(6);
        let mut add = |fd, flags, mark: fn(&mut Ready)| wanted.push((fd, flags, mark));
        add(self.signals.wake.as_fd(), PollFlags::IN, |ready| ready.signals = true);
        let mut control = PollFlags::empty();
        control.set(PollFlags::IN, self.takes_commands());
        control.set(PollFlags::OUT, self.replies.pending() > 0);
        if !control.is_empty() {
            add(stdin(), control, |ready| ready.commands = true);
        }
        if self.records.pending() > 0 {
            add(stdout(), PollFlags::OUT, |_| {});
        }
        if let Some(agent) = &self.agent {
            if let Some(pipe) = agent.stdin.wants() {
                add(pipe.as_fd(), PollFlags::OUT, |ready| ready.agent_stdin = true);
            }
            let (out, err) = agent.wants(now, &self.records);
            if let Some(pipe) = out {
                add(pipe.as_fd(), PollFlags::IN, |ready| ready.agent_stdout = true);
            }
            if let Some(pipe) = err {
                add(pipe.as_fd(), PollFlags::IN, |ready| ready.agent_stderr = true);
            }
        }
        let due = self.agent.as_ref().and_then(|agent| agent.due(now, &self.records));
        let due = due.into_iter().chain(give_up).min();
        let timeout = due.map(|due| timespec(due.saturating_duration_since(Instant::now())));
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().map(|(fd, flags, _)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = Ready::default();
        for (fd, (_, _, mark)) in fds.iter().zip(&wanted) {
            if !fd.revents().is_empty() {
                mark(&mut ready);
            }
        }
        Ok(ready)
    }

    /// I7: a gateway that sends commands and never reads a reply has to wait.
    fn takes_commands(&self) -> bool {
        self.commands_open && self.replies.pending() < REPLY_BACKLOG_BYTES
    }

    fn read_commands(&mut self, now: Instant) {
        if !self.takes_commands() {
            return;
        }
        match rustix::io::read(stdin(), &mut self.scratch) {
            Ok(count) if count > 0 => {
                self.input.extend_from_slice(&self.scratch[..count]);
                self.obey_all(now);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => self.lose_gateway(now),
        }
    }

    fn obey_all(&mut self, now: Instant) {
        let mut input = std::mem::take(&mut self.input);
        let mut taken = 0;
        while self.commands_open {
            let command = match frame::split(&input[taken..], CONTROL_FRAME_BYTES_MAX) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    taken += frame.bytes;
                    Command::decode(frame)
                }
                Err(error) => Err(error),
            };
            match command {
                Ok(command) => self.obey(command, now),
                Err(error) => {
                    log(format_args!(
                        "stopping the agent, since a command makes no sense: {error}"
                    ));
                    self.lose_gateway(now);
                }
            }
        }
        input.drain(..taken);
        if input.is_empty() {
            input.shrink_to(OUTPUT_READ_BYTES);
        }
        self.input = input;
    }

    fn obey(&mut self, command: Command, now: Instant) {
        match (command, &mut self.agent) {
            (Command::Launch(launch), None) if !self.without_agent => self.launch(launch),
            (Command::Launch(_), _) => log(format_args!("a second launch is ignored")),
            (Command::Write { n, bytes, close }, Some(agent)) => {
                agent.stdin.take(n, bytes, close, &mut self.replies, &self.records);
            }
            (Command::Write { n, .. }, None) => {
                self.reply(&Reply::WriteFailed { n, why: WriteError::Closed });
            }
            (Command::CloseStdin, Some(agent)) => agent.stdin.close_after_writes(),
            (Command::CloseStdin, None) => {}
            (Command::Stop, _) => self.stop(now),
        }
    }

    fn launch(&mut self, launch: Launch) {
        match Agent::spawn(launch) {
            Ok(agent) => {
                self.reply(&Reply::Started { pid: agent.pid() });
                self.agent = Some(agent);
            }
            Err(failed) => {
                self.reply(&Reply::SpawnFailed(failed));
                self.without_agent = true;
            }
        }
    }

    fn stop(&mut self, now: Instant) {
        if let Some(agent) = &mut self.agent {
            agent.stop(now, &mut self.replies);
        } else if !self.without_agent {
            self.without_agent = true;
            self.reply(&Reply::Stopped(Stopped::default()));
        }
    }

    /// Its end of the stream is closed, or it speaks another language: no agent without a
    /// gateway.
    fn lose_gateway(&mut self, now: Instant) {
        self.commands_open = false;
        self.input = Vec::new();
        self.stop(now);
    }

    fn reply(&mut self, reply: &Reply) {
        reply.encode(self.replies.buffer());
    }
}

/// Signals as bytes in a socket, so that `poll` sees them.
struct Signals {
    wake: UnixStream,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// A handler of our own for each, also because an *ignored* signal would stay ignored in
    /// the agent: a gateway started in the background of a script has SIGINT ignored, and its
    /// agents must not.
    fn register() -> io::Result<Self> {
        let (wake, notify) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        for signal in [SIGCHLD, SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, notify.try_clone()?)?;
        }
        Ok(Self { wake, stop })
    }

    /// Empties the socket; `true` if anything was in it.
    fn take(&self) -> bool {
        let mut any = false;
        let mut bytes = [0; 64];
        while rustix::io::read(&self.wake, &mut bytes).is_ok_and(|count| count > 0) {
            any = true;
        }
        any
    }
}

fn is_socket(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket
    })
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
}

/// A line on stderr, if it takes one without waiting.
fn log(message: fmt::Arguments<'_>) {
    let stderr = stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
        let line = format!("reattach keeper: {message}\n");
        // There is nobody to tell that nobody can be told.
        rustix::io::write(stderr, line.as_bytes()).ok();
    }
}
