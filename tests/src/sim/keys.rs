//! Keys of everybody, made once.

use std::sync::OnceLock;

use bitmesh_core::bitcoin::{
    EcdsaSighashType, OutPoint, PublicKey, ScriptBuf, Transaction, TxIn, TxOut, Witness,
    absolute::LockTime,
    ecdsa,
    secp256k1::{self, Keypair, Message, SecretKey},
    sighash::SighashCache,
    transaction::Version,
};

use super::spend::secp;

/// Channels that one party has keys for.
const CHANNELS: usize = 64;
/// Parties: a provider and its subscribers.
const PARTIES: usize = 5;

/// Whose key, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub usize);

/// The provider; subscriber i is `Owner(i + 1)`.
pub const PROVIDER: Owner = Owner(0);

fn pair(owner: Owner, index: usize) -> &'static Keypair {
    static PAIRS: OnceLock<Vec<Keypair>> = OnceLock::new();
    let pairs = PAIRS.get_or_init(|| {
        (1..=PARTIES * (CHANNELS + 1))
            .map(|n| {
                let mut octets = [1; 32];
                octets[..8].copy_from_slice(&(n as u64).to_be_bytes());
                let secret = SecretKey::from_slice(&octets).expect("below the curve's order");
                Keypair::from_secret_key(secp(), &secret)
            })
            .collect()
    });
    let at = (owner.0 % PARTIES) * (CHANNELS + 1) + index;
    pairs.get(at).expect("an index of a channel that has a key")
}

impl Owner {
    /// Its key for a channel.
    pub fn public_key(self, index: u32) -> secp256k1::PublicKey {
        pair(self, index as usize % CHANNELS).public_key()
    }

    /// Signs with its key for a channel.
    pub fn sign(self, index: u32, message: Message) -> secp256k1::ecdsa::Signature {
        secp().sign_ecdsa(&message, &pair(self, index as usize % CHANNELS).secret_key())
    }

    /// The key that signs offers.
    pub fn node(self) -> Keypair {
        *pair(self, CHANNELS)
    }

    /// Where its wallet is paid.
    pub fn script(self) -> ScriptBuf {
        static SCRIPTS: OnceLock<Vec<ScriptBuf>> = OnceLock::new();
        let scripts = SCRIPTS.get_or_init(|| {
            let script = |owner| {
                let key = PublicKey::new(pair(Self(owner), CHANNELS).public_key());
                ScriptBuf::new_p2wpkh(&key.wpubkey_hash().expect("a compressed key"))
            };
            (0..PARTIES).map(script).collect()
        });
        scripts.get(self.0 % PARTIES).expect("a party").clone()
    }

    /// A transaction of its wallet that spends one output of [`Self::script`].
    pub fn spend(
        self,
        version: i32,
        (from, coin): (OutPoint, &TxOut),
        output: Vec<TxOut>,
    ) -> Transaction {
        let sequence = bitmesh_core::bitcoin::Sequence::ENABLE_RBF_NO_LOCKTIME;
        let mut tx = Transaction {
            version: Version(version),
            lock_time: LockTime::ZERO,
            input: vec![TxIn { previous_output: from, sequence, ..TxIn::default() }],
            output,
        };
        let pair = pair(self, CHANNELS);
        let hash = SighashCache::new(&tx)
            .p2wpkh_signature_hash(0, &coin.script_pubkey, coin.value, EcdsaSighashType::All)
            .expect("a P2WPKH output");
        let signature = secp().sign_ecdsa(&Message::from(hash), &pair.secret_key());
        let witness =
            Witness::p2wpkh(&ecdsa::Signature::sighash_all(signature), &pair.public_key());
        if let Some(input) = tx.input.first_mut() {
            input.witness = witness;
        }
        tx
    }
}
