use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;
use crate::provider::{Decision, Record, RecordBody};
use crate::run::id::{AgentId, Millis};

fn whole(bytes: &[u8], max: usize) -> Frame<'_> {
    let frame = split(bytes, max).expect("a frame").expect("a whole frame");
    assert_eq!(frame.bytes, bytes.len());
    frame
}

fn body(record: &Record) -> Body<'_> {
    match &record.body {
        RecordBody::Out(line) => Body::Out(line),
        RecordBody::Err(line) => Body::Err(line),
        RecordBody::OutCapped { bytes, head } => Body::OutCapped { bytes: *bytes, head },
        RecordBody::In { n, bytes } => Body::In { n: *n, bytes },
        RecordBody::Exit(exit) => Body::Exit(*exit),
        RecordBody::Decision(decision) => Body::Decision(*decision),
    }
}

#[test]
fn commands_come_back_as_they_were() {
    let launch = Launch {
        agent: AgentId::from_u128(7),
        argv: vec!["sh".into(), OsString::from_vec(vec![b'a', 0xff])],
        env: vec![("KEY".into(), OsString::from_vec(vec![0xfe, b'=']))],
        cwd: "/".into(),
        line_bytes_max: 5,
        timings: Timings::default(),
        session: "s".into(),
        provider: "p".into(),
        journal_bytes_max: 6,
        orphan_grace_ms: 7,
    };
    for command in [
        Command::Launch(launch),
        Command::Write { n: u64::MAX, bytes: b"a\nb\n".to_vec(), close: true },
        Command::Write { n: 0, bytes: Vec::new(), close: false },
        Command::CloseStdin,
        Command::Stop,
        Command::Confirm { offset: 1 << 50 },
        Command::Sweep { n: 4 },
        Command::Attach { protocol: 1, role: Role::Control },
        Command::Attach { protocol: 2, role: Role::Records { epoch: 3, offset: 1 << 40 } },
    ] {
        let mut bytes = Vec::new();
        command.encode(&mut bytes).expect("it fits");
        let frame = whole(&bytes, limits::CONTROL_FRAME_BYTES_MAX);
        assert_eq!(Command::decode(frame), Ok(command));
    }
}

#[test]
fn replies_come_back_as_they_were() {
    let failed = |kind| Reply::SpawnFailed(SpawnFailed { kind, message: "é".into() });
    let stopped = |step| Reply::Stopped(Stopped { step, swept: 3, left: 1 });
    for reply in [
        Reply::Started { pid: 77 },
        failed(SpawnFailure::NotFound),
        failed(SpawnFailure::NotExecutable),
        failed(SpawnFailure::Directory),
        failed(SpawnFailure::Other),
        Reply::Written { n: 1 << 40 },
        Reply::WriteFailed { n: 2, why: WriteError::Closed },
        Reply::WriteFailed { n: 3, why: WriteError::Full },
        Reply::Exited(Exit::Code(-1)),
        Reply::Exited(Exit::Signal(9)),
        stopped(None),
        stopped(Some(Step::CloseStdin)),
        stopped(Some(Step::Interrupt)),
        stopped(Some(Step::Terminate)),
        stopped(Some(Step::Kill)),
        Reply::Swept { killed: 3, left: 1 },
        Reply::Welcome(Welcome {
            protocol: 1,
            epoch: 2,
            pid: 3,
            start: 4,
            end: 5,
            version: "0.1.0".into(),
        }),
        Reply::Refused { protocol: 9, version: "9.0".into() },
    ] {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        assert_eq!(Reply::decode(whole(&bytes, limits::REPLY_BYTES_MAX)), Ok(reply));
    }
}

/// Gateways of any version tell keepers of any other by these bytes.
#[test]
fn what_every_protocol_shares_has_the_same_bytes_for_ever() {
    let mut bytes = Vec::new();
    let role = Role::Records { epoch: 0x0102, offset: 0x0304 };
    Command::Attach { protocol: 7, role }.encode(&mut bytes).expect("it fits");
    let fields = [0x02, 0x01, 0, 0, 0, 0, 0, 0, 0x04, 0x03, 0, 0, 0, 0, 0, 0];
    assert_eq!(bytes, [&[22, 0, 0, 0, 16, 7, 0, 0, 0, 2][..], &fields].concat());
    bytes.clear();
    Reply::Refused { protocol: 7, version: "v".into() }.encode(&mut bytes);
    assert_eq!(bytes, [6, 0, 0, 0, 17, 7, 0, 0, 0, b'v']);
}

