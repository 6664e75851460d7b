use super::*;
use proptest::prelude::*;

const SESSION: &str = "s";

fn event(run: usize, seq: u64) -> Value {
    json!({"kind": if seq == 0 { "run_started" } else { "text" }, "sessionId": SESSION,
        "runId": format!("r{run}"), "seq": seq, "provider": "p"})
}

fn end(run: usize, seq: u64) -> Value {
    let mut event = event(run, seq);
    event["kind"] = json!("complete");
    event
}

fn answer_to(subscribe: &Value) -> Value {
    json!({"kind": "chat_subscribed", "sessionId": SESSION, "ref": subscribe["ref"],
        "isProcessing": false, "gap": null, "logEpoch": "e"})
}

fn subscribed(begin: Begin) -> Follow {
    let mut follow = Follow::new(SESSION, begin);
    let subscribe = follow.subscribe();
    let taken = follow.take(&answer_to(&subscribe));
    assert!(matches!(taken, Taken::Subscribed { rewound: false, .. }), "{taken:?}");
    follow
}

#[test]
fn a_cut_is_mended_from_the_last_event_seen() {
    let mut follow = subscribed(Begin::Start);
    for seq in 0..3 {
        assert_eq!(follow.take(&event(1, seq)), Taken::Event);
    }
    follow.disconnected();
    assert_eq!(follow.take(&event(1, 3)), Taken::Repeat, "a frame of no subscription");
    let again = follow.subscribe();
    assert_eq!(again["sessions"][0], json!({"sessionId": "s", "runId": "r1", "lastSeq": 2}));
    assert_eq!(again["logEpoch"], "e");
    follow.take(&answer_to(&again));
    assert_eq!(follow.take(&event(1, 2)), Taken::Repeat);
    assert_eq!(follow.take(&event(1, 3)), Taken::Event);
}

#[test]
fn a_hole_is_asked_for_once_and_then_reported() {
    let mut follow = subscribed(Begin::Start);
    follow.take(&event(1, 0));
    assert_eq!(follow.take(&event(1, 2)), Taken::Hole);
    assert_eq!(follow.take(&event(1, 3)), Taken::Repeat, "what follows a hole waits for it");
    let again = follow.subscribe();
    follow.take(&answer_to(&again));
    let lost = "events 1 to 1 of run r1".to_owned();
    assert_eq!(follow.take(&event(1, 2)), Taken::EventAfterLoss { lost });
    assert_eq!(follow.take(&event(1, 3)), Taken::Event);
}

#[test]
fn a_later_run_without_its_head_is_a_hole() {
    let mut follow = subscribed(Begin::Start);
    follow.take(&event(1, 0));
    assert_eq!(follow.take(&event(2, 1)), Taken::Hole);
}

#[test]
fn a_later_run_before_the_end_of_this_one_is_a_hole() {
    let mut follow = subscribed(Begin::Start);
    follow.take(&event(1, 0));
    assert_eq!(follow.take(&event(2, 0)), Taken::Hole);
    let again = follow.subscribe();
    follow.take(&answer_to(&again));
    assert_eq!(follow.take(&end(1, 1)), Taken::Event);
    assert_eq!(follow.take(&event(2, 0)), Taken::Event);
}

#[test]
fn caught_up_beyond_what_came_is_a_hole() {
    let mut follow = subscribed(Begin::Start);
    follow.take(&event(1, 0));
    let caught_up = json!({"kind": "caught_up", "sessionId": SESSION, "runId": "r1", "seq": 4});
    assert_eq!(follow.take(&caught_up), Taken::Hole);
    assert!(!follow.is_live());
}

#[test]
fn a_gap_is_reported_and_passed() {
    let mut follow = subscribed(Begin::Start);
    follow.take(&event(1, 0));
    let (from, to) = (json!({"runId": "r1", "seq": 1}), json!({"runId": "r2", "seq": 9}));
    let gap = json!({"kind": "gap", "sessionId": SESSION, "from": from, "to": to});
    assert_eq!(follow.take(&gap), Taken::Gap { from, to });
    assert_eq!(follow.take(&event(3, 0)), Taken::Event);
    assert_eq!(follow.take(&event(1, 1)), Taken::Repeat, "a run that lies behind");
}

#[test]
fn a_restored_log_is_shown_from_the_runs_start() {
    let mut follow = subscribed(Begin::Start);
    for seq in 0..5 {
        follow.take(&event(1, seq));
    }
    follow.disconnected();
    let again = follow.subscribe();
    let mut answer = answer_to(&again);
    answer["rewound"] = json!(true);
    answer["logEpoch"] = json!("restored");
    assert!(matches!(follow.take(&answer), Taken::Subscribed { rewound: true, .. }));
    follow.disconnected();
    let target = follow.subscribe();
    assert_eq!(target["sessions"][0], json!({"sessionId": "s", "runId": "r1"}));
    assert_eq!(target["logEpoch"], "restored");
    follow.take(&answer_to(&target));
    for seq in 0..5 {
        assert_eq!(follow.take(&event(1, seq)), Taken::Event, "other events, same numbers");
    }
}

