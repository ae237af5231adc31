//! A payment, judged: what it is checked against can be taken to another thread, and what was
//! verified there is taken here without verifying it again.

use std::sync::Arc;

use bitcoin::{
    Amount, OutPoint,
    secp256k1::{PublicKey, Secp256k1, Verification, ecdsa::Signature},
};

use super::{
    ChannelParams, ChannelStatus, ProviderChannel, ProviderEvent, spend::verify_payment_by,
    verify_payment,
};

/// What a payment on a channel is checked against, as it was at some moment. It goes stale with the
/// funding; what was verified with a stale one is worth nothing, and is verified again.
#[derive(Clone, Debug)]
pub struct PaymentCheck {
    params: Arc<ChannelParams>,
    /// The subscriber's key.
    key: PublicKey,
    outpoint: OutPoint,
    payable: Amount,
}

/// Proof that a signature is the subscriber's over one sum, on one funding of one channel. Only
/// [`PaymentCheck::verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedPayment {
    /// The channel's own, and not only equal terms.
    params: Arc<ChannelParams>,
    outpoint: OutPoint,
    paid: Amount,
    signature: Signature,
}

impl PaymentCheck {
    /// Most that payments may come to.
    pub fn payable(&self) -> Amount {
        self.payable
    }

    /// Whether it says the same as another one.
    pub fn agrees(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.params, &other.params)
            && (self.outpoint, self.payable) == (other.outpoint, other.payable)
    }

    /// Verifies the signature, which takes far longer than all else; `None` when it is not the
    /// subscriber's over this sum.
    pub fn verify<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        paid: Amount,
        signature: &Signature,
    ) -> Option<VerifiedPayment> {
        let (params, outpoint) = (&self.params, self.outpoint);
        let right = verify_payment_by(secp, params, &self.key, outpoint, paid, signature);
        right.then(|| VerifiedPayment {
            params: params.clone(),
            outpoint,
            paid,
            signature: *signature,
        })
    }
}

impl VerifiedPayment {
    fn proves(
        &self,
        params: &Arc<ChannelParams>,
        outpoint: OutPoint,
        paid: Amount,
        signature: &Signature,
    ) -> bool {
        Arc::ptr_eq(&self.params, params)
            && (self.outpoint, self.paid, &self.signature) == (outpoint, paid, signature)
    }
}

/// Why a payment was refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaymentError {
    /// No funding in a block yet.
    #[error("the funding is not in a block yet: wait for it, then pay again")]
    Unfunded,
    /// Too few confirmations.
    #[error("the funding has {have} of {need} confirmations: wait, then pay again")]
    Unconfirmed {
        /// Blocks, its own included.
        have: u32,
        /// What the terms ask for.
        need: u32,
    },
    /// More than counts before the funding is confirmed.
    #[error(
        "{payable} count before the funding is confirmed: wait for it, or pay no more than that"
    )]
    TooEarly {
        /// The terms' `unconfirmed_max`.
        payable: Amount,
    },
    /// All channels together have as much credit before confirmation as the provider gives.
    #[error("this provider gives no more credit before confirmation at present: wait for a block")]
    TooMuchUnconfirmed,
    /// Closing, claimed or expired.
    #[error("the channel takes no more payments: open a new one")]
    Closed,
    /// Less than was paid before.
    #[error("{best} has been paid already, and a payment states the sum: pay more than that")]
    Stale {
        /// The best payment.
        best: Amount,
    },
    /// More than the channel holds.
    #[error("the channel can pay {payable} in all: open a new one")]
    TooLarge {
        /// Capacity less the reserve.
        payable: Amount,
    },
    /// Not a low-S signature of the subscriber's key over this commitment.
    #[error(
        "the signature is not the subscriber's over this payment: SINGLE|ANYONECANPAY, version 3, lock time 0, low S"
    )]
    Signature,
}

impl ProviderChannel {
    /// What a payment is checked against at this height; `None` when none is taken.
    pub fn payment_check(&self, tip: u32) -> Option<PaymentCheck> {
        let (outpoint, payable) = self.basis(tip).filter(|(_, payable)| *payable > Amount::ZERO)?;
        let params = self.course.params.clone();
        Some(PaymentCheck { key: params.subscriber.point()?, params, outpoint, payable })
    }

    /// Judges a payment of `paid` in all at the tip's height; `None` when it is the best one
    /// again, which changes nothing. What costs little is looked at first; the signature is verified
    /// unless it was, against what holds now.
    pub fn pay<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        paid: Amount,
        signature: &Signature,
        verified: Option<&VerifiedPayment>,
        tip: u32,
    ) -> Result<Option<ProviderEvent>, PaymentError> {
        let outpoint = self.judge_sum(paid, tip)?;
        let params = &self.course.params;
        let proven = verified.is_some_and(|proof| proof.proves(params, outpoint, paid, signature));
        if !proven && !verify_payment(secp, params, outpoint, paid, signature) {
            return Err(PaymentError::Signature);
        }
        if paid == self.paid() {
            return Ok(None);
        }
        Ok(Some(ProviderEvent::Paid { paid, signature: *signature, earlier: 0 }))
    }

    /// Judges the sum alone; gives the funding that it has to be signed for.
    pub fn judge_sum(&self, paid: Amount, tip: u32) -> Result<OutPoint, PaymentError> {
        let status = self.status(tip);
        let basis = self.basis(tip).filter(|(_, payable)| *payable > Amount::ZERO);
        let (outpoint, payable) = match (status, basis) {
            (_, Some(basis)) => basis,
            (ChannelStatus::Unfunded, None) => return Err(PaymentError::Unfunded),
            (ChannelStatus::Confirming { have, need }, None) => {
                return Err(PaymentError::Unconfirmed { have, need });
            }
            (_, None) => return Err(PaymentError::Closed),
        };
        if paid < self.paid() {
            return Err(PaymentError::Stale { best: self.paid() });
        }
        if paid > payable {
            return Err(match status {
                ChannelStatus::Open => PaymentError::TooLarge { payable },
                _ => PaymentError::TooEarly { payable },
            });
        }
        Ok(outpoint)
    }

    /// What payments spend at this height, and most that they may come to.
    fn basis(&self, tip: u32) -> Option<(OutPoint, Amount)> {
        let params = &self.course.params;
        match self.status(tip) {
            ChannelStatus::Open => Some((self.course.outpoint()?, params.payable())),
            ChannelStatus::Confirming { .. } => {
                Some((self.course.outpoint()?, params.unconfirmed_max))
            }
            ChannelStatus::Unfunded => Some((self.offered()?, params.unconfirmed_max)),
            _ => None,
        }
    }

    /// Most that payments may come to at this height.
    pub fn payable(&self, tip: u32) -> Amount {
        self.basis(tip).map_or(Amount::ZERO, |(_, payable)| payable)
    }
}
