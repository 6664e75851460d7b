//! The journal's bound, and a disk without room.

use super::*;

/// What the journal of this keeper takes on disk.
fn journal_bytes(home: &Home) -> u64 {
    let mut bytes = 0;
    for entry in home.path().read_dir().expect("a home") {
        let path = entry.expect("an entry").path();
        if path.extension() == Some("journal".as_ref()) {
            // It may just have been dropped.
            bytes += path.metadata().map_or(0, |data| data.len());
        }
    }
    bytes
}

/// Waits until the journal no longer grows, since it is full.
fn full(home: &Home, at_least: u64) -> u64 {
    let (mut last, mut same) = (0, 0);
    eventually("a full journal", || {
        let bytes = journal_bytes(home);
        same = if bytes == last { same + 1 } else { 0 };
        last = bytes;
        (bytes > at_least && same > 20).then_some(bytes)
    })
}

/// I7: a follower that is slower than its agent holds the agent up, not the disk.
#[test]
fn the_journal_stays_below_its_bound_while_an_agent_floods() {
    const LINES: u64 = 200_000;
    let line = "x".repeat(1000);
    let mut spec = sh("yes \"$1\" | head -n \"$2\"; exit 4");
    spec.argv.extend(["sh".into(), line.clone().into(), LINES.to_string().into()]);
    spec.journal_bytes_max = 0;
    let bound = limits::JOURNAL_BYTES_FLOOR;
    let mut kept = start(spec);
    kept.started();
    let home = kept.home.clone();
    assert!(full(&home, bound / 2) <= bound);
    let mut records = kept.records.take().expect("not taken");
    let mut commands = kept.commands.take().expect("not taken");
    let (mut lines, mut confirmed) = (0, 0);
    let mut last = None;
    while let Some((record, end)) = records.next().expect("a record") {
        if let RecordBody::Out(said) = &record.body {
            assert!(said == line.as_bytes(), "line {lines}");
            lines += 1;
        }
        if end - confirmed > 8 << 20 {
            confirmed = end;
            commands.confirm(end).expect("sent");
        }
        if lines % 500 == 0 {
            let bytes = journal_bytes(&home);
            assert!(bytes <= bound, "{bytes} bytes after {lines} lines");
        }
        last = Some(record.body);
    }
    assert_eq!((lines, last), (LINES, Some(RecordBody::Exit(Exit::Code(4)))));
    kept.wait();
    assert!(journal_bytes(&home) < bound / 2, "what was confirmed is gone");
}

#[cfg(target_os = "linux")]
#[test]
fn an_agent_whose_journal_is_full_waits_is_heard_again_and_can_be_stopped() {
    let mut spec = sh("exec yes $(head -c 1000 /dev/zero | tr '\\0' x)");
    spec.journal_bytes_max = 0;
    let mut kept = start(spec);
    kept.started();
    let home = kept.home.clone();
    let bound = limits::JOURNAL_BYTES_FLOOR;
    full(&home, bound / 2);
    let mut records = kept.records.take().expect("not taken");
    let mut end = 0;
    while end < 16 << 20 {
        end = records.next().expect("records").expect("a record").1;
    }
    let first = home.path().join("0000000000000000.journal");
    assert!(first.exists(), "nothing is dropped that was not confirmed");
    kept.commands().confirm(end).expect("sent");
    eventually("the first segment's end", || (!first.exists()).then_some(()));
    // It goes on until it is full again.
    assert!(full(&home, bound / 2) <= bound);
    let late = keeper::attach(&home, 0);
    assert!(matches!(late, Err(keeper::AttachError::Io(_))), "{late:?}");
    kept.abandon();
    let mut parts = keeper::attach(&home, end).expect("a keeper").parts;
    parts.commands.stop().expect("sent");
    assert_eq!(parts.replies.next().expect("a reply"), Some(Reply::Exited(Exit::Signal(2))));
    let mut last = None;
    while let Some((record, _)) = parts.records.next().expect("a record") {
        last = Some(record.body);
    }
    assert_eq!(last, Some(RecordBody::Exit(Exit::Signal(2))));
    drop((parts.commands, parts.replies));
    kept.wait();
    assert!(journal_bytes(&home) <= bound);
}

/// I18. A limit on the length of files stands for the full disk: it cuts a write short and then
/// refuses it, as a disk does, and it can be lifted from outside.
#[cfg(target_os = "linux")]
#[test]
fn a_keeper_without_room_on_the_disk_waits_for_it_and_loses_nothing() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let dir = tempfile::tempdir().expect("a directory");
    let binary = env!("CARGO_BIN_EXE_reattach");
    let program = script(dir.path(), &format!("ulimit -Sf 100; exec '{binary}' \"$@\""));
    let mut spec = sh("i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done; exit 5");
    spec.orphan_grace_ms = NEVER_MS;
    let mut kept = start_in(&program, spec, dir);
    let records = kept.records();
    kept.started();
    let log = kept.home.path().join("log");
    eventually("a word in the log", || {
        let log = std::fs::read_to_string(&log).expect("a log");
        log.contains("cannot be written").then_some(())
    });
    // Control goes on: the number is taken, and what was written is told.
    kept.write(1, b"x\n");
    assert_eq!(kept.reply(), Reply::Written { n: 1 });
    let keeper = Pid::from_raw(kept.process.pid().cast_signed());
    prlimit(keeper, Resource::Fsize, Rlimit { current: None, maximum: None }).expect("lifted");
    let (mut all, exit) = all(&records);
    assert_eq!(exit, Exit::Code(5));
    all.retain(|record| !matches!(record, RecordBody::In { .. }));
    assert_eq!(all.len(), 60_000);
    assert_eq!(all[59_999], out("line 59999"));
    kept.wait();
}
