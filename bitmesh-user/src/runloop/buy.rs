//! The subscriber's loop: opens a channel, counts what it uses, signs for exactly that, and leaves
//! with its change.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bitcoin::{Amount, FeeRate, secp256k1::Secp256k1};
use bitmesh_core::{
    bitcoin,
    buyer::{Action, Buyer, DueRefund},
    channel::{
        Batch, ChannelId, ChannelParams, ChannelStatus, Refund, SubscriberChannel, SubscriberEvent,
        close_digest,
    },
    offer::SignedOffer,
    payer::{Next, Payer},
    units::Octets,
    wire::{AccountReport, ChannelReport, CloseRequest, OpenRequest, PaymentReply, PaymentRequest},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use super::{
    Foundation, chain_status, now, provider_url,
    status::{Phase, Status, SubscriberStatus},
    stop_signal, wallet_status,
};
use crate::{
    api::{
        ApiError, Ask, ClientError, Envelope, MAILBOX_REQUESTS, Provider, Reply, serve_admin, value,
    },
    chain::ChainEvent,
    config::BuyConfig,
    dataplane::{Mac, Observer},
    gateway::Gateway,
    store::StoreRole,
    wallet::Role,
};

/// How often the own count is read and payments are decided.
const COUNT_INTERVAL: Duration = Duration::from_millis(10);
/// Pause before a request that failed is made again.
const RETRY: Duration = Duration::from_millis(500);
/// How often the provider's view is fetched while nothing is paid.
const ACCOUNT_INTERVAL: Duration = Duration::from_secs(2);
/// How often a close is asked for until it is settled.
const CLOSE_INTERVAL: Duration = Duration::from_secs(5);
/// Name under which the budget is stored.
const BUDGET: &str = "budget_sat";

/// Buys until it is told to stop.
pub async fn buy(config: BuyConfig) -> Result<()> {
    let mut session = Session::start(config).await?;
    session.run().await?;
    session.tasks.shutdown().await;
    session.foundation.close().await?;
    info!(
        "stopped; the channel stays open. `bitmesh buy` goes on with it, `bitmesh close` after that ends it"
    );
    Ok(())
}

/// Answers of the provider and the node, from the tasks that waited for them.
enum Internal {
    Offer(Result<SignedOffer, ClientError>),
    Opened(Box<(ChannelParams, SignedOffer)>, Result<Box<ChannelReport>, ClientError>),
    FundingRate(ChannelId, FeeRate),
    RefundRate(Vec<DueRefund>, FeeRate),
    Account(Octets, Instant, Result<AccountReport, ClientError>),
    Paid(Amount, Octets, Instant, Result<PaymentReply, ClientError>),
    Closing(Result<(), ClientError>),
}

/// What the operator wants of the daemon.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intent {
    /// To have a channel and pay on it.
    Buy,
    /// To open no other after the one that is closing.
    Leave,
}

struct Session {
    config: BuyConfig,
    foundation: Foundation,
    buyer: Buyer,
    provider: Provider,
    gateway: Gateway,
    started: Instant,
    synced: bool,
    budget: Amount,
    offer: Option<SignedOffer>,
    /// The channel that is paid on, and what belongs to it.
    active: Option<ChannelId>,
    payer: Option<Payer>,
    observer: Option<Observer>,
    account: Option<AccountReport>,
    round_trip: Duration,
    /// The newest payment was signed and not acknowledged.
    unacknowledged: bool,
    /// A request is on its way; the next one waits for its answer.
    busy: bool,
    not_before: Instant,
    account_due: Instant,
    intent: Intent,
    phase: Phase,
    message: String,
    internal: mpsc::Sender<Internal>,
    internals: mpsc::Receiver<Internal>,
    mailbox: mpsc::Receiver<Envelope>,
    tasks: JoinSet<()>,
}

