//! Journals from bytes: the reader that ships against a naive one (I11), on real files.
//!
//! A script builds an agent's stream in segments, then damages it as a crash, a full disk or a
//! stranger would. Must not know what a record is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::keeper::journal::{Stream, end_of, header};
use crate::limits::JOURNAL_BLOCK_BYTES_MAX;

/// What a script may build in all: more would only be slow.
const STREAM_BYTES_MAX: u64 = 256 << 10;

/// Builds what the bytes say, and compares what is read of it: with a naive reader always; with
/// what was written, as long as nobody forged blocks: of that it is the part from the offset on,
/// up to the first damage, and all of it if there is none.
///
/// # Panics
/// If they differ, or the reader fails.
pub fn check_journal(bytes: &[u8]) {
    let Some(([how, from, chunk], script)) = bytes.split_first_chunk::<3>() else { return };
    let mut journal = Script::default();
    for op in script.as_chunks::<3>().0 {
        journal.apply(*op);
    }
    let end = journal.written.len() as u64;
    let from = match from {
        0..128 => u64::from(*from),
        _ => end.saturating_sub(u64::from(u8::MAX - from)),
    };
    let live = (how % 2 == 1).then_some(&journal.connection[..]);
    let dir = Dir::with(&journal.files);
    let naive = read_naively(&journal.files, live, from);
    let read = read(&dir.0, live, from, usize::from(*chunk) * 37 + 1);
    assert_eq!(read, naive, "the two readers differ, from {from}");
    if !journal.is_forged {
        let rest = usize::try_from(from).ok().and_then(|from| journal.written.get(from..));
        let rest = rest.unwrap_or_default();
        assert!(rest.starts_with(&read), "what is read was written, from {from}");
        let all = !journal.is_damaged && live.is_none() && from >= journal.start();
        assert!(!all || read.len() == rest.len(), "what is whole is read to its end");
        // A gateway that asks for more than there is learns it from this.
        assert!(end_of(&dir.0).expect("readable files") <= end, "the end is no invention");
    }
}

/// What the reader that ships gives, read in pieces of `chunk` bytes.
fn read(dir: &Path, live: Option<&[u8]>, from: u64, chunk: usize) -> Vec<u8> {
    let mut stream = match live {
        Some(bytes) => {
            // A file ends where a connection is cut.
            let path = dir.join("connection");
            fs::write(&path, bytes).expect("written");
            Stream::live(dir, File::open(path).expect("it is there").into(), from)
        }
        None => Stream::of_files(dir, from).expect("readable files"),
    };
    let (mut all, mut piece) = (Vec::new(), vec![0; chunk]);
    loop {
        match stream.read(&mut piece).expect("damage is an end, not an error") {
            0 => break,
            count => all.extend_from_slice(&piece[..count]),
        }
    }
    assert_eq!(stream.read(&mut piece).expect("still the end"), 0, "an end stays one");
    all
}

/// The same, by somebody who has all of it in memory and time.
fn read_naively(files: &BTreeMap<u64, Vec<u8>>, live: Option<&[u8]>, from: u64) -> Vec<u8> {
    let (mut all, mut at) = (Vec::new(), from);
    let mut take = |bytes: &[u8], at: &mut u64| {
        for (offset, payload) in whole_blocks(bytes) {
            let Some(known) = at.checked_sub(offset) else { return };
            let known = usize::try_from(known).unwrap_or(usize::MAX);
            let new = payload.get(known..).unwrap_or_default();
            all.extend_from_slice(new);
            *at += new.len() as u64;
        }
    };
    if let Some(bytes) = live {
        take(bytes, &mut at);
    }
    let mut next = files.range(..=at).next_back();
    while let Some((first, bytes)) = next {
        take(bytes, &mut at);
        next = files.get_key_value(&at).filter(|_| *first < at);
    }
    all
}

/// Offset and payload of each block up to the first that is none.
fn whole_blocks(mut bytes: &[u8]) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    while let Some((block, rest)) = first_block(bytes) {
        blocks.push(block);
        bytes = rest;
    }
    blocks
}

/// Offset and payload of a block.
type Block<'a> = (u64, &'a [u8]);

/// And what follows it.
fn first_block(bytes: &[u8]) -> Option<(Block<'_>, &[u8])> {
    let number = |range: std::ops::Range<usize>| {
        let digits = bytes.get(range)?.iter().rev();
        Some(digits.fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    };
    let (len, offset, sum) = (number(4..8)?, number(8..16)?, number(16..20)?);
    let end = 20 + usize::try_from(len).ok()?;
    let payload = bytes.get(20..end)?;
    let valid = bytes.starts_with(b"RJN1")
        && (1..=JOURNAL_BLOCK_BYTES_MAX).contains(&payload.len())
        && offset.checked_add(len).is_some()
        && u64::from(crc32(bytes[4..16].iter().chain(payload))) == sum;
    valid.then_some(((offset, payload), &bytes[end..]))
}

/// CRC-32 as in the standard: reflected, 0xedb88320.
fn crc32<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(u32::MAX, |sum, byte| {
        let [low, ..] = sum.to_le_bytes();
        (sum >> 8) ^ TABLE[usize::from(low ^ byte)]
    })
}

