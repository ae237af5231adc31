//! The provider's loop: what comes in is handed to the controller in batches; what comes out is
//! stored, then done.

mod act;
mod answer;
mod claim;
mod desk;
mod drift;
mod edge;
mod fleet;
mod guarding;
mod outage;
mod parked;
mod seizing;
mod seizure;
mod start;
mod stop;
mod tending;
mod told;
mod turns;
mod verifying;
mod watch;

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bitcoin::Block;
use bitmesh_core::{
    bitcoin,
    channel::{Batch, Entry, FeeEstimates, ProviderChannel, ProviderEvent},
    controller::{Action, Controller, Input, RequestId, StationsAsk},
    offer::{OFFER_VERSION, Offer, SignedOffer},
};
use serde_json::Value;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tracing::{info, warn};

pub use self::start::{Ready, prepare};
use self::{
    act::Done,
    desk::Desk,
    edge::reconcile,
    fleet::Fleet,
    guarding::Guarding,
    outage::{Patience, outlast},
    stop::Stop,
    told::Told,
    turns::{Event, Timers},
    watch::Watch,
};
use super::{Foundation, now, status::Status, stop_signal, wallet::Answering};
use crate::{
    api::{Ask, Doing, Envelope, MAILBOX_REQUESTS, Pay, Proof, Reply, value},
    chain::ChainEvent,
    config::{NodeLogin, SellConfig, SourceConfig},
    dataplane::{self, Change, Dataplane},
    footprint,
    guard::Guard,
    store::{StoreError, StoreRole},
    telemetry::{self, Notifier},
    wallet::{Role, Seed},
};

/// Requests that are stored in one transaction at most.
const BATCH_REQUESTS: usize = MAILBOX_REQUESTS;
/// How often the kernel's counters are read.
const USAGE_INTERVAL: Duration = Duration::from_millis(100);
/// The same while nothing changes: longer than [`CHECKPOINT_INTERVAL`], with which they are read as well.
/// What runs low is told by the kernel meanwhile.
const USAGE_INTERVAL_IDLE: Duration = Duration::from_millis(1_500);
/// How often usage is written down: what a power cut can make a provider forget.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
const _: () = assert!(CHECKPOINT_INTERVAL.as_millis() < USAGE_INTERVAL_IDLE.as_millis());
/// How often miners' fees are asked for between blocks.
const FEES_INTERVAL: Duration = Duration::from_mins(1);
/// How often it is looked for what the operator should know.
const ALARMS_INTERVAL: Duration = Duration::from_secs(10);
/// How often a part of the kernel's table is compared with the ledger.
const DRIFT_INTERVAL: Duration = Duration::from_secs(1);
/// How often the box's addresses are read again.
const ADDRESSES_INTERVAL: Duration = Duration::from_secs(1);
/// How long an offer holds, in seconds.
const OFFER_SECONDS: u64 = 3_600;
/// Seconds before its end at which an offer is followed by the next.
const OFFER_RENEWAL_SECONDS: u64 = 1_800;
/// Name of the setting that is written to see whether the store works again.
const RECOVERED: &str = "recovered_at";

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
    let mut desk = Desk::new(&config).await?;
    let mut stop = Stop::new(stop_signal()?);
    let mut hangup = signal(SignalKind::hangup())?;
    let mut patience = Patience::default();
    let mut ran = false;
    let mut notifier = Notifier::default();
    let mut beside = JoinSet::new();
    let front = desk.front.clone();
    beside.spawn(telemetry::pulse(move || front.life()));
    loop {
        desk.front.doing(Doing::Starting);
        if ran {
            // Who came while the store's failure was noticed.
            desk.refuse_waiting();
        }
        let lent = (&mut dataplane, &mut guarding, &mut told, &mut desk);
        let start = Session::start(&config, &mut seed, lent, &mut notifier, ran);
        let started = tokio::select! {
            started = start => Some(started),
            _ = stop.asked() => None,
        };
        let failure = match started {
            None => {
                notifier.stopping();
                desk.close().await;
                return Ok(());
            }
            Some(Ok(mut session)) => {
                ran = true;
                patience.reset();
                start::note_sold(&config.common.data_dir);
                session.guarding.selling().await;
                let ended = Box::pin(session.run(&mut stop, &mut hangup)).await;
                // Settings that were read again outlive a session.
                config.clone_from(&session.config);
                if let Err(error) = &ended {
                    // Before those who wait learn that nobody will answer.
                    session.desk.front.failed(&telemetry::told(error), now());
                }
                match ended {
                    Ok(()) => return stop.bounds(Box::pin(session.finish())).await,
                    Err(error) => error,
                }
            }
            Some(Err(error)) => error,
        };
        // Everything but what the kernel enforces starts from the disk.
        if !ran || !failure.is::<StoreError>() {
            return Err(failure);
        }
        let (here, kernel) = ((&mut desk, &mut guarding), (&mut told, &mut dataplane));
        let signals = (&mut stop, &mut hangup, &mut notifier);
        if !outlast(&failure, &mut config, &mut patience, here, kernel, signals).await? {
            desk.close().await;
            return Ok(());
        }
    }
}

