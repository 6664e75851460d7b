//! A scripted stand-in for Claude Code: a real process that speaks `stream-json` both ways, serves
//! many turns, and does what the prompt's own lines say.
//!
//! `fake_claude --witness FILE [what the gateway adds]`. Each line of a prompt is a step:
//!
//! | step | what it does |
//! |---|---|
//! | `say TEXT` | a streamed block of text (so does any line that is no step) |
//! | `flood N BYTES` | N blocks `e0 xxx`, `e1 xxx`, ... |
//! | `ask` | asks for permission to run a command, waits, and says what was decided |
//! | `question` | asks the person a question, waits, and says what was answered |
//! | `tool FILE` | starts a command in a session of its own, which stays; its pid goes into FILE |
//! | `background FILE` | starts a task; once FILE is there and no turn is on, a turn of its own begins and does what is written in FILE, a step a line |
//! | `wait FILE` | waits until FILE is there |
//! | `hold` | waits for an interrupt |
//! | `deaf` | from here on this process takes no interrupt |
//! | `fail` | the turn ends as failed |
//! | `exit CODE` | the process ends |
//!
//! Everything that it is given is written to FILE, one JSON object a line with its `pid`, so that
//! a test can count what reached it, whoever was killed meanwhile. At the end of its stdin it
//! finishes the turn that is on, and ends.
//!
//! Must not know the gateway: only what Claude Code speaks.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::exit, reason = "ending at once, wherever it is, is one of its steps")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "no model runs this process; its threads are two"
)]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::process::parent_id;
use std::process::{Command, Stdio, exit};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// Between two looks for a file that somebody else makes.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const MODEL: &str = "fake-claude-1";

/// What ends a turn before its last step.
enum Stop {
    /// We were interrupted.
    Interrupted,
    /// The script says that it failed.
    Failed,
    /// Nobody reads or writes any more.
    Gone,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1).cloned()
    };
    let Some(witness) = value("--witness") else {
        return Err(io::Error::other("usage: fake_claude --witness FILE [--resume ID] ..."));
    };
    let witness = OpenOptions::new().create(true).append(true).open(witness)?;
    let resumed = value("--resume");
    let (sender, heard) = channel();
    let mut agent = Agent {
        witness,
        session: resumed.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        heard,
        prompts: VecDeque::new(),
        closed: false,
        deaf: false,
        turns: 0,
        messages: 0,
        tasks: VecDeque::new(),
    };
    agent.note(&json!({"start": {"parent": parent_id(), "resume": resumed, "argv": args}}))?;
    let record = agent.witness.try_clone()?;
    // One more sender than there are threads: a wait with a deadline lasts that long, also when
    // nothing can come any more.
    let listener = sender.clone();
    thread::spawn(move || listen(&listener, record));
    // Whatever went wrong, there is nobody to tell.
    drop(agent.live());
    drop(sender);
    agent.note(&json!({"end": true}))
}

/// Takes down and passes on what comes on stdin.
fn listen(sender: &Sender<Option<Value>>, mut witness: File) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let value: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        let noted = json!({"pid": std::process::id(), "given": value});
        // One write for each line: other processes append to the same file.
        drop(witness.write_all(format!("{noted}\n").as_bytes()));
        if sender.send(Some(value)).is_err() {
            return;
        }
    }
    drop(sender.send(None));
}

/// The text of a prompt, before which there may be pictures.
fn spoken(content: &Value) -> Option<&str> {
    content.as_array()?.iter().find_map(|block| block["text"].as_str())
}

struct Agent {
    witness: File,
    /// The id of the conversation.
    session: String,
    /// Lines of stdin; `None` is its end.
    heard: Receiver<Option<Value>>,
    prompts: VecDeque<String>,
    closed: bool,
    deaf: bool,
    turns: u64,
    messages: u64,
    /// Background tasks: their ids, and the files for whose sake they wait.
    tasks: VecDeque<(String, String)>,
}

