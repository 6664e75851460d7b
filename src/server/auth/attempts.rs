//! How often somebody may be wrong. Buckets that refill with time, one for each peer and one for
//! all together; bounded in number. Must not know what was tried.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::limits;
use crate::server::stream::Peer;
use crate::sync::Mutex;

/// Wrong attempts of one sort.
#[derive(Debug)]
pub(super) struct Attempts(Mutex<State>);

#[derive(Debug)]
struct State {
    all: Bucket,
    peers: BTreeMap<Peer, Bucket>,
}

/// What is left of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    max: u32,
    refill: Duration,
    left: u32,
    since: Instant,
}

impl Attempts {
    /// Full buckets.
    #[must_use]
    pub(super) fn new(now: Instant) -> Self {
        let all = Bucket::full(limits::ATTEMPTS_ALL_MAX, limits::ATTEMPTS_ALL_REFILL_MS, now);
        Self(Mutex::new(State { all, peers: BTreeMap::new() }))
    }

    /// Whether this peer may try: else how many seconds it has to wait.
    ///
    /// # Errors
    /// The seconds.
    pub(super) fn check(&self, peer: Peer, now: Instant) -> Result<(), u64> {
        self.0.lock().check(network(peer), now)
    }

    /// The same, and it was wrong: one attempt less.
    ///
    /// # Errors
    /// The seconds; then nothing is taken.
    pub(super) fn wrong(&self, peer: Peer, now: Instant) -> Result<(), u64> {
        let peer = network(peer);
        let mut state = self.0.lock();
        state.check(peer, now)?;
        state.all.left -= 1;
        state.peer(peer, now).left -= 1;
        Ok(())
    }
}

impl State {
    fn check(&mut self, peer: Peer, now: Instant) -> Result<(), u64> {
        self.all.refill(now);
        let all = self.all;
        let bucket = self.peer(peer, now);
        bucket.refill(now);
        match [*bucket, all]
            .into_iter()
            .filter(|bucket| bucket.left == 0)
            .map(|b| b.wait(now))
            .max()
        {
            None => Ok(()),
            Some(seconds) => Err(seconds),
        }
    }

    fn peer(&mut self, peer: Peer, now: Instant) -> &mut Bucket {
        if self.peers.len() >= limits::ATTEMPTS_PEERS_MAX && !self.peers.contains_key(&peer) {
            self.make_room(now);
        }
        self.peers.entry(peer).or_insert_with(|| {
            Bucket::full(limits::LOGIN_ATTEMPTS_MAX, limits::LOGIN_REFILL_MS, now)
        })
    }

    /// Forgets those that have nothing against them, and if there are none, whoever was wrong the
    /// longest ago. The bucket of all goes on counting.
    fn make_room(&mut self, now: Instant) {
        self.peers.retain(|_, bucket| {
            bucket.refill(now);
            bucket.left < bucket.max
        });
        if self.peers.len() >= limits::ATTEMPTS_PEERS_MAX
            && let Some(oldest) = self.peers.iter().min_by_key(|(_, bucket)| bucket.since)
        {
            let oldest = *oldest.0;
            self.peers.remove(&oldest);
        }
    }
}

impl Bucket {
    pub(super) fn full(max: u32, refill_ms: i64, now: Instant) -> Self {
        let refill = Duration::from_millis(refill_ms.unsigned_abs());
        Self { max, refill, left: max, since: now }
    }

    /// One less, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }

    fn refill(&mut self, now: Instant) {
        while self.left < self.max && now >= self.since + self.refill {
            self.left += 1;
            self.since += self.refill;
        }
        if self.left == self.max {
            self.since = now;
        }
    }

    /// Whole seconds until there is one more.
    fn wait(&self, now: Instant) -> u64 {
        let wait = (self.since + self.refill).saturating_duration_since(now);
        wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
    }
}

/// Who counts as one peer: an IPv6 customer has a whole /64.
fn network(peer: Peer) -> Peer {
    match peer {
        Peer::Tcp(IpAddr::V6(address)) => {
            let prefix = u128::from(address) >> 64 << 64;
            Peer::Tcp(IpAddr::V6(Ipv6Addr::from(prefix)))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::Tcp(text.parse().expect("an address"))
    }

    #[test]
    fn a_peer_runs_out_by_itself_and_comes_back_with_time() {
        let start = Instant::now();
        let attempts = Attempts::new(start);
        let [one, other] = [peer("192.0.2.1"), peer("192.0.2.2")];
        for _ in 0..limits::LOGIN_ATTEMPTS_MAX {
            assert_eq!(attempts.wrong(one, start), Ok(()));
        }
        let seconds = limits::LOGIN_REFILL_MS.unsigned_abs().div_ceil(1000);
        assert_eq!(attempts.check(one, start), Err(seconds));
        assert_eq!(attempts.wrong(one, start), Err(seconds));
        assert_eq!(attempts.check(other, start), Ok(()), "another peer may");
        let later = start + Duration::from_millis(limits::LOGIN_REFILL_MS.unsigned_abs());
        assert_eq!(attempts.wrong(one, later), Ok(()));
        assert!(attempts.wrong(one, later).is_err());
    }

    #[test]
    fn many_peers_run_out_together_and_take_no_memory() {
        let start = Instant::now();
        let attempts = Attempts::new(start);
        let mut allowed = 0;
        for n in 0..u32::try_from(limits::ATTEMPTS_PEERS_MAX).expect("small") * 2 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from(0x0a00_0000 + n));
            allowed += u32::from(attempts.wrong(Peer::Tcp(address), start).is_ok());
        }
        assert_eq!(allowed, limits::ATTEMPTS_ALL_MAX);
        assert!(attempts.0.lock().peers.len() <= limits::ATTEMPTS_PEERS_MAX);
    }

    #[test]
    fn one_customer_is_one_peer() {
        let start = Instant::now();
        let attempts = Attempts::new(start);
        for n in 0..limits::LOGIN_ATTEMPTS_MAX {
            assert_eq!(attempts.wrong(peer(&format!("2001:db8::{n}")), start), Ok(()));
        }
        assert!(attempts.check(peer("2001:db8::ffff"), start).is_err());
        assert!(attempts.check(peer("2001:db8:0:1::1"), start).is_ok());
    }
}
