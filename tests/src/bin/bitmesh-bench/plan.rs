//! How much is measured, on what, and how far it is.

use std::{
    fmt, fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use bitmesh_user::bench::Scale;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use crate::pay::Volume;

/// Stations of the scan that has a target.
const SCAN_STATIONS: u32 = 1_000_000;

/// Parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Nanoseconds a frame, by test runs
    Frames,
    /// Top-ups and scans from userspace
    Table,
    /// Payments, beside their signatures: in the core, durable, over HTTP
    Payments,
    /// What a payment costs with many accounts
    Growth,
    /// What keeping the ledger costs: folding, and usage of busy stations
    Keeping,
    /// What many stations and channels take of a daemon
    Stations,
    /// Frames dropped a second
    Drops,
    /// Frames forwarded a second
    Forward,
    /// TCP through the edge
    Throughput,
}

impl Part {
    /// Whether it is about payments, and not about frames.
    pub fn is_of_payments(self) -> bool {
        matches!(self, Self::Payments | Self::Growth | Self::Keeping | Self::Stations)
    }

    /// What is measured unless parts are named, in this order.
    pub const USUAL: [Self; 7] = [
        Self::Frames,
        Self::Table,
        Self::Payments,
        Self::Stations,
        Self::Drops,
        Self::Forward,
        Self::Throughput,
    ];
}

/// Rounds, and how long each takes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of test runs, top-ups and scans.
    pub scale: Scale,
    /// Of payments.
    pub volume: Volume,
    /// Of generated frames.
    pub rounds: usize,
    /// Time that frames are sent for, each time.
    pub slice: Duration,
    /// Of TCP.
    pub tcp_rounds: usize,
    /// Seconds of each transfer.
    pub tcp_seconds: u32,
}

impl Plan {
    pub fn new(quick: bool) -> Self {
        let scale = if quick { Scale::QUICK } else { Scale::FULL };
        let scale = Scale { stations: SCAN_STATIONS, ..scale };
        let (rounds, slice, tcp_rounds, tcp_seconds) =
            if quick { (5, 300, 3, 1) } else { (11, 1_000, 7, 3) };
        let volume = if quick { Volume::QUICK } else { Volume::FULL };
        Self { scale, volume, rounds, slice: Duration::from_millis(slice), tcp_rounds, tcp_seconds }
    }

    /// Turns of contenders that a part takes if none is missing.
    pub fn steps(&self, part: Part) -> usize {
        match part {
            Part::Frames => 9 * self.scale.rounds,
            Part::Table => 4 * self.scale.rounds.div_ceil(2),
            Part::Payments => 4 * self.scale.rounds.div_ceil(2) + self.volume.payment_steps(),
            Part::Growth => self.volume.growth_steps(),
            Part::Keeping => self.volume.keeping_steps(),
            Part::Stations => self.volume.station_steps(),
            Part::Drops => 16 * self.rounds,
            Part::Forward => 6 * self.rounds,
            Part::Throughput => 4 * self.tcp_rounds,
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has whoever measures stop at its next turn, and clean up.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Fails once the run was interrupted.
pub fn go_on() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted; everything is taken down");
    Ok(())
}

/// How far a run is.
pub struct Progress(ProgressBar);

impl Progress {
    pub fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(u64::try_from(steps).unwrap_or_default());
        let style = "{elapsed_precise} {wide_bar} {prefix}: {msg}";
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// A part begins.
    pub fn part(&self, part: Part) {
        let name = format!("{part:?}").to_lowercase();
        if self.0.is_hidden() {
            eprintln!("measuring {name}");
        }
        self.0.set_prefix(name);
        self.0.set_message("making the lab");
    }

    /// A contender's turn begins.
    pub fn next(&self, contender: &str) {
        self.0.set_message(contender.to_owned());
        self.0.inc(1);
    }

    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// What the figures were got on.
pub struct Machine {
    kernel: String,
    processor: String,
    cpus: usize,
}

impl Machine {
    pub fn read() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let model = info.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            matches!(field.trim(), "model name" | "Model" | "Hardware").then(|| value.trim())
        });
        let processor = model.unwrap_or("an unnamed processor").to_owned();
        Ok(Self { kernel, processor, cpus: thread::available_parallelism()?.get() })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, processor, cpus } = self;
        write!(f, "Linux {kernel}, {cpus} CPUs, {processor}")
    }
}