impl Agent {
    fn note(&mut self, what: &Value) -> io::Result<()> {
        let mut what = what.clone();
        what["pid"] = json!(std::process::id());
        self.witness.write_all(format!("{what}\n").as_bytes())
    }

    fn say(&mut self, mut line: Value) -> io::Result<()> {
        line["session_id"] = json!(self.session);
        let mut out = io::stdout().lock();
        out.write_all(format!("{line}\n").as_bytes())?;
        out.flush()
    }

    /// Turns, until stdin is closed and no prompt is left.
    fn live(&mut self) -> Result<(), Stop> {
        loop {
            if let Some(prompt) = self.prompts.pop_front() {
                self.turn(&prompt, None)?;
            } else if self.closed {
                return Ok(());
            } else if let Some(script) = self.reported()? {
                self.turn(&script, Some("task-notification"))?;
            } else {
                let span = if self.tasks.is_empty() { None } else { Some(LOOK_AGAIN) };
                match self.hear(span) {
                    // What is asked between two turns stops nothing.
                    Ok(_) | Err(Stop::Interrupted) => {}
                    Err(stop) => return Err(stop),
                }
            }
        }
    }

    /// Takes one line in, waiting for it as long as it takes, or for `span`. What it answered to
    /// a request of ours is given back.
    fn hear(&mut self, span: Option<Duration>) -> Result<Option<Value>, Stop> {
        if self.closed && span.is_none() {
            return Err(Stop::Gone);
        }
        let line = match span {
            None => self.heard.recv().unwrap_or_default(),
            Some(span) => match self.heard.recv_timeout(span) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => None,
            },
        };
        let Some(line) = line else {
            self.closed = true;
            return Ok(None);
        };
        match line["type"].as_str().unwrap_or_default() {
            "user" => {
                let content = &line["message"]["content"];
                let text = spoken(content).or_else(|| content.as_str());
                self.prompts.push_back(text.unwrap_or_default().to_owned());
            }
            "control_request" => self.asked(&line)?,
            "control_response" => return Ok(Some(line["response"].clone())),
            // Claude Code exits on what it does not understand.
            _ => exit(1),
        }
        Ok(None)
    }

    fn asked(&mut self, line: &Value) -> Result<(), Stop> {
        let request_id = &line["request_id"];
        let interrupt = line["request"]["subtype"] == "interrupt";
        if interrupt && self.deaf {
            return Ok(());
        }
        let response = if interrupt { json!({"still_queued": []}) } else { json!({}) };
        self.say(json!({"type": "control_response", "response": {
            "subtype": "success", "request_id": request_id, "response": response,
        }}))?;
        if interrupt { Err(Stop::Interrupted) } else { Ok(()) }
    }

    /// Plays a script as one turn.
    fn turn(&mut self, script: &str, origin: Option<&str>) -> Result<(), Stop> {
        self.turns += 1;
        self.note(&json!({"turn": self.turns, "origin": origin, "script": script}))?;
        self.say(json!({
            "type": "system", "subtype": "init", "cwd": std::env::current_dir()?, "model": MODEL,
            "permissionMode": "default", "tools": ["Bash"], "claude_code_version": "2.1.330",
        }))?;
        self.say(json!({"type": "system", "subtype": "status", "status": "requesting"}))?;
        let stop = script.lines().try_for_each(|step| self.step(step)).err();
        let (subtype, errors) = match &stop {
            None => ("success", json!(null)),
            Some(Stop::Gone) => return Err(Stop::Gone),
            Some(Stop::Failed) => ("error_during_execution", json!(["The script failed."])),
            Some(Stop::Interrupted) => {
                let text = "[Request interrupted by user]";
                self.say(json!({
                    "type": "user", "parent_tool_use_id": null,
                    "message": {"role": "user", "content": [{"type": "text", "text": text}]},
                }))?;
                ("error_during_execution", json!([]))
            }
        };
        let mut result = json!({
            "type": "result", "subtype": subtype, "is_error": stop.is_some(), "errors": errors,
            "num_turns": self.turns, "total_cost_usd": 0.001 * self.turns as f64,
            "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 0},
            "modelUsage": {MODEL: {"contextWindow": 200_000}},
        });
        if stop.is_none() {
            result["result"] = json!("Done.");
        }
        if let Some(origin) = origin {
            result["origin"] = json!({"kind": origin});
        }
        Ok(self.say(result)?)
    }

    fn step(&mut self, step: &str) -> Result<(), Stop> {
        // An interrupt counts also where nothing waits.
        self.hear(Some(Duration::ZERO))?;
        let (word, rest) = step.split_once(' ').unwrap_or((step, ""));
        match word {
            "flood" => self.flood(rest),
            "ask" => self.ask(),
            "question" => self.question(),
            "tool" => self.tool(rest),
            "background" => self.background(rest),
            "wait" => self.wait(rest),
            "hold" => loop {
                self.hear(None)?;
            },
            "deaf" => {
                self.deaf = true;
                Ok(())
            }
            "fail" => Err(Stop::Failed),
            "exit" => exit(rest.parse().unwrap_or(1)),
            "say" => self.text(rest),
            _ => self.text(step),
        }
    }

    /// A message with one block of text, streamed in two pieces.
    fn text(&mut self, text: &str) -> Result<(), Stop> {
        let id = self.message_id();
        let usage = json!({"input_tokens": 10, "output_tokens": 5});
        let event = |event: Value| {
            json!({
                "type": "stream_event", "event": event, "parent_tool_use_id": null,
            })
        };
        self.say(event(json!({"type": "message_start", "message": {
            "id": id, "role": "assistant", "model": MODEL, "content": [], "usage": usage,
        }})))?;
        self.say(event(json!({
            "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""},
        })))?;
        let middle = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
        for piece in [&text[..middle], &text[middle..]] {
            self.say(event(json!({
                "type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": piece},
            })))?;
        }
        self.message(&id, &json!({"type": "text", "text": text}))?;
        self.say(event(json!({"type": "content_block_stop", "index": 0})))?;
        self.say(event(json!({"type": "message_stop"})))?;
        Ok(())
    }

    fn message(&mut self, id: &str, block: &Value) -> io::Result<()> {
        self.say(json!({
            "type": "assistant", "parent_tool_use_id": null,
            "message": {"id": id, "role": "assistant", "model": MODEL, "content": [block]},
        }))
    }

    fn message_id(&mut self) -> String {
        self.messages += 1;
        format!("msg_{}_{}", std::process::id(), self.messages)
    }

    fn flood(&mut self, rest: &str) -> Result<(), Stop> {
        let mut numbers = rest.split(' ').filter_map(|number| number.parse::<usize>().ok());
        let (count, bytes) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(0));
        let filler = "x".repeat(bytes);
        for n in 0..count {
            if n % 64 == 0 {
                self.hear(Some(Duration::ZERO))?;
            }
            let id = self.message_id();
            self.message(&id, &json!({"type": "text", "text": format!("e{n} {filler}")}))?;
        }
        Ok(())
    }

    /// Calls a tool, asks, and gives what was decided; `None` if nobody can answer any more.
    fn permission(&mut self, tool: &str, input: &Value) -> Result<(String, Option<Value>), Stop> {
        let id = self.message_id();
        let (tool_id, request_id) = (format!("toolu_{id}"), format!("req_{id}"));
        let call = json!({"type": "tool_use", "id": tool_id, "name": tool, "input": input});
        self.message(&id, &call)?;
        self.say(json!({"type": "control_request", "request_id": request_id, "request": {
            "subtype": "can_use_tool", "tool_name": tool, "input": input, "tool_use_id": tool_id,
            "permission_suggestions": [],
        }}))?;
        while !self.closed {
            if let Some(answer) = self.hear(None)?
                && answer["request_id"] == request_id
            {
                return Ok((tool_id, Some(answer["response"].clone())));
            }
        }
        Ok((tool_id, None))
    }

    fn outcome(&mut self, tool_id: &str, content: &str, is_error: bool) -> Result<(), Stop> {
        Ok(self.say(json!({
            "type": "user", "parent_tool_use_id": null, "message": {"role": "user", "content": [{
                "type": "tool_result", "tool_use_id": tool_id, "content": content,
                "is_error": is_error,
            }]},
        }))?)
    }

    fn ask(&mut self) -> Result<(), Stop> {
        let (tool_id, answer) = self.permission("Bash", &json!({"command": "make it so"}))?;
        let allowed = answer.is_some_and(|answer| answer["behavior"] == "allow");
        let said = if allowed { "It is so." } else { "It was denied." };
        self.outcome(&tool_id, said, !allowed)?;
        self.text(if allowed { "allowed" } else { "denied" })
    }

    fn question(&mut self) -> Result<(), Stop> {
        let input = json!({"questions": [{
            "question": "Which colour?", "header": "Colour", "multiSelect": false,
            "options": [{"label": "Red", "description": ""}, {"label": "Blue", "description": ""}],
        }]});
        let (tool_id, answer) = self.permission("AskUserQuestion", &input)?;
        let answers = answer.map(|answer| answer["updatedInput"]["answers"].clone());
        let said = answers.unwrap_or_default().to_string();
        self.outcome(&tool_id, &said, false)?;
        self.text(&format!("answered {said}"))
    }

    /// As Claude Code's own tool shells, it is out of reach for a signal to this group.
    fn tool(&mut self, file: &str) -> Result<(), Stop> {
        let id = self.message_id();
        let call = json!({
            "type": "tool_use", "id": format!("toolu_{id}"), "name": "Bash",
            "input": {"command": "sleep 3600"},
        });
        self.message(&id, &call)?;
        let child = Command::new("setsid")
            .args(["sleep", "3600"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        put(file, &child.id().to_string())?;
        Ok(())
    }

    fn background(&mut self, file: &str) -> Result<(), Stop> {
        let id = self.message_id();
        let (tool_id, task) = (format!("toolu_{id}"), format!("task_{id}"));
        self.message(
            &id,
            &json!({
                "type": "tool_use", "id": tool_id, "name": "Agent",
                "input": {"description": "Sub task", "prompt": "Do it"},
            }),
        )?;
        self.say(json!({
            "type": "system", "subtype": "task_started", "task_id": task, "tool_use_id": tool_id,
            "description": "Sub task",
        }))?;
        self.tasks.push_back((task, file.to_owned()));
        self.outcome(&tool_id, "Started.", false)
    }

    /// The script of a background task that has finished: it reports, and a turn follows.
    fn reported(&mut self) -> Result<Option<String>, Stop> {
        let ready = |(_, file): &(String, String)| std::path::Path::new(file).exists();
        let Some(at) = self.tasks.iter().position(ready) else { return Ok(None) };
        let Some((task, file)) = self.tasks.remove(at) else { return Ok(None) };
        let script = std::fs::read_to_string(file)?;
        self.say(json!({
            "type": "system", "subtype": "task_notification", "task_id": task,
            "status": "completed", "summary": "It is done.",
        }))?;
        Ok(Some(script))
    }

    fn wait(&mut self, file: &str) -> Result<(), Stop> {
        while !std::path::Path::new(file).exists() {
            self.hear(Some(LOOK_AGAIN))?;
        }
        Ok(())
    }
}

/// Makes a file that is whole as soon as it is there.
fn put(file: &str, content: &str) -> io::Result<()> {
    let fresh = format!("{file}.new");
    std::fs::write(&fresh, content)?;
    std::fs::rename(fresh, file)
}
