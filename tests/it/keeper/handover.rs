//! Gateways come and go; the keeper, its agent and its journal stay.

use reattach::keeper::{AttachError, Attached, attach, read_journal};

use super::*;

fn attached(home: &Home, offset: u64) -> Attached {
    attach(home, offset).expect("a keeper that lives")
}

/// Up to `count` records, and where the last one ends.
fn take(records: &mut Records, count: usize) -> (Vec<RecordBody>, u64) {
    let mut bodies = Vec::new();
    let mut end = 0;
    while bodies.len() < count {
        let Some((record, at)) = records.next().expect("a record") else { break };
        bodies.push(record.body);
        end = at;
    }
    (bodies, end)
}

/// An agent that goes on once somebody writes to the pipe whose path it gets as `$0`.
fn waits_for(pipe: &Path, then: &str) -> LaunchSpec {
    let made = Command::new("mkfifo").arg(pipe).status().expect("mkfifo");
    assert!(made.success());
    let script = format!("echo ready; read -r go < \"$0\"; {then}");
    launch(&["/bin/sh", "-c", &script, pipe.to_str().expect("UTF-8")])
}

/// All that a keeper which is gone has left.
fn left_by(home: &Home) -> Vec<RecordBody> {
    take(&mut read_journal(home, 0).expect("a journal"), usize::MAX).0
}

#[test]
fn a_gateway_that_comes_back_goes_on_where_it_was() {
    let mut kept = start(sh(ECHO));
    let home = kept.home.clone();
    kept.started();
    kept.write(1, b"a\n");
    let mut records = kept.records.take().expect("not taken");
    let (first, offset) = take(&mut records, 2);
    assert_eq!(first.len(), 2);
    drop(records);
    kept.abandon();
    let Attached { parts, pid, end, .. } = attached(&home, offset);
    assert!(pid > 0 && end >= offset);
    let keeper::Parts { mut commands, mut replies, mut records, mut process } = parts;
    assert_eq!(process.pid(), kept.process.pid());
    commands.write(1, b"a\n".to_vec(), false).expect("sent");
    commands.write(2, b"b\n".to_vec(), true).expect("sent");
    assert_eq!(replies.next().expect("a reply"), Some(Reply::Written { n: 1 }));
    assert_eq!(replies.next().expect("a reply"), Some(Reply::Written { n: 2 }));
    let (rest, end) = take(&mut records, 100);
    let written = RecordBody::In { n: 2, bytes: b"b\n".to_vec() };
    assert_eq!(rest, [written, out("got b"), RecordBody::Exit(Exit::Code(0))]);
    drop((commands, replies, records));
    assert!(process.wait().expect("its end").success());
    kept.wait();
    assert!(!home.is_alive().expect("a lock"));
    assert!(matches!(attach(&home, end), Err(AttachError::Gone)));
    let (again, _) = take(&mut read_journal(&home, 0).expect("a journal"), 100);
    assert_eq!(again, [first, rest].concat());
    assert_eq!(take(&mut read_journal(&home, end).expect("a journal"), 1).0, []);
    let beyond = read_journal(&home, end + 1);
    assert!(matches!(beyond, Err(AttachError::OffsetBeyondEnd { end: at }) if at == end));
    home.remove().expect("removed");
    assert!(matches!(read_journal(&home, 0), Err(AttachError::Gone)));
}

