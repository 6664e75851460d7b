//! Doing the steps of a scenario, and waiting until what follows from each has come.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::Message;

use super::frames::{Lane, Names, by_session, expanded, is_barrier, lane, matches, renamed};
use crate::support::client::{Ended, Mute};
use crate::support::{Agent, Checker, Client, DEADLINE, Gateway, Setup, eventually, let_time_pass};

/// Retention and heartbeat of the recording, in its own clock.
const RECORDED_RETENTION_MS: u64 = 300_000;

/// Runs one scenario to its end.
pub(super) fn run(scenario: &Value, verdict: &Value) {
    let mut runner = Runner::new(scenario, verdict);
    for step in verdict["before"].as_array().into_iter().flatten() {
        runner.step(step, &Value::Null);
    }
    let mut steps = scenario["steps"].as_array().expect("a scenario has steps").clone();
    // A verdict may add steps at the end.
    let mut extra = steps.len();
    while !verdict["steps"][extra.to_string()].is_null() {
        steps.push(json!({"op": "rest", "expect": {}}));
        extra += 1;
    }
    for (number, step) in steps.iter().enumerate() {
        let change = &verdict["steps"][number.to_string()];
        runner.at = format!("step {number} ({}): {change}", step["op"]);
        runner.step(step, change);
    }
    runner.end();
}

/// One agent process of a session, and what it was seen to be given.
struct Worker {
    agent: Agent,
    taken: usize,
    stopping: bool,
}

struct Runner {
    gateway: Gateway,
    codes: Value,
    retention: Duration,
    names: Names,
    at: String,
    clients: BTreeMap<String, Conn>,
    observer: Client,
    checker: Checker,
    /// Events of each session that the observer saw, and its completes.
    observed: BTreeMap<String, (u64, usize)>,
    workers: BTreeMap<String, Vec<Worker>>,
    options: Value,
}

/// A scenario's client.
enum Conn {
    Open { client: Box<Client>, ordered: VecDeque<Value>, free: Vec<Value>, read: usize },
    Mute(Mute),
    Gone,
}

impl Runner {
    fn new(scenario: &Value, verdict: &Value) -> Self {
        let mut setup = Setup::new();
        let mut config: Vec<(String, String, String)> = Vec::new();
        for line in verdict["config"].as_array().into_iter().flatten() {
            let part = |at: usize| line[at].as_str().expect("config has strings").to_owned();
            config.push((part(0), part(1), part(2)));
        }
        for (section, key, value) in &config {
            let section = match section.as_str() {
                "limits" => "limits",
                "timeouts" => "timeouts",
                other => panic!("a verdict configures {other}"),
            };
            setup = setup.set(section, key, value);
        }
        for name in ["claude", "codex", "cursor"] {
            setup = setup.scripted(name);
        }
        let unsupported = scenario["unsupportedProviders"].as_array().cloned().unwrap_or_default();
        for name in &unsupported {
            setup = setup.scripted(name.as_str().expect("names are strings"));
        }
        let project = setup.project().to_str().expect("test paths are UTF-8").to_owned();
        let mut gateway = setup.start();
        let mut names = Names { project, ..Names::default() };
        for (alias, session) in scenario["sessions"].as_object().expect("sessions are named") {
            let id = gateway.session(session["provider"].as_str().expect("a provider"));
            names.sessions.insert(format!("${alias}"), id);
        }
        if !unsupported.is_empty() {
            // The session was made while its provider was configured; now it no longer is.
            assert!(gateway.terminate().success());
            for name in &unsupported {
                gateway.setup.without(name.as_str().expect("names are strings"));
            }
            gateway = gateway.restart();
        }
        let mut observer = gateway.connect();
        for id in names.sessions.values() {
            observer.subscribe(&json!({"sessionId": id, "from": "tail"}));
        }
        let retention = Duration::from_millis(verdict["retentionMs"].as_u64().unwrap_or(0));
        Self {
            gateway,
            codes: verdict["codes"].clone(),
            retention,
            names,
            at: String::from("before step 0"),
            clients: BTreeMap::new(),
            observer,
            checker: Checker::new(),
            observed: BTreeMap::new(),
            workers: BTreeMap::new(),
            options: json!({}),
        }
    }

