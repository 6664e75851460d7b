//! Agents: whether the server finds their programs, what versions those are, and whether somebody
//! has logged in there.
//!
//! A service has another `PATH` than a terminal, which is why an agent that works there is not
//! found here; so both are looked at. Of logins only the presence of a file or of a variable is
//! looked at, never what is in it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use super::programs::{Found, ask, find, login_path};
use super::{Patient, Report, quoted};
use crate::cli::text::{self, Paint};
use crate::limits;
use crate::provider::{Kind, Provider};

const GROUP: &str = "agents";

/// Where a program was found by whom.
#[derive(Debug)]
struct Looked {
    by_server: Found,
    by_person: Option<PathBuf>,
    version: Option<Result<String, String>>,
}

pub(super) fn check(report: &mut Report, patient: &Patient) {
    let Some(config) = &patient.config else { return };
    let path = Paths::of(patient);
    let providers: Vec<&Provider> = config.providers.values().collect();
    // Versions take their time, and do so side by side.
    let looked: Vec<Looked> = thread::scope(|scope| {
        let threads: Vec<_> = providers
            .iter()
            .map(|provider| {
                let path = &path;
                let look = move || look(provider, path);
                thread::Builder::new().name("doctor-agent".into()).spawn_scoped(scope, look)
            })
            .collect();
        let joined = threads.into_iter().zip(&providers);
        joined
            .map(|(thread, provider)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| nothing()),
                Err(_) => look(provider, &path),
            })
            .collect()
    });
    for (provider, looked) in providers.iter().zip(&looked) {
        tell(report, patient, provider, looked, &path);
    }
}

const fn nothing() -> Looked {
    Looked { by_server: Found::Nowhere, by_person: None, version: None }
}

/// Where programs are looked for.
#[derive(Debug)]
struct Paths {
    /// By the server, or by the service that would start it.
    server: OsString,
    /// Whose path that is.
    whose: &'static str,
    /// In this terminal, then in a login shell.
    person: Vec<OsString>,
}

impl Paths {
    fn of(patient: &Patient) -> Self {
        let own = std::env::var_os("PATH").unwrap_or_default();
        let (server, whose) = match &patient.server {
            Some(running) => match running.variable("PATH") {
                Some(path) => (path, "the server"),
                None => (own.clone(), "this shell"),
            },
            None => match service_path() {
                Some(path) => (path, "the service"),
                None => (own.clone(), "this shell"),
            },
        };
        let mut person = vec![own];
        person.extend(login_path().map(OsString::from));
        Self { server, whose, person }
    }
}

/// The `PATH` in the environment of the user's service, if there is one.
fn service_path() -> Option<OsString> {
    let mut command = Command::new("systemctl");
    command.args(["--user", "show", "reattach.service", "--property=Environment"]);
    let said = ask(&mut command, limits::DOCTOR_PROGRAM).ok()?;
    let variables = said.strip_prefix("Environment=")?;
    let path = variables.split(' ').find_map(|one| one.trim_matches('"').strip_prefix("PATH="))?;
    Some(path.into())
}

fn look(provider: &Provider, paths: &Paths) -> Looked {
    let Some(program) = provider.command.first() else { return nothing() };
    let own = provider.env.get("PATH").map(OsStr::new);
    let by_server = find(program, own.unwrap_or(&paths.server));
    let by_person = paths.person.iter().find_map(|path| match find(program, path) {
        Found::Program(path) => Some(path),
        _ => None,
    });
    // What other programs do with `--version`, nobody knows.
    let version = match (&by_server, provider.kind) {
        (Found::Program(program), Kind::Claude) => {
            let mut command = Command::new(program);
            command.arg("--version").env("PATH", own.unwrap_or(&paths.server));
            let said = ask(&mut command, limits::DOCTOR_PROGRAM);
            Some(said.map(|text| {
                let first = text.lines().next().unwrap_or_default();
                text::one_line(&text::clean(first, Paint::Plain), 60)
            }))
        }
        _ => None,
    };
    Looked { by_server, by_person, version }
}

