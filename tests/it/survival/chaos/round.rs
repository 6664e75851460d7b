//! One round: three runs, three clients, some kills, and what has to be true afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{
    Address, Agent, Checker, Client, DEADLINE, Follower, Frame, Gateway, Ledger, Random, View,
    eventually,
};
use crate::survival::{agent_of, answer, expect_peace, keeper_of, kill, start_run};

use super::Fell;

/// Of a flood: its events are longer than this, so that a replay does not fit a socket's buffers.
const LINE_BYTES: usize = 1000;
/// Lines that an agent may have said to be sent and not yet written.
const BATCH: u64 = 66;
/// The demo agent's plays.
const SEEDS: usize = 3;

/// Who can be killed; keeper and agent are those of the round's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Gateway,
    /// The gateway, which is asked to stop: its agents live on.
    Stopped,
    Keeper,
    Agent,
}

use Victim::{Agent as A, Gateway as G, Keeper as K, Stopped as S};

/// Killed in this order, at once. An agent alone leaves its keeper the time to say so.
const WITH_GATEWAY: [&[Victim]; 6] = [&[G], &[G], &[G], &[G, K], &[G, A], &[K, A, G]];
const WITHOUT_GATEWAY: [&[Victim]; 5] = [&[K], &[A], &[K, A], &[S], &[S, A]];

/// The round's three runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Flood,
    Dialogue,
    Demo,
}

/// What is to happen.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    number: usize,
    victims: &'static [Victim],
    target: Target,
    /// The third client comes late and is in its replay when the kills fall.
    replay: bool,
    /// The store is kept from writing when the kills fall.
    held: bool,
    /// After the kills the gateway is started and killed this often, after so many ms.
    again: Vec<usize>,
    /// The demo agent's play.
    seed: usize,
    /// How far the demo agent is led before: to nothing, its question, its permission.
    demo: usize,
    /// How many questions of the dialogue are answered before.
    answered: usize,
    /// A question of the dialogue is open when the kills fall; else the last answer was just given.
    open: bool,
}

impl Plan {
    pub(super) fn new(number: usize, random: &mut Random) -> Self {
        let (replay, held) = (matches!(number % 9, 0 | 3 | 6 | 8), number % 3 == 1);
        let victims = match random.below(3) {
            0 if !replay && !held => WITHOUT_GATEWAY[random.below(WITHOUT_GATEWAY.len())],
            _ => WITH_GATEWAY[random.below(WITH_GATEWAY.len())],
        };
        let again = match random.below(3) {
            0 if victims.contains(&G) => (0..=random.below(2)).map(|_| random.below(80)).collect(),
            _ => Vec::new(),
        };
        Self {
            number,
            victims,
            target: [Target::Flood, Target::Dialogue, Target::Demo][random.below(3)],
            replay,
            held,
            again,
            seed: random.below(SEEDS),
            demo: random.below(3),
            answered: random.below(3),
            open: random.below(2) == 0,
        }
    }

    /// How the run of the target is to end.
    fn reason(&self) -> &'static str {
        if self.victims.contains(&K) {
            "agent_lost"
        } else if self.victims.contains(&A) {
            "agent_exited"
        } else {
            "finished"
        }
    }
}

/// A session with its run.
struct Of {
    session: String,
    run: String,
}

impl Of {
    fn start(gateway: &Gateway, provider: &str, content: &str) -> Self {
        let session = gateway.session(provider);
        let run = start_run(gateway, &session, content);
        Self { session, run }
    }
}

/// What the demo agent's plays look like if nobody is killed, by seed.
pub(super) fn references(gateway: &Gateway) -> BTreeMap<usize, Vec<Value>> {
    let address = Address::of(gateway);
    (0..SEEDS)
        .map(|seed| {
            let of = Of::start(gateway, "demo", &format!("seed {seed} speed 0"));
            let follower = Follower::start(&address, &[&of.session]);
            lead(gateway, &follower, &of, None);
            follower.stop();
            (seed, essence(&gateway.replay(&of.session)))
        })
        .collect()
}

