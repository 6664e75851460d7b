//! The SQLite store behind the registry's traits.
//!
//! Must not know SQL: that is `store`'s.

use crate::registry::shelf::{
    CommitError, Disk, Gap, Kept, Loaded, Message, Place, Shelf, ShelfError,
};
use crate::run::change::Batch;
use crate::run::event::{AnswerState, By, ByKind, Decision};
use crate::run::id::{
    AgentId, ClientMessageId, NativeId, Ordinal, Position, RequestId, RunId, SessionId,
};
use crate::run::queue::{Queue, Queued};
use crate::run::server_change::ServerChange;
use crate::run::state::{Permission, PermissionState, Phase, Run};
use crate::store::{self, Readers, RunStatus, Writer};
use crate::sync::Arc;

/// The store's readers as a shelf.
#[derive(Debug)]
pub struct Reading(pub Arc<Readers>);

/// The store's writer as a disk.
#[derive(Debug)]
pub struct Writing(pub Writer);

impl Disk for Writing {
    fn commit(&mut self, batches: &[Batch]) -> Result<(), CommitError> {
        // Crash tests read from these lines whether a kill fell between append and durable.
        tracing::trace!(items = batches.iter().map(|b| b.items.len()).sum::<usize>(), "committing");
        self.0.commit(batches).map_err(commit_error)?;
        tracing::trace!("committed");
        Ok(())
    }

    fn commit_server(&mut self, changes: &[ServerChange]) -> Result<(), CommitError> {
        self.0.commit_server(changes).map_err(commit_error)
    }
}

fn commit_error(error: store::CommitError) -> CommitError {
    match error {
        store::CommitError::Retry { code, message } => CommitError::Retry { code, message },
        store::CommitError::Constraint { message, .. } => CommitError::Constraint { message },
        store::CommitError::Fatal { code, message } => CommitError::Fatal { code, message },
    }
}

impl From<store::ReadError> for ShelfError {
    fn from(error: store::ReadError) -> Self {
        Self(error.to_string())
    }
}

impl Shelf for Reading {
    fn session(&self, id: SessionId) -> Result<Option<Loaded>, ShelfError> {
        let Some(view) = self.0.session_view(id)? else { return Ok(None) };
        let (waiting, held) = self.0.queue(id)?;
        let queue = Queue::loaded(waiting, held);
        let Some(last) = view.last_run else {
            let (newest, permissions) = (None, Vec::new());
            return Ok(Some(Loaded { row: view.row, newest, permissions, queue }));
        };
        if last.status == RunStatus::Running {
            let (newest, permissions) = self.open_run(id, last.id)?;
            return Ok(Some(Loaded { row: view.row, newest, permissions, queue }));
        }
        let newest = Run {
            id: last.id,
            ordinal: last.ordinal,
            // Its process is long gone.
            agent: AgentId::from_u128(0),
            started_at: last.started_at,
            last_seq: last.last_seq,
            phase: Phase::Completed {
                at: last.end(),
                ended_at: last.ended_at.unwrap_or(last.started_at),
            },
            open_tools: Vec::new(),
        };
        let (newest, permissions) = (Some(newest), Vec::new());
        Ok(Some(Loaded { row: view.row, newest, permissions, queue }))
    }

    fn locate(&self, run: RunId) -> Result<Option<Place>, ShelfError> {
        Ok(self.0.run(run)?.map(|run| Place {
            session: run.session,
            ordinal: run.ordinal,
            last_seq: run.last_seq,
            pruned: run.pruned_at.is_some(),
        }))
    }

    fn run_at(&self, session: SessionId, ordinal: Ordinal) -> Result<Option<RunId>, ShelfError> {
        Ok(self.0.run_at(session, ordinal)?.map(|run| run.id))
    }

    fn frames(
        &self,
        session: SessionId,
        after: Position,
        upto: Position,
        bytes: usize,
    ) -> Result<Kept, ShelfError> {
        Ok(match self.0.frames(session, after, upto, usize::MAX, bytes)? {
            store::Read::Frames(frames) => {
                Kept::Frames(frames.into_iter().map(|frame| (frame.at, frame.text)).collect())
            }
            store::Read::Gone(gone) => Kept::Gone {
                gap: Gap {
                    from: Some((gone.from.run, gone.from.seq)),
                    to: (gone.to.run, gone.to.seq),
                },
                to: gone.end,
            },
        })
    }

    fn message(
        &self,
        session: SessionId,
        id: &ClientMessageId,
    ) -> Result<Option<Message>, ShelfError> {
        Ok(self.0.find_message(session, id)?.map(|known| match known {
            store::KnownMessage::Run(run, hash) => Message::Run(run, hash),
            store::KnownMessage::Removed => Message::Removed,
        }))
    }

    fn queue(&self, session: SessionId) -> Result<(Vec<Queued>, bool), ShelfError> {
        Ok(self.0.queue(session)?)
    }

    fn native(&self, provider: &str, id: &NativeId) -> Result<Option<SessionId>, ShelfError> {
        Ok(self.0.session_by_provider_native(provider, id)?)
    }

    fn permission(&self, request: &RequestId) -> Result<Option<SessionId>, ShelfError> {
        Ok(self.0.permission(request)?.map(|permission| permission.session))
    }
}

/// A run without a `complete`, and what waits in it.
type OpenRun = (Option<Run>, Vec<(RequestId, Permission)>);

impl Reading {
    /// A run that has no `complete` yet: the gateway died in it, and recovery goes on with it or
    /// ends it. An answer that was recorded is on its way to the agent, whoever sends it.
    fn open_run(&self, session: SessionId, id: RunId) -> Result<OpenRun, ShelfError> {
        let Some(open) = self.0.open_run(session)?.filter(|open| open.run.id == id) else {
            return Err(ShelfError(format!(
                "run {id} of session {session} changed under the read"
            )));
        };
        let at = open.run.end();
        let permissions = open
            .permissions
            .into_iter()
            .map(|permission| {
                let state = if permission.state == store::PermissionState::Open {
                    PermissionState::Open
                } else {
                    PermissionState::Answered {
                        decision: permission.decision.unwrap_or(Decision::Deny),
                        state: AnswerState::Recorded,
                        by: permission.by.unwrap_or_else(gateway),
                    }
                };
                let waiting = Permission {
                    opened: permission.at,
                    frame: permission.text,
                    received_at: permission.received_at,
                    settled: (state != PermissionState::Open).then_some(at),
                    state,
                };
                (permission.request, waiting)
            })
            .collect();
        let newest = Run {
            id,
            ordinal: at.ordinal,
            agent: open.agent,
            started_at: open.run.started_at,
            last_seq: at.seq,
            phase: Phase::Running { abort: open.run.abort.map(|abort| abort.by) },
            open_tools: open.open_tools,
        };
        Ok((Some(newest), permissions))
    }
}

fn gateway() -> By {
    By { kind: ByKind::Rule, name: "gateway".into() }
}
