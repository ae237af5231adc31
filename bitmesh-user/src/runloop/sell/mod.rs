//! The provider's loop: what comes in is handed to the controller in batches; what comes out is
//! stored, then done.

mod answer;
mod claim;
mod edge;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bitcoin::FeeRate;
use bitmesh_core::{
    bitcoin,
    channel::{Batch, ProviderChannel, ProviderEvent},
    controller::{Action, Answer, Controller, DueClaim, Input, Refusal, RequestId, StationsAsk},
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
use tracing::{debug, error, info, warn};

use self::{
    answer::hook_name,
    edge::{edge_addresses, options, reconcile, usage_of, warn_unless_forwarding},
};
use super::{Foundation, now, stop_signal};
use crate::{
    api::{
        ApiError, Ask, Envelope, MAILBOX_REQUESTS, Reply, listen_on, router, serve_admin,
        serve_lan, value,
    },
    chain::ChainEvent,
    config::SellConfig,
    dataplane::{self, Dataplane, StationUsage},
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

/// What came of the actions of a batch.
#[derive(Default)]
struct Done {
    /// Stations that the kernel has no room for.
    refused: BTreeSet<Station>,
    /// Stations whose limits were lowered.
    reclaimed: Vec<Station>,
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
        let mut actions = self.foundation.commit(out).await?;
        while !actions.is_empty() {
            let mut done = Done::default();
            for action in actions {
                self.perform(action, &mut done);
            }
            let more = self.tell_reclaimed(done.reclaimed);
            actions = self.foundation.commit(more).await?;
        }
        for envelope in std::mem::take(&mut self.questions) {
            let reply = self.answer(&envelope.ask);
            let _ = envelope.reply.send(reply);
        }
        Ok(())
    }

    /// Limits were lowered: what was used until then is read, of all that share the credit.
    fn tell_reclaimed(&mut self, stations: Vec<Station>) -> Batch<ProviderEvent, Action> {
        let mut out = Batch::default();
        if !stations.is_empty() {
            let company: BTreeSet<_> =
                stations.iter().flat_map(|station| self.controller.company(*station)).collect();
            let readings = company.into_iter().filter_map(|station| {
                Some((station, usage_of(&self.dataplane.usage(station.key())?)))
            });
            let readings = readings.collect();
            self.controller.handle(Input::Reclaimed { stations, readings }, &mut out);
        }
        out
    }

    fn perform(&mut self, action: Action, done: &mut Done) {
        match action {
            Action::Reclaim { station, limit } => {
                // One that is not in the table holds nothing.
                if let Err(error) = self.dataplane.set_limit(station.key(), limit.0) {
                    debug!("{station} had no lease to reclaim: {error}");
                }
                done.reclaimed.push(station);
            }
            Action::Grant { station, limit, usage, .. } => {
                if let Err(error) = self.grant(station, limit, usage) {
                    warn!("{station} can't use what it bought yet: {error}");
                    done.refused.insert(station);
                    let failed = Input::GrantFailed(station);
                    let mut none = Batch::default();
                    self.controller.handle(failed, &mut none);
                    debug_assert!(none.entries().is_empty(), "a failed grant stores nothing");
                }
            }
            Action::Reply(request, answer) => {
                let Some(reply) = self.pending.remove(&request) else { return };
                let answer = match answer {
                    Ok(Answer::Payment(paid)) if done.refused.contains(&paid.account.station) => {
                        Err(Refusal::TableFull.into())
                    }
                    Ok(Answer::Payment(paid)) => Ok(value(paid)),
                    Ok(Answer::Channel(report)) => Ok(value(report)),
                    Ok(Answer::Account(report)) => Ok(value(report)),
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
        limit: Octets,
        usage: Usage,
    ) -> Result<(), dataplane::DataplaneError> {
        let key = station.key();
        if self.dataplane.usage(key).is_some() {
            return self.dataplane.set_bought(key, limit.0);
        }
        let counts = |counts: Counts| dataplane::Counts {
            octets: counts.octets.0,
            frames: counts.frames,
            refused_octets: counts.refused_octets.0,
            refused_frames: counts.refused_frames,
        };
        let used = StationUsage { up: counts(usage.up), down: counts(usage.down) };
        self.dataplane.insert(key, used, limit.0)
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
            Ask::Pay(channel, payment, peer) => {
                // Its answer tells what is used now.
                let opener = self.controller.book().get(&channel).map(ProviderChannel::station);
                for station in [peer, opener].into_iter().flatten().collect::<BTreeSet<_>>() {
                    if let Some(used) = self.dataplane.usage(station.key()) {
                        self.controller.handle(Input::Reading(station, usage_of(&used)), out);
                    }
                }
                Input::Pay { request, channel, payment, station: peer }
            }
            Ask::ChangeStations(channel, peer, change) => {
                Input::Stations(StationsAsk { request, peer, channel, change, now: now() })
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
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
