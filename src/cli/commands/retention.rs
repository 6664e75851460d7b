//! `retention --dry-run`: what would leave the disk.
//!
//! Reads the data directory itself and changes nothing. Must not know how runs leave.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::backup::{failed, unusable};
use crate::cli::args::{OutputArgs, parse_duration};
use crate::cli::config::{Config, Flags, World};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::screen::Screen;
use crate::cli::{target, text};
use crate::run::id::{Millis, SessionId};
use crate::store::{self, BackupError, DATABASE, Keep, Plan, Why};

/// `reattach retention`.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// Say what would leave, and change nothing: the server is what removes runs
    #[arg(long, required = true)]
    pub dry_run: bool,
    /// As `retention.max_age`: runs that ended longer ago leave (`30d`, `12h`; 0 keeps all)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub max_age: Option<Duration>,
    /// As `retention.max_bytes`: the oldest runs leave until no more is kept (0 keeps all)
    #[arg(long, value_name = "BYTES")]
    pub max_bytes: Option<u64>,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data directory [default: $XDG_DATA_HOME/reattach, else ~/.local/share/reattach]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach retention`.
///
/// # Errors
/// If the configuration is refused, or the data directory cannot be read.
pub fn retention(args: &RetentionArgs) -> Outcome {
    let keep = keep(args)?;
    let dir = target::data_dir(args.data_dir.as_deref())?;
    let path = dir.join(DATABASE);
    if !path.is_file() {
        return Err(failed(&BackupError::NoDatabase { dir: dir.clone() }, &dir).into());
    }
    let plan = store::plan_retention(&path, keep, Millis::now())
        .map_err(|error| unusable(&error, &dir))?;
    let mut screen = Screen::new(args.output);
    let sessions = by_session(&plan);
    let text = if plan.leaving.is_empty() { String::new() } else { table(&sessions) };
    screen.document(&as_json(&plan, keep, &sessions), &text)?;
    if !screen.is_json() {
        for line in notes(&plan, keep) {
            screen.say(&line)?;
        }
    }
    Ok(Exit::Ok)
}

/// What is configured, or else asked for.
fn keep(args: &RetentionArgs) -> Result<Keep, Failure> {
    let refused = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Configuration, "CONFIG", error.to_string(), "reattach config check")
    };
    let world = World::current().map_err(|error| refused(&error))?;
    let flags = Flags { config: args.config.clone(), ..Flags::default() };
    let limits = Config::load(&flags, &world).map_err(|error| refused(&error))?.limits;
    let age = args.max_age.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    Ok(Keep {
        age_ms: age.unwrap_or(limits.retention_age_ms),
        bytes_max: args.max_bytes.unwrap_or(limits.retention_bytes),
    })
}

/// Of one session: runs and bytes.
type Sessions = BTreeMap<SessionId, (u64, u64)>;

fn by_session(plan: &Plan) -> Sessions {
    let mut sessions = Sessions::new();
    for run in &plan.leaving {
        let (runs, bytes) = sessions.entry(run.session).or_default();
        *runs += 1;
        *bytes += run.bytes;
    }
    sessions
}

fn leaving_bytes(plan: &Plan) -> u64 {
    plan.leaving.iter().map(|run| run.bytes).sum()
}

fn table(sessions: &Sessions) -> String {
    let rows: Vec<Vec<String>> = sessions
        .iter()
        .map(|(id, (runs, bytes))| vec![id.to_string(), runs.to_string(), text::bytes(*bytes)])
        .collect();
    text::table(&["SESSION", "RUNS", "BYTES"], &rows)
}

fn notes(plan: &Plan, keep: Keep) -> Vec<String> {
    let kept = format!("{} runs with {} are kept now", plan.runs, text::bytes(plan.stored));
    let mut rules = Vec::new();
    if keep.age_ms > 0 {
        rules.push(format!("at most {} old", text::duration(keep.age_ms.unsigned_abs())));
    }
    if keep.bytes_max > 0 {
        rules.push(format!("at most {} in all", text::bytes(keep.bytes_max)));
    }
    if rules.is_empty() {
        let all = format!("{kept}, and all stay: neither max_age nor max_bytes is set");
        return vec![all, "to try one: reattach retention --dry-run --max-age 30d".to_owned()];
    }
    let rules = rules.join(", ");
    if plan.leaving.is_empty() {
        return vec![format!("{kept}, and all stay ({rules})")];
    }
    vec![
        format!(
            "{kept}; of them {} with {} would leave ({rules})",
            plan.leaving.len(),
            text::bytes(leaving_bytes(plan))
        ),
        "nothing was changed; a server does it if [retention] in its configuration says so"
            .to_owned(),
    ]
}

fn as_json(plan: &Plan, keep: Keep, sessions: &Sessions) -> Value {
    let runs: Vec<Value> = plan
        .leaving
        .iter()
        .map(|run| {
            json!({
                "sessionId": run.session,
                "runId": run.run,
                "endedAt": run.ended_at.to_string(),
                "bytes": run.bytes,
                "why": match run.why { Why::Age => "max_age", Why::Bytes => "max_bytes" },
            })
        })
        .collect();
    let sessions: Vec<Value> = sessions
        .iter()
        .map(|(id, (runs, bytes))| json!({"sessionId": id, "runs": runs, "bytes": bytes}))
        .collect();
    json!({
        "maxAgeMs": keep.age_ms,
        "maxBytes": keep.bytes_max,
        "kept": {"runs": plan.runs, "bytes": plan.stored},
        "leaving": {"runs": plan.leaving.len(), "bytes": leaving_bytes(plan)},
        "sessions": sessions,
        "runs": runs,
    })
}
