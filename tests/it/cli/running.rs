//! `run`, `send`, `abort`, `ps`, `permissions`, `allow`, `deny`.

use serde_json::{Value, json};

use super::{Live, command, json_lines, run, session_in};
use crate::support::{Gateway, Setup, eventually};

fn permission(id: &str) -> Value {
    json!({"kind": "permission_request", "requestId": id, "toolName": "Bash",
        "input": {"command": "rm x"}})
}

/// The requests that wait.
#[track_caller]
fn waiting(gateway: &Gateway, count: usize) -> Vec<Value> {
    eventually(&format!("{count} requests wait"), || {
        let list = run(gateway, &["permissions", "--json"], 0).json();
        let list = list.as_array().expect("an array").clone();
        (list.len() == count).then_some(list)
    })
}

#[test]
fn run_shows_the_run_and_ends_as_it_ends() {
    let gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "do it", "-a", "fake"]));
    let (agent, _) = gateway.hub().prompted("fake", "do it");
    live.err.wait("session ");
    agent.say("first words");
    // Live: shown while the run goes on.
    live.out.wait("first words\n");
    agent.finish();
    let ran = live.end().expect(0);
    assert!(ran.out.contains("> do it\n"), "{}", ran.out);
    assert!(ran.out.contains("--- finished"), "{}", ran.out);
    assert!(!ran.out.contains('\u{1b}') && !ran.err.contains('\u{1b}'), "no colours in a pipe");
}

#[test]
fn a_run_that_fails_fails_the_command() {
    let gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    agent.stderr("it broke\n");
    agent.exit(3);
    let ran = live.end().expect(10);
    assert!(ran.out.contains("agent exited · exit 3"), "{}", ran.out);
    assert!(ran.out.contains("it broke"), "the agent's stderr is shown: {}", ran.out);
}

#[test]
fn a_program_that_is_not_there_has_the_shells_code() {
    let setup = Setup::new().provider("ghost", "jsonl", &["/nonexistent/program"]);
    let plain = setup.root.path().join("plain");
    std::fs::write(&plain, "no program").expect("the root is writable");
    let plain = plain.to_str().expect("test paths are UTF-8").to_owned();
    let gateway = setup.provider("plain", "jsonl", &[&plain]).start();
    run(&gateway, &["run", "x", "-a", "ghost"], 127);
    run(&gateway, &["run", "x", "-a", "plain"], 126);
}

#[test]
fn json_is_the_stored_events_line_by_line() {
    let gateway = Setup::with_fake().start();
    let args = ["run", "-", "-a", "fake", "--json", "--title", "T", "--option", "a={\"b\":1.50}"];
    let mut from_stdin = command(&gateway, &args);
    let prompt = gateway.setup.root.path().join("prompt");
    std::fs::write(&prompt, "from a\nfile").expect("the root is writable");
    from_stdin.stdin(std::fs::File::open(&prompt).expect("just written"));
    let live = Live::start(from_stdin);
    let (agent, prompt) = gateway.hub().prompted("fake", "from a\nfile");
    assert_eq!(prompt["options"], json!({"a": {"b": 1.5}}));
    agent
        .emit(&[json!({"kind": "odd", "z": 1.10, "a": "\u{2028}\n", "n": 123456789012345678_u64})]);
    agent.finish();
    let ran = live.end().expect(0);
    let session = session_in(&ran.err);
    let kinds: Vec<Value> = json_lines(&ran.out).iter().map(|e| e["kind"].clone()).collect();
    assert_eq!(kinds, ["run_started", "odd", "complete"]);
    let logs = run(&gateway, &["logs", &session, "--json"], 0);
    assert_eq!(ran.out, logs.out, "byte for byte");
    assert_eq!(run(&gateway, &["logs", "T", "--json"], 0).out, logs.out, "by its title");
}

