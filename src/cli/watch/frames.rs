//! What each frame of the server does to a watch.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Ended, Until, Watch};
use crate::cli::exit::{Exit, Failure};
use crate::cli::follow::{Taken, position};
use crate::cli::http;
use crate::cli::link::{Link, Lost};
use crate::cli::text;
use crate::cli::words;

impl Watch<'_> {
    /// Takes one frame.
    pub(super) fn frame(&mut self, link: &mut Link, text: &str) -> Result<Option<Exit>, Ended> {
        let frame: Value = serde_json::from_str(text).map_err(|error| {
            Lost::Fatal(Failure::new(
                Exit::Failure,
                "NOT_REATTACH",
                format!("the server sent something that is not JSON: {error}"),
                "check the address: reattach version --server URL",
            ))
        })?;
        match self.follow.take(&frame) {
            Taken::Event => return self.event(text, &frame),
            Taken::EventAfterLoss { lost } => {
                self.screen.say(&format!("-- {lost} never came --"))?;
                return self.event(text, &frame);
            }
            Taken::Repeat => {}
            Taken::Hole => link.send(&self.follow.subscribe())?,
            Taken::Gap { from, to } => return self.gap(&from, &to),
            Taken::Subscribed { rewound, gap, processing } => {
                return self.subscribed(&frame, rewound, gap, processing);
            }
            Taken::Refused(code) => return Err(Lost::Fatal(refused(&code, &frame)).into()),
            Taken::CaughtUp { events } => return self.caught_up(events),
            Taken::Other => self.other(&frame)?,
        }
        Ok(None)
    }

    fn event(&mut self, text: &str, event: &Value) -> Result<Option<Exit>, Ended> {
        if !self.options.quiet {
            // Every frame is one line of JSON; one that were not would tear `--json` apart.
            if text.contains('\n') {
                self.screen.event(&event.to_string(), event)?;
            } else {
                self.screen.event(text, event)?;
            }
        }
        let request = || event["requestId"].as_str().unwrap_or_default();
        match event["kind"].as_str() {
            Some("run_started") => self.running = event["runId"].as_str().map(str::to_owned),
            Some("permission_request") => {
                self.pending.insert(request().to_owned(), event.clone());
            }
            Some("permission_resolved" | "permission_cancelled") => {
                self.pending.remove(request());
            }
            Some("complete") => {
                self.running = None;
                self.pending.retain(|_, pending| pending["runId"] != event["runId"]);
                self.last_complete = Some(event.clone());
            }
            _ => {}
        }
        if let Some(exit) = self.is_over() {
            return Ok(Some(exit));
        }
        self.ask()
    }

    /// Whether what was seen is the end that the options name.
    fn is_over(&self) -> Option<Exit> {
        let complete = self.last_complete.as_ref();
        match &self.options.until {
            Until::Detached => None,
            Until::Complete(run) => {
                complete.filter(|complete| complete["runId"] == run.as_str()).map(Exit::of_complete)
            }
            Until::Idle if !self.follow.is_live() || self.running.is_some() => None,
            Until::Idle => Some(complete.map_or(Exit::Ok, Exit::of_complete)),
        }
    }

    fn subscribed(
        &mut self,
        frame: &Value,
        rewound: bool,
        gap: Option<(Value, Value)>,
        processing: bool,
    ) -> Result<Option<Exit>, Ended> {
        if rewound {
            self.screen
                .say("-- the server's log was restored; this run again from its start --")?;
        }
        if processing {
            self.running = frame["runId"].as_str().map(str::to_owned);
        }
        for pending in frame["pendingPermissions"].as_array().into_iter().flatten() {
            let id = pending["requestId"].as_str().unwrap_or_default().to_owned();
            let unseen = self.pending.insert(id, pending.clone()).is_none();
            // Who begins at the tail does not get its event.
            if unseen && self.follow.is_tail() && !self.screen.is_json() && !self.options.quiet {
                let card = words::permission(pending, self.screen.err_paint());
                self.screen.say(&card)?;
            }
        }
        match gap {
            Some((from, to)) => self.gap(&from, &to),
            None => Ok(None),
        }
    }

    /// Events are gone for good. If the end of our run is among them, the run's record has it.
    fn gap(&mut self, from: &Value, to: &Value) -> Result<Option<Exit>, Ended> {
        let place = |at: &Value| match position(at) {
            Some(mark) => format!("{}:{}", text::clean(&mark.run, text::Paint::Plain), mark.seq),
            None => "the beginning".to_owned(),
        };
        if self.screen.is_json() && !self.options.quiet {
            let session = self.follow.session();
            let line = json!({"kind": "gap", "sessionId": session, "from": from, "to": to});
            self.screen.json_line(&line.to_string())?;
        } else {
            let line = format!("-- no longer kept: {} to {} --", place(from), place(to));
            self.screen.say(&line)?;
        }
        let Until::Complete(run) = &self.options.until else { return Ok(None) };
        let run = self.rest.get::<Value>(&format!("/runs/{run}"), &[]);
        let run = run.map_err(|failure| Ended::Stop(failure.into()))?;
        Ok((run["status"] == "completed").then(|| Exit::of_complete(&run)))
    }

    fn caught_up(&mut self, events: u64) -> Result<Option<Exit>, Ended> {
        let back = std::mem::take(&mut self.announced);
        let first = self.connections == 1 && matches!(self.options.until, Until::Complete(_));
        if !self.options.quiet && (back || !first) {
            let what = if events == 1 { "event" } else { "events" };
            self.say_dim(&format!("-- caught up {events} {what} --")).map_err(Ended::Stop)?;
        }
        if let Some(exit) = self.is_over() {
            return Ok(Some(exit));
        }
        self.ask()
    }

    fn other(&mut self, frame: &Value) -> io::Result<()> {
        match frame["kind"].as_str() {
            Some("hello") => {
                if let Some(ms) = frame["heartbeatMs"].as_u64().filter(|ms| *ms > 0) {
                    self.heartbeat = Duration::from_millis(ms);
                }
            }
            Some("ack") => {
                self.unacked.remove(frame["ref"].as_str().unwrap_or_default());
            }
            Some("protocol_error") => {
                let reference = frame["ref"].as_str().unwrap_or_default();
                if let Some(asked) = self.unacked.remove(reference) {
                    let late = match frame["code"].as_str() {
                        // It ended by itself, as its `complete` says.
                        Some("NO_ACTIVE_RUN") => true,
                        // By ourselves, over the connection that broke.
                        Some("PERMISSION_ALREADY_RESOLVED") => asked.resent,
                        _ => false,
                    };
                    if !late {
                        let why = frame["error"].as_str().unwrap_or("refused");
                        self.screen.say(&text::clean(why, text::Paint::Plain))?;
                    }
                }
            }
            Some("server_draining") => {
                let agents = if frame["mode"] == "keep" { ", agents work on" } else { "" };
                self.screen.say(&format!(
                    "-- the server is stopping{agents}; waiting for it to come back --"
                ))?;
            }
            Some("store_state") if frame["ok"] == false => {
                self.screen.say("-- the server cannot write to its disk; waiting --")?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// A refused subscribe, as a failure of the command.
fn refused(code: &str, frame: &Value) -> Failure {
    let message = match (code, frame["error"].as_str()) {
        ("SESSION_NOT_FOUND", _) => "the session does not exist (any more)",
        ("RUN_NOT_FOUND", _) => "the run does not exist in this session",
        (_, Some(error)) if error != code => error,
        _ => "the server does not let us follow the session",
    };
    let (exit, next) = http::meaning(code, 0, true);
    Failure::new(exit, code, text::clean(message, text::Paint::Plain), next)
}
