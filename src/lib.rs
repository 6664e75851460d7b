//! `reattach` runs coding-agent CLIs, keeps everything they say in a durable, numbered log per
//! run, and serves that log to any number of devices, which can drop and come back without
//! losing or doubling anything.
//!
//! A newcomer's path: `run/event`, `provider/claude`, `registry/worker`, `run/log`,
//! `registry/feed`, `server/connection`. `docs/architecture.md` has the picture.

#[cfg(not(any(loom, shuttle)))]
pub mod cli;
#[cfg(not(any(loom, shuttle)))]
pub mod keeper;
/// What the models compile of the keeper: its rules, without descriptors and processes.
#[cfg(any(loom, shuttle))]
pub mod keeper {
    pub mod handover;
    pub mod numbers;
}
pub mod limits;
#[cfg(not(any(loom, shuttle)))]
pub mod metrics;
#[cfg(not(any(loom, shuttle)))]
pub mod notify;
#[doc(hidden)]
pub mod oracle;
pub mod protocol;
#[cfg(not(any(loom, shuttle)))]
pub mod provider;
pub mod registry;
pub mod run;
#[cfg(not(any(loom, shuttle)))]
pub mod server;
#[cfg(not(any(loom, shuttle)))]
pub mod store;
pub mod sync;
#[cfg(not(any(loom, shuttle)))]
pub mod web;
