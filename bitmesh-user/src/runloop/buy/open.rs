//! From an offer to a channel that is funded, and the way back when its provider vanishes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction, secp256k1::Secp256k1};
use bitmesh_core::{
    bitcoin,
    buyer::{Action, Buyer, DueRefund},
    channel::{
        Batch, CAPACITY_MIN, ChannelId, ChannelParams, PROTOCOL_VERSION, RESERVE, Refund,
        SubscriberEvent, check_economic,
    },
    offer::SignedOffer,
    wire::{ChannelReport, OpenRequest},
};
use tracing::{error, info, warn};

use super::{
    super::{fee_rate, now, status::Phase},
    ACCOUNT_INTERVAL, Internal, RETRY, Session,
};
use crate::wallet::{Recovered, Role, Wallet};

/// Pause after a funding could not be replaced.
const BUMP_PAUSE: Duration = Duration::from_mins(10);
/// A replaced funding pays miners at most one part in so many of what it funds.
const FUNDING_FEE_SHARE: u64 = 4;
/// What a funding of two inputs takes, in vbytes: kept back for its fee.
const FUNDING_VBYTES: u64 = 250;

/// Why no channel is opened now.
enum Short {
    /// So much is missing in confirmed outputs.
    Funds(Amount),
    /// The offer is not one to take.
    Offer(String),
}

impl Session {
    /// Opens a channel: of the capacity that was set, or one that takes over and is to be able to
    /// pay `payable`.
    pub(super) fn open(&mut self, payable: Option<Amount>) {
        let provider = self.provider.clone();
        let Some(offer) = self.offer.clone().filter(|offer| offer.offer.valid_until > now()) else {
            let source = self.foundation.source.clone();
            return self.ask_aside(async move {
                let offer = provider.offer().await;
                Internal::Offer(fee_rate(source.as_ref()).await, offer)
            });
        };
        let fits = self.capacity_for(&offer, payable).and_then(|capacity| {
            let height = self.height_for(&offer)?;
            self.acceptable(&offer, capacity).map(|()| (capacity, height))
        });
        let (capacity, height) = match fits {
            Ok(fits) => fits,
            Err(Short::Offer(refusal)) => {
                self.offer = None;
                self.aside.open_not_before = Some(Instant::now() + ACCOUNT_INTERVAL);
                return self.tell(Phase::OfferRefused, refusal);
            }
            Err(Short::Funds(missing)) => {
                let address = self.foundation.wallet.unused_address();
                let pending = self.foundation.wallet.balance().pending;
                self.aside.open_not_before = Some(Instant::now() + RETRY);
                return self.tell(
                    Phase::NeedsFunds,
                    format!(
                        "send {} sat and a little for fees to {address} ({} sat are on their way)",
                        missing.to_sat(),
                        pending.to_sat()
                    ),
                );
            }
        };
        self.told();
        let index = self.buyer.next_key_index();
        let request = OpenRequest {
            version: PROTOCOL_VERSION,
            offer: offer.offer.id(),
            subscriber: self.foundation.wallet.channel_public_key(Role::Subscriber, index),
            capacity,
            expiry_height: height + self.config.lifetime,
            remainder_script: self.remainder_script(),
        };
        let params = ChannelParams {
            version: PROTOCOL_VERSION,
            network: offer.offer.network,
            offer: request.offer,
            subscriber: request.subscriber.into(),
            // Replaced by the key in the answer.
            provider: request.subscriber.into(),
            expiry_height: request.expiry_height,
            capacity,
            remainder_script: request.remainder_script.clone(),
            schedule: offer.offer.schedule.clone(),
            confirmations: offer.offer.terms.confirmations,
            tick_max: offer.offer.terms.tick_max,
            unconfirmed_max: offer.offer.terms.unconfirmed_of(capacity),
        };
        self.ask_aside(async move {
            let answer = provider.open(&request).await;
            Internal::Opened(Box::new((params, offer)), answer.map(Box::new))
        });
    }

    /// Where the rest of the next channel is to go: the same until there is one. A wallet made anew
    /// from its words finds nothing behind a long row of scripts that were never paid to.
    fn remainder_script(&mut self) -> ScriptBuf {
        let wallet = &mut self.foundation.wallet;
        self.remainder_script.get_or_insert_with(|| wallet.remainder_script()).clone()
    }

