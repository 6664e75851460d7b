//! The registry, its log and its store against a reference whose history is never truncated:
//! random operations, the results compared, everything checked after each one.
#![cfg(not(any(loom, shuttle)))]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use reattach::oracle::{Op, check_bytes, check_ops};

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

/// What failed once, in its shortest form, under the name of what was wrong.
mod once_wrong {
    use reattach::oracle::{Op, check_ops};

    const SEND: Op = Op::Send { session: 0, message: 1, content: 0, sub: 0 };
    const END: Op = Op::Complete { session: 0, how: 0, late: false };
    const SAY: Op = Op::Append { session: 0, count: 1, late: false };
    /// A guard refuses the rows of the first session that has some.
    const REFUSE: Op = Op::Fail { how: 3, which: 0 };
    /// And those of its run's end as well.
    const REFUSE_THE_END_TOO: Op = Op::Fail { how: 5, which: 0 };

    #[test]
    fn a_resend_to_a_deleted_session_was_a_duplicate() {
        check_ops(&[Op::Create, SEND, END, Op::Round, Op::Delete { session: 0 }, SEND]);
    }

    #[test]
    fn a_refused_deletion_left_a_run_without_an_end() {
        check_ops(&[Op::Create, SEND, Op::Round, END, Op::Delete { session: 0 }, REFUSE, SEND]);
    }

    #[test]
    fn a_session_that_had_to_leave_memory_took_frames_from_its_worker() {
        let end = [Op::Abort { session: 0, named: 0 }, SAY, END, Op::Round];
        check_ops(&[&[Op::Create, SEND, Op::Round, SAY, REFUSE_THE_END_TOO][..], &end].concat());
    }

    #[test]
    fn a_refused_answer_still_counted() {
        let ask = Op::Ask { session: 0 };
        let answer = Op::Answer { session: 0, which: 0, allow: true };
        check_ops(&[Op::Create, SEND, ask, Op::Round, answer, REFUSE, answer, Op::Round]);
    }

    #[test]
    fn a_refused_session_kept_its_claim_on_a_native_id() {
        let learn = |session| Op::Learn { session, native: 0 };
        let ops = [Op::Create, Op::Create, SEND, Op::Round, learn(0), REFUSE, learn(1), Op::Round];
        check_ops(&ops);
    }

    #[test]
    fn the_last_durable_run_was_forgotten_too_early() {
        check_ops(&[Op::Create, SEND, END, Op::Round, NEXT, Op::Pass { ms: 200 }, REFUSE, NEXT]);
    }

    const NEXT: Op = Op::Send { session: 0, message: 2, content: 0, sub: 1 };

    #[test]
    fn what_a_deleted_session_held_stayed_in_the_total() {
        check_ops(&[Op::Create, SEND, SAY, END, Op::Round, Op::Delete { session: 0 }, Op::Round]);
    }
}

/// The fuzzer's seeds, and what it found, as an ordinary test.
#[test]
fn seeds_of_the_fuzzer_pass() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/registry");
    let mut count = 0;
    for file in std::fs::read_dir(folder).expect("the seeds are committed") {
        check_bytes(&std::fs::read(file.expect("a readable folder").path()).expect("a file"));
        count += 1;
    }
    assert!(count > 0, "no seeds in {folder}");
}