#[test]
fn a_detached_run_goes_on_and_can_be_stopped() {
    let gateway = Setup::with_fake().start();
    let started = run(&gateway, &["run", "x", "-a", "fake", "--detach", "--json"], 0).json();
    let (session, run_id) = (started["sessionId"].as_str(), started["runId"].as_str());
    let (session, run_id) = (session.expect("an id"), run_id.expect("an id"));
    let agent = gateway.hub().next("fake");
    let ps = run(&gateway, &["ps", "--json"], 0).json();
    assert_eq!((&ps[0]["id"], &ps[0]["run"]["id"]), (&json!(session), &json!(run_id)));
    let table = run(&gateway, &["ps"], 0).out;
    assert!(table.contains(session) && table.contains("running"), "{table}");

    agent.policy(&[], Some(0), None);
    let stopped = run(&gateway, &["abort", &session[..8], "--wait", "--json"], 0).json();
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["run"]["aborted"], true);
    assert!(agent.gone(), "stopped means stopped");
    assert_eq!(run(&gateway, &["ps", "--json"], 0).json(), json!([]));
    assert_eq!(run(&gateway, &["ps", "-a", "--json"], 0).json()[0]["id"], session);
    run(&gateway, &["abort", session], 6);
    run(&gateway, &["attach", session, "--until-complete"], 11);
}

#[test]
fn every_run_can_be_stopped_at_once() {
    let gateway = Setup::with_fake().start();
    let none = run(&gateway, &["abort", "--all", "--json"], 0).json();
    assert_eq!(none, json!({"state": "stopping", "runs": []}), "nothing runs, as was wished");
    assert_eq!(run(&gateway, &["abort", "-a", "--wait"], 0).out, "nothing runs\n");
    let mut agents = Vec::new();
    for prompt in ["one", "two", "three"] {
        run(&gateway, &["run", prompt, "-a", "fake", "--detach"], 0);
        let agent = gateway.hub().prompted("fake", prompt).0;
        agent.policy(&[], Some(0), None);
        agents.push(agent);
    }
    agents.remove(0).finish();
    eventually("one has ended by itself", || {
        let running = run(&gateway, &["ps", "--json"], 0).json();
        (running.as_array().map(Vec::len) == Some(2)).then_some(())
    });
    let stopped = run(&gateway, &["abort", "--all", "--wait", "--json"], 0).json();
    assert_eq!(stopped["state"], "stopped");
    let runs = stopped["runs"].as_array().expect("a list");
    assert_eq!(runs.len(), 2, "{stopped}");
    for run in runs {
        assert_eq!((&run["state"], &run["run"]["aborted"]), (&json!("stopped"), &json!(true)));
    }
    assert!(agents.iter().all(|agent| agent.gone()), "stopped means stopped");
    assert_eq!(run(&gateway, &["ps", "--json"], 0).json(), json!([]));
}

#[test]
fn stopping_all_says_how_many_and_has_an_end() {
    let gateway = Setup::with_fake().start();
    run(&gateway, &["run", "x", "-a", "fake", "--detach"], 0);
    let agent = gateway.hub().next("fake");
    agent.policy(&[], None, None);
    agent.ignore_signals();
    let ran = run(&gateway, &["abort", "--all", "--wait", "--timeout", "100ms"], 7);
    assert_eq!(ran.out, "stopping 1 run\n");
    assert_eq!(run(&gateway, &["abort", "--all"], 0).out, "stopping 1 run\n", "asked again");
}

#[test]
fn the_first_interrupt_of_run_stops_the_agent() {
    let gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    agent.policy(&[], Some(0), None);
    agent.say("at work");
    live.out.wait("at work");
    live.interrupt();
    agent.line("the abort", |line| line["type"] == "abort");
    let ran = live.end().expect(11);
    assert!(ran.err.contains("stopping..."), "{}", ran.err);
    assert!(ran.out.contains("--- aborted"), "{}", ran.out);
}

#[test]
fn the_second_interrupt_of_run_leaves_the_agent_alone() {
    let gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    agent.policy(&[], None, None);
    agent.ignore_signals();
    agent.say("at work");
    live.out.wait("at work");
    live.interrupt();
    agent.line("the abort", |line| line["type"] == "abort");
    live.interrupt();
    let ran = live.end().expect(0);
    assert!(ran.err.contains("detached; the run goes on: reattach attach"), "{}", ran.err);
}

