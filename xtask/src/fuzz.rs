//! The fuzzer, on targets in `tests/fuzz`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    setup::Installed,
    shell::{cache, cargo, root, run_quietly},
};

const VERSION: &str = "0.13.2";
/// Each target with its largest input, in octets.
const TARGETS: &[(&str, u32)] = &[
    // A frame of the largest size that is usual, and what is beside it.
    ("frame", 2_048),
    // Larger than every body that a peer sends in earnest.
    ("wire", 4_096),
    ("offer", 2_048),
    ("journal", 8_192),
];

/// Flags of `cargo xtask fuzz`.
#[derive(Args)]
pub struct FuzzArgs {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
}

fn folder() -> PathBuf {
    cache().join("cargo-fuzz")
}

/// Finds or builds cargo-fuzz.
pub fn install() -> Result<(PathBuf, Installed)> {
    let program = folder().join("bin/cargo-fuzz");
    if program.is_file() {
        return Ok((program, Installed::Found));
    }
    let mut install = cargo();
    install.args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--root"]);
    install.arg(folder()).env_remove("CARGO_TARGET_DIR");
    run_quietly(&format!("building cargo-fuzz {VERSION}"), &mut install)?;
    Ok((program, Installed::Now))
}

/// The task. Fails when a target finds an input that it should not.
pub fn fuzz(args: &FuzzArgs) -> Result<()> {
    let (program, _) = install()?;
    let seconds = args.seconds;
    for (target, input_max) in TARGETS {
        // What it finds goes into the first folder; the second is the repository's, and only read.
        let found = root().join("target/fuzz").join(target);
        std::fs::create_dir_all(&found)?;
        let mut fuzz = Command::new(&program);
        fuzz.current_dir(root().join("tests"))
            // No sanitizer: it needs a nightly compiler, and the targets have no unsafe code.
            .args(["fuzz", "run", "--fuzz-dir", "fuzz", "--sanitizer", "none", target])
            .args([&found, &root().join("tests/fuzz/corpus").join(target)])
            .args(["--", &format!("-max_total_time={seconds}")])
            .args([&format!("-max_len={input_max}"), "-verbosity=0"]);
        run_quietly(&format!("fuzzing {target} for {seconds} s"), &mut fuzz).with_context(
            || format!("{target} takes an input wrongly: see tests/fuzz/artifacts/{target}"),
        )?;
        println!("{target}: nothing found in {seconds} s");
    }
    Ok(())
}
