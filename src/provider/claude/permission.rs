//! Permission requests and their answers, and the other control messages.
//!
//! The CLI suggests what "always" could mean: rules to save, directories to add, a mode to switch
//! to. Each is a choice of its own, rules with their text; nobody's click stands for all of them.
//! A rule can be saved for the session, or in the file that the CLI names, which the label says.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Claude, field, remember, tool, write};
use crate::limits::OPEN_ITEMS_MAX;
use crate::provider::{Answer, Output, Write};
use crate::run::event::{
    CancelReason, Choice, ChoiceKind, ErrorSource, Event, Interaction, PermissionRequest, Question,
    ToolStatus, ToolUse,
};

const ALLOW: &str = "allow";
const DENY: &str = "deny";
const DENY_AND_STOP: &str = "deny_and_stop";

/// A request that waits: what its answer needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Asked {
    tool_name: String,
    pub(super) tool_id: Option<String>,
    /// The input as the request has it: an allow must give it back.
    input: Value,
    suggestions: Vec<Value>,
    parent: Option<String>,
}

/// A choice, and what it adds to an allow.
struct Offer {
    choice: Choice,
    update: Option<Value>,
}

impl Claude {
    /// A request of the agent: the only kind of line that it waits for an answer to.
    pub(super) fn asks(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        let Some(request_id) = field::text(line, "request_id") else { return false };
        let request = &line["request"];
        match field::text(request, "subtype").unwrap_or_default() {
            "can_use_tool" => self.asks_permission(request_id, request, out),
            // We register no hooks; the empty answer lets things take their course.
            "hook_callback" => {
                out.push(Output::Write(reply(request_id, &json!({}))));
                true
            }
            other => {
                let error = format!("unsupported request: {other}");
                out.push(Output::Write(refuse(request_id, &error)));
                false
            }
        }
    }

    fn asks_permission(&mut self, id: &str, request: &Value, out: &mut Vec<Output>) -> bool {
        let Some(tool_name) = field::owned(request, "tool_name") else {
            out.push(Output::Write(refuse(id, "the request names no tool")));
            return false;
        };
        if self.asked.len() >= OPEN_ITEMS_MAX && !self.asked.contains_key(id) {
            let answer = json!({"behavior": "deny", "message": "Too many requests are open."});
            out.push(Output::Write(reply(id, &answer)));
            return true;
        }
        let task = field::text(request, "agent_id").and_then(|agent| self.tasks.get(agent));
        let asked = Asked {
            tool_name,
            tool_id: field::owned(request, "tool_use_id"),
            input: request.get("input").cloned().unwrap_or_else(|| json!({})),
            suggestions: field::items(request, "permission_suggestions").to_vec(),
            parent: field::parent(request).or_else(|| task.and_then(|task| task.tool_id.clone())),
        };
        out.push(Output::Event(Event::PermissionRequest(self.request(id, request, &asked))));
        remember(&mut self.asked, id, asked);
        true
    }

    /// The event of a request.
    fn request(&self, id: &str, request: &Value, asked: &Asked) -> PermissionRequest {
        let interaction = asked.interaction();
        // A plan's request comes with an empty input: the plan stood in the call before it.
        let plan = asked.tool_id.as_ref().and_then(|tool_id| self.plans.get(tool_id));
        let input = match plan {
            Some(plan) if interaction == Interaction::Plan => plan.clone(),
            _ => asked.input.clone(),
        };
        PermissionRequest {
            request_id: id.to_owned(),
            interaction,
            tool_id: asked.tool_id.clone(),
            tool_name: asked.tool_name.clone(),
            cwd: self.cwd.clone(),
            title: field::owned(request, "title").or_else(|| tool::title(&input)),
            description: field::owned(request, "description"),
            diff: tool::diff(&asked.tool_name, &input),
            choices: asked.offers().into_iter().map(|offer| offer.choice).collect(),
            editable: interaction != Interaction::Plan,
            questions: (interaction == Interaction::Question).then(|| questions(&input)),
            parent_tool_id: asked.parent.clone(),
            extra: Map::new(),
            input,
        }
    }

    /// The agent does not want the answer any more.
    pub(super) fn withdrawn(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        let Some(request_id) = field::owned(line, "request_id") else { return false };
        if self.asked.remove(&request_id).is_some() {
            out.push(Output::PermissionGone { request_id, reason: CancelReason::Withdrawn });
        }
        true
    }

    /// The bytes of an answer, or `None` if nobody waits for it.
    pub(super) fn answer(&self, answer: &Answer) -> Option<Write> {
        let asked = self.asked.get(&answer.request_id)?;
        let response = if answer.allow { asked.allow(answer) } else { asked.deny(answer) };
        Some(reply(&answer.request_id, &response))
    }

