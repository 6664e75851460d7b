//! The keeper as a real process, with real agents: shell scripts, and this test binary itself
//! where a shell cannot do it (`helper`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use reattach::keeper::{
    self, AGENT_TAG, Commands, DataTag, Home, LaunchSpec, Process, Records, Reply, SpawnError,
    SpawnFailed, SpawnFailure, Step, Stopped, Timings, WriteError,
};
use reattach::limits;
use reattach::provider::{Decision, Exit, Record, RecordBody};
use reattach::run::id::AgentId;
use tempfile::TempDir;

use crate::support::eventually;

mod ends;
mod handover;
mod journal;

/// For whatever must happen; never waited for in full unless a test fails.
const DEADLINE: Duration = Duration::from_secs(60);
/// For a step of the ladder that must not be reached.
const NEVER_MS: u64 = 3_600_000;

/// A keeper under test: its replies and records are read by threads, so that no wait is
/// without a deadline.
struct Kept {
    agent: AgentId,
    home: Home,
    process: Process,
    commands: Option<Commands>,
    replies: Receiver<Reply>,
    records: Option<Records>,
    data_dir: TempDir,
    /// Dropped: the test is over.
    _over: Sender<()>,
}

fn sh(script: &str) -> LaunchSpec {
    launch(&["/bin/sh", "-c", script])
}

fn launch(argv: &[&str]) -> LaunchSpec {
    let agent = AgentId::random();
    let data = DataTag::of(Path::new("/")).expect("a tag");
    LaunchSpec {
        agent,
        argv: argv.iter().map(OsString::from).collect(),
        env: keeper::environment(&BTreeMap::new(), agent, &data),
        data,
        cwd: "/".into(),
        line_bytes_max: limits::LINE_BYTES_DEFAULT,
        timings: Timings {
            close_stdin_ms: 100,
            interrupt_ms: 100,
            terminate_ms: 100,
            ..Timings::default()
        },
        home: Home::of(Path::new("/"), agent),
        session: "session".into(),
        provider: "provider".into(),
        journal_bytes_max: limits::JOURNAL_BYTES_DEFAULT,
        orphan_grace_ms: NEVER_MS,
    }
}

fn start(spec: LaunchSpec) -> Kept {
    // Each test has a data dir of its own: a sweep of one must not reach the agents of another.
    let data_dir = tempfile::tempdir().expect("a directory");
    start_in(Path::new(env!("CARGO_BIN_EXE_reattach")), spec, data_dir)
}

fn start_in(program: &Path, mut spec: LaunchSpec, data_dir: TempDir) -> Kept {
    spec.data = DataTag::of(data_dir.path()).expect("a tag");
    spec.env.retain(|(name, _)| name != keeper::DATA_TAG);
    spec.env.push((keeper::DATA_TAG.into(), spec.data.as_str().into()));
    spec.home = Home::of(data_dir.path(), spec.agent);
    start_with(program, &spec, data_dir)
}

/// A shell script as a program.
fn script(dir: &Path, text: &str) -> PathBuf {
    let program = dir.join("program");
    std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).expect("a script");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("a mode");
    program
}

fn start_with(program: &Path, spec: &LaunchSpec, data_dir: TempDir) -> Kept {
    // A script that was just written is busy while a fork of another test still holds it open.
    let parts = eventually("a program that is not busy", || match keeper::spawn(program, spec) {
        Err(SpawnError::Process(error)) if error.kind() == ErrorKind::ExecutableFileBusy => None,
        other => Some(other.expect("a keeper")),
    });
    let keeper::Parts { process, commands, mut replies, records } = parts;
    let (send, receive) = channel();
    std::thread::spawn(move || {
        while let Ok(Some(reply)) = replies.next() {
            if send.send(reply).is_err() {
                return;
            }
        }
    });
    Kept {
        agent: spec.agent,
        home: spec.home.clone(),
        process,
        commands: Some(commands),
        replies: receive,
        records: Some(records),
        data_dir,
        _over: watch(spec.agent),
    }
}

