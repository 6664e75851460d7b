//! TLS for clients: whom to trust, and what it means when that fails.
//!
//! Knows certificates. Must not know HTTP or what is said over the connection.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::exit::{Exit, Failure};

/// The variable that names a file of certificates to trust instead of the system's: for an
/// authority of one's own.
pub const CA_FILE: &str = "REATTACH_CA_FILE";

/// The certificates that are trusted: those in the file that `REATTACH_CA_FILE` names, else the
/// system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` say where those are, where they lie elsewhere).
///
/// # Errors
/// If there are none, with what to do.
pub fn roots() -> Result<Vec<CertificateDer<'static>>, Failure> {
    let refused = |message: String, next: &str| {
        Err(Failure::new(Exit::Configuration, "CERTIFICATES", message, next))
    };
    if let Some(path) = std::env::var_os(CA_FILE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        let read: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
        return match read {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => refused(
                format!("{CA_FILE}: {} holds no certificate", path.display()),
                "name a file in PEM, which has lines `-----BEGIN CERTIFICATE-----`",
            ),
            Err(error) => refused(
                format!("{CA_FILE}: cannot use {}: {error}", path.display()),
                "name a file in PEM that can be read",
            ),
        };
    }
    // Single certificates that cannot be read are no reason to refuse the others.
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return refused(
            "this system has no trusted certificates".to_owned(),
            "install its package ca-certificates, or name a file in REATTACH_CA_FILE",
        );
    }
    Ok(found)
}

/// Begins a TLS connection to `host`; no byte is sent yet.
///
/// # Errors
/// If nothing is trusted, or `host` can be on no certificate.
pub fn client(host: &str) -> Result<ClientConnection, Failure> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots()?);
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Configuration,
            "TLS",
            format!("cannot speak TLS to {host}: {error}"),
            "give an address with a host name or an IP address",
        )
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(store)
        .with_no_client_auth();
    // A WebSocket begins in HTTP/1.1, whatever else a proxy speaks.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_owned()).map_err(|error| unusable(&error))?;
    ClientConnection::new(Arc::new(config), name).map_err(|error| unusable(&error))
}

/// Why TLS did not come about, if `error` says that the certificate is not to be trusted.
#[must_use]
pub fn distrust(error: &io::Error) -> Option<&rustls::Error> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    matches!(error, rustls::Error::InvalidCertificate(_)).then_some(error)
}

/// The failure for a certificate that is not to be trusted.
#[must_use]
pub fn distrusted(place: &str, error: &rustls::Error) -> Failure {
    use rustls::CertificateError as Why;
    let next = match error {
        rustls::Error::InvalidCertificate(
            Why::NotValidForName | Why::NotValidForNameContext { .. },
        ) => "give the address with a name that stands on the certificate",
        rustls::Error::InvalidCertificate(Why::Expired | Why::ExpiredContext { .. }) => {
            "renew the certificate, or set this machine's clock"
        }
        _ => "if you are its authority, name that one's certificate: REATTACH_CA_FILE=FILE.pem",
    };
    Failure::new(
        Exit::Unreachable,
        "CERTIFICATE",
        format!("{place}: its certificate is not trusted: {error}"),
        next,
    )
}
