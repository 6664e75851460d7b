//! The program itself and its configuration.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use super::{Report, quoted};
use crate::cli::commands::config;
use crate::cli::config::{Config, Flags, MASK, Place, World, list};
use crate::cli::text;

/// Which program this is and where it runs.
pub(super) fn build(report: &mut Report) {
    let system = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let (name, kernel, machine) =
        (word(system.sysname()), word(system.release()), word(system.machine()));
    let libc = if cfg!(target_env = "musl") { ", static" } else { "" };
    let debug = if cfg!(debug_assertions) { ", a debug build" } else { "" };
    let root = rustix::process::geteuid().is_root();
    let what = format!(
        "reattach {}{libc}{debug}, {name} {machine}, kernel {kernel}{}",
        env!("CARGO_PKG_VERSION"),
        if root { ", as root" } else { "" }
    );
    report.ok("build", what).facts(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": name,
        "kernel": kernel,
        "machine": machine,
        "static": cfg!(target_env = "musl"),
        "root": root,
    }));
}

/// What `serve` would read, and whether its agents are those that nobody asked for.
pub(super) fn config(
    report: &mut Report,
    named: Option<&Path>,
    world: &World,
) -> Option<(Config, bool)> {
    let read = match config::file(named, world) {
        Ok(read) => read,
        Err(error) => {
            report.fail(
                "config",
                error.to_string(),
                "make it readable, or name another --config FILE",
            );
            return None;
        }
    };
    let read = read.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let flags = Flags { insecure_http: true, ..Flags::default() };
    let config = match Config::from_parts(&flags, read, world) {
        Ok(config) => config,
        Err(error) => {
            let place = read.map(|(path, _)| format!("edit {}, then: ", quoted(path)));
            let check = read.map(|(path, _)| format!(" {}", quoted(path))).unwrap_or_default();
            let fix = format!("{}reattach config check{check}", place.unwrap_or_default());
            report.fail("config", error.to_string(), fix);
            return None;
        }
    };
    let listed = list(&flags, read, world);
    let said = listed.iter().filter(|one| matches!(one.place, Place::File(..))).count();
    let variables: Vec<&str> = listed
        .iter()
        .filter_map(|one| match &one.place {
            Place::Variable(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let mut what = match read {
        Some((path, _)) => format!("{}, {}", path.display(), text::count(said, "value")),
        None => "no file: the defaults count".to_owned(),
    };
    if !variables.is_empty() {
        what.push_str(&format!("; from the environment: {}", variables.join(", ")));
    }
    let path = read.map(|(path, _)| path);
    report.ok("config", what).facts(json!({"file": path, "values": said, "variables": variables}));
    if let Some(path) = path
        && let Ok(meta) = path.metadata()
        && meta.permissions().mode() & 0o044 != 0
        && listed.iter().any(|one| one.value.contains(MASK))
    {
        let what = format!("{} holds secrets, and others can read it", path.display());
        report.warn("config", what, format!("chmod 600 {}", quoted(path)));
    }
    let agents_are_default =
        !listed.iter().any(|one| one.key.starts_with("providers.") && one.place != Place::Default);
    Some((config, agents_are_default))
}
