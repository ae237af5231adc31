//! The channel as the subscriber keeps it.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{
    Amount, FeeRate, OutPoint, Script, ScriptBuf, Transaction,
    secp256k1::{Message, Secp256k1, Verification, XOnlyPublicKey, ecdsa::Signature},
};
use serde::{Deserialize, Serialize};

use super::{
    CLAIM_BUMP_BLOCKS, CLAIM_MARGIN_BLOCKS, CLOSE_WAIT_BLOCKS, ChannelParams, ChannelStatus, Close,
    CloseError, CloseRecord, FUNDING_WINDOW_BLOCKS, Funding, InvalidEvent, Spent, Wait, Waits,
    claim_pays_off,
    compact::is_zero,
    course::{Course, Gone},
    payment_sighash,
};
use crate::units::{Msat, Octets};

/// Blocks that agreed terms wait for the funding to be signed. Later, the provider may have given up
/// the channel, and money in it would come back only at the expiry.
pub const AGREED_WINDOW_BLOCKS: u32 = 6;

/// Blocks that a funding is waited for before it is replaced by one with a higher fee.
pub const FUNDING_BUMP_BLOCKS: u32 = 6;

/// Fundings that are signed for one channel at most: fees can't go up for ever.
pub const FUNDINGS_MAX: usize = 12;

/// Blocks before a provider may forget a channel that was never funded at which its funding is no
/// longer broadcast or replaced: one that confirms later locks money up until the expiry.
const FUNDING_LATE_BLOCKS: u32 = 36;

const _: () = assert!(FUNDING_LATE_BLOCKS + AGREED_WINDOW_BLOCKS < FUNDING_WINDOW_BLOCKS);

/// What happened to a channel. The journal is a list of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SubscriberEvent {
    /// Terms agreed.
    Negotiated {
        /// The terms.
        params: Box<ChannelParams>,
        /// Index of the subscriber's key in its wallet.
        key_index: u32,
        /// Who sells.
        provider: XOnlyPublicKey,
        /// Where its API is.
        url: String,
        /// Tip when they were agreed, by the provider's word where the own one was older.
        height: u32,
    },
    /// Found again by what its funding carries. It is never paid on: what was, nobody here knows.
    Restored {
        /// Those terms that give the script; the rest is made up.
        params: Box<ChannelParams>,
        /// Index of the subscriber's key in its wallet.
        key_index: u32,
        /// Tip when it was found.
        height: u32,
    },
    /// A funding was signed and may be broadcast at any time. Each one after the first conflicts
    /// with all before it, so that no two of them can confirm.
    FundingSigned {
        /// The transaction.
        #[serde(with = "crate::hexadecimal")]
        tx: Transaction,
        /// Tip when it was signed.
        #[serde(default)]
        height: u32,
    },
    /// The provider lets payments on a funding count that is in no block.
    FundingTaken {
        /// The funding.
        outpoint: OutPoint,
    },
    /// The funding is in a block.
    Funded(Funding),
    /// A reorganisation took it out again.
    Unfunded,
    /// A commitment was signed and may be sent at any time.
    PaymentSigned {
        /// Sum of all payments.
        #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
        paid: Amount,
        /// Over it.
        signature: Signature,
        /// Payments right before it that this one stands for, too.
        #[serde(default, skip_serializing_if = "is_zero")]
        earlier: u64,
    },
    /// The provider bills what was not counted here; nothing more is signed.
    Disputed {
        /// Octets that the provider reports.
        reported_octets: Octets,
        /// Octets counted here.
        counted_octets: Octets,
    },
    /// Leave: nothing more is paid, the provider is asked to claim.
    CloseRequested {
        /// Tip when that was decided.
        #[serde(default)]
        height: u32,
    },
    /// A close was signed on this side, and may be proposed at any time.
    CloseSigned(CloseRecord),
    /// The provider signed it, too, and it may be broadcast at any time.
    CloseAgreed {
        /// With both signatures.
        #[serde(with = "crate::hexadecimal")]
        tx: Transaction,
    },
    /// The refund was signed and may be broadcast at any time.
    RefundSigned {
        /// The transaction.
        #[serde(with = "crate::hexadecimal")]
        tx: Transaction,
        /// Tip when it was signed.
        height: u32,
    },
    /// The funding was spent in a block.
    Spent(Spent),
    /// A reorganisation undid that.
    Unspent,
    /// The end: the spend is final.
    Finished,
}

