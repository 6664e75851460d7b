//! The command line: flags to commands, outcomes to exit codes.
//!
//! A newcomer's path: `args`, `commands`, `watch`, `follow`, `render`. The commands are clients
//! like any other: they speak the public protocol and know nothing of the server's insides, `serve`
//! aside.

pub mod answer;
pub mod args;
pub mod bench;
pub mod commands;
pub mod config;
pub mod demo_agent;
pub mod exit;
pub mod follow;
pub mod help;
pub mod http;
pub mod interrupt;
pub mod link;
pub mod local;
pub mod logging;
pub mod render;
pub mod screen;
pub mod serve;
pub mod stream;
pub mod target;
pub mod text;
pub mod tls;
pub mod transcript;
pub mod watch;
pub mod words;

use std::io::Write as _;
use std::process::ExitCode;

use clap::FromArgMatches as _;

use args::{Cli, Command};
use commands::{
    abort, backup, bench as benches, config as configuration, credentials, demo, doctor, export,
    healthcheck, list, logs, notify, pair, permissions, queue, restore, retention, run as runs,
    service, shell, verify,
};
use exit::{Exit, Stop};

/// Runs the command that this process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let refused = |error: clap::Error| {
        // Help and version go to stdout, errors to stderr; with neither there, nobody reads.
        error.print().ok();
        if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
    };
    let matches = match help::command_with_topics().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return refused(error),
    };
    if let Some(page) = matches.subcommand_name().and_then(help::topic) {
        // With nobody there to read it, that was all.
        write!(std::io::stdout(), "{page}").ok();
        return Exit::Ok.into();
    }
    let command = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli.command,
        Err(error) => return refused(error),
    };
    let json = command.json();
    let outcome = match command {
        Command::Serve(args) => return serve::serve(&args),
        Command::DemoAgent(args) => return demo_agent::run(args.rest),
        Command::Demo(args) => demo::demo(args),
        Command::Run(args) => runs::run(args),
        Command::Send(args) => runs::send(args),
        Command::Queue(args) => queue::queue(&args),
        Command::Attach(args) => runs::attach(args),
        Command::Abort(args) => abort::abort(&args),
        Command::Ps(args) => list::ps(args),
        Command::Audit(args) => commands::audit::audit(&args),
        Command::Sessions(args) => list::sessions(args),
        Command::Version(args) => list::version(args),
        Command::Logs(args) => logs::logs(args),
        Command::Permissions(args) => permissions::permissions(args),
        Command::Allow(args) => permissions::allow(args),
        Command::Deny(args) => permissions::deny(args),
        Command::Service(args) => service::service(&args),
        Command::Notify(args) => notify::notify(args),
        Command::Healthcheck(args) => healthcheck::healthcheck(&args),
        Command::Bench(args) => benches::bench(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Open(args) => pair::open(&args),
        Command::Pair(args) => pair::pair(&args),
        Command::Token(args) => credentials::token(&args),
        Command::Devices(args) => credentials::devices(&args),
        Command::Config(args) => configuration::config(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::CompleteSessions(args) => shell::complete_sessions(&args),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => restore::restore(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Export(args) => export::export(&args),
        Command::Retention(args) => retention::retention(&args),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(Stop::StdoutClosed) => Exit::Ok.into(),
        Err(Stop::Failure(failure)) => {
            let line =
                if json { failure.to_json().to_string() } else { format!("reattach: {failure}") };
            // A closed stderr is nobody listening; the exit code still says it.
            writeln!(std::io::stderr(), "{line}").ok();
            failure.exit.into()
        }
    }
}
