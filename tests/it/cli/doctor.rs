//! `doctor`: the built binary on installations with faults, each of which is to be found and named.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::proxies::{Authority, Fault, Front, faulty};
use super::{Ran, bare, ran};
use crate::support::{Gateway, Setup, eventually};

/// `doctor` for the gateway, with its configuration and a home without secrets.
fn doctor(setup: &Setup, args: &[&str]) -> Command {
    let mut command = bare(&["doctor"]);
    command.args(args).arg("--data-dir").arg(setup.data_dir());
    command.arg("--config").arg(setup.config_path()).env("HOME", setup.root.path());
    command.env_remove("ANTHROPIC_API_KEY").env_remove("XDG_CONFIG_HOME").env("SHELL", "/bin/sh");
    command
}

/// The checks of a group.
#[track_caller]
fn checks(report: &Value, group: &str) -> Vec<Value> {
    let all = report["checks"].as_array().expect("a list").iter();
    let found: Vec<Value> = all.filter(|check| check["group"] == group).cloned().collect();
    assert!(!found.is_empty(), "no {group} in {report:#}");
    found
}

/// The one check whose words have these in them.
#[track_caller]
fn check(report: &Value, words: &str) -> Value {
    let all = report["checks"].as_array().expect("a list");
    let mut found =
        all.iter().filter(|check| check["what"].as_str().expect("words").contains(words));
    let one = found.next().unwrap_or_else(|| panic!("nothing says {words:?}: {report:#}"));
    assert_eq!(found.next(), None, "{words:?} stands there twice");
    one.clone()
}

#[track_caller]
fn is(check: &Value, level: &str, fix: &str) {
    assert_eq!(check["level"], level, "{check:#}");
    let said = check["fix"].as_str().unwrap_or_default();
    assert!(said.contains(fix), "the fix does not say {fix:?}: {check:#}");
}

#[test]
fn a_sound_installation_is_said_to_be_sound() {
    let gateway = Setup::with_fake().start();
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(0).json();
    assert_eq!((&report["ok"], &report["failed"]), (&true.into(), &0.into()), "{report:#}");
    for group in ["build", "config", "data", "server", "network", "auth", "agents", "keepers"] {
        checks(&report, group);
    }
    for group in ["clock", "limits"] {
        checks(&report, group);
    }
    is(&check(&report, "SQLite finds no damage"), "ok", "");
    is(&check(&report, "WebSocket opens"), "ok", "");
    is(&check(&report, "reachable from this machine only"), "ok", "");
    let server = check(&report, "answers in");
    assert_eq!(server["facts"]["pid"].as_u64(), Some(u64::from(gateway.pid())));
    let table = ran(doctor(&gateway.setup, &[])).expect(0);
    for row in ["build", "config", "data", "server", "keepers", "limits"] {
        assert!(table.out.lines().any(|line| line.starts_with(row)), "{row}: {}", table.out);
    }
    assert!(!table.out.contains(gateway.token()), "a token is not shown");
}

