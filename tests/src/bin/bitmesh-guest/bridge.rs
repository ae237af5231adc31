//! A port of a bridge that a station is on with a VLAN tag: the programs are on the port, and the
//! kernel keeps the tag beside the frame.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    netns::Namespace,
    topology::{INTERNET_V4, LAN, Topology, UPLINK},
};
use bitmesh_user::dataplane::{Dataplane, StationKey, StationUsage, UploadHook};
use futures_util::TryStreamExt as _;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVlan, RouteMessageBuilder};

use crate::{
    datagrams::{Caller, Echo, V4_OCTETS},
    metering::{check_usage, mac_of, options},
};

const BRIDGE: &str = "br0";
const VLAN_ID: u16 = 10;
/// The edge and the station on the VLAN.
const EDGE: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);
const STATION: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 2);
const CALLS: u64 = 50;

pub fn run() -> Result<String> {
    let topology = Topology::edge()?;
    let Topology { edge, subscriber, internet, .. } = &topology;
    edge.netlink(async |handle| {
        handle.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await?;
        let bridge = index_of(&handle, BRIDGE).await?;
        let port = LinkUnspec::new_with_name(LAN).controller(bridge).build();
        Ok(handle.link().set(port).execute().await?)
    })
    .context("a bridge")?;
    tag(edge, BRIDGE, EDGE)?;
    tag(subscriber, UPLINK, STATION)?;
    let internet_host: Ipv4Addr = INTERNET_V4.parse()?;
    subscriber.netlink(async |handle| {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(internet_host, 32)
            .gateway(EDGE)
            .build();
        Ok(handle.route().add(route).execute().await?)
    })?;
    let mac = mac_of(subscriber)?;
    let station = StationKey::new(mac, VLAN_ID).context("a station that can't be")?;
    let echo = Echo::start(internet)?;
    edge.run(|| {
        let mut dataplane = Dataplane::open(&options(UploadHook::Auto)?)?;
        dataplane.insert(station, StationUsage::default(), 2 * CALLS * V4_OCTETS)?;
        let mut caller = Caller::new(subscriber)?;
        for _ in 0..CALLS {
            ensure!(caller.call_v4()?, "a paid datagram was dropped");
        }
        ensure!(caller.call_in_vain()?, "a datagram passed when all was used up");
        check_usage(&dataplane, station, CALLS * V4_OCTETS, CALLS, 1)?;
        ensure!(echo.heard() == CALLS, "{} passed of {CALLS}", echo.heard());
        dataplane.detach()?;
        Ok(format!("VLAN {VLAN_ID}: {} octets each way, 1 refused", CALLS * V4_OCTETS))
    })
}

/// Makes the VLAN's own interface on top of another, with an address.
fn tag(namespace: &Namespace, below: &str, address: Ipv4Addr) -> Result<()> {
    let name = format!("{below}.{VLAN_ID}");
    namespace
        .netlink(async |handle| {
            let below = index_of(&handle, below).await?;
            let vlan = LinkVlan::new(&name, below, VLAN_ID).up().build();
            Ok(handle.link().add(vlan).execute().await?)
        })
        .with_context(|| name.clone())?;
    namespace.address(&name, &address.to_string(), 24)
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32> {
    let link = handle.link().get().match_name(name).execute().try_next().await?;
    Ok(link.with_context(|| format!("no interface {name}"))?.header.index)
}
