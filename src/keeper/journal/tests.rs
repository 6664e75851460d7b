use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::limits::{JOURNAL_BLOCK_BYTES_MAX, JOURNAL_SEGMENT_BYTES};

/// The agent's stream in these tests: each byte tells its offset.
fn stream(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|offset| offset.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect()
}

fn journal() -> (TempDir, Journal) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = Journal::new(dir.path().to_owned(), u64::MAX);
    (dir, journal)
}

/// Appends the stream up to `to`, in one flush.
fn append(journal: &mut Journal, to: u64) {
    let from = journal.end() + journal.backlog.pending() as u64;
    journal.backlog.buffer().extend(stream(from, to));
    assert!(matches!(journal.flush(Instant::now()), Written::Some));
    assert_eq!((journal.end(), journal.backlog.pending()), (to, 0));
}

fn read_all(mut stream: Stream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the files can be read");
    all
}

fn read_from(dir: &TempDir, offset: u64) -> Vec<u8> {
    read_all(Stream::of_files(dir.path(), offset).expect("the files can be read"))
}

fn end(dir: &TempDir) -> u64 {
    end_of(dir.path()).expect("the files can be read")
}

#[test]
fn a_stream_comes_back_from_any_offset_across_blocks_and_segments() {
    let (dir, mut journal) = journal();
    let mut to = 0;
    for step in [1, 100, 70_000, 5_000_000, 7, 300_000, 4_500_000] {
        to += step;
        append(&mut journal, to);
    }
    let firsts = segments(dir.path()).expect("a list");
    assert!(firsts.len() >= 3, "{firsts:?}");
    for offset in [0, 1, 101, 65_000, firsts[1] - 1, firsts[1], firsts[1] + 1, to - 1, to] {
        assert!(read_from(&dir, offset) == stream(offset, to), "from {offset}");
    }
    assert_eq!(end(&dir), to);
    for first in firsts {
        let len = segment_path(dir.path(), first).metadata().expect("a file").len();
        let block = (JOURNAL_BLOCK_BYTES_MAX + BLOCK_HEADER_BYTES) as u64;
        assert!(len < JOURNAL_SEGMENT_BYTES + block, "{len}");
    }
}

#[test]
fn a_tail_torn_at_any_byte_ends_the_stream_before_its_block() {
    let (dir, mut journal) = journal();
    append(&mut journal, 500);
    append(&mut journal, 700);
    let file = segment_path(dir.path(), 0);
    let bytes = std::fs::read(&file).expect("a file");
    let last = bytes.len() - 200 - BLOCK_HEADER_BYTES;
    for cut in last..bytes.len() {
        std::fs::write(&file, &bytes[..cut]).expect("a cut");
        assert_eq!(end(&dir), 500, "cut at {cut}");
        assert!(read_from(&dir, 300) == stream(300, 500), "cut at {cut}");
        let mut damaged = bytes.clone();
        damaged[cut] ^= 0x10;
        std::fs::write(&file, &damaged).expect("a flipped bit");
        assert!(read_from(&dir, 300) == stream(300, 500), "a bit of byte {cut}");
    }
    std::fs::write(&file, [&bytes[..], &[0; 300]].concat()).expect("zeros behind it");
    assert!(read_from(&dir, 0) == stream(0, 700));
}

/// What a block that could neither be written nor taken back leaves.
#[test]
fn a_torn_block_is_passed_over_if_the_next_segment_begins_where_it_does() {
    let (dir, mut journal) = journal();
    append(&mut journal, 500);
    let torn = [&header(500, &stream(500, 900))[..], &stream(500, 600)].concat();
    let mut file =
        std::fs::OpenOptions::new().append(true).open(segment_path(dir.path(), 0)).expect("it");
    file.write_all(&torn).expect("written");
    let next = stream(500, 800);
    let block = [&header(500, &next)[..], &next].concat();
    std::fs::write(segment_path(dir.path(), 500), block).expect("written");
    assert!(read_from(&dir, 100) == stream(100, 800));
    // A segment in which nothing is whole ends where it begins.
    std::fs::write(segment_path(dir.path(), 800), &torn[..10]).expect("written");
    assert!(read_from(&dir, 100) == stream(100, 800));
    assert_eq!(end(&dir), 800);
}

