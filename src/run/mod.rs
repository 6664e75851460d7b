//! What a run is: its ids, its vocabulary, its state machine and the log that holds it.
//!
//! Knows nothing of JSON on the wire, of threads, sockets or SQLite.

pub mod change;
pub mod event;
pub mod id;
pub mod log;
pub mod queue;
pub mod server_change;
pub mod state;
pub mod wake;
