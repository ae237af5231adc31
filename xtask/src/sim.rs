//! Histories of channels by seed: what must never happen, looked for.

use anyhow::Result;
use clap::Args;

use crate::shell::{self, cargo, root};

/// Histories that CI runs.
const HISTORIES: u64 = 100_000;

/// Flags of `cargo xtask sim`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask sim                    100,000 histories\n  \
    cargo xtask sim --seed 7           the history of one seed, line by line")]
pub struct SimArgs {
    /// How many histories
    #[arg(long, default_value_t = HISTORIES)]
    pub seeds: u64,
    /// Tell the history of this seed alone, line by line
    #[arg(long)]
    pub seed: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    pub first: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl SimArgs {
    /// As many histories as CI runs.
    pub fn for_ci() -> Self {
        Self { seeds: HISTORIES, seed: None, first: 0, json: false }
    }
}

/// The task. Fails when a history goes wrong.
pub fn run(args: &SimArgs) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "bitmesh-tests", "--bin", "bitmesh-sim"]);
    build.arg("--quiet");
    shell::run(&mut build)?;
    let mut command = std::process::Command::new(root().join("target/release/bitmesh-sim"));
    command.args(["--seeds", &args.seeds.to_string(), "--first", &args.first.to_string()]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if args.json {
        command.arg("--json");
    }
    shell::run(&mut command)
}
