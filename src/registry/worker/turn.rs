//! An agent's conversation as the worker folds it: records in, events out, with what each changes.
//!
//! Pure, and a value that a checkpoint saves. Must not know threads, channels or locks.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::provider::{Adapter, Decision, Ending, Exit, Origin, Output, Record, RecordBody, Write};
use crate::registry::{request_id, synthetic_result};
use crate::run::change::Mark;
use crate::run::event::{CancelReason, ErrorSource, Event};
use crate::run::id::{Millis, NativeId, RequestId, RunId};

/// An event that waits to be appended.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    /// Its record's time.
    pub at: Millis,
    /// What happened.
    pub event: Event,
    /// What it changes.
    pub mark: Option<Mark>,
    /// Only if this request still waits for its answer when the event is appended.
    pub if_open: Option<RequestId>,
    /// On the last event of a record: the record's end offset.
    pub record_end: Option<u64>,
}

impl Staged {
    pub(super) const fn new(at: Millis, event: Event, mark: Option<Mark>) -> Self {
        Self { at, event, mark, if_open: None, record_end: None }
    }

    /// About how many bytes its frame will have. Only text is ever long.
    pub(super) fn weight(&self) -> usize {
        match &self.event {
            Event::Text { content, .. }
            | Event::Thinking { content, .. }
            | Event::StreamDelta { content, .. }
            | Event::Error { content, .. }
            | Event::Raw { content, .. } => ENVELOPE_BYTES + content.len(),
            Event::Custom(custom) => {
                let strings = custom.fields.values().filter_map(|value| value.as_str());
                ENVELOPE_BYTES + strings.map(str::len).sum::<usize>()
            }
            _ => ENVELOPE_BYTES,
        }
    }
}

/// About what an envelope has.
const ENVELOPE_BYTES: usize = 300;

/// What a fold asks of the worker beside events.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// An automatic reply to the agent.
    Reply(Write),
    /// The agent named its conversation.
    Native(NativeId),
    /// The run's turn is over.
    TurnEnded(Ending),
    /// The process has ended, and everything that it said came before.
    Exited(Exit),
}

/// An agent's conversation and the turn that is on: what a checkpoint saves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The newest run that the agent served.
    run: RunId,
    /// Whether that run is on.
    on: bool,
    /// Whether a turn of it has begun: what a warm process says before that is of the run before
    /// (I6).
    begun: bool,
    adapter: Adapter,
    /// Who began the agent's turn that is on, inside of the run.
    inner: Origin,
    /// Who began the run: its end is the terminal of a turn of that origin.
    origin: Origin,
    /// Tool calls without a result, oldest first, and those that had one.
    open_tools: VecDeque<String>,
    closed_tools: BTreeSet<String>,
    open_requests: VecDeque<RequestId>,
    /// The end of what the agent wrote to stderr.
    stderr: String,
    /// What the keeper decided by itself, if it stopped the agent.
    stopped_by_keeper: Option<Decision>,
    /// What the agent last called its conversation. Kept to take it out of stderr (I10).
    native: Option<NativeId>,
    /// What the agent did outside of any run: counted, not logged.
    #[serde(skip)]
    pub(super) late_events: u64,
}

impl Turn {
    /// For a run that a prompt began. `native` is the conversation that the process goes on with,
    /// if it goes on with one.
    #[must_use]
    pub const fn new(run: RunId, adapter: Adapter, native: Option<NativeId>) -> Self {
        Self {
            run,
            on: true,
            begun: true,
            adapter,
            inner: Origin::User,
            origin: Origin::User,
            open_tools: VecDeque::new(),
            closed_tools: BTreeSet::new(),
            open_requests: VecDeque::new(),
            stderr: String::new(),
            stopped_by_keeper: None,
            native,
            late_events: 0,
        }
    }

    /// The next run of the same process begins.
    pub fn begin(&mut self, run: RunId, origin: Origin) {
        self.run = run;
        self.on = true;
        self.begun = false;
        self.origin = origin;
        self.inner = origin;
        self.open_tools.clear();
        self.closed_tools.clear();
        self.open_requests.clear();
        self.stderr.clear();
    }

    /// The run has its end; the process may go on.
    pub fn end(&mut self) {
        self.on = false;
        self.open_tools.clear();
        self.open_requests.clear();
    }

    /// The newest run that the agent served.
    #[must_use]
    pub const fn run(&self) -> RunId {
        self.run
    }

