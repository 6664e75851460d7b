//! Gateways come and go; the keeper, its agent and its journal stay.

use reattach::keeper::{AttachError, Attached, attach, read_journal};

use super::*;

/// Lets go of the keeper as a gateway that is killed does: all descriptors at once.
fn leave(kept: &mut Kept) {
    kept.commands = None;
    kept.records = None;
}

fn attached(home: &Home, offset: u64) -> Attached {
    attach(home, offset).expect("a keeper that lives")
}

/// Up to `count` records, and where the last one ends.
fn take(records: &mut Records, count: usize) -> (Vec<RecordBody>, u64) {
    let mut bodies = Vec::new();
    let mut end = 0;
    while bodies.len() < count {
        let Some((record, at)) = records.next().expect("a record") else { break };
        bodies.push(record.body);
        end = at;
    }
    (bodies, end)
}

#[test]
fn a_gateway_that_comes_back_goes_on_where_it_was() {
    let mut kept = start(sh(ECHO));
    let home = kept.home.clone();
    kept.started();
    kept.write(1, b"a\n");
    let mut records = kept.records.take().expect("not taken");
    let (first, offset) = take(&mut records, 2);
    assert_eq!(first.len(), 2);
    drop(records);
    leave(&mut kept);
    let Attached { parts, pid, end, .. } = attached(&home, offset);
    assert!(pid > 0 && end >= offset);
    let keeper::Parts { mut commands, mut replies, mut records, mut process } = parts;
    assert_eq!(process.pid(), kept.process.pid());
    commands.write(1, b"a\n".to_vec(), false).expect("sent");
    commands.write(2, b"b\n".to_vec(), true).expect("sent");
    assert_eq!(replies.next().expect("a reply"), Some(Reply::Written { n: 1 }));
    assert_eq!(replies.next().expect("a reply"), Some(Reply::Written { n: 2 }));
    let (rest, end) = take(&mut records, 100);
    let written = RecordBody::In { n: 2, bytes: b"b\n".to_vec() };
    assert_eq!(rest, [written, out("got b"), RecordBody::Exit(Exit::Code(0))]);
    drop((commands, replies, records));
    assert!(process.wait().expect("its end").success());
    kept.wait();
    assert!(!home.is_alive().expect("a lock"));
    assert!(matches!(attach(&home, end), Err(AttachError::Gone)));
    let (again, _) = take(&mut read_journal(&home, 0).expect("a journal"), 100);
    assert_eq!(again, [first, rest].concat());
    assert_eq!(take(&mut read_journal(&home, end).expect("a journal"), 1).0, []);
    let beyond = read_journal(&home, end + 1);
    assert!(matches!(beyond, Err(AttachError::OffsetBeyondEnd { end: at }) if at == end));
    home.remove().expect("removed");
    assert!(matches!(read_journal(&home, 0), Err(AttachError::Gone)));
}