fn tell(
    report: &mut Report,
    patient: &Patient,
    provider: &Provider,
    looked: &Looked,
    paths: &Paths,
) {
    let name = &provider.name;
    let program = provider.command.first().map_or("", String::as_str);
    let whose = paths.whose;
    let mut facts = json!({"name": name, "foundBy": whose});
    match (&looked.by_server, &looked.by_person) {
        (Found::Program(path), _) => {
            facts["program"] = json!(path);
            usable(report, patient, provider, looked, path, &mut facts);
        }
        (Found::NotExecutable(path), _) => {
            let what = format!("{name}: {} cannot be executed", path.display());
            report.fail(GROUP, what, format!("chmod +x {}", quoted(path)));
        }
        (Found::Nowhere, Some(path)) => {
            let what = format!(
                "{name}: found in your shell ({}), and not in the PATH of {whose}",
                path.display()
            );
            let fix = format!(
                "name the whole path in config.toml: [providers.{name}] command = [\"{}\"]\n\
                 or, if the server is a service: reattach service install --refresh-path",
                path.display()
            );
            report.fail(GROUP, what, fix);
        }
        (Found::Nowhere, None) => {
            let what = format!("{name}: `{program}` is not found");
            let fix = match provider.kind {
                Kind::Claude => format!(
                    "install it, or name it in config.toml: [providers.{name}] command = \
                     [\"/its/path\"]"
                ),
                _ => format!("name its path in config.toml: [providers.{name}] command"),
            };
            if patient.agents_are_default {
                report.warn(GROUP, what, fix);
            } else {
                report.fail(GROUP, what, fix);
            }
        }
    }
    report.facts(facts);
}

fn usable(
    report: &mut Report,
    patient: &Patient,
    provider: &Provider,
    looked: &Looked,
    path: &Path,
    facts: &mut Value,
) {
    let name = &provider.name;
    let login = login(provider, patient);
    facts["loggedIn"] = json!(login);
    let version = match &looked.version {
        Some(Ok(version)) => {
            facts["version"] = json!(version);
            format!(" {version}")
        }
        Some(Err(why)) => {
            let what = format!("{name}: {} --version {why}", path.display());
            report.fail(GROUP, what, format!("{} --version", quoted(path)));
            return;
        }
        None => String::new(),
    };
    let what = format!("{name}:{version} {}", path.display()).replace(":  ", ": ");
    match login {
        Some(false) => {
            let fix =
                format!("{} (and its /login), or set its key in the environment", quoted(path));
            report.warn(GROUP, format!("{what}, nobody has logged in there"), fix);
        }
        Some(true) => {
            report.ok(GROUP, format!("{what}, logged in (seen by presence only)"));
        }
        None => {
            report.ok(GROUP, what);
        }
    }
}

/// Whether somebody has logged in, as far as a file or a variable that is there can tell; `None`
/// for agents that know no login.
fn login(provider: &Provider, patient: &Patient) -> Option<bool> {
    if provider.kind != Kind::Claude {
        return None;
    }
    const VARIABLES: [&str; 3] =
        ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"];
    let set = |name: &str| {
        let own = || std::env::var_os(name).is_some_and(|value| !value.is_empty());
        provider.env.contains_key(name)
            || patient.server.as_ref().map_or_else(own, |running| running.has_variable(name))
    };
    if VARIABLES.iter().any(|name| set(name)) {
        return Some(true);
    }
    let place = |name: &str| {
        let given = provider.env.get(name).map(PathBuf::from);
        given.or_else(|| std::env::var_os(name).map(PathBuf::from))
    };
    let home = place("CLAUDE_CONFIG_DIR").or_else(|| Some(place("HOME")?.join(".claude")))?;
    // On macOS it is in the key chain, which cannot be looked at without asking.
    if cfg!(target_os = "macos") {
        return None;
    }
    Some(home.join(".credentials.json").exists())
}