#[test]
fn faults_of_the_data_directory_are_found() {
    let mut gateway = Setup::with_fake().start();
    let dir = gateway.setup.data_dir();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::set_permissions(dir.join("token"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(0).json();
    is(&check(&report, "open to other users"), "warn", "chmod 700");
    is(&check(&report, "token can be read"), "warn", "chmod 600");
    ran(doctor(&gateway.setup, &["--strict"])).expect(1);

    gateway.kill();
    fs::write(dir.join("server.new"), "half").expect("writable");
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(0).json();
    is(&check(&report, "the last one was killed"), "warn", "reattach serve --data-dir");
    is(&check(&report, "1 leftover"), "warn", "server.new");

    // Pages of a database that was closed in order are overwritten.
    let mut gateway = Setup::new().start();
    let dir = gateway.setup.data_dir();
    gateway.terminate();
    let database = dir.join("reattach.db");
    let mut bytes = fs::read(&database).expect("it is there");
    let from = bytes.len().min(2 * 8192);
    bytes[from..].fill(0x5a);
    fs::write(&database, &bytes).expect("writable");
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(1).json();
    let damage = checks(&report, "data").into_iter().find(|check| check["level"] == "fail");
    is(&damage.expect("damage is found"), "fail", "reattach restore BACKUP");

    fs::write(&database, "nothing at all").expect("writable");
    ran(doctor(&gateway.setup, &[])).expect(1);
    fs::remove_dir_all(&dir).expect("it is ours");
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(0).json();
    is(&check(&report, "is not there yet"), "ok", "");
    fs::write(&dir, "a file").expect("writable");
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(1).json();
    is(&check(&report, "is no directory"), "fail", "--data-dir");
}

#[test]
fn a_configuration_that_serve_would_refuse_is_found() {
    let setup = Setup::with_fake();
    setup.command();
    let file = setup.config_path();
    fs::write(&file, "[limits]\nagent_max = 1\n").expect("writable");
    let report = ran(doctor(&setup, &["--json"])).expect(1).json();
    is(&checks(&report, "config")[0], "fail", "reattach config check");
    fs::write(&file, "[providers.mine]\nkind = \"command\"\nenv = { K = \"hush-hush\" }\n")
        .expect("writable");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let ran = ran(doctor(&setup, &["--json"])).expect(0);
    is(&check(&ran.json(), "holds secrets"), "warn", "chmod 600");
    assert!(!ran.out.contains("hush"), "{}", ran.out);
}

/// A program of the test's own, with this script.
fn program(dir: &Path, name: &str, script: &str) -> String {
    fs::create_dir_all(dir).expect("writable");
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn agents_are_found_or_it_is_said_why_not() {
    let setup = Setup::new();
    let root = setup.root.path().to_owned();
    let good = program(&root.join("good"), "claude", "echo '9.9.9 (Claude Code)'");
    let slow = program(&root.join("slow"), "claude", "sleep 1000");
    let broken = program(&root.join("broken"), "claude", "exit 7");
    let plain = program(&root.join("plain"), "claude", "");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).expect("it is ours");
    program(&root.join("mine"), "my-own-agent", "touch ran");
    let gateway = setup
        .provider("good", "claude", &[&good])
        .provider("slow", "claude", &[&slow])
        .provider("broken", "claude", &[&broken])
        .provider("plain", "claude", &[&plain])
        .provider("gone", "claude", &["/nowhere/claude"])
        .provider("mine", "jsonl", &["my-own-agent"])
        .start();
    let path = format!("{}:/usr/bin:/bin", root.join("mine").display());
    let mut command = doctor(&gateway.setup, &["--json"]);
    command.env("PATH", &path).current_dir(&root);
    let report = ran(command).expect(1).json();
    let of = |name: &str| check(&report, &format!("{name}:"));
    is(&of("good"), "warn", "/login");
    assert_eq!(of("good")["facts"]["version"], "9.9.9 (Claude Code)");
    is(&of("slow"), "fail", "--version");
    is(&of("broken"), "fail", "--version");
    is(&of("plain"), "fail", "chmod +x");
    is(&of("gone"), "fail", "providers.gone");
    // Found by whoever looks, and not by the server, whose PATH is another one.
    let mine = of("mine");
    is(&mine, "fail", "service install");
    assert!(mine["what"].as_str().expect("words").contains("not in the PATH of the server"));
    assert!(!root.join("ran").exists(), "a program that knows no --version is not run");

    // Somebody logs in: a file that is there is enough, what is in it is not read.
    let login = root.join(".claude");
    fs::create_dir_all(&login).expect("writable");
    fs::write(login.join(".credentials.json"), "hush-hush").expect("writable");
    let ran = ran(doctor(&gateway.setup, &["--json"])).expect(1);
    is(&check(&ran.json(), "good:"), "ok", "");
    assert!(!ran.out.contains("hush"));
}

#[test]
fn keepers_without_a_server_are_found() {
    let mut gateway = Setup::with_fake().start();
    super::run(&gateway, &["run", "x", "-a", "fake", "--detach"], 0);
    gateway.hub().prompted("fake", "x");
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(0).json();
    is(&check(&report, "1 agent followed by the server"), "ok", "");
    gateway.kill();
    let report = eventually("the keeper is an orphan", || {
        let report = ran(doctor(&gateway.setup, &["--json"])).expect(0).json();
        let orphans = checks(&report, "keepers")[0]["facts"]["orphaned"] == 1;
        orphans.then_some(report)
    });
    is(&check(&report, "no server follows 1 agent"), "warn", "reattach serve");
    let homes = fs::read_dir(gateway.setup.data_dir().join("agents")).expect("homes");
    let home = homes.flatten().next().expect("one").path();
    let info = fs::read(home.join("keeper.json")).expect("it says who it is");
    let info: Value = serde_json::from_slice(&info).expect("JSON");
    let socket = home.join(info["socket"].as_str().expect("a path"));
    fs::remove_file(socket).expect("it is there");
    let report = ran(doctor(&gateway.setup, &["--json"])).expect(1).json();
    is(&check(&report, "its socket is gone"), "fail", "kill ");
}

#[test]
fn the_archive_holds_no_secret() {
    let secrets = ["sk-ant-hush-hush-1", "prompt-hush-2", "answer-hush-3", "argument-hush-4"];
    let setup = Setup::with_fake()
        .provider("other", "command", &["sh", "-c", &format!("true {}", secrets[3])])
        .env("REATTACH_LOG", "debug");
    let gateway = setup.start();
    let mut text = fs::read_to_string(gateway.setup.config_path()).expect("it is there");
    text.push_str(&format!("env = {{ API_KEY = \"{}\" }}\n", secrets[0]));
    fs::write(gateway.setup.config_path(), text).expect("writable");
    super::run(&gateway, &["run", secrets[1], "-a", "fake", "--detach"], 0);
    let (agent, _) = gateway.hub().prompted("fake", secrets[1]);
    agent.say(secrets[2]);
    agent.complete();
    let file = gateway.setup.root.path().join("report.tar");
    let name = file.to_str().expect("UTF-8");
    let told = ran(doctor(&gateway.setup, &["--bundle", name])).expect(0);
    assert!(told.err.contains("look into it"), "{}", told.err);
    let mode = fs::metadata(&file).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let bytes = fs::read(&file).expect("written");
    let all = String::from_utf8_lossy(&bytes);
    for part in ["doctor.json", "doctor.txt", "config.json", "files.json", "README"] {
        assert!(all.contains(&format!("reattach-doctor/{part}")), "{part} is not in it");
    }
    assert!(all.contains("providers.other.env.API_KEY") && all.contains("reattach.db"));
    for secret in secrets.into_iter().chain([gateway.token()]) {
        assert!(!all.contains(secret), "{secret} is in the archive");
        assert!(!told.out.contains(secret), "{secret} is shown");
    }
    let mut archive = tar::Archive::new(bytes.as_slice());
    let names: Vec<_> = archive
        .entries()
        .expect("an archive")
        .flatten()
        .map(|entry| entry.path().expect("a path").into_owned())
        .collect();
    assert_eq!(names.len(), 5, "{names:?}");
    let again = ran(doctor(&gateway.setup, &["--bundle", name])).expect(6);
    assert!(again.err.contains("stays as it is"), "{}", again.err);
    let nowhere = format!("{name}/x/y.tar");
    ran(doctor(&gateway.setup, &["--bundle", &nowhere])).expect(1);
}

/// A gateway behind a proxy with a fault, and what `--probe` says of it.
fn probed(fault: Fault, path: &str) -> (Gateway, Ran, Front) {
    let front = faulty(fault);
    let url = format!("http://localhost:{}{path}", front.port);
    let gateway = Setup::with_fake().set("server", "public_url", &format!("{url:?}")).start();
    front.leads_to(gateway.port());
    gateway.session("fake");
    let mut command = doctor(&gateway.setup, &["--json", "--probe", &url]);
    command.env_remove("REATTACH_TOKEN");
    let ran = ran(command);
    (gateway, ran, front)
}

#[test]
fn a_good_proxy_is_said_to_be_good() {
    for path in ["", "/sub", "/sub/"] {
        let (_gateway, ran, _front) = probed(Fault::None, path);
        let report = ran.expect(0).json();
        let probe = checks(&report, "probe");
        assert!(probe.iter().all(|check| check["level"] == "ok"), "{probe:#?}");
        for words in ["connected", "the page comes", "are accepted", "WebSocket opens, protocol 1"]
        {
            let all = probe.iter().filter(|check| check["what"].to_string().contains(words));
            assert_eq!(all.count(), 1, "{words}: {probe:#?}");
        }
        is(&check(&report, "a stream arrives as it is sent"), "ok", "");
    }
}

#[test]
fn each_fault_of_a_proxy_is_named_with_what_mends_it() {
    for (fault, path, trouble, fix) in [
        (Fault::StripsUpgrade, "", "upgrade_stripped", "proxy_set_header Upgrade $http_upgrade;"),
        (Fault::Buffers, "", "buffered", "proxy_buffering off;"),
        (Fault::RewritesHost, "", "host", "proxy_set_header Host $http_host;"),
        (Fault::WrongPath, "/sub", "sub_path", "public_url = \"http://localhost:"),
        (Fault::PageAlone, "/sub", "asset", "location /sub/"),
        (Fault::RewritesPage, "", "rewritten", "sub_filter"),
        (Fault::Redirects, "", "redirect", "public_url"),
        (Fault::AsksForLogin, "", "proxy_login", "log in there"),
        (Fault::ReachesNobody, "", "bad_gateway", "proxy_pass http://127.0.0.1:7878;"),
        (Fault::AnswersUpgrade, "", "upgrade_status", "proxy_http_version 1.1;"),
    ] {
        let (_gateway, ran, _front) = probed(fault, path);
        let report = ran.expect(1).json();
        let failed: Vec<Value> =
            checks(&report, "probe").into_iter().filter(|one| one["level"] == "fail").collect();
        assert_eq!(failed.len(), 1, "{fault:?}: {failed:#?}");
        assert_eq!(failed[0]["facts"]["trouble"], trouble, "{fault:?}: {failed:#?}");
        is(&failed[0], "fail", fix);
    }
    let (_gateway, ran, _front) = probed(Fault::ReplacesPolicy, "");
    is(&check(&ran.expect(0).json(), "Content-Security-Policy is not ours"), "warn", "remove");
}

#[test]
fn what_the_server_does_not_know_of_is_named() {
    // Its `public_url` says nothing of the sub-path, or of https.
    let front = faulty(Fault::None);
    let gateway = Setup::with_fake().start();
    front.leads_to(gateway.port());
    let probe = |url: &str, env: &[(&str, &str)]| {
        let mut command = doctor(&gateway.setup, &["--json", "--probe", url]);
        command.envs(env.iter().copied());
        ran(command)
    };
    let url = format!("http://localhost:{}/sub", front.port);
    let report = probe(&url, &[]).expect(1).json();
    assert_eq!(checks(&report, "probe").last().expect("one")["facts"]["trouble"], "sub_path");

    let authority = Authority::new(gateway.setup.root.path());
    let tls = authority.front();
    tls.leads_to(gateway.port());
    let url = format!("https://localhost:{}", tls.port);
    let report = probe(&url, &[]).expect(1).json();
    let distrusted = check(&report, "its certificate is not trusted");
    is(&distrusted, "fail", "REATTACH_CA_FILE");
    let file = authority.file.to_str().expect("UTF-8");
    let report = probe(&url, &[("REATTACH_CA_FILE", file)]).expect(1).json();
    let refused: Vec<Value> = checks(&report, "probe")
        .into_iter()
        .filter(|check| check["facts"]["trouble"] == "origin")
        .collect();
    is(&refused[0], "fail", &format!("public_url = \"{url}\""));

    let token = [("REATTACH_TOKEN", "0123456789012345678901234567890123456789")];
    let plain = format!("http://localhost:{}", gateway.port());
    let report = probe(&plain, &token).expect(1).json();
    let told = checks(&report, "probe");
    assert!(told.iter().any(|check| check["facts"]["trouble"] == "token"), "{told:#?}");
    // Nobody listens, or it is no address.
    let report = probe("http://localhost:1", &[]).expect(1).json();
    assert_eq!(checks(&report, "probe")[0]["facts"]["trouble"], "no_answer");
    assert_eq!(probe("nonsense", &[]).code, Some(2));
}
