//! What brings a channel back from its wallet's words alone.
//!
//! The script of a funding holds a key of the provider's and a height that no words tell. The
//! funding transaction carries both in an output of its own, under a pad that only the wallet
//! knows. Whoever else reads it sees chance.

use bitcoin::{
    Amount, Network, Script, ScriptBuf, Transaction, script::Instruction, secp256k1::PublicKey,
};

use super::{ChannelKey, ChannelParams, PROTOCOL_VERSION, params::tagged_hash};
use crate::{offer::OfferId, pricing::Schedule, units::Octets};

/// Length of what is carried: the provider's key, the expiry and the key's index.
pub const RECOVERY_OCTETS: usize = KEY_OCTETS + 4 + 4;
const KEY_OCTETS: usize = 33;
/// Outputs of a transaction that are looked at: a funding has three.
const OUTPUTS_MAX: usize = 16;
/// Where indexes of hardened keys end (BIP32).
const INDEX_END: u32 = 1 << 31;

/// What the words don't tell of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The provider's key in the funding script.
    pub provider: ChannelKey,
    /// Height from which the subscriber alone can spend.
    pub expiry_height: u32,
    /// Index of the subscriber's key in its wallet.
    pub key_index: u32,
}

impl Recovery {
    /// What the funding transaction carries beside the output that pays `script`.
    pub fn seal(&self, secret: &[u8; 32], script: &Script) -> [u8; RECOVERY_OCTETS] {
        let mut octets = pad(secret, script);
        let (expiry, index) = (self.expiry_height.to_be_bytes(), self.key_index.to_be_bytes());
        let plain = self.provider.as_bytes().iter().copied().chain(expiry).chain(index);
        octets.iter_mut().zip(plain).for_each(|(octet, plain)| *octet ^= plain);
        octets
    }

    fn open(secret: &[u8; 32], script: &Script, sealed: &[u8; RECOVERY_OCTETS]) -> Option<Self> {
        let mut octets = pad(secret, script);
        octets.iter_mut().zip(sealed).for_each(|(octet, sealed)| *octet ^= sealed);
        let (provider, rest) = octets.split_first_chunk::<KEY_OCTETS>()?;
        let (expiry, index) = rest.split_first_chunk()?;
        let key_index = u32::from_be_bytes(*index.first_chunk()?);
        let provider = PublicKey::from_slice(provider).ok()?.into();
        let expiry_height = u32::from_be_bytes(*expiry);
        (key_index < INDEX_END).then_some(Self { provider, expiry_height, key_index })
    }

    /// The channel that `tx` funds, and what is in it, when `tx` carries what brings it back. The
    /// channel's script must be of one of the wallet's keys, by their index; `tx` must spend the
    /// wallet's money, or anybody could have copied what it carries.
    pub fn find(
        secret: &[u8; 32],
        tx: &Transaction,
        key: impl Fn(u32) -> PublicKey,
    ) -> Option<(Self, Amount)> {
        let sealed = tx.output.iter().take(OUTPUTS_MAX).find_map(|out| carried(&out.script_pubkey));
        let sealed = sealed?;
        let scripts = tx.output.iter().take(OUTPUTS_MAX);
        scripts.filter(|output| output.script_pubkey.is_p2wsh()).find_map(|output| {
            let found = Self::open(secret, &output.script_pubkey, &sealed)?;
            let own = key(found.key_index);
            let params = found.params(Network::Bitcoin, own, output.value, ScriptBuf::new());
            let fits = found.expiry_height > 0 && params.funding_script() == output.script_pubkey;
            fits.then_some((found, output.value))
        })
    }

    /// Terms that give the funding's script. Of the rest nothing is known, and nothing is needed:
    /// no payment is made on a channel that was brought back.
    pub fn params(
        &self,
        network: Network,
        subscriber: PublicKey,
        capacity: Amount,
        remainder_script: ScriptBuf,
    ) -> ChannelParams {
        ChannelParams {
            version: PROTOCOL_VERSION,
            network,
            offer: OfferId::NONE,
            subscriber: subscriber.into(),
            provider: self.provider,
            expiry_height: self.expiry_height,
            capacity,
            remainder_script,
            schedule: Schedule::flat(1),
            confirmations: 1,
            unconfirmed_max: Amount::ZERO,
            tick_max: Octets(0),
        }
    }
}

