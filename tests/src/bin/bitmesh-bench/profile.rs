//! Where the time goes, by perf(1), for measures that miss their target.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::sweep::own_name;
use bitmesh_user::bench::Measure;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::generator::SENDER;

/// Time that samples are taken for; frames flow from before until after.
const SAMPLED: Duration = Duration::from_secs(1);
const FLOWING: Duration = Duration::from_secs(2);
const SAMPLES_PER_SECOND: &str = "2000";
/// Functions that are named, and how much of a name.
const NAMED: usize = 7;
const NAME_LETTERS: usize = 60;
const NO_PERF: &str = "perf; `cargo xtask setup --for bench`";

/// Adds to the notes of measures that were missed what the sending CPU, which receives too, does
/// while `run` sends for some time.
pub fn explain(measures: &mut [Measure], run: impl FnOnce(Duration) -> Result<f64>) {
    if any_missed(measures) {
        tell(measures, "where our frame's time goes", sender(run));
    }
}

/// The same, of what all CPUs do, in programs and in the kernel, while `run` works.
pub fn explain_all(measures: &mut [Measure], run: impl FnOnce() -> Result<()>) {
    if any_missed(measures) {
        tell(measures, "where the time of all CPUs goes", machine(run));
    }
}

/// Whether there is something to explain.
pub fn any_missed(measures: &[Measure]) -> bool {
    measures.iter().any(is_missed)
}

fn is_missed(measure: &Measure) -> bool {
    measure.met == Some(false)
}

fn tell(measures: &mut [Measure], what: &str, profile: Result<String>) {
    let told = match profile {
        Ok(profile) => format!("{what}: {profile}"),
        Err(error) => format!("no profile ({error:#})"),
    };
    for measure in measures.iter_mut().filter(|measure| is_missed(measure)) {
        let note = measure.note.take().unwrap_or_default();
        measure.note = Some(format!("{note}; {told}"));
    }
}

fn sender(run: impl FnOnce(Duration) -> Result<f64>) -> Result<String> {
    let folder = folder()?;
    let file = folder.path().join("perf.data");
    let mut perf = record(&file);
    perf.args(["--cpu", &SENDER.to_string()]);
    perf.args(["--", "sleep", &SAMPLED.as_secs().to_string()]);
    let mut perf = perf.spawn().context(NO_PERF)?;
    let ran = run(FLOWING);
    let status = perf.wait()?;
    ran?;
    ensure!(status.success(), "perf record failed ({status})");
    report(&file, &["[k]"])
}

fn machine(run: impl FnOnce() -> Result<()>) -> Result<String> {
    let folder = folder()?;
    let file = folder.path().join("perf.data");
    let mut perf = record(&file).arg("--all-cpus").spawn().context(NO_PERF)?;
    let ran = run();
    kill_process(Pid::from_child(&perf), Signal::INT)?;
    perf.wait()?;
    ran?;
    report(&file, &["[k]", "[.]"])
}

fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix(&own_name("perf-")).tempdir()?)
}

fn record(file: &Path) -> Command {
    let mut perf = Command::new("perf");
    perf.args(["record", "--quiet", "--event", "cpu-clock", "--freq", SAMPLES_PER_SECOND])
        .arg("--output")
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    perf
}

fn report(file: &Path, kinds: &[&str]) -> Result<String> {
    let output = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "--sort", "symbol", "--input"])
        .arg(file)
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let named: Vec<_> = text.lines().filter_map(|text| line(text, kinds)).take(NAMED).collect();
    ensure!(!named.is_empty(), "perf report names no function");
    Ok(named.join(", "))
}

/// `    12.34%  [k] bpf_prog_0123456789abcdef_upload_xdp` as `upload_xdp 12 %`.
fn line(line: &str, kinds: &[&str]) -> Option<String> {
    let (share, symbol) = line.trim().split_once('%')?;
    let share: f64 = share.parse().ok()?;
    let symbol = symbol.trim();
    let symbol = kinds.iter().find_map(|kind| symbol.strip_prefix(kind))?;
    let symbol = symbol.trim_end_matches([' ', '-']).trim_start();
    // What an idle CPU does is no part of the time.
    if symbol.contains("halt") || symbol.is_empty() {
        return None;
    }
    let program = symbol.strip_prefix("bpf_prog_").and_then(|name| name.split_once('_'));
    let name = program.map_or(symbol, |(_, name)| name);
    Some(format!("{} {share:.0} %", shortened(name)))
}

/// The end of a name that is long: of a generic function, what it is.
fn shortened(name: &str) -> String {
    let letters = name.chars().count();
    if letters <= NAME_LETTERS {
        return name.to_owned();
    }
    ['…'].into_iter().chain(name.chars().skip(letters - NAME_LETTERS + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_perf_is_a_name_and_its_share() {
        let line = |text| line(text, &["[k]"]);
        let ours = line("    31.69%  [k] bpf_prog_68c3b0a5edcadf0c_upload_xdp   -      -");
        assert_eq!(ours.as_deref(), Some("upload_xdp 32 %"));
        let kernel = line("     5.31%  [k] veth_xdp_rcv");
        assert_eq!(kernel.as_deref(), Some("veth_xdp_rcv 5 %"));
        assert_eq!(line("    31.69%  [k] pv_native_safe_halt"), None);
        assert_eq!(line("# Samples: 2K of event 'cpu-clock'"), None);
        let program = "     9.50%  [.] <alloc::vec::Vec<T> as Clone>::clone  -      -";
        assert_eq!(line(program), None);
        let both = super::line(program, &["[k]", "[.]"]);
        assert_eq!(both.as_deref(), Some("<alloc::vec::Vec<T> as Clone>::clone 10 %"));
    }
}
