//! How runs end: by themselves, by an abort, with their process, with their keeper, with the
//! gateway. Whoever ends one, it has one `complete`, and nothing that it started is left.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::client::Ended;
use crate::support::process::alive;
use crate::support::{Checker, Frame, Gateway, Setup, begin, eventually, of_runs, one_session};

/// The log of the session, read afresh, holds all invariants: gives its last frame.
#[track_caller]
fn checked_end(gateway: &Gateway, session: &str) -> Frame {
    let mut checker = Checker::new();
    let log = gateway.replay(session);
    log.iter().for_each(|frame| checker.see(frame));
    assert!(checker.ended(session), "I1: the last run has no end");
    log.last().expect("there is a log").clone()
}

#[test]
fn abort_leaves_nothing_alive_however_stubborn() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "be stubborn");
    agent.policy(&[], None, None);
    agent.ignore_signals();
    let grandchild = agent.escape();
    let pids = [agent.pid(), grandchild.pid()];
    agent.say("at work");
    client.expect_at(&run, 1);
    let ack = client.request(&json!({"type": "chat.abort", "sessionId": session}));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);
    let again = client.request(&json!({"type": "chat.abort", "sessionId": session, "runId": run}));
    assert_eq!(again.kind(), "ack", "a second abort meanwhile: {}", again.text);
    let busy = client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "next",
    }));
    assert_eq!(busy.json["code"], "RUN_IN_PROGRESS", "{}", busy.text);
    let complete = client.expect_complete(&run);
    assert!(pids.iter().all(|pid| !alive(*pid)), "I21: {pids:?} after complete");
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    assert_eq!(complete.json["reason"], "aborted");
    assert_eq!((&complete.json["exitCode"], &complete.json["success"]), (&json!(1), &json!(false)));
    gateway.expect_no_agents();
    let late = client.request(&json!({"type": "chat.abort", "sessionId": session, "runId": run}));
    assert_eq!(late.json["code"], "NO_ACTIVE_RUN", "{}", late.text);
    let log = gateway.replay(&session);
    let completes = log.iter().filter(|frame| frame.kind() == "complete").count();
    assert_eq!(completes, 1, "I1");
    assert!(agent.lines_so_far().iter().any(|line| line["type"] == "abort"), "it was asked first");
    // The session is free again.
    let (run, agent) = begin(&gateway, &mut client, &session, "after");
    agent.finish();
    client.expect_complete(&run);
}

#[test]
fn a_grandchild_that_outlives_the_agent_is_stopped_at_the_end_of_the_run() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "leave a child");
    let grandchild = agent.escape();
    agent.exit(3);
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "agent_exited", "{}", complete.text);
    assert_eq!((&complete.json["exitCode"], &complete.json["aborted"]), (&json!(3), &json!(false)));
    grandchild.wait_gone();
    gateway.expect_no_agents();
}

#[test]
fn an_agent_killed_by_a_signal_has_no_exit_code_but_its_last_words() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "die");
    agent.stderr("something is very wrong\n");
    agent.kill(9);
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "agent_exited", "{}", complete.text);
    assert_eq!(complete.json["exitCode"], Value::Null);
    assert_eq!(complete.json["success"], false);
    let error = complete.json["error"].as_str().unwrap_or_default();
    assert!(error.contains("something is very wrong"), "{}", complete.text);
}

#[test]
fn the_end_of_stdout_is_not_the_end_of_the_run() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "close stdout");
    agent.say("last words");
    agent.close_stdout();
    client.expect_at(&run, 1);
    let (_, of_rest) = gateway.get(&format!("/api/v1/runs/{run}"));
    assert_eq!(of_rest["status"], "running", "{of_rest}");
    agent.exit(0);
    let complete = client.expect_complete(&run);
    assert_eq!((&complete.json["reason"], complete.seq()), (&json!("agent_exited"), Some(2)));
}

