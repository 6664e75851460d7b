//! What the system says of processes: processor time and memory, from `/proc`.
//!
//! Elsewhere than on Linux it says nothing, and the report shows that. Must not know what the
//! processes do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

/// A tick of `/proc/PID/stat`: 100 per second on all architectures that matter (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two looks. What a thread uses after the last look at it is not seen.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Seconds of processor time, by who used them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seconds {
    /// The server's threads by kind: `store`, `agent`, `out`, `conn` and so on.
    pub gateway: BTreeMap<String, f64>,
    /// The keeper's process.
    pub keeper: f64,
    /// The agent's process.
    pub agent: f64,
    /// The measuring client's process: this one.
    pub client: f64,
}

/// Follows a server, its keeper and its agent.
#[derive(Debug)]
pub struct Account {
    server: u32,
    keeper: Option<u32>,
    agent: Option<u32>,
    /// Per thread of the server: its kind, its ticks at the first look and at the last.
    threads: BTreeMap<u32, (String, u64, u64)>,
    keeper_ticks: u64,
    agent_ticks: u64,
    client_ticks: u64,
    next: Instant,
}

impl Account {
    /// Begins to count for the server of this process id.
    #[must_use]
    pub fn open(server: u32) -> Self {
        let mut account = Self {
            server,
            keeper: None,
            agent: None,
            threads: BTreeMap::new(),
            keeper_ticks: 0,
            agent_ticks: 0,
            client_ticks: ticks(Path::new("/proc/self")).unwrap_or(0),
            next: Instant::now(),
        };
        account.look_at_threads(true);
        account
    }

    /// Looks, if it is time to.
    pub fn look(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + LOOK_EVERY;
        self.look_at_threads(false);
        self.keeper = self.keeper.or_else(|| child_of(self.server));
        self.agent = self.agent.or_else(|| child_of(self.keeper?));
        let of = |pid: Option<u32>, before: u64| {
            pid.and_then(|pid| ticks(&process(pid))).map_or(before, |now| now.max(before))
        };
        self.keeper_ticks = of(self.keeper, self.keeper_ticks);
        self.agent_ticks = of(self.agent, self.agent_ticks);
    }

    /// What was used since it was opened; `None` where the system does not say.
    #[must_use]
    pub fn close(mut self) -> Option<Seconds> {
        self.look_at_threads(false);
        let mut seconds = Seconds {
            keeper: seconds_of(self.keeper_ticks),
            agent: seconds_of(self.agent_ticks),
            client: seconds_of(ticks(Path::new("/proc/self"))?.saturating_sub(self.client_ticks)),
            ..Seconds::default()
        };
        for (kind, first, last) in self.threads.into_values() {
            if last > first {
                *seconds.gateway.entry(kind).or_default() += seconds_of(last - first);
            }
        }
        Some(seconds)
    }

    fn look_at_threads(&mut self, first: bool) {
        let Ok(tasks) = fs::read_dir(process(self.server).join("task")) else { return };
        for task in tasks.flatten() {
            let name = task.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some(now) = ticks(&task.path()) else { continue };
            let (kind, _, last) =
                self.threads.entry(id).or_insert((String::new(), if first { now } else { 0 }, now));
            // Asked each time: a new thread has its parent's name until it takes its own.
            if let Ok(name) = fs::read_to_string(task.path().join("comm")) {
                name.trim().split('-').next().unwrap_or_default().clone_into(kind);
            }
            *last = now.max(*last);
        }
    }
}

/// Bytes that a line of `/proc/PID/status` gives: `VmRSS`, `VmHWM`, `RssAnon`.
#[must_use]
pub fn memory(pid: u32, line: &str) -> Option<u64> {
    let status = fs::read_to_string(process(pid).join("status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The system's load average over a minute.
#[must_use]
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn process(pid: u32) -> std::path::PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The process whose parent is this one. A server at rest has no child, a keeper one.
fn child_of(parent: u32) -> Option<u32> {
    let parent = parent.to_string();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        (fields(&stat)?.nth(1)? == parent).then_some(pid)
    })
}

/// User and system time of a process or a thread, by its directory.
fn ticks(dir: &Path) -> Option<u64> {
    ticks_in(&fs::read_to_string(dir.join("stat")).ok()?)
}

fn ticks_in(stat: &str) -> Option<u64> {
    let mut times = fields(stat)?.skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    Some(user + system)
}

/// The fields after the name, which may hold anything, spaces and parentheses included.
fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

fn seconds_of(ticks: u64) -> f64 {
    // A run of a year has few enough ticks for this to be exact.
    #[allow(clippy::cast_precision_loss, reason = "see above")]
    let ticks = ticks as f64;
    ticks / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_any_name() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194304 90 0 0 0 12 30 5 6 20 0 1 0 9 8 7";
        assert_eq!(fields(stat).and_then(|mut fields| fields.nth(1)), Some("3"));
        assert_eq!(ticks_in(stat), Some(42));
        assert_eq!(ticks_in("7 (a"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory_and_has_a_child_while_it_has_one() {
        let pid = std::process::id();
        assert!(memory(pid, "VmRSS").is_some_and(|bytes| bytes > 100_000));
        assert_eq!(memory(pid, "VmNothing"), None);
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("cat");
        let found = child_of(child.id());
        child.kill().expect("killed");
        child.wait().expect("waited for");
        assert_eq!(found, None, "cat has no children");
        assert!(Account::open(pid).close().is_some_and(|seconds| seconds.client >= 0.0));
    }
}