/// Why nothing is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayError {
    /// The funding has too few confirmations.
    #[error("the funding is not confirmed yet")]
    Unconfirmed,
    /// Closing, disputed, spent or about to expire.
    #[error("the channel takes no more payments: open a new one")]
    Closed,
    /// Not more than was signed before.
    #[error("{0} is signed already")]
    NotMore(Amount),
    /// More than the channel holds.
    #[error("the channel is spent: it can pay {0} in all; close it and open a new one")]
    Spent(Amount),
}

/// The fold of a channel's journal.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriberChannel {
    course: Course,
    key_index: u32,
    provider: XOnlyPublicKey,
    url: String,
    agreed_height: u32,
    restored: bool,
    /// Each with the tip when it was signed.
    fundings: Vec<(Transaction, u32)>,
    taken: Option<OutPoint>,
    /// The best payment on each funding. Those on a funding that never confirms are void.
    best: BTreeMap<OutPoint, (Amount, Signature)>,
    commitments: u64,
    disputed: Option<(Octets, Octets)>,
    /// Tip when the wish to leave was written down.
    leaves_since: Option<u32>,
    close: Option<CloseRecord>,
    refund: Option<(Transaction, u32)>,
}

impl SubscriberChannel {
    /// The first event of a journal.
    pub fn open(event: &SubscriberEvent) -> Result<Self, InvalidEvent> {
        let (params, key_index, provider, url, height) = match event {
            SubscriberEvent::Negotiated { params, key_index, provider, url, height } => {
                (params, key_index, *provider, url.as_str(), height)
            }
            SubscriberEvent::Restored { params, key_index, height } => {
                // Who sold is not known, nor where: the key of the channel names it.
                let provider = params.provider.point().ok_or(InvalidEvent("a key that is none"))?;
                (params, key_index, provider.x_only_public_key().0, "", height)
            }
            _ => return Err(InvalidEvent("a channel that was never negotiated")),
        };
        let restored = matches!(event, SubscriberEvent::Restored { .. });
        // Terms are agreed on by what a provider says.
        params.validate().map_err(|_| InvalidEvent("a channel with impossible terms"))?;
        let mut course = Course::new(Arc::new((**params).clone()))?;
        course.close_requested = restored;
        Ok(Self {
            course,
            key_index: *key_index,
            provider,
            url: url.to_owned(),
            agreed_height: *height,
            restored,
            fundings: Vec::new(),
            taken: None,
            best: BTreeMap::new(),
            commitments: 0,
            disputed: None,
            leaves_since: None,
            close: None,
            refund: None,
        })
    }

