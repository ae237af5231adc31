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
/// Channels in one part, about 160 octets each; in a full part one leaves for each that comes.
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
        if shard.len() >= SHARD_CHANNELS
            && !shard.contains_key(&channel)
            && let Some(any) = shard.keys().next().copied()
        {
            shard.remove(&any);
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

#[cfg(test)]
mod tests {
    use bitcoin::{
        Network, OutPoint, ScriptBuf, WPubkeyHash,
        hashes::Hash as _,
        secp256k1::{All, SecretKey},
    };
    use bitmesh_core::{
        channel::{
            ChannelParams, Funding, PROTOCOL_VERSION, ProviderChannel, ProviderEvent,
            payment_sighash,
        },
        ledger::Usage,
        pricing::Schedule,
        units::Octets,
    };

    use super::*;

    fn secp() -> Secp256k1<All> {
        Secp256k1::new()
    }

    fn funded() -> ProviderChannel {
        let key = |octet| SecretKey::from_slice(&[octet; 32]).unwrap().public_key(&secp());
        let params = ChannelParams {
            version: PROTOCOL_VERSION,
            network: Network::Regtest,
            offer: "00".repeat(32).parse().unwrap(),
            subscriber: key(1).into(),
            provider: key(2).into(),
            expiry_height: 2_000,
            capacity: Amount::from_sat(100_000),
            remainder_script: ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros()),
            schedule: Schedule::flat(1_000),
            confirmations: 1,
            tick_max: Octets(8 << 20),
            unconfirmed_max: Amount::ZERO,
        };
        let opened = ProviderEvent::Opened {
            params: Arc::new(params),
            key_index: 0,
            station: "02:00:00:00:00:01".parse().unwrap(),
            height: 100,
            used: Usage::default(),
        };
        let mut channel = ProviderChannel::open(&opened).unwrap();
        let funding = Funding { outpoint: OutPoint::null(), height: 101 };
        channel.apply(&ProviderEvent::Funded(funding)).unwrap();
        channel
    }

    fn payment(channel: &ProviderChannel, paid: u64, key: u8) -> PaymentRequest {
        let paid = Amount::from_sat(paid);
        let message = payment_sighash(channel.params(), OutPoint::null(), paid).unwrap();
        let signature = secp().sign_ecdsa(&message, &SecretKey::from_slice(&[key; 32]).unwrap());
        PaymentRequest { paid, signature }
    }

    #[test]
    fn signatures_are_judged_by_what_the_loop_put_in_until_it_takes_it_out() {
        let (checks, channel) = (Checks::default(), funded());
        let id = channel.params().id();
        let good = payment(&channel, 5, 1);
        assert!(matches!(checks.judge(&id, &good), Verdict::Unknown));
        checks.put(id, channel.payment_check(110).unwrap(), Amount::ZERO);
        assert!(matches!(checks.judge(&id, &good), Verdict::Verified(_)));
        assert!(matches!(checks.judge(&id, &payment(&channel, 5, 3)), Verdict::Wrong(_)));
        checks.retain(|_, check| check.agrees(&channel.payment_check(111).unwrap()));
        assert!(matches!(checks.judge(&id, &good), Verdict::Verified(_)));
        checks.forget(&id);
        assert!(matches!(checks.judge(&id, &good), Verdict::Unknown));
    }

    #[test]
    fn sums_out_of_bounds_cost_no_signature_and_are_the_loops_to_refuse() {
        let (checks, channel) = (Checks::default(), funded());
        let id = channel.params().id();
        checks.put(id, channel.payment_check(110).unwrap(), Amount::ZERO);
        checks.paid(&id, Amount::from_sat(6));
        // Both are signed wrongly: whoever verified them would say so.
        assert!(matches!(checks.judge(&id, &payment(&channel, 5, 3)), Verdict::Unknown));
        let mut large = payment(&channel, 7, 3);
        large.paid = Amount::from_sat(100_000);
        assert!(matches!(checks.judge(&id, &large), Verdict::Unknown));
    }

    #[test]
    fn in_a_full_part_one_leaves_for_each_that_comes() {
        let (checks, channel) = (Checks::default(), funded());
        let check = channel.payment_check(110).unwrap();
        let id = |number: usize| {
            let mut octets = [0; 32];
            octets[24..].copy_from_slice(&number.to_be_bytes());
            ChannelId::from_bytes(octets)
        };
        for number in 0..SHARD_CHANNELS {
            checks.put(id(number), check.clone(), Amount::ZERO);
        }
        checks.put(id(5), check.clone(), Amount::ONE_SAT);
        let known = |checks: &Checks| {
            (0..=SHARD_CHANNELS).filter(|number| checks.get(&id(*number)).is_some()).count()
        };
        assert_eq!(known(&checks), SHARD_CHANNELS);
        checks.put(id(SHARD_CHANNELS), check, Amount::ZERO);
        assert!(checks.get(&id(SHARD_CHANNELS)).is_some());
        assert_eq!(known(&checks), SHARD_CHANNELS);
    }
}
