//! The subscriber's loop: opens a channel, counts what it uses, signs for exactly that, and leaves
//! with its change.

mod answer;
mod close;
mod export;
mod open;
mod pay;
mod stations;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bitcoin::{Amount, FeeRate};
use bitmesh_core::{
    bitcoin,
    buyer::{Action, Buyer, DueRefund},
    channel::{Batch, ChannelId, ChannelParams, ChannelStatus, SubscriberChannel, SubscriberEvent},
    offer::SignedOffer,
    payer::Payer,
    units::Octets,
    wire::{AccountReport, ChannelReport, CloseProposal, PaymentReply, PaymentRequest},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use self::stations::Membership;
pub(super) use self::{
    export::export_refunds,
    open::{recover, sign_refund},
};
use super::{Foundation, provider_url, status::Phase, stop_signal, unlock};
use crate::{
    api::{Ask, ClientError, Envelope, MAILBOX_REQUESTS, Provider, serve_admin},
    chain::ChainEvent,
    config::BuyConfig,
    dataplane::Observer,
    gateway::Gateway,
    store::StoreRole,
};

/// How often the own count is read and payments are decided.
const COUNT_INTERVAL: Duration = Duration::from_millis(10);
/// Pause before a request that failed is made again.
const RETRY: Duration = Duration::from_millis(500);
/// How often the provider's view is fetched while nothing is paid.
const ACCOUNT_INTERVAL: Duration = Duration::from_secs(2);
/// The same while others share the credit: what they use is only known from there.
const SHARED_INTERVAL: Duration = Duration::from_millis(100);
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
    Closing(ChannelId, FeeRate, Result<Box<ChannelReport>, ClientError>),
    Channel(Result<Box<ChannelReport>, ClientError>),
    Bound(Result<(), ClientError>),
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
    membership: Membership,
    /// The newest own count.
    counted: Octets,
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
        let mut seed = unlock(&config.common)?;
        let (mut foundation, entries) =
            Foundation::open::<SubscriberEvent>(&config.common, StoreRole::Subscriber, &mut seed)
                .await?;
        let mut buyer = Buyer::new(config.common.network);
        for entry in &entries {
            buyer.replay(entry)?;
        }
        let stored = foundation.store.setting(BUDGET).await?;
        let stored = stored.map(|sat| sat.parse().context("the stored budget")).transpose()?;
        let budget = stored.map(Amount::from_sat).or(config.budget).unwrap_or(config.capacity);
        foundation.store.set(BUDGET, &budget.to_sat().to_string()).await?;
        let membership = Membership::load(&mut foundation.store).await?;
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
            membership,
            counted: Octets(0),
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
        let mut chain = self.foundation.follow(self.buyer.book());
        let mut count = interval(COUNT_INTERVAL);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = stop_signal()?;
        let resumed = self.buyer.resume();
        self.settle(resumed).await?;
        loop {
            let mut out = Batch::default();
            tokio::select! {
                Some(envelope) = self.mailbox.recv() => {
                    self.take(envelope, out).await?;
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

    /// A change is told after it is durable.
    async fn take(
        &mut self,
        envelope: Envelope,
        mut out: Batch<SubscriberEvent, Action>,
    ) -> Result<()> {
        if let Ask::OfWallet(ask) = &envelope.ask {
            let channels: Vec<_> = self.buyer.channels().collect();
            let answering = self.foundation.of_wallet(ask, &channels);
            self.settle(out).await?;
            self.tasks.spawn(async move {
                let _ = envelope.reply.send(answering.await);
            });
            return Ok(());
        }
        let reply = self.answer(&envelope.ask, &mut out).await;
        self.settle(out).await?;
        let _ = envelope.reply.send(reply);
        Ok(())
    }

    async fn settle(&mut self, out: Batch<SubscriberEvent, Action>) -> Result<()> {
        for action in self.foundation.commit(out, self.buyer.book()).await? {
            match action {
                Action::Broadcast(tx) => self.broadcast(tx),
                Action::Pay(channel, paid, signature) if Some(channel) == self.active => {
                    self.send_payment(channel, PaymentRequest { paid, signature });
                }
                // Of a channel with another provider, or one that is closing.
                Action::Pay(..) => {}
                Action::Close(channel, proposal) => self.ask_to_close(channel, Some(proposal)),
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
            ChannelStatus::Closing => {
                let proposal = channel.proposed_close().map(CloseProposal::from);
                self.ask_to_close(id, proposal);
            }
            ChannelStatus::Settled { .. } | ChannelStatus::Closed { .. } => {
                self.settled(id);
            }
        }
    }

    fn settled(&mut self, id: ChannelId) {
        self.say(Phase::Closed, "settled; the rest is back in the wallet");
        if self.intent == Intent::Buy {
            info!("channel {id} is settled");
            (self.active, self.payer, self.observer) = (None, None, None);
            self.membership.account = None;
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
                if !self.belongs(&account).await? {
                    self.account_due = Instant::now();
                } else if self.observer.is_none() {
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
                let bound = reply.account.bound;
                self.membership.account = reply.account.account.or(self.membership.account);
                self.report(reply.account, counted, sent, out);
                if !bound {
                    self.account_due = Instant::now();
                }
            }
            Internal::Channel(Ok(report)) => self.membership.account = report.account,
            Internal::Closing(id, rate, Ok(report)) => self.close_answered(id, rate, *report, out),
            Internal::Bound(Ok(())) => {}
            Internal::Offer(Err(error))
            | Internal::Opened(_, Err(error))
            | Internal::Account(_, _, Err(error))
            | Internal::Channel(Err(error))
            | Internal::Bound(Err(error))
            | Internal::Closing(_, _, Err(error)) => self.failed(&error),
            Internal::Paid(_, _, _, Err(error)) => self.payment_failed(&error),
        }
        Ok(())
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

    fn chain(&mut self, event: ChainEvent, out: &mut Batch<SubscriberEvent, Action>) -> Result<()> {
        self.foundation.follow_wallet(&event)?;
        match event {
            ChainEvent::Connected { height, block } => {
                recover(&mut self.foundation.wallet, &mut self.buyer, &block, out);
                self.buyer.connect(height, &block, out);
                if self.synced {
                    for tx in self.buyer.unconfirmed() {
                        self.broadcast(tx);
                    }
                    self.tasks.spawn(self.foundation.rebroadcast());
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