    /// Whether that run is on.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// The dialect, and how far it got.
    #[must_use]
    pub const fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// What the agent last called its conversation.
    #[must_use]
    pub const fn native(&self) -> Option<&NativeId> {
        self.native.as_ref()
    }

    /// Whether a person's answer is waited for.
    pub(super) fn waits(&self) -> bool {
        !self.open_requests.is_empty()
    }

    /// An answer was given: the request waits no longer.
    pub fn answered(&mut self, request: &RequestId) {
        self.open_requests.retain(|open| open != request);
    }

    /// Only these requests wait.
    pub fn keep_open(&mut self, is_open: impl Fn(&RequestId) -> bool) {
        self.open_requests.retain(is_open);
    }

    /// What a record means to the dialect. `stage` is to follow, with the run that is on then.
    pub(super) fn read(&mut self, record: &Record) -> Vec<Output> {
        match &record.body {
            RecordBody::Err(line) => self.keep_stderr(line),
            RecordBody::Decision(decision) => self.stopped_by_keeper = Some(*decision),
            _ => {}
        }
        self.adapter.fold(record)
    }

    /// Makes events of a record's outputs: they are added to `staged`, the rest is given back.
    /// What follows the turn's end in the same record stays out of the log; so does what happens
    /// outside of any run, background tasks' reports excepted: the next run tells them.
    pub(super) fn stage(
        &mut self,
        record: &Record,
        outputs: Vec<Output>,
        staged: &mut VecDeque<Staged>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut ended = !self.on;
        for output in outputs {
            match output {
                Output::TurnStarted(origin) => {
                    self.inner = origin;
                    self.begun = self.on;
                }
                Output::Event(event @ Event::TaskNotification { .. }) if !self.on => {
                    staged.push_back(Staged::new(record.at, event, None));
                }
                Output::Event(event @ Event::PermissionRequest(_)) if self.on && !ended => {
                    self.begun = true;
                    self.stage_event(record.at, event, staged);
                }
                Output::Event(event) if self.on && !self.begun && !is_report(&event) => {
                    self.late_events += 1;
                }
                Output::Event(_) | Output::PermissionGone { .. } if ended => self.late_events += 1,
                Output::Event(event) => self.stage_event(record.at, event, staged),
                Output::PermissionGone { request_id, reason } => {
                    self.withdraw(record.at, &request_id, reason, staged);
                }
                Output::NativeId(id) => {
                    let id = NativeId(id);
                    self.native = Some(id.clone());
                    effects.push(Effect::Native(id));
                }
                Output::Write(write) => effects.push(Effect::Reply(write)),
                // Only the terminal of its own turn completes a run.
                Output::TurnEnded(ending) if self.inner == self.origin && self.begun && !ended => {
                    ended = true;
                    effects.push(Effect::TurnEnded(ending));
                }
                Output::TurnEnded(_) => self.inner = self.origin,
            }
        }
        if let RecordBody::Exit(exit) = record.body {
            effects.push(Effect::Exited(exit));
        }
        effects
    }

    /// Both at once, for a record in the midst of a run.
    #[cfg(test)]
    fn fold(&mut self, record: &Record, staged: &mut VecDeque<Staged>) -> Vec<Effect> {
        let outputs = self.read(record);
        self.stage(record, outputs, staged)
    }

    /// Nobody will tell what the agent still says: it is counted.
    pub(super) fn read_late(&mut self, record: &Record) {
        let outputs = self.adapter.fold(record);
        let events = outputs.iter().filter(|output| matches!(output, Output::Event(_)));
        self.late_events += events.count() as u64;
    }

    /// The keeper's own decision to stop the agent, if it made one.
    pub(super) const fn stopped_by_keeper(&self) -> Option<Decision> {
        self.stopped_by_keeper
    }

