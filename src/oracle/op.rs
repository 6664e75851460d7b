//! What can be done to a registry, as plain data: drawn by the property test, decoded by the
//! fuzzer, written down by hand in regression tests.
//!
//! Every operation can be applied in every state: what does not fit is refused, or changes
//! nothing, and the reference says so too. Must not know how it is applied.

/// One operation. `session` and `sub` name one of the few there are; small numbers make clashes
/// likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named after what they choose")]
pub enum Op {
    /// A new session, if there are few.
    Create,
    /// A prompt; message 0 has no id. Its sender listens from then on.
    Send { session: u8, message: u8, content: u8, sub: u8 },
    /// A prompt that may wait.
    Queue { session: u8, message: u8, content: u8, sub: u8 },
    /// Somebody takes a waiting prompt out.
    Unqueue { session: u8, which: u8 },
    /// Somebody lets a held queue go on.
    Resume { session: u8 },
    /// The queue's thread looks at the session.
    Turn { session: u8 },
    /// The agent says `count` things in one group, in the running run or (`late`) one before it.
    Append { session: u8, count: u8, late: bool },
    /// The agent begins or ends a tool call.
    Tool { session: u8, tool: u8, close: bool },
    /// Somebody ends a run.
    Complete { session: u8, how: u8, late: bool },
    /// Somebody wants the running run, a named one or one before it to stop.
    Abort { session: u8, named: u8 },
    /// The agent asks for permission.
    Ask { session: u8 },
    /// A client answers one of the requests that ever were.
    Answer { session: u8, which: u8, allow: bool },
    /// The worker takes what was answered and delivers it.
    Take { session: u8 },
    /// The agent takes a request back.
    Withdraw { session: u8 },
    /// A title, or the archive flag.
    Edit { session: u8, what: u8 },
    /// The provider names its own id.
    Learn { session: u8, native: u8 },
    /// The session goes.
    Delete { session: u8 },
    /// A client subscribes; `from` chooses the kind of cursor, `run` and `seq` what it names.
    Subscribe { sub: u8, session: u8, from: u8, seq: u8 },
    /// A client takes its slot back.
    Unsubscribe { sub: u8 },
    /// A client pulls once.
    Read { sub: u8, budget: u8 },
    /// A round of the store.
    Round,
    /// A round in which the disk fails.
    Fail { how: u8, which: u8 },
    /// The process dies and starts again.
    Crash,
    /// Time passes; what is due leaves memory.
    Pass { ms: u8 },
    /// Memory is wanted back.
    Trim { session: u8, bytes: u8 },
    /// Retention takes a session's oldest run.
    Prune { session: u8 },
}

impl Op {
    /// Bytes that one operation is decoded from.
    pub const BYTES: usize = 5;

    /// Any bytes give an operation; frequent ones have more of the first byte's values.
    #[must_use]
    pub const fn decode(bytes: [u8; Self::BYTES]) -> Self {
        let [tag, session, a, b, c] = bytes;
        match tag % 64 {
            0..2 => Self::Create,
            2..7 => Self::Send { session, message: a % 4, content: b % 2, sub: c },
            7..9 => Self::Queue { session, message: a % 6, content: b % 2, sub: c },
            17 => Self::Turn { session },
            18 if b.is_multiple_of(2) => Self::Resume { session },
            18 => Self::Unqueue { session, which: a },
            9..19 => Self::Append { session, count: a % 3 + 1, late: b.is_multiple_of(8) },
            19..22 => Self::Tool { session, tool: a % 3, close: b.is_multiple_of(2) },
            22..27 => Self::Complete { session, how: a % 3, late: b.is_multiple_of(4) },
            27..29 => Self::Abort { session, named: a % 3 },
            29..31 => Self::Ask { session },
            31..33 => Self::Answer { session, which: a, allow: b.is_multiple_of(2) },
            33..35 => Self::Take { session },
            35 => Self::Withdraw { session },
            36 => Self::Edit { session, what: a % 3 },
            37 => Self::Learn { session, native: a % 2 },
            38 => Self::Delete { session },
            39..44 => Self::Subscribe { sub: a, session, from: b, seq: c },
            44 => Self::Unsubscribe { sub: a },
            45..50 => Self::Read { sub: a, budget: b },
            50..56 => Self::Round,
            56..58 => Self::Fail { how: a, which: b },
            58 => Self::Crash,
            59..61 => Self::Pass { ms: a },
            61 => Self::Trim { session, bytes: a },
            _ => Self::Prune { session },
        }
    }
}
