//! Retention and deletion: exact gaps, whole runs, small slices.

use reattach::store::plan_retention;

use super::*;

#[test]
fn a_gap_names_exactly_what_retention_took() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    let mut runs = Vec::new();
    for events in [2, 0, 1, 3] {
        script.start().events(events).complete();
        runs.push(script.run);
    }
    script.start().events(2);
    runs.push(script.run);
    script.commit(&mut writer);
    let place = |run: usize, seq| Place { run: runs[run - 1], seq: Seq(seq) };
    let at = |run, seq| Position::new(Ordinal(run), Seq(seq));

    // Runs end at T0 + 1,000 ms times their ordinal: the first two are too old.
    let keep = Keep { age_ms: 10_000, bytes_max: 0 };
    let now = T0.plus(10_000 + 2_001);
    let retained = writer.retain(now, keep, 1_000, &mut || T0).expect("retains");
    assert_eq!(retained.pruned, [(script.session, runs[0]), (script.session, runs[1])]);
    assert!(!retained.more);

    let both = Gone { from: place(1, 0), to: place(2, 1), end: at(2, 1) };
    assert_eq!(gone(&readers, script.session, Position::START), both, "consecutive gaps join");
    assert_eq!(gone(&readers, script.session, Position::before_run(Ordinal(1))), both);
    let inside = Gone { from: place(1, 2), ..both };
    assert_eq!(gone(&readers, script.session, at(1, 1)), inside, "from the first unseen one");
    let second = Gone { from: place(2, 0), ..both };
    assert_eq!(gone(&readers, script.session, at(1, 3)), second, "run 1 was seen to its end");
    // I4b: nothing is missing after the end of run 2.
    assert_eq!(places(&all(&readers, script.session, at(2, 1)))[0], (3, 0));
    let upto = readers.frames(script.session, at(1, 0), at(1, 2), 10, 1 << 16).expect("readable");
    assert_eq!(upto, Read::Gone(Gone { from: place(1, 1), to: place(1, 2), end: at(1, 2) }));
    assert_eq!(readers.oldest_kept(script.session).expect("readable"), Some(at(3, 0)));

    let tombstone = readers.run(runs[0]).expect("readable").expect("its row stays");
    assert_eq!((tombstone.last_seq, tombstone.first_seq), (Seq(3), Seq(0)));
    assert_eq!(tombstone.pruned_at, Some(now));
    assert_eq!(readers.event_whole(runs[0], Seq(1)).expect("readable"), None);
    sound(dir.path());

    // By size the oldest go first, but never the running run.
    let all_old = Keep { age_ms: 0, bytes_max: 1 };
    let retained = writer.retain(now, all_old, 1_000, &mut || T0).expect("retains");
    assert_eq!(retained.pruned, [(script.session, runs[2]), (script.session, runs[3])]);
    assert_eq!(places(&all(&readers, script.session, at(4, 4))), [(5, 0), (5, 1), (5, 2)]);
    assert!(writer.stored_bytes() > 1, "the running run is kept");
    let last = gone(&readers, script.session, at(2, 1));
    assert_eq!(last, Gone { from: place(3, 0), to: place(4, 4), end: at(4, 4) });
    script.complete();
    script.commit(&mut writer);
    sound(dir.path());
}

#[test]
fn a_delivery_that_is_told_after_its_run_was_retired_harms_nobody() {
    let (dir, mut writer, _) = fresh();
    let mut script = Script::new();
    script.start();
    let run = script.run;
    script.command(1);
    script.complete().commit(&mut writer);
    let keep = Keep { age_ms: 0, bytes_max: 1 };
    let retained = writer.retain(T0, keep, 1_000, &mut || T0).expect("retains");
    assert_eq!(retained.pruned, [(script.session, run)]);
    script.delivered(1);
    script.start().events(1).complete().commit(&mut writer);
    sound(dir.path());
}

#[test]
fn frames_before_a_gap_come_first() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start().complete_at(T0.plus(9_000));
    script.start().complete_at(T0);
    script.start().complete_at(T0.plus(9_000));
    script.commit(&mut writer);
    // A clock that went back: run 2 ended "before" run 1.
    let keep = Keep { age_ms: 1_000, bytes_max: 0 };
    writer.retain(T0.plus(2_000), keep, 1_000, &mut || T0).expect("retains");
    let read = readers.frames(script.session, Position::START, END, 9, 1 << 16).expect("readable");
    let Read::Frames(first) = read else { panic!("run 1 is there") };
    assert_eq!(places(&first), [(1, 0), (1, 1)]);
    let gap = gone(&readers, script.session, first[1].at);
    assert_eq!(gap.end, Position::new(Ordinal(2), Seq(1)));
    assert_eq!(places(&all(&readers, script.session, gap.end)), [(3, 0), (3, 1)]);

    let page = |after| {
        readers
            .events_page(
                script.session,
                after,
                END,
                PageLimit { events: 100, bytes: 1 << 20, compact: false },
            )
            .expect("readable")
    };
    let before = page(Position::START);
    let next = Some(Place { run: first[1].run, seq: Seq(1) });
    assert_eq!((before.gap, before.next), (None, next), "a page ends before a gap");
    let behind = page(first[1].at);
    assert_eq!((behind.gap, places(&behind.items)), (Some(gap), vec![(3, 0), (3, 1)]));
    assert_eq!(behind.next, None);
    sound(dir.path());
}