#[test]
fn without_input_a_permission_ends_the_watching_and_not_the_run() {
    let gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake", "--no-input"]));
    let agent = gateway.hub().next("fake");
    agent.emit(&[permission("p1")]);
    let ran = live.end().expect(12);
    assert!(ran.err.contains("reattach allow "), "it says how to answer: {}", ran.err);
    let session = session_in(&ran.err);

    let request = waiting(&gateway, 1).remove(0);
    assert_eq!(request["sessionId"], session.as_str());
    let id = request["requestId"].as_str().expect("an id").to_owned();
    let human = run(&gateway, &["permissions"], 0).out;
    assert!(human.contains("Bash") && human.contains("rm x") && human.contains(&id), "{human}");
    assert!(run(&gateway, &["ps"], 0).out.contains("waiting"));

    let prefix = &id[..id.len() - 1];
    let args = ["allow", prefix, "--input", "{\"command\":\"ls\"}", "-m", "careful", "--json"];
    let allowed = run(&gateway, &args, 0).json();
    assert_eq!(allowed["requestId"], id.as_str());
    let answer = agent.line("an answer", |line| line["type"] == "permission-response");
    assert_eq!(answer["requestId"], "p1");
    assert_eq!(answer["allow"], true);
    assert_eq!(answer["updatedInput"], json!({"command": "ls"}));
    assert_eq!(answer["message"], "careful");
    run(&gateway, &["deny", &id], 6);
    run(&gateway, &["deny", "nobody:asked"], 3);

    agent.emit(&[permission("p2")]);
    let id = waiting(&gateway, 1).remove(0)["requestId"].as_str().expect("an id").to_owned();
    run(&gateway, &["deny", &id], 0);
    let answer = agent.line("a denial", |line| line["requestId"] == "p2");
    assert_eq!(answer["allow"], false);
    agent.finish();
    run(&gateway, &["attach", &session, "--wait", "--no-input"], 0);
}

#[test]
fn a_run_without_a_terminal_says_how_to_answer_and_waits() {
    let gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake"]));
    let agent = gateway.hub().next("fake");
    agent.emit(&[json!({"kind": "permission_request", "requestId": "q", "toolName": "Ask",
        "interaction": "question", "input": {"kept": true},
        "questions": [{"id": "tone", "text": "Which?", "options": ["warm", "cold"], "multi": false}]
    })]);
    live.err.wait("waits for an answer");
    let request = waiting(&gateway, 1).remove(0);
    let id = request["requestId"].as_str().expect("an id");
    run(&gateway, &["allow", id, "--answer", "3"], 2);
    run(&gateway, &["allow", id, "--answer", "tone=2"], 0);
    let answer = agent.line("an answer", |line| line["type"] == "permission-response");
    assert_eq!(answer["updatedInput"], json!({"kept": true, "answers": {"tone": "cold"}}));
    agent.finish();
    let ran = live.end().expect(0);
    assert!(ran.out.contains("1) warm") && ran.out.contains("2) cold"), "{}", ran.out);
}

#[test]
fn send_acknowledges_or_waits() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let sent = run(&gateway, &["send", &session, "one", "--message-id", "m1", "--json"], 0).json();
    let agent = gateway.hub().prompted("fake", "one").0;
    assert_eq!(sent["duplicate"], false);
    let again = run(&gateway, &["send", "-", "one", "--message-id", "m1", "--json"], 0).json();
    assert_eq!((&again["runId"], &again["duplicate"]), (&sent["runId"], &json!(true)));
    let busy = run(&gateway, &["send", &session[..6], "two"], 6);
    assert!(busy.err.contains(&format!("reattach attach {session}")), "{}", busy.err);
    agent.finish();
    run(&gateway, &["attach", &session, "--wait"], 0);

    let live = Live::start(command(&gateway, &["send", "one", "three", "--wait"]));
    let agent = gateway.hub().prompted("fake", "three").0;
    agent.say("the answer");
    agent.finish();
    let ran = live.end().expect(0);
    assert!(ran.out.contains("the answer"), "{}", ran.out);
    assert!(!ran.out.contains("> one"), "only its own run: {}", ran.out);
}

#[test]
fn the_watching_has_an_end_and_the_run_has_not() {
    let gateway = Setup::with_fake().start();
    let live = Live::start(command(&gateway, &["run", "x", "-a", "fake", "--timeout", "200ms"]));
    let agent = gateway.hub().next("fake");
    let ran = live.end().expect(7);
    assert!(ran.err.contains("the run goes on"), "{}", ran.err);
    assert!(!agent.gone());
    agent.policy(&[], None, None);
    agent.ignore_signals();
    let session = session_in(&ran.err);
    run(&gateway, &["abort", &session, "--wait", "--timeout", "100ms"], 7);
}