/// What of a log does not depend on when and where it was made.
fn essence(log: &[Frame]) -> Vec<Value> {
    log.iter()
        .skip(1)
        .map(|frame| {
            let mut json = frame.json.clone();
            let object = json.as_object_mut().expect("a frame is an object");
            for key in
                ["id", "sessionId", "runId", "timestamp", "requestId", "actualSessionId", "cwd"]
            {
                object.remove(key);
            }
            if frame.kind() == "complete" {
                object.remove("durationMs");
            }
            if object.get("text").and_then(Value::as_str).is_some_and(|t| t.contains("Working in"))
            {
                object.remove("text");
            }
            let thought = object.get("blockId").is_some_and(|id| id == "think-1" || id == "text-1");
            // They repeat the prompt, which differs in its speed.
            if thought {
                object.remove("content");
            }
            json
        })
        .collect()
}

/// Answers what a demo agent asks until its run is over, or until it has asked `upto` times: the
/// last of these stays open.
fn lead(gateway: &Gateway, follower: &Follower, of: &Of, upto: Option<usize>) {
    let mut asked = 0;
    loop {
        let next = follower.wait("the demo agent asks, or ends", |view| {
            match view.completes.contains_key(&of.run) {
                true => Some(None),
                false => view.open_of(&of.session).map(Some),
            }
        });
        let Some(request) = next else { return };
        asked += 1;
        if upto.is_some_and(|upto| asked >= upto) {
            return;
        }
        let (status, body) = answer(gateway, &request, true);
        assert_eq!(status, 200, "what was asked can be answered: {body}");
        follower.wait("the answer is seen", |view| {
            let over = view.completes.contains_key(&of.run);
            (over || !view.open.contains_key(&request)).then_some(())
        });
    }
}

/// The round as it goes.
pub(super) struct Round {
    plan: Plan,
    gateway: Gateway,
    address: Address,
    flood: Of,
    flooding: Agent,
    /// Lines of the whole flood.
    total: u64,
    dialogue: Of,
    asking: Agent,
    /// Questions asked so far, with what was answered.
    asked: Vec<Option<bool>>,
    demo: Of,
    followers: Vec<Follower>,
    /// Keeper and agent of the target.
    target: (u32, u32),
    fell: Fell,
}

impl Round {
    /// Starts the runs, and the clients that follow them from the beginning.
    pub(super) fn begin(gateway: Gateway, plan: Plan, random: &mut Random) -> Self {
        let address = Address::of(&gateway);
        let words = format!("round {}", plan.number);
        let flood = Of::start(&gateway, "flood", &words);
        let flooding = gateway.hub().prompted("flood", &words).0;
        let dialogue = Of::start(&gateway, "ask", &words);
        let asking = gateway.hub().prompted("ask", &words).0;
        let speed = [0, 10, 30][random.below(3)];
        let demo = Of::start(&gateway, "demo", &format!("seed {} speed {speed}", plan.seed));
        let sessions = [&*flood.session, &dialogue.session, &demo.session];
        let clients = if plan.replay { 2 } else { 3 };
        let followers = (0..clients).map(|_| Follower::start(&address, &sessions)).collect();
        let keeper = keeper_of(
            &gateway,
            match plan.target {
                Target::Flood => &flood.session,
                Target::Dialogue => &dialogue.session,
                Target::Demo => &demo.session,
            },
        );
        let target = (keeper, agent_of(keeper));
        Self {
            plan,
            gateway,
            address,
            flood,
            flooding,
            total: 0,
            dialogue,
            asking,
            asked: Vec::new(),
            demo,
            followers,
            target,
            fell: Fell::default(),
        }
    }

    /// Up to the kills, the kills, and on to the end.
    pub(super) fn play(
        mut self,
        references: &BTreeMap<usize, Vec<Value>>,
        random: &mut Random,
    ) -> (Gateway, Fell) {
        let enough = if self.plan.replay { 3500 } else { 200 } + random.below(1000) as u64;
        self.total = enough + 200 + random.below(2000) as u64;
        self.flooding.flood(self.total, LINE_BYTES, "e");
        for _ in 0..self.plan.answered {
            self.ask_and_answer(random);
        }
        if self.plan.demo > 0 {
            lead(&self.gateway, &self.followers[0], &self.demo, Some(self.plan.demo));
        }
        self.followers[0]
            .wait("the flood comes", |view| (view.seq(&self.flood.run) >= enough).then_some(()));
        let late = self.plan.replay.then(|| self.come_late(random));
        if self.plan.open {
            self.ask();
        }
        let held = self.plan.held.then(|| self.hold_the_store());
        if !self.plan.open && !self.plan.held {
            // The answer is on its way when the kills fall.
            self.ask_and_record(random);
        }
        self.kill_them();
        drop(held);
        self.count(late);
        if self.plan.victims.iter().any(|victim| matches!(victim, G | S)) {
            for ms in self.plan.again.clone() {
                self.gateway.start_and_kill(Duration::from_millis(ms as u64));
                self.fell.in_recovery = true;
            }
            self.gateway = self.gateway.restart();
            self.address.moved(&self.gateway);
        }
        self.finish(random);
        self.judge(references);
        self.clean()
    }

