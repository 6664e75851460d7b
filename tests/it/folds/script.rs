//! What an agent is going to do, and what happens to it and its gateways meanwhile.
//!
//! An agent's lines stand fixed beforehand; it waits where a real one would, for a prompt or for
//! an answer. What is left to chance is who gets how far before a gateway dies.

use std::collections::BTreeSet;
use std::fmt;

use proptest::prelude::*;
use proptest::sample::select;
use reattach::provider::{Exit, Kind, RecordBody};
use serde_json::{Value, json};

use crate::transcripts;

/// One step of an agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// It says something, or ends.
    Record(RecordBody),
    /// It waits for a person's next prompt, which is this.
    Prompt(String),
    /// It waits for an answer to this request of its own.
    Answer(String),
}

/// An agent: its dialect and its steps.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) steps: Vec<Step>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if self.kind == Kind::Claude {
            return Ok(());
        }
        for step in &self.steps {
            match step {
                Step::Record(RecordBody::Out(line)) => {
                    write!(f, "\n  {:.100}", String::from_utf8_lossy(line))?;
                }
                other => write!(f, "\n  {other:?}")?,
            }
        }
        Ok(())
    }
}

/// Something happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// The agent takes steps.
    Act(usize),
    /// The keeper appends what it has to the journal, or this part of it (of 255), in blocks of
    /// this many bytes; perhaps to a new segment.
    Journal { part: u8, block: usize, segment: bool },
    /// The gateway reads and folds records.
    Fold(usize),
    /// The store commits what is new.
    Commit,
    /// Commands whose rows are durable go to the keeper, which may say at once that it wrote
    /// them.
    Send { replies: bool },
    /// A person sends the next prompt, if no run is on.
    Prompt,
    /// A person answers one of the open requests.
    Answer(usize),
    /// The gateway takes a checkpoint.
    Checkpoint,
    /// The gateway is killed, and another one starts.
    Crash,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..5_usize).prop_map(Op::Act),
        5 => (any::<u8>(), 1..400_usize, prop::bool::weighted(0.1))
            .prop_map(|(part, block, segment)| Op::Journal { part, block, segment }),
        3 => Just(Op::Journal { part: 255, block: 64 << 10, segment: false }),
        6 => (1..6_usize).prop_map(Op::Fold),
        6 => Just(Op::Commit),
        4 => any::<bool>().prop_map(|replies| Op::Send { replies }),
        3 => Just(Op::Prompt),
        3 => (0..3_usize).prop_map(Op::Answer),
        3 => Just(Op::Checkpoint),
        4 => Just(Op::Crash),
    ]
}

/// A recording as a script; `None` if people did in it what nobody does here.
pub(super) fn of_transcript(name: &str) -> Option<Script> {
    let mut steps = Vec::new();
    for record in transcripts::records(name) {
        match record.body {
            RecordBody::In { bytes, .. } => match step_of_write(&bytes) {
                Some(step) => steps.extend(step),
                None => return None,
            },
            body => steps.push(Step::Record(body)),
        }
    }
    // One that was started with its prompt as an argument.
    if !matches!(steps.first(), Some(Step::Prompt(_))) {
        steps.insert(0, Step::Prompt("go".into()));
    }
    Some(Script { name: name.into(), kind: Kind::Claude, steps: ended(steps) })
}

/// What the agent waited for, if it was that write. The outer `None`: an interrupt, or an
/// experiment of the recorder's.
#[expect(clippy::option_option, reason = "nothing to wait for, and nothing to be done here")]
fn step_of_write(bytes: &[u8]) -> Option<Option<Step>> {
    let line: Value = serde_json::from_slice(bytes).ok()?;
    match line["type"].as_str()? {
        "user" => {
            let content = &line["message"]["content"];
            let text = content.as_str().or_else(|| content[0]["text"].as_str())?;
            Some(Some(Step::Prompt(text.into())))
        }
        "control_response" => {
            Some(Some(Step::Answer(line["response"]["request_id"].as_str()?.into())))
        }
        "control_request" if line["request"]["subtype"] == "initialize" => Some(None),
        _ => None,
    }
}

/// Its process ends with the script, as each does.
fn ended(mut steps: Vec<Step>) -> Vec<Step> {
    let exit = steps.iter().position(|step| matches!(step, Step::Record(RecordBody::Exit(_))));
    match exit {
        Some(at) => steps.truncate(at + 1),
        None => steps.push(Step::Record(RecordBody::Exit(Exit::Code(0)))),
    }
    steps
}

/// A recording of at most this many steps and bytes.
pub(super) fn transcripts(steps_max: usize, bytes_max: usize) -> Vec<Script> {
    let scripts = transcripts::names().into_iter().filter_map(|name| of_transcript(&name));
    scripts
        .filter(|script| {
            let bytes: usize = script.steps.iter().map(weight).sum();
            script.steps.len() <= steps_max && bytes <= bytes_max
        })
        .collect()
}

