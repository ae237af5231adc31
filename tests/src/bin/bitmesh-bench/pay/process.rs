//! What processes take, as the kernel tells it.

use std::fs;

use anyhow::{Context as _, Result};

/// The clock ticks that the kernel tells a process's times in.
fn ticks_per_second() -> f64 {
    // SAFETY: it takes a number and gives one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    f64::from(i32::try_from(ticks).unwrap_or(100))
}

/// A process and its children. None of those that we measure has grandchildren.
pub fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// Octets that a process has in memory.
pub fn memory_octets(pid: u32) -> Result<f64> {
    status(pid, "VmRSS:")
}

/// The most that it ever had.
pub fn memory_octets_most(pid: u32) -> Result<f64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, field: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {field}"))? * 1_024.0)
}

/// Seconds of processor time, in the program and in the kernel.
pub fn processor_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok());
    Ok(times.sum::<f64>() / ticks_per_second())
}
