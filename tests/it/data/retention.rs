//! `retention --dry-run`: what would leave, and nothing does.

use serde_json::json;

use super::{ended, run, text};
use crate::support::{Setup, begin, eventually};

#[test]
fn what_it_says_is_what_a_server_then_does() {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let data = gateway.setup.data_dir();
    let mut client = gateway.connect();
    let mut runs = Vec::new();
    for n in 0..4 {
        let (id, agent) = begin(&gateway, &mut client, &session, &format!("prompt {n}"));
        agent.emit_long(r#"{"kind":"text","content":""#, 'y', 20_000, r#""}"#);
        agent.finish();
        ended(&gateway, &id);
        runs.push(id);
    }
    // Nothing is configured.
    let plan = |args: &[&str]| {
        let common = ["retention", "--dry-run", "--json", "--data-dir", text(&data)];
        run(&[&common[..], args].concat(), 0).json()
    };
    let config = text(&gateway.setup.config_path()).to_owned();
    let all = plan(&["--config", &config]);
    assert_eq!((&all["leaving"]["runs"], &all["kept"]["runs"]), (&json!(0), &json!(4)), "{all}");
    let bytes = all["kept"]["bytes"].as_u64().expect("a number");
    assert_eq!(plan(&["--max-age", "1d"])["leaving"]["runs"], 0);
    assert_eq!(plan(&["--max-age", "0s", "--max-bytes", "1"])["leaving"]["runs"], 4);

    // Room for two of them and a half.
    let room = (bytes / 8 * 5).to_string();
    let said = plan(&["--max-bytes", &room]);
    let leaving: Vec<_> = said["runs"].as_array().expect("a list").iter().collect();
    let ids: Vec<_> = leaving.iter().map(|run| run["runId"].as_str().expect("an id")).collect();
    assert_eq!(ids, runs[..2], "{said}");
    assert_eq!(
        (&leaving[0]["why"], &said["sessions"][0]["runs"]),
        (&json!("max_bytes"), &json!(2))
    );
    assert_eq!(said["leaving"]["bytes"], said["sessions"][0]["bytes"]);
    let text_of =
        run(&["retention", "--dry-run", "--max-bytes", &room, "--data-dir", text(&data)], 0);
    assert!(text_of.err.contains("nothing was changed"), "{}", text_of.err);
    assert_eq!(plan(&["--config", &config])["kept"]["runs"], 4, "nothing has left");
    run(&["retention", "--data-dir", text(&data)], 2);
    run(&["retention", "--dry-run", "--config", "/nonexistent", "--data-dir", text(&data)], 78);
    drop(client);

    // A server with that configuration, which the command reads too.
    let mut gateway = gateway;
    gateway.terminate();
    gateway.setup.add("retention", "max_bytes", &room);
    let gateway = gateway.restart();
    eventually("retention does it", || {
        let said = plan(&["--config", &config]);
        (said["kept"]["runs"] == 2).then_some(())
    });
    let frames = gateway.log_of(&session);
    assert!(frames.iter().all(|frame| runs[2..].iter().any(|run| frame["runId"] == **run)));
    run(&["verify", "--data-dir", text(&data)], 0);
}