#[test]
fn a_program_that_is_missing_makes_a_run_that_says_so() {
    let setup = Setup::new().provider("missing", "jsonl", &["no-such-program-anywhere"]).provider(
        "folder",
        "jsonl",
        &["/"],
    );
    let gateway = setup.start();
    for provider in ["missing", "folder"] {
        let session = gateway.session(provider);
        let mut client = gateway.connect();
        let run = client.prompt(&session, "hello");
        let complete = client.expect_complete(&run);
        assert_eq!(complete.json["reason"], "spawn_failed", "{}", complete.text);
        assert_eq!(complete.json["success"], false);
        assert!(complete.json["error"].is_string(), "it says what to do: {}", complete.text);
        let mut checker = Checker::new();
        of_runs(&client).iter().for_each(|frame| checker.see(frame));
        let (_, of_rest) = gateway.get(&format!("/api/v1/runs/{run}"));
        assert_eq!(
            (&of_rest["status"], &of_rest["reason"]),
            (&json!("completed"), &json!("spawn_failed"))
        );
        // And the session is free.
        let again = client.prompt(&session, "again");
        client.expect_complete(&again);
    }
}

#[test]
fn what_is_open_at_the_end_is_closed_before_complete() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "leave things open");
    agent.emit(&[
        json!({"kind": "tool_use", "toolId": "t1", "toolName": "Bash", "toolInput": {}}),
        json!({"kind": "permission_request", "requestId": "p", "toolName": "Bash", "input": {}}),
    ]);
    let asked = client.expect("the request", |f| f.is("permission_request", &session));
    agent.finish();
    let complete = client.expect_complete(&run);
    let closing: Vec<&str> =
        client.seen.iter().filter(|f| f.seq() > asked.seq()).map(Frame::kind).collect();
    assert!(closing.contains(&"tool_result"), "{closing:?}");
    assert!(closing.contains(&"permission_cancelled"), "{closing:?}");
    let result = client.seen.iter().find(|f| f.kind() == "tool_result").expect("just seen");
    assert_eq!((&result.json["toolId"], &result.json["synthetic"]), (&json!("t1"), &json!(true)));
    let gone = client.seen.iter().find(|f| f.kind() == "permission_cancelled").expect("just seen");
    assert_eq!(gone.json["reason"], "run_ended", "{}", gone.text);
    assert_eq!(complete.json["success"], true, "{}", complete.text);
    assert_eq!(gateway.get("/api/v1/permissions").1["items"], json!([]));
    let late = client.request(&json!({
        "type": "chat.permission-response", "requestId": asked.json["requestId"], "allow": true,
    }));
    let code = late.json["code"].as_str().unwrap_or_default();
    assert!(code.starts_with("PERMISSION_"), "{}", late.text);
}

/// A session of a gateway that ends agents when it stops.
fn aborting_session() -> (Gateway, String) {
    let mut setup = Setup::with_fake();
    setup.arguments.extend(["--on-stop".to_owned(), "abort".to_owned()]);
    let gateway = setup.start();
    let session = gateway.session("fake");
    (gateway, session)
}

#[test]
fn sigterm_ends_runs_tells_clients_and_exits_0() {
    let (mut gateway, session) = aborting_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "long");
    agent.say("at work");
    client.expect_at(&run, 1);
    gateway.signal(Signal::TERM);
    client.expect("the announcement", |f| f.kind() == "server_draining");
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["success"], false, "{}", complete.text);
    let reason = complete.json["reason"].as_str().unwrap_or_default().to_owned();
    assert!(matches!(&*reason, "aborted" | "shutdown"), "{}", complete.text);
    assert_eq!(client.read_to_end(), Ended::Closed(1001));
    assert!(gateway.wait().success());
    assert!(!alive(agent.pid()), "I21");
    let gateway = gateway.restart();
    let log = gateway.replay(&session);
    assert_eq!(log.last().map(|frame| frame.text.clone()), Some(complete.text));
}

#[test]
fn an_agent_that_only_heeds_the_end_of_its_stdin_did_not_stop_on_the_abort() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "deaf");
    agent.policy(&[], None, Some(0));
    client.request(&json!({"type": "chat.abort", "sessionId": session}));
    let complete = client.expect_complete(&run);
    assert_eq!((&complete.json["aborted"], &complete.json["exitCode"]), (&json!(true), &json!(1)));
}

