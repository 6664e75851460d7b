//! The command line: flags to commands, outcomes to exit codes.

pub mod args;
pub mod config;
pub mod demo_agent;
pub mod exit;
pub mod serve;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};

/// Runs the command that this process was started with.
#[must_use]
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::serve(&args),
        Command::DemoAgent(args) => demo_agent::run(args.rest),
        _ => ExitCode::FAILURE,
    }
}
