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
use reattach::run::state::AnswerRequest;
use reattach::store::{
    CommitError, Committed, DATABASE, Gone, Keep, KnownMessage, LOCK, OpenError, OpenOptions,
    PageLimit, PermissionState, Place, Read, ReadError, Readers, RunFilter, RunStatus,
    SessionFilter, Store, Stored, StoredAgent, Writer, check,
};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::eventually;

mod agents;
mod guards;
mod log;
mod opening;
mod retention;

const T0: Millis = Millis(1_764_000_000_000);
const END: Position = Position { ordinal: Ordinal(u32::MAX), seq: Seq(u64::MAX) };

fn options() -> OpenOptions {
    OpenOptions { ballast_bytes: 64 << 10, ..OpenOptions::default() }
}

fn open(dir: &Path) -> (Writer, Readers) {
    open_store(dir, &options())
}

/// Opens a store that this process has just closed. A child that another test is starting holds the
/// data directory's lock until it has become its program.
#[track_caller]
pub(crate) fn open_store(dir: &Path, options: &OpenOptions) -> (Writer, Readers) {
    eventually("the data directory is free", || match Store::open(dir, options) {
        Err(OpenError::AlreadyRunning { .. }) => None,
        opened => Some(opened.expect("the store opens")),
    })
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
    agent: AgentId,
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
            agent: AgentId::from_u128(7),
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
            agent: self.agent,
            origin: "user",
            prompt_hash: [9; 32],
            client_message_id: message.map(|id| ClientMessageId(id.into())),
            queued: None,
            started_at: T0.plus(i64::from(self.ordinal.0)),
            head: self.text(Seq(0)).as_str().into(),
            title: Some("a title".into()),
        };
        self.change(Change::RunStarted(row));
        let head = self.make(Seq(0), None);
        self.items.push(Item::Frame(head));
        self
    }

    /// A warm process takes the run.
    fn adopt(&mut self, agent: AgentId) -> &mut Self {
        let run = self.run;
        self.change(Change::RunAdopted { run, agent })
    }

    /// A command of a person's.
    fn command(&mut self, n: u64) -> &mut Self {
        self.command_with(n, 0, None)
    }

    fn command_with(&mut self, n: u64, cause: u64, request: Option<&str>) -> &mut Self {
        self.change(Change::CommandRecorded {
            run: self.run,
            n,
            body: format!("command {n}").into_bytes(),
            cause,
            request: request.map(|id| RequestId(id.into())),
            at: T0,
        })
    }

    fn delivered(&mut self, n: u64) -> &mut Self {
        self.change(Change::CommandDelivered { run: self.run, n, at: T0 })
    }

    fn checkpoint(&mut self, offset: u64, state: &str) -> &mut Self {
        let (agent, state) = (self.agent, state.as_bytes().to_vec());
        self.change(Change::Checkpoint { agent, offset, state, at: T0 })
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

/// An answer that allows; recorded, it comes with a note.
fn allowed(request: &str, state: AnswerState) -> Mark {
    let answer = AnswerRequest { allow: true, message: Some("go".into()), ..Default::default() };
    Mark::PermissionAnswered {
        request: RequestId(request.into()),
        decision: Decision::Allow,
        state,
        by: by(),
        answer: (state == AnswerState::Recorded).then(|| Box::new(answer)),
    }
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
