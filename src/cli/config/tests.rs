//! What a configuration becomes, and how it is refused.

use super::*;
use crate::provider::Kind;

fn world(env: &[(&str, &str)]) -> World {
    let env = [("HOME", "/home/me")].iter().chain(env);
    World {
        env: env.map(|(name, value)| (name.into(), value.into())).collect(),
        exe: PathBuf::from("/bin/reattach"),
    }
}

fn config(text: &str) -> Result<Config, String> {
    with(text, &[], &Flags::default())
}

fn with(text: &str, env: &[(&str, &str)], flags: &Flags) -> Result<Config, String> {
    let file = Some((Path::new("config.toml"), text));
    Config::from_parts(flags, file, &world(env)).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = config(text).expect_err(text);
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn without_a_file_there_are_the_documented_defaults() {
    let config = Config::from_parts(&Flags::default(), None, &world(&[])).unwrap();
    assert_eq!(config.server.bind, BIND_DEFAULT);
    assert_eq!(config.server.project_roots, [PathBuf::from("/home/me")]);
    assert_eq!(config.limits, Limits::default());
    let providers: Vec<_> = config.providers.values().map(|p| (p.name.as_str(), p.kind)).collect();
    assert_eq!(
        providers,
        [("claude", Kind::Claude), ("command", Kind::Command), ("demo", Kind::Demo)]
    );
    assert_eq!(config.providers["claude"].command, ["claude"]);
    assert_eq!(config.providers["demo"].command, ["/bin/reattach", "demo-agent"]);
}

#[test]
fn the_tables_defaults_are_the_real_ones() {
    let real = Config::defaults();
    for key in KEYS {
        let mut config = Config::defaults();
        // Away from the default first, so that a setter for another field would be seen.
        config.limits = Limits {
            connections_max: 1,
            connections_http_max: 1,
            connections_per_peer_max: 1,
            agents_max: 1,
            ring_events_max: 1,
            ring_bytes_max: 1,
            ring_total_bytes_max: 1,
            event_bytes_max: 1,
            line_bytes_max: 1,
            message_bytes_max: 1,
            upload_bytes_max: 2,
            journal_bytes_max: 1,
            completed_retention_ms: 1,
            heartbeat_ms: 1,
            stall_ms: 1,
            agent_idle_ms: 1,
            orphan_grace_ms: 1,
            drain_ms: 1,
            retention_age_ms: 1,
            retention_bytes: 1,
        };
        let before = config.clone();
        let mut table: toml::Table = format!("v = {}", key.default).parse().unwrap();
        key.apply(&mut config, &Input::Toml(table.remove("v").unwrap())).unwrap();
        if key.section == "server" {
            assert_eq!(config.server, real.server, "{}", key.path());
        } else if key.section == "auth" {
            assert_eq!(config.auth, real.auth, "{}", key.path());
        } else {
            let (set, unset) = (format!("{:?}", config.limits), format!("{:?}", before.limits));
            let fields = |text: &str| {
                text.trim_matches(|c| "Limits {}".contains(c))
                    .split(", ")
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            let default = format!("{:?}", real.limits);
            let changed: Vec<_> = fields(&set)
                .into_iter()
                .zip(fields(&unset))
                .filter(|(set, unset)| set != unset)
                .collect();
            assert_eq!(changed.len(), 1, "{} sets one field", key.path());
            assert!(default.contains(&changed[0].0), "{}: {}", key.path(), changed[0].0);
        }
    }
}

#[test]
fn a_whole_file_is_understood() {
    let text = r#"
        [server]
        bind = "[::1]:0"
        public_url = "https://agents.example.org/sub/"
        allowed_hosts = ["Box.example.org", "box:8443"]
        project_roots = ["~/code", "/srv"]
        [providers.mine]
        kind = "jsonl"
        command = ["~/bin/agent", "~/not-a-path"]
        env = { KEY = "value" }
        [limits]
        agents_max = 3
        event_bytes_max = 65536
        [timeouts]
        heartbeat = "1m30s"
        completed_retention = "0"
        [retention]
        max_age = "30d"
        max_bytes = 5_000_000_000
    "#;
    let config = config(text).unwrap();
    assert_eq!(config.server.bind.to_string(), "[::1]:0");
    assert_eq!(config.server.public_url, "https://agents.example.org/sub");
    assert_eq!(config.server.allowed_hosts, ["box.example.org", "box:8443"]);
    assert_eq!(
        config.server.project_roots,
        [PathBuf::from("/home/me/code"), PathBuf::from("/srv")]
    );
    assert_eq!(config.providers.len(), 1, "the file's providers are all there are");
    let mine = &config.providers["mine"];
    assert_eq!(mine.command, ["/home/me/bin/agent", "~/not-a-path"]);
    assert_eq!(mine.env["KEY"], "value");
    assert_eq!(config.limits.agents_max, 3);
    assert_eq!(config.limits.heartbeat_ms, 90_000);
    assert_eq!(config.limits.completed_retention_ms, 0);
    assert_eq!(config.limits.retention_age_ms, 30 * 86_400_000);
    assert_eq!(config.limits.retention_bytes, 5_000_000_000);
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let text = "[server]\nbind = \"127.0.0.1:1\"\n[limits]\nagents_max = 1\nconnections_max = 1";
    let env = [("REATTACH_SERVER_BIND", "127.0.0.1:2"), ("REATTACH_LIMITS_AGENTS_MAX", "2")];
    let flags = Flags { bind: Some("127.0.0.1:3".into()), ..Flags::default() };
    let config = with(text, &env, &flags).unwrap();
    assert_eq!(config.server.bind.port(), 3);
    assert_eq!(config.limits.agents_max, 2);
    assert_eq!(config.limits.connections_max, 1);
    assert_eq!(with(text, &env, &Flags::default()).unwrap().server.bind.port(), 2);
}

#[test]
fn every_key_can_be_set_by_its_variable() {
    for key in KEYS {
        let value = match key.name {
            "project_roots" => "/srv",
            "allowed_hosts" => "a.example,b.example",
            _ => key.default.trim_matches('"'),
        };
        let got = with("", &[(&key.env(), value)], &Flags::default());
        assert!(got.is_ok(), "{}: {got:?}", key.env());
    }
    let hosts = |text| {
        let env = [("REATTACH_SERVER_ALLOWED_HOSTS", text)];
        with("", &env, &Flags::default()).unwrap().server.allowed_hosts
    };
    assert_eq!(hosts("a.example, b.example"), ["a.example", "b.example"]);
    assert_eq!(hosts("[\"a.example\"]"), ["a.example"]);
    assert!(hosts("").is_empty());
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    refused(
        "[limits]\nconections_max = 1",
        &["`limits.conections_max`", "`limits.connections_max`"],
    );
    refused("[server]\nheartbeat = \"1s\"", &["`server.heartbeat`", "`timeouts.heartbeat`"]);
    refused("bind = \"x\"", &["`bind`", "`server.bind`"]);
    refused("[limit]\nagents_max = 1", &["`limit`", "`limits`"]);
    refused("[providers.a]\nkind = \"demo\"\ncomand = []", &["`providers.a.command`"]);
    refused("[providers.a]\nkind = \"claud\"", &["\"claud\"", "\"claude\""]);
}

#[test]
fn an_unknown_variable_of_a_known_section_is_refused_and_others_are_left_alone() {
    let error = |name| with("", &[(name, "1")], &Flags::default()).expect_err(name);
    assert!(error("REATTACH_LIMITS_AGENT_MAX").contains("`REATTACH_LIMITS_AGENTS_MAX`"));
    assert!(error("REATTACH_TIMEOUTS_STAL").contains("`REATTACH_TIMEOUTS_STALL`"));
    assert!(error("REATTACH_PROVIDERS_CLAUDE_KIND").contains("[providers.NAME]"));
    for name in [
        "REATTACH_TOKEN",
        "REATTACH_LOG",
        "REATTACH_AGENT",
        "REATTACH_DATA",
        "REATTACH_SERVER",
        "REATTACH_LIMITSX_A",
        "REATTACH_\u{e9}\u{e9}\u{e9}_A",
        "XREATTACH_LIMITS_A",
    ] {
        assert!(with("", &[(name, "x")], &Flags::default()).is_ok(), "{name}");
    }
}

#[test]
fn wrong_values_are_refused_with_their_place() {
    for (text, word) in [
        ("[limits]\nagents_max = 0", "at least 1"),
        ("[limits]\nagents_max = -1", "at least 1"),
        ("[limits]\nagents_max = \"3\"", "whole number"),
        ("[limits]\nagents_max = 100000", "at most"),
        ("[limits]\nevent_bytes_max = 1048577", "at most 1048576"),
        ("[timeouts]\nheartbeat = 30", "\"30s\""),
        ("[timeouts]\nheartbeat = \"30\"", "duration"),
        ("[timeouts]\nheartbeat = \"\"", "cannot be switched off"),
        ("[timeouts]\nstall = \"-3s\"", "duration"),
        ("[timeouts]\nstall = \"99999999999999999d\"", "hundred years"),
        ("[timeouts]\ndrain = \"5 bananas\"", "duration"),
        ("[server]\nbind = \"localhost:7878\"", "IP address"),
        ("[server]\nbind = 5", "must be a string"),
        ("[server]\nbehind_proxy = \"yes\"", "true or false"),
        ("[server]\npublic_url = \"agents.example.org\"", "must be a URL"),
        ("[server]\npublic_url = \"https://a:b@c/\"", "must be a URL"),
        ("[server]\npublic_url = \"https://c/?q\"", "must be a URL"),
        ("[server]\nallowed_hosts = [\"https://a\"]", "host names"),
        ("[server]\nproject_roots = []", "name a directory"),
        ("[server]\nproject_roots = [\"code\"]", "absolute"),
        ("[server]\nproject_roots = [\"~other/code\"]", "absolute"),
        ("[server]\nproject_roots = [5]", "array of strings"),
        ("server = 5", "[server]"),
        ("providers = 5", "[providers.NAME]"),
        ("[providers.a]", "kind"),
        ("[providers.\"a b\"]\nkind = \"demo\"", "name"),
        ("[providers.a]\nkind = \"jsonl\"", "no default program"),
        ("[providers.a]\nkind = \"jsonl\"\ncommand = []", "name a program"),
        ("[providers.a]\nkind = \"jsonl\"\ncommand = \"x y\"", "array of strings"),
        ("[providers.a]\nkind = \"demo\"\nenv = { A = 1 }", "strings"),
        ("[providers.a]\nkind = \"demo\"\nenv = { \"A=B\" = \"1\" }", "A=B"),
    ] {
        refused(text, &["in config.toml", word]);
    }
    refused("[limits", &["config.toml", "line 1"]);
    let env = [("REATTACH_LIMITS_AGENTS_MAX", "many")];
    let error = with("", &env, &Flags::default()).unwrap_err();
    assert!(error.contains("in the environment") && error.contains("many"), "{error}");
}

#[test]
fn values_that_cannot_be_together_are_refused() {
    refused("[limits]\nring_bytes_max = 524288", &["event_bytes_max", "ring_bytes_max", "quarter"]);
    assert!(config("[limits]\nring_bytes_max = 1048576").is_ok());
    refused(
        "[limits]\nring_total_bytes_max = 1048576",
        &["ring_total_bytes_max", "ring_bytes_max"],
    );
    refused(
        "[limits]\njournal_bytes_max = 33554432",
        &["line_bytes_max", "journal_bytes_max", "quarter"],
    );
    assert!(
        config("[limits]\njournal_bytes_max = 33554432\nline_bytes_max = 8388608").is_ok(),
        "as small as a keeper takes it"
    );
}

#[test]
fn kinds_of_later_versions_say_so() {
    for kind in ["codex", "acp"] {
        refused(
            &format!("[providers.mine]\nkind = \"{kind}\""),
            &[&format!("`{kind}`"), "not in this version", "`mine`", "`claude`"],
        );
    }
    refused("[providers.codex]", &["not in this version"]);
}

#[test]
fn a_provider_named_like_a_kind_is_of_it() {
    let config = config("[providers.claude]\nenv = { A = \"1\" }").unwrap();
    assert_eq!(config.providers["claude"].kind, Kind::Claude);
    assert_eq!(config.providers["claude"].command, ["claude"]);
}

#[test]
fn durations_are_summed() {
    for (text, ms) in [
        ("", 0),
        ("0", 0),
        ("0s", 0),
        ("250ms", 250),
        ("300s", 300_000),
        ("10m", 600_000),
        ("1h", 3_600_000),
        ("1h 30m", 5_400_000),
        ("2d", 172_800_000),
    ] {
        assert_eq!(value::duration_ms(text), Ok(ms), "{text:?}");
    }
    for text in ["5", "s", "1.5h", "-1s", "1H", "10 m", "9223372036854775808s"] {
        assert!(value::duration_ms(text).is_err(), "{text:?}");
    }
}

#[test]
fn what_is_reachable_must_be_meant() {
    let exposure = |bind: &str, flags: Flags, url: &str| {
        let env = [("REATTACH_SERVER_PUBLIC_URL", url)];
        with("", &env, &Flags { bind: Some(bind.to_owned()), ..flags }).map(drop)
    };
    let no_auth = || Flags { no_auth: true, ..Flags::default() };
    let proxied = || Flags { behind_proxy: true, ..Flags::default() };
    let plain = || Flags { insecure_http: true, ..Flags::default() };
    let both = || Flags { no_auth: true, insecure_http: true, ..Flags::default() };
    let url = "https://agents.example.org";

    for bind in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        assert_eq!(exposure(bind, Flags::default(), ""), Ok(()), "{bind}");
        assert_eq!(exposure(bind, no_auth(), ""), Ok(()), "{bind}");
    }
    for bind in ["0.0.0.0:0", "[::]:0", "192.168.1.2:80"] {
        let error = exposure(bind, Flags::default(), "").unwrap_err();
        assert!(error.contains("--behind-proxy") && error.contains("--insecure-http"), "{error}");
        assert!(exposure(bind, no_auth(), "").unwrap_err().contains("--no-auth"));
        assert!(exposure(bind, both(), "").unwrap_err().contains("--no-auth"));
        assert!(exposure(bind, proxied(), "").unwrap_err().contains("public_url"));
        assert_eq!(exposure(bind, proxied(), url), Ok(()));
        assert_eq!(exposure(bind, plain(), ""), Ok(()));
    }
    assert!(exposure("127.0.0.1:0", proxied(), "").unwrap_err().contains("public_url"));
}

#[test]
fn a_file_that_was_asked_for_must_be_there_and_another_need_not() {
    let flags = Flags { config: Some("/nowhere/config.toml".into()), ..Flags::default() };
    let error = Config::load(&flags, &world(&[])).unwrap_err().to_string();
    assert!(error.contains("/nowhere/config.toml"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let world = world(&[("XDG_CONFIG_HOME", path)]);
    assert!(Config::load(&Flags::default(), &world).is_ok());
    std::fs::create_dir(dir.path().join("reattach")).unwrap();
    let file = dir.path().join("reattach/config.toml");
    std::fs::write(&file, "[limits]\nagents_max = 5").unwrap();
    assert_eq!(Config::load(&Flags::default(), &world).unwrap().limits.agents_max, 5);
    std::fs::write(&file, b"\xff").unwrap();
    assert!(Config::load(&Flags::default(), &world).is_err());
}

#[test]
fn data_lies_where_xdg_says_else_below_home() {
    let dir = |env: &[(&str, &str)]| world(env).data_dir().ok();
    assert_eq!(dir(&[]), Some("/home/me/.local/share/reattach".into()));
    assert_eq!(dir(&[("XDG_DATA_HOME", "/data")]), Some("/data/reattach".into()));
    assert_eq!(
        dir(&[("XDG_DATA_HOME", "relative")]),
        Some("/home/me/.local/share/reattach".into()),
        "XDG wants absolute paths"
    );
    assert_eq!(dir(&[("HOME", "")]), None);
    let text = "[server]\nproject_roots = [\"~\"]";
    let error = with(text, &[("HOME", "")], &Flags::default()).unwrap_err();
    assert!(error.contains("HOME is not set"), "{error}");
}
