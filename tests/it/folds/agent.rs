//! A gateway's side of one agent process: the fold, and the commands on their way.
//!
//! As the worker of the program does it, without its thread.

use std::collections::{BTreeMap, VecDeque};

use reattach::provider::{Adapter, Command, Exit, Kind, Origin, Output, Prompt, Write};
use reattach::registry::{Composer, Fold, Session, Staged, Turn, end};
use reattach::run::change::{Change, Frame};
use reattach::run::event::{Complete, Event, Reason};
use reattach::run::id::{AgentId, NativeId, RequestId, RunId, Seq};
use reattach::run::state::AnswerRequest;
use reattach::store::{RunStatus, StoredAgent};
use serde::{Deserialize, Serialize};

use super::gateway::NOW;
use super::keeper::Keeper;

/// What a checkpoint has.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) turn: Turn,
    pub(super) next_n: u64,
}

/// What a command's row has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Body {
    pub(super) write: Write,
    pub(super) purpose: Purpose,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Purpose {
    Prompt,
    Answer { request: String, allow: bool },
    Reply,
}

/// The side of a worker that belongs to one process.
pub(super) struct Agent {
    pub(super) id: AgentId,
    pub(super) run: RunId,
    pub(super) composer: Composer,
    pub(super) fold: Fold,
    pub(super) staged: VecDeque<Staged>,
    pub(super) next_n: u64,
    /// Commands on their way to the disk: their run, number, ticket.
    pub(super) recorded: VecDeque<(RunId, u64, u64, Body)>,
    pub(super) sent: BTreeMap<u64, (RunId, Purpose)>,
    pub(super) answers: Vec<(RequestId, AnswerRequest)>,
    pub(super) checkpoints: VecDeque<(u64, u64)>,
    pub(super) checkpointed: u64,
    /// It is of a life before, and not folded up to what is durable.
    pub(super) catching_up: bool,
    /// The agent's last record was folded.
    pub(super) over: bool,
}

impl Agent {
    /// Of a life before.
    pub(super) fn resume(
        stored: &StoredAgent,
        kind: Kind,
        native: Option<NativeId>,
        composer: Composer,
    ) -> Self {
        let saved: Option<Saved> = stored
            .checkpoint
            .as_ref()
            .map(|(_, state)| serde_json::from_slice(state).expect("a checkpoint"));
        let from = stored.checkpoint.as_ref().map_or(0, |(offset, _)| *offset);
        let next_n = saved.as_ref().map_or(1, |saved| saved.next_n).max(stored.last_n + 1);
        let newest = &stored.newest;
        let mut turn = match saved {
            Some(saved) => saved.turn,
            None => Turn::new(newest.id, Adapter::new(kind), native),
        };
        if turn.run() != newest.id {
            let agents = newest.origin == "agent";
            turn.begin(newest.id, if agents { Origin::Agent } else { Origin::User });
        }
        if newest.status == RunStatus::Completed {
            turn.end();
        }
        Self {
            id: stored.agent,
            run: newest.id,
            composer,
            fold: Fold::resume(turn, from, stored.offset, stored.causes.iter().copied()),
            staged: VecDeque::new(),
            next_n,
            recorded: VecDeque::new(),
            sent: BTreeMap::new(),
            answers: stored.answers.clone(),
            checkpoints: VecDeque::new(),
            checkpointed: from,
            catching_up: true,
            over: false,
        }
    }

    /// What was recorded and is not known to be delivered.
    pub(super) fn send_again(&mut self, stored: &StoredAgent, keeper: &mut Keeper) {
        for command in &stored.commands {
            let body: Body = serde_json::from_slice(&command.body).expect("a body");
            let open = stored.open.as_ref().filter(|open| open.run.id == command.run);
            let purpose = match (body.purpose, open) {
                (Purpose::Reply, _) => Purpose::Reply,
                // Its run is over: nobody waits for it.
                (_, None) => continue,
                (Purpose::Answer { request, allow }, Some(open)) => {
                    if open.permissions.iter().any(|waiting| waiting.request.0 == request) {
                        Purpose::Answer { request, allow }
                    } else {
                        Purpose::Reply
                    }
                }
                (Purpose::Prompt, Some(_)) => Purpose::Prompt,
            };
            self.sent.insert(command.n, (command.run, purpose));
            keeper.write(command.n, body.write.bytes);
        }
    }

    /// What was answered before the restart does not wait any more.
    pub(super) fn catch_up(&mut self, session: &Session) {
        if self.catching_up && !self.fold.is_catching_up() {
            self.catching_up = false;
            self.fold.turn_mut().keep_open(|request| session.is_open(request));
        }
    }

    /// The frames of the first `count` staged events, from `seq` on.
    pub(super) fn compose(&mut self, session: &Session, count: usize, mut seq: Seq) -> Vec<Frame> {
        let mut group: Vec<Frame> = Vec::new();
        for staged in self.staged.iter().take(count) {
            if staged.if_open.as_ref().is_none_or(|request| session.is_open(request)) {
                let mark = staged.mark.clone();
                group.push(self.composer.frame(seq, staged.at, &staged.event, mark));
                seq = seq.next();
            }
            if let (Some(last), Some(offset)) = (group.last_mut(), staged.record_end) {
                last.offset = offset;
            }
        }
        group
    }
}

pub(super) fn begins(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| {
        matches!(output, Output::TurnStarted(_) | Output::Event(Event::PermissionRequest(_)))
    })
}

pub(super) fn recorded(run: RunId, n: u64, body: &Body, cause: u64) -> Change {
    let request = match &body.purpose {
        Purpose::Answer { request, .. } => Some(RequestId(request.clone())),
        Purpose::Prompt | Purpose::Reply => None,
    };
    let body = serde_json::to_vec(body).expect("a body is JSON");
    Change::CommandRecorded { run, n, body, cause, request, at: NOW }
}

pub(super) fn encoded(adapter: &Adapter, content: String) -> Write {
    let prompt = Prompt { content, ..Prompt::default() };
    adapter.encode(&Command::Prompt(prompt)).expect("every dialect has prompts")
}

pub(super) fn exited(exit: Exit) -> Complete {
    let code = match exit {
        Exit::Code(code) => Some(i64::from(code)),
        Exit::Signal(_) => None,
    };
    end(Reason::AgentExited, code, None)
}
