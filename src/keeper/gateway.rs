//! The gateway's side of a keeper: starting one, speaking to it, reading what it says.
//!
//! All I/O here blocks; each half is a value of its own for a thread of its own: `Commands` for
//! `in-`, `Replies` for `ctl-`, `Records` for `out-`. The keeper always reads its commands, so
//! a command never waits for an agent. Must not know what a line means.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};

use super::environment::{self, DataTag};
use super::frame::{self, Command, FrameError, Launch, Reply, Timings};
use crate::limits;
use crate::provider::{self, Record};
use crate::run::id::AgentId;

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
    /// Longer stdout lines become `OutCapped`; at most `limits::LINE_BYTES_CEILING` counts.
    pub line_bytes_max: usize,
    /// The stop ladder's deadlines.
    pub timings: Timings,
}

impl LaunchSpec {
    /// From what an adapter wants, with the allow-listed environment and the usual deadlines.
    #[must_use]
    pub fn new(
        launch: &provider::Launch,
        agent: AgentId,
        data: &DataTag,
        line_bytes_max: usize,
    ) -> Self {
        Self {
            agent,
            data: data.clone(),
            argv: launch.argv.iter().map(OsString::from).collect(),
            env: environment::environment(&launch.env, agent, data),
            cwd: launch.cwd.clone(),
            line_bytes_max,
            timings: Timings::default(),
        }
    }
}

