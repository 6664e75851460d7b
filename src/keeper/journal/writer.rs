//! The keeper's side of a journal: appending to it, within its bound, whatever the disk does.
//!
//! Must not know what a record is, who follows, or when something may be dropped.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{BLOCK_HEADER_BYTES, header, segment_path};
use crate::limits::{
    JOURNAL_BLOCK_BYTES_MAX, JOURNAL_RESERVE_BYTES, JOURNAL_RETRY_MS, JOURNAL_SEGMENT_BYTES,
    JOURNAL_WRITES_RESERVE_BYTES, OUTPUT_BACKLOG_BYTES,
};

/// Records on their way to the journal. Whoever pushes asks before whether it may (I7).
#[derive(Debug)]
pub(in super::super) struct Backlog {
    bytes: Vec<u8>,
    /// How much of `bytes` the journal has.
    taken: usize,
    /// What the journal may still grow by.
    room: u64,
}

impl Backlog {
    pub(in super::super) fn new(room: u64) -> Self {
        Self { bytes: Vec::new(), taken: 0, room }
    }

    /// Bytes that wait.
    pub(in super::super) fn pending(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Where to append.
    pub(in super::super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Whether the agent may be read, of which `partial` bytes are read and wait for their line's
    /// end. If not, it waits (I7).
    pub(in super::super) fn takes_lines(&self, partial: usize) -> bool {
        let waiting = (self.pending() + partial) as u64;
        self.pending() < OUTPUT_BACKLOG_BYTES
            && waiting + JOURNAL_RESERVE_BYTES + JOURNAL_WRITES_RESERVE_BYTES <= self.room
    }

    /// Whether `bytes` may be written to the agent, by what the journal has room for.
    pub(in super::super) fn takes_writes(&self, bytes: usize) -> bool {
        (self.pending() + bytes) as u64 + JOURNAL_RESERVE_BYTES <= self.room
    }

    fn front(&self) -> &[u8] {
        let waiting = &self.bytes[self.taken..];
        &waiting[..waiting.len().min(JOURNAL_BLOCK_BYTES_MAX)]
    }

    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            // One long line must not cost its memory for the rest of the agent's life.
            self.bytes.shrink_to(2 * OUTPUT_BACKLOG_BYTES);
            self.taken = 0;
        } else if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }
}

/// A file of the journal, as far as it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Segment {
    /// Where it begins in the agent's stream.
    pub(in super::super) first: u64,
    /// Where it ends.
    pub(in super::super) end: u64,
    /// Its length on disk.
    pub(in super::super) bytes: u64,
}

/// The journal of one agent, from its first byte.
#[derive(Debug)]
pub(in super::super) struct Journal {
    pub(super) dir: PathBuf,
    pub(in super::super) backlog: Backlog,
    pub(super) segments: VecDeque<Segment>,
    /// The last segment's file, if it is to be written on.
    pub(super) file: Option<File>,
    /// On disk, in all; what could not be removed included.
    bytes: u64,
    bound: u64,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    kind: io::ErrorKind,
    retry_at: Instant,
}

/// What came of an attempt to append.
#[derive(Debug)]
pub(in super::super) enum Written {
    /// There was nothing to do, or it is not the time to try again.
    Nothing,
    /// The journal has more than before.
    Some,
    /// For the first time in a while it could not be written.
    Failed(io::Error),
    /// It could not be written before, and now it could.
    Recovered,
}

impl Journal {
    /// An empty one in `dir`, to be of at most `bound` bytes.
    pub(in super::super) fn new(dir: PathBuf, bound: u64) -> Self {
        Self {
            dir,
            backlog: Backlog::new(bound),
            segments: VecDeque::new(),
            file: None,
            bytes: 0,
            bound,
            failure: None,
        }
    }

    /// Where the oldest segment begins that was not dropped.
    pub(in super::super) fn start(&self) -> u64 {
        self.segments.front().map_or(0, |segment| segment.first)
    }

    /// Where the newest ends.
    pub(in super::super) fn end(&self) -> u64 {
        self.segments.back().map_or(0, |segment| segment.end)
    }