    /// Follows one event.
    pub fn apply(&mut self, event: &SubscriberEvent) -> Result<(), InvalidEvent> {
        if self.course.finished {
            return Err(InvalidEvent("an event after the end of a channel"));
        }
        match event {
            SubscriberEvent::Negotiated { .. } | SubscriberEvent::Restored { .. } => {
                return Err(InvalidEvent("a channel negotiated twice"));
            }
            SubscriberEvent::FundingSigned { tx, height } => {
                if !self.is_fundable_by(tx) {
                    return Err(InvalidEvent("a funding of another channel, or one too many"));
                }
                self.fundings.push((tx.clone(), *height));
            }
            SubscriberEvent::FundingTaken { outpoint } => {
                if !self.funding_outpoints().any(|own| own == *outpoint) {
                    return Err(InvalidEvent("a funding of somebody else's was taken"));
                }
                self.taken = Some(*outpoint);
            }
            SubscriberEvent::Funded(funding) => {
                self.course.fund(*funding)?;
                self.close = self.close.take().filter(|close| close.spends(Some(funding.outpoint)));
            }
            SubscriberEvent::Unfunded => self.course.undo(Gone::Funding)?,
            SubscriberEvent::PaymentSigned { paid, signature, earlier } => {
                if *paid <= self.paid() || *paid > self.course.params.payable() {
                    return Err(InvalidEvent("a payment out of order or bounds"));
                }
                if self.course.close_requested {
                    return Err(InvalidEvent("a payment after the close"));
                }
                let outpoint = self.outpoint();
                let outpoint = outpoint.ok_or(InvalidEvent("a payment without a funding"))?;
                self.best.insert(outpoint, (*paid, *signature));
                self.commitments = self.commitments.saturating_add(1).saturating_add(*earlier);
            }
            SubscriberEvent::Disputed { reported_octets, counted_octets } => {
                self.disputed = Some((*reported_octets, *counted_octets));
            }
            SubscriberEvent::CloseRequested { height } => {
                self.course.close_requested = true;
                self.leaves_since = self.leaves_since.or(Some(*height));
            }
            SubscriberEvent::CloseSigned(close) => {
                if !close.spends(self.course.outpoint()) || close.paid != self.paid() {
                    return Err(InvalidEvent("a close of another funding, or of another sum"));
                }
                self.course.close_requested = true;
                self.close = Some(close.clone());
            }
            SubscriberEvent::CloseAgreed { tx } => {
                let close = self
                    .close
                    .as_mut()
                    .filter(|close| close.tx.compute_txid() == tx.compute_txid());
                close.ok_or(InvalidEvent("another close than was proposed"))?.tx = tx.clone();
            }
            SubscriberEvent::RefundSigned { tx, height } => {
                self.refund = Some((tx.clone(), *height));
            }
            SubscriberEvent::Spent(spent) => self.course.spend(*spent)?,
            SubscriberEvent::Unspent => self.course.undo(Gone::Spend)?,
            SubscriberEvent::Finished => self.course.finished = true,
        }
        Ok(())
    }

    /// What to sign to have paid `paid` in all.
    pub fn payment(&self, paid: Amount, tip: u32) -> Result<Message, PayError> {
        let usable = matches!(
            self.status(tip),
            ChannelStatus::Unfunded | ChannelStatus::Confirming { .. } | ChannelStatus::Open
        );
        if !usable || self.disputed.is_some() {
            return Err(PayError::Closed);
        }
        let payable = self.payable(tip);
        let outpoint = self.outpoint().filter(|_| payable > Amount::ZERO);
        let outpoint = outpoint.ok_or(PayError::Unconfirmed)?;
        if paid <= self.paid() {
            return Err(PayError::NotMore(self.paid()));
        }
        if paid > payable {
            return Err(PayError::Spent(payable));
        }
        payment_sighash(&self.course.params, outpoint, paid).ok_or(PayError::Spent(payable))
    }

    /// Most that payments may come to now: all of it once the funding is confirmed, what the terms
    /// allow while it has too few blocks, or none and the provider counts on it.
    pub fn payable(&self, tip: u32) -> Amount {
        match self.status(tip) {
            ChannelStatus::Open => self.course.params.payable(),
            ChannelStatus::Confirming { .. } => self.course.params.unconfirmed_max,
            ChannelStatus::Unfunded if self.taken.is_some() => self.course.params.unconfirmed_max,
            _ => Amount::ZERO,
        }
    }

    /// What was paid on a funding that another one took the place of, where it is more than was
    /// paid on that: it was used, and is owed again.
    pub fn owed(&self) -> Option<Amount> {
        Some(self.promised()).filter(|most| *most > self.paid())
    }

