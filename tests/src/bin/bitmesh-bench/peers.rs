//! What an operator would use instead, set up as its manual says.

use std::{
    fmt::Write as _,
    fs::File,
    io::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::{Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;
use bitmesh_common::Mac;
use bitmesh_tests::{
    netns::Namespace,
    topology::{LAN, WAN},
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{generator::mac_of, lane::FIRST_STATION};

const BPFFS: &str = "/sys/fs/bpf";

/// nft: stations in a set with a counter each, dropped where the port receives.
pub fn nft_drop(namespace: &Namespace, stations: u32) -> Result<()> {
    let macs = list((0..stations).map(mac));
    let rules = format!(
        "table netdev bench {{\n\
         set stations {{ type ether_addr; counter; elements = {{ {macs} }}; }}\n\
         chain upload {{ type filter hook ingress device \"{LAN}\" priority 0;\n\
         ether saddr @stations drop; }}\n}}\n"
    );
    feed(namespace, "nft", &["-f", "-"], &rules)
}

/// nft: stations in a set with a counter each for either direction; the rest is dropped.
pub fn nft_forward(namespace: &Namespace, stations: u32) -> Result<()> {
    let first = u32::from_be_bytes(FIRST_STATION);
    let macs = list((0..stations).map(mac));
    let addresses = list((0..stations).map(|i| Ipv4Addr::from_bits(first + i).to_string()));
    let rules = format!(
        "table inet bench {{\n\
         set up {{ type ether_addr; counter; elements = {{ {macs} }}; }}\n\
         set down {{ type ipv4_addr; counter; elements = {{ {addresses} }}; }}\n\
         chain forward {{ type filter hook forward priority 0; policy drop;\n\
         iifname \"{LAN}\" ether saddr @up accept\n\
         iifname \"{WAN}\" ip daddr @down accept; }}\n}}\n"
    );
    feed(namespace, "nft", &["-f", "-"], &rules)
}

/// iptables: a rule with a counter for each station, before routing.
pub fn iptables_drop(namespace: &Namespace, stations: u32) -> Result<()> {
    let mut rules = "*raw\n".to_owned();
    for station in 0..stations {
        let mac = mac(station);
        writeln!(rules, "-A PREROUTING -m mac --mac-source {mac} -j DROP")?;
    }
    feed(namespace, "iptables-restore", &[], &(rules + "COMMIT\n"))
}

/// xdp-filter on a port, and what keeps its maps alive.
pub struct XdpFilter {
    _bpffs: File,
}

/// What happens to frames from the stations that xdp-filter is told of; the rest is treated the
/// other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    Pass,
    Drop,
}

impl XdpFilter {
    /// Loads it with only its filter of Ethernet addresses. Its pins are in a bpffs of their own:
    /// one that the machine uses itself is not touched.
    pub fn load(
        namespace: &Namespace,
        interface: &str,
        listed: Listed,
        stations: impl Iterator<Item = String> + Send,
    ) -> Result<Self> {
        let policy = if listed == Listed::Pass { "deny" } else { "allow" };
        namespace.run(|| {
            // SAFETY: only this thread, which ends here, leaves the process's mounts.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount("bpf", BPFFS, "bpf", MountFlags::empty(), None).context("mounting a bpffs")?;
            xdp_filter(&["load", "--policy", policy, "--features", "ethernet", interface])?;
            for station in stations {
                xdp_filter(&["ether", "--mode", "src", &station])?;
            }
            Ok(Self { _bpffs: File::open(BPFFS)? })
        })
    }
}

/// The XDP program on an interface, whoever loaded it.
pub fn program_on(namespace: &Namespace, interface: &str) -> Result<Xdp> {
    let id = namespace.xdp_program(interface)?;
    let id = id.with_context(|| format!("no XDP program on {interface}"))?;
    let info = loaded_programs().flatten().find(|program| program.id() == id);
    let info = info.with_context(|| format!("the XDP program {id} is gone"))?;
    Ok(Xdp::from_program_info(info, "peer".into(), XdpAttachType::Interface)?)
}

/// A station's MAC address as the tools take it.
fn mac(station: u32) -> String {
    Mac::new(mac_of(station)).to_string()
}

/// The addresses of stations as xdp-filter takes them.
pub fn macs(stations: u32) -> impl Iterator<Item = String> {
    (0..stations).map(mac)
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn xdp_filter(args: &[&str]) -> Result<()> {
    let output = Command::new("xdp-filter").args(args).output().map_err(absent("xdp-filter"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("xdp-filter {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim())
}

/// Runs a program in a namespace with `input` on its standard input.
fn feed(namespace: &Namespace, program: &'static str, args: &[&str], input: &str) -> Result<()> {
    let mut command = namespace.command(program)?;
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = command.spawn().map_err(absent(program))?;
    process.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    let output = process.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())
}

fn absent(program: &'static str) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    move |error| {
        anyhow::anyhow!("{program} can't be run ({error}); `cargo xtask setup --for bench`")
    }
}
