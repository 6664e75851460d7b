//! Exit codes, and failures that say what to try next.
//!
//! Knows the documented codes and how a failure is shown. Must not know what any command does.

use std::fmt;
use std::io;

use serde_json::{Value, json};

/// The exit codes of the command line; `docs/cli.md` documents them and they do not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well; for `run`: the run succeeded. A detach is this too.
    Ok,
    /// Something that has no code of its own.
    Failure,
    /// The command was given wrongly.
    Usage,
    /// No such session, run or permission request.
    NotFound,
    /// The server wants a token, or another one.
    NotAuthorised,
    /// No server answers.
    Unreachable,
    /// Somebody was faster: already running, already answered, nothing to abort.
    Conflict,
    /// A deadline given with `--timeout` passed.
    TimedOut,
    /// The agent's run failed.
    AgentFailed,
    /// The run was stopped by somebody.
    Aborted,
    /// The run waits for a permission and `--no-input` was given.
    Waiting,
    /// Data cannot be used, or another server uses it.
    Data,
    /// The configuration was refused.
    Configuration,
    /// The agent's program was found but cannot be executed.
    NotExecutable,
    /// The agent's program was not found.
    ProgramNotFound,
}

impl Exit {
    /// The number that the shell sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::NotAuthorised => 4,
            Self::Unreachable => 5,
            Self::Conflict => 6,
            Self::TimedOut => 7,
            Self::AgentFailed => 10,
            Self::Aborted => 11,
            Self::Waiting => 12,
            Self::Data => 75,
            Self::Configuration => 78,
            Self::NotExecutable => 126,
            Self::ProgramNotFound => 127,
        }
    }

    /// How `run` ends after this `complete` event.
    #[must_use]
    pub fn of_complete(complete: &Value) -> Self {
        if complete["success"] == true {
            return Self::Ok;
        }
        if complete["aborted"] == true || complete["reason"] == "aborted" {
            return Self::Aborted;
        }
        match (complete["reason"].as_str(), complete["exitCode"].as_i64()) {
            (Some("spawn_failed"), Some(126)) => Self::NotExecutable,
            (Some("spawn_failed"), Some(127)) => Self::ProgramNotFound,
            _ => Self::AgentFailed,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    /// The code to exit with.
    pub exit: Exit,
    /// A word for programs: the server's error code, or one of ours.
    pub code: String,
    /// What went wrong, for people.
    pub message: String,
    /// The command or change to try next.
    pub next: String,
}

impl Failure {
    /// A failure with the next thing to try.
    pub fn new(
        exit: Exit,
        code: impl Into<String>,
        message: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { exit, code: code.into(), message: message.into(), next: next.into() }
    }

    /// The command was given wrongly.
    pub fn usage(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", message, next)
    }

    /// The object that `--json` prints on stderr.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "code": self.code,
            "message": self.message,
            "next": self.next,
            "exit": self.exit.code(),
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  try: {}", self.message, self.next)
    }
}

/// What stops a command before its end.
#[derive(Debug)]
pub enum Stop {
    /// Something went wrong.
    Failure(Failure),
    /// Whoever read our stdout has seen enough (`reattach logs x | head`): that is success.
    StdoutClosed,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<io::Error> for Stop {
    /// For errors of writing to stdout only; sockets have their own mapping in `http` and `link`.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::StdoutClosed;
        }
        Self::Failure(Failure::new(
            Exit::Failure,
            "STDOUT",
            format!("cannot write to stdout: {error}"),
            "send the output somewhere with room, e.g. `reattach logs SESSION > FILE`",
        ))
    }
}

/// What a command returns.
pub type Outcome = Result<Exit, Stop>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones_and_all_differ() {
        let all = [
            (Exit::Ok, 0),
            (Exit::Failure, 1),
            (Exit::Usage, 2),
            (Exit::NotFound, 3),
            (Exit::NotAuthorised, 4),
            (Exit::Unreachable, 5),
            (Exit::Conflict, 6),
            (Exit::TimedOut, 7),
            (Exit::AgentFailed, 10),
            (Exit::Aborted, 11),
            (Exit::Waiting, 12),
            (Exit::Data, 75),
            (Exit::Configuration, 78),
            (Exit::NotExecutable, 126),
            (Exit::ProgramNotFound, 127),
        ];
        for (exit, code) in all {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }

    #[test]
    fn the_end_of_a_run_decides_the_exit_code() {
        let of = |json: &str| {
            Exit::of_complete(&serde_json::from_str::<Value>(json).expect("the test's own JSON"))
        };
        assert_eq!(of(r#"{"success":true,"reason":"finished","exitCode":0}"#), Exit::Ok);
        assert_eq!(of(r#"{"success":false,"aborted":true,"reason":"aborted"}"#), Exit::Aborted);
        assert_eq!(of(r#"{"success":false,"reason":"failed","exitCode":0}"#), Exit::AgentFailed);
        assert_eq!(
            of(r#"{"success":false,"reason":"agent_exited","exitCode":127}"#),
            Exit::AgentFailed,
            "127 of an agent that did run is the agent's"
        );
        assert_eq!(
            of(r#"{"success":false,"reason":"spawn_failed","exitCode":127}"#),
            Exit::ProgramNotFound
        );
        assert_eq!(
            of(r#"{"success":false,"reason":"spawn_failed","exitCode":126}"#),
            Exit::NotExecutable
        );
        assert_eq!(of("{}"), Exit::AgentFailed, "no success without a word of it");
    }

    #[test]
    fn a_closed_stdout_is_not_a_failure() {
        assert!(matches!(
            Stop::from(io::Error::from(io::ErrorKind::BrokenPipe)),
            Stop::StdoutClosed
        ));
        assert!(matches!(
            Stop::from(io::Error::from(io::ErrorKind::StorageFull)),
            Stop::Failure(Failure { exit: Exit::Failure, .. })
        ));
    }
}
