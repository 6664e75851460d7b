//! A client's place in one session's log: what it has seen, what to ask for, what to show.
//!
//! Pure: frames in, decisions out; no socket, no clock, no printing. It is why a line is printed
//! once, whatever is cut and replayed (the client's half of I4): an event is shown if and only if
//! it is the one after the last one shown. Must not know how frames travel.

use std::collections::VecDeque;

use serde_json::{Value, json};

/// A position in a session's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The run.
    pub run: String,
    /// The event in it; 0 is `run_started`.
    pub seq: u64,
}

/// Where to begin when nothing has been seen yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The oldest event kept.
    Start,
    /// Only what comes.
    Tail,
    /// A run, from its head.
    Run(String),
    /// After a position.
    After(Mark),
}

/// What a frame means to somebody who follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// The next event: show it.
    Event,
    /// The next event, but some before it never came, although they were asked for twice.
    EventAfterLoss {
        /// How the loss reads to people.
        lost: String,
    },
    /// An event that was shown before.
    Repeat,
    /// An event is missing before this one: subscribe again. Nothing was taken.
    Hole,
    /// Events are gone for good, by the server's word.
    Gap {
        /// The frame's `from`, `null` if everything up to `to` is gone.
        from: Value,
        /// The frame's `to`.
        to: Value,
    },
    /// The answer to our subscribe.
    Subscribed {
        /// The log is not the one that we followed (a backup was restored): what was shown of
        /// this run may differ, and it comes again from its start.
        rewound: bool,
        /// Events gone for good before what follows.
        gap: Option<(Value, Value)>,
        /// Whether a run is on.
        processing: bool,
    },
    /// The answer to our subscribe is an error: its code.
    Refused(String),
    /// What was asked for has come; from here on it is live.
    CaughtUp {
        /// How many events came since the subscribe.
        events: u64,
    },
    /// A frame about something else.
    Other,
}

/// How many runs before the current one are remembered, to know a late frame of theirs.
const PASSED_MAX: usize = 1024;

/// One session, followed.
#[derive(Debug)]
pub struct Follow {
    session: String,
    begin: Begin,
    cursor: Option<Mark>,
    /// Whether the cursor's run is known to have more to come: its `complete` was not seen.
    open: bool,
    epoch: Option<String>,
    /// Runs before the cursor's run.
    passed: VecDeque<String>,
    /// Numbers our subscribes, so that the answer to an earlier one is not taken for the last's.
    subscribes: u64,
    /// Whether the last subscribe was answered; events before that are of an earlier one.
    subscribed: bool,
    live: bool,
    events: u64,
    /// Where a hole made us subscribe again. The same hole twice is a loss.
    hole: Option<Mark>,
}

impl Follow {
    /// Follows `session`, from `begin` on.
    #[must_use]
    pub fn new(session: impl Into<String>, begin: Begin) -> Self {
        let cursor = match &begin {
            Begin::After(mark) => Some(mark.clone()),
            _ => None,
        };
        Self {
            session: session.into(),
            begin,
            cursor,
            open: false,
            epoch: None,
            passed: VecDeque::new(),
            subscribes: 0,
            subscribed: false,
            live: false,
            events: 0,
            hole: None,
        }
    }

