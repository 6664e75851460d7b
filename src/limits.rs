//! Every bound and deadline, in one place, with assertions of how they hang together.
//!
//! What an operator may set is a field of `Limits`, with its default; what nobody should need to
//! set is a constant. Sizes are in bytes, durations in milliseconds where the type does not say;
//! `_max` is inclusive. Must not know anything else.

use std::time::Duration;

/// The bounds and deadlines that configuration can set. `Default` is what the documentation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once; one more gets a 503.
    pub connections_max: usize,
    /// Those of them that are at a request or between two: slow ones take no more than this.
    pub connections_http_max: usize,
    /// Those of them from one machine that is not this one.
    pub connections_per_peer_max: usize,
    /// Agent processes alive at once; one more send gets `BUSY`.
    pub agents_max: usize,
    /// Frames in memory per session.
    pub ring_events_max: usize,
    /// Bytes of frames in memory per session.
    pub ring_bytes_max: usize,
    /// Bytes of frames in memory in all.
    pub ring_total_bytes_max: usize,
    /// One event, encoded.
    pub event_bytes_max: usize,
    /// One line of an agent.
    pub line_bytes_max: usize,
    /// One client frame.
    pub message_bytes_max: usize,
    /// One file that is given to a session.
    pub upload_bytes_max: usize,
    /// What an agent's journal may take on disk.
    pub journal_bytes_max: u64,
    /// How long a finished run stays in memory.
    pub completed_retention_ms: i64,
    /// Between protocol pings.
    pub heartbeat_ms: i64,
    /// Without a byte leaving while some wait: the client is dropped.
    pub stall_ms: i64,
    /// How long a warm agent may idle.
    pub agent_idle_ms: i64,
    /// How long an agent lives on without a gateway.
    pub orphan_grace_ms: i64,
    /// How long a shutdown may take.
    pub drain_ms: i64,
    /// On disk: completed runs older than this go. 0 keeps all.
    pub retention_age_ms: i64,
    /// On disk: oldest completed runs go until their events fit. 0 keeps all.
    pub retention_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4000,
            connections_http_max: 512,
            connections_per_peer_max: 256,
            agents_max: 16,
            ring_events_max: 16_384,
            ring_bytes_max: 16 << 20,
            ring_total_bytes_max: 256 << 20,
            event_bytes_max: EVENT_BYTES_DEFAULT,
            line_bytes_max: LINE_BYTES_DEFAULT,
            message_bytes_max: 1 << 20,
            upload_bytes_max: UPLOAD_BYTES_DEFAULT,
            journal_bytes_max: JOURNAL_BYTES_DEFAULT,
            completed_retention_ms: 300_000,
            heartbeat_ms: 30_000,
            stall_ms: 30_000,
            agent_idle_ms: 600_000,
            orphan_grace_ms: 3_600_000,
            drain_ms: 20_000,
            retention_age_ms: 0,
            retention_bytes: 0,
        }
    }
}

/// Default of `event_bytes_max`.
pub const EVENT_BYTES_DEFAULT: usize = 256 << 10;
/// Configuration may not go above this, since a frame must fit every write buffer.
pub const EVENT_BYTES_CEILING: usize = 1 << 20;
/// Default of `line_bytes_max`.
pub const LINE_BYTES_DEFAULT: usize = 16 << 20;
/// What is kept of a line over the cap.
pub const LINE_HEAD_BYTES: usize = 4 << 10;
/// What is kept of an agent's stderr for the `error` of a failed `complete`.
pub const STDERR_TAIL_BYTES: usize = 4 << 10;

/// tungstenite's write buffer: a batch, a frame and the reserve for control frames must fit.
pub const WRITE_BUFFER_BYTES_MAX: usize = PULL_BYTES + EVENT_BYTES_CEILING + WRITE_RESERVE_BYTES;
/// Room in the write buffer for pongs, a close and replies.
pub const WRITE_RESERVE_BYTES: usize = 256 << 10;
/// tungstenite's read buffer; its default of 128 KiB is the price of an idle connection.
pub const READ_BUFFER_BYTES: usize = 2 << 10;
/// What a connection pulls from the feed in one turn.
pub const PULL_BYTES: usize = 64 << 10;
/// Client messages read in one turn.
pub const MESSAGES_PER_TURN: usize = 32;
/// Replies that wait for their commit or for room; above it the connection stops reading.
pub const OUTBOX_MAX: usize = 64;
/// Pending permission requests in one `chat_subscribed`; the rest are left to the replay.
pub const PENDING_BYTES_MAX: usize = 512 << 10;
/// A connection that was caught up sends at once, then leaves wakes alone for this long.
pub const WAKE_GAP_MS: i64 = 10;
/// Targets in one `chat.subscribe`, and subscriptions of one connection.
pub const SUBSCRIPTIONS_MAX: usize = 1024;
/// A client's `ref`.
pub const REF_BYTES_MAX: usize = 64;
/// An id that a client names: of a session, a run, a permission request.
pub const ID_BYTES_MAX: usize = 512;
/// An `X-Request-Id`.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// A client's `clientMessageId`.
pub const CLIENT_MESSAGE_ID_BYTES_MAX: usize = 256;

