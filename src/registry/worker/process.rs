//! An agent's process as the worker sees it: three threads and the channels between.
//!
//! It was started here, or its keeper was attached to, or only its journal is left. `out-` passes
//! records on in batches and blocks when the worker takes none, so that overload travels back to
//! the agent. `ctl-` passes replies on, past whatever waits in `out-`. `in-` writes commands, so
//! that a keeper that does not read cannot hold the worker. Must not know what a record means.

use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::keeper::{
    self, AttachError, Commands, Home, LaunchSpec, Parts, Process, Records, Replies, Reply,
};
use crate::limits;
use crate::provider::{Record, Write};

/// An agent's process.
#[derive(Debug)]
pub(super) struct Agent {
    /// Records with their end offsets, in batches.
    pub(super) lines: Receiver<Vec<(Record, u64)>>,
    /// What the keeper says beside them. Disconnected: the keeper is gone.
    pub(super) replies: Receiver<Reply>,
    commands: Option<Sender<Down>>,
    /// `None`: the keeper was gone before we came.
    process: Option<Process>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
enum Down {
    Write { n: u64, bytes: Vec<u8>, close: bool },
    CloseStdin,
    Stop,
    Confirm { offset: u64 },
    Sweep { n: u64 },
}

/// Why a command was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSent {
    /// Too many are on their way.
    Full,
    /// The keeper is gone.
    Gone,
}

impl Agent {
    /// Starts a keeper for the agent. `name` ends the threads' names.
    pub(super) fn start(program: &Path, spec: &LaunchSpec, name: &str) -> Result<Self, String> {
        let parts = keeper::spawn(program, spec).map_err(|error| error.to_string())?;
        Self::of(parts, name).map_err(|error| error.to_string())
    }

    /// Takes over the agent of a keeper that is alive; records follow from `offset` on. Gives the
    /// end of the journal, too.
    pub(super) fn attach(home: &Home, offset: u64, name: &str) -> Result<(Self, u64), AttachError> {
        let attached = keeper::attach(home, offset)?;
        Ok((Self::of(attached.parts, name).map_err(AttachError::Io)?, attached.end))
    }

    /// What the journal of a keeper that is gone holds from `offset` on.
    pub(super) fn left(home: &Home, offset: u64, name: &str) -> Result<Self, AttachError> {
        let records = keeper::read_journal(home, offset)?;
        let (lines_in, lines) = bounded(LINE_BATCHES_MAX);
        // Nobody will say anything: it is disconnected from the beginning.
        let (_, replies) = bounded(0);
        let mut agent = Self { lines, replies, commands: None, process: None, threads: Vec::new() };
        agent
            .thread(format!("out-{name}"), move || pass_records(records, &lines_in))
            .map_err(AttachError::Io)?;
        Ok(agent)
    }

    fn of(parts: Parts, name: &str) -> io::Result<Self> {
        let (lines_in, lines) = bounded(LINE_BATCHES_MAX);
        let (replies_in, replies) = bounded(REPLIES_MAX);
        let (commands, commands_out) = bounded(COMMANDS_MAX);
        let mut agent = Self {
            lines,
            replies,
            commands: Some(commands),
            process: Some(parts.process),
            threads: Vec::new(),
        };
        let records = parts.records;
        let replies = parts.replies;
        let down = parts.commands;
        let started = agent
            .thread(format!("out-{name}"), move || pass_records(records, &lines_in))
            .and_then(|()| {
                agent.thread(format!("ctl-{name}"), move || pass_replies(replies, &replies_in))
            })
            .and_then(|()| {
                agent.thread(format!("in-{name}"), move || write_commands(down, &commands_out))
            });
        if let Err(error) = started {
            agent.kill();
            return Err(error);
        }
        Ok(agent)
    }

    /// Whether its keeper was gone before we came.
    pub(super) const fn is_left(&self) -> bool {
        self.process.is_none()
    }

    /// Writes command `n` to the agent's stdin; the answer is a reply.
    pub(super) fn write(&self, n: u64, write: &Write) -> Result<(), NotSent> {
        self.send(Down::Write { n, bytes: write.bytes.clone(), close: write.close })
    }

    /// Closes the agent's stdin.
    pub(super) fn close_stdin(&self) -> Result<(), NotSent> {
        self.send(Down::CloseStdin)
    }

