//! The channel as the provider keeps it.

use std::{collections::BTreeSet, sync::Arc};

use bitcoin::{
    Amount, OutPoint, ScriptBuf, Transaction,
    secp256k1::{Secp256k1, Verification, ecdsa::Signature},
};
use serde::{Deserialize, Serialize};

use super::{
    CLAIM_BUMP_BLOCKS, CLAIM_MARGIN_BLOCKS, ChannelParams, ChannelStatus, ClaimInput, Close,
    CloseError, CloseRecord, Funding, InvalidEvent, Nonce, PaymentError, Spent, Wait, Waits,
    close_digest,
    compact::is_zero,
    course::{Course, Gone},
    params,
    rare::{NOTHING_RARE, Rare},
    subscriber::funding_outpoint,
};
use crate::{
    fleet::LateId,
    ledger::Usage,
    station::Station,
    units::{Msat, Octets},
};

/// Blocks that an opened channel waits for its funding before it is forgotten.
pub const FUNDING_WINDOW_BLOCKS: u32 = 432;

/// Fundings that are taken for one channel, each of which may replace the one before.
pub const FUNDINGS_OFFERED_MAX: usize = 12;

/// What happened to a channel. The journal is a list of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ProviderEvent {
    /// Terms agreed; nothing is at stake.
    Opened {
        /// The terms.
        #[serde(with = "params::written")]
        params: Arc<ChannelParams>,
        /// Index of the provider's key in its wallet.
        key_index: u32,
        /// Who asked. Payments credit the account that it belongs to.
        station: Station,
        /// Tip when it was opened.
        height: u32,
        /// What the station had used until then; another account paid for that.
        #[serde(default, skip_serializing_if = "Usage::is_nothing")]
        used: Usage,
    },
    /// The channel's account pays for a station from now on.
    Bound {
        /// Which.
        station: Station,
        /// Of what the subscriber signed.
        nonce: Nonce,
        /// What it had used until then.
        used: Usage,
    },
    /// The channel's account pays no more for a station.
    Unbound {
        /// Which.
        station: Station,
        /// Of what the subscriber signed.
        nonce: Nonce,
    },
    /// A station of the channel's account goes over to another one, whose own events tell to which.
    Left {
        /// Which.
        station: Station,
        /// What it had used until then.
        used: Usage,
    },
    /// What a station used at an edge that was taken over became known when that was back; the
    /// channel's account pays for it.
    UsedLate {
        /// What names it.
        late: LateId,
        /// How much: no more than the account had left.
        octets: Octets,
    },
    /// A signed funding was presented, and the network took it: payments on it count up to the
    /// terms' `unconfirmed_max`.
    FundingOffered {
        /// The transaction.
        #[serde(with = "crate::hexadecimal")]
        tx: Transaction,
    },
    /// The network takes that funding no more: what was paid on it counts no more, unless a block
    /// holds it yet.
    FundingRevoked,
    /// The funding is in a block.
    Funded(Funding),
    /// A reorganisation took it out again.
    Unfunded,
    /// A better commitment was verified.
    Paid {
        /// Sum of all payments.
        #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
        paid: Amount,
        /// The subscriber's signature over it.
        signature: Signature,
        /// Payments right before it that this one stands for, too.
        #[serde(default, skip_serializing_if = "is_zero")]
        earlier: u64,
    },
    /// The subscriber asked for the claim to be made now.
    CloseRequested {
        /// Where a close pays the provider, once that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payout_script: Option<ScriptBuf>,
    },
    /// Both signed a close, and it may be broadcast at any time.
    CloseSigned(CloseRecord),
    /// A claim was signed and may be broadcast at any time.
    ClaimSigned(ClaimRecord),
    /// The funding was spent in a block.
    Spent(Spent),
    /// A reorganisation undid that.
    Unspent,
    /// The end: the spend is final, or no funding ever came.
    Finished,
}

/// A claim that was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRecord {
    /// The transaction, which may claim other channels too.
    #[serde(with = "crate::hexadecimal")]
    pub tx: Transaction,
    /// Its fee rate, in satoshi per 1,000 weight units.
    pub fee_rate_sat_per_kwu: u64,
    /// What the whole transaction pays to miners.
    #[serde(rename = "fee_sat", with = "bitcoin::amount::serde::as_sat")]
    pub fee: Amount,
    /// Tip when it was signed.
    pub height: u32,
}

impl ClaimRecord {
    pub(super) fn spends(&self, outpoint: &OutPoint) -> bool {
        self.tx.input.iter().any(|input| input.previous_output == *outpoint)
    }
}