/// Permission requests whose wait is timed at once, for the metrics; of more the wait is not told.
pub const PERMISSIONS_TIMED_MAX: usize = 16_384;

/// The manifest of a backup that is read.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Files in a backup, the database and uploads.
pub const MANIFEST_FILES_MAX: usize = 200_000;
/// What `verify` says one by one; the rest is counted.
pub const FINDINGS_MAX: usize = 200;
/// What is wrong in the bodies of one run and is said one by one.
pub const FINDINGS_PER_RUN_MAX: usize = 5;

/// Rows that one SQLite read may take.
pub const READ_ROWS_MAX: usize = 512;
/// SQLite connections for reading.
pub const READERS: usize = 4;
/// Frames of one session that one transaction may take.
pub const BATCH_FRAMES_MAX: usize = 4096;
/// Bytes of frames of one session that one transaction may take.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// What retention may take of the store's time between two batches.
pub const RETENTION_SLICE_MS: i64 = 10;
/// Rows of the audit trail that are kept, the newest ones: some hundred bytes each.
pub const AUDIT_KEPT: u64 = 100_000;
/// With less free on the data directory's disk, `/readyz` warns.
pub const DISK_FREE_BYTES_MIN: u64 = 256 << 20;
/// A file that is deleted when the disk is full, so that the last `complete`s can be written.
pub const BALLAST_BYTES: u64 = 4 << 20;
/// Connections to `server.metrics_bind`.
pub const MONITOR_CONNECTIONS_MAX: usize = 16;
/// Between two tries of a commit that failed for want of room or a lock.
pub const STORE_RETRY_MS: i64 = 250;

/// How long a start waits for the lock of a data directory whose owner is dead.
pub const DATA_LOCK_MS: i64 = 1000;
/// Between two looks for something that retention may take.
pub const RETENTION_PAUSE_MS: i64 = 1000;
/// How long a start waits for the ends of the last gateway's runs to be durable.
pub const RECOVER_MS: i64 = 5000;
/// Between two looks at something that has no wake of its own.
pub const LOOK_AGAIN_MS: i64 = 5;

/// Prompts that may wait in a session's queue.
pub const QUEUE_MAX: usize = 32;
/// And their bytes; one prompt may be as long as a message.
pub const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Between two tries to begin a queued prompt's run, while no place is free or the disk fails.
pub const QUEUE_RETRY_MS: i64 = 250;
/// What `chat_subscribed` shows of a queued prompt, in characters; REST shows all of it.
pub const QUEUE_PREVIEW_CHARS: usize = 1000;
/// Facts of no session (a new token, a notification's outcome) that wait for the store.
pub const SERVER_CHANGES_MAX: usize = 1024;
/// Outcomes of notifications that are kept.
pub const NOTIFICATIONS_KEPT: usize = 2000;
/// Open tool calls and permission requests of one session (I7).
pub const OPEN_ITEMS_MAX: usize = 1024;
/// An id that a `jsonl` agent gives a tool call, a permission request or a conversation.
pub const AGENT_ITEM_ID_BYTES_MAX: usize = 512;
/// Ids of recent prompts that a session keeps in memory.
pub const RECENT_MESSAGES_MAX: usize = 4096;
/// Session ids that the ring of broadcasts holds.
pub const BROADCAST_RING_MAX: usize = 1024;

/// Records between `out-` and `agent-`.
pub const LINES_MAX: usize = 1024;
/// Bytes between `out-` and `agent-`; one line may exceed it by itself.
pub const LINES_BYTES_MAX: usize = 1 << 20;
/// What an agent that does not read its stdin may leave unwritten before more is refused.
pub const STDIN_BYTES_MAX: usize = 8 << 20;

