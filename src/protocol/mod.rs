//! The wire: what clients say, what the gateway says, and the only encoder of events.
//!
//! `docs/protocol.md` is the definition for third parties. Must not know connections, threads or
//! sockets.

pub mod fields;
pub mod frame;
pub mod gateway;
pub mod message;

pub use message::fuzz_decode;
