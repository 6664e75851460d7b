//! The binary: hands over to the library and passes its exit code on.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The keeper is spawned once per agent; it goes past the command line's parser.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "keeper") {
        return reattach::keeper::run();
    }
    reattach::cli::run()
}
