//! The demo agent's play: one small task from plan to end, with every kind of event that a client
//! should know how to show.
//!
//! The seed picks the names and the pace; the person's answers pick the ending. Must not know
//! pipes.

use serde_json::{Value, json};

use super::stage::{Answer, Prompt, Stage, Stop};
use super::workdir::Workdir;

/// The steps of the plan.
const PLAN: [&str; 4] =
    ["Read the greeting", "Choose its tone", "Change it", "Check with the tests and a second look"];

/// What the seed picks.
#[derive(Debug)]
struct Cast {
    /// The file that is read and changed.
    file: &'static str,
    /// Whom it greets.
    name: &'static str,
    /// How many tests the project has.
    tests: u64,
    /// How long things take.
    rng: Rng,
}

impl Cast {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        Self {
            file: rng.pick(&["greeting.rs", "hello.rs", "welcome.rs", "salute.rs"]),
            name: rng.pick(&["world", "reader", "traveller", "neighbour"]),
            tests: 12 + rng.below(30),
            rng,
        }
    }

    fn source(&self, greeting: &str) -> String {
        format!(
            "/// Says hello.\npub fn greet() -> String {{\n    String::from(\"{greeting}, {}\")\n}}\n",
            self.name
        )
    }
}

/// Plays the whole turn.
pub(super) fn play(stage: &mut Stage, prompt: &Prompt, seed: u64) -> Result<(), Stop> {
    let mut cast = Cast::new(seed);
    let dir = open(stage, prompt, &mut cast)?;
    read_file(stage, &mut cast, &dir)?;
    let greeting = ask_for_tone(stage)?;
    let changed = change_file(stage, &mut cast, &dir, &greeting)?;
    run_tests(stage, &mut cast)?;
    delegate(stage, &mut cast)?;
    close(stage, &mut cast, changed)
}

/// Plays as far as the middle of the first tool call, which stays open.
pub(super) fn play_until_crash(stage: &mut Stage, prompt: &Prompt, seed: u64) -> Result<(), Stop> {
    let mut cast = Cast::new(seed);
    // Dropping the directory removes it, before the process ends.
    let _dir = open(stage, prompt, &mut cast)?;
    stage.say(read_call(&cast))?;
    stage.pause(400)
}

/// Says how it is set up, thinks, and makes a plan.
fn open(stage: &mut Stage, prompt: &Prompt, cast: &mut Cast) -> Result<Workdir, Stop> {
    let dir = Workdir::new()
        .map_err(|error| Stop::Failed(format!("cannot make a temporary directory: {error}")))?;
    let (shown, resumed) = (dir.path().display(), prompt.native_id.is_some());
    stage.say(status("model", json!({"text": "demo-1", "model": "demo-1"})))?;
    stage.say(status("mode", json!({"text": "asks before it edits", "mode": "default"})))?;
    let text = format!("Working in {shown}, which will be removed. None of your files is touched.");
    stage.say(status("info", json!({"text": text, "cwd": dir.path()})))?;
    stage.say(status("working", json!({"text": "Thinking", "canInterrupt": true})))?;
    let asked = excerpt(&prompt.content);
    stream(
        stage,
        cast,
        "thinking",
        "think-1",
        &format!(
            "The request is \"{asked}\". This is the demo, so whatever it says I will {} \
             greeting in a small project of my own.",
            if resumed { "once more improve the" } else { "improve the" }
        ),
    )?;
    plan(stage, 0)?;
    stream(stage, cast, "text", "text-1", &opening(&asked))?;
    Ok(dir)
}

fn opening(asked: &str) -> String {
    format!(
        "You said: *{asked}*\n\n### What I will do\n\n1. read a file,\n2. ask **you** for its \
         tone,\n3. change it, if you allow that,\n4. run the tests.\n\nWhile I work you can close \
         this page, come back, and find everything here: \u{1F9ED} `seq` by `seq`.\n"
    )
}

fn read_call(cast: &Cast) -> Value {
    json!({
        "kind": "tool_use", "toolId": "tool-1", "toolName": "Read",
        "toolInput": {"path": cast.file}, "category": "read", "status": "running",
        "title": format!("Read {}", cast.file),
    })
}

