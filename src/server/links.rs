//! The addresses under which a person can open the page, to be given to a device that has none yet.
//! Must not know what is in the link.

use std::net::{IpAddr, SocketAddr};

use crate::server::auth::Secret;

/// Where the page is.
#[derive(Clone, Debug)]
pub struct Links {
    address: SocketAddr,
    public_url: String,
}

impl Links {
    /// `address` is what is listened on; `public_url` is empty if browsers see just that.
    #[must_use]
    pub fn new(address: SocketAddr, public_url: &str) -> Self {
        Self { address, public_url: public_url.trim_end_matches('/').to_owned() }
    }

    /// Whether no other machine can open any of them.
    #[must_use]
    pub fn loopback_only(&self) -> bool {
        self.public_url.is_empty() && self.address.ip().to_canonical().is_loopback()
    }

    /// The page's addresses, each with the code behind the `#`: no browser sends that part to any
    /// server, so that it is in no log and in no `Referer`. The likeliest first.
    #[must_use]
    pub fn with(&self, code: &Secret) -> Vec<String> {
        let bases = self.bases().into_iter();
        bases.map(|base| format!("{base}/#code={}", code.expose())).collect()
    }

    fn bases(&self) -> Vec<String> {
        if !self.public_url.is_empty() {
            return vec![self.public_url.clone()];
        }
        let mut addresses = match self.address.ip() {
            ip if ip.is_unspecified() => interfaces(ip),
            ip => vec![ip],
        };
        if addresses.is_empty() {
            addresses.push(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        }
        let port = self.address.port();
        addresses.into_iter().map(|ip| format!("http://{}", SocketAddr::new(ip, port))).collect()
    }
}

/// The addresses of this machine that others may reach; `listened` says whether IPv4 alone is
/// listened on.
fn interfaces(listened: IpAddr) -> Vec<IpAddr> {
    let found = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "this machine's addresses cannot be read");
        Vec::new()
    });
    let mut addresses: Vec<IpAddr> = found.iter().map(if_addrs::Interface::ip).collect();
    addresses.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => listened.is_ipv6() && !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    // IPv4 first: it is what a phone in the same network surely has.
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(address: &str, public_url: &str) -> (Vec<String>, bool) {
        let links = Links::new(address.parse().expect("an address"), public_url);
        (links.with(&Secret::of("c0de")), links.loopback_only())
    }

    #[test]
    fn a_link_leads_where_browsers_see_the_page() {
        let local = vec!["http://127.0.0.1:7878/#code=c0de".to_owned()];
        assert_eq!(links("127.0.0.1:7878", ""), (local, true));
        let public = vec!["https://box.example/agents/#code=c0de".to_owned()];
        assert_eq!(links("127.0.0.1:7878", "https://box.example/agents/"), (public, false));
        let six = vec!["http://[2001:db8::1]:1/#code=c0de".to_owned()];
        assert_eq!(links("[2001:db8::1]:1", ""), (six, false));
        let (any, loopback) = links("0.0.0.0:7878", "");
        assert!(!loopback && !any.is_empty());
        assert!(any.iter().all(|link| link.ends_with(":7878/#code=c0de")), "{any:?}");
    }
}
