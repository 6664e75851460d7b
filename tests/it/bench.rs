//! `reattach bench` measures what it says it does. How fast is not asked here.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_bench_measures_all_its_parts_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_reattach"))
        .args(["bench", "--json", "--quick", "--events", "10000", "--dir"])
        .arg(dir.path())
        // What the user has set for another server is not for this one.
        .env("REATTACH_TOKEN", "of another server")
        .env("REATTACH_LIMITS_CONNECTIONS_MAX", "1")
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let times =
        |of: &Value| of.as_array().map(|times| times.iter().filter_map(Value::as_f64).count());
    assert_eq!(times(&report["ready"]["firstMs"]), Some(3), "{report}");
    assert_eq!(times(&report["ready"]["againMs"]), Some(3), "{report}");
    assert_eq!(report["idle"]["connections"], 100, "{report}");
    assert_eq!(report["flood"]["events"], 10_000, "{report}");
    let deciles = report["flood"]["deciles"].as_array().expect("deciles");
    assert!(
        deciles.len() == 10 && deciles.iter().all(|rate| rate.as_f64() > Some(0.0)),
        "{report}"
    );
    assert!(report["flood"]["diskBytes"].as_u64() > Some(10_000 * 200), "{report}");
    assert_eq!(report["reattach"]["events"], 10_000, "{report}");
    assert_eq!(times(&report["reattach"]["memoryMs"]), Some(3), "{report}");
    assert_eq!(times(&report["reattach"]["diskMs"]), Some(3), "{report}");
    if cfg!(target_os = "linux") {
        assert!(report["idle"]["perConnection"].as_u64() > Some(0), "{report}");
        let cpu = &report["flood"]["cpu"];
        assert!(cpu["gateway"]["store"].as_f64() > Some(0.0), "{report}");
    }
    let left = std::fs::read_dir(dir.path()).expect("the directory").count();
    assert_eq!(left, 0, "something is left in {}", dir.path().display());
}
