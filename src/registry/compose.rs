//! Frames with their marks: what an event changes beside the log, and the group that ends a run.
//!
//! Pure. Must not know locks.

use crate::protocol::frame::Encoder;
use crate::run::change::{Frame, Mark, RunEnd, Whole};
use crate::run::event::{
    AnswerState, CancelReason, Complete, Event, PermissionResolved, Reason, ToolOutput, ToolResult,
};
use crate::run::id::{Millis, Ordinal, Position, RequestId, RunId, Seq, SessionId};
use crate::run::state::Closing;
use crate::sync::Arc;

/// Makes the frames of one run.
#[derive(Debug)]
pub struct Composer {
    ordinal: Ordinal,
    encoder: Encoder,
}

impl Composer {
    /// A composer for a run's frames.
    #[must_use]
    pub fn new(
        session: SessionId,
        run: RunId,
        ordinal: Ordinal,
        provider: &str,
        event_bytes_max: usize,
    ) -> Self {
        Self { ordinal, encoder: Encoder::new(session, run, provider, event_bytes_max) }
    }

    /// The frame of one event. `group_end` and `offset` are the appender's to set.
    pub fn frame(&mut self, seq: Seq, at: Millis, event: &Event, mark: Option<Mark>) -> Frame {
        let encoded = self.encoder.encode(seq, at, event);
        Frame {
            at: Position::new(self.ordinal, seq),
            text: encoded.text,
            mark: mark.map(Box::new),
            whole: encoded.whole.map(|json| Arc::new(Whole { json })),
            group_end: false,
            offset: 0,
        }
    }

    /// The group that ends a run: every open item is closed, then `complete` (I3, I20).
    ///
    /// Once somebody asked for an abort, each end is an abort: `end` then only says whether the
    /// agent stopped when it was asked (exit code 0) or had to be made to (1).
    pub fn closing(&mut self, closing: &Closing, end: &Complete, now: Millis) -> Vec<Frame> {
        let mut group = Vec::new();
        let mut seq = closing.next;
        let mut push = |composer: &mut Self, event: &Event, mark: Mark| {
            group.push(composer.frame(seq, now, event, Some(mark)));
            seq = seq.next();
        };
        for tool in &closing.open_tools {
            let content = "The run ended before this tool call gave a result.";
            push(self, &synthetic_result(tool, content), Mark::ToolClosed(tool.clone()));
        }
        for request in &closing.open_permissions {
            let event = cancelled(request, CancelReason::RunEnded);
            push(self, &event, Mark::PermissionCancelled(request.clone()));
        }
        for (request, decision, by) in &closing.undelivered {
            let event = Event::PermissionResolved(PermissionResolved {
                request_id: request.0.clone(),
                decision: *decision,
                choice_id: None,
                state: AnswerState::Undeliverable,
                by: by.clone(),
                edited: false,
                updated_input: None,
                message: None,
            });
            let mark = Mark::PermissionAnswered {
                request: request.clone(),
                decision: *decision,
                state: AnswerState::Undeliverable,
                by: by.clone(),
                answer: None,
            };
            push(self, &event, mark);
        }
        let complete = decide(closing, end, now);
        let mark = Mark::Complete(Box::new(RunEnd { at: now, complete: complete.clone() }));
        push(self, &Event::Complete(complete), mark);
        group
    }
}

/// `permission_cancelled`.
#[must_use]
pub fn cancelled(request: &RequestId, reason: CancelReason) -> Event {
    Event::PermissionCancelled { request_id: request.0.clone(), reason }
}

/// A `tool_result` for a call that the agent left open.
#[must_use]
pub fn synthetic_result(tool: &str, content: &str) -> Event {
    Event::ToolResult(ToolResult {
        tool_id: tool.to_owned(),
        tool_result: ToolOutput { content: content.into(), is_error: true, tool_use_result: None },
        exit_code: None,
        duration_ms: None,
        synthetic: Some(true),
        parent_tool_id: None,
    })
}

/// An end that the gateway itself decides on.
#[must_use]
pub fn end(reason: Reason, exit_code: Option<i64>, error: Option<String>) -> Complete {
    Complete {
        exit_code,
        success: false,
        aborted: reason == Reason::Aborted,
        reason,
        error,
        by: None,
        usage: None,
        duration_ms: 0,
        extra: serde_json::Map::new(),
    }
}

fn decide(closing: &Closing, end: &Complete, now: Millis) -> Complete {
    let mut complete = end.clone();
    complete.duration_ms = u64::try_from(now.0 - closing.started_at.0).unwrap_or(0);
    if let Some(by) = &closing.abort {
        let stopped_when_asked = end.reason == Reason::Aborted && end.exit_code == Some(0);
        complete.exit_code = Some(i64::from(!stopped_when_asked));
        complete.success = false;
        complete.aborted = true;
        complete.reason = Reason::Aborted;
        complete.by = Some(by.clone());
    }
    complete
}
