//! Looking at processes through /proc. Linux only, like the tests that use it.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use super::{DEADLINE, ask_for};

/// Whether `pid` names a process that is not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name may hold anything; the state follows its last parenthesis.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The parent of `pid`; `None` if that is gone.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// The processes whose parent is `pid`, zombies excepted.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|child| parent(*child) == Some(pid) && alive(*child)).collect()
}

/// Sends a signal; whether the process was there to get it.
pub(crate) fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid of a process");
    kill_process(pid, signal).is_ok()
}

/// Kills whatever has `path` in its environment or arguments, until nothing is left.
pub(crate) fn kill_mentioning(path: &Path) {
    ask_for(DEADLINE, || {
        let left = mentioning(path, &[]);
        for (pid, _) in &left {
            signal(*pid, Signal::KILL);
        }
        left.is_empty().then_some(())
    });
}

/// Resident memory of `pid` in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux gives VmRSS");
    let kib = line.split_whitespace().nth(1).expect("VmRSS has a number");
    kib.parse::<u64>().expect("VmRSS is a number") * 1024
}

/// Processes, `but` excepted, that belong to what lies under `path`: it stands in their environment
/// or arguments, or they carry the tag of a data directory that is or lies in it. So agents, keepers and whatever these started.
pub(crate) fn mentioning(path: &Path, but: &[u32]) -> Vec<(u32, String)> {
    let mut needles = vec![path.to_str().expect("test paths are UTF-8").as_bytes().to_vec()];
    needles.extend([path.to_owned(), path.join("data")].iter().filter_map(|dir| tag(dir)));
    let holds = |bytes: &[u8]| {
        needles.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == *needle))
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if but.contains(&pid) || pid == std::process::id() || !alive(pid) {
            continue;
        }
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let arguments = read("cmdline");
        if holds(&read("environ")) || holds(&arguments) {
            found.push((pid, String::from_utf8_lossy(&arguments).replace('\0', " ")));
        }
    }
    found
}

/// What the processes of a data directory have in their environment.
fn tag(data_dir: &Path) -> Option<Vec<u8>> {
    let path = data_dir.canonicalize().ok()?;
    let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("REATTACH_DATA={hex}").into_bytes())
}