#[test]
fn the_newest_gateway_counts_and_the_older_ones_hear_no_more() {
    let mut kept = start(sh(ECHO));
    let home = kept.home.clone();
    kept.started();
    let mut first = attached(&home, 0).parts;
    let end = kept.replies.recv_timeout(DEADLINE);
    assert_eq!(end, Err(RecvTimeoutError::Disconnected), "the gateway that spawned it");
    let late = kept.commands().write(1, b"too late\n".to_vec(), false);
    assert!(late.is_err(), "its writes count no more");
    first.commands.write(2, b"a\n".to_vec(), false).expect("sent");
    assert_eq!(first.replies.next().expect("a reply"), Some(Reply::Written { n: 2 }));
    let (_, offset) = take(&mut first.records, 2);
    let mut second = attached(&home, offset).parts;
    assert_eq!(first.replies.next().expect("an end"), None);
    assert!(first.commands.write(3, b"too late\n".to_vec(), false).is_err());
    drop(first.commands);
    second.commands.write(3, b"b\n".to_vec(), true).expect("sent");
    let (rest, _) = take(&mut second.records, usize::MAX);
    let written = RecordBody::In { n: 3, bytes: b"b\n".to_vec() };
    assert_eq!(rest, [written, out("got b"), RecordBody::Exit(Exit::Code(0))]);
    // What the older ones lack they find in the files.
    assert_eq!(take(&mut first.records, usize::MAX).0, rest);
    drop((second.commands, second.replies));
    kept.wait();
}

#[test]
fn an_end_while_nobody_is_there_is_in_the_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    let mut kept = start(waits_for(&pipe, "seq 1 50000; echo oops >&2; exit 3"));
    let home = kept.home.clone();
    let mut records = kept.records.take().expect("not taken");
    assert_eq!(take(&mut records, 1).0, [out("ready")]);
    drop(records);
    kept.abandon();
    assert!(home.is_alive().expect("a lock"));
    std::fs::write(&pipe, "go\n").expect("it is read");
    kept.wait();
    assert!(matches!(attach(&home, 0), Err(AttachError::Gone)));
    let all = left_by(&home);
    let outs: Vec<_> = all.iter().filter(|body| matches!(body, RecordBody::Out(_))).collect();
    assert_eq!(outs.len(), 50_001);
    assert_eq!(outs[50_000], &out("50000"));
    assert!(all.contains(&err("oops")));
    assert_eq!(all.last(), Some(&RecordBody::Exit(Exit::Code(3))));
}

#[test]
fn the_end_is_told_again_to_a_gateway_that_comes_after_it() {
    let mut kept = start(sh("seq 1 100000; exit 7"));
    kept.started();
    // Nobody takes the records, which are more than a pipe holds: so the keeper stays.
    assert_eq!(kept.ended().0, Exit::Code(7));
    let Attached { parts, pid, .. } = attached(&kept.home, 0);
    assert_eq!(pid, 0, "there is no agent any more");
    let mut parts = parts;
    assert_eq!(parts.replies.next().expect("a reply"), Some(Reply::Exited(Exit::Code(7))));
    let stopped = Reply::Stopped(Stopped::default());
    assert_eq!(parts.replies.next().expect("a reply"), Some(stopped));
    let (all, _) = take(&mut parts.records, usize::MAX);
    assert_eq!((all.len(), all.last()), (100_001, Some(&RecordBody::Exit(Exit::Code(7)))));
    assert_eq!(parts.replies.next().expect("an end"), None);
    kept.wait();
}

#[test]
fn what_a_keeper_wrote_before_it_was_killed_is_found_in_its_journal() {
    let mut kept = start(sh("seq 1 1000; exec sleep 1000"));
    let home = kept.home.clone();
    let mut records = kept.records.take().expect("not taken");
    let (first, offset) = take(&mut records, 10);
    assert_eq!(first[9], out("10"));
    let (second, end) = take(&mut records, 990);
    kept.process.kill();
    assert_eq!(take(&mut records, 1).0, [], "no Exit was written, and that is no error");
    assert!(!home.is_alive().expect("a lock"));
    assert_eq!(left_by(&home), [first, second.clone()].concat());
    let mut later = read_journal(&home, offset).expect("a journal");
    assert_eq!(take(&mut later, usize::MAX), (second, end));
}

