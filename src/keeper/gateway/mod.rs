//! The gateway's side of a keeper: starting one or attaching to one that lives, speaking to it,
//! reading what it says and what one that is gone has left.
//!
//! All I/O here blocks; each half is a value of its own for a thread of its own: `Commands` for
//! `in-`, `Replies` for `ctl-`, `Records` for `out-`. The keeper always reads its commands, so
//! a command never waits for an agent. Must not know what a line means.

mod attach;
mod frames;
mod process;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};

use super::environment::{self, DataTag};
use super::frame::{self, Command, FrameError, Launch, Reply, Timings};
use super::home::{Home, RUNTIME_DIR};
use super::journal::Stream;
use crate::limits;
use crate::provider::{self, Record, RecordBody};
use crate::run::id::AgentId;

pub use attach::{AttachError, Attached, attach, read_journal};
use frames::{Frames, invalid};
pub use process::Process;

/// What a keeper is to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchSpec {
    /// Whose process it is; its tag.
    pub agent: AgentId,
    /// The data dir's tag.
    pub data: DataTag,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The agent's whole environment (`keeper::environment`).
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs; absolute.
    pub cwd: PathBuf,
    /// Longer stdout lines become `OutCapped`; at most `limits::LINE_BYTES_CEILING` counts, and
    /// at most a quarter of the journal.
    pub line_bytes_max: usize,
    /// The stop ladder's deadlines.
    pub timings: Timings,
    /// Where the keeper lives: the home of `agent`.
    pub home: Home,
    /// For people: the session that it is started for.
    pub session: String,
    /// For people: its provider.
    pub provider: String,
    /// The journal's bound; at least `limits::JOURNAL_BYTES_FLOOR` counts.
    pub journal_bytes_max: u64,
    /// How long the agent may be without a gateway before it is stopped.
    pub orphan_grace_ms: u64,
}

impl LaunchSpec {
    /// From what an adapter wants, with the allow-listed environment and the usual bounds and
    /// deadlines. Session and provider are left empty.
    #[must_use]
    pub fn new(
        launch: &provider::Launch,
        home: Home,
        data: &DataTag,
        line_bytes_max: usize,
    ) -> Self {
        let agent = home.agent();
        Self {
            agent,
            data: data.clone(),
            argv: launch.argv.iter().map(OsString::from).collect(),
            env: environment::environment(&launch.env, agent, data),
            cwd: launch.cwd.clone(),
            line_bytes_max,
            timings: Timings::default(),
            home,
            session: String::new(),
            provider: String::new(),
            journal_bytes_max: limits::JOURNAL_BYTES_DEFAULT,
            orphan_grace_ms: limits::Limits::default().orphan_grace_ms.unsigned_abs(),
        }
    }

    fn launch(&self) -> Launch {
        let journal_bytes_max = self.journal_bytes_max.max(limits::JOURNAL_BYTES_FLOOR);
        // A line that did not fit would wait for room for ever.
        let part = usize::try_from(journal_bytes_max / limits::JOURNAL_LINE_PART);
        let line_bytes_max = part.unwrap_or(usize::MAX).min(limits::LINE_BYTES_CEILING);
        Launch {
            agent: self.agent,
            argv: self.argv.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone().into_os_string(),
            line_bytes_max: self.line_bytes_max.clamp(1, line_bytes_max),
            timings: self.timings,
            session: self.session.clone(),
            provider: self.provider.clone(),
            journal_bytes_max,
            orphan_grace_ms: self.orphan_grace_ms,
        }
    }
}

/// Why no keeper could be started. (An agent that cannot be started is a `Reply`.)
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The home, the descriptors or the process itself: out of one or the other.
    #[error("the keeper process cannot be started: {0}")]
    Process(#[from] io::Error),
    /// Arguments and environment are longer than any system takes.
    #[error("the agent's arguments and environment are too long: {0}")]
    Launch(#[from] FrameError),
}

/// A keeper, taken apart for the threads that use it.
#[derive(Debug)]
pub struct Parts {
    /// The process.
    pub process: Process,
    /// Commands down.
    pub commands: Commands,
    /// Replies up.
    pub replies: Replies,
    /// What the agent says.
    pub records: Records,
}

/// Makes the home, starts a keeper in it with `program` (`keeper::program()`) and tells it to
/// launch the agent. What came of that is the first reply.
///
/// # Errors
/// See `SpawnError`; nothing runs then, and there is no home.
pub fn spawn(program: &Path, spec: &LaunchSpec) -> Result<Parts, SpawnError> {
    let mut launch = Vec::new();
    Command::Launch(spec.launch()).encode(&mut launch)?;
    let started = spec.home.create().and_then(|()| start(program, spec, &launch));
    started.map_err(|error| {
        if let Err(left) = spec.home.remove() {
            tracing::warn!(%left, "the home of a keeper that did not start is still there");
        }
        SpawnError::Process(error)
    })
}

fn start(program: &Path, spec: &LaunchSpec, launch: &[u8]) -> io::Result<Parts> {
    let log = spec.home.open_log()?;
    let (ours, theirs) = UnixStream::pair()?;
    let replies = ours.try_clone()?;
    let passed_on = [RUNTIME_DIR, frame::TEST_PROTOCOL];
    // No process group of its own and no `pre_exec`: a group's leader cannot `setsid`, and a
    // closure between fork and exec is unsafe and copies the page tables of the whole gateway.
    let mut child = std::process::Command::new(program)
        .arg("keeper")
        .env_clear()
        .envs(passed_on.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .envs(environment::tags(spec.agent, &spec.data))
        .current_dir(spec.home.path())
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let records = child.stdout.take().expect("stdout is piped");
    let mut process = Process::child(child);
    widen(&records);
    let mut commands = Commands { stream: ours, frame: Vec::new() };
    if let Err(error) = commands.stream.write_all(launch) {
        process.kill();
        return Err(error);
    }
    let records = Stream::live(spec.home.path(), records.into(), 0);
    Ok(Parts {
        process,
        commands,
        replies: Replies { frames: Frames::new(replies, limits::REPLY_BYTES_MAX) },
        records: Records::new(records, 0),
    })
}

/// The program to start a keeper with: this one. If its file was replaced since (an upgrade),
/// the file by that name is another version; the running one is still there under `/proc`.
///
/// # Errors
/// The system does not say which program this is.
pub fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;

        let running = PathBuf::from("/proc/self/exe");
        let identity = |path: &Path| path.metadata().map(|data| (data.dev(), data.ino())).ok();
        if identity(&path) != identity(&running) {
            return Ok(running);
        }
    }
    Ok(path)
}

