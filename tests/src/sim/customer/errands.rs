//! What a subscriber does beside paying: opens, funds, presents and closes.

use bitmesh_core::{
    bitcoin::{Amount, Network, TxOut},
    channel::{
        CAPACITY_MIN, ChannelId, ChannelParams, ChannelStatus, DUST, PROTOCOL_VERSION, RESERVE,
        SubscriberChannel, close_digest,
    },
    offer::SignedOffer,
    succession::{Errand, Wants},
    wire::{ChannelReport, CloseProposal, CloseRequest, OpenRequest},
};

use super::{CHANNELS_MAX, Customer, Out, URL};
use crate::sim::{
    audit::{Violation, violated},
    chain::least_fee,
    spend,
    world::{Ask, Context, coin},
};

/// Pause before a funding is presented again, in milliseconds.
const PRESENT_INTERVAL_MS: u64 = 30_000;
/// Blocks after which it opens no more.
const OPENING_BLOCKS: u32 = 300;
/// Virtual size of a funding transaction, in octets.
const FUNDING_VSIZE: u64 = 154;

impl Customer {
    /// The most urgent thing to do beside paying.
    pub(super) fn run_errand(&mut self, context: &mut Context) -> Result<(), Violation> {
        let leaving = self.steps == 0;
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        if self.aside.is_some() || self.blind {
            return Ok(());
        }
        if leaving && !self.vanishes {
            let tip = buyer.book().tip();
            let open =
                |status| matches!(status, ChannelStatus::Open | ChannelStatus::Confirming { .. });
            let stays = buyer.book().iter().find(|(_, channel)| open(channel.status(tip)));
            if let Some(id) = stays.map(|(id, _)| *id) {
                let mut out = Out::default();
                buyer.close(id, &mut out);
                return self.settle(out, context);
            }
        }
        let (budget, acknowledged) = (self.budget, !self.unacknowledged);
        let errands = buyer.errands(&Wants { url: URL, budget, acknowledged });
        let height = context.chain.height();
        let may_open = !leaving && buyer.book().iter().count() < CHANNELS_MAX;
        let errand = errands.into_iter().find(|errand| match errand {
            Errand::Fund(_) => true,
            Errand::Close(_) => !(leaving && self.vanishes) && height > self.closing_asked,
            Errand::Leave(_) => !leaving,
            Errand::Open | Errand::OpenNext(_) => may_open,
        });
        match errand {
            Some(Errand::Fund(id)) => self.fund(id, context)?,
            Some(Errand::Leave(id)) => {
                let mut out = Out::default();
                if let Some(buyer) = &mut self.buyer {
                    buyer.close(id, &mut out);
                }
                self.settle(out, context)?;
            }
            Some(Errand::Open) => self.open(context.plan.capacity, context),
            Some(Errand::OpenNext(payable)) => {
                let capacity = (payable + RESERVE).clamp(CAPACITY_MIN, context.plan.capacity);
                self.open(capacity, context);
            }
            Some(Errand::Close(id)) => {
                // Now and then: it costs a signature, and the claim comes by itself.
                self.closing_asked = height + context.rng.u32(0..4);
                let known = self.buyer.as_ref().and_then(|buyer| buyer.book().get(&id));
                let proposal = known.and_then(|channel| channel.proposed_close());
                self.ask_to_close(id, proposal.map(CloseProposal::from), context);
            }
            None => self.present(context),
        }
        Ok(())
    }

    /// Shows the provider a funding that no block holds, where payments count on it.
    fn present(&mut self, context: &mut Context) {
        let Some(buyer) = &self.buyer else { return };
        let tip = buyer.book().tip();
        let waiting = buyer.book().iter().find_map(|(id, channel)| {
            let wanted = channel.params().unconfirmed_max > Amount::ZERO
                && channel.status(tip) == ChannelStatus::Unfunded;
            let tx = channel.funding_waits(tip).filter(|_| wanted)?;
            Some((*id, tx.clone()))
        });
        let Some((id, tx)) = waiting.filter(|_| context.now_ms >= self.present_due_ms) else {
            return;
        };
        self.present_due_ms = context.now_ms + PRESENT_INTERVAL_MS;
        self.ask_aside(Ask::Fund(id, tx), context);
    }

    pub(super) fn presented(
        &mut self,
        id: ChannelId,
        report: &ChannelReport,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let mut out = Out::default();
        if let (Some(buyer), Some(outpoint)) = (&mut self.buyer, report.offered) {
            buyer.funding_taken(id, outpoint, &mut out);
        }
        self.settle(out, context)
    }