impl Session {
    async fn start(config: BuyConfig) -> Result<Self> {
        let (mut foundation, entries) =
            Foundation::open::<SubscriberEvent>(&config.common, StoreRole::Subscriber).await?;
        let mut buyer = Buyer::new(config.common.network);
        for entry in &entries {
            buyer.replay(entry)?;
        }
        let stored = foundation.store.setting(BUDGET).await?;
        let stored = stored.map(|sat| sat.parse().context("the stored budget")).transpose()?;
        let budget = stored.map(Amount::from_sat).or(config.budget).unwrap_or(config.capacity);
        foundation.store.set(BUDGET, &budget.to_sat().to_string()).await?;
        let gateway = Gateway::open()?;
        let url = match &config.provider {
            Some(url) => url.clone(),
            None => provider_url(gateway.default_gateway().await?),
        };
        let active = buyer
            .book()
            .iter()
            .find(|(_, channel)| channel.url() == url && is_alive(channel, buyer.book().tip()))
            .map(|(id, _)| *id);
        let (internal, internals) = mpsc::channel(16);
        let (requests, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_admin(&config.common.data_dir, requests)?);
        let unacknowledged = active
            .and_then(|id| buyer.book().get(&id))
            .is_some_and(|channel| channel.best().is_some());
        let now = Instant::now();
        info!("buying from {url}");
        Ok(Self {
            provider: Provider::new(url)?,
            config,
            foundation,
            buyer,
            gateway,
            started: now,
            synced: false,
            budget,
            offer: None,
            active,
            payer: None,
            observer: None,
            account: None,
            round_trip: Duration::ZERO,
            unacknowledged,
            busy: false,
            not_before: now,
            account_due: now,
            intent: Intent::Buy,
            phase: Phase::ProviderUnreachable,
            message: "looking for the provider".into(),
            internal,
            internals,
            mailbox,
            tasks,
        })
    }

    async fn run(&mut self) -> Result<()> {
        let tips = self.buyer.book().tips().collect();
        let mut chain = self.foundation.follow(tips);
        let mut count = interval(COUNT_INTERVAL);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = stop_signal()?;
        let resumed = self.buyer.resume();
        self.settle(resumed).await?;
        loop {
            let mut out = Batch::default();
            tokio::select! {
                Some(envelope) = self.mailbox.recv() => {
                    let reply = self.answer(&envelope.ask, &mut out).await;
                    // A change is told after it is durable.
                    self.settle(out).await?;
                    let _ = envelope.reply.send(reply);
                    continue;
                }
                event = chain.recv() => {
                    let event = event.context("the task that follows the chain has ended")?;
                    self.chain(event, &mut out)?;
                }
                Some(internal) = self.internals.recv() => self.internal(internal, &mut out).await?,
                _ = count.tick() => self.drive(&mut out),
                () = &mut stop => return Ok(()),
            }
            self.settle(out).await?;
        }
    }

    async fn settle(&mut self, out: Batch<SubscriberEvent, Action>) -> Result<()> {
        for action in self.foundation.commit(out).await? {
            match action {
                Action::Broadcast(tx) => self.broadcast(tx),
                Action::Pay(channel, paid, signature) if Some(channel) == self.active => {
                    self.send_payment(channel, PaymentRequest { paid, signature });
                }
                // Of a channel with another provider, or one that is closing.
                Action::Pay(..) => {}
            }
        }
        Ok(())
    }

    fn broadcast(&mut self, tx: bitcoin::Transaction) {
        let source = self.foundation.source.clone();
        self.tasks.spawn(async move { super::broadcast(source.as_ref(), tx).await });
    }

    /// One step of whatever comes next. Runs every [`COUNT_INTERVAL`].
    fn drive(&mut self, out: &mut Batch<SubscriberEvent, Action>) {
        let counted = self.count();
        if self.busy || Instant::now() < self.not_before || !self.synced {
            return;
        }
        let Some(id) = self.active else {
            if self.intent == Intent::Buy {
                self.open();
            }
            return;
        };
        let tip = self.buyer.book().tip();
        let Some(channel) = self.buyer.book().get(&id) else { return };
        match channel.status(tip) {
            ChannelStatus::Unfunded if channel.funding_tx().is_none() => self.ask_funding_rate(id),
            ChannelStatus::Unfunded => {
                self.say(Phase::Confirming, "the funding waits for a block");
            }
            ChannelStatus::Confirming { have, need } => {
                self.say(Phase::Confirming, format!("the funding has {have} of {need} blocks"));
            }
            ChannelStatus::Open => self.pay(id, counted, out),
            ChannelStatus::Closing => self.ask_to_close(id),
            ChannelStatus::Settled { .. } | ChannelStatus::Closed { .. } => {
                self.settled(id);
            }
        }
    }

