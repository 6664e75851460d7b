//! What can be typed: commands and flags, as clap types.
//!
//! Knows names, defaults and help texts. Must not know what a command does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

pub use super::bench::args::{BenchArgs, BenchPart};
use super::commands::audit::AuditArgs;
use super::commands::backup::BackupArgs;
use super::commands::config::ConfigArgs;
use super::commands::credentials::{DevicesArgs, TokenArgs};
use super::commands::doctor::DoctorArgs;
use super::commands::export::ExportArgs;
use super::commands::healthcheck::HealthcheckArgs;
use super::commands::notify::NotifyArgs;
use super::commands::pair::{OpenArgs, PairArgs};
use super::commands::queue::QueueArgs;
use super::commands::restore::RestoreArgs;
use super::commands::retention::RetentionArgs;
use super::commands::service::ServiceArgs;
use super::commands::shell::{CompleteSessionsArgs, CompletionsArgs, ManArgs};
use super::commands::verify::VerifyArgs;
pub use super::logging::LogFormat;

/// Run coding agents on your own machine; attach from anywhere; lose nothing.
#[derive(Debug, Parser)]
#[command(name = "reattach", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "A SESSION is an id, the beginning of one, a title, or `-` for the last.\n\
Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 not authorised, 5 server unreachable,\n\
6 conflict, 7 time-out, 10 agent failed, 11 aborted, 12 waits for a permission, 75 data unusable\n\
or in use, 78 configuration refused, 126/127 agent not executable / not found.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the server.
    Serve(ServeArgs),
    /// See a run, a permission, a drop and a reattach; no key, no network.
    Demo(DemoArgs),
    /// Start a session with a prompt and watch it.
    Run(RunArgs),
    /// Send a prompt to a session.
    Send(SendArgs),
    /// List, take out or go on with the prompts that wait in a session.
    Queue(QueueArgs),
    /// Watch a session: what was missed, then live.
    Attach(AttachArgs),
    /// List what runs.
    Ps(PsArgs),
    /// Print a session's log.
    Logs(LogsArgs),
    /// Stop what a session's agent is doing, or every agent.
    Abort(AbortArgs),
    /// List permission requests that wait for an answer.
    Permissions(PermissionsArgs),
    /// Allow what an agent asks for, or answer its question.
    Allow(AllowArgs),
    /// Deny what an agent asks for.
    Deny(DenyArgs),
    /// List sessions.
    Sessions(SessionsArgs),
    /// Print the versions of this program and of the server.
    Version(VersionArgs),
    /// See what became of notifications, or test their sinks.
    Notify(NotifyArgs),
    /// Write, remove or look at a unit for systemd.
    Service(ServiceArgs),
    /// Exit with 0 if the server answers, else with 1: for containers.
    Healthcheck(HealthcheckArgs),
    /// Measure speed and memory with a server of its own.
    Bench(BenchArgs),
    /// Examine this installation, its server and its agents.
    Doctor(DoctorArgs),
    /// Let this machine's browser in: a link that opens once.
    Open(OpenArgs),
    /// Let another device in: a link that opens once, also as a code for its camera.
    Pair(PairArgs),
    /// Make, list and revoke tokens for programs.
    Token(TokenArgs),
    /// List browsers that have logged in, and log them out.
    Devices(DevicesArgs),
    /// Print or check the configuration, or write a file to begin with.
    Config(ConfigArgs),
    /// Print a script that completes commands in a shell.
    Completions(CompletionsArgs),
    /// Print the manual's page, or write those of all commands.
    Man(ManArgs),
    /// Sessions for the scripts of `completions`.
    #[command(hide = true)]
    CompleteSessions(CompleteSessionsArgs),
    /// Print who did what: answers, aborts, deletions, logins, tokens, configuration.
    Audit(AuditArgs),
    /// Write all sessions into one file, also while a server runs.
    Backup(BackupArgs),
    /// Make a data directory of a backup.
    Restore(RestoreArgs),
    /// Examine a data directory, a database or a backup.
    Verify(VerifyArgs),
    /// Write a session as a transcript, or as data.
    Export(ExportArgs),
    /// Say what retention would remove.
    Retention(RetentionArgs),
    /// The scripted agent behind `demo`.
    #[command(hide = true, name = "demo-agent", disable_help_flag = true)]
    DemoAgent(DemoAgentArgs),
}

/// How a command finds the server.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerArgs {
    /// Find the server by the `server.json` in its data directory
    /// [default: $XDG_DATA_HOME/reattach, else ~/.local/share/reattach]
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    pub data_dir: Option<PathBuf>,
    /// The server's address; the token comes from REATTACH_TOKEN
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
}

/// How a command speaks.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArgs {
    /// Print JSON: one document, or one line per event
    #[arg(long)]
    pub json: bool,
    /// When to use colour; `auto` means on a terminal, and not with NO_COLOR
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ColorWhen::Auto)]
    pub color: ColorWhen,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set or TERM is `dumb`.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `reattach serve`. What is not given comes from the environment, the file, the defaults.
