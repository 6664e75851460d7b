//! The store against real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use reattach::run::change::{Batch, Change, Frame, Item, Mark, RunEnd, RunRow, SessionRow, Whole};
use reattach::run::event::{AnswerState, By, ByKind, Complete, Decision, Reason};
use reattach::run::id::{
    AgentId, ClientMessageId, Millis, NativeId, Ordinal, Position, RequestId, RunId, Seq, SessionId,
};
use reattach::store::{
    CommitError, Committed, DATABASE, Gone, Keep, LOCK, OpenError, OpenOptions, PermissionState,
    Place, Read, ReadError, Readers, RunFilter, RunStatus, SessionFilter, Store, Stored, Writer,
    check,
};
use rusqlite::Connection;
use tempfile::TempDir;

const T0: Millis = Millis(1_764_000_000_000);
const END: Position = Position { ordinal: Ordinal(u32::MAX), seq: Seq(u64::MAX) };

fn options() -> OpenOptions {
    OpenOptions { ballast_bytes: 64 << 10, ..OpenOptions::default() }
}

fn open(dir: &Path) -> (Writer, Readers) {
    Store::open(dir, &options()).expect("the store opens")
}

/// A store in a directory of its own.
fn fresh() -> (TempDir, Writer, Readers) {
    let dir = tempfile::tempdir().expect("a directory");
    let (writer, readers) = open(dir.path());
    (dir, writer, readers)
}

/// Examines the store and expects nothing.
fn sound(dir: &Path) {
    assert_eq!(check(&dir.join(DATABASE)).expect("readable"), []);
}

/// One session's appends, as a registry would make them.
struct Script {
    session: SessionId,
    ordinal: Ordinal,
    run: RunId,
    seq: Seq,
    items: Vec<Item>,
}

impl Script {
    fn new() -> Self {
        let session = SessionId::random();
        let mut script = Self {
            session,
            ordinal: Ordinal(0),
            run: RunId::random(),
            seq: Seq(0),
            items: Vec::new(),
        };
        script.change(Change::SessionCreated(SessionRow {
            id: session,
            provider: "demo".into(),
            native_id: None,
            project_path: "/srv/project".into(),
            title: None,
            archived: false,
            created_at: T0,
            updated_at: T0,
        }));
        script
    }

    fn change(&mut self, change: Change) -> &mut Self {
        self.items.push(Item::Change(Box::new(change)));
        self
    }

    fn start(&mut self) -> &mut Self {
        self.start_with(None)
    }

    fn start_with(&mut self, message: Option<&str>) -> &mut Self {
        self.ordinal = Ordinal(self.ordinal.0 + 1);
        self.run = RunId::random();
        self.seq = Seq(0);
        let row = RunRow {
            id: self.run,
            at: Position::new(self.ordinal, Seq(0)),
            agent: AgentId::from_u128(7),
            origin: "user",
            prompt_hash: [9; 32],
            client_message_id: message.map(|id| ClientMessageId(id.into())),
            started_at: T0.plus(i64::from(self.ordinal.0)),
            head: self.text(Seq(0)).as_str().into(),
            title: Some("a title".into()),
        };
        self.change(Change::RunStarted(row));
        let head = self.make(Seq(0), None);
        self.items.push(Item::Frame(head));
        self
    }

    fn text(&self, seq: Seq) -> String {
        format!(r#"{{"run":{},"seq":{},"é":1}}"#, self.ordinal.0, seq.0)
    }

    fn make(&self, seq: Seq, mark: Option<Mark>) -> Frame {
        Frame {
            at: Position::new(self.ordinal, seq),
            text: self.text(seq).as_str().into(),
            mark: mark.map(Box::new),
            whole: None,
            group_end: true,
            offset: seq.0 * 10,
        }
    }

    fn event(&mut self, mark: Option<Mark>) -> &mut Self {
        self.seq = self.seq.next();
        let frame = self.make(self.seq, mark);
        self.items.push(Item::Frame(frame));
        self
    }

    fn events(&mut self, count: usize) -> &mut Self {
        for _ in 0..count {
            self.event(None);
        }
        self
    }

    fn complete(&mut self) -> &mut Self {
        self.complete_at(T0.plus(1000 * i64::from(self.ordinal.0)))
    }

    fn complete_at(&mut self, at: Millis) -> &mut Self {
        let complete = Complete {
            exit_code: Some(0),
            success: true,
            aborted: false,
            reason: Reason::Finished,
            error: None,
            by: None,
            usage: None,
            duration_ms: 1,
            extra: serde_json::Map::new(),
        };
        self.event(Some(Mark::Complete(Box::new(RunEnd { at, complete }))))
    }

    fn batch(&mut self) -> Batch {
        Batch {
            session: self.session,
            items: std::mem::take(&mut self.items),
            to: Position::new(self.ordinal, self.seq),
            ticket: 0,
        }
    }

    fn commit(&mut self, writer: &mut Writer) -> Committed {
        writer.commit(&[self.batch()]).expect("commits")
    }

    fn place(&self, seq: u64) -> Place {
        Place { run: self.run, seq: Seq(seq) }
    }
}

fn by() -> By {
    By { kind: ByKind::Cli, name: "somebody".into() }
}

fn asked(request: &str) -> Mark {
    Mark::PermissionOpened { request: RequestId(request.into()), received_at: T0.plus(77) }
}

/// All frames after a cursor, read in small pieces; panics at a gap.
fn all(readers: &Readers, session: SessionId, after: Position) -> Vec<Stored> {
    let (mut cursor, mut found) = (after, Vec::new());
    loop {
        match readers.frames(session, cursor, END, 3, 1 << 16).expect("readable") {
            Read::Frames(frames) if frames.is_empty() => return found,
            Read::Frames(frames) => {
                assert!(frames.len() <= 3);
                found.extend(frames);
                cursor = found.last().expect("not empty").at;
            }
            Read::Gone(gone) => panic!("nothing is gone, yet {gone:?}"),
        }
    }
}

fn places(frames: &[Stored]) -> Vec<(u32, u64)> {
    frames.iter().map(|frame| (frame.at.ordinal.0, frame.at.seq.0)).collect()
}

fn gone(readers: &Readers, session: SessionId, after: Position) -> Gone {
    match readers.frames(session, after, END, 100, 1 << 16).expect("readable") {
        Read::Gone(gone) => gone,
        Read::Frames(frames) => panic!("a gap, not {:?}", places(&frames)),
    }
}

/// Tries SQL beside the writer, as a bug in it would.
fn raw(dir: &Path, sql: &str) -> String {
    let conn = Connection::open(dir.join(DATABASE)).expect("opens");
    conn.pragma_update(None, "foreign_keys", true).expect("set");
    conn.execute_batch(sql).expect_err(sql).to_string()
}

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
    script.change(Change::CommandRecorded { run, n: 1, write: b"{}".to_vec(), at: T0 });
    script.change(Change::CommandRecorded { run, n: 2, write: b"[]".to_vec(), at: T0 });
    script.change(Change::CommandDelivered { run, n: 1, at: T0 });
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
    assert_eq!(open.permissions.len(), 1);
    assert_eq!((open.undelivered[0].n, &open.undelivered[0].write[..]), (2, &b"[]"[..]));
    assert_eq!(open.run.abort.as_ref().map(|abort| abort.at), Some(T0.plus(5)));

