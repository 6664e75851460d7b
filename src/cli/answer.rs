//! Answers to permission requests, as a person types them.
//!
//! Pure: a request and a line in, a question or an answer out. Must not know terminals or sockets.

use serde_json::{Map, Value, json};

use super::text;
use super::text::Paint;

/// A request that a person is being asked about.
#[derive(Debug)]
pub struct Asking {
    request: Value,
    /// Answers to its questions so far.
    answers: Map<String, Value>,
}

/// What a typed line means.
#[derive(Debug, PartialEq)]
pub enum Typed {
    /// The fields of an answer: `allow` and what belongs to it.
    Answer(Value),
    /// Leave; the run goes on.
    Detach,
    /// It does not say enough yet: ask (again).
    Ask,
    /// It means nothing here: how to answer.
    Help(String),
}

impl Asking {
    /// Begins to ask about `request`.
    #[must_use]
    pub fn new(request: Value) -> Self {
        Self { request, answers: Map::new() }
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.request["requestId"].as_str().unwrap_or_default()
    }

    /// What to ask now.
    #[must_use]
    pub fn question(&self) -> String {
        match self.open_question() {
            Some(question) => {
                let words =
                    text::clean(question["text"].as_str().unwrap_or_default(), Paint::Plain);
                let how = match (question["options"].is_array(), question["multi"] == true) {
                    (true, true) => "numbers with commas, or words",
                    (true, false) => "a number, or words",
                    (false, _) => "words",
                };
                format!("{} ({how}; /deny, /detach) > ", text::one_line(&words, 120))
            }
            None if choice(&self.request, "allow_always").is_some() => {
                "[y]es [a]lways [n]o [d]etach > ".to_owned()
            }
            None => "[y]es [n]o [d]etach > ".to_owned(),
        }
    }

    /// Takes a line.
    pub fn line(&mut self, line: &str) -> Typed {
        let line = line.trim();
        match (self.open_question().is_some(), line) {
            (_, "") => Typed::Ask,
            (true, "/detach") => Typed::Detach,
            (true, "/deny") => Typed::Answer(deny(&self.request)),
            (true, words) => self.answer(words),
            (false, words) => self.decide(words),
        }
    }

    fn decide(&self, words: &str) -> Typed {
        match words.to_ascii_lowercase().as_str() {
            "y" | "yes" => Typed::Answer(allow(&self.request, false)),
            "a" | "always" if choice(&self.request, "allow_always").is_some() => {
                Typed::Answer(allow(&self.request, true))
            }
            "n" | "no" => Typed::Answer(deny(&self.request)),
            "d" | "detach" => Typed::Detach,
            _ => Typed::Help(format!(
                "for a note to the agent or changed input: reattach allow|deny {}",
                self.id()
            )),
        }
    }

    fn answer(&mut self, words: &str) -> Typed {
        let Some(question) = self.open_question() else { return Typed::Ask };
        let answer = match chosen(question, words) {
            Ok(answer) => answer,
            Err(help) => return Typed::Help(help),
        };
        let id = question["id"].as_str().unwrap_or_default().to_owned();
        self.answers.insert(id, Value::from(answer));
        if self.open_question().is_some() {
            return Typed::Ask;
        }
        let answers = std::mem::take(&mut self.answers);
        Typed::Answer(answer_questions(&self.request, answers))
    }

    fn open_question(&self) -> Option<&Value> {
        let mut questions = self.request["questions"].as_array()?.iter();
        questions.find(|question| {
            !self.answers.contains_key(question["id"].as_str().unwrap_or_default())
        })
    }
}

/// What was chosen: the options that the numbers name, else the words themselves.
///
/// # Errors
/// For numbers that name no option, or several where one is asked for: how to answer.
pub fn chosen(question: &Value, words: &str) -> Result<String, String> {
    let Some(options) = question["options"].as_array().filter(|options| !options.is_empty()) else {
        return Ok(words.to_owned());
    };
    let numbers: Option<Vec<usize>> =
        words.split(',').map(|number| number.trim().parse().ok()).collect();
    let Some(numbers) = numbers else { return Ok(words.to_owned()) };
    if numbers.len() > 1 && question["multi"] != true {
        return Err("one number, please: this question takes one answer".to_owned());
    }
    let chosen: Option<Vec<&str>> =
        numbers.iter().map(|number| options.get(number.checked_sub(1)?)?.as_str()).collect();
    match chosen {
        Some(chosen) => Ok(chosen.join(", ")),
        None => Err(format!("the numbers go from 1 to {}", options.len())),
    }
}

