//! What was committed is what is read.

use reattach::run::server_change::ServerChange;

use super::*;

#[test]
fn what_was_committed_comes_back_byte_for_byte_across_runs_and_restarts() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start().events(5).complete().start().events(2);
    assert_eq!(script.commit(&mut writer), Committed { events: 8 });
    script.events(2);
    script.commit(&mut writer);

    let expected = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 0), (2, 1), (2, 2)]
        .into_iter()
        .chain([(2, 3), (2, 4)])
        .collect::<Vec<_>>();
    let before = all(&readers, script.session, Position::START);
    assert_eq!(places(&before), expected);
    assert_eq!(before[8].text.as_str(), r#"{"run":2,"seq":1,"é":1}"#);
    assert_eq!(before[8].run, script.run);
    // A strict cursor: after (1, 0) excludes the head, before run 2 begins with its head.
    let after_head = all(&readers, script.session, Position::new(Ordinal(1), Seq(0)));
    assert_eq!(places(&after_head), expected[1..]);
    let second = all(&readers, script.session, Position::before_run(Ordinal(2)));
    assert_eq!(places(&second), expected[7..]);

    let epoch = readers.epoch();
    // Dropped without `close`: the next start has to examine the file.
    drop((writer, readers));
    let (_writer, readers) = open(dir.path());
    assert_eq!(all(&readers, script.session, Position::START), before);
    assert_eq!(readers.epoch(), epoch);
    sound(dir.path());
}

#[test]
fn a_read_keeps_to_its_bounds_and_gives_at_least_one_frame() {
    let (_dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start().events(600);
    script.commit(&mut writer);
    let read = |after, upto, rows, bytes| match readers
        .frames(script.session, after, upto, rows, bytes)
        .expect("readable")
    {
        Read::Frames(frames) => frames,
        Read::Gone(gone) => panic!("nothing is gone, yet {gone:?}"),
    };
    assert_eq!(read(Position::START, END, usize::MAX, usize::MAX).len(), 512);
    let one = read(Position::START, END, 10, 0);
    assert_eq!(places(&one), [(1, 0)], "a budget of nothing still gives one frame");
    let size = one[0].text.len();
    assert_eq!(read(Position::START, END, 10, size * 3).len(), 3);
    let at = |seq| Position::new(Ordinal(1), Seq(seq));
    assert_eq!(places(&read(at(3), at(5), 10, 1 << 16)), [(1, 4), (1, 5)]);
    assert!(read(at(600), END, 10, 1 << 16).is_empty());
    assert!(read(at(5), at(5), 10, 1 << 16).is_empty());
}

#[test]
fn a_session_tells_its_runs_and_what_waits() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    let request = RequestId("r1".into());
    script.start_with(Some("m1")).event(Some(Mark::ToolOpened("t1".into())));
    script.event(Some(Mark::ToolOpened("t2".into())));
    script.event(Some(Mark::ToolClosed("t1".into())));
    script.event(Some(asked("r1")));
    let run = script.run;
    script.command(1).command(2);
    script.delivered(1);
    script.change(Change::AbortAsked { run, by: by(), at: T0.plus(5) });
    script.change(Change::NativeIdLearned { native_id: NativeId("n-1".into()), at: T0.plus(3) });
    script.commit(&mut writer);

    let snapshot = readers.session(script.session).expect("readable").expect("is there");
    assert_eq!(snapshot.view.row.title.as_deref(), Some("a title"));
    assert_eq!(snapshot.view.row.native_id, Some(NativeId("n-1".into())));
    assert_eq!(snapshot.view.project.path, "/srv/project");
    assert!(snapshot.view.waiting);
    let last = snapshot.view.last_run.expect("a run");
    assert_eq!((last.id, last.status), (run, RunStatus::Running));
    assert_eq!((last.last_seq, last.first_seq), (Seq(4), Seq(1)));
    let [pending] = &snapshot.pending[..] else { panic!("one is pending") };
    assert_eq!((&pending.request, pending.received_at), (&request, T0.plus(77)));
    assert_eq!(pending.at, Position::new(Ordinal(1), Seq(4)));
    assert_eq!(pending.text.as_str(), script.text(Seq(4)));

    let [open] = &readers.open_runs().expect("readable")[..] else { panic!("one is open") };
    assert_eq!(open.run, last);
    assert_eq!((open.agent, open.offset), (AgentId::from_u128(7), 40));
    assert_eq!(open.open_tools, ["t2"]);
    let [waiting] = &open.permissions[..] else { panic!("one waits") };
    assert_eq!((waiting.at, &waiting.text), (pending.at, &pending.text), "for who comes next");
    assert_eq!(open.run.abort.as_ref().map(|abort| abort.at), Some(T0.plus(5)));

    let native = NativeId("n-1".into());
    assert_eq!(readers.session_by_native(&native).expect("readable"), Some(script.session));
    let of = |provider| readers.session_by_provider_native(provider, &native).expect("readable");
    assert_eq!((of("demo"), of("claude")), (Some(script.session), None));
    let find = |id: &str| {
        readers.find_message(script.session, &ClientMessageId(id.into())).expect("readable")
    };
    assert_eq!((find("m1"), find("m2")), (Some(KnownMessage::Run(run, [9; 32])), None));

    script.event(Some(allowed("r1", AnswerState::Recorded)));
    script.commit(&mut writer);
    assert!(readers.pending_permissions().expect("readable").is_empty());
    let open = readers.open_runs().expect("readable");
    assert_eq!(open[0].permissions[0].state, PermissionState::Answered);
    script.event(Some(allowed("r1", AnswerState::Delivered)));
    script.event(Some(Mark::ToolClosed("t2".into()))).complete();
    script.commit(&mut writer);
    let permission = readers.permission(&request).expect("readable").expect("is there");
    assert_eq!(permission.state, PermissionState::Delivered);
    assert_eq!((permission.decision, permission.by), (Some(Decision::Allow), Some(by())));
    let ended = readers.run(run).expect("readable").expect("is there");
    assert_eq!((ended.status, ended.last_seq), (RunStatus::Completed, Seq(8)));
    assert_eq!((ended.exit_code, ended.success, ended.aborted), (Some(0), Some(true), Some(false)));
    assert_eq!(ended.reason, Some(Reason::Finished));
    assert!(readers.open_runs().expect("readable").is_empty());
    sound(dir.path());
}

