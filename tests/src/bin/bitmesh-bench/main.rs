//! What metering costs, beside doing nothing and beside what an operator would use instead: in one
//! run, in network namespaces of its own. `cargo xtask bench` builds and runs it.

mod chart;
mod drops;
mod forward;
mod frames;
mod generator;
mod lane;
mod pay;
mod peers;
mod plan;
mod profile;
mod throughput;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use bitmesh_tests::sweep;
use bitmesh_user::bench::{Group, Measure, events, payments, scans, table, top_ups};
use clap::Parser;

use generator::Generator;
use plan::{Machine, Part, Plan, Progress, go_on, interrupt};

/// Measure metering overhead against doing nothing and against peers.
#[derive(Parser)]
#[command(name = "bitmesh-bench")]
struct Args {
    /// Fewer and shorter rounds: some minutes
    #[arg(long)]
    quick: bool,
    /// Only these parts; without it, all but growth and keeping
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Where report.json and chart.svg go; payments.json and payments.svg if nothing but payments,
    /// growth, keeping and stations is measured
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// The object with the generator, as `cargo xtask build-ebpf` made it
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/ebpf/bpfel-unknown-none/release/bitmesh-ebpf-bench"
    )]
    object: PathBuf,
}

impl Args {
    /// Names of the report and its chart, and the chart's title.
    fn report(&self) -> (&'static str, &'static str, &'static str) {
        if !self.only.is_empty() && self.only.iter().all(|part| part.is_of_payments()) {
            ("payments.json", "payments.svg", "What payments cost")
        } else {
            ("report.json", "chart.svg", "What metering costs")
        }
    }
}

/// What the parts of a run share.
struct Bench {
    plan: Plan,
    generator: Generator,
    progress: Progress,
}

fn main() -> ExitCode {
    let args = Args::parse();
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime
            && runtime.block_on(tokio::signal::ctrl_c()).is_ok()
        {
            // What has a name outside of this process goes when the run ends at its next turn.
            interrupt();
        }
    });
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    sweep::sweep();
    let machine = Machine::read()?;
    eprintln!("{machine}");
    let plan = Plan::new(args.quick);
    let parts = if args.only.is_empty() { Part::USUAL.to_vec() } else { args.only.clone() };
    let progress = Progress::new(parts.iter().map(|part| plan.steps(*part)).sum());
    let generator = Generator::load(&args.object)?;
    let mut bench = Bench { plan, generator, progress };
    let mut done = Vec::new();
    for part in parts {
        bench.progress.part(part);
        done.extend(measure(&mut bench, part).with_context(|| format!("measuring {part:?}"))?);
    }
    bench.progress.end();
    let (groups, measures): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let measures: Vec<_> = measures.into_iter().flatten().collect();
    println!("{}", table(&measures));
    write(args, &machine, &groups, &measures)
}

/// Each part in a lab of its own, which is gone before the next.
fn measure(bench: &mut Bench, part: Part) -> Result<Vec<(Group, Vec<Measure>)>> {
    go_on()?;
    let progress = &bench.progress;
    let before = |name: &str| progress.next(name);
    match part {
        Part::Frames => Ok(vec![frames::run(bench)?]),
        Part::Table => {
            let scale = bench.plan.scale;
            Ok(vec![top_ups(scale, &before)?, scans(scale, &before)?, events(scale, &before)?])
        }
        Part::Payments => {
            let mut done = vec![payments(bench.plan.scale, &before)?];
            done.extend(pay::payments(bench.plan.volume, &before)?);
            Ok(done)
        }
        Part::Growth => pay::growth(bench.plan.volume, &before),
        Part::Keeping => pay::keeping(bench.plan.volume, &before),
        Part::Stations => pay::stations(bench.plan.volume, &before),
        Part::Drops => drops::run(bench),
        Part::Forward => forward::run(bench),
        Part::Throughput => throughput::run(bench),
    }
}

fn write(args: &Args, machine: &Machine, groups: &[Group], measures: &[Measure]) -> Result<()> {
    let out = &args.out;
    let at = || format!("writing to {}", out.display());
    fs::create_dir_all(out).with_context(at)?;
    let (report, chart, title) = args.report();
    let (report, chart) = (out.join(report), out.join(chart));
    fs::write(&report, serde_json::to_string_pretty(measures)? + "\n").with_context(at)?;
    let drawn = chart::draw(title, groups, measures, &machine.to_string());
    fs::write(&chart, drawn).with_context(at)?;
    println!("\n{}\n{}", report.display(), chart.display());
    Ok(())
}
