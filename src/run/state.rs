//! What a session's runs are up to: which one runs, what it left open, who asked it to stop, and
//! which prompts were accepted.
//!
//! *Decisions* (busy, duplicate, who completes, whose answer counts) use what was appended;
//! *statements* speak of what is durable. Pure: time is passed in. Must not know threads, frames'
//! bytes or SQLite.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tungstenite::Utf8Bytes;

use crate::limits;
use crate::run::change::{Frame, Mark};
use crate::run::event::{AnswerState, By, Decision};
use crate::run::id::{AgentId, ClientMessageId, Millis, Ordinal, Position, RequestId, RunId, Seq};

/// A session's runs that memory knows, newest last, and what waits in them.
#[derive(Debug, Default)]
pub struct Runs {
    runs: VecDeque<Run>,
    permissions: BTreeMap<RequestId, Permission>,
    /// Whether `settled` would find nothing: it is called with each commit.
    unsettled_only: bool,
    accepted: VecDeque<AcceptedPrompt>,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its place in the session.
    pub ordinal: Ordinal,
    /// The agent process that serves it.
    pub agent: AgentId,
    /// When it began.
    pub started_at: Millis,
    /// The newest seq appended; 0 after the head alone.
    pub last_seq: Seq,
    /// Where it stands.
    pub phase: Phase,
    /// Tool calls without a result, oldest first.
    pub open_tools: Vec<String>,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has no `complete` yet.
    Running {
        /// Who asked it to stop, if anybody did. From then on each end is an abort.
        abort: Option<By>,
    },
    /// Its `complete` is appended.
    Completed {
        /// The `complete`'s position.
        at: Position,
        /// When it was appended: retention in memory counts from here (I13).
        ended_at: Millis,
    },
}

/// A permission request, until its settlement is on disk or its run leaves memory.
#[derive(Clone, Debug)]
pub struct Permission {
    /// Where it was asked.
    pub opened: Position,
    /// The request's frame.
    pub frame: Utf8Bytes,
    /// When it was asked.
    pub received_at: Millis,
    /// How it stands.
    pub state: PermissionState,
    /// The position from which on nobody is asked any more.
    pub settled: Option<Position>,
}

/// How a permission request stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PermissionState {
    /// It waits (I20: the first answer wins).
    Open,
    /// It has its answer.
    Answered {
        /// Allow or deny.
        decision: Decision,
        /// How far it got.
        state: AnswerState,
        /// Who gave it.
        by: By,
    },
    /// It needs none.
    Cancelled,
}

/// A prompt that was accepted, for its duplicates (I19).
#[derive(Clone, Debug)]
struct AcceptedPrompt {
    id: ClientMessageId,
    run: RunId,
    hash: [u8; 32],
    ticket: u64,
}

/// An answer to a permission request, as a client gave it. The store keeps it as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerRequest {
    /// Allow or deny.
    pub allow: bool,
    /// Which of the request's choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice_id: Option<String>,
    /// Changed input, or answers to questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_input: Option<Value>,
    /// A note to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Save a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remember: Option<Value>,
}

/// What a caller that wants to end a run must know to make the closing group. It is a snapshot:
/// the append compares it and answers `Moved` if it is no longer true.
#[derive(Clone, Debug)]
pub struct Closing {
    /// Which run.
    pub run: RunId,
    /// Its place.
    pub ordinal: Ordinal,
    /// The seq that comes next.
    pub next: Seq,
    /// When the run began.
    pub started_at: Millis,
    /// Who asked it to stop, if anybody did.
    pub abort: Option<By>,
    /// Tool calls that need a synthetic result.
    pub open_tools: Vec<String>,
    /// Requests to cancel.
    pub open_permissions: Vec<RequestId>,
    /// Answers that never reached the agent.
    pub undelivered: Vec<(RequestId, Decision, By)>,
}

