//! Two edges of one fleet, and a subscriber whose cable is moved from one to the other.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result};
use bitcoin::Amount;
use bitmesh_core::{station::Station, wire::AccountReport};
use bitmesh_user::{
    dataplane,
    runloop::status::{FleetStatus, Phase, Status, WalletStatus},
    store::{self, Place},
    wallet::seed,
};
use tempfile::TempDir;

use crate::{
    daemon::{Daemon, eventually},
    ledgers::Ledger,
    netns::Namespace,
    offload::Offload,
    pinned::Pinned,
    postgres::{self, Launch, Server},
    regtest::{self, Node},
    sabotage::pins_of,
    sweep::{own_name, sweep},
    topology::{LAN, UPLINK, WAN},
    world::instance,
};

/// The internet host, by whichever edge.
pub const INTERNET: &str = "10.78.9.9";
/// What both edges are for stations.
const GATEWAY: &str = "10.77.0.1";
const GATEWAY_MAC: [u8; 6] = [0x02, 0xbb, 0, 0, 0, 1];
/// Port of an edge towards the database alone.
pub const DATABASE_PORT: &str = "db0";
/// Networks from edges to the first database and to its standby, but the edge's number and the host.
const DATABASES: [&str; 2] = ["10.79.2", "10.79.3"];
/// The database's name.
const DATABASE: &str = "fleet";
/// Ports of the switch, by edge.
const PORTS: [&str; 2] = ["a0", "b0"];
/// Time that a step which needs a block or two may take.
const STEP: Duration = Duration::from_secs(90);

/// The networks.
pub struct Fabric {
    /// Pays.
    pub subscriber: Namespace,
    switch: Namespace,
    /// Sell.
    pub edges: [Namespace; 2],
    /// Where traffic goes.
    pub internet: Namespace,
    /// Where node and database run.
    pub chain: Namespace,
}

impl Fabric {
    /// Makes them, with the subscriber at the first edge.
    pub fn new() -> Result<Self> {
        sweep();
        let fabric = Self {
            subscriber: Namespace::create("subscriber")?,
            switch: Namespace::create("switch")?,
            edges: [Namespace::create("edge-a")?, Namespace::create("edge-b")?],
            internet: Namespace::create("internet")?,
            chain: Namespace::create("chain")?,
        };
        let Self { subscriber, switch, edges, internet, chain } = &fabric;
        subscriber.connect(UPLINK, switch, "s0")?;
        subscriber.connect("node0", chain, "subscriber0")?;
        subscriber.address(UPLINK, "10.77.0.2", 24)?;
        subscriber.address("node0", "10.79.2.2", 30)?;
        chain.address("subscriber0", "10.79.2.1", 30)?;
        internet.address("lo", INTERNET, 32)?;
        internet.set_up("lo", true)?;
        for (i, (edge, port)) in edges.iter().zip(PORTS).enumerate() {
            let [to_node, to_database, to_edge] =
                [format!("node-{i}"), format!("db-{i}"), format!("edge-{i}")];
            switch.connect(port, edge, LAN)?;
            internet.connect(&to_edge, edge, WAN)?;
            edge.connect("node0", chain, &to_node)?;
            edge.connect(DATABASE_PORT, chain, &to_database)?;
            edge.set_mac(LAN, GATEWAY_MAC)?;
            edge.set_up(LAN, true)?;
            edge.address(LAN, GATEWAY, 24)?;
            edge.address(WAN, &format!("10.78.{i}.1"), 24)?;
            internet.address(&to_edge, &format!("10.78.{i}.2"), 24)?;
            edge.default_route(&format!("10.78.{i}.2"))?;
            edge.address("node0", &format!("10.79.1{i}.2"), 30)?;
            chain.address(&to_node, &format!("10.79.1{i}.1"), 30)?;
            for database in DATABASES {
                edge.address(DATABASE_PORT, &format!("{database}{i}.2"), 30)?;
                chain.address(&to_database, &format!("{database}{i}.1"), 30)?;
            }
            edge.sysctl("ipv4/ip_forward", "1")?;
            edge.offloads_off(LAN, &[Offload::Tso, Offload::Gro])?;
            internet.offloads_off(&to_edge, &[Offload::Gro])?;
        }
        subscriber.offloads_off(UPLINK, &[Offload::Tso, Offload::Gso, Offload::Gro])?;
        switch.bridge("br0", &["s0", PORTS[0], PORTS[1]])?;
        subscriber.default_route(GATEWAY)?;
        switch.set_up(PORTS[1], false)?;
        internet.default_route("10.78.0.1")?;
        Ok(fabric)
    }