/// The first tool call: reads the file that it just made.
fn read_file(stage: &mut Stage, cast: &mut Cast, dir: &Workdir) -> Result<(), Stop> {
    let failed = |error| Stop::Failed(format!("cannot use its temporary directory: {error}"));
    dir.write(cast.file, &cast.source("Hello")).map_err(failed)?;
    stage.say(read_call(cast))?;
    let ms = stage_work(stage, cast, 300)?;
    let content = dir.read(cast.file).map_err(failed)?;
    stage.say(result("tool-1", &content, false, json!({"durationMs": ms})))?;
    plan(stage, 1)
}

/// The question. Without an answer the tone stays plain.
fn ask_for_tone(stage: &mut Stage) -> Result<String, Stop> {
    let answer = stage.ask(
        "question-1",
        json!({
            "kind": "permission_request", "requestId": "question-1", "interaction": "question",
            "toolName": "AskUser", "input": {}, "title": "Which tone should the greeting have?",
            "choices": [
                {"id": "answer", "kind": "allow_once", "label": "Answer"},
                {"id": "skip", "kind": "reject_once", "label": "Skip"},
            ],
            "editable": true,
            "questions": [{
                "id": "tone", "text": "Which tone should the greeting have?",
                "options": ["Warm", "Formal", "Short"], "multi": false,
            }],
        }),
    )?;
    plan(stage, 2)?;
    Ok(greeting_for(&answer))
}

fn greeting_for(answer: &Answer) -> String {
    let tone = match &answer.updated_input["answers"]["tone"] {
        Value::String(tone) => tone.as_str(),
        Value::Array(tones) => tones.first().and_then(Value::as_str).unwrap_or_default(),
        _ => "",
    };
    match tone.to_lowercase().as_str() {
        "formal" => "Good day",
        "short" => "Hi",
        _ if answer.allow => "So good to see you",
        _ => "Hello again",
    }
    .to_owned()
}

/// The second tool call: an edit with a diff, which somebody must allow. Gives whether it was.
fn change_file(
    stage: &mut Stage,
    cast: &mut Cast,
    dir: &Workdir,
    greeting: &str,
) -> Result<bool, Stop> {
    let diff = diff(cast, greeting);
    let input = json!({"path": cast.file, "newText": cast.source(greeting)});
    let title = format!("Edit {}", cast.file);
    let call = |input: &Value, status| {
        json!({
            "kind": "tool_use", "toolId": "tool-2", "toolName": "Edit", "toolInput": input,
            "category": "edit", "status": status, "title": title, "diff": diff,
        })
    };
    stage.say(call(&input, "pending"))?;
    let answer = stage.ask(
        "permission-1",
        json!({
            "kind": "permission_request", "requestId": "permission-1", "interaction": "tool",
            "toolId": "tool-2", "toolName": "Edit", "input": input, "cwd": dir.path(),
            "title": title, "description": "Change the greeting's tone.", "diff": diff,
            "choices": [
                {"id": "allow", "kind": "allow_once", "label": "Allow once"},
                {"id": "always", "kind": "allow_always", "label": "Always allow edits here",
                 "rule": format!("Edit({})", cast.file)},
                {"id": "deny", "kind": "reject_once", "label": "Deny"},
            ],
            "editable": true,
        }),
    )?;
    if !answer.allow {
        let why = answer.message.map_or_else(String::new, |message| format!(": {message}"));
        stage.say(result("tool-2", &format!("Denied{why}"), true, json!({})))?;
        plan(stage, 3)?;
        return Ok(false);
    }
    let text = answer.updated_input["newText"].as_str().or_else(|| input["newText"].as_str());
    let text = text.unwrap_or_default().to_owned();
    stage.say(call(&json!({"path": cast.file, "newText": text}), "running"))?;
    let ms = stage_work(stage, cast, 250)?;
    let (said, is_error) = match dir.write(cast.file, &text) {
        Ok(()) => (format!("Changed {}.", cast.file), false),
        Err(error) => (format!("Cannot write {}: {error}", cast.file), true),
    };
    stage.say(result("tool-2", &said, is_error, json!({"durationMs": ms})))?;
    plan(stage, 3)?;
    Ok(!is_error)
}

