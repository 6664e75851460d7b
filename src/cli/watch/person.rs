//! The person at the keyboard: what is asked, what is typed, Ctrl-C, and running out of time.

use std::io;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CtrlC, Ended, Until, Watch};
use crate::cli::answer::{Asking, Typed};
use crate::cli::exit::{Exit, Stop};
use crate::cli::text;

impl Watch<'_> {
    /// Asks the person about the next request, or says who could be asked.
    pub(super) fn ask(&mut self) -> Result<Option<Exit>, Ended> {
        if !self.follow.is_live() {
            return Ok(None);
        }
        if self.asking.as_ref().is_some_and(|asking| !self.pending.contains_key(asking.id())) {
            self.asking = None;
            self.typed.clear();
        }
        if self.asking.is_some() {
            return Ok(None);
        }
        let answered: Vec<&str> =
            self.unacked.values().filter_map(|it| it.frame["requestId"].as_str()).collect();
        let next = self.pending.iter().find(|(id, _)| !answered.contains(&id.as_str()));
        let Some((id, request)) = next else { return Ok(None) };
        if self.options.no_input {
            let line = format!("waiting for a permission: {}", self.how_to_answer(id));
            self.screen.say(&line)?;
            return Ok(Some(Exit::Waiting));
        }
        if self.keyboard {
            let asking = Asking::new(request.clone());
            self.screen.say_part(&asking.question())?;
            self.asking = Some(asking);
        } else if !self.options.quiet && self.told.as_ref() != Some(id) {
            let line = format!("-- waits for an answer: {} --", self.how_to_answer(id));
            self.told = Some(id.clone());
            self.screen.say(&line)?;
        }
        Ok(None)
    }

    fn how_to_answer(&self, id: &str) -> String {
        let flags = self.rest.target().flags();
        let id = text::clean(id, text::Paint::Plain);
        format!("reattach allow {id}{flags}  (or deny)")
    }

    /// A typed line.
    pub(super) fn line(&mut self, line: &str) -> Result<Option<Exit>, Ended> {
        let Some(asking) = &mut self.asking else { return Ok(None) };
        match asking.line(line) {
            Typed::Answer(mut answer) => {
                answer["type"] = json!("chat.permission-response");
                answer["requestId"] = json!(asking.id());
                self.asking = None;
                self.queue(answer);
                self.ask()
            }
            Typed::Detach => self.detach().map(Some).map_err(Ended::Stop),
            Typed::Ask => {
                let question = asking.question();
                self.screen.say_part(&question)?;
                Ok(None)
            }
            Typed::Help(help) => {
                let question = asking.question();
                self.screen.say_part(&format!("{help}\n{question}"))?;
                Ok(None)
            }
        }
    }

    /// Ctrl-C.
    pub(super) fn interrupted(&mut self) -> Result<Option<Exit>, Stop> {
        if let (CtrlC::AbortThenDetach, Until::Complete(run), false) =
            (self.options.ctrl_c, &self.options.until, self.stopping)
        {
            let abort = json!({"type": "chat.abort", "sessionId": self.follow.session(),
                "runId": run});
            self.stopping = true;
            self.queue(abort);
            self.screen.say("stopping... (Ctrl-C again to leave it alone and detach)")?;
            return Ok(None);
        }
        self.detach().map(Some)
    }

    pub(super) fn detach(&mut self) -> Result<Exit, Stop> {
        if self.options.ctrl_c == CtrlC::End {
            return Ok(Exit::Ok);
        }
        let session = self.follow.session();
        let flags = self.rest.target().flags();
        let goes_on = match (&self.options.until, &self.running) {
            (Until::Complete(_), _) | (_, Some(_)) => "the run goes on: ",
            _ => "",
        };
        self.screen.say(&format!("detached; {goes_on}reattach attach {session}{flags}"))?;
        Ok(Exit::Ok)
    }

    pub(super) fn timed_out(&mut self) -> Result<Option<Exit>, Stop> {
        if self.left().is_none_or(|left| !left.is_zero()) {
            return Ok(None);
        }
        let session = self.follow.session();
        let flags = self.rest.target().flags();
        let line = format!(
            "time is over; the run goes on: reattach attach {session}{flags}, \
             or reattach abort {session}{flags}"
        );
        self.screen.say(&line)?;
        Ok(Some(Exit::TimedOut))
    }

    pub(super) fn left(&self) -> Option<Duration> {
        Some(self.options.deadline?.saturating_duration_since(Instant::now()))
    }

    pub(super) fn type_line(&mut self) -> Option<String> {
        let mut bytes = [0; 1024];
        let read = rustix::io::read(io::stdin(), &mut bytes).unwrap_or(0);
        if read == 0 {
            // Nobody types here any more; others may still answer.
            self.keyboard = false;
            self.asking = None;
            return None;
        }
        self.typed.extend_from_slice(&bytes[..read]);
        let end = self.typed.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.typed.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}
