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
        let below = command.get_subcommands().flat_map(clap::Command::get_arguments);
        for flag in command.get_arguments().chain(below).filter_map(clap::Arg::get_long) {
            if !matches!(flag, "help" | "version") {
                assert!(page.contains(&format!("--{flag}")), "{name} --{flag}");
            }
        }
        for inner in command.get_subcommands() {
            let inner = inner.get_name();
            assert!(page.contains(inner), "{name} {inner}");
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

/// The unit for systemd keeps what it promises: agents live on, and a drain has its time.
#[test]
fn the_unit_fits_the_server() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = std::fs::read_to_string(root.join("docs/reattach.service")).expect("it is there");
    let value = |key: &str| {
        let mut found = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let value = found.next().unwrap_or_else(|| panic!("no {key}")).to_owned();
        assert_eq!(found.next(), None, "{key} stands there twice");
        value
    };
    assert_eq!(value("KillMode"), "process");
    assert_eq!(value("OOMPolicy"), "continue");
    assert_eq!(value("RestartPreventExitStatus"), "78");
    let limits = reattach::limits::Limits::default();
    let stop: i64 = value("TimeoutStopSec").parse().expect("seconds");
    assert!(stop * 1000 > limits.drain_ms, "SIGKILL comes before the drain is over");
    let files: usize = value("LimitNOFILE").parse().expect("a number");
    assert!(files > 2 * limits.connections_max + 100, "too few descriptors");
    let command = value("ExecStart");
    let args = command.split_whitespace().skip(1);
    let args: Vec<&str> = std::iter::once("reattach").chain(args).collect();
    use clap::Parser as _;
    Cli::try_parse_from(&args).expect("a command that there is");
    // Each setting but the plainest stands below the reason for it.
    let lines: Vec<&str> = unit.lines().collect();
    for pair in lines.windows(2) {
        let plain = [
            "[",
            "Description=",
            "Documentation=",
            "ExecStart=",
            "StartLimitBurst=",
            "RestartSec=",
            "WantedBy=",
        ];
        let set = pair[1].contains('=') && !pair[1].starts_with('#');
        if set && !plain.iter().any(|plain| pair[1].starts_with(plain)) {
            assert!(pair[0].starts_with("# "), "no reason for {}", pair[1]);
        }
    }
}
