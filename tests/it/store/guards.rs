//! The guards that stand in SQL, and the check that would find what they let through.

use super::*;

#[test]
fn every_guard_refuses_its_violation_also_from_raw_sql() {
    let (dir, mut writer, _readers) = fresh();
    let mut done = Script::new();
    done.start().events(2).complete();
    done.event(Some(Mark::ToolOpened("late".into())));
    let refused = writer.commit(&[done.batch()]).expect_err("an event after complete");
    assert!(
        matches!(&refused, CommitError::Constraint { message, .. } if message.contains("I3")),
        "{refused}"
    );

    let mut script = Script::new();
    script.start().event(Some(asked("q")));
    script.event(Some(Mark::PermissionCancelled(RequestId("q".into())))).complete();
    script.start().event(Some(asked("a"))).event(Some(allowed("a", AnswerState::Recorded)));
    script.command(5).checkpoint(100, "state");
    script.commit(&mut writer);
    for (sql, invariant) in [
        ("INSERT INTO event (run, seq, body) VALUES (2, 4, x'00')", "I2"),
        ("INSERT INTO event (run, seq, body) VALUES (2, 2, x'00')", "UNIQUE"),
        ("INSERT INTO event (run, seq, body) VALUES (2, 0, x'00')", "I2"),
        ("INSERT INTO event (run, seq, body) VALUES (2, -1, x'00')", "I2"),
        ("INSERT INTO event (run, seq, body) VALUES (77, 1, x'00')", "I2"),
        ("INSERT INTO event (run, seq, body) VALUES (1, 4, x'00')", "I3"),
        ("INSERT INTO event (run, seq, complete, body) VALUES (1, 4, 1, x'00')", "I3"),
        ("UPDATE event SET seq = 9 WHERE run = 2 AND seq = 2", "I2"),
        ("UPDATE event SET body = x'01' WHERE run = 2 AND seq = 1", "I2"),
        ("UPDATE event SET complete = 1 WHERE run = 2 AND seq = 1", "I2"),
        ("DELETE FROM event WHERE run = 2 AND seq = 2", "I8"),
        ("DELETE FROM event WHERE run = 1", "I8"),
        ("INSERT INTO garbage (run) VALUES (2)", "I13"),
        ("UPDATE run SET last_seq = 3 WHERE id = 2", "I2"),
        ("UPDATE run SET last_seq = 1 WHERE id = 2", "I2"),
        (
            "UPDATE run SET state = 'completed', ended_ms = 1, success = 1, aborted = 0, \
             reason = 'finished' WHERE id = 2",
            "I1",
        ),
        ("UPDATE run SET state = 'running' WHERE id = 1", "I1"),
        ("UPDATE run SET success = 0 WHERE id = 1", "I1"),
        ("UPDATE run SET rid = randomblob(16) WHERE id = 2", "I6"),
        ("UPDATE run SET ordinal = 3 WHERE id = 2", "I6"),
        ("UPDATE run SET agent = agent WHERE id = 1", "I6"),
        (
            "BEGIN; UPDATE command SET delivered_ms = 1; \
             UPDATE run SET agent = randomblob(16) WHERE id = 2",
            "I6",
        ),
        (
            "BEGIN; INSERT INTO session (sid, project, provider, created_ms, updated_ms) \
             VALUES (randomblob(16), 1, 'p', 1, 1); \
             INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, started_ms) \
             SELECT randomblob(16), max(id), 1, zeroblob(16), 'user', zeroblob(32), 1 \
             FROM session; \
             UPDATE run SET agent = zeroblob(16) WHERE id = 2",
            "I6: only a process of its session",
        ),
        ("UPDATE run SET pruned_ms = 1 WHERE id = 2", "CHECK"),
        (
            "INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, started_ms) \
             VALUES (randomblob(16), 1, 3, randomblob(16), 'user', zeroblob(32), 1)",
            "UNIQUE",
        ),
        (
            "INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, started_ms) \
             VALUES (randomblob(16), 1, 4, randomblob(16), 'user', zeroblob(32), 1)",
            "I6",
        ),
        (
            "INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, started_ms, \
             state, ended_ms, success, aborted, reason) VALUES (randomblob(16), 1, 3, \
             randomblob(16), 'user', zeroblob(32), 1, 'completed', 1, 1, 0, 'finished')",
            "I6",
        ),
        (
            "INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, started_ms, \
             last_seq) VALUES (randomblob(16), 1, 3, randomblob(16), 'user', zeroblob(32), 1, 5)",
            "I6",
        ),
        ("UPDATE permission SET state = 'answered', decision = 'allow', answered_by = '{}'", "I20"),
        ("UPDATE permission SET answer = '{}' WHERE request_id = 'a'", "I20"),
        ("UPDATE permission SET answer = '{}' WHERE request_id = 'q'", "CHECK"),
        ("UPDATE permission SET state = 'delivered' WHERE request_id = 'a'", "CHECK"),
        ("INSERT INTO command (run, n, body, recorded_ms) VALUES (2, 4, x'00', 1)", "I20"),
        ("INSERT INTO command (run, n, body, recorded_ms) VALUES (1, 5, x'00', 1)", "I20"),
        (
            "INSERT INTO command (run, n, body, recorded_ms, cause) VALUES (2, 6, x'00', 1, -1)",
            "CHECK",
        ),
        ("UPDATE command SET n = 6", "I20"),
        ("UPDATE command SET body = x'01'", "I20"),
        ("UPDATE command SET cause = 1", "I20"),
        ("UPDATE command SET request_id = 'q'", "I20"),
        ("UPDATE checkpoint SET record_offset = 99", "I8"),
        ("UPDATE checkpoint SET agent = zeroblob(16)", "I8"),
        ("UPDATE checkpoint SET record_offset = -1", "I8"),
        ("INSERT INTO checkpoint VALUES (zeroblob(16), 1, 0, x'', 0)", "I6"),
        (
            "INSERT INTO checkpoint SELECT agent, 1, 100, x'', 0 FROM checkpoint WHERE true \
             ON CONFLICT (agent) DO UPDATE SET record_offset = 7",
            "I8",
        ),
        ("DELETE FROM run WHERE id = 1", "FOREIGN KEY"),
        ("DELETE FROM session", "FOREIGN KEY"),
        ("UPDATE session SET archived = 2", "CHECK"),
        ("UPDATE session SET title = x'00'", "TEXT"),
    ] {
        let error = raw(dir.path(), sql);
        assert!(error.contains(invariant), "{sql}: {error}");
    }
    sound(dir.path());
}

