//! `ps --keepers`: the keepers of a data directory, whether a server runs or not.
//!
//! Reads files and never speaks to a keeper: whoever speaks to one takes it over from its server.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::age;
use crate::cli::args::PsArgs;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::screen::Screen;
use crate::cli::target::{self, Target};
use crate::cli::text::{self, Paint};
use crate::keeper::frame::{PROTOCOL, PROTOCOL_MIN};
use crate::keeper::{Home, KeeperInfo, homes};
use crate::store::LOCK;

/// `reattach ps --keepers`: an array of keepers, the longest at work first.
///
/// # Errors
/// If the data directory cannot be read.
pub fn ps(args: &PsArgs) -> Outcome {
    let dir = target::data_dir(args.server.data_dir.as_deref())?;
    let keepers = look(&dir).map_err(|error| unreadable(&dir, &error))?;
    let mut screen = Screen::new(args.output);
    let text = if keepers.is_empty() { String::new() } else { table(&keepers) };
    screen.document(&Value::Array(keepers.iter().map(Keeper::json).collect()), &text)?;
    if !screen.is_json() {
        for line in notes(&keepers) {
            screen.say(&line)?;
        }
    }
    Ok(Exit::Ok)
}

/// What is to be said of a server that cannot be reached: that agents work on without it, and how
/// to stop them all the same.
#[must_use]
pub fn unreachable(mut failure: Failure, target: &Target) -> Failure {
    let Target::DataDir(dir) = target else { return failure };
    if failure.exit != Exit::Unreachable {
        return failure;
    }
    // A directory that cannot be read has its own message, from the command that reads it.
    let keepers = look(dir).unwrap_or_default();
    let alive: Vec<&Keeper> = keepers.iter().filter(|keeper| keeper.state.is_alive()).collect();
    let pids: Vec<String> = alive
        .iter()
        .filter_map(|keeper| keeper.info.as_ref())
        .map(|info| info.pid.to_string())
        .collect();
    if !alive.is_empty() {
        let flags = target.flags();
        failure.message = format!("{}; {} on without it", failure.message, work(alive.len()));
        failure.next = format!(
            "reattach serve{flags}, then the same command; to see them: reattach ps --keepers{flags}"
        );
        if !pids.is_empty() {
            failure.next.push_str(&format!("; to stop them now: kill {}", pids.join(" ")));
        }
    }
    failure
}

/// What can be seen of a keeper from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It has not said yet who it is.
    Starting,
    /// A server runs, and the keeper speaks its language.
    Attached,
    /// No server runs: `orphan_grace` runs.
    Orphaned,
    /// It lives and speaks another protocol than this program: left alone.
    OtherVersion,
    /// It has ended; what is here is read by the next server.
    Gone,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Attached => "attached",
            Self::Orphaned => "orphaned",
            Self::OtherVersion => "other version",
            Self::Gone => "gone",
        }
    }

    const fn code(self) -> &'static str {
        match self {
            Self::OtherVersion => "other_version",
            other => other.word(),
        }
    }

    pub(super) const fn is_alive(self) -> bool {
        !matches!(self, Self::Gone)
    }
}

#[derive(Debug)]
pub(super) struct Keeper {
    home: Home,
    pub(super) info: Option<KeeperInfo>,
    pub(super) state: State,
    pub(super) journal_bytes: u64,
}

impl Keeper {
    fn json(&self) -> Value {
        let info = self.info.as_ref();
        json!({
            "agent": self.home.agent(),
            "session": info.map(|info| &info.session),
            "provider": info.map(|info| &info.provider),
            "state": self.state.code(),
            "pid": info.map(|info| info.pid),
            "agentPid": info.map(|info| info.agent_pid).filter(|pid| *pid != 0),
            "version": info.map(|info| &info.version),
            "protocol": info.map(|info| info.protocol),
            "startedAt": info.map(|info| info.started_at.to_string()),
            "journalBytes": self.journal_bytes,
            "home": self.home.path(),
        })
    }

