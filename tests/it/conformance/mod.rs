//! The 46 recorded scenarios of the original gateway, driven against the built binary.
//!
//! `tests/conformance/scenarios` is the recording, unchanged. `tests/conformance/verdicts.json`
//! says for each scenario whether ours shows the `same`, the same under other names (`renamed`)
//! or something `better`, and then which frames instead, step by step. Comparison is strict:
//! extra gateway frames and extra fields are allowed, everything else must be as expected.
//!
//! A verdict: `{verdict, why, steps?, before?, codes?, config?, retentionMs?}`. `steps` is by the
//! step's number: `expect` (in the place of the recorded one), `with` (fields of the step in
//! the place of the recorded ones), `skip` (why the step has nothing to act on), `onAbort` (what
//! the agent prints and how it exits), `noUpsert` (sessions that may not be announced meanwhile),
//! `order: "session"` (order counts within each session only). `before` is done first; `codes`
//! renames error codes.

mod frames;
mod runner;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

macro_rules! scenarios {
    ($($test:ident = $name:literal),* $(,)?) => {
        /// All scenarios, each a test of its own below.
        const SCENARIOS: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $test() {
                runner::run(&scenario($name), &verdict($name));
            }
        )*
    };
}

scenarios! {
    s01 = "01-happy-path",
    s02 = "02-session-created-event",
    s03 = "03-session-created-no-newid",
    s04 = "04-set-session-id-route",
    s06 = "06-resume-known-native-id",
    s07 = "07-non-json-frames",
    s08 = "08-binary-frame",
    s09 = "09-unknown-type",
    s10 = "10-send-validation",
    s11 = "11-send-content-and-options-coercion",
    s12 = "12-unsupported-provider",
    s14 = "14-abort-validation",
    s15 = "15-abort-success",
    s16 = "16-abort-then-late-complete",
    s18 = "18-abort-returns-false",
    s19 = "19-abort-throws",
    s21 = "21-abort-from-other-socket",
    s22 = "22-provider-throws",
    s23 = "23-provider-exits-without-complete",
    s24 = "24-throw-after-complete",
    s25 = "25-duplicate-complete",
    s26 = "26-events-after-complete",
    s28 = "28-late-exit-of-run1-spares-run2",
    s29 = "29-subscribe-idle-and-unknown",
    s30 = "30-subscribe-malformed",
    s32 = "32-second-tab-steals",
    s34 = "34-subscribe-many",
    s35 = "35-completed-run-not-replayed",
    s37 = "37-old-timer-evicts-newer-run",
    s38 = "38-old-timer-spares-running",
    s39 = "39-buffer-overflow",
    s41 = "41-second-run-seq-restarts",
    s42 = "42-disconnect-keeps-run",
    s43 = "43-permission-flow",
    s44 = "44-permission-validation",
    s46 = "46-non-normalized-output",
    s48 = "48-handshake-auth",
    s49 = "49-unknown-ws-path",
    s50 = "50-heartbeat",
    s51 = "51-rest-create-session",
    s52 = "52-rest-session-names",
    s53 = "53-rest-history-errors",
    s54 = "54-archived-session",
    s56 = "56-running-list",
    s58 = "58-double-abort",
    s59 = "59-native-id-merge",
}

fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(path)
}

fn read(path: &str) -> Value {
    let text = fs::read_to_string(data(path)).expect("the data is in the repository");
    serde_json::from_str(&text).expect("the data is JSON")
}

fn scenario(name: &str) -> Value {
    read(&format!("scenarios/{name}.json"))
}

fn verdict(name: &str) -> Value {
    let verdict = read("verdicts.json")[name].clone();
    assert!(verdict.is_object(), "no verdict on {name}");
    verdict
}

#[test]
fn all_46_scenarios_have_a_verdict_and_run() {
    let on_disk: BTreeSet<String> = fs::read_dir(data("scenarios"))
        .expect("the scenarios are in the repository")
        .map(|entry| entry.expect("a readable folder").file_name())
        .map(|name| name.into_string().expect("their names are ASCII").replace(".json", ""))
        .collect();
    let run: BTreeSet<String> = SCENARIOS.iter().map(|name| (*name).to_owned()).collect();
    let verdicts = read("verdicts.json");
    let judged: BTreeSet<String> =
        verdicts.as_object().expect("an object").keys().cloned().collect();
    assert_eq!(on_disk.len(), 46);
    assert_eq!(on_disk, run, "each scenario is a test");
    assert_eq!(on_disk, judged, "each scenario has a verdict");
}

/// `same` and `renamed` may add to what was recorded, but take nothing of it away.
#[test]
fn only_better_verdicts_change_frames() {
    for name in SCENARIOS {
        let (scenario, verdict) = (scenario(name), verdict(name));
        let kind = verdict["verdict"].as_str().expect("a verdict has a word");
        assert!(matches!(kind, "same" | "renamed" | "better"), "{name}: {kind}");
        if kind == "better" {
            assert_ne!(verdict["why"], "", "{name}: say why it is better");
            continue;
        }
        let steps = verdict["steps"].as_object().cloned().unwrap_or_default();
        for (number, change) in steps {
            let at: usize = number.parse().expect("steps go by their numbers");
            assert!(change.get("skip").is_none(), "{name}, step {number}: skipped");
            assert!(kind == "renamed" || change.get("with").is_none(), "{name}, step {number}");
            let recorded = &scenario["steps"][at]["expect"]["clients"];
            let Some(ours) = change.get("expect") else { continue };
            for (client, frames) in recorded.as_object().into_iter().flatten() {
                let ours = frames::matches(frames, &ours["clients"][client]);
                assert_eq!(ours, Ok(()), "{name}, step {number}: takes away");
            }
        }
    }
}
