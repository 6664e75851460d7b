//! The sockets that clients come by, as one type: TCP, and the local Unix socket. Must not know
//! what they carry.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The local socket, which only this user (and root) can open.
    Local,
    /// A machine, this one included. An IPv4 address is written as one.
    Tcp(IpAddr),
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// From this machine or another.
    Tcp(TcpStream),
    /// By way of the file system.
    Unix(UnixStream),
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address.ip().to_canonical())
    }
}

impl Stream {
    /// Makes it ready to be served: it never blocks, and small answers leave at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)
            }
            Self::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    /// Ends one direction or both.
    ///
    /// # Errors
    /// If it is not connected any more.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }

    /// A second handle of the same connection.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write(buffer),
            Stream::Unix(stream) => (&mut &*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A socket that connections come by.
#[derive(Debug)]
pub enum Door {
    /// From this machine or another.
    Tcp(TcpListener),
    /// By way of the file system.
    Unix(UnixListener),
}

impl Door {
    /// Makes `accept` give up instead of waiting.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    /// The next connection, and who made it.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `PermissionDenied` if another user made it, which a socket
    /// of mode 0600 does not let happen.
    pub fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept()?;
                Ok((Stream::Tcp(stream), address.into()))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                if is_other_user(&stream) {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                Ok((Stream::Unix(stream), Peer::Local))
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

/// Between `bind` and `chmod` the process's file mask decides who may connect: so the mode is not
/// all that is asked. Root can read the token's file anyway.
#[cfg(target_os = "linux")]
fn is_other_user(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream)
        .map_or(true, |theirs| theirs.uid != ours && !theirs.uid.is_root())
}

#[cfg(not(target_os = "linux"))]
fn is_other_user(_: &UnixStream) -> bool {
    false
}
