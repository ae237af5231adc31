//! When a channel is claimed, with which others, and for what fee.
//!
//! Claims are decided when the fee is known: the runloop asks for it with each block, not for each
//! block of many that come at once, so that nothing is signed again and again while it catches up.
//! A claim that no block holds is replaced by one of the same channels; never two by one, so that a
//! replacement pays for one claim before it. One that is early, since its subscriber left, has time:
//! only fees that have risen over its own are a reason to replace it. Nothing is claimed early because fees rise: that would
//! pay the high fee for sure and cut the subscriber off, while who waits has
//! [`CLAIM_WINDOW_BLOCKS`](crate::channel::CLAIM_WINDOW_BLOCKS) for a better one.

use std::collections::BTreeMap;

use bitcoin::{
    Amount, FeeRate, Transaction, Txid, secp256k1::Message, secp256k1::ecdsa::Signature,
};

use super::{Action, Controller, Input, Out};
use crate::channel::{
    CLAIM_URGENT_BLOCKS, CLAIM_WINDOW_BLOCKS, ChannelId, ChannelStatus, Claim, ClaimInput,
    ClaimRecord, FeeEstimates, ProviderChannel, ProviderEvent, Replaced, Wait, blocks_left,
    claim_rate, most_for, pays_off_at,
};

/// Channels claimed in one transaction: 40 x 166 vB stay under TRUC's 10,000 vB.
pub const CLAIM_BATCH_MAX: usize = 40;

/// A claim to sign.
#[derive(Clone, Debug)]
pub struct PlannedClaim {
    channels: Vec<(ChannelId, u32)>,
    claim: Claim,
    fee_rate: FeeRate,
}

impl PlannedClaim {
    /// The channels in it.
    pub fn channels(&self) -> impl ExactSizeIterator<Item = ChannelId> + '_ {
        self.channels.iter().map(|(channel, _)| *channel)
    }

    /// What the channels paid.
    pub fn paid(&self) -> Amount {
        self.claim.paid()
    }

    /// What miners get.
    pub fn fee(&self) -> Amount {
        self.claim.fee()
    }

    /// Has the key of each channel sign, which is named by its index; gives what to put in.
    pub fn sign(self, sign: impl Fn(u32, Message) -> Signature) -> Option<Input> {
        let messages = self.claim.sighashes().into_iter();
        let signatures: Vec<_> = messages
            .zip(&self.channels)
            .map(|(message, (_, key_index))| sign(*key_index, message))
            .collect();
        let (fee, fee_rate) = (self.claim.fee(), self.fee_rate);
        let channels = self.channels().collect();
        let tx = self.claim.finish(&signatures)?;
        Some(Input::Claimed { channels, tx, fee, fee_rate })
    }
}

/// A channel to claim.
#[derive(Clone, Debug)]
struct Due {
    channel: ChannelId,
    input: ClaimInput,
    key_index: u32,
    left: u32,
}

/// Channels that one transaction claims, or that a close pays out, and that are claimed together
/// again.
#[derive(Default)]
struct Group {
    claim: Option<Replaced>,
    /// All of them: a mempool may hold them instead of the claim.
    closes: Option<Replaced>,
    due: Vec<Due>,
}

impl Due {
    fn is_urgent(&self) -> bool {
        self.left < CLAIM_URGENT_BLOCKS
    }
}

impl Controller {
    pub(super) fn take_fees(&mut self, estimates: Option<FeeEstimates>, out: &mut Out) {
        match estimates {
            Some(estimates) => self.fees = Some(estimates),
            // The last one is better than none.
            None => drop(self.fees.get_or_insert(FeeEstimates::FLOOR)),
        }
        self.plan_claims(out);
    }

    /// Has everything signed that is to be claimed now.
    pub(super) fn plan_claims(&mut self, out: &mut Out) {
        let Some(fees) = self.fees.filter(|_| self.synced) else { return };
        let mut fresh = Vec::new();
        let mut replacing: BTreeMap<Txid, Group> = BTreeMap::new();
        let from = self.book.tip();
        let paid = self.book.waiting(Wait::Claim { from: 0 }, Wait::Claim { from });
        // By id, so that the same are claimed together whenever they came to be due.
        for (id, channel) in paid.collect::<BTreeMap<_, _>>() {
            let Some(due) = self.due(id, channel) else { continue };
            let claim = channel.claim().filter(|claim| self.can_confirm(claim));
            let close = channel.closed_by_both();
            let Some(tx) = claim.map(|claim| &claim.tx).or(close.map(|close| &close.tx)) else {
                fresh.push(due);
                continue;
            };
            let group = replacing.entry(tx.compute_txid()).or_default();
            group.claim = claim.map(Replaced::from);
            let closes = group.closes.into_iter().chain(close.map(Replaced::from));
            group.closes = closes.reduce(Replaced::and);
            group.due.push(due);
        }
        let planned = replacing.into_values().filter_map(|group| {
            let left = group.due.iter().map(|due| due.left).min()?;
            let rate = fees.rate(left);
            let replaced = group.claim.into_iter().chain(group.closes).reduce(Replaced::or)?;
            let wanted = match group.claim {
                Some(claim) if left > CLAIM_WINDOW_BLOCKS => {
                    Some(rate).filter(|it| *it > claim.rate)?
                }
                _ => rate.max(replaced.bumped()),
            };
            self.plan(&group.due, wanted, Some(replaced))
        });
        for claim in planned.chain(self.plan_fresh(fresh, fees)) {
            out.act(Action::Claim(claim));
        }
    }

