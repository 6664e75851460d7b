//! `docs/cli.md` names what there is.

use clap::CommandFactory as _;
use reattach::cli::args::Cli;

fn page() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    std::fs::read_to_string(path).expect("the page is there")
}

#[test]
fn every_command_and_flag_stands_on_the_page() {
    let page = page();
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        assert!(page.contains(&format!("| `{name}")), "{name} has no row");
        for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
            if !matches!(flag, "help" | "version") {
                assert!(page.contains(&format!("--{flag}")), "{name} --{flag}");
            }
        }
    }
}

#[test]
fn every_exit_code_stands_on_the_page() {
    let page = page();
    for code in [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 75, 78, 126, 127] {
        assert!(page.contains(&format!("\n| {code} | ")), "{code}");
    }
}
