//! The devices and tokens that open something now, in memory: what is asked at each request.
//!
//! A credential that is revoked opens nothing from that moment on, whatever the disk does, and
//! rings the bell of every connection that it holds open. Must not know HTTP or the disk.

use std::collections::BTreeMap;

use super::secret::{self, Hash};
use crate::limits;
use crate::run::id::{CredentialId, Millis};
use crate::run::server_change::{CredentialKind, CredentialRow, Scope};
use crate::run::wake::Bell as _;
use crate::server::wait::Doorbell;
use crate::sync::{Arc, Mutex};

/// All of them. No lock is taken while another is held.
#[derive(Debug, Default)]
pub(super) struct Vault(Mutex<BTreeMap<CredentialId, Lease>>);

/// Why one more cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// There are `limits::CREDENTIALS_MAX`.
    Full,
    /// Another token has this name.
    NameTaken,
}

/// A credential in use. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Entry>);

#[derive(Debug)]
struct Entry {
    id: CredentialId,
    kind: CredentialKind,
    name: String,
    hash: Hash,
    scope: Scope,
    created_at: Millis,
    /// The token that it came by: it ends with it.
    parent: Option<Lease>,
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    stage: Stage,
    expires_at: Option<Millis>,
    last_used_at: Option<Millis>,
    /// The last use that was given out to be recorded.
    recorded_at: Option<Millis>,
    /// When the browser was last given its cookie, as far as this process knows.
    renewed_at: Option<Millis>,
    watchers: BTreeMap<u64, Doorbell>,
    watchers_ever: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// On its way to disk: it has its name, and opens nothing.
    Coming,
    /// It opens.
    Open,
    /// It opens nothing any more.
    Revoked,
}

/// What lists say of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its id.
    pub id: CredentialId,
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it was made.
    pub created_at: Millis,
    /// When it ends by itself.
    pub expires_at: Option<Millis>,
    /// When it was last used.
    pub last_used_at: Option<Millis>,
}

/// A use that is worth a line on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// When.
    pub at: Millis,
    /// The new end, of a device.
    pub expires_at: Option<Millis>,
}

impl Vault {
    /// Those that the disk has and that are not over.
    #[must_use]
    pub(super) fn of(rows: Vec<CredentialRow>) -> Self {
        let mut leases: BTreeMap<CredentialId, Lease> = BTreeMap::new();
        // Tokens have no parents, so that these are there when they are asked for.
        let (children, parents): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.parent.is_some());
        for row in parents.into_iter().chain(children) {
            let parent = row.parent.map(|id| leases.get(&id).cloned());
            // One whose token is gone is gone as well.
            if parent.as_ref().is_none_or(Option::is_some) {
                leases.insert(row.id, Lease::of(row, parent.flatten(), Stage::Open));
            }
        }
        Self(Mutex::new(leases))
    }

    /// The one that this secret opens with.
    #[must_use]
    pub(super) fn find(&self, kind: CredentialKind, hash: &Hash, now: Millis) -> Option<Lease> {
        let found = {
            let leases = self.0.lock();
            let of_kind = leases.values().filter(|lease| lease.0.kind == kind);
            secret::find(of_kind, |lease| lease.0.hash, hash).cloned()
        };
        found.filter(|lease| !lease.is_over(now))
    }

    /// One by its id; also one that was revoked and is not known to be so on disk.
    #[must_use]
    pub(super) fn get(&self, kind: CredentialKind, id: CredentialId) -> Option<Lease> {
        let lease = self.0.lock().get(&id).filter(|lease| lease.0.kind == kind).cloned();
        lease.filter(|lease| lease.stage() != Stage::Coming)
    }

    /// What opens now, the one used last first.
    #[must_use]
    pub(super) fn list(&self, kind: CredentialKind, now: Millis) -> Vec<Facts> {
        let leases = self.all();
        let open = leases.iter().filter(|lease| lease.0.kind == kind && !lease.is_over(now));
        let mut facts: Vec<Facts> = open.map(Lease::facts).collect();
        facts.sort_by_key(|one| std::cmp::Reverse((one.last_used_at, one.created_at)));
        facts
    }

    /// Keeps a place, and a token's name, for one that is on its way to disk: `Lease::open` or
    /// `forget` follows. It ends with `parent`, whose id `row` has.
    ///
    /// # Errors
    /// See `NotAdmitted`.
    pub(super) fn admit(
        &self,
        row: CredentialRow,
        parent: Option<Lease>,
        now: Millis,
    ) -> Result<Lease, NotAdmitted> {
        let ended = |one: &&Lease| one.expires_at().is_some_and(|end| end <= now);
        let over: Vec<CredentialId> = self.all().iter().filter(ended).map(|one| one.0.id).collect();
        let mut leases = self.0.lock();
        for id in over {
            leases.remove(&id);
        }
        if leases.len() >= limits::CREDENTIALS_MAX {
            return Err(NotAdmitted::Full);
        }
        let same =
            |lease: &Lease| lease.0.kind == CredentialKind::Token && lease.0.name == row.name;
        if row.kind == CredentialKind::Token && leases.values().any(same) {
            return Err(NotAdmitted::NameTaken);
        }
        let lease = Lease::of(row, parent, Stage::Coming);
        leases.insert(lease.0.id, lease.clone());
        Ok(lease)
    }

    /// It is not to be, or no more: its place and name are free again, and those of what came by
    /// it.
    pub(super) fn forget(&self, id: CredentialId) {
        self.0.lock().retain(|own, lease| *own != id && !lease.came_by(id));
    }

    /// The one with this id and those that came by it open nothing from now on, and what they hold
    /// open hears of it. Gives their ids.
    pub(super) fn revoke(&self, id: CredentialId) -> Vec<CredentialId> {
        let leases = self.all();
        let hit = leases.iter().filter(|one| one.0.id == id || one.came_by(id));
        hit.map(|lease| {
            lease.revoke();
            lease.0.id
        })
        .collect()
    }

    fn all(&self) -> Vec<Lease> {
        self.0.lock().values().cloned().collect()
    }
}

