//! When a subscriber leaves: the claim is due, or both sign a close.

use bitcoin::{
    ScriptBuf,
    secp256k1::{Message, ecdsa::Signature},
};

use super::{Action, Answer, Controller, Out, Refusal};
use crate::{
    channel::{ChannelId, Close, CloseError, ProviderChannel, ProviderEvent, Wait},
    wire::CloseRequest,
};

/// What the wallet is to give before a wish to close is put in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloseNeeds {
    /// A script of its own that nothing was paid to.
    pub payout_script: bool,
    /// The signature of the channel's key at this index, over a close that was checked.
    pub signature: Option<(u32, Message)>,
}

/// What the wallet gave. It leaves the program only with the answer, once that is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloseOwn {
    /// Where a close is to pay to.
    pub payout_script: Option<ScriptBuf>,
    /// Over the proposal.
    pub signature: Option<Signature>,
}

impl Controller {
    /// What [`super::Input::Close`] needs of the wallet; nothing for a wish that is refused.
    pub fn close_needs(&self, id: &ChannelId, close: &CloseRequest) -> CloseNeeds {
        let Some(channel) = self.book.get(id) else { return CloseNeeds::default() };
        if channel.close(&self.secp, &close.signature, None).is_err() {
            return CloseNeeds::default();
        }
        let proposed = self.proposed(channel, close).ok().flatten();
        let message = proposed.and_then(|close| close.sighash());
        CloseNeeds {
            payout_script: channel.lacks_payout_script(),
            signature: message.map(|message| (channel.key_index(), message)),
        }
    }

    pub(super) fn close(
        &mut self,
        id: &ChannelId,
        close: &CloseRequest,
        own: &CloseOwn,
        out: &mut Out,
    ) -> Result<Answer, Refusal> {
        let channel = self.book.get(id).ok_or(Refusal::UnknownChannel)?;
        self.check_stays(self.accounts.of_channel(id))?;
        let event = channel
            .close(&self.secp, &close.signature, own.payout_script.as_ref())
            .map_err(|error| self.refused_payment(id, error))?;
        let proposed = self.proposed(channel, close);
        if let Some(event) = event {
            self.record(*id, event, out);
        }
        if let (Some(close), Some(proposal)) = (proposed.map_err(Refusal::Close)?, &close.proposal)
        {
            let signature = own.signature.ok_or(Refusal::Close(CloseError::NoPayoutScript))?;
            let signed = close.finish(proposal.signature, signature, self.book.tip());
            let signed = signed.ok_or(Refusal::Close(CloseError::Signature))?;
            let tx = signed.tx.clone();
            self.record(*id, ProviderEvent::CloseSigned(signed), out);
            out.act(Action::Broadcast(tx));
        }
        self.channel(id).map(|report| Answer::Channel(Box::new(report)))
    }

    fn proposed(
        &self,
        channel: &ProviderChannel,
        close: &CloseRequest,
    ) -> Result<Option<Close>, CloseError> {
        let Some(proposal) = &close.proposal else { return Ok(None) };
        let (paid, fee, signature) = (proposal.paid, proposal.fee, &proposal.signature);
        channel.close_proposed(&self.secp, paid, fee, signature, self.book.tip())
    }

    /// Hands closes that are waited for to the network again, and those that no claim could replace.
    pub(super) fn closes_due(&self, out: &mut Out) {
        let tip = self.book.tip();
        let signed = self.book.waiting(Wait::Settlement, Wait::Settlement);
        let waiting = signed.filter(|(_, channel)| {
            let unclaimed = channel.claim().is_none() && channel.spent().is_none();
            channel.awaits_close(tip) || (unclaimed && !channel.finished())
        });
        for close in waiting.filter_map(|(_, channel)| channel.closed_by_both()) {
            out.act(Action::Broadcast(close.tx.clone()));
        }
    }
}