    /// Moves the subscriber's cable to the second edge, and the way back with it.
    pub fn roam(&self) -> Result<()> {
        self.switch.set_up(PORTS[0], false)?;
        self.internet.set_up("edge-0", false)?;
        self.switch.set_up(PORTS[1], true)?;
        self.internet.default_route("10.78.1.1")
    }

    /// Whether the internet host answers the subscriber within a tenth of a second.
    pub fn answers(&self) -> Result<bool> {
        let mut ping = self.subscriber.command("ping")?;
        let output = ping.args(["-n", "-c", "1", "-W", "0.1", INTERNET]).output()?;
        Ok(output.status.success())
    }

    /// Cuts an edge off from the database, or lets it reach it again.
    pub fn reach_database(&self, edge: usize, reach: bool) -> Result<()> {
        let edge = self.edges.get(edge).context("no such edge")?;
        edge.set_up(DATABASE_PORT, reach)
    }
}

/// The processes.
pub struct Fleet<'a> {
    /// The chain.
    pub node: Node<'a>,
    /// The ledger.
    pub database: Server<'a>,
    /// Has what the ledger acknowledged, where there is one.
    pub standby: Option<Server<'a>>,
    /// Sell.
    pub edges: [Daemon<'a>; 2],
    /// Buys.
    pub subscriber: Daemon<'a>,
    hold: Duration,
    instances: Vec<String>,
    _data: TempDir,
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        self.edges.iter_mut().for_each(Daemon::kill);
        self.subscriber.kill();
        for instance in &self.instances {
            let _ = dataplane::purge(instance);
        }
    }
}

impl<'a> Fleet<'a> {
    /// Both edges sell, with this hold time in seconds and more flags; the subscriber is not started yet.
    pub fn new(fabric: &'a Fabric, hold: u64, more: &[&str]) -> Result<Self> {
        let database = ledger(fabric, DATABASES[0])?;
        database.create(DATABASE)?;
        Self::on(fabric, (database, None), hold, more)
    }

    /// The same on a database that acknowledges nothing which its standby has not. Edges know both.
    pub fn with_standby(fabric: &'a Fabric, hold: u64, more: &[&str]) -> Result<Self> {
        let database = ledger(fabric, DATABASES[0])?;
        database.create(DATABASE)?;
        let socket = database.socket().display().to_string();
        let (launch, addresses) = (launched_in(fabric), listens_on(DATABASES[1]));
        let standby = database.standby(&own_name("standby-"), launch, &socket, &addresses)?;
        Self::on(fabric, (database, Some(standby)), hold, more)
    }