#[test]
fn an_event_that_was_cut_is_whole_by_itself() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start().event(None);
    let Some(Item::Frame(frame)) = script.items.last_mut() else { panic!("a frame") };
    frame.whole = Some(Arc::new(Whole { json: b"the whole of it".to_vec() }));
    script.event(None).complete();
    script.commit(&mut writer);
    let whole = |seq| readers.event_whole(script.run, Seq(seq)).expect("readable");
    assert_eq!(whole(0), Some(script.text(Seq(0)).into_bytes()));
    assert_eq!(whole(1), Some(b"the whole of it".to_vec()));
    assert_eq!(whole(2), Some(script.text(Seq(2)).into_bytes()));
    assert_eq!(whole(9), None);
    sound(dir.path());
}

#[test]
fn a_page_counts_events_not_heads_and_says_where_the_next_begins() {
    let (_dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    script.start().events(1).complete().start().events(3).complete();
    script.commit(&mut writer);
    let page = |after, limit, bytes| {
        readers
            .events_page(
                script.session,
                after,
                END,
                PageLimit { events: limit, bytes, compact: false },
            )
            .expect("readable")
    };
    let first = page(Position::START, 3, 1 << 20);
    assert_eq!(places(&first.items), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]);
    let last = &first.items[4];
    assert_eq!(first.next, Some(Place { run: last.run, seq: Seq(1) }));
    let second = page(last.at, 3, 1 << 20);
    assert_eq!(places(&second.items), [(2, 2), (2, 3), (2, 4)]);
    assert_eq!(second.next, None);
    assert_eq!(page(Position::new(Ordinal(2), Seq(4)), 3, 1 << 20).items, []);
    let narrow = page(Position::START, 3, 1);
    assert_eq!(places(&narrow.items), [(1, 0)]);
    assert_eq!(narrow.next, Some(Place { run: narrow.items[0].run, seq: Seq(0) }));
}