    fn count(&mut self) -> Octets {
        let (Some(observer), Some(payer)) = (&self.observer, &mut self.payer) else {
            return Octets(0);
        };
        let (up, down) = observer.read();
        let counted = Octets(up.saturating_add(down));
        let elapsed = self.started.elapsed().as_millis();
        payer.count(counted, u64::try_from(elapsed).unwrap_or(u64::MAX));
        counted
    }

    fn open(&mut self) {
        let provider = self.provider.clone();
        let Some(offer) = self.offer.clone().filter(|offer| offer.offer.valid_until > now()) else {
            return self.ask(async move { Internal::Offer(provider.offer().await) });
        };
        if let Err(refusal) = self.acceptable(&offer) {
            self.offer = None;
            self.not_before = Instant::now() + ACCOUNT_INTERVAL;
            return self.say(Phase::OfferRefused, refusal);
        }
        let capacity = self.config.capacity;
        let balance = self.foundation.wallet.balance();
        if balance.confirmed <= capacity {
            let address = self.foundation.wallet.unused_address();
            let missing = capacity.checked_sub(balance.confirmed).unwrap_or_default();
            let pending = balance.pending;
            self.not_before = Instant::now() + RETRY;
            return self.say(
                Phase::NeedsFunds,
                format!(
                    "send {} sat and a little for fees to {address} ({} sat are on their way)",
                    missing.to_sat(),
                    pending.to_sat()
                ),
            );
        }
        let index = self.buyer.next_key_index();
        let request = OpenRequest {
            offer: offer.offer.id(),
            subscriber: self.foundation.wallet.channel_public_key(Role::Subscriber, index),
            capacity,
            expiry_height: self.buyer.book().tip() + self.config.lifetime,
            remainder_script: self.foundation.wallet.remainder_script(),
        };
        let params = ChannelParams {
            network: offer.offer.network,
            offer: request.offer,
            subscriber: request.subscriber,
            // Replaced by the key in the answer.
            provider: request.subscriber,
            expiry_height: request.expiry_height,
            capacity,
            remainder_script: request.remainder_script.clone(),
            schedule: offer.offer.schedule.clone(),
            confirmations: offer.offer.terms.confirmations,
            tick_max: offer.offer.terms.tick_max,
        };
        self.ask(async move {
            let answer = provider.open(&request).await;
            Internal::Opened(Box::new((params, offer)), answer.map(Box::new))
        });
    }

    fn acceptable(&self, offer: &SignedOffer) -> Result<(), String> {
        let network = self.config.common.network;
        offer
            .verify(&Secp256k1::verification_only(), network, now())
            .map_err(|error| error.to_string())?;
        let price = offer.offer.schedule.tiers.iter().map(|tier| tier.msat_per_mib).max();
        if let (Some(price), Some(limit)) = (price, self.config.price_max)
            && price > limit
        {
            return Err(format!("the price is {price} msat per MiB, over --price-max {limit}"));
        }
        let terms = &offer.offer.terms;
        let capacity = self.config.capacity;
        if capacity < terms.capacity_min || capacity > terms.capacity_max {
            return Err(format!(
                "this provider takes channels of {} to {} sat: choose --capacity in between",
                terms.capacity_min.to_sat(),
                terms.capacity_max.to_sat()
            ));
        }
        let lifetimes = terms.lifetime_min_blocks..=terms.lifetime_max_blocks;
        if !lifetimes.contains(&self.config.lifetime) {
            return Err(format!(
                "this provider takes channels of {} to {} blocks: choose --lifetime in between",
                terms.lifetime_min_blocks, terms.lifetime_max_blocks
            ));
        }
        Ok(())
    }

