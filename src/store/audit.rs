//! The audit trail: who did what that matters later, in the transaction that made it so.
//!
//! Rows hold no prompt, no input and no secret: an input is named by its hash, and by the event
//! that has it. They outlive the run and the session that they are about, which is what a trail is
//! for; the newest `limits::AUDIT_KEPT` are kept. Must not know REST.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, params};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::error::ReadError;
use super::listing::{Listed, one_more, page};
use super::reader::Readers;
use super::rows::{from_json, int};
use crate::limits;
use crate::run::event::By;
use crate::run::id::{Millis, RequestId, RunId, SessionId};
use crate::run::state::AnswerRequest;

/// Something that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditRow {
    /// Its number; later ones are higher.
    pub id: i64,
    /// When.
    pub at: Millis,
    /// One word for what.
    pub what: String,
    /// Who, if it is known.
    pub by: Option<By>,
    /// In which session, if in one. It may be gone.
    pub session: Option<SessionId>,
    /// In which run, if in one. It may be gone.
    pub run: Option<RunId>,
    /// The rest, as an object.
    pub detail: Value,
}

/// Which rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// From then on.
    pub since: Option<Millis>,
    /// Only what has this word.
    pub what: Option<String>,
    /// Of this session only.
    pub session: Option<SessionId>,
}

/// What is to be written.
pub(super) struct New<'a> {
    pub(super) at: Millis,
    pub(super) session: Option<SessionId>,
    pub(super) run: Option<RunId>,
    pub(super) what: &'a str,
    pub(super) detail: &'a str,
    pub(super) by: Option<&'a By>,
}

/// Adds a row; the oldest goes, if there are enough.
pub(super) fn insert(conn: &Connection, new: &New<'_>) -> rusqlite::Result<()> {
    let New { at, session, run, what, detail, by } = new;
    conn.prepare_cached(
        "INSERT INTO audit (at_ms, sid, rid, what, detail, actor) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        at.0,
        session.as_ref().map(SessionId::as_bytes),
        run.as_ref().map(RunId::as_bytes),
        what,
        detail,
        by.map(|by| json!(by).to_string()),
    ])?;
    let kept = int(limits::AUDIT_KEPT);
    conn.prepare_cached("DELETE FROM audit WHERE id <= ?1")?
        .execute([conn.last_insert_rowid() - kept])
        .map(|_| ())
}

