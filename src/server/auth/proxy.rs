//! Those who have logged in at a proxy in front of us. A header says who they are; it counts only
//! from the proxy's own addresses, since everybody can send a header. Must not know sessions.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::scope::Scope;
use crate::limits;
use crate::server::stream::Peer;

/// What is trusted, and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// The header with the person's name; `None` where the proxy logs nobody in.
    pub header: Option<HeaderName>,
    /// Where the proxy may connect from.
    pub networks: Vec<IpNet>,
    /// What those who come by it may do.
    pub scope: Scope,
}

impl Proxy {
    /// Who the proxy says is there: 1 to `limits::NAME_BYTES_MAX` bytes that can be printed. A
    /// header that is there twice says nothing.
    #[must_use]
    pub fn person(&self, headers: &HeaderMap, peer: Peer) -> Option<String> {
        if !self.trusts(peer) {
            return None;
        }
        let mut values = headers.get_all(self.header.as_ref()?).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let name = std::str::from_utf8(value.as_bytes()).ok()?.trim();
        let fits = (1..=limits::NAME_BYTES_MAX).contains(&name.len());
        (fits && !name.chars().any(char::is_control)).then(|| name.to_owned())
    }

    /// Whose attempts are counted: the last address of `X-Forwarded-For` that is not the proxy's,
    /// if it is the proxy that says so. Each proxy adds to the right, so what is further left may
    /// be anybody's invention.
    #[must_use]
    pub fn client(&self, headers: &HeaderMap, peer: Peer) -> Peer {
        if !self.trusts(peer) {
            return peer;
        }
        let values = headers.get_all("x-forwarded-for").iter().rev();
        let addresses = values.filter_map(|value| value.to_str().ok()).flat_map(|v| v.rsplit(','));
        for address in addresses {
            match address.trim().parse::<IpAddr>().map(|address| address.to_canonical()) {
                Ok(address) if self.is_inside(address) => {}
                Ok(address) => return Peer::Tcp(address),
                Err(_) => break,
            }
        }
        peer
    }

    fn trusts(&self, peer: Peer) -> bool {
        matches!(peer, Peer::Tcp(address) if self.is_inside(address))
    }

    fn is_inside(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn proxy() -> Proxy {
        Proxy {
            header: Some(HeaderName::from_static("remote-user")),
            networks: ["10.0.0.0/30", "::1/128"].map(|net| net.parse().expect("a network")).into(),
            scope: Scope::Control,
        }
    }

    fn peer(text: &str) -> Peer {
        Peer::Tcp(text.parse::<IpAddr>().expect("an address").to_canonical())
    }

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn a_name_counts_from_the_proxy_alone() {
        let named = headers(&[("remote-user", "Jos\u{e9}".as_bytes())]);
        for inside in ["10.0.0.1", "::ffff:10.0.0.2", "::1"] {
            assert_eq!(
                proxy().person(&named, peer(inside)).as_deref(),
                Some("Jos\u{e9}"),
                "{inside}"
            );
        }
        for outside in ["10.0.0.4", "127.0.0.1", "::2"] {
            assert_eq!(proxy().person(&named, peer(outside)), None, "{outside}");
        }
        assert_eq!(proxy().person(&named, Peer::Local), None);
        let inside = peer("10.0.0.1");
        assert_eq!(proxy().person(&HeaderMap::new(), inside), None);
        let long = [b'x'; limits::NAME_BYTES_MAX + 1];
        for bad in [&b""[..], b"  ", b"a\tb", b"\xff", &long] {
            assert_eq!(proxy().person(&headers(&[("remote-user", bad)]), inside), None);
        }
        let twice = headers(&[("remote-user", b"a"), ("remote-user", b"b")]);
        assert_eq!(proxy().person(&twice, inside), None);
        let nobody = Proxy { header: None, ..proxy() };
        assert_eq!(nobody.person(&named, inside), None);
    }

    #[test]
    fn the_client_is_the_last_that_is_no_proxy() {
        let client = |value: &str, from: &str| {
            proxy().client(&headers(&[("x-forwarded-for", value.as_bytes())]), peer(from))
        };
        assert_eq!(client("1.1.1.1, 192.0.2.7, 10.0.0.2", "10.0.0.1"), peer("192.0.2.7"));
        assert_eq!(client("192.0.2.7", "10.0.0.1"), peer("192.0.2.7"));
        assert_eq!(client("192.0.2.7", "192.0.2.99"), peer("192.0.2.99"), "anybody can say so");
        assert_eq!(client("192.0.2.7, unknown", "10.0.0.1"), peer("10.0.0.1"));
        assert_eq!(client("", "10.0.0.1"), peer("10.0.0.1"));
        let twice = [("x-forwarded-for", &b"192.0.2.7"[..]), ("x-forwarded-for", b"192.0.2.8")];
        assert_eq!(proxy().client(&headers(&twice), peer("10.0.0.1")), peer("192.0.2.8"));
    }
}
