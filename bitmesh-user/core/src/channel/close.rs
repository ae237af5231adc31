//! The cooperative close: one transaction that both ends sign, which pays each what is its, at once.
//!
//! It follows from the terms, the funding, the sum paid, the provider's payout script and the fee;
//! both ends build it for themselves, so that nothing but the fee and a signature is proposed and
//! nothing else about it can be other than agreed. The fee is the subscriber's: the provider gets
//! exactly what it was paid.

use std::collections::BTreeMap;

use bitcoin::{
    Amount, EcdsaSighashType, FeeRate, OutPoint, Script, ScriptBuf, Transaction, TxIn, TxOut, Txid,
    Witness, ecdsa,
    secp256k1::{self, Message, Secp256k1, Verification},
};
use serde::{Deserialize, Serialize};

use super::{
    ChannelParams, DUST,
    fees::{blocks_left, fee_at, pays_off_at},
    spend::{SEQUENCE, claim_skeleton, most_to_satisfy, sighash, signed_weight},
};

/// Blocks that a close which was asked for, or signed by both, is waited for: after them the
/// subscriber proposes, and the provider claims.
pub const CLOSE_WAIT_BLOCKS: u32 = 6;

/// A close costs at most one part in so many of what comes back to the subscriber: whoever asks for
/// the fee, it is never the whole remainder.
const FEE_SHARE: u64 = 2;

/// Why there is no such close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// No funding in a block.
    #[error("the funding is not in a block: wait for it, then close")]
    Unfunded,
    /// A block holds what spent the funding.
    #[error("the channel is settled: look at its report")]
    Settled,
    /// The provider has not said where it is to be paid.
    #[error("ask for the close without a proposal first: the answer says where the payout goes")]
    NoPayoutScript,
    /// Not a segwit output script of a standard kind.
    #[error("the payout goes to a segwit address (P2WPKH, P2WSH or P2TR)")]
    PayoutScript,
    /// Less than was paid.
    #[error("{best} have been paid: a close pays no less")]
    Underpaid {
        /// The best payment.
        best: Amount,
    },
    /// More than the channel can pay.
    #[error("the channel can pay {payable} in all")]
    Overpaid {
        /// Capacity less the reserve.
        payable: Amount,
    },
    /// Nodes would not relay it, or what can't be paid out is not in the fee.
    #[error("the fee is at least {least}")]
    FeeTooLow {
        /// The smallest that would do.
        least: Amount,
    },
    /// The fee leaves the subscriber too little.
    #[error("the fee of {fee} leaves too little of the remainder; wait for lower fees")]
    FeeTooHigh {
        /// The one that was wanted.
        fee: Amount,
    },
    /// Not the subscriber's over this transaction.
    #[error(
        "the signature is not the subscriber's over this close: ALL, version 3, lock time 0, low S"
    )]
    Signature,
}

/// A close as it was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseRecord {
    /// The transaction; its witness is there once both have signed.
    #[serde(with = "crate::hexadecimal")]
    pub tx: Transaction,
    /// What it pays to the provider, or to miners when that is below dust.
    #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
    pub paid: Amount,
    /// What it pays to miners in all.
    #[serde(rename = "fee_sat", with = "bitcoin::amount::serde::as_sat")]
    pub fee: Amount,
    /// The subscriber's signature over it.
    pub signature: secp256k1::ecdsa::Signature,
    /// Tip when it was signed.
    pub height: u32,
}

impl CloseRecord {
    /// Whether it spends a channel's funding, and that only.
    pub(super) fn spends(&self, funding: Option<OutPoint>) -> bool {
        matches!(self.tx.input.as_slice(), [input] if Some(input.previous_output) == funding)
    }

    /// Whether it was signed less than [`CLOSE_WAIT_BLOCKS`] ago.
    pub(super) fn is_fresh(&self, tip: u32) -> bool {
        tip < self.height.saturating_add(CLOSE_WAIT_BLOCKS)
    }

    /// Whether both ends signed it.
    pub(super) fn is_agreed(&self) -> bool {
        self.tx.input.iter().all(|input| !input.witness.is_empty())
    }