/// Ends the keeper of a test that waits too long for it, so that the test fails and does not hang:
/// reading from a keeper has no deadline.
fn watch(agent: AgentId) -> Sender<()> {
    let (over, is_over) = channel();
    std::thread::spawn(move || {
        if is_over.recv_timeout(2 * DEADLINE) == Err(RecvTimeoutError::Timeout) {
            keeper::sweep_agent(agent).expect("a sweep");
        }
    });
    over
}

impl Kept {
    fn write(&mut self, n: u64, bytes: &[u8]) {
        self.commands().write(n, bytes.to_vec(), false).expect("the keeper reads");
    }

    /// Lets go of it as a gateway that is killed does: of all descriptors at once.
    fn abandon(&mut self) {
        self.commands = None;
        self.records = None;
    }

    fn commands(&mut self) -> &mut Commands {
        self.commands.as_mut().expect("not dropped")
    }

    fn reply(&self) -> Reply {
        self.replies.recv_timeout(DEADLINE).expect("a reply")
    }

    fn started(&self) -> u32 {
        let reply = self.reply();
        let Reply::Started { pid } = reply else { panic!("{reply:?}") };
        pid
    }

    /// The two replies of an end; acks before them are passed over.
    fn ended(&self) -> (Exit, Stopped) {
        let exit = loop {
            match self.reply() {
                Reply::Exited(exit) => break exit,
                Reply::Stopped(stopped) => panic!("{stopped:?} before Exited"),
                _ => {}
            }
        };
        loop {
            match self.reply() {
                Reply::Stopped(stopped) => return (exit, stopped),
                Reply::WriteFailed { .. } => {}
                reply => panic!("{reply:?} after Exited"),
            }
        }
    }

    /// All records, in a thread, each as it comes.
    fn records(&mut self) -> Receiver<RecordBody> {
        let mut records = self.records.take().expect("not taken");
        let (send, receive) = channel();
        std::thread::spawn(move || {
            let mut before = 0;
            while let Some((Record { at, body }, end)) = records.next().expect("a record") {
                assert!(end > before, "end offsets rise");
                assert!(at.0 > 1_600_000_000_000, "times are of the wall clock");
                before = end;
                if send.send(body).is_err() {
                    return;
                }
            }
        });
        receive
    }

    /// Waits for the keeper's own end.
    fn wait(&mut self) {
        let status = eventually("the keeper's end", || self.process.try_wait().expect("a status"));
        assert!(status.success(), "{status}");
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.commands = None;
        self.process.kill();
        keeper::sweep_agent(self.agent).expect("a sweep");
    }
}

/// To the end of the stream, `Exit` being the last.
fn all(records: &Receiver<RecordBody>) -> (Vec<RecordBody>, Exit) {
    let mut all = Vec::new();
    loop {
        match records.recv_timeout(DEADLINE) {
            Ok(record) => all.push(record),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("no end after {} records", all.len()),
        }
    }
    let last = all.pop();
    let Some(RecordBody::Exit(exit)) = last else { panic!("{last:?} is the last record") };
    assert!(!all.iter().any(|record| matches!(record, RecordBody::Exit(_))), "one Exit");
    (all, exit)
}

fn out(line: &str) -> RecordBody {
    RecordBody::Out(line.into())
}

fn err(line: &str) -> RecordBody {
    RecordBody::Err(line.into())
}

/// Processes that carry this agent's tag, the keeper left out.
#[cfg(target_os = "linux")]
fn alive(agent: AgentId, keeper: u32) -> Vec<u32> {
    let mark = format!("{AGENT_TAG}={agent}");
    let pids = std::fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        entry.expect("an entry").file_name().to_str().and_then(|name| name.parse::<u32>().ok())
    });
    pids.filter(|pid| *pid != keeper)
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        })
        .collect()
}

/// What a process has in memory of that kind, in KiB.
#[cfg(target_os = "linux")]
fn memory(pid: u32, kind: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let size = status
        .lines()
        .find_map(|line| line.strip_prefix(kind)?.trim().strip_suffix(" kB")?.trim().parse().ok());
    size.expect("a size")
}

