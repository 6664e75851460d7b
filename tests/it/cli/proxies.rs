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

/// What a proxy does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// `Upgrade` and `Connection` do not go through.
    StripsUpgrade,
    /// An answer is sent once all of it has come.
    Buffers,
    /// The server gets a host name of the proxy's own.
    RewritesHost,
    /// The sub-path is passed on as another one.
    WrongPath,
    /// The page alone is passed on.
    PageAlone,
    /// Absolute addresses are put into the page.
    RewritesPage,
    /// The policy of the page is replaced.
    ReplacesPolicy,
    /// Everything is somewhere else.
    Redirects,
    /// A login of the proxy's own.
    AsksForLogin,
    /// Nothing is behind it.
    ReachesNobody,
    /// WebSockets get a page.
    AnswersUpgrade,
}

/// A proxy that speaks HTTP, one request to a connection, with a fault.
pub(super) fn faulty(fault: Fault) -> Front {
    Front::new(move |client, port| {
        // What goes wrong here the test sees at the other end.
        relay(client, port, fault).ok();
    })
}

fn relay(mut client: TcpStream, port: u16, fault: Fault) -> io::Result<()> {
    let Some(head) = read_head(&mut client)? else { return Ok(()) };
    let upgrade = head.to_ascii_lowercase().contains("\r\nupgrade:");
    let page = head.starts_with("GET / ") || head.starts_with("GET /sub/ ");
    let said = |status: &str, more: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    let own = match fault {
        Fault::Redirects => Some(said("302 Found", "Location: https://other.example/\r\n", "")),
        Fault::AsksForLogin => {
            Some(said("401 Unauthorized", "WWW-Authenticate: Basic\r\n", "who are you?"))
        }
        Fault::ReachesNobody => Some(said("502 Bad Gateway", "", "<h1>502</h1>")),
        Fault::PageAlone if !page => Some(said("404 Not Found", "", "<h1>404</h1>")),
        Fault::AnswersUpgrade if upgrade => Some(said("200 OK", "", "<h1>hello</h1>")),
        _ => None,
    };
    if let Some(own) = own {
        return client.write_all(own.as_bytes());
    }
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    let websocket = upgrade && fault != Fault::StripsUpgrade;
    server.write_all(passed_on(&head, fault, websocket).as_bytes())?;
    if websocket {
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || {
            io::copy(&mut from, &mut to).ok();
            to.shutdown(Shutdown::Write).ok();
        });
        io::copy(&mut server, &mut client)?;
        return client.shutdown(Shutdown::Both);
    }
    match fault {
        Fault::RewritesPage | Fault::ReplacesPolicy if !page => {
            io::copy(&mut server, &mut client).map(drop)
        }
        Fault::Buffers | Fault::RewritesPage | Fault::ReplacesPolicy => {
            let mut answer = Vec::new();
            server.read_to_end(&mut answer)?;
            client.write_all(&spoiled(answer, fault))
        }
        _ => io::copy(&mut server, &mut client).map(drop),
    }
}

/// A request as the proxy sends it on; the answer's end is the connection's.
fn passed_on(head: &str, fault: Fault, websocket: bool) -> String {
    let mut passed = String::new();
    for (at, line) in head.trim_end().split("\r\n").enumerate() {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let line = match (at, name.as_str(), fault) {
            (0, _, Fault::WrongPath) => line.replacen(" /sub", " /other", 1),
            (_, "host", Fault::RewritesHost) => "Host: backend.internal".to_owned(),
            (_, "connection" | "upgrade", _) if !websocket => continue,
            _ => line.to_owned(),
        };
        passed.push_str(&line);
        passed.push_str("\r\n");
    }
    if !websocket {
        passed.push_str("Connection: close\r\n");
    }
    passed + "\r\n"
}

fn spoiled(answer: Vec<u8>, fault: Fault) -> Vec<u8> {
    let Ok(text) = String::from_utf8(answer.clone()) else { return answer };
    match fault {
        // As long as before, so that the length stays right.
        Fault::RewritesPage => text.replace("href=\"icon.svg\"", "href=\"/con.svg\"").into_bytes(),
        Fault::ReplacesPolicy => {
            text.replace("frame-ancestors 'none'", "frame-ancestors '*'").into_bytes()
        }
        _ => answer,
    }
}

fn read_head(client: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