#[test]
fn retention_works_in_slices_and_gives_room_back() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start().events(5_000).complete();
    let pages = || -> i64 {
        let conn = Connection::open(dir.path().join(DATABASE)).expect("opens");
        conn.pragma_query_value(None, "page_count", |row| row.get(0)).expect("a number")
    };
    let empty = pages();
    script.commit(&mut writer);
    let keep = Keep { age_ms: 1, bytes_max: 0 };
    let mut time = T0;
    let mut clock = || {
        time = time.plus(4);
        time
    };
    let (mut calls, mut pruned) = (0, Vec::new());
    loop {
        let retained = writer.retain(T0.plus(1 << 30), keep, 10, &mut clock).expect("retains");
        pruned.extend(retained.pruned);
        calls += 1;
        sound(dir.path());
        // Gone at once for readers, whatever is still to be deleted.
        assert_eq!(gone(&readers, script.session, Position::START).to, script.place(5_001));
        if !retained.more {
            break;
        }
    }
    assert_eq!(pruned, [(script.session, script.run)]);
    assert!(calls > 3, "more than one slice: {calls}");
    assert!(pages() <= empty + 1, "{} pages, {empty} before", pages());
    assert_eq!(writer.stored_bytes(), 0);
}

#[test]
fn a_deleted_session_is_gone_at_once_and_its_room_later() {
    let (dir, mut writer, readers) = fresh();
    let (mut script, mut other) = (Script::new(), Script::new());
    script.start().event(Some(asked("q")));
    script.event(Some(Mark::PermissionCancelled(RequestId("q".into()))));
    let run = script.run;
    script.command(1);
    let detail = "{}".to_owned();
    script.change(Change::Audit { run: Some(run), what: "late", detail, at: T0, by: None });
    script.events(600).complete();
    other.start().events(1);
    writer.commit(&[script.batch(), other.batch()]).expect("commits");
    script.change(Change::SessionDeleted).commit(&mut writer);
    assert!(readers.session(script.session).expect("readable").is_none());
    assert!(readers.run(run).expect("readable").is_none());
    assert_eq!(all(&readers, script.session, Position::START), []);
    assert_eq!(all(&readers, other.session, Position::START).len(), 2);
    sound(dir.path());
    let retained = writer.retain(T0, Keep::default(), 1_000, &mut || T0).expect("retains");
    assert_eq!((retained.pruned.len(), retained.more), (0, false));
    let conn = Connection::open(dir.path().join(DATABASE)).expect("opens");
    let left: i64 = conn
        .query_row("SELECT count(*) FROM event WHERE run = 1", [], |row| row.get(0))
        .expect("a number");
    assert_eq!(left, 0);
    let error = writer.commit(&[script.change(Change::SessionDeleted).batch()]);
    assert!(matches!(error, Err(CommitError::Constraint { .. })), "it is not there any more");
    sound(dir.path());
}

/// `reattach retention --dry-run` asks what retention itself then does.
#[test]
fn what_is_planned_is_what_leaves() {
    for (age_ms, bytes_max) in
        [(0, 0), (10_000, 0), (0, 1), (0, 300), (0, 700), (12_000, 700), (9_500, 1_000), (1, 0)]
    {
        let (dir, mut writer, _) = fresh();
        let mut script = Script::new();
        for events in [2, 0, 9, 3, 1, 5] {
            script.start().events(events).complete();
        }
        script.start().events(2);
        script.commit(&mut writer);
        let (keep, now) = (Keep { age_ms, bytes_max }, T0.plus(13_500));
        let path = dir.path().join(DATABASE);
        let plan = plan_retention(&path, keep, now).expect("readable");
        assert_eq!(plan.stored, writer.stored_bytes());
        let planned: Vec<_> = plan.leaving.iter().map(|run| (run.session, run.run)).collect();
        let retained = writer.retain(now, keep, 1_000, &mut || T0).expect("retains");
        assert_eq!(planned, retained.pruned, "{keep:?}");
        let left: u64 = plan.leaving.iter().map(|run| run.bytes).sum();
        assert_eq!(plan.stored - left, writer.stored_bytes(), "{keep:?}");
        let again = plan_retention(&path, keep, now).expect("readable");
        assert_eq!(again.leaving, [], "{keep:?}");
    }
}