    fn on(
        fabric: &'a Fabric,
        (database, standby): (Server<'a>, Option<Server<'a>>),
        hold: u64,
        more: &[&str],
    ) -> Result<Self> {
        let node = Node::start(&fabric.chain)?;
        let data = tempfile::Builder::new().prefix(&own_name("data-")).tempdir()?;
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711))?;
        let (seconds, instances) = (hold.to_string(), [instance(), instance(), instance()]);
        let mut started: Vec<Daemon<'a>> = Vec::new();
        for (i, (namespace, instance)) in fabric.edges.iter().zip(&instances).enumerate() {
            let (url, store) = (node.url(&format!("10.79.1{i}.1")), address(i, standby.is_some()));
            let name = name_of(i);
            let own = ["sell", "--lan", LAN, "--wan", WAN, "--network", "regtest"];
            let source = ["--node", &url, "--node-user", regtest::USER];
            let fleet = ["--store", &store, "--edge", &name, "--hold", &seconds];
            let rest = ["--node-password", regtest::PASSWORD, "--instance", instance];
            let args = [&own[..], &source, &fleet, &rest, &["--price", "1000"], more].concat();
            let directory = data.path().join(&name);
            let mut daemon = Daemon::new(namespace, &directory, &args)?;
            if let Some(first) = started.first() {
                // All edges of a fleet have one seed.
                for file in seed::FILES {
                    let from = first.directory().join(file);
                    if from.exists() {
                        fs::copy(from, directory.join(file))?;
                    }
                }
            }
            daemon.start()?;
            started.push(daemon);
        }
        let edges = started.try_into().map_err(|_| anyhow::anyhow!("two edges"))?;
        let url = node.url("10.79.2.1");
        let args = ["buy", "--budget", "90000", "--capacity", "100000", "--lifetime", "400"];
        let source = ["--node", &url, "--node-user", regtest::USER];
        let rest = ["--node-password", regtest::PASSWORD, "--instance", &instances[2]];
        let args = [&args[..], &source, &rest, &["--network", "regtest"]].concat();
        let subscriber = Daemon::new(&fabric.subscriber, &data.path().join("buy"), &args)?;
        let (hold, instances) = (Duration::from_secs(hold), instances.into());
        Ok(Self { node, database, standby, edges, subscriber, hold, instances, _data: data })
    }

    /// An edge's table in the kernel.
    pub fn kernel(&self, edge: usize) -> Result<Pinned> {
        Pinned::open(&pins_of(self.instances.get(edge).context("no such edge")?))
    }

    /// What the ledger has of an edge that does not run. Its next start has to make do with a new
    /// epoch.
    pub fn ledger(&self, edge: usize) -> Result<Ledger> {
        let server = self.standby.as_ref().unwrap_or(&self.database);
        let seed = server.sql(DATABASE, "SELECT seed FROM fleet")?;
        let (user, password) = (postgres::USER, postgres::PASSWORD);
        let socket = server.socket().display();
        let address =
            format!("postgres://{user}:{password}@localhost/{DATABASE}?host={socket}").parse()?;
        let fleet = store::Fleet { address, edge: name_of(edge), hold: self.hold, seed };
        let directory = self.edge(edge)?.directory().to_owned();
        Ledger::at(&Place { directory, fleet: Some(fleet) })
    }

    /// Starts the subscriber, gives it coins, and mines until its channel takes payments.
    pub fn open_channel(&mut self) -> Result<()> {
        self.subscriber.start()?;
        let wallet: WalletStatus = self.subscriber.json(&["wallet"])?;
        self.node.send(&wallet.address, Amount::from_sat(300_000))?;
        self.node.mine(1)?;
        eventually("a funding in the mempool", STEP, || {
            Ok((!self.node.mempool()?.is_empty()).then_some(()))
        })
        .with_context(|| self.logs())?;
        self.node.mine(1)?;
        eventually("a channel", STEP, || {
            let Status::Subscriber(status) = self.subscriber.json(&["status"])? else {
                anyhow::bail!("not a subscriber")
            };
            // It says that it buys once its first payment is signed.
            let has_bought = status.account.is_some_and(|it| it.bought_octets.0 > 0);
            Ok((status.phase == Phase::Buying && has_bought).then_some(()))
        })
        .with_context(|| self.logs())
    }

    fn edge(&self, edge: usize) -> Result<&Daemon<'a>> {
        self.edges.get(edge).context("no such edge")
    }

    /// What an edge says of its fleet.
    pub fn status(&self, edge: usize) -> Result<FleetStatus> {
        match self.edge(edge)?.json(&["status"])? {
            Status::Provider(status) => status.fleet.context("an edge of a fleet"),
            Status::Subscriber(_) => anyhow::bail!("an edge sells"),
        }
    }

    /// What an edge has of stations that paid.
    pub fn accounts(&self, edge: usize) -> Result<Vec<AccountReport>> {
        let all: Vec<AccountReport> = self.edge(edge)?.json(&["stations"])?;
        Ok(all.into_iter().filter(|account| account.bought_octets.0 > 0).collect())
    }

    /// The subscriber's station at the switch.
    pub fn subscriber_station(&self) -> Result<Station> {
        let accounts: Vec<AccountReport> = self.edge(0)?.json(&["stations"])?;
        accounts.first().map(|account| account.station).context("a station of the first edge")
    }

    /// What everybody logged.
    pub fn logs(&self) -> String {
        let of = |name: &str, daemon: &Daemon<'_>| format!("--- {name}\n{}", daemon.log());
        let [a, b] = &self.edges;
        [of("edge a", a), of("edge b", b), of("subscriber", &self.subscriber)].join("\n")
    }
}

fn name_of(edge: usize) -> String {
    format!("edge-{edge}")
}

/// Where an edge finds its ledger, and the standby after it.
fn address(edge: usize, standby: bool) -> String {
    let (user, password) = (postgres::USER, postgres::PASSWORD);
    let hosts = DATABASES.map(|database| format!("{database}{edge}.1"));
    let known = if standby { &hosts[..] } else { &hosts[..1] };
    format!("postgres://{user}:{password}@{}/{DATABASE}", known.join(","))
}

fn ledger<'a>(fabric: &'a Fabric, network: &str) -> Result<Server<'a>> {
    Server::start(&own_name("fleet-"), launched_in(fabric), &listens_on(network))
}

fn launched_in(fabric: &Fabric) -> Launch<'_> {
    Box::new(|program| fabric.chain.command(program))
}

fn listens_on(network: &str) -> String {
    format!("{network}0.1,{network}1.1")
}