/// What a process has allocated, in KiB: heap, stacks and the like. The program's own pages are
/// left out: those that hold addresses become private when it is loaded, as many as the *whole*
/// program has, whatever this process does.
#[cfg(target_os = "linux")]
fn own_memory(pid: u32) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a map");
    let (mut of_file, mut sum) = (false, 0);
    for line in maps.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Anonymous:", size, "kB"] if !of_file => sum += size.parse::<u64>().expect("a size"),
            [range, permissions, _, _, _, name @ ..]
                if range.contains('-') && permissions.len() == 4 =>
            {
                of_file = name.first().is_some_and(|name| name.starts_with('/'));
            }
            _ => {}
        }
    }
    sum
}

/// This test binary as an agent: `KEEPER_TEST_HELPER` says what it is to be.
fn helper(role: &str) -> LaunchSpec {
    let this = std::env::current_exe().expect("this program");
    let mut spec =
        launch(&[this.to_str().expect("UTF-8"), "--exact", "keeper::as_helper", "--nocapture"]);
    spec.env.push(("KEEPER_TEST_HELPER".into(), role.into()));
    spec
}

fn another(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "keeper::as_helper", "--nocapture"]);
    command.env("KEEPER_TEST_HELPER", role).stdin(Stdio::null());
    command
}

/// Not a test: what `helper` starts. Without the variable it does nothing.
#[expect(clippy::print_stdout, reason = "an agent's stdout is how it speaks")]
#[test]
fn as_helper() {
    let role = std::env::var("KEEPER_TEST_HELPER").unwrap_or_default();
    match role.as_str() {
        "" => return,
        "parent" => drop(another("escaped").spawn().expect("a grandchild")),
        "escaped" => drop(rustix::process::setsid().expect("a session of its own")),
        "parent of one that vanishes" => {
            another("vanishing").status().expect("a grandchild");
        }
        "vanishing" => {
            // Leaves a process in a session that is not the agent's, without the agent's
            // environment and without a parent.
            rustix::process::setsid().expect("a session of its own");
            let mut sleep = Command::new("sleep");
            sleep.arg("1000").env_clear().stdin(Stdio::null());
            println!("left {}", sleep.spawn().expect("sleep").id());
            return;
        }
        other => panic!("no such helper: {other}"),
    }
    let deaf = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, std::sync::Arc::clone(&deaf)).expect("a handler");
    }
    println!("deaf");
    loop {
        std::thread::park();
    }
}

const ECHO: &str = r#"while read -r line; do echo "got $line"; done"#;

#[test]
fn an_agent_is_written_to_heard_and_seen_to_end() {
    let mut kept = start(sh(ECHO));
    let records = kept.records();
    assert!(kept.started() > 0);
    kept.write(7, b"a\n");
    assert_eq!(kept.reply(), Reply::Written { n: 7 });
    kept.commands().write(8, b"b\n".to_vec(), true).expect("sent");
    assert_eq!(kept.reply(), Reply::Written { n: 8 });
    assert_eq!(kept.ended(), (Exit::Code(0), Stopped::default()));
    let (records, exit) = all(&records);
    let written = |n, bytes: &str| RecordBody::In { n, bytes: bytes.into() };
    let lines = |record: &RecordBody| matches!(record, RecordBody::Out(_));
    let (outs, ins): (Vec<_>, Vec<_>) = records.into_iter().partition(lines);
    assert_eq!(outs, [out("got a"), out("got b")]);
    assert_eq!(ins, [written(7, "a\n"), written(8, "b\n")]);
    assert_eq!(exit, Exit::Code(0));
    kept.wait();
}

#[test]
fn a_write_is_recorded_before_its_answer() {
    let mut kept = start(sh(ECHO));
    let records = kept.records();
    for n in 1..=200 {
        kept.write(n, format!("{n}\n").as_bytes());
    }
    kept.commands().close_stdin().expect("sent");
    let (records, _) = all(&records);
    for n in 1..=200u64 {
        let position = |wanted: &RecordBody| records.iter().position(|record| record == wanted);
        let question = position(&RecordBody::In { n, bytes: format!("{n}\n").into() });
        let answer = position(&out(&format!("got {n}")));
        assert!(question.expect("In") < answer.expect("Out"), "write {n}");
    }
    kept.wait();
}

