//! Who may come in: one token, in a file that only its owner can read.
//!
//! Programs send it as `Authorization: Bearer`; the page exchanges it for a cookie once. Secrets
//! are compared as hashes, in constant time, and never logged. Must not know routes.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use constant_time_eq::constant_time_eq_32;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use sha2::{Digest, Sha256};

use crate::limits;
use crate::sync::Mutex;

/// The file in the data directory that holds the token.
pub const TOKEN_FILE: &str = "token";
/// A token shorter than this is no secret.
const TOKEN_BYTES_MIN: usize = 32;
/// How long a browser keeps its cookie, in seconds.
const COOKIE_SECONDS: u32 = 365 * 24 * 3600;

/// How somebody proved who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nobody has to: `--no-auth`.
    Open,
    /// The token itself.
    Bearer,
    /// The page's cookie.
    Cookie,
}

/// The outcome of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// The value of `Set-Cookie`; none is needed under `--no-auth`.
    Welcome(Option<String>),
    /// Not the token.
    Wrong,
    /// Too many wrong ones; wait this long, in seconds.
    Wait(u64),
}

/// The door.
#[derive(Debug)]
pub struct Auth {
    keys: Option<Keys>,
    attempts: Mutex<Attempts>,
}

#[derive(Debug)]
struct Keys {
    token: [u8; 32],
    cookie_name: String,
    cookie_value: String,
    cookie_attributes: String,
}

/// A bucket of wrong logins that refills with time.
#[derive(Debug)]
struct Attempts {
    left: u32,
    since: Instant,
}

impl Auth {
    /// A door without a lock.
    #[must_use]
    pub fn open() -> Self {
        Self { keys: None, attempts: Mutex::new(Attempts::full(Instant::now())) }
    }

    /// A door for `token`. The port is part of the cookie's name, since browsers share cookies
    /// between the ports of a host; `secure` keeps it to https.
    #[must_use]
    pub fn with_token(token: &str, port: u16, path: &str, secure: bool) -> Self {
        let secure = if secure { "; Secure" } else { "" };
        let keys = Keys {
            token: hash(token),
            cookie_name: format!("reattach_{port}"),
            // Not the token: a cookie that leaks should not also open the REST of a program.
            cookie_value: hex(&hash(&format!("cookie of {token}"))),
            cookie_attributes: format!(
                "HttpOnly; SameSite=Strict; Path={path}; Max-Age={COOKIE_SECONDS}{secure}"
            ),
        };
        Self { keys: Some(keys), attempts: Mutex::new(Attempts::full(Instant::now())) }
    }

    /// What the request's headers prove. A wrong `Authorization` is not made good by a cookie.
    #[must_use]
    pub fn credential(&self, headers: &HeaderMap) -> Option<Credential> {
        let Some(keys) = &self.keys else {
            return Some(Credential::Open);
        };
        if let Some(value) = headers.get(AUTHORIZATION) {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            let right = scheme.eq_ignore_ascii_case("bearer") && keys.is_token(token.trim());
            return right.then_some(Credential::Bearer);
        }
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|one| {
            one.trim().split_once('=').filter(|(name, _)| *name == keys.cookie_name)
        });
        let expected = hash(&keys.cookie_value);
        let right = pairs.any(|(_, value)| constant_time_eq_32(&hash(value), &expected));
        right.then_some(Credential::Cookie)
    }

    /// Exchanges the token for a cookie. Once the bucket of wrong ones is empty even the right
    /// one has to wait: else there would be no limit at all.
    pub fn login(&self, code: &str, now: Instant) -> Login {
        let Some(keys) = &self.keys else {
            return Login::Welcome(None);
        };
        let mut attempts = self.attempts.lock();
        attempts.refill(now);
        if attempts.left == 0 {
            return Login::Wait(limits::LOGIN_REFILL_MS.unsigned_abs().div_ceil(1000));
        }
        if !keys.is_token(code.trim()) {
            attempts.left -= 1;
            return Login::Wrong;
        }
        let Keys { cookie_name, cookie_value, cookie_attributes, .. } = keys;
        Login::Welcome(Some(format!("{cookie_name}={cookie_value}; {cookie_attributes}")))
    }
}

impl Keys {
    fn is_token(&self, token: &str) -> bool {
        constant_time_eq_32(&hash(token), &self.token)
    }
}

impl Attempts {
    fn full(now: Instant) -> Self {
        Self { left: limits::LOGIN_ATTEMPTS_MAX, since: now }
    }