#[test]
fn a_block_that_does_not_belong_there_ends_the_stream() {
    let (dir, mut journal) = journal();
    append(&mut journal, 500);
    let elsewhere = stream(700, 710);
    let block = [&header(700, &elsewhere)[..], &elsewhere].concat();
    let path = segment_path(dir.path(), 0);
    let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("it");
    file.write_all(&block).expect("written");
    assert!(read_from(&dir, 0) == stream(0, 500));
}

#[test]
fn whole_segments_are_dropped_and_never_the_last() {
    let (dir, mut journal) = journal();
    append(&mut journal, 9_000_000);
    let firsts = segments(dir.path()).expect("a list");
    assert_eq!(firsts.len(), 3);
    journal.drop_before(firsts[1] - 1).expect("nothing to drop");
    assert_eq!(segments(dir.path()).expect("a list"), firsts);
    journal.drop_before(firsts[2] - 1).expect("dropped");
    assert_eq!((journal.start(), journal.end()), (firsts[1], 9_000_000));
    assert_eq!(segments(dir.path()).expect("a list"), firsts[1..]);
    assert!(read_from(&dir, firsts[1]) == stream(firsts[1], 9_000_000));
    assert!(read_from(&dir, firsts[1] - 1).is_empty(), "not even a part");
    journal.drop_before(u64::MAX).expect("dropped");
    assert_eq!(segments(dir.path()).expect("a list"), firsts[2..]);
    append(&mut journal, 9_000_100);
    assert!(read_from(&dir, firsts[2]) == stream(firsts[2], 9_000_100));
}

#[test]
fn room_is_what_the_bound_leaves() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::new(dir.path().to_owned(), 20_000_000);
    append(&mut journal, 10_000_000);
    assert!(journal.backlog.takes_lines(1_000_000));
    assert!(!journal.backlog.takes_lines(5_000_000));
    assert!(journal.backlog.takes_writes(5_000_000), "lines leave room for writes");
    assert!(!journal.backlog.takes_writes(7_000_000));
    journal.drop_before(5_000_000).expect("dropped");
    assert!(journal.backlog.takes_lines(5_000_000));
}

#[test]
fn a_journal_that_cannot_be_written_keeps_what_waits_and_says_so_once() {
    let (dir, mut journal) = journal();
    append(&mut journal, 500);
    journal.file = None;
    let home = dir.path().join("home");
    let before = std::mem::replace(&mut journal.dir, home.clone());
    journal.segments[0].bytes = JOURNAL_SEGMENT_BYTES;
    journal.backlog.buffer().extend(stream(500, 800));
    let now = Instant::now();
    assert!(matches!(journal.flush(now), Written::Failed(_)));
    assert!(journal.is_lost());
    let due = journal.due().expect("a time to try again");
    assert!(matches!(journal.flush(now), Written::Nothing), "not before it is time");
    assert!(matches!(journal.flush(due), Written::Nothing), "that was said");
    std::fs::create_dir(&home).expect("a directory");
    assert!(matches!(journal.flush(journal.due().expect("a time")), Written::Recovered));
    assert_eq!((journal.end(), journal.due(), journal.is_failing()), (800, None, false));
    assert!(read_all(Stream::of_files(&home, 500).expect("files")) == stream(500, 800));
    drop(before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A connection that is lost anywhere, within a block as well: the files go on.
    #[test]
    fn the_files_go_on_where_a_connection_is_lost(
        steps in proptest::collection::vec(1u64..90_000, 1..12),
        offset in any::<proptest::sample::Index>(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let (dir, mut journal) = journal();
        let mut to = 0;
        for step in steps {
            to += step;
            append(&mut journal, to);
        }
        let offset = offset.index(usize::try_from(to).expect("short") + 1) as u64;
        let bytes = std::fs::read(segment_path(dir.path(), 0)).expect("one segment");
        let cut = cut.index(bytes.len() + 1);
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let sent = bytes[..cut].to_vec();
        let keeper = std::thread::Builder::new().name("keeper".into());
        let keeper = keeper.spawn(move || theirs.write_all(&sent).expect("sent")).expect("it");
        let live = Stream::live(dir.path(), ours.into(), offset);
        prop_assert!(read_all(live) == stream(offset, to));
        keeper.join().expect("sent");
    }
}
