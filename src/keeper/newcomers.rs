//! Connections over the socket that have yet to say what they want.
//!
//! Each has to say it in one frame, soon; their number is bounded (I7). Must not know what becomes
//! of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use rustix::io::Errno;

use super::frame::{self, Command, Role};
use super::ladder::later;
use crate::limits::{NEWCOMER_MS, NEWCOMERS_MAX};

/// The longest first frame, and what may follow it at once.
const FIRST_BYTES_MAX: usize = 64;

/// Those who are there.
#[derive(Debug, Default)]
pub(super) struct Newcomers(Vec<Newcomer>);

#[derive(Debug)]
struct Newcomer {
    stream: UnixStream,
    said: Vec<u8>,
    until: Instant,
}

/// One who has said what it wants.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) stream: UnixStream,
    pub(super) protocol: u32,
    pub(super) role: Role,
    /// What it said after that.
    pub(super) rest: Vec<u8>,
}

impl Newcomers {
    /// Whether one more may come; others wait in the socket's backlog.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < NEWCOMERS_MAX
    }

    /// What to wait for, in a fixed order.
    pub(super) fn streams(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|newcomer| newcomer.stream.as_fd())
    }

    /// When the first of them has had its time.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.iter().map(|newcomer| newcomer.until).min()
    }

    /// Lets in who waits.
    pub(super) fn accept(&mut self, listener: &UnixListener, now: Instant) -> io::Result<()> {
        while self.has_room() {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    let until = later(now, NEWCOMER_MS.unsigned_abs());
                    self.0.push(Newcomer { stream, said: Vec::new(), until });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Hears all of them; who makes no sense, has gone or takes too long is sent away.
    pub(super) fn hear(&mut self, now: Instant) -> Vec<Guest> {
        let mut guests = Vec::new();
        for mut newcomer in std::mem::take(&mut self.0) {
            match newcomer.listen() {
                Heard::All(protocol, role, taken) => {
                    let rest = newcomer.said.split_off(taken);
                    guests.push(Guest { stream: newcomer.stream, protocol, role, rest });
                }
                Heard::Nothing if now < newcomer.until => self.0.push(newcomer),
                Heard::Nothing | Heard::Nonsense => {}
            }
        }
        guests
    }
}

enum Heard {
    All(u32, Role, usize),
    Nothing,
    Nonsense,
}

impl Newcomer {
    fn listen(&mut self) -> Heard {
        let mut bytes = [0; FIRST_BYTES_MAX];
        match rustix::io::read(&self.stream, &mut bytes) {
            Ok(count) if count > 0 => self.said.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => return Heard::Nonsense,
        }
        match frame::split(&self.said, FIRST_BYTES_MAX) {
            Ok(None) => Heard::Nothing,
            Ok(Some(frame)) => match Command::decode(frame) {
                Ok(Command::Attach { protocol, role }) => Heard::All(protocol, role, frame.bytes),
                Ok(_) | Err(_) => Heard::Nonsense,
            },
            Err(_) => Heard::Nonsense,
        }
    }
}