    /// An answer of ours was written.
    pub(super) fn answered(&mut self, response: &Value, out: &mut Vec<Output>) {
        let id = field::text(response, "request_id").unwrap_or_default();
        let Some(asked) = self.asked.remove(id) else { return };
        let response = &response["response"];
        if field::text(response, "behavior") != Some("allow") {
            if field::flag(response, "interrupt") {
                self.interrupting();
            }
            return;
        }
        // The call goes on, with the input that the answer gave it; a plan with what was shown.
        let Asked { tool_name, tool_id: Some(tool_id), parent, .. } = asked else { return };
        let plan =
            self.plans.get(&tool_id).filter(|_| interaction(&tool_name) == Interaction::Plan);
        let tool_input = plan.or_else(|| response.get("updatedInput")).cloned().unwrap_or_default();
        out.push(Output::Event(Event::ToolUse(ToolUse {
            tool_id,
            category: tool::category(&tool_name),
            title: tool::title(&tool_input),
            diff: tool::diff(&tool_name, &tool_input),
            tool_name,
            tool_input,
            status: ToolStatus::Running,
            parent_tool_id: parent,
        })));
    }

    /// The agent's reply to a request of ours: only a failure is worth a word.
    pub(super) fn replied(&self, line: &Value, out: &mut Vec<Output>) -> bool {
        let response = &line["response"];
        match field::text(response, "subtype").unwrap_or_default() {
            "success" => true,
            "error" => {
                let error = field::text(response, "error").unwrap_or("request refused");
                out.push(Output::Event(Event::Error {
                    content: self.unnamed(error, line),
                    code: field::owned(response, "error_code"),
                    source: ErrorSource::Agent,
                    parent_tool_id: None,
                }));
                true
            }
            _ => false,
        }
    }
}

impl Asked {
    fn interaction(&self) -> Interaction {
        interaction(&self.tool_name)
    }

    fn allow(&self, answer: &Answer) -> Value {
        let input = match (self.interaction(), &answer.updated_input) {
            (Interaction::Tool, Some(changed @ Value::Object(_))) => changed.clone(),
            (Interaction::Question, Some(Value::Object(answers))) => self.answered(answers),
            _ => self.input.clone(),
        };
        let mut response = json!({"behavior": "allow", "updatedInput": input});
        if let Some(update) = self.update(answer) {
            response["updatedPermissions"] = json!([update]);
        }
        response
    }

    fn deny(&self, answer: &Answer) -> Value {
        let said = answer.message.as_deref().filter(|message| !message.trim().is_empty());
        let plain = match self.interaction() {
            Interaction::Tool => "The user denied this.",
            Interaction::Question => "The user did not want to answer.",
            Interaction::Plan => "The user wants to go on planning.",
        };
        let message = said.unwrap_or(plain);
        let mut response = json!({"behavior": "deny", "message": message});
        if answer.choice_id.as_deref() == Some(DENY_AND_STOP) {
            response["interrupt"] = json!(true);
        }
        response
    }

    /// The questions with their answers. Several answers to one question become one text.
    fn answered(&self, given: &Map<String, Value>) -> Value {
        let mut input = self.input.as_object().cloned().unwrap_or_default();
        input.extend(given.clone());
        if let Some(Value::Object(answers)) = input.get_mut("answers") {
            for answer in answers.values_mut() {
                if let Some(several) = answer.as_array() {
                    let several: Vec<_> = several.iter().filter_map(Value::as_str).collect();
                    *answer = Value::String(several.join(", "));
                }
            }
        }
        Value::Object(input)
    }

    /// What an allow changes for later: what the choice says, or the rule that was asked for.
    fn update(&self, answer: &Answer) -> Option<Value> {
        let offers = self.offers();
        if let Some(id) = &answer.choice_id {
            return offers.into_iter().find(|offer| offer.choice.id == *id)?.update;
        }
        match answer.remember.as_ref()? {
            // A tick at "remember" saves a rule about this tool; it never opens a directory or
            // switches the mode, which says more than what was asked.
            Value::Bool(true) => {
                offers.into_iter().find(|offer| offer.choice.rule.is_some())?.update
            }
            Value::String(rule) => offers
                .into_iter()
                .filter(|offer| offer.update.is_some())
                .find(|offer| offer.choice.rule.as_ref() == Some(rule) || offer.choice.id == *rule)
                .map_or_else(|| self.rule(rule), |offer| offer.update),
            _ => None,
        }
    }

    /// A rule that the CLI did not suggest: for the session only, and for this tool only.
    fn rule(&self, rule: &str) -> Option<Value> {
        let rest = rule.strip_prefix(self.tool_name.as_str())?;
        let mut saved = json!({"toolName": self.tool_name});
        if !rest.is_empty() {
            let content = rest.strip_prefix('(')?.strip_suffix(')')?;
            saved["ruleContent"] = json!(content);
        }
        Some(json!({
            "type": "addRules",
            "rules": [saved],
            "behavior": "allow",
            "destination": "session",
        }))
    }