/// What `chat_subscribed` says of a session: its durable state.
#[derive(Clone, Debug, Default)]
pub struct Statement {
    /// Whether the newest run has no `complete`.
    pub is_processing: bool,
    /// The newest run.
    pub run: Option<RunId>,
    /// Its place.
    pub ordinal: Ordinal,
    /// Its newest seq.
    pub last_seq: Seq,
    /// Requests that wait for an answer, oldest first.
    pub pending: Vec<PendingPermission>,
}

/// A permission request that waits for an answer.
#[derive(Clone, Debug)]
pub struct PendingPermission {
    /// Which request.
    pub request: RequestId,
    /// Its frame.
    pub frame: Utf8Bytes,
    /// When it was asked.
    pub received_at: Millis,
}

impl Runs {
    /// What memory knows of a session that was just loaded: its newest run, and what waits in it.
    #[must_use]
    pub fn loaded(newest: Option<Run>, permissions: Vec<(RequestId, Permission)>) -> Self {
        Self {
            runs: newest.into_iter().collect(),
            permissions: permissions.into_iter().collect(),
            unsettled_only: false,
            accepted: VecDeque::new(),
        }
    }

    /// The newest run.
    #[must_use]
    pub fn newest(&self) -> Option<&Run> {
        self.runs.back()
    }

    /// The run that has no `complete` yet (I5: at most one).
    #[must_use]
    pub fn running(&self) -> Option<&Run> {
        self.newest().filter(|run| run.is_running())
    }

    /// A run by its id.
    #[must_use]
    pub fn get(&self, id: RunId) -> Option<&Run> {
        self.runs.iter().rev().find(|run| run.id == id)
    }

    /// A run by its place.
    #[must_use]
    pub fn at(&self, ordinal: Ordinal) -> Option<&Run> {
        self.runs.iter().rev().find(|run| run.ordinal == ordinal)
    }

    /// The place of the next run.
    #[must_use]
    pub fn next_ordinal(&self) -> Ordinal {
        Ordinal(self.newest().map_or(0, |run| run.ordinal.0) + 1)
    }

    /// A run begins. The caller has checked that none runs (I5).
    pub fn begin(&mut self, run: Run) {
        assert!(self.running().is_none(), "I5: at most one running run per session");
        assert_eq!(run.ordinal, self.next_ordinal(), "I6: runs of a session follow each other");
        self.runs.push_back(run);
    }

    /// Sets the intent to abort; says whether it was this call that set it. `None` if the run is
    /// not running.
    pub fn ask_abort(&mut self, id: RunId, by: &By) -> Option<bool> {
        match &mut self.runs.iter_mut().find(|run| run.id == id)?.phase {
            Phase::Running { abort: Some(_) } => Some(false),
            Phase::Running { abort } => {
                *abort = Some(by.clone());
                Some(true)
            }
            Phase::Completed { .. } => None,
        }
    }

    /// What is needed to end run `id`, if it is running.
    #[must_use]
    pub fn closing(&self, id: RunId) -> Option<Closing> {
        let run = self.get(id)?;
        let Phase::Running { abort } = &run.phase else { return None };
        let of_run = |permission: &&Permission| permission.opened.ordinal == run.ordinal;
        let with = |wanted: fn(&PermissionState) -> bool| {
            self.permissions.iter().filter(move |(_, p)| of_run(p) && wanted(&p.state))
        };
        Some(Closing {
            run: id,
            ordinal: run.ordinal,
            next: run.last_seq.next(),
            started_at: run.started_at,
            abort: abort.clone(),
            open_tools: run.open_tools.clone(),
            open_permissions: with(|state| *state == PermissionState::Open)
                .map(|(id, _)| id.clone())
                .collect(),
            undelivered: with(PermissionState::is_undelivered)
                .filter_map(|(id, permission)| match &permission.state {
                    PermissionState::Answered { decision, by, .. } => {
                        Some((id.clone(), *decision, by.clone()))
                    }
                    _ => None,
                })
                .collect(),
        })
    }

