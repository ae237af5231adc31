//! The box: its addresses, its ports, and what its kernel honours already.

use std::net::IpAddr;

use anyhow::{Result, bail};
use bitmesh_common::EDGE_ADDRESS_LIMIT;
use bitmesh_core::{
    channel::Batch,
    controller::{Controller, Input},
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
};
use tracing::warn;

use super::super::Foundation;
use crate::{
    config::SellConfig,
    dataplane::{self, Dataplane, Options, StationUsage, TcHook},
    gateway::{Gateway, Interface},
};

pub(super) fn options(config: &SellConfig, edge_addresses: &[IpAddr]) -> Options {
    Options {
        instance: config.instance.clone(),
        lan: config.lan.clone(),
        upload_hook: config.upload_hook.into(),
        tc_hook: TcHook::Auto,
        table_slots: config.table_slots,
        edge_addresses: edge_addresses.to_vec(),
        api_port: config.api_port,
    }
}

/// The box's own addresses, those of the LAN ports first: link-local ones only of these, and no
/// more than the programs look at.
pub(super) async fn edge_addresses(gateway: &Gateway, lan: &[Interface]) -> Result<Vec<IpAddr>> {
    let on_lan = |index: u32| lan.iter().any(|interface| interface.index == index);
    let all = gateway.own_addresses().await?;
    let link_local =
        |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let (first, second): (Vec<_>, Vec<_>) = all.into_iter().partition(|(index, _)| on_lan(*index));
    let rest = second.into_iter().filter(|(_, address)| !link_local(address));
    let mut found: Vec<IpAddr> = Vec::new();
    for (_, address) in first.into_iter().chain(rest) {
        let family = found.iter().filter(|known| known.is_ipv4() == address.is_ipv4()).count();
        if family < EDGE_ADDRESS_LIMIT && !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// The kernel's table may be ahead in usage, never in what was bought: that was on disk first.
pub(super) fn reconcile(
    controller: &mut Controller,
    dataplane: &Dataplane,
    foundation: &Foundation,
) -> Result<()> {
    let mut readings = Vec::new();
    for (key, bought, used) in dataplane.stations() {
        let station = Station::from(key);
        let known = controller.account(station).bought_octets;
        if Octets(bought) > known {
            bail!(
                "the kernel honours {} for {station}, the ledger in {} knows of {known}: the data \
                 directory is older than the running programs. Restore the newest one; or, if it \
                 is lost, run `bitmesh sell --detach` and start again",
                Octets(bought),
                foundation.data_dir.display()
            );
        }
        readings.push((station, usage_of(&used)));
    }
    let mut none = Batch::default();
    controller.handle(Input::Usage(readings), &mut none);
    debug_assert!(none.entries().is_empty(), "a reading stores nothing by itself");
    Ok(())
}

pub(super) fn warn_unless_forwarding() {
    let off = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0");
    if off("/proc/sys/net/ipv4/ip_forward") {
        warn!("this box does not forward IPv4: `sysctl -w net.ipv4.ip_forward=1` turns it on");
    }
}

pub(super) fn usage_of(used: &StationUsage) -> Usage {
    let counts = |counts: &dataplane::Counts| Counts {
        octets: Octets(counts.octets),
        frames: counts.frames,
        refused_octets: Octets(counts.refused_octets),
        refused_frames: counts.refused_frames,
    };
    Usage { up: counts(&used.up), down: counts(&used.down) }
}