    fn step(&mut self, recorded: &Value, change: &Value) {
        if change["skip"].is_string() {
            return;
        }
        let mut step = recorded.clone();
        for (key, value) in change["with"].as_object().into_iter().flatten() {
            step[key] = value.clone();
        }
        let changed = change.get("expect");
        let expect = changed.cloned().unwrap_or_else(|| self.recorded(&recorded["expect"]));
        for conn in self.clients.values_mut() {
            if let Conn::Open { free, .. } = conn {
                free.clear();
            }
        }
        if let Some(reaction) = change.get("onAbort") {
            let lines: Vec<String> =
                serde_json::from_value(reaction["lines"].clone()).expect("lines are strings");
            let code = reaction["exit"].as_i64().and_then(|code| i32::try_from(code).ok());
            self.worker("$S1", None).agent.policy(&lines, code, None);
        }
        let op = step["op"].as_str().expect("a step has an op").to_owned();
        match op.as_str() {
            "client.connect" => self.connect(&step, &expect),
            "rest" => self.rest(&step, &expect["rest"]),
            "clock.advance" => self.advance(&step, &expect),
            _ if op.starts_with("client.") => self.client_op(&op, &step),
            _ => self.provider_op(&op, &step),
        }
        self.settle(&expect, change["order"] == "session");
        for alias in change["noUpsert"].as_array().into_iter().flatten() {
            self.no_upsert(alias.as_str().expect("an alias"));
        }
    }

    /// A recorded expectation under our names.
    fn recorded(&self, expect: &Value) -> Value {
        let mut expect = expect.clone();
        for (_, frames) in expect["clients"].as_object_mut().into_iter().flatten() {
            for frame in frames.as_array_mut().into_iter().flatten() {
                *frame = renamed(frame, &self.codes);
            }
        }
        expect
    }

    fn connect(&mut self, step: &Value, expect: &Value) {
        let secret = |kind: &Value| match kind.as_str() {
            None | Some("none") => None,
            Some("valid") => Some(self.gateway.token().to_owned()),
            Some(other) => Some(format!("no-token-of-ours-{other}")),
        };
        let mut path = step["path"].as_str().unwrap_or("/ws").to_owned();
        let mut headers = Vec::new();
        if step["queryToken"].is_null() && step["bearer"].is_null() {
            headers.push(("authorization", format!("Bearer {}", self.gateway.token())));
        }
        if let Some(token) = secret(&step["queryToken"]) {
            path = format!("{path}?token={token}");
        }
        if let Some(token) = secret(&step["bearer"]) {
            headers.push(("authorization", format!("Bearer {token}")));
        }
        let expected = &expect["handshake"];
        match Client::connect(self.gateway.port(), &path, &headers) {
            Ok(client) => {
                assert_eq!(expected["open"], true, "{}: the upgrade was allowed", self.at);
                let conn = if step["pong"] == false {
                    Conn::Mute(client.into_raw())
                } else {
                    let (ordered, free) = (VecDeque::new(), Vec::new());
                    Conn::Open { client: Box::new(client), ordered, free, read: 0 }
                };
                let name = step["client"].as_str().expect("a client has a name");
                self.clients.insert(name.to_owned(), conn);
            }
            Err(status) => {
                assert_eq!(expected["open"], false, "{}: refused with {status}", self.at);
                assert_eq!(expected["httpStatus"], status, "{}", self.at);
            }
        }
    }

