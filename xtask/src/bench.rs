//! Measures: overhead against doing nothing and against peers, into `target/bench`.

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Args;

use crate::{
    ebpf,
    setup::{self, Need},
    shell::{self, as_root, cargo, root},
};

/// Parts that are measured with payments.
const WITH_PAYMENTS: [&str; 3] = ["growth", "keeping", "stations"];

/// Flags of `cargo xtask bench`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench --quick\n  \
    cargo xtask bench drops forward\n  \
    cargo xtask bench payments       into target/bench/payments.json; minutes without --quick\n\n\
    Nothing else should run meanwhile. Parts: frames, table, payments (with growth, keeping, \
    stations), drops, forward, throughput.")]
pub struct BenchArgs {
    /// Only these parts
    #[arg(value_name = "PART")]
    parts: Vec<String>,
    /// Fewer and shorter rounds: some minutes
    #[arg(long)]
    quick: bool,
    /// The same, as a list
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
}

/// The task.
pub fn run(args: &BenchArgs) -> Result<()> {
    if let Err(error) = setup::ensure(Need::Bench) {
        eprintln!("warning: {error:#}; the report will name who is missing");
    }
    ebpf::build()?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "bitmesh-tests", "--bin", "bitmesh-bench"]);
    // The daemon that payments are made to, as it is shipped.
    build.args(["--package", "bitmesh-user", "--bin", "bitmesh"]);
    shell::run(&mut build)?;
    let target = root().join("target");
    let mut command = as_root(target.join("release/bitmesh-bench"))?;
    command.arg("--out").arg(target.join("bench"));
    command.arg("--object").arg(target.join(ebpf::BENCH_OBJECT));
    if args.quick {
        command.arg("--quick");
    }
    let mut only = [args.parts.as_slice(), &args.only].concat();
    if only.iter().any(|part| part == "payments") {
        only.extend(WITH_PAYMENTS.map(ToOwned::to_owned));
    }
    let mut seen = BTreeSet::new();
    only.retain(|part| seen.insert(part.clone()));
    if !only.is_empty() {
        command.args(["--only", &only.join(",")]);
    }
    shell::run(&mut command)
}
