//! Every key, derived from the seed when it is needed.

use bdk_wallet::{
    KeychainKind,
    bitcoin::{
        Network, NetworkKind,
        bip32::{ChildNumber, DerivationPath, Fingerprint, Xpriv, Xpub},
        psbt::Psbt,
        secp256k1::{All, Keypair, Secp256k1, SecretKey},
    },
};

use super::Words;

/// Purpose of the keys that are not the on-chain wallet's: 0x424d, "BM".
const PURPOSE: u32 = 16_973;
/// Purpose of the on-chain wallet: native segwit (BIP84).
const WALLET_PURPOSE: u32 = 84;

/// What a key outside of the on-chain wallet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A channel that this wallet pays on.
    Subscriber,
    /// A channel that this wallet is paid on.
    Provider,
}

impl Role {
    fn index(self) -> u32 {
        match self {
            Self::Subscriber => 0,
            Self::Provider => 1,
        }
    }
}

/// Third level of the node's own key, behind those of [`Role`].
const NODE: u32 = 2;
/// The same, of the key that pads what fundings carry.
const RECOVERY: u32 = 3;

pub(super) struct Keys {
    secp: Secp256k1<All>,
    master: Xpriv,
    coin: u32,
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.master.private_key.non_secure_erase();
    }
}

impl Keys {
    pub(super) fn new(words: &Words, network: Network) -> Self {
        // SLIP-44: 0 for Bitcoin, 1 for every test network.
        let coin = u32::from(NetworkKind::from(network) == NetworkKind::Test);
        let master = Xpriv::new_master(network, words.seed().as_ref())
            .expect("BIP32 takes every seed of 16 to 64 octets but 1 in 2^127");
        Self { secp: Secp256k1::new(), master, coin }
    }

    pub(super) fn secp(&self) -> &Secp256k1<All> {
        &self.secp
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.master.fingerprint(&self.secp)
    }

    /// BIP84's, with public keys only: the wallet's library holds no secret.
    pub(super) fn descriptor(&self, keychain: KeychainKind) -> String {
        let path = [WALLET_PURPOSE, self.coin, 0];
        let account = Xpub::from_priv(&self.secp, &self.derive(&path));
        let branch = u32::from(keychain == KeychainKind::Internal);
        let coin = self.coin;
        format!("wpkh([{}/84'/{coin}'/0']{account}/{branch}/*)", self.fingerprint())
    }

    pub(super) fn sign_psbt(&self, psbt: &mut Psbt) -> Result<(), String> {
        psbt.sign(&self.master, &self.secp)
            .map(|_| ())
            .map_err(|(_, errors)| format!("{} inputs are not this wallet's", errors.len()))
    }

    pub(super) fn channel(&self, role: Role, index: u32) -> Keypair {
        self.derive(&[PURPOSE, self.coin, role.index(), index]).to_keypair(&self.secp)
    }

    pub(super) fn node(&self) -> Keypair {
        self.derive(&[PURPOSE, self.coin, NODE, 0]).to_keypair(&self.secp)
    }

    pub(super) fn recovery(&self) -> SecretKey {
        self.derive(&[PURPOSE, self.coin, RECOVERY, 0]).private_key
    }

    fn derive(&self, hardened: &[u32]) -> Xpriv {
        let path: DerivationPath =
            hardened.iter().map(|index| ChildNumber::Hardened { index: *index }).collect();
        self.master.derive_priv(&self.secp, &path).expect("hardened derivation fails 1 in 2^127")
    }
}
