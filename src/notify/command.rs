//! A program as a sink: the notification on its stdin and, in short, in its environment.
//!
//! It runs in a process group of its own, with a short environment: no credentials of this process
//! reach it. At the deadline the whole group is killed. Must not know what a notification is about.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::limits;
use crate::notify::message::{Message, clean};
use crate::notify::send::Failed;

/// Passed on if they are set: who and where one is, and how to reach one's desktop.
const PASSED: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "DBUS_SESSION_BUS_ADDRESS",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Runs it to its end, which has to come within `timeout`.
pub(super) fn run(
    argv: &[String],
    env: &BTreeMap<String, String>,
    message: &Message,
    timeout: Duration,
) -> Result<String, Failed> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(Failed::for_good("it names no program"));
    };
    let until = Instant::now() + timeout;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    command.envs(PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs(variables(message)).envs(env);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| {
        Failed::for_good(format!("`{}` cannot be started: {error}", clean(program, 100)))
    })?;
    let mut input = message.json().to_string();
    input.push('\n');
    if let Some(mut stdin) = child.stdin.take() {
        // It fits a pipe, so this waits for nobody; who does not read it need not.
        stdin.write_all(input.as_bytes()).ok();
    }
    let mut said = Said::of(child.stderr.take());
    let ended = wait(&mut child, &mut said, until);
    match ended {
        Ok(Some(status)) if status.success() => Ok(String::from("exit 0")),
        Ok(Some(status)) => Err(Failed::for_good(said.after(&words(status)))),
        Ok(None) => {
            kill(&mut child);
            let words = format!("not done within {timeout:?}, and killed");
            Err(Failed::for_good(said.after(&words)))
        }
        Err(error) => {
            kill(&mut child);
            Err(Failed::for_good(format!("cannot be waited for: {error}")))
        }
    }
}

/// The notification in short, for scripts that want no JSON.
fn variables(message: &Message) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("REATTACH_EVENT", message.event().to_owned()),
        ("REATTACH_TITLE", message.title.clone()),
        ("REATTACH_BODY", message.body.clone()),
    ];
    if let Some(session) = message.session {
        variables.push(("REATTACH_SESSION_ID", session.to_string()));
    }
    if let Some(url) = &message.url {
        variables.push(("REATTACH_URL", url.clone()));
    }
    variables
}

/// Waits for its end and keeps the end of what it says on stderr, so that it cannot fill the pipe
/// and wait for us. `None` at the deadline.
fn wait(child: &mut Child, said: &mut Said, until: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        said.read();
        if let Some(status) = child.try_wait()? {
            said.read();
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(limits::LOOK_AGAIN_MS.unsigned_abs()));
    }
}

fn kill(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = pid {
        // It may be gone already.
        kill_process_group(group, Signal::KILL).ok();
    }
    child.wait().ok();
}

fn words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The end of what a program says on stderr.
struct Said {
    stderr: Option<ChildStderr>,
    tail: Vec<u8>,
}

impl Said {
    fn of(stderr: Option<ChildStderr>) -> Self {
        let open = stderr.filter(|stderr| rustix::io::ioctl_fionbio(stderr, true).is_ok());
        Self { stderr: open, tail: Vec::new() }
    }

    /// Takes what is there; somebody else may hold the pipe when the program is gone.
    fn read(&mut self) {
        let mut chunk = [0; 4096];
        // A program that never stops talking must not keep us from the clock.
        for _ in 0..16 {
            let Some(stderr) = &mut self.stderr else { return };
            match stderr.read(&mut chunk) {
                Ok(0) => self.stderr = None,
                Ok(count) => {
                    self.tail.extend_from_slice(&chunk[..count]);
                    let surplus = self.tail.len().saturating_sub(limits::STDERR_TAIL_BYTES);
                    self.tail.drain(..surplus);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn after(&self, words: &str) -> String {
        let tail = String::from_utf8_lossy(&self.tail);
        let last = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let last = clean(last, limits::NOTIFY_TITLE_CHARS);
        if last.is_empty() { words.to_owned() } else { format!("{words}: {last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::id::Millis;

    fn sh(script: &str, timeout: Duration) -> Result<String, Failed> {
        let argv = ["sh", "-c", script].map(str::to_owned);
        let message = Message::test("me", "", "id", Millis(0));
        run(&argv, &BTreeMap::from([("MINE".into(), "1".into())]), &message, timeout)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_program_gets_the_notification() {
        let checks = "grep -q '\"event\":\"test\"' && test \"$REATTACH_EVENT$MINE\" = test1";
        assert_eq!(sh(checks, LONG), Ok("exit 0".into()));
    }

    #[test]
    fn its_environment_is_short() {
        // Cargo sets this one for each test.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert_eq!(sh("test -z \"$CARGO_MANIFEST_DIR\"", LONG), Ok("exit 0".into()));
    }

    #[test]
    fn a_failure_says_how() {
        let failed = sh("echo first >&2; echo no such thing >&2; exit 3", LONG);
        assert_eq!(failed.expect_err("exit 3").detail, "exit 3: no such thing");
        let talker = "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789 \
                      >&2; i=$((i+1)); done; exit 1";
        let failed = sh(talker, LONG).expect_err("exit 1");
        assert!(failed.detail.starts_with("exit 1: 0123"), "more than a pipe holds: {failed:?}");
        assert!(sh("kill -9 $$", LONG).expect_err("killed").detail.contains("signal 9"));
        let argv = ["/does/not/exist".to_owned()];
        let message = Message::test("me", "", "id", Millis(0));
        let failed = run(&argv, &BTreeMap::new(), &message, LONG).expect_err("no program");
        assert!(failed.detail.contains("cannot be started"), "{failed:?}");
    }

    #[test]
    fn at_the_deadline_it_and_its_children_are_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let failed = sh(&script, Duration::from_millis(500)).expect_err("too slow");
        assert!(failed.detail.contains("killed"), "{failed:?}");
        let child = std::fs::read_to_string(&file).expect("it began");
        let stat = format!("/proc/{}/stat", child.trim());
        let until = Instant::now() + LONG;
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(Instant::now() < until, "the child lives on");
            thread::yield_now();
        }
    }
}
