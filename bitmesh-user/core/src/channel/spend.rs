//! The ways out on chain, as transactions: commitments, the claim that is made of them, the refund.

use std::collections::BTreeMap;

use bitcoin::{
    Amount, EcdsaSighashType, FeeRate, OutPoint, PublicKey, Script, ScriptBuf, Sequence,
    Transaction, TxIn, TxOut, Weight, Witness,
    absolute::LockTime,
    ecdsa,
    secp256k1::{self, Message, Secp256k1, Verification},
    sighash::SighashCache,
    transaction::Version,
};
use miniscript::Descriptor;

use super::{ChannelId, ChannelParams, DUST, fees::fee_at, params::tagged_hash};

/// Replaceable (BIP125) and with a lock time that counts (BIP65).
pub(super) const SEQUENCE: Sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;

/// Claims and commitments are version 3 (TRUC, BIP431): nobody can hang more than one small
/// descendant on the remainder to pin the claim.
const CLAIM_VERSION: Version = Version(3);

/// Heaviest claim: TRUC's limit of 10,000 vB (BIP431).
pub const CLAIM_WEIGHT_MAX: Weight = Weight::from_vb_unwrap(10_000);

/// The commitment that leaves the provider `paid`: this channel's input and remainder output
/// only, as `SINGLE|ANYONECANPAY` sees it. `None` when `paid` is over what the channel can pay.
fn commitment(params: &ChannelParams, funding: OutPoint, paid: Amount) -> Option<(TxIn, TxOut)> {
    if paid > params.payable() {
        return None;
    }
    let input = TxIn { previous_output: funding, sequence: SEQUENCE, ..TxIn::default() };
    let value = params.capacity.checked_sub(paid)?;
    Some((input, TxOut { value, script_pubkey: params.remainder_script.clone() }))
}

pub(super) fn claim_skeleton(input: Vec<TxIn>, output: Vec<TxOut>) -> Transaction {
    Transaction { version: CLAIM_VERSION, lock_time: LockTime::ZERO, input, output }
}

pub(super) fn sighash(
    tx: &Transaction,
    index: usize,
    params: &ChannelParams,
    kind: EcdsaSighashType,
) -> Option<Message> {
    let script = params.witness_script();
    let mut cache = SighashCache::new(tx);
    let hash = cache.p2wsh_signature_hash(index, &script, params.capacity, kind).ok()?;
    Some(Message::from(hash))
}

/// What the subscriber signs to have paid `paid` in all: BIP143 with `SINGLE|ANYONECANPAY`, over
/// its input and its remainder, lock time 0 (a lock time at or past the expiry would let the
/// signature spend through the refund branch). `None` when `paid` exceeds what the channel can pay.
pub fn payment_sighash(params: &ChannelParams, funding: OutPoint, paid: Amount) -> Option<Message> {
    let (input, output) = commitment(params, funding, paid)?;
    let tx = claim_skeleton(vec![input], vec![output]);
    sighash(&tx, 0, params, EcdsaSighashType::SinglePlusAnyoneCanPay)
}

/// Whether `signature` is the subscriber's over the commitment to `paid`. High-S signatures,
/// which the network doesn't relay (BIP146), are refused.
pub fn verify_payment<C: Verification>(
    secp: &Secp256k1<C>,
    params: &ChannelParams,
    funding: OutPoint,
    paid: Amount,
    signature: &secp256k1::ecdsa::Signature,
) -> bool {
    let key = params.subscriber.point();
    key.is_some_and(|key| verify_payment_by(secp, params, &key, funding, paid, signature))
}

/// The same, where the point of the subscriber's key was found before.
pub(super) fn verify_payment_by<C: Verification>(
    secp: &Secp256k1<C>,
    params: &ChannelParams,
    subscriber: &secp256k1::PublicKey,
    funding: OutPoint,
    paid: Amount,
    signature: &secp256k1::ecdsa::Signature,
) -> bool {
    payment_sighash(params, funding, paid)
        .is_some_and(|message| secp.verify_ecdsa(&message, signature, subscriber).is_ok())
}

