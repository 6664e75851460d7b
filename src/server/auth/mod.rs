//! Who may come in, and as whom: devices (a browser's cookie), API tokens, one-use codes, those
//! whom a trusted proxy knows, and the owner at the local socket.
//!
//! Secrets are random, kept as hashes, compared in constant time, never logged and never written
//! anywhere but for their owner. What each request needs stands in `scope`. Must not know routes.

mod agent;
mod attempts;
mod caller;
mod codes;
mod proxy;
pub mod scope;
mod secret;
pub mod token_file;
mod vault;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use serde_json::{Value, json};

use crate::limits;
use crate::registry::{Pending, Refusal, Registry};
use crate::run::event::By;
use crate::run::id::{CredentialId, Millis};
use crate::run::server_change::{CredentialKind, CredentialRow, ServerChange};
use crate::server::stream::Peer;
use crate::store::{ReadError, Readers};
use crate::sync::{Arc, Mutex};

use attempts::{Attempts, Bucket};
use codes::{Code, Codes};
use secret::Hash;
use vault::Vault;

pub use agent::describe;
pub use caller::{Caller, How, Pass, user_agent};
pub use proxy::Proxy;
pub use scope::Scope;
pub use secret::Secret;
pub use token_file::TOKEN_FILE;
pub use vault::{Facts, Lease, NotAdmitted};

/// What the token of the data directory is called in lists. No other may have this name.
pub const TOKEN_FILE_NAME: &str = "token file";

/// How to let people in.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Everybody may do everything.
    pub no_auth: bool,
    /// Where the token's file lies.
    pub data_dir: PathBuf,
    /// The port is part of the cookie's name, since browsers share cookies between the ports of a
    /// host.
    pub port: u16,
    /// The path that the cookie is for, with a slash at its end.
    pub path: String,
    /// Keep the cookie to https.
    pub secure: bool,
    /// A proxy that logs people in, or says whom it speaks for.
    pub proxy: Option<Proxy>,
}

