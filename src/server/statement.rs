//! What is known of a session when somebody begins to follow it, as pieces of the wire's frames.
//!
//! Must not know who asks.

use serde_json::Value;

use crate::limits;
use crate::protocol::gateway::{ChatSubscribed, EventAt, GapRange};
use crate::registry::{Gap, Subscribed};
use crate::run::id::LogEpoch;
use crate::run::state::PendingPermission;
use crate::server::view;

/// What a client learns of a session that it follows from now on.
#[must_use]
pub fn statement(session_id: String, subscribed: Subscribed, epoch: LogEpoch) -> ChatSubscribed {
    let Subscribed { statement, first_seq, recovered, rewound, gap, queue, .. } = subscribed;
    ChatSubscribed {
        session_id,
        is_processing: statement.is_processing,
        run_id: statement.run,
        last_seq: statement.last_seq,
        first_seq,
        recovered,
        rewound: rewound.then_some(true),
        gap: gap.map(gap_range),
        pending_permissions: pending(statement.pending),
        queue: view::queue(&queue.0, Some(limits::QUEUE_PREVIEW_CHARS)),
        queue_held: queue.1,
        log_epoch: epoch,
        error: None,
    }
}

/// A gap as clients hear it.
#[must_use]
pub fn gap_range(gap: Gap) -> GapRange {
    let at = |(run_id, seq)| EventAt { run_id, seq };
    GapRange { from: gap.from.map(at), to: at(gap.to) }
}

/// The events of requests that wait, with the time of asking. Together they must fit the write
/// buffer, so what goes beyond `limits::PENDING_BYTES_MAX` is left to the replay and to REST.
fn pending(requests: Vec<PendingPermission>) -> Vec<Value> {
    let mut bytes = 0;
    let fitting = requests.into_iter().take_while(|request| {
        bytes += request.frame.len() + 64;
        bytes <= limits::PENDING_BYTES_MAX
    });
    let events = fitting.filter_map(|request| {
        let mut event: Value = serde_json::from_str(&request.frame).ok()?;
        event.as_object_mut()?.insert("receivedAt".into(), request.received_at.to_string().into());
        Some(event)
    });
    events.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::run::id::{Millis, RequestId};

    #[test]
    fn pending_requests_are_their_events_with_a_time_and_bounded() {
        let request = |n: usize, bytes: usize| PendingPermission {
            request: RequestId(n.to_string()),
            frame: json!({ "requestId": n.to_string(), "input": "x".repeat(bytes) })
                .to_string()
                .into(),
            received_at: Millis(0),
        };
        let few = pending(vec![request(1, 10), request(2, 10)]);
        assert_eq!(few.len(), 2);
        assert_eq!(few[0]["receivedAt"], "1970-01-01T00:00:00.000Z");
        let many = pending((0..100).map(|n| request(n, 100 << 10)).collect());
        assert_eq!(many.len(), 5);
    }
}
