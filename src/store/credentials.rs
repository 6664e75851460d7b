//! Reading devices and API tokens, as hashes. Must not know what they open.

use rusqlite::{OptionalExtension, Row, params};

use super::error::ReadError;
use super::reader::Readers;
use super::rows::from_word;
use crate::limits;
use crate::run::id::{CredentialId, Millis};
use crate::run::server_change::CredentialRow;

const COLUMNS: &str =
    "cid, kind, name, hash, scope, parent, created_ms, expires_ms, last_used_ms, revoked_ms";

impl Readers {
    /// Those that open something at `now`: the newest, at most `limits::CREDENTIALS_MAX`.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn credentials(&self, now: Millis) -> Result<Vec<CredentialRow>, ReadError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM credential WHERE revoked_ms IS NULL \
             AND (expires_ms IS NULL OR expires_ms > ?1) ORDER BY id DESC LIMIT ?2"
        );
        let most = i64::try_from(limits::CREDENTIALS_MAX).unwrap_or(i64::MAX);
        self.read(|conn| {
            let mut found = conn.prepare_cached(&sql)?;
            let rows = found.query_map(params![now.0, most], row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The one with this hash, whatever became of it.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn credential_by_hash(&self, hash: &[u8; 32]) -> Result<Option<CredentialRow>, ReadError> {
        let sql = format!("SELECT {COLUMNS} FROM credential WHERE hash = ?1");
        self.read(|conn| Ok(conn.prepare_cached(&sql)?.query_row([hash], row).optional()?))
    }
}

fn row(row: &Row<'_>) -> rusqlite::Result<CredentialRow> {
    let at = |column| row.get::<_, Option<i64>>(column).map(|ms| ms.map(Millis));
    Ok(CredentialRow {
        id: CredentialId::from_bytes(row.get("cid")?),
        kind: from_word(&row.get::<_, String>("kind")?)?,
        name: row.get("name")?,
        hash: row.get("hash")?,
        scope: from_word(&row.get::<_, String>("scope")?)?,
        parent: row.get::<_, Option<[u8; 16]>>("parent")?.map(CredentialId::from_bytes),
        created_at: Millis(row.get("created_ms")?),
        expires_at: at("expires_ms")?,
        last_used_at: at("last_used_ms")?,
        revoked_at: at("revoked_ms")?,
    })
}