#[test]
fn the_tail_begins_where_caught_up_says() {
    let mut follow = subscribed(Begin::Tail);
    let caught_up = json!({"kind": "caught_up", "sessionId": SESSION, "runId": "r4", "seq": 7});
    assert_eq!(follow.take(&caught_up), Taken::CaughtUp { events: 0 });
    follow.disconnected();
    let again = follow.subscribe();
    assert_eq!(again["sessions"][0], json!({"sessionId": "s", "runId": "r4", "lastSeq": 7}));
}

#[test]
fn an_agents_own_kinds_are_events_whatever_they_are_called() {
    let mut follow = subscribed(Begin::Start);
    follow.take(&event(1, 0));
    let mut named_like_ours = event(1, 1);
    named_like_ours["kind"] = json!("caught_up");
    assert_eq!(follow.take(&named_like_ours), Taken::Event);
    assert!(!follow.is_live());
}

#[test]
fn the_answer_to_an_earlier_subscribe_is_not_taken_for_the_last_ones() {
    let mut follow = Follow::new(SESSION, Begin::Start);
    let first = follow.subscribe();
    let second = follow.subscribe();
    assert_eq!(follow.take(&answer_to(&first)), Taken::Other);
    assert!(matches!(follow.take(&answer_to(&second)), Taken::Subscribed { .. }));
}

#[test]
fn errors_are_refusals() {
    let mut follow = Follow::new(SESSION, Begin::Start);
    let mut answer = answer_to(&follow.subscribe());
    answer["error"] = json!("SESSION_NOT_FOUND");
    assert_eq!(follow.take(&answer), Taken::Refused("SESSION_NOT_FOUND".into()));
    let error = json!({"kind": "protocol_error", "sessionId": null, "ref": "subscribe-1",
        "code": "INVALID_FIELD"});
    assert_eq!(follow.take(&error), Taken::Refused("INVALID_FIELD".into()));
    let others = json!({"kind": "protocol_error", "sessionId": null, "ref": "x"});
    assert_eq!(follow.take(&others), Taken::Other);
}

/// What one connection does before it goes: which of the frames due are repeated, which are
/// left out, and after how many it breaks.
#[derive(Clone, Debug)]
struct Connection {
    frames: usize,
    /// Steps back before the cursor: the server sends again what was seen.
    back: usize,
    /// Left out at this place, if it is reached.
    hole: Option<usize>,
    duplicated: bool,
}

fn connections() -> impl Strategy<Value = Vec<Connection>> {
    let one = (0_usize..12, 0_usize..6, any::<bool>());
    let one = one.prop_map(|(frames, back, duplicated)| Connection {
        frames,
        back,
        hole: None,
        duplicated,
    });
    // One hole only: the same one twice is a loss, which has its own test.
    let hole = proptest::option::of((0_usize..12, 0_usize..8));
    (proptest::collection::vec(one, 0..12), hole).prop_map(|(mut all, hole)| {
        if let Some((at, frame)) = hole
            && let Some(connection) = all.get_mut(at)
        {
            connection.hole = Some(frame);
        }
        all
    })
}

/// A server that has `log`, asked by `subscribe`: where in the log its answer begins.
fn place(log: &[Value], subscribe: &Value) -> usize {
    let target = &subscribe["sessions"][0];
    log.iter()
        .position(|e| e["runId"] == target["runId"] && e["seq"] == target["lastSeq"])
        .map_or(0, |at| at + 1)
}

proptest! {
    /// The client's half of I4: any sequence of cuts, replays, repeats and holes shows each
    /// event once, in order.
    #[test]
    fn each_event_is_shown_once(
        runs in proptest::collection::vec(2_u64..9, 1..5),
        cuts in connections(),
    ) {
        let log: Vec<Value> = runs.iter().enumerate()
            .flat_map(|(run, len)| {
                let end = std::iter::once((run, len - 1)).map(|(run, seq)| end(run, seq));
                (0..len - 1).map(move |seq| event(run, seq)).chain(end)
            })
            .collect();
        let last = Connection { frames: usize::MAX, back: 0, hole: None, duplicated: false };
        let mut follow = Follow::new(SESSION, Begin::Start);
        let mut shown = Vec::new();
        for connection in cuts.iter().chain([&last]) {
            let subscribe = follow.subscribe();
            let taken = follow.take(&answer_to(&subscribe));
            prop_assert!(matches!(taken, Taken::Subscribed { .. }), "{:?}", taken);
            let from = place(&log, &subscribe).saturating_sub(connection.back);
            let due = log[from..].iter().take(connection.frames).enumerate();
            for (at, frame) in due.filter(|(at, _)| Some(*at) != connection.hole) {
                for _ in 0..if connection.duplicated { 2 } else { 1 } {
                    let taken = follow.take(frame);
                    prop_assert!(
                        matches!(taken, Taken::Event | Taken::Repeat | Taken::Hole),
                        "frame {}: {:?}", at, taken
                    );
                    if taken == Taken::Event {
                        shown.push(frame.clone());
                    }
                }
            }
            follow.disconnected();
        }
        prop_assert_eq!(shown, log);
    }
}
