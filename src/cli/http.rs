//! The REST client: one request, one answer, one typed failure.
//!
//! Knows HTTP, error codes and what they mean for the exit code. Must not know what is printed.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::DefaultResolver;

use super::exit::{Exit, Failure};
use super::local::LocalFirst;
use super::target::{Address, Target};
use super::tls;
use crate::limits;

/// A server, spoken to one request at a time.
#[derive(Debug)]
pub struct Rest {
    target: Target,
    agent: Agent,
}

impl Rest {
    /// Speaks to the server that `target` finds.
    ///
    /// # Errors
    /// If it wants TLS, and there are no certificates to trust.
    pub fn new(target: Target) -> Result<Self, Failure> {
        Self::within(target, limits::CLIENT_ANSWER)
    }

    /// The same, with another deadline for each request.
    ///
    /// # Errors
    /// If it wants TLS, and there are no certificates to trust.
    pub fn within(target: Target, deadline: Duration) -> Result<Self, Failure> {
        let mut config = Agent::config_builder()
            // The status is read below, with the body that says why.
            .http_status_as_error(false)
            // A request is for the server named and for no other one.
            .proxy(None)
            .max_redirects(0)
            // Commands make few requests, and a kept connection may lead to a server that is gone.
            .max_idle_connections(0)
            .timeout_connect(Some(limits::CLIENT_CONNECT))
            .timeout_global(Some(deadline))
            .user_agent(concat!("reattach-cli/", env!("CARGO_PKG_VERSION")));
        if matches!(&target, Target::Url(base) if base.is_tls()) {
            let roots = tls::roots()?;
            let roots = roots.iter().map(|root| Certificate::from_der(root).to_owned());
            let roots: RootCerts = roots.collect::<Vec<_>>().into();
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        let connector = LocalFirst::new(target.clone());
        let agent = Agent::with_parts(config.build(), connector, DefaultResolver::default());
        Ok(Self { target, agent })
    }

    /// How the server is found.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// `GET` under `/api/v1`.
    ///
    /// # Errors
    /// What the server or the way to it says.
    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.get_at(&format!("/api/v1{path}"), query)
    }

    /// `GET` of what lies outside `/api/v1`.
    ///
    /// # Errors
    /// What the server or the way to it says.
    pub fn get_at<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let address = self.target.find()?;
        let mut request = self.agent.get(address.base.http(path));
        for (key, value) in query {
            request = request.query(key, value);
        }
        if let Some(token) = &address.token {
            request = request.header("Authorization", format!("Bearer {}", token.0));
        }
        let answer = request.header("Accept", "application/json").call();
        self.read(&address, answer)
    }

    /// `POST` under `/api/v1`.
    ///
    /// # Errors
    /// What the server or the way to it says.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Failure> {
        let address = self.target.find()?;
        let mut request = self.agent.post(address.base.http(&format!("/api/v1{path}")));
        if let Some(token) = &address.token {
            request = request.header("Authorization", format!("Bearer {}", token.0));
        }
        let answer = request.header("Content-Type", "application/json").send(body.to_string());
        self.read(&address, answer)
    }

    /// `DELETE` under `/api/v1`.
    ///
    /// # Errors
    /// What the server or the way to it says.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let address = self.target.find()?;
        let mut request = self.agent.delete(address.base.http(&format!("/api/v1{path}")));
        if let Some(token) = &address.token {
            request = request.header("Authorization", format!("Bearer {}", token.0));
        }
        let answer = request.call();
        self.read(&address, answer)
    }

    /// `POST` that may be repeated without harm: tries again while the server cannot be reached or
    /// cannot say whether it took it, for as long as a commit may take.
    ///
    /// # Errors
    /// What the server or the way to it says, in the end.
    pub fn post_repeatable<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, Failure> {
        let mut wait = Duration::from_millis(100);
        for _ in 0..limits::CLIENT_RESENDS {
            match self.post(path, body) {
                Err(failure) if is_passing(&failure) => std::thread::sleep(wait),
                answer => return answer,
            }
            wait *= 2;
        }
        self.post(path, body)
    }

    fn read<T: DeserializeOwned>(
        &self,
        address: &Address,
        answer: Result<http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let mut answer = answer.map_err(|error| unreachable(address, &error))?;
        let status = answer.status().as_u16();
        let body = answer
            .body_mut()
            .with_config()
            .limit(limits::CLIENT_BODY_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| unreachable(address, &error))?;
        if !(200..300).contains(&status) {
            return Err(refused(address, status, &body));
        }
        // `204 No Content` has the meaning of `null`.
        let body = if body.is_empty() { b"null".as_slice() } else { &body };
        serde_json::from_slice(body).map_err(|error| {
            Failure::new(
                Exit::Failure,
                "NOT_REATTACH",
                format!("{} answered with something else than expected: {error}", address.base),
                "check that the address is a reattach server of the same version: \
                 `reattach version`",
            )
        })
    }
}

/// Whether the same request may succeed in a moment.
fn is_passing(failure: &Failure) -> bool {
    failure.exit == Exit::Unreachable && failure.code != "NO_SERVER"
        || matches!(failure.code.as_str(), "STORE_UNAVAILABLE" | "SHUTTING_DOWN")
}

