//! A client that counts: it reads frames as fast as it can, and checks that no event is missing.
//!
//! Must not know what is done with the times.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use tungstenite::Utf8Bytes;

use super::failed;
use crate::cli::exit::Failure;
use crate::cli::interrupt::{Interrupts, timespec};
use crate::cli::link::{Link, Lost};
use crate::cli::target::Target;
use crate::limits;

/// A connection, and the signal that ends the bench.
#[derive(Debug)]
pub struct Client<'a> {
    link: Link,
    interrupts: &'a mut Interrupts,
}

/// Times of a flood, all from the same start.
#[derive(Clone, Debug, PartialEq)]
pub struct Flood {
    /// The run.
    pub run: String,
    /// From the prompt to its first event.
    pub first: Duration,
    /// From the prompt to each mark that was asked for.
    pub marks: Vec<Duration>,
    /// From the prompt to the run's end.
    pub end: Duration,
}

impl<'a> Client<'a> {
    /// Connects, and waits to be greeted.
    ///
    /// # Errors
    /// If that fails.
    pub fn connect(target: &Target, interrupts: &'a mut Interrupts) -> Result<Self, Failure> {
        let link = Link::connect(target).map_err(lost)?;
        let mut client = Self { link, interrupts };
        client.until("hello")?;
        Ok(client)
    }

    /// The connection, to be kept open without reading.
    #[must_use]
    pub fn into_link(self) -> Link {
        self.link
    }

    /// Has the demo agent say `events` events of 200 bytes, and reads them to the run's end. The
    /// marks are seqs, rising. `look` is called now and then.
    ///
    /// # Errors
    /// If the run fails, or an event is missing or comes twice.
    pub fn flood(
        &mut self,
        session: &str,
        events: u64,
        marks: &[u64],
        mut look: impl FnMut(),
    ) -> Result<Flood, Failure> {
        let options = json!({"demo": {"flood": events, "floodBytes": EVENT_BYTES}});
        let start = Instant::now();
        self.send(&json!({"type": "chat.send", "sessionId": session, "content": "flood",
            "options": options}))?;
        let run = self.until("chat_accepted")?["runId"].as_str().unwrap_or_default().to_owned();
        let mut flood = Flood {
            run,
            first: Duration::ZERO,
            marks: Vec::with_capacity(marks.len()),
            end: Duration::ZERO,
        };
        let mut count = Count::default();
        loop {
            let frame = self.next()?;
            let Some(seq) = count.take(&frame)? else { continue };
            if seq == 1 {
                flood.first = start.elapsed();
            }
            if marks.get(flood.marks.len()) == Some(&seq) {
                flood.marks.push(start.elapsed());
            }
            if seq % LOOK_EVERY == 0 {
                look();
            }
            if seq > events {
                let end: Value = serde_json::from_str(&frame).unwrap_or_default();
                if end["success"] == true {
                    flood.end = start.elapsed();
                    return Ok(flood);
                }
                return Err(failed(format!("the flood did not end well: {frame}")));
            }
        }
    }

    /// Subscribes to a session as one who saw nothing of `run`, and reads until it is told that it
    /// is caught up. The number of events read.
    ///
    /// # Errors
    /// If an event is missing or comes twice.
    pub fn catch_up(&mut self, session: &str, run: &str) -> Result<u64, Failure> {
        let target = json!({"sessionId": session, "runId": run, "lastSeq": 0});
        self.send(&json!({"type": "chat.subscribe", "sessions": [target]}))?;
        let mut count = Count { last: Some(0) };
        loop {
            let frame = self.next()?;
            if count.take(&frame)?.is_none() && kind(&frame) == "caught_up" {
                return Ok(count.last.unwrap_or(0));
            }
        }
    }

    fn send(&mut self, frame: &Value) -> Result<(), Failure> {
        self.link.send(frame).map_err(lost)
    }

    /// The next frame of the gateway's of this kind.
    fn until(&mut self, wanted: &str) -> Result<Value, Failure> {
        loop {
            let text = self.next()?;
            let frame: Value = serde_json::from_str(&text).unwrap_or_default();
            if frame["kind"] == wanted {
                return Ok(frame);
            }
            if frame["kind"] == "protocol_error" {
                return Err(failed(format!("the server refuses: {text}")));
            }
        }
    }

    fn next(&mut self) -> Result<Utf8Bytes, Failure> {
        let silent = Instant::now() + limits::BENCH_SILENCE;
        loop {
            if let Some(text) = self.link.read().map_err(lost)? {
                return Ok(text);
            }
            if self.link.has_unsent() {
                self.link.flush().map_err(lost)?;
            }
            let left = silent.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed("the server says nothing any more"));
            }
            if self.interrupts.take() {
                return Err(failed("interrupted"));
            }
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, self.link.has_unsent());
            let mut fds =
                [PollFd::new(&self.link, flags), PollFd::new(&*self.interrupts, PollFlags::IN)];
            // A failed poll (a signal came) is a turn of the loop like any other.
            poll(&mut fds, Some(&timespec(left))).ok();
        }
    }
}

/// Bytes of text in one event.
pub const EVENT_BYTES: u64 = 200;
/// Events between two looks at the processes.
const LOOK_EVERY: u64 = 512;

/// The events of one run, which come densely and once.
#[derive(Debug, Default)]
struct Count {
    last: Option<u64>,
}

impl Count {
    /// The seq of an event, if the frame is one.
    fn take(&mut self, frame: &str) -> Result<Option<u64>, Failure> {
        let Some(seq) = seq_of(frame) else { return Ok(None) };
        if self.last.is_some_and(|last| seq != last + 1) {
            let last = self.last.unwrap_or(0);
            return Err(failed(format!(
                "event {seq} came after event {last}: a bug of the server"
            )));
        }
        self.last = Some(seq);
        Ok(Some(seq))
    }
}

/// The seq of an event's frame. Parsing each frame as JSON would measure the client; events begin
/// with their id and seq, and no frame of the gateway's does.
fn seq_of(frame: &str) -> Option<u64> {
    let rest = frame.strip_prefix(r#"{"id":""#)?;
    let rest = rest.get(UUID_CHARS..)?.strip_prefix(r#"","seq":"#)?;
    rest.split(',').next()?.parse().ok()
}

/// Characters of an event's id.
const UUID_CHARS: usize = 36;

fn kind(frame: &str) -> String {
    let frame: Value = serde_json::from_str(frame).unwrap_or_default();
    frame["kind"].as_str().unwrap_or_default().to_owned()
}

fn lost(lost: Lost) -> Failure {
    match lost {
        Lost::Again(why) => failed(format!("the connection to the server broke: {why}")),
        Lost::Fatal(failure) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::Encoder;
    use crate::run::event::Event;
    use crate::run::id::{Millis, RunId, Seq, SessionId};

    #[test]
    fn events_are_counted_and_a_missing_one_is_noticed() {
        let mut encoder =
            Encoder::new(SessionId::from_u128(1), RunId::from_u128(2), "demo", 1 << 18);
        let mut frame = |seq| {
            let content = "x".repeat(200);
            let event = Event::Text { content, role: None, block_id: None, parent_tool_id: None };
            encoder.encode(Seq(seq), Millis(0), &event).text
        };
        let mut count = Count::default();
        assert_eq!(count.take(r#"{"kind":"caught_up","seq":7}"#).expect("no event"), None);
        for seq in [1, 2, 3] {
            assert_eq!(count.take(&frame(seq)).expect("dense"), Some(seq));
        }
        assert!(count.take(&frame(3)).is_err(), "twice");
        assert!(count.take(&frame(5)).is_err(), "a hole");
    }
}
