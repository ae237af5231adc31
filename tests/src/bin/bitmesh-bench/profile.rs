//! Where the time goes, by perf(1), for measures that miss their target.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::sweep::own_name;
use bitmesh_user::bench::Measure;

use crate::generator::SENDER;

/// Time that samples are taken for; frames flow from before until after.
const SAMPLED: Duration = Duration::from_secs(1);
const FLOWING: Duration = Duration::from_secs(2);
const SAMPLES_PER_SECOND: &str = "2000";
/// Functions that are named.
const NAMED: usize = 7;

/// Adds to the notes of measures that were missed what the sending CPU, which receives too, does
/// while `run` sends for some time.
pub fn explain(measures: &mut [Measure], run: impl FnOnce(Duration) -> Result<f64>) {
    let missed: Vec<_> = measures.iter_mut().filter(|m| m.met == Some(false)).collect();
    if missed.is_empty() {
        return;
    }
    let told = match profile(run) {
        Ok(profile) => format!("where our frame's time goes: {profile}"),
        Err(error) => format!("no profile ({error:#})"),
    };
    for measure in missed {
        let note = measure.note.take().unwrap_or_default();
        measure.note = Some(format!("{note}; {told}"));
    }
}

fn profile(run: impl FnOnce(Duration) -> Result<f64>) -> Result<String> {
    let directory = tempfile::Builder::new().prefix(&own_name("perf-")).tempdir()?;
    let file = directory.path().join("perf.data");
    let mut perf = Command::new("perf")
        .args(["record", "--quiet", "--event", "cpu-clock", "--freq", SAMPLES_PER_SECOND])
        .args(["--cpu", &SENDER.to_string(), "--output"])
        .arg(&file)
        .args(["--", "sleep", &SAMPLED.as_secs().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("perf; `cargo xtask setup --for bench`")?;
    let ran = run(FLOWING);
    let status = perf.wait()?;
    ran?;
    ensure!(status.success(), "perf record failed ({status})");
    report(&file)
}

fn report(file: &Path) -> Result<String> {
    let output = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "--sort", "symbol", "--input"])
        .arg(file)
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let named: Vec<_> = text.lines().filter_map(line).take(NAMED).collect();
    ensure!(!named.is_empty(), "perf report names no function");
    Ok(named.join(", "))
}

/// `    12.34%  [k] bpf_prog_0123456789abcdef_upload_xdp` as `upload_xdp 12 %`.
fn line(line: &str) -> Option<String> {
    let (share, symbol) = line.trim().split_once('%')?;
    let share: f64 = share.parse().ok()?;
    let symbol = symbol.trim().strip_prefix("[k]")?.split_whitespace().next()?;
    // What an idle CPU does is no part of a frame's time.
    if symbol.contains("halt") {
        return None;
    }
    let program = symbol.strip_prefix("bpf_prog_").and_then(|name| name.split_once('_'));
    Some(format!("{} {share:.0} %", program.map_or(symbol, |(_, name)| name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_perf_is_a_name_and_its_share() {
        let ours = line("    31.69%  [k] bpf_prog_68c3b0a5edcadf0c_upload_xdp   -      -");
        assert_eq!(ours.as_deref(), Some("upload_xdp 32 %"));
        let kernel = line("     5.31%  [k] veth_xdp_rcv");
        assert_eq!(kernel.as_deref(), Some("veth_xdp_rcv 5 %"));
        assert_eq!(line("    31.69%  [k] pv_native_safe_halt"), None);
        assert_eq!(line("# Samples: 2K of event 'cpu-clock'"), None);
    }
}
