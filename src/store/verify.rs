//! Is all that a database holds what it is to be? What `check` asks of the rows, and beyond it
//! every byte of the events: their JSON, their names and numbers, and each run's hash.
//!
//! Reads in one snapshot and writes nothing, also where a server is at work. Must not repair
//! anything.

use std::fs;
use std::io;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, Rows};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::archive::Amounts;
use super::backup::{counts, known_version};
use super::check::{ask, damage};
use super::error::{OpenError, ReadError};
use super::hash::RunHash;
use super::rows::natural;
use super::uploads::{UPLOADS, Upload, Uploads};
use super::{Finding, connect, epoch, schema};
use crate::limits::{FINDINGS_MAX, FINDINGS_PER_RUN_MAX};
use crate::run::id::{LogEpoch, RunId, SessionId};

/// What was looked at, and what was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The database's schema.
    pub schema: u32,
    /// The log's incarnation.
    pub epoch: LogEpoch,
    /// How much is in it.
    pub counts: Amounts,
    /// Runs whose events were compared with their hash.
    pub hashed: u64,
    /// Runs that have none: of before version 3 of the schema.
    pub unhashed: u64,
    /// What is not as it should be, the first `FINDINGS_MAX`.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: usize,
}

impl Report {
    /// Nothing was found.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.more == 0
    }
}

/// Examines the database at `path`, which another process may have open. It takes as long as the
/// database is large.
///
/// # Errors
/// If it is no database of ours, or of a newer version, or cannot be read at all; damage that can
/// be read past is a finding.
pub fn verify(path: &Path) -> Result<Report, OpenError> {
    let sqlite = |source| OpenError::sqlite(path, source);
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
    let version = known_version(&conn, path)?;
    let snapshot = conn.unchecked_transaction().map_err(sqlite)?;
    let epoch = epoch(&snapshot).map_err(sqlite)?;
    let mut report = Report {
        schema: version,
        epoch,
        counts: Amounts::default(),
        hashed: 0,
        unhashed: 0,
        findings: Vec::new(),
        more: 0,
    };
    let looked = look(&snapshot, version, &mut report);
    if let Err(error) = looked {
        // A page that cannot be read ends the look. If that was not found before, it is now.
        let ReadError::Sqlite { code, message } = error else { return Ok(report) };
        report.add(Finding::of("SQLITE", format!("cannot be read further ({code}): {message}")));
    }
    Ok(report)
}

