//! Looking at processes through /proc. Linux only, like the tests that use it.

use std::fs;
use std::path::Path;

/// Whether `pid` names a process that is not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name may hold anything; the state follows its last parenthesis.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Resident memory of `pid` in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux gives VmRSS");
    let kib = line.split_whitespace().nth(1).expect("VmRSS has a number");
    kib.parse::<u64>().expect("VmRSS is a number") * 1024
}

/// Processes, `but` excepted, that have `path` in their environment or arguments: agents,
/// keepers and what they started, since each is tagged with the data dir or was given a path.
pub(crate) fn mentioning(path: &Path, but: &[u32]) -> Vec<(u32, String)> {
    let needle = path.to_str().expect("test paths are UTF-8").as_bytes();
    let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
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