    /// Whether `tx` is this with the witness that both signatures give.
    pub(super) fn is_agreed_by<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        params: &ChannelParams,
        tx: &Transaction,
    ) -> bool {
        let theirs = tx.input.first().and_then(|input| input.witness.nth(0));
        let theirs = theirs.and_then(|theirs| ecdsa::Signature::from_slice(theirs).ok());
        let (Some(theirs), Some(message)) =
            (theirs, sighash(&self.tx, 0, params, EcdsaSighashType::All))
        else {
            return false;
        };
        let (params, own, height) = (params.clone(), self.signature, self.height);
        let close = Close { params, tx: self.tx.clone(), paid: self.paid, fee: self.fee };
        let by = |key| secp.verify_ecdsa(&message, &theirs.signature, &key).is_ok();
        close.params.provider.point().is_some_and(by)
            && close.finish(own, theirs.signature, height).is_some_and(|agreed| agreed.tx == *tx)
    }

    /// What replaces it: nodes want the fee of what is replaced and a satoshi a vbyte more
    /// (BIP125).
    pub(super) fn replaced(&self, close: &Close) -> Amount {
        let more = close.fee_at(FeeRate::BROADCAST_MIN).max(self.fee / FEE_SHARE);
        self.fee.checked_add(more).unwrap_or(Amount::MAX_MONEY)
    }
}

/// A close before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    params: ChannelParams,
    tx: Transaction,
    paid: Amount,
    fee: Amount,
}

impl Close {
    /// The close that pays `paid` to `payout_script` and `fee` to miners. When `paid` is below
    /// dust it has no payout, and the fee contains it.
    pub fn new(
        params: &ChannelParams,
        funding: OutPoint,
        paid: Amount,
        payout_script: &Script,
        fee: Amount,
    ) -> Result<Self, CloseError> {
        let close = Self::unfeed(params, funding, paid, payout_script)?;
        let least = close.fee_at(FeeRate::BROADCAST_MIN);
        if fee < least {
            return Err(CloseError::FeeTooLow { least });
        }
        close.with_fee(fee)
    }

    /// The same with the fee that `rate` asks for.
    pub fn at_rate(
        params: &ChannelParams,
        funding: OutPoint,
        paid: Amount,
        payout_script: &Script,
        rate: FeeRate,
    ) -> Result<Self, CloseError> {
        let close = Self::unfeed(params, funding, paid, payout_script)?;
        let fee = close.fee_at(rate.max(FeeRate::BROADCAST_MIN));
        close.with_fee(fee)
    }

    fn unfeed(
        params: &ChannelParams,
        funding: OutPoint,
        paid: Amount,
        payout_script: &Script,
    ) -> Result<Self, CloseError> {
        if !is_payable_to(payout_script) {
            return Err(CloseError::PayoutScript);
        }
        if paid > params.payable() {
            return Err(CloseError::Overpaid { payable: params.payable() });
        }
        let input = TxIn { previous_output: funding, sequence: SEQUENCE, ..TxIn::default() };
        let remainder =
            TxOut { value: Amount::ZERO, script_pubkey: params.remainder_script.clone() };
        let payout = TxOut { value: paid, script_pubkey: ScriptBuf::from(payout_script) };
        let outputs = [Some(remainder), (paid >= DUST).then_some(payout)];
        let tx = claim_skeleton(vec![input], outputs.into_iter().flatten().collect());
        Ok(Self { params: params.clone(), tx, paid, fee: Amount::ZERO })
    }

    fn fee_at(&self, rate: FeeRate) -> Amount {
        let weight = signed_weight(&self.tx, most_to_satisfy(&self.params));
        let dropped = self.paid.checked_sub(self.payout()).unwrap_or_default();
        fee_at(rate, weight).max(dropped)
    }

    fn with_fee(mut self, fee: Amount) -> Result<Self, CloseError> {
        let too_high = CloseError::FeeTooHigh { fee };
        let rest = self.params.capacity.checked_sub(self.payout()).ok_or(too_high)?;
        let value = rest.checked_sub(fee).filter(|value| *value >= DUST).ok_or(too_high)?;
        if fee > rest / FEE_SHARE {
            return Err(too_high);
        }
        let remainder = self.tx.output.first_mut().ok_or(too_high)?;
        remainder.value = value;
        self.fee = fee;
        Ok(self)
    }

    /// What the provider gets in an output.
    pub fn payout(&self) -> Amount {
        self.tx.output.get(1).map_or(Amount::ZERO, |payout| payout.value)
    }

    /// What the subscriber gets back.
    pub fn remainder(&self) -> Amount {
        self.tx.output.first().map_or(Amount::ZERO, |remainder| remainder.value)
    }

    /// What miners get.
    pub fn fee(&self) -> Amount {
        self.fee
    }

    /// The transaction's name: witnesses are not part of it.
    pub fn txid(&self) -> Txid {
        self.tx.compute_txid()
    }

