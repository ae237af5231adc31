//! A stretch of network for one contender, so that all of them stand ready at the same time:
//!
//! ```text
//! near (stations)  eth0 -- lan0  edge  wan0 -- eth0  far (internet)
//! ```

use std::{cell::Cell, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    netns::Namespace,
    sweep::own_name,
    topology::{LAN, Offload, UPLINK, WAN},
};
use bitmesh_user::dataplane::{Dataplane, Options, StationKey, StationUsage, UploadHook};

use crate::{
    generator::{Flow, Generator, Way, mac_of, receiver},
    plan::go_on,
};

/// The edge's address on the stations' side; the network is a /16.
pub const EDGE: [u8; 4] = [10, 77, 0, 1];
/// The first station's.
pub const FIRST_STATION: [u8; 4] = [10, 77, 1, 0];
const EDGE_WAN: [u8; 4] = [10, 78, 0, 1];
/// The internet host's.
pub const FAR: [u8; 4] = [10, 78, 0, 2];
/// What our programs take for the edge's own address where frames for `EDGE` are to be metered.
const ELSEWHERE: [u8; 4] = [192, 0, 2, 254];
const API_PORT: u16 = 8_434;
/// Least slots of a table.
const SLOTS_MIN: u32 = 1 << 10;
/// Datagrams that may get through a filter before it is in place.
const STRAY: u64 = 16;

/// Which CPU receives what the generator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The one that sends, batch by batch: what the kernel does by itself. A frame's time is that
    /// of sending and receiving together.
    Shared,
    /// Another one: a frame's time is that of receiving alone, if the generator is faster.
    Own,
}

/// One contender's network. Dropping it takes everything down.
pub struct Lane {
    name: String,
    pub near: Namespace,
    pub edge: Namespace,
    pub far: Option<Namespace>,
    ours: Option<Dataplane>,
}

impl Lane {
    /// Stations and an edge that drops what they send.
    pub fn to_edge(name: &str) -> Result<Self> {
        let near = Namespace::create(&format!("{name}-near"))?;
        let edge = Namespace::create(&format!("{name}-edge"))?;
        for namespace in [&near, &edge] {
            quiet(namespace)?;
        }
        near.connect(UPLINK, &edge, LAN)?;
        edge.address(LAN, &text(EDGE), 16)?;
        Ok(Self { name: name.to_owned(), near, edge, far: None, ours: None })
    }

    /// Stations, an edge that forwards, and the internet. Ports have the offloads that they come
    /// with.
    pub fn through_edge(name: &str) -> Result<Self> {
        let mut lane = Self::to_edge(name)?;
        let far = Namespace::create(&format!("{name}-far"))?;
        quiet(&far)?;
        lane.edge.connect(WAN, &far, UPLINK)?;
        lane.edge.address(WAN, &text(EDGE_WAN), 24)?;
        lane.edge.sysctl("ipv4/ip_forward", "1")?;
        far.address(UPLINK, &text(FAR), 24)?;
        far.default_route(&text(EDGE_WAN))?;
        lane.near.address(UPLINK, &text(FIRST_STATION), 16)?;
        lane.near.default_route(&text(EDGE))?;
        lane.far = Some(far);
        Ok(lane)
    }

    /// The far end; only what forwards has one.
    pub fn far(&self) -> Result<&Namespace> {
        self.far.as_ref().context("this lane ends at the edge")
    }

    /// Has a port of the edge take frames without sockets behind them.
    pub fn receive(&self, port: &str, on: Placement) -> Result<()> {
        self.edge.offloads_on(port, &[Offload::Gro])?;
        match on {
            Placement::Shared => Ok(()),
            Placement::Own => self.edge.receive_on(port, receiver()),
        }
    }

    /// Tells the edge where all stations and the internet host are.
    pub fn introduce(&self, stations: u32) -> Result<()> {
        let first = u32::from_be_bytes(FIRST_STATION);
        let station = |i: u32| (IpAddr::from((first + i).to_be_bytes()), mac_of(i));
        self.edge.neighbours(LAN, &(0..stations).map(station).collect::<Vec<_>>())?;
        let (_, mac) = self.far()?.interface(UPLINK)?;
        self.edge.neighbours(WAN, &[(FAR.into(), mac)])
    }

