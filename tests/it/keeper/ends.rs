//! How an agent ends, and that nothing of it is left: the ladder, what hides, what a dead keeper
//! left.

use super::*;

#[test]
fn a_signal_that_the_gateway_ignores_still_works_on_its_agents() {
    let dir = tempfile::tempdir().expect("a directory");
    let binary = env!("CARGO_BIN_EXE_reattach");
    let program = script(dir.path(), &format!("trap '' INT HUP\nexec '{binary}' \"$@\""));
    let mut spec = launch(&["sleep", "1000"]);
    spec.timings.interrupt_ms = NEVER_MS;
    let mut kept = start_in(&program, spec, dir);
    kept.started();
    kept.commands().stop().expect("sent");
    assert_eq!(kept.ended().0, Exit::Signal(2));
}

/// I21.
#[cfg(target_os = "linux")]
#[test]
fn nothing_is_left_of_an_agent_that_ignores_signals_and_has_a_grandchild_in_its_own_session() {
    let mut kept = start(helper("parent"));
    let records = kept.records();
    kept.started();
    let mut deaf = 0;
    while deaf < 2 {
        let record = records.recv_timeout(DEADLINE).expect("a line");
        deaf += usize::from(record == out("deaf"));
    }
    assert_eq!(alive(kept.agent, kept.process.pid()).len(), 2);
    kept.commands().stop().expect("sent");
    let (exit, stopped) = kept.ended();
    assert_eq!(alive(kept.agent, kept.process.pid()), [0; 0], "at the moment of `Stopped`");
    assert_eq!(exit, Exit::Signal(9));
    assert_eq!(stopped, Stopped { step: Some(Step::Kill), swept: 1, left: 0 });
    kept.wait();
}

/// I21: what hides its tag and lost its parent is the keeper's child.
#[cfg(target_os = "linux")]
#[test]
fn nothing_is_left_of_an_agent_whose_grandchild_hides() {
    let mut kept = start(helper("parent of one that vanishes"));
    let records = kept.records();
    kept.started();
    let left = loop {
        let record = records.recv_timeout(DEADLINE).expect("a line");
        let RecordBody::Out(line) = record else { continue };
        let line = String::from_utf8(line).expect("UTF-8");
        if let Some(pid) = line.strip_prefix("left ") {
            break pid.to_owned();
        }
    };
    while records.recv_timeout(DEADLINE).expect("a line") != out("deaf") {}
    assert!(Path::new("/proc").join(&left).exists());
    kept.commands().stop().expect("sent");
    let (_, stopped) = kept.ended();
    assert_eq!(stopped, Stopped { step: Some(Step::Kill), swept: 1, left: 0 });
    assert!(!Path::new("/proc").join(&left).exists(), "at the moment of `Stopped`");
    kept.wait();
}

/// I21: at a natural end, too.
#[cfg(target_os = "linux")]
#[test]
fn what_an_agent_leaves_behind_ends_with_it() {
    let mut kept =
        start(sh("sleep 1000 & (sleep 1000 & ) ; (trap '' INT TERM; sleep 1000) & exit 0"));
    kept.started();
    let (exit, stopped) = kept.ended();
    assert_eq!((exit, stopped.step, stopped.left), (Exit::Code(0), None, 0));
    assert_eq!(alive(kept.agent, kept.process.pid()), [0; 0]);
    all(&kept.records());
    kept.wait();
}

/// I21: the kill -9 of a gateway closes all its descriptors.
#[cfg(target_os = "linux")]
#[test]
fn a_keeper_without_its_gateway_and_without_a_grace_stops_its_agent_and_ends() {
    let mut kept = start(LaunchSpec { orphan_grace_ms: 0, ..helper("parent") });
    let agent = kept.agent;
    let mut records = kept.records.take().expect("not taken");
    kept.started();
    while records.next().expect("records").expect("a line").0.body != out("deaf") {}
    drop(records);
    kept.commands = None;
    let keeper = kept.process.pid();
    eventually("the agent's end", || alive(agent, keeper).is_empty().then_some(()));
    kept.wait();
}

#[test]
fn whoever_drops_the_commands_alone_still_gets_all_records() {
    let spec = sh("trap '' INT; echo here; cat >/dev/null; echo there");
    let mut kept = start(LaunchSpec { orphan_grace_ms: 0, ..spec });
    let records = kept.records();
    assert_eq!(records.recv_timeout(DEADLINE).expect("a line"), out("here"));
    kept.commands = None;
    let decision = RecordBody::Decision(Decision::OrphanGraceOver);
    assert_eq!(all(&records).0, [decision, out("there")]);
    kept.wait();
}