/// After the end of its agent, how long a keeper may take to end.
pub const KEEPER_END_MS: i64 = 3000;
/// Bytes of an agent's records between two checkpoints within a run.
pub const CHECKPOINT_BYTES: u64 = 8 << 20;
/// Reports of background tasks that wait for the next run of a warm agent.
pub const IDLE_EVENTS_MAX: usize = 64;
/// Between the begin of a prompt's run and its arrival at the session's worker.
pub const RUN_HANDOVER_MS: i64 = 5000;
/// Between two looks whether a keeper of another version has ended.
pub const FOREIGN_LOOK_MS: i64 = 500;

/// The provider's own interrupt has this long to be confirmed.
pub const INTERRUPT_MS: i64 = 2000;
/// After stdin was closed, before SIGINT.
pub const CLOSE_STDIN_MS: i64 = 2000;
/// After SIGINT, before SIGTERM.
pub const SIGINT_MS: i64 = 2000;
/// After SIGTERM, before SIGKILL.
pub const SIGTERM_MS: i64 = 3000;
/// A one-process-per-run program still alive this long after its `complete` is stopped.
pub const LINGER_MS: i64 = 2000;
/// After the exit, how long an escaped holder of the pipe may delay its end.
pub const DRAIN_AFTER_EXIT_MS: i64 = 250;
/// After the agent's exit, how long its descendants are hunted before the keeper says that some
/// are left (a process in uninterruptible sleep cannot be killed).
pub const SWEEP_MS: i64 = 5000;
/// Between two looks at the processes that are still there.
pub const SWEEP_PASS_MS: i64 = 5;
/// After a read that took little, how long a keeper leaves an agent's output alone, so that an
/// agent that writes line by line does not cost a wake-up per line.
pub const OUTPUT_GAP_MS: i64 = 1;
/// What a keeper reads at once.
pub const OUTPUT_READ_BYTES: usize = 64 << 10;
/// Records that wait in a keeper for its journal; above it the agent's output is not read.
pub const OUTPUT_BACKLOG_BYTES: usize = 256 << 10;
/// What the pipe between keeper and gateway should hold, where the system lets one choose.
pub const OUTPUT_PIPE_BYTES: usize = 256 << 10;
/// A longer stderr line is cut into records of this length.
pub const ERR_LINE_BYTES_MAX: usize = 64 << 10;
/// Configuration may not set `line_bytes_max` above this.
pub const LINE_BYTES_CEILING: usize = 256 << 20;
/// One frame of the gateway to a keeper: a launch with its environment, or a write.
pub const CONTROL_FRAME_BYTES_MAX: usize = 32 << 20;
/// One reply of a keeper.
pub const REPLY_BYTES_MAX: usize = 64 << 10;
/// Replies that wait in a keeper; above it no command is read.
pub const REPLY_BACKLOG_BYTES: usize = 1 << 20;
/// Numbers of refused writes that a keeper remembers.
pub const REFUSED_WRITES_MAX: usize = 4096;
/// A keeper's journal, with all its segments. Above it the agent waits.
pub const JOURNAL_BYTES_DEFAULT: u64 = 64 << 20;
/// A keeper takes no smaller bound: a checkpoint's distance (`CHECKPOINT_BYTES`), a segment, the
/// longest line and the reserves have to fit, else agent and gateway would wait for each other.
pub const JOURNAL_BYTES_FLOOR: u64 = 32 << 20;
/// A segment of a journal; the next block begins another one.
pub const JOURNAL_SEGMENT_BYTES: u64 = 4 << 20;
/// What a block of a journal holds at the most.
pub const JOURNAL_BLOCK_BYTES_MAX: usize = 64 << 10;
/// Room in a journal that an agent's lines leave free: for its end, for what one read of each of
/// its pipes can become (a line end costs a record), and for blocks' headers.
pub const JOURNAL_RESERVE_BYTES: u64 = 3 << 20;
/// Room in a journal that an agent's lines leave free for what is written to the agent.
pub const JOURNAL_WRITES_RESERVE_BYTES: u64 = 2 << 20;
/// Between two tries of a keeper to write a journal for which the disk had no room.
pub const JOURNAL_RETRY_MS: i64 = 250;
/// A line may take this part of its journal's bound.
pub const JOURNAL_LINE_PART: u64 = 4;
/// What a keeper sends of its journal in one turn of its loop.
pub const FOLLOW_BYTES_PER_TURN: usize = 1 << 20;
/// A keeper's own log; then it begins anew.
pub const KEEPER_LOG_BYTES_MAX: u64 = 64 << 10;
/// How long a keeper that starts waits for those who look whether one lives in its home.
pub const LOCK_MS: i64 = 1000;
/// Connections to a keeper that have yet to say what they want.
pub const NEWCOMERS_MAX: usize = 8;
/// How long they may take.
pub const NEWCOMER_MS: i64 = 1000;
/// How long a keeper may take to answer a gateway that attaches.
pub const ATTACH_MS: i64 = 5000;
/// Times of writes that a keeper remembers, to tell what was born since.
pub const WRITE_TIMES_MAX: usize = 4096;
/// No news from an agent for this long: a `status` of kind `quiet` says so.
pub const QUIET_MS: i64 = 30_000;

