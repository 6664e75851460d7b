//! Which processes there are, whose they are, and how to kill the right ones.
//!
//! On Linux by `/proc`. Elsewhere by `ps`, which shows environments only of the user's own
//! processes and not of those that the system protects: there a process that hides its
//! environment and left its group is found only while its parent lives.
//!
//! Must not know control streams, records, the ladder.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::environment::{AGENT_TAG, DATA_TAG, DataTag};
use crate::limits::{SWEEP_MS, SWEEP_PASS_MS};
use crate::run::id::AgentId;

/// A process as the system lists it. Zombies are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) parent: Option<Pid>,
    /// When it was started, in the system's own units: with the pid it names one process.
    pub(super) start: u64,
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Process ids that were killed.
    pub killed: Vec<u32>,
    /// Process ids that were killed and are there all the same when the time is up.
    pub left: Vec<u32>,
}

/// Kills every process that carries this data dir's tag, keepers and agents alike, and their
/// descendants, and waits until they are gone, at most `limits::SWEEP_MS`. For the start of a
/// gateway, which holds the data dir's lock: whatever is there belongs to one that died.
/// Spared are agents in `skip`, this process and its ancestors. Blocks.
///
/// # Errors
/// The list of processes cannot be read.
pub fn sweep(data: &DataTag, skip: &[AgentId]) -> io::Result<Swept> {
    let skip: Vec<String> = skip.iter().map(|agent| format!("{AGENT_TAG}={agent}")).collect();
    let mark = format!("{DATA_TAG}={}", data.as_str());
    sweep_where(|env| env.has(&mark) && !skip.iter().any(|spared| env.has(spared)))
}

/// The same for one agent: for when its keeper is lost. The keeper is killed too, if it is
/// there. Blocks.
///
/// # Errors
/// The list of processes cannot be read.
pub fn sweep_agent(agent: AgentId) -> io::Result<Swept> {
    let mark = format!("{AGENT_TAG}={agent}");
    sweep_where(|env| env.has(&mark))
}

fn sweep_where(is_ours: impl Fn(&Environment) -> bool) -> io::Result<Swept> {
    let deadline = Instant::now() + Duration::from_millis(SWEEP_MS.unsigned_abs());
    let mut killed = BTreeSet::new();
    loop {
        let all = list()?;
        let spared = ancestors(&all, rustix::process::getpid());
        let marked = tagged(&all, &is_ours);
        let mut targets = descendants(&all, &marked);
        targets.extend(marked);
        targets.retain(|process| !spared.contains(&process.pid));
        targets.sort_by_key(|process| number(process.pid));
        targets.dedup();
        for process in &targets {
            kill(*process);
            killed.insert(number(process.pid));
        }
        if targets.is_empty() || Instant::now() > deadline {
            let left = targets.iter().map(|process| number(process.pid)).collect();
            return Ok(Swept { killed: killed.into_iter().collect(), left });
        }
        std::thread::sleep(Duration::from_millis(SWEEP_PASS_MS.unsigned_abs()));
    }
}

/// A process's environment as the system shows it.
pub(super) struct Environment(Vec<u8>);

impl Environment {
    /// Whether it holds exactly this `NAME=value`.
    pub(super) fn has(&self, entry: &str) -> bool {
        has_entry(&self.0, entry)
    }
}

/// Those of `all` whose environment is as asked.
pub(super) fn tagged(all: &[Process], is_ours: impl Fn(&Environment) -> bool) -> Vec<Process> {
    let environments = Environments::read();
    all.iter()
        .filter(|process| environments.of(process.pid).is_some_and(|env| is_ours(&env)))
        .copied()
        .collect()
}

/// Those of `all` that descend from one of `roots`, the roots themselves left out.
pub(super) fn descendants(all: &[Process], roots: &[Process]) -> Vec<Process> {
    let roots: HashSet<Pid> = roots.iter().map(|process| process.pid).collect();
    descendants_of(all, roots)
}