#[test]
fn an_orphan_whose_grace_is_over_is_stopped_and_the_journal_says_why() {
    let mut kept = start(LaunchSpec { orphan_grace_ms: 20, ..launch(&["sleep", "1000"]) });
    kept.started();
    kept.abandon();
    kept.wait();
    let decision = RecordBody::Decision(Decision::OrphanGraceOver);
    assert_eq!(left_by(&kept.home), [decision, RecordBody::Exit(Exit::Signal(2))]);
}

#[test]
fn an_orphan_that_is_told_to_end_does_and_says_why() {
    let mut kept = start(launch(&["sleep", "1000"]));
    kept.started();
    assert!(kept.home.terminate().expect("a signal"));
    kept.abandon();
    kept.wait();
    let decision = RecordBody::Decision(Decision::Signalled);
    assert_eq!(left_by(&kept.home), [decision, RecordBody::Exit(Exit::Signal(2))]);
    assert!(!kept.home.terminate().expect("no keeper"));
}

#[test]
fn neither_a_hangup_nor_rubbish_on_the_socket_disturbs_it() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::process::{Pid, Signal, kill_process};

    let mut kept = start(sh(ECHO));
    kept.started();
    let keeper = Pid::from_raw(kept.process.pid().cast_signed()).expect("a pid");
    kill_process(keeper, Signal::HUP).expect("a signal");
    let socket = kept.home.path().join("sock");
    for rubbish in [&[0xff; 80][..], b"GET / HTTP/1.1\r\n\r\n", &[1, 0, 0, 0, 4]] {
        let mut stream = UnixStream::connect(&socket).expect("a socket");
        stream.write_all(rubbish).expect("sent");
        // It may be closed with something unread, which is an error here.
        assert_eq!(stream.read(&mut [0; 9]).unwrap_or(0), 0, "it is sent away");
    }
    // More than are heard at once; each is sent away when its time is up.
    let silent: Vec<_> =
        (0..=limits::NEWCOMERS_MAX).map(|_| UnixStream::connect(&socket).expect("it")).collect();
    kept.write(1, b"a\n");
    assert_eq!(kept.reply(), Reply::Written { n: 1 });
    let mut parts = attached(&kept.home, 0).parts;
    drop(silent);
    parts.commands.close_stdin().expect("sent");
    let (all, _) = take(&mut parts.records, usize::MAX);
    assert_eq!(all[1..], [out("got a"), RecordBody::Exit(Exit::Code(0))]);
    drop((parts.commands, parts.replies));
    kept.wait();
}

#[test]
fn offsets_that_the_journal_does_not_have_are_refused() {
    let mut kept = start(sh(ECHO));
    kept.started();
    let beyond = attach(&kept.home, 1);
    assert!(matches!(beyond, Err(AttachError::OffsetBeyondEnd { end: 0 })), "{beyond:?}");
    let mut parts = attached(&kept.home, 0).parts;
    parts.commands.stop().expect("sent");
    let (all, _) = take(&mut parts.records, usize::MAX);
    assert_eq!(all[0], RecordBody::Decision(Decision::StopAsked));
    drop((parts.commands, parts.replies));
    kept.wait();
}

/// The binary under another name, which makes it speak another protocol.
#[test]
fn a_keeper_of_another_protocol_is_left_alone_and_can_be_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let binary = env!("CARGO_BIN_EXE_reattach");
    let variable = keeper::frame::TEST_PROTOCOL;
    let program = script(dir.path(), &format!("{variable}=9 exec '{binary}' \"$@\""));
    let spec = LaunchSpec { orphan_grace_ms: NEVER_MS, ..sh(ECHO) };
    let mut kept = start_in(&program, spec, dir);
    kept.started();
    let refused = attach(&kept.home, 0);
    let Err(AttachError::OtherVersion { protocol, version, pid }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((protocol, pid), (9, kept.process.pid()));
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert_eq!(kept.home.info().expect("keeper.json").protocol, 9);
    kept.write(1, b"a\n");
    assert_eq!(kept.reply(), Reply::Written { n: 1 }, "its own gateway still has it");
    assert!(kept.home.terminate().expect("a signal"));
    assert_eq!(kept.ended().1.step, Some(Step::CloseStdin));
    all(&kept.records());
    kept.wait();
}

