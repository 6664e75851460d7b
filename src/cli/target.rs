//! Where the server is, and what opens it.
//!
//! Knows `server.json`, the local socket, the `token` file, `--server` and `REATTACH_TOKEN`. Must not know what is
//! then said to the server.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::args::ServerArgs;
use super::exit::{Exit, Failure};

/// How to find the server; asked again at each attempt to connect, since a server that was
/// started anew may listen elsewhere.
#[derive(Clone, Debug)]
pub enum Target {
    /// By the `server.json` that a running server keeps in its data directory.
    DataDir(PathBuf),
    /// By its address.
    Url(Base),
}

/// Where a server is now.
#[derive(Clone, Debug)]
pub struct Address {
    /// Its address.
    pub base: Base,
    /// What opens it; `None` for a server that asks nobody.
    pub token: Option<Token>,
}

/// A secret that does not show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// An `http` or `https` address, taken apart: host, port and the path that everything lies under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    tls: bool,
    host: String,
    port: u16,
    /// Without a slash at its end; empty at the root.
    path: String,
}

impl Base {
    /// Takes an address apart.
    ///
    /// # Errors
    /// For anything but `http[s]://HOST[:PORT][/PATH]`, with the reason.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let bad = |why: &str| {
            Failure::usage(
                format!("`{url}` is not a server's address: {why}"),
                "--server http://127.0.0.1:7878",
            )
        };
        let uri: http::Uri = url.parse().map_err(|_| bad("it is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("it does not begin with http:// or https://")),
        };
        if uri.query().is_some() {
            return Err(bad("it has a query"));
        }
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("credentials do not belong there; put the token into REATTACH_TOKEN"));
        }
        if authority.host().is_empty() {
            return Err(bad("it has no host"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => default_port(tls),
            _ => authority.port_u16().ok_or_else(|| bad("its port is none"))?,
        };
        Ok(Self {
            tls,
            host: authority.host().to_owned(),
            port,
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The address of something under it; `rest` begins with a slash.
    #[must_use]
    pub fn http(&self, rest: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}{rest}", self.authority(), self.path)
    }

    /// The address of the WebSocket.
    #[must_use]
    pub fn ws(&self) -> String {
        let scheme = if self.tls { "wss" } else { "ws" };
        format!("{scheme}://{}{}/ws", self.authority(), self.path)
    }

    /// Host and port as a request names them: without the port that goes without saying.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == default_port(self.tls) {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The path that everything lies under, without a slash at its end; empty at the root.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is to be spoken to with TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// What a socket connects to. IPv6 addresses lose their brackets.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        let host = self.host.as_str();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        (bare.unwrap_or(host), self.port)
    }
}

const fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.http("/"))
    }
}

impl Target {
    /// What the flags say.
    ///
    /// # Errors
    /// For an address that cannot be one, or when there is no place for data.
    pub fn new(args: &ServerArgs) -> Result<Self, Failure> {
        match &args.server {
            Some(url) => Base::parse(url).map(Self::Url),
            None => data_dir(args.data_dir.as_deref()).map(Self::DataDir),
        }
    }

    /// Where the server is now.
    ///
    /// # Errors
    /// `Exit::Unreachable` when no server says that it runs there, `Exit::Data` when what it left
    /// there cannot be read.
    pub fn find(&self) -> Result<Address, Failure> {
        let from_env = token_from_env();
        match self {
            Self::Url(base) => Ok(Address { base: base.clone(), token: from_env.map(Token) }),
            Self::DataDir(dir) => {
                let base = base_of(dir, &read_server_json(dir)?)?;
                let token = match from_env {
                    Some(token) => Some(token),
                    None => read_token(dir)?,
                };
                Ok(Address { base, token: token.map(Token) })
            }
        }
    }

    /// A connection by the local socket, which asks for no token; `None` if that is not the way. A
    /// token in the environment is meant to be used, and so is an address. Where the socket does
    /// not answer, the address in `server.json` and the token's file are left.
    #[must_use]
    pub fn local(&self) -> Option<UnixStream> {
        let Self::DataDir(dir) = self else { return None };
        if token_from_env().is_some() {
            return None;
        }
        let json = read_server_json(dir).ok()?;
        UnixStream::connect(json["socket"].as_str()?).ok()
    }

    /// The flags that lead another command to the same server.
    #[must_use]
    pub fn flags(&self) -> String {
        match self {
            Self::Url(base) => format!(" --server {}", base.http("")),
            Self::DataDir(dir) if data_dir(None).is_ok_and(|default| default == *dir) => {
                String::new()
            }
            Self::DataDir(dir) => format!(" --data-dir {}", dir.display()),
        }
    }
}