impl Lease {
    fn of(row: CredentialRow, parent: Option<Self>, stage: Stage) -> Self {
        let life = Life {
            stage,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            recorded_at: row.last_used_at,
            renewed_at: (stage == Stage::Coming).then_some(row.created_at),
            watchers: BTreeMap::new(),
            watchers_ever: 0,
        };
        let CredentialRow { id, kind, name, hash, scope, created_at, .. } = row;
        let life = Mutex::new(life);
        Self(Arc::new(Entry { id, kind, name, hash, scope, created_at, parent, life }))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> CredentialId {
        self.0.id
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The hash of its secret.
    #[must_use]
    pub(super) fn hash(&self) -> Hash {
        self.0.hash
    }

    /// What it may do.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.0.scope
    }

    /// Whether it opens nothing any more: what it holds open is to be closed.
    #[must_use]
    pub fn is_over(&self, now: Millis) -> bool {
        self.stage() != Stage::Open
            || self.expires_at().is_some_and(|end| end <= now)
            || self.0.parent.as_ref().is_some_and(|parent| parent.is_over(now))
    }

    /// When it ends by itself, as of now.
    #[must_use]
    pub fn expires_at(&self) -> Option<Millis> {
        let own = self.0.life.lock().expires_at;
        let parents = self.0.parent.as_ref().and_then(Self::expires_at);
        own.into_iter().chain(parents).min()
    }

    /// Rings `bell` when it is revoked, for as long as the watch is kept. Whoever waits for the
    /// bell has to look at `is_over` after this and before each wait.
    #[must_use]
    pub fn watch(&self, bell: Doorbell) -> Watch {
        let mut life = self.0.life.lock();
        life.watchers_ever += 1;
        let number = life.watchers_ever;
        life.watchers.insert(number, bell);
        drop(life);
        Watch { lease: self.clone(), number }
    }

    /// It is used. A device's end moves on. Now and then that is worth a line on disk.
    pub fn used(&self, now: Millis) -> Option<Use> {
        let mut life = self.0.life.lock();
        if life.stage != Stage::Open {
            return None;
        }
        life.last_used_at = life.last_used_at.max(Some(now));
        if self.0.kind == CredentialKind::Device {
            let end = Millis(now.0.saturating_add(limits::DEVICE_MS));
            life.expires_at = life.expires_at.max(Some(end));
        }
        let due = life.recorded_at.is_none_or(|at| now.0 - at.0 >= limits::CREDENTIAL_USED_MS);
        if !due {
            return None;
        }
        life.recorded_at = Some(now);
        Some(Use { at: now, expires_at: life.expires_at })
    }

    /// Whether its browser should be given the cookie again, which the browser keeps for a time of
    /// its own. Says so once a day.
    #[must_use]
    pub fn renew(&self, now: Millis) -> bool {
        let mut life = self.0.life.lock();
        let due = life.renewed_at.is_none_or(|at| now.0 - at.0 >= limits::COOKIE_RENEW_MS);
        if due {
            life.renewed_at = Some(now);
        }
        due
    }

    /// What lists say of it.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let expires_at = self.expires_at();
        let life = self.0.life.lock();
        let Entry { id, name, scope, created_at, .. } = &*self.0;
        Facts {
            id: *id,
            name: name.clone(),
            scope: *scope,
            created_at: *created_at,
            expires_at,
            last_used_at: life.last_used_at,
        }
    }