/// Work that the agent has put into the background reports, and the agent goes on with it.
#[test]
fn an_agent_that_goes_on_by_itself_is_watched_answered_and_not_disturbed() {
    let gateway = Setup::new().with_fake_claude().start();
    let report = gateway.setup.root.path().join("report");
    let prompt = format!("say at work\nbackground {}", report.display());
    let ran = run(&gateway, &["run", &prompt, "-a", "claude"], 0);
    let session = session_in(&ran.err);
    assert!(!ran.out.contains("by itself"), "somebody asked for this one: {}", ran.out);
    std::fs::write(&report, "say it is built\nask\n").expect("the root is writable");
    let request = waiting(&gateway, 1).remove(0);
    let table = run(&gateway, &["sessions"], 0).out;
    assert!(table.contains("waiting"), "who needs you comes first: {table}");
    let busy = run(&gateway, &["send", &session, "more"], 6);
    assert!(busy.err.contains("going on by itself"), "{}", busy.err);
    assert!(busy.err.contains(&format!("reattach attach {session}")), "{}", busy.err);
    run(&gateway, &["allow", request["requestId"].as_str().expect("an id")], 0);
    let seen = run(&gateway, &["attach", &session, "--until-complete"], 0).out;
    let (_, second) = seen.split_once("(the agent went on by itself)\n").expect("it says so");
    assert!(second.contains("it is built") && second.contains("--- finished"), "{second}");
    let events = json_lines(&run(&gateway, &["logs", &session, "--json"], 0).out);
    let origins: Vec<(&Value, &Value)> = events
        .iter()
        .filter(|event| event["kind"] == "run_started")
        .map(|event| (&event["origin"], &event["content"]))
        .collect();
    assert_eq!(origins, [(&json!("user"), &json!(prompt)), (&json!("agent"), &json!(""))]);

    let again = format!("say again\nbackground {}", report.with_extension("2").display());
    run(&gateway, &["send", &session, &again, "--wait"], 0);
    std::fs::write(report.with_extension("2"), "hold\n").expect("the root is writable");
    eventually("it runs by itself", || {
        run(&gateway, &["ps"], 0).out.contains("running by itself").then_some(())
    });
    let stopped = run(&gateway, &["abort", "--all", "--wait", "--json"], 0).json();
    assert_eq!(stopped["runs"][0]["run"]["origin"], "agent", "{stopped}");
    assert_eq!(stopped["runs"][0]["run"]["aborted"], true);
}

#[test]
fn a_prompt_can_wait_and_be_taken_out_again() {
    let gateway = Setup::with_fake().start();
    let started = run(&gateway, &["run", "one", "-a", "fake", "--detach", "--json"], 0).json();
    let session = started["sessionId"].as_str().expect("an id");
    let (agent, _) = gateway.hub().prompted("fake", "one");
    run(&gateway, &["send", session, "two"], 6);
    let two = run(&gateway, &["send", session, "two", "--queue", "--json"], 0).json();
    assert_eq!((&two["position"], &two["sessionId"]), (&json!(1), &json!(session)), "{two}");
    let told = run(&gateway, &["send", "-q", session, "three", "--message-id", "m"], 0);
    assert!(told.out.starts_with("queued ") && told.err.contains("reattach queue"), "{told:?}");
    let again = run(&gateway, &["send", "-q", session, "three", "--message-id", "m"], 0);
    assert!(again.out.contains("place 2 (sent before)"), "{again:?}");
    run(&gateway, &["send", session, "x", "--queue", "--wait"], 2);

    let table = run(&gateway, &["queue", session], 0).out;
    assert!(table.contains("two") && table.lines().count() == 2, "{table}");
    let id = two["queueId"].as_str().expect("an id");
    let left = run(&gateway, &["queue", session, "--remove", id, "--json"], 0).json();
    assert_eq!((&left["items"][0]["content"], &left["held"]), (&json!("three"), &json!(false)));
    run(&gateway, &["queue", session, "--remove", id], 3);
    agent.policy(&[], Some(0), None);
    run(&gateway, &["abort", session, "--wait"], 0);
    let held = run(&gateway, &["queue", session], 0);
    assert!(held.err.contains("--resume"), "{held:?}");
    run(&gateway, &["queue", session, "--resume"], 0);
    gateway.hub().prompted("fake", "three").0.finish();
}