    fn client_op(&mut self, op: &str, step: &Value) {
        let name = step["client"].as_str().expect("a client has a name");
        if matches!(op, "client.close" | "client.terminate") {
            let conn = self.clients.insert(name.to_owned(), Conn::Gone);
            match conn {
                Some(Conn::Open { client, .. }) if op == "client.close" => client.close(),
                Some(Conn::Open { client, .. }) => client.cut(),
                _ => panic!("{}: {name} is not connected", self.at),
            }
            return;
        }
        let message = match op {
            "client.send" => {
                let mut frame = self.names.put_into(&step["frame"]);
                if let Some(ours) =
                    frame["requestId"].as_str().and_then(|own| self.names.requests.get(own))
                {
                    frame["requestId"] = json!(ours);
                }
                if frame["type"] == "chat.send" {
                    let given = frame["options"].is_object().then(|| frame["options"].clone());
                    self.options = given.unwrap_or_else(|| json!({}));
                }
                Message::text(frame.to_string())
            }
            "client.sendRaw" => Message::text(self.names.put_into_text(text(&step["text"]))),
            "client.sendBinary" => Message::binary(text(&step["utf8"]).as_bytes().to_vec()),
            other => panic!("{}: {other} is no op", self.at),
        };
        match self.clients.get_mut(name) {
            Some(Conn::Open { client, .. }) => client.send_raw(message),
            _ => panic!("{}: {name} is not connected", self.at),
        }
    }

    fn worker(&mut self, alias: &str, run: Option<usize>) -> &mut Worker {
        let at = self.at.clone();
        let workers = self.workers.get_mut(alias);
        let workers = workers.unwrap_or_else(|| panic!("{at}: no agent of {alias}"));
        let index = run.map_or(workers.len(), |run| run) - 1;
        workers.get_mut(index).unwrap_or_else(|| panic!("{at}: no agent of run {index}"))
    }

    fn provider_op(&mut self, op: &str, step: &Value) {
        let alias = text(&step["session"]).to_owned();
        let run = step["run"].as_u64().map(|run| usize::try_from(run).expect("a small number"));
        let nth = run.unwrap_or_else(|| self.workers.get(&alias).map_or(0, Vec::len));
        self.observe();
        let session = self.names.sessions[&alias].clone();
        let (events, completes) = self.observed.get(&session).copied().unwrap_or_default();
        let running = completes < nth;
        let worker = self.worker(&alias, run);
        let agent = worker.agent.clone();
        let (stopping, gone) = (worker.stopping, agent.gone());
        match op {
            "provider.emit" => {
                let event = &step["event"];
                agent.emit_lines(vec![event.to_string()]);
                let held = stopping && event["kind"] == "complete";
                if running && !gone && !held && event["kind"] != "session_created" {
                    self.observe_until("the event", &session, |seen| seen.0 > events);
                }
            }
            "provider.emitMany" => {
                let count = step["count"].as_u64().expect("a count");
                let prefix = text(&step["contentPrefix"]);
                let lines = (0..count).map(|i| {
                    let mut event = step["event"].clone();
                    event["content"] = json!(format!("{prefix}{i}"));
                    event.to_string()
                });
                agent.emit_lines(lines.collect());
                self.observe_until("the events", &session, |seen| seen.0 >= events + count);
            }
            "provider.setSessionId" => agent.name_session(text(&step["id"])),
            "provider.permission" => {
                agent.emit(&[json!({
                    "kind": "permission_request", "requestId": step["requestId"],
                    "toolName": step["toolName"], "input": step["input"],
                })]);
            }
            "provider.exit" | "provider.throw" | "provider.resolveAbort" => {
                if op == "provider.throw" {
                    agent.stderr(&format!("{}\n", step["message"].as_str().unwrap_or("thrown")));
                }
                agent.exit(i32::from(op == "provider.throw"));
                if running {
                    self.observe_until("its complete", &session, |seen| seen.1 >= nth);
                }
            }
            "provider.onAbort" => match text_or_bool(&step["result"]).as_str() {
                "true" => agent.policy(&[], Some(0), None),
                "false" | "hang" => agent.policy(&[], None, None),
                "throw" => {
                    agent.policy(&[], None, None);
                    agent.ignore_signals();
                }
                other => panic!("{}: {other} is no result", self.at),
            },
            other => panic!("{}: {other} is no op", self.at),
        }
    }

