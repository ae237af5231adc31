//! When a channel is claimed, and with which others.

use bitcoin::{Amount, FeeRate, Transaction};

use super::{Action, Controller, Out};
use crate::channel::{ChannelId, ClaimInput, ClaimRecord, ProviderEvent};

/// Channels claimed in one transaction: 40 x 166 vB stay under TRUC's 10,000 vB.
pub const CLAIM_BATCH_MAX: usize = 40;

/// A channel to claim.
#[derive(Clone, Debug)]
pub struct DueClaim {
    /// Its name.
    pub channel: ChannelId,
    /// Its part of the transaction.
    pub input: ClaimInput,
    /// Index of the key that signs.
    pub key_index: u32,
    /// Fee rate that the claim has to beat, if one was broadcast before.
    pub replaces: Option<FeeRate>,
}

impl Controller {
    pub(super) fn claimed(
        &mut self,
        channels: Vec<ChannelId>,
        tx: Transaction,
        fee: Amount,
        fee_rate: FeeRate,
        out: &mut Out,
    ) {
        let claim = ClaimRecord {
            tx: tx.clone(),
            fee_rate_sat_per_kwu: fee_rate.to_sat_per_kwu(),
            fee,
            height: self.book.tip(),
        };
        // Blocks may have come while the fee was asked for: what they settled is not claimed again.
        let tip = self.book.tip();
        let due = |id: &ChannelId| self.book.get(id).and_then(|channel| channel.claim_due(tip));
        if !channels.iter().all(|id| due(id).is_some()) {
            return;
        }
        for channel in channels {
            self.record(channel, ProviderEvent::ClaimSigned(claim.clone()), out);
        }
        out.act(Action::Broadcast(tx));
    }

    pub(super) fn claim_due(&self, out: &mut Out) {
        let tip = self.book.tip();
        let due: Vec<_> = self
            .book
            .iter()
            .filter_map(|(id, channel)| {
                let rate =
                    |claim: &ClaimRecord| FeeRate::from_sat_per_kwu(claim.fee_rate_sat_per_kwu);
                Some(DueClaim {
                    channel: *id,
                    input: channel.claim_due(tip)?,
                    key_index: channel.key_index(),
                    replaces: channel.claim().map(rate),
                })
            })
            .collect();
        for batch in due.chunks(CLAIM_BATCH_MAX) {
            out.act(Action::Claim(batch.to_vec()));
        }
    }
}
