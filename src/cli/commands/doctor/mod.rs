//! `doctor`: is this installation, its server and its agents as they should be, and if not, which
//! command mends it?
//!
//! Each group of checks has its file and adds findings to one report. Nothing is changed, no keeper
//! is spoken to, and of files that hold secrets only the presence and the mode are looked at. Must
//! not know how a finding is shown, its own two shapes aside.

mod agents;
mod bundle;
mod data;
mod install;
mod machine;
mod probe;
mod programs;
mod server;

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::args::OutputArgs;
use crate::cli::config::{Config, World};
use crate::cli::exit::{Exit, Outcome};
use crate::cli::screen::Screen;
use crate::cli::target;
use crate::cli::text::{self, Paint};

/// The file in the data directory that holds the first token.
const TOKEN: &str = "token";

/// `reattach doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The data directory to examine
    /// [default: $XDG_DATA_HOME/reattach, else ~/.local/share/reattach]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The configuration file that its server is started with
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Let warnings fail too: exit with 1
    #[arg(long)]
    pub strict: bool,
    /// Open this address as a browser would: TLS, page, WebSocket, stream
    #[arg(long, value_name = "URL")]
    pub probe: Option<String>,
    /// Write what was found into an archive for a bug report; no secrets, prompts or events
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
struct Finding {
    group: &'static str,
    level: Level,
    /// What was found, in words.
    what: String,
    /// The command or change that mends it.
    fix: Option<String>,
    /// The same for programs.
    facts: Value,
}

/// Everything that was looked at, in order.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn ok(&mut self, group: &'static str, what: impl Into<String>) -> &mut Self {
        self.add(group, Level::Ok, what.into(), None)
    }

    fn warn(
        &mut self,
        group: &'static str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> &mut Self {
        self.add(group, Level::Warn, what.into(), Some(fix.into()))
    }

    fn fail(
        &mut self,
        group: &'static str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> &mut Self {
        self.add(group, Level::Fail, what.into(), Some(fix.into()))
    }

    fn add(
        &mut self,
        group: &'static str,
        level: Level,
        what: String,
        fix: Option<String>,
    ) -> &mut Self {
        self.findings.push(Finding { group, level, what, fix, facts: Value::Null });
        self
    }

    /// Adds numbers and names for programs to the last finding.
    fn facts(&mut self, facts: Value) {
        if let Some(finding) = self.findings.last_mut() {
            finding.facts = facts;
        }
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    fn exit(&self, strict: bool) -> Exit {
        let worst = self.findings.iter().map(|finding| finding.level).max();
        match worst {
            Some(Level::Fail) => Exit::Failure,
            Some(Level::Warn) if strict => Exit::Failure,
            _ => Exit::Ok,
        }
    }

    fn json(&self, strict: bool) -> Value {
        let checks = self.findings.iter().map(|finding| {
            let mut check = json!({
                "group": finding.group,
                "level": finding.level.word(),
                "what": finding.what,
            });
            if let Some(fix) = &finding.fix {
                check["fix"] = json!(fix);
            }
            if !finding.facts.is_null() {
                check["facts"] = finding.facts.clone();
            }
            check
        });
        json!({
            "schema": 1,
            "ok": self.exit(strict) == Exit::Ok,
            "version": env!("CARGO_PKG_VERSION"),
            "failed": self.count(Level::Fail),
            "warnings": self.count(Level::Warn),
            "checks": checks.collect::<Vec<_>>(),
        })
    }

    fn table(&self, paint: Paint) -> String {
        let width = self.findings.iter().map(|one| one.group.len()).max().unwrap_or(0);
        let mut text = String::new();
        let mut group = "";
        for finding in &self.findings {
            let shown = if finding.group == group { "" } else { finding.group };
            group = finding.group;
            let word = format!("{:4}", finding.level.word());
            let word = match finding.level {
                Level::Ok => paint.green(&word),
                Level::Warn => paint.yellow(&word),
                Level::Fail => paint.red(&word),
            };
            let mut lines = finding.what.lines().map(|line| text::clean(line, Paint::Plain));
            let first = lines.next().unwrap_or_default();
            text.push_str(&format!("{shown:width$}  {word}  {first}\n"));
            let indent = " ".repeat(width + 8);
            for line in lines {
                text.push_str(&format!("{indent}{line}\n"));
            }
            for (at, line) in finding.fix.iter().flat_map(|fix| fix.lines()).enumerate() {
                let line = text::clean(line, Paint::Plain);
                let head = if at == 0 { "fix: " } else { "     " };
                text.push_str(&format!("{indent}{head}{line}\n"));
            }
        }
        text
    }
}