    /// Takes what the observer has been sent, without waiting.
    fn observe(&mut self) {
        self.observer.barrier();
        self.observer_saw();
    }

    fn observer_saw(&mut self) {
        for frame in std::mem::take(&mut self.observer.seen) {
            self.checker.see(&frame);
            if frame.seq().is_some_and(|seq| seq > 0) {
                let session = text(&frame.json["sessionId"]).to_owned();
                let seen = self.observed.entry(session).or_default();
                seen.0 += 1;
                seen.1 += usize::from(frame.kind() == "complete");
            }
        }
    }

    fn observe_until(&mut self, what: &str, session: &str, done: impl Fn((u64, usize)) -> bool) {
        self.observer_saw();
        while !done(self.observed.get(session).copied().unwrap_or_default()) {
            self.observer.expect(&format!("{}: {what}", self.at), |frame| frame.seq().is_some());
            self.observer_saw();
        }
    }

    fn rest(&mut self, step: &Value, expect: &Value) {
        let mut path = self.names.put_into_text(text(&step["path"]));
        let mut expect = expect.clone();
        if path == "/api/providers/sessions/running" {
            path = String::from("/api/v1/runs?status=running");
            if let Some(sessions) = expect.pointer("/body/data/sessions") {
                expect["body"] = json!({ "items": sessions });
            }
        }
        assert!(path.starts_with("/api/v1/"), "{}: {path} has no place with us", self.at);
        let body = step.get("body").map(|body| self.names.put_into(body));
        let token = match step["auth"].as_str() {
            None => Some(self.gateway.token()),
            Some("none") => None,
            Some(_) => Some("no-token-of-ours"),
        };
        let method = text(&step["method"]);
        let (status, answer) = self.gateway.request(method, &path, body.as_ref(), token);
        assert_eq!(expect["status"], status, "{}: {answer}", self.at);
        let matched = matches(&self.names.put_into(&expect["body"]), &answer);
        assert_eq!(matched, Ok(()), "{}: {answer}", self.at);
    }

    /// Waits for the effect of the time that passes; where it has none that can be seen from
    /// outside, for that time itself, on the scale of the configured retention.
    fn advance(&mut self, step: &Value, expect: &Value) {
        if !self.retention.is_zero() {
            let ms = step["ms"].as_u64().expect("a time");
            let share = u32::try_from(ms / 1000).expect("less than an hour");
            let all = u32::try_from(RECORDED_RETENTION_MS / 1000).expect("five minutes");
            let_time_pass(self.retention * share / all + Duration::from_millis(20));
            return;
        }
        let effects = expect["clients"].as_object().expect("time shows at clients");
        let before: BTreeMap<&String, usize> =
            effects.keys().map(|name| (name, self.clients[name].pings())).collect();
        eventually(&format!("{}: {effects:?}", self.at), || {
            self.observer.read(Duration::from_millis(1));
            for conn in self.clients.values_mut() {
                conn.pump();
            }
            let shown = effects.iter().all(|(name, effect)| {
                let conn = &self.clients[name];
                match effect[0].get("$closed") {
                    Some(_) => conn.is_ended(),
                    None => conn.pings() > before[name] && !conn.is_ended(),
                }
            });
            shown.then_some(())
        });
    }

    /// Waits for all that is expected, then makes sure that nothing else has come.
    fn settle(&mut self, expect: &Value, by_sessions: bool) {
        for (name, frames) in expect["clients"].as_object().into_iter().flatten() {
            let frames = frames.as_array().expect("frames are a list");
            if frames.iter().any(|f| f.get("$ping").is_some() || f.get("$closed").is_some()) {
                continue;
            }
            self.settle_client(name, &expanded(frames), by_sessions);
        }
        for call in expect["provider"].as_array().into_iter().flatten() {
            self.settle_call(call);
        }
        let at = &self.at;
        for (name, conn) in &mut self.clients {
            if let Conn::Open { client, .. } = conn {
                client.barrier();
            }
            conn.sort();
            if let Conn::Open { ordered, .. } = conn {
                assert!(ordered.is_empty(), "{at}: {name} was sent more: {ordered:?}");
            }
        }
        for (alias, workers) in &self.workers {
            for worker in workers {
                let lines = worker.agent.lines_so_far();
                let more = &lines[worker.taken.min(lines.len())..];
                assert!(more.is_empty(), "{at}: the agent of {alias} was given more: {more:?}");
            }
        }
        for name in ["claude", "codex", "cursor", "opencode"] {
            assert!(self.gateway.hub().poll(name).is_none(), "{at}: another {name} was started");
        }
    }

