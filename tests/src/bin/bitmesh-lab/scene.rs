//! The scenes of the play, each with a live table while bytes flow.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::{Amount, Transaction};
use bitmesh_core::{
    channel::{ChannelStatus, SpendKind},
    offer::SignedOffer,
    units::Octets,
    wire::AccountReport,
};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    netns::Namespace,
    topology::{EDGE_FREELOADER_V4, EDGE_OWN, INTERNET_V4, INTERNET_V6, Topology, UPLINK},
    traffic::{Direction, Transfer},
    world::World,
};
use bitmesh_user::{
    http,
    runloop::status::{Phase, SubscriberStatus, WalletStatus},
};

/// What the subscriber's wallet gets to begin with.
const COINS: Amount = Amount::from_sat(100_000);
/// What it adds to its budget when that is spent, in satoshi: 50 MiB.
const TOP_UP: u64 = 1_000;
/// Fastest that a transfer may be, in Mbit/s: slow enough to watch.
const RATE_MBIT: u64 = 100;
/// Time that a scene may take.
const SCENE: Duration = Duration::from_secs(90);
/// Datagrams that the station which never pays sends to the internet.
const UNPAID_DATAGRAMS: usize = 200;

/// A heading between scenes.
pub fn heading(text: &str) {
    println!("\n{text}");
}

/// Where the play is, and what was seen so far.
pub struct Scene<'a> {
    pub topology: &'a Topology,
    started: Instant,
    rows: usize,
    last: Option<(Instant, Octets)>,
    /// Octets billed beyond what was bought, at worst.
    pub unpaid: u64,
}

/// How the station that never pays fared.
pub struct Freeloader {
    /// It read the offer.
    pub offer: bool,
    /// Datagrams that it sent.
    pub sent: usize,
    /// Datagrams that arrived.
    pub arrived: usize,
}

/// How the channel ended.
pub struct Settlement {
    /// The claim that a block holds.
    pub claim: Transaction,
    /// What miners got.
    pub fee: Amount,
    /// What the provider's wallet has.
    pub provider: Amount,
}

impl<'a> Scene<'a> {
    pub fn new(topology: &'a Topology, started: Instant) -> Result<Self> {
        counters::start(&topology.subscriber, UPLINK, &EDGE_OWN)?;
        counters::start(&topology.internet, UPLINK, &EDGE_OWN)?;
        Ok(Self { topology, started, rows: 0, last: None, unpaid: 0 })
    }

    /// Who sells what, by which programs.
    pub fn introduce(world: &World<'_>) -> Result<()> {
        let status = world.provider_status()?;
        for hook in &status.hooks {
            println!("   {:<6} {:<9} {}", hook.interface, hook.direction, hook.hook);
        }
        let offer = status.offer.context("the provider has no offer")?;
        let price = offer.offer.schedule.tiers.first().map_or(0, |tier| tier.msat_per_mib);
        println!("   for sale at {price} msat per MiB by {}", offer.offer.provider);
        Ok(())
    }

    /// The subscriber gets coins, opens a channel, and a block confirms it.
    pub fn open(world: &mut World<'_>) -> Result<()> {
        heading("2. The subscriber funds a channel from its own wallet");
        world.open_channel(COINS)?;
        let channel = world.own_channel()?;
        let funding = channel.funding.context("a funding in a block")?;
        println!("   channel {}", channel.channel);
        println!("   {} sat in {funding}", channel.params.capacity.to_sat());
        println!("   {}", channel.descriptor);
        Ok(())
    }

    /// Bytes both ways, over IPv4 and IPv6.
    pub fn use_both_ways(&mut self, world: &World<'_>) -> Result<()> {
        heading("3. It downloads and uploads, and pays tick by tick");
        for (host, direction, mib) in
            [(INTERNET_V4, Direction::Download, 40), (INTERNET_V6, Direction::Upload, 24)]
        {
            let transfer = self.transfer(host, direction, mib)?;
            self.watch(world, transfer)?;
        }
        Ok(())
    }

    /// More than the budget: cut off, topped up, and on.
    pub fn spend_the_budget_and_top_up(&mut self, world: &World<'_>) -> Result<()> {
        heading("4. A download that its budget does not cover");
        let mut transfer = self.transfer(INTERNET_V4, Direction::Download, 60)?;
        let deadline = Instant::now() + SCENE;
        loop {
            let (status, account) = self.row(world)?;
            let refused = account.usage.refused() > Octets(0);
            if status.phase == Phase::BudgetSpent && refused && account.credit_octets.0 < 1_500 {
                break;
            }
            ensure!(!transfer.ended()?, "it ended, and only a part was paid for");
            ensure!(Instant::now() < deadline, "the budget is not spent");
            std::thread::sleep(Duration::from_secs(1));
        }
        // What passes from here on is in what was left.
        let account = world.account()?;
        let before = counters::read(&self.topology.subscriber)?;
        std::thread::sleep(Duration::from_secs(2));
        let after = counters::read(&self.topology.subscriber)?;
        println!(
            "   cut off: {} octets bought, {} used, {} left (less than a frame)",
            account.bought_octets.0,
            account.usage.billed().0,
            account.credit_octets.0
        );
        // A probe that fits what is left may still pass; it is billed like everything else.
        let trickle = after.received - before.received;
        ensure!(trickle <= account.credit_octets.0, "{trickle} octets passed unpaid");

        heading(&format!("5. {TOP_UP} sat more, and it goes on"));
        let added = world.subscriber.cli(&["budget", "--add", &TOP_UP.to_string()])?;
        ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        self.watch(world, transfer)
    }

