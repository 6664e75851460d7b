//! Being built.

pub mod config;
pub mod demo_agent;

/// The keeper process.
#[must_use]
pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
