//! What a notification says, by how much it may say, and its forms for the sinks.
//!
//! Texts of agents are cut, and cleaned of what could steer a terminal or turn a line around. No
//! text becomes a header: ntfy is published to as JSON. Must not know how anything is sent, nor where
//! facts are read.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::limits;
use crate::notify::sink::{Detail, EventKind};
use crate::run::id::{Millis, RequestId, RunId, SessionId};
use crate::store::SessionView;

/// What happened, as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub kind: EventKind,
    /// In which run.
    pub run: RunId,
    /// The request that waits.
    pub request: Option<RequestId>,
    /// The tool that the agent wants to use.
    pub tool: Option<String>,
    /// The command, the question or the error.
    pub summary: Option<String>,
    /// When.
    pub at: Millis,
}

/// A notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The same for each try, so that whoever gets it twice can tell.
    pub id: String,
    /// What happened; `None` for a test.
    pub kind: Option<EventKind>,
    /// One line.
    pub title: String,
    /// One or a few lines.
    pub body: String,
    /// In which session.
    pub session: Option<SessionId>,
    /// In which run.
    pub run: Option<RunId>,
    /// Where a browser sees it; `None` if the server does not know its own address.
    pub url: Option<String>,
    /// When.
    pub at: Millis,
    /// How many things it stands for.
    pub count: usize,
    /// What only programs want, in as much detail as is allowed.
    pub more: Map<String, Value>,
}

impl Message {
    /// The notification of the most urgent of `facts`, which are all of one session. `None` if
    /// there are none.
    #[must_use]
    pub fn of(
        facts: &[Fact],
        view: &SessionView,
        detail: Detail,
        public_url: &str,
        id: &str,
    ) -> Option<Self> {
        let fact = facts.iter().max_by_key(|fact| fact.kind)?;
        let agent = clean(&view.row.provider, limits::NOTIFY_TITLE_CHARS);
        let project = project(view);
        let name = view.row.title.as_deref().map(|title| clean(title, limits::NOTIFY_TITLE_CHARS));
        let tool = fact.tool.as_deref().map(|tool| clean(tool, limits::NOTIFY_TITLE_CHARS));
        let summary = fact.summary.as_deref().map(|text| clean(text, limits::NOTIFY_SUMMARY_CHARS));
        let title = title(fact.kind, &agent, tool.as_deref(), detail);
        let mut lines = match detail {
            Detail::Full => {
                vec![summary.clone().unwrap_or_default(), place(name.as_deref(), &project)]
            }
            Detail::Tool => vec![format!("in {project}")],
            Detail::None => vec![String::from("Open reattach to see it.")],
        };
        if facts.len() > 1 {
            lines.push(format!("and {} more of this session", facts.len() - 1));
        }
        lines.retain(|line| !line.is_empty());
        let mut more = Map::new();
        let mut tell = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                more.insert(key.to_owned(), value.into());
            }
        };
        if detail != Detail::None {
            tell("provider", Some(agent));
            tell("project", Some(project));
            tell("tool", tool);
            tell("requestId", fact.request.as_ref().map(|request| request.0.clone()));
        }
        if detail == Detail::Full {
            tell("sessionTitle", name);
            tell("summary", summary);
        }
        Some(Self {
            id: id.to_owned(),
            kind: Some(fact.kind),
            title,
            body: lines.join("\n"),
            session: Some(view.row.id),
            run: Some(fact.run),
            url: link(public_url, Some(view.row.id)),
            at: fact.at,
            count: facts.len(),
            more,
        })
    }

    /// A notification that only says that notifications arrive.
    #[must_use]
    pub fn test(sink: &str, public_url: &str, id: &str, now: Millis) -> Self {
        Self {
            id: id.to_owned(),
            kind: None,
            title: String::from("reattach can reach you"),
            body: format!("This is a test of the sink \"{sink}\"."),
            session: None,
            run: None,
            url: link(public_url, None),
            at: now,
            count: 1,
            more: Map::new(),
        }
    }

    /// The word for what happened.
    #[must_use]
    pub fn event(&self) -> &'static str {
        self.kind.map_or("test", EventKind::word)
    }

    /// What a webhook gets, and a command on its stdin.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut object = self.more.clone();
        let fields = [
            ("schema", json!(1)),
            ("id", json!(self.id)),
            ("event", json!(self.event())),
            ("title", json!(self.title)),
            ("body", json!(self.body)),
            ("count", json!(self.count)),
            ("sessionId", json!(self.session)),
            ("runId", json!(self.run)),
            ("url", json!(self.url)),
            ("at", json!(self.at.to_string())),
        ];
        object.extend(fields.map(|(key, value)| (key.to_owned(), value)));
        Value::Object(object)
    }

    /// What an ntfy server gets.
    #[must_use]
    pub fn ntfy(&self, topic: &str) -> Value {
        let (priority, tag) = match self.kind {
            Some(EventKind::PermissionAsked) => (4, "raised_hand"),
            Some(EventKind::QuestionAsked) => (4, "question"),
            Some(EventKind::RunFinished) => (3, "white_check_mark"),
            Some(EventKind::RunFailed) => (4, "x"),
            Some(EventKind::AgentLost) => (4, "boom"),
            None => (3, "wave"),
        };
        let mut message = json!({
            "topic": topic, "title": self.title, "message": self.body,
            "priority": priority, "tags": [tag],
        });
        if let Some(url) = &self.url {
            message["click"] = Value::from(url.as_str());
        }
        message
    }
}