/// The data directory: as given, else `$XDG_DATA_HOME/reattach`, else `~/.local/share/reattach`.
///
/// # Errors
/// `Exit::Configuration` when none is given and there is no home.
pub fn data_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|dir| dir.join("reattach"))
        .ok_or_else(|| {
            Failure::new(
                Exit::Configuration,
                "NO_DATA_DIR",
                "neither XDG_DATA_HOME nor HOME says where data lies",
                "give --data-dir DIR",
            )
        })
}

fn token_from_env() -> Option<String> {
    std::env::var("REATTACH_TOKEN").ok().filter(|token| !token.is_empty())
}

fn read_server_json(dir: &Path) -> Result<Value, Failure> {
    let path = server_json(dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Err(Failure::new(
                Exit::Unreachable,
                "NO_SERVER",
                format!("no server runs for {}", dir.display()),
                "reattach serve",
            ));
        }
        Err(error) => return Err(unreadable(&path, &error.to_string())),
    };
    serde_json::from_str(&text).map_err(|error| unreadable(&path, &error.to_string()))
}

fn base_of(dir: &Path, json: &Value) -> Result<Base, Failure> {
    let path = server_json(dir);
    let url = json["url"].as_str().ok_or_else(|| unreadable(&path, "it names no url"))?;
    Base::parse(url).map_err(|failure| unreadable(&path, &failure.message))
}

fn server_json(dir: &Path) -> PathBuf {
    dir.join("server.json")
}

fn read_token(dir: &Path) -> Result<Option<String>, Failure> {
    let path = dir.join("token");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|token| !token.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&path, &error.to_string())),
    }
}

fn unreadable(path: &Path, why: &str) -> Failure {
    Failure::new(
        Exit::Data,
        "DATA_DIR",
        format!("cannot use {}: {why}", path.display()),
        "reattach serve (which writes it anew), or --data-dir DIR for another one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let base = Base::parse("http://127.0.0.1:7878").expect("plain");
        assert_eq!(base.http("/healthz"), "http://127.0.0.1:7878/healthz");
        assert_eq!(base.ws(), "ws://127.0.0.1:7878/ws");
        let base = Base::parse("http://box.example/agents/").expect("with a path");
        assert_eq!(base.http("/api/v1/runs"), "http://box.example/agents/api/v1/runs");
        assert_eq!(base.ws(), "ws://box.example/agents/ws");
        let base = Base::parse("http://[::1]:1/").expect("IPv6");
        assert_eq!(base.host_and_port(), ("::1", 1));
    }

    #[test]
    fn https_has_its_own_port_and_scheme() {
        let base = Base::parse("https://box.example/agents").expect("with TLS");
        assert!(base.is_tls());
        assert_eq!(base.host_and_port(), ("box.example", 443));
        assert_eq!(base.http("/healthz"), "https://box.example/agents/healthz");
        assert_eq!(base.ws(), "wss://box.example/agents/ws");
        let base = Base::parse("https://[::1]:80").expect("with a port");
        assert_eq!(base.http("/"), "https://[::1]:80/");
        assert!(Base::parse("wss://box.example").is_err(), "that is what a browser calls it");
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for bad in [
            "",
            "x",
            "127.0.0.1:7878",
            "ftp://x",
            "http://",
            "http://u:p@x",
            "http://x:99999",
            "http://x/?a",
        ] {
            let failure = Base::parse(bad).expect_err(bad);
            assert_eq!(failure.exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn a_data_dir_without_a_server_says_how_to_start_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let failure = Target::DataDir(dir.path().to_owned()).find().expect_err("no server");
        assert_eq!((failure.exit, failure.next.as_str()), (Exit::Unreachable, "reattach serve"));
    }

    #[test]
    fn a_data_dir_names_its_server_and_token() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("server.json"), r#"{"url":"http://127.0.0.1:5","pid":1}"#)
            .expect("server.json");
        let target = Target::DataDir(dir.path().to_owned());
        let open = target.find().expect("found");
        assert_eq!(open.token, None, "a server without a token file asks nobody");
        fs::write(dir.path().join("token"), "secret\n").expect("token");
        let found = target.find().expect("found");
        assert_eq!(found.base.host_and_port(), ("127.0.0.1", 5));
        assert_eq!(found.token, Some(Token("secret".into())));
        assert!(!format!("{found:?}").contains("secret"), "a token must not show");
    }

    #[test]
    fn a_broken_server_json_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        for broken in ["", "{", "[]", r#"{"url":1}"#, r#"{"url":"nonsense"}"#] {
            fs::write(dir.path().join("server.json"), broken).expect("server.json");
            let failure =
                Target::DataDir(dir.path().to_owned()).find().expect_err("nothing to be found");
            assert_eq!(failure.exit, Exit::Data, "{broken}");
            assert!(failure.message.contains("server.json"), "{failure}");
        }
    }
}