/// The change as a unified diff.
fn diff(cast: &Cast, greeting: &str) -> String {
    let (file, name) = (cast.file, cast.name);
    format!(
        "--- a/{file}\n+++ b/{file}\n@@ -1,4 +1,4 @@\n /// Says hello.\n pub fn greet() -> String \
         {{\n-    String::from(\"Hello, {name}\")\n+    String::from(\"{greeting}, {name}\")\n }}\n"
    )
}

/// The third tool call: a command whose output has colours. Nothing is really run.
fn run_tests(stage: &mut Stage, cast: &mut Cast) -> Result<(), Stop> {
    stage.say(json!({
        "kind": "tool_use", "toolId": "tool-3", "toolName": "Shell",
        "toolInput": {"command": "cargo test --color always"}, "category": "execute",
        "status": "running", "title": "cargo test --color always",
    }))?;
    let ms = stage_work(stage, cast, 900)?;
    let tests = cast.tests;
    let output = format!(
        "\u{1b}[1m\u{1b}[32m   Compiling\u{1b}[0m greeting v0.1.0\n\
         \u{1b}[1m\u{1b}[32m     Running\u{1b}[0m {tests} tests\n\
         test greets_by_name ... \u{1b}[32mok\u{1b}[0m\n\
         test never_shouts ... \u{1b}[33mignored\u{1b}[0m\n\n\
         test result: \u{1b}[32mok\u{1b}[0m. {} passed; 0 failed; 1 ignored\n",
        tests - 1
    );
    stage.say(result("tool-3", &output, false, json!({"exitCode": 0, "durationMs": ms})))
}

/// A subagent takes a second look: what it says carries the id of the call that started it.
fn delegate(stage: &mut Stage, cast: &mut Cast) -> Result<(), Stop> {
    let parent = "tool-4";
    stage.say(json!({
        "kind": "tool_use", "toolId": parent, "toolName": "Subagent",
        "toolInput": {"task": "Review the greeting"}, "category": "think", "status": "running",
        "title": "Review the greeting",
    }))?;
    stage_work(stage, cast, 200)?;
    stage.say(json!({
        "kind": "text", "content": "I look for other greetings.", "parentToolId": parent,
    }))?;
    stage.say(json!({
        "kind": "tool_use", "toolId": "tool-5", "toolName": "Search",
        "toolInput": {"pattern": "Hello"}, "category": "search", "status": "running",
        "title": "Search for Hello", "parentToolId": parent,
    }))?;
    let ms = stage_work(stage, cast, 300)?;
    let mut found = result("tool-5", "No matches.", false, json!({"durationMs": ms}));
    found["parentToolId"] = json!(parent);
    stage.say(found)?;
    stage.say(result(
        parent,
        "The greeting stands alone; nothing else to change.",
        false,
        json!({}),
    ))
}

/// Says what it cost, and the end.
fn close(stage: &mut Stage, cast: &mut Cast, changed: bool) -> Result<(), Stop> {
    plan(stage, PLAN.len())?;
    let (input, output) = (2400 + cast.rng.below(900), 300 + cast.rng.below(200));
    // Invented prices; the division makes fractions of a dollar of millionths.
    let cost = json!((input * 3 + output * 15) / 10);
    let cost = cost.as_f64().unwrap_or_default() / 100_000.0;
    stage.say(status(
        "usage",
        json!({
            "text": format!("{} tokens", input + output), "costUsd": cost,
            "tokenBudget": {
                "used": input + output, "total": 200_000, "inputTokens": input,
                "outputTokens": output, "cacheReadTokens": input / 2,
            },
        }),
    ))?;
    let (did, tests) = (if changed { "changed" } else { "left as it was" }, cast.tests);
    let closing = format!(
        "### Done\n\nThe greeting is **{did}**.\n\n| check | result |\n|---|---|\n| tests | {tests} \
         run |\n| review | nothing to add |\n\n```rust\nassert!(greet().ends_with(\"{}\"));\n```\n",
        cast.name
    );
    stream(stage, cast, "text", "text-2", &closing)?;
    stage.last_words(&json!({
        "kind": "complete", "exitCode": 0, "success": true,
        "usage": {
            "inputTokens": input, "outputTokens": output, "cacheReadTokens": input / 2,
            "costUsd": cost,
        },
    }))?;
    Ok(())
}