    /// A frame of run `frame.at.ordinal` was appended.
    pub fn appended(&mut self, frame: &Frame) {
        let Some(run) = self.runs.iter_mut().rev().find(|run| run.ordinal == frame.at.ordinal)
        else {
            panic!("I6: a frame of a run that memory does not know");
        };
        assert!(run.is_running(), "I3: nothing is appended after `complete`");
        run.last_seq = frame.at.seq;
        let Some(mark) = frame.mark.as_deref() else { return };
        match mark {
            Mark::ToolOpened(tool) if run.open_tools.contains(tool) => {}
            Mark::ToolOpened(tool) => run.open_tools.push(tool.clone()),
            Mark::ToolClosed(tool) => run.open_tools.retain(|open| open != tool),
            Mark::Complete(end) => {
                run.phase = Phase::Completed { at: frame.at, ended_at: end.at };
                run.open_tools = Vec::new();
            }
            Mark::PermissionOpened { request, received_at } => {
                self.permissions.insert(
                    request.clone(),
                    Permission {
                        opened: frame.at,
                        frame: frame.text.clone(),
                        received_at: *received_at,
                        state: PermissionState::Open,
                        settled: None,
                    },
                );
            }
            Mark::PermissionAnswered { request, decision, state, by, .. } => {
                if let Some(permission) = self.permissions.get_mut(request) {
                    permission.settled.get_or_insert(frame.at);
                    self.unsettled_only = false;
                    permission.state = PermissionState::Answered {
                        decision: *decision,
                        state: *state,
                        by: by.clone(),
                    };
                }
            }
            Mark::PermissionCancelled(request) => {
                if let Some(permission) = self.permissions.get_mut(request) {
                    permission.settled.get_or_insert(frame.at);
                    self.unsettled_only = false;
                    permission.state = PermissionState::Cancelled;
                }
            }
        }
    }

    /// A permission request that memory knows.
    #[must_use]
    pub fn permission(&self, request: &RequestId) -> Option<&Permission> {
        self.permissions.get(request)
    }

    /// Remembers an accepted prompt.
    pub fn remember(&mut self, id: ClientMessageId, run: RunId, hash: [u8; 32], ticket: u64) {
        if self.accepted.len() >= limits::RECENT_MESSAGES_MAX {
            self.accepted.pop_front();
        }
        self.accepted.push_back(AcceptedPrompt { id, run, hash, ticket });
    }

    /// The accepted prompt with this id: its run, its hash, its ticket.
    #[must_use]
    pub fn find_accepted(&self, id: &ClientMessageId) -> Option<(RunId, [u8; 32], u64)> {
        self.accepted
            .iter()
            .rev()
            .find(|prompt| prompt.id == *id)
            .map(|prompt| (prompt.run, prompt.hash, prompt.ticket))
    }

    /// The session's durable state (I17).
    #[must_use]
    pub fn statement(&self, durable: Position) -> Statement {
        let Some(run) =
            self.runs.iter().rev().find(|run| Position::new(run.ordinal, Seq(0)) <= durable)
        else {
            return Statement::default();
        };
        let completed = matches!(run.phase, Phase::Completed { at, .. } if at <= durable);
        let last_seq = if durable.ordinal == run.ordinal {
            durable.seq.min(run.last_seq)
        } else {
            run.last_seq
        };
        let mut pending: Vec<_> = self
            .permissions
            .iter()
            .filter(|(_, permission)| {
                permission.opened <= durable && permission.settled.is_none_or(|at| at > durable)
            })
            .collect();
        pending.sort_by_key(|(_, permission)| permission.opened);
        Statement {
            is_processing: !completed,
            run: Some(run.id),
            ordinal: run.ordinal,
            last_seq,
            pending: pending
                .into_iter()
                .map(|(id, permission)| PendingPermission {
                    request: id.clone(),
                    frame: permission.frame.clone(),
                    received_at: permission.received_at,
                })
                .collect(),
        }
    }

