//! What a payment grants.

use bitcoin::Amount;

use super::{Answer, Controller, Out, Refusal};
use crate::{
    channel::{ChannelId, PaymentCheck, PaymentError, ProviderChannel, VerifiedPayment},
    station::Station,
    wire::{PaymentReply, PaymentRequest},
};

impl Controller {
    pub(super) fn pay(
        &mut self,
        id: &ChannelId,
        payment: &PaymentRequest,
        verified: Option<&VerifiedPayment>,
        station: Option<Station>,
        out: &mut Out,
    ) -> Result<Answer, Refusal> {
        let channel = self.book.get(id).ok_or(Refusal::UnknownChannel)?;
        let station = station.unwrap_or(channel.station());
        let account = self.accounts.of_channel(id).ok_or(Refusal::UnknownChannel)?;
        self.check_stays(Some(account))?;
        let (paid, signature, tip) = (payment.paid, &payment.signature, self.book.tip());
        let judged = channel.pay(&self.secp, paid, signature, verified, tip);
        if let Some(event) = judged.map_err(|error| self.refused_payment(id, error))? {
            self.check_unconfirmed(id, payment.paid)
                .map_err(|error| self.refused_payment(id, error))?;
            self.record(*id, event, out);
            self.share(account, out);
        }
        let paid = self.book.get(id).map_or(Amount::ZERO, ProviderChannel::paid);
        let account = self.account_of(account, station);
        Ok(Answer::Payment(Box::new(PaymentReply { paid, account })))
    }

    /// What a payment of this sum is to be verified against before it is put in ([`Input::Pay`]), on
    /// any thread; `None` for one that is refused without looking at its signature.
    pub fn payment_check(&self, id: &ChannelId, paid: Amount) -> Option<PaymentCheck> {
        let (channel, tip) = (self.book.get(id)?, self.book.tip());
        channel.judge_sum(paid, tip).ok()?;
        channel.payment_check(tip)
    }

    pub(super) fn refused_payment(&self, id: &ChannelId, error: PaymentError) -> Refusal {
        let best = self.book.get(id).map_or(Amount::ZERO, ProviderChannel::paid);
        Refusal::Payment { error, best }
    }
}