    /// Runs the stop ladder.
    pub(super) fn stop(&self) -> Result<(), NotSent> {
        self.send(Down::Stop)
    }

    /// Records up to `offset` are not needed again.
    pub(super) fn confirm(&self, offset: u64) -> Result<(), NotSent> {
        self.send(Down::Confirm { offset })
    }

    /// Kills what was started since command `n` was written, the agent itself excepted.
    pub(super) fn sweep(&self, n: u64) -> Result<(), NotSent> {
        self.send(Down::Sweep { n })
    }

    /// Kills the keeper, which no longer does its work. Its agent is to be swept then.
    pub(super) fn kill(&mut self) {
        self.commands = None;
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }

    /// Waits for the keeper and the threads. Call it once nothing of the agent is left.
    pub(super) fn join(mut self) {
        self.commands = None;
        // Nobody takes records or replies any more: `out-` and `ctl-` must not wait for room.
        self.lines = crossbeam_channel::never();
        self.replies = crossbeam_channel::never();
        if let Some(process) = &mut self.process {
            wait_or_kill(process);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that served an agent's pipes panicked");
            }
        }
    }

    fn send(&self, command: Down) -> Result<(), NotSent> {
        let commands = self.commands.as_ref().ok_or(NotSent::Gone)?;
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => NotSent::Full,
            TrySendError::Disconnected(_) => NotSent::Gone,
        })
    }

    fn thread(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }
}

/// A keeper that has nothing left to keep ends at once, unless it cannot write its journal: then
/// what it still has is not needed, since the run has its end.
fn wait_or_kill(process: &mut Process) {
    let until = Instant::now() + Duration::from_millis(limits::KEEPER_END_MS.unsigned_abs());
    loop {
        match process.try_wait() {
            Ok(Some(_)) => return,
            Ok(None) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(limits::LOOK_AGAIN_MS.unsigned_abs()));
            }
            Ok(None) => {
                tracing::warn!(pid = process.pid(), "a keeper did not end by itself");
                return process.kill();
            }
            Err(error) => {
                return tracing::warn!(%error, pid = process.pid(), "a keeper cannot be waited for");
            }
        }
    }
}

/// Batches between `out-` and the worker: together with the one in each hand about
/// `limits::LINES_BYTES_MAX`, unless single lines are longer.
const LINE_BATCHES_MAX: usize = 2;
/// Replies between `ctl-` and the worker. More wait in the socket.
const REPLIES_MAX: usize = 64;
/// Commands between the worker and `in-`. A keeper that leaves so many unread is stuck.
const COMMANDS_MAX: usize = 256;

fn pass_records(mut records: Records, lines: &Sender<Vec<(Record, u64)>>) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    loop {
        match records.next() {
            Ok(Some((record, end))) => {
                bytes += record.weight();
                batch.push((record, end));
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "a keeper's records cannot be read");
                break;
            }
        }
        let full = bytes >= limits::LINES_BYTES_MAX / 4 || batch.len() >= limits::LINES_MAX;
        if full || !records.is_ready() {
            bytes = 0;
            if lines.send(std::mem::take(&mut batch)).is_err() {
                return;
            }
        }
    }
    if !batch.is_empty() {
        // The worker is gone: then nobody needs them.
        lines.send(batch).unwrap_or_default();
    }
}

fn pass_replies(mut replies: Replies, to: &Sender<Reply>) {
    loop {
        match replies.next() {
            Ok(Some(reply)) => {
                if to.send(reply).is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a keeper's replies cannot be read");
                return;
            }
        }
    }
}

fn write_commands(mut down: Commands, commands: &Receiver<Down>) {
    for command in commands {
        let sent = match command {
            Down::Write { n, bytes, close } => down.write(n, bytes, close),
            Down::CloseStdin => down.close_stdin(),
            Down::Stop => down.stop(),
            Down::Confirm { offset } => down.confirm(offset),
            Down::Sweep { n } => down.sweep(n),
        };
        if let Err(error) = sent {
            // A keeper whose agent has ended is gone already: that is how most runs end.
            if error.kind() == io::ErrorKind::BrokenPipe {
                tracing::debug!("a keeper is gone and takes no more commands");
            } else {
                tracing::warn!(%error, "a keeper does not take commands");
            }
            return;
        }
    }
}
