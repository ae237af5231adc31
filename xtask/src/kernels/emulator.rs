//! QEMU: the system's, or one of a newer Debian beside the system's files.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    setup::Installed,
    shell::{cache, find, output},
    suite::{extract, launcher, write_launcher},
};

const PROGRAM: &str = "qemu-system-x86_64";
/// QEMU 7.2 panicked guests in 3 of 11 boots, 10 in none of 12.
const MAJOR_FLOOR: u32 = 10;
/// The suite that has one, its package there, and our folder of its files.
const SUITE: &str = "trixie";
const PACKAGE: &str = "qemu-system-x86";
const FOLDER: &str = "qemu";
/// Where, in those, machines find their firmware.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU that can be relied on.
pub struct Emulator {
    program: PathBuf,
    firmware: Vec<PathBuf>,
}

impl Emulator {
    /// The one on PATH if it is new enough, else the one that was fetched.
    pub fn find() -> Option<Self> {
        if let Some(program) = find(PROGRAM).filter(|program| is_new(program)) {
            return Some(Self { program, firmware: Vec::new() });
        }
        let program = launcher(PROGRAM);
        let firmware = FIRMWARE.map(|place| cache().join(FOLDER).join(place)).to_vec();
        program.is_file().then_some(Self { program, firmware })
    }

    /// Its program, with the arguments that it needs to find its own files.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
    }
}

/// Finds or fetches it.
pub fn install() -> Result<(PathBuf, Installed)> {
    if let Some(emulator) = Emulator::find() {
        return Ok((emulator.program, Installed::Found));
    }
    let folder = extract(SUITE, PACKAGE, FOLDER, "an emulator")
        .with_context(|| format!("no emulator can be fetched; install QEMU {MAJOR_FLOOR}"))?;
    write_launcher(&folder, PROGRAM)?;
    Ok((launcher(PROGRAM), Installed::Now))
}

/// `QEMU emulator version 10.0.13 (Debian ...)`.
fn is_new(program: &Path) -> bool {
    let Ok(text) = output(Command::new(program).arg("--version")) else { return false };
    let mut words = text.split_whitespace().skip_while(|word| *word != "version").skip(1);
    let major = words.next().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= MAJOR_FLOOR)
}