    /// The newest position of completed, durable runs whose retention in memory is over (I13), and
    /// when the next one is due. One that is not durable yet is due when its commit may have been
    /// tried again.
    #[must_use]
    pub fn due(
        &self,
        durable: Position,
        now: Millis,
        retention_ms: i64,
    ) -> (Option<Position>, Option<Millis>) {
        let (mut due, mut next) = (None, None);
        for run in &self.runs {
            let Phase::Completed { at, ended_at } = run.phase else { break };
            let deadline = ended_at.plus(retention_ms);
            if deadline > now || at > durable {
                next =
                    Some(if deadline > now { deadline } else { now.plus(limits::STORE_RETRY_MS) });
                break;
            }
            due = Some(at);
        }
        (due, next)
    }

    /// Forgets completed runs up to `to`, the newest durable one excepted (statements speak of
    /// it, and the next one's place follows from it), and what waited in them.
    pub fn forget(&mut self, to: Position, durable: Position) {
        let follows = |run: &Run| Position::new(run.ordinal, Seq(0)) <= durable;
        while self.runs.front().is_some_and(|run| run.ordinal <= to.ordinal)
            && self.runs.get(1).is_some_and(follows)
        {
            self.runs.pop_front();
        }
        self.permissions.retain(|_, permission| permission.opened > to);
    }

    /// `durable` has risen: permission requests whose settlement is on disk leave memory (I7), the
    /// answers on their way to the agent excepted.
    pub fn settled(&mut self, durable: Position) {
        if self.unsettled_only {
            return;
        }
        self.permissions.retain(|_, permission| {
            permission.settled.is_none_or(|at| at > durable) || permission.state.is_undelivered()
        });
        self.unsettled_only =
            self.permissions.values().all(|permission| permission.settled.is_none());
    }

    /// The store refused what is not durable: the runs as the disk has them. `settled` is the last
    /// ticket that was committed.
    pub fn roll_back(
        &mut self,
        newest: Option<Run>,
        permissions: Vec<(RequestId, Permission)>,
        settled: u64,
    ) {
        let kept = newest.as_ref().map_or(Ordinal(0), |run| run.ordinal);
        self.runs.retain(|run| run.ordinal < kept);
        self.runs.extend(newest);
        self.permissions = permissions.into_iter().collect();
        self.unsettled_only = false;
        self.accepted.retain(|prompt| prompt.ticket <= settled);
    }
}

impl Closing {
    /// The snapshot as it is once these frames of the same group are appended.
    pub fn follow(&mut self, frames: &[Frame]) {
        for frame in frames {
            self.next = frame.at.seq.next();
            match frame.mark.as_deref() {
                Some(Mark::ToolOpened(tool)) if self.open_tools.contains(tool) => {}
                Some(Mark::ToolOpened(tool)) => self.open_tools.push(tool.clone()),
                Some(Mark::ToolClosed(tool)) => self.open_tools.retain(|open| open != tool),
                Some(Mark::PermissionOpened { request, .. }) => {
                    self.open_permissions.push(request.clone());
                }
                Some(Mark::PermissionCancelled(request)) => {
                    self.open_permissions.retain(|open| open != request);
                }
                Some(Mark::PermissionAnswered { .. } | Mark::Complete(_)) | None => {}
            }
        }
    }
}

impl Run {
    /// Whether it has no `complete` yet.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Who asked it to stop, if it is running and anybody did.
    #[must_use]
    pub const fn abort(&self) -> Option<&By> {
        match &self.phase {
            Phase::Running { abort } => abort.as_ref(),
            Phase::Completed { .. } => None,
        }
    }
}

