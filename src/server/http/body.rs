//! Bodies: held in memory, or on their way to and from a file, step by step, so that a large one
//! costs no memory. Must not know what they are.

use std::fs::File;
use std::io::Read as _;

use http::StatusCode;

use crate::limits;
use crate::server::http::head::Head;
use crate::server::http::response::Refused;
use crate::server::http::{End, fill_or_late};
use crate::server::socket::{Socket, after};
use crate::store::Incoming;

/// A body that is held. `buffer` keeps what follows it.
pub(super) fn read(socket: &Socket<'_>, head: &Head, buffer: &mut Vec<u8>) -> Result<Vec<u8>, End> {
    let bytes = usize::try_from(head.body_bytes).map_err(|_| End::Silent)?;
    let deadline = after(limits::BODY_MS);
    while buffer.len() < bytes {
        fill_or_late(socket, buffer, deadline)?;
    }
    let rest = buffer.split_off(bytes);
    Ok(std::mem::replace(buffer, rest))
}

/// A body that goes to a file; its deadline grows with its length.
pub(super) fn store(
    socket: &Socket<'_>,
    head: &Head,
    buffer: &mut Vec<u8>,
    incoming: &mut Incoming,
) -> Result<(), End> {
    let mut left = head.body_bytes;
    let steps = i64::try_from(1 + left / limits::ANSWER_STEP_BYTES as u64).unwrap_or(i64::MAX);
    let deadline = after(limits::BODY_MS.saturating_mul(steps));
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(limits::FILE_STEP_BYTES);
        while buffer.len() < step {
            fill_or_late(socket, buffer, deadline)?;
        }
        incoming.write(&buffer[..step]).map_err(|error| {
            tracing::warn!(%error, "a file that comes in cannot be written");
            let message = "The disk does not take the file now; send it again later.";
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", message)
        })?;
        buffer.drain(..step);
        left -= step as u64;
    }
    Ok(())
}

/// So much of a file. `None`: the client is gone, or cannot be given what it was promised.
pub(super) fn send_file(socket: &Socket<'_>, file: File, bytes: u64) -> Option<()> {
    let mut file = file.take(bytes);
    let mut step = vec![0; limits::FILE_STEP_BYTES];
    let mut left = bytes;
    while left > 0 {
        let count = file.read(&mut step).ok().filter(|count| *count > 0)?;
        socket.send(&step[..count]).ok()?;
        left -= count as u64;
    }
    Some(())
}