    /// The segment in which `offset` lies.
    pub(in super::super) fn holder(&self, offset: u64) -> Option<Segment> {
        let after = self.segments.partition_point(|segment| segment.first <= offset);
        after.checked_sub(1).map(|at| self.segments[at])
    }

    /// The segment that follows the one that begins at `first`.
    pub(in super::super) fn after(&self, first: u64) -> Option<Segment> {
        let after = self.segments.partition_point(|segment| segment.first <= first);
        self.segments.get(after).copied()
    }

    /// The file of a segment, for reading.
    pub(in super::super) fn open(&self, first: u64) -> io::Result<File> {
        File::open(segment_path(&self.dir, first))
    }

    /// When to try again what failed.
    pub(in super::super) fn due(&self) -> Option<Instant> {
        self.failure.as_ref().filter(|_| self.backlog.pending() > 0).map(|failure| failure.retry_at)
    }

    /// The directory is gone: nobody will ever read this.
    pub(in super::super) fn is_lost(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.kind == io::ErrorKind::NotFound)
    }

    /// Whether what was pushed could not be written the last time.
    pub(in super::super) fn is_failing(&self) -> bool {
        self.failure.is_some()
    }

    /// Appends what waits, if it is time to.
    pub(in super::super) fn flush(&mut self, now: Instant) -> Written {
        if self.failure.as_ref().is_some_and(|failure| now < failure.retry_at) {
            return Written::Nothing;
        }
        let mut written = Written::Nothing;
        while self.backlog.pending() > 0 {
            match self.append_block() {
                Ok(()) if self.failure.take().is_some() => written = Written::Recovered,
                Ok(()) if matches!(written, Written::Nothing) => written = Written::Some,
                Ok(()) => {}
                Err(error) => {
                    let retry_at = now + Duration::from_millis(JOURNAL_RETRY_MS.unsigned_abs());
                    let known = self.failure.replace(Failure { kind: error.kind(), retry_at });
                    if known.is_none() {
                        written = Written::Failed(error);
                    }
                    break;
                }
            }
        }
        self.backlog.room = self.bound.saturating_sub(self.bytes);
        written
    }

    /// Drops the segments that end at or before `offset`, the last one left out.
    ///
    /// # Errors
    /// One cannot be removed. It is forgotten all the same, but for the bound.
    pub(in super::super) fn drop_before(&mut self, offset: u64) -> io::Result<()> {
        let mut result = Ok(());
        while self.segments.len() > 1 && self.segments[0].end <= offset {
            let Some(segment) = self.segments.pop_front() else { break };
            match std::fs::remove_file(segment_path(&self.dir, segment.first)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                Ok(()) | Err(_) => self.bytes -= segment.bytes,
            }
        }
        self.backlog.room = self.bound.saturating_sub(self.bytes);
        result
    }

    fn append_block(&mut self) -> io::Result<()> {
        let end = self.end();
        if self.segments.back().is_none_or(|last| last.bytes >= JOURNAL_SEGMENT_BYTES) {
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = begin(&segment_path(&self.dir, end))?;
                self.segments.retain(|segment| segment.first < end || segment.end > segment.first);
                self.segments.push_back(Segment { first: end, end, bytes: 0 });
                none.insert(file)
            }
        };
        let last = self.segments.back_mut().expect("the file's segment is there");
        let payload = self.backlog.front();
        let header = header(end, payload);
        if let Err(error) = write_whole(file, &header, payload) {
            if file.set_len(last.bytes).is_err() {
                // A reader passes over the torn block, since the next segment begins where it does.
                self.file = None;
            }
            return Err(error);
        }
        let (count, bytes) = (payload.len(), (BLOCK_HEADER_BYTES + payload.len()) as u64);
        last.end += count as u64;
        last.bytes += bytes;
        self.bytes += bytes;
        self.backlog.take(count);
        Ok(())
    }
}

/// A new segment's file. One that is there holds nothing whole.
fn begin(path: &Path) -> io::Result<File> {
    // In append mode, so that what comes after a cut lies where the cut was.
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

fn write_whole(file: &mut File, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut parts = [IoSlice::new(header), IoSlice::new(payload)];
    let mut parts = &mut parts[..];
    while !parts.is_empty() {
        match file.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut parts, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