fn weight(step: &Step) -> usize {
    match step {
        Step::Record(RecordBody::Out(line) | RecordBody::Err(line)) => line.len(),
        _ => 0,
    }
}

/// A `jsonl` program that asks, waits or does not, and ends with or without its `complete`.
pub(super) fn jsonl() -> impl Strategy<Value = Script> {
    let out = |line: Value| vec![Step::Record(RecordBody::Out(line.to_string().into_bytes()))];
    let plain = select(super::jsonl_lines()).prop_filter_map("for later", |line| {
        let kept = !String::from_utf8_lossy(&line).contains(r#""complete""#);
        kept.then(|| vec![Step::Record(RecordBody::Out(line))])
    });
    // Under an id of before only if that has its answer.
    let asks = (any::<u16>(), any::<bool>()).prop_map(move |(id, waits)| {
        let id = if waits { "again".to_owned() } else { format!("q{id}") };
        let line = json!({"kind": "permission_request", "requestId": id, "toolName": "Bash"});
        let mut steps = out(line);
        steps.extend(waits.then_some(Step::Answer(id)));
        steps
    });
    let step = prop_oneof![
        6 => plain,
        2 => asks,
        1 => Just(out(json!({"kind": "text", "content": "long ".repeat(700)}))),
        1 => Just(vec![Step::Record(RecordBody::Err(b"on stderr".to_vec()))]),
        1 => Just(vec![Step::Record(RecordBody::OutCapped { bytes: 9, head: b"{\"kind".to_vec() })]),
    ];
    let exit = prop_oneof![Just(Exit::Code(0)), Just(Exit::Code(3)), Just(Exit::Signal(9))];
    (proptest::collection::vec(step, 0..20), any::<bool>(), exit).prop_map(
        move |(steps, completes, exit)| {
            let mut all = vec![Step::Prompt("go".into())];
            all.extend(asked_once(steps.into_iter().flatten()));
            if completes {
                all.extend(out(json!({"kind": "complete", "exitCode": 0})));
            }
            all.push(Step::Record(RecordBody::Exit(exit)));
            Script { name: "jsonl".into(), kind: Kind::Jsonl, steps: all }
        },
    )
}

/// An agent that asks again before it has its answer gets one of the two: which, and whether the
/// other one's end is told, depends on when it asks.
fn asked_once(steps: impl Iterator<Item = Step>) -> impl Iterator<Item = Step> {
    let mut asked = BTreeSet::new();
    steps.filter(move |step| {
        let Step::Record(RecordBody::Out(line)) = step else { return true };
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return true };
        let id = line["requestId"].as_str().filter(|id| *id != "again");
        line["kind"] != "permission_request" || id.is_none_or(|id| asked.insert(id.to_owned()))
    })
}

/// A recording in which the agent also asks for what the gateway answers by itself.
pub(super) fn claude() -> impl Strategy<Value = Script> {
    let scripts = transcripts(150, 100_000);
    assert!(scripts.len() > 25, "most recordings are small");
    let asks = proptest::collection::vec(any::<prop::sample::Index>(), 0..6);
    (select(scripts), asks).prop_map(|(mut script, asks)| {
        for (number, at) in asks.into_iter().enumerate() {
            // After the prompt, before the end.
            let at = 1 + at.index(script.steps.len() - 1);
            script.steps.insert(at, hook(number));
        }
        script
    })
}

/// Claude asks for a hook, which is replied to without a person.
fn hook(number: usize) -> Step {
    let line = json!({"type": "control_request", "request_id": format!("hook-{number}"),
        "request": {"subtype": "hook_callback"}});
    Step::Record(RecordBody::Out(line.to_string().into_bytes()))
}

/// Short scripts with everything in them, for those who try every place.
pub(super) fn dense() -> Vec<Script> {
    let out = |line: Value| Step::Record(RecordBody::Out(line.to_string().into_bytes()));
    let tool = |title| json!({"kind": "tool_use", "toolId": "t", "title": title});
    let ask = |id| json!({"kind": "permission_request", "requestId": id, "toolName": "Bash"});
    let jsonl = vec![
        Step::Prompt("go".into()),
        out(tool("first")),
        out(ask("again")),
        Step::Answer("again".into()),
        out(json!({"kind": "tool_result", "toolId": "t", "toolResult": {"content": "x"}})),
        out(tool("refined after its result")),
        out(ask("again")),
        out(ask("other")),
        Step::Answer("again".into()),
        out(json!({"kind": "complete", "exitCode": 0})),
        Step::Record(RecordBody::Exit(Exit::Code(0))),
    ];
    let mut claude = of_transcript("permission_allow").expect("nobody interrupts there");
    claude.steps.insert(1, hook(1));
    let answer = claude.steps.iter().position(|step| matches!(step, Step::Answer(_)));
    let answer = answer.expect("it asks");
    claude.steps.insert(answer, hook(2));
    claude.steps.insert(answer + 2, hook(3));
    vec![Script { name: "dense jsonl".into(), kind: Kind::Jsonl, steps: jsonl }, claude]
}