    pub(super) fn ask_to_close(
        &mut self,
        id: ChannelId,
        proposal: Option<CloseProposal>,
        context: &mut Context,
    ) {
        let known = self.buyer.as_ref().and_then(|buyer| buyer.book().get(&id));
        let key = known.map_or(0, SubscriberChannel::key_index);
        let signature = self.owner.sign(key, close_digest(&id));
        self.ask_aside(Ask::Close(id, CloseRequest { signature, proposal }), context);
    }

    pub(super) fn close_answered(
        &mut self,
        id: ChannelId,
        report: ChannelReport,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let mut out = Out::default();
        if let Some(close) = report.closed_by_both {
            buyer.close_answered(id, close.tx, &mut out);
        }
        if let Some(payout_script) = report.payout_script {
            let due = buyer.close_due(&id, &payout_script, context.estimate());
            let known = buyer.book().get(&id);
            if let (Ok(Some(close)), Some(channel)) = (due, known)
                && let Some(message) = close.sighash()
            {
                let signature = self.owner.sign(channel.key_index(), message);
                buyer.close_signed(id, close, signature, &mut out);
            }
        }
        self.settle(out, context)
    }

    fn open(&mut self, capacity: Amount, context: &mut Context) {
        let Some(buyer) = &self.buyer else { return };
        if context.chain.height() > context.chain.first() + OPENING_BLOCKS {
            self.steps = 0;
            return;
        }
        let offer = context.offer.clone();
        let verified = offer.verify(spend::secp(), Network::Regtest, context.seconds());
        if verified.is_err() || buyer.book().tip() == 0 {
            return;
        }
        let open = OpenRequest {
            version: PROTOCOL_VERSION,
            offer: offer.offer.id(),
            subscriber: self.owner.public_key(buyer.next_key_index()),
            capacity,
            expiry_height: buyer.book().tip() + context.plan.lifetime,
            remainder_script: self.owner.script(),
        };
        self.ask_aside(Ask::Open(open), context);
    }

    pub(super) fn opened(
        &mut self,
        open: OpenRequest,
        offer: &SignedOffer,
        report: &ChannelReport,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let params = ChannelParams {
            version: PROTOCOL_VERSION,
            unconfirmed_max: offer.offer.terms.unconfirmed_of(open.capacity),
            network: offer.offer.network,
            offer: open.offer,
            subscriber: open.subscriber.into(),
            provider: report.params.provider,
            expiry_height: open.expiry_height,
            capacity: open.capacity,
            remainder_script: open.remainder_script,
            schedule: offer.offer.schedule.clone(),
            confirmations: offer.offer.terms.confirmations,
            tick_max: offer.offer.terms.tick_max,
        };
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        if params.validate().is_err()
            || params.id() != report.channel
            || offer.offer.id() != open.offer
            || buyer.book().get(&params.id()).is_some()
        {
            return Ok(());
        }
        let mut out = Out::default();
        buyer.negotiated(params, offer.offer.provider, URL.into(), buyer.book().tip(), &mut out);
        self.settle(out, context)
    }

    /// Signs the first funding, or one of the same coin that replaces the last.
    fn fund(&mut self, id: ChannelId, context: &mut Context) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let Some(channel) = buyer.book().get(&id) else { return Ok(()) };
        let params = channel.params();
        let funded = buyer.book().iter().filter(|(_, channel)| channel.funding_tx().is_some());
        let fresh = u32::try_from(funded.count()).unwrap_or(u32::MAX);
        let last = channel.funding_tx();
        let spent = last.and_then(|tx| tx.input.first()).map(|input| input.previous_output.vout);
        let value = context.plan.capacity + Amount::from_sat(2_000_000);
        let from = coin(self.index + 1, spent.unwrap_or(fresh), value);
        let bumped = last.map_or(0, |last| {
            let given: Amount = last.output.iter().map(|output| output.value).sum();
            let fee = value.checked_sub(given).unwrap_or_default().to_sat();
            fee * 3 / 2 + 2 * FUNDING_VSIZE
        });
        let fee = least_fee(context.estimate(), FUNDING_VSIZE).max(bumped);
        let change = (value - params.capacity).checked_sub(Amount::from_sat(fee));
        let output = vec![
            TxOut { value: params.capacity, script_pubkey: params.funding_script() },
            TxOut { value: change.unwrap_or(DUST).max(DUST), script_pubkey: self.owner.script() },
        ];
        let tx = self.owner.spend(2, (from.0, &from.1), output);
        let mut out = Out::default();
        if !buyer.funding_signed(id, tx, &mut out) {
            return violated("a wallet's funding funds the channel", id.to_string());
        }
        self.settle(out, context)
    }
}