    fn refill(&mut self, now: Instant) {
        let period = std::time::Duration::from_millis(limits::LOGIN_REFILL_MS.unsigned_abs());
        while self.left < limits::LOGIN_ATTEMPTS_MAX && now >= self.since + period {
            self.left += 1;
            self.since += period;
        }
        if self.left == limits::LOGIN_ATTEMPTS_MAX {
            self.since = now;
        }
    }
}

/// The token of a data directory; made if it is missing, readable by its owner alone.
///
/// # Errors
/// If it cannot be read or made, or holds no usable token.
pub fn load_token(data_dir: &Path) -> io::Result<String> {
    let path = data_dir.join(TOKEN_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let token = text.trim();
            if token.len() < TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!(
                    "{} holds no usable token; delete it and start again to get a new one",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // Others may have read it already, which a warning cannot undo: but from now on not.
            let mode = fs::metadata(&path)?.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(file = %path.display(), "the token could be read by others; now it cannot");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            }
            Ok(token.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_token(&path),
        Err(error) => Err(error),
    }
}

/// Written beside and renamed, so that a crash leaves a whole token or none.
fn make_token(path: &Path) -> io::Result<String> {
    let mut secret = [0_u8; 32];
    getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
    let token = hex(&secret);
    let beside = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    Ok(token)
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn door() -> Auth {
        Auth::with_token(TOKEN, 7878, "/", false)
    }

    fn with(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a header"))])
    }

    #[test]
    fn the_token_opens_and_nothing_else_does() {
        let door = door();
        let bearer = |value: &str| door.credential(&with(AUTHORIZATION, value));
        assert_eq!(bearer(&format!("Bearer {TOKEN}")), Some(Credential::Bearer));
        assert_eq!(bearer(&format!("bearer  {TOKEN} ")), Some(Credential::Bearer));
        for wrong in ["", "Bearer", "Bearer ", "Bearer x", &format!("Basic {TOKEN}"), TOKEN] {
            assert_eq!(bearer(wrong), None, "{wrong}");
        }
        assert_eq!(door.credential(&HeaderMap::new()), None);
        assert_eq!(Auth::open().credential(&HeaderMap::new()), Some(Credential::Open));
    }

    #[test]
    fn a_login_gives_a_cookie_that_opens() {
        let door = door();
        let Login::Welcome(Some(cookie)) = door.login(&format!(" {TOKEN}\n"), Instant::now())
        else {
            panic!("the token is right");
        };
        assert!(cookie.contains("; HttpOnly; SameSite=Strict; Path=/; Max-Age="), "{cookie}");
        assert!(!cookie.contains(TOKEN));
        let pair = cookie.split(';').next().expect("a pair");
        let credential = |value: &str| door.credential(&with(COOKIE, value));
        assert_eq!(credential(pair), Some(Credential::Cookie));
        assert_eq!(credential(&format!("a=b; {pair}; c=d")), Some(Credential::Cookie));
        assert_eq!(credential(&pair.replace("reattach_7878", "reattach_7879")), None);
        assert_eq!(credential(&format!("{pair}0")), None);
        let mut both = with(COOKIE, pair);
        both.insert(AUTHORIZATION, HeaderValue::from_static("Bearer wrong"));
        assert_eq!(door.credential(&both), None);
        let secure = Auth::with_token(TOKEN, 1, "/sub", true).login(TOKEN, Instant::now());
        assert!(matches!(secure, Login::Welcome(Some(cookie)) if cookie.ends_with("; Secure")));
    }

    #[test]
    fn wrong_logins_run_out_and_come_back_with_time() {
        let door = door();
        let start = Instant::now();
        for _ in 0..limits::LOGIN_ATTEMPTS_MAX {
            assert_eq!(door.login("wrong", start), Login::Wrong);
        }
        assert!(matches!(door.login(TOKEN, start), Login::Wait(_)));
        let later = start + Duration::from_millis(limits::LOGIN_REFILL_MS.unsigned_abs());
        assert!(matches!(door.login(TOKEN, later), Login::Welcome(Some(_))));
    }

    #[test]
    fn a_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = load_token(dir.path()).expect("made");
        assert_eq!(token.len(), 64);
        let path = dir.path().join(TOKEN_FILE);
        let mode = || fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("opened");
        assert_eq!(load_token(dir.path()).expect("read"), token);
        assert_eq!(mode(), 0o600);
        fs::write(&path, "short\n").expect("written");
        let error = load_token(dir.path()).expect_err("unusable");
        assert!(error.to_string().contains("delete it"), "{error}");
    }
}
