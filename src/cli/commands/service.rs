//! `service`: a unit for systemd, as a service of the user who runs agents.
//!
//! Files are written and removed, and the commands that make systemd notice are said, not run: only
//! `status` asks systemd, and says so. Must not know what the server does.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Parser as _, Subcommand};
use serde_json::json;

use crate::cli::args::{Cli, OutputArgs};
use crate::cli::config::World;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::screen::Screen;

/// The unit, but for what depends on the machine.
const TEMPLATE: &str = include_str!("reattach.service.in");
/// Its name.
const UNIT: &str = "reattach.service";

/// `reattach service`.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ServiceCommand,
}

/// What `service` can do.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Write the unit, with the PATH of this shell in it.
    Install(ServiceInstallArgs),
    /// Remove the unit.
    Uninstall(ServiceOutputArgs),
    /// Say whether the unit is there, fits this shell, and is active.
    Status(ServiceOutputArgs),
}

/// `reattach service install`.
#[derive(Debug, Args)]
pub struct ServiceInstallArgs {
    /// Print the unit and write nothing
    #[arg(long, conflicts_with_all = ["refresh_path", "force"])]
    pub print: bool,
    /// Only put this shell's PATH into the unit that is there
    #[arg(long, conflicts_with_all = ["force", "serve"])]
    pub refresh_path: bool,
    /// Replace a unit that is there and says something else
    #[arg(long)]
    pub force: bool,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Flags of `reattach serve`, after `--`
    #[arg(last = true, value_name = "SERVE FLAG")]
    pub serve: Vec<String>,
}

/// `reattach service uninstall` and `status`.
#[derive(Debug, Args)]
pub struct ServiceOutputArgs {
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ServiceArgs {
    /// Whether programs read the output.
    #[must_use]
    pub const fn json(&self) -> bool {
        match &self.command {
            ServiceCommand::Install(args) => args.output.json,
            ServiceCommand::Uninstall(args) | ServiceCommand::Status(args) => args.output.json,
        }
    }
}

/// `reattach service install`, `uninstall` and `status`.
///
/// # Errors
/// If a file cannot be written, read or removed, or one would be overwritten.
pub fn service(args: &ServiceArgs) -> Outcome {
    if !cfg!(target_os = "linux") {
        let message = "there is no systemd on this system";
        let next = "start `reattach serve` by what starts programs here (launchd, say)";
        return Err(Failure::new(Exit::Failure, "NO_SYSTEMD", message, next).into());
    }
    let world = World::current().map_err(|error| failed(&error.to_string(), "reattach doctor"))?;
    match &args.command {
        ServiceCommand::Install(args) if args.refresh_path => refresh(args, &world),
        ServiceCommand::Install(args) => install(args, &world),
        ServiceCommand::Uninstall(args) => uninstall(args, &world),
        ServiceCommand::Status(args) => status(args, &world),
    }
}

fn install(args: &ServiceInstallArgs, world: &World) -> Outcome {
    let serve = ["reattach", "serve"].into_iter().chain(args.serve.iter().map(String::as_str));
    if let Err(error) = Cli::try_parse_from(serve) {
        let message = format!("the server would not start with these flags: {}", error.kind());
        return Err(Failure::usage(message, "reattach serve --help").into());
    }
    let unit = unit(&program(world), &args.serve, world)?;
    let mut screen = Screen::new(args.output);
    if args.print {
        screen.document(&json!({ "unit": unit }), &unit)?;
        return Ok(Exit::Ok);
    }
    let path = path(world)?;
    match fs::read_to_string(&path) {
        Ok(there) if there != unit && !args.force => {
            let message = format!("{} is there and says something else", path.display());
            let next = "reattach service install --refresh-path for its PATH, or --force for all \
                        of it; --print shows what would be written";
            return Err(Failure::new(Exit::Conflict, "UNIT_EXISTS", message, next).into());
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&path, &error)),
        _ => {}
    }
    write(&path, &unit).map_err(|error| io(&path, &error))?;
    screen.document(&json!({ "file": path }), &format!("{}\n", path.display()))?;
    if !args.output.json {
        screen.say("written; nothing was started. To start it now and at each login:")?;
        screen.say("  systemctl --user daemon-reload")?;
        screen.say("  systemctl --user enable --now reattach")?;
        if !lingers(world) {
            screen.say("It, and your agents, end when you log out, unless you say once:")?;
            screen.say("  loginctl enable-linger")?;
        }
        screen.say("After a change of your PATH: reattach service install --refresh-path")?;
    }
    Ok(Exit::Ok)
}

