//! More than a journal may hold: the agent waits, nothing is lost, and the disk's share is bounded.
//!
//! `REATTACH_JOURNAL_MB` sets how much the agent prints, `REATTACH_JOURNAL_MAX_MB` the journal's
//! bound: 64 and 32 in a plain `cargo test`, 2048 and 64 are what the promise is about.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::{Checker, Setup, ask_for, begin, eventually};

use super::{expect_peace, number};

const MIB: u64 = 1 << 20;
/// What a segment may add to the bound.
const SEGMENT: u64 = 4 * MIB;
const LINE: u64 = 16 << 10;

#[test]
fn a_long_run_goes_through_a_bounded_journal() {
    let megabytes = number("REATTACH_JOURNAL_MB").unwrap_or(64) as u64;
    let max = number("REATTACH_JOURNAL_MAX_MB").unwrap_or(32) as u64 * MIB;
    let lines = megabytes * MIB / LINE;
    let setup = Setup::with_fake().set("limits", "journal_bytes_max", &max.to_string()).set(
        "limits",
        "line_bytes_max",
        "1048576",
    );
    let mut gateway = setup.start();
    let session = gateway.session("fake");
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "much");
    client.forget();
    let most = Arc::new(AtomicU64::new(0));
    let mut checker = Checker::new();
    checker.begin_at(&session, &run, 0);

    agent.flood(lines, 16 << 10, "e");
    client.expect_at(&run, 20);
    // Without a gateway it fills, and the agent waits.
    gateway.kill();
    let agents = gateway.setup.data_dir().join("agents");
    let mut last = (0, agent.sent());
    eventually("the journal is full, and the agent waits", || {
        let now = (bytes_below(&agents), agent.sent());
        let still = ask_for(Duration::from_millis(300), || {
            (now != (bytes_below(&agents), agent.sent())).then_some(())
        });
        last = now;
        (still.is_none() && now.0 > max / 2).then_some(())
    });
    assert!(last.0 <= max + SEGMENT, "{} bytes of journal", last.0);
    assert!(last.1 < lines, "it is not through: the test is about its waiting");
    gateway = gateway.restart();

    let mut client = gateway.connect();
    client.forget();
    client.subscribe(&json!({"sessionId": session, "runId": run, "lastSeq": 0}));
    let mut seen = 0;
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (most, stop) = (Arc::clone(&most), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                most.fetch_max(bytes_below(&agents), Ordering::SeqCst);
                ask_for(Duration::from_millis(5), || None::<()>);
            }
        })
    };
    while seen < lines {
        let frame = client.expect("the flood goes on", |frame| frame.seq().is_some());
        checker.see(&frame);
        assert_eq!(frame.json["content"], format!("e{seen}"), "I4");
        seen += 1;
    }
    agent.finish();
    let complete = client.expect_complete(&run);
    stop.store(true, Ordering::SeqCst);
    watcher.join().expect("it only looks");
    checker.see(&complete);
    assert_eq!(complete.json["reason"], "finished", "{}", complete.text);
    let most = most.load(Ordering::SeqCst);
    eprintln!("{megabytes} MiB went through, the journal had {} MiB at most", most / MIB);
    assert!(most <= max + SEGMENT, "{most} bytes of journal");
    expect_peace(&gateway);
}

/// Bytes of all journals below a folder.
fn bytes_below(agents: &std::path::Path) -> u64 {
    let homes = std::fs::read_dir(agents).into_iter().flatten().flatten();
    let files = homes.filter_map(|home| std::fs::read_dir(home.path()).ok()).flatten().flatten();
    let journals =
        files.filter(|file| file.path().extension().is_some_and(|ending| ending == "journal"));
    journals.filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}