#[test]
fn a_path_too_long_for_a_socket_is_none_too_long_for_a_keeper() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut spec = sh(ECHO);
    let deep = dir.path().join("long".repeat(30)).join("longer".repeat(20));
    spec.home = Home::of(&deep, spec.agent);
    let mut kept = start_with(Path::new(env!("CARGO_BIN_EXE_reattach")), &spec, dir);
    kept.started();
    let mut parts = attached(&kept.home, 0).parts;
    parts.commands.write(1, b"a\n".to_vec(), true).expect("sent");
    assert_eq!(take(&mut parts.records, 9).0[1], out("got a"));
    drop((parts.commands, parts.replies));
    kept.wait();
}

/// Some file systems take no sockets; here something stands in its place.
#[test]
fn where_the_home_takes_no_socket_the_runtime_directory_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = dir.path().join("run");
    let mut spec = sh(ECHO);
    spec.home = Home::of(dir.path(), spec.agent);
    spec.home.create().expect("a home");
    std::fs::create_dir(spec.home.path().join("sock")).expect("something");
    std::fs::create_dir(&runtime).expect("a directory");
    let binary = env!("CARGO_BIN_EXE_reattach");
    let variable = format!("XDG_RUNTIME_DIR='{}'", runtime.display());
    let program = script(dir.path(), &format!("{variable} exec '{binary}' \"$@\""));
    let mut kept = start_with(&program, &spec, dir);
    kept.started();
    let sockets = || runtime.read_dir().expect("a directory").count();
    assert_eq!(sockets(), 1);
    let mut parts = attached(&kept.home, 0).parts;
    parts.commands.write(1, b"a\n".to_vec(), true).expect("sent");
    assert_eq!(take(&mut parts.records, 9).0[1], out("got a"));
    drop((parts.commands, parts.replies));
    kept.wait();
    assert_eq!(sockets(), 0, "nothing is left where others are");
}

#[test]
fn a_home_is_its_owners_alone_and_says_who_lives_there() {
    let mut spec = sh("umask; read -r line");
    spec.session = "the session".into();
    spec.provider = "the provider".into();
    let mut kept = start(spec);
    let records = kept.records();
    let pid = kept.started();
    let mask = Command::new("sh").args(["-c", "umask"]).output().expect("a shell").stdout;
    let mask = String::from_utf8(mask).expect("UTF-8");
    assert_eq!(records.recv_timeout(DEADLINE).expect("a line"), out(mask.trim()));
    let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
    let home = kept.home.path();
    assert_eq!((mode(home), mode(home.parent().expect("agents"))), (0o700, 0o700));
    let mut names = Vec::new();
    for entry in home.read_dir().expect("a directory") {
        let entry = entry.expect("an entry");
        assert_eq!(mode(&entry.path()), 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().expect("UTF-8"));
    }
    names.sort();
    assert_eq!(names, ["0000000000000000.journal", "keeper.json", "lock", "log", "sock"]);
    let info = kept.home.info().expect("keeper.json");
    assert_eq!((info.agent, info.pid, info.agent_pid), (kept.agent, kept.process.pid(), pid));
    assert_eq!((&*info.session, &*info.provider), ("the session", "the provider"));
    assert_eq!((info.protocol, &*info.version), (keeper::PROTOCOL, env!("CARGO_PKG_VERSION")));
    assert_eq!(info.socket.file_name(), Some("sock".as_ref()));
    let homes = keeper::homes(kept.data_dir.path()).expect("homes");
    assert_eq!(homes, [kept.home.clone()]);
    kept.commands().stop().expect("sent");
    kept.ended();
    kept.wait();
    kept.home.remove().expect("removed");
    assert_eq!(keeper::homes(kept.data_dir.path()).expect("homes"), []);
    assert_eq!(kept.home.info(), None);
}

