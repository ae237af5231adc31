//! Payments of a subscriber, and what it is told of its account.

use bitmesh_core::{
    channel::ChannelId,
    controller::Refusal,
    payer::{Next, Payer},
    units::Octets,
    wire::{AccountReport, PaymentRequest},
};

use super::{Customer, Out};
use crate::sim::{
    Sabotage,
    audit::{Violation, violated},
    world::{Ask, Context},
};

/// How often the provider's view is fetched while nothing is paid, in milliseconds.
const ACCOUNT_INTERVAL_MS: u64 = 2_000;

impl Customer {
    pub(super) fn pay(&mut self, id: ChannelId, context: &mut Context) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let Some(channel) = buyer.book().get(&id) else { return Ok(()) };
        if channel.disputed().is_some() {
            (self.steps, self.vanishes) = (0, false);
            return Ok(());
        }
        if let (true, Some((paid, signature))) = (self.unacknowledged, channel.best()) {
            self.send(id, PaymentRequest { paid, signature }, context);
            return Ok(());
        }
        if self.payer.is_none() || context.now_ms >= self.account_due_ms {
            self.account_due_ms = context.now_ms + ACCOUNT_INTERVAL_MS;
            self.ask(Ask::Account, context);
            return Ok(());
        }
        let Some(payer) = &self.payer else { return Ok(()) };
        let budget = buyer.budget_of(&id, self.budget);
        let (params, payable) = (channel.params(), channel.payable(buyer.book().tip()));
        // What was used on credit for a funding that another one took the place of is paid first.
        let next = match channel.owed().filter(|owed| *owed <= payable) {
            Some(owed) if owed > budget => Next::BudgetSpent,
            Some(owed) => Next::Pay(owed),
            None => payer.next(buyer.bought(), channel.paid(), payable, budget, &params.schedule),
        };
        match next {
            Next::Wait | Next::ChannelSpent => Ok(()),
            Next::BudgetSpent => {
                self.steps = 0;
                Ok(())
            }
            Next::Pay(mut sum) => {
                if context.plan.sabotage == Some(Sabotage::PayDouble) {
                    sum = (sum + sum).min(params.payable());
                }
                let Ok(message) = channel.payment(sum, buyer.book().tip()) else { return Ok(()) };
                let signature = self.owner.sign(channel.key_index(), message);
                let mut out = Out::default();
                self.unacknowledged = true;
                buyer.payment_signed(id, sum, signature, &mut out);
                self.settle(out, context)?;
                context.audit.check_spent(self.index)
            }
        }
    }

    pub(super) fn payment_refused(
        &mut self,
        id: ChannelId,
        refusal: &Refusal,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let mut out = Out::default();
        if let Some(buyer) = &mut self.buyer
            && buyer.payment_refused(id, refusal.code(), &mut out)
            && self.active == Some(id)
        {
            self.unacknowledged = false;
        }
        self.settle(out, context)
    }

    /// Starts to count.
    pub(super) fn observe(&mut self, context: &mut Context) {
        let active = self.active.and_then(|id| context.audit.bought.get(&id));
        let Some(bought) = active else { return };
        context.audit.counts.entry(self.index).or_default().starts += 1;
        let mut payer = Payer::new(bought.params.tick_max);
        payer.count(self.counted, context.now_ms);
        self.payer = Some(payer);
    }

    pub(super) fn report(
        &mut self,
        account: &AccountReport,
        counted: Octets,
        sent_ms: u64,
        context: &mut Context,
    ) -> Result<(), Violation> {
        self.account_due_ms = context.now_ms + ACCOUNT_INTERVAL_MS;
        let (Some(payer), Some(buyer)) = (&mut self.payer, &mut self.buyer) else { return Ok(()) };
        payer.count(self.counted, context.now_ms);
        let round_trip = (context.now_ms - sent_ms).max(1);
        let (bought, used) = (account.bought_octets, account.used_octets());
        let judged = payer.report(buyer.bought(), bought, used, counted, round_trip);
        let mut out = Out::default();
        if let (Err(dispute), Some(id)) = (judged, self.active) {
            if context.plan.honest_provider {
                return violated("honest peers agree on what was used", dispute.to_string());
            }
            buyer.disputed(id, dispute, &mut out);
        }
        self.settle(out, context)
    }
}