#[test]
fn a_second_complete_is_refused_even_where_the_trigger_is_gone() {
    let (dir, mut writer, _readers) = fresh();
    let mut script = Script::new();
    script.start().complete();
    script.commit(&mut writer);
    let error = raw(
        dir.path(),
        "BEGIN; DROP TRIGGER event_next; \
         INSERT INTO event (run, seq, complete, body) VALUES (1, 2, 1, x'00');",
    );
    assert!(error.contains("UNIQUE"), "I1 stands in an index too: {error}");
}

#[test]
fn the_writer_refuses_what_contradicts_the_rows() {
    let (_dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start_with(Some("m")).events(1);
    script.commit(&mut writer);
    let end = Position::new(Ordinal(1), Seq(1));
    let mut refuse = |what: &str, make: &dyn Fn(&mut Script)| {
        let mut copy = Script { items: Vec::new(), ..script };
        make(&mut copy);
        let error = writer.commit(&[copy.batch()]).expect_err(what);
        assert!(
            matches!(error, CommitError::Constraint { session, .. } if session == Some(script.session)),
            "{what}: {error}"
        );
        assert_eq!(readers.end_of(script.session).expect("readable"), end, "{what}");
    };
    refuse("a hole", &|s| {
        s.seq = s.seq.next();
        s.event(None);
    });
    refuse("a seq again", &|s| {
        s.seq = Seq(0);
        s.event(None);
    });
    refuse("a second running run (I5)", &|s| {
        s.start();
    });
    refuse("a run that is not the next", &|s| {
        s.complete();
        s.ordinal = Ordinal(2);
        s.start();
    });
    refuse("an event of a run that is not there", &|s| {
        s.ordinal = Ordinal(2);
        s.event(None);
    });
    refuse("a prompt again (I19)", &|s| {
        s.complete().start_with(Some("m"));
    });
    refuse("the end of another session's run", &|s| {
        s.change(Change::AbortAsked { run: RunId::random(), by: by(), at: T0 });
    });
    refuse("a delivery of nothing", &|s| {
        s.delivered(3);
    });
    refuse("a command under a number of before", &|s| {
        s.command(2).command(2);
    });
    refuse("a command under the number of a run before", &|s| {
        s.command(2).complete().start().command(1);
    });
    refuse("a checkpoint of before", &|s| {
        s.checkpoint(50, "").checkpoint(49, "");
    });
    refuse("a checkpoint of another session's agent", &|s| {
        s.agent = AgentId::from_u128(8);
        s.checkpoint(50, "");
    });
    refuse("a run taken from the process that was told of it", &|s| {
        s.complete();
        let warm = std::mem::replace(&mut s.agent, AgentId::from_u128(8));
        s.start().command(1).delivered(1).adopt(warm);
    });
    refuse("an answer to nothing", &|s| {
        s.event(Some(Mark::PermissionCancelled(RequestId("none".into()))));
    });
    refuse("the deletion of a session with a running run", &|s| {
        s.change(Change::SessionDeleted);
    });
}

#[test]
fn one_session_that_is_refused_does_not_hold_up_the_others() {
    let (dir, mut writer, readers) = fresh();
    let (mut good, mut bad) = (Script::new(), Script::new());
    good.start().events(1);
    bad.start().events(1);
    writer.commit(&[good.batch(), bad.batch()]).expect("commits");
    good.events(3);
    bad.events(1);
    bad.seq = Seq(7);
    bad.events(1);
    let (good_batch, bad_batch) = (good.batch(), bad.batch());
    let both = [good_batch, bad_batch];
    let error = writer.commit(&both).expect_err("a hole");
    assert!(
        matches!(error, CommitError::Constraint { session, .. } if session == Some(bad.session))
    );
    assert_eq!(readers.end_of(good.session).expect("readable").seq, Seq(1), "whole or not at all");
    writer.commit(&both[..1]).expect("the good one alone");
    writer.commit(&both[1..]).expect_err("the bad one alone");

    // The quarantine: an end at the seq after the last durable one.
    let durable = readers.end_of(bad.session).expect("readable");
    assert_eq!(durable.seq, Seq(1));
    bad.seq = durable.seq;
    bad.complete();
    bad.commit(&mut writer);
    assert_eq!(readers.end_of(good.session).expect("readable").seq, Seq(4));
    assert!(readers.open_runs().expect("readable").iter().all(|open| open.run.id == good.run));
    sound(dir.path());
}

#[test]
fn the_check_finds_what_the_guards_would_have_refused() {
    for (sql, invariant) in [
        ("DELETE FROM event WHERE run = 1 AND seq = 2", "I2"),
        ("UPDATE event SET seq = 9 WHERE run = 2 AND seq = 2", "I2"),
        ("INSERT INTO event (run, seq, body) VALUES (2, 3, x'00')", "I2"),
        ("UPDATE event SET complete = 0 WHERE run = 1", "I1"),
        ("UPDATE event SET complete = 1 WHERE run = 2 AND seq = 1", "I3"),
        ("UPDATE run SET ordinal = 7 WHERE id = 1", "I5"),
        ("UPDATE run SET ordinal = 7 WHERE id = 2", "I6"),
        ("DELETE FROM head WHERE run = 1", "I8"),
        ("UPDATE run SET bytes = bytes + 1 WHERE id = 1", "I8"),
        ("INSERT INTO event (run, seq, body) VALUES (77, 1, x'00')", "I8"),
        ("UPDATE permission SET state = 'open'", "I20"),
        ("UPDATE permission SET seq = 99", "I20"),
        ("INSERT INTO open_tool VALUES (1, 't')", "I1"),
        ("UPDATE command SET n = 1", "I20"),
        ("UPDATE checkpoint SET agent = zeroblob(16)", "I6"),
    ] {
        let (dir, mut writer, _readers) = fresh();
        let mut script = Script::new();
        script.start().event(Some(asked("q")));
        script.event(Some(Mark::PermissionCancelled(RequestId("q".into()))));
        script.command(1).complete();
        script.start().events(2).command(2);
        script.checkpoint(9, "state").commit(&mut writer);
        sound(dir.path());
        let conn = Connection::open(dir.path().join(DATABASE)).expect("opens");
        let triggers: Vec<String> = conn
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
            .expect("prepares")
            .query_map([], |row| row.get(0))
            .expect("reads")
            .collect::<Result<_, _>>()
            .expect("names");
        for trigger in triggers {
            conn.execute_batch(&format!("DROP TRIGGER {trigger}")).expect("drops");
        }
        conn.execute_batch(sql).expect(sql);
        let findings = check(&dir.path().join(DATABASE)).expect("readable");
        assert!(
            findings.iter().any(|finding| finding.invariant == invariant),
            "{sql}: {findings:?}"
        );
    }
}
