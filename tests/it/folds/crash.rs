//! Crash anywhere: whatever is killed whenever, the log is the one that it would have been.
//!
//! A case is run twice, with and without its crashes. What the agent said must be told the same,
//! byte for byte but for the seq and the id derived from it, which gateway events may shift.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use reattach::provider::Write;
use reattach::run::id::{Position, RunId};
use reattach::store::{DATABASE, check};
use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

use super::gateway::Gateway;
use super::keeper::Keeper;
use super::script::{self, Op, Script, Step};

const ALL: usize = usize::MAX;

struct World {
    dir: TempDir,
    script: Script,
    /// Always there, but between two lives.
    gateway: Option<Gateway>,
    keeper: Option<Keeper>,
    /// Prompts that were sent for good.
    prompts: usize,
}

/// What came of it.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// What the agent said and when its runs began and ended, without seqs.
    told: Vec<String>,
    /// The prompts, as the agent got them.
    prompts: Vec<String>,
    /// The automatic replies that were made, sorted. Whether the last ones reach it before it ends
    /// is a matter of time.
    replies: Vec<String>,
}

impl World {
    fn new(script: &Script) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let gateway = Some(Gateway::start(dir.path(), script, None));
        Self { dir, script: script.clone(), gateway, keeper: None, prompts: 0 }
    }

    fn apply(&mut self, op: Op) -> bool {
        let Self { gateway, keeper, .. } = self;
        let gateway = gateway.as_mut().expect("it lives");
        match (op, keeper.as_mut()) {
            (Op::Act(count), Some(keeper)) => keeper.act(count),
            (Op::Journal { part, block, segment }, Some(keeper)) => {
                keeper.journal(part, block, segment)
            }
            (Op::Fold(count), Some(keeper)) => {
                let mut folded = 0;
                while folded < count && gateway.fold(1, keeper) > 0 {
                    folded += 1;
                }
                folded > 0
            }
            (Op::Send { replies }, _) => {
                let obeyed = gateway.obey(&self.script, keeper);
                keeper.as_mut().is_some_and(|keeper| gateway.send(keeper, replies)) || obeyed
            }
            (Op::Commit, keeper) => gateway.commit(keeper),
            (Op::Prompt, _) => self.prompt(),
            (Op::Answer(which), _) => gateway.answer(which),
            (Op::Checkpoint, _) => {
                gateway.checkpoint();
                false
            }
            (Op::Crash, _) => {
                self.crash();
                true
            }
            (Op::Act(_) | Op::Journal { .. } | Op::Fold(_), None) => false,
        }
    }

    /// A person sends a prompt once the agent waits for one and has said all before it.
    fn prompt(&mut self) -> bool {
        let first = self.script.steps.first();
        let gateway = self.gateway.as_mut().expect("it lives");
        let content = match (&self.keeper, &gateway.agent) {
            (Some(keeper), Some(agent)) if keeper.is_read(agent.fold.folded()) => keeper.wants(),
            (None, _) => match first {
                Some(Step::Prompt(content)) => Some(content.as_str()),
                _ => None,
            },
            _ => None,
        };
        let Some(content) = content else { return false };
        let sent = gateway.prompt(self.prompts, content);
        self.prompts = sent.unwrap_or(self.prompts);
        sent.is_some()
    }

    fn crash(&mut self) {
        let durable = self.gateway().durable();
        // With its lock, before the next one comes.
        self.gateway = None;
        let next = Gateway::start(self.dir.path(), &self.script, self.keeper.as_mut());
        assert_eq!(next.durable(), durable, "I8: what was visible stays as it was");
        self.gateway = Some(next);
    }

    fn gateway(&mut self) -> &mut Gateway {
        self.gateway.as_mut().expect("it lives")
    }

    /// Nothing happens any more that would stop it: it goes on to its end.
    fn settle(&mut self) {
        let journal = Op::Journal { part: 255, block: 64 << 10, segment: false };
        let round = [
            Op::Act(ALL),
            journal,
            Op::Fold(ALL),
            Op::Commit,
            Op::Send { replies: true },
            Op::Commit,
            Op::Prompt,
            Op::Answer(0),
        ];
        loop {
            let mut goes_on = false;
            for op in round {
                goes_on |= self.apply(op);
            }
            if goes_on {
                continue;
            }
            let undelivered = self.gateway().undelivered();
            let keeper = self.keeper.as_mut().expect("its first prompt reached an agent");
            assert_eq!(undelivered, 0, "I20: an answer that was given is on its way");
            if keeper.give_up().is_none() {
                assert!(keeper.is_over(), "the agent is stuck at {:?}", self.script.name);
                break;
            }
        }
        assert!(!self.gateway().is_on(), "I9: its process is gone");
    }

    /// Checks what must hold of every log, and gives what came of it.
    fn outcome(&mut self) -> Outcome {
        let gateway = self.gateway();
        gateway.forget_agent();
        gateway.commit(None);
        let durable = gateway.durable();
        assert_eq!(check(&self.dir.path().join(DATABASE)).expect("readable"), []);
        let values: Vec<Value> =
            durable.iter().map(|(.., text)| serde_json::from_str(text).expect("JSON")).collect();
        let ends = values.iter().filter(|value| value["kind"] == "complete").count();
        let begun = values.iter().filter(|value| value["kind"] == "run_started").count();
        assert_eq!(ends, begun, "I1");
        answers_are_settled(&values);
        let asked = |request: &str| {
            let asks = |value: &&Value| {
                value["kind"] == "permission_request" && value["requestId"] == request
            };
            values.iter().filter(asks).count()
        };
        let kept = durable.iter().zip(&values).filter(|(_, value)| !is_of_gateway(value));
        let told = kept.map(|((at, run, text), value)| without_seq(*at, *run, text, value));
        let told = told.collect();
        let keeper = self.keeper.as_ref().expect("it was started");
        let rows = self.commands();
        let replies = rows.values().filter(|(purpose, _)| purpose == "Reply");
        let mut replies: Vec<_> =
            replies.map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
        let mut prompts = Vec::new();
        let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
        for (n, bytes) in &keeper.writes {
            let (purpose, row) = &rows[n];
            assert_eq!(row, bytes, "a command is durable before it is sent");
            let text = String::from_utf8_lossy(bytes).into_owned();
            match purpose.as_str() {
                "Prompt" => prompts.push(text),
                "Reply" => {}
                request => *answered.entry(request).or_default() += 1,
            }
        }
        for (request, answers) in answered {
            assert!(answers <= asked(request), "I20: {request} got {answers} answers");
        }
        replies.sort();
        Outcome { told, prompts, replies }
    }

    /// The rows of commands by number: what for, and the bytes.
    fn commands(&self) -> BTreeMap<u64, (String, Vec<u8>)> {
        let conn = Connection::open(self.dir.path().join(DATABASE)).expect("opens");
        let mut rows = conn.prepare("SELECT n, body FROM command").expect("a table");
        let rows = rows.query_map([], |row| {
            let (n, body): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let purpose = match &body["purpose"] {
                Value::String(word) => word.clone(),
                answer => answer["Answer"]["request"].as_str().expect("an id").into(),
            };
            let write: Write = serde_json::from_value(body["write"].clone()).expect("a write");
            Ok((n as u64, (purpose, write.bytes)))
        });
        rows.expect("rows").collect::<Result<_, _>>().expect("rows")
    }
}