/// Streams a block piece by piece, then says it whole.
fn stream(
    stage: &mut Stage,
    cast: &mut Cast,
    block: &str,
    block_id: &str,
    content: &str,
) -> Result<(), Stop> {
    for piece in pieces(content, &mut cast.rng) {
        stage.say(json!({
            "kind": "stream_delta", "content": piece, "blockId": block_id, "block": block,
        }))?;
        stage.pause(45)?;
    }
    stage.say(json!({"kind": "stream_end", "blockId": block_id, "block": block}))?;
    stage.say(json!({"kind": block, "content": content, "blockId": block_id}))
}

/// Cuts a text at spaces into pieces of one to three words, as models do.
fn pieces<'a>(content: &'a str, rng: &mut Rng) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let words = 1 + rng.below(3);
        let mut end = rest.len();
        let mut spaces = 0;
        for (at, _) in rest.match_indices(' ') {
            spaces += 1;
            if spaces == words {
                end = at + 1;
                break;
            }
        }
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// The plan with its first `done` steps behind it.
fn plan(stage: &mut Stage, done: usize) -> Result<(), Stop> {
    let items: Vec<Value> = PLAN
        .iter()
        .enumerate()
        .map(|(n, content)| {
            let status = match n {
                n if n < done => "completed",
                n if n == done => "in_progress",
                _ => "pending",
            };
            json!({"content": content, "status": status})
        })
        .collect();
    let text = format!("{} of {} steps done", done.min(PLAN.len()), PLAN.len());
    stage.say(status("plan", json!({"text": text, "plan": items})))
}

/// A status event with these further fields.
fn status(status: &str, fields: Value) -> Value {
    with(json!({"kind": "status", "status": status}), fields)
}

/// A tool's outcome with these further fields.
fn result(tool_id: &str, content: &str, is_error: bool, fields: Value) -> Value {
    let base = json!({
        "kind": "tool_result", "toolId": tool_id,
        "toolResult": {"content": content, "isError": is_error},
    });
    with(base, fields)
}

fn with(mut base: Value, fields: Value) -> Value {
    if let (Value::Object(base), Value::Object(fields)) = (&mut base, fields) {
        base.extend(fields);
    }
    base
}

/// Takes about `ms` milliseconds, and says how many it was meant to take.
fn stage_work(stage: &mut Stage, cast: &mut Cast, ms: u32) -> Result<u32, Stop> {
    let extra = u32::try_from(cast.rng.below(u64::from(ms / 2) + 1)).unwrap_or_default();
    stage.pause(ms + extra)?;
    Ok(ms + extra)
}

/// The beginning of what the person said, on one line.
fn excerpt(content: &str) -> String {
    let words = content.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(120) {
        Some((end, _)) => format!("{}\u{2026}", &words[..end]),
        None if words.is_empty() => "nothing".to_owned(),
        None => words,
    }
}

/// A small generator of numbers that look random: the same for the same seed, everywhere.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // SplitMix64, a published constant step and mix.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        let len = u64::try_from(from.len()).unwrap_or(u64::MAX);
        usize::try_from(self.below(len)).ok().and_then(|n| from.get(n)).copied().unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole_text_again() {
        for text in ["", "one", "one two", " lead", "trail ", "a  b\nc \u{1F9ED} d"] {
            for seed in 0..20 {
                assert_eq!(pieces(text, &mut Rng(seed)).concat(), text);
            }
        }
    }

    #[test]
    fn the_seed_picks_the_cast() {
        let cast = |seed| {
            let cast = Cast::new(seed);
            (cast.file, cast.name, cast.tests)
        };
        assert_eq!(cast(7), cast(7));
        assert!((0..20).any(|seed| cast(seed) != cast(7)));
    }

    #[test]
    fn the_diff_is_of_the_file_that_is_written() {
        let cast = Cast::new(1);
        let diff = diff(&cast, "Hi");
        let side = |sign: &str| -> String {
            diff.lines()
                .skip(3)
                .filter_map(|line| line.strip_prefix(' ').or_else(|| line.strip_prefix(sign)))
                .map(|line| format!("{line}\n"))
                .collect()
        };
        assert_eq!(side("-"), cast.source("Hello"));
        assert_eq!(side("+"), cast.source("Hi"));
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt(" a\n b "), "a b");
        assert_eq!(excerpt("  "), "nothing");
        assert_eq!(excerpt(&"\u{1F9ED}".repeat(500)).chars().count(), 121);
    }
}
