//! `result` lines: the ends of turns, and what they consumed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Claude, field};
use crate::provider::{Ending, Origin, Output};
use crate::run::event::{ErrorSource, Event, Reason, Status, StatusKind, TokenBudget, Usage};

/// What was consumed so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meter {
    /// The process's total at the last `result`, in dollars.
    total_cost: f64,
    /// The main agent's newest message, as far as its usage is known.
    message: String,
    /// What that message read, its context.
    context: u64,
    /// What that message wrote.
    written: u64,
}

impl Meter {
    pub(super) fn message_started(&mut self, message: &str, usage: &Value) {
        message.clone_into(&mut self.message);
        self.context = read(usage);
        self.written = field::number(usage, "output_tokens").unwrap_or_default();
    }

    /// A finished block of a message came. If the message was streamed its start and its deltas
    /// have said more than the block, which repeats the start's counts; else only the block has
    /// them (the retry of an abandoned message comes so).
    pub(super) fn message_came(&mut self, message: &str, usage: &Value) {
        if usage.is_object() && message != self.message {
            self.message_started(message, usage);
        }
    }

    pub(super) fn message_went_on(&mut self, usage: &Value) {
        if let Some(written) = field::number(usage, "output_tokens") {
            self.written = written;
        }
    }

    /// What was consumed since the last `result`. Totals are cumulative, and a resumed process
    /// begins with those of the conversation so far; so the CLI's own difference is preferred.
    fn since(&mut self, line: &Value) -> Usage {
        let total = line["total_cost_usd"].as_f64();
        let before = self.total_cost;
        self.total_cost = total.unwrap_or(before);
        if let Some(models) = line["model_usage_since_last_result"].as_object() {
            let nothing =
                Usage { cache_read_tokens: Some(0), cost_usd: Some(0.0), ..Usage::default() };
            return models.values().map(of_model).fold(nothing, sum);
        }
        let usage = &line["usage"];
        Usage {
            input_tokens: read(usage),
            output_tokens: field::number(usage, "output_tokens").unwrap_or_default(),
            cache_read_tokens: field::number(usage, "cache_read_input_tokens"),
            cost_usd: total.map(|total| (total - before).max(0.0)),
        }
    }

    /// The size of the largest context among the models used, which is the main agent's.
    fn budget(&self, line: &Value, usage: &Usage) -> TokenBudget {
        let windows = line["modelUsage"].as_object().into_iter().flat_map(Map::values);
        TokenBudget {
            used: self.context.saturating_add(self.written),
            total: windows.filter_map(|model| field::number(model, "contextWindow")).max(),
            input_tokens: Some(usage.input_tokens),
            output_tokens: Some(usage.output_tokens),
            cache_read_tokens: usage.cache_read_tokens,
        }
    }
}

impl Claude {
    pub(super) fn result(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        let usage = self.meter.since(line);
        let ours = self.turn.as_ref().is_some_and(|turn| turn.origin == Origin::User);
        if ours && by_itself(line) {
            self.reported(line, usage, out);
            return true;
        }
        self.ensure_turn(out);
        self.close_streams(out);
        let Some(turn) = self.turn.take() else { return false };
        let usage = turn.carried.into_iter().fold(usage, sum);
        let failed = failed(line);
        let said = field::text(line, "result");
        if let Some(said) = said.filter(|_| !failed && !turn.spoke) {
            // A slash command's answer stands nowhere else.
            out.push(Output::Event(Event::Text {
                content: said.to_owned(),
                role: None,
                block_id: None,
                parent_tool_id: None,
            }));
        }
        out.extend(self.consumed(line, &usage).map(Output::Event));
        let reason = match (failed, turn.interrupted) {
            (false, _) => Reason::Finished,
            (true, true) => Reason::Aborted,
            (true, false) => Reason::Failed,
        };
        let error = (reason == Reason::Failed).then(|| self.unnamed(&failure(line), line));
        out.push(Output::TurnEnded(Ending {
            reason,
            exit_code: None,
            success: reason == Reason::Finished,
            error,
            usage: Some(usage),
            extra: Map::new(),
        }));
        // Whoever runs the turn closes what is open in it; an answer would come too late.
        self.asked.clear();
        self.plans.clear();
        true
    }

