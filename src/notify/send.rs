//! One try to deliver one notification.
//!
//! Each try has a deadline and says in words how it went, without secrets. No proxy of the
//! environment is used and no redirect followed: a notification goes where the configuration says.
//! Must not know when to try again.

use std::io;
use std::time::Duration;

use http::StatusCode;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::limits;
use crate::notify::command;
use crate::notify::message::{Message, clean};
use crate::notify::sink::{Kind, Secret, Sink};
use crate::sync::Arc;

/// How a try went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// What happened, in words.
    pub(super) detail: String,
    /// Whether the same may go well later.
    pub(super) passing: bool,
    /// How long the other side asks to wait.
    pub(super) wait: Option<Duration>,
}

/// What can deliver to one sink.
#[derive(Debug)]
pub(super) struct Sender {
    kind: Kind,
    timeout: Duration,
    agent: Option<Agent>,
}

impl Sender {
    /// For a sink. Reads the system's certificates if they are needed.
    pub(super) fn new(sink: &Sink) -> Self {
        let timeout = Duration::from_millis(sink.timeout_ms.unsigned_abs());
        let agent = match &sink.kind {
            Kind::Command { .. } => None,
            Kind::Webhook { url, .. } | Kind::Ntfy { url, .. } => Some(agent(url, timeout)),
        };
        Self { kind: sink.kind.clone(), timeout, agent }
    }

    /// Tries once.
    pub(super) fn send(&self, message: &Message) -> Result<String, Failed> {
        match &self.kind {
            Kind::Command { argv, env } => command::run(argv, env, message, self.timeout),
            Kind::Webhook { url, token } => {
                self.post(url, token.as_ref(), &message.json().to_string())
            }
            Kind::Ntfy { url, topic, token } => {
                let body = message.ntfy(topic.expose()).to_string();
                self.post(url, token.as_ref(), &body)
            }
        }
    }

    fn post(&self, url: &Secret, token: Option<&Secret>, body: &str) -> Result<String, Failed> {
        let Some(agent) = &self.agent else { return Err(Failed::for_good("it has no address")) };
        let mut request = agent.post(url.expose()).header("Content-Type", "application/json");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {}", token.expose()));
        }
        let mut answer = request.send(body).map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(format!("HTTP {}", status.as_u16()));
        }
        let wait = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
        let said = answer.body_mut().with_config().limit(limits::NOTIFY_ANSWER_BYTES_MAX);
        let said = said.read_to_string().unwrap_or_default();
        let said = self.redacted(&clean(&said, limits::NOTIFY_TITLE_CHARS));
        let detail = match (status.is_redirection(), said.as_str()) {
            (true, _) => format!("HTTP {} (redirects are not followed)", status.as_u16()),
            (false, "") => format!("HTTP {}", status.as_u16()),
            (false, said) => format!("HTTP {}: {said}", status.as_u16()),
        };
        let passing = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        Err(Failed { detail, passing, wait })
    }

    fn unreachable(&self, error: &ureq::Error) -> Failed {
        let (words, passing) = match error {
            ureq::Error::Timeout(_) => (format!("no answer within {:?}", self.timeout), true),
            ureq::Error::HostNotFound => ("the host's name is not known".to_owned(), true),
            ureq::Error::Io(error) if is_tls(error) => (format!("TLS: {error}"), false),
            ureq::Error::Io(error) => (format!("cannot be reached: {error}"), true),
            ureq::Error::ConnectionFailed => ("cannot be reached".to_owned(), true),
            ureq::Error::Tls(error) => (format!("TLS: {error}"), false),
            ureq::Error::Rustls(error) => (format!("TLS: {error}"), false),
            ureq::Error::BadUri(_) => ("its address cannot be used".to_owned(), false),
            error => (error.to_string(), false),
        };
        let detail = self.redacted(&clean(&words, limits::NOTIFY_SUMMARY_CHARS));
        Failed { detail, passing, wait: None }
    }

    /// What others say of our request may repeat it.
    fn redacted(&self, text: &str) -> String {
        let secrets = match &self.kind {
            Kind::Command { .. } => [None, None, None],
            Kind::Webhook { url, token } => [Some(url), token.as_ref(), None],
            Kind::Ntfy { url: _, topic, token } => [None, token.as_ref(), Some(topic)],
        };
        let secrets = secrets.into_iter().flatten().map(Secret::expose);
        secrets
            .filter(|secret| !secret.is_empty())
            .fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }
}

impl Failed {
    /// Another try would fail as well.
    pub(super) fn for_good(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), passing: false, wait: None }
    }
}

/// A handshake that fails does so each time.
fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

fn agent(url: &Secret, timeout: Duration) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .max_response_header_size(limits::HEAD_BYTES_MAX)
        .timeout_global(Some(timeout))
        .user_agent(concat!("reattach/", env!("CARGO_PKG_VERSION")));
    if url.expose().starts_with("https:") {
        config = config.tls_config(TlsConfig::builder().root_certs(roots()).build());
    }
    config.build().new_agent()
}

/// Whom the system trusts, so that a company's own authority works; in an image without
/// certificates whom browsers trust.
fn roots() -> RootCerts {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "a certificate of the system cannot be used");
    }
    if system.certs.is_empty() {
        return RootCerts::WebPki;
    }
    let trusted = system.certs.iter().map(|one| Certificate::from_der(one).to_owned());
    RootCerts::Specific(Arc::new(trusted.collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::notify::sink::Detail;

    #[test]
    fn what_others_say_is_told_without_secrets() {
        let url = "https://hooks.example/T0/secretpath";
        let sink = Sink {
            name: "hook".into(),
            kind: Kind::Webhook {
                url: Secret::new(url),
                token: Some(Secret::new("tk_verysecret")),
            },
            events: BTreeSet::new(),
            detail: Detail::Tool,
            timeout_ms: 1000,
            unanswered_ms: 0,
        };
        let sender = Sender::new(&sink);
        let said = sender.redacted(&format!("no Bearer tk_verysecret for {url}"));
        assert_eq!(said, "no Bearer *** for ***");
    }
}
