//! What the system says of this process, read from `/proc` when somebody asks: the standard
//! `process_*` metrics. Where there is no `/proc` there are none.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// The collector.
#[derive(Debug)]
pub(super) struct Process;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    cpu_seconds: f64,
    start_seconds: f64,
    threads: i64,
    virtual_bytes: i64,
    resident_bytes: i64,
    open_fds: i64,
    max_fds: Option<i64>,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(reading) = Reading::now() else { return Ok(()) };
        let cpu = ConstCounter::new(reading.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "Processor time that this process took, of user and system together.",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)?;
        let seconds = [(
            "process_start_time",
            "When this process began, in seconds since 1970.",
            reading.start_seconds,
        )];
        for (name, help, value) in seconds {
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?)?;
        }
        let bytes = [
            ("process_virtual_memory", "Address space of this process.", reading.virtual_bytes),
            ("process_resident_memory", "Memory of this process.", reading.resident_bytes),
        ];
        for (name, help, value) in bytes {
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Bytes), kind)?)?;
        }
        let counts = [
            ("process_threads", "Threads of this process.", Some(reading.threads)),
            ("process_open_fds", "Descriptors that are open.", Some(reading.open_fds)),
            ("process_max_fds", "Descriptors that may be open.", reading.max_fds),
        ];
        for (name, help, value) in counts {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}

impl Reading {
    fn now() -> Option<Self> {
        let ticks = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).ok()?);
        let boot: f64 = fs::read_to_string("/proc/stat").ok()?.lines().find_map(|line| {
            line.strip_prefix("btime ").and_then(|seconds| seconds.trim().parse().ok())
        })?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let mut reading = Self::of_stat(&stat, ticks, boot)?;
        // One of them is the directory that is being read.
        let open = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
        reading.open_fds = i64::try_from(open).ok()?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        reading.max_fds = limit.and_then(|limit| i64::try_from(limit).ok());
        Some(reading)
    }

    /// Of the text of `/proc/self/stat`. The name of the program, in parentheses, may hold
    /// anything, parentheses and blanks too.
    fn of_stat(stat: &str, ticks: f64, boot: f64) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `man 5 proc` counts from 1, and the first two are before the parenthesis.
        let float = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let whole = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
        let page = i64::try_from(rustix::param::page_size()).ok()?;
        Some(Self {
            cpu_seconds: (float(14)? + float(15)?) / ticks,
            threads: whole(20)?,
            start_seconds: boot + float(22)? / ticks,
            virtual_bytes: whole(23)?,
            resident_bytes: whole(24)?.saturating_mul(page),
            open_fds: 0,
            max_fds: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_cannot_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 3 0 200 8192 2 99";
        let reading = Reading::of_stat(stat, 100.0, 1000.0).expect("is understood");
        let page = i64::try_from(rustix::param::page_size()).expect("small");
        let expected = Reading {
            cpu_seconds: 2.0,
            start_seconds: 1002.0,
            threads: 3,
            virtual_bytes: 8192,
            resident_bytes: 2 * page,
            open_fds: 0,
            max_fds: None,
        };
        assert_eq!(reading, expected);
        assert_eq!(Reading::of_stat("7 (a) S 1", 100.0, 1000.0), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let reading = Reading::now().expect("there is /proc");
        assert!(reading.open_fds >= 1 && reading.threads >= 1 && reading.resident_bytes > 0);
        assert!(reading.start_seconds > 1e9, "{reading:?}");
    }
}
