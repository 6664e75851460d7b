//! Many connections at once: slow ones, and more than there may be. Somebody else works meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::wire::{self, Talk};
use crate::support::{Client, DEADLINE, Gateway, Setup, eventually};

const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Slow clients at once, and the cap of connections that are at a request.
const SLOW: usize = 200;

/// As many descriptors as we may have: other tests hold some too.
fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("below the hard one");
}

/// Sends a prompt that is a script, and reads what it printed and its `complete`.
#[track_caller]
fn works(client: &mut Client, session: &str, word: &str) {
    let run = client.prompt(session, &format!("echo {word}"));
    client.expect(word, |frame| frame.kind() == "text" && frame.json["content"] == word);
    let complete = client.expect_complete(&run);
    assert_eq!(complete.json["success"], true, "{}", complete.text);
}

fn connect(gateway: &Gateway) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", gateway.port())).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    stream
}

#[test]
fn two_hundred_slow_clients_meet_their_deadline_while_another_works() {
    raise_descriptors();
    let setup = Setup::new().provider("sh", "command", &["sh"]);
    let setup = setup.set("limits", "connections_http_max", &SLOW.to_string());
    let gateway = setup.start();
    let session = gateway.session("sh");
    let mut worker = gateway.connect();
    let mut slow: Vec<TcpStream> = (0..SLOW).map(|_| connect(&gateway)).collect();
    for stream in &mut slow {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ").expect("it reads");
    }
    works(&mut worker, &session, "one");
    // They hold all the places that there are for requests, which is told to whoever comes next.
    let told = wire::talk(gateway.port(), GET);
    assert_eq!((told.answers[0].status, told.rest.len()), (503, 0), "{told}");
    assert_eq!(told.answers[0].code(), "TOO_MANY_CONNECTIONS");
    assert!(told.answers[0].json().to_string().contains("connections_http_max"), "{told}");
    // A byte now and then, for as long as somebody takes it.
    let mut words = 0;
    eventually("each slow client is ended", || {
        words += 1;
        works(&mut worker, &session, &format!("word{words}"));
        slow.retain_mut(|stream| {
            stream.set_nonblocking(true).expect("an open socket");
            let mut first = [0];
            let ended = !matches!(stream.peek(&mut first), Err(error) if error.kind() == ErrorKind::WouldBlock);
            if ended {
                let mut answer = Vec::new();
                stream.set_nonblocking(false).expect("an open socket");
                stream.read_to_end(&mut answer).expect("an answer and the end");
                let told = Talk::read(&answer, false);
                assert_eq!(told.answers[0].code(), "REQUEST_TIMEOUT", "{told}");
                told.answers[0].assert_guarded();
            } else {
                stream.write_all(b"x").expect("it reads");
            }
            !ended
        });
        slow.is_empty().then_some(())
    });
    assert!(words > 1, "the slow ones were ended at once");
    // Places come back with the threads that had them.
    eventually("whoever comes next is served", || {
        (wire::talk(gateway.port(), GET).answers[0].status == 200).then_some(())
    });
    works(&mut worker, &session, "last");
}

#[test]
fn five_thousand_are_told_no_and_the_next_one_is_served() {
    const CAP: usize = 200;
    const ATTEMPTS: usize = 5000;
    raise_descriptors();
    let setup = Setup::new().provider("sh", "command", &["sh"]);
    let gateway = setup.set("limits", "connections_max", &CAP.to_string()).start();
    let session = gateway.session("sh");
    let mut worker = gateway.connect();
    let mut held: Vec<Client> = Vec::new();
    // The session's request may still be saying good-bye.
    while held.len() < CAP - 1 {
        eventually("a place", || {
            let bearer = [("authorization", format!("Bearer {}", gateway.token()))];
            held.push(Client::connect(gateway.port(), "/ws", &bearer).ok()?);
            Some(())
        });
    }
    let left = AtomicUsize::new(ATTEMPTS);
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while take().is_ok() {
                    let told = wire::talk(gateway.port(), GET);
                    let [answer] = &told.answers[..] else { panic!("{told}") };
                    assert_eq!((answer.status, told.rest.len()), (503, 0), "{told}");
                    assert_eq!(answer.code(), "TOO_MANY_CONNECTIONS");
                    assert_eq!(answer.header("retry-after"), Some("1"));
                    answer.assert_guarded();
                }
            });
        }
        works(&mut worker, &session, "meanwhile");
    });
    // The owner comes in by the local socket, full or not.
    let socket = gateway.announced()["socket"].as_str().expect("there is one");
    let mut owner = UnixStream::connect(socket).expect("it listens");
    owner.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
    owner.write_all(GET).expect("it reads");
    let mut answer = Vec::new();
    owner.read_to_end(&mut answer).expect("an answer and the end");
    assert_eq!(Talk::read(&answer, false).answers[0].status, 200);
    held.pop().expect("there are some").close();
    eventually("a place is given back", || {
        (wire::talk(gateway.port(), GET).answers[0].status == 200).then_some(())
    });
    works(&mut worker, &session, "afterwards");
}

#[test]
fn one_machine_may_not_take_all_places() {
    // The address by which this machine would leave. Nothing is sent there, and what is sent to
    // that address does not leave either: but it is not loopback's.
    let outward = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    });
    let Some(address) = outward.ok().filter(|address| !address.is_loopback()) else {
        println!("this machine has no other address than loopback: nothing to see here");
        return;
    };
    let start = |behind_proxy: bool| {
        let mut setup = Setup::new();
        setup.bind = format!("{address}:0");
        if behind_proxy {
            setup = setup.set("server", "behind_proxy", "true");
            setup = setup.set("server", "public_url", "\"https://box.example\"");
        } else {
            setup.arguments.push("--insecure-http".to_owned());
        }
        setup.set("limits", "connections_per_peer_max", "2").start()
    };
    let connect = |gateway: &Gateway| {
        let mut stream = TcpStream::connect((address, gateway.port())).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a fresh socket");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
        let mut start = [0; 12];
        stream.read_exact(&mut start).expect("an answer");
        (String::from_utf8_lossy(&start).into_owned(), stream)
    };
    let gateway = start(false);
    let held = [connect(&gateway), connect(&gateway)];
    assert_eq!(held.each_ref().map(|(status, _)| &**status), ["HTTP/1.1 200"; 2]);
    assert_eq!(connect(&gateway).0, "HTTP/1.1 503");
    drop(held);
    eventually("places are given back", || (connect(&gateway).0 == "HTTP/1.1 200").then_some(()));
    // All that a proxy passes on comes from its address.
    let gateway = start(true);
    let held = [(); 5].map(|()| connect(&gateway));
    assert_eq!(held.each_ref().map(|(status, _)| &**status), ["HTTP/1.1 200"; 5]);
}
