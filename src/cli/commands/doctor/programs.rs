//! Asking programs: with a deadline, with nothing on their stdin, and with an end to all that they
//! started.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::limits;

/// Where a program was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There, and it can be executed.
    Program(PathBuf),
    /// There, but it cannot be executed.
    NotExecutable(PathBuf),
    /// Not there.
    Nowhere,
}

/// Looks for `program` as a shell would.
pub(super) fn find(program: &str, path: &OsStr) -> Found {
    let mut unusable = None;
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![PathBuf::from(program)]
    } else {
        std::env::split_paths(path).map(|dir| dir.join(program)).collect()
    };
    for candidate in candidates {
        if !candidate.is_file() {
            continue;
        }
        if access(&candidate, Access::EXEC_OK).is_ok() {
            return Found::Program(candidate);
        }
        unusable.get_or_insert(candidate);
    }
    unusable.map_or(Found::Nowhere, Found::NotExecutable)
}

/// What a program says on stdout.
///
/// # Errors
/// Why it says nothing, in words.
pub(super) fn ask(command: &mut Command, span: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let Some(mut out) = child.stdout.take() else { return Err("has no output".to_owned()) };
    let (said, heard) = crossbeam_channel::bounded(1);
    let reader = std::thread::Builder::new().name("doctor-program".into()).spawn(move || {
        let mut text = Vec::new();
        let read = out.by_ref().take(limits::DOCTOR_OUTPUT_BYTES).read_to_end(&mut text);
        // Nobody waits any more if the time is over.
        said.send(read.map(|_| text)).unwrap_or_default();
    });
    if let Err(error) = reader {
        end(&mut child);
        return Err(format!("cannot be read: {error}"));
    }
    let heard = heard.recv_timeout(span);
    // Whatever it is, it has said all that is wanted, or too late.
    let status = end(&mut child);
    match (heard, status) {
        (Ok(Ok(text)), Some(0) | None) if !text.is_empty() => {
            Ok(String::from_utf8_lossy(&text).trim().to_owned())
        }
        (Ok(_), Some(code)) => Err(format!("ends with exit code {code}")),
        (Ok(_), None) => Err("says nothing".to_owned()),
        (Err(_), _) => Err(format!("says nothing for {} s", span.as_secs())),
    }
}

/// Ends a program and all that it started, unless it has ended by itself.
fn end(child: &mut Child) -> Option<i32> {
    // Its stdout is closed, so it ends now or in a moment; its own code is better than a kill.
    for _ in 0..20 {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Ok(Some(status)) => {
                kill_group(child.id());
                return status.code();
            }
            Err(_) => break,
        }
    }
    kill_group(child.id());
    child.wait().ok().and_then(|status| status.code())
}

fn kill_group(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone already.
        kill_process_group(pid, Signal::KILL).ok();
    }
}

/// The PATH that a login shell has: what a person sees in a terminal.
pub(super) fn login_path() -> Option<String> {
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let name = Path::new(&shell).file_name()?.to_str()?.to_owned();
    // Other shells have other words for it.
    if !matches!(name.as_str(), "sh" | "bash" | "zsh" | "dash" | "ksh") {
        return None;
    }
    let mut command = Command::new(&shell);
    // Not an interactive one, which would stop and wait to become the terminal's.
    command.args(["-lc", "printf '\\n%s\\n' \"$PATH\""]);
    let said = ask(&mut command, limits::DOCTOR_PROGRAM).ok()?;
    said.lines().last().map(str::to_owned).filter(|path| path.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn programs_are_asked_with_a_deadline() {
        let long = Duration::from_secs(60);
        assert_eq!(ask(&mut sh("echo 1.2.3"), long), Ok("1.2.3".into()));
        assert_eq!(ask(&mut sh("exit 3"), long), Err("ends with exit code 3".into()));
        assert_eq!(ask(&mut sh(":"), long), Err("ends with exit code 0".into()));
        let late = ask(&mut sh("sleep 1000 & sleep 1000"), Duration::from_millis(50));
        assert!(late.is_err_and(|why| why.contains("says nothing")));
        assert!(ask(&mut Command::new("/nowhere/x"), long).is_err());
        // One that floods is not read to its end.
        let flood = ask(&mut sh("exec yes"), long).map(|text| text.len().div_ceil(1 << 10));
        assert_eq!(flood, Ok(64));
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").expect("writable");
        let path = std::env::join_paths([dir.path(), Path::new("/bin"), Path::new("/usr/bin")])
            .expect("no colons");
        assert!(matches!(find("sh", &path), Found::Program(_)));
        assert_eq!(find("plain", &path), Found::NotExecutable(plain));
        assert_eq!(find("nothing-of-that-name", &path), Found::Nowhere);
        assert_eq!(find("/nowhere/sh", &path), Found::Nowhere);
    }
}
