//! From an offer to a channel that is funded, and the way back when its provider vanishes.

use std::time::Instant;

use anyhow::{Context as _, Result};
use bitcoin::{FeeRate, secp256k1::Secp256k1};
use bitmesh_core::{
    bitcoin,
    buyer::{Action, Buyer, DueRefund},
    channel::{Batch, ChannelId, ChannelParams, PROTOCOL_VERSION, Refund, SubscriberEvent},
    offer::SignedOffer,
    wire::{ChannelReport, OpenRequest},
};
use tracing::{error, info, warn};

use super::{
    super::{fee_rate, now, status::Phase},
    ACCOUNT_INTERVAL, Internal, RETRY, Session,
};
use crate::wallet::{Recovered, Role, Wallet};

impl Session {
    pub(super) fn open(&mut self) {
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
            version: PROTOCOL_VERSION,
            offer: offer.offer.id(),
            subscriber: self.foundation.wallet.channel_public_key(Role::Subscriber, index),
            capacity,
            expiry_height: self.buyer.book().tip() + self.config.lifetime,
            remainder_script: self.foundation.wallet.remainder_script(),
        };
        let params = ChannelParams {
            version: PROTOCOL_VERSION,
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
            unconfirmed_max: offer.offer.terms.unconfirmed_of(capacity),
        };
        self.ask(async move {
            let answer = provider.open(&request).await;
            Internal::Opened(Box::new((params, offer)), answer.map(Box::new))
        });
    }

    pub(super) fn acceptable(&self, offer: &SignedOffer) -> Result<(), String> {
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

    pub(super) fn ask_funding_rate(&mut self, id: ChannelId) {
        let source = self.foundation.source.clone();
        self.ask(async move { Internal::FundingRate(id, fee_rate(source.as_ref()).await) });
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
        self.membership.account = report.account;
        self.unacknowledged = false;
    }

    pub(super) fn fund(
        &mut self,
        id: ChannelId,
        rate: FeeRate,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        let Some(channel) = self.buyer.book().get(&id) else { return };
        let (params, key_index) = (channel.params().clone(), channel.key_index());
        let capacity = params.capacity;
        match self.foundation.wallet.fund(&params, key_index, rate, now()) {
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
    let script = wallet.remainder_script();
    let refund = Refund::new(channel.params(), due.outpoint, &script, rate)?;
    let message = refund.sighash().context("a refund without a message")?;
    let own = wallet.sign_channel(Role::Subscriber, due.key_index, message);
    refund.finish(own).context("a refund without a witness")
}
