//! `notify` and `healthcheck` as a user types them.

use super::proxies::Authority;
use super::{bare, ran, run};
use crate::notify::hook::{Answer, Hook};
use crate::support::Setup;

#[test]
fn a_test_says_how_each_sink_went() {
    let (good, bad) = (Hook::new(&[]), Hook::new(&[Answer::Status(403); 3]));
    let setup = Setup::with_fake()
        .set("notify.good", "kind", "\"webhook\"")
        .set("notify.good", "url", &format!("{:?}", good.url("/")))
        .set("notify.bad", "kind", "\"ntfy\"")
        .set("notify.bad", "url", &format!("{:?}", bad.url("")))
        .set("notify.bad", "topic", "\"private-topic\"");
    let gateway = setup.env("REATTACH_NOTIFY_BAD_TOKEN", "tk_hidden").start();
    let both = run(&gateway, &["notify", "test", "--json"], 1).json();
    let outcome = |name: &str| {
        let found = both.as_array().expect("a list").iter().find(|one| one["sink"] == name);
        found.map(|one| one["outcome"].clone()).expect("each sink is named")
    };
    assert_eq!((outcome("good"), outcome("bad")), ("sent".into(), "failed".into()), "{both}");
    assert_eq!(bad.so_far()[0].header("authorization"), Some("Bearer tk_hidden"));
    let one = run(&gateway, &["notify", "test", "good"], 0);
    assert!(one.out.contains("good") && !one.out.contains("bad"), "{}", one.out);
    assert!(run(&gateway, &["notify", "test", "nobody"], 3).err.contains("bad, good"));
    let list = run(&gateway, &["notify", "list"], 0).out;
    assert!(list.contains("HTTP 403") && list.contains("test"), "{list}");
    for text in [&list, &gateway.stderr(), &both.to_string()] {
        assert!(!text.contains("tk_hidden") && !text.contains("private-topic"), "{text}");
    }
}

#[test]
fn without_a_sink_a_test_says_how_to_have_one() {
    let gateway = Setup::with_fake().start();
    let said = run(&gateway, &["notify", "test"], 1).err;
    assert!(said.contains("[notify.NAME]"), "{said}");
    assert_eq!(run(&gateway, &["notify", "list"], 0).out, "");
}

#[test]
fn a_webhook_behind_tls_is_trusted_by_the_systems_certificates_only() {
    let hook = Hook::new(&[]);
    let setup = Setup::with_fake();
    let authority = Authority::new(setup.root.path());
    let front = authority.front();
    front.leads_to(hook.port);
    let setup = setup
        .set("notify.webhook", "url", &format!("\"https://localhost:{}/x\"", front.port))
        .set("notify.webhook", "timeout", "\"5s\"");
    let file = authority.file.to_str().expect("test paths are UTF-8").to_owned();
    let gateway = setup.env("SSL_CERT_FILE", &file).start();
    run(&gateway, &["notify", "test"], 0);
    assert_eq!(hook.so_far().len(), 1);

    let setup = Setup::with_fake().set(
        "notify.webhook",
        "url",
        &format!("\"https://localhost:{}/x\"", front.port),
    );
    let gateway = setup.start();
    let refused = run(&gateway, &["notify", "test"], 1).out;
    assert!(refused.contains("TLS"), "{refused}");
    assert_eq!(hook.so_far().len(), 1, "nothing is posted to who cannot say who it is");
}

#[test]
fn a_healthcheck_is_an_exit_code() {
    let gateway = Setup::with_fake().start();
    run(&gateway, &["healthcheck"], 0);
    run(&gateway, &["healthcheck", "--ready"], 0);
    let url = format!("http://127.0.0.1:{}", gateway.port());
    let mut remote = bare(&["healthcheck", "--server", &url]);
    remote.env("HOME", "/nonexistent");
    ran(remote).expect(0);
    // Somebody who listens and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let silent = format!("http://{}", silent.local_addr().expect("it is bound"));
    let said = ran(bare(&["healthcheck", "--server", &silent])).expect(1);
    assert!(
        said.err.contains("does not answer") || said.err.contains("cannot reach"),
        "{}",
        said.err
    );
    let empty = tempfile::tempdir().expect("a directory");
    let nowhere = empty.path().to_str().expect("test paths are UTF-8");
    ran(bare(&["healthcheck", "--data-dir", nowhere])).expect(1);
}