    let native = NativeId("n-1".into());
    assert_eq!(readers.session_by_native(&native).expect("readable"), Some(script.session));
    let of = |provider| readers.session_by_provider_native(provider, &native).expect("readable");
    assert_eq!((of("demo"), of("claude")), (Some(script.session), None));
    let find = |id: &str| {
        readers.find_message(script.session, &ClientMessageId(id.into())).expect("readable")
    };
    assert_eq!((find("m1"), find("m2")), (Some((run, [9; 32])), None));

    let answered = |state| Mark::PermissionAnswered {
        request: request.clone(),
        decision: Decision::Allow,
        state,
        by: by(),
    };
    script.event(Some(answered(AnswerState::Recorded)));
    script.commit(&mut writer);
    assert!(readers.pending_permissions().expect("readable").is_empty());
    let open = readers.open_runs().expect("readable");
    assert_eq!(open[0].permissions[0].state, PermissionState::Answered);
    script.event(Some(answered(AnswerState::Delivered)));
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
    script.start().events(2);
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
        ("UPDATE permission SET state = 'answered', decision = 'allow', answered_by = '{}'", "I20"),
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
            matches!(error, CommitError::Constraint { session, .. } if session == script.session),
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
        let run = s.run;
        s.change(Change::CommandDelivered { run, n: 3, at: T0 });
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
    assert!(matches!(error, CommitError::Constraint { session, .. } if session == bad.session));
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
fn a_full_disk_is_typed_loses_nothing_and_passes() {
    let dir = tempfile::tempdir().expect("a directory");
    let full = OpenOptions { max_page_count: Some(60), ..options() };
    let (mut writer, readers) = Store::open(dir.path(), &full).expect("opens");
    let mut script = Script::new();
    script.start();
    script.commit(&mut writer);
    let refused = loop {
        script.events(200);
        let batch = script.batch();
        match writer.commit(std::slice::from_ref(&batch)) {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, CommitError::Retry { code: "FULL", .. }), "{error}");
                break batch;
            }
        }
    };
    let before = all(&readers, script.session, Position::START);
    assert!(!before.is_empty(), "reading goes on");
    writer.commit(std::slice::from_ref(&refused)).expect_err("still full");
    assert!(writer.drop_ballast(), "there was one");
    assert!(!writer.drop_ballast(), "once");
    writer.commit(std::slice::from_ref(&refused)).expect("the ballast made room");
    let after = all(&readers, script.session, Position::START);
    assert_eq!(after[..before.len()], before[..], "nothing that was visible changed");
    assert_eq!(after.len(), before.len() + 200);

    let refused = loop {
        script.events(200);
        let batch = script.batch();
        if writer.commit(std::slice::from_ref(&batch)).is_err() {
            break batch;
        }
    };
    writer.set_max_page_count(100_000).expect("room");
    writer.commit(&[refused]).expect("the same batch again");
    script.complete();
    script.commit(&mut writer);
    writer.retain(T0, Keep::default(), 10, &mut || T0).expect("retains");
    assert!(dir.path().join(reattach::store::BALLAST).exists(), "the ballast is back");
    sound(dir.path());
}

#[test]
fn a_full_disk_at_start_takes_the_ballast() {
    let dir = tempfile::tempdir().expect("a directory");
    let none = OpenOptions { max_page_count: Some(1), ballast_bytes: 0, ..options() };
    let error = Store::open(dir.path(), &none).expect_err("no room for the schema");
    assert!(matches!(error, OpenError::Sqlite { code: "FULL", .. }), "{error}");
    open(dir.path()).0.close().expect("closes");
}
