//! Durable facts of no session: credentials, projects, what was notified, the server's own audit.
//!
//! They go to disk by the store thread like a session's, in their own order, and nothing of a
//! session waits for them. Must not know SQLite.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::run::event::By;
use crate::run::id::{CredentialId, Millis, RunId, SessionId};

/// A durable fact of no session.
#[derive(Clone, Debug)]
pub enum ServerChange {
    /// A project was renamed or marked; `None` leaves a field as it is.
    ProjectEdited {
        /// The store's number for it.
        project: i64,
        /// The new name; an empty one takes it away.
        custom_name: Option<String>,
        /// The new mark.
        starred: Option<bool>,
    },
    /// A device or an API token came into being.
    CredentialAdded(CredentialRow),
    /// It was used. Recorded now and then, not at each use.
    CredentialUsed {
        /// Which.
        id: CredentialId,
        /// When.
        at: Millis,
        /// Its new end, for one that is prolonged by being used.
        expires_at: Option<Millis>,
    },
    /// It opens nothing any more, nor do the devices that came by it.
    CredentialRevoked {
        /// Which.
        id: CredentialId,
        /// When.
        at: Millis,
    },
    /// Something for the audit table.
    Audit {
        /// Who, if it is known.
        by: Option<By>,
        /// One word for what happened.
        what: &'static str,
        /// The details as JSON.
        detail: String,
        /// When.
        at: Millis,
    },
    /// The server starts with this configuration, of which the audit tells if it is another one.
    Configured {
        /// Of all of it, secrets too, in hexadecimal digits.
        sha256: String,
        /// Each key's value in words; a secret's is masked.
        values: BTreeMap<String, String>,
        /// When.
        at: Millis,
    },
    /// What became of a notification.
    Notified(NotificationRow),
}

/// What a credential is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialKind {
    /// A browser's cookie.
    Device,
    /// A program's bearer token.
    Token,
}

/// What a credential opens; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look.
    Read,
    /// Prompt, answer, abort.
    Control,
    /// Also say who else may.
    Admin,
}

/// A device or an API token as its row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    /// Its id.
    pub id: CredentialId,
    /// What it is.
    pub kind: CredentialKind,
    /// What a person calls it.
    pub name: String,
    /// SHA-256 of the secret; the secret itself is nowhere.
    pub hash: [u8; 32],
    /// What it opens.
    pub scope: Scope,
    /// The token that a device came by: it ends with it.
    pub parent: Option<CredentialId>,
    /// When it was made.
    pub created_at: Millis,
    /// When it ends by itself.
    pub expires_at: Option<Millis>,
    /// When it was last used, as far as that was recorded.
    pub last_used_at: Option<Millis>,
    /// When it was revoked.
    pub revoked_at: Option<Millis>,
}

/// What became of a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotificationRow {
    /// When.
    pub at: Millis,
    /// Whose session, if any.
    pub session: Option<SessionId>,
    /// In which run, if any.
    pub run: Option<RunId>,
    /// `permission_asked`, `run_finished`, ...
    pub event: &'static str,
    /// The sink's name in the configuration.
    pub sink: String,
    /// `sent`, `suppressed` or `failed`.
    pub outcome: &'static str,
    /// Why, in words.
    pub detail: String,
}
