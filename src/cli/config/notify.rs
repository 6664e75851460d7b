//! `[notify.NAME]`: where notifications go. Secrets may also come from files and from the
//! environment, `REATTACH_NOTIFY_<NAME>_TOKEN` say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{ConfigError, Origin, World, providers, value};
use crate::limits;
use crate::notify::sink::{Detail, EventKind, Kind, Secret, Sink};

/// What all sinks may have.
const COMMON: [&str; 5] = ["detail", "events", "kind", "timeout", "unanswered"];
/// What a kind may have beside it.
const FIELDS: [(&str, &[&str]); 3] = [
    ("command", &["command", "env"]),
    ("ntfy", &["token", "token_file", "topic", "url", "url_file"]),
    ("webhook", &["token", "token_file", "url", "url_file"]),
];
/// What the environment may say of a sink.
const SECRETS: [&str; 4] = ["token", "token_file", "url", "url_file"];
/// What all variables of sinks begin with.
pub(super) const PREFIX: &str = "REATTACH_NOTIFY_";

/// How long a try may take if nobody says otherwise.
const TIMEOUT_MS: i64 = 10_000;
/// A try needs some time.
const TIMEOUT_MS_MIN: i64 = 100;
/// How long a request may wait though somebody seems to look.
const UNANSWERED_MS: i64 = 120_000;
/// A topic of ntfy is at most this long.
const TOPIC_BYTES_MAX: usize = 64;

/// The sinks that the file names, with what the environment adds.
pub(super) fn load(
    file: Option<(&Path, toml::Value)>,
    world: &World,
) -> Result<Vec<Sink>, ConfigError> {
    let mut origin = Origin::Default;
    let mut tables = toml::Table::new();
    if let Some((path, content)) = file {
        origin = Origin::File(path.to_owned());
        let toml::Value::Table(content) = content else {
            let problem = "must be tables: write `[notify.NAME]`".to_owned();
            return Err(ConfigError::invalid(origin, "notify", problem));
        };
        tables = content;
    }
    let names: Vec<String> = tables.keys().cloned().collect();
    if names.len() > limits::NOTIFY_SINKS_MAX {
        let problem = format!("names more than {} sinks", limits::NOTIFY_SINKS_MAX);
        return Err(ConfigError::invalid(origin, "notify", problem));
    }
    let mut environment = environment(&names, world)?;
    tables
        .into_iter()
        .map(|(name, table)| {
            let given = environment.remove(&name).unwrap_or_default();
            let path = format!("notify.{name}");
            Draft { origin: &origin, path, given, world, fields: toml::Table::new() }
                .sink(name, table)
        })
        .collect()
}

/// What the environment says of a sink, by key: the variable and its value.
type Given = BTreeMap<&'static str, (String, String)>;

/// What the environment says of each sink. A variable that fits none is an error.
fn environment(names: &[String], world: &World) -> Result<BTreeMap<String, Given>, ConfigError> {
    let mut known = BTreeMap::new();
    for name in names {
        for key in SECRETS {
            known.insert(variable(name, key), (name, key));
        }
    }
    let mut found: BTreeMap<String, Given> = BTreeMap::new();
    for (variable, value) in &world.env {
        let Some(variable) = variable.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        let Some((name, key)) = known.get(variable) else {
            let candidates = match known.is_empty() {
                true => vec![String::from("[notify.NAME] in the file")],
                false => known.keys().cloned().collect(),
            };
            return Err(ConfigError::UnknownKey {
                key: variable.to_owned(),
                origin: Origin::Environment,
                nearest: value::nearest(variable, candidates.into_iter()),
            });
        };
        let Some(value) = value.to_str() else {
            let problem = "is no UTF-8".to_owned();
            return Err(ConfigError::invalid(Origin::Environment, variable, problem));
        };
        let sink = found.entry((*name).clone()).or_default();
        sink.insert(*key, (variable.to_owned(), value.to_owned()));
    }
    Ok(found)
}

/// `REATTACH_NOTIFY_<NAME>_<KEY>`: letters and digits of the name, all else an underscore.
fn variable(name: &str, key: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let name: String = name.chars().map(plain).collect();
    format!("{PREFIX}{name}_{}", key.to_ascii_uppercase())
}

/// A sink on its way from the file to its checked form.
struct Draft<'a> {
    origin: &'a Origin,
    path: String,
    given: Given,
    world: &'a World,
    fields: toml::Table,
}

