//! Runs histories of channels by seed, on every CPU, until all are over or one goes wrong.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bitmesh_tests::sim::{self, Failure, Summary};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Histories between two looks at the progress.
const PROGRESS_HISTORIES: u64 = 16;
/// Lines of a history that went wrong that are shown.
const LAST_LINES: usize = 40;

/// Histories of channels: sold, bought, cheated, crashed and reorganised, by seed.
#[derive(Parser)]
struct Args {
    /// How many histories
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// Tell the history of this seed alone, line by line
    #[arg(long)]
    seed: Option<u64>,
    /// Write what peers sent and stored in the history of --seed there: a corpus for the fuzz targets
    #[arg(long, value_name = "DIR", requires = "seed")]
    samples: Option<PathBuf>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What all histories came to.
#[derive(Default, Serialize)]
struct Report {
    histories: u64,
    payments: u64,
    blocks: u64,
    seconds: f64,
    histories_per_second: f64,
    failed_seed: Option<u64>,
    violation: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A panic is an outcome here, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let failure = match (args.seed, &args.samples) {
        (Some(seed), Some(folder)) => sample(seed, folder),
        (Some(seed), None) => tell(seed, usize::MAX),
        (None, _) => run(&args),
    };
    if failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Tells the last lines of a history; whether it went wrong.
fn tell(seed: u64, most: usize) -> bool {
    let (ended, lines) = sim::tell(seed, None);
    for line in lines.iter().skip(lines.len().saturating_sub(most)) {
        println!("{line}");
    }
    match ended {
        Ok(Summary { payments, blocks }) => {
            println!(
                "seed {seed}: {payments} payments in {blocks} blocks, and all is accounted for"
            );
            false
        }
        Err(Failure { violation, .. }) => {
            println!("seed {seed} violates \"{violation}\"");
            true
        }
    }
}

/// Writes the samples of a history; whether that failed.
fn sample(seed: u64, folder: &Path) -> bool {
    let written = sim::samples(seed).into_iter().try_for_each(|(target, name, octets)| {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{name}-{seed}")), octets)
    });
    if let Err(error) = &written {
        eprintln!("error: {}: {error}", folder.display());
    }
    written.is_err()
}

fn run(args: &Args) -> bool {
    let started = Instant::now();
    let bar = ProgressBar::new(args.seeds).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} histories, {per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    let (next, stop) = (AtomicU64::new(args.first), AtomicBool::new(false));
    let total = Mutex::new(Report::default());
    let failed: Mutex<Option<Failure>> = Mutex::new(None);
    let end = args.first.saturating_add(args.seeds);
    let work = || {
        let mut done = Report::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            match sim::run(seed, None) {
                Ok(Summary { payments, blocks }) => {
                    done.histories += 1;
                    done.payments += payments;
                    done.blocks += u64::from(blocks);
                }
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    if let Ok(mut failed) = failed.lock() {
                        failed.get_or_insert(failure);
                    }
                }
            }
            if done.histories % PROGRESS_HISTORIES == 0 {
                bar.inc(PROGRESS_HISTORIES);
            }
        }
        if let Ok(mut total) = total.lock() {
            total.histories += done.histories;
            total.payments += done.payments;
            total.blocks += done.blocks;
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    let mut report = total.into_inner().unwrap_or_default();
    report.seconds = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = report.histories as f64 / report.seconds.max(f64::EPSILON);
    report.histories_per_second = rate;
    let failure = failed.into_inner().unwrap_or_default();
    report.failed_seed = failure.as_ref().map(|failure| failure.seed);
    report.violation = failure.as_ref().map(|failure| failure.violation.to_string());
    show(&report, args.json);
    report.failed_seed.is_some()
}

fn show(report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
        return;
    }
    if let Some(seed) = report.failed_seed {
        println!("the last lines of the history of seed {seed}:");
        tell(seed, LAST_LINES);
        println!("to be told all of it: cargo xtask sim --seed {seed}");
        return;
    }
    println!(
        "{} histories hold: {} payments, {} blocks, {:.0} s, {:.0} histories/s",
        report.histories,
        report.payments,
        report.blocks,
        report.seconds,
        report.histories_per_second
    );
}