fn title(kind: EventKind, agent: &str, tool: Option<&str>, detail: Detail) -> String {
    if detail == Detail::None {
        let title = match kind {
            EventKind::PermissionAsked => "An agent waits for a permission",
            EventKind::QuestionAsked => "An agent has a question",
            EventKind::RunFinished => "A run is finished",
            EventKind::RunFailed => "A run failed",
            EventKind::AgentLost => "An agent is lost",
        };
        return title.to_owned();
    }
    match (kind, tool) {
        (EventKind::PermissionAsked, Some(tool)) => format!("{agent} wants to use {tool}"),
        (EventKind::PermissionAsked, None) => format!("{agent} waits for a permission"),
        (EventKind::QuestionAsked, _) => format!("{agent} has a question"),
        (EventKind::RunFinished, _) => format!("{agent} has finished"),
        (EventKind::RunFailed, _) => format!("{agent} failed"),
        (EventKind::AgentLost, _) => format!("{agent} is lost"),
    }
}

fn place(name: Option<&str>, project: &str) -> String {
    match name {
        Some(name) if !name.is_empty() => format!("{name} (in {project})"),
        _ => format!("in {project}"),
    }
}

/// What a person calls the project, else its folder's name.
fn project(view: &SessionView) -> String {
    let folder = Path::new(&view.project.path).file_name();
    let folder = folder.map(|name| name.to_string_lossy().into_owned());
    let name = view.project.custom_name.clone().or(folder);
    clean(&name.unwrap_or_else(|| view.project.path.clone()), limits::NOTIFY_TITLE_CHARS)
}

/// Where the page shows a session.
fn link(public_url: &str, session: Option<SessionId>) -> Option<String> {
    let base = public_url.trim_end_matches('/');
    if base.is_empty() {
        return None;
    }
    Some(session.map_or_else(|| format!("{base}/"), |session| format!("{base}/#s={session}")))
}