impl Draft<'_> {
    fn sink(mut self, name: String, table: toml::Value) -> Result<Sink, ConfigError> {
        if !providers::is_name(&name) {
            return Err(self.invalid(
                "",
                "must have a name of at most 64 letters, digits, `-`, `_`, `.`".to_owned(),
            ));
        }
        let toml::Value::Table(fields) = table else {
            return Err(self.invalid("", format!("must be a table: write `[notify.{name}]`")));
        };
        self.fields = fields;
        let kind = self.kind(&name)?;
        let events = self.events()?;
        let detail = match self.word("detail")?.as_deref() {
            None | Some("tool") => Detail::Tool,
            Some("full") => Detail::Full,
            Some("none") => Detail::None,
            Some(other) => {
                let problem = format!("must be \"full\", \"tool\" or \"none\", not \"{other}\"");
                return Err(self.invalid("detail", problem));
            }
        };
        let timeout_ms = self.duration("timeout", TIMEOUT_MS)?;
        if !(TIMEOUT_MS_MIN..=limits::NOTIFY_TIMEOUT_MS_CEILING).contains(&timeout_ms) {
            let problem = "must be from \"100ms\" to \"20s\"".to_owned();
            return Err(self.invalid("timeout", problem));
        }
        let unanswered_ms = self.duration("unanswered", UNANSWERED_MS)?;
        let kind = match kind {
            "command" => self.command()?,
            "webhook" => {
                let url = self.url()?;
                Kind::Webhook { url: Secret::new(url), token: self.token()? }
            }
            _ => self.ntfy()?,
        };
        Ok(Sink { name, kind, events, detail, timeout_ms, unanswered_ms })
    }

    /// The kind, with every key checked against it.
    fn kind(&mut self, name: &str) -> Result<&'static str, ConfigError> {
        let known = || FIELDS.map(|(kind, _)| format!("`{kind}`")).join(", ");
        let word = match self.word("kind")? {
            Some(word) => word,
            // A sink called `ntfy` needs no second word.
            None if FIELDS.iter().any(|(kind, _)| *kind == name) => name.to_owned(),
            None => {
                return Err(self.invalid("kind", format!("is missing; it is one of {}", known())));
            }
        };
        let Some((kind, own)) = FIELDS.iter().find(|(kind, _)| *kind == word) else {
            let nearest = value::nearest(&word, FIELDS.iter().map(|(kind, _)| (*kind).to_owned()));
            let problem = format!(
                "is \"{word}\", which is no kind; the nearest known one is \"{nearest}\" (of {})",
                known()
            );
            return Err(self.invalid("kind", problem));
        };
        let fields = || COMMON.iter().chain(own.iter()).map(|field| (*field).to_owned());
        if let Some(unknown) = self.fields.keys().find(|key| fields().all(|known| known != **key)) {
            return Err(ConfigError::UnknownKey {
                key: format!("{}.{unknown}", self.path),
                origin: self.origin.clone(),
                nearest: format!("{}.{}", self.path, value::nearest(unknown, fields())),
            });
        }
        if let Some((key, (variable, _))) = self.given.iter().find(|(key, _)| !own.contains(key)) {
            let problem = format!("sets `{key}`, which a sink of kind `{kind}` does not have");
            return Err(ConfigError::invalid(Origin::Environment, variable, problem));
        }
        Ok(kind)
    }

    fn events(&mut self) -> Result<BTreeSet<EventKind>, ConfigError> {
        let words = || EventKind::ALL.map(EventKind::word);
        let wrong = || format!("must be an array of some of {}", words().join(", "));
        let items = match self.fields.remove("events") {
            None => return Ok(BTreeSet::from(EventKind::ALL)),
            Some(toml::Value::Array(items)) => items,
            Some(_) => return Err(self.invalid("events", wrong())),
        };
        let mut events = BTreeSet::new();
        for item in &items {
            let Some(word) = item.as_str() else { return Err(self.invalid("events", wrong())) };
            let Some(event) = EventKind::ALL.into_iter().find(|event| event.word() == word) else {
                let nearest = value::nearest(word, words().into_iter().map(str::to_owned));
                let problem = format!("has \"{word}\"; the nearest known one is \"{nearest}\"");
                return Err(self.invalid("events", problem));
            };
            events.insert(event);
        }
        if events.is_empty() {
            let problem =
                "is empty, so that nothing would ever be told: remove the sink".to_owned();
            return Err(self.invalid("events", problem));
        }
        Ok(events)
    }

    fn command(&mut self) -> Result<Kind, ConfigError> {
        let argv = match self.fields.remove("command") {
            Some(value) => providers::command(value, self.world),
            None => Err("is missing: the program to start, and its arguments".to_owned()),
        };
        let argv = argv.map_err(|problem| self.invalid("command", problem))?;
        let env = match self.fields.remove("env") {
            Some(value) => providers::environment(value),
            None => Ok(BTreeMap::new()),
        };
        let env = env.map_err(|problem| self.invalid("env", problem))?;
        Ok(Kind::Command { argv, env })
    }

    /// The server and the topic; both may stand in the address, as a person copies it.
    fn ntfy(&mut self) -> Result<Kind, ConfigError> {
        let token = self.token()?;
        let mut url = self.url()?;
        let topic = match self.word("topic")? {
            Some(topic) => topic,
            None => {
                let authority = url.find("://").map_or(0, |at| at + 3);
                let cut = url[authority..].rfind('/').map(|at| authority + at);
                let topic = cut.map(|at| url.split_off(at)).unwrap_or_default();
                topic.trim_matches('/').to_owned()
            }
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX || !topic.bytes().all(plain) {
            let problem =
                "must be 1 to 64 letters, digits, `-`, `_`: topic = \"NAME\", or the end \
                           of url"
                    .to_owned();
            return Err(self.invalid("topic", problem));
        }
        Ok(Kind::Ntfy { url: Secret::new(url), topic: Secret::new(topic), token })
    }

    /// An http or https address. What is wrong with it is said without it: it may be a secret.
    fn url(&mut self) -> Result<String, ConfigError> {
        let Some(url) = self.secret("url", "url_file")? else {
            return Err(self.invalid("url", "is missing: https://HOST/PATH".to_owned()));
        };
        let uri: Option<http::Uri> = url.parse().ok();
        let good = uri.as_ref().is_some_and(|uri| {
            let host = uri.authority().filter(|host| !host.host().is_empty());
            matches!(uri.scheme_str(), Some("http" | "https"))
                && host.is_some_and(|host| !host.as_str().contains('@'))
        });
        if !good {
            let problem = "must be an http or https address without a user in it".to_owned();
            return Err(self.invalid("url", problem));
        }
        Ok(url.trim_end_matches('/').to_owned())
    }

    fn token(&mut self) -> Result<Option<Secret>, ConfigError> {
        let token = self.secret("token", "token_file")?;
        // It becomes a header's value: nothing may end that.
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            let problem = "must be visible ASCII without blanks".to_owned();
            return Err(self.invalid("token", problem));
        }
        Ok(token.map(Secret::new))
    }

    /// A value that may be a secret: from the environment, else from the file; either says it or
    /// names the file that holds it.
    fn secret(&mut self, key: &str, file_key: &str) -> Result<Option<String>, ConfigError> {
        for (plain, in_file) in [
            (self.given.get(key).cloned(), self.given.get(file_key).cloned()),
            (self.field(key)?, self.field(file_key)?),
        ] {
            let (name, text) = match (plain, in_file) {
                (None, None) => continue,
                (Some((name, _)), Some((other, _))) => {
                    let problem = format!("and `{other}` both say it: keep one");
                    return Err(ConfigError::invalid(Origin::Environment, &name, problem));
                }
                (Some(plain), None) => plain,
                (None, Some((name, path))) => {
                    let home = self.world.home();
                    let path = value::expand(Path::new(&path), home.as_deref());
                    let path: PathBuf = path.map_err(|problem| self.invalid(file_key, problem))?;
                    let text = std::fs::read_to_string(&path)
                        .map_err(|error| ConfigError::Unreadable { path, error })?;
                    (name, text)
                }
            };
            let text = text.trim().to_owned();
            if text.is_empty() {
                let problem = "is empty: remove it, or give it a value".to_owned();
                return Err(ConfigError::invalid(self.origin.clone(), &name, problem));
            }
            return Ok(Some(text));
        }
        Ok(None)
    }

    /// A field of the file, with its whole name.
    fn field(&mut self, key: &str) -> Result<Option<(String, String)>, ConfigError> {
        let name = format!("{}.{key}", self.path);
        Ok(self.word(key)?.map(|text| (name, text)))
    }

    fn word(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.fields.remove(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(self.invalid(key, format!("must be a string, not {}", other.type_str())))
            }
        }
    }

    fn duration(&mut self, key: &str, default: i64) -> Result<i64, ConfigError> {
        match self.word(key)? {
            None => Ok(default),
            Some(text) => value::duration_ms(&text).map_err(|problem| self.invalid(key, problem)),
        }
    }

    fn invalid(&self, key: &str, problem: String) -> ConfigError {
        let path = &self.path;
        let key = if key.is_empty() { path.clone() } else { format!("{path}.{key}") };
        ConfigError::invalid(self.origin.clone(), &key, problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, env: &[(&str, &str)]) -> Result<Vec<Sink>, String> {
        let mut table: toml::Table = text.parse().expect("the test's own TOML");
        let world = World {
            env: env.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            exe: "reattach".into(),
        };
        let notify = table.remove("notify").map(|content| (Path::new("config.toml"), content));
        load(notify, &world).map_err(|error| error.to_string())
    }

    fn one(text: &str) -> Sink {
        parse(text, &[]).expect(text).pop().expect("a sink")
    }

    #[test]
    fn a_sink_needs_little() {
        let sink = one("[notify.ntfy]\nurl = \"https://ntfy.example/my-topic\"");
        let (url, topic) = (Secret::new("https://ntfy.example"), Secret::new("my-topic"));
        assert_eq!(sink.kind, Kind::Ntfy { url, topic, token: None });
        assert_eq!(sink.events, BTreeSet::from(EventKind::ALL));
        assert_eq!((sink.detail, sink.timeout_ms), (Detail::Tool, 10_000));
        let sink = one("[notify.desk]\nkind = \"command\"\ncommand = [\"notify-send\", \"x\"]");
        assert!(matches!(sink.kind, Kind::Command { argv, .. } if argv.len() == 2));
    }

    #[test]
    fn secrets_come_from_files_and_the_environment() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        std::fs::write(&path, "tk_filed\n").expect("writable");
        let text = format!(
            "[notify.my-hook]\nkind = \"webhook\"\nurl = \"http://h/x\"\ntoken_file = {path:?}"
        );
        let token = |sink: Sink| match sink.kind {
            Kind::Webhook { token, .. } => token.map(|token| token.expose().to_owned()),
            _ => None,
        };
        assert_eq!(token(one(&text)).as_deref(), Some("tk_filed"));
        let sinks = parse(&text, &[("REATTACH_NOTIFY_MY_HOOK_TOKEN", "tk_env")]);
        let sink = sinks.expect("good").pop().expect("a sink");
        assert_eq!(token(sink).as_deref(), Some("tk_env"), "the environment goes before the file");
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        let hook = "[notify.h]\nkind = \"webhook\"\n";
        for (text, env, says) in [
            ("notify = 1", None, "`[notify.NAME]`"),
            ("[notify.\"a b\"]\nkind = \"ntfy\"", None, "must have a name"),
            ("[notify.h]\nkind = \"nfty\"", None, "nearest known one is \"ntfy\""),
            ("[notify.h]\nurl = \"http://h\"", None, "kind` in config.toml is missing"),
            ("[notify.ntfy]\nurl = \"http://h\"", None, "notify.ntfy.topic"),
            ("[notify.ntfy]\nurl = \"http://h\"\ntopic = \"a/b\"", None, "letters, digits"),
            (&*format!("{hook}ulr = \"http://h\""), None, "nearest known one is `notify.h.url`"),
            (&*format!("{hook}url = \"ftp://secret\""), None, "must be an http or https"),
            (&*format!("{hook}url = \"http://u:secret@h\""), None, "without a user"),
            (&*format!("{hook}url = \"http://h\"\ntoken = \"a\\r\\nsecret: 1\""), None, "visible"),
            (
                &*format!("{hook}url = \"http://h\"\nevents = [\"run_finish\"]"),
                None,
                "run_finished",
            ),
            (&*format!("{hook}url = \"http://h\"\nevents = []"), None, "is empty"),
            (&*format!("{hook}url = \"http://h\"\ndetail = \"all\""), None, "\"full\""),
            (&*format!("{hook}url = \"http://h\"\ntimeout = \"1h\""), None, "to \"20s\""),
            (&*format!("{hook}url = \"http://h\"\ntopic = \"t\""), None, "unknown key"),
            (hook, Some("REATTACH_NOTIFY_H_TOKE"), "REATTACH_NOTIFY_H_TOKEN"),
            ("[server]", Some("REATTACH_NOTIFY_X_TOKEN"), "[notify.NAME]"),
            (
                "[notify.c]\nkind = \"command\"\ncommand = [\"x\"]",
                Some("REATTACH_NOTIFY_C_URL"),
                "does not have",
            ),
        ] {
            let env: Vec<_> = env.iter().map(|name| (*name, "secret")).collect();
            let error = parse(text, &env).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