#[test]
fn lines_keep_their_bytes_and_the_exit_its_code() {
    let script = r"printf 'one\r\n\n\377\376 bad\nlast'; printf 'oops\n' >&2; exit 3";
    let mut kept = start(sh(script));
    let records = kept.records();
    kept.started();
    assert_eq!(kept.ended().0, Exit::Code(3));
    let (records, exit) = all(&records);
    let outs: Vec<_> = records.iter().filter(|r| matches!(r, RecordBody::Out(_))).collect();
    let bad = RecordBody::Out(b"\xff\xfe bad".to_vec());
    assert_eq!(outs, [&out("one\r"), &out(""), &bad, &out("last")]);
    assert!(records.contains(&err("oops")));
    assert_eq!(exit, Exit::Code(3));
    kept.wait();
}

#[test]
fn a_line_over_the_cap_is_told_by_length_and_head() {
    let cap = limits::LINE_HEAD_BYTES * 4;
    let over = cap + 1;
    let script = format!(
        "head -c {cap} /dev/zero | tr '\\0' x; echo; head -c {over} /dev/zero | tr '\\0' y; echo; \
         echo next; head -c 200000 /dev/zero | tr '\\0' z >&2"
    );
    let mut kept = start(LaunchSpec { line_bytes_max: cap, ..sh(&script) });
    let (records, _) = all(&kept.records());
    let (errs, outs): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| matches!(record, RecordBody::Err(_)));
    let head = vec![b'y'; limits::LINE_HEAD_BYTES];
    let capped = RecordBody::OutCapped { bytes: over as u64, head };
    assert_eq!(outs, [RecordBody::Out(vec![b'x'; cap]), capped, out("next")]);
    let pieces: Vec<usize> = errs
        .iter()
        .map(|piece| if let RecordBody::Err(piece) = piece { piece.len() } else { 0 })
        .collect();
    let piece = limits::ERR_LINE_BYTES_MAX;
    assert_eq!(pieces, [piece, piece, piece, 200_000 - 3 * piece], "stderr is cut, not lost");
    kept.wait();
}

#[test]
fn a_line_of_twelve_megabytes_goes_through() {
    let mut kept = start(sh("head -c 12000000 /dev/zero | tr '\\0' x; echo; echo next"));
    let (records, _) = all(&kept.records());
    assert_eq!(records.len(), 2);
    assert!(records[0] == RecordBody::Out(vec![b'x'; 12_000_000]), "it came through changed");
    assert_eq!(records[1], out("next"));
    kept.wait();
}

#[test]
fn a_number_that_comes_again_is_answered_and_not_written() {
    let mut kept = start(sh(ECHO));
    let records = kept.records();
    kept.started();
    for (n, line) in [(1, "a\n"), (1, "a\n"), (2, "b\n"), (1, "a\n")] {
        kept.write(n, line.as_bytes());
        assert_eq!(kept.reply(), Reply::Written { n });
    }
    kept.commands().close_stdin().expect("sent");
    kept.ended();
    let (records, _) = all(&records);
    let outs: Vec<_> = records.iter().filter(|r| matches!(r, RecordBody::Out(_))).collect();
    assert_eq!(outs, [&out("got a"), &out("got b")]);
    kept.wait();
}