/// One line of at most `chars` characters: white space joined, control characters and those that
/// turn the direction of text left out.
#[must_use]
pub fn clean(text: &str, chars: usize) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    // No more is looked at than can be needed: a question may be a megabyte long.
    let head: String = text.chars().take(chars.saturating_mul(4)).collect();
    let mut line = String::new();
    for word in head.split_whitespace() {
        let before = line.len();
        line.extend(word.chars().filter(|c| !c.is_control() && !turns(*c)));
        if before > 0 && line.len() > before {
            line.insert(before, ' ');
        }
    }
    if line.chars().count() > chars {
        line = line.chars().take(chars.saturating_sub(1)).collect();
        line.truncate(line.trim_end().len());
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::change::SessionRow;
    use crate::store::ProjectRow;

    fn view() -> SessionView {
        SessionView {
            row: SessionRow {
                id: SessionId::from_u128(7),
                provider: "claude".into(),
                native_id: None,
                project_path: "/home/u/parser".into(),
                title: Some("Fix the\nparser".into()),
                archived: false,
                created_at: Millis(0),
                updated_at: Millis(0),
            },
            project: ProjectRow {
                id: 1,
                path: "/home/u/parser".into(),
                custom_name: None,
                starred: false,
            },
            last_run: None,
            waiting: true,
            queued: 0,
            queue_held: false,
        }
    }

    fn asked() -> Fact {
        Fact {
            kind: EventKind::PermissionAsked,
            run: RunId::from_u128(1),
            request: Some(RequestId("r".into())),
            tool: Some("Bash".into()),
            summary: Some("cargo test --all".into()),
            at: Millis(0),
        }
    }

    fn message(facts: &[Fact], detail: Detail) -> Message {
        Message::of(facts, &view(), detail, "https://box.example/sub", "n").expect("a fact")
    }

    #[test]
    fn detail_decides_what_is_said() {
        let full = message(&[asked()], Detail::Full);
        assert_eq!(full.title, "claude wants to use Bash");
        assert_eq!(full.body, "cargo test --all\nFix the parser (in parser)");
        let id = SessionId::from_u128(7);
        assert_eq!(full.url.as_deref(), Some(&*format!("https://box.example/sub/#s={id}")));
        let tool = message(&[asked()], Detail::Tool);
        assert_eq!((&*tool.title, &*tool.body), ("claude wants to use Bash", "in parser"));
        let none = message(&[asked()], Detail::None);
        for (message, hidden) in [(&tool, "cargo"), (&tool, "Fix"), (&none, "Bash")] {
            let forms = format!("{}{}", message.json(), message.ntfy("topic"));
            assert!(!forms.contains(hidden), "{forms} says {hidden}");
        }
        let forms = format!("{}{}", none.json(), none.ntfy("topic"));
        assert!(!forms.contains("claude") && !forms.contains("parser"), "{forms}");
    }

    #[test]
    fn several_are_one_and_the_most_urgent_speaks() {
        let ended = Fact { kind: EventKind::RunFinished, request: None, tool: None, ..asked() };
        let both = message(&[ended, asked()], Detail::Tool);
        assert_eq!(both.event(), "permission_asked");
        assert_eq!((both.count, &*both.body), (2, "in parser\nand 1 more of this session"));
    }

    #[test]
    fn texts_of_agents_are_one_clean_line() {
        assert_eq!(clean("a\r\nX-Evil: 1\u{1b}[31m\0b\u{202e}c", 100), "a X-Evil: 1[31mbc");
        assert_eq!(clean("  ", 10), "");
        assert_eq!(clean("abcdef", 6), "abcdef");
        assert_eq!(clean("abcdefg", 6), "abcde…");
        assert_eq!(clean("abc def", 4), "abc…", "no half word, and no blank at the end");
        assert_eq!(clean("äöü ß", 5), "äöü ß");
        assert!(clean(&"x".repeat(1 << 20), 300).chars().count() <= 300);
        let long = "a ".repeat(4000);
        assert!(clean(&long, 300).chars().count() <= 300);
    }

    #[test]
    fn without_a_public_url_there_is_no_link() {
        let message = Message::of(&[asked()], &view(), Detail::Full, "", "n").expect("a fact");
        assert_eq!(message.url, None);
        assert!(message.ntfy("topic").get("click").is_none());
    }
}