    /// Channels that were never claimed. Those that don't pay off wait for cheaper fees, until time
    /// is short: then they offer miners what they can.
    fn plan_fresh(&self, due: Vec<Due>, fees: FeeEstimates) -> Vec<PlannedClaim> {
        let mut classes: BTreeMap<(bool, bool), Vec<Due>> = BTreeMap::new();
        for due in due {
            let input = &due.input;
            let rate = fees.rate(due.left);
            let rich = pays_off_at(rate, &input.params.remainder_script, input.paid, due.left);
            classes.entry((due.is_urgent(), rich)).or_default().push(due);
        }
        // The richest first: a batch that can't pay for itself is of those that could not alone.
        for due in classes.values_mut() {
            due.sort_by_key(|due| std::cmp::Reverse(due.input.paid));
        }
        let batches = classes
            .iter()
            .flat_map(|(class, due)| due.chunks(CLAIM_BATCH_MAX).map(move |batch| (*class, batch)));
        let planned = batches.filter_map(|((urgent, rich), batch)| {
            if !urgent && !rich {
                return None;
            }
            let left = batch.iter().map(|due| due.left).min()?;
            let wanted = fees.rate(left);
            self.plan(batch, wanted, None).filter(|claim| urgent || claim.fee_rate >= wanted)
        });
        planned.collect()
    }

    fn plan(
        &self,
        batch: &[Due],
        wanted: FeeRate,
        replaced: Option<Replaced>,
    ) -> Option<PlannedClaim> {
        let inputs: Vec<_> = batch.iter().map(|due| due.input.clone()).collect();
        let weight = Claim::new(inputs.clone(), &self.payout, FeeRate::ZERO).ok()?.weight();
        let most = most_for(batch.iter().map(|due| (due.input.paid, due.left)));
        let fee_rate = claim_rate(weight, wanted, most, replaced)?;
        let claim = Claim::new(inputs, &self.payout, fee_rate).ok()?;
        let channels = batch.iter().map(|due| (due.channel, due.key_index)).collect();
        Some(PlannedClaim { channels, claim, fee_rate })
    }

    fn due(&self, channel: ChannelId, known: &ProviderChannel) -> Option<Due> {
        let tip = self.book.tip();
        // One that the network did not take is not waited for.
        let refused = known.claim().is_some_and(|claim| {
            tip > claim.height && self.refused.contains(&claim.tx.compute_txid())
        });
        let input = if refused { known.claimable(tip) } else { known.claim_due(tip) }?;
        let left = blocks_left(known.params().expiry_height, tip);
        Some(Due { channel, input, key_index: known.key_index(), left })
    }

    /// Whether a claim may still be in somebody's mempool: what it spends is there, and nothing
    /// else spent it. Of channels that are at another edge that is not known.
    fn can_confirm(&self, claim: &ClaimRecord) -> bool {
        let txid = claim.tx.compute_txid();
        claim.tx.input.iter().all(|input| match self.book.at(&input.previous_output) {
            Some(known) => known.spent().is_none_or(|spent| spent.txid == txid),
            None => self.fleet.is_some(),
        })
    }

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
        // What was settled while it was signed is not claimed again.
        let due =
            |id: &ChannelId| self.book.get(id).is_some_and(|known| self.due(*id, known).is_some());
        if !channels.iter().all(due) {
            return;
        }
        for channel in channels {
            self.record(channel, ProviderEvent::ClaimSigned(claim.clone()), out);
        }
        let known: Vec<_> = self.waiting_claims().map(Transaction::compute_txid).collect();
        self.refused.retain(|txid| known.contains(txid));
        out.act(Action::Broadcast(tx));
    }

    /// The network did not take a claim for its fee.
    pub(super) fn refused(&mut self, txid: Txid) {
        if self.waiting_claims().any(|tx| tx.compute_txid() == txid) {
            self.refused.insert(txid);
        }
    }

    /// Claims that no block holds go to the network again: mempools forget, and become dearer.
    pub(super) fn broadcast_claims(&self, out: &mut Out) {
        if self.synced {
            let claims = self.waiting_claims().map(|tx| (tx.compute_txid(), tx));
            for tx in claims.collect::<BTreeMap<_, _>>().into_values() {
                out.act(Action::Broadcast(tx.clone()));
            }
        }
    }

    fn waiting_claims(&self) -> impl Iterator<Item = &Transaction> {
        let tip = self.book.tip();
        let closing = move |channel: &&ProviderChannel| {
            channel.status(tip) == ChannelStatus::Closing
                && channel.funding().is_some()
                && !channel.awaits_close(tip)
        };
        let signed = self.book.waiting(Wait::Settlement, Wait::Settlement);
        let channels = signed.map(|(_, channel)| channel).filter(closing);
        channels.filter_map(|channel| channel.claim().map(|claim| &claim.tx))
    }
}
