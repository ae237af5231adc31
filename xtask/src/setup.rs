//! Everything that the build, the lab, the tests and the benches need.

use std::{process::Command, sync::Once};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    compiler, kernels, node, postgres,
    shell::{as_root, find, output, run_quietly},
};

/// Programs and the Debian packages that they are in.
const TOOLS: &[(&str, &str, Need)] = &[
    ("cc", "build-essential", Need::Build),
    ("nft", "nftables", Need::Build),
    ("iperf3", "iperf3", Need::Lab),
    ("ip", "iproute2", Need::Lab),
    ("ping", "iputils-ping", Need::Lab),
    ("curl", "curl", Need::Tests),
    ("setpriv", "util-linux", Need::Tests),
    ("systemd-analyze", "systemd", Need::Tests),
    ("xz", "xz-utils", Need::Kernels),
    ("iperf3", "iperf3", Need::Bench),
    ("iptables", "iptables", Need::Bench),
    ("xdp-filter", "xdp-tools", Need::Bench),
    ("perf", "linux-perf", Need::Bench),
];

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Need {
    /// Building the daemon and the programs for the kernel
    Build,
    /// The lab, which builds too
    Lab,
    /// Other kernels in an emulator, which builds too
    Kernels,
    /// Everything that the tests need
    Tests,
    /// The benches, which build too, and the peers that they measure against
    Bench,
}

/// Flags of `cargo xtask setup`.
#[derive(Args)]
pub struct SetupArgs {
    /// Only what this needs
    #[arg(long = "for", value_enum, default_value = "tests")]
    need: Need,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// How something came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Installed {
    /// It was.
    Found,
    /// It is now.
    Now,
}

/// One line of the table.
#[derive(Serialize)]
struct Item {
    what: &'static str,
    state: Installed,
    place: String,
}

/// The task.
pub fn run(args: &SetupArgs) -> Result<()> {
    let items = install(args.need)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&items)?);
        return Ok(());
    }
    for Item { what, state, place } in items {
        let state = if state == Installed::Found { "found" } else { "installed" };
        println!("{what:<16} {state:<10} {place}");
    }
    Ok(())
}

/// What a task needs, in silence when nothing is missing.
pub fn ensure(need: Need) -> Result<()> {
    install(need).map(|items| {
        for item in items.iter().filter(|item| item.state == Installed::Now) {
            eprintln!("installed {}: {}", item.what, item.place);
        }
    })
}

fn install(need: Need) -> Result<Vec<Item>> {
    let tests = need == Need::Tests;
    let wanted = |of: Need| of == Need::Build || of == need || (tests && of != Need::Bench);
    let mut items = Vec::new();
    for &(program, package, of) in TOOLS {
        if !wanted(of) {
            continue;
        }
        let state = if find(program).is_some() {
            Installed::Found
        } else {
            apt_install(&[package])?;
            Installed::Now
        };
        let place = find(program).with_context(|| {
            format!("the package {package} brought no {program}; install that by hand")
        })?;
        items.push(Item { what: program, state, place: place.display().to_string() });
    }
    let (compiler, state) = compiler::install()?;
    items.push(Item { what: "eBPF compiler", state, place: compiler.name()? });
    let (linker, state) = compiler::install_linker(&compiler)?;
    items.push(Item { what: "bpf-linker", state, place: linker.display().to_string() });
    if wanted(Need::Lab) {
        let (node, state) = node::install()?;
        items.push(Item { what: "bitcoind", state, place: node.display().to_string() });
    }
    if tests || need == Need::Bench {
        let (server, state) = postgres::install()?;
        items.push(Item { what: "postgres", state, place: server.display().to_string() });
    }
    if wanted(Need::Kernels) && kernels::CAN_BOOT {
        let (emulator, state) = kernels::install_emulator()?;
        items.push(Item { what: "emulator", state, place: emulator.display().to_string() });
    }
    Ok(items)
}

/// Whether apt can install a package.
pub fn apt_candidate(package: &str) -> bool {
    update();
    let policy = output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
    policy.is_ok_and(|text| {
        text.lines().any(|line| {
            line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)")
        })
    })
}

/// Installs Debian packages; never asks.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    let names = packages.join(", ");
    if find("apt-get").is_none() {
        bail!(
            "missing: {names} (as Debian calls the packages); this is not Debian, so install what \
             has them here, then run the task again"
        );
    }
    update();
    let mut command = as_root("apt-get")?;
    command
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run_quietly(&format!("installing {names}"), &mut command)
        .with_context(|| format!("{names} can't be installed; is there a network? install by hand"))
}

/// Once, and only when something is missing: it needs the network and seconds.
fn update() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        if let Ok(mut command) = as_root("apt-get")
            && let Err(error) = run_quietly("updating the list of packages", command.arg("update"))
        {
            eprintln!("warning: {error:#}");
        }
    });
}
