//! What an agent finds in its environment, and the tags by which its processes are found again.
//!
//! Agents read dozens of variables, and a gateway may have been started anywhere: from a
//! service manager, from a terminal, from inside another agent. So nothing is inherited but a
//! list: who and where the user is, locale, terminal, temporary and XDG directories, the ssh
//! agent, proxies and certificates (an agent without them reaches no model in many companies),
//! and the credentials and endpoints of the known agents, which a user who exported them for use
//! in a terminal expects to work here as well. All agents get the same list. What is not passed:
//! cloud and forge credentials, `REATTACH_TOKEN`, `NODE_OPTIONS`, `LD_*`, the marks by which an
//! agent notices that it runs inside another one. `env` of a provider in `config.toml` adds to
//! the list and overrides it.
//!
//! Must not know which agent it is for.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::run::id::AgentId;

/// The variable that says which agent a process belongs to; its value is an `AgentId`.
pub const AGENT_TAG: &str = "REATTACH_AGENT";
/// The variable that says which data dir a process belongs to; its value is a `DataTag`.
pub const DATA_TAG: &str = "REATTACH_DATA";

/// Passed on if they are set.
const NAMES: &[&str] = &[
    // Who and where.
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "TZ",
    "LANG",
    "LANGUAGE",
    // How to print.
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    // How to reach others.
    "SSH_AUTH_SOCK",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    // Credentials, endpoints and homes of the known agents.
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CONFIG_DIR",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "CODEX_API_KEY",
    "CODEX_HOME",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GOOGLE_GEMINI_BASE_URL",
    "CURSOR_API_KEY",
    "OPENCODE_CONFIG",
];

/// Passed on if their names begin so.
const PREFIXES: &[&str] = &["LC_", "XDG_"];

/// Where programs are, if the gateway itself was not told.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A data dir's mark on the machine: a hash of its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataTag(String);

impl DataTag {
    /// The tag of this directory, whichever way its path is written.
    ///
    /// # Errors
    /// The directory does not exist or cannot be reached.
    pub fn of(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.canonicalize()?;
        let hash = Sha256::digest(path.as_os_str().as_bytes());
        let mut hex = String::new();
        for byte in hash.iter().take(16) {
            write!(hex, "{byte:02x}").expect("a string takes all");
        }
        Ok(Self(hex))
    }

    /// The variable's value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An agent's whole environment: the list above as this process has it, `extra` over it, the
/// tags over all.
#[must_use]
pub fn environment(
    extra: &BTreeMap<String, String>,
    agent: AgentId,
    data: &DataTag,
) -> Vec<(OsString, OsString)> {
    choose(std::env::vars_os(), extra, agent, data)
}

/// Where an agent with this addition to its environment finds programs: its `PATH`.
#[must_use]
pub fn search_path(extra: &BTreeMap<String, String>) -> OsString {
    let own = extra.get("PATH").map(OsString::from);
    own.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// The two tags alone: a keeper's environment.
#[must_use]
pub(super) fn tags(agent: AgentId, data: &DataTag) -> [(&'static str, String); 2] {
    [(AGENT_TAG, agent.to_string()), (DATA_TAG, data.0.clone())]
}

fn choose(
    ours: impl Iterator<Item = (OsString, OsString)>,
    extra: &BTreeMap<String, String>,
    agent: AgentId,
    data: &DataTag,
) -> Vec<(OsString, OsString)> {
    let mut chosen = BTreeMap::from([("PATH".into(), DEFAULT_PATH.into())]);
    chosen.extend(ours.filter(|(name, _)| is_passed_on(name)));
    chosen.extend(extra.iter().map(|(name, value)| (name.into(), value.into())));
    chosen.extend(tags(agent, data).map(|(name, value)| (name.into(), value.into())));
    chosen.into_iter().collect()
}

fn is_passed_on(name: &OsStr) -> bool {
    NAMES.iter().any(|known| name == *known)
        || PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose_from(ours: &[(&str, &str)], extra: &[(&str, &str)]) -> BTreeMap<String, String> {
        let ours = ours.iter().map(|(name, value)| (name.into(), value.into()));
        let extra = extra.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        choose(ours, &extra, AgentId::from_u128(1), &DataTag("d".into()))
            .into_iter()
            .map(|(name, value)| {
                (name.into_string().expect("UTF-8"), value.into_string().expect("UTF-8"))
            })
            .collect()
    }

    #[test]
    fn only_the_list_is_passed_on() {
        let env = choose_from(
            &[
                ("PATH", "/p"),
                ("LC_ALL", "C"),
                ("XDG_RUNTIME_DIR", "/run"),
                ("ANTHROPIC_API_KEY", "k"),
                ("REATTACH_TOKEN", "secret"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                ("NODE_OPTIONS", "--inspect"),
                ("CLAUDECODE", "1"),
            ],
            &[],
        );
        let names: Vec<&str> = env.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "ANTHROPIC_API_KEY",
                "LC_ALL",
                "PATH",
                "REATTACH_AGENT",
                "REATTACH_DATA",
                "XDG_RUNTIME_DIR"
            ]
        );
        assert_eq!(env["PATH"], "/p");
    }

    #[test]
    fn configuration_adds_and_overrides_but_never_the_tags() {
        let env = choose_from(
            &[("HOME", "/a"), ("REATTACH_AGENT", "of an agent that we run in")],
            &[("HOME", "/b"), ("AWS_REGION", "x"), ("REATTACH_DATA", "forged")],
        );
        assert_eq!((env["HOME"].as_str(), env["AWS_REGION"].as_str()), ("/b", "x"));
        assert_eq!(env[DATA_TAG], "d");
        assert_eq!(env[AGENT_TAG], AgentId::from_u128(1).to_string());
        assert_eq!(env["PATH"], DEFAULT_PATH);
    }

    #[test]
    fn a_data_dir_has_one_tag_however_its_path_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let tag = DataTag::of(dir.path()).expect("a tag");
        assert_eq!(DataTag::of(&dir.path().join(".")).expect("a tag"), tag);
        assert_eq!(tag.as_str().len(), 32);
        assert!(DataTag::of(&dir.path().join("missing")).is_err());
    }
}
