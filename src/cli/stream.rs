//! One connection to a server: TCP, TLS over TCP, or the local socket.
//!
//! Knows sockets. Must not know what is said over them.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};

use super::exit::Failure;
use super::target::Base;
use super::tls;
use crate::limits;

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Plain(TcpStream),
    /// With TLS, whose handshake is done.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// By way of the file system.
    Local(UnixStream),
}

/// Why there is none.
#[derive(Debug)]
pub enum ConnectError {
    /// The network says no, or nothing.
    Io(io::Error),
    /// Trying again would be in vain.
    Refused(Failure),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Stream {
    /// Connects to where `base` lies, and does the handshake of TLS. Reads and writes that follow
    /// wait at most `limits::CLIENT_CONNECT`.
    ///
    /// # Errors
    /// As `ConnectError` says.
    pub fn connect(base: &Base) -> Result<Self, ConnectError> {
        let tcp = tcp(base)?;
        if base.is_tls() { Self::over(tcp, base) } else { Ok(Self::Plain(tcp)) }
    }

    /// TLS over a connection that blocks.
    fn over(mut tcp: TcpStream, base: &Base) -> Result<Self, ConnectError> {
        let (host, _) = base.host_and_port();
        let mut connection = tls::client(host).map_err(ConnectError::Refused)?;
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut tcp) {
                return Err(match tls::distrust(&error) {
                    Some(why) => ConnectError::Refused(tls::distrusted(&base.to_string(), why)),
                    None => ConnectError::Io(error),
                });
            }
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, tcp))))
    }

    /// A connection by the local socket, with the same waits.
    ///
    /// # Errors
    /// As the system says.
    pub fn local(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(limits::CLIENT_CONNECT))?;
        stream.set_write_timeout(Some(limits::CLIENT_CONNECT))?;
        Ok(Self::Local(stream))
    }

    /// How long a read waits.
    ///
    /// # Errors
    /// As the system says.
    pub fn set_read_timeout(&self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.set_read_timeout(wait),
            Self::Tls(tls) => tls.get_ref().set_read_timeout(wait),
            Self::Local(local) => local.set_read_timeout(wait),
        }
    }

    /// Whether reads and writes wait.
    ///
    /// # Errors
    /// As the system says.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.set_nonblocking(nonblocking),
            Self::Tls(tls) => tls.get_ref().set_nonblocking(nonblocking),
            Self::Local(local) => local.set_nonblocking(nonblocking),
        }
    }
}

fn tcp(base: &Base) -> io::Result<TcpStream> {
    let (host, port) = base.host_and_port();
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for socket in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&socket, limits::CLIENT_CONNECT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(limits::CLIENT_CONNECT))?;
                stream.set_write_timeout(Some(limits::CLIENT_CONNECT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// With TLS, `WouldBlock` means that nothing is left in its buffers either: so whoever reads until
/// `WouldBlock` may wait for the socket then.
impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(bytes),
            Self::Tls(tls) => tls.read(bytes),
            Self::Local(local) => local.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
            Self::Local(local) => local.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
            Self::Local(local) => local.flush(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(tcp) => tcp.as_fd(),
            Self::Tls(tls) => tls.get_ref().as_fd(),
            Self::Local(local) => local.as_fd(),
        }
    }
}
