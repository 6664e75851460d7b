//! What was measured, as JSON and as a table beside the targets.
//!
//! A missed target is shown and is no failure: other machines, and this one in other moods, are
//! slower. Must not know how anything is measured.

use std::fmt::Write as _;

use serde::Serialize;

use super::account::Seconds;

/// Everything. What was left out, or cannot be measured here, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Of this program.
    pub version: String,
    /// Whether it was built with optimisation. Without, no target means anything.
    pub optimised: bool,
    /// Processors that it may use.
    pub cores: usize,
    /// Load averages over a minute, before and after.
    pub load: [Option<f64>; 2],
    /// Medians of how long 4 KiB take to the disk, in ms: before the flood and after it.
    pub flush_ms: [Option<f64>; 2],
    /// Starting.
    pub ready: Option<Ready>,
    /// Doing nothing.
    pub idle: Option<Idle>,
    /// One agent, as fast as it can.
    pub flood: Option<Flood>,
    /// Coming back.
    pub reattach: Option<Reattach>,
}

/// From before the process is started to its line on stdout, in ms.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// Without a data directory.
    pub first_ms: Vec<f64>,
    /// With one, after an orderly stop.
    pub again_ms: Vec<f64>,
}

/// A server at rest. Memory is resident memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    /// All of it, without a connection.
    pub rss: Option<u64>,
    /// The part that is not the program's file.
    pub anonymous: Option<u64>,
    /// WebSocket connections opened.
    pub connections: u64,
    /// The growth of all of it for each of them.
    pub per_connection: Option<u64>,
}

/// A flood.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flood {
    /// Events, the end of the run not counted.
    pub events: u64,
    /// From the prompt to the first event, in ms: the agent's start.
    pub first_ms: f64,
    /// From the prompt to the run's end, in s.
    pub seconds: f64,
    /// From event 1,000 to the last.
    pub per_second: f64,
    /// The same for each tenth of that way.
    pub deciles: Vec<f64>,
    /// The slowest tenth by the fastest.
    pub flatness: f64,
    /// Processor time.
    pub cpu: Option<Seconds>,
    /// The server's resident memory at its most, in bytes.
    pub rss_max: Option<u64>,
    /// The database and its write-ahead log after it, in bytes.
    pub disk_bytes: u64,
}

/// From before connecting to `caught_up`, in ms.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reattach {
    /// Events missed, the run's end included.
    pub events: u64,
    /// The run is in memory.
    pub memory_ms: Vec<f64>,
    /// The server was started anew.
    pub disk_ms: Vec<f64>,
}

/// What this project sets itself on two cores.
pub mod target {
    /// Events per second.
    pub const EVENTS_PER_SECOND: f64 = 60_000.0;
    /// Bytes for each idle connection.
    pub const CONNECTION_BYTES: f64 = 16.0 * 1024.0;
    /// Bytes of an idle server.
    pub const IDLE_BYTES: f64 = 15e6;
    /// From start to ready.
    pub const READY_MS: f64 = 100.0;
    /// Reattach across 10,000 missed events.
    pub const REATTACH_MS: f64 = 100.0;
}

impl Report {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::default();
        self.machine(&mut table);
        if let Some(ready) = &self.ready {
            let target = Some(Target::AtMost(target::READY_MS));
            table.times("ready, first start", &ready.first_ms, target);
            table.times("ready, later start", &ready.again_ms, target);
        }
        if let Some(idle) = &self.idle {
            idle.show(&mut table);
        }
        if let Some(flood) = &self.flood {
            flood.show(&mut table);
        }
        if let Some(reattach) = &self.reattach {
            let target = Some(Target::AtMost(target::REATTACH_MS));
            let events = thousands(reattach.events);
            table.times(&format!("reattach, {events} events"), &reattach.memory_ms, target);
            table.times("the same after a restart", &reattach.disk_ms, target);
        }
        table.text
    }

    fn machine(&self, table: &mut Table) {
        let build = if self.optimised { "" } else { ", NOT OPTIMISED: build with --release" };
        let cores = self.cores;
        table.line("reattach", &format!("{}, {cores} cores{build}", self.version));
        if let [Some(before), Some(after)] = self.load {
            table.line("load average", &format!("{before:.2} before, {after:.2} after"));
        }
        if let [Some(before), Some(after)] = self.flush_ms {
            table.line("fsync p50", &format!("{before:.2} ms before, {after:.2} ms after"));
        }
    }
}

