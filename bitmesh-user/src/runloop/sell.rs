//! The provider's loop: what comes in is handed to the controller in batches; what comes out is
//! stored, then done.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bitcoin::{Amount, FeeRate};
use bitmesh_common::EDGE_ADDRESS_LIMIT;
use bitmesh_core::{
    bitcoin,
    channel::{Batch, ChannelStatus, Claim, ProviderChannel, ProviderEvent},
    controller::{Action, Answer, Controller, DueClaim, Input, Refusal, RequestId},
    ledger::{Counts, Usage},
    offer::{OFFER_VERSION, Offer, SignedOffer},
    station::Station,
    units::Octets,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use super::{
    Foundation, chain_status, now,
    status::{HookStatus, ProviderStatus, Status},
    stop_signal, wallet_status,
};
use crate::{
    api::{
        ApiError, Ask, Envelope, MAILBOX_REQUESTS, Reply, listen_on, router, serve_admin,
        serve_lan, value,
    },
    chain::ChainEvent,
    config::{SellConfig, UploadHookArg},
    dataplane::{self, Dataplane, Options, StationUsage, TcHook, UploadHook},
    gateway::{Gateway, Interface},
    store::{StoreError, StoreRole},
    wallet::Role,
};

/// Requests that are stored in one transaction at most.
const BATCH_REQUESTS: usize = 256;
/// How often the kernel's counters are read.
const USAGE_INTERVAL: Duration = Duration::from_millis(100);
/// How often usage is written down: what a power cut can make a provider forget.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How often the box's addresses are read again.
const ADDRESSES_INTERVAL: Duration = Duration::from_secs(10);
/// How long an offer holds, in seconds.
const OFFER_SECONDS: u64 = 3_600;
/// Seconds before its end at which an offer is followed by the next.
const OFFER_RENEWAL_SECONDS: u64 = 1_800;
/// Pause after the store failed.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Sells until it is told to stop.
pub async fn sell(config: SellConfig) -> Result<()> {
    let mut ran = false;
    loop {
        let failure = match Session::start(&config).await {
            Ok(session) => {
                ran = true;
                Box::pin(session.run()).await
            }
            Err(error) => Err(error),
        };
        match failure {
            // The kernel goes on enforcing what was granted; everything else starts from the disk.
            Err(error) if ran && error.is::<StoreError>() => {
                error!("{error:#}; trying again from what is on the disk");
                tokio::time::sleep(STORE_RETRY).await;
            }
            ended => return ended,
        }
    }
}

/// Takes the programs off the ports.
pub fn detach(instance: Option<&str>) -> Result<()> {
    let instance = instance.unwrap_or("sell");
    if dataplane::purge(instance)? {
        println!("took the programs of {instance} off their ports; nothing is metered any more");
    } else {
        println!("no programs of {instance} were on any port");
    }
    Ok(())
}

/// What tasks that had to wait hand back to the loop.
enum Internal {
    FeeRate(Vec<DueClaim>, FeeRate),
}

struct Session {
    config: SellConfig,
    foundation: Foundation,
    controller: Controller,
    dataplane: Dataplane,
    gateway: Gateway,
    lan: Vec<Interface>,
    edge_addresses: Vec<IpAddr>,
    /// Envelopes whose answer the controller owes, and questions to be answered after the commit.
    pending: HashMap<RequestId, oneshot::Sender<Reply>>,
    questions: Vec<Envelope>,
    next_request: u64,
    internal: mpsc::Sender<Internal>,
    internals: mpsc::Receiver<Internal>,
    mailbox: mpsc::Receiver<Envelope>,
    tasks: JoinSet<()>,
}

impl Session {
    async fn start(config: &SellConfig) -> Result<Self> {
        let (foundation, entries) =
            Foundation::open::<ProviderEvent>(&config.common, StoreRole::Provider).await?;
        let gateway = Gateway::open()?;
        let mut lan = Vec::new();
        for name in &config.lan {
            lan.push(gateway.interface(name).await?);
        }
        if let Some(wan) = &config.wan {
            gateway.interface(wan).await?;
        }
        warn_unless_forwarding();
        let edge_addresses = edge_addresses(&gateway, &lan).await?;

        let mut controller = Controller::new(config.common.network, edge_addresses.clone());
        for entry in &entries {
            controller.replay(entry)?;
        }
        let dataplane = Dataplane::open(&options(config, &edge_addresses))?;
        reconcile(&mut controller, &dataplane, &foundation)?;
        for hook in dataplane.hooks() {
            info!("{}: {} ({})", hook.interface, hook_name(hook), hook.why);
            if let Some(warning) = &hook.warning {
                warn!("{}: {warning}", hook.interface);
            }
        }

        let (internal, internals) = mpsc::channel(64);
        let (requests, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_admin(&config.common.data_dir, requests.clone())?);
        for interface in &lan {
            let listener = listen_on(interface, config.api_port)?;
            let router = router(requests.clone());
            tasks.spawn(serve_lan(listener, interface.clone(), gateway.clone(), router));
        }
        Ok(Self {
            config: config.clone(),
            foundation,
            controller,
            dataplane,
            gateway,
            lan,
            edge_addresses,
            pending: HashMap::new(),
            questions: Vec::new(),
            next_request: 0,
            internal,
            internals,
            mailbox,
            tasks,
        })
    }

    async fn run(mut self) -> Result<()> {
        let tips = self.controller.book().tips().collect();
        let mut chain = self.foundation.follow(tips);
        let mut usage = every(USAGE_INTERVAL);
        let mut checkpoint = every(CHECKPOINT_INTERVAL);
        let mut addresses = every(ADDRESSES_INTERVAL);
        let mut envelopes = Vec::with_capacity(BATCH_REQUESTS);
        let mut stop = stop_signal()?;

        self.renew_offer();
        let resumed = self.controller.resume();
        self.settle(resumed).await?;
        info!(
            "selling on {} as {}, {} msat per MiB",
            self.config.lan.join(", "),
            self.foundation.wallet.node_public_key(),
            self.config.schedule.tiers.first().map_or(0, |tier| tier.msat_per_mib)
        );
        loop {
            let mut out = Batch::default();
            tokio::select! {
                _ = self.mailbox.recv_many(&mut envelopes, BATCH_REQUESTS) => {
                    for envelope in envelopes.drain(..) {
                        self.take(envelope, &mut out);
                    }
                }
                event = chain.recv() => {
                    let event = event.context("the task that follows the chain has ended")?;
                    self.chain(event, &mut out)?;
                }
                Some(internal) = self.internals.recv() => self.internal(internal, &mut out),
                _ = usage.tick() => self.read_usage(&mut out),
                _ = checkpoint.tick() => {
                    self.renew_offer();
                    // Finished tasks are let go.
                    while self.tasks.try_join_next().is_some() {}
                    self.controller.handle(Input::Checkpoint, &mut out);
                }
                _ = addresses.tick() => self.read_addresses().await,
                () = &mut stop => break,
            }
            self.settle(out).await?;
        }
        self.finish().await
    }

    /// Writes down the last counters. The programs stay, and hold stations to what they paid for.
    async fn finish(mut self) -> Result<()> {
        let mut out = Batch::default();
        self.read_usage(&mut out);
        self.controller.handle(Input::Checkpoint, &mut out);
        self.settle(out).await?;
        self.tasks.shutdown().await;
        self.foundation.close().await?;
        info!(
            "stopped; the programs stay on the ports and let through what was paid for. \
             `bitmesh sell --detach` takes them off"
        );
        Ok(())
    }

    /// Stores what was decided, then lets it happen.
    async fn settle(&mut self, out: Batch<ProviderEvent, Action>) -> Result<()> {
        let actions = self.foundation.commit(out).await?;
        let mut refused = BTreeSet::new();
        for action in actions {
            self.perform(action, &mut refused);
        }
        for envelope in std::mem::take(&mut self.questions) {
            let reply = self.answer(&envelope.ask);
            let _ = envelope.reply.send(reply);
        }
        Ok(())
    }

    fn perform(&mut self, action: Action, refused: &mut BTreeSet<Station>) {
        match action {
            Action::Grant { station, bought, usage } => {
                if let Err(error) = self.grant(station, bought, usage) {
                    warn!("{station} can't use what it bought yet: {error}");
                    refused.insert(station);
                    let failed = Input::GrantFailed(station);
                    let mut none = Batch::default();
                    self.controller.handle(failed, &mut none);
                    debug_assert!(none.entries().is_empty(), "a failed grant stores nothing");
                }
            }
            Action::Reply(request, answer) => {
                let Some(reply) = self.pending.remove(&request) else { return };
                let answer = match answer {
                    Ok(Answer::Payment(paid)) if refused.contains(&paid.account.station) => {
                        Err(Refusal::TableFull.into())
                    }
                    Ok(Answer::Payment(paid)) => Ok(value(paid)),
                    Ok(Answer::Channel(report)) => Ok(value(report)),
                    Err(refusal) => Err(ApiError::from(refusal)),
                };
                // Who asked may have gone; what was stored stays.
                let _ = reply.send(answer);
            }
            Action::Claim(due) => {
                let (source, internal) = (self.foundation.source.clone(), self.internal.clone());
                self.tasks.spawn(async move {
                    let rate = super::fee_rate(source.as_ref()).await;
                    let _ = internal.send(Internal::FeeRate(due, rate)).await;
                });
            }
            Action::Broadcast(tx) => {
                let source = self.foundation.source.clone();
                self.tasks.spawn(async move { super::broadcast(source.as_ref(), tx).await });
            }
        }
    }

    fn grant(
        &mut self,
        station: Station,
        bought: Octets,
        usage: Usage,
    ) -> Result<(), dataplane::DataplaneError> {
        let key = station.key();
        if self.dataplane.usage(key).is_some() {
            return self.dataplane.set_bought(key, bought.0);
        }
        let counts = |counts: Counts| dataplane::Counts {
            octets: counts.octets.0,
            frames: counts.frames,
            refused_octets: counts.refused_octets.0,
            refused_frames: counts.refused_frames,
        };
        let used = StationUsage { up: counts(usage.up), down: counts(usage.down) };
        self.dataplane.insert(key, used, bought.0)
    }

    fn take(&mut self, envelope: Envelope, out: &mut Batch<ProviderEvent, Action>) {
        let request = RequestId(self.next_request);
        let input = match envelope.ask {
            Ask::Open(station, open) => {
                let key_index = self.controller.next_key_index();
                let provider_key =
                    self.foundation.wallet.channel_public_key(Role::Provider, key_index);
                Input::Open { request, station, open, provider_key, now: now() }
            }
            Ask::Pay(channel, payment) => {
                // Its answer tells what is used now.
                let station = self.controller.book().get(&channel).map(ProviderChannel::station);
                let key = station.map(Station::key);
                let used = key.and_then(|key| self.dataplane.usage(key));
                let reading = station.zip(used.as_ref().map(usage_of)).into_iter().collect();
                self.controller.handle(Input::Usage(reading), out);
                Input::Pay { request, channel, payment }
            }
            Ask::Close(channel, close) => Input::Close { request, channel, close },
            ask => {
                self.questions.push(Envelope { ask, reply: envelope.reply });
                return;
            }
        };
        self.next_request += 1;
        self.pending.insert(request, envelope.reply);
        self.controller.handle(input, out);
    }

    fn answer(&mut self, ask: &Ask) -> Reply {
        match ask {
            Ask::Offer => self.controller.offer().map(value).ok_or_else(super::starting),
            Ask::Channel(id) => Ok(value(self.controller.channel(id)?)),
            Ask::Account(station) => Ok(value(self.controller.account(*station))),
            Ask::Status => Ok(value(Status::Provider(Box::new(self.status())))),
            Ask::Channels => Ok(value(self.controller.channels().collect::<Vec<_>>())),
            Ask::Stations => Ok(value(self.controller.accounts().collect::<Vec<_>>())),
            Ask::Wallet => Ok(value(wallet_status(&mut self.foundation))),
            Ask::CloseOwn(_) => Err(super::wrong_role(
                "a provider claims by itself when a subscriber closes or a channel ends",
            )),
            Ask::Budget(_) => Err(super::wrong_role("a provider has no budget: it is paid")),
            Ask::Open(..) | Ask::Pay(..) | Ask::Close(..) => Err(super::starting()),
        }
    }

    fn chain(&mut self, event: ChainEvent, out: &mut Batch<ProviderEvent, Action>) -> Result<()> {
        self.foundation.follow_wallet(&event)?;
        match event {
            ChainEvent::Connected { height, block } => {
                self.controller.handle(Input::BlockConnected { height, block }, out);
            }
            ChainEvent::Disconnected { height } => {
                warn!("the block at height {height} is no longer part of the chain");
                self.controller.handle(Input::BlockDisconnected { height }, out);
            }
            ChainEvent::Synced { .. } => {
                self.controller.handle(Input::Chain { synced: true }, out);
            }
            ChainEvent::Lost { reason } => {
                warn!("{reason}; no channels are opened until it is back, credit stays good");
                self.controller.handle(Input::Chain { synced: false }, out);
            }
        }
        Ok(())
    }

    fn internal(&mut self, internal: Internal, out: &mut Batch<ProviderEvent, Action>) {
        let Internal::FeeRate(due, rate) = internal;
        let raised = due.iter().filter_map(|due| due.replaces).max().map(bumped);
        let rate = raised.map_or(rate, |raised| raised.max(rate));
        // Channels whose part of a claim costs more than it brings wait for lower fees.
        let (due, poor): (Vec<_>, Vec<_>) = due.into_iter().partition(|due| pays_off(due, rate));
        for due in poor {
            let paid = due.input.paid;
            info!("channel {} brings {paid}, less than claiming it costs now", due.channel);
        }
        if due.is_empty() {
            return;
        }
        match self.claim(due, rate) {
            Ok(claimed) => self.controller.handle(claimed, out),
            Err(error) => warn!("{error:#}; it is tried again at the next block"),
        }
    }

    fn claim(&mut self, due: Vec<DueClaim>, rate: FeeRate) -> Result<Input> {
        let wallet = &mut self.foundation.wallet;
        let payout = wallet.unused_address().script_pubkey();
        let inputs = due.iter().map(|due| due.input.clone()).collect();
        let claim = Claim::new(inputs, &payout, rate)?;
        let fee = claim.fee();
        let signatures: Vec<_> = claim
            .sighashes()
            .into_iter()
            .zip(&due)
            .map(|(message, due)| wallet.sign_channel(Role::Provider, due.key_index, message))
            .collect();
        let tx = claim.finish(&signatures).context("a claim lacks a signature")?;
        info!(
            "claiming {} in {}, {fee} for miners",
            due.iter().map(|due| due.input.paid).sum::<Amount>(),
            tx.compute_txid()
        );
        let channels = due.into_iter().map(|due| due.channel).collect();
        Ok(Input::Claimed { channels, tx, fee, fee_rate: rate })
    }

    fn read_usage(&mut self, out: &mut Batch<ProviderEvent, Action>) {
        let readings = self
            .dataplane
            .stations()
            .map(|(key, _, used)| (Station::from(key), usage_of(&used)))
            .collect();
        self.controller.handle(Input::Usage(readings), out);
    }

    async fn read_addresses(&mut self) {
        let found = match edge_addresses(&self.gateway, &self.lan).await {
            Ok(found) => found,
            Err(error) => return warn!("{error}"),
        };
        if found != self.edge_addresses {
            match self.dataplane.set_edge(&found, self.config.api_port) {
                Ok(()) => {
                    self.controller.set_edge_addresses(found.clone());
                    self.edge_addresses = found;
                }
                Err(error) => warn!("the box's new addresses are not free yet: {error}"),
            }
        }
    }

    fn renew_offer(&mut self) {
        let issued_at = now();
        let last = self.controller.offer().map_or(0, |offer| offer.offer.valid_until);
        if last > issued_at + OFFER_RENEWAL_SECONDS {
            return;
        }
        let offer = Offer {
            version: OFFER_VERSION,
            network: self.config.common.network,
            provider: self.foundation.wallet.node_public_key(),
            issued_at,
            valid_until: issued_at + OFFER_SECONDS,
            schedule: self.config.schedule.clone(),
            terms: self.config.terms,
        };
        let signature = self.foundation.wallet.sign_node(offer.message());
        let signed = Input::Offer(SignedOffer { offer, signature });
        let mut none = Batch::default();
        self.controller.handle(signed, &mut none);
        debug_assert!(none.entries().is_empty(), "an offer stores nothing");
    }

    fn status(&mut self) -> ProviderStatus {
        let hooks = self.dataplane.hooks().iter().map(|hook| HookStatus {
            interface: hook.interface.clone(),
            direction: direction(hook.side).into(),
            hook: hook_name(hook),
            reason: hook.why.clone(),
        });
        let mut causes = BTreeMap::new();
        match self.dataplane.stats() {
            Ok(stats) => causes.extend(stats.iter().map(|(c, n)| (c.name().to_owned(), n))),
            Err(error) => warn!("the kernel's causes can't be read: {error}"),
        }
        let accounts: Vec<_> = self.controller.accounts().collect();
        let channels: Vec<_> = self.controller.channels().collect();
        let open =
            |channel: &&bitmesh_core::wire::ChannelReport| channel.status == ChannelStatus::Open;
        ProviderStatus {
            provider: self.foundation.wallet.node_public_key(),
            chain: chain_status(
                self.config.common.network,
                self.controller.book().tip(),
                self.controller.synced(),
            ),
            offer: self.controller.offer().cloned(),
            edge_addresses: self.edge_addresses.clone(),
            hooks: hooks.collect(),
            causes,
            stations_with_credit: count(accounts.iter().filter(|a| a.credit_octets > Octets(0))),
            stations: count(accounts.iter()),
            channels_open: count(channels.iter().filter(open)),
            channels: count(channels.iter()),
            paid_sat: channels.iter().map(|channel| channel.paid.to_sat()).sum(),
            billed_octets: accounts
                .iter()
                .fold(Octets(0), |sum, account| sum.saturating_add(account.usage.billed())),
            wallet: wallet_status(&mut self.foundation),
        }
    }
}

fn count(items: impl Iterator) -> u64 {
    items.fold(0, |count, _| count + 1)
}

fn direction(side: dataplane::Side) -> &'static str {
    match side {
        dataplane::Side::Ingress => "upload",
        dataplane::Side::Egress => "download",
    }
}