    /// The dialogue's agent asks, and everybody knows.
    fn ask(&mut self) -> String {
        let id = format!("q{}", self.asked.len());
        self.asked.push(None);
        self.asking.emit(&[json!({
            "kind": "permission_request", "requestId": id, "toolName": "Bash", "input": {},
        })]);
        self.followers[0].wait("the question", |view| view.open_of(&self.dialogue.session))
    }

    fn ask_and_record(&mut self, random: &mut Random) {
        let request = self.ask();
        self.record(&request, random);
    }

    fn record(&mut self, request: &str, random: &mut Random) {
        let allow = random.below(2) == 0;
        let (status, body) = answer(&self.gateway, request, allow);
        assert_eq!(status, 200, "{body}");
        *self.asked.last_mut().expect("one was asked") = Some(allow);
    }

    fn ask_and_answer(&mut self, random: &mut Random) {
        self.ask_and_record(random);
        self.asking.lines(1 + self.asked.len());
        self.answer_is_seen();
    }

    fn answer_is_seen(&self) {
        self.followers[0].wait("the answer is seen", |view| {
            view.open_of(&self.dialogue.session).is_none().then_some(())
        });
    }

    /// The third client: in the middle of its replay it stops reading.
    fn come_late(&self, random: &mut Random) -> Client {
        let mut client = self.gateway.connect();
        client.narrow();
        client.subscribe(&json!({"sessionId": self.flood.session, "from": "start"}));
        client.expect_at(&self.flood.run, 1 + random.below(300) as u64);
        client
    }

    /// Keeps the store from writing, and waits until it wants to.
    fn hold_the_store(&self) -> Connection {
        let database = Connection::open(self.gateway.setup.data_dir().join("reattach.db"));
        let database = database.expect("the database");
        database.busy_timeout(DEADLINE).expect("it is a setting");
        database.execute_batch("BEGIN IMMEDIATE").expect("the store's pause");
        // Should the flood be over already, this is still news.
        self.asking.say("something to write");
        eventually("the store wants to write", || {
            between_append_and_durable(&self.gateway.stderr()).then_some(())
        });
        database
    }

    fn kill_them(&mut self) {
        let over = |view: &View| !view.completes.is_empty();
        assert!(!self.followers[0].look(over), "the kills are to fall before any complete");
        self.fell.permission_open = self.followers[0].look(|view| !view.open.is_empty());
        for victim in self.plan.victims {
            match victim {
                G => {
                    self.fell.gateway = true;
                    self.gateway.kill();
                }
                S => assert!(self.gateway.terminate().success(), "it stops in good order"),
                K => assert!(kill(self.target.0), "the keeper lives"),
                A => assert!(kill(self.target.1), "the agent lives"),
            }
        }
    }

    /// Where the kills fell; the late client comes back from here on, like the others.
    fn count(&mut self, late: Option<Client>) {
        if self.fell.gateway {
            self.fell.between_append_and_durable =
                between_append_and_durable(&self.gateway.last_words());
        }
        let Some(mut client) = late else { return };
        client.read_to_end();
        let caught_up = client.seen.iter().any(|frame| frame.kind() == "caught_up");
        self.fell.in_replay = self.fell.gateway && !caught_up;
        let mut view = View::default();
        client.seen.iter().for_each(|frame| view.see(frame));
        let sessions = self.sessions();
        self.followers.push(Follower::go_on(&self.address, &sessions, view));
    }

    fn sessions(&self) -> [&str; 3] {
        [&self.flood.session, &self.dialogue.session, &self.demo.session]
    }

    fn hit(&self, target: Target) -> bool {
        self.plan.target == target && self.plan.reason() != "finished"
    }

    /// Leads what lives to its end.
    fn finish(&mut self, random: &mut Random) {
        // If it is dead nobody hears this.
        self.flooding.complete_later();
        if !self.hit(Target::Dialogue) {
            if self.asked.last() == Some(&None) {
                let follower = &self.followers[0];
                let request = follower.wait("what was asked before is still open", |view| {
                    view.open_of(&self.dialogue.session)
                });
                self.record(&request, random);
            }
            self.asking.lines(1 + self.asked.len());
            self.answer_is_seen();
            self.ask_and_answer(random);
            self.asking.finish();
        }
        if !self.hit(Target::Demo) {
            lead(&self.gateway, &self.followers[0], &self.demo, None);
        }
    }

