//! The whole tree of commands, with its front page in groups and its pages about subjects.
//!
//! Knows clap. Must not know what a command does.

use clap::{Command, CommandFactory as _};

use super::args::Cli;

/// The front page, in the order in which a person meets the commands. What stands in no group
/// comes last.
const GROUPS: &[(&str, &[&str])] = &[
    ("Begin", &["demo", "serve", "open", "pair"]),
    ("Work", &["run", "send", "attach", "logs", "ps", "sessions", "queue", "abort"]),
    ("Answer", &["permissions", "allow", "deny"]),
    ("Let in", &["devices", "token", "audit"]),
    ("Keep", &["backup", "restore", "verify", "export", "retention"]),
    ("Operate", &["doctor", "config", "service", "healthcheck", "notify", "bench", "version"]),
    ("Your shell", &["completions", "man"]),
];

/// Pages about subjects: `reattach help NAME`.
pub const TOPICS: &[(&str, &str, &str)] = &[
    ("exit-codes", "What exit codes mean", EXIT_CODES),
    ("environment", "The variables that are read", ENVIRONMENT),
    ("formatting", "What is printed where, and how programs read it", FORMATTING),
];

const EXIT_CODES: &str = "\
Exit codes

  0    done; for `run`, `send --wait` and `attach --until-complete`: the run succeeded
  1    a failure without a code of its own; `doctor`: something failed
  2    the command was given wrongly, or the server refused a value
  3    no such session, run or permission request
  4    not authorised: no token, or a wrong one
  5    the server cannot be reached
  6    a conflict: already running, already answered, nothing to abort, the file exists
  7    the time of --timeout is over
  10   the agent's run failed
  11   the run was aborted
  12   the run waits for a permission, and --no-input was given
  75   data cannot be used or is in use
  78   the configuration was refused
  126  the agent's program cannot be executed
  127  the agent's program was not found
";

const ENVIRONMENT: &str = "\
Environment

  REATTACH_TOKEN               the token shown to a --server URL
  REATTACH_CA_FILE             certificates to trust instead of the system's, in PEM
  REATTACH_<SECTION>_<KEY>     a key of the configuration, REATTACH_SERVER_BIND say; `reattach
                               config show --origin` tells which ones count
  REATTACH_LOG                 how much the server logs: error, warn, info, debug, or a filter
  REATTACH_LOG_FORMAT          how: auto, human, json
  XDG_DATA_HOME                data lies in its `reattach` [default: ~/.local/share]
  XDG_CONFIG_HOME              config.toml lies in its `reattach` [default: ~/.config]
  NO_COLOR, TERM=dumb          no colour, unless --color always
  SSL_CERT_FILE, SSL_CERT_DIR  where the system's certificates lie, if elsewhere
";

const FORMATTING: &str = "\
Formatting

  Data goes to stdout, talk to stderr, so that `reattach logs - > file` holds the log alone.
  --json prints one JSON document, or one line for each event, exactly as it is stored. Errors
  are then one object on stderr: {\"error\":{\"code\",\"message\",\"next\",\"exit\"}}.

    reattach sessions --json | jq -r '.[].id'
    reattach logs - --json | jq -r 'select(.kind == \"text\") | .content'
    reattach run \"PROMPT\" --json | jq 'select(.kind == \"complete\")'

  Colour only on a terminal; --color always|never decides otherwise. A reader that has seen
  enough (`| head`) is no error.
";

/// The tree without what is hidden: what completions and manual pages are made of.
#[must_use]
pub fn visible() -> Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut visible = Command::new("reattach")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .subcommand_required(true)
        .subcommands(shown)
        .args(all.get_arguments().cloned());
    if let Some(about) = all.get_about() {
        visible = visible.about(about.clone());
    }
    if let Some(after) = all.get_after_help() {
        visible = visible.after_help(after.clone());
    }
    visible
}

/// The tree, without the pages about subjects.
#[must_use]
pub fn command() -> Command {
    let command = Cli::command();
    let groups = groups(&command);
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}\n{{options}}{{after-help}}"
    ))
}

/// The tree as it is typed.
#[must_use]
pub fn command_with_topics() -> Command {
    TOPICS.iter().fold(command(), |command, (name, about, text)| {
        let page = Command::new(*name).about(*about).long_about(*text).hide(true);
        command.subcommand(page.help_template("{about}").disable_help_flag(true))
    })
}

/// A subject's page, if `name` is one.
#[must_use]
pub fn topic(name: &str) -> Option<&'static str> {
    TOPICS.iter().find(|(topic, ..)| *topic == name).map(|(_, _, text)| *text)
}

/// The commands, each group under its heading.
fn groups(command: &Command) -> String {
    let shown: Vec<(&str, String)> = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            // A template takes braces for its own.
            (command.get_name(), about.replace(['{', '}'], ""))
        })
        .collect();
    let width = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let heading = command.get_styles().get_header();
    let literal = command.get_styles().get_literal();
    let mut text = String::new();
    let mut group = |title: &str, names: Vec<&(&str, String)>| {
        if names.is_empty() {
            return;
        }
        text.push_str(&format!("{heading}{title}:{heading:#}\n"));
        for (name, about) in names {
            text.push_str(&format!("  {literal}{name:width$}{literal:#}  {about}\n"));
        }
        text.push('\n');
    };
    for (title, names) in GROUPS {
        let find = |name: &&str| shown.iter().find(|(known, _)| known == name);
        group(title, names.iter().filter_map(find).collect());
    }
    let grouped = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    group("More", shown.iter().filter(|(name, _)| !grouped(name)).collect());
    text.push_str(&format!(
        "  {literal}{:width$}{literal:#}  Of a command, or about {}\n",
        "help",
        TOPICS.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_page_names_each_command_once() {
        let mut command = command();
        let page = command.render_help().to_string();
        for name in command.get_subcommands().filter(|c| !c.is_hide_set()).map(Command::get_name) {
            let lines = page.lines().filter(|line| {
                line.strip_prefix("  ").is_some_and(|line| line.split(' ').next() == Some(name))
            });
            assert_eq!(lines.count(), 1, "{name} in:\n{page}");
        }
        assert!(page.contains("Usage: reattach <COMMAND>"), "{page}");
        assert!(page.contains("--version") && page.contains("Exit codes"), "{page}");
        assert!(!page.contains("demo-agent"), "what is hidden is hidden: {page}");
    }

    #[test]
    fn subjects_have_their_pages() {
        for (name, about, text) in TOPICS {
            assert_eq!(topic(name), Some(*text));
            assert!(text.ends_with('\n') && text.len() > about.len());
            assert!(text.lines().all(|line| line.len() <= 100), "{name} fits a terminal");
        }
        command_with_topics().debug_assert();
    }
}