fn hook_name(hook: &dataplane::Hook) -> String {
    value(hook.kind).as_str().unwrap_or_default().to_owned()
}

fn usage_of(used: &StationUsage) -> Usage {
    let counts = |counts: &dataplane::Counts| Counts {
        octets: Octets(counts.octets),
        frames: counts.frames,
        refused_octets: Octets(counts.refused_octets),
        refused_frames: counts.refused_frames,
    };
    Usage { up: counts(&used.up), down: counts(&used.down) }
}

fn pays_off(due: &DueClaim, rate: FeeRate) -> bool {
    let payout = due.input.params.remainder_script.as_script();
    Claim::new(vec![due.input.clone()], payout, rate).is_ok()
}

/// What the next claim of the same channels has to pay to replace the last (BIP125, with room).
fn bumped(last: FeeRate) -> FeeRate {
    FeeRate::from_sat_per_kwu(
        last.to_sat_per_kwu().saturating_mul(3).div_ceil(2).saturating_add(250),
    )
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn options(config: &SellConfig, edge_addresses: &[IpAddr]) -> Options {
    Options {
        instance: config.instance.clone(),
        lan: config.lan.clone(),
        upload_hook: match config.upload_hook {
            UploadHookArg::Auto => UploadHook::Auto,
            UploadHookArg::Xdp => UploadHook::XdpNative,
            UploadHookArg::XdpGeneric => UploadHook::XdpGeneric,
            UploadHookArg::Tc => UploadHook::Tc,
        },
        tc_hook: TcHook::Auto,
        table_slots: config.table_slots,
        edge_addresses: edge_addresses.to_vec(),
        api_port: config.api_port,
    }
}

/// The box's own addresses, those of the LAN ports first: link-local ones only of these, and no
/// more than the programs look at.
async fn edge_addresses(gateway: &Gateway, lan: &[Interface]) -> Result<Vec<IpAddr>> {
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

/// The kernel's table may be ahead in usage, never in what was bought: that was on disk first.
fn reconcile(
    controller: &mut Controller,
    dataplane: &Dataplane,
    foundation: &Foundation,
) -> Result<()> {
    let mut readings = Vec::new();
    for (key, bought, used) in dataplane.stations() {
        let station = Station::from(key);
        let known = controller.account(station).bought_octets;
        if Octets(bought) > known {
            bail!(
                "the kernel honours {} for {station}, the ledger in {} knows of {known}: the data \
                 directory is older than the running programs. Restore the newest one; or, if it \
                 is lost, run `bitmesh sell --detach` and start again",
                Octets(bought),
                foundation.data_dir.display()
            );
        }
        readings.push((station, usage_of(&used)));
    }
    let mut none = Batch::default();
    controller.handle(Input::Usage(readings), &mut none);
    debug_assert!(none.entries().is_empty(), "a reading stores nothing by itself");
    Ok(())
}

fn warn_unless_forwarding() {
    let off = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0");
    if off("/proc/sys/net/ipv4/ip_forward") {
        warn!("this box does not forward IPv4: `sysctl -w net.ipv4.ip_forward=1` turns it on");
    }
}