    /// The end of what the agent wrote to stderr, without terminal escapes and without the native
    /// id that it named (I10); `None` if nothing.
    pub(super) fn stderr_tail(&self) -> Option<String> {
        let mut text = strip_escapes(&self.stderr);
        if let Some(NativeId(id)) = &self.native {
            text = without_id(&text, id);
        }
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn stage_event(&mut self, at: Millis, mut event: Event, staged: &mut VecDeque<Staged>) {
        let mark = if let Event::PermissionRequest(request) = &mut event {
            let id = request_id(self.run, &request.request_id);
            request.request_id.clone_from(&id.0);
            self.open_request(at, &id, staged)
        } else if let Some(tool) = event.tool_opened() {
            self.open_tool(at, tool, staged)
        } else {
            event.tool_closed().and_then(|tool| self.close_tool(tool))
        };
        staged.push_back(Staged::new(at, event, mark));
    }

    fn open_tool(&mut self, at: Millis, tool: &str, staged: &mut VecDeque<Staged>) -> Option<Mark> {
        let known = self.closed_tools.contains(tool) || self.open_tools.iter().any(|t| t == tool);
        if known {
            return None;
        }
        if self.open_tools.len() >= limits::OPEN_ITEMS_MAX
            && let Some(oldest) = self.open_tools.pop_front()
        {
            let content = "Too many tool calls are open at once; this one is no longer followed.";
            let mark = self.forget_tool(&oldest);
            let event = synthetic_result(&oldest, content);
            staged.push_back(Staged::new(at, event, mark));
        }
        self.open_tools.push_back(tool.to_owned());
        Some(Mark::ToolOpened(tool.to_owned()))
    }

    fn close_tool(&mut self, tool: &str) -> Option<Mark> {
        let before = self.open_tools.len();
        self.open_tools.retain(|open| open != tool);
        (self.open_tools.len() < before).then(|| self.forget_tool(tool)).flatten()
    }

    fn forget_tool(&mut self, tool: &str) -> Option<Mark> {
        // Enough to tell a late refinement from a new call; the ids are not kept for ever.
        if self.closed_tools.len() >= limits::OPEN_ITEMS_MAX {
            self.closed_tools.pop_first();
        }
        self.closed_tools.insert(tool.to_owned());
        Some(Mark::ToolClosed(tool.to_owned()))
    }

    fn open_request(
        &mut self,
        at: Millis,
        id: &RequestId,
        staged: &mut VecDeque<Staged>,
    ) -> Option<Mark> {
        if self.open_requests.contains(id) {
            return None;
        }
        if self.open_requests.len() >= limits::OPEN_ITEMS_MAX
            && let Some(oldest) = self.open_requests.pop_front()
        {
            staged.push_back(withdrawn(at, oldest, CancelReason::Withdrawn));
        }
        self.open_requests.push_back(id.clone());
        Some(Mark::PermissionOpened { request: id.clone(), received_at: at })
    }

    fn withdraw(
        &mut self,
        at: Millis,
        of_agent: &str,
        reason: CancelReason,
        staged: &mut VecDeque<Staged>,
    ) {
        let id = request_id(self.run, of_agent);
        let before = self.open_requests.len();
        self.answered(&id);
        if self.open_requests.len() < before {
            staged.push_back(withdrawn(at, id, reason));
        }
    }

    fn keep_stderr(&mut self, line: &[u8]) {
        let keep = &line[line.len().saturating_sub(limits::STDERR_TAIL_BYTES)..];
        self.stderr.push_str(&String::from_utf8_lossy(keep));
        self.stderr.push('\n');
        let excess = self.stderr.len().saturating_sub(limits::STDERR_TAIL_BYTES);
        let cut = self.stderr.ceil_char_boundary(excess);
        self.stderr.drain(..cut);
    }
}

/// Whether it may be told in whatever run is on.
const fn is_report(event: &Event) -> bool {
    matches!(event, Event::TaskNotification { .. })
}

/// `permission_cancelled`, unless somebody was faster to answer.
fn withdrawn(at: Millis, request: RequestId, reason: CancelReason) -> Staged {
    Staged {
        at,
        event: crate::registry::cancelled(&request, reason),
        mark: Some(Mark::PermissionCancelled(request.clone())),
        if_open: Some(request),
        record_end: None,
    }
}

/// An `error` event of the gateway's.
pub(super) fn gateway_error(content: impl Into<String>) -> Event {
    Event::Error {
        content: content.into(),
        code: None,
        source: ErrorSource::Gateway,
        parent_tool_id: None,
    }
}

/// Takes colours and cursor movements (CSI and OSC sequences) out of a text.
fn strip_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            plain.push(character);
            continue;
        }
        match characters.next() {
            Some('[') => while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
            Some(']') => while characters.next().is_some_and(|c| c != '\u{7}') {},
            _ => {}
        }
    }
    plain
}

