//! `config show|check|init`: the built binary with files and variables.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{bare, ran};

/// A command in a home of its own.
fn at_home(home: &Path, args: &[&str]) -> Command {
    let mut command = bare(args);
    command.env("HOME", home).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
    command
}

fn of<'a>(shown: &'a Value, key: &str) -> &'a Value {
    let values = shown["values"].as_array().expect("a list");
    values.iter().find(|value| value["key"] == key).unwrap_or_else(|| panic!("no {key}: {shown}"))
}

#[test]
fn a_file_is_written_once_checked_and_shown() {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join(".config/reattach/config.toml");
    let nothing = ran(at_home(home.path(), &["config", "check"])).expect(0);
    assert!(nothing.out.contains("there is no file"), "{}", nothing.out);

    let wrote = ran(at_home(home.path(), &["config", "init", "--json"])).expect(0).json();
    assert_eq!(wrote["file"].as_str(), file.to_str());
    let mode = fs::metadata(&file).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "keys may come to stand in it");
    let text = fs::read_to_string(&file).expect("it is there");
    let printed = ran(at_home(home.path(), &["config", "init", "-"])).expect(0);
    assert_eq!(printed.out, text);
    let again = ran(at_home(home.path(), &["config", "init"])).expect(6);
    assert!(again.err.contains("stays as it is"), "{}", again.err);

    let edited = text.replace("# agents_max = 16", "agents_max = 7");
    fs::write(&file, &edited).expect("writable");
    let checked = ran(at_home(home.path(), &["config", "check", "--json"])).expect(0).json();
    assert_eq!((&checked["ok"], &checked["values"]), (&true.into(), &1.into()), "{checked}");

    let line = edited.lines().position(|line| line == "agents_max = 7").expect("written") + 1;
    let mut show = at_home(home.path(), &["config", "show", "--json", "--bind", "127.0.0.1:1"]);
    show.env("REATTACH_TIMEOUTS_DRAIN", "9s");
    let shown = ran(show).expect(0).json();
    let agents = of(&shown, "limits.agents_max");
    assert_eq!((&agents["value"], &agents["origin"]), (&7.into(), &"file".into()));
    assert_eq!(agents["line"].as_u64(), u64::try_from(line).ok());
    let drain = of(&shown, "timeouts.drain");
    assert_eq!((&drain["value"], &drain["origin"]), (&"9s".into(), &"environment".into()));
    assert_eq!(drain["variable"], "REATTACH_TIMEOUTS_DRAIN");
    assert_eq!(of(&shown, "server.bind")["flag"], "--bind");
    assert_eq!(of(&shown, "timeouts.stall")["origin"], "default");

    let table = ran(at_home(home.path(), &["config", "show", "--origin"])).expect(0);
    let row = table.out.lines().find(|line| line.starts_with("limits.agents_max = 7"));
    let place = format!("# {}:{line}", file.display());
    assert!(row.is_some_and(|row| row.ends_with(&place)), "{}", table.out);
    let plain = ran(at_home(home.path(), &["config", "show"])).expect(0);
    plain.out.parse::<toml::Table>().expect("what is shown without origins can be a file");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("mine.toml");
    let name = file.to_str().expect("UTF-8");
    for (text, words) in [
        ("[limits]\nagent_max = 1\n", "limits.agents_max"),
        ("[limits\n", "mine.toml"),
        ("[limits]\nagents_max = 0\n", "at least 1"),
        ("[server]\nbehind_proxy = true\n", "public_url"),
    ] {
        fs::write(&file, text).expect("writable");
        for args in [&["config", "check", name][..], &["config", "show", "--config", name]] {
            let refused = ran(at_home(home.path(), args)).expect(78);
            assert!(refused.err.contains(words), "{text}: {}", refused.err);
        }
    }
    ran(at_home(home.path(), &["config", "check", "/nowhere/x.toml"])).expect(78);
    // Not wrong, but `serve` will want a flag for it.
    fs::write(&file, "[server]\nbind = \"0.0.0.0:1\"\n").expect("writable");
    let open = ran(at_home(home.path(), &["config", "check", name])).expect(0);
    assert!(open.err.contains("--insecure-http"), "{}", open.err);
}

#[test]
fn secrets_are_masked() {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("mine.toml");
    let text = "[providers.mine]\nkind = \"command\"\nenv = { API_KEY = \"hush-hush\" }\n";
    fs::write(&file, text).expect("writable");
    let name = file.to_str().expect("UTF-8");
    for more in [&["--json"][..], &["--origin"], &[]] {
        let mut args = vec!["config", "show", "--config", name];
        args.extend(more);
        let shown = ran(at_home(home.path(), &args)).expect(0);
        assert!(shown.out.contains("providers.mine.env.API_KEY"), "{}", shown.out);
        assert!(!shown.out.contains("hush"), "{}", shown.out);
    }
}
