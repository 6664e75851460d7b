//! `completions` and `man`: what shells and manuals want to know, from the tree of commands.
//!
//! Must not know what a command does.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;
use serde_json::Value;

use crate::cli::args::{OutputArgs, ServerArgs};
use crate::cli::commands::{Context, id, title};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::help;

/// `reattach completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// `reattach man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write the pages of all commands into this directory, made if missing
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `reattach complete-sessions`: for the scripts of `completions`.
#[derive(Debug, Args)]
pub struct CompleteSessionsArgs {
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Commands whose first word is a session.
const OF_SESSIONS: [&str; 6] = ["attach", "send", "logs", "abort", "export", "queue"];
/// What a person would choose from.
const SESSIONS_OFFERED: usize = 100;

/// Prints a script for a shell.
///
/// # Errors
/// If stdout cannot be written.
pub fn completions(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut help::visible(), "reattach", &mut script);
    let script = with_sessions(args.shell, &String::from_utf8_lossy(&script));
    print(script.as_bytes())
}

/// Adds to a script that it asks the server for sessions where one is to be named.
fn with_sessions(shell: Shell, script: &str) -> String {
    match shell {
        Shell::Bash => format!(
            "{script}
# Where a session is to be named, the server's are offered.
_reattach_with_sessions() {{
    _reattach \"$@\"
    local word=\"${{COMP_WORDS[COMP_CWORD]}}\"
    case \"${{COMP_WORDS[1]}}\" in
        {})
            if [[ \"$word\" != -* && $COMP_CWORD -eq 2 ]]; then
                local ids
                ids=\"$(\"${{COMP_WORDS[0]}}\" complete-sessions 2>/dev/null | cut -f1)\"
                COMPREPLY+=( $(compgen -W \"$ids\" -- \"$word\") )
            fi
            ;;
    esac
}}
complete -F _reattach_with_sessions -o nosort -o bashdefault -o default reattach 2>/dev/null ||
    complete -F _reattach_with_sessions -o bashdefault -o default reattach
",
            OF_SESSIONS.join("|")
        ),
        Shell::Zsh => {
            // The generated script completes a session like a file.
            let mut zsh: Vec<String> = script
                .lines()
                .map(|line| {
                    let session = line.contains(":session -- ") && line.contains(":_default'");
                    if session {
                        line.replace(":_default'", ":_reattach_sessions'")
                    } else {
                        line.to_owned()
                    }
                })
                .collect();
            let function = "
# Where a session is to be named, the server's are offered.
_reattach_sessions() {
    local -a sessions
    sessions=(${(f)\"$(reattach complete-sessions 2>/dev/null | sed 's/:/\\\\:/g; s/\\t/:/')\"})
    _describe 'session' sessions
}
";
            // Before the end, where the script calls itself.
            let at = zsh.iter().rposition(|line| line.starts_with("if [ \"$funcstack[1]\""));
            zsh.insert(at.unwrap_or(zsh.len()), function.to_owned());
            zsh.join("\n") + "\n"
        }
        Shell::Fish => format!(
            "{script}
# Where a session is to be named, the server's are offered.
complete -c reattach -n \"__fish_seen_subcommand_from {}\" -f -a \"(reattach complete-sessions 2>/dev/null)\"
",
            OF_SESSIONS.join(" ")
        ),
        _ => script.to_owned(),
    }
}

/// Prints the ids of the last sessions with their titles, a tab between.
///
/// # Errors
/// What the server or the way to it says; scripts do not look.
pub fn complete_sessions(args: &CompleteSessionsArgs) -> Outcome {
    let context = Context::new(&args.server, OutputArgs::default())?;
    let limit = SESSIONS_OFFERED.to_string();
    let page: Value = context.rest.get("/sessions", &[("limit", &limit)])?;
    let mut text = String::new();
    for session in page["items"].as_array().into_iter().flatten() {
        text.push_str(&format!("{}\t{}\n", id(session), title(session).replace('\t', " ")));
    }
    print(text.as_bytes())
}

/// Prints the manual's page, or writes those of all commands.
///
/// # Errors
/// If they cannot be written.
pub fn man(args: &ManArgs) -> Outcome {
    if let Some(dir) = &args.dir {
        return match write_pages(dir) {
            Ok(()) => Ok(Exit::Ok),
            Err(error) => Err(Failure::new(
                Exit::Failure,
                "FILE",
                format!("cannot write pages into {}: {error}", dir.display()),
                "reattach man --dir DIR, where you may write",
            )
            .into()),
        };
    }
    // As `--dir` writes it.
    let mut command = help::visible().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&page)
}

fn write_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(help::visible(), dir)
}

fn print(bytes: &[u8]) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())?;
    Ok(Exit::Ok)
}