#[test]
fn a_keeper_that_was_never_told_what_to_start_leaves_no_word_of_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::of(dir.path(), AgentId::random());
    home.create().expect("a home");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_reattach"))
        .arg("keeper")
        .current_dir(home.path())
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a keeper");
    eventually("its lock", || home.is_alive().expect("a lock").then_some(()));
    drop(ours);
    assert!(keeper.wait().expect("its end").success());
    assert!(!home.is_alive().expect("a lock"));
    assert_eq!(home.info(), None);
    assert_eq!(left_by(&home), []);
}

/// I21: what a turn started ends with it; what the agent had before, and the agent, do not.
#[cfg(target_os = "linux")]
#[test]
fn a_sweep_since_a_write_kills_what_is_younger_and_nothing_else() {
    let script = "sleep 1000 & echo $!; while read -r line; do case $line in \
         go) sleep 1000 & echo $!; (setsid sh -c 'sleep 1000 & wait' &);; \
         *) echo \"got $line\";; esac; done";
    let mut kept = start(sh(script));
    let records = kept.records();
    kept.started();
    let pid = || -> u32 {
        loop {
            if let RecordBody::Out(line) = records.recv_timeout(DEADLINE).expect("a record") {
                return String::from_utf8(line).expect("UTF-8").parse().expect("a number");
            }
        }
    };
    let old = pid();
    // Times of birth are in hundredths of a second.
    let begin = uptime();
    eventually("a later tick", || (uptime() > begin + 0.02).then_some(()));
    kept.write(1, b"go\n");
    assert_eq!(kept.reply(), Reply::Written { n: 1 });
    let young = pid();
    let family = || alive(kept.agent, kept.process.pid()).len();
    eventually("the agent, four sleeps and shells", || (family() == 5).then_some(()));
    kept.commands.as_mut().expect("not dropped").sweep(1).expect("sent");
    assert_eq!(kept.reply(), Reply::Swept { killed: 3, left: 0 });
    assert!(!lives(young));
    assert!(lives(old));
    kept.write(2, b"a\n");
    assert_eq!(kept.reply(), Reply::Written { n: 2 });
    kept.commands().sweep(2).expect("sent");
    kept.commands().sweep(99).expect("sent");
    for _ in 0..2 {
        assert_eq!(kept.reply(), Reply::Swept { killed: 0, left: 0 }, "nothing is that young");
    }
    while records.recv_timeout(DEADLINE).expect("a record") != out("got a") {}
    kept.commands().stop().expect("sent");
    kept.ended();
    kept.commands().sweep(1).ok();
    all(&records);
    kept.wait();
}

#[cfg(target_os = "linux")]
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("uptime");
    text.split(' ').next().expect("a field").parse().expect("a number")
}

/// Whether it runs; a zombie does not.
#[cfg(target_os = "linux")]
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

/// I7: what the keeper has of its own, with an agent that says a line now and then. The rest that
/// the system counts are pages of the program and of libc, which it shares with the gateway and
/// with every other keeper.
#[cfg(target_os = "linux")]
#[test]
fn a_keeper_is_small() {
    let mut kept = start(sh(ECHO));
    let records = kept.records();
    kept.started();
    for n in 1..=500 {
        kept.write(n, format!("{n} {}\n", "x".repeat(200)).as_bytes());
        assert_eq!(kept.reply(), Reply::Written { n });
        while records.recv_timeout(DEADLINE).expect("a record") != written(n) {}
    }
    let own = own_memory(kept.process.pid());
    assert!(own <= 1 << 10, "{own} KiB");
    // With the pages of the program's file that its relocations made private.
    let all = memory(kept.process.pid(), "RssAnon:");
    assert!(all <= 4 << 10, "{all} KiB");
}

fn written(n: u64) -> RecordBody {
    RecordBody::In { n, bytes: format!("{n} {}\n", "x".repeat(200)).into() }
}
