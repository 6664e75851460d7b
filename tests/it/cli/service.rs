//! `service` as a user types it, with a home of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Ran, bare, ran};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn unit(&self) -> PathBuf {
        self.0.path().join("systemd/user/reattach.service")
    }

    fn read(&self) -> String {
        fs::read_to_string(self.unit()).expect("the unit is there")
    }

    #[track_caller]
    fn run(&self, path: &str, args: &[&str], code: i32) -> Ran {
        let mut command = bare(&["service"]);
        command.args(args).env("PATH", path).env("XDG_CONFIG_HOME", self.0.path());
        command.env_remove("SSH_AUTH_SOCK");
        ran(command).expect(code)
    }
}

/// What systemd itself says of a unit; `None` where there is none to ask.
fn verified(unit: &Path) -> Option<String> {
    let mut command = Command::new("systemd-analyze");
    // It wants a runtime directory to look for units in.
    let runtime = tempfile::tempdir().expect("a directory");
    command.args(["verify", "--user", "--man=no"]).arg(unit);
    command.env("XDG_RUNTIME_DIR", runtime.path());
    let said = command.output().ok()?;
    Some(String::from_utf8_lossy(&said.stderr).into_owned())
}

#[test]
fn a_unit_is_written_once_and_says_what_to_type() {
    let home = Home::new();
    let written = home.run("/usr/bin:/bin", &["install", "--", "--bind", "127.0.0.1:7000"], 0);
    assert_eq!(written.out.trim(), home.unit().to_str().expect("UTF-8"));
    for line in ["systemctl --user daemon-reload", "systemctl --user enable --now reattach"] {
        assert!(written.err.contains(line), "{}", written.err);
    }
    let unit = home.read();
    let program = env!("CARGO_BIN_EXE_reattach");
    assert!(unit.contains(&format!("ExecStart={program} serve --bind 127.0.0.1:7000\n")), "{unit}");
    assert!(unit.contains("\nEnvironment=PATH=/usr/bin:/bin\n"), "{unit}");
    assert!(unit.contains("\nKillMode=process\n"), "keepers outlive a restart: {unit}");
    assert!(!unit.contains('@'), "nothing was left to fill in: {unit}");
    if let Some(said) = verified(&home.unit()) {
        assert!(!said.contains("reattach.service"), "systemd: {said}");
    }
    // The same again is no conflict, something else is.
    home.run("/usr/bin:/bin", &["install", "--", "--bind", "127.0.0.1:7000"], 0);
    let refused = home.run("/usr/bin:/bin", &["install"], 6);
    assert!(refused.err.contains("--refresh-path"), "{}", refused.err);
    assert_eq!(home.read(), unit, "it stays");
    home.run("/usr/bin:/bin", &["install", "--force"], 0);
    assert!(home.read().contains(" serve\n"));
}

#[test]
fn a_fresh_path_changes_nothing_else() {
    let home = Home::new();
    home.run("/usr/bin:/bin", &["install", "--refresh-path"], 3);
    home.run("/usr/bin:/bin", &["install"], 0);
    let mine = home.read().replace("[Install]", "Environment=MINE=1\n\n[Install]");
    fs::write(home.unit(), &mine).expect("writable");
    let stale = home.run("/opt/my tools:/bin", &["status", "--json"], 0).json();
    assert_eq!(stale["pathIsCurrent"], false, "{stale}");
    home.run("/opt/my tools:/bin", &["install", "--refresh-path"], 0);
    let expected =
        mine.replace("Environment=PATH=/usr/bin:/bin", "Environment=\"PATH=/opt/my tools:/bin\"");
    assert_eq!(home.read(), expected);
    let fresh = home.run("/opt/my tools:/bin", &["status", "--json"], 0).json();
    assert_eq!(fresh["pathIsCurrent"], true, "{fresh}");
    // It can be replaced again, quotes and all.
    home.run("/bin", &["install", "--refresh-path"], 0);
    assert!(home.read().contains("\nEnvironment=PATH=/bin\n"));
    home.run("/bin", &["uninstall"], 0);
    assert!(!home.unit().exists());
    home.run("/bin", &["uninstall"], 3);
    home.run("/bin", &["status"], 3);
}

#[test]
fn a_unit_that_could_not_start_is_not_written() {
    let home = Home::new();
    home.run("/bin", &["install", "--", "--no-such-flag"], 2);
    home.run("/bin", &["install", "--", "--bind", "127.0.0.1:1\nExecStop=/bin/false"], 1);
    assert!(!home.unit().exists());
    let printed = home.run("/bin", &["install", "--print"], 0);
    assert!(printed.out.starts_with("[Unit]"), "{}", printed.out);
    assert!(!home.unit().exists(), "printing writes nothing");
}

/// The unit of the documentation is the one that is written, for an ordinary place.
#[test]
fn the_documented_unit_is_the_same() {
    let home = Home::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documented = fs::read_to_string(root.join("docs/reattach.service")).expect("it is there");
    let (_, documented) = documented.split_at(documented.find("[Unit]").expect("a unit"));
    let written = home.run("/bin", &["install", "--print"], 0).out;
    let program = env!("CARGO_BIN_EXE_reattach");
    let general = written
        .replace(&format!("ExecStart={program} serve"), "ExecStart=%h/.cargo/bin/reattach serve")
        .replace(
            "Environment=PATH=/bin",
            "Environment=PATH=%h/.local/bin:%h/.cargo/bin:/usr/local/bin:/usr/bin:/bin",
        );
    assert_eq!(general, documented);
}