    /// The session's id.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.session
    }

    /// The last event shown.
    #[must_use]
    pub const fn cursor(&self) -> Option<&Mark> {
        self.cursor.as_ref()
    }

    /// Whether everything that was asked for has come.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.live
    }

    /// Whether it began with what comes, so that nothing before is known.
    #[must_use]
    pub fn is_tail(&self) -> bool {
        self.begin == Begin::Tail
    }

    /// The connection is gone: what comes next belongs to another one.
    pub const fn disconnected(&mut self) {
        self.subscribed = false;
        self.live = false;
    }

    /// The frame that asks for what is missing. Each call makes the ones before it void.
    pub fn subscribe(&mut self) -> Value {
        self.subscribes += 1;
        self.subscribed = false;
        self.live = false;
        self.events = 0;
        let mut target = json!({"sessionId": self.session});
        match (&self.cursor, &self.begin) {
            (Some(mark), _) => {
                target["runId"] = json!(mark.run);
                target["lastSeq"] = json!(mark.seq);
            }
            (None, Begin::Run(run)) => target["runId"] = json!(run),
            (None, Begin::Tail) => target["from"] = json!("tail"),
            (None, Begin::Start | Begin::After(_)) => target["from"] = json!("start"),
        }
        let mut frame =
            json!({"type": "chat.subscribe", "sessions": [target], "ref": self.reference()});
        if let Some(epoch) = &self.epoch {
            frame["logEpoch"] = json!(epoch);
        }
        frame
    }

    /// Takes one frame of the server.
    pub fn take(&mut self, frame: &Value) -> Taken {
        if frame["sessionId"] != self.session.as_str() {
            // A malformed subscribe is answered without a session; the `ref` says that it is ours.
            let ours = frame["kind"] == "protocol_error" && frame["ref"] == self.reference();
            return if ours { Taken::Refused(word(frame, "code")) } else { Taken::Other };
        }
        if let Some(mark) = position_of_event(frame) {
            return if self.subscribed { self.event(frame, mark) } else { Taken::Repeat };
        }
        match frame["kind"].as_str() {
            Some("chat_subscribed") if frame["ref"] == self.reference() => self.answer(frame),
            Some("protocol_error") if frame["ref"] == self.reference() => {
                Taken::Refused(word(frame, "code"))
            }
            Some("session_deleted") => Taken::Refused("SESSION_NOT_FOUND".into()),
            Some("gap") if self.subscribed => {
                self.skip(&frame["to"]);
                Taken::Gap { from: frame["from"].clone(), to: frame["to"].clone() }
            }
            Some("caught_up") if self.subscribed => self.caught_up(frame),
            _ => Taken::Other,
        }
    }

    fn reference(&self) -> String {
        format!("subscribe-{}", self.subscribes)
    }

    fn answer(&mut self, frame: &Value) -> Taken {
        if let Some(code) = frame["error"].as_str() {
            return Taken::Refused(code.to_owned());
        }
        self.subscribed = true;
        if let Some(epoch) = frame["logEpoch"].as_str() {
            self.epoch = Some(epoch.to_owned());
        }
        let rewound = frame["rewound"] == true;
        if rewound {
            // The numbers that we know belong to a log that is no more. Until the first event
            // comes, a cut must not make us ask by them, but by the run that comes again.
            if let Some(mark) = self.cursor.take() {
                self.begin = Begin::Run(mark.run);
            }
            self.hole = None;
        }
        let gap = &frame["gap"];
        let gap = gap.is_object().then(|| {
            self.skip(&gap["to"]);
            (gap["from"].clone(), gap["to"].clone())
        });
        Taken::Subscribed { rewound, gap, processing: frame["isProcessing"] == true }
    }

    fn event(&mut self, frame: &Value, mark: Mark) -> Taken {
        let next = match &self.cursor {
            // A run is opened by its head, unless we came in the midst of it.
            None => self.is_tail() || mark.seq == 0,
            Some(cursor) if cursor.run == mark.run => {
                if mark.seq <= cursor.seq {
                    return Taken::Repeat;
                }
                mark.seq == cursor.seq + 1
            }
            Some(_) if self.passed.contains(&mark.run) => return Taken::Repeat,
            // And it begins after the end of the one before (I3).
            Some(_) => mark.seq == 0 && !self.open,
        };
        if next {
            self.advance(frame, mark);
            return Taken::Event;
        }
        if self.hole.as_ref() != Some(&mark) {
            return self.found_hole(mark);
        }
        let lost = match &self.cursor {
            Some(cursor) if cursor.run == mark.run => {
                format!("events {} to {} of run {}", cursor.seq + 1, mark.seq - 1, mark.run)
            }
            _ => format!("the events before {} of run {}", mark.seq, mark.run),
        };
        self.advance(frame, mark);
        Taken::EventAfterLoss { lost }
    }

    fn found_hole(&mut self, at: Mark) -> Taken {
        self.hole = Some(at);
        // Whatever else this subscription sends lies behind the hole.
        self.subscribed = false;
        Taken::Hole
    }

    fn advance(&mut self, frame: &Value, mark: Mark) {
        self.events += 1;
        self.hole = None;
        self.go_to(mark);
        self.open = frame["kind"] != "complete";
    }

    fn go_to(&mut self, mark: Mark) {
        self.open = false;
        if let Some(before) = self.cursor.replace(mark) {
            let now = self.cursor.as_ref().map(|mark| &mark.run);
            if now != Some(&before.run) && !self.passed.contains(&before.run) {
                if self.passed.len() == PASSED_MAX {
                    self.passed.pop_front();
                }
                self.passed.push_back(before.run);
            }
        }
    }

    /// Past what is gone; but never back, since what was shown was shown.
    fn skip(&mut self, to: &Value) {
        let Some(mark) = position(to) else { return };
        let back = self.passed.contains(&mark.run)
            || self.cursor.as_ref().is_some_and(|at| at.run == mark.run && at.seq >= mark.seq);
        if !back {
            self.go_to(mark);
        }
    }

    fn caught_up(&mut self, frame: &Value) -> Taken {
        if let Some(mark) = position(frame) {
            match &self.cursor {
                None => self.cursor = Some(mark),
                Some(cursor) if cursor.run == mark.run && cursor.seq < mark.seq => {
                    if self.hole.as_ref() != Some(&mark) {
                        return self.found_hole(mark);
                    }
                    // The same hole again: live events will show whether anything is lost.
                }
                Some(_) => {}
            }
        }
        self.live = true;
        Taken::CaughtUp { events: self.events }
    }
}

/// The position of a frame that is an event of a run, and not a frame of the gateway's that
/// happens to name one: only events name their provider and have a seq.
fn position_of_event(frame: &Value) -> Option<Mark> {
    if frame["provider"].is_string() { position(frame) } else { None }
}

/// The position that a value with `runId` and `seq` names.
#[must_use]
pub fn position(value: &Value) -> Option<Mark> {
    let run = value["runId"].as_str()?;
    Some(Mark { run: run.to_owned(), seq: value["seq"].as_u64()? })
}

fn word(frame: &Value, field: &str) -> String {
    frame[field].as_str().unwrap_or("INTERNAL_ERROR").to_owned()
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
