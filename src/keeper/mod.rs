//! The keeper: a small process per agent that owns the agent's pipes and all its descendants,
//! and the gateway's side of it.
//!
//! `run` is the keeper process (`keep`, with the agent's pipes in `stdin` and `lines`, what it
//! leaves behind in `processes`, what it must not lose in `journal`); it lives in its `home` and
//! outlives gateways by the rules of `handover`. `spawn` and `attach` are how a gateway starts
//! one, finds one again, and speaks to it (`gateway`); `frame` is what passes between the two.
//! Knows spawning, descendants, the stop ladder, capped lines, the journal. Must not know what a
//! line means.

mod agent;
mod environment;
mod follower;
pub mod frame;
mod gateway;
pub mod handover;
mod home;
mod hunt;
pub mod journal;
mod keep;
mod ladder;
pub mod lines;
mod log;
mod newcomers;
pub mod numbers;
mod outbox;
mod processes;
mod signals;
mod stdin;

pub use environment::{AGENT_TAG, DATA_TAG, DataTag, environment, search_path};
pub use frame::{
    PROTOCOL, PROTOCOL_MIN, Reply, SpawnFailed, SpawnFailure, Step, Stopped, Timings, WriteError,
};
pub use gateway::{
    AttachError, Attached, Commands, LaunchSpec, Parts, Process, Records, Replies, SpawnError,
    attach, program, read_journal, spawn,
};
pub use home::{Home, KeeperInfo, homes};
pub use keep::run;
pub use processes::{Swept, sweep, sweep_agent};
