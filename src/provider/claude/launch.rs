//! How Claude Code is started: its argv and its environment.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::provider::{Launch, Prompt, Provider};

/// The permission modes that the CLI accepts. It names the asking mode `manual` in its help and
/// takes `default` for the same.
const MODES: [&str; 7] =
    ["default", "manual", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto"];

/// The effort levels that the CLI accepts; a model may know fewer.
const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

/// Bidirectional JSON lines with previews, and permission prompts on stdio: without the last one
/// the CLI denies whatever it would ask. `--verbose` is mandatory with this format.
const ARGUMENTS: [&str; 10] = [
    "-p",
    "--input-format",
    "stream-json",
    "--output-format",
    "stream-json",
    "--include-partial-messages",
    "--verbose",
    "--permission-prompt-tool",
    "stdio",
    "--forward-subagent-text",
];

/// No traffic but the model's, and no program that changes under a running session.
const ENVIRONMENT: [&str; 4] = [
    "DISABLE_AUTOUPDATER",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
];

/// A prompt's option that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// `options.permissionMode`.
    #[error("options.permissionMode must be one of {}", MODES.join(", "))]
    PermissionMode,
    /// `options.model`.
    #[error("options.model must be a model's name, a string without control characters")]
    Model,
    /// `options.effort`.
    #[error("options.effort must be one of {}", EFFORTS.join(", "))]
    Effort,
}

pub(super) fn check(options: &Map<String, Value>) -> Result<(), OptionError> {
    mode(options)?;
    model(options)?;
    effort(options)?;
    Ok(())
}

pub(super) fn launch(provider: &Provider, prompt: &Prompt) -> Launch {
    let mut argv = provider.command.clone();
    if argv.is_empty() {
        argv.push("claude".to_owned());
    }
    argv.extend(ARGUMENTS.map(str::to_owned));
    // Explicit at every start: the CLI's own default depends on files that we do not see.
    let mode = mode(&prompt.options).ok().flatten().unwrap_or("default");
    flag(&mut argv, "--permission-mode", mode);
    if let Ok(Some(model)) = model(&prompt.options) {
        flag(&mut argv, "--model", model);
    }
    if let Ok(Some(effort)) = effort(&prompt.options) {
        flag(&mut argv, "--effort", effort);
    }
    if let Some(native_id) = &prompt.native_id {
        flag(&mut argv, "--resume", native_id);
    }
    let mut env: BTreeMap<_, _> =
        ENVIRONMENT.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect();
    env.extend(provider.env.clone());
    Launch { argv, env, cwd: prompt.cwd.clone() }
}

/// A value that looks like a flag is joined to its own, so that it can't become another one.
fn flag(argv: &mut Vec<String>, name: &str, value: &str) {
    if value.starts_with('-') {
        argv.push(format!("{name}={value}"));
    } else {
        argv.extend([name.to_owned(), value.to_owned()]);
    }
}

fn mode(options: &Map<String, Value>) -> Result<Option<&'static str>, OptionError> {
    one_of(options, "permissionMode", &MODES).map_err(|()| OptionError::PermissionMode)
}

fn effort(options: &Map<String, Value>) -> Result<Option<&'static str>, OptionError> {
    one_of(options, "effort", &EFFORTS).map_err(|()| OptionError::Effort)
}

fn model(options: &Map<String, Value>) -> Result<Option<&str>, OptionError> {
    match options.get("model") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(model)) if model.chars().any(char::is_control) => {
            Err(OptionError::Model)
        }
        // Blank is how forms say "no choice".
        Some(Value::String(model)) => Ok(Some(model.trim()).filter(|model| !model.is_empty())),
        Some(_) => Err(OptionError::Model),
    }
}

fn one_of(
    options: &Map<String, Value>,
    key: &str,
    known: &[&'static str],
) -> Result<Option<&'static str>, ()> {
    match options.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(value)) if value.is_empty() => Ok(None),
        Some(Value::String(value)) => {
            known.iter().find(|known| **known == value.as_str()).map(|known| Some(*known)).ok_or(())
        }
        Some(_) => Err(()),
    }
}
