//! Fault D19: CPUs come and go, and totals stay right.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bitmesh_tests::topology::Topology;
use bitmesh_user::dataplane::{Cause, Dataplane, StationUsage, UploadHook};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{
    datagrams::{Caller, Echo, V4_OCTETS},
    metering::{options, station_of},
};

const CPUS: usize = 2;
/// The CPU that comes and goes.
const GUEST_CPU: usize = 1;
const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";
/// How often it goes, and how long it stays either way.
const ROUNDS: usize = 3;
const STAY: Duration = Duration::from_millis(700);
/// More than is sent.
const BOUGHT_OCTETS: u64 = 1 << 40;
/// Unpaid datagrams that the CPU counts before it first goes.
const UNPAID: u64 = 5;
/// After how many calls a thread goes back to its CPU, which may have come back.
const CALLS_A_TURN: usize = 20;

pub fn run() -> Result<String> {
    let topology = Topology::edge()?;
    topology.edge.run(|| on(&topology))
}

fn on(topology: &Topology) -> Result<String> {
    let station = station_of(&topology.subscriber)?;
    let echo = Echo::start(&topology.internet)?;
    let mut dataplane = Dataplane::open(&options(UploadHook::Auto)?)?;
    dataplane.insert(station, StationUsage::default(), BOUGHT_OCTETS)?;
    let unpaid = dataplane.stats()?.of(Cause::Unknown);
    let mut freeloader = Caller::new(&topology.freeloader)?;
    thread::scope(|scope| {
        let calls = scope.spawn(|| {
            stay_on(GUEST_CPU)?;
            for _ in 0..UNPAID {
                ensure!(freeloader.call_in_vain()?, "an unpaid datagram passed");
            }
            Ok(())
        });
        calls.join().map_err(|_| anyhow!("a caller panicked"))?
    })?;

    let ended = AtomicBool::new(false);
    let calls = thread::scope(|scope| {
        let callers: Vec<_> = (0..CPUS)
            .map(|cpu| {
                let (caller, ended) = (Caller::new(&topology.subscriber), &ended);
                scope.spawn(move || call_until(ended, caller?, cpu))
            })
            .collect();
        let switched = switch(|| {
            let counted = dataplane.stats()?.of(Cause::Unknown) - unpaid;
            ensure!(counted == UNPAID, "{counted} of {UNPAID} unpaid frames counted");
            Ok(dataplane.usage(station).context("the station left the table")?.up.frames)
        });
        ended.store(true, Ordering::Relaxed);
        let calls: Result<Vec<u64>> = callers
            .into_iter()
            .map(|caller| caller.join().map_err(|_| anyhow!("a caller panicked"))?)
            .collect();
        switched.and(calls)
    })?;

    let total: u64 = calls.iter().sum();
    let used = dataplane.usage(station).context("the station left the table")?;
    let seen = [(used.up.octets, used.up.frames), (used.down.octets, used.down.frames)];
    let sent = (total * V4_OCTETS, total);
    ensure!(seen == [sent; 2], "counted {seen:?}, sent {sent:?} each way");
    ensure!(echo.heard() == total, "{} heard of {total}", echo.heard());
    dataplane.detach()?;
    Ok(format!("{total} frames each way by {calls:?} from {CPUS} CPUs, one gone {ROUNDS} times"))
}

/// Takes the CPU off and on; frames must be counted while it is gone.
fn switch(frames: impl Fn() -> Result<u64>) -> Result<()> {
    for _ in 0..ROUNDS {
        thread::sleep(STAY);
        turn("0")?;
        let before = frames()?;
        thread::sleep(STAY);
        let after = frames()?;
        turn("1")?;
        ensure!(after > before, "nothing was counted while a CPU was gone");
    }
    thread::sleep(STAY);
    frames().map(drop)
}

fn turn(state: &str) -> Result<()> {
    fs::write(SWITCH, state).with_context(|| format!("writing {state} to {SWITCH}"))?;
    let now = fs::read_to_string(SWITCH)?;
    ensure!(now.trim() == state, "{SWITCH} is {now:?} after {state:?} was written");
    Ok(())
}

/// Calls answered. One at a time, so that no queue overflows: what is lost would be our fault.
fn call_until(ended: &AtomicBool, mut caller: Caller, cpu: usize) -> Result<u64> {
    let mut calls = 0;
    while !ended.load(Ordering::Relaxed) {
        // Refused while the CPU is gone: the kernel lets the thread run elsewhere.
        let _elsewhere = stay_on(cpu);
        for _ in 0..CALLS_A_TURN {
            ensure!(caller.call_v4()?, "a datagram was lost after {calls}");
            calls += 1;
        }
    }
    Ok(calls)
}

fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("running on CPU {cpu}"))
}
