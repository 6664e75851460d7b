//! Where notifications go, and of what: what the configuration says.
//!
//! Must not know how a configuration is written, or how anything is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::registry::Occasion;
use crate::run::event::{Interaction, Reason};

/// A sink: one way to reach somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// What it is called.
    pub name: String,
    /// How it is reached.
    pub kind: Kind,
    /// What it is told of.
    pub events: BTreeSet<EventKind>,
    /// How much of it.
    pub detail: Detail,
    /// How long one try may take, in milliseconds.
    pub timeout_ms: i64,
    /// A request that was not told of because somebody seemed to look is told of after all when it
    /// has waited this long, in milliseconds; 0 is never.
    pub unanswered_ms: i64,
}

/// How a sink is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A program is started; the notification is its input.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to its short environment.
        env: BTreeMap<String, String>,
    },
    /// A JSON object is posted.
    Webhook {
        /// Where to. Often a secret by itself.
        url: Secret,
        /// For `Authorization: Bearer`.
        token: Option<Secret>,
    },
    /// An ntfy server.
    Ntfy {
        /// The server's root.
        url: Secret,
        /// On a public server whoever knows it can read along.
        topic: Secret,
        /// For `Authorization: Bearer`.
        token: Option<Secret>,
    },
}

impl Kind {
    /// The configuration's word for it.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Command { .. } => "command",
            Self::Webhook { .. } => "webhook",
            Self::Ntfy { .. } => "ntfy",
        }
    }
}

/// A text that does not show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a person may be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A run ended well.
    RunFinished,
    /// A run ended badly.
    RunFailed,
    /// A run's agent is gone and nobody knows how it ended.
    AgentLost,
    /// An agent has a question.
    QuestionAsked,
    /// An agent waits for a permission.
    PermissionAsked,
}

impl EventKind {
    /// All of them; of several the last one is the most urgent.
    pub const ALL: [Self; 5] = [
        Self::RunFinished,
        Self::RunFailed,
        Self::AgentLost,
        Self::QuestionAsked,
        Self::PermissionAsked,
    ];

    /// The word of the configuration and the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::RunFinished => "run_finished",
            Self::RunFailed => "run_failed",
            Self::AgentLost => "agent_lost",
            Self::QuestionAsked => "question_asked",
            Self::PermissionAsked => "permission_asked",
        }
    }

    /// Whether a person has to do something before the agent can go on.
    #[must_use]
    pub const fn waits(self) -> bool {
        matches!(self, Self::QuestionAsked | Self::PermissionAsked)
    }

    /// Whether it is told also to somebody who looks at the session: what went wrong is rare, and
    /// told once too often rather than not at all.
    #[must_use]
    pub const fn always(self) -> bool {
        matches!(self, Self::RunFailed | Self::AgentLost)
    }

    /// What a request for this kind of answer is.
    #[must_use]
    pub const fn of_interaction(interaction: Interaction) -> Self {
        match interaction {
            Interaction::Question => Self::QuestionAsked,
            Interaction::Tool | Interaction::Plan => Self::PermissionAsked,
        }
    }

    /// Whether a sink that wants `events` may want this: a request has to be read first.
    #[must_use]
    pub fn may_be_wanted(events: &BTreeSet<Self>, what: &Occasion) -> bool {
        match what {
            Occasion::Asked(_) => events.iter().any(|event| event.waits()),
            Occasion::Ended { reason, success, aborted } => {
                Self::of_end(*reason, *success, *aborted).is_some_and(|one| events.contains(&one))
            }
        }
    }

    /// What an end is. Who stopped a run knows that it ended.
    #[must_use]
    pub const fn of_end(reason: Reason, success: bool, aborted: bool) -> Option<Self> {
        match reason {
            _ if aborted => None,
            _ if success => Some(Self::RunFinished),
            Reason::AgentLost => Some(Self::AgentLost),
            _ => Some(Self::RunFailed),
        }
    }
}

/// How much a notification says: it passes through machines of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Also the command or question, the error, and the session's title.
    Full,
    /// Which tool of which agent in which project.
    Tool,
    /// That something waits, or has ended.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let of = EventKind::of_end;
        assert_eq!(of(Reason::Finished, true, false), Some(EventKind::RunFinished));
        assert_eq!(of(Reason::Finished, false, false), Some(EventKind::RunFailed));
        assert_eq!(of(Reason::AgentExited, false, false), Some(EventKind::RunFailed));
        assert_eq!(of(Reason::AgentLost, false, false), Some(EventKind::AgentLost));
        assert_eq!(of(Reason::Aborted, false, true), None, "who stops a run knows that it ends");
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::new("tk_verysecret");
        let kind = Kind::Webhook { url: secret.clone(), token: Some(secret) };
        assert!(!format!("{kind:?}").contains("verysecret"), "{kind:?}");
    }
}
