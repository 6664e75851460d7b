//! The journal: everything that passed between an agent and its keeper, on disk.
//!
//! The stream of records (`frame`) is one endless stream of bytes; an *offset* is a position in
//! it. The journal holds it in checksummed blocks (`block`) in segments: files named after the
//! offset at which they begin. The keeper appends (`writer`) and drops whole segments that its
//! gateway has confirmed; a gateway reads the same bytes from a connection or from the files
//! (`reader`), up to a torn tail. Nothing is synced: what takes the page cache takes the agent.
//! Must not know what a record is.

mod block;
mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

pub use block::{BLOCK_HEADER_BYTES, Block, BlockError, header, split};
pub use reader::{Stream, end_of};
pub(super) use writer::{Backlog, Journal, Segment, Written};

const SUFFIX: &str = ".journal";

/// The file of the segment that begins at `first`.
fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:016x}{SUFFIX}"))
}

/// Where the segments in `dir` begin, in order. Other files are passed over.
///
/// # Errors
/// The directory cannot be read.
fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        let digits = digits.filter(|digits| digits.len() == 16);
        firsts.extend(digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

#[cfg(test)]
mod tests;
