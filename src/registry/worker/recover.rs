//! The agents of a gateway before this one: followed on, finished, or told to be lost.
//!
//! A keeper that is alive is attached to; of one that is gone the journal is read to its end; a run
//! whose process was never started is started now. The fold begins at the checkpoint, brings its
//! state forward to the last durable record, and goes on as if nothing had been.

use super::process::Agent;
use super::saved::{Body, Purpose, Saved};
use super::turn::Turn;
use super::{Fold, Order, Seat, Stage, Worker, after, bell, foreign, forget_home, sweep};
use crate::keeper::{AttachError, Home};
use crate::provider::{Adapter, Launch, Origin};
use crate::registry::session::Session;
use crate::registry::worker::start::launch_key;
use crate::registry::{AgentPermit, Job, Started, end};
use crate::run::change::Change;
use crate::run::event::Reason;
use crate::run::id::{AgentId, Millis, RunId};
use crate::run::wake::Waker;
use crate::store::{OpenRun, RunStatus, StoredAgent};
use crate::sync::Arc;

/// An agent of before the restart.
#[derive(Debug)]
pub(in crate::registry) struct Recovered {
    pub(in crate::registry) session: Arc<Session>,
    pub(in crate::registry) stored: StoredAgent,
    pub(in crate::registry) home: Home,
    /// What its newest run is to do, if a prompt began that.
    pub(in crate::registry) job: Option<Job>,
    pub(in crate::registry) permit: AgentPermit,
}

/// Takes the agent over. `None`: nothing is left to do, or to serve.
pub(super) fn recover(seat: &Seat, recovered: Recovered) -> Option<Worker<'_>> {
    let run = recovered.stored.newest.id;
    let agent = recovered.stored.agent;
    seat.serving.replace(Some((recovered.session.clone(), run, agent)));
    if recovered.home.info().is_none() {
        // A keeper that was just born may be about to start its agent; after this it either did,
        // or never will.
        sweep(agent);
        if recovered.home.info().is_none() {
            start_or_lose(seat, recovered);
            return None;
        }
    }
    let alive = recovered.home.is_alive().unwrap_or_else(|error| {
        tracing::warn!(%error, %run, "whether a keeper is alive cannot be told");
        false
    });
    let saved = match saved(&recovered.stored) {
        Ok(saved) => saved,
        Err(error) => {
            let why = format!("What this gateway saved of its agent cannot be read: {error}.");
            return lose(seat, &recovered, &why);
        }
    };
    let from = recovered.stored.checkpoint.as_ref().map_or(0, |(offset, _)| *offset);
    let left = || Agent::left(&recovered.home, from, &seat.name).map(|agent| (agent, 0));
    let process = if alive {
        match Agent::attach(&recovered.home, from, &seat.name) {
            Err(AttachError::Gone) => left(),
            Err(AttachError::Io(error)) => {
                tracing::error!(%error, %run, "a keeper cannot be spoken to; its journal is read");
                sweep(agent);
                left()
            }
            other => other,
        }
    } else {
        left()
    };
    match process {
        Ok((process, end)) => {
            let mut worker = resume(seat, recovered, saved, process, from);
            worker.backlog_end = end;
            Some(worker)
        }
        Err(AttachError::OtherVersion { protocol, version, pid }) => {
            tracing::warn!(
                %run, protocol, version, pid,
                "an agent's keeper is of another version; the agent is left alone until it ends"
            );
            foreign::watch(seat, &recovered, &version);
            None
        }
        Err(error) => {
            lose(seat, &recovered, &format!("The agent's journal cannot be used: {error}."))
        }
    }
}

/// No process was ever started, or nothing is left that could say so.
fn start_or_lose(seat: &Seat, recovered: Recovered) {
    forget_home(&recovered.home);
    match recovered.unstarted() {
        Ok(job) => seat.queue.borrow_mut().push_front(job),
        Err(recovered) => {
            let Recovered { session, stored, .. } = *recovered;
            if let Some(open) = &stored.open {
                end_as_lost(&session, open, "The agent and what it said since are gone.");
            }
            session.note(Change::AgentEnded { agent: stored.agent, at: Millis::now() });
        }
    }
}

impl Recovered {
    /// The run to serve, if its prompt was never sent to anybody.
    pub(super) fn unstarted(self) -> Result<super::Job, Box<Self>> {
        let alive = self.home.is_alive().unwrap_or(true);
        let Some(open) = self.stored.open.as_ref().filter(|_| !alive) else {
            return Err(Box::new(self));
        };
        let recorded = prompt_of(&self.stored, open.run.id);
        let unsent = open.offset == 0 && (self.stored.last_n == 0 || recorded.is_some());
        if !unsent || self.job.is_none() || self.home.info().is_some() {
            return Err(Box::new(self));
        }
        let (run, ordinal, at) = (open.run.id, open.run.ordinal, open.run.started_at);
        let Self { session, stored, job, permit, .. } = self;
        // The home and the checkpoint of a warm process are not another's.
        let warm = recorded.is_some_and(|n| n > 1);
        let agent = if warm { AgentId::random() } else { stored.agent };
        let recorded = recorded.map(|n| super::Recorded { n, next_n: stored.last_n + 1 });
        let job = job.unwrap_or_default();
        let started = Box::new(Started { run, ordinal, agent, at, ticket: 0, job, permit });
        tracing::info!(%run, "a run that was accepted before the restart starts");
        Ok(super::Job::Run { session, started, recorded })
    }
}

