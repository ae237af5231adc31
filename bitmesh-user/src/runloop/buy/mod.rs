//! The subscriber's loop: opens a channel, counts what it uses, signs for exactly that, and leaves
//! with its change.

mod answer;
mod close;
mod errands;
mod export;
mod open;
mod pay;
mod stations;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bitcoin::{Amount, FeeRate, ScriptBuf};
use bitmesh_core::{
    bitcoin,
    buyer::{Action, Buyer, DueRefund},
    channel::{Batch, ChannelId, ChannelParams, ChannelStatus, SubscriberChannel, SubscriberEvent},
    offer::SignedOffer,
    payer::Payer,
    units::Octets,
    wire::{AccountReport, ChannelReport, PaymentReply, PaymentRequest},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use self::{errands::Aside, stations::Membership};
pub(super) use self::{
    export::export_refunds,
    open::{recover, sign_refund},
};
use super::{Foundation, now, provider_url, status::Phase, stop_signal, unlock};
use crate::{
    api::{Ask, ClientError, Envelope, Front, MAILBOX_REQUESTS, Provider, serve_admin},
    chain::ChainEvent,
    config::BuyConfig,
    dataplane::Observer,
    gateway::Gateway,
    store::{StoreRole, TIDY_INTERVAL_IDLE},
    telemetry::upkeep,
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
    Offer(FeeRate, Result<SignedOffer, ClientError>),
    Opened(Box<(ChannelParams, SignedOffer)>, Result<Box<ChannelReport>, ClientError>),
    FundingRate(ChannelId, FeeRate),
    Presented(ChannelId, Result<Box<ChannelReport>, ClientError>),
    RefundRate(Vec<DueRefund>, FeeRate),
    Account(Octets, Instant, Result<AccountReport, ClientError>),
    Paid(ChannelId, Amount, Octets, Instant, Result<PaymentReply, ClientError>),
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
    /// Since when the chain is not seen, while it is not.
    unseen_since: Instant,
    budget: Amount,
    offer: Option<SignedOffer>,
    /// For the next channel, once one was asked for.
    remainder_script: Option<ScriptBuf>,
    /// What miners wanted when the offer was asked for.
    fee_rate: FeeRate,
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
    /// A request for paying is on its way; the next one waits for its answer.
    busy: bool,
    not_before: Instant,
    account_due: Instant,
    aside: Aside,
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
        let (mut foundation, entries) = Foundation::open::<SubscriberEvent>(
            &config.common,
            &config.common.ledger(),
            StoreRole::Subscriber,
            &mut seed,
        )
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
        let active = buyer.active(&url);
        let (internal, internals) = mpsc::channel(16);
        let (requests, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
        let mut tasks = JoinSet::new();
        let front = Front::new(requests, super::now());
        tasks.spawn(serve_admin(&config.common.data_dir, front, None)?);
        tasks.spawn(upkeep());
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
            unseen_since: now,
            budget,
            offer: None,
            remainder_script: None,
            fee_rate: FeeRate::BROADCAST_MIN,
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
            aside: Aside::default(),
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
        let mut tidy = interval(TIDY_INTERVAL_IDLE);
        let mut stop = stop_signal()?;
        let resumed = self.buyer.resume();
        self.settle(resumed).await?;
        self.foundation.store.goes_on(now()).await?;
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
                _ = tidy.tick() => {
                    let over = |id: &ChannelId| self.buyer.may_forget(id);
                    let pause = self.foundation.store.tidy::<SubscriberEvent>(over).await?;
                    tidy.reset_after(pause);
                }
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
            let answering = self.foundation.of_wallet(ask, || channels);
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
        self.tasks.spawn(async move { drop(super::broadcast(source.as_ref(), &tx).await) });
    }

    /// One step of whatever comes next. Runs every [`COUNT_INTERVAL`].
    fn drive(&mut self, out: &mut Batch<SubscriberEvent, Action>) {
        let counted = self.count();
        self.take_turns();
        self.run_errand(out);
        if self.busy || Instant::now() < self.not_before {
            return;
        }
        let Some(id) = self.active else { return };
        let tip = self.buyer.book().tip();
        let Some(channel) = self.buyer.book().get(&id) else { return };
        match channel.status(tip) {
            ChannelStatus::Open => self.pay(id, counted, out),
            _ if channel.payable(tip) > Amount::ZERO => self.pay(id, counted, out),
            ChannelStatus::Unfunded if channel.given_up(tip) => self.active = None,
            ChannelStatus::Unfunded if channel.funding_tx().is_none() => {}
            ChannelStatus::Unfunded => {
                self.say(Phase::Confirming, "the funding waits for a block");
            }
            ChannelStatus::Confirming { have, need } => {
                self.say(Phase::Confirming, format!("the funding has {have} of {need} blocks"));
            }
            ChannelStatus::Closing => {}
            ChannelStatus::Settled { .. } | ChannelStatus::Closed { .. } => {
                self.say(Phase::Closed, "settled; the rest is back in the wallet");
                if self.intent == Intent::Buy {
                    self.active = None;
                }
            }
        }
    }

    /// The channel to pay on is another one when the last is spent, ends or has ended.
    fn take_turns(&mut self) {
        let Some(id) = self.buyer.active(self.provider.url()) else { return };
        let tip = self.buyer.book().tip();
        let last = self.active.and_then(|last| self.buyer.book().get(&last));
        let owing =
            self.unacknowledged && last.is_some_and(|channel| channel.payable(tip) > Amount::ZERO);
        if self.active == Some(id) || owing {
            return;
        }
        let Some(channel) = self.buyer.book().get(&id) else { return };
        if self.active.is_some() {
            info!("channel {id} takes over");
        }
        if let Some(payer) = &mut self.payer {
            payer.go_on(channel.params().tick_max);
        }
        self.unacknowledged = channel.best().is_some();
        self.active = Some(id);
    }

    /// Starts a request; no other one for paying until its answer is there.
    fn ask(&mut self, request: impl Future<Output = Internal> + Send + 'static) {
        self.busy = true;
        self.start_request(request);
    }

    fn start_request(&mut self, request: impl Future<Output = Internal> + Send + 'static) {
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
        match internal {
            // Asked for beside everything else.
            Internal::RefundRate(..) => {}
            Internal::Offer(..)
            | Internal::Opened(..)
            | Internal::FundingRate(..)
            | Internal::Presented(..)
            | Internal::Closing(..) => self.aside.busy = false,
            Internal::Account(..)
            | Internal::Paid(..)
            | Internal::Channel(..)
            | Internal::Bound(..) => self.busy = false,
        }
        match internal {
            Internal::Offer(rate, Ok(offer)) => {
                (self.offer, self.fee_rate) = (Some(offer), rate);
            }
            Internal::Opened(wanted, Ok(report)) => {
                let (params, offer) = *wanted;
                self.opened(params, &offer, &report, out);
            }
            Internal::FundingRate(id, rate) => self.fund(id, rate, out),
            Internal::Presented(id, answer) => self.presented(id, answer.map(|it| *it), out),
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
            Internal::Paid(id, paid, counted, sent, Ok(reply)) => {
                if reply.paid >= paid && self.active == Some(id) {
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
            Internal::Account(_, _, Err(error))
            | Internal::Channel(Err(error))
            | Internal::Bound(Err(error)) => self.failed(&error),
            Internal::Offer(_, Err(error)) | Internal::Opened(_, Err(error)) => {
                self.errand_failed(&error);
            }
            Internal::Closing(id, _, Err(error)) => self.close_failed(id, &error),
            Internal::Paid(id, _, _, _, Err(error)) => self.payment_failed(id, &error, out),
        }
        Ok(())
    }

    fn failed(&mut self, error: &ClientError) {
        self.not_before = Instant::now() + RETRY;
        if self.phase != Phase::Closing {
            self.say(phase_of(error), error.to_string());
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
                    for (_, channel) in self.buyer.book().iter() {
                        if channel.given_up(height) {
                            self.foundation.wallet.give_up(channel.fundings(), now());
                        }
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
                if self.synced {
                    self.unseen_since = Instant::now();
                }
                self.synced = false;
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

fn phase_of(error: &ClientError) -> Phase {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken { .. } => Phase::ProviderUnreachable,
        ClientError::Refused { .. } => Phase::OfferRefused,
    }
}
