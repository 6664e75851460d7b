//! Previews: `stream_event` lines, which carry the model's raw stream, and the names of blocks.
//!
//! A block is named by its message and its index in it, on its deltas and on the finished block,
//! which comes as an `assistant` line without an index, before the block's own end.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Claude, field, remember};
use crate::provider::Output;
use crate::run::event::{Block, Event};

/// What one speaker (the main agent or a subagent) is streaming.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Stream {
    /// The message.
    message: String,
    /// Its blocks that came finished.
    finished: u64,
    /// The block that is being streamed, if it is one that people read.
    open: Option<Open>,
}

/// A block that is being streamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    index: u64,
    block: Block,
    /// A delta was given out, so an end must follow.
    shown: bool,
}

impl Claude {
    pub(super) fn stream_event(&mut self, line: &Value, out: &mut Vec<Output>) -> bool {
        let event = &line["event"];
        let parent = field::parent(line);
        if parent.is_none() {
            self.ensure_turn(out);
        }
        match field::text(event, "type").unwrap_or_default() {
            "message_start" => {
                let message = field::owned(&event["message"], "id").unwrap_or_default();
                self.open_message(parent.as_deref(), &message, out);
                if parent.is_none() {
                    self.meter.message_started(&message, &event["message"]["usage"]);
                }
            }
            "content_block_start" => {
                self.close_block(parent.as_deref(), out);
                let content = &event["content_block"];
                let (block, key) = match field::text(content, "type").unwrap_or_default() {
                    "text" => (Block::Text, "text"),
                    "thinking" => (Block::Thinking, "thinking"),
                    // Tool calls and the like: the finished block has all of it.
                    _ => return true,
                };
                self.open_block(line, parent.as_deref(), block);
                let beginning = field::text(content, key).unwrap_or_default();
                self.delta(parent, beginning, out);
            }
            "content_block_delta" => return self.block_delta(line, parent, out),
            "content_block_stop" | "message_stop" => self.close_block(parent.as_deref(), out),
            "message_delta" => {
                if parent.is_none() {
                    self.meter.message_went_on(&event["usage"]);
                }
            }
            "ping" => {}
            _ => return false,
        }
        true
    }

    fn block_delta(&mut self, line: &Value, parent: Option<String>, out: &mut Vec<Output>) -> bool {
        let delta = &line["event"]["delta"];
        let (block, content) = match field::text(delta, "type").unwrap_or_default() {
            "text_delta" => (Block::Text, field::text(delta, "text")),
            "thinking_delta" => (Block::Thinking, field::text(delta, "thinking")),
            // The finished block has the input, and the citations.
            "input_json_delta" | "signature_delta" | "citations_delta" => return true,
            _ => return false,
        };
        let open = self.stream(parent.as_deref()).and_then(|stream| stream.open.as_ref());
        if open.is_none_or(|open| open.block != block) {
            self.close_block(parent.as_deref(), out);
            self.open_block(line, parent.as_deref(), block);
        }
        self.delta(parent, content.unwrap_or_default(), out);
        true
    }

    /// Whether thoughts are being shown: then estimates of their length say nothing new.
    pub(super) fn shows_thoughts(&self) -> bool {
        self.streams
            .values()
            .filter_map(|stream| stream.open.as_ref())
            .any(|open| open.block == Block::Thinking && open.shown)
    }

    /// The name of a finished block, whose preview ends here, if it had one.
    pub(super) fn finish_block(
        &mut self,
        parent: Option<&str>,
        message: &str,
        block: Block,
        out: &mut Vec<Output>,
    ) -> String {
        self.open_message_once(parent, message, out);
        let key = parent.unwrap_or_default();
        let index = match self.streams.get(key).and_then(|stream| stream.open.as_ref()) {
            Some(open) if open.block == block => open.index,
            _ => self.streams.get(key).map_or(0, |stream| stream.finished),
        };
        self.close_block(parent, out);
        if let Some(stream) = self.streams.get_mut(key) {
            stream.finished = index.saturating_add(1);
        }
        block_id(message, index)
    }

    /// A finished block that nobody previewed (a tool call): only its place is taken.
    pub(super) fn pass_block(
        &mut self,
        parent: Option<&str>,
        message: &str,
        out: &mut Vec<Output>,
    ) {
        self.open_message_once(parent, message, out);
        if let Some(stream) = self.streams.get_mut(parent.unwrap_or_default()) {
            stream.finished = stream.finished.saturating_add(1);
        }
    }

    /// Ends every preview: the turn is over, or the process.
    pub(super) fn close_streams(&mut self, out: &mut Vec<Output>) {
        let parents: Vec<String> = self.streams.keys().cloned().collect();
        for parent in parents {
            self.close_block(Some(&parent), out);
        }
        self.streams.clear();
    }

    /// Ends what a subagent streamed, when its tool call is over.
    pub(super) fn close_stream(&mut self, parent: &str, out: &mut Vec<Output>) {
        self.close_block(Some(parent), out);
        self.streams.remove(parent);
    }

    fn stream(&self, parent: Option<&str>) -> Option<&Stream> {
        self.streams.get(parent.unwrap_or_default())
    }

    fn open_message(&mut self, parent: Option<&str>, message: &str, out: &mut Vec<Output>) {
        self.close_block(parent, out);
        let stream = Stream { message: message.to_owned(), ..Stream::default() };
        remember(&mut self.streams, parent.unwrap_or_default(), stream);
    }

    fn open_message_once(&mut self, parent: Option<&str>, message: &str, out: &mut Vec<Output>) {
        if self.stream(parent).is_none_or(|stream| stream.message != message) {
            self.open_message(parent, message, out);
        }
    }

    fn open_block(&mut self, line: &Value, parent: Option<&str>, block: Block) {
        let key = parent.unwrap_or_default();
        if !self.streams.contains_key(key) {
            // Its beginning was missed: the line still names the message.
            let message = field::owned(line, "api_message_id").unwrap_or_default();
            remember(&mut self.streams, key, Stream { message, ..Stream::default() });
        }
        if let Some(stream) = self.streams.get_mut(key) {
            let index = field::number(&line["event"], "index").unwrap_or(stream.finished);
            stream.open = Some(Open { index, block, shown: false });
        }
    }

    fn delta(&mut self, parent: Option<String>, content: &str, out: &mut Vec<Output>) {
        let Some(stream) = self.streams.get_mut(parent.as_deref().unwrap_or_default()) else {
            return;
        };
        let Some(open) = stream.open.as_mut().filter(|_| !content.is_empty()) else { return };
        open.shown = true;
        out.push(Output::Event(Event::StreamDelta {
            content: content.to_owned(),
            block_id: block_id(&stream.message, open.index),
            block: open.block,
            parent_tool_id: parent,
        }));
    }

    /// Ends the preview of the open block, if anything of it was shown.
    fn close_block(&mut self, parent: Option<&str>, out: &mut Vec<Output>) {
        let key = parent.unwrap_or_default();
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some(open) = stream.open.take().filter(|open| open.shown) else { return };
        out.push(Output::Event(Event::StreamEnd {
            block_id: block_id(&stream.message, open.index),
            block: open.block,
            parent_tool_id: Some(key).filter(|key| !key.is_empty()).map(str::to_owned),
        }));
    }
}

fn block_id(message: &str, index: u64) -> String {
    format!("{message}:{index}")
}