    fn ask_funding_rate(&mut self, id: ChannelId) {
        let source = self.foundation.source.clone();
        self.ask(async move { Internal::FundingRate(id, super::fee_rate(source.as_ref()).await) });
    }

    fn pay(&mut self, id: ChannelId, counted: Octets, out: &mut Batch<SubscriberEvent, Action>) {
        let Some(channel) = self.buyer.book().get(&id) else { return };
        if channel.disputed().is_some() {
            return self.say(
                Phase::Disputed,
                "the provider bills more than was counted here; nothing more is paid. \
                 `bitmesh close --all` fetches the rest back",
            );
        }
        if let (true, Some((paid, signature))) = (self.unacknowledged, channel.best()) {
            return self.send_payment(id, PaymentRequest { paid, signature });
        }
        if self.payer.is_none() || Instant::now() >= self.account_due {
            let provider = self.provider.clone();
            let sent = Instant::now();
            self.account_due = sent + ACCOUNT_INTERVAL;
            return self
                .ask(async move { Internal::Account(counted, sent, provider.account().await) });
        }
        let Some(payer) = &self.payer else { return };
        let paid = channel.paid();
        let elsewhere = self.spent().checked_sub(paid).unwrap_or_default();
        let budget = self.budget.checked_sub(elsewhere).unwrap_or_default();
        let params = channel.params();
        match payer.next(paid, params.payable(), budget, &params.schedule) {
            Next::Wait => self.say(Phase::Buying, "paying as it is used"),
            Next::BudgetSpent => self.say(
                Phase::BudgetSpent,
                format!(
                    "the budget of {} sat is spent; `bitmesh budget --add SAT` goes on",
                    self.budget.to_sat()
                ),
            ),
            Next::ChannelSpent => self.say(
                Phase::ChannelSpent,
                "the channel is empty; `bitmesh close --all`, then `bitmesh buy` opens a new one",
            ),
            Next::Pay(sum) => match channel.payment(sum, self.buyer.book().tip()) {
                Ok(message) => {
                    let index = channel.key_index();
                    let signature =
                        self.foundation.wallet.sign_channel(Role::Subscriber, index, message);
                    self.unacknowledged = true;
                    self.buyer.payment_signed(id, sum, signature, out);
                    self.say(Phase::Buying, "paying as it is used");
                }
                Err(error) => self.say(Phase::Closing, error.to_string()),
            },
        }
    }

    fn send_payment(&mut self, channel: ChannelId, payment: PaymentRequest) {
        let provider = self.provider.clone();
        let counted = self.payer.as_ref().map(Payer::counted).unwrap_or_default();
        let sent = Instant::now();
        self.ask(async move {
            let answer = provider.pay(channel, &payment).await;
            Internal::Paid(payment.paid, counted, sent, answer)
        });
    }

    fn ask_to_close(&mut self, id: ChannelId) {
        self.say(Phase::Closing, "waiting for the provider's claim to be in a block");
        self.not_before = Instant::now() + CLOSE_INTERVAL;
        let Some(channel) = self.buyer.book().get(&id) else { return };
        let index = channel.key_index();
        let signature =
            self.foundation.wallet.sign_channel(Role::Subscriber, index, close_digest(&id));
        let provider = self.provider.clone();
        self.ask(async move {
            Internal::Closing(provider.close(id, &CloseRequest { signature }).await.map(drop))
        });
    }

    fn settled(&mut self, id: ChannelId) {
        self.say(Phase::Closed, "settled; the rest is back in the wallet");
        if self.intent == Intent::Buy {
            info!("channel {id} is settled");
            (self.active, self.payer, self.observer) = (None, None, None);
        }
    }

    /// Starts a request; nothing else is asked for until its answer is there.
    fn ask(&mut self, request: impl Future<Output = Internal> + Send + 'static) {
        self.busy = true;
        let internal = self.internal.clone();
        self.tasks.spawn(async move {
            let answer = request.await;
            let _ = internal.send(answer).await;
        });
        // Finished tasks are let go as new ones start.
        while self.tasks.try_join_next().is_some() {}
    }

