//! Somebody who is notified: an HTTP server that keeps what is posted and answers as it is told.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::Value;

use crate::support::eventually;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    /// The request line.
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Value,
}

impl Posted {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(one, _)| one == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// How to answer a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// With this status.
    Status(u16),
    /// Not at all; the connection stays open.
    Never,
}

/// The server. Its threads end with the test's process.
pub(crate) struct Hook {
    /// Where it listens.
    pub(crate) port: u16,
    posted: Arc<Mutex<Vec<Posted>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Hook {
    /// Answers with 200, but for what `answers` says of the first ones.
    pub(crate) fn new(answers: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let posted: Arc<Mutex<Vec<Posted>>> = Arc::default();
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<_>>()));
        let (keep, scripted) = (Arc::clone(&posted), Arc::clone(&answers));
        thread::spawn(move || {
            let mut silent = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                keep.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                let answer = scripted.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                match answer.unwrap_or(Answer::Status(200)) {
                    Answer::Never => silent.push(stream),
                    Answer::Status(status) => {
                        let head = format!(
                            "HTTP/1.1 {status} X\r\nContent-Length: 9\r\nLocation: /elsewhere\r\n\
                             Connection: close\r\n\r\nwhat else"
                        );
                        // Who hangs up early has no use for it.
                        drop(stream.write_all(head.as_bytes()));
                    }
                }
            }
        });
        Self { port, posted, answers }
    }

    /// Its address.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What was posted so far.
    pub(crate) fn so_far(&self) -> Vec<Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until something was posted that `fits`.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, fits: impl Fn(&Posted) -> bool) -> Posted {
        eventually(&format!("{what} is posted"), || self.so_far().into_iter().find(|one| fits(one)))
    }

    /// Waits for a notification of this kind.
    #[track_caller]
    pub(crate) fn event(&self, event: &str) -> Posted {
        self.wait(event, |posted| posted.body["event"] == event)
    }

    /// Answers the next request like this.
    pub(crate) fn answer(&self, answer: Answer) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
    }
}

fn read(stream: &TcpStream) -> Option<Posted> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length")?;
    let mut body = vec![0; length.1.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).expect("notifications are JSON");
    Some(Posted { line: line.trim_end().to_owned(), headers, body })
}
