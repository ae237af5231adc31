//! An edge, a node and many stations, each with a MAC and an address of its own, on one port of the
//! edge; and a provider's data with their channels.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bitcoin::{
    Network,
    secp256k1::{All, Secp256k1},
};
use bitmesh_core::channel::ProviderEvent;
use bitmesh_tests::{
    daemon::Daemon,
    netns::Namespace,
    regtest::{Node, PASSWORD, USER},
    sweep::own_name,
};
use bitmesh_user::{
    dataplane,
    store::{Place, Store, StoreRole, TIDY_INTERVAL_IDLE},
};
use futures_util::TryStreamExt as _;
use rtnetlink::{LinkMacVlan, packet_route::link::MacVlanMode};
use tempfile::TempDir;

use super::fixture::{Account, mac};

/// Port of the edge that stations are on.
pub const LAN: &str = "lan0";
const UPLINK: &str = "eth0";
/// Where the API is.
pub const EDGE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 80, 0, 1)), 8_434);
const NODE: &str = "10.79.9.1";
/// A host on the internet, behind the edge.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(10, 81, 0, 1);
const BEFORE_INTERNET: &str = "10.81.0.2";
/// Channels that are written in one transaction.
const WRITTEN_AT_ONCE: usize = 1_000;
/// Slots for stations: twice as many as the largest run has.
const SLOTS: &str = "262144";
/// Satoshi that each channel has paid before.
pub const PAID_BEFORE: u64 = 1;

/// The networks.
pub struct Town {
    pub edge: Namespace,
    pub stations: Namespace,
    pub chain: Namespace,
    pub internet: Namespace,
}

impl Town {
    /// With so many stations that can be asked from.
    pub fn new(stations: u32) -> Result<Self> {
        let town = Self {
            edge: Namespace::create("edge")?,
            stations: Namespace::create("stations")?,
            chain: Namespace::create("chain")?,
            internet: Namespace::create("internet")?,
        };
        town.stations.connect(UPLINK, &town.edge, LAN)?;
        town.edge.connect("node0", &town.chain, "edge0")?;
        town.edge.address(LAN, &EDGE.ip().to_string(), 16)?;
        town.edge.address("node0", "10.79.9.2", 30)?;
        town.chain.address("edge0", NODE, 30)?;
        town.edge.connect("wan0", &town.internet, UPLINK)?;
        town.edge.address("wan0", BEFORE_INTERNET, 30)?;
        town.internet.address(UPLINK, &INTERNET.to_string(), 30)?;
        town.internet.default_route(BEFORE_INTERNET)?;
        town.edge.sysctl("ipv4/ip_forward", "1")?;
        for namespace in [&town.edge, &town.stations] {
            for table in ["gc_thresh1", "gc_thresh2", "gc_thresh3"] {
                // Neighbours of all stations at once.
                let _ = namespace.sysctl(&format!("ipv4/neigh/default/{table}"), "8192");
            }
        }
        // Routes back to the edge are many.
        town.stations.sysctl("ipv4/conf/all/rp_filter", "0")?;
        town.stations.sysctl("ipv4/conf/default/rp_filter", "0")?;
        let (_, edge_mac) = town.edge.interface(LAN)?;
        town.populate(stations, edge_mac)?;
        let entries: Vec<_> = (0..stations).map(|n| (IpAddr::V4(address(n)), mac(n))).collect();
        town.edge.neighbours(LAN, &entries)?;
        Ok(town)
    }

    fn populate(&self, stations: u32, edge_mac: [u8; 6]) -> Result<()> {
        let (uplink, _) = self.stations.interface(UPLINK)?;
        self.stations.netlink(async |handle| {
            for n in 0..stations {
                let name = device(n);
                let link = LinkMacVlan::new(&name, uplink, MacVlanMode::Private);
                handle.link().add(link.address(mac(n).to_vec()).up().build()).execute().await?;
                let mut found = handle.link().get().match_name(name).execute();
                let index = found.try_next().await?.context("a new station")?.header.index;
                let own = IpAddr::V4(address(n));
                handle.address().add(index, own, 16).execute().await?;
                let edge = handle.neighbours().add(index, EDGE.ip());
                edge.link_layer_address(&edge_mac).execute().await?;
            }
            Ok(())
        })
    }
}

/// The device of a station: what is sent from it has the station's MAC address.
pub fn device(n: u32) -> String {
    format!("s{n}")
}

/// The address of a station.
pub fn address(n: u32) -> Ipv4Addr {
    let [_, _, c, d] = n.to_be_bytes();
    Ipv4Addr::new(10, 80, 1 + c, d)
}

/// A provider in a town.
pub struct Provider<'a> {
    pub daemon: Daemon<'a>,
    pub node: Node<'a>,
    data: TempDir,
    instance: String,
}

impl<'a> Provider<'a> {
    /// One that was never asked, stopped.
    pub fn new(town: &'a Town) -> Result<Self> {
        let node = Node::start(&town.chain)?;
        let data = tempfile::Builder::new().prefix(&own_name("data-")).tempdir_in("target")?;
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711))?;
        let instance = own_name("pay");
        let url = node.url(NODE);
        let args = [
            "sell",
            "--lan",
            LAN,
            "--price",
            "1000",
            "--instance",
            &instance,
            "--node",
            &url,
            "--node-user",
            USER,
            "--node-password",
            PASSWORD,
            "--network",
            "regtest",
            "--table-slots",
            SLOTS,
        ];
        let daemon = Daemon::new(&town.edge, &absolute(data.path())?.join("sell"), &args)?;
        let mut provider = Self { daemon, node, data, instance };
        provider.daemon.start()?;
        provider.daemon.stop()?;
        Ok(provider)
    }

    /// Height of the chain.
    pub fn height(&self) -> Result<u32> {
        self.node.height()
    }

    /// Writes accounts' channels into its stopped ledger, and folds them.
    pub fn write(&self, secp: &Secp256k1<All>, accounts: &[Account], height: u32) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let place = Place::file(self.daemon.directory());
            let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await?;
            store.load::<ProviderEvent>().await?;
            for some in accounts.chunks(WRITTEN_AT_ONCE) {
                let mut entries = Vec::new();
                for account in some {
                    entries.extend(account.journal(secp, height, PAID_BEFORE)?);
                }
                store.commit(&entries, None).await?;
            }
            // As a daemon leaves it that has run for a while.
            while store.tidy::<ProviderEvent>(|_| false).await? < TIDY_INTERVAL_IDLE {}
            store.close().await?;
            anyhow::Ok(())
        })
    }

    /// Starts it; the time until it answers.
    pub fn start(&mut self) -> Result<Duration> {
        let started = Instant::now();
        self.daemon.start()?;
        Ok(started.elapsed())
    }
}

impl Drop for Provider<'_> {
    fn drop(&mut self) {
        self.daemon.kill();
        let _ = dataplane::purge(&self.instance);
        let _ = self.data.path();
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(fs::canonicalize(path)?)
}
