//! A gateway's side of a journal: the agent's stream, from a living keeper and from its files.
//!
//! Both give blocks; both end where no whole block follows. Must not know what a record is.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{BLOCK_HEADER_BYTES, segment_path, segments, split};
use crate::limits::JOURNAL_BLOCK_BYTES_MAX;

/// What is read at once: at least a whole block.
const READ_BYTES: usize = 2 * (JOURNAL_BLOCK_BYTES_MAX + BLOCK_HEADER_BYTES);

/// The agent's stream from an offset on, as bytes. Where the connection to the keeper ends, and
/// be it within a block, the files go on; where they end, it ends. Blocks when the keeper has
/// nothing more so far.
#[derive(Debug)]
pub struct Stream {
    dir: PathBuf,
    from: Source,
    /// The offset of the next byte that is given.
    offset: u64,
    buffer: Vec<u8>,
    /// A piece of the stream that is checked and not wholly given.
    piece: Range<usize>,
    /// Blocks that are not looked at, the last one perhaps not whole.
    blocks: Range<usize>,
}

#[derive(Debug)]
enum Source {
    /// A connection.
    Keeper(File),
    /// A segment, and where it begins.
    Segment(File, u64),
    /// There is no more.
    Nowhere,
}

/// No whole block follows in this source.
struct Torn;

impl Stream {
    /// Of a keeper that sends its blocks over `connection`, from the one in which `offset` lies or
    /// an earlier one. Its files are in `dir`.
    #[must_use]
    pub fn live(dir: &Path, connection: OwnedFd, offset: u64) -> Self {
        Self::new(dir, Source::Keeper(File::from(connection)), offset)
    }

    /// Of the files in `dir`. If the segment in which `offset` lies is not there: nothing.
    ///
    /// # Errors
    /// The directory or the segment cannot be read.
    pub fn of_files(dir: &Path, offset: u64) -> io::Result<Self> {
        let source = match holder(dir, offset) {
            Ok((file, first)) => Source::Segment(file, first),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Source::Nowhere,
            Err(error) => return Err(error),
        };
        Ok(Self::new(dir, source, offset))
    }

    fn new(dir: &Path, from: Source, offset: u64) -> Self {
        Self { dir: dir.to_owned(), from, offset, buffer: Vec::new(), piece: 0..0, blocks: 0..0 }
    }

    /// Makes the next piece ready; `false` if more has to be read for it.
    fn check_next(&mut self) -> Result<bool, Torn> {
        while self.piece.is_empty() {
            let block = match split(&self.buffer[self.blocks.clone()]) {
                Ok(Some(block)) => block,
                Ok(None) => return Ok(false),
                Err(_) => return Err(Torn),
            };
            let (len, end) = (block.payload.len(), self.blocks.start + block.bytes);
            // The first blocks may lie before the offset; afterwards each begins where the last
            // one ended.
            let skip = self.offset.checked_sub(block.offset).ok_or(Torn)?;
            let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(len);
            self.piece = end - len + skip..end;
            self.blocks.start = end;
        }
        Ok(true)
    }

    /// Reads more blocks; `false` at the end of this source.
    fn read_more(&mut self) -> io::Result<bool> {
        self.buffer.resize(READ_BYTES, 0);
        self.buffer.copy_within(self.blocks.clone(), 0);
        self.blocks = 0..self.blocks.len();
        let (Source::Keeper(file) | Source::Segment(file, _)) = &mut self.from else {
            return Ok(false);
        };
        loop {
            match file.read(&mut self.buffer[self.blocks.end..]) {
                Ok(count) => {
                    self.blocks.end += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A keeper that ends with something unread has ended all the same.
                Err(_) if matches!(self.from, Source::Keeper(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes on with the segment in which the next byte lies, if there is such a one.
    fn go_on(&mut self) {
        (self.piece, self.blocks) = (0..0, 0..0);
        let next = match self.from {
            Source::Keeper(_) => holder(&self.dir, self.offset).ok(),
            // A segment without a whole block ends where it begins.
            Source::Segment(_, first) if first < self.offset => {
                let file = File::open(segment_path(&self.dir, self.offset));
                file.ok().map(|file| (file, self.offset))
            }
            Source::Segment(..) | Source::Nowhere => None,
        };
        self.from = next.map_or(Source::Nowhere, |(file, first)| Source::Segment(file, first));
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut given = 0;
        while given < into.len() {
            match self.check_next() {
                Ok(true) => {
                    let count = self.piece.len().min(into.len() - given);
                    let from = self.piece.start;
                    into[given..given + count].copy_from_slice(&self.buffer[from..from + count]);
                    self.piece.start += count;
                    self.offset += count as u64;
                    given += count;
                }
                // What there is so far is given before anything is waited for.
                _ if given > 0 => break,
                Ok(false) if matches!(self.from, Source::Nowhere) => break,
                Ok(false) if self.read_more()? => {}
                Ok(false) | Err(Torn) => self.go_on(),
            }
        }
        Ok(given)
    }
}

/// The offset at which the journal in `dir` ends: where its last whole block does.
///
/// # Errors
/// The directory or the last segment cannot be read.
pub fn end_of(dir: &Path) -> io::Result<u64> {
    let firsts = segments(dir)?;
    let Some(last) = firsts.last().copied() else { return Ok(0) };
    let file = File::open(segment_path(dir, last))?;
    let mut stream = Stream::new(dir, Source::Segment(file, last), last);
    let mut bytes = vec![0; JOURNAL_BLOCK_BYTES_MAX];
    while stream.read(&mut bytes)? > 0 {}
    Ok(stream.offset)
}

/// The segment in which `offset` lies, or that ends there, and where it begins.
fn holder(dir: &Path, offset: u64) -> io::Result<(File, u64)> {
    let firsts = segments(dir)?;
    let after = firsts.partition_point(|first| *first <= offset);
    let first = after.checked_sub(1).map(|at| firsts[at]).ok_or(io::ErrorKind::NotFound)?;
    Ok((File::open(segment_path(dir, first))?, first))
}