fn unreachable(address: &Address, error: &ureq::Error) -> Failure {
    let distrusted = match error {
        ureq::Error::Rustls(error @ rustls::Error::InvalidCertificate(_)) => Some(error),
        ureq::Error::Io(error) => tls::distrust(error),
        _ => None,
    };
    if let Some(why) = distrusted {
        return tls::distrusted(&address.base.to_string(), why);
    }
    match error {
        ureq::Error::Timeout(_) => Failure::new(
            Exit::Unreachable,
            "NO_ANSWER",
            format!("{} does not answer", address.base),
            "look at the server's own log, or restart it: reattach serve",
        ),
        ureq::Error::BodyExceedsLimit(limit) => Failure::new(
            Exit::Failure,
            "ANSWER_TOO_LONG",
            format!("{} answered with more than {limit} bytes", address.base),
            "ask for less, e.g. `reattach logs SESSION --tail 100`",
        ),
        other => Failure::new(
            Exit::Unreachable,
            "UNREACHABLE",
            format!("cannot reach {}: {other}", address.base),
            "reattach serve",
        ),
    }
}

/// What an answer that is not a success means.
fn refused(address: &Address, status: u16, body: &[u8]) -> Failure {
    let json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let error = &json["error"];
    let code = error["code"].as_str().map_or_else(|| format!("HTTP_{status}"), str::to_owned);
    let message = error["message"].as_str().map_or_else(
        || format!("{} answered with HTTP status {status}", address.base),
        str::to_owned,
    );
    let (exit, next) = meaning(&code, status, address.token.is_some());
    Failure::new(exit, code, message, next)
}

/// The exit code and the next thing to try, by error code, else by HTTP status (0 for none).
#[must_use]
pub fn meaning(code: &str, status: u16, had_token: bool) -> (Exit, &'static str) {
    match (code, status) {
        ("FORBIDDEN", _) => (
            Exit::NotAuthorised,
            "the same with a token that may: reattach token create NAME --scope SCOPE, by its owner",
        ),
        ("TOO_MANY_ATTEMPTS", _) => (Exit::NotAuthorised, "the same command in a minute"),
        (_, 401 | 403) if had_token => {
            (Exit::NotAuthorised, "check REATTACH_TOKEN against the server's `token` file")
        }
        (_, 401 | 403) => (
            Exit::NotAuthorised,
            "put the server's token (file `token` in its data directory) into REATTACH_TOKEN",
        ),
        ("SESSION_NOT_FOUND", _) => (Exit::NotFound, "reattach sessions"),
        ("RUN_NOT_FOUND", _) => (Exit::NotFound, "reattach ps"),
        ("PERMISSION_NOT_FOUND", _) => (Exit::NotFound, "reattach permissions"),
        ("QUEUED_PROMPT_NOT_FOUND", _) => (Exit::NotFound, "reattach queue SESSION"),
        ("PERMISSION_ALREADY_RESOLVED", _) => (Exit::Conflict, "reattach permissions"),
        ("TOKEN_NOT_FOUND" | "NAME_TAKEN" | "TOO_MANY_CREDENTIALS", _) => {
            let exit = if status == 404 { Exit::NotFound } else { Exit::Conflict };
            (exit, "reattach token list")
        }
        ("DEVICE_NOT_FOUND", _) => (Exit::NotFound, "reattach devices"),
        ("RUN_IN_PROGRESS", _) => (
            Exit::Conflict,
            "reattach attach SESSION to watch it, reattach abort SESSION, or send --queue",
        ),
        ("NO_ACTIVE_RUN", _) => (Exit::Conflict, "reattach ps"),
        ("BUSY", _) => (Exit::Conflict, "reattach ps, and again when one of them is done"),
        ("STORE_UNAVAILABLE", _) => {
            (Exit::Data, "make room on the server's disk; then the same command again")
        }
        ("SHUTTING_DOWN", _) => (Exit::Unreachable, "the same command when the server is back"),
        ("UNSUPPORTED_PROVIDER", _) => {
            (Exit::Usage, "a provider of the server's configuration, e.g. `--agent demo`")
        }
        (_, 404) => (Exit::NotFound, "reattach sessions"),
        (_, 409) => (Exit::Conflict, "reattach ps"),
        (_, 400 | 413 | 422) => (Exit::Usage, "reattach help"),
        _ => (Exit::Failure, "look at the server's own log; then the same command again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_have_the_documented_exit_codes() {
        for (code, status, exit) in [
            ("SESSION_NOT_FOUND", 404, Exit::NotFound),
            ("PERMISSION_NOT_FOUND", 404, Exit::NotFound),
            ("PERMISSION_ALREADY_RESOLVED", 409, Exit::Conflict),
            ("RUN_IN_PROGRESS", 409, Exit::Conflict),
            ("NO_ACTIVE_RUN", 409, Exit::Conflict),
            ("BUSY", 503, Exit::Conflict),
            ("STORE_UNAVAILABLE", 503, Exit::Data),
            ("UNSUPPORTED_PROVIDER", 400, Exit::Usage),
            ("INVALID_FIELD", 400, Exit::Usage),
            ("UNAUTHORIZED", 401, Exit::NotAuthorised),
            ("FORBIDDEN", 403, Exit::NotAuthorised),
            ("INTERNAL_ERROR", 500, Exit::Failure),
        ] {
            let (got, next) = meaning(code, status, true);
            assert_eq!(got, exit, "{code}");
            assert!(!next.is_empty(), "{code} must say what to try");
        }
    }

    #[test]
    fn an_answer_that_is_no_json_is_named_by_its_status() {
        let address = Address {
            base: super::super::target::Base::parse("http://127.0.0.1:1").expect("an address"),
            token: None,
        };
        let failure = refused(&address, 502, b"<html>");
        assert_eq!(failure.code, "HTTP_502");
        assert!(failure.message.contains("502"), "{failure}");
        let failure = refused(&address, 401, b"");
        assert_eq!(failure.exit, Exit::NotAuthorised);
        assert!(failure.next.contains("REATTACH_TOKEN"), "{failure}");
    }
}