/// The number of the run's prompt, if it is recorded and was not delivered.
fn prompt_of(stored: &StoredAgent, run: RunId) -> Option<u64> {
    let of_run = stored.commands.iter().filter(|command| command.run == run);
    let mut bodies = of_run.map(|command| (command.n, serde_json::from_slice(&command.body)));
    bodies.find_map(|(n, body)| match body {
        Ok(Body { purpose: Purpose::Prompt, .. }) => Some(n),
        _ => None,
    })
}

fn lose<'a>(seat: &Seat, recovered: &Recovered, why: &str) -> Option<Worker<'a>> {
    sweep(recovered.stored.agent);
    if let Some(open) = &recovered.stored.open {
        end_as_lost(&recovered.session, open, why);
    }
    seat.clear_up(&recovered.session, recovered.stored.newest.id, &recovered.home);
    None
}

pub(super) fn end_as_lost(session: &Session, open: &OpenRun, why: &str) {
    let run = open.run.id;
    tracing::error!(%run, why, "an agent of before the restart is lost");
    let end = end(Reason::AgentLost, None, Some(why.to_owned()));
    session.complete(run, &end, Millis::now());
}

fn saved(stored: &StoredAgent) -> Result<Option<Saved>, serde_json::Error> {
    stored.checkpoint.as_ref().map(|(_, state)| serde_json::from_slice(state)).transpose()
}

fn resume(
    seat: &Seat,
    recovered: Recovered,
    saved: Option<Saved>,
    process: Agent,
    from: u64,
) -> Worker<'_> {
    let Recovered { session, stored, home, job, permit } = recovered;
    let (bell, wakes) = bell();
    let waker = Waker::new(Box::new(bell));
    let run = stored.newest.id;
    session.attach_worker(run, waker.clone());
    let key = match (&saved, &job) {
        (Some(saved), _) => saved.launch.clone(),
        (None, Some(job)) => launch_key(seat, job),
        (None, None) => Launch::default(),
    };
    let told_to_the_end =
        saved.as_ref().is_some_and(|saved| saved.turn.run() == run && !saved.turn.is_on());
    let next_n = saved.as_ref().map_or(1, |saved| saved.next_n).max(stored.last_n + 1);
    let turn = turn_of(seat, &session, &stored, saved);
    let fold = Fold::resume(turn, from, stored.offset, stored.causes.iter().copied());
    let ids = (run, stored.agent);
    let mut worker = Worker::new(seat, session, ids, fold, (process, home, key), (waker, wakes));
    worker.permit = Some(permit);
    worker.next_n = next_n;
    worker.recovering = Some(0);
    worker.answers = stored.answers.clone();
    worker.send_again(&stored);
    // A process that has served a run before this one is warm.
    worker.job = job.filter(|_| !worker.first_turn);
    if !worker.fold.is_catching_up() {
        worker.forget_answered();
    }
    if stored.open.is_none() {
        // What follows an aborted run's end is not told.
        let aborted = stored.newest.aborted == Some(true) && !told_to_the_end;
        if worker.fold.turn().adapter().ends_stdin_with_turn() || aborted {
            worker.end_now();
        } else {
            seat.idle();
            worker.stage = Stage::Idle { until: after(seat.registry.limits().agent_idle_ms) };
        }
    }
    worker
}

/// The state at the checkpoint, made to fit the agent's newest run.
fn turn_of(seat: &Seat, session: &Session, stored: &StoredAgent, saved: Option<Saved>) -> Turn {
    let newest = &stored.newest;
    let origin = if newest.origin == "agent" { Origin::Agent } else { Origin::User };
    let mut turn = match saved {
        Some(saved) => saved.turn,
        None => Turn::new(newest.id, Adapter::new(seat.provider.kind), session.row().native_id),
    };
    if turn.run() != newest.id {
        turn.begin(newest.id, origin);
    }
    if newest.status == RunStatus::Completed {
        turn.end();
    }
    turn
}

impl Worker<'_> {
    /// What was recorded and is not known to be delivered: the keeper knows by the numbers what it
    /// has.
    fn send_again(&mut self, stored: &StoredAgent) {
        for command in &stored.commands {
            let Ok(Body { write, purpose }) = serde_json::from_slice(&command.body) else {
                tracing::error!(run = %command.run, n = command.n, "a command cannot be read");
                continue;
            };
            let open = stored.open.as_ref().filter(|open| open.run.id == command.run);
            let purpose = match (purpose, open) {
                (Purpose::Reply, _) => Purpose::Reply,
                // Its run is over: nobody waits for it.
                (_, None) => continue,
                // It was not sent, or the journal says that it was.
                (Purpose::Prompt, Some(open)) if open.run.abort.is_some() => continue,
                (Purpose::Answer(resolved), Some(open)) => {
                    let waits = open
                        .permissions
                        .iter()
                        .any(|permission| permission.request.0 == resolved.request_id);
                    // That it was delivered is in the log already.
                    if waits { Purpose::Answer(resolved) } else { Purpose::Reply }
                }
                (other, Some(_)) => other,
            };
            if purpose == Purpose::Prompt {
                self.prompt_n = Some(command.n);
                self.first_turn = command.n == 1;
            }
            // Its row is on disk: a ticket that is settled.
            let (run, n) = (command.run, command.n);
            self.recorded.push_back(Order { run, n, write, ticket: 0, purpose });
        }
    }
}