/// I20: a request that was answered has one answer, which reached one end.
fn answers_are_settled(values: &[Value]) {
    let mut answers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for value in values {
        let word = match value["kind"].as_str() {
            Some("permission_request") => "asked",
            Some("permission_resolved") => value["state"].as_str().expect("a state"),
            Some("permission_cancelled") => "cancelled",
            _ => continue,
        };
        let request = value["requestId"].as_str().expect("an id");
        answers.entry(request).or_default().push(word);
    }
    for (request, words) in answers {
        // The agent may ask again under its id.
        for time in words.split(|word| *word == "asked").skip(1) {
            let settled = matches!(
                time,
                [] | ["cancelled"] | ["recorded", "delivered" | "undeliverable" | "cancelled"]
            );
            assert!(settled, "I20: {request} was {words:?}");
        }
    }
}

fn is_of_gateway(value: &Value) -> bool {
    matches!(value["kind"].as_str(), Some("permission_resolved" | "permission_cancelled"))
}

/// The frame's text without what depends on where it stands in the log, and with its run's place
/// for the run's random id.
fn without_seq(at: Position, run: RunId, text: &str, value: &Value) -> String {
    let cut = |text: String, field: &str| {
        let written = format!("\"{field}\":{}", value[field]);
        assert!(text.contains(&written), "{written} stands in {text}");
        text.replacen(&written, "", 1)
    };
    let text = cut(cut(text.to_owned(), "id"), "seq");
    text.replace(&run.to_string(), &format!("run {}", at.ordinal.0))
}

