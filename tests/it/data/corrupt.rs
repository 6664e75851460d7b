//! What a broken disk, a bug or a hand can do to a database, and that `verify` finds it.

use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;

use super::{run, stopped, text, unguarded};

/// What is done, in SQL past all guards, and the finding that it has to lead to.
const DAMAGE: &[(&str, &str, &str)] = &[
    (
        "an event's text is another",
        "UPDATE event SET body = CAST(replace(CAST(body AS TEXT), '\"one\"', '\"two\"') AS BLOB) \
         WHERE run = 1 AND seq = 1",
        "HASH",
    ),
    (
        "a head's text is another",
        "UPDATE head SET body = CAST(replace(CAST(body AS TEXT), 'first', 'fir5t') AS BLOB) \
         WHERE run = 1",
        "HASH",
    ),
    (
        "the whole of a cut event is another",
        "UPDATE blob SET json = CAST(replace(CAST(json AS TEXT), 'yyyy', 'zzzz') AS BLOB)",
        "HASH",
    ),
    ("an event is no JSON", "UPDATE event SET body = x'7b22' WHERE run = 1 AND seq = 2", "JSON"),
    (
        "an event is not UTF-8",
        "UPDATE event SET body = x'22ff22' WHERE run = 2 AND seq = 1",
        "JSON",
    ),
    ("the whole of an event is no JSON", "UPDATE blob SET json = x'7b'", "JSON"),
    ("an event is gone", "DELETE FROM event WHERE run = 1 AND seq = 2", "I2"),
    ("the last event is gone", "DELETE FROM event WHERE run = 1 AND complete = 1", "I1"),
    (
        "two events have changed places",
        "CREATE TEMP TABLE t AS SELECT seq, body FROM event WHERE run = 1 AND seq IN (1, 2); \
         UPDATE event SET body = (SELECT body FROM t WHERE t.seq = 3 - event.seq) \
         WHERE run = 1 AND seq IN (1, 2)",
        "I2",
    ),
    (
        "an event of another run",
        "UPDATE event SET body = (SELECT body FROM event WHERE run = 2 AND seq = 1) \
         WHERE run = 1 AND seq = 1",
        "I6",
    ),
    (
        "a complete after the complete",
        "UPDATE event SET seq = seq + 1 WHERE run = 1 AND complete = 1; \
         INSERT INTO event (run, seq, body) \
         SELECT run, seq - 1, body FROM event WHERE run = 1 AND complete = 1",
        "I1",
    ),
    (
        "an event after the complete",
        "INSERT INTO event (run, seq, body) SELECT 1, last_seq + 1, x'7b7d' FROM run WHERE id = 1",
        "I2",
    ),
    ("a complete is not marked", "UPDATE event SET complete = 0 WHERE run = 1", "I1"),
    ("last_seq is too high", "UPDATE run SET last_seq = last_seq + 1 WHERE id = 1", "I3"),
    ("a run's head is gone", "DELETE FROM head WHERE run = 1", "I8"),
    ("a run's bytes are others", "UPDATE run SET bytes = bytes + 1 WHERE id = 1", "I8"),
    ("events of no run", "INSERT INTO event (run, seq, body) VALUES (99, 1, x'7b7d')", "I8"),
    ("a whole of no event", "UPDATE blob SET seq = 77", "I8"),
    (
        "an old run runs again",
        "UPDATE run SET state = 'running', ended_ms = NULL, success = NULL, aborted = NULL, \
         reason = NULL WHERE id = 1",
        "I5",
    ),
    ("a run is missing", "UPDATE run SET ordinal = 5 WHERE id = 2", "I6"),
    ("a request waits after the end", "UPDATE permission SET state = 'open'", "I20"),
    ("a request without an event", "UPDATE permission SET seq = 999", "I20"),
    ("a tool call is open after the end", "INSERT INTO open_tool VALUES (1, 't9')", "I1"),
    (
        "a checkpoint of nobody",
        "INSERT INTO checkpoint VALUES (zeroblob(16), 1, 0, x'00', 0)",
        "I6",
    ),
    (
        "a prompt that ran still waits",
        "UPDATE run SET client_message_id = 'm' WHERE id = 2; INSERT INTO queued \
         (qid, session, prompt_hash, client_message_id, body, queued_ms) \
         VALUES (zeroblob(16), 1, zeroblob(32), 'm', '{}', 0)",
        "I19",
    ),
    (
        "a row that names none",
        "PRAGMA foreign_keys = OFF; INSERT INTO queued (qid, session, prompt_hash, body, queued_ms) \
         VALUES (zeroblob(16), 99, zeroblob(32), '{}', 0)",
        "SQLITE",
    ),
    ("an index is gone", "DROP INDEX run_running", "SCHEMA"),
];