/// Random bytes of a token and of a device's cookie.
pub const TOKEN_BYTES: usize = 32;
/// What tokens begin with, so that they are known as such wherever they turn up.
pub const TOKEN_PREFIX: &str = "rat_";
/// Random bytes of a code that opens once.
pub const CODE_BYTES: usize = 16;
/// How long such a code opens.
pub const CODE_MS: i64 = 10 * 60 * 1000;
/// Codes that can be open at once.
pub const CODES_MAX: usize = 64;
/// Devices and tokens together. Each request compares with all of them.
pub const CREDENTIALS_MAX: usize = 1000;
/// The name of a device, of a token, of a person at a proxy, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// How long a device lasts without being used.
pub const DEVICE_MS: i64 = 90 * 24 * 3600 * 1000;
/// A token's end lies at most this far ahead.
pub const TOKEN_MS_MAX: i64 = 10 * 365 * 24 * 3600 * 1000;
/// Between two uses of a credential that are recorded.
pub const CREDENTIAL_USED_MS: i64 = 60_000;
/// Between two times that a browser is given its cookie again.
pub const COOKIE_RENEW_MS: i64 = 24 * 3600 * 1000;
/// Wrong attempts of one peer before it has to wait.
pub const LOGIN_ATTEMPTS_MAX: u32 = 10;
/// One more is allowed after each of these.
pub const LOGIN_REFILL_MS: i64 = 10_000;
/// Wrong attempts of all peers together.
pub const ATTEMPTS_ALL_MAX: u32 = 100;
/// And when there is one more of those.
pub const ATTEMPTS_ALL_REFILL_MS: i64 = 1000;
/// Peers whose attempts are counted each by themselves.
pub const ATTEMPTS_PEERS_MAX: usize = 1024;
/// Wrong secrets that are remembered: the same one again is no new attempt.
pub const WRONG_SECRETS_MAX: usize = 64;
/// Failed logins that the audit table takes at once, and when there is one more of them.
pub const AUDIT_FAILED_MAX: u32 = 20;
/// See `AUDIT_FAILED_MAX`.
pub const AUDIT_FAILED_REFILL_MS: i64 = 60_000;
/// Client messages that a connection may send at once, control frames included.
pub const MESSAGES_BURST_MAX: u32 = 2000;
/// And how many of them it regains per second.
pub const MESSAGES_PER_SECOND: u32 = 500;
/// After an error answer or a close: how long the client may take to read it and hang up.
pub const FAREWELL_MS: i64 = 1000;
/// Connections over the local socket that are let in beyond `connections_max`.
pub const LOCAL_CONNECTIONS_EXTRA: usize = 32;
/// Connections that got a 503 and are kept for `FAREWELL_MS`, so that their clients can read it.
pub const REFUSED_CONNECTIONS_MAX: usize = 64;
/// After an accept that failed for want of descriptors.
pub const ACCEPT_RETRY_MS: i64 = 100;

