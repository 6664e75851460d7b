use super::*;
use clap::CommandFactory as _;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
}

#[test]
fn clap_finds_no_contradiction() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_takes_json() {
    for line in [
        "reattach serve --json",
        "reattach demo --json",
        "reattach run hello --json",
        "reattach send s hello --json",
        "reattach attach --json",
        "reattach ps --json",
        "reattach logs s --json",
        "reattach abort s --json",
        "reattach permissions --json",
        "reattach allow p --json",
        "reattach deny p --json",
        "reattach sessions --json",
        "reattach version --json",
        "reattach bench --json",
    ] {
        assert!(parse(line).expect(line).json(), "{line}");
    }
}

#[test]
fn a_session_can_be_the_last_one() {
    for line in ["reattach attach -", "reattach logs - -n 5 -f", "reattach abort -"] {
        parse(line).expect(line);
    }
    let Ok(Command::Send(send)) = parse("reattach send - -") else { panic!("send") };
    assert_eq!((send.session.as_str(), send.text.as_str()), ("-", "-"));
}

#[test]
fn agents_outlive_their_server_unless_told_otherwise() {
    for (line, on_stop) in [
        ("reattach serve", OnStop::Keep),
        ("reattach serve --on-stop keep", OnStop::Keep),
        ("reattach serve --on-stop abort", OnStop::Abort),
    ] {
        let Ok(Command::Serve(serve)) = parse(line) else { panic!("{line}") };
        assert_eq!(serve.on_stop, on_stop, "{line}");
    }
}

#[test]
fn options_are_json_or_else_strings() {
    let line = "reattach run hi --option a=1 --option b=x --option c={\"d\":[true]} --option e=";
    let Ok(Command::Run(run)) = parse(line) else { panic!("{line}") };
    let expected = [
        ("a", serde_json::json!(1)),
        ("b", serde_json::json!("x")),
        ("c", serde_json::json!({"d": [true]})),
        ("e", serde_json::json!("")),
    ];
    assert_eq!(run.options, expected.map(|(key, value)| (key.to_owned(), value)));
    assert!(parse("reattach run hi --option =1").is_err());
    assert!(parse("reattach run hi --option a").is_err());
}

#[test]
fn times_have_units() {
    assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
    assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
    for bad in ["", "s", "3w", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615d"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_cursor_is_a_run_and_a_number() {
    assert_eq!(parse_since("r:7"), Ok(Since { run: "r".into(), seq: 7 }));
    for bad in ["", "r", "r:", ":7", "r:x", "r:-1"] {
        assert!(parse_since(bad).is_err(), "{bad}");
    }
    assert!(parse("reattach attach s --since r:7 --from tail").is_err());
}

#[test]
fn two_ways_to_find_a_server_are_one_too_many() {
    let error = parse("reattach ps --server http://x --data-dir d").expect_err("both");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn the_demo_agent_parses_its_own_flags() {
    let Ok(Command::DemoAgent(agent)) = parse("reattach demo-agent --flood 3 --help") else {
        panic!("demo-agent")
    };
    assert_eq!(agent.rest, ["--flood", "3", "--help"]);
}
