//! The tables, the guards that stand in SQL, and how a database of an older version is brought
//! up to this one.
//!
//! Must not know who writes or reads. `docs/store.md` describes the schema for operators.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::error::OpenError;
use super::files;

/// `PRAGMA application_id`: tells our database from another program's ("ratt").
pub(super) const APPLICATION_ID: i32 = 0x7261_7474;

/// One step per schema version: step i leads from version i to i + 1. Steps that were released
/// never change.
pub(super) const MIGRATIONS: &[&str] = &[V1, V2, V3];

/// Version 1.
///
/// - `event` has a rowid and an index: measured as the fastest for appends to several runs at
///   once. It does not reference `run` with a foreign key: the guard on seq 1 asks for the run,
///   the guard on every other seq for the event before it, so that is one lookup less per event.
/// - `run.last_seq` is raised once per run and transaction, not per event, and the head has a
///   table of its own, so that raising it never rewrites a long prompt.
/// - `garbage` names runs whose events are to be deleted in slices: deleting a session or
///   retiring a run is one short transaction whatever its size. Run ids are never used again
///   (AUTOINCREMENT), so a late slice cannot hit another run.
const V1: &str = "
PRAGMA application_id = 0x72617474;

CREATE TABLE meta (
  k TEXT NOT NULL PRIMARY KEY,
  v ANY NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta (k, v) VALUES ('clean', 0);

CREATE TABLE project (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  path TEXT NOT NULL UNIQUE,
  custom_name TEXT,
  starred INTEGER NOT NULL DEFAULT 0 CHECK (starred IN (0, 1))
) STRICT;

CREATE TABLE session (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  sid BLOB NOT NULL UNIQUE CHECK (length(sid) = 16),
  project INTEGER NOT NULL REFERENCES project (id),
  provider TEXT NOT NULL,
  native_id TEXT,
  title TEXT,
  archived INTEGER NOT NULL DEFAULT 0 CHECK (archived IN (0, 1)),
  created_ms INTEGER NOT NULL,
  updated_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX session_native ON session (native_id, provider) WHERE native_id IS NOT NULL;
CREATE INDEX session_recent ON session (updated_ms, id);
CREATE INDEX session_project ON session (project);

CREATE TABLE run (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  rid BLOB NOT NULL UNIQUE CHECK (length(rid) = 16),
  session INTEGER NOT NULL REFERENCES session (id),
  ordinal INTEGER NOT NULL CHECK (ordinal > 0),
  agent BLOB NOT NULL CHECK (length(agent) = 16),
  origin TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'completed')),
  prompt_hash BLOB NOT NULL CHECK (length(prompt_hash) = 32),
  client_message_id TEXT,
  started_ms INTEGER NOT NULL,
  ended_ms INTEGER,
  exit_code INTEGER,
  success INTEGER CHECK (success IN (0, 1)),
  aborted INTEGER CHECK (aborted IN (0, 1)),
  reason TEXT,
  last_seq INTEGER NOT NULL DEFAULT 0,
  record_offset INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,
  abort_asked_ms INTEGER,
  abort_by TEXT,
  pruned_ms INTEGER,
  UNIQUE (session, ordinal),
  CHECK ((state = 'completed') =
    (ended_ms IS NOT NULL AND success IS NOT NULL AND aborted IS NOT NULL AND reason IS NOT NULL)),
  CHECK (pruned_ms IS NULL OR state = 'completed')
) STRICT;
CREATE UNIQUE INDEX run_message ON run (session, client_message_id)
  WHERE client_message_id IS NOT NULL;
CREATE UNIQUE INDEX run_running ON run (session) WHERE state = 'running';
CREATE INDEX run_oldest ON run (ended_ms, id) WHERE state = 'completed' AND pruned_ms IS NULL;

CREATE TABLE head (
  run INTEGER PRIMARY KEY REFERENCES run (id),
  body BLOB NOT NULL
) STRICT;

CREATE TABLE event (
  run INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  complete INTEGER NOT NULL DEFAULT 0 CHECK (complete IN (0, 1)),
  body BLOB NOT NULL,
  PRIMARY KEY (run, seq)
) STRICT;
CREATE UNIQUE INDEX event_complete ON event (run) WHERE complete = 1;

CREATE TABLE blob (
  run INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  json BLOB NOT NULL,
  PRIMARY KEY (run, seq)
) STRICT;

CREATE TABLE garbage (
  run INTEGER PRIMARY KEY
) STRICT;

