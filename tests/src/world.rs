//! A provider, a subscriber and a node, ready to trade.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::{
    channel::ChannelStatus,
    ledger::Usage,
    wire::{AccountReport, ChannelReport},
};
use bitmesh_user::{
    dataplane, http,
    runloop::status::{Phase, ProviderStatus, Status, SubscriberStatus, WalletStatus},
};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    counters,
    daemon::{Daemon, eventually},
    regtest::{Node, PASSWORD, USER},
    sweep::own_name,
    topology::{EDGE_V4, FREELOADER_LAN, LAN, NODE_FOR_EDGE, NODE_FOR_SUBSCRIBER, Topology, WAN},
};

/// Time that a step which needs a block or two may take.
const STEP: Duration = Duration::from_secs(90);

/// The processes of a trade, on a topology.
pub struct World<'a> {
    /// The chain.
    pub node: Node<'a>,
    /// Sells.
    pub provider: Daemon<'a>,
    /// Buys.
    pub subscriber: Daemon<'a>,
    data: TempDir,
    instance: String,
}

/// What differs from trade to trade.
#[derive(Clone, Debug)]
pub struct Trade<'a> {
    /// Price, in msat per MiB.
    pub price: u64,
    /// What the subscriber may spend, in satoshi.
    pub budget: u64,
    /// What it puts into the channel, in satoshi.
    pub capacity: u64,
    /// More flags of `bitmesh sell`.
    pub sell: &'a [&'a str],
    /// More flags of `bitmesh buy`.
    pub buy: &'a [&'a str],
    /// Whether both ends are light clients of the node, and not users of its RPC.
    pub light: bool,
}

impl Default for Trade<'_> {
    fn default() -> Self {
        Self { price: 1_000, budget: 40_000, capacity: 50_000, sell: &[], buy: &[], light: false }
    }
}

