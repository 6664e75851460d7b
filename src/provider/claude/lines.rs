//! Every line type that the adapter knows, with what it becomes.
//!
//! `docs/providers/claude.md` shows this table, and tests hold both to it: each recorded line is
//! in it, gives nothing that it does not say, and each row is folded by some test.

/// A line type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its `type`, then its subtype or what else tells apart, joined by `/`.
    pub line: &'static str,
    /// The kinds of output that it can become; empty is nothing at all. A `*` after one: no
    /// recording has that, it is known from documentation or by analogy only.
    pub becomes: &'static [&'static str],
    /// Whether a recording has such a line. If not, the vendor's documentation does.
    pub recorded: bool,
    /// Why, for lines that become nothing or a `status`; a remark otherwise.
    pub why: &'static str,
}

const fn seen(line: &'static str, becomes: &'static [&'static str], why: &'static str) -> Row {
    Row { line, becomes, recorded: true, why }
}

const fn told(line: &'static str, becomes: &'static [&'static str], why: &'static str) -> Row {
    Row { line, becomes, recorded: false, why }
}

/// The table, in the order of the names. A line that is not in it becomes `raw`.
pub const TABLE: &[Row] = &[
    told("assistant/redacted_thinking", &[], "encrypted: nobody here can read it"),
    told("assistant/server_tool_use", &["tool_use*"], "a tool that runs at the provider"),
    seen(
        "assistant/synthetic",
        &["error", "text"],
        "an `error` if marked as one; else the answer to a slash command, which the CLI gave itself",
    ),
    seen(
        "assistant/text",
        &["stream_end", "text", "raw*"],
        "the preview ends before the finished block; `raw` as well if it has citations, which no field has room for",
    ),
    seen(
        "assistant/thinking",
        &["stream_end", "thinking"],
        "the preview ends before the finished block",
    ),
    seen("assistant/tool_use", &["tool_use", "status plan*"], "`TodoWrite` also sets the plan"),
    told(
        "assistant/web_search_tool_result",
        &["tool_result*"],
        "as any block with a `tool_use_id`",
    ),
    told(
        "auth_status",
        &["status info*", "error*"],
        "`status` for what signing in prints, which concerns the account; `error` if it failed",
    ),
    seen(
        "command_lifecycle",
        &[],
        "a receipt for prompts with a `uuid`; ours have none, delivery is the keeper's to say",
    ),
    seen("control_cancel_request", &["permission_gone"], ""),
    seen("control_request/can_use_tool", &["permission_request"], ""),
    told("control_request/hook_callback", &["write*"], "we register no hooks; it is let through"),
    seen("control_response/error", &["error"], ""),
    seen(
        "control_response/success",
        &[],
        "an acknowledgement: a changed mode comes as a line of its own, a changed model does not, but `set_model` we never send; what an interrupt left queued we know, having written it",
    ),
    told(
        "conversation_reset",
        &["native_id*", "status info*"],
        "after `/clear`, say: the conversation goes on under another id",
    ),
    told("keep_alive", &[], "says nothing"),
    told("prompt_suggestion", &[], "a guess at what the person may say next"),
    told(
        "rate_limit_event",
        &["status info*"],
        "nothing while there is room; the refusal itself comes as an error",
    ),
    seen(
        "result",
        &["turn_started", "stream_end*", "text*", "error*", "status usage", "turn_ended"],
        "`text` only if it stands nowhere else; at the end of a turn that the agent began inside a prompt's turn nothing but an `error` if it failed; `turn_started` if the process failed before its first turn",
    ),
    seen(
        "stream_event/content_block_delta/input_json_delta",
        &[],
        "pieces of JSON; the finished block has the input",
    ),
    seen("stream_event/content_block_delta/signature_delta", &[], "for the provider only"),
    seen("stream_event/content_block_delta/text_delta", &["stream_delta"], ""),
    seen("stream_event/content_block_delta/thinking_delta", &["stream_delta"], ""),
    told(
        "stream_event/content_block_delta/citations_delta",
        &[],
        "the finished block has them, see `assistant/text`",
    ),
    seen(
        "stream_event/content_block_start",
        &["stream_delta*"],
        "a delta only if the block begins with text",
    ),
    seen(
        "stream_event/content_block_stop",
        &["stream_end"],
        "unless the finished block came before it, as it does if all goes well",
    ),
    seen("stream_event/message_delta", &[], "its token counts go into the next `status usage`"),
    seen(
        "stream_event/message_start",
        &["stream_end*"],
        "names the blocks to come; ends what an abandoned message left open",
    ),
    seen(
        "stream_event/message_stop",
        &["stream_end*"],
        "only if a block was left open; `abandoned_blocks` (see *Text and previews*) adds nothing",
    ),
    told("stream_event/ping", &[], "says nothing"),
    seen("system/api_retry", &["status retrying"], "the turn goes on"),
    seen("system/background_tasks_changed", &[], "the same tasks come one by one"),
    told(
        "system/compact_boundary",
        &["status info*"],
        "the conversation's history changed, not its course",
    ),
    told(
        "system/hook_progress",
        &["status info*"],
        "what a program of the person's own has printed so far",
    ),
    told("system/hook_response", &["status info*"], "a program of the person's own ran"),
    told("system/hook_started", &["status info*"], "a program of the person's own runs"),
    told(
        "system/informational",
        &["status info*", "error*"],
        "a banner of the CLI's (why a hook blocked a prompt, say); an `error` if the turn stops at it",
    ),
    seen(
        "system/init",
        &["turn_started", "native_id", "status model", "status mode"],
        "each turn begins with it; its lists of tools and commands are for another page",
    ),
    told("system/local_command_output", &["text*"], "the answer to a slash command"),
    told(
        "system/model_refusal_fallback",
        &["status info*", "status model*"],
        "another model answers; `status model` unless only a subagent's does",
    ),
    told(
        "system/model_refusal_no_fallback",
        &["error*"],
        "the model declined and no other answers",
    ),
    told("system/notification", &["status info*"], "a banner of the CLI's"),
    told(
        "system/permission_denied",
        &["status info*"],
        "a rule denied it; the call gets its `tool_result` as well",
    ),
    told("system/session_state_changed", &[], "the turn's lines say the same"),
    seen("system/status", &["status working", "status mode"], "what the agent does now"),
    seen("system/task_notification", &["task_notification"], ""),
    told("system/task_progress", &["task_notification*"], ""),
    seen("system/task_started", &["task_notification"], ""),
    seen("system/task_updated", &["task_notification"], ""),
    seen(
        "system/thinking_tokens",
        &["status working"],
        "an estimate; nothing while the thoughts themselves are shown",
    ),
    told("tool_progress", &["status working*"], "a sign of life of a long call"),
    told("tool_use_summary", &["status info*"], "a digest of calls that are all in the log"),
    seen(
        "user/local_command",
        &["status info", "error*"],
        "what a change of settings printed, or a slash command that failed",
    ),
    seen("user/replay", &[], "the echo of a prompt, which the run's head has"),
    seen(
        "user/text",
        &["status info", "text*"],
        "the marker of an interrupt is a `status`; what a subagent is told is a `text` of role `user`",
    ),
    seen(
        "user/tool_result",
        &["permission_gone*", "tool_result"],
        "a request about a call that has its result is over",
    ),
];