CREATE TABLE open_tool (
  run INTEGER NOT NULL REFERENCES run (id),
  tool_id TEXT NOT NULL,
  PRIMARY KEY (run, tool_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE permission (
  request_id TEXT NOT NULL PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run (id),
  seq INTEGER NOT NULL,
  state TEXT NOT NULL DEFAULT 'open'
    CHECK (state IN ('open', 'answered', 'delivered', 'undeliverable', 'cancelled')),
  received_ms INTEGER NOT NULL,
  decision TEXT,
  answered_by TEXT,
  CHECK (state NOT IN ('answered', 'delivered') OR
    (decision IS NOT NULL AND answered_by IS NOT NULL))
) STRICT;
CREATE INDEX permission_run ON permission (run);

CREATE TABLE command (
  run INTEGER NOT NULL REFERENCES run (id),
  n INTEGER NOT NULL,
  body BLOB NOT NULL,
  recorded_ms INTEGER NOT NULL,
  delivered_ms INTEGER,
  PRIMARY KEY (run, n)
) STRICT;

CREATE TABLE audit (
  id INTEGER PRIMARY KEY,
  at_ms INTEGER NOT NULL,
  sid BLOB,
  rid BLOB,
  what TEXT NOT NULL,
  detail TEXT NOT NULL
) STRICT;
CREATE INDEX audit_session ON audit (sid);

-- I2: seq 1 begins a run that is running; every other seq follows its predecessor.
-- I3: nothing follows a complete.
-- One trigger, with all of the test in its WHEN: each trigger costs a call per event. FAIL, not
-- ABORT: a statement that may abort keeps an undo journal, which costs more than the test.
CREATE TRIGGER event_next BEFORE INSERT ON event
WHEN CASE WHEN NEW.seq > 1
  THEN (SELECT complete FROM event WHERE run = NEW.run AND seq = NEW.seq - 1)
  ELSE NEW.seq <> 1 OR NOT EXISTS (SELECT 1 FROM run WHERE id = NEW.run AND state = 'running')
  END IS NOT 0
BEGIN
  SELECT CASE
    WHEN EXISTS (SELECT 1 FROM event WHERE run = NEW.run AND seq = NEW.seq - 1)
    THEN RAISE(FAIL, 'I3: complete is the last event of its run')
    ELSE RAISE(FAIL, 'I2: seqs of a run are dense, from 1, while it is running')
  END;
END;
CREATE TRIGGER event_fixed BEFORE UPDATE ON event
BEGIN
  SELECT RAISE(ABORT, 'I2: a stored event never changes');
END;
CREATE TRIGGER event_kept BEFORE DELETE ON event
WHEN NOT EXISTS (SELECT 1 FROM garbage WHERE run = OLD.run)
BEGIN
  SELECT RAISE(ABORT, 'I8: events leave only by way of garbage');
END;
CREATE TRIGGER garbage_ended BEFORE INSERT ON garbage
WHEN EXISTS (SELECT 1 FROM run WHERE id = NEW.run AND state = 'running')
BEGIN
  SELECT RAISE(ABORT, 'I13: a running run is never removed');
END;

CREATE TRIGGER run_new BEFORE INSERT ON run
WHEN NEW.state <> 'running' OR NEW.last_seq <> 0
  OR NEW.ordinal <> 1 + ifnull((SELECT max(ordinal) FROM run WHERE session = NEW.session), 0)
BEGIN
  SELECT RAISE(ABORT, 'I6: a run begins as the next one of its session');
END;
CREATE TRIGGER run_fixed BEFORE UPDATE OF id, rid, session, ordinal, agent, origin, prompt_hash,
  client_message_id, started_ms ON run
BEGIN
  SELECT RAISE(ABORT, 'I6: what a run began with never changes');
END;
CREATE TRIGGER run_tail BEFORE UPDATE OF last_seq ON run
WHEN NEW.last_seq <= OLD.last_seq
  OR NOT EXISTS (SELECT 1 FROM event WHERE run = NEW.id AND seq = NEW.last_seq)
  OR EXISTS (SELECT 1 FROM event WHERE run = NEW.id AND seq = NEW.last_seq + 1)
BEGIN
  SELECT RAISE(ABORT, 'I2: last_seq is the seq of the last event');
END;
CREATE TRIGGER run_end BEFORE UPDATE OF state, ended_ms, exit_code, success, aborted, reason ON run
WHEN OLD.state <> 'running' OR NEW.state <> 'completed'
  OR NOT EXISTS (SELECT 1 FROM event
    WHERE run = NEW.id AND seq = NEW.last_seq AND complete = 1)
BEGIN
  SELECT RAISE(ABORT, 'I1: a run ends once, with its complete');
END;
CREATE TRIGGER run_tombstone BEFORE UPDATE OF pruned_ms ON run
WHEN NEW.pruned_ms IS NULL OR OLD.pruned_ms IS NOT NULL
BEGIN
  SELECT RAISE(ABORT, 'I13: what was removed stays removed');
END;

CREATE TRIGGER permission_once BEFORE UPDATE ON permission
WHEN NOT (
  (OLD.state = 'open' AND NEW.state <> 'open')
  OR (OLD.state = 'answered' AND NEW.state IN ('delivered', 'undeliverable', 'cancelled')
    AND NEW.decision IS OLD.decision)
  -- The agent asks again under the same id: that is another request.
  OR (NEW.state = 'open' AND NEW.run = OLD.run AND NEW.seq > OLD.seq))
BEGIN
  SELECT RAISE(ABORT, 'I20: one permission request has one effective answer');
END;
";

/// Version 2: what an agent needs to outlive the gateway.
///
/// - `checkpoint` has one row per agent that lives. An agent's offsets are positions in what its
///   keeper journals, so the offset of a checkpoint may lie before or after `run.record_offset`.
/// - `command.cause` and `command.request_id` tell which automatic replies and which answers have
///   their command already, so that none is made twice.
/// - `permission.answer` is a recorded answer on its way to becoming a command.
/// - `run_fixed` and `permission_once` are V1's, but for `agent` and for an UPDATE of `answer`
///   alone, which have guards of their own.
const V2: &str = "
CREATE TABLE checkpoint (
  agent BLOB NOT NULL PRIMARY KEY CHECK (length(agent) = 16),
  session INTEGER NOT NULL REFERENCES session (id),
  record_offset INTEGER NOT NULL CHECK (record_offset >= 0),
  state BLOB NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX checkpoint_session ON checkpoint (session);
CREATE INDEX run_agent ON run (agent);

ALTER TABLE command ADD COLUMN cause INTEGER NOT NULL DEFAULT 0 CHECK (cause >= 0);
ALTER TABLE command ADD COLUMN request_id TEXT;
ALTER TABLE permission ADD COLUMN answer TEXT CHECK (answer IS NULL OR state = 'answered');

DROP TRIGGER run_fixed;
CREATE TRIGGER run_fixed BEFORE UPDATE OF id, rid, session, ordinal, origin, prompt_hash,
  client_message_id, started_ms ON run
BEGIN
  SELECT RAISE(ABORT, 'I6: what a run began with never changes');
END;
CREATE TRIGGER run_adopted BEFORE UPDATE OF agent ON run
WHEN OLD.state <> 'running'
  OR EXISTS (SELECT 1 FROM command WHERE run = OLD.id AND delivered_ms IS NOT NULL)
  OR EXISTS (SELECT 1 FROM run WHERE agent = NEW.agent AND session <> OLD.session)
BEGIN
  SELECT RAISE(ABORT, 'I6: only a process of its session takes a run, before it is told of it');
END;

CREATE TRIGGER checkpoint_new BEFORE INSERT ON checkpoint
WHEN NOT EXISTS (SELECT 1 FROM run WHERE agent = NEW.agent AND session = NEW.session)
BEGIN
  SELECT RAISE(ABORT, 'I6: a checkpoint is of an agent that served a run of its session');
END;
CREATE TRIGGER checkpoint_forward BEFORE UPDATE ON checkpoint
WHEN NEW.record_offset < OLD.record_offset OR NEW.agent <> OLD.agent
  OR NEW.session <> OLD.session
BEGIN
  SELECT RAISE(ABORT, 'I8: what an agent was confirmed is never asked of it again');
END;

CREATE TRIGGER command_new BEFORE INSERT ON command
WHEN NEW.n < 1 OR EXISTS (SELECT 1 FROM run r JOIN command c ON c.run = r.id
  WHERE r.agent = (SELECT agent FROM run WHERE id = NEW.run) AND c.n >= NEW.n)
BEGIN
  SELECT RAISE(ABORT, 'I20: the numbers of an agent''s commands rise');
END;
CREATE TRIGGER command_fixed
BEFORE UPDATE OF run, n, body, recorded_ms, cause, request_id ON command
BEGIN
  SELECT RAISE(ABORT, 'I20: a recorded command never changes');
END;

DROP TRIGGER permission_once;
CREATE TRIGGER permission_once
BEFORE UPDATE OF request_id, run, seq, state, received_ms, decision, answered_by ON permission
WHEN NOT (
  (OLD.state = 'open' AND NEW.state <> 'open')
  OR (OLD.state = 'answered' AND NEW.state IN ('delivered', 'undeliverable', 'cancelled')
    AND NEW.decision IS OLD.decision)
  -- The agent asks again under the same id: that is another request.
  OR (NEW.state = 'open' AND NEW.run = OLD.run AND NEW.seq > OLD.seq))
BEGIN
  SELECT RAISE(ABORT, 'I20: one permission request has one effective answer');
END;
CREATE TRIGGER permission_answer BEFORE UPDATE OF answer ON permission
WHEN OLD.state = 'answered' AND NEW.answer IS NOT NULL
BEGIN
  SELECT RAISE(ABORT, 'I20: a recorded answer never changes');
END;
";

/// Version 3: the front door.
///
/// - `queued` has the prompts that wait for their session's run to end, in the order of `id`. A
///   row leaves in the transaction that begins its run. One that a person took out stays, without
///   its prompt, so that a resend of it is still known (I19).
/// - `credential` has devices and API tokens; their secrets are hashed.
/// - `audit` learns who acted.
const V3: &str = "
ALTER TABLE session ADD COLUMN queue_held INTEGER NOT NULL DEFAULT 0 CHECK (queue_held IN (0, 1));
CREATE TABLE queued (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  qid BLOB NOT NULL UNIQUE CHECK (length(qid) = 16),
  session INTEGER NOT NULL REFERENCES session (id),
  state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'removed')),
  prompt_hash BLOB NOT NULL CHECK (length(prompt_hash) = 32),
  client_message_id TEXT,
  body TEXT NOT NULL,
  queued_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX queued_message ON queued (session, client_message_id)
  WHERE client_message_id IS NOT NULL;
CREATE INDEX queued_session ON queued (session, id);
CREATE TRIGGER queued_new BEFORE INSERT ON queued
WHEN NEW.client_message_id IS NOT NULL AND EXISTS (SELECT 1 FROM run
  WHERE session = NEW.session AND client_message_id = NEW.client_message_id)
BEGIN
  SELECT RAISE(ABORT, 'I19: a prompt that has its run does not wait');
END;
CREATE TRIGGER queued_run BEFORE INSERT ON run
WHEN NEW.client_message_id IS NOT NULL AND EXISTS (SELECT 1 FROM queued
  WHERE session = NEW.session AND client_message_id = NEW.client_message_id)
BEGIN
  SELECT RAISE(ABORT, 'I19: a prompt that waits, or was taken out, has no run');
END;

CREATE TABLE credential (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  cid BLOB NOT NULL UNIQUE CHECK (length(cid) = 16),
  kind TEXT NOT NULL CHECK (kind IN ('device', 'token')),
  name TEXT NOT NULL,
  hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
  scope TEXT NOT NULL CHECK (scope IN ('read', 'control', 'admin')),
  parent BLOB CHECK (length(parent) = 16),
  created_ms INTEGER NOT NULL,
  expires_ms INTEGER,
  last_used_ms INTEGER,
  revoked_ms INTEGER
) STRICT;
CREATE TRIGGER credential_fixed BEFORE UPDATE OF cid, kind, hash, scope, parent, created_ms ON credential
BEGIN
  SELECT RAISE(ABORT, 'what a credential opens never changes');
END;
CREATE TRIGGER credential_revoked BEFORE UPDATE OF revoked_ms ON credential
WHEN OLD.revoked_ms IS NOT NULL AND NEW.revoked_ms IS NOT OLD.revoked_ms
BEGIN
  SELECT RAISE(ABORT, 'a revoked credential stays revoked');
END;

CREATE TABLE notification (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms INTEGER NOT NULL,
  sid BLOB,
  rid BLOB,
  event TEXT NOT NULL,
  sink TEXT NOT NULL,
  outcome TEXT NOT NULL CHECK (outcome IN ('sent', 'suppressed', 'failed')),
  detail TEXT NOT NULL
) STRICT;

ALTER TABLE run ADD COLUMN hash BLOB CHECK (hash IS NULL OR length(hash) = 32);

ALTER TABLE audit ADD COLUMN actor TEXT;
CREATE INDEX audit_time ON audit (at_ms);
";

/// Brings `conn` up to the last of `steps`. An existing database of an older version is copied
/// to a file beside it first. Each step is one transaction with the new version in it.
pub(super) fn migrate(conn: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), OpenError> {
    let sqlite = |source| OpenError::sqlite(path, source);
    let known = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    let found = version(conn).map_err(sqlite)?;
    if found > known {
        return Err(OpenError::Newer { path: path.into(), found, known });
    }
    if found == known {
        return Ok(());
    }
    if found > 0 {
        back_up(conn, path, found)?;
    }
    step_up(conn, path, steps, found)
}

/// The steps that a database of version `found` lacks.
pub(super) fn step_up(
    conn: &mut Connection,
    path: &Path,
    steps: &[&str],
    found: u32,
) -> Result<(), OpenError> {
    let sqlite = |source| OpenError::sqlite(path, source);
    let missing = steps.iter().zip(1_u32..).skip_while(|(_, to)| *to <= found);
    for (step, to) in missing {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
        tx.execute_batch(step).map_err(sqlite)?;
        tx.pragma_update(None, "user_version", to).map_err(sqlite)?;
        tx.commit().map_err(sqlite)?;
    }
    Ok(())
}

/// The schema's version; 0 is an empty database.
pub(super) fn version(conn: &Connection) -> rusqlite::Result<u32> {
    conn.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Where the copy of a database of version `found` goes before it is migrated.
fn backup_path(path: &Path, found: u32) -> PathBuf {
    path.with_extension(format!("v{found}.bak"))
}

fn back_up(conn: &Connection, path: &Path, found: u32) -> Result<(), OpenError> {
    let target = backup_path(path, found);
    let made = target.with_extension("bak.new");
    let io = |source| OpenError::File { path: made.clone(), uid: super::error::uid(), source };
    // An empty file is allowed as the target, and has the mode that we want.
    let file = files::ours(&made).map_err(io)?;
    file.set_len(0).map_err(io)?;
    let name = made.to_str().ok_or_else(|| io(std::io::Error::other("the path is not UTF-8")))?;
    conn.execute("VACUUM INTO ?1", [name]).map_err(|source| OpenError::sqlite(&made, source))?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&made, &target).map_err(io)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::run::id::{AgentId, LogEpoch};

    const ONE: &str = "CREATE TABLE a (x INTEGER) STRICT; INSERT INTO a VALUES (7);";
    const TWO: &str = "ALTER TABLE a ADD COLUMN y INTEGER; UPDATE a SET y = x * 2;";

    fn open(path: &Path) -> Connection {
        Connection::open(path).expect("opens")
    }

    /// What version 1 left of a gateway that was killed: a run that ended, and one with an answer
    /// on its way.
    pub(in crate::store) const LEFT_BY_V1: &str = "
    INSERT INTO project (path) VALUES ('/srv/project');
    INSERT INTO session (sid, project, provider, native_id, created_ms, updated_ms)
      VALUES (x'01010101010101010101010101010101', 1, 'claude', 'n', 1, 2);
    INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, started_ms)
      VALUES (x'0000000000000000000000000000000a', 1, 1, x'000000000000000000000000000000a1',
        'user', zeroblob(32), 3);
    INSERT INTO head VALUES (1, x'7b7d');
    INSERT INTO event (run, seq, complete, body) VALUES (1, 1, 1, x'7b7d');
    UPDATE run SET last_seq = 1, bytes = 4, record_offset = 50 WHERE id = 1;
    UPDATE run SET state = 'completed', ended_ms = 4, success = 1, aborted = 0,
      reason = 'finished' WHERE id = 1;
    INSERT INTO command (run, n, body, recorded_ms, delivered_ms) VALUES (1, 1, x'7b7d', 3, 3);
    INSERT INTO run (rid, session, ordinal, agent, origin, prompt_hash, started_ms)
      VALUES (x'0000000000000000000000000000000b', 1, 2, x'000000000000000000000000000000a2',
        'user', zeroblob(32), 5);
    INSERT INTO head VALUES (2, x'7b7d');
    INSERT INTO event (run, seq, body) VALUES (2, 1, x'7b7d'), (2, 2, x'7b7d');
    UPDATE run SET last_seq = 2, bytes = 6, record_offset = 70 WHERE id = 2;
    INSERT INTO permission (request_id, run, seq, received_ms) VALUES ('open', 2, 1, 6);
    INSERT INTO permission (request_id, run, seq, state, received_ms, decision, answered_by)
      VALUES ('answered', 2, 2, 'answered', 6, 'allow', '{\"kind\":\"cli\",\"name\":\"somebody\"}');
    INSERT INTO command (run, n, body, recorded_ms, delivered_ms) VALUES (2, 1, x'7b7d', 5, 5);
    INSERT INTO command (run, n, body, recorded_ms) VALUES (2, 2, x'7b7d', 7);
    INSERT INTO meta (k, v) VALUES ('epoch', x'09090909090909090909090909090909');
    ";

    #[test]
    fn a_database_of_version_1_is_upgraded_in_place_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(files::DATABASE);
        let mut conn = open(&path);
        migrate(&mut conn, &path, &[V1]).expect("to version 1");
        conn.execute_batch(LEFT_BY_V1).expect("as version 1 wrote it");
        drop(conn);

        let options = crate::store::OpenOptions { ballast_bytes: 0, ..Default::default() };
        let opened = crate::store::Store::open(dir.path(), &options);
        let (_writer, readers) = opened.expect("is upgraded");
        assert_eq!(version(&open(&path)).expect("reads"), 3);
        assert_eq!(version(&open(&backup_path(&path, 1))).expect("reads"), 1, "the copy");
        assert_eq!(crate::store::check(&path).expect("readable"), [], "it is sound");
        assert_eq!(readers.epoch(), LogEpoch::from_bytes([9; 16]), "the same log");

        let ended = readers.agent(AgentId::from_u128(0xa1)).expect("readable").expect("a run");
        assert_eq!((ended.offset, ended.last_n, ended.commands.len()), (50, 1, 0));
        let agent = readers.agent(AgentId::from_u128(0xa2)).expect("readable").expect("a run");
        assert_eq!((agent.offset, agent.last_n, agent.checkpoint), (70, 2, None));
        assert_eq!((agent.commands[0].n, agent.commands[0].cause), (2, 0));
        assert_eq!((agent.commands.len(), agent.causes.len(), agent.answers.len()), (1, 0, 0));
        let open_run = agent.open.expect("it runs");
        let waiting: Vec<_> = open_run.permissions.iter().map(|p| p.request.0.as_str()).collect();
        assert_eq!(waiting, ["open", "answered"]);
        // The guards of before hold, those that were made anew too.
        let conn = open(&path);
        conn.execute_batch("UPDATE permission SET decision = 'deny' WHERE request_id = 'answered'")
            .expect_err("I20");
        conn.execute_batch("UPDATE permission SET state = 'answered' WHERE request_id = 'open'")
            .expect_err("an answer without a decision");
    }

    #[test]
    fn steps_that_were_released_never_change() {
        use sha2::{Digest, Sha256};
        let hash: String = Sha256::digest(V1).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, "0612b8ed4e37400aa05f7f508e6c40f28176b13f7eb8cad81fda4c41fe0e26ef");
    }

    #[test]
    fn an_older_database_is_copied_then_brought_up_step_by_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s.db");
        let mut conn = open(&path);
        migrate(&mut conn, &path, &[ONE]).expect("to version 1");
        assert!(!backup_path(&path, 0).exists(), "an empty database needs no copy");

        migrate(&mut conn, &path, &[ONE, TWO]).expect("to version 2");
        assert_eq!(version(&conn).expect("reads"), 2);
        let y: i64 = conn.query_row("SELECT y FROM a", [], |row| row.get(0)).expect("the column");
        assert_eq!(y, 14);

        let copy = open(&backup_path(&path, 1));
        assert_eq!(version(&copy).expect("reads"), 1);
        let x: i64 = copy.query_row("SELECT x FROM a", [], |row| row.get(0)).expect("the row");
        assert_eq!(x, 7);
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s.db");
        let mut conn = open(&path);
        let broken = "CREATE TABLE b (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1);";
        migrate(&mut conn, &path, &[ONE, broken]).expect_err("the second step fails");
        assert_eq!(version(&conn).expect("reads"), 1);
        conn.prepare("SELECT * FROM b").expect_err("nothing of the step is left");
        migrate(&mut conn, &path, &[ONE, TWO]).expect("a repaired step goes through");
        assert_eq!(version(&conn).expect("reads"), 2);
    }

    #[test]
    fn a_newer_database_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s.db");
        let mut conn = open(&path);
        migrate(&mut conn, &path, &[ONE, TWO]).expect("to version 2");
        let error = migrate(&mut conn, &path, &[ONE]).expect_err("version 2 is not known");
        assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
    }
}