/// Replaces the one line that says where programs are found; what else somebody changed stays.
fn refresh(args: &ServiceInstallArgs, world: &World) -> Outcome {
    let path = path(world)?;
    let there = read(&path)?;
    let fresh = path_line(world)?;
    let is_path = |line: &&str| {
        line.starts_with("Environment=PATH=") || line.starts_with("Environment=\"PATH=")
    };
    let lines: Vec<&str> = there.lines().filter(is_path).collect();
    let [old] = lines[..] else {
        let message = format!("{} has {} lines with a PATH", path.display(), lines.len());
        return Err(failed(&message, "edit it, or reattach service install --force").into());
    };
    let changed = old != fresh;
    if changed {
        let unit = there.replacen(old, &fresh, 1);
        write(&path, &unit).map_err(|error| io(&path, &error))?;
    }
    let mut screen = Screen::new(args.output);
    let json = json!({ "file": path, "changed": changed });
    screen.document(&json, &format!("{}\n", path.display()))?;
    if !args.output.json {
        screen.say(if changed {
            "its PATH is this shell's now; agents work on through:\n  systemctl --user \
             daemon-reload\n  systemctl --user restart reattach"
        } else {
            "it has this shell's PATH already"
        })?;
    }
    Ok(Exit::Ok)
}

fn uninstall(args: &ServiceOutputArgs, world: &World) -> Outcome {
    let path = path(world)?;
    read(&path)?;
    // What `systemctl enable` made; without the unit it would lead nowhere.
    let link = path.with_file_name("default.target.wants").join(UNIT);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&link, &error)),
        _ => {}
    }
    fs::remove_file(&path).map_err(|error| io(&path, &error))?;
    let mut screen = Screen::new(args.output);
    screen.document(&json!({ "removed": path }), &format!("{}\n", path.display()))?;
    if !args.output.json {
        screen.say("removed; nothing was stopped. If it runs:")?;
        screen.say("  systemctl --user stop reattach")?;
        screen.say("  systemctl --user daemon-reload")?;
        screen.say("Agents that it leaves at work: reattach ps --keepers")?;
    }
    Ok(Exit::Ok)
}

fn status(args: &ServiceOutputArgs, world: &World) -> Outcome {
    let path = path(world)?;
    let there = read(&path)?;
    let fresh = path_line(world)?;
    let current = there.lines().any(|line| line == fresh);
    let starts = there.lines().find_map(|line| line.strip_prefix("ExecStart="));
    let linger = lingers(world);
    let mut screen = Screen::new(args.output);
    if !args.output.json {
        screen.say("asking systemd: systemctl --user is-active reattach")?;
    }
    let active = Command::new("systemctl").args(["--user", "is-active", "reattach"]).output();
    let active = active.ok().map(|asked| String::from_utf8_lossy(&asked.stdout).trim().to_owned());
    let active = active.filter(|word| !word.is_empty());
    let json = json!({
        "file": path, "execStart": starts, "pathIsCurrent": current, "linger": linger,
        "active": active,
    });
    let path_word = match current {
        true => "this shell's",
        false => "another than this shell's: reattach service install --refresh-path",
    };
    let linger_word = match linger {
        true => "yes: it runs also when you are logged out",
        false => "no: it ends when you log out, with your agents: loginctl enable-linger",
    };
    let text = format!(
        "unit    {}\nstarts  {}\nPATH    {path_word}\nlinger  {linger_word}\nactive  {}\n",
        path.display(),
        starts.unwrap_or("-"),
        active.as_deref().unwrap_or("systemd does not answer"),
    );
    screen.document(&json, &text)?;
    Ok(Exit::Ok)
}

/// The unit for this machine.
fn unit(program: &Path, serve: &[String], world: &World) -> Result<String, Failure> {
    let program = program.to_str().ok_or_else(|| not_text("this program's path"))?;
    let mut command = vec![argument(program)?, "serve".to_owned()];
    for flag in serve {
        command.push(argument(flag)?);
    }
    Ok(TEMPLATE
        .replace("@EXEC@", &command.join(" "))
        .replace("@PATH@", &path_line(world)?)
        .replace("@SSH@", &ssh_line(world)))
}

/// Absolute directories of this shell's `PATH`, each once: a service does not read shells' files.
fn path_line(world: &World) -> Result<String, Failure> {
    let path = world.env.get(OsStr::new("PATH")).ok_or_else(|| not_text("PATH"))?;
    let path = path.to_str().ok_or_else(|| not_text("PATH"))?;
    let mut dirs: Vec<&str> = Vec::new();
    for dir in path.split(':').filter(|dir| dir.starts_with('/')) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    if dirs.is_empty() || dirs.iter().any(|dir| dir.chars().any(char::is_control)) {
        return Err(not_text("PATH"));
    }
    Ok(format!("Environment={}", quoted(&format!("PATH={}", dirs.join(":")), false)))
}

