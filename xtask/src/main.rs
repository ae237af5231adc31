//! The project's tasks: `cargo xtask --help`.
//!
//! It installs what is needed, builds for the kernel and for the machine, and runs. It depends on
//! none of the project's crates, so that it works before any of them builds.

mod bench;
mod check;
mod compiler;
mod deps;
mod ebpf;
mod fuzz;
mod kernels;
mod load;
mod node;
mod postgres;
mod setup;
mod shell;
mod sim;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, loads and checks BitMesh. Everything that a task needs, it gets by itself.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true,
    after_help = "First steps:\n  \
        cargo xtask build-and-load --lab                     see it work, on this machine alone\n  \
        cargo xtask build-and-load --lan eth1 --wan eth0     sell on a real port\n  \
        cargo xtask test                                     everything that CI runs\n  \
        cargo xtask bench --quick                            what metering costs, beside peers"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install or find everything that the build, the lab and the tests need
    Setup(setup::SetupArgs),
    /// Build the programs for the kernel
    BuildEbpf,
    /// Build everything, load the programs into the kernel and run the controller
    BuildAndLoad(load::LoadArgs),
    /// Load and exercise the programs on other kernels, in an emulator
    Kernels(kernels::KernelsArgs),
    /// Look for frames, messages and journals that are taken wrongly
    Fuzz(fuzz::FuzzArgs),
    /// Run histories of channels by seed, with crashes, cheats and reorganisations
    Sim(sim::SimArgs),
    /// Everything that CI runs: format, lints, dependency direction, unit and end-to-end tests, and
    /// other kernels
    Test,
    /// What metering costs, against doing nothing and against peers: table, JSON, chart
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::BuildEbpf => ebpf::build(),
        Task::BuildAndLoad(args) => load::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Test => check::run(),
        Task::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