#[test]
fn a_keeper_that_is_told_to_end_stops_its_agent_first() {
    use rustix::process::{Pid, Signal, kill_process};

    for signal in [Signal::TERM, Signal::INT] {
        let mut kept = start(launch(&["sleep", "1000"]));
        kept.started();
        let keeper = Pid::from_raw(kept.process.pid().cast_signed()).expect("a pid");
        kill_process(keeper, Signal::HUP).expect("a signal, to no effect");
        kill_process(keeper, signal).expect("a signal");
        let (exit, stopped) = kept.ended();
        assert_eq!((exit, stopped.step), (Exit::Signal(2), Some(Step::Interrupt)));
        all(&kept.records());
        kept.wait();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_outsider_that_holds_the_pipe_delays_the_end_within_bounds() {
    let mut kept = start(sh("echo here; read -r line"));
    let records = kept.records();
    let pid = kept.started();
    assert_eq!(records.recv_timeout(DEADLINE).expect("a line"), out("here"));
    let holder = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/fd/1"))
        .expect("the agent's stdout");
    kept.commands().stop().expect("sent");
    kept.ended();
    assert_eq!(all(&records).0, [RecordBody::Decision(Decision::StopAsked)]);
    kept.wait();
    drop(holder);
}

#[test]
fn an_end_is_told_while_nobody_takes_the_records() {
    let lines = 12_000;
    let script =
        format!("i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done; exit 4");
    let mut kept = start(sh(&script));
    kept.started();
    assert_eq!(kept.ended(), (Exit::Code(4), Stopped::default()));
    let (records, exit) = all(&kept.records());
    assert_eq!(records.len(), lines, "and no line is lost");
    assert_eq!(records[lines - 1], out(&format!("line {}", lines - 1)));
    assert_eq!(exit, Exit::Code(4));
    kept.wait();
}

/// I7, and control past a full data stream.
#[cfg(target_os = "linux")]
#[test]
fn a_flood_that_nobody_takes_waits_in_the_agent_and_stops_when_told() {
    let mut spec = sh("exec yes $(head -c 1000 /dev/zero | tr '\\0' x)");
    spec.timings.close_stdin_ms = 0;
    spec.journal_bytes_max = limits::JOURNAL_BYTES_FLOOR;
    let mut kept = start(spec);
    let pid = kept.started();
    let (mut last, mut same) = (0, 0);
    eventually("a blocked agent", || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("io");
        let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        let written: u64 = written.expect("wchar").parse().expect("a number");
        same = if written == last { same + 1 } else { 0 };
        last = written;
        (written > 20_000_000 && same > 20).then_some(())
    });
    let kib = memory(kept.process.pid(), "VmRSS:");
    assert!(kib < 32 << 10, "{kib} KiB");
    kept.write(1, b"never read\n");
    kept.commands().stop().expect("sent");
    assert_eq!(kept.ended().0, Exit::Signal(2));
    let (records, _) = all(&kept.records());
    let lines = records.iter().filter(|record| matches!(record, RecordBody::Out(_))).count();
    assert!((20_000..33_000).contains(&lines), "{lines} lines");
    kept.wait();
}

#[cfg(target_os = "linux")]
#[test]
fn orphans_that_end_while_the_agent_lives_leave_no_zombies() {
    let script =
        "i=0; while [ $i -lt 30 ]; do (true & ); i=$((i+1)); done; echo done; read -r line";
    let mut kept = start(sh(script));
    let records = kept.records();
    kept.started();
    assert_eq!(records.recv_timeout(DEADLINE).expect("a line"), out("done"));
    let children = format!("/proc/{0}/task/{0}/children", kept.process.pid());
    eventually("a single child", || {
        let children = std::fs::read_to_string(&children).expect("children");
        (children.split_ascii_whitespace().count() == 1).then_some(())
    });
    kept.commands().stop().expect("sent");
    kept.ended();
}

/// I21: what a keeper that was itself killed leaves behind.
#[cfg(target_os = "linux")]
#[test]
fn a_sweep_finds_what_a_dead_keeper_left_and_spares_what_it_is_told_to() {
    let mut kept = start(helper("parent"));
    let agent = kept.agent;
    let records = kept.records();
    kept.started();
    let mut deaf = 0;
    while deaf < 2 {
        deaf += usize::from(records.recv_timeout(DEADLINE).expect("a line") == out("deaf"));
    }
    let data = DataTag::of(kept.data_dir.path()).expect("a tag");
    kept.process.kill();
    assert_eq!(alive(agent, 0).len(), 2);
    assert_eq!(keeper::sweep(&data, &[agent]).expect("a sweep"), keeper::Swept::default());
    assert_eq!(alive(agent, 0).len(), 2, "spared");
    let swept = keeper::sweep(&data, &[]).expect("a sweep");
    assert_eq!((swept.killed.len(), swept.left.len()), (2, 0));
    assert_eq!(alive(agent, 0), [0; 0]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_sweep_takes_living_keepers_along() {
    let mut kept = start(helper("parent"));
    let records = kept.records();
    kept.started();
    while records.recv_timeout(DEADLINE).expect("a line") != out("deaf") {}
    let data = DataTag::of(kept.data_dir.path()).expect("a tag");
    let swept = keeper::sweep(&data, &[]).expect("a sweep");
    assert!(swept.killed.contains(&kept.process.pid()), "{swept:?}");
    assert_eq!(alive(kept.agent, 0), [0; 0]);
    assert_eq!(kept.replies.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
}