#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 means any free port [default: 127.0.0.1:7878]
    #[arg(long, value_name = "ADDR:PORT")]
    pub bind: Option<String>,
    /// Where sessions and their logs live
    /// [default: $XDG_DATA_HOME/reattach, else ~/.local/share/reattach]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ask nobody for a token; only on a loopback address
    #[arg(long)]
    pub no_auth: bool,
    /// TLS ends in a proxy in front of this server; needs `server.public_url`
    #[arg(long)]
    pub behind_proxy: bool,
    /// Serve plain HTTP beyond loopback all the same
    #[arg(long)]
    pub insecure_http: bool,
    /// What happens to running agents when the server stops
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnStop::Keep)]
    pub on_stop: OnStop,
    /// How the log on stderr is written; `auto` is human on a terminal, else JSON
    #[arg(long, value_name = "HOW", value_enum, default_value_t, env = "REATTACH_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Print the address as one JSON object when the port accepts connections
    #[arg(long)]
    pub json: bool,
}

/// What happens to running agents when the server stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnStop {
    /// They work on, and the next server finds them again.
    #[default]
    Keep,
    /// They are stopped, and their runs end as aborted.
    Abort,
}

/// `reattach demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How fast the agent plays; 2 is twice as fast, 0 is without pauses
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_speed)]
    pub speed: f64,
    /// Use this data directory, and the server that runs for it if there is one
    /// [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Ask nothing; exit with 12 when the agent waits for an answer
    #[arg(long)]
    pub no_input: bool,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What the agent is to do; `-` reads it from stdin
    pub prompt: String,
    /// Which agent: a provider's name
    #[arg(short, long, value_name = "PROVIDER", default_value = "claude")]
    pub agent: String,
    /// The directory to work in [default: the current one]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// The model, in the provider's words
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// The session's title [default: the prompt's beginning]
    #[arg(long, value_name = "TITLE")]
    pub title: Option<String>,
    /// Start it and print its ids instead of watching
    #[arg(short, long)]
    pub detach: bool,
    /// How to send and watch.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// An option for the provider; VALUE is JSON, or else taken as a string
    #[arg(long = "option", value_name = "KEY=VALUE", value_parser = parse_option)]
    pub options: Vec<(String, Value)>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What `run`, `send --wait` and `attach` have in common.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct WatchArgs {
    /// Ask nothing; exit with 12 when the agent waits for an answer
    #[arg(long)]
    pub no_input: bool,
    /// Watch at most this long (`30s`, `10m`, `2h`); then exit with 7, and the run goes on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// `reattach send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// The session
    pub session: String,
    /// What the agent is to do; `-` reads it from stdin
    pub text: String,
    /// Watch the run until it ends, as `run` does
    #[arg(short, long)]
    pub wait: bool,
    /// If a run is on, let the prompt wait in the session's queue
    #[arg(short, long, conflicts_with = "wait")]
    pub queue: bool,
    /// Makes a resent prompt harmless [default: a random one]
    #[arg(long, value_name = "ID")]
    pub message_id: Option<String>,
    /// How to watch.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// An option for the provider; VALUE is JSON, or else taken as a string
    #[arg(long = "option", value_name = "KEY=VALUE", value_parser = parse_option)]
    pub options: Vec<(String, Value)>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The session [default: the one that needs you, else the one that runs, else the last]
    pub session: Option<String>,
    /// Where to begin: `start` is the oldest event kept, `tail` only what comes
    #[arg(long, value_enum, default_value_t = AttachFrom::Start)]
    pub from: AttachFrom,
    /// Begin after this event of that run
    #[arg(long, value_name = "RUN:SEQ", value_parser = parse_since, conflicts_with = "from")]
    pub since: Option<Since>,
    /// Exit when nothing runs any more, with the exit code of the last run
    #[arg(long, visible_alias = "wait")]
    pub until_complete: bool,
    /// How to watch.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Where an attach begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachFrom {
    /// The oldest event kept.
    Start,
    /// Only what comes.
    Tail,
}

/// A position to begin after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// The run's id.
    pub run: String,
    /// The last seq seen.
    pub seq: u64,
}

/// `reattach ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// All sessions, not only those that run
    #[arg(short, long)]
    pub all: bool,
    /// The keepers of the data directory, one for each agent; also without a server
    #[arg(long, conflicts_with_all = ["all", "server"])]
    pub keepers: bool,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The session
    pub session: String,
    /// Only the last N events
    #[arg(short = 'n', long = "tail", value_name = "N")]
    pub tail: Option<usize>,
    /// Go on with what comes, as `attach` does
    #[arg(short, long)]
    pub follow: bool,
    /// Begin after this event of that run
    #[arg(long, value_name = "RUN:SEQ", value_parser = parse_since)]
    pub since: Option<Since>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach abort`.
#[derive(Debug, Args)]
pub struct AbortArgs {
    /// The session
    #[arg(required_unless_present = "all")]
    pub session: Option<String>,
    /// Every run that is on, in all sessions
    #[arg(short, long, conflicts_with = "session")]
    pub all: bool,
    /// Wait until nothing of the run is left
    #[arg(short, long)]
    pub wait: bool,
    /// Wait at most this long; then exit with 7
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "wait")]
    pub timeout: Option<Duration>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach permissions`.
