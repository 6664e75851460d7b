//! Who asks: how they proved it, what they are called, what they may do. Must not know how it is
//! proved.

use std::time::{Duration, Instant};

use http::{HeaderMap, header};

use super::scope::Scope;
use super::vault::{Lease, Watch};
use crate::limits;
use crate::run::event::{By, ByKind};
use crate::run::id::{CredentialId, Millis};
use crate::server::subscriber::CLI;
use crate::server::wait::Doorbell;

/// How somebody proved who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Not at all; for the few things that everybody may do.
    Nobody,
    /// Nobody has to: `--no-auth`.
    Open,
    /// By coming through the local socket, which is its owner's alone.
    Local,
    /// By an API token.
    Bearer,
    /// By a device's cookie.
    Cookie,
    /// By having logged in at the proxy in front of us.
    Proxy,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// How they proved it.
    pub how: How,
    /// What they may do.
    pub scope: Scope,
    /// For the record of who did what.
    pub by: By,
    /// Their device or token, if that is how.
    pub lease: Option<Lease>,
}

impl Caller {
    /// Somebody who has proved nothing, and may do nothing that needs a scope.
    #[must_use]
    pub fn nobody(headers: &HeaderMap) -> Self {
        Self::unnamed(How::Nobody, Scope::Read, headers)
    }

    /// Somebody who is let in without a name: what they call themselves has to do.
    pub(super) fn unnamed(how: How, scope: Scope, headers: &HeaderMap) -> Self {
        let kind = kind(headers, is_browser(headers));
        let name = match kind {
            ByKind::Web => String::from("page"),
            _ => user_agent(headers).chars().take(limits::NAME_BYTES_MAX).collect(),
        };
        Self { how, scope, by: By { kind, name }, lease: None }
    }

    /// Somebody with a device or a token of ours.
    pub(super) fn leased(how: How, lease: Lease, headers: &HeaderMap) -> Self {
        let kind = kind(headers, how == How::Cookie);
        let by = By { kind, name: lease.name().to_owned() };
        Self { how, scope: lease.scope(), by, lease: Some(lease) }
    }

    /// Somebody whom the proxy knows.
    pub(super) fn at_proxy(name: String, scope: Scope, headers: &HeaderMap) -> Self {
        let kind = kind(headers, is_browser(headers));
        Self { how: How::Proxy, scope, by: By { kind, name }, lease: None }
    }

    /// The id of their device or token.
    #[must_use]
    pub fn id(&self) -> Option<CredentialId> {
        self.lease.as_ref().map(Lease::id)
    }

    /// Whether their name is ours to say: then nothing that they call themselves changes it.
    #[must_use]
    pub const fn is_named(&self) -> bool {
        matches!(self.how, How::Bearer | How::Cookie | How::Proxy)
    }
}

/// What a connection that lasts was opened with, for as long as it lasts.
#[derive(Debug)]
pub struct Pass(Option<Watch>);

impl Pass {
    /// Rings `bell` if what `caller` came in by is revoked. Whoever waits for the bell asks
    /// `is_over` after this and before each wait, and waits no longer than until `deadline`.
    #[must_use]
    pub fn of(caller: &Caller, bell: Doorbell) -> Self {
        Self(caller.lease.as_ref().map(|lease| lease.watch(bell)))
    }

    /// Whether the connection is to be closed: what opened it was revoked or has expired.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|watch| watch.lease().is_over(Millis::now()))
    }

    /// When it expires, if it does, as of now.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let end = self.0.as_ref()?.lease().expires_at()?;
        let left = end.0.saturating_sub(Millis::now().0).max(0);
        now.checked_add(Duration::from_millis(left.unsigned_abs()))
    }
}

/// What a client calls itself.
#[must_use]
pub fn user_agent(headers: &HeaderMap) -> &str {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    agent.unwrap_or_default()
}

fn kind(headers: &HeaderMap, browser: bool) -> ByKind {
    match () {
        () if browser => ByKind::Web,
        () if user_agent(headers).starts_with(CLI) => ByKind::Cli,
        () => ByKind::Api,
    }
}

/// Browsers send these two with what a page asks for.
fn is_browser(headers: &HeaderMap) -> bool {
    headers.contains_key("sec-fetch-site") || headers.contains_key(header::ORIGIN)
}
