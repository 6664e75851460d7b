//! Server-sent events as bytes on their way out, and the place that each of them names.
//!
//! An event is a frame of the WebSocket, byte for byte, with its cursor as the id. It has no
//! name, so that an `EventSource` gives all of them to `onmessage`; what a frame is stands in its
//! `kind`. Must not know sockets or the registry.

use std::io::Write as _;

use serde::Deserialize;

use crate::run::id::{LogEpoch, Ordinal, Position, RunId, Seq};

/// The run that stands before all runs: the cursor of a session that has none yet.
pub const NO_RUN: RunId = RunId::from_u128(0);

/// An event's place, as clients name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its run.
    pub(super) run: RunId,
    /// Its seq.
    pub(super) seq: Seq,
}

/// What is on its way to one client: as much as one turn reads, then nothing more until it left.
#[derive(Debug)]
pub(super) struct Outgoing {
    epoch: LogEpoch,
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Nothing yet.
    #[must_use]
    pub(super) const fn new(epoch: LogEpoch) -> Self {
        Self { epoch, bytes: Vec::new(), sent: 0 }
    }

    /// Adds how long the client should wait before it comes back.
    pub(super) fn retry(&mut self, ms: i64) {
        self.line(format_args!("retry: {ms}\n\n"));
    }

    /// Adds a comment, which only shows that we are here.
    pub(super) fn ping(&mut self) {
        self.line(format_args!(": ping\n\n"));
    }

    /// Adds a frame. An event without a place leaves the client's cursor where it is.
    pub(super) fn event(&mut self, place: Option<Place>, frame: &str) {
        // JSON as we write it escapes both; a line end would make two lines of one frame.
        debug_assert!(!frame.contains(['\n', '\r']), "a frame is one line");
        if let Some(Place { run, seq }) = place {
            let epoch = self.epoch;
            self.line(format_args!("id: {run}:{}@{epoch}\n", seq.0));
        }
        self.line(format_args!("data: {frame}\n\n"));
    }

    /// What waits to be sent.
    #[must_use]
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// So much of it has left.
    pub(super) fn left(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.bytes.len() {
            // An idle client should cost as little as it can.
            self.bytes = Vec::new();
            self.sent = 0;
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Memory takes everything.
        self.bytes.write_fmt(line).ok();
    }
}

/// A reader's place in the log: as a position, by which is read, and as clients name it.
#[derive(Debug)]
pub(super) struct Reading {
    /// Up to where frames were read.
    pub(super) cursor: Position,
    /// The run of the last frame, and its place in the session.
    run: Option<(Ordinal, RunId)>,
    /// The last place that the client was told.
    last: Option<Place>,
}

impl Reading {
    /// A reader that begins at `cursor`.
    #[must_use]
    pub(super) const fn from(cursor: Position) -> Self {
        Self { cursor, run: None, last: None }
    }

    /// The last place that the client was told; else `start`, which is where it begins.
    #[must_use]
    pub(super) fn told(&self, start: Place) -> Place {
        self.last.unwrap_or(start)
    }

    /// Moves on over a frame, and names its place. Positions count runs; which run it is is told
    /// by the frame itself, once per run.
    pub(super) fn pass(&mut self, at: Position, frame: &str) -> Option<Place> {
        self.cursor = at;
        let run = match self.run {
            Some((ordinal, run)) if ordinal == at.ordinal => run,
            _ => {
                let run = serde_json::from_str::<Envelope>(frame).ok()?.run_id;
                self.run = Some((at.ordinal, run));
                run
            }
        };
        self.last = Some(Place { run, seq: at.seq });
        self.last
    }

    /// Moves on over what is gone: the last of it was at `place`.
    pub(super) fn skip(&mut self, cursor: Position, place: Place) {
        self.cursor = cursor;
        self.last = Some(place);
    }
}

/// What every frame of the log has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    run_id: RunId,
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId::from_u128(7);
    const EPOCH: LogEpoch = LogEpoch::from_u128(9);

    fn text(out: &Outgoing) -> &str {
        std::str::from_utf8(out.waiting()).expect("UTF-8")
    }

    #[test]
    fn an_event_is_its_place_and_its_frame() {
        let mut out = Outgoing::new(EPOCH);
        out.retry(1000);
        out.event(Some(Place { run: RUN, seq: Seq(3) }), r#"{"kind":"text","content":"a\nb: c"}"#);
        out.event(None, r#"{"kind":"chat_subscribed"}"#);
        out.ping();
        let expected = format!(
            "retry: 1000\n\nid: {RUN}:3@{EPOCH}\ndata: {}\n\ndata: {}\n\n: ping\n\n",
            r#"{"kind":"text","content":"a\nb: c"}"#, r#"{"kind":"chat_subscribed"}"#
        );
        assert_eq!(text(&out), expected);
        for byte in expected.bytes() {
            assert_eq!(out.waiting().first(), Some(&byte));
            out.left(1);
        }
        assert!(out.waiting().is_empty());
    }

    #[test]
    fn a_place_is_named_by_the_frames_run_which_is_read_once() {
        let mut reading = Reading::from(Position::START);
        let start = Place { run: NO_RUN, seq: Seq(0) };
        assert_eq!(reading.told(start), start);
        let at = |ordinal, seq| Position::new(Ordinal(ordinal), Seq(seq));
        let head = format!(r#"{{"kind":"run_started","runId":"{RUN}","seq":0}}"#);
        assert_eq!(reading.pass(at(1, 0), &head), Some(Place { run: RUN, seq: Seq(0) }));
        assert_eq!(reading.pass(at(1, 1), "not looked at"), Some(Place { run: RUN, seq: Seq(1) }));
        assert_eq!((reading.cursor, reading.told(start).seq), (at(1, 1), Seq(1)));
        assert_eq!(reading.pass(at(2, 0), "no run"), None);
        let next = Place { run: RunId::from_u128(8), seq: Seq(5) };
        reading.skip(at(3, 5), next);
        assert_eq!((reading.cursor, reading.told(start)), (at(3, 5), next));
    }
}
