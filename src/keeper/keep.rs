//! The keeper process: one `poll(2)` loop that never blocks on a descriptor.
//!
//! Its working directory is its home. Its stdin is the first control connection, both ways, its
//! stdout the first data connection, its stderr its own log; gateways that come later attach over
//! the socket. Who counts and when it may end is `handover`'s to say. Control is served whatever
//! becomes of the data. Must not know what the agent says or how it ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};

use super::agent::{Agent, Turn};
use super::follower::Follower;
use super::frame::{
    self, Command, Launch, PROTOCOL, Reply, Role, SpawnFailed, SpawnFailure, Stopped,
    TEST_PROTOCOL, Welcome, WriteError,
};
use super::handover::{Bounds, Handover};
use super::home::{Inside, KeeperInfo};
use super::journal::{Journal, Written};
use super::ladder::later;
use super::log::log;
use super::newcomers::{Guest, Newcomers};
use super::outbox::Outbox;
use super::signals::Signals;
use crate::limits::{
    ACCEPT_RETRY_MS, CONTROL_FRAME_BYTES_MAX, JOURNAL_BYTES_DEFAULT, OUTPUT_READ_BYTES,
    REPLY_BACKLOG_BYTES,
};
use crate::provider::Decision;
use crate::run::id::Millis;

/// The exit code for somebody who starts a keeper by hand.
const USAGE: u8 = 2;

/// What a keeper of this build calls itself.
const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    home: Inside,
    protocol: u32,
    handover: Handover<Reply>,
    newcomers: Newcomers,
    /// No connection is let in before, since the last one could not be.
    accept_at: Option<Instant>,
    control: Option<Control>,
    /// Commands as bytes, up to the last whole frame's end.
    input: Vec<u8>,
    replies: Outbox,
    follower: Option<Follower>,
    /// The follower takes more, and there is more.
    follows_on: bool,
    journal: Journal,
    agent: Option<Agent>,
    /// There is no agent and there will be none.
    without_agent: bool,
    /// Told to end by a signal after the agent had: what the disk does not take is lost.
    gives_up: bool,
    scratch: Vec<u8>,
}

/// A control connection.
struct Control {
    connection: OwnedFd,
    epoch: u64,
}

