//! Black-box tests on the built binary, and the checks of the code base itself.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::exit,
    clippy::or_fun_call,
    clippy::print_stdout,
    clippy::type_complexity,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "a test fails by a panic, its threads are real, and its numbers are small"
)]
#![cfg(not(any(loom, shuttle)))]

mod access;
mod bench;
mod cli;
mod config;
mod conformance;
mod data;
mod demo;
mod doors;
mod ends;
mod folds;
mod hostile;
mod http;
mod keeper;
mod notify;
mod ops;
mod pages;
mod pressure;
mod queue;
mod races;
mod schema;
mod sessions;
mod sse;
mod store;
mod support;
mod survival;
mod tidy;
mod transcripts;
mod unusable;
mod uploads;
