//! What can be wrong on the way from a browser to the server, in words, and what mends it.
//!
//! The lines are nginx's, since that is where each of these has to be said; a word for Caddy where it
//! differs. Must not know how a trouble is found.

use super::wire::Lost;
use crate::cli::target::Base;

/// Something that is wrong.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The name has no address.
    Name(String),
    /// Nothing answers, or in words that are not HTTP.
    Silent { what: &'static str, why: String },
    /// A proxy answers for a server that it does not reach.
    Gateway(u16),
    /// The `Host` that arrives is not accepted; `configured` if the one that was sent is.
    Host { configured: bool },
    /// The `Origin` of the page is not accepted.
    Origin,
    /// The page is somewhere else.
    Redirect(String),
    /// Nothing is at that path.
    SubPath,
    /// A file of the page does not come.
    Asset { name: String, status: u16 },
    /// Addresses in the page are not as we sent them.
    Rewritten(String),
    /// Something before the server asks for a login of its own.
    ProxyLogin,
    /// Any other answer.
    Status { status: u16, what: &'static str },
    /// The `Upgrade` header does not arrive.
    UpgradeStripped,
    /// The answer to the upgrade does not come back.
    UpgradeSilent,
    /// The upgrade is answered by something else.
    UpgradeStatus(u16),
    /// The WebSocket does not work otherwise.
    WebSocket(String),
    /// The token is not accepted.
    Token,
    /// A stream does not arrive as it is sent.
    Buffered,
}

impl Trouble {
    /// That there is no answer to what was asked for.
    pub(super) fn lost(lost: &Lost, what: &'static str) -> Self {
        let why = match lost {
            Lost::Refused(failure) => failure.message.clone(),
            Lost::Io(error) => error.to_string(),
            Lost::Late(answer) if answer.status == 0 => "no answer comes".to_owned(),
            Lost::Late(_) => "the answer begins and does not end".to_owned(),
            Lost::NotHttp => "what answers does not speak HTTP".to_owned(),
        };
        Self::Silent { what, why }
    }

    /// A word for programs.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::Silent { .. } => "no_answer",
            Self::Gateway(_) => "bad_gateway",
            Self::Host { .. } => "host",
            Self::Origin => "origin",
            Self::Redirect(_) => "redirect",
            Self::SubPath => "sub_path",
            Self::Asset { .. } => "asset",
            Self::Rewritten(_) => "rewritten",
            Self::ProxyLogin => "proxy_login",
            Self::Status { .. } => "status",
            Self::UpgradeStripped => "upgrade_stripped",
            Self::UpgradeSilent => "upgrade_silent",
            Self::UpgradeStatus(_) => "upgrade_status",
            Self::WebSocket(_) => "websocket",
            Self::Token => "token",
            Self::Buffered => "buffered",
        }
    }

    /// What is wrong, and what mends it.
    pub(super) fn words(&self, base: &Base) -> (String, String) {
        let url = base.http("");
        match self {
            Self::Name(why) => (
                format!("{base}: its name has no address: {why}"),
                "check the spelling, and the DNS entry".to_owned(),
            ),
            Self::Silent { what, why } => (
                format!("{base}: {what}: {why}"),
                "check that the proxy runs and listens there, and that no firewall is between"
                    .to_owned(),
            ),
            Self::Gateway(status) => (
                format!("the proxy answers {status}: it does not reach the server"),
                "check that the server runs (`server` above), and the proxy's address for it:\n\
                 proxy_pass http://127.0.0.1:7878;"
                    .to_owned(),
            ),
            Self::Host { configured: true } => (
                "the proxy changes the Host header, so the server refuses it (421)".to_owned(),
                "let it keep the one that the browser sends:\nproxy_set_header Host $http_host;"
                    .to_owned(),
            ),
            Self::Host { configured: false } => (
                format!("the server does not answer to the host name of {base} (421)"),
                format!(
                    "say in config.toml what browsers see, and start it anew:\n[server]\n\
                     public_url = \"{url}\"\n\
                     if that stands there: the proxy changes the Host header, and needs\n\
                     proxy_set_header Host $http_host;"
                ),
            ),
            Self::Origin => (
                "the server refuses the page's own Origin (403)".to_owned(),
                format!(
                    "say in config.toml what browsers see, scheme and port as well, and start it \
                     anew:\n[server]\npublic_url = \"{url}\""
                ),
            ),
            Self::Redirect(place) => (
                format!("the page is somewhere else: {place}"),
                format!("probe that address, and let server.public_url name it instead of {url}"),
            ),
            Self::SubPath => (
                format!("nothing is at {base} (404): proxy and server differ about the sub-path"),
                format!(
                    "pass the whole path on, and say it in config.toml:\nlocation {}/ {{ proxy_pass \
                     http://127.0.0.1:7878; }}\n[server]\npublic_url = \"{url}\"",
                    base.path()
                ),
            ),
            Self::Asset { name, status } => (
                format!("the page comes, and its file {name} does not (status {status})"),
                format!(
                    "pass on everything below the path, not the page alone:\nlocation {}/ {{ \
                     proxy_pass http://127.0.0.1:7878; }}",
                    base.path()
                ),
            ),
            Self::Rewritten(link) => (
                format!("the proxy rewrites the page: it names {link}"),
                "remove sub_filter, or what else changes bodies: addresses in the page are \
                 relative, and right under every path"
                    .to_owned(),
            ),
            Self::ProxyLogin => (
                "something before the server asks for a login of its own (401)".to_owned(),
                "log in there in a browser; the server itself cannot be seen from here".to_owned(),
            ),
            Self::Status { status, what } => (
                format!("{base}: {what} gets status {status}, which is not ours"),
                "check what answers at this address".to_owned(),
            ),
            Self::UpgradeStripped => (
                "the Upgrade header does not arrive: the proxy removes it, so there is no \
                 WebSocket"
                    .to_owned(),
                UPGRADE.to_owned(),
            ),
            Self::UpgradeSilent => (
                "the WebSocket's request gets no answer: something on the way holds it back"
                    .to_owned(),
                UPGRADE.to_owned(),
            ),
            Self::UpgradeStatus(status) => (
                format!("the WebSocket's request gets status {status}, which is not the server's"),
                UPGRADE.to_owned(),
            ),
            Self::WebSocket(why) => {
                (format!("the WebSocket does not work: {why}"), UPGRADE.to_owned())
            }
            Self::Token => (
                "the server does not accept the token".to_owned(),
                "check REATTACH_TOKEN; without it the data directory's own token is used"
                    .to_owned(),
            ),
            Self::Buffered => (
                "a stream does not arrive as it is sent: the proxy keeps it back (buffers)"
                    .to_owned(),
                "proxy_buffering off;\nproxy_http_version 1.1;\n(Caddy: flush_interval -1)"
                    .to_owned(),
            ),
        }
    }
}

const UPGRADE: &str = "proxy_http_version 1.1;\n\
                       proxy_set_header Upgrade $http_upgrade;\n\
                       proxy_set_header Connection \"upgrade\";\n\
                       proxy_read_timeout 1h;";