/// Why no keeper could be started. (An agent that cannot be started is a `Reply`.)
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The descriptors or the process itself: out of one or the other.
    #[error("the keeper process cannot be started: {0}")]
    Process(#[from] io::Error),
    /// Arguments and environment are longer than any system takes.
    #[error("the agent's arguments and environment are too long: {0}")]
    Launch(#[from] FrameError),
}

/// A keeper that was started, taken apart for the threads that use it.
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

/// Starts a keeper with `program` (`keeper::program()`) and tells it to launch the agent. What
/// came of that is the first reply.
///
/// # Errors
/// See `SpawnError`; nothing runs then.
pub fn spawn(program: &Path, spec: &LaunchSpec) -> Result<Parts, SpawnError> {
    let mut launch = Vec::new();
    Command::Launch(Launch {
        agent: spec.agent,
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone().into_os_string(),
        line_bytes_max: spec.line_bytes_max.clamp(1, limits::LINE_BYTES_CEILING),
        timings: spec.timings,
    })
    .encode(&mut launch)?;

    let (ours, theirs) = UnixStream::pair()?;
    // No process group of its own and no `pre_exec`: a group's leader cannot `setsid`, and a
    // closure between fork and exec is unsafe and copies the page tables of the whole gateway.
    let mut child = std::process::Command::new(program)
        .arg("keeper")
        .env_clear()
        .envs(environment::tags(spec.agent, &spec.data))
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .spawn()?;
    let records = child.stdout.take().expect("stdout is piped");
    let mut process = Process { child };
    widen(&records);
    let replies = ours.try_clone();
    let mut commands = Commands { stream: ours, frame: Vec::new() };
    let sent = commands.stream.write_all(&launch);
    match (replies, sent) {
        (Ok(replies), Ok(())) => Ok(Parts {
            process,
            commands,
            replies: Replies { frames: Frames::new(replies, limits::REPLY_BYTES_MAX) },
            records: Records { frames: Frames::new(records, frame::RECORD_BYTES_MAX), end: 0 },
        }),
        (Err(error), _) | (_, Err(error)) => {
            process.kill();
            Err(SpawnError::Process(error))
        }
    }
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

/// The keeper's process. It ends by itself once its commands end; whoever owns this waits for
/// it, so that no zombie stays.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// The keeper's process id (not the agent's).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end. Zero: the agent had its end, too.
    ///
    /// # Errors
    /// As `waitpid`.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Its status if it has ended.
    ///
    /// # Errors
    /// As `waitpid`.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills the keeper itself, which leaves its agent behind: `keeper::sweep_agent` is to
    /// follow. For a keeper that no longer does its work.
    pub fn kill(&mut self) {
        // It fails only for a process that has ended, and is waited for in either case.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Commands down. An error says only that the keeper has ended; how is the replies' to say, since
/// a command may cross the agent's natural end. To drop this is to tell the keeper that its gateway is gone: it stops its
/// agent and ends.
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
    /// The next reply; `None` when the keeper has ended: a write without an answer by then was
    /// not delivered. If it comes without `Stopped` or `SpawnFailed` before it the keeper was
    /// lost, and with it the account of its agent (`keeper::sweep_agent`).
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
    frames: Frames<ChildStdout>,
    end: u64,
}

impl Records {
    /// The next record and the offset in the data stream at which it ends; `None` at the end
    /// of the stream, which comes after `Exit` unless the keeper was lost or stopped without us.
    ///
    /// # Errors
    /// As `Replies::next`.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot say `Err` before `None`")]
    pub fn next(&mut self) -> io::Result<Option<(Record, u64)>> {
        let Some(frame) = self.frames.next()? else { return Ok(None) };
        self.end += frame.bytes as u64;
        let record = frame::decode_record(frame).map_err(invalid)?;
        Ok(Some((record, self.end)))
    }

    /// Whether `next` would answer without waiting: what was read together can be passed on
    /// together.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.frames.is_ready()
    }
}

/// Frames out of a byte stream, through one buffer that grows with the longest frame.
#[derive(Debug)]
struct Frames<R> {
    from: R,
    max: usize,
    buffer: Vec<u8>,
    /// `buffer[start..end]` is read and not yet given.
    start: usize,
    end: usize,
}

impl<R: Read> Frames<R> {
    fn new(from: R, max: usize) -> Self {
        Self { from, max, buffer: Vec::new(), start: 0, end: 0 }
    }

    fn is_ready(&self) -> bool {
        !matches!(frame::split(&self.buffer[self.start..self.end], self.max), Ok(None))
    }

    fn next(&mut self) -> io::Result<Option<frame::Frame<'_>>> {
        while !self.is_ready() {
            self.make_room();
            let count = match self.from.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // It ended with a command unread, which is an end like any other.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                other => other?,
            };
            if count == 0 {
                let torn = self.start < self.end;
                return if torn { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
            }
            self.end += count;
        }
        let ready = &self.buffer[self.start..self.end];
        let frame = frame::split(ready, self.max).map_err(invalid)?;
        self.start += frame.map_or(0, |frame| frame.bytes);
        Ok(frame)
    }

    /// Room behind `end`: by moving what is left to the front, else by growing. The buffer
    /// grows with what arrived, not with what a length field promises.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let want = limits::OUTPUT_READ_BYTES;
        if self.end == 0 && self.buffer.len() > 4 * want {
            self.buffer.truncate(want);
            self.buffer.shrink_to_fit();
        }
        if self.buffer.len() - self.end < want / 2 {
            self.buffer.resize((self.end * 2).max(want), 0);
        }
    }
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A wider pipe saves wake-ups. If the system refuses, the usual one does.
fn widen(pipe: &ChildStdout) {
    #[cfg(target_os = "linux")]
    rustix::pipe::fcntl_setpipe_size(pipe, limits::OUTPUT_PIPE_BYTES).ok();
    #[cfg(not(target_os = "linux"))]
    let _: (&ChildStdout, usize) = (pipe, limits::OUTPUT_PIPE_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::frame::{Body, RECORD_BYTES_MAX};
    use crate::run::id::Millis;

    /// A reader that gives its chunks one by one.
    struct Chunks(Vec<Vec<u8>>);

    impl Read for Chunks {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let chunk = &mut self.0[0];
            let count = chunk.len().min(into.len());
            into[..count].copy_from_slice(&chunk[..count]);
            chunk.drain(..count);
            if chunk.is_empty() {
                self.0.remove(0);
            }
            Ok(count)
        }
    }

    fn stream(lines: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for len in lines {
            let line = vec![b'x'; *len];
            frame::encode_record(&mut bytes, Millis(1), Body::Out(&line)).expect("it fits");
        }
        bytes
    }

    fn lengths(bytes: &[u8], chunk: usize) -> (Vec<usize>, io::Result<()>) {
        let chunks = Chunks(bytes.chunks(chunk).map(<[u8]>::to_vec).collect());
        let mut frames = Frames::new(chunks, RECORD_BYTES_MAX);
        let mut lengths = Vec::new();
        loop {
            match frames.next() {
                Ok(Some(frame)) => lengths.push(frame.payload.len() - 8),
                Ok(None) => return (lengths, Ok(())),
                Err(error) => return (lengths, Err(error)),
            }
        }
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let lines = [0, 5, 3_000_000, 1, 70_000, 64 << 10, 200];
        for chunk in [1_000, 65_536, 4_000_000] {
            assert!(lengths(&stream(&lines), chunk).1.is_ok());
            assert_eq!(lengths(&stream(&lines), chunk).0, lines);
        }
    }

    #[test]
    fn a_keeper_that_ends_with_a_command_unread_has_ended_all_the_same() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        (&ours).write_all(b"a command").expect("written");
        let mut reply = Vec::new();
        Reply::Written { n: 1 }.encode(&mut reply);
        theirs.write_all(&reply).expect("written");
        drop(theirs);
        let mut replies = Replies { frames: Frames::new(ours, limits::REPLY_BYTES_MAX) };
        assert_eq!(replies.next().expect("a reply"), Some(Reply::Written { n: 1 }));
        assert_eq!(replies.next().expect("the end"), None);
    }

    #[test]
    fn a_torn_tail_is_told_from_an_end_and_rubbish_from_both() {
        let mut bytes = stream(&[3, 4]);
        bytes.pop();
        let (lines, end) = lengths(&bytes, 7);
        assert_eq!(lines, [3]);
        assert_eq!(end.expect_err("torn").kind(), io::ErrorKind::UnexpectedEof);
        let (_, end) = lengths(&[0xff; 20], 7);
        assert_eq!(end.expect_err("rubbish").kind(), io::ErrorKind::InvalidData);
    }
}