#[test]
fn an_agent_that_never_reads_holds_up_neither_its_output_nor_its_stop() {
    let mut kept = start(sh("echo ready; exec sleep 1000"));
    let records = kept.records();
    kept.started();
    for n in 1..=8 {
        kept.write(n, &vec![b'x'; 1 << 20]);
    }
    assert_eq!(kept.reply(), Reply::WriteFailed { n: 8, why: WriteError::Full });
    assert_eq!(records.recv_timeout(DEADLINE).expect("a line"), out("ready"));
    kept.commands().stop().expect("sent");
    for n in 1..=7 {
        assert_eq!(kept.reply(), Reply::WriteFailed { n, why: WriteError::Closed });
    }
    let stopped = Stopped { step: Some(Step::Interrupt), swept: 0, left: 0 };
    assert_eq!(kept.ended(), (Exit::Signal(2), stopped));
    let stop = RecordBody::Decision(Decision::StopAsked);
    assert_eq!(all(&records).0, [stop], "what was not wholly written is not recorded as written");
    kept.wait();
}

#[test]
fn writes_after_the_agent_closed_its_stdin_fail() {
    let mut kept = start(sh("exec <&-; echo closed; sleep 1000"));
    let records = kept.records();
    kept.started();
    assert_eq!(records.recv_timeout(DEADLINE).expect("a line"), out("closed"));
    kept.write(1, b"x\n");
    assert_eq!(kept.reply(), Reply::WriteFailed { n: 1, why: WriteError::Closed });
    kept.commands().stop().expect("sent");
    kept.ended();
}

#[test]
fn an_agent_that_ends_when_its_stdin_does_gets_no_signal() {
    let mut spec = sh("trap 'echo signal' INT TERM; cat; echo bye; exit 5");
    spec.timings.close_stdin_ms = NEVER_MS;
    let mut kept = start(spec);
    let records = kept.records();
    kept.started();
    kept.commands().stop().expect("sent");
    kept.commands().stop().expect("sent again, to no effect");
    let stopped = Stopped { step: Some(Step::CloseStdin), swept: 0, left: 0 };
    assert_eq!(kept.ended(), (Exit::Code(5), stopped));
    assert_eq!(all(&records).0, [RecordBody::Decision(Decision::StopAsked), out("bye")]);
    kept.wait();
}

#[test]
fn an_agent_that_cannot_be_started_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "not a program").expect("a file");
    let file = file.to_str().expect("UTF-8");
    let elsewhere = LaunchSpec { cwd: PathBuf::from("/no/such/dir"), ..sh("true") };
    for (spec, kind, word) in [
        (launch(&["no-such-program-anywhere"]), SpawnFailure::NotFound, "not found"),
        (launch(&["/no/such/program"]), SpawnFailure::NotFound, "/no/such/program"),
        (launch(&[file]), SpawnFailure::NotExecutable, "not an executable"),
        (elsewhere, SpawnFailure::Directory, "/no/such/dir"),
        (launch(&[]), SpawnFailure::Other, "no program"),
    ] {
        let mut kept = start(spec);
        // It may have ended already; a command that crosses its end does no harm.
        kept.commands().write(1, b"x\n".to_vec(), false).ok();
        let reply = kept.reply();
        let Reply::SpawnFailed(SpawnFailed { kind: why, message }) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(why, kind, "{message}");
        assert!(message.contains(word), "{message}");
        let records = kept.records();
        let end = records.recv_timeout(DEADLINE);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected), "no records");
        kept.wait();
    }
}

#[test]
fn an_agent_gets_the_listed_environment_and_nothing_else() {
    let mut spec = launch(&["/usr/bin/env"]);
    let extra = BTreeMap::from([("EXTRA".to_owned(), "1".to_owned())]);
    spec.env = keeper::environment(&extra, spec.agent, &spec.data);
    let expected = spec.env.len();
    let mut kept = start(spec);
    let (records, _) = all(&kept.records());
    assert_eq!(records.len(), expected, "{records:?}");
    assert!(records.contains(&out("EXTRA=1")));
    assert!(records.contains(&out(&format!("{AGENT_TAG}={}", kept.agent))));
    kept.wait();
}

#[test]
fn a_keeper_started_by_hand_says_that_it_is_not_for_hands() {
    let output = Command::new(env!("CARGO_BIN_EXE_reattach"))
        .arg("keeper")
        .stdin(Stdio::null())
        .output()
        .expect("a keeper");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("reattach serve"));
}
