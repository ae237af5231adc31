//! Counting what is used, and paying for it.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bitcoin::Amount;
use bitmesh_core::{
    bitcoin,
    buyer::Action,
    channel::{Batch, ChannelId, SubscriberEvent},
    payer::{Next, Payer},
    units::Octets,
    wire::{AccountReport, PaymentRequest},
};
use tracing::{info, warn};

use super::{super::status::Phase, ACCOUNT_INTERVAL, Internal, RETRY, SHARED_INTERVAL, Session};
use crate::{
    api::ClientError,
    dataplane::{Mac, Observer},
    wallet::Role,
};

impl Session {
    pub(super) fn count(&mut self) -> Octets {
        let (Some(observer), Some(payer)) = (&self.observer, &mut self.payer) else {
            return Octets(0);
        };
        let (up, down) = observer.read();
        let counted = Octets(up.saturating_add(down));
        self.counted = counted;
        let elapsed = self.started.elapsed().as_millis();
        payer.count(
            counted.saturating_add(self.membership.others),
            u64::try_from(elapsed).unwrap_or(u64::MAX),
        );
        counted
    }

    pub(super) fn pay(
        &mut self,
        id: ChannelId,
        counted: Octets,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
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
            self.account_due = sent + self.account_interval();
            return self
                .ask(async move { Internal::Account(counted, sent, provider.account().await) });
        }
        let Some(payer) = &self.payer else { return };
        let paid = channel.paid();
        let budget = self.buyer.budget_of(&id, self.budget);
        let params = channel.params();
        let payable = channel.payable(self.buyer.book().tip());
        // What was used on credit for a funding that another one took the place of is paid first.
        let next = match channel.owed().filter(|owed| *owed <= payable) {
            Some(owed) if owed > budget => Next::BudgetSpent,
            Some(owed) => Next::Pay(owed),
            None => payer.next(self.buyer.bought(), paid, payable, budget, &params.schedule),
        };
        let confirmed = payable == params.payable();
        match next {
            Next::Wait => self.say_buying(confirmed, paid, payable),
            Next::BudgetSpent => self.say(
                Phase::BudgetSpent,
                format!(
                    "the budget of {} sat is spent; `bitmesh budget --add SAT` goes on",
                    self.budget.to_sat()
                ),
            ),
            Next::ChannelSpent if !confirmed => self.say(
                Phase::Confirming,
                format!(
                    "{} sat, all that counts before confirmation, are paid; the funding waits for \
                     blocks",
                    paid.to_sat()
                ),
            ),
            Next::ChannelSpent => match self.obstacle() {
                Some((phase, message)) => {
                    self.say(phase, format!("the channel is empty; for the next one: {message}"));
                }
                None => self.say(
                    Phase::ChannelSpent,
                    "the channel is empty; `bitmesh budget --add SAT` opens the next one, \
                     `bitmesh close --all` ends it",
                ),
            },
            Next::Pay(sum) => match channel.payment(sum, self.buyer.book().tip()) {
                Ok(message) => {
                    let index = channel.key_index();
                    let signature =
                        self.foundation.wallet.sign_channel(Role::Subscriber, index, message);
                    self.unacknowledged = true;
                    self.buyer.payment_signed(id, sum, signature, out);
                    self.say_buying(confirmed, sum, payable);
                }
                Err(error) => self.say(Phase::Closing, error.to_string()),
            },
        }
    }

    fn say_buying(&mut self, confirmed: bool, paid: Amount, payable: Amount) {
        match (confirmed, self.obstacle()) {
            (true, None) => self.say(Phase::Buying, "paying as it is used"),
            (true, Some((_, message))) => {
                self.say(
                    Phase::Buying,
                    format!("paying as it is used; the next channel: {message}"),
                );
            }
            (false, _) => self.say(
                Phase::Buying,
                format!(
                    "paying as it is used, up to {} sat until the funding is confirmed",
                    payable.max(paid).to_sat()
                ),
            ),
        }
    }

    pub(super) fn send_payment(&mut self, channel: ChannelId, payment: PaymentRequest) {
        let provider = self.provider.clone();
        let counted = self.counted;
        let sent = Instant::now();
        self.ask(async move {
            let answer = provider.pay(channel, &payment).await;
            Internal::Paid(channel, payment.paid, counted, sent, answer)
        });
    }

    /// Starts the own count, by the provider's rule of what is free.
    pub(super) async fn observe(&mut self, account: &AccountReport) -> Result<()> {
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

    pub(super) fn report(
        &mut self,
        account: AccountReport,
        counted: Octets,
        sent: Instant,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        self.take_others(&account);
        self.count();
        let round_trip = sent.elapsed();
        let (bought, used) = (account.bought_octets, account.used_octets());
        let counted = counted.saturating_add(self.membership.others);
        self.account = Some(account);
        self.account_due = Instant::now() + self.account_interval();
        self.round_trip = (self.round_trip * 3 + round_trip) / 4;
        let Some(payer) = &mut self.payer else { return };
        let round_trip_ms = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX).max(1);
        let judged = payer.report(self.buyer.bought(), bought, used, counted, round_trip_ms);
        if let (Err(dispute), Some(id)) = (judged, self.active) {
            warn!("{dispute}; nothing more is paid");
            self.buyer.disputed(id, dispute, out);
        }
    }

    fn account_interval(&self) -> Duration {
        if self.membership.sharing { SHARED_INTERVAL } else { ACCOUNT_INTERVAL }
    }

    pub(super) fn payment_failed(
        &mut self,
        id: ChannelId,
        error: &ClientError,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        self.not_before = Instant::now() + RETRY;
        match error {
            ClientError::Refused { body, .. }
                if self.buyer.payment_refused(id, &body.error, out) =>
            {
                if self.active == Some(id) {
                    self.unacknowledged = false;
                }
                self.say(Phase::Closing, format!("channel {id} is left: {error}"));
            }
            // The provider sees the block later than we do: the same payment again.
            ClientError::Refused { status: 425, .. } => {
                self.say(Phase::Confirming, error.to_string());
            }
            ClientError::Refused { status: 503, .. } => {
                self.say(Phase::ProviderUnreachable, error.to_string());
            }
            ClientError::Refused { .. } => self.say(Phase::OfferRefused, error.to_string()),
            _ => self.say(Phase::ProviderUnreachable, error.to_string()),
        }
    }
}

/// The address in `http://address:port`.
pub(super) fn host_of(url: &str) -> Option<IpAddr> {
    let url = reqwest::Url::parse(url).ok()?;
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
