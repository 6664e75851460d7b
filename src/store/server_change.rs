//! Facts of no session as statements.
//!
//! Runs inside the writer's transaction. Must not know when one begins or ends.

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::audit;
use super::error::{Class, CommitError};
use super::rows::{int, to_word};
use super::writer::{Writer, whole};
use crate::limits;
use crate::run::server_change::{CredentialRow, NotificationRow, ServerChange};

impl Writer {
    /// Commits all of `changes` in one transaction, or nothing of them.
    ///
    /// # Errors
    /// As `commit`; `Constraint` names no session.
    pub fn commit_server(&mut self, changes: &[ServerChange]) -> Result<(), CommitError> {
        let tx = Transaction::new(&mut self.conn, TransactionBehavior::Immediate)
            .map_err(|error| whole(&error))?;
        for change in changes {
            apply(&tx, change).map_err(|error| match Class::of(&error) {
                Class::Rows => {
                    CommitError::Constraint { session: None, message: error.to_string() }
                }
                _ => whole(&error),
            })?;
        }
        tx.commit().map_err(|error| whole(&error))
    }
}

fn apply(conn: &Connection, change: &ServerChange) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| {
        conn.prepare_cached(sql)?.execute(params).map(|_| ())
    };
    match change {
        ServerChange::ProjectEdited { project, custom_name, starred } => run(
            "UPDATE project SET custom_name = nullif(ifnull(?2, custom_name), ''), \
             starred = ifnull(?3, starred) WHERE id = ?1",
            params![project, custom_name, starred],
        ),
        ServerChange::CredentialAdded(row) => add_credential(conn, row),
        ServerChange::CredentialUsed { id, at, expires_at } => run(
            "UPDATE credential SET last_used_ms = max(ifnull(last_used_ms, 0), ?2), \
             expires_ms = ifnull(?3, expires_ms) WHERE cid = ?1 AND revoked_ms IS NULL",
            params![id.as_bytes(), at.0, expires_at.map(|at| at.0)],
        ),
        ServerChange::CredentialRevoked { id, at } => run(
            "UPDATE credential SET revoked_ms = ?2 \
             WHERE (cid = ?1 OR parent = ?1) AND revoked_ms IS NULL",
            params![id.as_bytes(), at.0],
        ),
        ServerChange::Audit { by, what, detail, at } => {
            let by = by.as_ref();
            let new = audit::New { at: *at, session: None, run: None, what, detail, by };
            audit::insert(conn, &new)
        }
        ServerChange::Configured { sha256, values, at } => {
            audit::configured(conn, (sha256, values), *at)
        }
        ServerChange::Notified(row) => notified(conn, row),
    }
}

/// A new one. Devices that have ended long ago go, so that the table stays small; tokens stay, so
/// that one that was revoked is known as such for good.
fn add_credential(conn: &Connection, row: &CredentialRow) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "DELETE FROM credential WHERE kind = 'device' \
         AND min(ifnull(revoked_ms, ?1), ifnull(expires_ms, ?1)) < ?1",
    )?
    .execute([row.created_at.0.saturating_sub(limits::DEVICE_MS)])?;
    conn.prepare_cached(
        "INSERT INTO credential (cid, kind, name, hash, scope, parent, created_ms, expires_ms, \
         last_used_ms, revoked_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        row.id.as_bytes(),
        to_word(row.kind),
        row.name,
        row.hash,
        to_word(row.scope),
        row.parent.as_ref().map(|id| id.as_bytes()),
        row.created_at.0,
        row.expires_at.map(|at| at.0),
        row.last_used_at.map(|at| at.0),
        row.revoked_at.map(|at| at.0),
    ])
    .map(|_| ())
}

/// The outcome joins the last ones; older ones go, so that the table stays small.
fn notified(conn: &Connection, row: &NotificationRow) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO notification (at_ms, sid, rid, event, sink, outcome, detail) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        row.at.0,
        row.session.as_ref().map(|id| id.as_bytes()),
        row.run.as_ref().map(|id| id.as_bytes()),
        row.event,
        row.sink,
        row.outcome,
        row.detail,
    ])?;
    let kept = int(limits::NOTIFICATIONS_KEPT as u64);
    conn.prepare_cached("DELETE FROM notification WHERE id <= ?1")?
        .execute(params![conn.last_insert_rowid() - kept])
        .map(|_| ())
}
