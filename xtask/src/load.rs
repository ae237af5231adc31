//! Builds, loads and runs: in the lab, or on real ports.

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    ebpf, node,
    setup::{self, Need},
    shell::{self, as_root, cargo, root},
};

/// Flags of `cargo xtask build-and-load`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask build-and-load --lab\n  \
    cargo xtask build-and-load --lab --keep --upload-hook tc\n  \
    cargo xtask build-and-load --lan eth1 --wan eth0 -- --price 400 --network signet")]
pub struct LoadArgs {
    /// In network namespaces of its own, with a subscriber, an internet host and a Bitcoin node
    #[arg(long, conflicts_with_all = ["lan", "wan"])]
    lab: bool,
    /// Leave the lab up afterwards and say how to play in it
    #[arg(long, requires = "lab")]
    keep: bool,
    /// Which program meters uploads [default: xdp in the lab, chosen by the port elsewhere]
    #[arg(long, value_enum)]
    upload_hook: Option<Hook>,
    /// Port that subscribers are on; repeat for several
    #[arg(long, value_name = "IF", required_unless_present = "lab")]
    lan: Vec<String>,
    /// Port that the internet is on
    #[arg(long, value_name = "IF")]
    wan: Option<String>,
    /// More flags of `bitmesh sell`, or of the lab
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hook {
    /// XDP in the driver
    Xdp,
    /// TC ingress
    Tc,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// The task.
pub fn run(args: &LoadArgs) -> Result<()> {
    setup::ensure(if args.lab { Need::Lab } else { Need::Build })?;
    ebpf::build()?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", "bitmesh-user", "--bin", "bitmesh"]);
    if args.lab {
        build.args(["--package", "bitmesh-tests", "--bin", "bitmesh-lab"]);
    }
    shell::run(&mut build)?;
    let release = root().join("target/release");
    let program = if args.lab { "bitmesh-lab" } else { "bitmesh" };
    let mut command = as_root(release.join(program))?;
    if args.lab {
        let node = node::bitcoind().context("no bitcoind; run `cargo xtask setup`")?;
        command.env("BITCOIND", node).env("BITMESH_BIN", release.join("bitmesh"));
        if args.keep {
            command.arg("--keep");
        }
    } else {
        command.arg("sell");
        for lan in &args.lan {
            exists(lan)?;
            command.args(["--lan", lan]);
        }
        if let Some(wan) = &args.wan {
            exists(wan)?;
            command.args(["--wan", wan]);
        }
    }
    if let Some(hook) = args.upload_hook {
        command.args(["--upload-hook", hook.name()]);
    }
    shell::run(command.args(&args.more))
}

fn exists(interface: &str) -> Result<()> {
    let found = std::path::Path::new("/sys/class/net").join(interface).exists();
    if !found {
        bail!("there is no interface {interface}; `ip link` lists them");
    }
    Ok(())
}
