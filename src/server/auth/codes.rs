//! Codes that open once: what a link carries to a new device. In memory only, few, and short-lived.
//! Must not know what a device is.

use std::collections::VecDeque;
use std::io;

use super::scope::Scope;
use super::secret::{self, Hash, Secret};
use crate::limits;
use crate::run::id::{CredentialId, Millis};
use crate::sync::Mutex;

/// The codes that were given out and not used.
#[derive(Debug, Default)]
pub(super) struct Codes(Mutex<VecDeque<Code>>);

/// What one of them gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Code {
    hash: Hash,
    /// What the device that comes by it may do.
    pub scope: Scope,
    /// What it is to be called, if that was said.
    pub name: Option<String>,
    /// Who made it; `None` for the server itself and for those who have no credential.
    pub by: Option<CredentialId>,
    /// Until when it opens.
    pub ends_at: Millis,
}

impl Codes {
    /// A new code. When there are too many, the oldest opens no more.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub(super) fn issue(
        &self,
        scope: Scope,
        name: Option<String>,
        by: Option<CredentialId>,
        now: Millis,
    ) -> io::Result<(Secret, Millis)> {
        let secret = Secret::random("", limits::CODE_BYTES)?;
        let ends_at = Millis(now.0.saturating_add(limits::CODE_MS));
        let code = Code { hash: secret.hash(), scope, name, by, ends_at };
        let mut codes = self.0.lock();
        codes.retain(|code| now < code.ends_at);
        while codes.len() >= limits::CODES_MAX {
            codes.pop_front();
        }
        codes.push_back(code);
        Ok((secret, ends_at))
    }

    /// Takes the code with this hash out, if it opens now.
    pub(super) fn take(&self, hash: &Hash, now: Millis) -> Option<Code> {
        let mut codes = self.0.lock();
        let found = secret::find(codes.iter().enumerate(), |(_, code)| code.hash, hash);
        let at = found.map(|(at, _)| at)?;
        codes.remove(at).filter(|code| now < code.ends_at)
    }

    /// Puts one back that was taken in vain.
    pub(super) fn put_back(&self, code: Code) {
        self.0.lock().push_back(code);
    }

    /// What this credential has made opens no more.
    pub(super) fn forget(&self, by: CredentialId) {
        self.0.lock().retain(|code| code.by != Some(by));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000_000);

    fn issue(codes: &Codes, by: Option<CredentialId>) -> Hash {
        codes.issue(Scope::Control, None, by, NOW).expect("random").0.hash()
    }

    #[test]
    fn a_code_opens_once_and_not_for_long() {
        let codes = Codes::default();
        let (secret, ends_at) =
            codes.issue(Scope::Read, Some("tv".into()), None, NOW).expect("random");
        assert!(secret.expose().len() * 4 >= 128, "128 bits");
        assert_eq!(codes.take(&secret::hash("another"), NOW), None);
        let code = codes.take(&secret.hash(), NOW).expect("it opens");
        assert_eq!((code.scope, code.name.as_deref()), (Scope::Read, Some("tv")));
        assert_eq!(codes.take(&secret.hash(), NOW), None, "once");
        codes.put_back(code);
        assert_eq!(codes.take(&secret.hash(), ends_at), None, "it has ended");
        assert_eq!(codes.take(&secret.hash(), NOW), None, "and is gone");
    }

    #[test]
    fn codes_are_few_and_go_with_who_made_them() {
        let codes = Codes::default();
        let first = issue(&codes, None);
        let all: Vec<Hash> = (0..limits::CODES_MAX).map(|_| issue(&codes, None)).collect();
        assert_eq!(codes.take(&first, NOW), None, "the oldest had to go");
        assert!(codes.take(&all[0], NOW).is_some());
        let thief = CredentialId::random();
        let (theirs, mine) =
            (issue(&codes, Some(thief)), issue(&codes, Some(CredentialId::random())));
        codes.forget(thief);
        assert_eq!(codes.take(&theirs, NOW), None);
        assert!(codes.take(&mine, NOW).is_some());
    }
}