#[test]
fn lists_page_through_all_of_it_once() {
    let (_dir, mut writer, readers) = fresh();
    let mut ids = Vec::new();
    for i in 0..5 {
        let mut script = Script::new();
        let title = Some(format!("100%_{i}"));
        script.change(Change::SessionEdited { title, archived: Some(i == 4), at: T0.plus(i) });
        script.start().complete().start();
        script.commit(&mut writer);
        ids.push(script.session);
    }
    let sessions = |filter: &SessionFilter| {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = readers.sessions(filter, 2, cursor.as_deref()).expect("readable");
            assert!(page.items.len() <= 2);
            found.extend(page.items.iter().map(|item| item.row.id));
            match page.next {
                Some(next) => cursor = Some(next),
                None => return found,
            }
        }
    };
    let newest_first: Vec<SessionId> = ids.iter().rev().copied().collect();
    assert_eq!(sessions(&SessionFilter::default()), newest_first);
    let archived = |archived| SessionFilter { archived: Some(archived), ..Default::default() };
    assert_eq!(sessions(&archived(true)), [ids[4]]);
    assert_eq!(sessions(&archived(false)), newest_first[1..]);
    let q = |q: &str| SessionFilter { q: Some(q.into()), ..Default::default() };
    assert_eq!(sessions(&q("0%_3")), [ids[3]]);
    assert_eq!(sessions(&q("0%%3")), [], "taken literally");
    assert_eq!(sessions(&q("PROJECT")).len(), 5, "by path, whatever the case");
    let project = readers.projects().expect("readable").remove(0);
    let of = |id| SessionFilter { project: Some(id), ..Default::default() };
    assert_eq!(sessions(&of(project.id)).len(), 5);
    assert_eq!(sessions(&of(project.id + 1)), []);
    let edited = |project, name: &str, starred| ServerChange::ProjectEdited {
        project,
        custom_name: Some(name.into()),
        starred,
    };
    let changes = [edited(project.id, "mine", Some(true)), edited(99, "nobody's", None)];
    writer.commit_server(&changes).expect("edits");
    let project = readers.projects().expect("readable").remove(0);
    assert_eq!((project.custom_name.as_deref(), project.starred), (Some("mine"), true));

    let runs = |filter: &RunFilter, cursor: Option<&str>| {
        readers.runs(filter, 3, cursor).expect("readable")
    };
    let first = runs(&RunFilter::default(), None);
    let second = runs(&RunFilter::default(), first.next.as_deref());
    assert_eq!((first.items.len(), second.items.len()), (3, 3));
    assert!(first.items[2].started_at >= T0 && first.items[2].id != second.items[0].id);
    let running = RunFilter { status: Some(RunStatus::Running), ..Default::default() };
    let all_running = readers.runs(&running, 100, None).expect("readable");
    assert_eq!(all_running.items.len(), 5);
    let of_one = RunFilter { session: Some(ids[0]), ..Default::default() };
    let ordinals: Vec<u32> = runs(&of_one, None).items.iter().map(|run| run.ordinal.0).collect();
    assert_eq!(ordinals, [2, 1]);
    for cursor in ["x", "1", "1.x", ""] {
        let error = readers.sessions(&SessionFilter::default(), 2, Some(cursor)).expect_err(cursor);
        assert!(matches!(error, ReadError::BadCursor(_)));
    }
    readers.runs(&running, 2, Some("1.1")).expect_err("no cursor of this list");
}

#[test]
fn a_request_asked_again_under_its_id_waits_anew() {
    let (dir, mut writer, readers) = fresh();
    let mut script = Script::new();
    let request = RequestId("r".into());
    let answered = |state, decision| Mark::PermissionAnswered {
        request: RequestId("r".into()),
        decision,
        state,
        by: by(),
        answer: None,
    };
    script.start().event(Some(asked("r")));
    script.event(Some(answered(AnswerState::Recorded, Decision::Deny)));
    script.event(Some(asked("r")));
    script.commit(&mut writer);
    let permission = || readers.permission(&request).expect("readable").expect("is there");
    assert_eq!((permission().state, permission().at.seq), (PermissionState::Open, Seq(3)));
    assert_eq!(permission().decision, None);
    let open = readers.open_run(script.session).expect("readable").expect("it runs");
    assert_eq!(open.permissions, [permission()]);

    // I20: one answer counts, and it does not change.
    script.event(Some(answered(AnswerState::Recorded, Decision::Allow)));
    script.event(Some(answered(AnswerState::Delivered, Decision::Deny)));
    let error = writer.commit(&[script.batch()]).expect_err("another answer");
    assert!(
        matches!(&error, CommitError::Constraint { message, .. } if message.contains("I20")),
        "{error}"
    );
    assert_eq!(permission().state, PermissionState::Open, "whole or not at all");
    script.seq = Seq(3);
    script.event(Some(answered(AnswerState::Recorded, Decision::Allow)));
    script.event(Some(answered(AnswerState::Undeliverable, Decision::Allow))).complete();
    script.commit(&mut writer);
    assert_eq!(permission().state, PermissionState::Undeliverable);
    assert!(readers.open_run(script.session).expect("readable").is_none());
    sound(dir.path());
}
