//! The demo agent, `reattach demo-agent`: a program that speaks the `jsonl` dialect and plays a
//! whole turn without a model, a key or a network.
//!
//! It is a real child process like any other agent, so what works with it works with them. It
//! writes nothing but a temporary directory of its own. `docs/providers/demo.md` says how to
//! steer it. Must not know the gateway: it has stdin, stdout and stderr.

mod script;
mod settings;
mod stage;
mod workdir;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use settings::{Flags, Settings};
use stage::{Prompt, Stage, Stop};

/// Exit code of `--crash`.
pub const CRASH_CODE: u8 = 3;

/// Runs the demo agent. `args` are what follows `demo-agent` on the command line.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let name = OsString::from("reattach demo-agent");
    let flags = match Flags::try_parse_from(std::iter::once(name).chain(args)) {
        Ok(flags) => flags,
        Err(error) => {
            // Help goes to stdout, what is wrong to stderr; if neither can be written there is
            // nobody to tell.
            error.print().unwrap_or_default();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    let mut stage = match Stage::open() {
        Ok(stage) => stage,
        Err(error) => return complain(&format!("cannot watch for signals: {error}"), 1),
    };
    let prompt = match stage.prompt() {
        Ok(prompt) => prompt,
        Err(error) => {
            return complain(
                &format!(
                    "{error}\nIt is an agent, to be started by the gateway: try `reattach demo`, \
                     or `reattach run -a demo \"hello\"`."
                ),
                2,
            );
        }
    };
    let settings = match Settings::new(&flags, &prompt.options, &prompt.content) {
        Ok(settings) => settings,
        Err(error) => {
            return finish(&mut stage, Err(Stop::Failed(error)));
        }
    };
    let end = perform(&mut stage, &prompt, &settings);
    finish(&mut stage, end)
}

/// The turn: what the settings ask for, else the script.
fn perform(stage: &mut Stage, prompt: &Prompt, settings: &Settings) -> Result<(), Stop> {
    stage.set_pace(settings.speed, settings.fail_at);
    // Native ids are unique per provider, so this one thing is never seeded.
    let native_id =
        prompt.native_id.clone().unwrap_or_else(|| format!("demo-{}", uuid::Uuid::new_v4()));
    stage.say_uncounted(&json!({"kind": "session_created", "newSessionId": native_id}))?;
    if settings.flood > 0 {
        stage.flood(settings.flood, settings.flood_bytes)?;
    }
    if settings.hang {
        return stage.hang();
    }
    if settings.crash {
        if settings.flood == 0 {
            script::play_until_crash(stage, prompt, settings.seed)?;
        }
        return Err(Stop::Crashed);
    }
    if settings.flood > 0 {
        return stage.complete();
    }
    script::play(stage, prompt, settings.seed)
}

/// Says how it ended, if that is still possible, and gives the exit code.
fn finish(stage: &mut Stage, end: Result<(), Stop>) -> ExitCode {
    let said = match end {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Stop::Aborted) => stage
            .last_words(&json!({
                "kind": "complete", "exitCode": 0, "success": false, "aborted": true,
            }))
            .map(|()| ExitCode::SUCCESS),
        Err(Stop::Failed(error)) => stage
            .last_words(&json!({
                "kind": "complete", "exitCode": 1, "success": false, "error": error,
            }))
            .map(|()| ExitCode::FAILURE),
        Err(Stop::Crashed) => {
            return stage.flush().map_or(ExitCode::FAILURE, |()| {
                complain(
                    "pretending to crash, as asked\n  at step 4 of 7, while reading a file\n  \
                     (there is nothing wrong with your machine)",
                    CRASH_CODE,
                )
            });
        }
        // As a shell counts an end by a signal.
        Err(Stop::Signal(signal)) => {
            Ok(u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Err(Stop::Gone(error)) => Err(error),
    };
    // Nobody reads any more: quietly, since the reader knows.
    said.unwrap_or(ExitCode::FAILURE)
}

fn complain(what: &str, code: u8) -> ExitCode {
    writeln!(io::stderr().lock(), "demo-agent: {what}").unwrap_or_default();
    ExitCode::from(code)
}