    /// Everybody has seen the same, and that was everything.
    fn judge(&mut self, references: &BTreeMap<usize, Vec<Value>>) {
        let number = self.plan.number;
        let runs = [
            (Target::Flood, &self.flood),
            (Target::Dialogue, &self.dialogue),
            (Target::Demo, &self.demo),
        ];
        for (target, of) in runs {
            let reason = if self.hit(target) { self.plan.reason() } else { "finished" };
            let follower = &self.followers[0];
            let what = format!("round {number}: {target:?} ends");
            let complete = follower.wait(&what, |view| view.completes.get(&of.run).cloned());
            let json = &complete.json;
            assert_eq!(json["reason"], reason, "round {number}: {target:?}: {}", complete.text);
            assert_eq!(json["success"], reason == "finished", "{}", complete.text);
            for other in &self.followers[1..] {
                let same = other.complete(&of.run);
                assert_eq!(same.text, complete.text, "I8: round {number}");
            }
        }
        let mut kept = Ledger::new();
        for (target, of) in runs {
            let log = self.gateway.replay(&of.session);
            let mut checker = Checker::new();
            for frame in &log {
                checker.see(frame);
                kept.see(frame);
            }
            assert!(checker.ended(&of.session), "I1: round {number}: {target:?}");
            match target {
                Target::Flood => self.judge_flood(&log),
                Target::Dialogue => self.judge_dialogue(),
                Target::Demo if !self.hit(Target::Demo) => {
                    let (is, was) = (essence(&log), &references[&self.plan.seed]);
                    for (is, was) in is.iter().zip(was) {
                        assert_eq!(is, was, "round {number}: it goes on as it would have");
                    }
                    assert_eq!(is.len(), was.len(), "round {number}");
                }
                Target::Demo => {}
            }
        }
        for follower in std::mem::take(&mut self.followers) {
            let view = follower.stop();
            view.ledger.is_within(&kept);
            assert_eq!(view.ledger.len(), kept.len(), "I4: round {number}: it has seen all");
            self.fell.frames += view.ledger.len();
        }
    }

    fn judge_flood(&self, log: &[Frame]) {
        let number = self.plan.number;
        let mut texts = 0;
        for frame in log.iter().filter(|frame| frame.kind() == "text") {
            assert_eq!(frame.json["content"], format!("e{texts}"), "I8: round {number}: a hole");
            texts += 1;
        }
        match (self.hit(Target::Flood), self.plan.reason()) {
            (false, _) => assert_eq!(texts, self.total, "round {number}: all of it"),
            (true, "agent_exited") => {
                let sent = self.flooding.sent();
                assert!(texts + BATCH >= sent, "round {number}: {texts} of {sent} came");
            }
            _ => {}
        }
    }

    /// Each answer has reached the agent once, as it was given.
    fn judge_dialogue(&self) {
        let lines = self.asking.lines_so_far();
        let mut met = BTreeSet::new();
        for line in lines.iter().filter(|line| line["type"] == "permission-response") {
            let id = line["requestId"].as_str().expect("an id").to_owned();
            let at: usize = id.trim_start_matches('q').parse().expect("one of ours");
            assert_eq!(Some(line["allow"] == true), self.asked[at], "{line}");
            assert!(met.insert(id), "I20: round {}: twice: {line}", self.plan.number);
        }
        if !self.hit(Target::Dialogue) {
            assert_eq!(met.len(), self.asked.len(), "I20: round {}: {met:?}", self.plan.number);
        }
    }

    /// Nothing is left, and the next round begins with empty hands.
    fn clean(self) -> (Gateway, Fell) {
        expect_peace(&self.gateway);
        for session in self.sessions() {
            let path = format!("/api/v1/sessions/{session}");
            let (status, body) =
                self.gateway.request("DELETE", &path, None, Some(self.gateway.token()));
            assert!(matches!(status, 200 | 204), "{status}: {body}");
        }
        (self.gateway, self.fell)
    }
}

/// Whether the store had begun to write what was appended, and not yet finished, by its log.
fn between_append_and_durable(log: &str) -> bool {
    let begun = log.rfind(": committing items=");
    begun.is_some() && begun > log.rfind(": committed")
}
