//! The box: its addresses, its ports, and what its kernel honours already.

use std::net::IpAddr;

use anyhow::{Result, bail};
use bitmesh_common::EDGE_ADDRESS_LIMIT;
use bitmesh_core::{
    account::Ahead,
    controller::Controller,
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
};
use tracing::warn;

use super::super::Foundation;
use crate::{
    config::SellConfig,
    dataplane::{self, Dataplane, Free, Options, StationKey, StationUsage, TcHook},
    gateway::{Gateway, Interface},
};

/// Credit of a station that can't send a usual frame, in octets.
const FRAME_OCTETS: u64 = 1_500;
/// Stations that leave a full table at once.
const EVICTED_AT_ONCE: usize = 256;

pub(super) fn options(config: &SellConfig, edge_addresses: &[IpAddr]) -> Options {
    Options {
        instance: config.instance.clone(),
        lan: config.lan.clone(),
        upload_hook: config.upload_hook.into(),
        tc_hook: TcHook::Auto,
        table_slots: config.table_slots,
        edge_addresses: edge_addresses.to_vec(),
        api_port: config.api_port,
        free: Free::default(),
        isolate: config.isolate,
        service_vlan: config.service_vlan,
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

/// The kernel's table may be ahead in usage, never in what an account's stations may use together:
/// what was bought was on disk first. Where the ledger went back, it may be, and what is too much is taken
/// back.
pub(super) fn reconcile(
    controller: &mut Controller,
    dataplane: &mut Dataplane,
    foundation: &Foundation,
) -> Result<()> {
    let mut kernel: Vec<_> = dataplane
        .stations()
        .map(|(key, limit, used)| (Station::from(key), Octets(limit), usage_of(&used)))
        .collect();
    // In the order of the controller's own list.
    kernel.sort_unstable_by_key(|(station, ..)| *station);
    if foundation.store.went_back().is_some() {
        for (station, _, used) in controller.adopt_beyond(&kernel) {
            dataplane.set_limit(station.key(), used.0)?;
        }
        return Ok(());
    }
    controller.adopt(&kernel).or_else(|Ahead { station, honoured, known }| {
        bail!(
            "the kernel honours {honoured} for {station} and who shares with it, the ledger in {} \
             knows of {known}: the data directory is older than the running programs. Restore the \
             newest one; or, if it is lost, run `bitmesh sell --detach` and start again",
            foundation.data_dir.display()
        )
    })
}

/// Stations in the kernel's table that no account pays for, or whose account has less than a frame
/// left: they leave a full table. Whoever pays again is put in again.
pub(super) fn spent(controller: &Controller, dataplane: &Dataplane) -> Vec<(StationKey, u64)> {
    let credit = |key: StationKey| controller.account(Station::from(key)).credit_octets.0;
    let stations = dataplane.stations().map(|(key, limit, _)| (key, limit));
    stations.filter(|(key, _)| credit(*key) < FRAME_OCTETS).take(EVICTED_AT_ONCE).collect()
}

pub(super) fn warn_unless_forwarding() {
    let off = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0");
    if off("/proc/sys/net/ipv4/ip_forward") {
        warn!("this box does not forward IPv4 yet: `sysctl -w net.ipv4.ip_forward=1` turns it on");
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
