//! `completions`, `man` and the help: in the shells and with the tools that are there.

use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use reattach::cli::args::Cli;

use super::{bare, ran, run};
use crate::support::Setup;

fn names() -> Vec<String> {
    let command = Cli::command();
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.map(|command| command.get_name().to_owned()).collect()
}

/// What bash offers for these words, the last of which is being typed.
fn bash(setup: &str, words: &[&str]) -> Vec<String> {
    let script = ran(bare(&["completions", "bash"])).expect(0).out;
    let typed = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let last = words.len() - 1;
    let ask = format!(
        "{script}\n{setup}\nCOMP_WORDS=({typed}); COMP_CWORD={last}\n\
         function=$(complete -p reattach | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
         $function reattach \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    );
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile", "-c", &ask]).stdin(Stdio::null());
    let said = ran(command).expect(0);
    assert_eq!(said.err, "", "the script loads without a word");
    said.out.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_sessions() {
    let offered = bash("", &["reattach", ""]);
    for name in names() {
        assert!(offered.contains(&name), "{name} is not offered: {offered:?}");
    }
    assert!(!offered.iter().any(|one| one == "complete-sessions" || one == "demo-agent"));
    assert_eq!(bash("", &["reattach", "att"]), ["attach"]);
    assert!(bash("", &["reattach", "attach", "--unt"]).contains(&"--until-complete".to_owned()));

    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let listed = run(&gateway, &["complete-sessions"], 0);
    assert!(listed.out.starts_with(&format!("{session}\t")), "{}", listed.out);
    let binary = env!("CARGO_BIN_EXE_reattach");
    let to_it = format!(
        "export REATTACH_TOKEN='{}'; reattach() {{ '{binary}' \"$@\" --server \
         http://127.0.0.1:{}; }}",
        gateway.token(),
        gateway.port()
    );
    let beginning = &session[..6];
    for command in ["attach", "send", "logs", "abort"] {
        assert_eq!(bash(&to_it, &["reattach", command, beginning]), [session.as_str()]);
    }
    // Without a server there is nothing to offer, and nothing is said.
    assert!(bash("reattach() { return 5; }", &["reattach", "attach", beginning]).is_empty());
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = ran(bare(&["completions", shell])).expect(0).out;
        assert!(script.contains("permissions") && script.lines().count() > 100, "{shell}");
        let dynamic = matches!(shell, "bash" | "zsh" | "fish");
        assert_eq!(script.contains("complete-sessions 2>/dev/null"), dynamic, "{shell}");
    }
    let zsh = ran(bare(&["completions", "zsh"])).expect(0).out;
    let asked = zsh.matches(":_reattach_sessions'").count();
    assert!(asked >= 4, "attach, send, logs and abort ask for sessions: {asked}");
    ran(bare(&["completions", "tcsh"])).expect(2);
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let page = ran(bare(&["man"])).expect(0).out;
    for name in names() {
        let name = name.replace('-', "\\-");
        assert!(page.contains(&format!("reattach\\-{name}(1)")), "{name} is not on the page");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let pages = dir.path().join("man1");
    let path = pages.to_str().expect("UTF-8");
    ran(bare(&["man", "--dir", path])).expect(0);
    for name in names() {
        assert!(pages.join(format!("reattach-{name}.1")).exists(), "{name} has no page");
    }
    let file = dir.path().join("man1/reattach.1");
    assert_eq!(std::fs::read_to_string(&file).expect("written"), page);
    ran(bare(&["man", "--dir", file.to_str().expect("UTF-8")])).expect(1);
    // Where there is a `man`, it shows it.
    let mut man = Command::new("man");
    man.arg("-l").arg(&file).env("MANPAGER", "cat").env("MANWIDTH", "80").stdin(Stdio::null());
    let Ok(shown) = man.output() else { return };
    let text = String::from_utf8_lossy(&shown.stdout);
    if shown.status.success() && text.lines().count() > 10 {
        assert!(text.contains("NAME") && text.contains("SUBCOMMANDS"), "{text}");
        for name in names() {
            assert!(text.contains(&name), "{name} is not shown:\n{text}");
        }
    }
}

#[test]
fn subjects_have_pages() {
    for (topic, word) in
        [("exit-codes", "126"), ("environment", "REATTACH_TOKEN"), ("formatting", "--json")]
    {
        let help = ran(bare(&["help", topic])).expect(0);
        assert!(help.out.contains(word), "{topic}: {}", help.out);
        assert_eq!(ran(bare(&[topic])).expect(0).out, help.out);
    }
    let front = ran(bare(&["--help"])).expect(0).out;
    assert!(front.contains("exit-codes, environment, formatting"), "{front}");
    let (work, operate) = (front.find("Work:"), front.find("Operate:"));
    assert!(work.is_some() && work < operate, "{front}");
    let code = ran(bare(&[])).code;
    assert_eq!(code, Some(2), "no command is wrong usage");
}