/// What a session borrows, and what outlives it.
type Lent<'a> = (&'a mut Dataplane, &'a mut Guarding, &'a mut Told, &'a mut Desk);

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
    /// A block that accounts which come have not seen; none, if the source has none.
    Passed(Option<(u32, Arc<Block>)>),
}

struct Session<'a> {
    config: SellConfig,
    foundation: Foundation,
    controller: Controller,
    dataplane: &'a mut Dataplane,
    guarding: &'a mut Guarding,
    told: &'a mut Told,
    desk: &'a mut Desk,
    /// The fleet that this is an edge of.
    fleet: Option<Fleet>,
    /// Accounts that have come, whose channels the chain is watched for.
    watched_arrivals: u64,
    /// Envelopes whose answer the controller owes, and questions to be answered after the commit.
    pending: HashMap<RequestId, oneshot::Sender<Reply>>,
    questions: Vec<Envelope>,
    /// The same, of the wallet.
    answering: Vec<(Answering, oneshot::Sender<Reply>)>,
    next_request: u64,
    /// Whether somebody who paid found no place in the kernel's table.
    crowded: bool,
    notifier: &'a mut Notifier,
    watch: Watch,
    /// Whether the answer on fees is on its way.
    fees_asked: bool,
    internal: mpsc::Sender<Internal>,
    internals: mpsc::Receiver<Internal>,
    /// Places for payments that are being verified.
    verifying: Arc<Semaphore>,
    /// Nobody gets in any more.
    draining: bool,
    /// Answers that tasks owe.
    answers: JoinSet<()>,
    tasks: JoinSet<()>,
}

impl<'a> Session<'a> {
    async fn start(
        config: &SellConfig,
        seed: &mut Seed,
        (dataplane, guarding, told, desk): Lent<'a>,
        notifier: &'a mut Notifier,
        again: bool,
    ) -> Result<Self> {
        let (place, role) = (config.ledger(seed), StoreRole::Provider);
        let (mut foundation, entries) =
            Foundation::open::<ProviderEvent>(&config.common, &place, role, seed).await?;
        if again {
            foundation.store.set(RECOVERED, &now().to_string()).await?;
        }
        let mut controller = Controller::new(config.common.network, desk.edge_addresses.clone());
        let mut fleet = match &config.fleet {
            Some(fleet) => {
                let store = &mut foundation.store;
                Some(Fleet::join(fleet, store, &mut controller).await?)
            }
            None => None,
        };
        // With blocks first, it is known what is confirmed.
        let is_block = |entry: &&Entry<ProviderEvent>| matches!(entry, Entry::Block { .. });
        let others = entries.iter().filter(|entry| !is_block(entry));
        for entry in entries.iter().filter(is_block).chain(others) {
            controller.replay(entry)?;
        }
        drop(entries);
        footprint::give_back_heap();
        if fleet.is_some() {
            seizure::settle(&mut foundation.store, dataplane, &controller).await?;
        }
        dataplane.set_edge(&desk.edge_addresses, config.api_port)?;
        reconcile(&mut controller, dataplane, &foundation)?;
        if let Some(fleet) = &mut fleet {
            fleet.begin(&mut foundation.store).await?;
        }

        let (internal, internals) = mpsc::channel(64);
        desk.front.checks().retain(|_, _| false);
        let mut session = Self {
            config: config.clone(),
            foundation,
            controller,
            dataplane,
            guarding,
            told,
            desk,
            fleet,
            watched_arrivals: 0,
            pending: HashMap::new(),
            questions: Vec::new(),
            answering: Vec::new(),
            next_request: 0,
            crowded: false,
            notifier,
            watch: Watch::new(),
            fees_asked: false,
            internal,
            internals,
            verifying: verifying::places(),
            draining: false,
            answers: JoinSet::new(),
            tasks: JoinSet::new(),
        };
        session.renew_terms();
        if let Some(fleet) = &config.fleet {
            session.foundation.store.note_hold(fleet.hold.get()).await?;
        }
        // Who paid before is no stranger, although nothing is granted to who holds all its credit.
        session.desk.gate.payers.add_all(session.controller.payers());
        session.desk.open(config).await?;
        Ok(session)
    }

