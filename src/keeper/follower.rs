//! The data connection: sends the journal's blocks to the gateway, as they stand in the files.
//!
//! So what a gateway has seen the journal has, and a slow one costs no memory. Must not know
//! whether it is the one that counts, or what is in a block.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::journal::{Journal, Segment};
use crate::limits::FOLLOW_BYTES_PER_TURN;

/// Who follows, and how far it has come.
#[derive(Debug)]
pub(super) struct Follower {
    connection: OwnedFd,
    /// The segment that it is in, once there is one: where it begins, and its file.
    segment: Option<(u64, File)>,
    /// Where it begins.
    offset: u64,
    /// How much of the segment's file it was given.
    given: u64,
    /// The connection took no more.
    is_full: bool,
}

impl Follower {
    /// From the segment in which `offset` lies. The connection does not block.
    pub(super) const fn new(connection: OwnedFd, offset: u64) -> Self {
        Self { connection, segment: None, offset, given: 0, is_full: false }
    }

    /// What to wait for, and whether for room in it. Its loss is to be noticed in either case.
    pub(super) fn wants(&self) -> (BorrowedFd<'_>, bool) {
        (self.connection.as_fd(), self.is_full)
    }

    /// Sends what the connection takes, within a turn's bound. `true`: it takes more, and there is
    /// more.
    ///
    /// # Errors
    /// The connection is lost, or the journal cannot be read.
    pub(super) fn pump(&mut self, journal: &Journal, scratch: &mut [u8]) -> io::Result<bool> {
        let mut budget = FOLLOW_BYTES_PER_TURN;
        self.is_full = false;
        while let Some((segment, file, given)) = self.segment(journal)? {
            let rest = segment.bytes - given;
            let want = usize::try_from(rest).unwrap_or(usize::MAX).min(scratch.len());
            let count = file.read_at(&mut scratch[..want], given)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match rustix::io::write(&self.connection, &scratch[..count]) {
                Ok(count) => {
                    self.given += count as u64;
                    budget = budget.saturating_sub(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.is_full = true;
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
            if budget == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Up to where it was given the stream, as far as can be said: segment by segment, and exactly
    /// once it has all.
    pub(super) fn has(&self, journal: &Journal) -> u64 {
        let Some((first, _)) = &self.segment else {
            return self.offset.min(journal.end());
        };
        match journal.holder(*first) {
            Some(segment) if segment.first == *first && self.given >= segment.bytes => segment.end,
            _ => *first,
        }
    }

    /// The segment in which something is left to be given, its file, and how much of that was
    /// given; `None`: it has all.
    fn segment(&mut self, journal: &Journal) -> io::Result<Option<(Segment, &File, u64)>> {
        let next = match &self.segment {
            None => journal.holder(self.offset),
            Some((first, _)) => match journal.holder(*first) {
                Some(current) if current.first == *first && current.bytes > self.given => {
                    let given = self.given;
                    return Ok(self.segment.as_ref().map(|(_, file)| (current, file, given)));
                }
                Some(current) if current.first == *first => journal.after(*first),
                // What follows it cannot be told from what was dropped with it.
                _ => return Err(io::Error::new(io::ErrorKind::NotFound, "it was dropped")),
            },
        };
        let Some(next) = next.filter(|next| next.bytes > 0) else { return Ok(None) };
        let file = journal.open(next.first)?;
        self.given = 0;
        Ok(Some((next, &self.segment.insert((next.first, file)).1, 0)))
    }
}
