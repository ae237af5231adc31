//! Measures: overhead against doing nothing and against peers, into `target/bench`.

use anyhow::Result;
use clap::Args;

use crate::{
    ebpf,
    setup::{self, Need},
    shell::{self, as_root, cargo, root},
};

/// Flags of `cargo xtask bench`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench --quick\n  \
    cargo xtask bench --only drops,forward\n\n\
    Nothing else should run meanwhile. Parts: frames, table, drops, forward, throughput.")]
pub struct BenchArgs {
    /// Fewer and shorter rounds: under three minutes
    #[arg(long)]
    quick: bool,
    /// Only these parts
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
    shell::run(&mut build)?;
    let target = root().join("target");
    let mut command = as_root(target.join("release/bitmesh-bench"))?;
    command.arg("--out").arg(target.join("bench"));
    command.arg("--object").arg(target.join(ebpf::BENCH_OBJECT));
    if args.quick {
        command.arg("--quick");
    }
    if !args.only.is_empty() {
        command.args(["--only", &args.only.join(",")]);
    }
    shell::run(&mut command)
}
