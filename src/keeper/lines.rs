//! Bytes into lines, with a bound: where a chunk ends makes no difference to the lines.
//!
//! Must not know descriptors, records, what a line means.

use crate::limits::LINE_HEAD_BYTES;

/// What a splitter finds. Lines come without their `\n`; a `\r` before it is the line's own.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line, or the rest after the last line end.
    Whole(&'a [u8]),
    /// A line over the cap: its length and its first bytes.
    Capped {
        /// The whole line's length in bytes.
        bytes: u64,
        /// How it began.
        head: &'a [u8],
    },
}

/// What becomes of a line over the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// One `Capped` with length and head; the rest is passed over.
    Head,
    /// Pieces of cap length, so that nothing is lost.
    Cut,
}

/// The state between two chunks. Holds at most one line of `cap` bytes (I7).
#[derive(Debug)]
pub struct Splitter {
    cap: usize,
    over: Over,
    /// The unfinished line; only its head once it is over the cap.
    partial: Vec<u8>,
    /// Bytes of the unfinished line that were passed over after `partial`.
    skipped: u64,
    skipping: bool,
}

impl Splitter {
    /// A splitter for lines of at most `cap` bytes (at least 1).
    #[must_use]
    pub fn new(cap: usize, over: Over) -> Self {
        Self { cap: cap.max(1), over, partial: Vec::new(), skipped: 0, skipping: false }
    }

    /// Bytes that are kept until their line ends.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.partial.len()
    }

    /// Takes a chunk and gives the lines that end in it.
    pub fn push(&mut self, chunk: &[u8], mut each: impl FnMut(Line<'_>)) {
        let mut rest = chunk;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (segment, after) = (&rest[..at], &rest[at + 1..]);
            rest = after;
            if self.partial.is_empty() && !self.skipping && segment.len() <= self.cap {
                each(Line::Whole(segment));
                continue;
            }
            self.extend(segment, &mut each);
            self.finish(&mut each);
        }
        self.extend(rest, &mut each);
    }

    /// The input is over: what follows the last line end is a line too, unless it is empty.
    pub fn end(&mut self, mut each: impl FnMut(Line<'_>)) {
        if !self.partial.is_empty() || self.skipping {
            self.finish(&mut each);
        }
    }

    /// Appends to the unfinished line.
    fn extend(&mut self, mut segment: &[u8], each: &mut impl FnMut(Line<'_>)) {
        if self.skipping {
            return self.skip(segment);
        }
        while self.partial.len() + segment.len() > self.cap {
            match self.over {
                Over::Cut => {
                    let (piece, after) = segment.split_at(self.cap - self.partial.len());
                    self.partial.extend_from_slice(piece);
                    each(Line::Whole(&self.partial));
                    self.partial.clear();
                    segment = after;
                }
                Over::Head => {
                    self.skipping = true;
                    self.skipped = self.partial.len().saturating_sub(LINE_HEAD_BYTES) as u64;
                    self.partial.truncate(LINE_HEAD_BYTES);
                    self.partial.shrink_to(LINE_HEAD_BYTES);
                    return self.skip(segment);
                }
            }
        }
        self.partial.extend_from_slice(segment);
    }

    /// Passes over what is beyond the head. The cap may be shorter than the head.
    fn skip(&mut self, segment: &[u8]) {
        let missing = LINE_HEAD_BYTES - self.partial.len();
        let (head, rest) = segment.split_at(missing.min(segment.len()));
        self.partial.extend_from_slice(head);
        self.skipped += rest.len() as u64;
    }

    /// The unfinished line is finished.
    fn finish(&mut self, each: &mut impl FnMut(Line<'_>)) {
        if self.skipping {
            let bytes = self.partial.len() as u64 + self.skipped;
            each(Line::Capped { bytes, head: &self.partial });
        } else {
            each(Line::Whole(&self.partial));
        }
        self.skipping = false;
        self.skipped = 0;
        self.partial.clear();
        // One long line must not cost its memory for the rest of the agent's life.
        self.partial.shrink_to(64 << 10);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Owned {
        Whole(Vec<u8>),
        Capped(u64, Vec<u8>),
    }

    fn split<'a>(cap: usize, over: Over, chunks: impl Iterator<Item = &'a [u8]>) -> Vec<Owned> {
        let mut lines = Vec::new();
        let mut keep = |line: Line<'_>| {
            lines.push(match line {
                Line::Whole(bytes) => Owned::Whole(bytes.to_vec()),
                Line::Capped { bytes, head } => Owned::Capped(bytes, head.to_vec()),
            });
        };
        let mut splitter = Splitter::new(cap, over);
        for chunk in chunks {
            splitter.push(chunk, &mut keep);
        }
        splitter.end(&mut keep);
        lines
    }

    /// The lines by their definition, without a state.
    fn reference(cap: usize, over: Over, input: &[u8]) -> Vec<Owned> {
        let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        if lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        let mut expected = Vec::new();
        for line in lines {
            match over {
                _ if line.len() <= cap => expected.push(Owned::Whole(line.to_vec())),
                Over::Head => {
                    let head = line[..line.len().min(LINE_HEAD_BYTES)].to_vec();
                    expected.push(Owned::Capped(line.len() as u64, head));
                }
                Over::Cut => {
                    expected.extend(line.chunks(cap).map(|piece| Owned::Whole(piece.to_vec())));
                }
            }
        }
        expected
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_lines(
            input in proptest::collection::vec(prop_oneof![3 => Just(b'x'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..400),
            cuts in proptest::collection::vec(1usize..40, 1..20),
            cap in 1usize..30,
            cut in any::<bool>(),
        ) {
            let over = if cut { Over::Cut } else { Over::Head };
            let mut chunks = Vec::new();
            let mut rest = &input[..];
            for size in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (chunk, after) = rest.split_at((*size).min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            prop_assert_eq!(split(cap, over, chunks.into_iter()), reference(cap, over, &input));
        }
    }

    #[test]
    fn a_line_of_cap_length_is_whole_and_one_byte_more_is_not() {
        let cap = LINE_HEAD_BYTES + 10;
        let mut input = vec![b'a'; cap];
        input.push(b'\n');
        input.extend(vec![b'b'; cap + 1]);
        input.extend(b"\nnext\n");
        let lines = split(cap, Over::Head, input.chunks(1000));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], Owned::Whole(vec![b'a'; cap]));
        assert_eq!(lines[1], Owned::Capped(cap as u64 + 1, vec![b'b'; LINE_HEAD_BYTES]));
        assert_eq!(lines[2], Owned::Whole(b"next".to_vec()));
    }

    #[test]
    fn memory_is_given_back_after_a_long_line() {
        let mut splitter = Splitter::new(1 << 20, Over::Head);
        splitter.push(&vec![b'x'; 1 << 20], |_| {});
        splitter.push(b"\n", |_| {});
        assert!(splitter.partial.capacity() <= 64 << 10);
        splitter.push(&vec![b'x'; (1 << 20) - 1], |_| {});
        splitter.push(&[b'x'; 100], |_| {});
        assert!(splitter.partial.capacity() <= 64 << 10, "only the head of a capped line is kept");
    }
}
