//! `permissions`, `allow`, `deny`: requests that wait for somebody.

use serde_json::{Map, Value, json};

use super::{Context, age, segment};
use crate::cli::answer;
use crate::cli::args::{AllowArgs, DenyArgs, PermissionsArgs};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::text::{self, Paint};
use crate::cli::words;

/// `reattach permissions`: an array of requests.
///
/// # Errors
/// What the server or the way to it says.
pub fn permissions(args: PermissionsArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let pending = pending(&context)?;
    let mut shown = String::new();
    for request in &pending {
        let session = request["sessionId"].as_str().unwrap_or_default();
        let since = match &request["receivedAt"] {
            Value::Null => &request["timestamp"],
            received => received,
        };
        let head = format!("session {session}, {} ago", age(since));
        shown.push_str(&text::clean(&head, Paint::Plain));
        shown.push('\n');
        shown.push_str(&words::permission(request, Paint::Plain));
        shown.push_str("\n\n");
    }
    if !context.screen.is_json() {
        match pending.is_empty() {
            true => context.screen.say("nothing waits for an answer")?,
            false => {
                context.screen.print(shown.trim_end())?;
                context.screen.print("\n")?;
                context
                    .screen
                    .say("to answer: reattach allow REQUEST, or reattach deny REQUEST")?;
            }
        }
    }
    let text = "";
    context.screen.document(&Value::Array(pending), text)?;
    Ok(Exit::Ok)
}

/// `reattach allow`.
///
/// # Errors
/// What the server or the way to it says; `Exit::Conflict` if somebody answered before.
pub fn allow(args: AllowArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let request = find(&context, &args.id)?;
    let mut answer = if args.answers.is_empty() {
        if args.always && answer::choice(&request, "allow_always").is_none() {
            return Err(no_choice("allow it from now on").into());
        }
        answer::allow(&request, args.always)
    } else {
        answer::answer_questions(&request, answers(&request, &args.answers)?)
    };
    if let Some(input) = args.input {
        answer["updatedInput"] = input;
    }
    if let Some(choice) = args.choice {
        answer["choiceId"] = Value::from(choice);
    }
    if let Some(message) = args.message {
        answer["message"] = Value::from(message);
    }
    respond(&mut context, &request, &answer, "allowed")
}

/// `reattach deny`.
///
/// # Errors
/// What the server or the way to it says; `Exit::Conflict` if somebody answered before.
pub fn deny(args: DenyArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let request = find(&context, &args.id)?;
    let mut answer = answer::deny(&request);
    if let Some(choice) = args.choice {
        answer["choiceId"] = Value::from(choice);
    }
    if let Some(message) = args.message {
        answer["message"] = Value::from(message);
    }
    respond(&mut context, &request, &answer, "denied")
}

fn respond(context: &mut Context, request: &Value, answer: &Value, word: &str) -> Outcome {
    let id = request["requestId"].as_str().unwrap_or_default();
    let mut reply: Value = context.rest.post(&format!("/permissions/{}", segment(id)), answer)?;
    let state = match reply["state"].as_str() {
        Some("delivered") => "the agent has the answer",
        Some("recorded") | None => "recorded",
        Some(other) => other,
    };
    let text = format!("{word} ({})\n", text::clean(state, Paint::Plain));
    if reply.is_object() {
        reply["requestId"] = Value::from(id);
    }
    context.screen.document(&reply, &text)?;
    Ok(Exit::Ok)
}

fn pending(context: &Context) -> Result<Vec<Value>, Failure> {
    context.list("/permissions", &[], usize::MAX)
}

/// The request that a person means by its id or the beginning of it. One that does not wait is
/// left to the server, which knows whether it was answered or never was.
fn find(context: &Context, named: &str) -> Result<Value, Failure> {
    let pending = pending(context)?;
    let is = |request: &&Value| request["requestId"] == named;
    if let Some(request) = pending.iter().find(is) {
        return Ok(request.clone());
    }
    let begins = |request: &&Value| {
        !named.is_empty() && request["requestId"].as_str().is_some_and(|id| id.starts_with(named))
    };
    let found: Vec<&Value> = pending.iter().filter(begins).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Ok(json!({"requestId": named})),
        several => Err(Failure::new(
            Exit::Usage,
            "AMBIGUOUS",
            format!("`{named}` can mean {} requests", several.len()),
            "reattach permissions, then the same command with more of the id",
        )),
    }
}

/// `[QUESTION=]ANSWER`, where QUESTION is an id or a number from 1.
fn answers(request: &Value, given: &[String]) -> Result<Map<String, Value>, Failure> {
    let questions = request["questions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if questions.is_empty() {
        return Err(Failure::usage("the request asks no question", "reattach permissions"));
    }
    let mut answers = Map::new();
    for text in given {
        let named = questions.iter().enumerate().find_map(|(at, question)| {
            let id = question["id"].as_str().unwrap_or_default();
            let by_id = text.strip_prefix(id).and_then(|rest| rest.strip_prefix('='));
            let number = (at + 1).to_string();
            let by_number = text.strip_prefix(&number).and_then(|rest| rest.strip_prefix('='));
            by_id.or(by_number).map(|answer| (question, answer))
        });
        let (question, answer) = match (named, questions) {
            (Some(named), _) => named,
            (None, [only]) => (only, text.as_str()),
            (None, _) => {
                return Err(Failure::usage(
                    format!("`{text}` does not say which of {} questions", questions.len()),
                    "--answer 1=ANSWER --answer 2=ANSWER",
                ));
            }
        };
        let id = question["id"].as_str().unwrap_or_default().to_owned();
        let words = answer::chosen(question, answer)
            .map_err(|help| Failure::usage(help, "reattach permissions"))?;
        answers.insert(id, Value::from(words));
    }
    Ok(answers)
}

fn no_choice(what: &str) -> Failure {
    Failure::usage(
        format!("the request offers no choice to {what}"),
        "reattach permissions --json, and --choice with one of its choices",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(answers: &[&str]) -> Vec<String> {
        answers.iter().map(|answer| (*answer).to_owned()).collect()
    }

    #[test]
    fn answers_name_their_question() {
        let request = json!({"questions": [
            {"id": "colour", "text": "?", "options": ["red", "blue"], "multi": false},
            {"id": "why", "text": "?", "multi": false}]});
        let both = answers(&request, &given(&["colour=2", "2=a=b"])).expect("both");
        assert_eq!(Value::Object(both), json!({"colour": "blue", "why": "a=b"}));
        let failure = answers(&request, &given(&["blue"])).expect_err("which?");
        assert_eq!(failure.exit, Exit::Usage);
        let failure = answers(&request, &given(&["colour=3"])).expect_err("no third");
        assert_eq!(failure.exit, Exit::Usage);
    }

    #[test]
    fn one_question_needs_no_name() {
        let request = json!({"questions": [{"id": "q", "text": "?", "multi": false}]});
        let one = answers(&request, &given(&["because x=y"])).expect("one");
        assert_eq!(Value::Object(one), json!({"q": "because x=y"}));
    }

    #[test]
    fn only_questions_are_answered() {
        assert!(answers(&json!({"requestId": "p"}), &given(&["x"])).is_err());
    }
}