    /// Until it is told to stop, or the store fails.
    async fn run(&mut self, stop: &mut Stop, hangup: &mut Signal) -> Result<()> {
        let mut chain = self.foundation.follow(self.controller.book());
        let mut timers = Timers::new();
        let mut envelopes = Vec::with_capacity(BATCH_REQUESTS);

        self.renew_offer();
        let mut resumed = self.controller.resume();
        if self.foundation.store.went_back().is_some() {
            // What the kernel counted since is nowhere else.
            self.controller.handle(Input::Checkpoint, &mut resumed);
        }
        stop.bounds(self.settle(resumed)).await?;
        // All stations are seen to change the first time.
        let mut out = Batch::default();
        self.read_usage(&mut out);
        stop.bounds(self.settle(out)).await?;
        footprint::give_back_heap();
        self.foundation.store.goes_on(now()).await?;
        self.desk.front.works(now());
        let _ = self.keep_status();
        info!(
            "selling on {} as {}, {} msat per MiB",
            self.config.lan.join(", "),
            self.foundation.wallet.node_public_key(),
            self.config.schedule.tiers.first().map_or(0, |tier| tier.msat_per_mib)
        );
        self.tend();
        self.notifier.ready();
        loop {
            let event =
                self.next(&mut chain, &mut timers, (&mut *stop, hangup), &mut envelopes).await;
            if matches!(event, Event::Stop) {
                return Ok(());
            }
            stop.bounds(Box::pin(self.turn(event, &mut timers, &mut envelopes))).await?;
        }
    }

    /// Writes down the last counters. The programs stay, and hold stations to what they paid for.
    async fn finish(mut self) -> Result<()> {
        self.drain().await?;
        self.desk.close().await;
        self.tasks.shutdown().await;
        self.answers.shutdown().await;
        self.foundation.close().await?;
        info!(
            "stopped; the programs stay on the ports and let through what was paid for. \
             `bitmesh sell --detach` takes them off"
        );
        Ok(())
    }

    /// Stores what was decided, then lets it happen.
    async fn settle(&mut self, out: Batch<ProviderEvent, Action>) -> Result<()> {
        let mut actions = self.commit(out).await?;
        while !actions.is_empty() {
            let mut done = Done::default();
            for action in actions {
                self.perform(action, &mut done);
            }
            let more = self.tell_done(done);
            actions = self.commit(more).await?;
        }
        for (answering, reply) in std::mem::take(&mut self.answering) {
            self.answers.spawn(async move {
                let _ = reply.send(answering.await);
            });
        }
        for envelope in std::mem::take(&mut self.questions) {
            let reply = self.answer(&envelope.ask);
            let _ = envelope.reply.send(reply);
        }
        Ok(())
    }

    async fn commit(&mut self, out: Batch<ProviderEvent, Action>) -> Result<Vec<Action>> {
        let paid = self.forget_checks(&out);
        let actions = {
            let _writing = self.desk.front.writing();
            self.foundation.commit(out, self.controller.book()).await?
        };
        for (channel, sum) in paid {
            self.desk.front.checks().paid(&channel, sum);
        }
        Ok(actions)
    }

    /// What `status` shows, kept for when this loop can't be asked.
    fn keep_status(&mut self) -> Value {
        let status = value(Status::Provider(Box::new(self.status())));
        self.desk.front.keep_status(status.clone());
        status
    }

    fn take(&mut self, envelope: Envelope, out: &mut Batch<ProviderEvent, Action>) {
        if envelope.is_given_up() {
            return;
        }
        let Some(envelope) = self.park(envelope) else { return };
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
            Ask::Pay(pay) => return self.take_payment(pay, envelope.reply, out),
            Ask::ChangeStations(channel, peer, change) => {
                Input::Stations(StationsAsk { request, peer, channel, change, now: now() })
            }
            Ask::OfWallet(ask) => {
                let channels = || self.controller.channels().collect();
                let answering = self.foundation.of_wallet(&ask, channels);
                self.answering.push((answering, envelope.reply));
                return;
            }
            Ask::Close(channel, close) => {
                let own = self.own_for_close(&channel, &close);
                Input::Close { request, channel, close, own }
            }
            ask => {
                self.read_for(&ask, out);
                self.questions.push(Envelope { ask, reply: envelope.reply });
                return;
            }
        };
        self.next_request += 1;
        self.pending.insert(request, envelope.reply);
        self.controller.handle(input, out);
    }

    fn take_payment(
        &mut self,
        pay: Pay,
        reply: oneshot::Sender<Reply>,
        out: &mut Batch<ProviderEvent, Action>,
    ) {
        let Some((pay, reply)) = self.verify_elsewhere(pay, reply) else { return };
        let Pay { channel, payment, station, proof } = pay;
        // Its answer tells what is used now.
        let opener = self.controller.book().get(&channel).map(ProviderChannel::station);
        let other = opener.filter(|opener| Some(*opener) != station);
        for station in [station, other].into_iter().flatten() {
            self.read_one(station.key(), out);
        }
        let verified = match proof {
            Proof::Verified(proof) => Some(proof),
            Proof::None | Proof::Missed => None,
        };
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.pending.insert(request, reply);
        self.controller.handle(Input::Pay { request, channel, payment, verified, station }, out);
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
        if self.desk.read_addresses(self.dataplane).await {
            self.controller.set_edge_addresses(self.desk.edge_addresses.clone());
        }
    }

    /// Follows the ports with what this process has on them: its sockets and the box's addresses.
    async fn changed(&mut self, change: Change) {
        self.desk.changed(change, self.guarding, self.told, self.dataplane).await;
        self.controller.set_edge_addresses(self.desk.edge_addresses.clone());
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
