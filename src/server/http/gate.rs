//! Whether a request comes from where it should: the checks that keep other web sites out.
//!
//! A local server that can run code is the prize of DNS rebinding and cross-site requests, so
//! these come before routing and before any credential. Must not know routes or tokens.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::{HeaderMap, StatusCode, header};

use crate::server::http::response::Refused;

/// The names under which we are reached.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    hosts: BTreeSet<String>,
    /// Any address may be named as a host: all of this machine's are listened on.
    addresses: bool,
    public_origin: Option<String>,
    base_path: String,
}

/// A `public_url` that cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("public_url {url:?} {why}")]
pub struct BadUrl {
    url: String,
    why: &'static str,
}

impl Gate {
    /// Loopback names, the address that is listened on, `allowed`, and what `public_url` says
    /// (empty for none).
    ///
    /// # Errors
    /// If `public_url` is no http or https URL of a host and a path.
    pub fn new(bind: IpAddr, allowed: &[String], public_url: &str) -> Result<Self, BadUrl> {
        let mut gate = Self::default();
        gate.hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
        // An address can't be rebound, as a name can.
        gate.addresses = bind.is_unspecified();
        if !bind.is_unspecified() {
            gate.hosts.insert(match bind {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            });
        }
        gate.hosts.extend(allowed.iter().map(|host| host.to_ascii_lowercase()));
        if public_url.is_empty() {
            return Ok(gate);
        }
        let bad = |why| BadUrl { url: public_url.to_owned(), why };
        let (scheme, rest) = public_url
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
            .ok_or_else(|| bad("must begin with http:// or https://"))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = host_name(authority).ok_or_else(|| bad("must name a host"))?;
        if path.contains(['?', '#']) || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad("must end with its path"));
        }
        gate.hosts.insert(host);
        let authority = authority.to_ascii_lowercase();
        // Browsers leave a scheme's own port out of `Origin`.
        let usual = if scheme == "https" { ":443" } else { ":80" };
        let authority = authority.strip_suffix(usual).unwrap_or(&authority);
        gate.public_origin = Some(format!("{scheme}://{authority}"));
        path.trim_end_matches('/').clone_into(&mut gate.base_path);
        Ok(gate)
    }

    /// The path of `public_url` without its last slash: empty if we are at the root.
    #[must_use]
    pub fn base_path(&self) -> &str {
        &self.base_path
    }

    /// Whether browsers reach us by https.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.public_origin.as_ref().is_some_and(|origin| origin.starts_with("https://"))
    }

    /// Checks a request that has exactly one `Host`.
    ///
    /// # Errors
    /// 400, 421 or 403.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let authority = text(headers, header::HOST).unwrap_or_default().to_ascii_lowercase();
        let Some(host) = host_name(&authority) else {
            let message = "The Host header is malformed.";
            return Err(Refused::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message));
        };
        let own = self.hosts.contains(&host) || (self.addresses && is_address(&host));
        if !own {
            let message = "This server does not answer to that host name. \
                           Add it to server.allowed_hosts if it should.";
            return Err(Refused::new(StatusCode::MISDIRECTED_REQUEST, "HOST_NOT_ALLOWED", message));
        }
        if headers.contains_key(header::ORIGIN) && !self.is_own_origin(headers, &authority) {
            let message = "Other web sites may not use this server.";
            return Err(Refused::new(StatusCode::FORBIDDEN, "ORIGIN_NOT_ALLOWED", message));
        }
        let mut sites = headers.get_all("sec-fetch-site").iter();
        let own = sites.all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
        if own || is_followed_link(headers) {
            return Ok(());
        }
        let message = "Other web sites may not use this server.";
        Err(Refused::new(StatusCode::FORBIDDEN, "ORIGIN_NOT_ALLOWED", message))
    }

    /// The page's own origin is that of the host it was asked from, or the public one.
    fn is_own_origin(&self, headers: &HeaderMap, authority: &str) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (Some(Ok(origin)), None) = (origins.next().map(|one| one.to_str()), origins.next())
        else {
            return false;
        };
        self.public_origin.as_deref() == Some(origin)
            || origin.strip_prefix("http://").is_some_and(|rest| rest == authority)
    }
}

/// Somebody followed a link from another site to the page: it fills a tab of its own, where that
/// site can't read it. Scripts and frames have another mode or destination, forms an `Origin`; the
/// browser sets all of these.
fn is_followed_link(headers: &HeaderMap) -> bool {
    text(headers, "sec-fetch-mode") == Some("navigate")
        && text(headers, "sec-fetch-dest") == Some("document")
        && !headers.contains_key(header::ORIGIN)
}

/// The one value of a header; `None` if it is absent, `Some("")` if it is no text.
fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

/// Whether a host is written as an address.
fn is_address(host: &str) -> bool {
    host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok()
}