    /// All choices, those that change nothing for later at the ends.
    fn offers(&self) -> Vec<Offer> {
        let [allow, deny, stop] = match self.interaction() {
            Interaction::Tool => ["Allow", "Deny", "Deny and stop the turn"],
            Interaction::Question => ["Answer", "Do not answer", "Do not answer, stop the turn"],
            Interaction::Plan => ["Approve the plan", "Go on planning", "Stop the turn"],
        };
        let once = |id: &str, kind, label: &str| Offer {
            choice: Choice { id: id.to_owned(), kind, label: label.to_owned(), rule: None },
            update: None,
        };
        let mut offers = vec![once(ALLOW, ChoiceKind::AllowOnce, allow)];
        for (n, suggestion) in self.suggestions.iter().enumerate() {
            suggested(n + 1, suggestion, &mut offers);
        }
        offers.push(once(DENY, ChoiceKind::RejectOnce, deny));
        offers.push(once(DENY_AND_STOP, ChoiceKind::RejectOnce, stop));
        offers
    }
}

fn interaction(tool: &str) -> Interaction {
    match tool {
        "AskUserQuestion" => Interaction::Question,
        "ExitPlanMode" => Interaction::Plan,
        _ => Interaction::Tool,
    }
}

/// The choices that come from one suggestion. Those that nobody should click by the way (a mode
/// without any questions, rules that deny, kinds that we do not know) are not offered.
fn suggested(n: usize, suggestion: &Value, offers: &mut Vec<Offer>) {
    // Only rules are saved as such: directories and a mode have their words in the label alone.
    let mut offer = |id: String, label: String, rule: Option<String>, update: Value| {
        let kind = ChoiceKind::AllowAlways;
        let choice = Choice { id, kind, label, rule };
        offers.push(Offer { choice, update: Some(update) });
    };
    match field::text(suggestion, "type").unwrap_or_default() {
        "addRules" if field::text(suggestion, "behavior") == Some("allow") => {
            let rules = field::items(suggestion, "rules");
            let texts: Option<Vec<String>> = rules.iter().map(rule_text).collect();
            let Some(texts) = texts.filter(|texts| !texts.is_empty()) else { return };
            let rule = texts.join(", ");
            let mut session = suggestion.clone();
            session["destination"] = json!("session");
            let label = format!("Always allow {rule} in this session");
            offer(format!("always_{n}"), label, Some(rule.clone()), session);
            let file = field::text(suggestion, "destination").and_then(settings_file);
            if let Some(file) = file {
                let label = format!("Always allow {rule}, saved in {file}");
                offer(format!("always_{n}_saved"), label, Some(rule), suggestion.clone());
            }
        }
        "addDirectories" => {
            let directories: Option<Vec<&str>> =
                field::items(suggestion, "directories").iter().map(Value::as_str).collect();
            let Some(directories) = directories.filter(|all| !all.is_empty()) else { return };
            let mut session = suggestion.clone();
            session["destination"] = json!("session");
            let label = format!("Allow, and open {} in this session", directories.join(", "));
            offer(format!("directories_{n}"), label, None, session);
        }
        "setMode" => {
            let Some(mode @ ("acceptEdits" | "plan" | "default")) = field::text(suggestion, "mode")
            else {
                return;
            };
            let mut session = suggestion.clone();
            session["destination"] = json!("session");
            let label = format!("Allow, and switch to mode {mode} in this session");
            offer(format!("mode_{n}"), label, None, session);
        }
        _ => {}
    }
}

/// A rule as people write it: `Tool(content)`, or `Tool` for all its uses.
fn rule_text(rule: &Value) -> Option<String> {
    let tool = field::text(rule, "toolName")?;
    Some(match field::text(rule, "ruleContent") {
        Some(content) => format!("{tool}({content})"),
        None => tool.to_owned(),
    })
}

/// Which file a rule would be written to, beyond the session.
fn settings_file(destination: &str) -> Option<&'static str> {
    match destination {
        "localSettings" => Some(".claude/settings.local.json of this project"),
        "projectSettings" => Some(".claude/settings.json of this project"),
        "userSettings" => Some("~/.claude/settings.json, for all projects"),
        _ => None,
    }
}

/// The questions of `AskUserQuestion`; answers are keyed by the question's text.
fn questions(input: &Value) -> Vec<Question> {
    field::items(input, "questions")
        .iter()
        .filter_map(|question| {
            let text = field::owned(question, "question")?;
            let options: Vec<String> = field::items(question, "options")
                .iter()
                .filter_map(|option| field::owned(option, "label"))
                .collect();
            Some(Question {
                id: text.clone(),
                text,
                options: Some(options).filter(|options| !options.is_empty()),
                multi: field::flag(question, "multiSelect"),
            })
        })
        .collect()
}

fn reply(request_id: &str, response: &Value) -> Write {
    write(&[json!({
        "type": "control_response",
        "response": {"subtype": "success", "request_id": request_id, "response": response},
    })])
}

fn refuse(request_id: &str, error: &str) -> Write {
    write(&[json!({
        "type": "control_response",
        "response": {"subtype": "error", "request_id": request_id, "error": error},
    })])
}
