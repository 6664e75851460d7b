//! What strangers may send to the port: a table of requests with their answers (table.txt), an
//! oracle that reads the same bytes, and floods.

mod floods;
mod oracle;
mod table;
pub(crate) mod wire;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use table::{Keeps, Row, Words};
use wire::Talk;

use crate::support::{Gateway, Setup};

/// What a connection that is still good answers with a 200, and its last.
const NEXT: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// Rows of more bytes are cut at some places only: all of the first and last ones, and these many
/// between.
const CUTS_BETWEEN: usize = 16;
/// How many of the first and of the last bytes of a long row are cut at.
const CUTS_AT_ENDS: usize = 40;
/// A row of more bytes is long.
const LONG_ROW: usize = 1 << 10;

fn gateway() -> (Gateway, Vec<Row>) {
    let gateway = Setup::with_fake().start();
    let session = gateway.session("fake");
    let rows = table::rows(&Words { token: gateway.token(), session: &session });
    (gateway, rows)
}

/// What the row sends, and what no row whose connection ends may have answered.
fn with_next(row: &Row) -> Vec<u8> {
    match row.keeps {
        Keeps::WebSocket => row.request.clone(),
        Keeps::Open | Keeps::Close => [&row.request, NEXT].concat(),
    }
}

#[test]
fn each_row_gets_its_answer() {
    let (gateway, rows) = gateway();
    assert!(rows.len() >= 100, "the table has {} rows", rows.len());
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "two rows have the same name");
    let mut wrong = Vec::new();
    for row in &rows {
        let talk = wire::talk(gateway.port(), &with_next(row));
        if let Err(why) = check(row, &talk) {
            wrong.push(format!("[{}] {why}; answers:\n{talk}", row.name));
        }
    }
    assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(gateway.request("GET", "/healthz", None, None).0, 200);
}

fn check(row: &Row, talk: &Talk) -> Result<(), String> {
    let mut expected = row.statuses.clone();
    if row.keeps == Keeps::Open {
        expected.push(200);
    }
    let found: Vec<u16> = talk.answers.iter().map(|answer| answer.status).collect();
    if found != expected {
        return Err(format!("answers with {found:?} instead of {expected:?}"));
    }
    talk.answers.iter().for_each(wire::Answer::assert_guarded);
    let last = &talk.answers[row.statuses.len() - 1];
    if last.code() != row.code {
        return Err(format!("says {:?} instead of {:?}", last.code(), row.code));
    }
    let closes = last.header("connection") == Some("close");
    match row.keeps {
        Keeps::Open if closes => Err("says that it closes".into()),
        Keeps::Close if !closes => Err("does not say that it closes".into()),
        // A close frame, with or without a code.
        Keeps::WebSocket if !talk.rest.iter().rev().take(4).any(|byte| *byte == 0x88) => {
            Err("does not answer the close frame".into())
        }
        Keeps::Open | Keeps::Close if !talk.rest.is_empty() => {
            Err(format!("goes on with {:?}", talk.rest))
        }
        _ => Ok(()),
    }
}

#[test]
fn each_row_gets_the_same_answer_wherever_it_is_cut() {
    let (gateway, rows) = gateway();
    let port = gateway.port();
    let turn = AtomicUsize::new(0);
    let cuts = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(row) = rows.get(turn.fetch_add(1, Ordering::Relaxed)) {
                    let bytes = with_next(row);
                    let whole = wire::talk(port, &bytes).comparable();
                    for at in places(bytes.len()) {
                        let cut = wire::talk_in_two(port, &bytes, at);
                        let same = cut.comparable() == whole;
                        assert!(same, "[{}] cut at {at}:\n{cut}\ninstead of\n{whole}", row.name);
                        cuts.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(cuts.into_inner() > 10_000, "the table was hardly cut");
}

/// Where a row of this length is cut: everywhere, unless it is long.
fn places(length: usize) -> Vec<usize> {
    if length <= LONG_ROW {
        return (1..length).collect();
    }
    let between = CUTS_AT_ENDS..length - CUTS_AT_ENDS;
    let step = between.len() / CUTS_BETWEEN;
    (1..CUTS_AT_ENDS)
        .chain(between.step_by(step))
        .chain(length - CUTS_AT_ENDS..length)
        // Where a head ends that is as long as one may be, and its neighbours.
        .chain([(16 << 10) - 1, 16 << 10, (16 << 10) + 1].into_iter().filter(|at| *at < length))
        .collect()
}
