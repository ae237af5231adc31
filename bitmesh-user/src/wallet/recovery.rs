//! Channels that come back from the words alone.

use bdk_wallet::bitcoin::{Amount, FeeRate, Transaction, script::PushBytesBuf};
use bitmesh_core::channel::{ChannelParams, Recovery};
use zeroize::Zeroizing;

use super::{Role, Sum, Wallet, WalletError};

/// A channel of this wallet's that a block funds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Those terms that give its script.
    pub params: ChannelParams,
    /// Index of this end's key.
    pub key_index: u32,
}

impl Wallet {
    /// A transaction that funds a channel from confirmed outputs, signed and not broadcast. It
    /// carries what brings the channel back ([`Recovery`]). Its inputs count as spent from `now`, in
    /// seconds since 1970.
    pub fn fund(
        &mut self,
        params: &ChannelParams,
        key_index: u32,
        fee_rate: FeeRate,
        now: u64,
    ) -> Result<Transaction, WalletError> {
        let script = params.funding_script();
        let (provider, expiry_height) = (params.provider, params.expiry_height);
        let recovery = Recovery { provider, expiry_height, key_index };
        let carried = PushBytesBuf::from(recovery.seal(&self.recovery_secret(), &script));
        let value = Sum::Sat(params.capacity.to_sat());
        let psbt = self.build(script, value, Some(carried), fee_rate)?;
        self.sign(psbt, now)
    }

    /// Channels that these transactions of a block fund with this wallet's money, by what they
    /// carry; to be asked after the block was connected.
    pub fn recover(&mut self, transactions: &[Transaction]) -> Vec<Recovered> {
        let found: Vec<_> = transactions.iter().filter_map(|tx| self.funding_by(tx)).collect();
        found.into_iter().map(|(recovery, capacity)| self.recovered(recovery, capacity)).collect()
    }

    /// Whether a transaction funds a channel with this wallet's money.
    pub fn funds_channel(&self, tx: &Transaction) -> bool {
        self.funding_by(tx).is_some()
    }

    /// The channel that `tx` funds with this wallet's money, and its capacity.
    fn funding_by(&self, tx: &Transaction) -> Option<(Recovery, Amount)> {
        let key = |index| self.channel_public_key(Role::Subscriber, index);
        let found = Recovery::find(&self.recovery_secret(), tx, key)?;
        self.spends_own(tx).then_some(found)
    }

    fn recovered(&mut self, recovery: Recovery, capacity: Amount) -> Recovered {
        let key_index = recovery.key_index;
        let own = self.channel_public_key(Role::Subscriber, key_index);
        // Made up: nothing will be paid to it.
        let remainder = self.unused_address().script_pubkey();
        let params = recovery.params(self.inner.network(), own, capacity, remainder);
        Recovered { params, key_index }
    }

    fn recovery_secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.keys.recovery().secret_bytes())
    }
}