    /// It is on disk, and opens.
    pub fn open(&self) {
        let mut life = self.0.life.lock();
        if life.stage == Stage::Coming {
            life.stage = Stage::Open;
        }
    }

    fn came_by(&self, id: CredentialId) -> bool {
        self.0.parent.as_ref().is_some_and(|parent| parent.0.id == id)
    }

    fn stage(&self) -> Stage {
        self.0.life.lock().stage
    }

    fn revoke(&self) {
        let bells: Vec<Doorbell> = {
            let mut life = self.0.life.lock();
            life.stage = Stage::Revoked;
            life.watchers.values().cloned().collect()
        };
        for bell in bells {
            bell.ring();
        }
    }
}

/// A bell that rings when a credential is revoked; let go with this value.
#[derive(Debug)]
pub struct Watch {
    lease: Lease,
    number: u64,
}

impl Watch {
    /// The credential.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.lease.0.life.lock().watchers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::*;
    use crate::server::wait::{Interest, Waiter};

    const NOW: Millis = Millis(1_000_000);

    fn row(kind: CredentialKind, name: &str) -> CredentialRow {
        CredentialRow {
            id: CredentialId::random(),
            kind,
            name: name.into(),
            hash: secret::hash(name),
            scope: Scope::Control,
            parent: None,
            created_at: NOW,
            expires_at: None,
            last_used_at: None,
            revoked_at: None,
        }
    }

    fn device(name: &str) -> CredentialRow {
        row(CredentialKind::Device, name)
    }

    fn add(vault: &Vault, row: CredentialRow) -> Lease {
        let lease = vault.admit(row, None, NOW).expect("there is room");
        lease.open();
        lease
    }

    fn add_child(vault: &Vault, parent: &Lease, name: &str) -> Lease {
        let row = CredentialRow { parent: Some(parent.id()), ..device(name) };
        let lease = vault.admit(row, Some(parent.clone()), NOW).expect("there is room");
        lease.open();
        lease
    }

    #[test]
    fn what_is_on_its_way_to_disk_opens_nothing_and_has_its_name() {
        let vault = Vault::default();
        let token = row(CredentialKind::Token, "ci");
        let hash = token.hash;
        let lease = vault.admit(token, None, NOW).expect("there is room");
        assert!(vault.find(CredentialKind::Token, &hash, NOW).is_none());
        assert!(vault.list(CredentialKind::Token, NOW).is_empty());
        let again = vault.admit(row(CredentialKind::Token, "ci"), None, NOW);
        assert_eq!(again.err(), Some(NotAdmitted::NameTaken));
        lease.open();
        assert!(vault.find(CredentialKind::Token, &hash, NOW).is_some());
        assert!(vault.find(CredentialKind::Device, &hash, NOW).is_none(), "a cookie is no token");
        vault.admit(device("ci"), None, NOW).expect("devices may have any name");
    }