/// Shows the first difference alone.
fn same(got: &[String], expected: &[String], what: &str) {
    let at = got.iter().zip(expected).take_while(|(got, expected)| got == expected).count();
    let lengths = (got.len(), expected.len());
    assert_eq!(got.get(at), expected.get(at), "{what} at {at}, of {lengths:?}");
}

/// Runs a case with and without its crashes.
fn same_with_and_without_crashes(script: &Script, ops: &[Op]) {
    let expected = undisturbed(script, ops).outcome();
    same_as(&expected, script, ops);
}

fn same_as(expected: &Outcome, script: &Script, ops: &[Op]) {
    let mut world = World::new(script);
    for op in ops {
        world.apply(*op);
    }
    world.settle();
    let got = world.outcome();
    same(&got.told, &expected.told, &format!("{}: what is told", script.name));
    same(&got.prompts, &expected.prompts, &format!("{}: what was asked", script.name));
    same(&got.replies, &expected.replies, &format!("{}: what was replied", script.name));
}

fn undisturbed(script: &Script, ops: &[Op]) -> World {
    let mut world = World::new(script);
    for op in ops.iter().filter(|op| !matches!(op, Op::Crash | Op::Checkpoint)) {
        world.apply(*op);
    }
    world.settle();
    world
}

/// Runs a case, kills all of it, and cuts this part (of 65,535) off the journal's files.
fn all_are_killed_and_the_journal_is_cut(script: &Script, ops: &[Op], part: u16) {
    let mut whole = undisturbed(script, ops);
    let by_steps = whole.told_by_steps();
    let expected: Vec<_> = whole.outcome().told.into_iter().filter(|text| is_said(text)).collect();
    let mut world = World::new(script);
    for op in ops {
        world.apply(*op);
    }
    let durable = world.gateway().durable();
    if let Some(keeper) = &mut world.keeper {
        keeper.cut(keeper.journal_bytes() * u64::from(part) / u64::from(u16::MAX));
    }
    world.crash();
    let Some(keeper) = &world.keeper else { return };
    let gateway = world.gateway.as_mut().expect("it lives");
    let offset = gateway.stored_offset();
    while gateway.fold(1, keeper) > 0 {}
    let folded = gateway.folded();
    gateway.lose();
    gateway.commit(None);
    let end = gateway.durable();
    assert_eq!(end[..durable.len()], durable, "I8: what was visible stays as it was");
    let steps = keeper.steps_before(folded.max(offset));
    let told: Vec<_> = world.outcome().told.into_iter().filter(|text| is_said(text)).collect();
    let (least, most) = by_steps.range(..=steps).next_back().map_or((0, 0), |(_, counts)| *counts);
    assert!((least..=most).contains(&told.len()), "{} of {least} to {most}", told.len());
    same(&told, &expected[..told.len()], &format!("{}: what is told", script.name));
}

