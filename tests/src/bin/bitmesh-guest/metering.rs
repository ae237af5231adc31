//! The dataplane on ports: what is paid for passes and is billed, nothing else passes, and a second
//! controller takes over.

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    netns::Namespace,
    sweep::own_name,
    topology::{EDGE_OWN, FREELOADER_LAN, LAN, Topology, UPLINK},
};
use bitmesh_user::dataplane::{
    Cause, Dataplane, Hook, HookKind, Mac, Options, Side, StationKey, StationUsage, UploadHook,
    instances,
};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;

use crate::{
    datagrams::{Caller, Echo, V4_OCTETS, V6_OCTETS},
    machine,
};

/// The first kernel with links at TC.
const TCX_SINCE: (u32, u32) = (6, 6);
/// Datagrams to and fro by each version of IP.
const CALLS: u64 = 50;
/// Datagrams of which one must pass once the programs are off.
const RELEASE_CALLS: u32 = 5;

pub fn run(upload_hook: UploadHook) -> Result<String> {
    let topology = Topology::edge()?;
    topology.edge.run(|| on(&topology, upload_hook))
}

fn on(topology: &Topology, upload_hook: UploadHook) -> Result<String> {
    let station = station_of(&topology.subscriber)?;
    let options = options(upload_hook)?;
    let echo = Echo::start(&topology.internet)?;
    let mut subscriber = Caller::new(&topology.subscriber)?;
    let mut freeloader = Caller::new(&topology.freeloader)?;

    let mut dataplane = Dataplane::open(&options)?;
    check_hooks(dataplane.hooks(), upload_hook, false)?;
    let billed = CALLS * (V4_OCTETS + V6_OCTETS);
    let bought = 2 * billed;
    dataplane.insert(station, StationUsage::default(), bought)?;

    for _ in 0..CALLS {
        ensure!(subscriber.call_v4()?, "a paid datagram was dropped, IPv4");
        ensure!(subscriber.call_v6()?, "a paid datagram was dropped, IPv6");
    }
    check_usage(&dataplane, station, billed, 2 * CALLS, 0)?;
    ensure!(subscriber.call_in_vain()?, "a datagram passed when all was used up");
    check_usage(&dataplane, station, billed, 2 * CALLS, 1)?;

    let unknown = dataplane.stats()?.of(Cause::Unknown);
    ensure!(freeloader.call_in_vain()?, "an unpaid datagram passed");
    let dropped = dataplane.stats()?.of(Cause::Unknown) - unknown;
    ensure!(dropped == 1, "one unpaid datagram was counted as {dropped}");
    ensure!(echo.heard() == 2 * CALLS, "{} passed of {}", echo.heard(), 2 * CALLS);

    drop(dataplane);
    ensure!(subscriber.call_in_vain()?, "a datagram passed while there was no controller");
    let mut dataplane = Dataplane::open(&options).context("a second controller")?;
    check_hooks(dataplane.hooks(), upload_hook, true)?;
    check_usage(&dataplane, station, billed, 2 * CALLS, 2)?;
    dataplane.set_bought(station, bought + 2 * V4_OCTETS)?;
    ensure!(subscriber.call_v4()?, "a topped-up station's datagram was dropped");
    ensure!(subscriber.call_in_vain()?, "a datagram passed when the top-up was used up");
    check_usage(&dataplane, station, billed + V4_OCTETS, 2 * CALLS + 1, 3)?;
    let kinds = kinds(dataplane.hooks());

    dataplane.detach()?;
    ensure!(!instances().contains(&options.instance), "pins are left after detaching");
    // The kernel lets go of links after their last pin is gone, not with it.
    let mut passed = false;
    for _ in 0..RELEASE_CALLS {
        passed = passed || !freeloader.call_in_vain()?;
    }
    ensure!(passed, "nothing meters any more, and every datagram was dropped");
    Ok(format!("{kinds}; {billed} octets each way of {} frames, 3 refused", 2 * CALLS))
}

/// How the exercises sell.
pub fn options(upload_hook: UploadHook) -> Result<Options> {
    Ok(Options {
        upload_hook,
        edge_addresses: EDGE_OWN
            .iter()
            .map(|address| address.parse())
            .collect::<Result<_, _>>()
            .context("the edge's addresses")?,
        ..Options::new(own_name("guest"), &[LAN, FREELOADER_LAN], 8_480)
    })
}

/// Who a namespace's port is, to the edge.
pub fn station_of(namespace: &Namespace) -> Result<StationKey> {
    StationKey::new(mac_of(namespace)?, 0).context("a MAC that no station can have")
}

/// The MAC of a namespace's port.
pub fn mac_of(namespace: &Namespace) -> Result<Mac> {
    namespace.netlink(async |handle| {
        let link = handle.link().get().match_name(UPLINK).execute().try_next().await?;
        let attributes = link.map(|link| link.attributes).unwrap_or_default();
        let address = attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(octets) => <[u8; 6]>::try_from(octets).ok(),
            _ => None,
        });
        address.map(Mac::new).with_context(|| format!("{UPLINK} has no MAC"))
    })
}

fn check_hooks(hooks: &[Hook], upload: UploadHook, taken_over: bool) -> Result<()> {
    let tc = if machine::version()? < TCX_SINCE { HookKind::Clsact } else { HookKind::Tcx };
    let up = if upload == UploadHook::XdpNative { HookKind::XdpNative } else { tc };
    ensure!(hooks.len() == 4, "{} hooks on two ports", hooks.len());
    for hook in hooks {
        let wanted = if hook.side == Side::Ingress { up } else { tc };
        ensure!(hook.kind == wanted, "{hook:?} where {wanted:?} belongs");
        ensure!(hook.taken_over == taken_over, "taken over is not {taken_over}: {hook:?}");
    }
    Ok(())
}

/// Every call was answered in kind, so that both directions have the same sums.
pub fn check_usage(
    dataplane: &Dataplane,
    station: StationKey,
    octets: u64,
    frames: u64,
    refused: u64,
) -> Result<()> {
    let used = dataplane.usage(station).context("the station left the table")?;
    let seen = (used.up.octets, used.up.frames, used.up.refused_octets, used.up.refused_frames);
    let wanted = (octets, frames, refused * V4_OCTETS, refused);
    ensure!(seen == wanted, "up: counted {seen:?}, sent {wanted:?}");
    let seen = (used.down.octets, used.down.frames, used.down.refused_frames);
    ensure!(seen == (octets, frames, 0), "down: counted {seen:?}, sent {:?}", (octets, frames));
    Ok(())
}

fn kinds(hooks: &[Hook]) -> String {
    let of = |side: Side| {
        let kind = hooks.iter().find(|hook| hook.side == side).map(|hook| hook.kind);
        kind.map_or_else(String::new, |kind| format!("{kind:?}").to_lowercase())
    };
    format!("up {}, down {}", of(Side::Ingress), of(Side::Egress))
}
