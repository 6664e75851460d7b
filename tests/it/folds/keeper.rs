//! A keeper and its agent, without processes: the journal is real files in a real home.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use reattach::keeper::Home;
use reattach::keeper::frame::{Body, encode_record};
use reattach::keeper::journal::header;
use reattach::keeper::numbers::Numbers;
use reattach::provider::RecordBody;
use reattach::run::id::{AgentId, Millis};

use super::script::{Script, Step};

/// A keeper whose agent acts a script.
pub(super) struct Keeper {
    pub(super) home: Home,
    steps: Vec<Step>,
    /// The steps that were taken.
    taken: usize,
    /// The agent's whole stream, and how much of it the journal has.
    stream: Vec<u8>,
    journaled: usize,
    /// Where the records of the script's steps end in the stream: (end, steps taken).
    ends: Vec<(u64, usize)>,
    /// Where the journal's segments begin.
    segments: Vec<usize>,
    numbers: Numbers,
    /// What the agent got, by the numbers of the writes.
    pub(super) writes: Vec<(u64, Vec<u8>)>,
    /// It was killed, and the agent with it.
    pub(super) is_dead: bool,
}

impl Keeper {
    /// Of an agent that starts now.
    pub(super) fn start(data_dir: &Path, agent: AgentId, script: &Script) -> Self {
        let home = Home::of(data_dir, agent);
        home.create().expect("a home");
        Self {
            home,
            steps: script.steps.clone(),
            taken: 0,
            stream: Vec::new(),
            journaled: 0,
            ends: Vec::new(),
            segments: Vec::new(),
            numbers: Numbers::default(),
            writes: Vec::new(),
            is_dead: false,
        }
    }

    /// The agent takes up to `count` steps; says whether it took any.
    pub(super) fn act(&mut self, count: usize) -> bool {
        let before = self.taken;
        while self.taken < before.saturating_add(count).min(self.steps.len()) {
            let step = self.steps[self.taken].clone();
            match &step {
                Step::Record(body) => {
                    // Its time is the step's: nothing that the gateways do shows in it.
                    self.record(Millis(1000 + self.taken as i64), body);
                    self.ends.push((self.stream.len() as u64, self.taken + 1));
                }
                Step::Prompt(_) if self.prompts_got() <= self.prompts_before(self.taken) => break,
                Step::Answer(id) if !self.got(id) => break,
                Step::Prompt(_) | Step::Answer(_) => {}
            }
            self.taken += 1;
        }
        self.taken > before
    }

    /// The agent stops waiting for what nobody can give it; says what it was.
    pub(super) fn give_up(&mut self) -> Option<Step> {
        let waits = matches!(self.steps.get(self.taken), Some(Step::Answer(_) | Step::Prompt(_)));
        waits.then(|| self.steps.remove(self.taken))
    }

    /// The prompt that the agent waits for.
    pub(super) fn wants(&self) -> Option<&str> {
        match self.steps.get(self.taken) {
            Some(Step::Prompt(content)) => Some(content),
            _ => None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.taken == self.steps.len()
    }

    /// A write, once for each number.
    pub(super) fn write(&mut self, n: u64, bytes: Vec<u8>) {
        // The process has ended, or has this.
        if self.is_dead || self.is_over() || !self.numbers.take(n) {
            return;
        }
        self.numbers.written(n);
        self.record(Millis(500), &RecordBody::In { n, bytes: bytes.clone() });
        self.writes.push((n, bytes));
    }

    /// Whether write number `n` is in the agent's stdin.
    pub(super) fn has(&self, n: u64) -> bool {
        !self.is_dead && self.writes.iter().any(|(written, _)| *written == n)
    }

    /// Whether the gateway can read all that there is, and has folded up to `folded`.
    pub(super) fn is_read(&self, folded: u64) -> bool {
        self.journaled == self.stream.len() && folded == self.stream.len() as u64
    }

    /// Appends to the journal; says whether there was something to append.
    pub(super) fn journal(&mut self, part: u8, block: usize, segment: bool) -> bool {
        let waiting = self.stream.len() - self.journaled;
        let count = (waiting * usize::from(part)).div_ceil(255);
        let begins = segment || self.segments.is_empty();
        if begins && self.segments.last() != Some(&self.journaled) {
            self.segments.push(self.journaled);
        }
        let first = *self.segments.last().expect("one was begun");
        let mut file = append(&self.segment(first));
        for piece in self.stream[self.journaled..self.journaled + count].chunks(block) {
            let offset = self.journaled as u64;
            file.write_all(&[&header(offset, piece)[..], piece].concat()).expect("written");
            self.journaled += piece.len();
        }
        count > 0
    }

    /// What lies in segments that end at or before `offset` is not needed any more.
    pub(super) fn confirm(&mut self, offset: u64) {
        while self.segments.get(1).is_some_and(|next| *next as u64 <= offset) {
            let first = self.segments.remove(0);
            fs::remove_file(self.segment(first)).expect("removed");
        }
    }

    /// The keeper and its agent die, and the last `bytes` of the journal's files with them.
    pub(super) fn cut(&mut self, mut bytes: u64) {
        self.is_dead = true;
        while let Some(first) = self.segments.last().copied() {
            let path = self.segment(first);
            let length = fs::metadata(&path).expect("a segment").len();
            if length > bytes || self.segments.len() == 1 {
                let file = OpenOptions::new().write(true).open(&path).expect("opens");
                file.set_len(length.saturating_sub(bytes)).expect("cut");
                return;
            }
            bytes -= length;
            fs::remove_file(path).expect("removed");
            self.segments.pop();
        }
    }

    /// The journal's files in bytes.
    pub(super) fn journal_bytes(&self) -> u64 {
        let sizes = self.segments.iter().map(|first| fs::metadata(self.segment(*first)));
        sizes.map(|size| size.expect("a segment").len()).sum()
    }

    /// The steps whose records end at or before `offset`.
    pub(super) fn steps_before(&self, offset: u64) -> usize {
        let ends = self.ends.iter().take_while(|(end, _)| *end <= offset);
        ends.last().map_or(0, |(_, steps)| *steps)
    }

    /// Whether a write answered this request of the agent's.
    pub(super) fn got(&self, request: &str) -> bool {
        let quoted = format!("\"{request}\"");
        self.writes.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(&quoted))
    }

    fn prompts_got(&self) -> usize {
        let is_prompt = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.contains(r#""type":"user""#) || text.contains(r#""type":"prompt""#)
        };
        self.writes.iter().filter(|(_, bytes)| is_prompt(bytes)).count()
    }

    fn prompts_before(&self, step: usize) -> usize {
        self.steps[..step].iter().filter(|step| matches!(step, Step::Prompt(_))).count()
    }

    fn record(&mut self, at: Millis, body: &RecordBody) {
        let body = match body {
            RecordBody::Out(line) => Body::Out(line),
            RecordBody::Err(line) => Body::Err(line),
            RecordBody::OutCapped { bytes, head } => Body::OutCapped { bytes: *bytes, head },
            RecordBody::In { n, bytes } => Body::In { n: *n, bytes },
            RecordBody::Exit(exit) => Body::Exit(*exit),
            RecordBody::Decision(decision) => Body::Decision(*decision),
        };
        encode_record(&mut self.stream, at, body).expect("no line is that long");
    }

    fn segment(&self, first: usize) -> PathBuf {
        self.home.path().join(format!("{first:016x}.journal"))
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).expect("a segment")
}