    fn row(&self) -> Vec<String> {
        let of = |field: &dyn Fn(&KeeperInfo) -> String| {
            self.info.as_ref().map_or_else(|| "-".to_owned(), field)
        };
        let word = |text: &str| text::one_line(&text::clean(text, Paint::Plain), 60);
        vec![
            of(&|info| info.pid.to_string()),
            of(&|info| if info.agent_pid == 0 { "-".into() } else { info.agent_pid.to_string() }),
            self.state.word().to_owned(),
            of(&|info| word(&info.provider)),
            of(&|info| word(&info.session)),
            of(&|info| format!("{} ({})", word(&info.version), info.protocol)),
            of(&|info| age(&Value::from(info.started_at.to_string()))),
            text::bytes(self.journal_bytes),
            self.home.agent().to_string(),
        ]
    }
}

fn table(keepers: &[Keeper]) -> String {
    let head = [
        "KEEPER",
        "PID",
        "STATE",
        "PROVIDER",
        "SESSION",
        "VERSION (PROTOCOL)",
        "AGE",
        "JOURNAL",
        "AGENT",
    ];
    text::table(&head, &keepers.iter().map(Keeper::row).collect::<Vec<_>>())
}

/// What somebody who looks has to know of what is seen.
fn notes(keepers: &[Keeper]) -> Vec<String> {
    let is = |state: State| keepers.iter().filter(move |keeper| keeper.state == state).count();
    let mut notes = Vec::new();
    if keepers.is_empty() {
        notes.push("no keepers: no agent works here".to_owned());
    }
    if is(State::Orphaned) > 0 {
        notes.push(format!(
            "no server runs, {} on: `reattach serve` finds them again, `kill KEEPER` stops one",
            work(is(State::Orphaned))
        ));
    }
    if is(State::OtherVersion) > 0 {
        notes.push(format!(
            "this program speaks keeper protocol {PROTOCOL_MIN} to {PROTOCOL} and leaves others \
             alone: start the version that began them, or stop one with `kill KEEPER`"
        ));
    }
    if is(State::Gone) > 0 {
        notes.push("a server reads what a keeper that is gone has left, and removes it".to_owned());
    }
    notes
}

fn work(count: usize) -> String {
    if count == 1 { "1 agent works".to_owned() } else { format!("{count} agents work") }
}

/// All keepers of a data directory.
pub(super) fn look(dir: &Path) -> io::Result<Vec<Keeper>> {
    let served = is_served(dir);
    let mut keepers = Vec::new();
    for home in homes(dir)? {
        // Before the rest: what is said of a keeper may be newer than its life, never older.
        let alive = home.is_alive()?;
        let info = home.info();
        let state = state(alive, served, info.as_ref().map(|info| info.protocol));
        let journal_bytes = match journal_bytes(home.path()) {
            Ok(bytes) => bytes,
            // A server has removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        keepers.push(Keeper { home, info, state, journal_bytes });
    }
    keepers.sort_by_key(|keeper| keeper.info.as_ref().map(|info| info.started_at));
    Ok(keepers)
}

fn state(alive: bool, served: bool, protocol: Option<u32>) -> State {
    match (alive, protocol) {
        (false, _) => State::Gone,
        (true, None) => State::Starting,
        (true, Some(theirs)) if !(PROTOCOL_MIN..=PROTOCOL).contains(&theirs) => State::OtherVersion,
        (true, Some(_)) if served => State::Attached,
        (true, Some(_)) => State::Orphaned,
    }
}

fn journal_bytes(home: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "journal") {
            // A segment may be dropped while we look.
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    Ok(bytes)
}

/// Whether a server has this data directory. The lock is not tried, so that a server which starts
/// at this moment does not take us for another one.
pub(super) fn is_served(dir: &Path) -> bool {
    let lock = dir.join(LOCK);
    let pid = fs::read_to_string(&lock).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let Some(pid) = pid else { return false };
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        // The pid may be another program's by now; ours has the lock open.
        Ok(fds) => {
            let lock = fs::canonicalize(&lock).unwrap_or(lock);
            fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == lock))
        }
        Err(_) if Path::new("/proc/self").exists() => false,
        // Without /proc a process of that number has to do.
        Err(_) => i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()),
    }
}

