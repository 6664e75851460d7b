//! The invariants, checked on what clients see. Messages carry the invariant's number.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::client::Frame;

/// Checks one client's view of all its sessions, across its connections.
///
/// A session's stream begins where the client subscribes; from there on every frame must follow
/// the one before (I2, I4), the head of a run comes first, its one `complete` last (I1, I3).
#[derive(Clone, Debug, Default)]
pub(crate) struct Checker {
    streams: BTreeMap<String, Stream>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    /// The run that the last frame was of, and its seq.
    at: Option<(String, u64)>,
    /// Whether that was a `complete`.
    ended: bool,
    /// Runs whose `complete` was seen.
    completed: BTreeSet<String>,
    /// The next frame may be anywhere: a subscribe without a full cursor.
    loose: bool,
    /// The cursor was not this client's own: it may stand on its run's `complete`.
    borrowed: bool,
}

impl Checker {
    /// Nothing seen yet; streams begin at a run's head.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The client subscribes after (`run`, `seq`), which it did not see itself.
    pub(crate) fn begin_at(&mut self, session: &str, run: &str, seq: u64) {
        let stream =
            Stream { at: Some((run.to_owned(), seq)), borrowed: true, ..Stream::default() };
        self.streams.insert(session.to_owned(), stream);
    }

    /// The client subscribes without saying where: its next frame decides.
    pub(crate) fn begin_anywhere(&mut self, session: &str) {
        let stream = Stream { loose: true, ..Stream::default() };
        self.streams.insert(session.to_owned(), stream);
    }

    /// The last position seen, as a cursor.
    pub(crate) fn cursor(&self, session: &str) -> Option<(String, u64)> {
        self.streams.get(session)?.at.clone()
    }

    /// Whether the last frame of the session was its run's `complete`.
    pub(crate) fn ended(&self, session: &str) -> bool {
        self.streams.get(session).is_some_and(|stream| stream.ended)
    }

    /// Takes the next frame that the client saw.
    #[track_caller]
    pub(crate) fn see(&mut self, frame: &Frame) {
        let Some(session) = frame.json["sessionId"].as_str() else { return };
        if frame.kind() == "gap" {
            panic!("I4b: nothing is gone, yet there is a gap: {}", frame.text);
        }
        let Some(seq) = frame.seq() else { return };
        let run = frame.run().unwrap_or_else(|| panic!("an event without runId: {}", frame.text));
        let stream = self.streams.entry(session.to_owned()).or_default();
        stream.step(run, seq, frame);
    }
}

impl Stream {
    #[track_caller]
    fn step(&mut self, run: &str, seq: u64, frame: &Frame) {
        let text = &frame.text;
        if seq == 0 {
            assert_eq!(frame.kind(), "run_started", "only a run's head has seq 0: {text}");
        }
        match &self.at {
            None if self.loose => {}
            None => assert_eq!(seq, 0, "I4: the stream begins inside a run: {text}"),
            Some((last_run, last)) if last_run == run => {
                assert!(!self.ended, "I3: after complete: {text}");
                assert_eq!(seq, last + 1, "I2/I4: not the next seq after {last}: {text}");
            }
            Some((last_run, last)) => {
                assert!(
                    self.ended || self.borrowed,
                    "I3/I5: a run begins before the last one ended, at {last_run}:{last}: {text}"
                );
                assert_eq!(seq, 0, "I4: a run without its head: {text}");
            }
        }
        assert!(!self.completed.contains(run), "I1/I4: a completed run again: {text}");
        self.loose = false;
        self.borrowed = false;
        self.ended = frame.kind() == "complete";
        if self.ended {
            self.completed.insert(run.to_owned());
        }
        self.at = Some((run.to_owned(), seq));
    }
}

/// What anybody has seen, by run and seq: the bytes must be the same for all (I4, I8).
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    frames: BTreeMap<(String, u64), String>,
}

impl Ledger {
    /// Nothing seen yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes a frame that somebody saw.
    #[track_caller]
    pub(crate) fn see(&mut self, frame: &Frame) {
        let (Some(run), Some(seq)) = (frame.run(), frame.seq()) else { return };
        let known = self.frames.entry((run.to_owned(), seq)).or_insert_with(|| frame.text.clone());
        assert_eq!(*known, frame.text, "I4/I8: one position, two frames");
    }

    /// Everything in `self` is in `log`, byte for byte (I8).
    #[track_caller]
    pub(crate) fn is_within(&self, log: &Self) {
        for ((run, seq), text) in &self.frames {
            let kept = log.frames.get(&(run.clone(), *seq));
            let kept = kept.unwrap_or_else(|| panic!("I8: {run}:{seq} was seen and is lost"));
            assert_eq!(kept, text, "I8: {run}:{seq} was seen with other bytes");
        }
    }

    /// The frames of `run` in order, its head included.
    pub(crate) fn of_run<'a>(&'a self, run: &'a str) -> impl Iterator<Item = (u64, &'a str)> {
        let all = self.frames.iter().filter(move |((of, _), _)| of == run);
        all.map(|((_, seq), text)| (*seq, text.as_str()))
    }

    /// The highest seq of `run`.
    pub(crate) fn last(&self, run: &str) -> Option<u64> {
        self.of_run(run).last().map(|(seq, _)| seq)
    }

    /// How many frames.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }
}

/// Whether a value looks like a time of ours.
pub(crate) fn is_time(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return false };
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000Z"
}

/// Whether a value is a UUID in form.
pub(crate) fn is_uuid(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return false };
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}
