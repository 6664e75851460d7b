//! The front door: one port for REST, the page and WebSockets.

pub mod auth;
pub mod http;
pub mod wait;