/// A request's head, from its first byte.
pub const HEAD_MS: i64 = 3000;
/// A request's body.
pub const BODY_MS: i64 = 10_000;
/// A connection between two requests.
pub const KEEP_ALIVE_MS: i64 = 15_000;
/// Writing an answer, for each `ANSWER_STEP_BYTES` of it that are begun.
pub const ANSWER_MS: i64 = 10_000;
/// So no client has to be faster than this per `ANSWER_MS`.
pub const ANSWER_STEP_BYTES: usize = 256 << 10;
/// A REST request that waits for a commit.
pub const COMMIT_WAIT_MS: i64 = 10_000;
/// A request's head.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers in it.
pub const HEADERS_MAX: usize = 64;
/// Requests on one connection.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 1000;
/// Items in one page of a REST list.
pub const PAGE_MAX: usize = 1000;
/// Bytes of events in one page of a REST list; one event may exceed it by itself.
pub const PAGE_BYTES_MAX: usize = 4 << 20;
/// Default of `upload_bytes_max`.
pub const UPLOAD_BYTES_DEFAULT: usize = 20 << 20;
/// Configuration may not set `upload_bytes_max` above this.
pub const UPLOAD_BYTES_CEILING: usize = 1 << 30;
/// Files of one session.
pub const UPLOADS_MAX: usize = 1000;
/// Bytes of one session's files.
pub const UPLOADS_BYTES_MAX: u64 = 1 << 30;
/// Files that go with one prompt.
pub const ATTACHMENTS_MAX: usize = 32;
/// A picture that an agent is given as such; a larger one it is told the path of. What models take
/// is 5 MB of base64 for one.
pub const PICTURE_BYTES_MAX: u64 = 3_750_000;
/// All pictures of one prompt: as base64 they have to fit an agent's stdin, and what its journal
/// leaves free.
pub const PICTURES_BYTES_MAX: u64 = 4 << 20;
/// What is read of, and written to, a file at once.
pub const FILE_STEP_BYTES: usize = 64 << 10;
/// How long a client of server-sent events should wait before it comes back.
pub const SSE_RETRY_MS: i64 = 1000;
/// What a client of server-sent events may send after its request; it is not read.
pub const SSE_INPUT_BYTES_MAX: usize = 16 << 10;
/// How far after a delta a compact page looks for its finished block.
pub const FINISHED_BLOCK_SEQS_MAX: u64 = 100_000;
/// Names that one answer about a folder may hold.
pub const FOLDERS_MAX: usize = 1000;
/// Entries of a folder that are looked at for it.
pub const FOLDER_ENTRIES_MAX: usize = 10_000;
/// A session's title.
pub const TITLE_BYTES_MAX: usize = 500;
/// Items in one page of a REST list, if the client does not say.
pub const PAGE_DEFAULT: usize = 100;

/// Notifications: what waits for a sink's thread; more is counted and recorded as failed.
pub const NOTIFY_INBOX_MAX: usize = 256;
/// Notifications: sessions that wait to be told of, per sink.
pub const NOTIFY_SESSIONS_MAX: usize = 256;
/// Notifications: events of a session that become one notification and are kept apart until then.
pub const NOTIFY_BUNDLE_MAX: usize = 64;
/// Notifications: how long the first event of a session waits for more of it.
pub const NOTIFY_GATHER_MS: i64 = 1000;
/// Notifications: how long after one of a session the next one is sent, at the earliest.
pub const NOTIFY_REST_MS: i64 = 5000;
/// Notifications: the pauses before each further try.
pub const NOTIFY_RETRIES_MS: [i64; 3] = [1000, 5000, 30_000];
/// Notifications: a sink that asks for a longer pause before the next try gets this one.
pub const NOTIFY_RETRY_AFTER_MS_MAX: i64 = 60_000;
/// Notifications: one try may not take longer, whatever is configured; a client waits for a test.
pub const NOTIFY_TIMEOUT_MS_CEILING: i64 = 20_000;
/// Notifications: sinks; each has a thread.
pub const NOTIFY_SINKS_MAX: usize = 16;
/// Notifications: between two looks of a sink's thread that has nothing to do.
pub const NOTIFY_IDLE_MS: i64 = 60_000;
/// Notifications: characters of a title, or of a name in one.
pub const NOTIFY_TITLE_CHARS: usize = 120;
/// Notifications: characters of a command, a question, an error.
pub const NOTIFY_SUMMARY_CHARS: usize = 300;
/// Notifications: what is read of a refusal.
pub const NOTIFY_ANSWER_BYTES_MAX: u64 = 4 << 10;

