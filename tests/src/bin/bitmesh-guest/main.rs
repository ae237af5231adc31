//! What runs as the first process on another kernel, in an emulator that `cargo xtask kernels`
//! started: it loads every program, exercises them, reports, and powers off.
//!
//! It may touch everything, since nothing there is anybody's. It never runs elsewhere.

mod bridge;
mod cpus;
mod datagrams;
mod fixtures;
mod machine;
mod metering;
mod programs;
mod report;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Result, anyhow};
use bitmesh_user::dataplane::UploadHook;

use self::report::{Event, Exercise, Report};

/// Returns what was seen.
type Work = fn() -> Result<String>;

/// What is done once the programs were loaded, by name.
const EXERCISES: [(&str, Work); 5] = [
    ("every packet fixture has its verdict and its count", fixtures::run),
    ("over TC, frames are billed to the octet", || metering::run(UploadHook::Auto)),
    ("over XDP, frames are billed to the octet", || metering::run(UploadHook::XdpNative)),
    ("on a port of a bridge, tagged frames are billed to the octet", bridge::run),
    ("d19_cpus_come_and_go_and_totals_stay_right", cpus::run),
];

fn main() -> ExitCode {
    if !machine::is_ours() {
        eprintln!("error: this runs as a guest's first process only; see `cargo xtask kernels`");
        return ExitCode::FAILURE;
    }
    if let Err(error) = guarded(run) {
        eprintln!("error: {error:#}");
    }
    machine::power_off()
}

fn run() -> Result<()> {
    let mut report = Report::open()?;
    report.tell(&Event::Started { release: &machine::release() })?;
    machine::prepare()?;
    let mut programs = programs::load()?;
    let timed = exercise("programs are timed", || programs::time(&mut programs));
    for program in programs {
        report.tell(&Event::Program(program))?;
    }
    report.tell(&Event::Exercise(timed))?;
    for (name, work) in EXERCISES {
        report.tell(&Event::Exercise(exercise(name, work)))?;
    }
    report.tell(&Event::Finished { exercises: 1 + EXERCISES.len() })
}

fn exercise(name: &'static str, work: impl FnOnce() -> Result<String>) -> Exercise {
    let started = Instant::now();
    let done = guarded(work);
    Exercise {
        name,
        passed: done.is_ok(),
        seconds: started.elapsed().as_secs_f64(),
        detail: done.unwrap_or_else(|error| report::tail(&format!("{error:#}"))),
    }
}

/// A failed exercise must not end the guest before it has told.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(anyhow!("it panicked; see the console's log")))
}