    async fn internal(
        &mut self,
        internal: Internal,
        out: &mut Batch<SubscriberEvent, Action>,
    ) -> Result<()> {
        // Refunds are asked for beside everything else.
        self.busy &= matches!(internal, Internal::RefundRate(..));
        match internal {
            Internal::Offer(Ok(offer)) => self.offer = Some(offer),
            Internal::Opened(wanted, Ok(report)) => {
                let (params, offer) = *wanted;
                self.opened(params, &offer, &report, out);
            }
            Internal::FundingRate(id, rate) => self.fund(id, rate, out),
            Internal::RefundRate(due, rate) => self.refund(due, rate, out),
            Internal::Account(counted, sent, Ok(account)) => {
                if self.observer.is_none() {
                    self.observe(&account).await?;
                    self.account_due = Instant::now();
                } else {
                    self.report(account, counted, sent, out);
                }
            }
            Internal::Paid(paid, counted, sent, Ok(reply)) => {
                if reply.paid >= paid {
                    self.unacknowledged = false;
                }
                self.report(reply.account, counted, sent, out);
            }
            Internal::Closing(Ok(())) => {}
            Internal::Offer(Err(error))
            | Internal::Opened(_, Err(error))
            | Internal::Account(_, _, Err(error))
            | Internal::Closing(Err(error)) => self.failed(&error),
            Internal::Paid(_, _, _, Err(error)) => self.payment_failed(&error),
        }
        Ok(())
    }

    fn opened(
        &mut self,
        mut params: ChannelParams,
        offer: &SignedOffer,
        report: &ChannelReport,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        params.provider = report.params.provider;
        if params.validate().is_err() || params.id() != report.channel {
            self.not_before = Instant::now() + ACCOUNT_INTERVAL;
            self.offer = None;
            return self.say(
                Phase::OfferRefused,
                "the provider answered with other terms than were asked for; buy elsewhere",
            );
        }
        let url = self.provider.url().to_owned();
        let id = self.buyer.negotiated(params, offer.offer.provider, url, out);
        info!("channel {id} agreed on");
        self.active = Some(id);
        self.unacknowledged = false;
    }

    fn fund(&mut self, id: ChannelId, rate: FeeRate, out: &mut Batch<SubscriberEvent, Action>) {
        let Some(channel) = self.buyer.book().get(&id) else { return };
        let (script, capacity) = (channel.funding_script().clone(), channel.params().capacity);
        match self.foundation.wallet.fund(script, capacity, rate, now()) {
            Ok(tx) => {
                info!(
                    "funding channel {id} with {} sat in {}",
                    capacity.to_sat(),
                    tx.compute_txid()
                );
                if !self.buyer.funding_signed(id, tx, out) {
                    error!("the wallet's transaction does not fund channel {id}");
                }
            }
            Err(error) => {
                self.not_before = Instant::now() + RETRY;
                let address = self.foundation.wallet.unused_address();
                self.say(Phase::NeedsFunds, format!("{error}; send more to {address}"));
            }
        }
    }

    fn refund(
        &mut self,
        due: Vec<DueRefund>,
        rate: FeeRate,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        for due in due {
            let Some(channel) = self.buyer.book().get(&due.channel) else { continue };
            let wallet = &mut self.foundation.wallet;
            let mut signed = || -> Result<bitcoin::Transaction> {
                let script = wallet.remainder_script();
                let refund = Refund::new(channel.params(), due.outpoint, &script, rate)?;
                let message = refund.sighash().context("a refund without a message")?;
                let own = wallet.sign_channel(Role::Subscriber, due.key_index, message);
                refund.finish(own).context("a refund without a witness")
            };
            match signed() {
                Ok(tx) => {
                    info!("refunding channel {} in {}", due.channel, tx.compute_txid());
                    self.buyer.refund_signed(due.channel, tx, out);
                }
                Err(error) => warn!("channel {} is not refunded yet: {error:#}", due.channel),
            }
        }
    }

