//! Fundings that subscribers present: handed to the network for them, and good for a little credit
//! before a block holds them.

use bitcoin::{Amount, BlockHash, Transaction, Txid};

use super::{Action, Answer, Controller, Out, Refusal, RequestId};
use crate::channel::{ChannelId, FundingError, PaymentError, ProviderChannel, ProviderEvent, Wait};

/// Credit before confirmation that all channels have together, in channels that have all they may:
/// what a provider can lose to fundings that are spent twice, in the blocks of
/// [`FUNDING_WINDOW_BLOCKS`](crate::channel::FUNDING_WINDOW_BLOCKS).
pub const UNCONFIRMED_CHANNELS_MAX: u64 = 16;

/// Fundings of all channels that are on their way to the network at one time.
pub const PRESENTED_AT_ONCE_MAX: usize = 16;

/// Fundings of one channel that the network may refuse between two blocks.
pub const FUNDINGS_REFUSED_MAX: usize = 3;

/// What became of a funding that was handed to the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is in a mempool, or in a block already.
    Yes,
    /// The network refuses it, with this reason.
    No(String),
    /// Not known: the chain source does not answer.
    Unknown,
}

impl Controller {
    pub(super) fn fund(
        &mut self,
        request: RequestId,
        channel: ChannelId,
        tx: Transaction,
        out: &mut Out,
    ) {
        let judged = match self.judge_funding(&channel, &tx) {
            Ok(Some(_)) => match self.check_presenting(&channel) {
                Ok(()) => {
                    self.presenting.insert(channel);
                    return out.act(Action::Present { request, channel, tx });
                }
                Err(refusal) => Err(refusal),
            },
            Ok(None) => self.report(&channel),
            Err(refusal) => Err(refusal),
        };
        out.act(Action::Reply(request, judged));
    }

    /// Whether another funding may be handed to the network now: it costs who presents it nothing.
    fn check_presenting(&self, channel: &ChannelId) -> Result<(), Refusal> {
        if !self.synced {
            return Err(Refusal::ChainLost);
        }
        let refused = self.fundings_refused.get(channel).copied().unwrap_or(0);
        if refused >= FUNDINGS_REFUSED_MAX {
            return Err(Refusal::Funding(FundingError::TooMany));
        }
        let others = self.presenting.len() >= PRESENTED_AT_ONCE_MAX;
        if others || self.presenting.contains(channel) {
            return Err(Refusal::Funding(FundingError::Waiting));
        }
        Ok(())
    }

    pub(super) fn presented(
        &mut self,
        request: RequestId,
        channel: ChannelId,
        tx: &Transaction,
        taken: Taken,
        out: &mut Out,
    ) {
        self.presenting.remove(&channel);
        let answer = match taken {
            Taken::Yes => self.judge_funding(&channel, tx).and_then(|event| {
                if let Some(event) = event {
                    self.record(channel, event, out);
                    self.share_of(&channel, out);
                }
                self.report(&channel)
            }),
            Taken::No(reason) => {
                *self.fundings_refused.entry(channel).or_default() += 1;
                Err(Refusal::Funding(FundingError::Refused(reason)))
            }
            Taken::Unknown => Err(Refusal::ChainLost),
        };
        out.act(Action::Reply(request, answer));
    }

    fn judge_funding(
        &self,
        channel: &ChannelId,
        tx: &Transaction,
    ) -> Result<Option<ProviderEvent>, Refusal> {
        self.check_stays(self.accounts.of_channel(channel))?;
        let known = self.book.get(channel).ok_or(Refusal::UnknownChannel)?;
        known.judge_funding(tx, self.book.tip()).map_err(Refusal::Funding)
    }

    /// Has the network asked whether it still takes the fundings that wait for a block.
    pub(super) fn check_offered(&self, out: &mut Out) {
        let offered = |(id, channel): (ChannelId, &ProviderChannel)| {
            Some((id, channel.offered_tx()?.clone()))
        };
        let waiting = self.book.waiting(Wait::Funding, Wait::Funding);
        let waiting: Vec<_> = waiting.filter_map(offered).collect();
        if self.synced && !waiting.is_empty() {
            out.act(Action::CheckOffered(waiting));
        }
    }

    /// The network takes an offered funding no more: what it spends is spent elsewhere, or mempools
    /// have put it out. What was paid on it, and not used, is taken back. While there are blocks that
    /// were not followed yet nothing is: with the last of them it is asked for again.
    pub(super) fn offered_gone(
        &mut self,
        channel: ChannelId,
        txid: Txid,
        tip: BlockHash,
        out: &mut Out,
    ) {
        let followed = self.book.tips().last().is_some_and(|(_, newest)| newest == tip);
        let offered = self.book.get(&channel).and_then(ProviderChannel::offered_tx);
        if followed && offered.is_some_and(|tx| tx.compute_txid() == txid) {
            self.record(channel, ProviderEvent::FundingRevoked, out);
            self.share_of(&channel, out);
        }
    }

    /// Whether `paid` on a channel before its confirmation is more than all may have together.
    pub(super) fn check_unconfirmed(
        &self,
        channel: &ChannelId,
        paid: Amount,
    ) -> Result<(), PaymentError> {
        let tip = self.book.tip();
        let Some(known) = self.book.get(channel) else { return Ok(()) };
        if known.is_confirmed(tip) {
            return Ok(());
        }
        let others = self.unsure.iter().filter(|id| *id != channel);
        let others = others.filter_map(|id| self.book.get(id));
        let others: Amount = others.map(|other| other.at_risk(tip)).sum();
        let each = self.offer().map_or(Amount::ZERO, |offer| offer.offer.terms.unconfirmed_max);
        let most = each.checked_mul(UNCONFIRMED_CHANNELS_MAX).unwrap_or(Amount::MAX_MONEY);
        let sum = others.checked_add(paid).unwrap_or(Amount::MAX_MONEY);
        if sum > most { Err(PaymentError::TooMuchUnconfirmed) } else { Ok(()) }
    }

    /// Whether nothing of a channel is at risk; blocks and payments not made yet aside, that stays so.
    pub(super) fn is_sure(&self, channel: &ChannelId) -> bool {
        let tip = self.book.tip();
        self.book.get(channel).is_none_or(|channel| channel.at_risk(tip) == Amount::ZERO)
    }

    /// A block came: some fundings have their confirmations now.
    pub(super) fn forget_sure(&mut self) {
        let mut unsure = std::mem::take(&mut self.unsure);
        unsure.retain(|id| !self.is_sure(id));
        self.unsure = unsure;
    }

    /// A block went: every funding may lack confirmations again.
    pub(super) fn doubt(&mut self) {
        let all = self.book.iter().map(|(id, _)| *id);
        self.unsure = all.filter(|id| !self.is_sure(id)).collect();
    }

    fn share_of(&mut self, channel: &ChannelId, out: &mut Out) {
        if let Some(account) = self.accounts.of_channel(channel) {
            self.share(account, out);
        }
    }

    fn report(&self, channel: &ChannelId) -> Result<Answer, Refusal> {
        self.channel(channel).map(|report| Answer::Channel(Box::new(report)))
    }
}
