//! Little proxies that stand in front of a gateway: one that ends TLS, and ones with the faults of
//! real ones.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::event::{PollFd, PollFlags, poll};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A port of ours, and what leads on from it once that is known. Its threads end with the test's
/// process, or when both ends hang up.
pub(super) struct Front {
    pub(super) port: u16,
    to: Arc<OnceLock<u16>>,
}

impl Front {
    /// Everything that connects is handled by `handle`, which gets the connection and the port
    /// behind.
    fn new(handle: impl Fn(TcpStream, u16) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let to: Arc<OnceLock<u16>> = Arc::default();
        let (known, handle) = (Arc::clone(&to), Arc::new(handle));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (known, handle) = (Arc::clone(&known), Arc::clone(&handle));
                thread::spawn(move || handle(client, *known.wait()));
            }
        });
        Self { port, to }
    }

    /// Says which port lies behind.
    pub(super) fn leads_to(&self, port: u16) {
        self.to.set(port).expect("said once");
    }
}

/// An authority of the test's own, and a certificate by it for `localhost`.
pub(super) struct Authority {
    config: Arc<ServerConfig>,
    /// Its own certificate, in PEM.
    pub(super) file: PathBuf,
}

impl Authority {
    pub(super) fn new(dir: &Path) -> Self {
        let mut authority = CertificateParams::new(vec![]).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("chance");
        let root = authority.self_signed(&key).expect("its own certificate");
        let file = dir.join("authority.pem");
        std::fs::write(&file, root.pem()).expect("writable");
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate().expect("chance");
        let names = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = names.signed_by(&key, &issuer).expect("a certificate");
        let secret = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)
            .expect("they fit");
        Self { config: Arc::new(config), file }
    }

    /// A proxy that ends TLS and passes on the bytes.
    pub(super) fn front(&self) -> Front {
        let config = Arc::clone(&self.config);
        Front::new(move |client, port| {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a configuration");
            // What goes wrong here the test sees at the other end.
            end_tls(StreamOwned::new(connection, client), port).ok();
        })
    }
}

/// Passes on bytes of both directions until one end hangs up.
fn end_tls(mut tls: StreamOwned<ServerConnection, TcpStream>, port: u16) -> io::Result<()> {
    let mut plain = TcpStream::connect(("127.0.0.1", port))?;
    plain.set_nonblocking(true)?;
    tls.sock.set_nonblocking(true)?;
    let (mut inwards, mut outwards) = (Vec::new(), Vec::new());
    loop {
        let mut over = pass(&mut tls, &mut inwards)?;
        send(&mut plain, &mut inwards)?;
        over |= pass(&mut plain, &mut outwards)?;
        send(&mut tls, &mut outwards)?;
        if tls.conn.wants_write() {
            not_yet(tls.conn.write_tls(&mut tls.sock))?;
        }
        if over && outwards.is_empty() && inwards.is_empty() && !tls.conn.wants_write() {
            tls.conn.send_close_notify();
            not_yet(tls.conn.write_tls(&mut tls.sock))?;
            plain.shutdown(Shutdown::Both)?;
            return tls.sock.shutdown(Shutdown::Both);
        }
        let writes = |waits: bool| if waits { PollFlags::OUT } else { PollFlags::empty() };
        let tls_waits = tls.conn.wants_write() || !outwards.is_empty();
        let mut fds = [
            PollFd::new(&tls.sock, PollFlags::IN | writes(tls_waits)),
            PollFd::new(&plain, PollFlags::IN | writes(!inwards.is_empty())),
        ];
        poll(&mut fds, None)?;
    }
}

/// Reads what is there; true at the end.
fn pass(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut bytes = [0; 16 << 10];
    loop {
        match not_yet(from.read(&mut bytes)) {
            Ok(Some(0)) => return Ok(true),
            Ok(Some(n)) => into.extend(&bytes[..n]),
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}

fn send(to: &mut impl Write, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        let Some(n) = not_yet(to.write(bytes))? else { break };
        bytes.drain(..n);
    }
    not_yet(to.flush()).map(drop)
}

fn not_yet<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
