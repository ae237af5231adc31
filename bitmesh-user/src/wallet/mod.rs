//! The only holder of keys: the on-chain wallet, the keys of channels and the one that signs
//! offers, all from the same seed words.
//!
//! It signs what it is given and spends only what it is told to. It never talks to anyone; blocks
//! are shown to it, its changes are handed out to be stored.

mod bump;
mod history;
mod keys;
mod passphrase;
mod recovery;
pub mod seed;
mod spend;
#[cfg(test)]
mod tests;
mod vault;
mod words;

use bdk_wallet::{
    ChangeSet, KeychainKind, LoadError, LoadMismatch, Update,
    bitcoin::{
        Address, Amount, Block, BlockHash, Network, PrivateKey, ScriptBuf,
        bip32::Fingerprint,
        secp256k1::{Message, PublicKey, XOnlyPublicKey, ecdsa, schnorr},
    },
    chain::{BlockId, Merge as _},
};
use zeroize::Zeroizing;

pub use history::Past;
use keys::Keys;
pub use keys::Role;
pub use passphrase::Passphrase;
pub use recovery::Recovered;
pub use seed::{Sealed, Seed, SeedError};
pub use spend::{Payment, Sum};
pub use vault::VaultError;
pub use words::{Typo, Words, WordsError};

/// Addresses past the newest used one that are looked for in blocks, each kind. Claims that never
/// confirmed and offers that were refused leave gaps; a wallet made anew from its words must find
/// what is behind them.
const LOOKAHEAD_ADDRESSES: u32 = 200;

/// What the wallet can't do.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// The words are for another wallet than the store's.
    #[error(
        "the seed words are not those that this data directory was made with; restore the seed file, or choose another --data-dir"
    )]
    WrongSeed,
    /// The store is of another chain.
    #[error("the wallet is on {found}, not on {wanted}; choose --network {found}")]
    WrongNetwork {
        /// What is stored.
        found: Network,
        /// What was asked for.
        wanted: Network,
    },
    /// What is stored makes no wallet.
    #[error("the stored wallet is damaged: {0}; restore the data directory from a backup")]
    Damaged(String),
    /// Less money than is needed.
    #[error("{} sat are needed, fee included, and {} sat are in confirmed outputs", needed.to_sat(), available.to_sat())]
    Insufficient {
        /// With the fee.
        needed: Amount,
        /// Confirmed and spendable.
        available: Amount,
    },
    /// Less than nodes relay.
    #[error("less than {} sat to such an address is dust, which nodes do not relay; send more", .0.to_sat())]
    Dust(Amount),
    /// Not one to pay to.
    #[error("{0}")]
    Address(String),
    /// No transaction.
    #[error("the transaction can't be made: {0}")]
    Create(String),
    /// A block that doesn't fit on those seen before.
    #[error(
        "block {0} does not connect to the blocks that the wallet saw; restore the data directory from a backup"
    )]
    Block(u32),
}

/// Money, in satoshi.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalletBalance {
    /// In blocks.
    pub confirmed: Amount,
    /// On its way, or too young to be spent.
    pub pending: Amount,
}

/// A wallet on seed words.
pub struct Wallet {
    keys: Keys,
    inner: bdk_wallet::Wallet,
}

/// Names seed words without telling them (BIP32).
pub fn fingerprint(words: &Words, network: Network) -> Fingerprint {
    Keys::new(words, network).fingerprint()
}

impl Wallet {
    /// A new wallet that knows nothing of blocks before `birthday`.
    pub fn create(
        words: &Words,
        network: Network,
        birthday: (u32, BlockHash),
    ) -> Result<Self, WalletError> {
        let keys = Keys::new(words, network);
        let mut inner = bdk_wallet::Wallet::create(
            keys.descriptor(KeychainKind::External),
            keys.descriptor(KeychainKind::Internal),
        )
        .network(network)
        .lookahead(LOOKAHEAD_ADDRESSES)
        .create_wallet_no_persist()
        .map_err(|error| WalletError::Create(error.to_string()))?;
        let (height, hash) = birthday;
        if height > 0 {
            let tip = inner.latest_checkpoint().insert(BlockId { height, hash });
            inner
                .apply_update(Update { chain: Some(tip), ..Update::default() })
                .map_err(|_| WalletError::Block(height))?;
        }
        Ok(Self { keys, inner })
    }

    /// Changes, oldest first, as one.
    pub fn merge(changes: &[String]) -> Result<String, WalletError> {
        let damaged = |error: serde_json::Error| WalletError::Damaged(error.to_string());
        serde_json::to_string(&merged(changes)?).map_err(damaged)
    }

