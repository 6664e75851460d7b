//! Secrets: made at random, kept as hashes only, never shown by accident. Must not know what they
//! open.

use std::fmt;
use std::io;

use constant_time_eq::constant_time_eq_32;
use sha2::{Digest, Sha256};

/// SHA-256 of a secret. Secrets are random and long, so that a slow hash would protect nothing.
pub(super) type Hash = [u8; 32];

/// A secret as its owner needs it. It does not show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// `prefix` and `bytes` random bytes, as hexadecimal digits.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn random(prefix: &str, bytes: usize) -> io::Result<Self> {
        let mut random = vec![0_u8; bytes];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(format!("{prefix}{digits}")))
    }

    /// One that lies somewhere already.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The secret itself: for its owner, or to be sent to them.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> Hash {
        hash(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What is kept of a secret that somebody shows.
#[must_use]
pub(super) fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

/// The one of `items` with this hash. All of them are looked at, each in constant time, whatever
/// is found: how long it takes tells nothing of what there is.
pub(super) fn find<T>(
    items: impl Iterator<Item = T>,
    of: impl Fn(&T) -> Hash,
    wanted: &Hash,
) -> Option<T> {
    let mut found = None;
    for item in items {
        if constant_time_eq_32(&of(&item), wanted) {
            found = Some(item);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_do_not_show() {
        let one = Secret::random("rat_", 32).expect("random");
        let two = Secret::random("rat_", 32).expect("random");
        assert_ne!(one, two);
        assert_eq!(one.expose().len(), "rat_".len() + 64);
        assert!(!format!("{one:?}").contains(&one.expose()[4..]));
    }

    #[test]
    fn what_is_looked_for_is_found_wherever_it_is() {
        let all = ["a", "b", "c"];
        for one in all {
            let found = find(all.iter(), |item| hash(item), &hash(one));
            assert_eq!(found, Some(&one));
        }
        assert_eq!(find(all.iter(), |item| hash(item), &hash("d")), None);
    }
}