    /// Frames for this lane from its near end, or from its far end.
    pub fn flow(&self, way: Way, stations: u32) -> Result<Flow> {
        let (from, port) = match way {
            Way::Up => (&self.near, LAN),
            Way::Down => (self.far()?, WAN),
        };
        Ok(Flow {
            way,
            stations,
            port: from.interface(UPLINK)?.0,
            to: self.edge.interface(port)?.1,
            destination: if self.far.is_some() { FAR } else { EDGE },
            first_station: FIRST_STATION,
            pace: Cell::new(None),
        })
    }

    /// Puts our programs on the edge. `bought` are the octets that each station may use.
    pub fn meter(
        &mut self,
        hook: UploadHook,
        stations: impl ExactSizeIterator<Item = Result<StationKey>> + Send,
        bought: u64,
    ) -> Result<()> {
        let slots = u32::try_from(stations.len())?.saturating_mul(2).next_power_of_two();
        let options = Options {
            upload_hook: hook,
            table_slots: slots.max(SLOTS_MIN),
            edge_addresses: vec![ELSEWHERE.into()],
            ..Options::new(own_name(&self.name), &[LAN], API_PORT)
        };
        let dataplane = self.edge.run(|| {
            let mut dataplane = Dataplane::open(&options)?;
            for key in stations {
                dataplane.insert(key?, StationUsage::default(), bought)?;
            }
            Ok(dataplane)
        })?;
        self.ours = Some(dataplane);
        Ok(())
    }

    /// Frames that our programs billed and refused.
    pub fn metered(&self) -> Option<(u64, u64)> {
        let dataplane = self.ours.as_ref()?;
        Some(dataplane.stations().fold((0, 0), |(billed, refused), (_, _, usage)| {
            let (up, down) = (usage.up, usage.down);
            (billed + up.frames + down.frames, refused + up.refused_frames + down.refused_frames)
        }))
    }

    /// Sends for some time and tells how many frames a second an interface took in.
    pub fn rate(
        &self,
        generator: &mut Generator,
        flow: &Flow,
        (at, interface): (&Namespace, &str),
        time: Duration,
    ) -> Result<f64> {
        go_on()?;
        let from = if flow.way == Way::Up { &self.near } else { self.far()? };
        if flow.pace.get().is_none() {
            generator.send(from, flow, Duration::ZERO)?;
        }
        let before = at.received(interface)?;
        let sent = generator.send(from, flow, time)?;
        let taken = at.received(interface)?.saturating_sub(before);
        let (name, frames) = (&self.name, sent.frames);
        ensure!(taken > 0, "{name}: of {frames} frames none arrived at {interface}");
        if self.far.is_some() {
            // With one CPU for all, whatever was not forwarded is a mistake of the lab.
            ensure!(
                taken >= u64::from(frames / 2),
                "{name}: {frames} frames sent, {taken} forwarded to {interface}"
            );
        }
        Ok(f64::from(u32::try_from(taken)?) / sent.seconds)
    }

    /// Fails if frames that were to be dropped reached a socket's layer: then nothing was dropped.
    pub fn check_shut(&self) -> Result<()> {
        let path = Path::new("/proc/thread-self/net/snmp");
        let text = self.edge.run(|| Ok(std::fs::read_to_string(path)?))?;
        let delivered = snmp(&text, "Ip:", "InDelivers").context("no count of deliveries")?;
        ensure!(delivered <= STRAY, "{}: {delivered} frames got through", self.name);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(dataplane) = self.ours.take() {
            let _ = self.edge.run(|| Ok(dataplane.detach()?));
        }
    }
}

/// No frames but ours.
fn quiet(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")
}

pub fn text(address: [u8; 4]) -> String {
    IpAddr::from(address).to_string()
}

/// A field of `/proc/net/snmp`: a line of names, then a line of numbers.
fn snmp(text: &str, protocol: &str, field: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == field)?.1.parse().ok()
}