/// The host of `host[:port]`, in lower case; `None` if it cannot be one.
fn host_name(authority: &str) -> Option<String> {
    let (host, port) = match authority.rfind(':') {
        Some(colon) if !authority.ends_with(']') => (&authority[..colon], &authority[colon + 1..]),
        _ => (authority, "1"),
    };
    let port_fits = port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host_fits = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            !host.is_empty() && host.bytes().all(fits)
        }
    };
    (port_fits && host_fits).then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn gate(public_url: &str) -> Gate {
        let bind = "192.0.2.7".parse().expect("an address");
        Gate::new(bind, &["Box.example".into()], public_url).expect("a gate")
    }

    fn status(gate: &Gate, headers: &[(&str, &str)]) -> u16 {
        let pairs = headers.iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_str(value).expect("a value"))
        });
        match gate.admit(&pairs.collect()) {
            Ok(()) => 200,
            Err(refused) => refused.status.as_u16(),
        }
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let gate = gate("https://pub.example/agents/");
        for host in [
            "localhost",
            "LOCALHOST:7878",
            "127.0.0.1:1",
            "[::1]:7878",
            "[::1]",
            "192.0.2.7:7878",
            "box.example:80",
            "pub.example",
        ] {
            assert_eq!(status(&gate, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.2", "[::2]"] {
            assert_eq!(status(&gate, &[("host", host)]), 421, "{host}");
        }
        for host in ["", ":80", "localhost:", "localhost:x", "local host", "a@localhost", "[::1"] {
            assert_eq!(status(&gate, &[("host", host)]), 400, "{host}");
        }
        assert_eq!(gate.base_path(), "/agents");
        assert!(gate.is_https());
    }

    #[test]
    fn who_listens_everywhere_has_many_addresses_and_no_more_names() {
        let gate = Gate::new("0.0.0.0".parse().expect("an address"), &[], "").expect("a gate");
        for host in ["192.0.2.7:7878", "[2001:db8::1]:7878", "localhost"] {
            assert_eq!(status(&gate, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "192.0.2.7.evil.example", "192.0.2", "3221225991", "0x7f.1"] {
            assert_eq!(status(&gate, &[("host", host)]), 421, "{host}");
        }
    }

    #[test]
    fn only_our_own_pages_may_ask() {
        let gate = gate("https://pub.example");
        let origin = |host, origin| status(&gate, &[("host", host), ("origin", origin)]);
        assert_eq!(origin("localhost:7878", "http://localhost:7878"), 200);
        assert_eq!(origin("pub.example", "https://pub.example"), 200);
        assert_eq!(origin("localhost:7878", "https://pub.example"), 200);
        for (host, other) in [
            ("localhost:7878", "http://localhost:7879"),
            ("localhost:7878", "http://localhost"),
            ("localhost:7878", "http://127.0.0.1:7878"),
            ("localhost:7878", "https://localhost:7878"),
            ("localhost:7878", "null"),
            ("localhost:7878", ""),
            ("localhost:7878", "http://evil.example"),
            ("pub.example", "https://pub.example.evil.example"),
        ] {
            assert_eq!(origin(host, other), 403, "{host} {other}");
        }
        let twice = "http://localhost:7878";
        let headers = [("host", "localhost:7878"), ("origin", twice), ("origin", twice)];
        assert_eq!(status(&gate, &headers), 403);
        let site = |site| status(&gate, &[("host", "localhost"), ("sec-fetch-site", site)]);
        assert_eq!([site("same-origin"), site("none")], [200, 200]);
        assert_eq!([site("same-site"), site("cross-site"), site("")], [403, 403, 403]);
        let other = |mode, dest| {
            let site = [("host", "localhost"), ("sec-fetch-site", "cross-site")];
            status(&gate, &[site[0], site[1], ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)])
        };
        assert_eq!(other("navigate", "document"), 200, "a link");
        assert_eq!(other("navigate", "iframe"), 403, "a frame");
        assert_eq!([other("no-cors", "empty"), other("cors", "document")], [403, 403], "a script");
        let form = [
            ("host", "localhost"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert_eq!(status(&gate, &form), 403, "a form");
    }

    #[test]
    fn a_public_url_may_name_the_port_that_browsers_leave_out() {
        let origin = |url, origin| {
            let host = origin_host(origin);
            status(&gate(url), &[("host", host), ("origin", origin)])
        };
        assert_eq!(origin("https://pub.example:443/a", "https://pub.example"), 200);
        assert_eq!(origin("http://pub.example:80", "http://pub.example"), 200);
        assert_eq!(origin("https://pub.example:8443", "https://pub.example:8443"), 200);
        assert_eq!(origin("https://pub.example:8443", "https://pub.example"), 403);
    }

    fn origin_host(origin: &str) -> &str {
        origin.split_once("://").expect("an origin").1
    }

    #[test]
    fn a_public_url_is_checked() {
        let bind = "127.0.0.1".parse().expect("an address");
        for url in ["pub.example", "ftp://pub.example", "https://", "https://a b/", "https://a/?x"]
        {
            assert!(Gate::new(bind, &[], url).is_err(), "{url}");
        }
    }
}