    /// The other station asks for the offer, and sends to the internet.
    pub fn try_without_paying(&self, world: &World<'_>) -> Result<Freeloader> {
        heading("6. A second station never pays");
        let offer = self.topology.freeloader.block_on(async || {
            let url = format!("http://{EDGE_FREELOADER_V4}:8434/v1/offer");
            Ok(http::plain().build()?.get(url).send().await?.json::<SignedOffer>().await?)
        });
        let receiver = self.topology.internet.run(|| Ok(UdpSocket::bind((INTERNET_V4, 9_000))?))?;
        receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
        send_datagrams(&self.topology.freeloader)?;
        let mut arrived = 0;
        while receiver.recv_from(&mut [0; 64]).is_ok() {
            arrived += 1;
        }
        let freeloader = Freeloader { offer: offer.is_ok(), sent: UNPAID_DATAGRAMS, arrived };
        println!(
            "   reads the offer: {}; {} datagrams sent to the internet, {arrived} arrived",
            if freeloader.offer { "yes" } else { "no" },
            freeloader.sent
        );
        let dropped = world.provider_status()?.causes.get("unknown").copied().unwrap_or_default();
        println!("   {dropped} frames dropped in the kernel as of unknown stations");
        Ok(freeloader)
    }

    /// The subscriber closes; the provider claims; a block confirms it.
    pub fn leave(world: &mut World<'_>) -> Result<Settlement> {
        heading("7. It leaves: the provider claims what was paid, the rest goes back");
        let closed = world.subscriber.cli(&["close", "--all"])?;
        ensure!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
        let txid = eventually("a claim in the mempool", SCENE, || {
            Ok(world.node.mempool()?.first().copied())
        })
        .with_context(|| world.logs())?;
        let claim = world.node.transaction(txid, None)?;
        world.node.mine(1)?;
        let settled = ChannelStatus::Settled { kind: SpendKind::Claim, depth: 1 };
        world.wait_for_status(settled)?;
        println!("   claim {txid}, {} vB, in block {}", claim.vsize(), world.node.height()?);
        let (_, theirs) = world.channel()?;
        let wallet: WalletStatus = world.provider.json(&["wallet"])?;
        Ok(Settlement {
            claim,
            fee: Amount::from_sat(theirs.closing_fee_sat.context("the claim has no fee")?),
            provider: Amount::from_sat(wallet.confirmed_sat),
        })
    }

    fn transfer(&self, host: &str, direction: Direction, mib: u64) -> Result<Transfer> {
        println!("   iperf3: {direction:?} of {mib} MiB, {host}");
        Transfer::start(&self.topology.subscriber, host, direction, mib, RATE_MBIT)
    }

    fn watch(&mut self, world: &World<'_>, mut transfer: Transfer) -> Result<()> {
        while !transfer.ended()? {
            self.row(world)?;
            std::thread::sleep(Duration::from_secs(1));
        }
        self.row(world)?;
        transfer.finish(SCENE).map(drop)
    }

    /// One row of the live table.
    fn row(&mut self, world: &World<'_>) -> Result<(SubscriberStatus, AccountReport)> {
        let status = world.subscriber_status()?;
        let account = world.account().or_else(|_| {
            status.account.clone().context("the provider has told nothing of the station yet")
        })?;
        let (now, used) = (Instant::now(), account.usage.billed());
        let rate = self.last.map_or(0.0, |(then, before)| {
            let octets = f64::from(u32::try_from(used.0 - before.0).unwrap_or(u32::MAX));
            octets * 8.0 / 1e6 / now.duration_since(then).as_secs_f64()
        });
        self.last = Some((now, used));
        self.unpaid = self.unpaid.max(used.0.saturating_sub(account.bought_octets.0));
        if self.rows.is_multiple_of(12) {
            println!(
                "   {:>5}  {:>11} {:>11} {:>11} {:>11} {:>9} {:>8} {:>6}  state",
                "time", "down", "up", "bought", "credit", "Mbit/s", "sat", "ticks"
            );
        }
        self.rows += 1;
        let channel = status.channel.as_ref();
        println!(
            "   {:>4}s  {:>11} {:>11} {:>11} {:>11} {rate:>9.1} {:>8} {:>6}  {}",
            self.started.elapsed().as_secs(),
            account.usage.down.octets.to_string(),
            account.usage.up.octets.to_string(),
            account.bought_octets.to_string(),
            account.credit_octets.to_string(),
            channel.map_or(0, |channel| channel.paid.to_sat()),
            channel.map_or(0, |channel| channel.commitments),
            match status.phase {
                Phase::Buying => "paying",
                Phase::BudgetSpent => "budget spent",
                Phase::ChannelSpent => "channel empty",
                _ => &status.message,
            },
        );
        Ok((status, account))
    }
}

fn send_datagrams(from: &Namespace) -> Result<()> {
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..UNPAID_DATAGRAMS {
            socket.send_to(b"unpaid", (INTERNET_V4, 9_000))?;
        }
        Ok(())
    })
}