impl<'a> World<'a> {
    /// A chain, a provider that sells and a subscriber that is not started yet.
    pub fn new(topology: &'a Topology, trade: &Trade<'_>) -> Result<Self> {
        let node = Node::start(&topology.chain)?;
        let data = tempfile::Builder::new().prefix(&own_name("data-")).tempdir()?;
        // The provider gives its rights up, and has to get through to its own directory.
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711))?;
        let price = trade.price.to_string();
        let instance = instance();
        let source = source_flags(&node, NODE_FOR_EDGE, trade.light);
        let mut args = vec!["sell", "--lan", LAN, "--lan", FREELOADER_LAN, "--wan", WAN];
        args.extend(["--price", &price, "--instance", &instance]);
        args.extend(source.iter().map(String::as_str));
        args.extend(["--network", "regtest"]);
        args.extend(trade.sell);
        let mut provider = Daemon::new(&topology.edge, &data.path().join("sell"), &args)?;
        provider.start()?;

        let (budget, capacity) = (trade.budget.to_string(), trade.capacity.to_string());
        let source = source_flags(&node, NODE_FOR_SUBSCRIBER, trade.light);
        let source: Vec<_> = source.iter().map(String::as_str).collect();
        let args = ["buy", "--budget", &budget, "--capacity", &capacity, "--lifetime", "400"];
        let last = ["--network", "regtest", "--instance", &instance];
        let args = [&args[..], &source, &last, trade.buy].concat();
        let subscriber = Daemon::new(&topology.subscriber, &data.path().join("buy"), &args)?;
        Ok(Self { node, provider, subscriber, data, instance })
    }

    /// Name of both sides' pins.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Starts the subscriber, gives it coins, and mines until its channel takes payments.
    pub fn open_channel(&mut self, coins: Amount) -> Result<()> {
        self.subscriber.start()?;
        let wallet: WalletStatus = self.subscriber.json(&["wallet"])?;
        self.node.send(&wallet.address, coins)?;
        self.node.mine(1)?;
        eventually("a funding in the mempool", STEP, || {
            Ok((!self.node.mempool()?.is_empty()).then_some(()))
        })
        .with_context(|| self.logs())?;
        self.node.mine(1)?;
        self.wait_for(Phase::Buying)?;
        // It says so once the first payment is signed: the provider may still see the block.
        eventually("a first payment", STEP, || {
            let (ours, theirs) = self.channel()?;
            Ok((theirs.commitments > 0 && ours.commitments == theirs.commitments).then_some(()))
        })
        .with_context(|| self.logs())
    }

    /// Waits until the subscriber is in a phase.
    pub fn wait_for(&self, phase: Phase) -> Result<()> {
        eventually(&format!("{phase:?}"), STEP, || {
            Ok((self.subscriber_status()?.phase == phase).then_some(()))
        })
        .with_context(|| self.logs())
    }

    /// What `bitmesh status` says on the provider's side.
    pub fn provider_status(&self) -> Result<ProviderStatus> {
        match self.provider.json(&["status"])? {
            Status::Provider(status) => Ok(*status),
            Status::Subscriber(_) => anyhow::bail!("the provider says that it is a subscriber"),
        }
    }

    /// What `bitmesh status` says on the subscriber's side.
    pub fn subscriber_status(&self) -> Result<SubscriberStatus> {
        match self.subscriber.json(&["status"])? {
            Status::Subscriber(status) => Ok(*status),
            Status::Provider(_) => anyhow::bail!("the subscriber says that it is a provider"),
        }
    }

    /// The subscriber's channel, as each side tells it: subscriber's, provider's.
    pub fn channel(&self) -> Result<(ChannelReport, ChannelReport)> {
        let ours = self.own_channel()?;
        let theirs = self.provider.channels()?.remove(&ours.channel);
        Ok((ours, theirs.context("the provider knows no such channel")?))
    }

    /// The channel as the subscriber alone tells it.
    pub fn own_channel(&self) -> Result<ChannelReport> {
        self.subscriber.channels()?.into_values().next_back().context("no channel")
    }

    /// What the provider says that its only paying station has.
    pub fn account(&self) -> Result<AccountReport> {
        let accounts: Vec<AccountReport> = self.provider.json(&["stations"])?;
        accounts.into_iter().find(|a| a.bought_octets.0 > 0).context("no station has paid")
    }

    /// What the station used, once what is in flight has arrived and been read.
    pub fn usage_at_rest(&self) -> Result<Usage> {
        let mut last = None;
        eventually("counters at rest", STEP, || {
            std::thread::sleep(Duration::from_millis(400));
            let seen = Some(self.account()?.usage);
            let rests = seen == last;
            last = seen;
            Ok(seen.filter(|_| rests))
        })
    }

    /// What the station used, which is what both far sides counted, to the octet, in any moment in which
    /// nothing flows.
    pub fn usage_as_counted(&self, topology: &Topology) -> Result<Usage> {
        let hosts = [&topology.subscriber, &topology.internet];
        let (account, [subscriber, internet]) = counters::at_rest(hosts, || self.account())?;
        let usage = account.usage;
        ensure!(
            (usage.down.octets.0, usage.up.octets.0) == (subscriber.received, internet.received),
            "{usage:?} is billed, the subscriber counted {subscriber:?}, the internet {internet:?}"
        );
        Ok(usage)
    }

    /// Waits until both sides name the same payments on every channel.
    pub fn wait_for_same_books(&self) -> Result<()> {
        eventually("both sides' books to be the same", STEP, || {
            let (ours, theirs) = (self.subscriber.channels()?, self.provider.channels()?);
            let payments = |it: &ChannelReport| (it.channel, it.paid, it.bought_octets);
            Ok(ours.values().map(payments).eq(theirs.values().map(payments)).then_some(()))
        })
        .with_context(|| self.logs())
    }

    /// Waits until both sides have the channel in this state.
    pub fn wait_for_status(&self, status: ChannelStatus) -> Result<()> {
        eventually(&format!("{status:?}"), STEP, || {
            let (ours, theirs) = self.channel()?;
            Ok((ours.status == status && theirs.status == status).then_some(()))
        })
        .with_context(|| self.logs())
    }

    /// Where the API is.
    pub fn api() -> String {
        format!("http://{EDGE_V4}:8434")
    }

    /// Where both sides keep their data.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// What both sides logged, and what they say of themselves.
    pub fn logs(&self) -> String {
        let told = |name: &str, daemon: &Daemon<'_>| {
            let status = daemon.cli(&["status"]).map(|output| output.stdout).unwrap_or_default();
            let status = String::from_utf8_lossy(&status).into_owned();
            format!("--- {name}\n{}{status}", daemon.log())
        };
        let (provider, subscriber) = (&self.provider, &self.subscriber);
        format!("{}\n{}", told("provider", provider), told("subscriber", subscriber))
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        self.provider.kill();
        self.subscriber.kill();
        let _ = dataplane::purge(&self.instance);
    }
}

/// Flags that name the node, as who reaches it at `address` uses it.
fn source_flags(node: &Node<'_>, address: &str, light: bool) -> Vec<String> {
    if light {
        return vec!["--peer".into(), node.peer(address)];
    }
    let url = node.url(address);
    ["--node", &url, "--node-user", USER, "--node-password", PASSWORD].map(Into::into).into()
}

/// Pins are the machine's, not a namespace's: each world has its own.
pub fn instance() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    own_name(&NEXT.fetch_add(1, Ordering::Relaxed).to_string())
}

/// What the API answers to the subscriber.
pub fn ask(
    topology: &Topology,
    method: &Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(StatusCode, Value)> {
    topology.subscriber.block_on(async || {
        let client = http::plain().timeout(Duration::from_secs(20)).build()?;
        let mut request = client.request(method.clone(), format!("{}{path}", World::api()));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        Ok((answer.status(), answer.json().await?))
    })
}
