//! The closed lists behind the labels: whatever happens, a metric has so many series and no more.

use prometheus_client::encoding::EncodeLabelSet;

/// A list of words, each the value of a label.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As the label says it.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// How a client hears of sessions.
    Transport {
        /// A WebSocket.
        WebSocket = "ws",
        /// Server-sent events.
        Events = "sse",
        /// A WebSocket of our own command line.
        Cli = "cli",
    }
}

words! {
    /// How a client began to follow a session.
    Attach {
        /// From somewhere in the log, or live.
        New = "new",
        /// After what it had seen.
        Resume = "resume",
    }
}

words! {
    /// Why a client's connection ended.
    Drop {
        /// It took no byte for `timeouts.stall`.
        Slow = "slow",
        /// It left a ping unanswered.
        Heartbeat = "heartbeat",
        /// It said too much.
        Rate = "rate",
        /// Its credential was revoked or ran out.
        Auth = "auth",
        /// The server stopped.
        Shutdown = "shutdown",
        /// It closed, or is gone.
        Peer = "peer",
        /// Nothing more will come of the one session that it followed: that is deleted.
        Deleted = "deleted",
        /// It broke the protocol, or sent a message that was too long.
        Protocol = "protocol",
    }
}

words! {
    /// What a session does.
    Session {
        /// A run is on.
        Running = "running",
        /// A run is on and waits for somebody's answer.
        Waiting = "waiting",
        /// No run is on.
        Idle = "idle",
        /// Put aside.
        Archived = "archived",
    }
}

words! {
    /// How an agent's process came to its end.
    Exit {
        /// With exit code 0.
        Exited = "exited",
        /// With another exit code.
        Failed = "failed",
        /// By a signal.
        Signal = "signal",
        /// With its keeper: nobody saw it.
        Lost = "lost",
        /// It was never started.
        SpawnFailed = "spawn_failed",
    }
}

words! {
    /// What became of a permission request.
    Decision {
        /// Allowed, this once.
        AllowOnce = "allow_once",
        /// Allowed, with a rule or a choice for the next times.
        AllowRule = "allow_rule",
        /// Denied.
        Deny = "deny",
        /// The agent waited no longer.
        Expired = "expired",
        /// The agent took it back.
        Withdrawn = "withdrawn",
        /// Its run ended first.
        RunEnded = "run_ended",
    }
}

words! {
    /// Who decided a permission request.
    Source {
        /// Somebody at the page.
        Web = "web",
        /// Somebody at the command line.
        Cli = "cli",
        /// A program.
        Api = "api",
        /// A saved rule.
        Rule = "rule",
        /// Nobody: the agent or its run's end.
        Agent = "agent",
    }
}

words! {
    /// What a request lacked.
    AuthFailure {
        /// It came without a credential.
        Missing = "missing",
        /// Its token is none.
        Token = "token",
        /// Its cookie is none.
        Cookie = "cookie",
        /// A login with a wrong code.
        Login = "login",
        /// Too many attempts before it.
        Limited = "limited",
        /// Its credential may not do that.
        Scope = "scope",
        /// It was for another host.
        Host = "host",
        /// Another web site sent it.
        Origin = "origin",
    }
}

/// The provider's name of those that are configured, else `OTHER`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Agent {
    pub(super) agent: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct AgentOutcome {
    pub(super) agent: String,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct AgentReason {
    pub(super) agent: String,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct State {
    pub(super) state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Of {
    pub(super) transport: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct OfKind {
    pub(super) transport: &'static str,
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Reason {
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Kind {
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Decided {
    pub(super) decision: &'static str,
    pub(super) source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Waited {
    pub(super) decision: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Sent {
    pub(super) sink: String,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) route: &'static str,
    pub(super) code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Build {
    pub(super) version: &'static str,
    pub(super) revision: &'static str,
}