/// What the checks share.
#[derive(Debug)]
struct Patient {
    world: World,
    /// As `serve` would read it; `None` if it would refuse it.
    config: Option<Config>,
    /// Whether its agents are those that nobody asked for.
    agents_are_default: bool,
    data_dir: PathBuf,
    /// What its `server.json` says, if that process lives.
    server: Option<server::Running>,
    /// The flags that lead other commands there.
    flags: String,
}

/// Examines everything, or with `--probe` an address as well.
///
/// # Errors
/// If there is no place for data, or the archive cannot be written.
pub fn doctor(args: &DoctorArgs) -> Outcome {
    let data_dir = target::data_dir(args.data_dir.as_deref())?;
    let mut report = Report::default();
    let world = World::current().map_err(|error| {
        crate::cli::exit::Failure::new(Exit::Failure, "NO_EXE", error.to_string(), "start it anew")
    })?;
    install::build(&mut report);
    let read = install::config(&mut report, args.config.as_deref(), &world);
    let agents_are_default = read.as_ref().is_none_or(|(_, default)| *default);
    let config = read.map(|(config, _)| config);
    let flags = target::Target::DataDir(data_dir.clone()).flags();
    let server = server::find(&data_dir);
    let patient = Patient { world, config, agents_are_default, data_dir, server, flags };
    let last_change = data::check(&mut report, &patient);
    server::check(&mut report, &patient);
    agents::check(&mut report, &patient);
    machine::keepers(&mut report, &patient);
    machine::clock(&mut report, last_change);
    machine::limits(&mut report, &patient);
    if let Some(url) = &args.probe {
        probe::check(&mut report, &patient, url)?;
    }
    let mut screen = Screen::new(args.output);
    let paint = screen.out_paint();
    screen.document(&report.json(args.strict), &report.table(paint))?;
    if let Some(file) = &args.bundle {
        bundle::write(file, &report, &patient, args)?;
        screen.say(&format!(
            "wrote {}: look into it before you send it to anybody",
            file.display()
        ))?;
    }
    if !screen.is_json() {
        let (failed, warned) = (report.count(Level::Fail), report.count(Level::Warn));
        let line = match (failed, warned) {
            (0, 0) => "all is well".to_owned(),
            _ => format!("{failed} failed, {}", text::count(warned, "warning")),
        };
        screen.say(&line)?;
    }
    Ok(report.exit(args.strict))
}

/// A path in a command that can be pasted.
fn quoted(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+,@:".contains(&b));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let mut report = Report::default();
        report.ok("data", "fine");
        assert_eq!((report.exit(false), report.exit(true)), (Exit::Ok, Exit::Ok));
        report.warn("data", "hm", "look");
        assert_eq!((report.exit(false), report.exit(true)), (Exit::Ok, Exit::Failure));
        report.fail("agents", "no", "do\nthis");
        assert_eq!((report.exit(false), report.exit(true)), (Exit::Failure, Exit::Failure));
        let table = report.table(Paint::Plain);
        let expected = "data    ok    fine\n        warn  hm\n              fix: look\n\
                        agents  fail  no\n              fix: do\n                   this\n";
        assert_eq!(table, expected);
        let json = report.json(false);
        assert_eq!((&json["ok"], &json["failed"]), (&false.into(), &1.into()));
        assert_eq!(json["checks"][1]["fix"], "look");
    }

    #[test]
    fn what_was_found_cannot_steer_the_terminal() {
        let mut report = Report::default();
        report.warn("agents", "bad\u{1b}[2Jname", "rm \u{1b}]0;x\u{7}y");
        assert!(!report.table(Paint::Plain).contains('\u{1b}'));
    }

    #[test]
    fn commands_can_be_pasted() {
        let of = |path: &str| quoted(std::path::Path::new(path));
        assert_eq!(of("/home/me/x.toml"), "/home/me/x.toml");
        assert_eq!(of("/a b/it's"), "'/a b/it'\\''s'");
    }
}