    /// The wallet that stored these changes, oldest first.
    pub fn load(words: &Words, network: Network, changes: &[String]) -> Result<Self, WalletError> {
        let damaged = |what: String| WalletError::Damaged(what);
        let stored = merged(changes)?;
        let keys = Keys::new(words, network);
        let loaded = bdk_wallet::Wallet::load()
            .check_network(network)
            .lookahead(LOOKAHEAD_ADDRESSES)
            .descriptor(KeychainKind::External, Some(keys.descriptor(KeychainKind::External)))
            .descriptor(KeychainKind::Internal, Some(keys.descriptor(KeychainKind::Internal)))
            .load_wallet_no_persist(stored);
        match loaded {
            Ok(Some(inner)) => Ok(Self { keys, inner }),
            Ok(None) => Err(damaged("nothing is stored".into())),
            Err(LoadError::Mismatch(LoadMismatch::Network { loaded, expected })) => {
                Err(WalletError::WrongNetwork { found: loaded, wanted: expected })
            }
            Err(LoadError::Mismatch(LoadMismatch::Descriptor { .. })) => {
                Err(WalletError::WrongSeed)
            }
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    /// What changed since the last call, to be stored before anything that depends on it happens.
    pub fn take_changes(&mut self) -> Result<Option<String>, WalletError> {
        self.inner
            .take_staged()
            .map(|change| serde_json::to_string(&change))
            .transpose()
            .map_err(|error| WalletError::Damaged(error.to_string()))
    }

    /// Names the seed words without telling them (BIP32).
    pub fn fingerprint(&self) -> Fingerprint {
        self.keys.fingerprint()
    }

    /// An address that was not given out before.
    pub fn next_address(&mut self) -> Address {
        self.inner.reveal_next_address(KeychainKind::External).address
    }

    /// The newest address that nothing was sent to.
    pub fn unused_address(&mut self) -> Address {
        self.inner.next_unused_address(KeychainKind::External).address
    }

    /// A script for change that was not given out before.
    pub fn remainder_script(&mut self) -> ScriptBuf {
        self.inner.reveal_next_address(KeychainKind::Internal).address.script_pubkey()
    }

    /// What there is.
    pub fn balance(&self) -> WalletBalance {
        let balance = self.inner.balance();
        let pending = balance.trusted_pending + balance.untrusted_pending + balance.immature;
        WalletBalance { confirmed: balance.confirmed, pending }
    }

    /// Every script that a block may concern the wallet by, those looked ahead for included.
    pub fn scripts(&self) -> impl Iterator<Item = &ScriptBuf> {
        self.inner.spk_index().inner().all_spks().values()
    }

    /// Follows a block. One at a height that was seen before replaces that and all above it. Of one
    /// that can't concern [`Self::scripts`] the header is enough.
    pub fn connect_block(&mut self, block: &Block, height: u32) -> Result<(), WalletError> {
        self.inner.apply_block(block, height).map_err(|_| WalletError::Block(height))
    }

    /// The key of one end of a channel: m/16973'/coin'/role'/index'.
    pub fn channel_public_key(&self, role: Role, index: u32) -> PublicKey {
        self.keys.channel(role, index).public_key()
    }

    /// Signs with the key of one end of a channel: low S, RFC 6979.
    pub fn sign_channel(&self, role: Role, index: u32, message: Message) -> ecdsa::Signature {
        self.keys.secp().sign_ecdsa(&message, &self.keys.channel(role, index).secret_key())
    }

    /// The private key of one end of a channel, for a stock wallet. Whoever reads it has the money.
    pub fn export_channel_key(&self, role: Role, index: u32) -> Zeroizing<String> {
        let secret = self.keys.channel(role, index).secret_key();
        Zeroizing::new(PrivateKey::new(secret, self.inner.network()).to_wif())
    }

    /// The key that signs offers: m/16973'/coin'/2'/0'.
    pub fn node_public_key(&self) -> XOnlyPublicKey {
        self.keys.node().x_only_public_key().0
    }

    /// Signs with the node's key (BIP340).
    pub fn sign_node(&self, message: Message) -> schnorr::Signature {
        self.keys.secp().sign_schnorr_no_aux_rand(&message, &self.keys.node())
    }
}

fn merged(changes: &[String]) -> Result<ChangeSet, WalletError> {
    let mut all = ChangeSet::default();
    for change in changes {
        let change: ChangeSet = serde_json::from_str(change)
            .map_err(|error| WalletError::Damaged(error.to_string()))?;
        all.merge(change);
    }
    Ok(all)
}
