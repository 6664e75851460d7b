//! The connections that are served: a place for each, within the caps, given back however it ends.
//!
//! Three caps (I7): all connections; those that still speak HTTP, so that clients who never finish
//! a request cannot keep WebSockets out of the rest; those of one machine. Must not know sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::limits;
use crate::run::wake::Bell;
use crate::server::stream::Peer;
use crate::server::wait::{Doorbell, Order};
use crate::sync::{Arc, Condvar, Mutex};

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// In all.
    pub all: usize,
    /// At a request, or between two.
    pub http: usize,
    /// From one machine that is not this one.
    pub per_peer: usize,
}

/// Why there is no place for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `Caps::all`.
    All,
    /// `Caps::http`.
    Http,
    /// `Caps::per_peer`.
    PerPeer,
    /// Nobody is let in any more.
    Stopping,
}

/// The connections that are served.
#[derive(Debug)]
pub struct Crowd {
    caps: Caps,
    state: Mutex<State>,
    /// Somebody left.
    left: Condvar,
    /// The listener's, which joins those who left.
    bell: Doorbell,
}

#[derive(Debug, Default)]
struct State {
    /// Of connections and threads, so that each has a number of its own.
    count: u64,
    live: BTreeMap<u64, Member>,
    /// How many of them count against `Caps::http`.
    http: usize,
    /// And how many against `Caps::per_peer`, by machine.
    peers: BTreeMap<IpAddr, usize>,
    threads: BTreeMap<u64, JoinHandle<()>>,
    /// Threads that are at their ends.
    gone: Vec<u64>,
    order: Option<Order>,
}

#[derive(Debug)]
struct Member {
    bell: Doorbell,
    /// It counts against `Caps::http`.
    http: bool,
    /// It counts against `Caps::per_peer`, as one of this machine's.
    machine: Option<IpAddr>,
}

impl Crowd {
    /// Nobody yet. `bell` is rung when a thread is at its end.
    #[must_use]
    pub fn new(caps: Caps, bell: Doorbell) -> Self {
        Self { caps, state: Mutex::new(State::default()), left: Condvar::new(), bell }
    }

    /// Gives an order to all who are there; from now on nobody is let in.
    pub fn order(&self, order: Order) {
        let bells: Vec<Doorbell> = {
            let mut state = self.state.lock();
            state.order = state.order.max(Some(order));
            state.live.values().map(|member| member.bell.clone()).collect()
        };
        for bell in bells {
            bell.give(order);
        }
    }

    /// Waits until nobody is left: `false` if somebody is at `deadline`.
    pub fn wait_empty(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.live.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.left.wait_for(state, left);
        }
        true
    }

    /// A place for one more.
    ///
    /// # Errors
    /// If a cap is reached. Over the local socket only the first counts, and there are some places
    /// more than that: its owner must be able to come in and look.
    pub fn enter(self: &Arc<Self>, peer: Peer, bell: Doorbell) -> Result<Place, Full> {
        let mut state = self.state.lock();
        let local = peer == Peer::Local;
        let extra = if local { limits::LOCAL_CONNECTIONS_EXTRA } else { 0 };
        let machine = machine(peer);
        let of_peer = machine.and_then(|machine| state.peers.get(&machine)).copied();
        if state.order.is_some() {
            return Err(Full::Stopping);
        }
        if state.live.len() >= self.caps.all.saturating_add(extra) {
            return Err(Full::All);
        }
        if of_peer.unwrap_or(0) >= self.caps.per_peer {
            return Err(Full::PerPeer);
        }
        if !local && state.http >= self.caps.http {
            return Err(Full::Http);
        }
        state.count += 1;
        state.http += usize::from(!local);
        if let Some(machine) = machine {
            *state.peers.entry(machine).or_default() += 1;
        }
        let number = state.count;
        state.live.insert(number, Member { bell, http: !local, machine });
        drop(state);
        Ok(Place { crowd: self.clone(), number })
    }

    /// Joins the threads that are at their ends.
    pub fn join_gone(&self) {
        let threads: Vec<JoinHandle<()>> = {
            let mut state = self.state.lock();
            let State { threads, gone, .. } = &mut *state;
            let mut joined = Vec::new();
            // One that is not there yet is just being put there; its turn comes.
            gone.retain(|thread| match threads.remove(thread) {
                Some(handle) => {
                    joined.push(handle);
                    false
                }
                None => true,
            });
            joined
        };
        for thread in threads {
            // A panic is that connection's own: its hook has printed it, and the others go on.
            if thread.join().is_err() {
                tracing::error!("a connection's thread panicked");
            }
        }
    }

    /// Joins all threads, once nobody is left: who gave its place back has nothing left to do.
    pub fn join_all(&self) {
        {
            let mut state = self.state.lock();
            let State { threads, gone, .. } = &mut *state;
            gone.extend(threads.keys());
        }
        self.join_gone();
    }
}

impl State {
    fn leave_http(&mut self, number: u64) {
        if let Some(member) = self.live.get_mut(&number).filter(|member| member.http) {
            member.http = false;
            self.http -= 1;
        }
    }

