//! The lab: a provider, a subscriber, the internet and a Bitcoin node on this machine alone, with
//! real programs in the kernel, real bytes and real transactions on a chain of its own.

mod scene;
mod summary;

use std::{process::ExitCode, sync::mpsc, time::Instant};

use anyhow::{Context as _, Result};
use bitmesh_tests::{
    sweep,
    topology::{EDGE_V4, INTERNET_V4, Topology},
    traffic::Server,
    world::{Trade, World},
};
use clap::{Parser, ValueEnum};

use scene::Scene;
use summary::Summary;

/// 20 satoshi a MiB: a hundred MiB are worth a claim.
const PRICE: u64 = 20_000;
/// What may be spent before the money is topped up, in satoshi: 100 MiB.
const BUDGET: u64 = 2_000;

/// Sell real traffic for regtest bitcoin, in network namespaces of this machine.
#[derive(Parser)]
#[command(name = "bitmesh-lab")]
struct Args {
    /// Which program meters uploads
    #[arg(long, value_enum, default_value = "xdp")]
    upload_hook: Hook,
    /// Leave the lab up afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hook {
    /// XDP in the driver
    Xdp,
    /// TC ingress
    Tc,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (ended, end) = mpsc::channel();
    let interrupted = ended.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime
            && runtime.block_on(tokio::signal::ctrl_c()).is_ok()
        {
            let _ = interrupted.send(None);
        }
    });
    std::thread::spawn(move || {
        let _ = ended.send(Some(run(&args)));
    });
    match end.recv() {
        Ok(Some(Ok(true))) => ExitCode::SUCCESS,
        Ok(Some(Ok(false))) => ExitCode::FAILURE,
        Ok(Some(Err(error))) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
        Ok(None) | Err(_) => {
            // Processes die with us; what has a name goes now.
            sweep::remove_own();
            eprintln!("\nended, and everything taken down");
            ExitCode::from(130)
        }
    }
}

/// The whole play; true when every figure agrees.
fn run(args: &Args) -> Result<bool> {
    let started = Instant::now();
    scene::heading("1. A subscriber, a station that never pays, an edge box, the internet");
    let topology = Topology::edge().context("making network namespaces takes root")?;
    let hook = match args.upload_hook {
        Hook::Xdp => "xdp",
        Hook::Tc => "tc",
    };
    let sell = ["--upload-hook", hook];
    let trade =
        Trade { price: PRICE, budget: BUDGET, capacity: 50_000, sell: &sell, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    let mut scene = Scene::new(&topology, started)?;

    Scene::introduce(&world)?;
    Scene::open(&mut world)?;
    scene.use_both_ways(&world)?;
    scene.spend_the_budget_and_top_up(&world)?;
    let freeloader = scene.try_without_paying(&world)?;
    let settlement = Scene::leave(&mut world)?;
    let summary = Summary::new(&scene, &world, &freeloader, &settlement)?;
    let good = summary.print();
    println!("\n{:.0} seconds from the first namespace to here", started.elapsed().as_secs_f64());
    if args.keep {
        invite(&topology, &world)?;
        loop {
            std::thread::park();
        }
    }
    Ok(good)
}

/// How to play in a lab that stays.
fn invite(topology: &Topology, world: &World<'_>) -> Result<()> {
    let bitmesh = bitmesh_tests::daemon::bitmesh()?;
    let (bitmesh, subscriber) = (bitmesh.display(), topology.subscriber.name());
    let (sell, buy) = (world.provider.directory(), world.subscriber.directory());
    println!(
        "\nThe lab stays up until Ctrl-C here. In another terminal, as root:\n\n  \
         {bitmesh} status --data-dir {}\n  \
         {bitmesh} status --data-dir {}\n  \
         {bitmesh} channels --data-dir {}\n  \
         {bitmesh} stations --data-dir {}\n  \
         ip netns exec {subscriber} curl -s http://{EDGE_V4}:8434/v1/offer\n  \
         ip netns exec {subscriber} iperf3 --client {INTERNET_V4} --bytes 8M --reverse\n  \
         ip netns exec {} curl -s http://10.77.1.1:8434/v1/account\n\n\
         The channel of the play is settled; the last transfer passes only as far as credit is \
         left over.",
        sell.display(),
        buy.display(),
        sell.display(),
        sell.display(),
        topology.freeloader.name(),
    );
    Ok(())
}