#[test]
fn a_long_message_is_cut_at_a_character() {
    let message = "é".repeat(limits::REPLY_BYTES_MAX);
    let mut bytes = Vec::new();
    Reply::SpawnFailed(SpawnFailed { kind: SpawnFailure::Other, message }).encode(&mut bytes);
    let reply = Reply::decode(whole(&bytes, limits::REPLY_BYTES_MAX)).expect("a reply");
    let Reply::SpawnFailed(SpawnFailed { message, .. }) = reply else { panic!("{reply:?}") };
    assert!(message.chars().all(|c| c == 'é') && message.len() > 1000);
}

#[test]
fn a_write_over_the_bound_is_refused_and_leaves_the_buffer_alone() {
    let write =
        Command::Write { n: 1, bytes: vec![0; limits::CONTROL_FRAME_BYTES_MAX], close: false };
    let mut bytes = b"before".to_vec();
    assert!(matches!(write.encode(&mut bytes), Err(FrameError::TooLong { .. })));
    assert_eq!(bytes, b"before");
}

#[test]
fn a_length_over_the_bound_is_refused_before_its_bytes_are_there() {
    let max = 100;
    assert_eq!(split(&101u32.to_le_bytes(), max), Err(FrameError::TooLong { len: 101, max }));
    assert_eq!(split(&0u32.to_le_bytes(), max), Err(FrameError::Empty));
    assert_eq!(split(&100u32.to_le_bytes(), max), Ok(None));
    assert_eq!(split(&[1, 0, 0], max), Ok(None));
}

fn records() -> impl Strategy<Value = Record> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..50);
    let body = prop_oneof![
        bytes().prop_map(RecordBody::Out),
        bytes().prop_map(RecordBody::Err),
        (any::<u64>(), bytes()).prop_map(|(bytes, head)| RecordBody::OutCapped { bytes, head }),
        (any::<u64>(), bytes()).prop_map(|(n, bytes)| RecordBody::In { n, bytes }),
        any::<i32>().prop_map(|code| RecordBody::Exit(Exit::Code(code))),
        any::<i32>().prop_map(|signal| RecordBody::Exit(Exit::Signal(signal))),
        Just(RecordBody::Decision(Decision::StopAsked)),
        Just(RecordBody::Decision(Decision::OrphanGraceOver)),
        Just(RecordBody::Decision(Decision::Signalled)),
    ];
    (any::<i64>(), body).prop_map(|(at, body)| Record { at: Millis(at), body })
}

proptest! {
    #[test]
    fn records_come_back_and_no_prefix_passes_for_one(record in records()) {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, record.at, body(&record)).expect("it fits");
        for end in 0..bytes.len() {
            prop_assert_eq!(split(&bytes[..end], RECORD_BYTES_MAX), Ok(None));
        }
        let frame = whole(&bytes, RECORD_BYTES_MAX);
        prop_assert_eq!(decode_record(frame), Ok(record));
    }

    /// I11: whatever the bytes are, each decoder gives a value or an error.
    #[test]
    fn decoding_is_total(kind in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..40)) {
        let frame = Frame { kind, payload: &payload, bytes: payload.len() + HEADER_BYTES };
        if let Ok(command) = Command::decode(frame) {
            let mut bytes = Vec::new();
            command.encode(&mut bytes).expect("it fits");
            prop_assert_eq!(Command::decode(whole(&bytes, usize::MAX)), Ok(command));
        }
        if let Ok(reply) = Reply::decode(frame) {
            let mut bytes = Vec::new();
            reply.encode(&mut bytes);
            prop_assert_eq!(Reply::decode(whole(&bytes, usize::MAX)), Ok(reply));
        }
        if let Ok(record) = decode_record(frame) {
            let mut bytes = Vec::new();
            encode_record(&mut bytes, record.at, body(&record)).expect("it fits");
            prop_assert_eq!(&bytes[HEADER_BYTES..], &payload[..]);
        }
    }
}
