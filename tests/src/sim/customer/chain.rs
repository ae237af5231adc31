//! A subscriber and the chain: what it sees, what comes back, and how it ended.

use std::sync::Arc;

use bitmesh_core::{
    bitcoin::{Amount, OutPoint},
    channel::Refund,
};

use super::{Customer, Out};
use crate::sim::{
    audit::{Violation, violated},
    seller::{Step, hand_in, is_close, next_step},
    world::Context,
};

impl Customer {
    /// The chain source answers again, or no longer.
    pub fn sees(&mut self, sees: bool, context: &mut Context) -> Result<(), Violation> {
        self.blind = !sees;
        if sees {
            let who = format!("subscriber {}", self.index);
            for tx in std::mem::take(&mut self.unsent) {
                let _ = hand_in(&who, &tx, context)?;
            }
            self.follow(context)?;
        }
        Ok(())
    }

    /// Catches up with the chain.
    pub fn follow(&mut self, context: &mut Context) -> Result<(), Violation> {
        if self.blind {
            return Ok(());
        }
        while let Some(buyer) = &mut self.buyer {
            let mut out = Out::default();
            match next_step(buyer.book().tips().last(), context) {
                None => break,
                Some(Step::Disconnect(height)) => buyer.disconnect(height, &mut out),
                Some(Step::Connect(height)) => {
                    let Some((block, _)) = context.chain.block(height) else { break };
                    let block = Arc::clone(block);
                    buyer.connect(height, &block, &mut out);
                }
            }
            self.settle(out, context)?;
        }
        if let Some(buyer) = &self.buyer {
            let who = format!("subscriber {}", self.index);
            for tx in buyer.unconfirmed() {
                let _ = hand_in(&who, &tx, context)?;
            }
        }
        self.refund(context)?;
        self.drive(context)?;
        self.plan_step(context);
        Ok(())
    }

    fn refund(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let mut out = Out::default();
        for due in buyer.refunds_due() {
            let Some(channel) = buyer.book().get(&due.channel) else { continue };
            let script = self.owner.script();
            let rate = context.estimate();
            let Ok(refund) = Refund::new(channel.params(), due.outpoint, &script, rate) else {
                continue;
            };
            let Some(message) = refund.sighash() else { continue };
            let own = self.owner.sign(due.key_index, message);
            if let Some(tx) = refund.finish(own) {
                buyer.refund_signed(due.channel, tx, &mut out);
            }
        }
        self.settle(out, context)
    }

    /// At the end: what was not paid came back.
    pub fn settle_accounts(&self, context: &Context) -> Result<(), Violation> {
        let Some(buyer) = &self.buyer else { return Ok(()) };
        for (id, channel) in buyer.book().iter() {
            let Some(funding) = channel.funding() else { continue };
            context.audit.check_spent(self.index)?;
            let Some((tx, _)) = context.chain.spender(&funding.outpoint) else {
                if context.chain.was_reopened(&funding.outpoint) {
                    continue;
                }
                return violated("the rest comes back", format!("{id} is never spent"));
            };
            let own = |outpoint: &OutPoint| *outpoint == funding.outpoint;
            let at = tx.input.iter().position(|input| own(&input.previous_output));
            let back = at.and_then(|at| tx.output.get(at));
            let back = back.filter(|output| output.script_pubkey == self.owner.script());
            let back = back.map_or(Amount::ZERO, |output| output.value);
            let refunded = tx.input.len() == 1 && tx.output.len() == 1;
            let capacity = channel.params().capacity;
            let signed = context.audit.bought.get(id).map_or(Amount::ZERO, |bought| bought.signed);
            let least = capacity - signed;
            let fee = context.chain.input_value(tx).map_or(Amount::ZERO, |value| {
                value - tx.output.iter().map(|output| output.value).sum::<Amount>()
            });
            let whole = refunded && back + fee == capacity;
            let closed = is_close(tx) && {
                let payout = tx.output.get(1).map_or(Amount::ZERO, |output| output.value);
                back + fee + payout == capacity && payout <= signed && back >= least / 2
            };
            if back < least && !whole && !closed {
                return violated(
                    "the rest comes back",
                    format!("{back} of {capacity} with {signed} signed on {id}"),
                );
            }
        }
        Ok(())
    }
}