    /// What to put into the next channel: no more than is wanted of it, or, for one that takes
    /// over, than there is.
    fn capacity_for(&self, offer: &SignedOffer, payable: Option<Amount>) -> Result<Amount, Short> {
        let there = self.foundation.wallet.balance().confirmed;
        let capacity = self.config.capacity;
        let Some(payable) = payable else {
            return if there > capacity {
                Ok(capacity)
            } else {
                Err(Short::Funds(capacity.checked_sub(there).unwrap_or_default()))
            };
        };
        let least = offer.offer.terms.capacity_min.max(CAPACITY_MIN);
        let fee = self.fee_rate.fee_vb(FUNDING_VBYTES).unwrap_or(Amount::MAX_MONEY);
        let there = there.checked_sub(fee).unwrap_or_default();
        let wanted = payable.checked_add(RESERVE).unwrap_or(capacity).min(capacity).max(least);
        if there < least {
            return Err(Short::Funds(least.checked_sub(there).unwrap_or_default()));
        }
        Ok(wanted.min(there))
    }

    /// The height that a channel's life is counted from: the own tip, or what the provider says
    /// while the chain is not seen. A provider that lies moves the way back by one life at most.
    fn height_for(&self, offer: &SignedOffer) -> Result<u32, Short> {
        let (tip, told) = (self.buyer.book().tip(), offer.offer.height);
        if self.synced {
            return Ok(tip);
        }
        if offer.offer.terms.unconfirmed_max == Amount::ZERO {
            return Err(Short::Offer(
                "the chain is not seen, and this provider takes no payment before a funding is \
                 confirmed; connect this machine to the chain some other way first"
                    .into(),
            ));
        }
        if told > tip.saturating_add(self.config.lifetime) {
            return Err(Short::Offer(format!(
                "the provider says that the chain is at height {told}, and {tip} was the last seen \
                 here; connect this machine to the chain some other way first"
            )));
        }
        Ok(told.max(tip))
    }

    fn acceptable(&mut self, offer: &SignedOffer, capacity: Amount) -> Result<(), Short> {
        let network = self.config.common.network;
        offer
            .verify(&Secp256k1::verification_only(), network, now())
            .map_err(|error| Short::Offer(error.to_string()))?;
        let price = offer.offer.schedule.tiers.iter().map(|tier| tier.msat_per_mib).max();
        if let (Some(price), Some(limit)) = (price, self.config.price_max)
            && price > limit
        {
            let over = format!("the price is {price} msat per MiB, over --price-max {limit}");
            return Err(Short::Offer(over));
        }
        let terms = &offer.offer.terms;
        if capacity < terms.capacity_min || capacity > terms.capacity_max {
            return Err(Short::Offer(format!(
                "this provider takes channels of {} to {} sat: choose --capacity in between",
                terms.capacity_min.to_sat(),
                terms.capacity_max.to_sat()
            )));
        }
        // What the remainder costs is the same for every script of this wallet's.
        let script = self.foundation.wallet.unused_address().script_pubkey();
        check_economic(capacity, &script, self.fee_rate).map_err(|error| {
            let least = error.capacity_min.to_sat();
            Short::Offer(format!(
                "{error}; choose --capacity {least} or more, or wait until fees are lower"
            ))
        })?;
        let lifetimes = terms.lifetime_min_blocks..=terms.lifetime_max_blocks;
        if !lifetimes.contains(&self.config.lifetime) {
            return Err(Short::Offer(format!(
                "this provider takes channels of {} to {} blocks: choose --lifetime in between",
                terms.lifetime_min_blocks, terms.lifetime_max_blocks
            )));
        }
        Ok(())
    }

    pub(super) fn ask_funding_rate(&mut self, id: ChannelId) {
        let source = self.foundation.source.clone();
        self.ask_aside(async move { Internal::FundingRate(id, fee_rate(source.as_ref()).await) });
    }