#[test]
fn an_abort_in_a_flood_ends_it() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "flood");
    agent.policy(&[], None, None);
    let grandchild = agent.escape();
    agent.flood(u64::MAX, 200, "e");
    client.expect_at(&run, 1000);
    client.forget();
    let ack = client.request(&json!({"type": "chat.abort", "sessionId": session, "runId": run}));
    assert_eq!(ack.kind(), "ack", "{}", ack.text);
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    assert!(!alive(agent.pid()) && !alive(grandchild.pid()), "I21: alive after complete");
    assert_eq!(checked_end(&gateway, &session).text, complete.text);
}

#[test]
fn an_abort_and_a_natural_end_that_cross_give_one_end() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (mut aborted, mut finished) = (0, 0);
    for round in 0..20 {
        let (run, agent) = begin(&gateway, &mut client, &session, &format!("round {round}"));
        let abort = json!({"type": "chat.abort", "sessionId": session, "runId": run});
        if round % 2 == 0 {
            client.send(&abort);
            agent.finish();
        } else {
            agent.complete();
            client.send(&abort);
            agent.exit(0);
        }
        let complete = client.expect_complete(&run);
        let was_aborted = complete.json["aborted"] == true;
        let reason = if was_aborted { "aborted" } else { "finished" };
        assert_eq!(complete.json["reason"], reason, "{}", complete.text);
        assert_eq!(complete.json["success"], !was_aborted, "{}", complete.text);
        aborted += usize::from(was_aborted);
        finished += usize::from(!was_aborted);
    }
    assert_eq!(aborted + finished, 20);
    checked_end(&gateway, &session);
    let completes = gateway.replay(&session).iter().filter(|f| f.kind() == "complete").count();
    assert_eq!(completes, 20, "I1");
}

#[test]
fn an_abort_right_behind_the_prompt_counts() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    for round in 0..10 {
        client.send(&json!({
            "type": "chat.send", "sessionId": session, "content": format!("round {round}"),
        }));
        let ack = client.request(&json!({"type": "chat.abort", "sessionId": session}));
        assert_eq!(ack.kind(), "ack", "{}", ack.text);
        let seen = client.seen.iter().rfind(|f| f.kind() == "complete").cloned();
        let fresh = |f: &Frame| f.kind() == "complete" && f.json["runId"] == ack.json["runId"];
        let complete = match seen.filter(fresh) {
            Some(complete) => complete,
            None => client.expect("its end", fresh),
        };
        assert_eq!(complete.json["aborted"], true, "{}", complete.text);
    }
    gateway.expect_no_agents();
    checked_end(&gateway, &session);
}

#[test]
fn a_keeper_that_is_killed_takes_nothing_along_and_leaves_nothing() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "lose the keeper");
    agent.policy(&[], None, None);
    agent.ignore_signals();
    let grandchild = agent.escape();
    agent.say("before");
    client.expect_at(&run, 1);
    let keeper = i32::try_from(agent.parent()).expect("a pid fits 31 bits");
    let keeper = rustix::process::Pid::from_raw(keeper).expect("a pid is not 0");
    rustix::process::kill_process(keeper, Signal::KILL).expect("the keeper runs");
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["reason"], "agent_lost", "{}", complete.text);
    eventually("what the keeper had started is swept", || {
        (!alive(agent.pid()) && !alive(grandchild.pid())).then_some(())
    });
    gateway.expect_no_agents();
    assert_eq!(checked_end(&gateway, &session).text, complete.text);
    let (run, agent) = begin(&gateway, &mut client, &session, "again");
    agent.finish();
    client.expect_complete(&run);
}