    /// The most that was signed on any funding: paid, or owed again.
    pub fn promised(&self) -> Amount {
        self.best.values().map(|(paid, _)| *paid).max().unwrap_or_default()
    }

    /// What commitments spend: the confirmed funding, else the one that the provider took.
    fn outpoint(&self) -> Option<OutPoint> {
        self.course.outpoint().or(self.taken)
    }

    /// The outputs of this side's own that could fund the channel.
    fn funding_outpoints(&self) -> impl Iterator<Item = OutPoint> + '_ {
        let params = &self.course.params;
        self.fundings.iter().filter_map(move |(tx, _)| funding_outpoint(params, tx))
    }

    /// Whether `tx` funds the channel, and spends of what each funding before it does.
    pub fn is_fundable_by(&self, tx: &Transaction) -> bool {
        let conflicts = |other: &Transaction| {
            let spent = |input: &bitcoin::TxIn| {
                other.input.iter().any(|known| known.previous_output == input.previous_output)
            };
            tx.input.iter().any(spent)
        };
        self.fundings.len() < FUNDINGS_MAX
            && self.course.funding.is_none()
            && funding_outpoint(&self.course.params, tx).is_some()
            && self.fundings.iter().all(|(known, _)| conflicts(known))
    }

    /// Whether the newest funding is to be broadcast: no block holds one, and it is not too late
    /// for one.
    pub fn funding_waits(&self, tip: u32) -> Option<&Transaction> {
        let waits = self.course.awaits_funding() && !self.is_late(tip);
        self.funding_tx().filter(|_| waits)
    }

    /// Whether what was signed to fund it came too late, for all that is known: nothing is done for
    /// it any more, and another channel takes its place. It is followed on: should one of its
    /// fundings be in a block after all, it is used, or refunded when its end has come.
    pub fn given_up(&self, tip: u32) -> bool {
        self.course.awaits_funding() && !self.fundings.is_empty() && self.is_late(tip)
    }

    fn is_late(&self, tip: u32) -> bool {
        let window = FUNDING_WINDOW_BLOCKS - FUNDING_LATE_BLOCKS;
        tip >= self.agreed_height.saturating_add(window)
    }

    /// Whether the newest funding has waited so long that one with a higher fee is to replace it.
    pub fn funding_bump_due(&self, tip: u32) -> bool {
        let overdue =
            |(_, height): &(Transaction, u32)| tip >= height.saturating_add(FUNDING_BUMP_BLOCKS);
        self.funding_waits(tip).is_some()
            && !self.course.close_requested
            && self.fundings.len() < FUNDINGS_MAX
            && self.fundings.last().is_some_and(overdue)
    }

    /// Whether a funding is to be signed: the first one while the channel can still be used, or one
    /// that replaces the last. To be asked right before it is signed: one that the channel doesn't
    /// follow locks up all of the capacity until the expiry.
    pub fn funding_due(&self, tip: u32) -> bool {
        let unused = self.fundings.is_empty() && self.status(tip) == ChannelStatus::Unfunded;
        unused || self.funding_bump_due(tip)
    }

    /// What it means that the provider says that it counts on `outpoint`.
    pub fn funding_taken(&self, outpoint: OutPoint) -> Option<SubscriberEvent> {
        let own = self.funding_outpoints().any(|own| own == outpoint);
        let new = self.taken != Some(outpoint) && !self.course.finished;
        (own && new).then_some(SubscriberEvent::FundingTaken { outpoint })
    }

    /// What it means that a block at `height` holds `outpoint`, which pays the channel's script.
    /// Only outputs that this side funded count, whichever of them it is: commitments spend no
    /// other. A channel that was restored has none.
    pub fn funding_seen(&self, outpoint: OutPoint, height: u32) -> Option<SubscriberEvent> {
        let own = self.restored || self.funding_outpoints().any(|own| own == outpoint);
        let wanted = own && self.course.awaits_funding();
        wanted.then_some(SubscriberEvent::Funded(Funding { outpoint, height }))
    }

    /// What it means that `tx`, in a block at `height`, spends the funding.
    pub fn spend_seen(&self, tx: &Transaction, height: u32) -> Option<SubscriberEvent> {
        self.course.spend_in(tx, height).map(SubscriberEvent::Spent)
    }

    /// What it means that the block at `height` is no longer part of the chain.
    pub fn block_gone(&self, height: u32) -> Option<SubscriberEvent> {
        self.course.gone_with(height).map(|gone| match gone {
            Gone::Funding => SubscriberEvent::Unfunded,
            Gone::Spend => SubscriberEvent::Unspent,
        })
    }

    /// What it waits for that is the book's to look at.
    pub fn waits(&self) -> Waits {
        [self.course.may_finish().then_some(Wait::End), None, None, None]
    }

    /// The end, when the tip has come far enough for it.
    pub fn finish(&self, tip: u32) -> Option<SubscriberEvent> {
        let stale = tip > self.agreed_height.saturating_add(AGREED_WINDOW_BLOCKS);
        let abandoned = self.fundings.is_empty() && !self.restored && stale;
        let ended = self.course.settled(tip) || abandoned;
        (!self.course.finished && ended).then_some(SubscriberEvent::Finished)
    }

    /// The outpoint to refund now: the next block may hold the refund, nothing spent the funding,
    /// and no refund has been waiting for less than [`CLAIM_BUMP_BLOCKS`].
    pub fn refund_due(&self, tip: u32) -> Option<OutPoint> {
        let waiting = self
            .refund
            .as_ref()
            .is_some_and(|(_, height)| tip < height.saturating_add(CLAIM_BUMP_BLOCKS));
        let due = tip >= self.course.params.expiry_height
            && self.course.spent().is_none()
            && !self.course.finished;
        self.course.outpoint().filter(|_| due && !waiting)
    }

    /// The close to propose now, when fees are at `fee_rate` and the provider said where it wants
    /// to be paid; none while its own claim is to be expected or a proposal is out. One that it
    /// signed and that doesn't confirm is followed by one with more fee; one that it keeps for
    /// itself is not, or it could have the fee raised.
    pub fn close_due(
        &self,
        payout_script: &Script,
        fee_rate: FeeRate,
        tip: u32,
    ) -> Result<Option<Close>, CloseError> {
        let (params, paid) = (&self.course.params, self.paid());
        let closing = self.status(tip) == ChannelStatus::Closing && tip < params.expiry_height;
        let Some(funding) = self.course.outpoint().filter(|_| closing) else { return Ok(None) };
        let at_rate = || Close::at_rate(params, funding, paid, payout_script, fee_rate);
        if let Some(last) = &self.close {
            if last.is_fresh(tip) || !last.is_agreed() {
                return Ok(None);
            }
            let close = at_rate()?;
            let fee = last.replaced(&close).max(close.fee());
            return Close::new(params, funding, paid, payout_script, fee).map(Some);
        }
        let margin = params.expiry_height.saturating_sub(CLAIM_MARGIN_BLOCKS);
        let since = self.leaves_since.unwrap_or(margin);
        let overdue = tip >= since.saturating_add(CLOSE_WAIT_BLOCKS);
        if claim_pays_off(params, paid, fee_rate, tip) && !overdue {
            return Ok(None);
        }
        at_rate().map(Some)
    }

    /// What it means that the provider answers a proposal with `tx`.
    pub fn close_answered<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        tx: &Transaction,
    ) -> Option<SubscriberEvent> {
        let close = self.close.as_ref().filter(|close| !close.is_agreed())?;
        close
            .is_agreed_by(secp, &self.course.params, tx)
            .then(|| SubscriberEvent::CloseAgreed { tx: tx.clone() })
    }

    /// Where the channel stands when the tip is at `tip`.
    pub fn status(&self, tip: u32) -> ChannelStatus {
        self.course.status(tip)
    }

    /// The terms.
    pub fn params(&self) -> &ChannelParams {
        &self.course.params
    }

    /// The script that the funding pays.
    pub fn funding_script(&self) -> ScriptBuf {
        self.course.script()
    }

    /// Index of the subscriber's key in its wallet.
    pub fn key_index(&self) -> u32 {
        self.key_index
    }

    /// The height at which the terms were agreed.
    pub fn agreed_height(&self) -> u32 {
        self.agreed_height
    }

    /// Whether it was found again by what its funding carries, and what was paid is not known.
    pub fn restored(&self) -> bool {
        self.restored
    }

    /// Who sells; of a restored channel, the provider's key in its script.
    pub fn provider(&self) -> XOnlyPublicKey {
        self.provider
    }

    /// Where the provider's API is; empty where that is not known.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The newest funding that was signed.
    pub fn funding_tx(&self) -> Option<&Transaction> {
        self.fundings.last().map(|(tx, _)| tx)
    }

    /// All fundings that were signed, oldest first.
    pub fn fundings(&self) -> impl DoubleEndedIterator<Item = &Transaction> {
        self.fundings.iter().map(|(tx, _)| tx)
    }

    /// The funding that the provider counts on before it is in a block.
    pub fn taken(&self) -> Option<OutPoint> {
        self.taken
    }

    /// The funding, once it is in a block.
    pub fn funding(&self) -> Option<Funding> {
        self.course.funding
    }

    /// Sum of all payments signed on the funding that counts; of the most on any of them, while
    /// none does.
    pub fn paid(&self) -> Amount {
        let paid = match self.outpoint() {
            Some(outpoint) => self.best.get(&outpoint).map(|(paid, _)| *paid),
            None => self.best.values().map(|(paid, _)| *paid).max(),
        };
        paid.unwrap_or(Amount::ZERO)
    }

    /// The best payment, to be sent again after a restart.
    pub fn best(&self) -> Option<(Amount, Signature)> {
        self.best.get(&self.outpoint()?).copied()
    }

    /// Octets that the payments buy.
    pub fn bought(&self) -> Octets {
        let paid = Msat::from_amount(self.paid()).unwrap_or_default();
        self.course.params.schedule.octets_for(paid).unwrap_or(Octets(u64::MAX))
    }

    /// Payments signed.
    pub fn commitments(&self) -> u64 {
        self.commitments
    }

    /// What the provider reported and what was counted here, when they differ too much.
    pub fn disputed(&self) -> Option<(Octets, Octets)> {
        self.disputed
    }

    /// The newest close that this side signed.
    pub fn proposed_close(&self) -> Option<&CloseRecord> {
        self.close.as_ref()
    }

    /// The newest close that both signed, confirmed or not.
    pub fn closed_by_both(&self) -> Option<&CloseRecord> {
        self.close.as_ref().filter(|close| close.is_agreed())
    }

    /// The newest refund, confirmed or not.
    pub fn refund_tx(&self) -> Option<&Transaction> {
        self.refund.as_ref().map(|(tx, _)| tx)
    }

    /// The confirmed spend.
    pub fn spent(&self) -> Option<Spent> {
        self.course.spent()
    }

    /// Whether nothing can happen any more.
    pub fn finished(&self) -> bool {
        self.course.finished
    }

    /// Whether nothing is left that anybody could want to know of it: it is over, and no funding
    /// was ever signed or found.
    pub fn forgettable(&self) -> bool {
        self.course.finished && self.fundings.is_empty() && !self.restored
    }
}

/// The output of `tx` that funds the channel.
pub fn funding_outpoint(params: &ChannelParams, tx: &Transaction) -> Option<OutPoint> {
    let script = params.funding_script();
    let vout = tx
        .output
        .iter()
        .position(|output| output.value == params.capacity && output.script_pubkey == script)?;
    Some(OutPoint::new(tx.compute_txid(), u32::try_from(vout).ok()?))
}

super::book::machine!(SubscriberChannel, SubscriberEvent);