    pub(super) fn opened(
        &mut self,
        mut params: ChannelParams,
        offer: &SignedOffer,
        report: &ChannelReport,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        params.provider = report.params.provider;
        if params.validate().is_err() || params.id() != report.channel {
            self.aside.open_not_before = Some(Instant::now() + ACCOUNT_INTERVAL);
            self.offer = None;
            return self.tell(
                Phase::OfferRefused,
                "the provider answered with other terms than were asked for; buy elsewhere",
            );
        }
        let url = self.provider.url().to_owned();
        let height = params.expiry_height.saturating_sub(self.config.lifetime);
        self.remainder_script = None;
        let id = self.buyer.negotiated(params, offer.offer.provider, url, height, out);
        info!("channel {id} agreed on");
        if report.account != self.membership.account {
            // Other counters: of an account that nothing was counted of yet.
            self.membership.account = report.account;
            (self.payer, self.observer) = (None, None);
        }
    }

    pub(super) fn fund(
        &mut self,
        id: ChannelId,
        rate: FeeRate,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        // The channel may have ended, or a block come, while the rate was asked for.
        let tip = self.buyer.book().tip();
        let channel = self.buyer.book().get(&id).filter(|channel| channel.funding_due(tip));
        let Some(channel) = channel else { return };
        let (params, key_index) = (channel.params().clone(), channel.key_index());
        let capacity = params.capacity;
        let wallet = &mut self.foundation.wallet;
        let signed = match channel.funding_tx().map(Transaction::compute_txid) {
            None => wallet.fund(&params, key_index, rate, now()),
            Some(last) => wallet.bump(last, rate, capacity / FUNDING_FEE_SHARE, now()),
        };
        match signed {
            Ok(tx) => {
                info!(
                    "funding channel {id} with {} sat in {}",
                    capacity.to_sat(),
                    tx.compute_txid()
                );
                self.told();
                // A replacement is shown to the provider at once.
                self.aside.hold(id, Duration::ZERO);
                if !self.buyer.funding_signed(id, tx, out) {
                    error!("the wallet's transaction does not fund channel {id}");
                }
            }
            Err(error) if channel.funding_tx().is_some() => {
                self.aside.hold(id, BUMP_PAUSE);
                warn!("the funding of channel {id} waits on as it is: {error}");
            }
            Err(error) => {
                self.aside.hold(id, RETRY);
                let address = self.foundation.wallet.unused_address();
                self.tell(Phase::NeedsFunds, format!("{error}; send more to {address}"));
            }
        }
    }

    pub(super) fn refund(
        &mut self,
        due: Vec<DueRefund>,
        rate: FeeRate,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        for due in due {
            match sign_refund(&mut self.foundation.wallet, &self.buyer, &due, rate) {
                Ok(tx) => {
                    info!("refunding channel {} in {}", due.channel, tx.compute_txid());
                    self.buyer.refund_signed(due.channel, tx, out);
                }
                Err(error) => warn!("channel {} is not refunded yet: {error:#}", due.channel),
            }
        }
    }
}

/// Notes channels of this wallet's that a block funds and that are not known, as after a restore
/// from the words. To be done before the block is connected.
pub(in crate::runloop) fn recover(
    wallet: &mut Wallet,
    buyer: &mut Buyer,
    block: &bitcoin::Block,
    out: &mut Batch<SubscriberEvent, Action>,
) {
    for Recovered { params, key_index } in wallet.recover(&block.txdata) {
        let (id, sat, expiry) = (params.id(), params.capacity.to_sat(), params.expiry_height);
        if buyer.restored(params, key_index, out) {
            info!(
                "channel {id} of this wallet was found: {sat} sat come back after block {expiry}"
            );
        }
    }
}

/// The way back of a channel whose end has come, to this wallet.
pub(in crate::runloop) fn sign_refund(
    wallet: &mut Wallet,
    buyer: &Buyer,
    due: &DueRefund,
    rate: FeeRate,
) -> Result<bitcoin::Transaction> {
    let channel = buyer.book().get(&due.channel).context("a refund of no channel")?;
    let script = wallet.unused_address().script_pubkey();
    let refund = Refund::new(channel.params(), due.outpoint, &script, rate)?;
    let message = refund.sighash().context("a refund without a message")?;
    let own = wallet.sign_channel(Role::Subscriber, due.key_index, message);
    refund.finish(own).context("a refund without a witness")
}
