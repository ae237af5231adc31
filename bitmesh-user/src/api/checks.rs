//! What payments are checked against, shared by the loop and whoever verifies: signatures take all
//! cores, and the loop takes what was verified.
//!
//! The loop puts a channel's check in when somebody pays on it, and takes it out before anybody
//! learns that the channel has changed. What was verified with an old one is verified again.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bitcoin::{
    Amount,
    secp256k1::{Secp256k1, VerifyOnly},
};
use bitmesh_core::{
    bitcoin,
    channel::{ChannelId, PaymentCheck, PaymentError, VerifiedPayment},
    controller::Refusal,
    wire::PaymentRequest,
};

/// Parts that are locked one by one.
const SHARDS: usize = 64;
/// Channels in one part, about 160 octets each; a full part starts anew.
const SHARD_CHANNELS: usize = 2_048;

/// What looking at a payment before the loop does came to.
#[derive(Debug)]
pub enum Verdict {
    /// The signature is right.
    Verified(VerifiedPayment),
    /// It is not, and the channel is as it was when that was seen.
    Wrong(Refusal),
    /// To be judged by the loop.
    Unknown,
}

#[derive(Debug)]
struct Known {
    check: PaymentCheck,
    /// Satoshi that are paid.
    paid: AtomicU64,
}

type Shard = RwLock<HashMap<ChannelId, Arc<Known>>>;

/// The table.
#[derive(Debug)]
pub struct Checks {
    secp: Secp256k1<VerifyOnly>,
    shards: [Shard; SHARDS],
}

impl Default for Checks {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| Shard::default());
        Self { secp: Secp256k1::verification_only(), shards }
    }
}

impl Checks {
    /// Looks at a payment: at what costs nothing first.
    pub fn judge(&self, channel: &ChannelId, payment: &PaymentRequest) -> Verdict {
        let Some(known) = self.get(channel) else { return Verdict::Unknown };
        let best = Amount::from_sat(known.paid.load(Ordering::Relaxed));
        if payment.paid < best || payment.paid > known.check.payable() {
            return Verdict::Unknown;
        }
        if let Some(proof) = known.check.verify(&self.secp, payment.paid, &payment.signature) {
            return Verdict::Verified(proof);
        }
        match self.get(channel) {
            Some(now) if Arc::ptr_eq(&now, &known) => {
                Verdict::Wrong(Refusal::Payment { error: PaymentError::Signature, best })
            }
            _ => Verdict::Unknown,
        }
    }

    /// Puts in what holds for a channel on which `paid` is paid.
    pub fn put(&self, channel: ChannelId, check: PaymentCheck, paid: Amount) {
        let known = Arc::new(Known { check, paid: AtomicU64::new(paid.to_sat()) });
        let mut shard = self.shard(&channel).write().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= SHARD_CHANNELS {
            shard.clear();
        }
        shard.insert(channel, known);
    }

    /// More is paid on a channel.
    pub fn paid(&self, channel: &ChannelId, paid: Amount) {
        if let Some(known) = self.get(channel) {
            known.paid.store(paid.to_sat(), Ordering::Relaxed);
        }
    }

    /// A channel changed.
    pub fn forget(&self, channel: &ChannelId) {
        self.shard(channel).write().unwrap_or_else(PoisonError::into_inner).remove(channel);
    }

    /// Keeps what still holds.
    pub fn retain(&self, holds: impl Fn(&ChannelId, &PaymentCheck) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|channel, known| holds(channel, &known.check));
        }
    }

    fn get(&self, channel: &ChannelId) -> Option<Arc<Known>> {
        let shard = self.shard(channel).read().unwrap_or_else(PoisonError::into_inner);
        shard.get(channel).cloned()
    }

    fn shard(&self, channel: &ChannelId) -> &Shard {
        let [first, ..] = channel.as_bytes();
        let index = usize::from(*first) % SHARDS;
        self.shards.get(index).unwrap_or_else(|| unreachable!("an index modulo the length"))
    }
}