/// The text with an id that stands for itself replaced. Programs choose their own ids: a short one
/// ("7") may well be a part of some other word.
fn without_id(text: &str, id: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(id).filter(|_| !id.is_empty()) {
        let (before, tail) = (&rest[..at], &rest[at + id.len()..]);
        plain.push_str(before);
        let beside = [plain.chars().next_back(), tail.chars().next()];
        let in_a_word = beside.into_iter().flatten().any(char::is_alphanumeric);
        plain.push_str(if in_a_word { id } else { "(native id)" });
        rest = tail;
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Kind;

    fn turn() -> Turn {
        Turn::new(RunId::from_u128(7), Adapter::new(Kind::Jsonl), None)
    }

    fn out(line: &str) -> Record {
        Record { at: Millis(1), body: RecordBody::Out(line.as_bytes().to_vec()) }
    }

    fn marks(turn: &mut Turn, lines: &[&str]) -> Vec<Option<Mark>> {
        let mut staged = VecDeque::new();
        for line in lines {
            turn.fold(&out(line), &mut staged);
        }
        staged.into_iter().map(|staged| staged.mark).collect()
    }

    #[test]
    fn a_tool_call_opens_once_and_closes_once() {
        let lines = [
            r#"{"kind":"tool_use","toolId":"t1","toolName":"Bash"}"#,
            r#"{"kind":"tool_use","toolId":"t1","toolName":"Bash","title":"refined"}"#,
            r#"{"kind":"tool_result","toolId":"t1"}"#,
            r#"{"kind":"tool_result","toolId":"t1"}"#,
            r#"{"kind":"tool_use","toolId":"t1"}"#,
        ];
        let opened = Some(Mark::ToolOpened("t1".into()));
        let closed = Some(Mark::ToolClosed("t1".into()));
        assert_eq!(marks(&mut turn(), &lines), [opened, None, closed, None, None]);
    }

    #[test]
    fn too_many_open_tools_close_the_oldest() {
        let mut turn = turn();
        let mut staged = VecDeque::new();
        for n in 0..=limits::OPEN_ITEMS_MAX {
            let line = format!(r#"{{"kind":"tool_use","toolId":"t{n}"}}"#);
            turn.fold(&out(&line), &mut staged);
        }
        let closed: Vec<_> =
            staged.iter().filter(|s| s.mark == Some(Mark::ToolClosed("t0".into()))).collect();
        assert_eq!(closed.len(), 1);
        assert_eq!(turn.open_tools.len(), limits::OPEN_ITEMS_MAX);
    }

    #[test]
    fn requests_get_a_prefix_and_wait_until_they_are_answered() {
        let mut turn = turn();
        let mut staged = VecDeque::new();
        let line = r#"{"kind":"permission_request","requestId":"r","toolName":"x","input":{}}"#;
        turn.fold(&out(line), &mut staged);
        let id = request_id(RunId::from_u128(7), "r");
        let Event::PermissionRequest(request) = &staged[0].event else { panic!("{staged:?}") };
        assert_eq!(request.request_id, id.0);
        assert!(turn.waits());
        turn.answered(&id);
        assert!(!turn.waits());
    }

    #[test]
    fn the_stderr_tail_does_not_name_the_native_session_i10() {
        let tail = |id: &str, said: &str| {
            let mut turn = turn();
            let line = format!(r#"{{"kind":"session_created","newSessionId":"{id}"}}"#);
            turn.fold(&out(&line), &mut VecDeque::new());
            let body = RecordBody::Err(said.as_bytes().to_vec());
            turn.fold(&Record { at: Millis(1), body }, &mut VecDeque::new());
            turn.stderr_tail().expect("a tail")
        };
        assert_eq!(tail("n-1", "no n-1, see /s/n-1.log"), "no (native id), see /s/(native id).log");
        assert_eq!(tail("7", "7: code 17, line 7"), "(native id): code 17, line (native id)");
        assert_eq!(tail("\u{e9}", "\u{e9}\u{e9} \u{e9}"), "\u{e9}\u{e9} (native id)");
        assert_eq!(tail("", "all is said"), "all is said");
    }

    #[test]
    fn the_stderr_tail_is_bounded_and_plain() {
        let mut turn = turn();
        assert_eq!(turn.stderr_tail(), None);
        for n in 0..10_000 {
            let line = format!("\u{1b}[31mline {n}\u{1b}[0m").into_bytes();
            turn.fold(&Record { at: Millis(1), body: RecordBody::Err(line) }, &mut VecDeque::new());
        }
        let tail = turn.stderr_tail().expect("a tail");
        assert!(tail.len() <= limits::STDERR_TAIL_BYTES && tail.ends_with("line 9999"), "{tail}");
        assert!(!tail.contains('\u{1b}'));
    }
}