/// Which descriptors have something.
#[derive(Clone, Copy, Default)]
struct Ready {
    signals: bool,
    control: bool,
    listener: bool,
    newcomers: bool,
    follower_lost: bool,
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
        let home = Inside::enter()?;
        let (control, records) = take_stdio()?;
        let protocol = std::env::var(TEST_PROTOCOL).ok().and_then(|n| n.parse().ok());
        Ok(Self {
            signals,
            home,
            protocol: protocol.unwrap_or(PROTOCOL),
            handover: Handover::spawned(),
            newcomers: Newcomers::default(),
            accept_at: None,
            control: Some(Control { connection: control, epoch: 1 }),
            input: Vec::new(),
            replies: Outbox::default(),
            follower: Some(Follower::new(records, 0)),
            follows_on: false,
            journal: Journal::new(PathBuf::new(), JOURNAL_BYTES_DEFAULT),
            agent: None,
            without_agent: false,
            gives_up: false,
            scratch: vec![0; OUTPUT_READ_BYTES],
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut now = Instant::now();
        loop {
            let ready = match self.wait(now) {
                Ok(ready) => ready,
                Err(error) => {
                    // Blind as it is it can do no more, and its gateway sweeps what is left.
                    self.agent.iter().for_each(Agent::abandon);
                    return Err(error);
                }
            };
            now = Instant::now();
            self.hear(ready, now);
            self.serve_agent(ready, now);
            self.write_journal(now);
            self.send(now);
            if self.may_end() {
                return Ok(());
            }
        }
    }

    /// What gateways and signals want.
    fn hear(&mut self, ready: Ready, now: Instant) {
        if ready.control {
            self.read_commands(now);
        }
        if ready.follower_lost {
            self.unfollow();
        }
        if ready.listener {
            self.accept_at = self.newcomers.accept(&self.home.listener, now).err().map(|error| {
                log(format_args!("a connection cannot be let in: {error}"));
                later(now, ACCEPT_RETRY_MS.unsigned_abs())
            });
        }
        let expired = self.newcomers.due().is_some_and(|due| due <= now);
        if ready.listener || ready.newcomers || expired {
            for guest in self.newcomers.hear(now) {
                self.receive(guest, now);
            }
        }
        if self.signals.take_stop() {
            self.gives_up = self.is_over();
            self.stop(Decision::Signalled, now);
        }
        if self.handover.orphan_is_due(now) {
            self.stop(Decision::OrphanGraceOver, now);
        }
    }

    fn serve_agent(&mut self, ready: Ready, now: Instant) {
        let children = ready.signals && self.signals.take();
        self.with_agent(now, |agent, turn| {
            turn.children = children;
            if ready.agent_stdin {
                agent.stdin.pump(turn.at, turn.replies, turn.records);
            }
            agent.read(ready.agent_stdout, ready.agent_stderr, turn);
            agent.advance(turn);
        });
    }

    /// Lends the agent what it needs, if there is one.
    fn with_agent(&mut self, now: Instant, act: impl FnOnce(&mut Agent, &mut Turn<'_>)) {
        let Some(agent) = &mut self.agent else { return };
        let mut last_words = Vec::new();
        let mut turn = Turn {
            now,
            at: Millis::now(),
            children: false,
            replies: &mut self.replies,
            last_words: &mut last_words,
            records: &mut self.journal.backlog,
            scratch: &mut self.scratch,
        };
        act(agent, &mut turn);
        for word in last_words {
            self.say(word);
        }
    }

    fn write_journal(&mut self, now: Instant) {
        match self.journal.flush(now) {
            Written::Nothing | Written::Some => {}
            Written::Failed(error) => {
                log(format_args!("the journal cannot be written, the agent waits: {error}"));
            }
            Written::Recovered => log(format_args!("the journal can be written again")),
        }
        let over = self.agent.as_ref().is_some_and(Agent::is_over);
        if over && self.journal.backlog.pending() == 0 {
            self.handover.over();
        }
    }

    /// What waits for the gateway. What it has and has confirmed is dropped.
    fn send(&mut self, now: Instant) {
        self.follows_on = false;
        if let Some(follower) = &mut self.follower {
            match follower.pump(&self.journal, &mut self.scratch) {
                Ok(more) => {
                    self.follows_on = more;
                    self.handover.sent(follower.has(&self.journal));
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        log(format_args!("the journal cannot be sent: {error}"));
                    }
                    self.unfollow();
                }
            }
        }
        if let Err(error) = self.journal.drop_before(self.handover.droppable()) {
            log(format_args!("a part of the journal cannot be removed: {error}"));
        }
        match &self.control {
            Some(control) => {
                self.replies.flush(&control.connection);
                if self.replies.is_broken() {
                    self.lose_control(now);
                }
            }
            None => self.replies.discard(),
        }
    }

    fn is_over(&self) -> bool {
        self.without_agent || self.agent.as_ref().is_some_and(Agent::is_over)
    }

    fn may_end(&self) -> bool {
        if self.handover.may_end(self.replies.pending() > 0, self.journal.end()) {
            return true;
        }
        let lost = self.journal.is_lost() || self.gives_up && self.journal.is_failing();
        if lost && self.is_over() {
            log(format_args!("the end of the journal is lost, since it cannot be written"));
            return true;
        }
        false
    }

    /// Waits until a descriptor has something or something is due.
    fn wait(&self, now: Instant) -> io::Result<Ready> {
        let mut wanted = Vec::with_capacity(12);
        let mut add = |fd, flags, mark: fn(&mut Ready)| wanted.push((fd, flags, mark));
        add(self.signals.wake(), PollFlags::IN, |ready| ready.signals = true);
        if let Some(control) = &self.control {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, self.takes_commands());
            flags.set(PollFlags::OUT, self.replies.pending() > 0);
            if !flags.is_empty() {
                add(control.connection.as_fd(), flags, |ready| ready.control = true);
            }
        }
        if self.takes_newcomers(now) {
            add(self.home.listener.as_fd(), PollFlags::IN, |ready| ready.listener = true);
        }
        for stream in self.newcomers.streams() {
            add(stream, PollFlags::IN, |ready| ready.newcomers = true);
        }
        if let Some(agent) = &self.agent {
            if let Some(pipe) = agent.stdin.wants() {
                add(pipe.as_fd(), PollFlags::OUT, |ready| ready.agent_stdin = true);
            }
            let (out, err) = agent.wants(now, &self.journal.backlog);
            if let Some(pipe) = out {
                add(pipe.as_fd(), PollFlags::IN, |ready| ready.agent_stdout = true);
            }
            if let Some(pipe) = err {
                add(pipe.as_fd(), PollFlags::IN, |ready| ready.agent_stderr = true);
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().map(|(fd, flags, _)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        if let Some(follower) = &self.follower {
            let (fd, for_room) = follower.wants();
            let flags = if for_room { PollFlags::OUT } else { PollFlags::empty() };
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout =
            self.due(now).map(|due| timespec(due.saturating_duration_since(Instant::now())));
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
        // Nobody reads it any more, whether or not there is something to send.
        let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        ready.follower_lost = fds[wanted.len()..].iter().any(|fd| fd.revents().intersects(gone));
        Ok(ready)
    }

    /// When the next thing is due that no descriptor announces.
    fn due(&self, now: Instant) -> Option<Instant> {
        let agent = self.agent.as_ref().and_then(|agent| agent.due(now, &self.journal.backlog));
        let accept = self.accept_at.filter(|at| *at > now);
        let at_once = self.follows_on.then_some(now);
        let all = [agent, accept, at_once, self.journal.due(), self.handover.due()];
        all.into_iter().flatten().chain(self.newcomers.due()).min()
    }

    /// Before the launch there is nothing to attach to.
    fn takes_newcomers(&self, now: Instant) -> bool {
        (self.agent.is_some() || self.without_agent)
            && self.newcomers.has_room()
            && self.accept_at.is_none_or(|at| at <= now)
    }

    /// I7: a gateway that sends commands and never reads a reply has to wait.
    fn takes_commands(&self) -> bool {
        self.control.is_some() && self.replies.pending() < REPLY_BACKLOG_BYTES
    }

    /// Somebody has come over the socket.
    fn receive(&mut self, guest: Guest, now: Instant) {
        let Guest { stream, protocol, role, rest } = guest;
        match role {
            _ if protocol != self.protocol => {
                let mut frame = Outbox::default();
                let refused = Reply::Refused { protocol: self.protocol, version: VERSION.into() };
                refused.encode(frame.buffer());
                // A new connection has room for a frame, unless it is lost already.
                frame.flush(&stream);
            }
            Role::Control => {
                let attached = self.handover.attach();
                log(format_args!("gateway {} attaches", attached.epoch));
                self.unfollow_silently();
                self.replies.discard();
                self.reply(&Reply::Welcome(self.welcome(attached.epoch)));
                for word in &attached.repeat {
                    self.reply(word);
                }
                let connection = stream.into();
                self.control = Some(Control { connection, epoch: attached.epoch });
                self.input = rest;
                self.obey_all(now);
            }
            Role::Records { epoch, offset } => {
                // If it is not taken it is closed, without a byte.
                if self.handover.follow(epoch, offset, self.bounds()).is_ok() {
                    self.follower = Some(Follower::new(stream.into(), offset));
                }
            }
        }
    }

    fn welcome(&self, epoch: u64) -> Welcome {
        let Bounds { start, end } = self.bounds();
        let pid = self.agent.as_ref().filter(|agent| agent.is_alive()).map_or(0, Agent::pid);
        Welcome { protocol: self.protocol, epoch, pid, start, end, version: VERSION.into() }
    }

    fn bounds(&self) -> Bounds {
        Bounds { start: self.journal.start(), end: self.journal.end() }
    }

    fn unfollow(&mut self) {
        self.follower = None;
        self.handover.unfollow();
    }

    /// The data connection of a gateway that no longer counts; the new one's is expected.
    fn unfollow_silently(&mut self) {
        self.follower = None;
    }

    fn read_commands(&mut self, now: Instant) {
        let Some(control) = self.control.as_ref().filter(|_| self.takes_commands()) else { return };
        match rustix::io::read(&control.connection, &mut self.scratch) {
            Ok(count) if count > 0 => {
                self.input.extend_from_slice(&self.scratch[..count]);
                self.obey_all(now);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => self.lose_control(now),
        }
    }

    fn obey_all(&mut self, now: Instant) {
        let mut input = std::mem::take(&mut self.input);
        let mut taken = 0;
        while self.control.is_some() {
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
                    log(format_args!("a command makes no sense, its gateway is left: {error}"));
                    self.lose_control(now);
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
        match command {
            Command::Launch(launch) if self.agent.is_none() && !self.without_agent => {
                self.launch(&launch);
            }
            Command::Launch(_) => log(format_args!("a second launch is ignored")),
            Command::Write { n, bytes, close } => match &mut self.agent {
                Some(agent) => {
                    let records = &self.journal.backlog;
                    agent.stdin.take(n, bytes, close, &mut self.replies, records);
                }
                None => self.reply(&Reply::WriteFailed { n, why: WriteError::Closed }),
            },
            Command::CloseStdin => {
                if let Some(agent) = &mut self.agent {
                    agent.stdin.close_after_writes();
                }
            }
            Command::Stop => self.stop(Decision::StopAsked, now),
            Command::Confirm { offset } => {
                let epoch = self.control.as_ref().map_or(0, |control| control.epoch);
                if !self.handover.confirm(epoch, offset, self.bounds()) {
                    log(format_args!("a confirm of offset {offset} does not count"));
                }
            }
            Command::Sweep { n } if self.agent.is_none() => {
                log(format_args!("a sweep since write {n}, and there is no agent"));
                self.reply(&Reply::Swept { killed: 0, left: 0 });
            }
            Command::Sweep { n } => self.with_agent(now, |agent, turn| agent.hunt(n, turn)),
            Command::Attach { .. } => log(format_args!("a second introduction is ignored")),
        }
    }

    fn launch(&mut self, launch: &Launch) {
        self.journal = Journal::new(PathBuf::new(), launch.journal_bytes_max);
        self.handover.launched(Duration::from_millis(launch.orphan_grace_ms));
        match self.start_agent(launch) {
            Ok(agent) => {
                self.reply(&Reply::Started { pid: agent.pid() });
                self.agent = Some(agent);
            }
            Err(failed) => {
                self.say(Reply::SpawnFailed(failed));
                self.go_without_agent();
            }
        }
    }

    /// First `keeper.json`: where there is none, no agent was started.
    fn start_agent(&self, launch: &Launch) -> Result<Agent, SpawnFailed> {
        let mut info = KeeperInfo {
            agent: launch.agent,
            pid: std::process::id(),
            agent_pid: 0,
            protocol: self.protocol,
            version: VERSION.into(),
            session: launch.session.clone(),
            provider: launch.provider.clone(),
            started_at: Millis::now(),
            socket: self.home.socket().to_owned(),
        };
        self.home.announce(&info).map_err(|error| {
            let message = format!("the agent's keeper cannot write to the data directory: {error}");
            SpawnFailed { kind: SpawnFailure::Other, message }
        })?;
        let agent = Agent::spawn(launch)?;
        info.agent_pid = agent.pid();
        if let Err(error) = self.home.announce(&info) {
            log(format_args!("keeper.json lacks the agent's process id: {error}"));
        }
        Ok(agent)
    }

    fn stop(&mut self, why: Decision, now: Instant) {
        if self.agent.is_some() {
            self.with_agent(now, |agent, turn| agent.stop(why, turn));
        } else if !self.without_agent {
            self.say(Reply::Stopped(Stopped::default()));
            self.go_without_agent();
        }
    }

    fn go_without_agent(&mut self) {
        self.without_agent = true;
        self.handover.over();
    }

    /// Its end of the stream is closed, or it speaks another language: the agent is an orphan.
    fn lose_control(&mut self, now: Instant) {
        self.input = Vec::new();
        self.replies.discard();
        if let Some(control) = self.control.take() {
            self.handover.lose(control.epoch, now);
        }
        if self.handover.orphan_is_due(now) {
            self.stop(Decision::OrphanGraceOver, now);
        }
    }

    /// What every gateway has to hear, those that come later as well.
    fn say(&mut self, word: Reply) {
        if self.handover.say(word.clone()) {
            self.reply(&word);
        }
    }

    fn reply(&mut self, reply: &Reply) {
        reply.encode(self.replies.buffer());
    }
}

/// The connections that the gateway gave us, as descriptors that can be closed. In their places
/// is nothing, so that nobody else's descriptor gets their numbers.
fn take_stdio() -> io::Result<(OwnedFd, OwnedFd)> {
    const ABOVE_STDERR: i32 = 3;

    let control = rustix::io::fcntl_dupfd_cloexec(stdin(), ABOVE_STDERR)?;
    let records = rustix::io::fcntl_dupfd_cloexec(stdout(), ABOVE_STDERR)?;
    rustix::io::ioctl_fionbio(&control, true)?;
    rustix::io::ioctl_fionbio(&records, true)?;
    let nothing = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok((control, records))
}

fn is_socket(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket
    })
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
}
