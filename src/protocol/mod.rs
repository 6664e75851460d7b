//! The wire: what clients say and hear. Must not know connections.

pub mod frame;