/// Why the door cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The token's file.
    #[error(transparent)]
    File(#[from] io::Error),
    /// What is known of devices and tokens.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The door.
pub struct Auth {
    config: AuthConfig,
    registry: Arc<Registry>,
    vault: Vault,
    codes: Codes,
    logins: Attempts,
    guesses: Attempts,
    /// Wrong secrets, the last ones: showing one of them again tells nobody anything.
    wrong: Mutex<VecDeque<Hash>>,
    failures: Mutex<Failures>,
}

/// Failed logins on their way to the audit table: so many that it shows, too few to fill a disk.
#[derive(Debug)]
struct Failures {
    bucket: Bucket,
    left_out: u64,
}

/// A secret that opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong(Hash);

/// What a login gives.
#[derive(Debug)]
pub enum Login {
    /// There is nobody to be: `--no-auth`.
    Open,
    /// A new device may be made.
    Grant(Grant),
    /// That opens nothing.
    Wrong,
    /// Too many wrong ones: wait this long, in seconds.
    Wait(u64),
}

/// Leave to make a device.
#[derive(Debug)]
pub struct Grant {
    /// What it may do.
    pub scope: Scope,
    /// Its name, if whoever made the code has said so.
    pub name: Option<String>,
    code: Option<Code>,
    parent: Option<Lease>,
}

/// A credential on its way to disk.
#[derive(Debug)]
pub struct Coming {
    /// It opens nothing before `Auth::opened`.
    pub lease: Lease,
    /// For its owner, once.
    pub secret: Secret,
    /// Settled when it is on disk.
    pub pending: Pending,
}

/// Why a credential is not made.
#[derive(Debug)]
pub enum NotMade {
    /// See `NotAdmitted`.
    NotAdmitted(NotAdmitted),
    /// The store.
    Refused(Refusal),
    /// The system has no randomness.
    Io(io::Error),
}

/// A credential to be made.
#[derive(Debug)]
pub struct New {
    /// Which sort.
    pub kind: CredentialKind,
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it ends, if it was told to.
    pub expires_at: Option<Millis>,
    /// The token that it comes by.
    pub parent: Option<Lease>,
}

impl Auth {
    /// The door, with the devices and tokens that the disk has.
    ///
    /// # Errors
    /// See `AuthError`.
    pub fn new(
        config: AuthConfig,
        registry: Arc<Registry>,
        readers: &Readers,
        now: Millis,
    ) -> Result<Self, AuthError> {
        let start = Instant::now();
        let failures =
            Bucket::full(limits::AUDIT_FAILED_MAX, limits::AUDIT_FAILED_REFILL_MS, start);
        let rows = adopt_token_file(&config, &registry, readers, now)?;
        Ok(Self {
            config,
            registry,
            vault: Vault::of(rows),
            codes: Codes::default(),
            logins: Attempts::new(start),
            guesses: Attempts::new(start),
            wrong: Mutex::new(VecDeque::new()),
            failures: Mutex::new(Failures { bucket: failures, left_out: 0 }),
        })
    }

    /// Who sends this; `None` if they show nothing. What they show first counts: a wrong
    /// `Authorization` is not made good by anything else, and whom the proxy names is that person,
    /// whoever left a cookie in the browser.
    ///
    /// # Errors
    /// If what they show opens nothing.
    pub fn identify(
        &self,
        headers: &HeaderMap,
        peer: Peer,
        now: Millis,
    ) -> Result<Option<Caller>, Wrong> {
        if self.config.no_auth {
            return Ok(Some(Caller::unnamed(How::Open, Scope::Admin, headers)));
        }
        if peer == Peer::Local {
            return Ok(Some(Caller::unnamed(How::Local, Scope::Admin, headers)));
        }
        if let Some(value) = headers.get(AUTHORIZATION) {
            let (scheme, token) =
                value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
            let hash = secret::hash(token.trim());
            let lease = match scheme.eq_ignore_ascii_case("bearer") {
                true => self.vault.find(CredentialKind::Token, &hash, now),
                false => None,
            };
            let lease = lease.ok_or(Wrong(hash))?;
            self.used(&lease, now);
            return Ok(Some(Caller::leased(How::Bearer, lease, headers)));
        }
        if let Some(proxy) = &self.config.proxy
            && let Some(person) = proxy.person(headers, peer)
        {
            return Ok(Some(Caller::at_proxy(person, proxy.scope, headers)));
        }
        let mut wrong = None;
        for value in self.cookies(headers) {
            let hash = secret::hash(value);
            if let Some(lease) = self.vault.find(CredentialKind::Device, &hash, now) {
                self.used(&lease, now);
                return Ok(Some(Caller::leased(How::Cookie, lease, headers)));
            }
            wrong = Some(Wrong(hash));
        }
        wrong.map_or(Ok(None), Err)
    }

    /// Somebody has shown a secret that opens nothing. A right one is never refused because of it:
    /// it is too long to be guessed, and else whoever guesses the loudest would keep the owner
    /// out. So this only makes guessing slow, and seen.
    ///
    /// # Errors
    /// The seconds to wait, after too many.
    pub fn guessed(&self, wrong: Wrong, headers: &HeaderMap, peer: Peer) -> Result<(), u64> {
        if self.is_known_wrong(wrong.0) {
            return Ok(());
        }
        let client = self.client(headers, peer);
        self.guesses.wrong(client, Instant::now())?;
        self.failed("a token or cookie", headers, client);
        Ok(())
    }

    /// Somebody shows a code, or a token, to become a device. When too many were wrong even the
    /// right one has to wait: else there would be no limit at all.
    pub fn login(&self, shown: &str, headers: &HeaderMap, peer: Peer, now: Millis) -> Login {
        if self.config.no_auth {
            return Login::Open;
        }
        let client = self.client(headers, peer);
        if let Err(seconds) = self.logins.check(client, Instant::now()) {
            return Login::Wait(seconds);
        }
        let hash = secret::hash(shown.trim());
        if let Some(code) = self.codes.take(&hash, now) {
            let (scope, name) = (code.scope, code.name.clone());
            return Login::Grant(Grant { scope, name, code: Some(code), parent: None });
        }
        if let Some(lease) = self.vault.find(CredentialKind::Token, &hash, now) {
            self.used(&lease, now);
            let scope = lease.scope();
            return Login::Grant(Grant { scope, name: None, code: None, parent: Some(lease) });
        }
        if let Err(seconds) = self.logins.wrong(client, Instant::now()) {
            return Login::Wait(seconds);
        }
        self.failed("a login", headers, client);
        Login::Wrong
    }

    /// Makes the device that a grant is for.
    ///
    /// # Errors
    /// See `NotMade`; then a code can be used once more.
    pub fn new_device(&self, grant: Grant, name: String, now: Millis) -> Result<Coming, NotMade> {
        let Grant { scope, code, parent, .. } = grant;
        let expires_at = Some(now.plus(limits::DEVICE_MS));
        let new = New { kind: CredentialKind::Device, name, scope, expires_at, parent };
        self.make(new, now).inspect_err(|_| {
            if let Some(code) = code {
                self.codes.put_back(code);
            }
        })
    }

    /// Makes a device or a token: `opened` or `given_up` follows.
    ///
    /// # Errors
    /// See `NotMade`.
    pub fn make(&self, new: New, now: Millis) -> Result<Coming, NotMade> {
        let New { kind, name, scope, expires_at, parent } = new;
        let prefix = match kind {
            CredentialKind::Token => limits::TOKEN_PREFIX,
            CredentialKind::Device => "",
        };
        let secret = Secret::random(prefix, limits::TOKEN_BYTES).map_err(NotMade::Io)?;
        let row = CredentialRow {
            id: CredentialId::random(),
            kind,
            name,
            hash: secret.hash(),
            scope,
            parent: parent.as_ref().map(Lease::id),
            created_at: now,
            expires_at,
            last_used_at: (kind == CredentialKind::Device).then_some(now),
            revoked_at: None,
        };
        let lease = self.vault.admit(row.clone(), parent, now).map_err(NotMade::NotAdmitted)?;
        match self.registry.record(ServerChange::CredentialAdded(row)) {
            Ok(pending) => Ok(Coming { lease, secret, pending }),
            Err(refusal) => {
                self.vault.forget(lease.id());
                Err(NotMade::Refused(refusal))
            }
        }
    }

    /// It is on disk.
    pub fn opened(&self, lease: &Lease) {
        lease.open();
    }

    /// It is not known to be on disk, and nobody has its secret: it is not to be.
    pub fn given_up(&self, lease: &Lease, now: Millis) {
        self.vault.forget(lease.id());
        // Where this cannot be recorded, neither could it be itself.
        drop(self.registry.record(ServerChange::CredentialRevoked { id: lease.id(), at: now }));
    }

    /// A code for one more device.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn issue_code(
        &self,
        scope: Scope,
        name: Option<String>,
        by: Option<CredentialId>,
        now: Millis,
    ) -> io::Result<(Secret, Millis)> {
        self.codes.issue(scope, name, by, now)
    }

    /// The devices or tokens that open something now.
    #[must_use]
    pub fn list(&self, kind: CredentialKind, now: Millis) -> Vec<Facts> {
        self.vault.list(kind, now)
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, kind: CredentialKind, id: CredentialId) -> Option<Lease> {
        self.vault.get(kind, id)
    }

    /// It opens nothing from now on, nor do the devices that came by it and the codes that it has
    /// made; what they hold open is closed. `revoked` follows when the disk knows.
    ///
    /// # Errors
    /// If the store takes nothing. Until the next start it is revoked all the same.
    pub fn revoke(&self, lease: &Lease, now: Millis) -> Result<Pending, Refusal> {
        for id in self.vault.revoke(lease.id()) {
            self.codes.forget(id);
        }
        self.registry.record(ServerChange::CredentialRevoked { id: lease.id(), at: now })
    }

    /// The disk knows that it is revoked.
    pub fn revoked(&self, lease: &Lease) {
        self.vault.forget(lease.id());
        if lease.name() == TOKEN_FILE_NAME
            && let Err(error) = token_file::remove(&self.config.data_dir, &lease.hash())
        {
            tracing::warn!(%error, "the file of a revoked token cannot be removed");
        }
    }

    /// Something came through a connection that this caller has opened.
    pub fn used_by(&self, caller: &Caller) {
        if let Some(lease) = &caller.lease {
            self.used(lease, Millis::now());
        }
    }

    fn used(&self, lease: &Lease, now: Millis) {
        if let Some(used) = lease.used(now) {
            let vault::Use { at, expires_at } = used;
            let change = ServerChange::CredentialUsed { id: lease.id(), at, expires_at };
            // A use that is not recorded is no loss: the next one is, in a minute.
            drop(self.registry.record(change));
        }
    }

    /// Something for the audit table. What happened has happened: nobody waits for it.
    pub fn audit(&self, by: Option<By>, what: &'static str, detail: &Value, at: Millis) {
        let detail = detail.to_string();
        if let Err(refusal) = self.registry.record(ServerChange::Audit { by, what, detail, at }) {
            tracing::warn!(what, error = refusal.message, "not in the audit table");
        }
    }

    /// The address that counts as the sender's, in words.
    #[must_use]
    pub fn client_name(&self, headers: &HeaderMap, peer: Peer) -> String {
        match self.client(headers, peer) {
            Peer::Local => "local".to_owned(),
            Peer::Tcp(address) => address.to_string(),
        }
    }

    /// `Set-Cookie` for a new device.
    #[must_use]
    pub fn cookie(&self, secret: &Secret) -> String {
        self.set_cookie(secret.expose(), limits::DEVICE_MS / 1000)
    }

    /// `Set-Cookie` that takes it away.
    #[must_use]
    pub fn no_cookie(&self) -> String {
        self.set_cookie("", 0)
    }

    /// `Set-Cookie` for a device whose browser would else forget it, though it is used: the same
    /// again, with a new end.
    #[must_use]
    pub fn renewal(&self, caller: &Caller, headers: &HeaderMap, now: Millis) -> Option<String> {
        let lease = caller.lease.as_ref().filter(|_| caller.how == How::Cookie)?;
        let hash = lease.hash();
        let value = self.cookies(headers).find(|value| secret::hash(value) == hash)?;
        lease.renew(now).then(|| self.set_cookie(value, limits::DEVICE_MS / 1000))
    }

    fn set_cookie(&self, value: &str, seconds: i64) -> String {
        let AuthConfig { port, path, secure, .. } = &self.config;
        let secure = if *secure { "; Secure" } else { "" };
        format!(
            "reattach_{port}={value}; HttpOnly; SameSite=Strict; Path={path}; \
             Max-Age={seconds}{secure}"
        )
    }

    /// The values of our cookie: a browser may send those of several paths.
    fn cookies<'a>(&self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        let name = format!("reattach_{}", self.config.port);
        let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        lines.flat_map(|line| line.split(';')).filter_map(move |pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then_some(value)
        })
    }

    fn client(&self, headers: &HeaderMap, peer: Peer) -> Peer {
        self.config.proxy.as_ref().map_or(peer, |proxy| proxy.client(headers, peer))
    }

    fn is_known_wrong(&self, hash: Hash) -> bool {
        let mut wrong = self.wrong.lock();
        if secret::find(wrong.iter(), |one| **one, &hash).is_some() {
            return true;
        }
        if wrong.len() >= limits::WRONG_SECRETS_MAX {
            wrong.pop_front();
        }
        wrong.push_back(hash);
        false
    }

    /// One that was turned away, for the audit table, which says how many it did not hear of.
    fn failed(&self, what: &str, headers: &HeaderMap, client: Peer) {
        let left_out = {
            let mut failures = self.failures.lock();
            if !failures.bucket.take(Instant::now()) {
                failures.left_out += 1;
                return;
            }
            std::mem::take(&mut failures.left_out)
        };
        let peer = self.client_name(headers, client);
        tracing::warn!(peer, what, "turned away");
        let agent: String = user_agent(headers).chars().take(200).collect();
        let detail = json!({ "peer": peer, "what": what, "userAgent": agent, "leftOut": left_out });
        self.audit(None, "login_failed", &detail, Millis::now());
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What opens now, the token of the data directory among it. That file is where its owner finds
/// the token: one that was put there by hand takes the place of the one before, and one that was
/// revoked is replaced.
fn adopt_token_file(
    config: &AuthConfig,
    registry: &Registry,
    readers: &Readers,
    now: Millis,
) -> Result<Vec<CredentialRow>, AuthError> {
    // Made in any case: a client need not know whether it will be asked for.
    let mut token = token_file::load(&config.data_dir)?;
    let mut known = readers.credential_by_hash(&token.hash())?;
    let is_over = |row: &CredentialRow| {
        row.revoked_at.is_some() || row.expires_at.is_some_and(|end| end <= now)
    };
    if known.as_ref().is_some_and(is_over) {
        tracing::warn!(
            "the token in the data directory opens nothing any more; there is a new one"
        );
        token = token_file::make(&config.data_dir)?;
        known = None;
    }
    let mut rows = readers.credentials(now)?;
    let is_former = |row: &CredentialRow| {
        row.kind == CredentialKind::Token && row.name == TOKEN_FILE_NAME && row.hash != token.hash()
    };
    // The store may not take these now: the next start tries again.
    for row in rows.iter().filter(|row| is_former(row)) {
        drop(registry.record(ServerChange::CredentialRevoked { id: row.id, at: now }));
    }
    rows.retain(|row| !is_former(row));
    if rows.iter().any(|row| row.hash == token.hash()) {
        return Ok(rows);
    }
    let row = match known {
        // It is there, beyond the newest thousand.
        Some(row) => {
            rows.push(row);
            return Ok(rows);
        }
        None => CredentialRow {
            id: CredentialId::random(),
            kind: CredentialKind::Token,
            name: TOKEN_FILE_NAME.to_owned(),
            hash: token.hash(),
            scope: Scope::Admin,
            parent: None,
            created_at: now,
            expires_at: None,
            last_used_at: None,
            revoked_at: None,
        },
    };
    drop(registry.record(ServerChange::CredentialAdded(row.clone())));
    rows.push(row);
    Ok(rows)
}
