//! The commands, one file for each group of them, and what they share.
//!
//! Must not know sockets or how events look.

pub mod abort;
pub mod audit;
pub mod backup;
pub mod bench;
pub mod config;
pub mod credentials;
pub mod demo;
pub mod doctor;
pub mod export;
pub mod healthcheck;
pub mod keepers;
pub mod list;
pub mod logs;
pub mod notify;
pub mod pair;
pub mod permissions;
pub mod queue;
pub mod restore;
pub mod retention;
pub mod run;
pub mod service;
pub mod shell;
pub mod verify;

use std::fmt::Write as _;

use serde_json::Value;

use super::args::{OutputArgs, ServerArgs};
use super::exit::{Exit, Failure};
use super::http::Rest;
use super::screen::Screen;
use super::target::Target;
use super::text::{self, Paint};

/// A server and a screen: what each command works with.
#[derive(Debug)]
pub struct Context {
    /// The server.
    pub rest: Rest,
    /// The screen.
    pub screen: Screen,
}

impl Context {
    /// As the flags say. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// For an address that cannot be one.
    pub fn new(server: &ServerArgs, output: OutputArgs) -> Result<Self, Failure> {
        Ok(Self { rest: Rest::new(Target::new(server)?)?, screen: Screen::new(output) })
    }

    /// All items of a list, page by page.
    ///
    /// # Errors
    /// What the server or the way to it says.
    pub fn list(
        &self,
        path: &str,
        query: &[(&str, &str)],
        most: usize,
    ) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let limit = PAGE.min(most - items.len()).to_string();
            let mut query = query.to_vec();
            query.push(("limit", &limit));
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor));
            }
            let page: Value = self.rest.get(path, &query)?;
            let before = items.len();
            items.extend(page["items"].as_array().into_iter().flatten().cloned());
            cursor = page["nextCursor"].as_str().map(str::to_owned);
            if cursor.is_none() || items.len() == before || items.len() >= most {
                items.truncate(most);
                return Ok(items);
            }
        }
    }

    /// The session that a person means by an id, the beginning of one, a title, or `-`.
    ///
    /// # Errors
    /// `Exit::NotFound` for none, `Exit::Usage` for several.
    pub fn session(&self, named: &str) -> Result<Value, Failure> {
        let named = named.trim();
        if named != "-" && !named.is_empty() {
            match self.rest.get(&format!("/sessions/{}", segment(named)), &[]) {
                Err(failure) if failure.exit == Exit::NotFound => {}
                answer => return answer,
            }
        }
        for archived in ["false", "true"] {
            let sessions = self.list("/sessions", &[("archived", archived)], usize::MAX)?;
            match pick(&sessions, named) {
                Picked::One(session) => return Ok(session.clone()),
                Picked::Several(several) => return Err(several_mean(named, &several)),
                Picked::None => {}
            }
        }
        let message = match named {
            "-" => "there is no session yet".to_owned(),
            named => format!("no session is called `{named}`"),
        };
        let next = match named {
            "-" => "reattach run \"PROMPT\"",
            _ => "reattach sessions",
        };
        Err(Failure::new(Exit::NotFound, "SESSION_NOT_FOUND", message, next))
    }
}

/// Items asked for at once.
const PAGE: usize = 500;

enum Picked<'a> {
    None,
    One(&'a Value),
    Several(Vec<&'a Value>),
}

/// Finds a session in a list: by id, by title, by the beginning of the id; `-` is the one that
/// changed last.
fn pick<'a>(sessions: &'a [Value], named: &str) -> Picked<'a> {
    let last = |session: &&Value| session["updatedAt"].as_str().unwrap_or_default().to_owned();
    if named == "-" {
        return sessions.iter().max_by_key(last).map_or(Picked::None, Picked::One);
    }
    if named.is_empty() {
        return Picked::None;
    }
    let by_id = sessions.iter().find(|session| session["id"] == named);
    if let Some(session) = by_id {
        return Picked::One(session);
    }
    let titled: Vec<&Value> = sessions.iter().filter(|session| session["title"] == named).collect();
    let begins = |session: &&Value| session["id"].as_str().is_some_and(|id| id.starts_with(named));
    let found = if titled.is_empty() { sessions.iter().filter(begins).collect() } else { titled };
    match found.as_slice() {
        [] => Picked::None,
        [one] => Picked::One(one),
        _ => Picked::Several(found),
    }
}

fn several_mean(named: &str, several: &[&Value]) -> Failure {
    let mut message = format!("`{named}` can mean {} sessions:", several.len());
    for session in several.iter().take(10) {
        write!(message, "\n    {}  {}", id(session), title(session)).ok();
    }
    Failure::new(Exit::Usage, "AMBIGUOUS", message, "the same command with more of the id")
}

/// An object's id.
#[must_use]
pub fn id(value: &Value) -> String {
    text::clean(value["id"].as_str().unwrap_or_default(), Paint::Plain)
}

/// A session's title on one line.
#[must_use]
pub fn title(session: &Value) -> String {
    let title = text::clean(session["title"].as_str().unwrap_or_default(), Paint::Plain);
    text::one_line(&title, 60)
}

/// A string field of an answer that has to have it.
///
/// # Errors
/// If it does not: client and server differ.
pub fn string(answer: &Value, field: &str) -> Result<String, Failure> {
    answer[field].as_str().map(str::to_owned).ok_or_else(|| {
        Failure::new(
            Exit::Failure,
            "NOT_REATTACH",
            format!("the server's answer has no `{field}`"),
            "reattach version (client and server may differ)",
        )
    })
}

/// How long ago a time was, for people.
#[must_use]
pub fn age(time: &Value) -> String {
    let then = time.as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok());
    let Some(then) = then else { return String::new() };
    let ms = jiff::Timestamp::now().as_millisecond() - then.as_millisecond();
    text::age(u64::try_from(ms).unwrap_or(0))
}

/// A name as one segment of a path.
#[must_use]
pub fn segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                segment.push(char::from(byte));
            }
            _ => {
                write!(segment, "%{byte:02X}").ok();
            }
        }
    }
    // A segment of dots alone would climb.
    if segment.chars().all(|c| c == '.') { segment.replace('.', "%2E") } else { segment }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sessions() -> Vec<Value> {
        [
            ("abc1", "fix it", "2025-01-02T00:00:00.000Z"),
            ("abc2", "again", "2025-01-03T00:00:00.000Z"),
            ("abd3", "again", "2025-01-01T00:00:00.000Z"),
        ]
        .map(|(id, title, at)| json!({"id": id, "title": title, "updatedAt": at}))
        .to_vec()
    }

    fn picked(named: &str) -> String {
        match pick(&sessions(), named) {
            Picked::None => "none".into(),
            Picked::One(one) => id(one),
            Picked::Several(several) => format!("{} sessions", several.len()),
        }
    }

    #[test]
    fn sessions_are_found_by_what_people_say() {
        for (named, found) in [
            ("abc1", "abc1"),
            ("abd", "abd3"),
            ("abc", "2 sessions"),
            ("fix it", "abc1"),
            ("again", "2 sessions"),
            ("-", "abc2"),
            ("zzz", "none"),
            ("", "none"),
        ] {
            assert_eq!(picked(named), found, "{named:?}");
        }
    }

    #[test]
    fn several_sessions_are_named() {
        let all = sessions();
        let failure = several_mean("abc", &[&all[0], &all[1]]);
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("abc1  fix it"), "{failure}");
    }

    #[test]
    fn names_become_one_segment() {
        assert_eq!(segment("fix it/now"), "fix%20it%2Fnow");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("ä?"), "%C3%A4%3F");
    }
}
