//! The object on other kernels: each is booted in an emulator, with a guest of ours as its first
//! process that loads every program and exercises them.
//!
//! It may fetch Debian's kernels and an emulator into the cache, and write under `target/kernels`.
//! It never installs a kernel, and needs no root.

mod boot;
mod debian;
mod emulator;
mod fetch;
mod initramfs;
mod modules;
mod report;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;

pub use self::emulator::install as install_emulator;
use self::{
    emulator::Emulator,
    fetch::{Kernel, Wish},
    initramfs::Programs,
    report::{Outcome, print_json, print_table},
};
use crate::{
    ebpf,
    setup::{self, Need},
    shell::root,
};

/// What CI boots: the oldest kernel that is supported, and the one of Debian stable.
const SMOKE: [&str; 2] = ["6.1", "6.12"];

/// Whether the task runs here: the guest is this machine's own build, and so must the emulated one
/// be of its kind.
pub const CAN_BOOT: bool = cfg!(target_arch = "x86_64");

/// Flags of `cargo xtask kernels`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask kernels                   6.1, 6.12 and the newest\n  \
    cargo xtask kernels 6.12 7.0 --json\n\n\
    Everything runs under software emulation: times are only to be compared with each other.")]
pub struct KernelsArgs {
    /// Kernels that Debian has or had in a suite, by the first numbers of their version; or `newest`
    #[arg(value_name = "VERSION", default_values = ["6.1", "6.12", "newest"])]
    versions: Vec<Wish>,
    /// Look for newer builds of kernels that were fetched before
    #[arg(long)]
    update: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The task. Fails when one of the kernels fails, after all were tried.
pub fn run(args: &KernelsArgs) -> Result<()> {
    check_machine()?;
    setup::ensure(Need::Kernels)?;
    ebpf::build()?;
    let outcomes = boot_each(&args.versions, args.update)?;
    if args.json {
        print_json(&outcomes)?;
    } else {
        print_table(&outcomes);
    }
    verdict(&outcomes)
}

/// The part that CI runs; what it needs is there, and the object is built.
pub fn smoke() -> Result<()> {
    check_machine()?;
    let wishes = SMOKE.map(str::parse).into_iter().collect::<Result<Vec<_>, _>>()?;
    let outcomes = boot_each(&wishes, false)?;
    print_table(&outcomes);
    verdict(&outcomes)
}

fn check_machine() -> Result<()> {
    if CAN_BOOT {
        return Ok(());
    }
    bail!("other kernels are only booted on x86-64 so far; run this task on such a machine")
}

fn boot_each(wishes: &[Wish], update: bool) -> Result<Vec<Outcome>> {
    let programs = Programs::build()?;
    let emulator = Emulator::find().context("no emulator; run `cargo xtask setup`")?;
    let kernels = fetch::each(wishes, update)?;
    kernels
        .iter()
        .map(|kernel| {
            eprintln!("booting {}", kernel.release);
            let folder = folder(kernel)?;
            let archive = folder.join("initramfs.cpio");
            initramfs::write(&archive, &programs, kernel)?;
            boot::exercise(&emulator, kernel, &archive, &folder)
        })
        .collect()
}

/// Where a kernel's boot leaves what it said.
fn folder(kernel: &Kernel) -> Result<PathBuf> {
    let folder = root().join("target/kernels").join(&kernel.release);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn verdict(outcomes: &[Outcome]) -> Result<()> {
    let failed = outcomes.iter().filter(|outcome| !outcome.passed());
    let failed: Vec<_> = failed.map(|outcome| outcome.release.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed on {}; what they said is under target/kernels", failed.join(", "))
}
