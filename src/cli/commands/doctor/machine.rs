//! What runs on this machine and what it allows: keepers, the clock, limits.

use std::os::unix::fs::FileTypeExt as _;

use rustix::process::{Resource, getrlimit};
use serde_json::json;

use super::{Patient, Report};
use crate::cli::commands::keepers::{self, State};
use crate::cli::text;
use crate::limits::Limits;
use crate::run::id::Millis;

/// The keepers of the data directory. Reads files only: whoever speaks to a keeper takes it over.
pub(super) fn keepers(report: &mut Report, patient: &Patient) {
    const GROUP: &str = "keepers";
    let flags = &patient.flags;
    let found = match keepers::look(&patient.data_dir) {
        Ok(found) => found,
        Err(error) => {
            let what = format!("cannot be looked at: {error}");
            report.fail(GROUP, what, format!("ls -la {}", super::quoted(&patient.data_dir)));
            return;
        }
    };
    let is = |state: State| found.iter().filter(|keeper| keeper.state == state).count();
    let attached = is(State::Attached);
    let facts = json!({
        "attached": attached,
        "orphaned": is(State::Orphaned),
        "otherVersion": is(State::OtherVersion),
        "starting": is(State::Starting),
        "gone": is(State::Gone),
    });
    let bytes: u64 = found.iter().map(|keeper| keeper.journal_bytes).sum();
    let what = match found.len() {
        0 => "none: no agent is at work".to_owned(),
        _ => format!(
            "{} followed by the server, journals of {}",
            text::count(attached, "agent"),
            text::bytes(bytes)
        ),
    };
    report.ok(GROUP, what).facts(facts);
    if is(State::Orphaned) > 0 {
        let what = format!("no server follows {}", text::count(is(State::Orphaned), "agent"));
        let fix = format!("reattach serve{flags}; to see them: reattach ps --keepers{flags}");
        report.warn(GROUP, what, fix);
    }
    if is(State::OtherVersion) > 0 {
        let what = format!(
            "{} of another version, which this program leaves alone",
            text::count(is(State::OtherVersion), "keeper")
        );
        let fix = format!("serve with the version that began them: reattach ps --keepers{flags}");
        report.warn(GROUP, what, fix);
    }
    if is(State::Gone) > 0 && patient.server.is_none() {
        let what = format!(
            "{} left by keepers that ended; the next server reads and removes what is there",
            text::count(is(State::Gone), "home")
        );
        report.ok(GROUP, what);
    }
    for keeper in found.iter().filter(|keeper| keeper.state.is_alive()) {
        let Some(info) = &keeper.info else { continue };
        let there = info.socket.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
        if !there {
            let what = format!(
                "keeper {} lives, and its socket is gone: no server can follow it",
                info.pid
            );
            report.fail(GROUP, what, format!("kill {} (stops its agent)", info.pid));
        }
    }
}

/// Whether time went backwards: `last` is when a session was last changed.
pub(super) fn clock(report: &mut Report, last: Option<Millis>) {
    const GROUP: &str = "clock";
    let now = Millis::now();
    match last {
        Some(last) if last.0 > now.0 + CLOCK_SLACK_MS => {
            let what = format!("it says {now}, and the newest session was changed at {last}");
            report.fail(GROUP, what, "set the clock: timedatectl set-ntp true");
        }
        _ if now.0 < BUILT_AFTER_MS => {
            let what = format!("it says {now}, which is before this program was written");
            report.fail(GROUP, what, "set the clock: timedatectl set-ntp true");
        }
        _ => {
            report.ok(GROUP, now.to_string());
        }
    }
    report.facts(json!({"now": now.to_string(), "newestSession": last.map(|at| at.to_string())}));
}

/// A clock that is set back a little is nothing.
const CLOCK_SLACK_MS: i64 = 60_000;
/// 2025-01-01.
const BUILT_AFTER_MS: i64 = 1_735_689_600_000;

/// What the system lets a server have.
pub(super) fn limits(report: &mut Report, patient: &Patient) {
    const GROUP: &str = "limits";
    let default = Limits::default();
    let wanted = patient.config.as_ref().map_or(&default, |config| &config.limits);
    let connections = u64::try_from(wanted.connections_max).unwrap_or(u64::MAX);
    let agents = u64::try_from(wanted.agents_max).unwrap_or(u64::MAX);
    // As `src/server/room.rs` counts: a socket and a doorbell, a thread each, and some for the rest.
    let files = connections.saturating_mul(2).saturating_add(512);
    let threads = connections.saturating_add(agents.saturating_mul(4)).saturating_add(512);
    // A server raises its own to the hard limit.
    let nofile =
        of_server(patient, "Max open files").or_else(|| getrlimit(Resource::Nofile).maximum);
    let nproc = getrlimit(Resource::Nproc).current;
    let pids = pids_max();
    let shown = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |n| n.to_string());
    let what =
        format!("open files {}, processes and threads {}", shown(nofile), shown(min(nproc, pids)));
    report.ok(GROUP, what).facts(json!({
        "openFiles": nofile,
        "processes": nproc,
        "pidsMax": pids,
        "wantedFiles": files,
        "wantedThreads": threads,
    }));
    let tells = |limit: u64, what: &str, need: u64| {
        format!(
            "{limit} {what} are fewer than the {need} that limits.connections_max = {connections} \
             may want: the server lowers it"
        )
    };
    if let Some(limit) = nofile.filter(|limit| *limit < files) {
        let fix = "LimitNOFILE in the unit, or ulimit -n; or lower limits.connections_max";
        report.warn(GROUP, tells(limit, "open files", files), fix);
    }
    if let Some(limit) = min(nproc, pids).filter(|limit| *limit < threads) {
        let fix = "TasksMax in the unit, or ulimit -u; or lower limits.connections_max";
        report.warn(GROUP, tells(limit, "threads", threads), fix);
    }
}

fn min(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// A limit of the running server: the hard one, which it raises itself to.
fn of_server(patient: &Patient, name: &str) -> Option<u64> {
    let pid = patient.server.as_ref()?.pid;
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn pids_max() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{own}/pids.max")).ok()?;
    text.trim().parse().ok()
}