#[test]
fn a_second_sigterm_does_not_wait() {
    let (mut gateway, session) = aborting_session();
    let mut client = gateway.connect();
    let (run, agent) = begin(&gateway, &mut client, &session, "be stubborn");
    agent.policy(&[], None, None);
    agent.ignore_signals();
    gateway.signal(Signal::TERM);
    client.expect("the announcement", |f| f.kind() == "server_draining");
    let refused = client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "more",
    }));
    let code = refused.json["code"].as_str().unwrap_or_default();
    assert!(matches!(code, "SHUTTING_DOWN" | "RUN_IN_PROGRESS"), "{}", refused.text);
    assert!(alive(agent.pid()), "it is being stopped, which takes its time");
    gateway.signal(Signal::TERM);
    let status = gateway.wait();
    assert!(!status.success(), "it did not end in order: {status}");
    // The next start finishes it.
    let gateway = gateway.restart();
    let mut client = gateway.connect();
    client.subscribe(&json!({"sessionId": session, "from": "start"}));
    let end = client.expect_complete(&run);
    assert!(!alive(agent.pid()), "I21");
    assert_eq!(checked_end(&gateway, &session).text, end.text);
    assert_eq!(end.json["success"], false, "{}", end.text);
}

#[test]
fn a_session_is_not_deleted_while_it_runs() {
    let (gateway, session) = one_session();
    let mut client = gateway.connect();
    let mut other = gateway.connect();
    other.barrier();
    let (run, agent) = begin(&gateway, &mut client, &session, "stay");
    let path = format!("/api/v1/sessions/{session}");
    let delete = |gateway: &Gateway| gateway.request("DELETE", &path, None, Some(gateway.token()));
    let (status, body) = delete(&gateway);
    assert_eq!((status, &body["error"]["code"]), (409, &json!("RUN_IN_PROGRESS")), "{body}");
    agent.finish();
    client.expect_complete(&run);
    let (status, body) = delete(&gateway);
    assert!(matches!(status, 200 | 204), "{status}: {body}");
    for client in [&mut client, &mut other] {
        client.expect("the announcement", |f| f.is("session_deleted", &session));
    }
    assert_eq!(gateway.get(&path).0, 404);
    assert_eq!(gateway.get(&format!("/api/v1/runs/{run}")).0, 404);
    let gone = client.request(&json!({
        "type": "chat.send", "sessionId": session, "content": "anybody?",
    }));
    assert_eq!(gone.json["code"], "SESSION_NOT_FOUND", "{}", gone.text);
    let gone = client.subscribe(&json!({"sessionId": session, "from": "start"}));
    assert_eq!(gone.json["error"], "SESSION_NOT_FOUND", "{}", gone.text);
    let mut gateway = gateway;
    assert!(gateway.terminate().success());
    let gateway = gateway.restart();
    assert_eq!(gateway.get(&path).0, 404, "deleted is deleted, also after a restart");
}

#[test]
fn any_command_is_an_agent() {
    let script = "cat; echo out; echo err >&2; exit $0";
    let gateway = Setup::new()
        .provider("fine", "command", &["sh", "-c", script, "0"])
        .provider("bad", "command", &["sh", "-c", script, "3"])
        .provider("deaf", "command", &["true"])
        .provider("mute", "jsonl", &["false"])
        .start();
    let run_of = |provider: &str| {
        let session = gateway.session(provider);
        let mut client = gateway.connect();
        let run = client.prompt(&session, "first line\nsecond line");
        client.expect_complete(&run);
        let frames = of_runs(&client);
        let mut checker = Checker::new();
        frames.iter().for_each(|frame| checker.see(frame));
        frames
    };
    for (provider, code) in [("fine", 0), ("bad", 3)] {
        let frames = run_of(provider);
        let of = |kind: &str| -> Vec<String> {
            let content = |f: &Frame| f.json["content"].as_str().unwrap_or_default().to_owned();
            frames.iter().filter(|f| f.kind() == kind).map(content).collect()
        };
        assert_eq!(of("text"), ["first line", "second line", "out"], "{provider}");
        assert_eq!(of("error"), ["err"], "{provider}");
        let complete = &frames.last().expect("a complete").json;
        assert_eq!(complete["exitCode"], code, "{complete}");
        assert_eq!(complete["success"], code == 0, "{complete}");
    }
    let fine = run_of("fine");
    assert_eq!(fine.last().expect("a complete").json["reason"], "finished");
    // They end without reading a word.
    for (provider, code) in [("deaf", 0), ("mute", 1)] {
        let frames = run_of(provider);
        let complete = &frames.last().expect("a complete").json;
        assert_eq!(complete["exitCode"], code, "{provider}: {complete}");
    }
}