/// What the subscriber signs to have its channel closed now.
pub fn close_digest(channel: &ChannelId) -> Message {
    Message::from_digest(tagged_hash("bitmesh/close", &[channel.as_bytes()]))
}

/// One channel's part in a claim.
#[derive(Clone, Debug)]
pub struct ClaimInput {
    /// The channel's terms.
    pub params: ChannelParams,
    /// Its funding.
    pub funding: OutPoint,
    /// What the best commitment pays.
    pub paid: Amount,
    /// The subscriber's signature over that commitment.
    pub signature: secp256k1::ecdsa::Signature,
}

/// Why there is no claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// No channel, or one whose terms and payment don't fit.
    #[error("nothing to claim")]
    Nothing,
    /// The fee leaves less than an output may hold.
    #[error("claiming {paid} costs {fee} in fees and leaves less than {} sat", DUST.to_sat())]
    Uneconomic {
        /// Sum of the payments.
        paid: Amount,
        /// Fee at the rate asked for.
        fee: Amount,
    },
    /// More channels than fit one transaction.
    #[error("a claim of {0} channels is too large; claim fewer at once")]
    TooMany(usize),
}

/// A claim before the provider has signed it.
#[derive(Clone, Debug)]
pub struct Claim {
    tx: Transaction,
    inputs: Vec<ClaimInput>,
    weight: Weight,
    fee: Amount,
}

impl Claim {
    /// Claims the best commitment of each channel in one transaction: input k with its remainder
    /// at output k, and one payout of the sum, less the fee, behind them.
    pub fn new(
        inputs: Vec<ClaimInput>,
        payout_script: &Script,
        fee_rate: FeeRate,
    ) -> Result<Self, ClaimError> {
        let mut paid = Amount::ZERO;
        let mut tx = claim_skeleton(Vec::new(), Vec::new());
        let mut satisfaction = Weight::ZERO;
        for channel in &inputs {
            let (input, output) = commitment(&channel.params, channel.funding, channel.paid)
                .ok_or(ClaimError::Nothing)?;
            paid = paid.checked_add(channel.paid).ok_or(ClaimError::Nothing)?;
            tx.input.push(input);
            tx.output.push(output);
            satisfaction += most_to_satisfy(&channel.params);
        }
        if inputs.is_empty() {
            return Err(ClaimError::Nothing);
        }
        tx.output.push(TxOut { value: Amount::ZERO, script_pubkey: payout_script.to_owned() });
        let weight = signed_weight(&tx, satisfaction);
        if weight > CLAIM_WEIGHT_MAX {
            return Err(ClaimError::TooMany(inputs.len()));
        }
        let fee = fee_at(fee_rate, weight);
        let payout = paid.checked_sub(fee).filter(|payout| *payout >= DUST);
        let payout = payout.ok_or(ClaimError::Uneconomic { paid, fee })?;
        if let Some(output) = tx.output.last_mut() {
            output.value = payout;
        }
        Ok(Self { tx, inputs, weight, fee })
    }

    /// What the provider's key of each channel signs, in order: `ALL`, so that nobody else can
    /// change an output or the fee.
    pub fn sighashes(&self) -> Vec<Message> {
        self.inputs
            .iter()
            .enumerate()
            .filter_map(|(i, channel)| sighash(&self.tx, i, &channel.params, EcdsaSighashType::All))
            .collect()
    }