    /// Starts the own count, by the provider's rule of what is free.
    async fn observe(&mut self, account: &AccountReport) -> Result<()> {
        let address = host_of(self.provider.url()).context("the provider's URL has no address")?;
        let interface = self.gateway.interface_to(address).await?;
        let station = self.gateway.station(interface.index, address).await?;
        let mac = station.map(|station| Mac::new(station.key().mac().octets()));
        let observer =
            Observer::open(&self.config.instance, &interface.name, &account.edge_addresses, mac)?;
        info!("counting on {}", interface.name);
        self.observer = Some(observer);
        let channel = self.active.and_then(|id| self.buyer.book().get(&id));
        let tick_max = channel.map(|channel| channel.params().tick_max).unwrap_or_default();
        self.payer = Some(Payer::new(tick_max));
        self.count();
        Ok(())
    }

    fn report(
        &mut self,
        account: AccountReport,
        counted: Octets,
        sent: Instant,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        self.count();
        let round_trip = sent.elapsed();
        let (bought, used) = (account.bought_octets, account.usage.billed());
        self.account = Some(account);
        self.account_due = Instant::now() + ACCOUNT_INTERVAL;
        self.round_trip = (self.round_trip * 3 + round_trip) / 4;
        let Some(payer) = &mut self.payer else { return };
        let round_trip_ms = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX).max(1);
        let judged = payer.report(bought, used, counted, round_trip_ms);
        if let (Err(dispute), Some(id)) = (judged, self.active) {
            warn!("{dispute}; nothing more is paid");
            self.buyer.disputed(id, dispute, out);
        }
    }

    fn failed(&mut self, error: &ClientError) {
        self.not_before = Instant::now() + RETRY;
        let phase = match error {
            ClientError::Unreachable { .. } | ClientError::Broken { .. } => {
                Phase::ProviderUnreachable
            }
            ClientError::Refused { .. } => Phase::OfferRefused,
        };
        if phase == Phase::OfferRefused {
            // It may be the offer that ended.
            self.offer = None;
        }
        if self.phase != Phase::Closing {
            self.say(phase, error.to_string());
        }
    }

    fn payment_failed(&mut self, error: &ClientError) {
        self.not_before = Instant::now() + RETRY;
        match error {
            // The provider sees the block later than we do: the same payment again.
            ClientError::Refused { status: 425, .. } => {
                self.say(Phase::Confirming, error.to_string());
            }
            ClientError::Refused { status: 503, .. } => {
                self.say(Phase::ProviderUnreachable, error.to_string());
            }
            ClientError::Refused { body, .. } if body.error == "closed" => {
                self.unacknowledged = false;
                self.say(Phase::Closing, error.to_string());
            }
            ClientError::Refused { .. } => self.say(Phase::OfferRefused, error.to_string()),
            _ => self.say(Phase::ProviderUnreachable, error.to_string()),
        }
    }

    fn chain(&mut self, event: ChainEvent, out: &mut Batch<SubscriberEvent, Action>) -> Result<()> {
        self.foundation.follow_wallet(&event)?;
        match event {
            ChainEvent::Connected { height, block } => {
                self.buyer.connect(height, &block, out);
                if self.synced {
                    for tx in self.buyer.unconfirmed() {
                        self.broadcast(tx);
                    }
                }
                let due = self.buyer.refunds_due();
                if !due.is_empty() {
                    let (source, internal) =
                        (self.foundation.source.clone(), self.internal.clone());
                    self.tasks.spawn(async move {
                        let rate = super::fee_rate(source.as_ref()).await;
                        let _ = internal.send(Internal::RefundRate(due, rate)).await;
                    });
                }
            }
            ChainEvent::Disconnected { height } => {
                warn!("the block at height {height} is no longer part of the chain");
                self.buyer.disconnect(height, out);
            }
            ChainEvent::Synced { .. } => self.synced = true,
            ChainEvent::Lost { reason } => {
                warn!("{reason}");
                // Payments go on: they need no chain until the channel ends.
            }
        }
        Ok(())
    }

    async fn answer(&mut self, ask: &Ask, out: &mut Batch<SubscriberEvent, Action>) -> Reply {
        match ask {
            Ask::Status => Ok(value(Status::Subscriber(Box::new(self.status())))),
            Ask::Channels => Ok(value(self.buyer.channels().collect::<Vec<_>>())),
            Ask::Wallet => Ok(value(wallet_status(&mut self.foundation))),
            Ask::Stations => Err(super::wrong_role("a subscriber has no stations: it is one")),
            Ask::Budget(change) => {
                let budget = change.apply(self.budget).ok_or_else(|| {
                    ApiError::new(
                        axum::http::StatusCode::UNPROCESSABLE_ENTITY,
                        "budget",
                        "that is more bitcoin than there is",
                        "choose a smaller budget",
                    )
                })?;
                let stored = budget.to_sat().to_string();
                self.foundation.store.set(BUDGET, &stored).await.map_err(|error| {
                    ApiError::new(
                        axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                        "store",
                        error.to_string(),
                        "free some disk space, then try again",
                    )
                })?;
                self.budget = budget;
                Ok(value(Status::Subscriber(Box::new(self.status()))))
            }
            Ask::CloseOwn(id) => self.close_own(*id, out),
            _ => Err(super::wrong_role("a subscriber sells nothing")),
        }
    }

    fn close_own(&mut self, id: ChannelId, out: &mut Batch<SubscriberEvent, Action>) -> Reply {
        let channel =
            self.buyer.book().get(&id).ok_or(bitmesh_core::controller::Refusal::UnknownChannel)?;
        if is_usable(channel, self.buyer.book().tip()) {
            self.buyer.close(id, out);
        }
        self.intent = Intent::Leave;
        self.not_before = Instant::now();
        let report = self.buyer.channels().find(|report| report.channel == id);
        Ok(value(report))
    }

    fn spent(&self) -> Amount {
        self.buyer.book().iter().map(|(_, channel)| channel.paid()).sum()
    }

    fn say(&mut self, phase: Phase, message: impl Into<String>) {
        let message = message.into();
        if message != self.message {
            info!("{message}");
            self.message = message;
        }
        self.phase = phase;
    }

    fn status(&mut self) -> SubscriberStatus {
        let tip = self.buyer.book().tip();
        let payer = self.payer.as_ref();
        SubscriberStatus {
            chain: chain_status(self.config.common.network, tip, self.synced),
            url: self.provider.url().to_owned(),
            provider: self.offer.as_ref().map(|offer| offer.offer.provider).or_else(|| {
                Some(self.active.and_then(|id| self.buyer.book().get(&id))?.provider())
            }),
            phase: self.phase,
            message: self.message.clone(),
            channel: self
                .active
                .and_then(|id| self.buyer.channels().find(|report| report.channel == id)),
            budget_sat: self.budget.to_sat(),
            spent_sat: self.spent().to_sat(),
            account: self.account.clone(),
            counted_octets: payer.map(Payer::counted).unwrap_or_default(),
            tick_octets: payer.map(Payer::tick).unwrap_or_default(),
            round_trip_ms: u64::try_from(self.round_trip.as_millis()).unwrap_or(u64::MAX),
            wallet: wallet_status(&mut self.foundation),
        }
    }
}

fn is_usable(channel: &SubscriberChannel, tip: u32) -> bool {
    matches!(
        channel.status(tip),
        ChannelStatus::Unfunded | ChannelStatus::Confirming { .. } | ChannelStatus::Open
    )
}

/// Whether there is something left to do: pay on it, or see it closed.
fn is_alive(channel: &SubscriberChannel, tip: u32) -> bool {
    is_usable(channel, tip) || channel.status(tip) == ChannelStatus::Closing
}

/// The address in `http://address:port`.
fn host_of(url: &str) -> Option<IpAddr> {
    let url = reqwest::Url::parse(url).ok()?;
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