    /// What each end signs: `ALL`.
    pub fn sighash(&self) -> Option<Message> {
        sighash(&self.tx, 0, &self.params, EcdsaSighashType::All)
    }

    /// Whether `signature` is the subscriber's.
    pub fn verify<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        signature: &secp256k1::ecdsa::Signature,
    ) -> bool {
        let signed = self.sighash().zip(self.params.subscriber.point());
        signed.is_some_and(|(message, key)| secp.verify_ecdsa(&message, signature, &key).is_ok())
    }

    /// Signed by the subscriber alone: nobody can broadcast it.
    pub fn proposed(self, subscriber: secp256k1::ecdsa::Signature, height: u32) -> CloseRecord {
        CloseRecord { tx: self.tx, paid: self.paid, fee: self.fee, signature: subscriber, height }
    }

    /// Signed by both, to be broadcast.
    pub fn finish(
        mut self,
        subscriber: secp256k1::ecdsa::Signature,
        provider: secp256k1::ecdsa::Signature,
        height: u32,
    ) -> Option<CloseRecord> {
        let keys = self.params.points()?;
        let signatures = BTreeMap::from([
            (keys.0, ecdsa::Signature::sighash_all(subscriber)),
            (keys.1, ecdsa::Signature::sighash_all(provider)),
        ]);
        let (witness, _) = self.params.descriptor()?.get_satisfaction(signatures).ok()?;
        self.tx.input.first_mut()?.witness = Witness::from_slice(&witness);
        Some(self.proposed(subscriber, height))
    }
}

/// Whether the provider is to be expected to claim this channel alone at `rate`, with the tip at
/// `tip`: that leaves it an output, and is worth the fee. Else the subscriber proposes a close.
pub fn claim_pays_off(params: &ChannelParams, paid: Amount, rate: FeeRate, tip: u32) -> bool {
    let left = blocks_left(params.expiry_height, tip);
    if !pays_off_at(rate, &params.remainder_script, paid, left) {
        return false;
    }
    let output = |value| TxOut { value, script_pubkey: params.remainder_script.clone() };
    let outputs = vec![output(params.capacity), output(paid)];
    let input = TxIn { sequence: SEQUENCE, ..TxIn::default() };
    let tx = claim_skeleton(vec![input], outputs);
    let fee = fee_at(rate, signed_weight(&tx, most_to_satisfy(params)));
    paid.checked_sub(fee).is_some_and(|payout| payout >= DUST)
}

/// Whether nodes relay an output to this script at [`DUST`].
fn is_payable_to(script: &Script) -> bool {
    script.is_p2wpkh() || script.is_p2wsh() || script.is_p2tr()
}

#[cfg(test)]
mod tests {
    use bitcoin::{WPubkeyHash, absolute::LockTime, hashes::Hash as _, transaction::Version};
    use proptest::prelude::*;

    use super::{
        super::testing::{PROVIDER, SUBSCRIBER, outpoint, params, secp, sign},
        *,
    };

    fn payout_script() -> ScriptBuf {
        ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout"))
    }

    fn sat(sat: u64) -> Amount {
        Amount::from_sat(sat)
    }

    fn close(paid: u64, fee: u64) -> Result<Close, CloseError> {
        Close::new(&params(), outpoint(&params()), sat(paid), &payout_script(), sat(fee))
    }

    fn at(paid: u64, rate: u64) -> Result<Close, CloseError> {
        let rate = FeeRate::from_sat_per_vb(rate).unwrap();
        Close::at_rate(&params(), outpoint(&params()), sat(paid), &payout_script(), rate)
    }

    #[test]
    fn it_is_of_version_3_without_lock_time_and_pays_the_provider_exactly_what_was_paid() {
        let close = at(40_000, 2).unwrap();
        assert_eq!(close.tx.version, Version(3));
        assert_eq!(close.tx.lock_time, LockTime::ZERO);
        assert_eq!(close.payout(), sat(40_000));
        assert_eq!(close.tx.output[1].script_pubkey, payout_script());
        assert_eq!(close.remainder() + close.fee(), sat(60_000));
        let message = close.sighash().unwrap();
        let (own, theirs) = (sign(SUBSCRIBER, message), sign(PROVIDER, message));
        assert!(close.verify(&secp(), &own) && !close.verify(&secp(), &theirs));
        let txid = close.txid();
        let record = close.finish(own, theirs, 200).unwrap();
        assert_eq!(record.tx.compute_txid(), txid);
        let weighed = fee_at(FeeRate::from_sat_per_vb(2).unwrap(), record.tx.weight());
        assert!(record.fee >= weighed && record.fee <= weighed + sat(4), "{}", record.fee);
    }