    /// The transaction to broadcast, made of the provider's signatures in the order of
    /// [`Self::sighashes`]; `None` when they are too few.
    pub fn finish(mut self, provider: &[secp256k1::ecdsa::Signature]) -> Option<Transaction> {
        if provider.len() != self.inputs.len() {
            return None;
        }
        for ((channel, own), input) in
            self.inputs.iter().zip(provider).zip(self.tx.input.iter_mut())
        {
            let (subscriber, provider) = channel.params.points()?;
            let signatures = BTreeMap::from([
                (
                    subscriber,
                    ecdsa::Signature {
                        signature: channel.signature,
                        sighash_type: EcdsaSighashType::SinglePlusAnyoneCanPay,
                    },
                ),
                (provider, ecdsa::Signature::sighash_all(*own)),
            ]);
            let (witness, _) = channel.params.descriptor()?.get_satisfaction(signatures).ok()?;
            input.witness = Witness::from_slice(&witness);
        }
        Some(self.tx)
    }

    /// Its weight once signed, at most.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// What the channels paid, the fee included.
    pub fn paid(&self) -> Amount {
        self.inputs.iter().map(|channel| channel.paid).sum()
    }

    /// What miners get.
    pub fn fee(&self) -> Amount {
        self.fee
    }
}

/// Most that the witness of a channel's input weighs, whichever branch it takes.
pub(super) fn most_to_satisfy(params: &ChannelParams) -> Weight {
    let weight = |descriptor: Descriptor<PublicKey>| {
        let weight = descriptor.max_weight_to_satisfy();
        weight.expect("the template can be satisfied for every key and height")
    };
    // Nobody signs by a key that is no point: that is told when it is tried.
    params.descriptor().map_or(Weight::ZERO, weight)
}

/// Weight once signed. While every witness is empty, the marker, the flag and each input's count of
/// witness items are not serialized (BIP144).
pub(super) fn signed_weight(tx: &Transaction, satisfaction: Weight) -> Weight {
    let counts = u64::try_from(tx.input.len()).unwrap_or(u64::MAX);
    tx.weight() + satisfaction + Weight::from_wu(2) + Weight::from_wu(counts)
}

/// Why there is no refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefundError {
    /// The fee leaves less than an output may hold.
    #[error("refunding {capacity} costs {fee} in fees and leaves less than {} sat; wait for lower fees", DUST.to_sat())]
    Uneconomic {
        /// What the channel holds.
        capacity: Amount,
        /// Fee at the rate asked for.
        fee: Amount,
    },
}

/// The subscriber's way out from the expiry height on, before it has signed.
#[derive(Clone, Debug)]
pub struct Refund {
    tx: Transaction,
    params: ChannelParams,
}

impl Refund {
    /// The whole capacity, less the fee, to `script`. Valid in a block above the expiry height.
    pub fn new(
        params: &ChannelParams,
        funding: OutPoint,
        script: &Script,
        fee_rate: FeeRate,
    ) -> Result<Self, RefundError> {
        let output = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from(script) };
        let input = TxIn { previous_output: funding, sequence: SEQUENCE, ..TxIn::default() };
        let mut tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_consensus(params.expiry_height),
            input: vec![input],
            output: vec![output],
        };
        let fee = fee_at(fee_rate, signed_weight(&tx, most_to_satisfy(params)));
        let capacity = params.capacity;
        let value = capacity.checked_sub(fee).filter(|value| *value >= DUST);
        let value = value.ok_or(RefundError::Uneconomic { capacity, fee })?;
        if let Some(output) = tx.output.first_mut() {
            output.value = value;
        }
        Ok(Self { tx, params: params.clone() })
    }

    /// What the subscriber's key signs.
    pub fn sighash(&self) -> Option<Message> {
        sighash(&self.tx, 0, &self.params, EcdsaSighashType::All)
    }

    /// The transaction to broadcast.
    pub fn finish(mut self, own: secp256k1::ecdsa::Signature) -> Option<Transaction> {
        let signature = ecdsa::Signature::sighash_all(own);
        let (subscriber, _) = self.params.points()?;
        let signatures = BTreeMap::from([(subscriber, signature)]);
        let satisfier = (signatures, self.tx.lock_time);
        let (witness, _) = self.params.descriptor()?.get_satisfaction(satisfier).ok()?;
        self.tx.input.first_mut()?.witness = Witness::from_slice(&witness);
        Some(self.tx)
    }
}
