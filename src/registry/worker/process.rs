//! An agent's process as the worker sees it: three threads and the channels between.
//!
//! `out-` passes records on in batches and blocks when the worker takes none, so that overload
//! travels back to the agent. `ctl-` passes replies on, past whatever waits in `out-`. `in-` writes
//! commands, so that a keeper that does not read cannot hold the worker. Must not know what a
//! record means.

use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::keeper::{self, Commands, Home, LaunchSpec, Process, Records, Replies, Reply};
use crate::limits;
use crate::provider::Record;

/// An agent's process.
#[derive(Debug)]
pub(super) struct Agent {
    /// Records with their end offsets, in batches.
    pub(super) lines: Receiver<Vec<(Record, u64)>>,
    /// What the keeper says beside them. Disconnected: the keeper is gone.
    pub(super) replies: Receiver<Reply>,
    commands: Option<Sender<Down>>,
    process: Process,
    home: Home,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
enum Down {
    Write { n: u64, bytes: Vec<u8>, close: bool },
    Confirm { offset: u64 },
    CloseStdin,
    Stop,
}

/// The keeper is gone or does not take commands.
#[derive(Debug)]
pub(super) struct Gone;

impl Agent {
    /// Starts a keeper for the agent. `name` ends the threads' names.
    pub(super) fn start(program: &Path, spec: &LaunchSpec, name: &str) -> Result<Self, String> {
        let parts = keeper::spawn(program, spec).map_err(|error| error.to_string())?;
        let (lines_in, lines) = bounded(LINE_BATCHES_MAX);
        let (replies_in, replies) = bounded(REPLIES_MAX);
        let (commands, commands_out) = bounded(COMMANDS_MAX);
        let mut agent = Self {
            lines,
            replies,
            commands: Some(commands.clone()),
            process: parts.process,
            home: spec.home.clone(),
            threads: Vec::new(),
        };
        let records = parts.records;
        let replies = parts.replies;
        let down = parts.commands;
        let started = agent
            .thread(format!("out-{name}"), move || {
                pass_records(records, &lines_in, &commands);
            })
            .and_then(|()| {
                agent.thread(format!("ctl-{name}"), move || pass_replies(replies, &replies_in))
            })
            .and_then(|()| {
                agent.thread(format!("in-{name}"), move || write_commands(down, &commands_out))
            });
        match started {
            Ok(()) => Ok(agent),
            Err(error) => {
                agent.kill();
                Err(error.to_string())
            }
        }
    }

    /// Writes command `n` to the agent's stdin; the answer is a reply.
    pub(super) fn write(&self, n: u64, bytes: Vec<u8>, close: bool) -> Result<(), Gone> {
        self.send(Down::Write { n, bytes, close })
    }

    /// Closes the agent's stdin.
    pub(super) fn close_stdin(&self) -> Result<(), Gone> {
        self.send(Down::CloseStdin)
    }

    /// Runs the stop ladder.
    pub(super) fn stop(&self) -> Result<(), Gone> {
        self.send(Down::Stop)
    }

    /// Kills the keeper, which no longer does its work. Its agent is to be swept then.
    pub(super) fn kill(&mut self) {
        self.commands = None;
        self.process.kill();
    }

    /// Waits for the keeper and the threads. Call it once nothing of the agent is left.
    pub(super) fn join(mut self) {
        self.commands = None;
        // Nobody takes records or replies any more: `out-` and `ctl-` must not wait for room.
        self.lines = crossbeam_channel::never();
        self.replies = crossbeam_channel::never();
        if let Err(error) = self.process.wait() {
            tracing::warn!(%error, pid = self.process.pid(), "a keeper cannot be waited for");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that served an agent's pipes panicked");
            }
        }
        if let Err(error) = self.home.remove() {
            tracing::warn!(%error, home = %self.home.path().display(), "a keeper's home is left");
        }
    }

    fn send(&self, command: Down) -> Result<(), Gone> {
        self.commands.as_ref().ok_or(Gone)?.try_send(command).map_err(|_| Gone)
    }

    fn thread(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }
}

/// Batches between `out-` and the worker: together with the one in each hand about
/// `limits::LINES_BYTES_MAX`, unless single lines are longer.
const LINE_BATCHES_MAX: usize = 2;
/// Replies between `ctl-` and the worker. More wait in the socket.
const REPLIES_MAX: usize = 64;
/// Commands between the worker and `in-`. A keeper that leaves so many unread is stuck.
const COMMANDS_MAX: usize = 256;

fn pass_records(mut records: Records, lines: &Sender<Vec<(Record, u64)>>, commands: &Sender<Down>) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut confirmed = 0;
    loop {
        match records.next() {
            Ok(Some((record, end))) => {
                // Nobody comes back for what was read: the keeper may forget it.
                if end - confirmed >= limits::JOURNAL_SEGMENT_BYTES
                    && commands.try_send(Down::Confirm { offset: end }).is_ok()
                {
                    confirmed = end;
                }
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
            Down::Confirm { offset } => down.confirm(offset),
            Down::CloseStdin => down.close_stdin(),
            Down::Stop => down.stop(),
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