fn unreadable(dir: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Data,
        "DATA_DIR",
        format!("cannot read the keepers of {}: {error}", dir.display()),
        "reattach ps --keepers --data-dir DIR",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::id::{AgentId, Millis};

    #[test]
    fn what_a_keeper_is_depends_on_its_lock_its_protocol_and_the_server() {
        let (ours, other) = (Some(PROTOCOL), Some(PROTOCOL + 1));
        for (alive, served, protocol, expected) in [
            (true, true, ours, State::Attached),
            (true, false, ours, State::Orphaned),
            (true, true, other, State::OtherVersion),
            (true, false, other, State::OtherVersion),
            (true, false, None, State::Starting),
            (false, true, ours, State::Gone),
            (false, false, None, State::Gone),
        ] {
            assert_eq!(state(alive, served, protocol), expected, "{alive} {served} {protocol:?}");
        }
    }

    #[test]
    fn a_stale_lock_file_is_no_server() {
        let dir = tempfile::tempdir().expect("a temp dir");
        assert!(!is_served(dir.path()), "there is none");
        for stale in ["", "nonsense", "0", &u32::MAX.to_string(), &std::process::id().to_string()] {
            fs::write(dir.path().join(LOCK), stale).expect("it is ours");
            assert!(!is_served(dir.path()), "{stale:?}: that process has not got it open");
        }
        let open = fs::File::open(dir.path().join(LOCK)).expect("just written");
        assert!(is_served(dir.path()), "now it has");
        drop(open);
    }

    #[test]
    fn keepers_are_seen_and_others_know_of_them() {
        let dir = tempfile::tempdir().expect("a temp dir");
        assert!(look(dir.path()).expect("an empty place").is_empty());
        assert!(notes(&[])[0].starts_with("no keepers"), "it says so");
        let home = Home::of(dir.path(), AgentId::random());
        home.create().expect("a home");
        let info = KeeperInfo {
            agent: home.agent(),
            pid: 12,
            agent_pid: 0,
            protocol: PROTOCOL,
            version: "0.1.0".into(),
            session: "a session\u{1b}[2J".into(),
            provider: "demo".into(),
            started_at: Millis(0),
            socket: home.path().join("sock"),
        };
        let write = |name: &str, bytes: &[u8]| {
            fs::write(home.path().join(name), bytes).expect("it is ours");
        };
        write("keeper.json", &serde_json::to_vec(&info).expect("it can be said"));
        write("0000000000000000.journal", &[0; 1000]);
        write("0000000000001000.journal", &[0; 1000]);
        write("log", &[0; 1000]);
        let target = Target::DataDir(dir.path().to_owned());
        let failure = || target.find().expect_err("no server runs here");

        let keepers = look(dir.path()).expect("readable");
        assert_eq!(keepers[0].state, State::Gone, "nobody holds the lock");
        assert_eq!(unreachable(failure(), &target).message, failure().message, "nobody works");

        let lock = fs::File::create(home.path().join("lock")).expect("it is ours");
        lock.lock().expect("nobody has it");
        let keepers = look(dir.path()).expect("readable");
        let json = keepers[0].json();
        assert_eq!(json["state"], "orphaned");
        assert_eq!(json["agentPid"], Value::Null, "it is not started");
        assert_eq!(json["journalBytes"], 2000);
        let table = table(&keepers);
        assert!(table.contains("a session ") && !table.contains('\u{1b}'), "{table}");
        assert!(table.contains("2.0 KB") && table.contains("orphaned"), "{table}");
        let told = unreachable(failure(), &target);
        assert!(told.message.ends_with("1 agent works on without it"), "{told}");
        assert!(told.next.ends_with("kill 12"), "{told}");
    }
}
