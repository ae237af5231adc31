//! The networks that tests and the lab run on.

use anyhow::Result;

pub use crate::offload::Offload;
use crate::{netns::Namespace, sweep::sweep};

/// Address of the edge on the subscriber's port.
pub const EDGE_V4: &str = "10.77.0.1";
/// The same, IPv6.
pub const EDGE_V6: &str = "fd77::1";
/// The subscriber's address.
pub const SUBSCRIBER_V4: &str = "10.77.0.2";
/// The same, IPv6.
pub const SUBSCRIBER_V6: &str = "fd77::2";
/// The edge on the port of the station that never pays.
pub const EDGE_FREELOADER_V4: &str = "10.77.1.1";
/// The station that never pays.
pub const FREELOADER_V4: &str = "10.77.1.2";
/// The edge's own address towards the internet.
pub const EDGE_WAN_V4: &str = "10.78.0.1";
/// The internet host.
pub const INTERNET_V4: &str = "10.78.0.2";
/// The same, IPv6.
pub const INTERNET_V6: &str = "fd78::2";
/// The node, as the edge reaches it.
pub const NODE_FOR_EDGE: &str = "10.79.1.1";
/// The node, as the subscriber reaches it.
pub const NODE_FOR_SUBSCRIBER: &str = "10.79.2.1";
/// Every address of the edge that a subscriber can see: traffic with them is free.
pub const EDGE_OWN: [&str; 6] =
    [EDGE_V4, EDGE_V6, EDGE_FREELOADER_V4, "fd77:1::1", EDGE_WAN_V4, "fd78::1"];
/// Port of the edge that the subscriber is on.
pub const LAN: &str = "lan0";
/// Port of the edge that the station which never pays is on.
pub const FREELOADER_LAN: &str = "lan1";
/// Port of the edge towards the internet.
pub const WAN: &str = "wan0";
/// Name of every end's port towards the edge.
pub const UPLINK: &str = "eth0";

/// subscriber, freeloader -- edge -- internet host; and a node that both ends of a channel reach
/// over links of its own, so that its traffic is not part of what is measured.
#[derive(Debug)]
pub struct Topology {
    /// Pays.
    pub subscriber: Namespace,
    /// Never pays.
    pub freeloader: Namespace,
    /// Sells.
    pub edge: Namespace,
    /// Where traffic goes.
    pub internet: Namespace,
    /// Where the node runs.
    pub chain: Namespace,
}

impl Topology {
    /// Makes it. The ports of stations send frame by frame, so that counters on their side see
    /// what is on the wire; what arrives from the internet is segmented behind the edge's meter.
    pub fn edge() -> Result<Self> {
        sweep();
        let topology = Self {
            subscriber: Namespace::create("subscriber")?,
            freeloader: Namespace::create("freeloader")?,
            edge: Namespace::create("edge")?,
            internet: Namespace::create("internet")?,
            chain: Namespace::create("chain")?,
        };
        let Self { subscriber, freeloader, edge, internet, chain } = &topology;
        subscriber.connect(UPLINK, edge, LAN)?;
        freeloader.connect(UPLINK, edge, FREELOADER_LAN)?;
        internet.connect(UPLINK, edge, WAN)?;
        edge.connect("node0", chain, "edge0")?;
        subscriber.connect("node0", chain, "subscriber0")?;

        for (namespace, interface, v4, v6) in [
            (subscriber, UPLINK, SUBSCRIBER_V4, SUBSCRIBER_V6),
            (edge, LAN, EDGE_V4, EDGE_V6),
            (freeloader, UPLINK, FREELOADER_V4, "fd77:1::2"),
            (edge, FREELOADER_LAN, EDGE_FREELOADER_V4, "fd77:1::1"),
            (edge, WAN, EDGE_WAN_V4, "fd78::1"),
            (internet, UPLINK, INTERNET_V4, INTERNET_V6),
        ] {
            namespace.address(interface, v4, 24)?;
            namespace.address(interface, v6, 64)?;
        }
        for (namespace, interface, v4) in [
            (edge, "node0", "10.79.1.2"),
            (chain, "edge0", NODE_FOR_EDGE),
            (subscriber, "node0", "10.79.2.2"),
            (chain, "subscriber0", NODE_FOR_SUBSCRIBER),
        ] {
            namespace.address(interface, v4, 30)?;
        }
        for (namespace, v4, v6) in [
            (subscriber, EDGE_V4, EDGE_V6),
            (freeloader, EDGE_FREELOADER_V4, "fd77:1::1"),
            (internet, EDGE_WAN_V4, "fd78::1"),
        ] {
            namespace.default_route(v4)?;
            namespace.default_route(v6)?;
        }
        edge.sysctl("ipv4/ip_forward", "1")?;
        edge.sysctl("ipv6/conf/all/forwarding", "1")?;

        let all = [Offload::Tso, Offload::Gso, Offload::Gro];
        subscriber.offloads_off(UPLINK, &all)?;
        freeloader.offloads_off(UPLINK, &all)?;
        internet.offloads_off(UPLINK, &[Offload::Gro])?;
        edge.offloads_off(LAN, &[Offload::Tso, Offload::Gro])?;
        edge.offloads_off(FREELOADER_LAN, &[Offload::Tso, Offload::Gro])?;
        Ok(topology)
    }

    /// Takes the port of the station that never pays away and makes another of the same name, as
    /// a driver or a hotplug script does.
    pub fn recreate_freeloader_port(&self) -> Result<()> {
        let Self { freeloader, edge, .. } = self;
        edge.delete(FREELOADER_LAN)?;
        freeloader.connect(UPLINK, edge, FREELOADER_LAN)?;
        self.address_freeloader_port()
    }

    /// Gives both ends of that port their addresses and routes.
    pub fn address_freeloader_port(&self) -> Result<()> {
        let Self { freeloader, edge, .. } = self;
        for (namespace, interface, v4, v6) in [
            (edge, FREELOADER_LAN, EDGE_FREELOADER_V4, "fd77:1::1"),
            (freeloader, UPLINK, FREELOADER_V4, "fd77:1::2"),
        ] {
            namespace.address(interface, v4, 24)?;
            namespace.address(interface, v6, 64)?;
        }
        freeloader.default_route(EDGE_FREELOADER_V4)?;
        freeloader.default_route("fd77:1::1")
    }

    /// Every namespace.
    pub fn namespaces(&mut self) -> [&mut Namespace; 5] {
        let Self { subscriber, freeloader, edge, internet, chain } = self;
        [subscriber, freeloader, edge, internet, chain]
    }
}
