//! Who could reach the gateway, and whether that is meant.

use super::{Config, ConfigError};

impl Config {
    /// Refuses what would hand this machine to the network by accident. A credential there always
    /// is: the gateway makes its token itself.
    ///
    /// # Errors
    /// `--no-auth` off loopback; off loopback neither `--behind-proxy` nor `--insecure-http`;
    /// a proxy without `public_url`; metrics off loopback without `--insecure-http`.
    pub fn check_exposure(&self) -> Result<(), ConfigError> {
        let server = &self.server;
        // An IPv4 loopback address written as IPv6 is one too.
        let loopback = server.bind.ip().to_canonical().is_loopback();
        if server.no_auth && !loopback {
            return Err(ConfigError::NoAuthOffLoopback { bind: server.bind });
        }
        if server.behind_proxy && server.public_url.is_empty() {
            return Err(ConfigError::NoPublicUrl);
        }
        if !loopback && !server.behind_proxy && !server.insecure_http {
            return Err(ConfigError::PlainHttpOffLoopback { bind: server.bind });
        }
        let metrics = server.metrics_bind.filter(|bind| !bind.ip().to_canonical().is_loopback());
        match metrics {
            Some(bind) if !server.insecure_http => Err(ConfigError::MetricsOffLoopback { bind }),
            _ => Ok(()),
        }
    }
}
