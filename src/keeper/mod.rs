//! The keeper: a small process per agent that owns the agent's pipes and all its descendants,
//! and the gateway's side of it.
//!
//! `run` is the keeper process (`keep`, with the agent's pipes in `stdin` and `lines`, what it
//! leaves behind in `processes`); `spawn` is how a gateway starts one and speaks to it
//! (`gateway`); `frame` is what passes between the two. Knows spawning, descendants, the stop
//! ladder, capped lines. Must not know what a line means.

mod agent;
mod environment;
pub mod frame;
mod gateway;
pub mod handover;
mod keep;
mod ladder;
pub mod lines;
pub mod numbers;
mod outbox;
mod processes;
mod stdin;

pub use environment::{AGENT_TAG, DATA_TAG, DataTag, environment};
pub use frame::{Reply, SpawnFailed, SpawnFailure, Step, Stopped, Timings, WriteError};
pub use gateway::{
    Commands, LaunchSpec, Parts, Process, Records, Replies, SpawnError, program, spawn,
};
pub use keep::run;
pub use processes::{Swept, sweep, sweep_agent};