/// The command line: connecting to the server, and its side of the handshake.
pub const CLIENT_CONNECT: Duration = Duration::from_secs(3);
/// The command line: how long a server may take to say that it is there.
pub const CLIENT_HEALTH: Duration = Duration::from_secs(2);
/// The command line: one REST request, from its first byte to its last.
pub const CLIENT_ANSWER: Duration = Duration::from_secs(30);
/// The command line: what has to come after a ping, else the connection is dead.
pub const CLIENT_PONG: Duration = Duration::from_secs(2);
/// The command line: the wait before the first try to reconnect; doubled for each further one.
pub const CLIENT_RETRY_FIRST: Duration = Duration::from_millis(100);
/// The command line: the longest wait between two tries to reconnect.
pub const CLIENT_RETRY_LONGEST: Duration = Duration::from_secs(5);
/// The command line: how often a repeatable request is sent again.
pub const CLIENT_RESENDS: u32 = 6;
/// The command line: one answer of REST.
pub const CLIENT_BODY_BYTES_MAX: u64 = 256 << 20;
/// The command line: one frame of the server.
pub const CLIENT_FRAME_BYTES_MAX: usize = 16 << 20;
/// The command line: how long a server that `demo` started may take to stop, before it is killed.
pub const DEMO_STOP: Duration = Duration::from_secs(25);
/// The command line: how long a server that `demo` started may take to be ready.
pub const DEMO_READY: Duration = Duration::from_secs(10);
/// `doctor`: how long SQLite may check the database.
pub const DOCTOR_CHECK: Duration = Duration::from_secs(3);
/// `doctor`: how long a program may take to say its version, and a login shell its PATH.
pub const DOCTOR_PROGRAM: Duration = Duration::from_secs(5);
/// `doctor`: what is read of what a program says.
pub const DOCTOR_OUTPUT_BYTES: u64 = 64 << 10;
/// `doctor`: room on the data directory's disk below which a server soon stops taking prompts.
pub const DOCTOR_FREE_BYTES_FAIL: u64 = 64 << 20;
/// `doctor`: room below which somebody should look.
pub const DOCTOR_FREE_BYTES_WARN: u64 = 1 << 30;
/// `doctor --probe`: one step.
pub const PROBE_STEP: Duration = Duration::from_secs(10);
/// `doctor --probe`: how long the first frames of a stream may take to arrive.
pub const PROBE_STREAM: Duration = Duration::from_secs(5);
/// `doctor --probe`: an answer's head and body.
pub const PROBE_ANSWER_BYTES: usize = 4 << 20;
/// The command line: how long a server that `bench` measures may say nothing to its client.
pub const BENCH_SILENCE: Duration = Duration::from_secs(60);

const _: () = {
    assert!(EVENT_BYTES_CEILING < CLIENT_FRAME_BYTES_MAX);
    assert!(DOCTOR_FREE_BYTES_FAIL < DOCTOR_FREE_BYTES_WARN);
    assert!(EVENT_BYTES_DEFAULT <= EVENT_BYTES_CEILING);
    assert!(EVENT_BYTES_CEILING < WRITE_BUFFER_BYTES_MAX - WRITE_RESERVE_BYTES);
    assert!(EVENT_BYTES_DEFAULT <= (16 << 20) / 4, "an event is at most a quarter of the ring");
    assert!(PULL_BYTES <= WRITE_BUFFER_BYTES_MAX);
    assert!(PENDING_BYTES_MAX < WRITE_BUFFER_BYTES_MAX - WRITE_RESERVE_BYTES - PULL_BYTES);
    assert!(LINE_HEAD_BYTES < LINE_BYTES_DEFAULT);
    assert!(LINE_HEAD_BYTES < EVENT_BYTES_DEFAULT);
    assert!(LINE_BYTES_DEFAULT <= LINE_BYTES_CEILING);
    assert!(STDIN_BYTES_MAX < CONTROL_FRAME_BYTES_MAX, "a write that is let through has a frame");
    assert!(STDIN_BYTES_MAX < LINE_BYTES_CEILING, "its record fits a data frame as well");
    assert!(PICTURE_BYTES_MAX <= PICTURES_BYTES_MAX);
    assert!(
        PICTURES_BYTES_MAX * 4 / 3 + (1 << 20) < STDIN_BYTES_MAX as u64,
        "pictures as base64 and a prompt's text fit an agent's stdin"
    );
    assert!(UPLOAD_BYTES_CEILING as u64 <= UPLOADS_BYTES_MAX);
    assert!(JOURNAL_BYTES_FLOOR <= JOURNAL_BYTES_DEFAULT);
    assert!(
        LINE_BYTES_DEFAULT as u64 <= JOURNAL_BYTES_DEFAULT / JOURNAL_LINE_PART,
        "the usual journal takes the usual line"
    );
    assert!(
        JOURNAL_BYTES_FLOOR
            - JOURNAL_BYTES_FLOOR / JOURNAL_LINE_PART
            - JOURNAL_SEGMENT_BYTES
            - JOURNAL_RESERVE_BYTES
            - JOURNAL_WRITES_RESERVE_BYTES
            >= CHECKPOINT_BYTES,
        "the smallest journal takes what lies between two checkpoints, and more"
    );
    assert!(WAKE_GAP_MS < 2000, "a client expects its pong within 2 s");
};
