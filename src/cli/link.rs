//! One WebSocket to the server, non-blocking, as JSON text in and out.
//!
//! Knows sockets, the handshake and close codes. Must not know what frames mean.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use serde_json::Value;
use tungstenite::client::{IntoClientRequest as _, client_with_config};
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error, Message, Utf8Bytes, WebSocket};

use super::exit::{Exit, Failure};
use super::stream::{ConnectError, Stream};
use super::target::{Address, Target};
use crate::limits;

/// An open connection.
#[derive(Debug)]
pub struct Link {
    socket: WebSocket<Stream>,
    /// Whether something written waits for room in the socket.
    unsent: bool,
}

/// Why there is no connection (any more).
#[derive(Debug)]
pub enum Lost {
    /// Coming back is worth trying; why it went.
    Again(String),
    /// It would be in vain.
    Fatal(Failure),
}

impl Link {
    /// Finds the server and connects to it.
    ///
    /// # Errors
    /// If that fails, and whether to try again.
    pub fn connect(target: &Target) -> Result<Self, Lost> {
        let address = target.find().map_err(|failure| match failure.exit {
            // A server that is being started anew has no `server.json` for a moment.
            Exit::Unreachable => Lost::Again(failure.message),
            _ => Lost::Fatal(failure),
        })?;
        let stream = match target.local() {
            Some(local) => Stream::local(local).map_err(ConnectError::Io),
            None => Stream::connect(&address.base),
        };
        let stream = stream.map_err(|error| match error {
            ConnectError::Io(error) => Lost::Again(error.to_string()),
            ConnectError::Refused(failure) => Lost::Fatal(failure),
        })?;
        let mut request =
            address.base.ws().into_client_request().map_err(|error| no_server(&address, &error))?;
        if let Some(token) = &address.token {
            let value = format!("Bearer {}", token.0).parse().map_err(|_| {
                Lost::Fatal(Failure::new(
                    Exit::NotAuthorised,
                    "TOKEN",
                    "the token has characters that no token has",
                    "check REATTACH_TOKEN against the server's `token` file",
                ))
            })?;
            request.headers_mut().insert("Authorization", value);
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(limits::CLIENT_FRAME_BYTES_MAX))
            .max_frame_size(Some(limits::CLIENT_FRAME_BYTES_MAX));
        let (socket, _) = client_with_config(request, stream, Some(config))
            .map_err(|error| handshake(&address, error))?;
        socket.get_ref().set_nonblocking(true).map_err(|error| Lost::Again(error.to_string()))?;
        Ok(Self { socket, unsent: false })
    }

    /// Sends a frame; what the socket does not take at once is sent by `flush`.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn send(&mut self, frame: &Value) -> Result<(), Lost> {
        self.unsent = true;
        match self.socket.write(Message::text(frame.to_string())) {
            Ok(()) => self.flush(),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn flush(&mut self) -> Result<(), Lost> {
        match self.socket.flush() {
            Ok(()) => {
                self.unsent = false;
                Ok(())
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }

    /// Whether `flush` is to be called when the socket has room.
    #[must_use]
    pub const fn has_unsent(&self) -> bool {
        self.unsent
    }

    /// The next frame, or `None` if none has come.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn read(&mut self) -> Result<Option<Utf8Bytes>, Lost> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(Some(text)),
                Ok(Message::Close(frame)) => return Err(closed(frame)),
                // Protocol pings are answered by tungstenite; the answer leaves with the next flush.
                Ok(Message::Ping(_)) => self.unsent = true,
                Ok(Message::Pong(_) | Message::Binary(_) | Message::Frame(_)) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(None);
                }
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Says goodbye, as far as the socket takes it at once.
    pub fn close(mut self) {
        // The server sees the end in any case: the process ends next.
        self.socket.close(None).and_then(|()| self.socket.flush()).ok();
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn handshake<R>(address: &Address, error: HandshakeError<R>) -> Lost
where
    R: tungstenite::handshake::HandshakeRole,
{
    match error {
        HandshakeError::Failure(Error::Http(answer)) => match answer.status().as_u16() {
            401 | 403 => Lost::Fatal(Failure::new(
                Exit::NotAuthorised,
                "UNAUTHORIZED",
                format!("{} does not accept this token", address.base),
                "put the server's token (file `token` in its data directory) into REATTACH_TOKEN",
            )),
            status @ (429 | 500..=599) => Lost::Again(format!("HTTP status {status}")),
            status => no_server(address, &format!("HTTP status {status}")),
        },
        HandshakeError::Failure(Error::Io(error)) => Lost::Again(error.to_string()),
        HandshakeError::Failure(error) => no_server(address, &error),
        // The socket blocks, so only its time-out interrupts.
        HandshakeError::Interrupted(_) => Lost::Again("it does not answer".to_owned()),
    }
}

fn no_server(address: &Address, error: &dyn std::fmt::Display) -> Lost {
    Lost::Fatal(Failure::new(
        Exit::Failure,
        "NOT_REATTACH",
        format!("{} does not speak our protocol: {error}", address.base),
        "check the address: reattach version --server URL",
    ))
}

fn lost(error: Error) -> Lost {
    match error {
        Error::Capacity(error) => Lost::Fatal(Failure::new(
            Exit::Failure,
            "FRAME_TOO_LONG",
            format!("the server sent more than this program takes: {error}"),
            "reattach version (client and server may differ)",
        )),
        Error::ConnectionClosed | Error::AlreadyClosed => Lost::Again("closed".to_owned()),
        error => Lost::Again(error.to_string()),
    }
}

/// What a close code means: 4500 to 4999 and breaches of the protocol are for good.
fn closed(frame: Option<CloseFrame>) -> Lost {
    let Some(frame) = frame else { return Lost::Again("closed".to_owned()) };
    let code = u16::from(frame.code);
    let why = format!("closed by the server: {code} {}", frame.reason);
    match code {
        4500 => Lost::Fatal(Failure::new(
            Exit::NotAuthorised,
            "REVOKED",
            why.trim_end(),
            "get a new token and put it into REATTACH_TOKEN",
        )),
        1002 | 1003 | 1007..=1010 | 4501..=4999 => Lost::Fatal(Failure::new(
            Exit::Failure,
            "CLOSED",
            why.trim_end(),
            "reattach version (client and server may differ)",
        )),
        _ => Lost::Again(why.trim_end().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_say_whether_to_come_back() {
        let with = |code: u16| closed(Some(CloseFrame { code: code.into(), reason: "".into() }));
        for code in [1000, 1001, 1006, 1011, 4000, 4001, 4002, 4499] {
            assert!(matches!(with(code), Lost::Again(_)), "{code}");
        }
        for code in [1008, 1009, 4500, 4999] {
            assert!(matches!(with(code), Lost::Fatal(_)), "{code}");
        }
        let Lost::Fatal(revoked) = with(4500) else { panic!("4500 is for good") };
        assert_eq!(revoked.exit, Exit::NotAuthorised);
    }
}