    /// A turn that the agent began by itself ended inside a prompt's turn: it is not that one's
    /// end, yet what it consumed belongs to it. What it said was in lines before, but why it
    /// failed may stand here alone.
    fn reported(&mut self, line: &Value, usage: Usage, out: &mut Vec<Output>) {
        let Some(turn) = &mut self.turn else { return };
        let carried = turn.carried.take();
        turn.carried = Some(carried.into_iter().fold(usage, sum));
        // An error of the API was a message of its own already, a list of errors never is.
        let told = std::mem::take(&mut turn.complained) && errors(line).is_empty();
        if failed(line) && !told && !turn.interrupted {
            out.push(Output::Event(Event::Error {
                content: self.unnamed(&failure(line), line),
                code: None,
                source: ErrorSource::Agent,
                parent_tool_id: None,
            }));
        }
    }

    /// What the turn consumed, unless it never got as far as a model.
    fn consumed(&self, line: &Value, usage: &Usage) -> Option<Event> {
        let budget = self.meter.budget(line, usage);
        if usage.input_tokens == 0 && usage.output_tokens == 0 {
            return None;
        }
        let of = budget.total.map(|total| format!(" of {total}")).unwrap_or_default();
        Some(Event::Status(Status {
            status: StatusKind::Usage,
            text: format!("{}{of} tokens in the context", budget.used),
            token_budget: Some(budget),
            cost_usd: usage.cost_usd,
            ..Status::default()
        }))
    }
}

/// Whether the turn that ends here was begun by the agent.
fn by_itself(line: &Value) -> bool {
    field::text(&line["origin"], "kind").is_some_and(|kind| kind != "human")
}

/// Errors of the API come with the subtype of a success.
fn failed(line: &Value) -> bool {
    field::flag(line, "is_error")
        || field::text(line, "subtype").is_some_and(|subtype| subtype != "success")
}

/// What the CLI lists as having gone wrong.
fn errors(line: &Value) -> Vec<&str> {
    field::items(line, "errors")
        .iter()
        .filter_map(Value::as_str)
        // A note of the CLI to its makers.
        .filter(|error| !error.starts_with("[ede_diagnostic]"))
        .collect()
}

/// Why a turn failed, in the CLI's words.
fn failure(line: &Value) -> String {
    let errors = errors(line);
    if !errors.is_empty() {
        return errors.join("\n");
    }
    ["result", "terminal_reason", "subtype"]
        .iter()
        .find_map(|key| field::text(line, key))
        .unwrap_or("the turn failed")
        .to_owned()
}

/// All that a message read: new, written to the cache, and from the cache.
fn read(usage: &Value) -> u64 {
    ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]
        .iter()
        .filter_map(|key| field::number(usage, key))
        .fold(0, u64::saturating_add)
}

/// One model's share, in the spelling of `modelUsage`.
fn of_model(usage: &Value) -> Usage {
    Usage {
        input_tokens: ["inputTokens", "cacheCreationInputTokens", "cacheReadInputTokens"]
            .iter()
            .filter_map(|key| field::number(usage, key))
            .fold(0, u64::saturating_add),
        output_tokens: field::number(usage, "outputTokens").unwrap_or_default(),
        cache_read_tokens: field::number(usage, "cacheReadInputTokens"),
        cost_usd: usage["costUSD"].as_f64(),
    }
}

fn sum(a: Usage, b: Usage) -> Usage {
    let cached = [a.cache_read_tokens, b.cache_read_tokens];
    let costs = [a.cost_usd, b.cost_usd];
    Usage {
        input_tokens: a.input_tokens.saturating_add(b.input_tokens),
        output_tokens: a.output_tokens.saturating_add(b.output_tokens),
        cache_read_tokens: cached.into_iter().flatten().reduce(u64::saturating_add),
        cost_usd: costs.into_iter().flatten().reduce(|a, b| a + b),
    }
}
