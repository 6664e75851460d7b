//! Ids and positions as types of their own, so that none can stand in for another.
//!
//! Must not know how they are stored or sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $make:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, unlike all others.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::$make())
            }

            /// For tests and models, which need the same ids in each execution.
            #[must_use]
            pub const fn from_u128(n: u128) -> Self {
                Self(Uuid::from_u128(n))
            }

            /// The sixteen bytes, as the store keeps them.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From the sixteen bytes of the store.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(s).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.as_hyphenated())
            }
        }
    };
}

uuid_id!(
    /// A conversation's app id: stable, outlives runs, devices and restarts.
    SessionId,
    new_v4
);
uuid_id!(
    /// One turn of one session. Version 7, so that ids sort by the time of their start.
    RunId,
    now_v7
);
uuid_id!(
    /// One agent process. Its tag in the environment is how leftovers are found (I21).
    AgentId,
    new_v4
);
uuid_id!(
    /// The incarnation of the database: made with it, new at each restore of a backup.
    LogEpoch,
    new_v4
);

uuid_id!(
    /// A device or an API token: what lists name and what is revoked, never the secret.
    CredentialId,
    new_v4
);
uuid_id!(
    /// A prompt that waits in its session's queue.
    QueueId,
    new_v4
);

uuid_id!(
    /// A file that was given to a session. Version 7, so that ids sort by the time of their making.
    UploadId,
    now_v7
);

/// Milliseconds since 1970-01-01 UTC. Passed in everywhere: the core has no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub i64);

impl Millis {
    /// The time of the wall clock. Only threads at the edge call this.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    /// This time plus `ms`.
    #[must_use]
    pub const fn plus(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl fmt::Display for Millis {
    /// ISO 8601, UTC, milliseconds, `Z`; times out of the calendar's range print as its ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0).unwrap_or(if self.0 < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        });
        write!(f, "{time:.3}")
    }
}

/// A run's ordinal in its session, from 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Ordinal(pub u32);

/// An event's number in its run: from 1, dense (I2). 0 is the run's head, `run_started`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A session position: the run's ordinal, then the seq in it, compared in that order.
///
/// `run_started` of run k is (k, 0). A cursor is the last position seen; the position just before
/// (k, 0) is (k - 1, `Seq::LAST`), which is after everything that run k - 1 can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The run's ordinal in its session; 0 is before all runs.
    pub ordinal: Ordinal,
    /// The seq in that run.
    pub seq: Seq,
}

impl Position {
    /// Before everything that a session can hold.
    pub const START: Self = Self { ordinal: Ordinal(0), seq: Seq(0) };

    /// The position of an event of a run.
    #[must_use]
    pub const fn new(ordinal: Ordinal, seq: Seq) -> Self {
        Self { ordinal, seq }
    }

    /// The cursor that excludes everything before run `ordinal` and includes its head.
    #[must_use]
    pub const fn before_run(ordinal: Ordinal) -> Self {
        Self { ordinal: Ordinal(ordinal.0.saturating_sub(1)), seq: Seq(u64::MAX) }
    }
}

/// The id of an event's envelope: a UUID in form (version 8), derived from run and seq, so that
/// a second fold of the same records gives the same bytes.
#[must_use]
pub fn event_id(run: RunId, seq: Seq) -> Uuid {
    let (high, low) = run.0.as_u64_pair();
    let mixed = Uuid::from_u64_pair(high, low.wrapping_add(seq.0));
    uuid::Builder::from_custom_bytes(*mixed.as_bytes()).into_uuid()
}

/// The provider's own id for a conversation. It stands in no field that we write, save
/// `session_upserted` (I10).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NativeId(pub String);

/// The id of a permission request as clients see it: the agent's own, with a prefix that makes
/// it unique on this server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub String);

/// What makes a resent prompt harmless (I19). Unique within its session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientMessageId(pub String);

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn event_ids_are_uuids_and_differ_by_seq() {
        let run = RunId::random();
        let a = event_id(run, Seq(1));
        assert_eq!(a, event_id(run, Seq(1)));
        assert_ne!(a, event_id(run, Seq(2)));
        assert_eq!(a.get_version_num(), 8);
        assert_eq!(a.get_variant(), uuid::Variant::RFC4122);
    }

    #[test]
    fn a_cursor_before_a_run_includes_its_head_and_excludes_the_run_before() {
        let cursor = Position::before_run(Ordinal(2));
        assert!(cursor < Position::new(Ordinal(2), Seq(0)));
        assert!(cursor > Position::new(Ordinal(1), Seq(1_000_000)));
    }

    #[test]
    fn times_print_as_iso_8601_with_milliseconds() {
        assert_eq!(Millis(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Millis(1_764_000_000_123).to_string(), "2025-11-24T16:00:00.123Z");
    }
}
