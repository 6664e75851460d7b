//! `healthcheck`: is the server there? For containers and the like, which only look at the exit
//! code. Must not know what the server does.

use clap::Args;
use serde_json::{Value, json};

use crate::cli::args::{OutputArgs, ServerArgs};
use crate::cli::exit::{Exit, Outcome, Stop};
use crate::cli::http::Rest;
use crate::cli::screen::Screen;
use crate::cli::target::Target;
use crate::limits;

/// `reattach healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Also fail while it cannot take prompts: its disk is full, it is stopping
    #[arg(long)]
    pub ready: bool,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Asks once, with a deadline of two seconds. Every failure is exit code 1, as those who only look
/// at that expect.
///
/// # Errors
/// If the server is not there, does not answer, or says that something is wrong.
pub fn healthcheck(args: &HealthcheckArgs) -> Outcome {
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let asked = Target::new(&args.server)
        .and_then(|target| Rest::within(target, limits::CLIENT_HEALTH))
        .and_then(|rest| rest.get_at::<Value>(path, &[]));
    if let Err(mut failure) = asked {
        failure.exit = Exit::Failure;
        return Err(Stop::Failure(failure));
    }
    let mut screen = Screen::new(args.output);
    screen.document(&json!({ "ok": true }), "ok\n")?;
    Ok(Exit::Ok)
}
