//! Attaching to a keeper that outlived its gateway, and reading what one that is gone has left.
//!
//! Must not know what a record means.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::frames::Frames;
use super::{Commands, Parts, Process, Records, Replies};
use crate::keeper::frame::{Command, FrameError, PROTOCOL, PROTOCOL_MIN, Reply, Role, Welcome};
use crate::keeper::home::Home;
use crate::keeper::journal::{Stream, end_of};
use crate::limits::{ATTACH_MS, LOOK_AGAIN_MS, REPLY_BYTES_MAX};

/// A keeper that lives, and what it said of itself.
#[derive(Debug)]
pub struct Attached {
    /// What there is to work with. The first replies are `Exited` and `Stopped`, if the keeper
    /// said them before; records follow from the offset that was asked for.
    pub parts: Parts,
    /// The agent's process id; 0 if there is none any more.
    pub pid: u32,
    /// Where the journal begins: what is before was confirmed and dropped.
    pub start: u64,
    /// Where the journal ended when we came.
    pub end: u64,
    /// The version of the keeper's program.
    pub version: String,
}

/// Why a keeper cannot be attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is none: it has ended or was lost. `read_journal` has what it left.
    #[error("the keeper is gone")]
    Gone,
    /// It speaks a protocol that we do not. It was left alone; `Home::terminate` works all the same.
    #[error("the keeper (process {pid}) is of version {version} and speaks protocol {protocol}")]
    OtherVersion {
        /// What it speaks.
        protocol: u32,
        /// Its program's version.
        version: String,
        /// Its process id; 0 if it did not say.
        pid: u32,
    },
    /// The journal is not the one that the offset is of, or lost its end.
    #[error("the journal ends at offset {end}, before the one that was asked for")]
    OffsetBeyondEnd {
        /// Where it ends.
        end: u64,
    },
    /// It lives and cannot be spoken to, or the files cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Attaches to the keeper of this home: from now on it follows this gateway and no other. Records
/// are given from `offset` on, the end of the last one that is known. Blocks, at most
/// `limits::ATTACH_MS`, unless the keeper does not answer.
///
/// # Errors
/// See `AttachError`. After `OffsetBeyondEnd` and `Io` the keeper may have lost the gateway that it
/// had.
pub fn attach(home: &Home, offset: u64) -> Result<Attached, AttachError> {
    let (control, frames, welcome) = knock(home)?;
    let Welcome { protocol, epoch, pid, start, end, version } = welcome;
    // From here on, should we fail, the connection is closed and the agent is an orphan again.
    if offset > end {
        return Err(AttachError::OffsetBeyondEnd { end });
    }
    if offset < start {
        let why = format!("the journal begins at offset {start}; what is before was confirmed");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why).into());
    }
    let info = home.info().ok_or(AttachError::Gone)?;
    let process = Process::found(home, info.pid)?.ok_or(AttachError::Gone)?;
    let records = home.connect().map_err(|error| gone_or(home, error))?;
    introduce(&records, protocol, Role::Records { epoch, offset })
        .map_err(|error| gone_or(home, error))?;
    let records = Stream::live(home.path(), records.into(), offset);
    let parts = Parts {
        process,
        commands: Commands { stream: control, frame: Vec::new() },
        replies: Replies { frames },
        records: Records::new(records, offset),
    };
    Ok(Attached { parts, pid, start, end, version })
}

/// The records after `offset` that a keeper which is gone has left, up to its `Exit` or to where
/// it was lost.
///
/// # Errors
/// `Gone`: not even its home is left. `OffsetBeyondEnd` and `Io` as they say.
pub fn read_journal(home: &Home, offset: u64) -> Result<Records, AttachError> {
    let end = match end_of(home.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(AttachError::Gone),
        other => other?,
    };
    if offset > end {
        return Err(AttachError::OffsetBeyondEnd { end });
    }
    Ok(Records::new(Stream::of_files(home.path(), offset)?, offset))
}

/// A control connection, in the protocol that the keeper speaks.
fn knock(home: &Home) -> Result<(UnixStream, Frames<UnixStream>, Welcome), AttachError> {
    let mut protocol = PROTOCOL;
    loop {
        let control = connect(home)?;
        introduce(&control, protocol, Role::Control).map_err(|error| gone_or(home, error))?;
        control.set_read_timeout(Some(patience()))?;
        let mut frames = Frames::new(control.try_clone()?, REPLY_BYTES_MAX);
        let reply =
            frames.next().and_then(|frame| frame.map(Reply::decode).transpose().map_err(bad));
        match reply.map_err(|error| gone_or(home, slow(error)))? {
            Some(Reply::Welcome(welcome)) => {
                control.set_read_timeout(None)?;
                return Ok((control, frames, welcome));
            }
            Some(Reply::Refused { protocol: theirs, version }) => {
                let spoken = (PROTOCOL_MIN..=PROTOCOL).contains(&theirs) && theirs != protocol;
                if !spoken {
                    let pid = home.info().map_or(0, |info| info.pid);
                    return Err(AttachError::OtherVersion { protocol: theirs, version, pid });
                }
                protocol = theirs;
            }
            Some(other) => {
                let why = format!("the keeper began with {other:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why).into());
            }
            None => return Err(gone_or(home, io::ErrorKind::ConnectionReset.into())),
        }
    }
}

/// A keeper that has just begun may have its lock and no socket so far.
fn connect(home: &Home) -> Result<UnixStream, AttachError> {
    let deadline = Instant::now() + patience();
    loop {
        match home.connect() {
            Ok(stream) => return Ok(stream),
            Err(_) if !home.is_alive()? => return Err(AttachError::Gone),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => {
                std::thread::sleep(Duration::from_millis(LOOK_AGAIN_MS.unsigned_abs()));
            }
        }
    }
}

fn introduce(mut stream: &UnixStream, protocol: u32, role: Role) -> io::Result<()> {
    let mut frame = Vec::new();
    Command::Attach { protocol, role }.encode(&mut frame).map_err(bad)?;
    stream.write_all(&frame)
}

/// An error of a keeper that is gone is that it is gone. A process that ends loses its sockets a
/// moment before its lock, or after it.
fn gone_or(home: &Home, error: io::Error) -> AttachError {
    for _ in 0..LOOKS_AT_THE_LOCK {
        match home.is_alive() {
            Ok(false) => return AttachError::Gone,
            Ok(true) => {}
            Err(_) => break,
        }
        std::thread::sleep(Duration::from_millis(LOOK_AGAIN_MS.unsigned_abs()));
    }
    AttachError::Io(error)
}

const LOOKS_AT_THE_LOCK: usize = 20;

const fn patience() -> Duration {
    Duration::from_millis(ATTACH_MS.unsigned_abs())
}

/// What a read that waited too long gives, in words.
fn slow(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, "the keeper lives and does not answer")
        }
        _ => error,
    }
}

fn bad(error: FrameError) -> io::Error {
    super::invalid(error)
}