#[test]
fn each_damage_is_found_and_named() {
    let (gateway, ..) = stopped();
    let data = gateway.setup.data_dir();
    let root = gateway.setup.root.path();
    run(&["verify", "--data-dir", text(&data)], 0);
    for (at, (what, sql, invariant)) in DAMAGE.iter().enumerate() {
        let copy = root.join(format!("damage-{at}.db"));
        fs::copy(data.join("reattach.db"), &copy).expect("a copy");
        run(&["verify", text(&copy)], 0);
        unguarded(&copy, sql);
        let report = run(&["verify", text(&copy), "--json"], 75).json();
        let findings = report["findings"].as_array().expect("a list");
        let found = findings.iter().any(|finding| finding["invariant"] == *invariant);
        assert!(found, "{what} leads to {invariant}: {report:#}");
        assert_eq!(report["sound"], false);
        fs::remove_file(copy).expect("it is there");
    }
}

#[test]
fn a_guard_that_is_gone_or_another_is_found() {
    let (gateway, ..) = stopped();
    let data = gateway.setup.data_dir();
    for (sql, words) in [
        ("DROP TRIGGER event_fixed", "the trigger event_fixed is missing"),
        (
            "CREATE TRIGGER event_fixed BEFORE UPDATE ON event BEGIN SELECT 1; END",
            "the trigger event_fixed is not as",
        ),
    ] {
        let conn = Connection::open(data.join("reattach.db")).expect("opens");
        conn.execute_batch(sql).expect("it fits");
        conn.close().expect("closes");
        let said = run(&["verify", "--data-dir", text(&data)], 75);
        let out = String::from_utf8_lossy(&said.out);
        assert!(out.contains(words) && out.contains("1 finding"), "{out}");
        assert!(said.err.contains("restore"), "{}", said.err);
    }
}

/// Bytes of the file itself: every one of these is found, wherever it falls.
#[test]
fn flipped_bytes_of_the_file_are_found() {
    let (gateway, ..) = stopped();
    let data = gateway.setup.data_dir();
    let whole = fs::read(data.join("reattach.db")).expect("readable");
    let copy = gateway.setup.root.path().join("copy.db");
    let verify = |bytes: &[u8]| {
        fs::write(&copy, bytes).expect("writable");
        run(&["verify", text(&copy)], 75);
    };
    let find = |needle: &str| -> usize {
        let needle = needle.as_bytes();
        whole.windows(needle.len()).position(|w| w == needle).expect("it is there")
    };
    for at in
        [find("before the backup"), find("yyyyyyyyyyyy") + 3, find("\"kind\":\"complete\"") + 3]
    {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        verify(&bytes);
    }
    // A page of zeros, a page too few, a header of another program.
    let page = 8192;
    for at in (1..whole.len() / page).map(|n| n * page) {
        let used = whole[at..at + page].iter().any(|byte| *byte != 0);
        if used {
            let mut bytes = whole.clone();
            bytes[at..at + page].fill(0);
            verify(&bytes);
        }
    }
    verify(&whole[..whole.len() - page]);
    let mut bytes = whole;
    bytes[68..72].fill(7);
    verify(&bytes);
}

#[test]
fn what_is_not_there_is_said() {
    let nowhere = PathBuf::from("/nonexistent");
    run(&["verify", "--data-dir", text(&nowhere)], 75);
    run(&["verify", text(&nowhere)], 3);
}
