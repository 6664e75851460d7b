//! A temporary data directory, and servers of our own in it, started and stopped.
//!
//! The servers run with their defaults: neither this user's configuration nor environment counts.
//! Must not know what is measured.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::{failed, median, ms};
use crate::cli::exit::Failure;
use crate::cli::interrupt::{Interrupts, Woken};
use crate::cli::target::Target;
use crate::limits;

/// Flushes from which the median is taken.
const FLUSHES: usize = 50;
/// What each of them writes.
const FLUSH_BYTES: usize = 4096;

/// A directory of our own, removed at the end.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
}

impl Place {
    /// Makes one in `parent`, or among the system's temporary files.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn new(parent: Option<&Path>) -> Result<Self, Failure> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = std::path::absolute(parent)
            .map_err(|error| cannot("find this directory", &error))?
            .join(format!("reattach-bench-{}", Uuid::new_v4()));
        // For our eyes only: the token lies in it.
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| cannot(&format!("make {}", dir.display()), &error))?;
        let place = Self { dir };
        let project = place.project();
        fs::create_dir(&project)
            .map_err(|error| cannot(&format!("make {}", project.display()), &error))?;
        Ok(place)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the sessions live.
    #[must_use]
    pub fn project(&self) -> PathBuf {
        self.dir.join("project")
    }

    /// The median of how long 4 KiB take to the disk, in milliseconds.
    ///
    /// # Errors
    /// If they do not get there.
    pub fn flush_ms(&self) -> Result<f64, Failure> {
        let path = self.dir.join("flush");
        let measure = || -> io::Result<Vec<f64>> {
            let mut file = File::create(&path)?;
            let mut times = Vec::with_capacity(FLUSHES);
            for _ in 0..FLUSHES {
                let start = Instant::now();
                file.write_all(&[b'x'; FLUSH_BYTES])?;
                file.sync_data()?;
                times.push(ms(start.elapsed()));
            }
            fs::remove_file(&path)?;
            Ok(times)
        };
        let times = measure();
        Ok(median(&times.map_err(|error| cannot(&format!("flush {}", path.display()), &error))?))
    }

    /// Starts a server with the data directory of this name, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready in time; the end of its log says why.
    pub fn serve(&self, data: &str, interrupts: &mut Interrupts) -> Result<Started, Failure> {
        let config = self.configure()?;
        let log = self.dir.join(format!("{data}.log"));
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| cannot(&format!("write {}", log.display()), &error))?;
        let exe = std::env::current_exe().map_err(|error| cannot("find this program", &error))?;
        let data_dir = self.dir.join(data);
        let mut command = Command::new(exe);
        command
            .args(["serve", "--json", "--no-auth", "--bind", "127.0.0.1:0"])
            .args(["--on-stop", "abort", "--data-dir"])
            .arg(&data_dir)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // Ctrl-C at the terminal is for us; we stop the server afterwards.
            .process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"REATTACH_") {
                command.env_remove(name);
            }
        }
        let start = Instant::now();
        let mut child = command.spawn().map_err(|error| cannot("start a server", &error))?;
        let stdout = child.stdout.take();
        let mut started =
            Started { child, ready: Duration::ZERO, target: Target::DataDir(data_dir) };
        let stdout = stdout.ok_or_else(|| failed("the server has no stdout"))?;
        let ready = wait_until_ready(stdout, interrupts).map_err(|why| not_ready(&why, &log))?;
        started.ready = ready.saturating_duration_since(start);
        Ok(started)
    }

    /// The configuration of a server for nothing but the bench.
    fn configure(&self) -> Result<PathBuf, Failure> {
        let project = self.project();
        let root = project.to_str().ok_or_else(|| {
            failed(format!("{} is not UTF-8, which a configuration has to be", project.display()))
        })?;
        let mut server = toml::Table::new();
        server.insert("project_roots".into(), toml::Value::Array(vec![root.into()]));
        let mut config = toml::Table::new();
        config.insert("server".into(), toml::Value::Table(server));
        // Should the server be killed, nothing of it stays for long.
        let mut timeouts = toml::Table::new();
        timeouts.insert("orphan_grace".into(), "10s".into());
        config.insert("timeouts".into(), toml::Value::Table(timeouts));
        let file = self.dir.join("bench.toml");
        fs::write(&file, config.to_string())
            .map_err(|error| cannot(&format!("write {}", file.display()), &error))?;
        Ok(file)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed is a directory among other temporary ones, named after us.
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// A server that we started. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Started {
    child: Child,
    ready: Duration,
    target: Target,
}

impl Started {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From before it was started to its line on stdout.
    #[must_use]
    pub const fn ready(&self) -> Duration {
        self.ready
    }

    /// How to reach it.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // An error means that it has ended already.
            kill_process(pid, Signal::TERM).ok();
        }
        let end = Instant::now() + limits::DEMO_STOP;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// Waits for the line that a server prints when its port accepts connections, and says when it
/// came.
fn wait_until_ready(
    stdout: std::process::ChildStdout,
    interrupts: &mut Interrupts,
) -> Result<Instant, String> {
    let (send, lines) = mpsc::sync_channel(1);
    // The thread ends with the line, or with the server, which is stopped when this fails.
    let reader = thread::Builder::new().name("bench-ready".into()).spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        send.send((Instant::now(), read.map(|_| line))).ok();
    });
    reader.map_err(|error| error.to_string())?;
    let end = Instant::now() + limits::DEMO_READY;
    loop {
        match lines.try_recv() {
            Ok((at, Ok(line))) if !line.trim().is_empty() => return Ok(at),
            Ok((_, Ok(_))) | Err(mpsc::TryRecvError::Disconnected) => {
                return Err("it ended at once".to_owned());
            }
            Ok((_, Err(error))) => return Err(error.to_string()),
            Err(mpsc::TryRecvError::Empty) => {}
        }
        if Instant::now() >= end {
            return Err("it takes too long".to_owned());
        }
        if interrupts.wait(Duration::from_millis(5)) == Woken::Interrupted {
            return Err("interrupted".to_owned());
        }
    }
}

fn not_ready(why: &str, log: &Path) -> Failure {
    let said = fs::read_to_string(log).unwrap_or_default();
    let mut last: Vec<&str> = said.lines().rev().take(5).collect();
    last.reverse();
    let mut message = format!("the server to be measured is not ready: {why}");
    for line in last {
        message.push_str("\n    ");
        message.push_str(line);
    }
    failed(message)
}

fn cannot(what: &str, error: &io::Error) -> Failure {
    failed(format!("cannot {what}: {error}"))
}
