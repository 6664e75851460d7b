//! `bench`: what this machine can do with this program, measured from outside.
//!
//! Speed is measured here and never asserted in a test.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::run::utf8;
use super::string;
use crate::cli::args::{BenchArgs, BenchPart};
use crate::cli::bench::account::{self, Account};
use crate::cli::bench::client::Client;
use crate::cli::bench::ms;
use crate::cli::bench::place::{Place, Started};
use crate::cli::bench::report::{self, Report};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::http::Rest;
use crate::cli::interrupt::Interrupts;
use crate::cli::screen::Screen;

/// The events missed before a reattach.
const MISSED: u64 = 10_000;
/// A flood's first events are its start-up and not counted.
const WARM_UP: u64 = 1000;
/// After this a server that was started, or connected to, has come to rest.
const SETTLE: Duration = Duration::from_millis(500);

/// `reattach bench`.
///
/// # Errors
/// If something cannot be measured. A missed target is no error.
pub fn bench(args: &BenchArgs) -> Outcome {
    // From here on an interrupt must not leave a server behind.
    let interrupts = Interrupts::catch(true)?;
    let mut screen = Screen::new(args.output);
    let place = Place::new(args.dir.as_deref())?;
    let size = Size::of(args);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        optimised: !cfg!(debug_assertions),
        cores: thread::available_parallelism().map_or(1, usize::from),
        load: [account::load(), None],
        flush_ms: [Some(place.flush_ms()?), None],
        ..Report::default()
    };
    let mut bench = Bench { place, interrupts, size };
    let wants = |part: BenchPart| args.only.is_empty() || args.only.contains(&part);
    if wants(BenchPart::Ready) {
        screen.say("starting and stopping ...")?;
        report.ready = Some(bench.ready()?);
    }
    if wants(BenchPart::Idle) {
        screen.say("connecting ...")?;
        report.idle = Some(bench.idle()?);
    }
    if wants(BenchPart::Flood) {
        screen.say("flooding ...")?;
        report.flood = Some(bench.flood()?);
    }
    if wants(BenchPart::Reattach) {
        screen.say("coming back ...")?;
        report.reattach = Some(bench.reattach()?);
    }
    report.flush_ms[1] = Some(bench.place.flush_ms()?);
    report.load[1] = account::load();
    screen.document(&json!(report), &report.table())?;
    Ok(Exit::Ok)
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Size {
    events: u64,
    connections: u64,
    repeats: usize,
}

impl Size {
    fn of(args: &BenchArgs) -> Self {
        let (events, connections, repeats) =
            if args.quick { (100_000, 100, 3) } else { (1_000_000, 500, 5) };
        Self { events: args.events.unwrap_or(events), connections, repeats }
    }
}

struct Bench {
    place: Place,
    interrupts: Interrupts,
    size: Size,
}

impl Bench {
    fn ready(&mut self) -> Result<report::Ready, Failure> {
        let mut ready = report::Ready::default();
        for n in 0..self.size.repeats {
            let data = format!("ready-{n}");
            for times in [&mut ready.first_ms, &mut ready.again_ms] {
                let server = self.place.serve(&data, &mut self.interrupts)?;
                times.push(ms(server.ready()));
            }
        }
        Ok(ready)
    }

    fn idle(&mut self) -> Result<report::Idle, Failure> {
        let server = self.place.serve("idle", &mut self.interrupts)?;
        thread::sleep(SETTLE);
        let memory = |line| account::memory(server.pid(), line);
        let (before, anonymous) = (memory("VmRSS"), memory("RssAnon"));
        let mut links = Vec::new();
        for _ in 0..self.size.connections {
            let client = Client::connect(server.target(), &mut self.interrupts)?;
            links.push(client.into_link());
        }
        thread::sleep(SETTLE);
        let growth = memory("VmRSS").zip(before).map(|(now, before)| now.saturating_sub(before));
        Ok(report::Idle {
            rss: before,
            anonymous,
            connections: self.size.connections,
            per_connection: growth.map(|bytes| bytes / self.size.connections.max(1)),
        })
    }

    fn flood(&mut self) -> Result<report::Flood, Failure> {
        let server = self.place.serve("log", &mut self.interrupts)?;
        let session = self.session(&server)?;
        let events = self.size.events;
        let marks: Vec<u64> =
            (0..=10).map(|tenth| WARM_UP + (events - WARM_UP) * tenth / 10).collect();
        let mut account = Account::open(server.pid());
        let mut client = Client::connect(server.target(), &mut self.interrupts)?;
        let flood = client.flood(&session, events, &marks, || account.look())?;
        let cpu = account.close();
        let rates = marks.windows(2).zip(flood.marks.windows(2)).map(|(marks, times)| {
            report::float(marks[1] - marks[0]) / (times[1] - times[0]).as_secs_f64()
        });
        let deciles: Vec<f64> = rates.collect();
        let way = flood.marks[10] - flood.marks[0];
        let fastest = deciles.iter().copied().fold(0.0, f64::max);
        let slowest = deciles.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(report::Flood {
            events,
            first_ms: ms(flood.first),
            seconds: flood.end.as_secs_f64(),
            per_second: report::float(events - WARM_UP) / way.as_secs_f64(),
            flatness: slowest / fastest,
            deciles,
            cpu,
            rss_max: account::memory(server.pid(), "VmHWM"),
            disk_bytes: self.disk_bytes(),
        })
    }

    /// In the flood's data directory, if there was one: what matters is a database of some size.
    fn reattach(&mut self) -> Result<report::Reattach, Failure> {
        let server = self.place.serve("log", &mut self.interrupts)?;
        let session = self.session(&server)?;
        let mut client = Client::connect(server.target(), &mut self.interrupts)?;
        let run = client.flood(&session, MISSED - 1, &[], || ())?.run;
        drop(client);
        let memory_ms = self.come_back(&server, &session, &run)?;
        drop(server);
        let server = self.place.serve("log", &mut self.interrupts)?;
        let disk_ms = self.come_back(&server, &session, &run)?;
        Ok(report::Reattach { events: MISSED, memory_ms, disk_ms })
    }

    fn come_back(
        &mut self,
        server: &Started,
        session: &str,
        run: &str,
    ) -> Result<Vec<f64>, Failure> {
        let mut times = Vec::new();
        for _ in 0..self.size.repeats {
            let start = Instant::now();
            let mut client = Client::connect(server.target(), &mut self.interrupts)?;
            let seen = client.catch_up(session, run)?;
            times.push(ms(start.elapsed()));
            if seen != MISSED {
                return Err(crate::cli::bench::failed(format!(
                    "{seen} of {MISSED} events came back: a bug of the server"
                )));
            }
        }
        Ok(times)
    }

    fn session(&self, server: &Started) -> Result<String, Failure> {
        let project = utf8(&self.place.project())?;
        let body = json!({"provider": "demo", "projectPath": project, "title": "Bench"});
        let session: Value = Rest::new(server.target().clone())?.post("/sessions", &body)?;
        string(&session, "id")
    }

    fn disk_bytes(&self) -> u64 {
        let data = self.place.dir().join("log");
        let size = |name: &str| data.join(name).metadata().map_or(0, |data| data.len());
        size("reattach.db") + size("reattach.db-wal")
    }
}