/// An ssh agent that lies in the runtime directory is found there after each login. Any other has a
/// name of this login, which would be wrong tomorrow.
fn ssh_line(world: &World) -> String {
    let value = |name: &str| world.env.get(OsStr::new(name)).and_then(|value| value.to_str());
    let below = value("SSH_AUTH_SOCK").zip(value("XDG_RUNTIME_DIR"));
    let below = below.and_then(|(socket, dir)| socket.strip_prefix(dir));
    match below.filter(|rest| rest.starts_with('/') && !rest.contains(char::is_control)) {
        Some(rest) => {
            let rest = rest.replace('%', "%%");
            format!("Environment=\"SSH_AUTH_SOCK=%t{}\"", rest.replace(['"', '\\'], "_"))
        }
        None => String::from("#Environment=SSH_AUTH_SOCK=%t/ssh-agent.socket"),
    }
}

/// A word of a command line in a unit.
fn argument(word: &str) -> Result<String, Failure> {
    if word.chars().any(char::is_control) {
        return Err(not_text("a flag"));
    }
    Ok(quoted(word, true))
}

/// As systemd reads words: `%` and, in commands, `$` mean something unless doubled.
fn quoted(word: &str, command: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-=@+,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' => text.push_str("%%"),
            '$' if command => text.push_str("$$"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// This program, by the name under which it is found: a package's next version will have that too.
fn program(world: &World) -> PathBuf {
    let dirs = world.env.get(OsStr::new("PATH")).map(std::env::split_paths);
    let mut found = dirs.into_iter().flatten().map(|dir| dir.join("reattach"));
    let same = |path: &PathBuf| {
        path.is_absolute() && path.canonicalize().is_ok_and(|real| real == world.exe)
    };
    found.find(same).unwrap_or_else(|| world.exe.clone())
}

fn path(world: &World) -> Result<PathBuf, Failure> {
    let config = world.config_file().ok_or_else(|| {
        failed("neither XDG_CONFIG_HOME nor HOME says where units lie", "set HOME")
    })?;
    // `config_file` is reattach/config.toml below the directory of configurations.
    let below = config.parent().and_then(Path::parent).unwrap_or_else(|| Path::new("/"));
    Ok(below.join("systemd/user").join(UNIT))
}

/// As systemd remembers it, for users whose services need no login.
fn lingers(world: &World) -> bool {
    let user = world.env.get(OsStr::new("USER")).or_else(|| world.env.get(OsStr::new("LOGNAME")));
    user.is_some_and(|user| Path::new("/var/lib/systemd/linger").join(user).exists())
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let message = format!("there is no {}", path.display());
            Failure::new(Exit::NotFound, "NO_UNIT", message, "reattach service install")
        }
        _ => io_failure(path, &error),
    })
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let fresh = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

fn io(path: &Path, error: &io::Error) -> crate::cli::exit::Stop {
    io_failure(path, error).into()
}

fn io_failure(path: &Path, error: &io::Error) -> Failure {
    failed(&format!("{}: {error}", path.display()), "reattach service install --print > FILE")
}

fn failed(message: &str, next: &str) -> Failure {
    Failure::new(Exit::Failure, "SERVICE", message, next)
}

fn not_text(what: &str) -> Failure {
    let message = format!("{what} cannot stand in a unit: it is missing or has strange characters");
    failed(&message, "write the unit by hand: reattach service install --print")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(env: &[(&str, &str)]) -> World {
        let env = env.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        World { env: env.collect(), exe: "/opt/reattach".into() }
    }

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        assert_eq!(quoted("/usr/bin:/bin", false), "/usr/bin:/bin");
        assert_eq!(quoted("a b\"c\\d%h$e", true), "\"a b\\\"c\\\\d%%h$$e\"");
        assert_eq!(quoted("PATH=/a b:$c", false), "\"PATH=/a b:$c\"");
        assert!(argument("a\nExecStop=rm").is_err(), "no line can be added");
    }

    #[test]
    fn a_path_has_each_absolute_directory_once() {
        let line = |path: &str| path_line(&world(&[("PATH", path)])).map_err(|e| e.message);
        assert_eq!(line("/a:b::/c:/a").as_deref(), Ok("Environment=PATH=/a:/c"));
        assert_eq!(line("/a b:/50%").as_deref(), Ok("Environment=\"PATH=/a b:/50%%\""));
        assert!(line("relative").is_err());
        assert!(line("/a\nExecStop=x").is_err());
    }

    #[test]
    fn only_an_ssh_agent_of_the_runtime_directory_is_found_again() {
        let line = |socket: &str| {
            ssh_line(&world(&[("SSH_AUTH_SOCK", socket), ("XDG_RUNTIME_DIR", "/run/user/1000")]))
        };
        assert_eq!(line("/run/user/1000/gcr/ssh"), "Environment=\"SSH_AUTH_SOCK=%t/gcr/ssh\"");
        assert!(line("/tmp/ssh-x/agent.1").starts_with('#'));
        assert!(line("/run/user/10001/ssh").starts_with('#'), "that is another user's");
    }
}