/// Commands down. An error says only that the keeper has ended, or follows another gateway; how
/// is the replies' to say, since a command may cross the agent's natural end. To drop this is to
/// tell the keeper that its gateway is gone: its agent is an orphan then, and goes on.
#[derive(Debug)]
pub struct Commands {
    stream: UnixStream,
    frame: Vec<u8>,
}

impl Commands {
    /// Write number `n` for the agent's stdin; see `Command::Write`.
    ///
    /// # Errors
    /// `InvalidInput`: longer than a frame may be, nothing was sent. Else the keeper has ended.
    pub fn write(&mut self, n: u64, bytes: Vec<u8>, close: bool) -> io::Result<()> {
        self.send(&Command::Write { n, bytes, close })
    }

    /// Closes the agent's stdin after all writes so far.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn close_stdin(&mut self) -> io::Result<()> {
        self.send(&Command::CloseStdin)
    }

    /// Runs the stop ladder.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn stop(&mut self) -> io::Result<()> {
        self.send(&Command::Stop)
    }

    /// Says that nothing before this offset will be asked for again: a checkpoint there is
    /// durable. The keeper drops what it can of its journal.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn confirm(&mut self, offset: u64) -> io::Result<()> {
        self.send(&Command::Confirm { offset })
    }

    /// Kills what descends from the agent and was born since write `n` was written; the agent
    /// itself and what is older live on. Answered by `Reply::Swept`.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn sweep(&mut self, n: u64) -> io::Result<()> {
        self.send(&Command::Sweep { n })
    }

    fn send(&mut self, command: &Command) -> io::Result<()> {
        self.frame.clear();
        command
            .encode(&mut self.frame)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let sent = self.stream.write_all(&self.frame);
        self.frame.shrink_to(64 << 10);
        sent
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        // `Replies` shares the socket, so that closing our descriptor alone would say nothing.
        // It fails only if the keeper is gone.
        self.stream.shutdown(Shutdown::Write).ok();
    }
}

/// Replies up.
#[derive(Debug)]
pub struct Replies {
    frames: Frames<UnixStream>,
}

impl Replies {
    /// The next reply; `None` when the keeper has ended, or follows another gateway: a write
    /// without an answer by then is not known to be delivered. If it comes without `Stopped` or
    /// `SpawnFailed` before it and the keeper is gone, it was lost, and with it the account of its
    /// agent (`keeper::sweep_agent`).
    ///
    /// # Errors
    /// `UnexpectedEof`: it died within a reply. `InvalidData` (a `FrameError`): it is not a
    /// keeper of this version.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot say `Err` before `None`")]
    pub fn next(&mut self) -> io::Result<Option<Reply>> {
        let Some(frame) = self.frames.next()? else { return Ok(None) };
        Reply::decode(frame).map(Some).map_err(invalid)
    }
}

/// What the agent says, and what was written to it, in order.
#[derive(Debug)]
pub struct Records {
    frames: Frames<Stream>,
    end: u64,
    /// The agent's last record was given.
    over: bool,
}

impl Records {
    pub(super) const fn new(stream: Stream, offset: u64) -> Self {
        Self { frames: Frames::new(stream, frame::RECORD_BYTES_MAX), end: offset, over: false }
    }

    /// The next record and the offset in the agent's stream at which it ends. If the keeper is
    /// lost, or follows another gateway, its journal's files go on. `None` at the end of the
    /// stream, which comes after `Exit` unless the keeper was lost before it wrote that.
    ///
    /// # Errors
    /// `InvalidData` (a `FrameError`): a record that is not of this version. Others: the journal
    /// cannot be read.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot say `Err` before `None`")]
    pub fn next(&mut self) -> io::Result<Option<(Record, u64)>> {
        if self.over {
            return Ok(None);
        }
        let frame = match self.frames.next() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            // A record that was not wholly written: the keeper was lost.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        self.end += frame.bytes as u64;
        let record = frame::decode_record(frame).map_err(invalid)?;
        self.over = matches!(record.body, RecordBody::Exit(_));
        Ok(Some((record, self.end)))
    }

    /// Whether `next` would answer without waiting: what was read together can be passed on
    /// together.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.frames.is_ready()
    }
}

/// A wider pipe saves wake-ups. If the system refuses, the usual one does.
fn widen(pipe: &ChildStdout) {
    #[cfg(target_os = "linux")]
    rustix::pipe::fcntl_setpipe_size(pipe, limits::OUTPUT_PIPE_BYTES).ok();
    #[cfg(not(target_os = "linux"))]
    let _: (&ChildStdout, usize) = (pipe, limits::OUTPUT_PIPE_BYTES);
}
