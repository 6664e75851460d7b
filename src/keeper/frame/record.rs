//! What passed between an agent and its keeper, as it stands in the journal.

use super::{Fields, Frame, FrameError, RECORD_BYTES_MAX, exit_fields, put};
use crate::provider::{Decision, Exit, Record, RecordBody};
use crate::run::id::Millis;

const OUT: u8 = 1;
const ERR: u8 = 2;
const OUT_CAPPED: u8 = 3;
const IN: u8 = 4;
const EXIT: u8 = 5;
const DECISION: u8 = 6;

/// A record's body whose bytes still lie in somebody's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// See `RecordBody`.
    Out(&'a [u8]),
    /// See `RecordBody`.
    Err(&'a [u8]),
    /// See `RecordBody`.
    OutCapped {
        /// The whole line's length in bytes.
        bytes: u64,
        /// How it began.
        head: &'a [u8],
    },
    /// See `RecordBody`.
    In {
        /// The number of the command's row.
        n: u64,
        /// What was written.
        bytes: &'a [u8],
    },
    /// See `RecordBody`.
    Exit(Exit),
    /// See `RecordBody`.
    Decision(Decision),
}

/// Appends a record's frame to `to`.
///
/// # Errors
/// `TooLong` over `RECORD_BYTES_MAX`, which lines and writes within their own bounds never are.
pub fn encode_record(to: &mut Vec<u8>, at: Millis, body: Body<'_>) -> Result<(), FrameError> {
    let time = at.0.to_le_bytes();
    let max = RECORD_BYTES_MAX;
    match body {
        Body::Out(line) => put(to, max, OUT, &[&time, line]),
        Body::Err(line) => put(to, max, ERR, &[&time, line]),
        Body::OutCapped { bytes, head } => {
            put(to, max, OUT_CAPPED, &[&time, &bytes.to_le_bytes(), head])
        }
        Body::In { n, bytes } => put(to, max, IN, &[&time, &n.to_le_bytes(), bytes]),
        Body::Exit(exit) => {
            let (tag, value) = exit_fields(exit);
            put(to, max, EXIT, &[&time, &[tag], &value.to_le_bytes()])
        }
        Body::Decision(decision) => {
            let tag = match decision {
                Decision::StopAsked => 1,
                Decision::OrphanGraceOver => 2,
                Decision::Signalled => 3,
            };
            put(to, max, DECISION, &[&time, &[tag]])
        }
    }
}

/// From a frame of the data stream.
///
/// # Errors
/// Any but `Empty` and `TooLong`.
pub fn decode_record(frame: Frame<'_>) -> Result<Record, FrameError> {
    if !(OUT..=DECISION).contains(&frame.kind) {
        return Err(FrameError::UnknownKind(frame.kind));
    }
    let mut fields = Fields::new(frame);
    let at = Millis(fields.u64()?.cast_signed());
    let body = match frame.kind {
        OUT => RecordBody::Out(fields.rest().to_vec()),
        ERR => RecordBody::Err(fields.rest().to_vec()),
        OUT_CAPPED => RecordBody::OutCapped { bytes: fields.u64()?, head: fields.rest().to_vec() },
        IN => RecordBody::In { n: fields.u64()?, bytes: fields.rest().to_vec() },
        EXIT => RecordBody::Exit(fields.exit()?),
        _ => RecordBody::Decision(match fields.u8()? {
            1 => Decision::StopAsked,
            2 => Decision::OrphanGraceOver,
            3 => Decision::Signalled,
            value => return Err(fields.unknown(value)),
        }),
    };
    fields.end()?;
    Ok(Record { at, body })
}
