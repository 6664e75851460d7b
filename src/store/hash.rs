//! The hash of a run's events, which says later that they are still those that were written.
//!
//! A chain: what was written so far, hashed with what comes next. It goes on from its bytes alone,
//! so the row of a run is all that the next commit needs. Must not know what is in an event.

use sha2::{Digest as _, Sha256};

/// The hash of what a run has so far: `h = SHA-256(h of before || bytes)` for its head, each event,
/// and after a frame that was cut its whole, in this order, from 32 zero bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RunHash([u8; 32]);

impl RunHash {
    /// Goes on from what is stored.
    pub(super) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What is stored.
    pub(super) const fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The next bytes of the run.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0 = Sha256::new().chain_update(self.0).chain_update(bytes).finalize().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_borders_count_and_it_goes_on_from_its_bytes() {
        let of = |parts: &[&str]| {
            parts.iter().fold(RunHash::default(), |mut hash, part| {
                hash.add(part.as_bytes());
                RunHash::from_bytes(hash.bytes())
            })
        };
        let hash = of(&["head", "one", "two"]);
        for other in [&["head", "two", "one"][..], &["head", "onetwo"], &["head", "one", "twp"]] {
            assert_ne!(of(other), hash, "{other:?}");
        }
        // Stored in databases: it never changes.
        let hex: String = hash.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, HASH);
    }

    const HASH: &str = "3e6786f10c6b94691cf0a52fc187c6f85a8172ed45200b00e88e716ed1b128d9";
}