#[derive(Debug, Args)]
pub struct PermissionsArgs {
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach allow`.
#[derive(Debug, Args)]
pub struct AllowArgs {
    /// The request: its id, or the beginning of it
    pub id: String,
    /// Allow this input instead of what was asked for (JSON)
    #[arg(long, value_name = "JSON", value_parser = parse_json, conflicts_with = "answers")]
    pub input: Option<Value>,
    /// Answer a question: its id (optional if there is one question) and the answer
    #[arg(long = "answer", value_name = "[QUESTION=]ANSWER")]
    pub answers: Vec<String>,
    /// Which of the offered choices
    #[arg(long, value_name = "ID", conflicts_with = "always")]
    pub choice: Option<String>,
    /// Take the choice that also allows it from now on
    #[arg(long)]
    pub always: bool,
    /// A note to the agent
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach deny`.
#[derive(Debug, Args)]
pub struct DenyArgs {
    /// The request: its id, or the beginning of it
    pub id: String,
    /// Which of the offered choices
    #[arg(long, value_name = "ID")]
    pub choice: Option<String>,
    /// A note to the agent
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach sessions`.
#[derive(Debug, Args)]
pub struct SessionsArgs {
    /// Only those whose title has this in it
    #[arg(short, long, value_name = "TEXT")]
    pub query: Option<String>,
    /// The archived ones
    #[arg(long)]
    pub archived: bool,
    /// At most this many
    #[arg(short = 'n', long, value_name = "N")]
    pub limit: Option<usize>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach demo-agent`: parsed by the agent itself.
#[derive(Debug, Args)]
pub struct DemoAgentArgs {
    /// Its own flags.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<OsString>,
}

impl Command {
    /// Whether errors are to be printed as JSON.
    #[must_use]
    pub const fn json(&self) -> bool {
        match self {
            Self::Serve(args) => args.json,
            Self::Demo(args) => args.output.json,
            Self::Run(args) => args.output.json,
            Self::Send(args) => args.output.json,
            Self::Queue(args) => args.output.json,
            Self::Attach(args) => args.output.json,
            Self::Ps(args) => args.output.json,
            Self::Logs(args) => args.output.json,
            Self::Abort(args) => args.output.json,
            Self::Permissions(args) => args.output.json,
            Self::Allow(args) => args.output.json,
            Self::Deny(args) => args.output.json,
            Self::Sessions(args) => args.output.json,
            Self::Audit(args) => args.output.json,
            Self::Version(args) => args.output.json,
            Self::Notify(args) => args.json(),
            Self::Service(args) => args.json(),
            Self::Healthcheck(args) => args.output.json,
            Self::Bench(args) => args.output.json,
            Self::Doctor(args) => args.output.json,
            Self::Open(args) => args.output.json,
            Self::Pair(args) => args.output.json,
            Self::Token(args) => args.json(),
            Self::Devices(args) => args.json(),
            Self::Config(args) => args.json(),
            Self::Completions(_)
            | Self::Man(_)
            | Self::CompleteSessions(_)
            | Self::DemoAgent(_) => false,
            Self::Backup(args) => args.output.json,
            Self::Restore(args) => args.output.json,
            Self::Verify(args) => args.output.json,
            Self::Export(args) => args.output.json,
            Self::Retention(args) => args.output.json,
        }
    }
}

/// `30s`, `500ms`, `10m`, `2h`, `1d`; a bare number is seconds.
///
/// # Errors
/// What is wrong with anything else.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let help = || format!("`{text}` is not a time; write it as 30s, 500ms, 10m, 2h or 1d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| help())?;
    let per_unit: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(help()),
    };
    number.checked_mul(per_unit).map(Duration::from_millis).ok_or_else(help)
}

fn parse_since(text: &str) -> Result<Since, String> {
    let help = || format!("`{text}` is not RUN:SEQ, such as the `runId` and `seq` of an event");
    let (run, seq) = text.rsplit_once(':').ok_or_else(help)?;
    let seq = seq.parse().map_err(|_| help())?;
    if run.is_empty() {
        return Err(help());
    }
    Ok(Since { run: run.to_owned(), seq })
}

fn parse_option(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_owned(), value))
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed >= 0.0 => Ok(speed),
        _ => {
            Err(format!("`{text}` is not a speed; 1 is normal, 2 twice as fast, 0 without pauses"))
        }
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
