//! What checks the core: a disk in memory with the store's guards, a bell to wait for, and the
//! checker of what a subscriber sees. Shared by loom, shuttle, the property tests and fuzzers.
//!
//! Not part of the program: hidden from the documentation, called by tests only. Must not know
//! SQLite, sockets or threads.

mod bell;
mod checker;
mod disk;
mod fault;
#[cfg(not(any(loom, shuttle)))]
mod journal;
mod machine;
mod model;
mod op;
#[cfg(not(any(loom, shuttle)))]
mod socket;

pub use bell::Alarm;
pub use checker::{Checker, Fact};
pub use disk::{MemoryDisk, StoredRun};
pub use fault::Fault;
#[cfg(not(any(loom, shuttle)))]
pub use journal::check_journal;
pub use machine::{Machine, check_bytes, check_ops};
pub use op::Op;
#[cfg(not(any(loom, shuttle)))]
pub use socket::check_frames;
