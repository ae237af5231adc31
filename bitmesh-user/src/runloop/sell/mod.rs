//! The provider's loop: what comes in is handed to the controller in batches; what comes out is
//! stored, then done.

mod act;
mod answer;
mod claim;
mod edge;
mod guarding;
mod start;
mod told;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bitmesh_core::{
    channel::{Batch, ChannelId, FeeEstimates, ProviderChannel, ProviderEvent},
    controller::{Action, Controller, Input, RequestId, StationsAsk},
    offer::{OFFER_VERSION, Offer, SignedOffer},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{Interval, MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

pub use self::start::{Ready, prepare};
use self::{
    act::Done,
    edge::{edge_addresses, reconcile},
    guarding::Guarding,
    told::Told,
    watch::Watch,
};
use super::{Foundation, now, stop_signal, wallet::Answering};
use crate::{
    api::{Ask, Envelope, MAILBOX_REQUESTS, Reply, serve_admin},
    chain::ChainEvent,
    config::{NodeLogin, SellConfig, SourceConfig},
    dataplane::{self, Dataplane},
    gateway::{Gateway, Interface},
    guard::Guard,
    store::{StoreError, StoreRole},
    wallet::{Role, Seed},
};

/// Requests that are stored in one transaction at most.
const BATCH_REQUESTS: usize = 256;
/// How often the kernel's counters are read.
const USAGE_INTERVAL: Duration = Duration::from_millis(100);
/// How often usage is written down: what a power cut can make a provider forget.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How often miners' fees are asked for between blocks.
const FEES_INTERVAL: Duration = Duration::from_mins(1);
/// How often it is looked for what the operator should know.
const ALARMS_INTERVAL: Duration = Duration::from_secs(10);
/// How often the box's addresses are read again.
const ADDRESSES_INTERVAL: Duration = Duration::from_secs(1);
/// How long an offer holds, in seconds.
const OFFER_SECONDS: u64 = 3_600;
/// Seconds before its end at which an offer is followed by the next.
const OFFER_RENEWAL_SECONDS: u64 = 1_800;
/// Pause after the store failed.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Sells until it is told to stop.
pub async fn sell(ready: Ready) -> Result<()> {
    let Ready { mut config, mut dataplane, guard, mut seed } = ready;
    let mut guarding = Guarding::new(Guard::new(guard)?, dataplane.hooks());
    if let SourceConfig::Node { login, .. } = &mut config.common.source
        && let NodeLogin::Cookie(path) = login
    {
        let path = std::mem::take(path);
        *login = NodeLogin::Guarded { path, cookies: guarding.cookies() };
    }
    let events = dataplane.take_events().context("the kernel's events are taken")?;
    let mut told = Told::new(events)?;
    let mut ran = false;
    loop {
        let started =
            Session::start(&config, &mut seed, &mut dataplane, &mut guarding, &mut told).await;
        let failure = match started {
            Ok(session) => {
                ran = true;
                session.guarding.selling().await;
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
    /// What miners take, if the source knows.
    Fees(Option<FeeEstimates>),
    /// What the controller waits for.
    Told(Box<Input>),
}

struct Session<'a> {
    config: SellConfig,
    foundation: Foundation,
    controller: Controller,
    dataplane: &'a mut Dataplane,
    guarding: &'a mut Guarding,
    told: &'a mut Told,
    gateway: Gateway,
    /// Ports that are there, and the tasks that answer on them by index.
    lan: Vec<Interface>,
    listeners: HashMap<u32, AbortHandle>,
    edge_addresses: Vec<IpAddr>,
    /// Envelopes whose answer the controller owes, and questions to be answered after the commit.
    pending: HashMap<RequestId, oneshot::Sender<Reply>>,
    questions: Vec<Envelope>,
    /// The same, of the wallet.
    answering: Vec<(Answering, oneshot::Sender<Reply>)>,
    next_request: u64,
    /// Whether somebody who paid found no place in the kernel's table.
    crowded: bool,
    watch: Watch,
    /// Whether the answer on fees is on its way.
    fees_asked: bool,
    internal: mpsc::Sender<Internal>,
    internals: mpsc::Receiver<Internal>,
    requests: mpsc::Sender<Envelope>,
    mailbox: mpsc::Receiver<Envelope>,
    tasks: JoinSet<()>,
}

impl<'a> Session<'a> {
    async fn start(
        config: &SellConfig,
        seed: &mut Seed,
        dataplane: &'a mut Dataplane,
        guarding: &'a mut Guarding,
        told: &'a mut Told,
    ) -> Result<Self> {
        let (foundation, entries) =
            Foundation::open::<ProviderEvent>(&config.common, StoreRole::Provider, seed).await?;
        let gateway = Gateway::open()?;
        let mut lan = Vec::new();
        for name in &config.lan {
            match gateway.addressed(name).await {
                // Ports of one bridge share its addresses.
                Ok(interface) if lan.contains(&interface) => {}
                Ok(interface) => lan.push(interface),
                // The guard tells when it is back.
                Err(error) => warn!("{error}"),
            }
        }
        let edge_addresses = edge_addresses(&gateway, &lan).await?;

        let mut controller = Controller::new(config.common.network, edge_addresses.clone());
        for entry in &entries {
            controller.replay(entry)?;
        }
        dataplane.set_edge(&edge_addresses, config.api_port)?;
        reconcile(&mut controller, dataplane, &foundation)?;

        let (internal, internals) = mpsc::channel(64);
        let (requests, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_admin(&config.common.data_dir, requests.clone())?);
        let mut session = Self {
            config: config.clone(),
            foundation,
            controller,
            dataplane,
            guarding,
            told,
            gateway,
            lan: Vec::new(),
            listeners: HashMap::new(),
            edge_addresses,
            pending: HashMap::new(),
            questions: Vec::new(),
            answering: Vec::new(),
            next_request: 0,
            crowded: false,
            watch: Watch::new(),
            fees_asked: false,
            internal,
            internals,
            requests,
            mailbox,
            tasks,
        };
        session.renew_terms();
        for interface in lan {
            session.serve(interface)?;
        }
        Ok(session)
    }

    async fn run(mut self) -> Result<()> {
        let mut chain = self.foundation.follow(self.controller.book());
        let mut usage = every(USAGE_INTERVAL);
        let mut checkpoint = every(CHECKPOINT_INTERVAL);
        let mut fees = every(FEES_INTERVAL);
        let mut alarms = every(ALARMS_INTERVAL);
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
                Some(internal) = self.internals.recv() => {
                    let input = self.internal(internal);
                    self.controller.handle(input, &mut out);
                }
                _ = fees.tick() => self.ask_fees(),
                _ = alarms.tick() => self.tell_alarms(),
                events = self.told.next() => {
                    for key in self.told.note(&events?) {
                        self.read_one(key, &mut out);
                    }
                }
                _ = usage.tick() => self.read_usage(&mut out),
                _ = checkpoint.tick() => {
                    // Before anything is decided that is not stored yet.
                    let forgotten = |id: &ChannelId| self.controller.is_forgotten(id);
                    self.foundation.tidy::<ProviderEvent>(forgotten).await?;
                    self.renew_offer();
                    // Finished tasks are let go.
                    while self.tasks.try_join_next().is_some() {}
                    self.read_usage(&mut out);
                    self.controller.handle(Input::Checkpoint, &mut out);
                    if std::mem::take(&mut self.crowded) {
                        self.settle(std::mem::take(&mut out)).await?;
                        self.make_room(&mut out);
                    }
                }
                _ = addresses.tick() => self.read_addresses().await,
                change = self.guarding.change() => {
                    let gone = "the guard has ended; the programs and the belt hold: start again";
                    self.changed(change.context(gone)?).await;
                }
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
        let mut actions = self.foundation.commit(out, self.controller.book()).await?;
        while !actions.is_empty() {
            let mut done = Done::default();
            for action in actions {
                self.perform(action, &mut done);
            }
            let more = self.tell_done(done);
            actions = self.foundation.commit(more, self.controller.book()).await?;
        }
        for (answering, reply) in std::mem::take(&mut self.answering) {
            self.tasks.spawn(async move {
                let _ = reply.send(answering.await);
            });
        }
        for envelope in std::mem::take(&mut self.questions) {
            let reply = self.answer(&envelope.ask);
            let _ = envelope.reply.send(reply);
        }
        Ok(())
    }

    fn take(&mut self, envelope: Envelope, out: &mut Batch<ProviderEvent, Action>) {
        let request = RequestId(self.next_request);
        let input = match envelope.ask {
            Ask::Open(station, from, open) => {
                self.opens(station.key(), from);
                let key_index = self.controller.next_key_index();
                let provider_key =
                    self.foundation.wallet.channel_public_key(Role::Provider, key_index);
                Input::Open { request, station, open, provider_key, now: now() }
            }
            Ask::Fund(channel, funding) => Input::Fund { request, channel, tx: funding.tx },
            Ask::Pay(channel, payment, peer) => {
                // Its answer tells what is used now.
                let opener = self.controller.book().get(&channel).map(ProviderChannel::station);
                for station in [peer, opener].into_iter().flatten().collect::<BTreeSet<_>>() {
                    self.read_one(station.key(), out);
                }
                Input::Pay { request, channel, payment, station: peer }
            }
            Ask::ChangeStations(channel, peer, change) => {
                Input::Stations(StationsAsk { request, peer, channel, change, now: now() })
            }
            Ask::OfWallet(ask) => {
                let channels: Vec<_> = self.controller.channels().collect();
                let answering = self.foundation.of_wallet(&ask, &channels);
                self.answering.push((answering, envelope.reply));
                return;
            }
            Ask::Close(channel, close) => {
                let own = self.own_for_close(&channel, &close);
                Input::Close { request, channel, close, own }
            }
            ask => {
                self.questions.push(Envelope { ask, reply: envelope.reply });
                return;
            }
        };
        self.next_request += 1;
        self.pending.insert(request, envelope.reply);
        self.controller.handle(input, out);
    }

    fn chain(&mut self, event: ChainEvent, out: &mut Batch<ProviderEvent, Action>) -> Result<()> {
        self.foundation.follow_wallet(&event)?;
        match event {
            ChainEvent::Connected { height, block } => {
                self.watch.block();
                if self.controller.synced() {
                    self.tasks.spawn(self.foundation.rebroadcast());
                }
                self.controller.handle(Input::BlockConnected { height, block }, out);
                if self.controller.synced() {
                    self.ask_fees();
                }
            }
            ChainEvent::Disconnected { height } => {
                warn!("the block at height {height} is no longer part of the chain");
                self.controller.handle(Input::BlockDisconnected { height }, out);
            }
            ChainEvent::Synced { .. } => {
                self.watch.synced(true);
                self.controller.handle(Input::Chain { synced: true }, out);
                let tip = self.controller.book().tip();
                if self.controller.offer().is_some_and(|offer| offer.offer.height != tip) {
                    self.issue_offer();
                }
                self.ask_fees();
            }
            ChainEvent::Lost { reason } => {
                warn!("{reason}; no channels are opened until it is back, credit stays good");
                self.watch.synced(false);
                self.controller.handle(Input::Chain { synced: false }, out);
            }
        }
        Ok(())
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
        let last = self.controller.offer().map_or(0, |offer| offer.offer.valid_until);
        if last <= now() + OFFER_RENEWAL_SECONDS {
            self.issue_offer();
        }
    }

    fn issue_offer(&mut self) {
        let issued_at = now();
        let offer = Offer {
            version: OFFER_VERSION,
            network: self.config.common.network,
            provider: self.foundation.wallet.node_public_key(),
            issued_at,
            valid_until: issued_at + OFFER_SECONDS,
            height: self.controller.book().tip(),
            schedule: self.config.schedule.clone(),
            terms: self.config.terms,
        };
        let signature = self.foundation.wallet.sign_node(offer.message());
        let signed = Input::Offer(SignedOffer { offer, signature });
        let mut none = Batch::default();
        self.controller.handle(signed, &mut none);
        debug_assert!(none.entries().is_empty(), "an offer stores nothing");
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