/// Whether each file that was given to a session is there, as long as its card says. Adds what it
/// finds to `report`.
///
/// # Errors
/// If the files cannot be listed.
pub fn verify_uploads(dir: &Path, report: &mut Report) -> io::Result<()> {
    let entries = match fs::read_dir(dir.join(UPLOADS)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let uploads = Uploads::of(dir);
    for entry in entries {
        let name = entry?.file_name();
        // What is on its way belongs to no session yet.
        let Some(session) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        for Upload { card, path } in uploads.list(session)? {
            let found = fs::metadata(&path).ok().map(|file| file.len());
            // One that is removed meanwhile loses its card first.
            if found == Some(card.bytes) || uploads.find(session, card.id)?.is_none() {
                continue;
            }
            let what = match found {
                Some(bytes) => format!("{bytes} bytes long, and was {}", card.bytes),
                None => "missing".to_owned(),
            };
            let what = format!("the upload {} ({}) is {what}", card.id, card.name);
            report.add(Finding { invariant: "UPLOAD", session: Some(session), run: None, what });
        }
    }
    Ok(())
}

fn look(conn: &Connection, version: u32, report: &mut Report) -> Result<(), ReadError> {
    for finding in damage(conn)? {
        report.add(finding);
    }
    schema_differs(conn, version, report)?;
    foreign_keys(conn, report)?;
    ask(conn, version, &mut |finding| report.add(finding))?;
    report.counts = counts(conn)?;
    bodies(conn, version, report)
}

impl Report {
    fn add(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}

/// Tables, indexes and guards that are missing or not ours. Others may be there: tools for
/// backups add some.
fn schema_differs(conn: &Connection, version: u32, report: &mut Report) -> Result<(), ReadError> {
    const OBJECTS: &str =
        "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY 1";
    let model = Connection::open_in_memory()?;
    for step in schema::MIGRATIONS.iter().take(usize::try_from(version).unwrap_or(0)) {
        model.execute_batch(step)?;
    }
    let objects = |conn: &Connection| -> rusqlite::Result<Vec<(String, String)>> {
        conn.prepare(OBJECTS)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    let found = objects(conn)?;
    for (name, sql) in objects(&model)? {
        let what = match found.iter().find(|(other, _)| *other == name) {
            Some((_, other)) if *other == sql => continue,
            Some(_) => "is not as this version of the schema has it",
            None => "is missing",
        };
        report.add(Finding::of("SCHEMA", format!("the {name} {what}")));
    }
    Ok(())
}

fn foreign_keys(conn: &Connection, report: &mut Report) -> Result<(), ReadError> {
    let mut asked = conn.prepare("PRAGMA foreign_key_check")?;
    let mut rows = asked.query([])?;
    while let Some(row) = rows.next()? {
        let (table, id, parent): (String, Option<i64>, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let id = id.map_or_else(String::new, |id| format!(" {id}"));
        let what = format!("row{id} of {table} names a {parent} that is not there");
        report.add(Finding::of("SQLITE", what));
    }
    Ok(())
}

/// A run, as its frames are to name it.
struct Run {
    row: i64,
    id: RunId,
    session: SessionId,
    hash: Option<Vec<u8>>,
}

/// Every frame of every run that has its events.
fn bodies(conn: &Connection, version: u32, report: &mut Report) -> Result<(), ReadError> {
    let hash = if version >= 3 { "r.hash" } else { "NULL" };
    let mut runs = conn.prepare(&format!(
        "SELECT r.id, r.rid, s.sid, {hash} FROM run r JOIN session s ON s.id = r.session \
         WHERE r.pruned_ms IS NULL ORDER BY r.id"
    ))?;
    let mut runs = runs.query([])?;
    while let Some(row) = runs.next()? {
        let run = Run {
            row: row.get(0)?,
            id: RunId::from_bytes(row.get(1)?),
            session: SessionId::from_bytes(row.get(2)?),
            hash: row.get(3)?,
        };
        run_bodies(conn, &run, report)?;
    }
    Ok(())
}

fn run_bodies(conn: &Connection, run: &Run, report: &mut Report) -> Result<(), ReadError> {
    let mut look = Look { run, report, said: 0, hash: RunHash::default() };
    let mut wholes =
        conn.prepare_cached("SELECT seq, json FROM blob WHERE run = ?1 ORDER BY seq")?;
    let mut wholes = wholes.query([run.row])?;
    let mut whole = next_whole(&mut wholes)?;
    for frames in [
        "SELECT 0, 0, body FROM head WHERE run = ?1",
        "SELECT seq, complete, body FROM event WHERE run = ?1 ORDER BY seq",
    ] {
        let mut frames = conn.prepare_cached(frames)?;
        let mut frames = frames.query([run.row])?;
        while let Some(row) = frames.next()? {
            let (seq, complete): (i64, bool) = (row.get(0)?, row.get(1)?);
            look.frame(seq, complete, row.get_ref(2)?.as_bytes().map_err(rusqlite::Error::from)?);
            while let Some((at, json)) = whole.take_if(|(at, _)| *at <= seq) {
                look.whole(at, &json, at == seq);
                whole = next_whole(&mut wholes)?;
            }
        }
    }
    while let Some((at, json)) = whole {
        look.whole(at, &json, false);
        whole = next_whole(&mut wholes)?;
    }
    look.end();
    Ok(())
}

fn next_whole(rows: &mut Rows<'_>) -> Result<Option<(i64, Vec<u8>)>, ReadError> {
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some((row.get(0)?, row.get(1)?)))
}

/// A run that is looked at, frame by frame.
struct Look<'a> {
    run: &'a Run,
    report: &'a mut Report,
    said: usize,
    hash: RunHash,
}

impl Look<'_> {
    fn frame(&mut self, seq: i64, complete: bool, body: &[u8]) {
        self.hash.add(body);
        if let Some((invariant, what)) = wrong_in(self.run, natural(seq), complete, body) {
            self.say(invariant, format!("event {seq}: {what}"));
        }
    }

    /// The uncut JSON of a frame, which was `found` or not.
    fn whole(&mut self, seq: i64, json: &[u8], found: bool) {
        self.hash.add(json);
        if !found {
            self.say("I8", format!("the whole of event {seq}, which is not there"));
        } else if serde_json::from_slice::<&RawValue>(json).is_err() {
            self.say("JSON", format!("the whole of event {seq} is no JSON"));
        }
    }

    fn end(mut self) {
        let Some(stored) = &self.run.hash else {
            self.report.unhashed += 1;
            return;
        };
        self.report.hashed += 1;
        if *stored != self.hash.bytes() {
            let what = "its events are not those that were written: their hash is another";
            self.say("HASH", what.to_owned());
        }
    }

    fn say(&mut self, invariant: &'static str, what: String) {
        self.said += 1;
        if self.said <= FINDINGS_PER_RUN_MAX {
            let (session, run) = (Some(self.run.session), Some(self.run.id));
            self.report.add(Finding { invariant, session, run, what });
        } else {
            self.report.more += 1;
        }
    }
}

/// What a frame says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    kind: String,
    session_id: String,
    run_id: String,
    seq: u64,
}

/// What is wrong with a frame, if anything is.
fn wrong_in(run: &Run, seq: u64, complete: bool, body: &[u8]) -> Option<(&'static str, String)> {
    let envelope: Envelope = match serde_json::from_slice(body) {
        Ok(envelope) => envelope,
        Err(error) => return Some(("JSON", format!("it cannot be read: {error}"))),
    };
    let Envelope { kind, session_id, run_id, seq: own } = envelope;
    if own != seq {
        return Some(("I2", format!("it says that its seq is {own}")));
    }
    if run_id != run.id.to_string() || session_id != run.session.to_string() {
        return Some(("I6", format!("it says that it is of run {run_id} of session {session_id}")));
    }
    match (seq, kind.as_str()) {
        (0, "run_started") => None,
        (0, _) | (_, "run_started") => Some(("I6", format!("its kind is {kind}"))),
        (_, "complete") if !complete => Some(("I1", "a complete that is not marked as one".into())),
        (_, kind) if complete && kind != "complete" => {
            Some(("I1", format!("marked as the run's complete, and is {kind}")))
        }
        _ => None,
    }
}