/// Whether an agent said it, and not the gateway that ended its run.
fn is_said(text: &str) -> bool {
    let synthetic = text.contains(r#""synthetic":true"#);
    !synthetic
        && !text.contains(r#""kind":"complete""#)
        && !text.contains(r#""kind":"run_started""#)
}

impl World {
    /// How many of the agent's events were told, by the steps that it had taken: when it had, and
    /// with what its writes brought forth before the next step.
    fn told_by_steps(&self) -> BTreeMap<usize, (usize, usize)> {
        let keeper = self.keeper.as_ref().expect("it was started");
        let mut by_steps = BTreeMap::new();
        for (offset, count) in &self.gateway.as_ref().expect("it lives").told {
            let (_, most) =
                by_steps.entry(keeper.steps_before(*offset)).or_insert((*count, *count));
            *most = *count;
        }
        by_steps
    }
}

/// Each case is two lives over real files: few, but `PROPTEST_CASES` of them if that is set.
fn config() -> ProptestConfig {
    let file = FileFailurePersistence::Direct("proptest-regressions/it/folds/crash.txt");
    let default = ProptestConfig {
        failure_persistence: Some(Box::new(file)),
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 24 };
    ProptestConfig { cases, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_gateway_of_claude_is_killed_anywhere(
        script in script::claude(),
        ops in proptest::collection::vec(script::op(), 0..160),
    ) {
        same_with_and_without_crashes(&script, &ops);
    }

    #[test]
    fn a_gateway_of_a_jsonl_program_is_killed_anywhere(
        script in script::jsonl(),
        ops in proptest::collection::vec(script::op(), 0..100),
    ) {
        same_with_and_without_crashes(&script, &ops);
    }

    #[test]
    fn all_of_claude_is_killed_and_its_journal_is_cut(
        script in script::claude(),
        ops in proptest::collection::vec(script::op(), 0..160),
        part in any::<u16>(),
    ) {
        all_are_killed_and_the_journal_is_cut(&script, &ops, part);
    }

    #[test]
    fn all_of_a_jsonl_program_is_killed_and_its_journal_is_cut(
        script in script::jsonl(),
        ops in proptest::collection::vec(script::op(), 0..100),
        part in any::<u16>(),
    ) {
        all_are_killed_and_the_journal_is_cut(&script, &ops, part);
    }
}

/// One step after the other, each told, committed and sent before the next.
fn step_by_step(script: &Script) -> Vec<Op> {
    let journal = Op::Journal { part: 255, block: 64 << 10, segment: false };
    let mut ops = Vec::new();
    for step in 0..=script.steps.len() {
        let replies = step % 2 == 0;
        ops.extend([Op::Prompt, Op::Act(1), journal, Op::Fold(ALL), Op::Commit, Op::Answer(0)]);
        ops.extend([Op::Commit, Op::Send { replies }, Op::Commit, Op::Send { replies }]);
    }
    ops
}

/// Ops with a crash before `ops[at]`, and without the last `lag` commits before it.
fn with_crash(mut ops: Vec<Op>, at: usize, lag: usize) -> Vec<Op> {
    ops.insert(at, Op::Crash);
    for _ in 0..lag {
        let before = &ops[..at.min(ops.len())];
        let Some(commit) = before.iter().rposition(|op| matches!(op, Op::Commit)) else { break };
        // Nothing takes its place, so that what follows stays where it is.
        ops[commit] = Op::Act(0);
    }
    ops
}

#[test]
fn a_gateway_is_killed_at_every_step_of_small_recordings() {
    for script in script::transcripts(16, 30_000) {
        let expected = undisturbed(&script, &[]).outcome();
        let ops = step_by_step(&script);
        for at in (5..ops.len()).step_by(10) {
            for lag in [0, 6] {
                same_as(&expected, &script, &with_crash(ops.clone(), at, lag));
            }
        }
    }
}

#[test]
fn a_gateway_is_killed_between_any_two_things_that_it_does() {
    for script in script::dense() {
        let expected = undisturbed(&script, &[]).outcome();
        let plain = step_by_step(&script);
        // Checkpoints in the midst of a run are of long ones: here after every step.
        let mut saved = Vec::new();
        for op in &plain {
            saved.push(*op);
            if matches!(op, Op::Fold(_)) {
                saved.push(Op::Checkpoint);
            }
        }
        for (ops, stride) in [(plain, 1), (saved, 2)] {
            for at in (1..=ops.len()).step_by(stride) {
                same_as(&expected, &script, &with_crash(ops.clone(), at, at % 3));
            }
        }
    }
}