impl PermissionState {
    fn is_undelivered(&self) -> bool {
        matches!(self, Self::Answered { state: AnswerState::Recorded, .. })
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::run::change::RunEnd;
    use crate::run::event::{ByKind, Complete, Reason};

    const RETENTION: i64 = 100;

    fn at(ordinal: u32, seq: u64) -> Position {
        Position::new(Ordinal(ordinal), Seq(seq))
    }

    fn run(ordinal: u32) -> Run {
        Run {
            id: RunId::from_u128(ordinal.into()),
            ordinal: Ordinal(ordinal),
            agent: AgentId::from_u128(1),
            started_at: Millis(0),
            last_seq: Seq(0),
            phase: Phase::Running { abort: None },
            open_tools: Vec::new(),
        }
    }

    fn frame(at: Position, mark: Option<Mark>) -> Frame {
        let (text, mark) = ("{}".into(), mark.map(Box::new));
        Frame { at, text, mark, whole: None, group_end: true, offset: 0 }
    }

    fn ended(now: i64) -> Mark {
        let complete = Complete {
            exit_code: None,
            success: true,
            aborted: false,
            reason: Reason::Finished,
            error: None,
            by: None,
            usage: None,
            duration_ms: 0,
            extra: serde_json::Map::new(),
        };
        Mark::Complete(Box::new(RunEnd { at: Millis(now), complete }))
    }

    fn by() -> By {
        By { kind: ByKind::Api, name: "a".into() }
    }

    fn request() -> RequestId {
        RequestId("q".into())
    }

    fn asked() -> Mark {
        Mark::PermissionOpened { request: request(), received_at: Millis(5) }
    }

    fn answered(state: AnswerState) -> Mark {
        Mark::PermissionAnswered {
            request: request(),
            decision: Decision::Allow,
            state,
            by: by(),
            answer: None,
        }
    }

    /// Run 1 ended at 1000 with seq 1, run 2 runs and has only its head.
    fn two_runs() -> Runs {
        let mut runs = Runs::default();
        runs.begin(run(1));
        runs.appended(&frame(at(1, 1), Some(ended(1000))));
        runs.begin(run(2));
        runs
    }

    #[test]
    fn a_run_is_due_at_its_own_deadline_and_not_before() {
        let runs = two_runs();
        let due = |now: i64, durable| runs.due(durable, Millis(now), RETENTION);
        assert_eq!(due(1099, at(2, 0)), (None, Some(Millis(1100))), "I13");
        assert_eq!(due(1100, at(2, 0)), (Some(at(1, 1)), None), "I13");
        let (none, again) = due(1100, at(1, 0));
        assert_eq!(none, None, "I8: its end is not durable");
        assert!(again > Some(Millis(1100)), "a timer is set for later");
    }

    #[test]
    fn the_newest_durable_run_is_not_forgotten() {
        let mut runs = two_runs();
        runs.forget(at(1, 1), at(1, 1));
        assert_eq!(runs.statement(at(1, 1)).run, Some(RunId::from_u128(1)), "I17");
        runs.forget(at(1, 1), at(2, 0));
        assert!(runs.get(RunId::from_u128(1)).is_none());
        assert_eq!(runs.next_ordinal(), Ordinal(3));
    }

    #[test]
    fn a_statement_speaks_of_what_is_durable() {
        let runs = two_runs();
        let said = |durable| {
            let statement = runs.statement(durable);
            (
                statement.run.map(|run| run.to_string().pop()),
                statement.is_processing,
                statement.last_seq,
            )
        };
        assert_eq!(said(Position::START), (None, false, Seq(0)), "I17");
        assert_eq!(said(at(1, 0)), (Some(Some('1')), true, Seq(0)), "I17");
        assert_eq!(said(at(1, 1)), (Some(Some('1')), false, Seq(1)), "I17");
        assert_eq!(said(at(2, 0)), (Some(Some('2')), true, Seq(0)), "I17");
    }

    #[test]
    fn the_first_wish_to_abort_counts_and_names_its_run() {
        let mut runs = two_runs();
        assert_eq!(runs.ask_abort(RunId::from_u128(1), &by()), None, "I6: it has ended");
        assert_eq!(runs.ask_abort(RunId::from_u128(2), &by()), Some(true));
        assert_eq!(runs.ask_abort(RunId::from_u128(2), &by()), Some(false));
        assert_eq!(runs.running().and_then(Run::abort), Some(&by()));
    }

    #[test]
    fn a_refined_tool_call_is_closed_once() {
        let mut runs = two_runs();
        let tool = || Some(Mark::ToolOpened("t".into()));
        runs.appended(&frame(at(2, 1), tool()));
        runs.appended(&frame(at(2, 2), tool()));
        assert_eq!(runs.closing(RunId::from_u128(2)).unwrap().open_tools, ["t"]);
        runs.appended(&frame(at(2, 3), Some(Mark::ToolClosed("t".into()))));
        assert!(runs.closing(RunId::from_u128(2)).unwrap().open_tools.is_empty());
    }

    #[test]
    fn a_settled_request_leaves_memory_once_that_is_durable() {
        let mut runs = two_runs();
        runs.appended(&frame(at(2, 1), Some(asked())));
        runs.settled(at(2, 1));
        assert_eq!(runs.statement(at(2, 1)).pending.len(), 1, "I17: it waits");
        runs.appended(&frame(at(2, 2), Some(answered(AnswerState::Recorded))));
        assert_eq!(runs.statement(at(2, 1)).pending.len(), 1, "I17: as far as the disk knows");
        runs.settled(at(2, 2));
        assert!(runs.statement(at(2, 2)).pending.is_empty());
        let closing = runs.closing(RunId::from_u128(2)).unwrap();
        assert_eq!(closing.undelivered.len(), 1, "I20: the agent does not have it yet");
        runs.appended(&frame(at(2, 3), Some(answered(AnswerState::Delivered))));
        runs.settled(at(2, 3));
        assert!(runs.permission(&request()).is_none(), "I7");
    }

    #[test]
    fn what_is_left_open_is_closed_by_its_own_runs_end() {
        let mut runs = two_runs();
        runs.appended(&frame(at(2, 1), Some(asked())));
        let closing = runs.closing(RunId::from_u128(2)).unwrap();
        assert_eq!((closing.open_permissions, closing.next), (vec![request()], Seq(2)));
        assert!(runs.closing(RunId::from_u128(1)).is_none(), "I1");
        runs.appended(&frame(at(2, 2), Some(Mark::PermissionCancelled(request()))));
        runs.appended(&frame(at(2, 3), Some(ended(1))));
        runs.begin(run(3));
        assert!(runs.closing(RunId::from_u128(3)).unwrap().open_permissions.is_empty(), "I6");
    }

    #[test]
    fn a_refusal_leaves_what_the_disk_has() {
        let mut runs = two_runs();
        let message = |name: &str| ClientMessageId(name.into());
        runs.remember(message("kept"), RunId::from_u128(1), [1; 32], 4);
        runs.remember(message("lost"), RunId::from_u128(2), [2; 32], 5);
        runs.appended(&frame(at(2, 1), Some(asked())));
        let mut newest = run(1);
        newest.last_seq = Seq(1);
        newest.phase = Phase::Completed { at: at(1, 1), ended_at: Millis(1000) };
        runs.roll_back(Some(newest), Vec::new(), 4);
        assert_eq!(runs.next_ordinal(), Ordinal(2), "I6: its place is free again");
        assert!(runs.running().is_none() && runs.permission(&request()).is_none());
        assert!(runs.find_accepted(&message("kept")).is_some(), "I19");
        assert!(runs.find_accepted(&message("lost")).is_none(), "it was not accepted after all");
    }

    #[test]
    fn accepted_prompts_are_bounded() {
        let mut runs = Runs::default();
        for n in 0..=limits::RECENT_MESSAGES_MAX {
            let id = ClientMessageId(n.to_string());
            runs.remember(id, RunId::from_u128(n as u128), [0; 32], 0);
        }
        assert_eq!(runs.accepted.len(), limits::RECENT_MESSAGES_MAX, "I7");
        assert!(runs.find_accepted(&ClientMessageId("0".into())).is_none());
        assert!(runs.find_accepted(&ClientMessageId("1".into())).is_some());
    }

    #[test]
    #[should_panic(expected = "I3")]
    fn nothing_follows_the_end() {
        let mut runs = Runs::default();
        runs.begin(run(1));
        runs.appended(&frame(at(1, 1), Some(ended(1))));
        runs.appended(&frame(at(1, 2), None));
    }

    #[test]
    #[should_panic(expected = "I5")]
    fn two_runs_do_not_run() {
        let mut runs = Runs::default();
        runs.begin(run(1));
        runs.begin(run(2));
    }
}
