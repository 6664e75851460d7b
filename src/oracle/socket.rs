//! What may come over a keeper's connections, from bytes: decoding is total, what it accepts
//! comes back from its own encoding, and where a stream is cut into reads makes no difference (I11).
//!
//! Must not know who speaks to whom, or when.

use crate::keeper::frame::{self, Body, Command, Frame, FrameError, RECORD_BYTES_MAX, Reply, Role};
use crate::limits::{CONTROL_FRAME_BYTES_MAX, REPLY_BYTES_MAX};
use crate::provider::{Record, RecordBody};

/// A stream of frames: the first byte says of which kind, and how it is cut.
///
/// # Panics
/// If something does not hold.
pub fn check_frames(bytes: &[u8]) {
    let Some((how, stream)) = bytes.split_first() else { return };
    let (max, check): (_, fn(Frame<'_>)) = match how % 3 {
        0 => (CONTROL_FRAME_BYTES_MAX, check_command),
        1 => (REPLY_BYTES_MAX, check_reply),
        _ => (RECORD_BYTES_MAX, check_record),
    };
    let mut rest = stream;
    while let Ok(Some(frame)) = compare(rest, max, usize::from(how / 3)) {
        check(frame);
        rest = &rest[frame.bytes..];
    }
}

/// The first frame, as the splitter sees it with all of the stream and with less of it, and as
/// somebody sees it who only follows the words of the format.
fn compare(stream: &[u8], max: usize, cut: usize) -> Result<Option<Frame<'_>>, FrameError> {
    let whole = frame::split(stream, max);
    let before = stream.get(..cut.min(stream.len())).unwrap_or_default();
    match frame::split(before, max) {
        Ok(None) => {}
        early => assert_eq!(early, whole, "more of the stream changes nothing"),
    }
    let len = stream.first_chunk().map(|len| u32::from_le_bytes(*len) as usize);
    let naive = len.filter(|len| *len > 0 && *len <= max).and_then(|len| stream.get(4..4 + len));
    match &whole {
        Ok(Some(frame)) => {
            let found = [&[frame.kind], frame.payload].concat();
            assert_eq!(Some(&found[..]), naive, "a frame is what its length says");
            assert_eq!(frame.bytes, found.len() + 4, "and ends there");
        }
        Ok(None) => assert!(naive.is_none() && len.is_none_or(|len| len > 0 && len <= max)),
        Err(FrameError::Empty) => assert_eq!(len, Some(0)),
        Err(FrameError::TooLong { .. }) => assert!(len.is_some_and(|len| len > max)),
        Err(other) => panic!("not the splitter's to say: {other}"),
    }
    whole
}

fn check_command(frame: Frame<'_>) {
    let Ok(command) = Command::decode(frame) else { return };
    let mut bytes = Vec::new();
    command.encode(&mut bytes).expect("what came in a frame fits one");
    let again = frame::split(&bytes, CONTROL_FRAME_BYTES_MAX).expect("a frame").expect("whole");
    assert_eq!(again.bytes, bytes.len());
    // A launch is JSON, and a control connection leaves room for what only the other kind has.
    if !matches!(command, Command::Launch(_) | Command::Attach { role: Role::Control, .. }) {
        assert_eq!((again.kind, again.payload), (frame.kind, frame.payload), "byte for byte");
    }
    assert_eq!(Command::decode(again), Ok(command), "it comes back");
}

fn check_reply(frame: Frame<'_>) {
    let Ok(reply) = Reply::decode(frame) else { return };
    // A keeper's own words are short; a stranger's grow where they are not UTF-8.
    if frame.payload.len() > REPLY_BYTES_MAX / 8 {
        return;
    }
    let mut bytes = Vec::new();
    reply.encode(&mut bytes);
    let again = frame::split(&bytes, REPLY_BYTES_MAX).expect("a frame").expect("whole");
    assert_eq!(again.bytes, bytes.len());
    if !format!("{reply:?}").contains(char::REPLACEMENT_CHARACTER) {
        assert_eq!((again.kind, again.payload), (frame.kind, frame.payload), "byte for byte");
    }
    assert_eq!(Reply::decode(again), Ok(reply), "it comes back");
}

fn check_record(frame: Frame<'_>) {
    let Ok(record) = frame::decode_record(frame) else { return };
    let Record { at, body } = &record;
    let body = match body {
        RecordBody::Out(line) => Body::Out(line),
        RecordBody::Err(line) => Body::Err(line),
        RecordBody::OutCapped { bytes, head } => Body::OutCapped { bytes: *bytes, head },
        RecordBody::In { n, bytes } => Body::In { n: *n, bytes },
        RecordBody::Exit(exit) => Body::Exit(*exit),
        RecordBody::Decision(decision) => Body::Decision(*decision),
    };
    let mut bytes = Vec::new();
    frame::encode_record(&mut bytes, *at, body).expect("what came in a frame fits one");
    let again = frame::split(&bytes, RECORD_BYTES_MAX).expect("a frame").expect("whole");
    assert_eq!((again.kind, again.payload), (frame.kind, frame.payload), "byte for byte");
    assert_eq!(frame::decode_record(again), Ok(record), "it comes back");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The fuzzer's seeds, and what it found.
    #[test]
    fn seeds_of_the_fuzzer_pass() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/socket");
        let mut count = 0;
        for file in std::fs::read_dir(folder).expect("the seeds are committed") {
            check_frames(&std::fs::read(file.expect("a readable folder").path()).expect("a file"));
            count += 1;
        }
        assert!(count > 0, "no seeds in {folder}");
    }

    proptest! {
        #[test]
        fn any_frame_gives_an_answer(
            how in any::<u8>(),
            kind in 0..20u8,
            payload in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let len = u32::try_from(payload.len() + 1).expect("short").to_le_bytes();
            check_frames(&[&[how][..], &len, &[kind], &payload].concat());
        }
    }
}