    fn settle_client(&mut self, name: &str, frames: &[Value], by_sessions: bool) {
        let of = |wanted: Lane| frames.iter().filter(move |frame| lane(frame) == wanted);
        let in_order: Vec<Value> = of(Lane::Ordered).cloned().collect();
        let mut got = Vec::new();
        for expected in &in_order {
            let actual = self.next_ordered(name, expected);
            if !by_sessions {
                self.compare(name, expected, &actual);
            }
            got.push(actual);
        }
        if by_sessions {
            let wanted = in_order.iter().map(|frame| self.names.put_into(frame)).collect();
            for (expected, actual) in by_session(wanted).iter().zip(by_session(got)) {
                self.compare(name, expected, &actual);
            }
        }
        for expected in of(Lane::Free) {
            self.find_free(name, &self.names.put_into(expected));
        }
    }

    fn compare(&mut self, name: &str, expected: &Value, actual: &Value) {
        let named = self.names.put_into(expected);
        let matched = matches(&named, actual);
        assert_eq!(matched, Ok(()), "{}, {name}: {actual}", self.at);
        if let Some(own) =
            expected["requestId"].as_str().and_then(|id| id.strip_prefix("<request:"))
        {
            let own = own.trim_end_matches('>').to_owned();
            self.names.requests.entry(own).or_insert_with(|| text(&actual["requestId"]).to_owned());
        }
    }

    fn next_ordered(&mut self, name: &str, expected: &Value) -> Value {
        let at = &self.at;
        let conn = self.clients.get_mut(name).unwrap_or_else(|| panic!("{at}: no client {name}"));
        loop {
            conn.sort();
            let Conn::Open { client, ordered, .. } = conn else { panic!("{at}: {name} is gone") };
            if let Some(frame) = ordered.pop_front() {
                return frame;
            }
            let came = client.read(DEADLINE);
            assert!(came.is_some(), "{at}: {name} waits in vain for {expected}");
        }
    }

    fn find_free(&mut self, name: &str, expected: &Value) {
        let at = &self.at;
        let conn = self.clients.get_mut(name).unwrap_or_else(|| panic!("{at}: no client {name}"));
        loop {
            conn.sort();
            let Conn::Open { client, free, .. } = conn else { panic!("{at}: {name} is gone") };
            if let Some(found) = free.iter().position(|frame| matches(expected, frame).is_ok()) {
                free.remove(found);
                return;
            }
            let came = client.read(DEADLINE);
            assert!(came.is_some(), "{at}: {name} waits for {expected}; there is {free:?}");
        }
    }