    #[test]
    fn p5_a_payout_below_dust_goes_to_miners_and_one_at_dust_does_not() {
        let dust = DUST.to_sat();
        for (paid, payout) in [(0, 0), (dust - 1, 0), (dust, dust), (dust + 1, dust + 1)] {
            let close = at(paid, 1).unwrap();
            assert_eq!(close.payout(), sat(payout), "{paid} paid");
            assert!(close.fee() >= sat(paid - payout), "{paid} paid");
        }
        let least = close(dust - 1, 1).unwrap_err();
        assert_eq!(least, CloseError::FeeTooLow { least: sat(dust - 1) });
    }

    #[test]
    fn p5_the_remainder_is_never_below_dust() {
        let payable = params().payable().to_sat();
        assert!(matches!(at(payable, 1), Err(CloseError::FeeTooHigh { .. })));
        let rest = 2 * DUST.to_sat();
        let paid = params().capacity.to_sat() - rest;
        assert_eq!(close(paid, DUST.to_sat()).unwrap().remainder(), DUST);
        let fee = DUST.to_sat() + 1;
        assert_eq!(close(paid, fee).unwrap_err(), CloseError::FeeTooHigh { fee: sat(fee) });
    }

    #[test]
    fn p7_more_than_the_channel_holds_is_refused() {
        let payable = params().payable();
        for paid in [payable.to_sat() + 1, params().capacity.to_sat() + 1, u64::MAX] {
            assert_eq!(close(paid, 200).unwrap_err(), CloseError::Overpaid { payable });
        }
        let half = params().capacity.to_sat() / FEE_SHARE;
        assert!(close(0, half).is_ok());
        for fee in [half + 1, params().capacity.to_sat(), u64::MAX] {
            assert_eq!(close(0, fee).unwrap_err(), CloseError::FeeTooHigh { fee: sat(fee) });
        }
    }

    #[test]
    fn a_payout_to_what_nodes_do_not_relay_is_refused() {
        let funding = outpoint(&params());
        for script in [ScriptBuf::new(), ScriptBuf::new_op_return([0; 4])] {
            let close = Close::new(&params(), funding, sat(1_000), &script, sat(500));
            assert_eq!(close, Err(CloseError::PayoutScript));
        }
    }

    #[test]
    fn a_claim_pays_off_where_one_can_be_made_that_is_worth_its_fee() {
        use super::super::{Claim, ClaimInput, testing::pay};
        let params = params();
        let rate = FeeRate::from_sat_per_vb(3).unwrap();
        let claim = |paid| {
            let signature = pay(&params, paid);
            let (params, funding) = (params.clone(), outpoint(&params));
            let input = ClaimInput { params, funding, paid: sat(paid), signature };
            Claim::new(vec![input], &payout_script(), rate).is_ok()
        };
        let soon = params.expiry_height - 37;
        for paid in 700..1_200 {
            assert_eq!(claim_pays_off(&params, sat(paid), rate, soon), claim(paid), "{paid}");
            let early = claim_pays_off(&params, sat(paid), rate, 110);
            assert!(claim(paid) || !early, "{paid}");
            assert!(early || paid < 1_000, "more than twice the fee");
        }
    }

    proptest! {
        #[test]
        fn p7_what_goes_in_comes_out(paid in 0u64..100_000, rate in 1u64..400) {
            match at(paid, rate) {
                Ok(close) => {
                    let outputs: Amount = close.tx.output.iter().map(|output| output.value).sum();
                    prop_assert_eq!(outputs + close.fee(), params().capacity);
                    prop_assert!(close.tx.output.iter().all(|output| output.value >= DUST));
                    let owed = if sat(paid) >= DUST { sat(paid) } else { Amount::ZERO };
                    prop_assert_eq!(close.payout(), owed);
                    prop_assert_eq!(self::close(paid, close.fee().to_sat()), Ok(close));
                }
                Err(CloseError::FeeTooHigh { fee }) => {
                    let owed = if sat(paid) >= DUST { sat(paid) } else { Amount::ZERO };
                    let rest = params().capacity - owed;
                    prop_assert!(fee > rest / FEE_SHARE || rest < fee + DUST);
                }
                Err(CloseError::Overpaid { payable }) => prop_assert!(sat(paid) > payable),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