impl Idle {
    fn show(&self, table: &mut Table) {
        if let Some(rss) = self.rss {
            let anonymous = self.anonymous.map(|bytes| format!("  ({} of it heap)", mb(bytes)));
            let value = format!("{}{}", mb(rss), anonymous.unwrap_or_default());
            table.row("idle server", &value, float(rss), Target::AtMost(target::IDLE_BYTES));
        }
        if let Some(bytes) = self.per_connection {
            let value = format!("{:.1} KiB  (of {})", float(bytes) / 1024.0, self.connections);
            let target = Target::AtMost(target::CONNECTION_BYTES);
            table.row("idle connection", &value, float(bytes), target);
        }
    }
}

impl Flood {
    fn show(&self, table: &mut Table) {
        let value = format!("{} events/s", thousands_of(self.per_second));
        let target = Target::AtLeast(target::EVENTS_PER_SECOND);
        table.row(
            &format!("flood, {} events", thousands(self.events)),
            &value,
            self.per_second,
            target,
        );
        let deciles: Vec<String> =
            self.deciles.iter().map(|rate| format!("{:.1}", rate / 1e3)).collect();
        table.line("  each tenth, k/s", &deciles.join(" "));
        table.line("  first event after", &format!("{:.0} ms", self.first_ms));
        if let Some(cpu) = &self.cpu {
            let gateway: f64 = cpu.gateway.values().sum();
            let threads: Vec<String> =
                cpu.gateway.iter().map(|(kind, time)| format!("{kind} {time:.2}")).collect();
            table.line(
                "  took, and CPU of",
                &format!(
                    "{:.2} s; gateway {gateway:.2} s ({}), keeper {:.2}, agent {:.2}, client {:.2}",
                    self.seconds,
                    threads.join(", "),
                    cpu.keeper,
                    cpu.agent,
                    cpu.client,
                ),
            );
        }
        if let Some(bytes) = self.rss_max {
            table.line("  server's memory", &format!("{} at most", mb(bytes)));
        }
        table.line("  on disk", &mb(self.disk_bytes));
    }
}

#[derive(Clone, Copy, Debug)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Debug, Default)]
struct Table {
    text: String,
}

impl Table {
    fn line(&mut self, name: &str, value: &str) {
        // Writing to a string cannot fail.
        writeln!(self.text, "{name:<26} {value}").unwrap_or_default();
    }

    fn row(&mut self, name: &str, value: &str, number: f64, target: Target) {
        let met = match target {
            Target::AtMost(most) => number <= most,
            Target::AtLeast(least) => number >= least,
        };
        self.line(name, &format!("{value:<36} {}", if met { "ok" } else { "MISSES ITS TARGET" }));
    }

    /// The median and the range of some times.
    fn times(&mut self, name: &str, ms: &[f64], target: Option<Target>) {
        let Some(most) = ms.iter().copied().reduce(f64::max) else { return };
        let least = ms.iter().copied().fold(f64::INFINITY, f64::min);
        let median = super::median(ms);
        let value = format!("{median:.1} ms  ({least:.1} to {most:.1}, {} times)", ms.len());
        match target {
            Some(target) => self.row(name, &value, median, target),
            None => self.line(name, &value),
        }
    }
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", float(bytes) / 1e6)
}

fn thousands_of(rate: f64) -> String {
    // A rate is positive and far below what a u64 holds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    thousands(rate.round() as u64)
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count for a division: what is lost above 2^53 does not show.
#[allow(clippy::cast_precision_loss, reason = "see above")]
pub(crate) const fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")]
        {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn a_missed_target_is_seen_and_what_was_left_out_is_not() {
        let report = Report {
            ready: Some(Ready { first_ms: vec![250.0], again_ms: vec![20.0, 21.0, 400.0] }),
            reattach: Some(Reattach { events: 10_000, memory_ms: vec![50.0], disk_ms: vec![] }),
            ..Report::default()
        };
        let table = report.table();
        let row = |name: &str| table.lines().find(|line| line.starts_with(name)).expect("a row");
        assert!(row("ready, first start").ends_with("MISSES ITS TARGET"), "{table}");
        assert!(row("ready, later start").ends_with("ok"), "the median counts: {table}");
        assert!(row("reattach, 10,000 events").contains("50.0 ms"), "{table}");
        assert!(!table.contains("flood") && !table.contains("restart"), "{table}");
    }
}
