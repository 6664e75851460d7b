//! A block of the journal, as pure functions.
//!
//! A block is a header of 20 bytes, little endian: magic `RJN1`, `u32` length of the payload,
//! `u64` offset of its first byte in the agent's stream of records, `u32` CRC-32 over length,
//! offset and payload; then the payload. A record may span blocks, a block may hold many.
//! Decoding is total (I11). Must not know files, or what a record is.

use crate::limits::JOURNAL_BLOCK_BYTES_MAX;

/// Bytes of a block before its payload.
pub const BLOCK_HEADER_BYTES: usize = 20;

const MAGIC: [u8; 4] = *b"RJN1";

/// A block that is whole and has the right sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// Where its payload lies in the agent's stream.
    pub offset: u64,
    /// A piece of the stream, never empty.
    pub payload: &'a [u8],
    /// The block's length, its header included.
    pub bytes: usize,
}

/// Why bytes are not a block. In a file that is how a torn tail looks.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockError {
    /// It does not begin like one.
    #[error("no block begins here")]
    Magic,
    /// Empty, or longer than a block may be, or beyond the end of all offsets.
    #[error("a block of {0} bytes")]
    Length(u32),
    /// Its bytes are not those that were written.
    #[error("the checksum of the block at offset {0} is wrong")]
    Checksum(u64),
}

/// The first block in `input`, or `None` if it is not all there.
///
/// # Errors
/// As soon as the bytes that show it are there.
pub fn split(input: &[u8]) -> Result<Option<Block<'_>>, BlockError> {
    let magic = &input[..input.len().min(MAGIC.len())];
    if magic != &MAGIC[..magic.len()] {
        return Err(BlockError::Magic);
    }
    let Some((header, rest)) = input.split_first_chunk::<BLOCK_HEADER_BYTES>() else {
        return Ok(None);
    };
    let [_, _, _, _, l0, l1, l2, l3, offset @ .., c0, c1, c2, c3] = *header;
    let field = u32::from_le_bytes([l0, l1, l2, l3]);
    let offset = u64::from_le_bytes(offset);
    let len = usize::try_from(field).unwrap_or(usize::MAX);
    if len == 0 || len > JOURNAL_BLOCK_BYTES_MAX || offset.checked_add(len as u64).is_none() {
        return Err(BlockError::Length(field));
    }
    let Some(payload) = rest.get(..len) else { return Ok(None) };
    if sum(&header[4..16], payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(BlockError::Checksum(offset));
    }
    Ok(Some(Block { offset, payload, bytes: BLOCK_HEADER_BYTES + len }))
}

/// The header that goes before this payload, which is not empty and at most
/// `limits::JOURNAL_BLOCK_BYTES_MAX` long.
#[must_use]
pub fn header(offset: u64, payload: &[u8]) -> [u8; BLOCK_HEADER_BYTES] {
    let len = u32::try_from(payload.len()).expect("a block's payload is short");
    let mut header = [0; BLOCK_HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..16].copy_from_slice(&offset.to_le_bytes());
    let sum = sum(&header[4..16], payload);
    header[16..].copy_from_slice(&sum.to_le_bytes());
    header
}

fn sum(fields: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(fields);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(offset: u64, payload: &[u8]) -> Vec<u8> {
        [&header(offset, payload)[..], payload].concat()
    }

    proptest! {
        #[test]
        fn a_block_comes_back_and_no_prefix_or_flipped_bit_passes_for_one(
            offset in 0..u64::MAX / 2,
            payload in proptest::collection::vec(any::<u8>(), 1..60),
            bit in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = block(offset, &payload);
            let whole = Block { offset, payload: &payload, bytes: bytes.len() };
            prop_assert_eq!(split(&bytes), Ok(Some(whole)));
            for end in 0..bytes.len() {
                prop_assert_eq!(split(&bytes[..end]), Ok(None));
            }
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(split(&bytes), Ok(Some(_))), "bit {} is not missed", bit);
        }

        /// I11.
        #[test]
        fn any_bytes_give_an_answer(
            magic in any::<bool>(),
            rest in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let bytes = if magic { [&MAGIC[..], &rest].concat() } else { rest };
            if let Ok(Some(found)) = split(&bytes) {
                prop_assert_eq!(&block(found.offset, found.payload)[..], &bytes[..found.bytes]);
            }
        }
    }

    #[test]
    fn lengths_are_checked_before_the_bytes_are_there() {
        let with = |len: u32, offset: u64| {
            let mut bytes = block(offset, b"x");
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            bytes
        };
        let max = u32::try_from(JOURNAL_BLOCK_BYTES_MAX).expect("short");
        assert_eq!(split(&with(0, 0)), Err(BlockError::Length(0)));
        assert_eq!(split(&with(max + 1, 0)), Err(BlockError::Length(max + 1)));
        assert_eq!(split(&with(max, 0)), Ok(None));
        assert_eq!(split(&with(1, u64::MAX)), Err(BlockError::Length(1)));
        assert_eq!(split(&[0]), Err(BlockError::Magic));
    }
}
