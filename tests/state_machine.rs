//! The registry, its log and its store against a reference whose history is never truncated:
//! random operations, the results compared, everything checked after each one.
#![cfg(not(any(loom, shuttle)))]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use reattach::oracle::{Op, check_ops};

/// Integration tests have no place of their own for what failed once: name one.
fn config() -> ProptestConfig {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/state_machine.txt");
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..ProptestConfig::default()
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    vec(any::<[u8; Op::BYTES]>().prop_map(Op::decode), 1..100)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_registry_does_what_the_reference_says(ops in ops()) {
        check_ops(&ops);
    }
}
