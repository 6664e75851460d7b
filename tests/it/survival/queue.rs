//! Prompts that wait survive the gateway: kill -9 at every step, and each runs once, in order
//! (I19).

use std::time::Duration;

use serde_json::json;

use crate::support::{Gateway, Random, Setup, eventually, let_time_pass};

use super::rounds;

/// An agent that writes its prompt to a file: once for each time that it is run.
fn setup() -> Setup {
    let setup = Setup::new();
    let file = setup.root.path().join("ran");
    let file = file.to_str().expect("UTF-8").to_owned();
    setup.provider(
        "note",
        "command",
        &["sh", "-c", "p=$(cat); sleep 0.03; echo \"$p\" >> \"$0\"", &file],
    )
}

fn ran(gateway: &Gateway) -> Vec<String> {
    let text = std::fs::read_to_string(gateway.setup.root.path().join("ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Sends a prompt until the gateway says that it has it; the gateway may die meanwhile.
fn send(gateway: &Gateway, session: &str, content: &str) -> bool {
    let body = json!({
        "content": content, "whenBusy": "queue", "clientMessageId": format!("message {content}"),
    });
    let (status, answer) = gateway.post(&format!("/api/v1/sessions/{session}/runs"), &body);
    assert!(status == 202, "{status}: {answer}");
    answer["duplicate"] == true
}

#[test]
fn three_prompts_that_wait_run_once_and_in_order_through_kills_at_every_step() {
    let mut gateway = setup().start();
    let session = gateway.session("note");
    let mut random = Random::new(0x9e0e);
    let mut expected = Vec::new();
    for round in 0..rounds(8) {
        for n in 0..4 {
            let content = format!("{round}.{n}");
            send(&gateway, &session, &content);
            expected.push(content.clone());
            // Between any two steps: while the first runs, between `complete` and the next begin,
            // before or after its process is there. The kill comes at another moment each time.
            if random.below(3) == 0 {
                let_time_pass(Duration::from_millis(random.below(60) as u64));
                gateway.kill();
                gateway = gateway.restart();
                assert!(send(&gateway, &session, &content), "I19: what was accepted is known");
            }
        }
        // While they work their way through, a few more.
        for _ in 0..2 {
            let_time_pass(Duration::from_millis(random.below(80) as u64));
            gateway.kill();
            gateway = gateway.restart();
        }
    }
    eventually("all to have run", || {
        let (_, shown) = gateway.get(&format!("/api/v1/sessions/{session}"));
        (shown["queued"] == 0 && shown["running"] == false).then_some(())
    });
    assert_eq!(ran(&gateway), expected, "I19: each once, in order");
    let (_, runs) = gateway.get(&format!("/api/v1/sessions/{session}/runs?limit=1000"));
    let runs = runs["items"].as_array().expect("runs");
    assert_eq!(runs.len(), expected.len(), "one run for each prompt");
    assert!(runs.iter().all(|run| run["reason"] == "finished"), "{runs:?}");
}