    #[test]
    fn a_revoked_credential_rings_and_takes_those_that_came_by_it_along() {
        let vault = Vault::default();
        let token = add(&vault, row(CredentialKind::Token, "ci"));
        let child = add_child(&vault, &token, "tv");
        let other = add(&vault, device("phone"));
        let waiter = Waiter::new().expect("a descriptor");
        let watch = child.watch(waiter.bell());
        let mut revoked = vault.revoke(token.id());
        revoked.sort();
        let mut expected = vec![token.id(), child.id()];
        expected.sort();
        assert_eq!(revoked, expected);
        assert!(token.is_over(NOW) && child.is_over(NOW) && !other.is_over(NOW));
        let (one, _two) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let wake = Interest { wake: true, ..Interest::default() };
        let ready = waiter.wait(one.as_fd(), wake, Some(Duration::from_secs(10)));
        assert!(ready.expect("polled").woken);
        drop(watch);
        assert!(child.0.life.lock().watchers.is_empty());
        assert!(vault.get(CredentialKind::Token, token.id()).is_some(), "until it is on disk");
        child.open();
        assert!(child.is_over(NOW), "for good");
        vault.forget(token.id());
        assert_eq!(vault.all().len(), 1, "nothing is left of them");
    }

    #[test]
    fn a_device_lasts_as_long_as_it_is_used_and_says_so_rarely() {
        let vault = Vault::default();
        let lease = add(&vault, device("phone"));
        let first = lease.used(NOW).expect("worth a line");
        assert_eq!(first.expires_at, Some(Millis(NOW.0 + limits::DEVICE_MS)));
        assert_eq!(lease.used(Millis(NOW.0 + 1)), None);
        let later = Millis(NOW.0 + limits::CREDENTIAL_USED_MS);
        assert_eq!(lease.used(later).map(|used| used.at), Some(later));
        let end = lease.expires_at().expect("it has one");
        assert_eq!(end, Millis(later.0 + limits::DEVICE_MS));
        assert!(!lease.is_over(Millis(end.0 - 1)) && lease.is_over(end));
        assert!(vault.list(CredentialKind::Device, end).is_empty());
        assert!(!lease.renew(NOW), "it has just got its cookie");
        let next_day = Millis(NOW.0 + limits::COOKIE_RENEW_MS);
        assert!(lease.renew(next_day) && !lease.renew(next_day));
    }

    #[test]
    fn a_token_ends_when_it_was_told_to() {
        let vault = Vault::default();
        let end = Millis(NOW.0 + 5000);
        let token = CredentialRow { expires_at: Some(end), ..row(CredentialKind::Token, "ci") };
        let hash = token.hash;
        let lease = add(&vault, token);
        lease.used(Millis(NOW.0 + 4999));
        assert_eq!(lease.expires_at(), Some(end));
        assert!(vault.find(CredentialKind::Token, &hash, end).is_none());
        assert!(
            vault.admit(row(CredentialKind::Token, "ci"), None, end).is_ok(),
            "its name is free"
        );
        let child = add_child(&vault, &lease, "tv");
        child.used(NOW);
        assert_eq!(child.expires_at(), Some(end), "it does not outlive its token");
        assert!(child.is_over(end));
    }

    #[test]
    fn what_the_disk_has_opens_again_but_for_those_whose_token_is_gone() {
        let token = row(CredentialKind::Token, "ci");
        let child = CredentialRow { parent: Some(token.id), ..device("tv") };
        let orphan = CredentialRow { parent: Some(CredentialId::random()), ..device("old") };
        let hashes = [child.hash, orphan.hash];
        let vault = Vault::of(vec![child, orphan, token]);
        let found = hashes.map(|hash| vault.find(CredentialKind::Device, &hash, NOW).is_some());
        assert_eq!(found, [true, false]);
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let vault = Vault::default();
        for n in 0..limits::CREDENTIALS_MAX {
            add(&vault, device(&n.to_string()));
        }
        assert_eq!(vault.admit(device("more"), None, NOW).err(), Some(NotAdmitted::Full));
    }
}
