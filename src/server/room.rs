//! How many connections this process has room for. A thread too many can abort it, so what the
//! system sets is looked up once, and connections are capped below it.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of a connection: its socket and its doorbell.
const DESCRIPTORS_EACH: u64 = 2;
/// Mappings of a thread: its stack, the signal stack, and a guard of each.
const MAPS_EACH: u64 = 4;
/// What the store, the agents and their threads may take of each.
const RESERVE: u64 = 512;

/// The configured number, or less if the system does not give that much.
#[must_use]
pub fn connections(configured: usize) -> usize {
    raise_descriptors();
    let limits = [
        ("open files (ulimit -n)", open_files(), DESCRIPTORS_EACH),
        ("memory maps (vm.max_map_count)", number("/proc/sys/vm/max_map_count"), MAPS_EACH),
        ("processes and threads (pids.max)", pids_max(), 1),
        ("processes and threads (ulimit -u)", getrlimit(Resource::Nproc).current, 1),
    ];
    let known =
        limits.into_iter().filter_map(|(name, limit, each)| Some((room(limit?, each), name)));
    match known.min() {
        Some((room, limit)) if room < configured => {
            tracing::warn!(
                configured,
                room,
                limit,
                "limits.connections_max is more than the system has room for; it is lowered"
            );
            room
        }
        _ => configured,
    }
}

/// What a limit leaves for connections that take `each` of it. However low it is, some must do.
fn room(limit: u64, each: u64) -> usize {
    let left = limit.saturating_sub(RESERVE.min(limit / 2)) / each;
    usize::try_from(left).unwrap_or(usize::MAX).max(1)
}

/// As many descriptors as the system lets us have.
fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// That of our control group; one above it may be lower, which only a failing thread tells.
fn pids_max() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    number(&format!("/sys/fs/cgroup/{own}/pids.max"))
}

/// The number in a file; `None` if there is no such file, or no limit.
fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_each_limit_is_left_for_others() {
        assert_eq!(room(20_000, DESCRIPTORS_EACH), 9744);
        assert_eq!(room(1024, DESCRIPTORS_EACH), 256);
        assert_eq!(room(65_530, MAPS_EACH), 16_254);
        assert_eq!([room(100, 1), room(1, 2), room(0, 1)], [50, 1, 1]);
        assert_eq!(connections(1), 1);
    }
}