/// What each byte does to a sum, a bit at a time.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let (mut byte, mut at) = (0, 0);
    while at < table.len() {
        let (mut sum, mut bit): (u32, _) = (byte, 0);
        while bit < 8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
            bit += 1;
        }
        table[at] = sum;
        (byte, at) = (byte + 1, at + 1);
    }
    table
};

/// A journal that is being written and damaged.
#[derive(Default)]
struct Script {
    /// The stream as it was written, damage or not.
    written: Vec<u8>,
    /// Segments by where they begin.
    files: BTreeMap<u64, Vec<u8>>,
    /// What a follower from the beginning was sent.
    connection: Vec<u8>,
    /// Something of what was written may not be readable.
    is_damaged: bool,
    /// Blocks stand where they were never written.
    is_forged: bool,
}

impl Script {
    fn apply(&mut self, [op, a, b]: [u8; 3]) {
        let (a, b) = (usize::from(a), usize::from(b));
        let end = self.written.len() as u64;
        match op % 10 {
            0 => self.write(a + 1, op),
            1 => self.write((a * 256 + b + 1).min(JOURNAL_BLOCK_BYTES_MAX), op),
            2 => drop(self.files.entry(end).or_default()),
            // The keeper has dropped a segment that was confirmed.
            3 if self.files.len() > 1 => drop(self.files.pop_first()),
            4 => self.damage(|bytes| bytes.truncate(bytes.len().saturating_sub(a + 1))),
            5 => self
                .damage(|bytes| bytes.extend(std::iter::repeat_n(u8::try_from(b).unwrap_or(0), a))),
            6 => self.damage(|bytes| {
                let at = (a * 256 + b) % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (a % 8);
                }
            }),
            7 => self.connection.truncate(self.connection.len().saturating_sub(a * 256 + b)),
            8 => self.forge(end.saturating_add(a as u64).saturating_sub(b as u64), a % 7 + 1),
            9 => self.forge(u64::MAX - a as u64, b + 1),
            _ => {}
        }
    }

    /// A block at the end, as the keeper writes it.
    fn write(&mut self, len: usize, op: u8) {
        let offset = self.written.len() as u64;
        if offset + len as u64 > STREAM_BYTES_MAX {
            return;
        }
        let payload: Vec<u8> = (0..251).map(|i: u8| op.wrapping_add(i)).cycle().take(len).collect();
        let block = [&header(offset, &payload)[..], &payload].concat();
        self.written.extend_from_slice(&payload);
        self.connection.extend_from_slice(&block);
        match self.files.last_entry() {
            Some(mut last) => last.get_mut().extend_from_slice(&block),
            None => drop(self.files.insert(offset, block)),
        }
    }

    /// Something happens to the newest segment.
    fn damage(&mut self, act: impl FnOnce(&mut Vec<u8>)) {
        self.is_damaged = true;
        if let Some(mut last) = self.files.last_entry() {
            act(last.get_mut());
        }
    }

    /// A block with a right sum where none belongs, in the newest segment and on the connection.
    fn forge(&mut self, offset: u64, len: usize) {
        self.is_forged = true;
        let payload = vec![b'!'; len];
        let block = [&header(offset, &payload)[..], &payload].concat();
        self.connection.extend_from_slice(&block);
        if let Some(mut last) = self.files.last_entry() {
            last.get_mut().extend_from_slice(&block);
        }
        if len.is_multiple_of(2) {
            self.files.entry(offset).or_default();
        }
    }

    fn start(&self) -> u64 {
        self.files.keys().next().copied().unwrap_or_default()
    }
}

/// A directory with segments, for as long as this lives.
struct Dir(PathBuf);

impl Dir {
    fn with(files: &BTreeMap<u64, Vec<u8>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("reattach-journal-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).expect("a new directory");
        for (first, bytes) in files {
            fs::write(dir.join(format!("{first:016x}.journal")), bytes).expect("written");
        }
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Left behind, it is the system's to clear away.
        fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_naive_sum_is_the_standards() {
        assert_eq!(crc32(b"123456789".iter()), 0xcbf4_3926);
    }

    /// The fuzzer's seeds, and what it found.
    #[test]
    fn seeds_of_the_fuzzer_pass() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/journal");
        let mut count = 0;
        for file in fs::read_dir(folder).expect("the seeds are committed") {
            check_journal(&fs::read(file.expect("a readable folder").path()).expect("a file"));
            count += 1;
        }
        assert!(count > 0, "no seeds in {folder}");
    }

    proptest! {
        #[test]
        fn any_damage_ends_the_reading_where_it_is(
            bytes in proptest::collection::vec(any::<u8>(), 3..60),
        ) {
            check_journal(&bytes);
        }
    }
}