/// The same, of one process.
pub(super) fn descendants_of(all: &[Process], roots: impl Into<HashSet<Pid>>) -> Vec<Process> {
    let mut family = roots.into();
    let mut found = Vec::new();
    loop {
        let before = found.len();
        for process in all {
            if process.parent.is_some_and(|parent| family.contains(&parent))
                && family.insert(process.pid)
            {
                found.push(*process);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// `of`, its parent, and so on.
fn ancestors(all: &[Process], of: Pid) -> HashSet<Pid> {
    let mut chain = HashSet::from([of]);
    let mut next = Some(of);
    while let Some(pid) = next {
        next = all.iter().find(|process| process.pid == pid).and_then(|process| process.parent);
        if next.is_some_and(|parent| !chain.insert(parent)) {
            break;
        }
    }
    chain
}

/// A pid as numbers go over the wire.
pub(super) fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn has_entry(environment: &[u8], entry: &str) -> bool {
    environment.split(|byte| *byte == 0).any(|have| have == entry.as_bytes())
}

#[cfg(target_os = "linux")]
mod system {
    use std::io::Read;
    use std::path::PathBuf;

    use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

    use super::*;

    /// SIGKILL, to this very process and no later one with the same number.
    pub(in super::super) fn kill(process: Process) {
        let handle = pidfd_open(process.pid, PidfdFlags::empty());
        if look_at(process.pid).is_none_or(|now| now.start != process.start) {
            return;
        }
        let sent = match handle {
            Ok(handle) => pidfd_send_signal(handle, Signal::KILL),
            // Kernels before 5.3, and sandboxes that do not know the call.
            Err(_) => rustix::process::kill_process(process.pid, Signal::KILL),
        };
        // It may be gone meanwhile, or be another user's; the next look shows.
        sent.ok();
    }

    /// All processes but zombies.
    pub(in super::super) fn list() -> io::Result<Vec<Process>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            all.extend(name.to_str().and_then(parse_pid).and_then(look_at));
        }
        Ok(all)
    }

    /// The children of this (single-threaded) process, zombies included. Empty where the kernel
    /// was built without that list: then orphans that ended are reaped at the end only.
    pub(in super::super) fn own_children() -> Vec<Pid> {
        let own = rustix::process::getpid();
        let path = format!("/proc/self/task/{}/children", number(own));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(parse_pid).collect()
    }

    /// This moment as start times are given: in ticks since the system's start, rounded down.
    pub(in super::super) fn this_moment() -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let ticks = rustix::param::clock_ticks_per_second();
        let nanoseconds = now.tv_nsec.unsigned_abs() * ticks / 1_000_000_000;
        now.tv_sec.unsigned_abs() * ticks + nanoseconds
    }

    fn parse_pid(text: &str) -> Option<Pid> {
        text.parse().ok().and_then(Pid::from_raw)
    }

    fn look_at(pid: Pid) -> Option<Process> {
        parse_stat(pid, &std::fs::read(file(pid, "stat")).ok()?)
    }

    fn file(pid: Pid, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", number(pid)))
    }

    /// `proc_pid_stat(5)`: the name is in parentheses and may hold anything, these included.
    pub(super) fn parse_stat(pid: Pid, stat: &[u8]) -> Option<Process> {
        let after_name = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
        let mut fields = std::str::from_utf8(after_name).ok()?.split_ascii_whitespace();
        let state = fields.next()?;
        if matches!(state, "Z" | "X" | "x") {
            return None;
        }
        let parent = Pid::from_raw(fields.next()?.parse().ok()?);
        // The parent is field 4, the start time field 22.
        let start = fields.nth(22 - 5)?.parse().ok()?;
        Some(Process { pid, parent, start })
    }

    /// Nothing is read ahead: each process has a file of its own.
    pub(super) struct Environments;

    impl Environments {
        pub(super) fn read() -> Self {
            Self
        }

        /// None if it is gone or not ours to see. Bounded, since a process may have any size.
        pub(super) fn of(&self, pid: Pid) -> Option<Environment> {
            const ENVIRONMENT_BYTES_MAX: u64 = 8 << 20;
            let mut bytes = Vec::new();
            let file = std::fs::File::open(file(pid, "environ")).ok()?;
            file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
            Some(Environment(bytes))
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::collections::HashMap;
    use std::process::{Command, Stdio};

    use super::*;

    /// SIGKILL, if the number still names this process.
    pub(in super::super) fn kill(process: Process) {
        if list().is_ok_and(|all| all.contains(&process)) {
            // It may be gone meanwhile; the next look shows.
            rustix::process::kill_process(process.pid, Signal::KILL).ok();
        }
    }

    /// All processes but zombies. There is no cheap start time: 0.
    pub(in super::super) fn list() -> io::Result<Vec<Process>> {
        let ps = ps(&["-axo", "pid=,ppid=,state="])?;
        Ok(ps.lines().filter_map(parse_ps).collect())
    }

    /// Orphans go to the system's own reaper here.
    pub(in super::super) fn own_children() -> Vec<Pid> {
        Vec::new()
    }

    /// Start times are not known: whatever is there counts as born just now.
    pub(in super::super) fn this_moment() -> u64 {
        0
    }

    fn parse_ps(line: &str) -> Option<Process> {
        let mut fields = line.split_ascii_whitespace();
        let pid = Pid::from_raw(fields.next()?.parse().ok()?)?;
        let parent = Pid::from_raw(fields.next()?.parse().ok()?);
        let state = fields.next()?;
        (!state.starts_with('Z')).then_some(Process { pid, parent, start: 0 })
    }

    /// `ps` prints environments behind the command, parted by spaces.
    pub(super) struct Environments(HashMap<Pid, Vec<u8>>);

    impl Environments {
        pub(super) fn read() -> Self {
            let text = ps(&["-axEwwo", "pid=,command="]).unwrap_or_default();
            let line = |line: &str| {
                let (pid, rest) = line.trim_start().split_once(' ')?;
                let pid = Pid::from_raw(pid.parse().ok()?)?;
                Some((pid, rest.replace(' ', "\0").into_bytes()))
            };
            Self(text.lines().filter_map(line).collect())
        }

        pub(super) fn of(&self, pid: Pid) -> Option<Environment> {
            self.0.get(&pid).cloned().map(Environment)
        }
    }

    /// The tags must not stand in the environment of `ps` itself, nor may it list itself, which
    /// is our child while it looks.
    fn ps(args: &[&str]) -> io::Result<String> {
        let mut ps = Command::new("/bin/ps");
        ps.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        let ps = ps.stderr(Stdio::null()).spawn()?;
        let own = ps.id().to_string();
        let output = ps.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let is_other = |line: &&str| line.split_ascii_whitespace().next() != Some(own.as_str());
        Ok(text.lines().filter(is_other).collect::<Vec<_>>().join("\n"))
    }
}

use system::Environments;
pub(super) use system::{kill, list, own_children, this_moment};

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(raw: i32) -> Pid {
        Pid::from_raw(raw).expect("not 0")
    }

    fn process(raw: i32, parent: i32) -> Process {
        Process { pid: pid(raw), parent: Pid::from_raw(parent), start: 0 }
    }

    #[test]
    fn descendants_are_found_in_any_order_and_loops_end() {
        let all = [process(9, 8), process(8, 7), process(7, 1), process(5, 6), process(6, 5)];
        let mut found: Vec<u32> =
            descendants_of(&all, [pid(7)]).iter().map(|found| number(found.pid)).collect();
        found.sort_unstable();
        assert_eq!(found, [8, 9]);
        assert_eq!(descendants_of(&all, [pid(5)]).len(), 1, "a loop of parents ends");
    }

    #[test]
    fn ancestors_end_at_the_top() {
        let all = [process(9, 8), process(8, 1), process(1, 0), process(7, 1)];
        assert_eq!(ancestors(&all, pid(9)), HashSet::from([pid(9), pid(8), pid(1)]));
    }

    #[test]
    fn an_entry_is_matched_whole() {
        let environment = b"A=1\0REATTACH_DATA=abc\0B=REATTACH_DATA=x\0";
        assert!(has_entry(environment, "REATTACH_DATA=abc"));
        assert!(!has_entry(environment, "REATTACH_DATA=ab"));
        assert!(!has_entry(environment, "REATTACH_DATA=x"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let stat = b"7 (a) S 1 (b) R 42 40 40 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        let process = system::parse_stat(pid(7), stat).expect("a process");
        assert_eq!((process.parent, process.start), (Some(pid(42)), 98765));
        assert_eq!(system::parse_stat(pid(7), b"7 (a) Z 42 40 40"), None);
        for end in 0..stat.len() {
            // Whatever a torn read gives, it does not panic.
            let torn = system::parse_stat(pid(7), &stat[..end]);
            assert!(torn.is_none_or(|process| process.pid == pid(7)));
        }
        let own = list().expect("a list");
        assert!(own.iter().any(|process| process.pid == rustix::process::getpid()));
    }
}