/// An allow, as it was asked for.
#[must_use]
pub fn allow(request: &Value, always: bool) -> Value {
    let kind = if always { "allow_always" } else { "allow_once" };
    with_choice(json!({"allow": true}), choice(request, kind))
}

/// A deny.
#[must_use]
pub fn deny(request: &Value) -> Value {
    with_choice(json!({"allow": false}), choice(request, "reject_once"))
}

/// An allow with answers: `updatedInput` is the request's own input with `answers` put in.
#[must_use]
pub fn answer_questions(request: &Value, answers: Map<String, Value>) -> Value {
    let mut input = match &request["input"] {
        Value::Object(input) => input.clone(),
        _ => Map::new(),
    };
    input.insert("answers".into(), Value::Object(answers));
    let mut answer = allow(request, false);
    answer["updatedInput"] = Value::Object(input);
    answer
}

/// The id of the first choice of a kind that a request offers.
#[must_use]
pub fn choice<'a>(request: &'a Value, kind: &str) -> Option<&'a str> {
    let mut choices = request["choices"].as_array()?.iter();
    choices.find(|choice| choice["kind"] == kind)?["id"].as_str()
}

fn with_choice(mut answer: Value, choice: Option<&str>) -> Value {
    if let Some(id) = choice {
        answer["choiceId"] = Value::from(id);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool() -> Value {
        json!({"requestId": "p", "interaction": "tool", "toolName": "Bash", "choices": [
            {"id": "c1", "kind": "allow_once", "label": "Once"},
            {"id": "c2", "kind": "allow_always", "label": "Always"},
            {"id": "c3", "kind": "reject_once", "label": "No"}]})
    }

    #[test]
    fn letters_decide() {
        let mut asking = Asking::new(tool());
        assert_eq!(asking.question(), "[y]es [a]lways [n]o [d]etach > ");
        assert_eq!(asking.line("y\n"), Typed::Answer(json!({"allow": true, "choiceId": "c1"})));
        assert_eq!(asking.line("A"), Typed::Answer(json!({"allow": true, "choiceId": "c2"})));
        assert_eq!(asking.line("no"), Typed::Answer(json!({"allow": false, "choiceId": "c3"})));
        assert_eq!(asking.line("d"), Typed::Detach);
        assert_eq!(asking.line(""), Typed::Ask);
        assert!(matches!(asking.line("maybe"), Typed::Help(_)));
    }

    #[test]
    fn always_is_offered_only_where_it_is_a_choice() {
        let mut asking = Asking::new(json!({"requestId": "p", "choices": []}));
        assert_eq!(asking.question(), "[y]es [n]o [d]etach > ");
        assert!(matches!(asking.line("a"), Typed::Help(_)));
        assert_eq!(asking.line("y"), Typed::Answer(json!({"allow": true})));
    }

    #[test]
    fn questions_are_asked_one_after_the_other() {
        let mut asking = Asking::new(json!({"requestId": "q", "input": {"kept": 1}, "questions": [
            {"id": "colour", "text": "Which?", "options": ["red", "blue"], "multi": false},
            {"id": "sizes", "text": "And?", "options": ["S", "M", "L"], "multi": true},
            {"id": "why", "text": "Why?", "multi": false}]}));
        assert!(asking.question().starts_with("Which?"), "{}", asking.question());
        assert!(matches!(asking.line("3"), Typed::Help(_)));
        assert!(matches!(asking.line("0"), Typed::Help(_)));
        assert!(matches!(asking.line("1,2"), Typed::Help(_)));
        assert_eq!(asking.line("2"), Typed::Ask);
        assert!(asking.question().starts_with("And?"));
        assert_eq!(asking.line("1, 3"), Typed::Ask);
        let answers = json!({"colour": "blue", "sizes": "S, L", "why": "d is a word here"});
        assert_eq!(
            asking.line("d is a word here"),
            Typed::Answer(json!({"allow": true, "updatedInput": {"kept": 1, "answers": answers}}))
        );
    }

    #[test]
    fn a_question_can_be_denied_or_left() {
        let request = json!({"requestId": "q", "questions": [{"id": "1", "text": "?"}]});
        assert_eq!(
            Asking::new(request.clone()).line("/deny"),
            Typed::Answer(json!({"allow": false}))
        );
        assert_eq!(Asking::new(request).line("/detach"), Typed::Detach);
    }
}