/// Why a funding that was presented is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FundingError {
    /// It pays something else.
    #[error("no output of this transaction pays exactly the capacity to the channel's address")]
    Other,
    /// Funded by another transaction, closing or over.
    #[error("the channel has another funding, or is over")]
    Closed,
    /// Of those that were taken ([`FUNDINGS_OFFERED_MAX`]), or that the network refused.
    #[error("too many fundings were presented for this channel")]
    TooMany,
    /// Others have not arrived there yet.
    #[error("other fundings are on their way to the network")]
    Waiting,
    /// The network does not take it.
    #[error("the network does not take this transaction: {0}")]
    Refused(String),
}

/// The fold of a channel's journal.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderChannel {
    pub(super) course: Course,
    key_index: u32,
    station: Station,
    opened_height: u32,
    best: Option<Commitment>,
    commitments: u64,
    rare: Option<Box<Rare>>,
    /// A block held a funding once, wherever it is now.
    was_funded: bool,
    /// Whether its journal tells what the account's stations used.
    tells: bool,
}

/// The best payment, and the funding that it spends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Commitment {
    paid: Amount,
    signature: Signature,
    outpoint: OutPoint,
}

impl ProviderChannel {
    /// The first event of a journal.
    pub fn open(event: &ProviderEvent) -> Result<Self, InvalidEvent> {
        let ProviderEvent::Opened { params, key_index, station, height, .. } = event else {
            return Err(InvalidEvent("a channel that was never opened"));
        };
        Ok(Self {
            course: Course::new(params.clone())?,
            key_index: *key_index,
            station: *station,
            opened_height: *height,
            best: None,
            commitments: 0,
            rare: None,
            was_funded: false,
            tells: false,
        })
    }

    fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING_RARE)
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_with(|| Box::new(Rare::NONE))
    }

    /// Follows one event. The signature of a payment is checked when it arrives and again when it
    /// is claimed; here its order and bounds are.
    pub fn apply(&mut self, event: &ProviderEvent) -> Result<(), InvalidEvent> {
        // Credit outlives its channel, and so does the key's say in who may use it.
        let of_stations = matches!(
            event,
            ProviderEvent::Bound { .. }
                | ProviderEvent::Unbound { .. }
                | ProviderEvent::Left { .. }
                | ProviderEvent::UsedLate { .. }
        );
        if self.course.finished && !of_stations {
            return Err(InvalidEvent("an event after the end of a channel"));
        }
        match event {
            ProviderEvent::Opened { .. } => return Err(InvalidEvent("a channel opened twice")),
            ProviderEvent::Bound { nonce, .. } | ProviderEvent::Unbound { nonce, .. } => {
                if !self.rare_mut().nonces.insert(*nonce) {
                    return Err(InvalidEvent("a change of stations that was made before"));
                }
            }
            // Which account a station belongs to is not the channel's to know.
            ProviderEvent::Left { .. } | ProviderEvent::UsedLate { .. } => self.tells = true,
            ProviderEvent::Funded(funding) => {
                self.course.fund(*funding)?;
                self.was_funded = true;
                self.turn_to(Some(funding.outpoint));
                if let Some(rare) = &mut self.rare {
                    rare.funded(funding.outpoint);
                }
            }
            ProviderEvent::FundingOffered { tx } => {
                let outpoint = self.fundable_by(tx);
                let outpoint = outpoint.ok_or(InvalidEvent("a funding that can't be one"))?;
                let rare = self.rare_mut();
                rare.offered = Some(Box::new(tx.clone()));
                rare.offers += 1;
                self.turn_to(Some(outpoint));
            }
            ProviderEvent::FundingRevoked => {
                let offered = self.rare.as_mut().and_then(|rare| rare.offered.take());
                if self.course.funding.is_some() || offered.is_none() {
                    return Err(InvalidEvent("no funding to revoke"));
                }
                self.turn_to(None);
            }
            ProviderEvent::Unfunded => self.undo(Gone::Funding)?,
            ProviderEvent::Paid { paid, signature, earlier } => {
                let params = &self.course.params;
                let confirmed = self.course.outpoint().map(|at| (at, params.payable()));
                let basis = confirmed.or(self.offered().map(|at| (at, params.unconfirmed_max)));
                let (outpoint, payable) = basis.ok_or(InvalidEvent("a payment without funding"))?;
                if *paid <= self.paid() || *paid > payable {
                    return Err(InvalidEvent("a payment out of order or bounds"));
                }
                if self.course.close_requested {
                    return Err(InvalidEvent("a payment after the close"));
                }
                self.best = Some(Commitment { paid: *paid, signature: *signature, outpoint });
                self.commitments = self.commitments.saturating_add(1).saturating_add(*earlier);
            }
            ProviderEvent::CloseRequested { payout_script } => {
                self.course.close_requested = true;
                if let Some(script) = payout_script {
                    self.rare_mut().payout_script.get_or_insert_with(|| script.clone());
                }
            }
            ProviderEvent::CloseSigned(close) => {
                if !close.spends(self.course.outpoint()) || close.paid < self.paid() {
                    return Err(InvalidEvent(
                        "a close of another funding, or of less than was paid",
                    ));
                }
                self.course.close_requested = true;
                let rare = self.rare_mut();
                rare.close_since = rare.close_since.or(Some(close.height));
                rare.close = Some(Box::new(close.clone()));
            }
            ProviderEvent::ClaimSigned(claim) => {
                if self.best.is_none() {
                    return Err(InvalidEvent("a claim of nothing"));
                }
                self.rare_mut().claim = Some(Box::new(claim.clone()));
            }
            ProviderEvent::Spent(spent) => self.course.spend(*spent)?,
            ProviderEvent::Unspent => self.undo(Gone::Spend)?,
            ProviderEvent::Finished => self.course.finished = true,
        }
        Ok(())
    }

    /// A close that a reorganisation took out of its block is waited for anew: it costs the provider
    /// nothing.
    fn undo(&mut self, gone: Gone) -> Result<(), InvalidEvent> {
        let spent = self.course.spent();
        if let Some(rare) = &mut self.rare {
            let close = rare.close.as_ref().map(|close| close.tx.compute_txid());
            let closed = spent.filter(|spent| Some(spent.txid) == close);
            rare.close_since = closed.map(|spent| spent.height).or(rare.close_since);
        }
        self.course.undo(gone)
    }

    /// Commitments spend one outpoint: those on another funding are void while this one counts.
    fn turn_to(&mut self, outpoint: Option<OutPoint>) {
        if let Some(best) = self.best.filter(|best| outpoint != Some(best.outpoint)) {
            let rare = self.rare_mut();
            rare.revoked = rare.revoked.max(best.paid);
            rare.void.insert(best.outpoint, best);
            self.best = None;
        }
        if self.best.is_none()
            && let Some((outpoint, rare)) = outpoint.zip(self.rare.as_mut())
        {
            self.best = rare.void.remove(&outpoint);
        }
    }

    /// Whether the funding has the blocks on it that the terms ask for.
    pub fn is_confirmed(&self, tip: u32) -> bool {
        self.course.is_confirmed(tip)
    }

    /// What is at risk before confirmation, until a while after it was lost: what was paid on a
    /// funding without its confirmations, or on one that was revoked.
    pub fn at_risk(&self, tip: u32) -> Amount {
        let forgotten = tip >= self.opened_height.saturating_add(FUNDING_WINDOW_BLOCKS);
        let revoked = if forgotten { Amount::ZERO } else { self.rare().revoked };
        // By the funding, not by what the channel does: one that is closing is as much at risk.
        match (self.course.finished, self.is_confirmed(tip)) {
            (true, _) => Amount::ZERO,
            (_, false) => self.paid().max(revoked),
            // Paid again once it is confirmed, it is no risk any more.
            (_, true) if revoked > self.paid() => revoked,
            (_, true) => Amount::ZERO,
        }
    }

    /// The output of `tx` that could fund the channel.
    fn fundable_by(&self, tx: &Transaction) -> Option<OutPoint> {
        let open = self.course.awaits_funding() && self.rare().offers < FUNDINGS_OFFERED_MAX;
        funding_outpoint(&self.course.params, tx).filter(|_| open)
    }

    /// Judges a funding that is presented; `None` when it is known.
    pub fn judge_funding(
        &self,
        tx: &Transaction,
        tip: u32,
    ) -> Result<Option<ProviderEvent>, FundingError> {
        let outpoint = funding_outpoint(&self.course.params, tx).ok_or(FundingError::Other)?;
        if self.course.outpoint() == Some(outpoint) || self.offered() == Some(outpoint) {
            return Ok(None);
        }
        if self.status(tip) != ChannelStatus::Unfunded {
            return Err(FundingError::Closed);
        }
        self.fundable_by(tx).ok_or(FundingError::TooMany)?;
        Ok(Some(ProviderEvent::FundingOffered { tx: tx.clone() }))
    }

    /// The funding that was presented and taken, while no block holds one: to be asked for again.
    pub fn offered_tx(&self) -> Option<&Transaction> {
        self.rare().offered.as_deref().filter(|_| self.course.awaits_funding())
    }

    /// Its output.
    pub fn offered(&self) -> Option<OutPoint> {
        funding_outpoint(&self.course.params, self.offered_tx()?)
    }

    /// Judges the subscriber's wish to close; `None` when the channel is closing already, and
    /// where a close pays to was said before or is not said now.
    pub fn close<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        signature: &Signature,
        payout_script: Option<&ScriptBuf>,
    ) -> Result<Option<ProviderEvent>, PaymentError> {
        let digest = close_digest(&self.course.params.id());
        let key = self.course.params.subscriber.point().ok_or(PaymentError::Signature)?;
        secp.verify_ecdsa(&digest, signature, &key).map_err(|_| PaymentError::Signature)?;
        let payout_script = payout_script.filter(|_| self.lacks_payout_script()).cloned();
        let new = !self.course.close_requested || payout_script.is_some();
        let event = ProviderEvent::CloseRequested { payout_script };
        Ok((new && !self.course.finished).then_some(event))
    }

    /// Whether a wish to close is to be answered with a script that a close can pay to: one of the
    /// wallet's own, given out for money in a block alone, since the wallet looks past only so many
    /// that nothing was paid to.
    pub fn lacks_payout_script(&self) -> bool {
        let course = &self.course;
        let at_stake = course.funding.is_some() && course.spent().is_none() && !course.finished;
        at_stake && self.rare().payout_script.is_none()
    }

    /// Judges a close that pays `paid` to the provider and `fee` to miners; `None` when one is
    /// signed already that this does not replace.
    pub fn close_proposed<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        paid: Amount,
        fee: Amount,
        signature: &Signature,
        tip: u32,
    ) -> Result<Option<Close>, CloseError> {
        if self.course.spent().is_some() || self.course.finished {
            return Err(CloseError::Settled);
        }
        let funding = self.course.outpoint().ok_or(CloseError::Unfunded)?;
        let payout_script = self.rare().payout_script.as_ref().ok_or(CloseError::NoPayoutScript)?;
        if paid < self.paid() {
            return Err(CloseError::Underpaid { best: self.paid() });
        }
        let close = Close::new(&self.course.params, funding, paid, payout_script, fee)?;
        if !close.verify(secp, signature) {
            return Err(CloseError::Signature);
        }
        let new = self
            .rare()
            .close
            .as_ref()
            .is_none_or(|known| !known.is_fresh(tip) && close.fee() > known.fee);
        Ok(new.then_some(close))
    }

    /// Whether a close that both signed is given time to confirm: once for each funding, again when a
    /// block that held it is no longer part of the chain, and never into the margin before the expiry.
    pub fn awaits_close(&self, tip: u32) -> bool {
        let expiring = tip.saturating_add(CLAIM_MARGIN_BLOCKS) >= self.course.params.expiry_height;
        let patient =
            |since: u32| tip < since.saturating_add(super::CLOSE_WAIT_BLOCKS) && !expiring;
        self.course.spent().is_none() && self.rare().close_since.is_some_and(patient)
    }

    /// What it means that a block at `height` holds an output of the right script and value.
    pub fn funding_seen(&self, outpoint: OutPoint, height: u32) -> Option<ProviderEvent> {
        let wanted = self.course.awaits_funding();
        wanted.then_some(ProviderEvent::Funded(Funding { outpoint, height }))
    }

    /// What it means that `tx`, in a block at `height`, spends the funding.
    pub fn spend_seen(&self, tx: &Transaction, height: u32) -> Option<ProviderEvent> {
        self.course.spend_in(tx, height).map(ProviderEvent::Spent)
    }

    /// What it means that the block at `height` is no longer part of the chain.
    pub fn block_gone(&self, height: u32) -> Option<ProviderEvent> {
        self.course.gone_with(height).map(|gone| match gone {
            Gone::Funding => ProviderEvent::Unfunded,
            Gone::Spend => ProviderEvent::Unspent,
        })
    }

    /// What it waits for, as it stands.
    pub fn waits(&self) -> Waits {
        let Course { funding, close_requested, finished, params, .. } = &self.course;
        let unspent = self.course.spent().is_none() && !finished;
        let signed = self.claim().is_some() || self.closed_by_both().is_some();
        let from = match close_requested {
            true => 0,
            false => params.expiry_height.saturating_sub(CLAIM_MARGIN_BLOCKS),
        };
        let paid = self.best.is_some() && funding.is_some();
        [
            self.course.may_finish().then_some(Wait::End),
            self.offered_tx().map(|_| Wait::Funding),
            (signed && unspent).then_some(Wait::Settlement),
            (paid && unspent).then_some(Wait::Claim { from }),
        ]
    }

    /// The end, when the tip has come far enough for it.
    pub fn finish(&self, tip: u32) -> Option<ProviderEvent> {
        // A commitment is worth something as long as its funding could still confirm.
        let unpaid = self.best.is_none() && self.rare().void.is_empty();
        let never_funded = self.course.funding.is_none()
            && (unpaid || tip >= self.course.params.expiry_height)
            && tip >= self.opened_height.saturating_add(FUNDING_WINDOW_BLOCKS);
        let ended = self.course.settled(tip) || never_funded;
        (!self.course.finished && ended).then_some(ProviderEvent::Finished)
    }

    /// What to claim now: [`Self::claimable`], and no claim has been waiting for less than
    /// [`CLAIM_BUMP_BLOCKS`].
    pub fn claim_due(&self, tip: u32) -> Option<ClaimInput> {
        let waits = |claim: &ClaimRecord| tip < claim.height.saturating_add(CLAIM_BUMP_BLOCKS);
        let waiting = self.claim().is_some_and(waits);
        if waiting { None } else { self.claimable(tip) }
    }

    /// What a claim could spend: the channel is closing, something was paid, and nothing spent the
    /// funding.
    pub fn claimable(&self, tip: u32) -> Option<ClaimInput> {
        let best = self.best?;
        let funding = self.course.outpoint()?;
        if self.awaits_close(tip) || self.status(tip) != ChannelStatus::Closing {
            return None;
        }
        let signature = best.signature;
        let params = (*self.course.params).clone();
        Some(ClaimInput { params, funding, paid: best.paid, signature })
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

    /// Index of the provider's key in its wallet.
    pub fn key_index(&self) -> u32 {
        self.key_index
    }

    /// Who opened it.
    pub fn station(&self) -> Station {
        self.station
    }

    /// Of the changes of stations that were made.
    pub fn nonces(&self) -> &BTreeSet<Nonce> {
        &self.rare().nonces
    }

    /// The funding, once it is in a block.
    pub fn funding(&self) -> Option<Funding> {
        self.course.funding
    }

    /// Sum of all payments.
    pub fn paid(&self) -> Amount {
        self.best.map_or(Amount::ZERO, |best| best.paid)
    }

    /// Octets that the payments bought.
    pub fn bought(&self) -> Octets {
        let paid = Msat::from_amount(self.paid()).unwrap_or_default();
        self.course.params.schedule.octets_for(paid).unwrap_or(Octets(u64::MAX))
    }

    /// Payments taken.
    pub fn commitments(&self) -> u64 {
        self.commitments
    }

    /// The newest claim, confirmed or not.
    pub fn claim(&self) -> Option<&ClaimRecord> {
        self.rare().claim.as_deref()
    }

    /// Where a close pays the provider, once that was said.
    pub fn payout_script(&self) -> Option<&ScriptBuf> {
        self.rare().payout_script.as_ref()
    }

    /// The newest close that both signed, confirmed or not.
    pub fn closed_by_both(&self) -> Option<&CloseRecord> {
        self.rare().close.as_deref()
    }

    /// The confirmed spend.
    pub fn spent(&self) -> Option<Spent> {
        self.course.spent()
    }

    /// Whether nothing can happen any more.
    pub fn finished(&self) -> bool {
        self.course.finished
    }

    /// Whether nothing is left that anybody could want to know of it: it is over without a funding,
    /// a payment or a change of stations.
    pub fn forgettable(&self) -> bool {
        let unpaid = self.best.is_none() && self.rare().void.is_empty();
        let over = self.course.finished && self.course.funding.is_none();
        over && unpaid && self.rare().nonces.is_empty() && !self.tells
    }

    /// Whether it counts against the caps on channels that cost their opener nothing.
    pub fn speculative(&self) -> bool {
        self.course.funding.is_none() && !self.course.finished
    }

    /// Whether it cost its opener nothing so far but a request: no block and no mempool was ever
    /// shown money of it. Where too many wait, it may be forgotten before its time.
    pub fn costless(&self) -> bool {
        let unpaid = self.best.is_none() && self.rare().void.is_empty();
        let seen = self.was_funded || self.rare().offered.is_some();
        self.speculative() && unpaid && !seen && self.rare().nonces.is_empty()
    }

    /// The end of one that is [`Self::costless`], to make room for others.
    pub fn crowd_out(&self) -> Option<ProviderEvent> {
        self.costless().then_some(ProviderEvent::Finished)
    }
}

super::book::machine!(ProviderChannel, ProviderEvent);
