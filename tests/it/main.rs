//! Black-box tests on the built binary, and the checks of the code base itself.
#![cfg(not(any(loom, shuttle)))]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "those rules are for what models must see; no model runs these tests"
)]

mod cli;
mod config;
mod conformance;
mod crash;
mod demo;
mod http;
mod keeper;
mod pressure;
mod sessions;
mod store;
mod support;
mod tidy;
mod transcripts;