/// What an output carries, when it is of the right form and length.
fn carried(script: &Script) -> Option<[u8; RECOVERY_OCTETS]> {
    if !script.is_op_return() {
        return None;
    }
    match script.instructions().nth(1)? {
        Ok(Instruction::PushBytes(octets)) => octets.as_bytes().try_into().ok(),
        _ => None,
    }
}

/// Octets that look like chance, from a secret and the script that they are for.
fn pad(secret: &[u8; 32], script: &Script) -> [u8; RECOVERY_OCTETS] {
    let mut pad = [0; RECOVERY_OCTETS];
    for (part, count) in pad.chunks_mut(32).zip(0u8..) {
        let hash = tagged_hash("bitmesh/recovery", &[secret, script.as_bytes(), &[count]]);
        part.iter_mut().zip(hash).for_each(|(octet, hash)| *octet = hash);
    }
    pad
}

#[cfg(test)]
mod tests {
    use bitcoin::{TxOut, absolute::LockTime, script::PushBytesBuf, transaction::Version};

    use super::{super::testing, *};

    const SECRET: [u8; 32] = [7; 32];

    fn recovery(params: &ChannelParams) -> Recovery {
        let (provider, expiry_height) = (params.provider, params.expiry_height);
        Recovery { provider, expiry_height, key_index: 5 }
    }

    fn funding(params: &ChannelParams, carried: &[u8]) -> Transaction {
        let data = PushBytesBuf::try_from(carried.to_vec()).unwrap();
        let pays = |script_pubkey, value| TxOut { value, script_pubkey };
        let output = vec![
            pays(params.remainder_script.clone(), Amount::from_sat(9_000)),
            pays(ScriptBuf::new_op_return(data), Amount::ZERO),
            pays(params.funding_script(), params.capacity),
        ];
        Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![], output }
    }

    #[test]
    fn p18_a_funding_tells_its_wallet_what_the_words_do_not() {
        let params = testing::params();
        let sealed = recovery(&params).seal(&SECRET, &params.funding_script());
        let tx = funding(&params, &sealed);
        let key = |index| testing::public_key(if index == 5 { 1 } else { 9 });
        assert_eq!(params.subscriber, key(5).into(), "the bench's key");
        let (found, capacity) = Recovery::find(&SECRET, &tx, key).unwrap();
        assert_eq!((found, capacity), (recovery(&params), params.capacity));
        let terms = found.params(params.network, key(5), capacity, params.remainder_script.clone());
        assert_eq!(terms.validate(), Ok(()));
        assert_eq!(terms.id(), params.id());
    }

    #[test]
    fn p18_what_is_carried_tells_nobody_else_anything() {
        let params = testing::params();
        let script = params.funding_script();
        let sealed = recovery(&params).seal(&SECRET, &script);
        let key = |_| params.subscriber.point().unwrap();
        let find = |secret: &[u8; 32], carried: &[u8]| {
            Recovery::find(secret, &funding(&params, carried), key)
        };
        assert!(find(&SECRET, &sealed).is_some());
        assert_eq!(find(&[8; 32], &sealed), None);
        assert_eq!(find(&SECRET, &sealed[1..]), None);
        assert_eq!(find(&SECRET, &[&sealed[..], &[0]].concat()), None);
        for at in 0..RECOVERY_OCTETS {
            let mut changed = sealed;
            changed[at] ^= 1;
            let found = find(&SECRET, &changed);
            // The index is checked by the key that it leads to, which is always the same here.
            assert_eq!(found.is_some(), at >= KEY_OCTETS + 4, "octet {at}");
        }
        let other = Recovery::find(&SECRET, &funding(&params, &sealed), |_| {
            params.provider.point().unwrap()
        });
        assert_eq!(other, None, "another wallet's key");
        let elsewhere = ChannelParams { expiry_height: params.expiry_height + 1, ..params.clone() };
        assert_ne!(recovery(&params).seal(&SECRET, &elsewhere.funding_script()), sealed);
    }
}
