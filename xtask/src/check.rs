//! Everything that CI runs, step by step.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{
    deps, ebpf,
    fuzz::{self, FuzzArgs},
    kernels, node,
    setup::{self, Need},
    shell::{self, cargo, is_root, root},
    sim::{self, SimArgs},
};

/// How long CI fuzzes each target.
const FUZZ_SECONDS: u32 = 15;

/// The task. Stops at the first step that fails.
pub fn run() -> Result<()> {
    let mut report = Vec::new();
    let mut step = |name: &'static str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        eprintln!("\n=== {name}");
        let started = Instant::now();
        work().context(name)?;
        report.push((name, started.elapsed()));
        Ok(())
    };
    step("setup", &|| setup::ensure(Need::Tests))?;
    step("format", &|| shell::run(cargo().args(["fmt", "--all", "--check"])))?;
    step("dependency direction", &deps::check)?;
    step("programs for the kernel", &ebpf::build)?;
    step("lints", &|| {
        let mut clippy = cargo();
        clippy.args(["clippy", "--workspace", "--all-targets", "--locked"]);
        shell::run(clippy.args(["--", "--deny", "warnings"]))
    })?;
    step("unit and property tests", &|| {
        let mut tests = cargo();
        tests.args(["test", "--workspace", "--exclude", "bitmesh-tests", "--locked"]);
        shell::run(&mut tests)
    })?;
    step("simulation", &|| sim::run(&SimArgs::for_ci()))?;
    step("fuzzing", &|| fuzz::fuzz(&FuzzArgs { seconds: FUZZ_SECONDS }))?;
    step("end-to-end tests", &end_to_end)?;
    if kernels::CAN_BOOT {
        step("other kernels", &kernels::smoke)?;
    } else {
        eprintln!("\nnot run: other kernels, which are only booted on x86-64 so far");
    }

    eprintln!();
    let total: Duration = report.iter().map(|(_, took)| *took).sum();
    for (name, took) in report.iter().chain([&("all", total)]) {
        eprintln!("{name:<26} {:>7.1} s", took.as_secs_f64());
    }
    Ok(())
}

/// As root, in network namespaces, against a real node; one test at a time, for two cores.
fn end_to_end() -> Result<()> {
    shell::run(cargo().args([
        "build",
        "--package",
        "bitmesh-user",
        "--bin",
        "bitmesh",
        "--locked",
    ]))?;
    // Preloaded, and thus nothing that cargo builds along with the tests.
    shell::run(cargo().args(["build", "--package", "bitmesh-faultlib", "--locked"]))?;
    let mut tests = cargo();
    tests
        .args(["test", "--package", "bitmesh-tests", "--locked", "--", "--test-threads=1"])
        .env("BITMESH_BIN", root().join("target/debug/bitmesh"))
        .env("BITCOIND", node::bitcoind().context("no bitcoind; run `cargo xtask setup`")?);
    if !is_root() {
        for target in ["X86_64", "AARCH64"] {
            let runner = format!("CARGO_TARGET_{target}_UNKNOWN_LINUX_GNU_RUNNER");
            tests.env(runner, "sudo --preserve-env");
        }
    }
    shell::run(&mut tests)
}
