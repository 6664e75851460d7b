//! `command` providers: any program. The prompt goes to its stdin, which is closed; its lines are
//! the answer.
//!
//! Each stdout line is a `text` event, each stderr line an `error` event. Exit code 0 is the
//! turn's end; any other end is no terminal of ours, so that the run ends as `agent_exited`.
//! Must not know the other dialects.

use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::{
    Command, Ending, Exit, Launch, Origin, Output, Prompt, Provider, Record, RecordBody, Write,
    line_too_long,
};
use crate::run::event::{ErrorSource, Event, Reason, Stream};

/// The variable that says where a prompt's files lie.
const ATTACHMENTS: &str = "REATTACH_ATTACHMENTS";

/// A program's turn, so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// The turn has begun: set by the first record.
    started: bool,
}

impl Lines {
    /// What a record means.
    pub fn fold(&mut self, record: &Record) -> Vec<Output> {
        let mut outputs = Vec::with_capacity(1);
        if !self.started {
            self.started = true;
            outputs.push(Output::TurnStarted(Origin::User));
        }
        match &record.body {
            RecordBody::Out(line) => outputs.push(Output::Event(Event::Text {
                content: text(line),
                role: None,
                block_id: None,
                parent_tool_id: None,
            })),
            RecordBody::Err(line) => outputs.push(Output::Event(Event::Error {
                content: text(line),
                code: None,
                source: ErrorSource::Stderr,
                parent_tool_id: None,
            })),
            RecordBody::OutCapped { bytes, head } => {
                outputs.push(Output::Event(Event::Raw {
                    stream: Stream::Stdout,
                    content: text(head),
                }));
                outputs.push(line_too_long(*bytes, head));
            }
            RecordBody::Exit(Exit::Code(0)) => outputs.push(Output::TurnEnded(Ending {
                reason: Reason::Finished,
                exit_code: Some(0),
                success: true,
                error: None,
                usage: None,
                extra: Map::new(),
            })),
            RecordBody::In { .. } | RecordBody::Exit(_) | RecordBody::Decision(_) => {}
        }
        outputs
    }

    /// How a program is started: where the prompt's files lie is told by its environment, a path a
    /// line, since all of its stdin is the prompt. It may be a shell's script.
    #[must_use]
    pub fn launch(provider: &Provider, prompt: &Prompt) -> Launch {
        let mut env = provider.env.clone();
        if !prompt.attachments.is_empty() {
            let paths = prompt.attachments.iter().map(|file| file.path.to_string_lossy());
            env.insert(ATTACHMENTS.to_owned(), paths.collect::<Vec<_>>().join("\n"));
        }
        Launch { argv: provider.command.clone(), env, cwd: prompt.cwd.clone() }
    }

    /// The prompt, with a line end if it has none, and the close. Such a program understands
    /// nothing else.
    #[must_use]
    pub fn encode(&self, command: &Command) -> Option<Write> {
        match command {
            Command::Prompt(prompt) => {
                let mut bytes = prompt.content.clone().into_bytes();
                if bytes.last() != Some(&b'\n') {
                    bytes.push(b'\n');
                }
                Some(Write { bytes, close: true })
            }
            Command::Answer(_) | Command::Interrupt => None,
        }
    }
}

/// A line as text: without the `\r` of a CRLF, and with replacement characters for what is no
/// UTF-8.
fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Answer, Prompt};
    use crate::run::id::Millis;

    fn fold(bodies: Vec<RecordBody>) -> Vec<Output> {
        let mut lines = Lines::default();
        bodies.into_iter().flat_map(|body| lines.fold(&Record { at: Millis(0), body })).collect()
    }

    fn said(content: &str) -> Output {
        Output::Event(Event::Text {
            content: content.into(),
            role: None,
            block_id: None,
            parent_tool_id: None,
        })
    }

    #[test]
    fn lines_become_text_and_stderr_becomes_errors() {
        let outputs = fold(vec![
            RecordBody::In { n: 1, bytes: b"hi\n".to_vec() },
            RecordBody::Out(b"one\r".to_vec()),
            RecordBody::Out(Vec::new()),
            RecordBody::Out(b"\xff!".to_vec()),
            RecordBody::Err(b"oh".to_vec()),
        ]);
        assert_eq!(
            outputs,
            [
                Output::TurnStarted(Origin::User),
                said("one"),
                said(""),
                said("\u{fffd}!"),
                Output::Event(Event::Error {
                    content: "oh".into(),
                    code: None,
                    source: ErrorSource::Stderr,
                    parent_tool_id: None,
                }),
            ]
        );
    }

    #[test]
    fn only_exit_code_0_is_a_terminal() {
        let ended = |exit| {
            fold(vec![RecordBody::Out(Vec::new()), RecordBody::Exit(exit)]).into_iter().find_map(
                |output| match output {
                    Output::TurnEnded(ending) => Some((ending.reason, ending.success)),
                    _ => None,
                },
            )
        };
        assert_eq!(ended(Exit::Code(0)), Some((Reason::Finished, true)));
        assert_eq!(ended(Exit::Code(3)), None);
        assert_eq!(ended(Exit::Signal(9)), None);
    }

    #[test]
    fn a_capped_line_keeps_its_head_and_says_its_length() {
        let outputs =
            fold(vec![RecordBody::OutCapped { bytes: 12_000_000, head: b"begin".to_vec() }]);
        assert!(
            matches!(&outputs[1], Output::Event(Event::Raw { content, .. }) if content == "begin")
        );
        assert!(matches!(
            &outputs[2],
            Output::Event(Event::Error { content, source: ErrorSource::Gateway, .. })
                if content.contains("12000000")
        ));
    }

    #[test]
    fn it_is_told_the_prompt_and_nothing_else() {
        let lines = Lines::default();
        let prompt = |content: &str| {
            lines.encode(&Command::Prompt(Prompt { content: content.into(), ..Prompt::default() }))
        };
        assert_eq!(prompt("hi"), Some(Write { bytes: b"hi\n".to_vec(), close: true }));
        assert_eq!(prompt("hi\n"), Some(Write { bytes: b"hi\n".to_vec(), close: true }));
        assert_eq!(lines.encode(&Command::Interrupt), None);
        assert_eq!(lines.encode(&Command::Answer(Answer::default())), None);
    }
}