/// A permission request was answered; `run` is the row of its run.
pub(super) fn answered(
    conn: &Connection,
    (session, run): (SessionId, i64),
    request: &RequestId,
    (decision, answer): (&str, Option<&AnswerRequest>),
    by: &By,
) -> rusqlite::Result<()> {
    let asked: Option<(i64, Vec<u8>)> = conn
        .prepare_cached(
            "SELECT m.seq, ifnull((SELECT json FROM blob b WHERE b.run = m.run AND b.seq = m.seq), \
             (SELECT body FROM event e WHERE e.run = m.run AND e.seq = m.seq)) \
             FROM permission m WHERE m.request_id = ?1 AND m.run = ?2",
        )?
        .query_row(params![request.0, run], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (seq, body) = asked.map_or((None, Vec::new()), |(seq, body)| (Some(seq), body));
    let asked: Option<Asked<'_>> = serde_json::from_slice(&body).ok();
    let mut detail = json!({ "requestId": request.0, "decision": decision, "seq": seq });
    if let Some(asked) = &asked {
        detail["tool"] = short(&asked.tool_name).into();
        detail["inputSha256"] = sha256(asked.input.get().as_bytes()).into();
    }
    if let Some(answer) = answer {
        detail["edited"] = answer.updated_input.is_some().into();
        if let Some(input) = &answer.updated_input {
            detail["updatedInputSha256"] = sha256(input.to_string().as_bytes()).into();
        }
        if let Some(choice) = &answer.choice_id {
            detail["choiceId"] = short(choice).into();
        }
        if answer.remember.as_ref().is_some_and(|rule| !rule.is_null()) {
            detail["remembered"] = true.into();
        }
    }
    told(conn, (session, run), "permission_answered", &detail, Some(by))
}

/// How far the answer to a permission request got.
pub(super) fn delivered(
    conn: &Connection,
    of: (SessionId, i64),
    request: &RequestId,
    delivered: bool,
    by: &By,
) -> rusqlite::Result<()> {
    let what = if delivered { "permission_delivered" } else { "permission_undeliverable" };
    told(conn, of, what, &json!({ "requestId": request.0 }), Some(by))
}

/// A run was asked to stop.
pub(super) fn abort_asked(
    conn: &Connection,
    of: (SessionId, i64),
    by: &By,
) -> rusqlite::Result<()> {
    told(conn, of, "abort_asked", &json!({}), Some(by))
}

/// The server started with this configuration: told if it is another one than at the last start.
pub(super) fn configured(
    conn: &Connection,
    (sha256, values): (&str, &BTreeMap<String, String>),
    at: Millis,
) -> rusqlite::Result<()> {
    #[derive(Deserialize)]
    struct Last {
        sha256: String,
        values: BTreeMap<String, String>,
    }
    let last: Option<String> = conn
        .prepare_cached("SELECT v FROM meta WHERE k = 'configuration'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let last: Option<Last> = last.and_then(|text| serde_json::from_str(&text).ok());
    if last.as_ref().is_some_and(|last| last.sha256 == sha256) {
        return Ok(());
    }
    let before = last.as_ref().map(|last| &last.values);
    let value = |values: Option<&BTreeMap<String, String>>, key: &str| {
        values.and_then(|values| values.get(key)).cloned()
    };
    let keys: BTreeSet<&String> =
        values.keys().chain(before.into_iter().flatten().map(|(key, _)| key)).collect();
    let changed: Vec<&String> = keys
        .into_iter()
        .filter(|key| before.is_some() && value(before, key) != value(Some(values), key))
        .collect();
    // Of a secret only that it is another one is seen, by the hash of all.
    let detail = json!({ "sha256": sha256, "changed": changed, "first": before.is_none() });
    insert(
        conn,
        &New {
            at,
            session: None,
            run: None,
            what: "configuration",
            detail: &detail.to_string(),
            by: None,
        },
    )?;
    let now = json!({ "sha256": sha256, "values": values }).to_string();
    conn.prepare_cached(
        "INSERT INTO meta (k, v) VALUES ('configuration', ?1) \
         ON CONFLICT (k) DO UPDATE SET v = excluded.v",
    )?
    .execute([now])
    .map(|_| ())
}

/// What a permission request asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked<'a> {
    #[serde(borrow)]
    tool_name: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    input: &'a RawValue,
}

fn told(
    conn: &Connection,
    (session, run): (SessionId, i64),
    what: &str,
    detail: &Value,
    by: Option<&By>,
) -> rusqlite::Result<()> {
    let run = conn
        .prepare_cached("SELECT rid FROM run WHERE id = ?1")?
        .query_row([run], |row| row.get(0).map(RunId::from_bytes))?;
    let (session, run, detail) = (Some(session), Some(run), &detail.to_string());
    insert(conn, &New { at: Millis::now(), session, run, what, detail, by })
}

/// Names that an agent or a client chose have a bound here.
fn short(text: &str) -> String {
    text.chars().take(128).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Readers {
    /// The trail, the newest first. At most `limit` (and 1,000).
    ///
    /// # Errors
    /// `BadCursor`, or as SQLite says.
    pub fn audit(
        &self,
        filter: &AuditFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Listed<AuditRow>, ReadError> {
        let before: i64 = match cursor {
            None => i64::MAX,
            Some(text) => text.parse().map_err(|_| ReadError::BadCursor(text.into()))?,
        };
        let limit = limit.clamp(1, limits::PAGE_MAX);
        self.read(|conn| {
            let mut found = conn.prepare_cached(
                "SELECT id, at_ms, sid, rid, what, detail, actor FROM audit WHERE id < ?1 \
                 AND (?2 IS NULL OR at_ms >= ?2) AND (?3 IS NULL OR what = ?3) \
                 AND (?4 IS NULL OR sid = ?4) ORDER BY id DESC LIMIT ?5",
            )?;
            let found = found.query_map(
                params![
                    before,
                    filter.since.map(|since| since.0),
                    filter.what,
                    filter.session.as_ref().map(SessionId::as_bytes),
                    one_more(limit)
                ],
                |row| {
                    let id: i64 = row.get("id")?;
                    let by: Option<String> = row.get("actor")?;
                    let row = AuditRow {
                        id,
                        at: Millis(row.get("at_ms")?),
                        what: row.get("what")?,
                        by: by.map(|by| from_json(&by)).transpose()?,
                        session: row.get::<_, Option<_>>("sid")?.map(SessionId::from_bytes),
                        run: row.get::<_, Option<_>>("rid")?.map(RunId::from_bytes),
                        detail: from_json(&row.get::<_, String>("detail")?)?,
                    };
                    Ok((row, id.to_string()))
                },
            )?;
            Ok(page(found.collect::<Result<_, _>>()?, limit))
        })
    }
}
