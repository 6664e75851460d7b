//! What can be typed after `bench`, as clap types. Must not know what it does.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::args::OutputArgs;

/// `reattach bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Flood with this many events [default: 1000000, or 100000 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(BENCH_EVENTS))]
    pub events: Option<u64>,
    /// Less of everything: half a minute, for a first look
    #[arg(long)]
    pub quick: bool,
    /// Measure only this; may be given several times
    #[arg(long, value_name = "WHAT", value_enum)]
    pub only: Vec<BenchPart>,
    /// Make the temporary data directory in DIR, whose disk is then what is measured; it takes
    /// about 600 bytes for each event [default: the system's place for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What `bench` can measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// The time from a start until the port accepts connections.
    Ready,
    /// The memory of a server and of connections that do nothing.
    Idle,
    /// One agent that says as much as it can, and one client.
    Flood,
    /// The time until a client that missed 10,000 events has them.
    Reattach,
}

/// Fewer are over before anything is warm.
const BENCH_EVENTS: std::ops::RangeInclusive<u64> = 10_000..=100_000_000;
