//! One boot of the emulated machine, and what came of it.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    emulator::Emulator,
    fetch::Kernel,
    report::{End, Outcome, Told},
};

/// After this, a guest hangs.
const GUEST_LIMIT: Duration = Duration::from_mins(4);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A boot that our guest was not reached in, or that the kernel did not survive, is tried again.
const BOOTS: u32 = 2;
const MEMORY_MIB: &str = "1024";
/// Two, so that one can be taken off.
const CPUS: &str = "2";
/// Panics end the machine; the report has a serial line of its own.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 BITMESH_REPORT=/dev/ttyS1";

/// How the kernel says that it can't go on, and how it names our programs then.
const PANIC: &str = "Kernel panic";
const OUR_PROGRAMS: &str = "bpf_prog_";
/// A panic because the first process ended, which is our guest.
const GUEST_ENDED: &str = "Attempted to kill init";

/// Boots a kernel until its guest has told all, twice at most.
pub fn exercise(
    emulator: &Emulator,
    kernel: &Kernel,
    archive: &Path,
    folder: &Path,
) -> Result<Outcome> {
    let started = Instant::now();
    let mut boots = 1;
    loop {
        let (console, report) = (folder.join("console.log"), folder.join("report.jsonl"));
        let end = boot(emulator, kernel, archive, &console, &report)?;
        let said = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
        let told = Told::parse(&String::from_utf8_lossy(&fs::read(&report)?));
        if boots < BOOTS && is_not_ours(&told, &said) {
            eprintln!("booting {} again: {}", kernel.release, why(&told, &said, end));
            fs::rename(&console, folder.join("console-first.log"))?;
            boots += 1;
            continue;
        }
        let problem = (!told.finished()).then(|| why(&told, &said, end));
        let seconds = started.elapsed().as_secs_f64();
        return Ok(Outcome { release: kernel.release.clone(), boots, seconds, problem, told });
    }
}

fn boot(
    emulator: &Emulator,
    kernel: &Kernel,
    archive: &Path,
    console: &Path,
    report: &Path,
) -> Result<End> {
    for old in [console, report] {
        fs::write(old, "")?;
    }
    let mut command = emulator.command();
    // Not by KVM: where it is there, it need not work, and a guest's times would not compare.
    command.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-smp", CPUS]);
    command.args(["-m", MEMORY_MIB, "-nodefaults", "-nographic", "-no-reboot"]);
    for line in [console, report] {
        command.arg("-serial").arg(format!("file:{}", line.display()));
    }
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    command.args(["-append", COMMAND_LINE]).stdin(Stdio::null());
    let process = command.spawn().context("the emulator; run `cargo xtask setup`")?;
    let mut machine = Machine(process);
    let started = Instant::now();
    while started.elapsed() < GUEST_LIMIT {
        if let Some(status) = machine.0.try_wait()? {
            return Ok(if status.success() { End::Off } else { End::Emulator });
        }
        thread::sleep(LOOK);
    }
    Ok(End::Hung { limit: GUEST_LIMIT })
}

/// Ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The emulator's fault, or the kernel's own: not our guest's, nor our programs'.
fn is_not_ours(told: &Told, said: &str) -> bool {
    let panicked = said.contains(PANIC);
    let ours = said.contains(OUR_PROGRAMS) || said.contains(GUEST_ENDED);
    !told.finished() && !ours && (panicked || !told.started())
}

fn why(told: &Told, said: &str, end: End) -> String {
    let panic = said.lines().find(|line| line.contains(PANIC)).map(str::trim);
    let place = told.place();
    match (end, panic) {
        (_, Some(panic)) => format!("{panic}, {place}"),
        (End::Hung { limit }, None) => format!("hung for {limit:?}, {place}"),
        (End::Emulator, None) => format!("the emulator failed, {place}"),
        (End::Off, None) => format!("ended too early, {place}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_tried_again_when_neither_guest_nor_programs_ended_it() {
        const STARTED: &str = r#"{"event":"started","release":"6.1"}"#;
        const PANICKED: &str = "Kernel panic - not syncing: Fatal exception in interrupt";
        let again = |report: &str, console: &str| is_not_ours(&Told::parse(report), console);
        assert!(again("", "Booting"), "the guest was not reached");
        assert!(again("", PANICKED));
        assert!(again(STARTED, PANICKED));
        assert!(!again(STARTED, "all quiet"), "the guest hung");
        assert!(!again(STARTED, &format!("bpf_prog_6deef7357e7b4530_upload_tc\n{PANICKED}")));
        assert!(!again(STARTED, "Kernel panic - not syncing: Attempted to kill init!"));
    }
}
