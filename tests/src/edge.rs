//! A provider's dataplane alone, on the edge of a topology: no daemon, no chain, no payments.

use std::{
    io,
    net::UdpSocket,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bitmesh_user::dataplane::{
    self, Dataplane, Mac, Options, StationEvent, StationKey, StationUsage,
};

use crate::{
    netns::Namespace,
    raw,
    sweep::own_name,
    topology::{EDGE_OWN, FREELOADER_LAN, LAN, Topology, UPLINK},
};

/// Octets that a test's station may use where it is not about limits.
pub const PLENTY: u64 = 1 << 40;

/// A dataplane; taken off its ports when dropped.
pub struct Edge {
    /// The table and the hooks.
    pub dataplane: Option<Dataplane>,
    /// What it was opened with.
    pub options: Options,
}

impl Edge {
    /// On both LAN ports of a topology, with what a test changes.
    pub fn open(topology: &Topology, change: impl FnOnce(&mut Options)) -> Result<Self> {
        Self::on(&topology.edge, &[LAN, FREELOADER_LAN], change)
    }

    /// On ports of any namespace.
    pub fn on(
        namespace: &Namespace,
        lan: &[&str],
        change: impl FnOnce(&mut Options),
    ) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instance = own_name(&format!("edge{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut options = Options {
            table_slots: 1 << 10,
            edge_addresses: EDGE_OWN.iter().filter_map(|own| own.parse().ok()).collect(),
            ..Options::new(instance, lan, 8_434)
        };
        change(&mut options);
        let opened = namespace.run(|| Ok(Dataplane::open(&options)?))?;
        Ok(Self { dataplane: Some(opened), options })
    }

    /// The dataplane.
    pub fn dataplane(&mut self) -> Result<&mut Dataplane> {
        self.dataplane.as_mut().context("the dataplane is open")
    }

    /// Lets a station use so many octets.
    pub fn allow(&mut self, station: StationKey, octets: u64) -> Result<()> {
        Ok(self.dataplane()?.insert(station, StationUsage::default(), octets)?)
    }

    /// What a station used, once nothing is on the way any more.
    pub fn usage(&self, station: StationKey) -> Result<StationUsage> {
        let dataplane = self.dataplane.as_ref().context("the dataplane is open")?;
        let mut last = None;
        loop {
            let now = dataplane.usage(station).context("a station of the table")?;
            if last == Some(now) {
                return Ok(now);
            }
            last = Some(now);
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// Frames with a cause so far.
    pub fn cause(&self, cause: dataplane::Cause) -> Result<u64> {
        let dataplane = self.dataplane.as_ref().context("the dataplane is open")?;
        Ok(dataplane.stats()?.of(cause))
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        drop(self.dataplane.take());
        let _ = dataplane::purge(&self.options.instance);
    }
}

/// The station on a namespace's uplink, untagged.
pub fn station(namespace: &Namespace) -> Result<StationKey> {
    station_on(namespace, 0)
}

/// The same on a VLAN.
pub fn station_on(namespace: &Namespace, vlan: u16) -> Result<StationKey> {
    let mac = Mac::new(namespace.mac(UPLINK)?);
    StationKey::new(mac, vlan).context("a station's address")
}

/// Every event that waits.
pub fn events(from: &mut dataplane::Events) -> Vec<StationEvent> {
    std::iter::from_fn(|| from.next()).collect()
}

/// Has a UDP socket's sends fail when a port on the way, within its own namespace, drops the datagram:
/// the kernel hides that unless errors are asked for (ip(7), `IP_RECVERR`). What others answer fails a
/// send, too, before anything is sent.
pub fn tell_of_drops(socket: &UdpSocket) -> io::Result<()> {
    raw::set_option(socket, (libc::IPPROTO_IP, libc::IP_RECVERR), 1)
}

/// A UDP socket in a namespace.
pub fn udp_socket(namespace: &Namespace, address: &str) -> Result<UdpSocket> {
    namespace.run(|| UdpSocket::bind(address).with_context(|| format!("binding {address}")))
}
