//! The binary: hands over to the library and passes its exit code on.

use std::process::ExitCode;

/// The models are tests of the library; the binary is built beside them, for nothing.
#[cfg(any(loom, shuttle))]
fn main() -> ExitCode {
    ExitCode::FAILURE
}

#[cfg(not(any(loom, shuttle)))]
fn main() -> ExitCode {
    // The keeper is spawned once per agent, and the demo agent by a keeper: both go past the
    // command line's parser.
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(arg) if arg == "keeper" => return reattach::keeper::run(),
        Some(arg) if arg == "demo-agent" => return reattach::cli::demo_agent::run(args),
        _ => {}
    }
    reattach::cli::run()
}