    fn settle_call(&mut self, call: &Value) {
        let session = [&call["session"], &call["options"]["sessionId"], &call["sessionId"]];
        let alias = session.iter().find_map(|alias| alias.as_str()).unwrap_or("$S1").to_owned();
        if call["call"] == "run" {
            let content = self.names.put_into_text(text(&call["command"]));
            let before = self.workers.get(&alias).and_then(|workers| workers.last());
            let before = before.map(|worker| worker.agent.pid());
            let (agent, prompt) = self.gateway.hub().prompted(text(&call["provider"]), &content);
            if let Some(pid) = before {
                let alive = crate::support::process::alive(pid);
                assert!(!alive, "{}: two agent processes of one session", self.at);
            }
            assert_eq!(prompt["cwd"], self.names.project, "{}", self.at);
            assert_eq!(prompt["options"], self.options, "{}", self.at);
            if let Some(native) = call.get("providerSessionId") {
                assert_eq!(&prompt["providerSessionId"], native, "{}", self.at);
            }
            // The scenario says when it ends, not its stdin.
            agent.policy(&[], Some(0), None);
            let worker = Worker { agent, taken: 1, stopping: false };
            self.workers.entry(alias).or_default().push(worker);
            return;
        }
        let expected = match text(&call["call"]) {
            "abort" => json!({"type": "abort"}),
            "resolveToolApproval" => {
                let decision = &call["decision"];
                let mut line = json!({"type": "permission-response"});
                line["requestId"] = call["requestId"].clone();
                for key in ["allow", "updatedInput", "message"] {
                    if let Some(value) = decision.get(key) {
                        line[key] = value.clone();
                    }
                }
                line
            }
            other => panic!("{}: {other} is no call", self.at),
        };
        let at = self.at.clone();
        let worker = self.worker(&alias, None);
        worker.taken += 1;
        worker.stopping |= expected["type"] == "abort";
        let lines = worker.agent.lines(worker.taken);
        let matched = matches(&expected, &lines[worker.taken - 1]);
        assert_eq!(matched, Ok(()), "{at}: {lines:?}");
    }

    fn no_upsert(&self, alias: &str) {
        let session = &self.names.sessions[alias];
        for conn in self.clients.values() {
            let Conn::Open { free, .. } = conn else { continue };
            for frame in free {
                let announced =
                    frame["kind"] == "session_upserted" && frame["sessionId"] == *session;
                assert!(!announced, "{}: announced without need: {frame}", self.at);
            }
        }
    }

    /// A proper shutdown flushes whatever was still on its way: of runs that had ended nothing
    /// more may come, and the observer's view must hold all invariants to the end.
    fn end(mut self) {
        self.at = String::from("at the end");
        self.observe();
        let ended: BTreeMap<String, bool> = self
            .names
            .sessions
            .values()
            .map(|id| (id.clone(), self.checker.cursor(id).is_none() || self.checker.ended(id)))
            .collect();
        let status = self.gateway.terminate();
        assert!(status.success(), "SIGTERM drains and exits 0: {status}");
        assert_ne!(self.observer.read_to_end(), Ended::Dropped, "draining closes with 1001");
        self.observer_saw();
        for (name, mut conn) in self.clients {
            if let Conn::Open { client, .. } = &mut conn {
                client.read_to_end();
            }
            conn.sort();
            let Conn::Open { ordered, .. } = conn else { continue };
            for frame in ordered {
                let session = frame["sessionId"].as_str().unwrap_or_default();
                let allowed =
                    frame["kind"] == "server_draining" || ended.get(session) == Some(&false);
                assert!(allowed, "at the end {name} was sent more: {frame}");
            }
        }
    }
}

impl Conn {
    /// Protocol pings so far.
    fn pings(&self) -> usize {
        match self {
            Self::Open { client, .. } => client.pings,
            Self::Mute(mute) => mute.pings,
            Self::Gone => 0,
        }
    }

    fn is_ended(&self) -> bool {
        match self {
            Self::Open { client, .. } => client.ended.is_some(),
            Self::Mute(mute) => mute.ended,
            Self::Gone => true,
        }
    }

    /// Takes what has come, and (unless it is mute) answers pings.
    fn pump(&mut self) {
        match self {
            Self::Open { client, .. } => drop(client.read(Duration::from_millis(1))),
            Self::Mute(mute) => mute.read(Duration::from_millis(1)),
            Self::Gone => {}
        }
    }

    /// Sorts what came into its lanes.
    fn sort(&mut self) {
        let Self::Open { client, ordered, free, read } = self else { return };
        for frame in &client.seen[*read..] {
            match lane(&frame.json) {
                Lane::Ordered => ordered.push_back(frame.json.clone()),
                Lane::Free if is_barrier(frame) => {}
                Lane::Free => free.push(frame.json.clone()),
            }
        }
        *read = client.seen.len();
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a string is missing: {value}"))
}

fn text_or_bool(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