    fn leave(&mut self, number: u64) {
        self.leave_http(number);
        let Some(machine) = self.live.remove(&number).and_then(|member| member.machine) else {
            return;
        };
        if let Some(count) = self.peers.get_mut(&machine) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&machine);
            }
        }
    }
}

/// Whose connections are counted together: those of an address. Of IPv6 on the internet one
/// household or host has a whole /64. `None`: not counted, since it is this machine.
fn machine(peer: Peer) -> Option<IpAddr> {
    match peer {
        Peer::Local => None,
        Peer::Tcp(address) if address.is_loopback() => None,
        // 2000::/3 is what is routed.
        Peer::Tcp(IpAddr::V6(address)) if address.segments()[0] >> 13 == 1 => {
            let [a, b, c, d, ..] = address.segments();
            Some(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
        }
        Peer::Tcp(address) => Some(address),
    }
}

/// One connection's place, given back however its threads end.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Place {
    /// Runs `work` on a thread of the connection's name.
    ///
    /// # Errors
    /// If no thread is to be had.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let crowd = &self.crowd;
        let thread = {
            let mut state = crowd.state.lock();
            state.count += 1;
            state.count
        };
        let leaving = Leaving { crowd: crowd.clone(), thread };
        let name = format!("conn-{}", self.number);
        let handle = thread::Builder::new().name(name).spawn(move || {
            let _leaving = leaving;
            work();
        })?;
        crowd.state.lock().threads.insert(thread, handle);
        Ok(())
    }

    /// The connection does not speak HTTP any more.
    pub fn leave_http(&self) {
        self.crowd.state.lock().leave_http(self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.state.lock().leave(self.number);
        self.crowd.left.notify_all();
    }
}

/// Says that a thread is at its end, however it came to it.
struct Leaving {
    crowd: Arc<Crowd>,
    thread: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.crowd.state.lock().gone.push(self.thread);
        self.crowd.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::wait::Waiter;

    fn crowd(all: usize, http: usize, per_peer: usize) -> (Waiter, Arc<Crowd>) {
        let waiter = Waiter::new().expect("a descriptor");
        let bell = waiter.bell();
        (waiter, Arc::new(Crowd::new(Caps { all, http, per_peer }, bell)))
    }

    fn from(address: &str) -> Peer {
        Peer::Tcp(address.parse().expect("an address"))
    }

    #[test]
    fn each_cap_counts_what_it_should_and_places_come_back() {
        let (waiter, crowd) = crowd(4, 2, 2);
        let enter = |peer| crowd.enter(peer, waiter.bell()).map_err(|full| format!("{full:?}"));
        let near = from("127.0.0.1");
        let first = enter(near).expect("a place");
        let second = enter(near).expect("a place");
        assert_eq!(enter(near).expect_err("two speak HTTP"), "Http");
        first.leave_http();
        first.leave_http();
        let third = enter(near).expect("loopback is not counted by machine");
        assert_eq!(enter(near).expect_err("two speak HTTP again"), "Http");
        third.leave_http();
        second.leave_http();
        let fourth = enter(near).expect("the last place");
        assert_eq!(enter(near).expect_err("four are there"), "All");
        let local = enter(Peer::Local).expect("the owner comes in");
        drop(fourth);
        assert_eq!(enter(near).expect_err("the owner counts"), "All");
        drop(local);
        drop(enter(near).expect("a place was given back"));
        drop((first, second, third));
        let state = crowd.state.lock();
        assert_eq!((state.live.len(), state.http, state.peers.len()), (0, 0, 0));
    }

    #[test]
    fn one_machine_leaves_room_for_others() {
        let (waiter, crowd) = crowd(100, 100, 2);
        let enter = |address| crowd.enter(from(address), waiter.bell());
        let held = [enter("192.0.2.1"), enter("192.0.2.1"), enter("2001:db8:0:1::1")];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(enter("192.0.2.1").expect_err("two are there"), Full::PerPeer);
        let neighbour = enter("2001:db8:0:1::2");
        assert_eq!(enter("2001:db8:0:1::3").expect_err("the same /64"), Full::PerPeer);
        assert!(enter("2001:db8:0:2::1").is_ok(), "another /64");
        drop(neighbour);
        assert!(enter("2001:db8:0:1::3").is_ok(), "a place was given back");
        let beside = ["fe80::1", "fe80::2", "fe80::3"].map(enter);
        assert!(beside.iter().all(Result::is_ok), "a link is not a machine");
    }

    #[test]
    fn the_owner_has_some_places_more_but_not_without_end() {
        let (waiter, crowd) = crowd(1, 1, 1);
        let enter = || crowd.enter(Peer::Local, waiter.bell());
        let held: Vec<_> = (0..=limits::LOCAL_CONNECTIONS_EXTRA).map(|_| enter()).collect();
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(enter().expect_err("bounded"), Full::All);
        crowd.order(Order::Drain);
        drop(held);
        assert_eq!(enter().expect_err("it stops"), Full::Stopping);
    }
}
