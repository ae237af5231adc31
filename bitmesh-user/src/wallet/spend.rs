//! Transactions that leave the wallet.

use bdk_wallet::{
    bitcoin::{
        Address, Amount, FeeRate, Network, ScriptBuf, Transaction, Weight,
        address::NetworkUnchecked, psbt::Psbt, script::PushBytesBuf,
    },
    coin_selection::LargestFirstCoinSelection,
    error::CreateTxError,
};
use miniscript::psbt::PsbtExt as _;
use serde::{Deserialize, Serialize};

use super::{Wallet, WalletError};

/// Weight of the smallest transaction that is made here: one input, one output.
const MIN_WEIGHT: u64 = 437;
/// Weight units that are lost at most when a weight is rounded up to whole vbytes.
const ROUNDING_WEIGHT: u64 = 3;

/// Weight of an input's witness (BIP84): two items, a signature of up to 72 octets, a key of 33.
const WITNESS_WEIGHT: u64 = 1 + 1 + 72 + 1 + 33;
/// Weight of the marker and the flag (BIP144).
const SEGWIT_WEIGHT: u64 = 2;

/// How much goes to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sum {
    /// So many satoshi, and the fee on top of it.
    Sat(u64),
    /// Every confirmed output, less the fee.
    All,
}

/// A transaction with what it does to the wallet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Signed, unless it is a preview.
    pub tx: Transaction,
    /// What who is paid gets.
    pub amount: Amount,
    /// What miners get.
    pub fee: Amount,
    /// What comes back.
    pub change: Amount,
}

impl Wallet {
    /// The script of an address that somebody typed, on this wallet's chain.
    pub fn payee(&self, address: &str) -> Result<ScriptBuf, WalletError> {
        let network = self.inner.network();
        let parsed: Address<NetworkUnchecked> = address
            .parse()
            .map_err(|error| WalletError::Address(format!("{address:?} is no address: {error}")))?;
        if let Ok(address) = parsed.clone().require_network(network) {
            return Ok(address.script_pubkey());
        }
        let all = [Network::Bitcoin, Network::Testnet, Network::Signet, Network::Regtest];
        let valid = all.iter().filter(|network| parsed.is_valid_for_network(**network));
        let found: Vec<_> = valid.map(ToString::to_string).collect();
        Err(WalletError::Address(format!(
            "{address} is an address on {}, and this wallet is on {network}: nobody could get it there",
            found.join(" or ")
        )))
    }

    /// What a payment to `script` would be. Nothing is signed, nothing remembered.
    pub fn preview(
        &mut self,
        script: &ScriptBuf,
        sum: Sum,
        fee_rate: FeeRate,
    ) -> Result<Payment, WalletError> {
        let psbt = self.build(script.clone(), sum, None, fee_rate)?;
        let tx = psbt.unsigned_tx.clone();
        let payment = payment(tx, script, psbt.fee().ok())?;
        for output in &payment.tx.output {
            // The script that change would go to is free again.
            if let Some((keychain, index)) =
                self.inner.derivation_of_spk(output.script_pubkey.clone())
            {
                self.inner.unmark_used(keychain, index);
            }
        }
        Ok(payment)
    }

    /// A payment to `script` from confirmed outputs, signed, replaceable (BIP125) and not
    /// broadcast. Its inputs count as spent from `now`, in seconds since 1970.
    pub fn pay(
        &mut self,
        script: &ScriptBuf,
        sum: Sum,
        fee_rate: FeeRate,
        now: u64,
    ) -> Result<Payment, WalletError> {
        let psbt = self.build(script.clone(), sum, None, fee_rate)?;
        let fee = psbt.fee().ok();
        let tx = self.sign(psbt, now)?;
        payment(tx, script, fee)
    }

    /// What a transaction that spends outputs of this wallet is charged for, signed or not.
    pub fn signed_vbytes(&self, tx: &Transaction) -> u64 {
        let inputs = u64::try_from(tx.input.len()).unwrap_or(u64::MAX);
        let mut bare = tx.clone();
        bare.input.iter_mut().for_each(|input| input.witness.clear());
        let witness = inputs.saturating_mul(WITNESS_WEIGHT) + SEGWIT_WEIGHT;
        (bare.weight() + Weight::from_wu(witness)).to_vbytes_ceil()
    }

    /// Outputs, inputs and the fee; `data` goes into an output of its own.
    pub(super) fn build(
        &mut self,
        script: ScriptBuf,
        sum: Sum,
        data: Option<PushBytesBuf>,
        fee_rate: FeeRate,
    ) -> Result<Psbt, WalletError> {
        let dust = script.minimal_non_dust();
        // Few inputs: a funding has to fit into one request to the provider.
        let mut builder = self.inner.build_tx().coin_selection(LargestFirstCoinSelection);
        builder.exclude_unconfirmed().fee_rate(by_whole_vbytes(fee_rate));
        match sum {
            Sum::Sat(sat) => builder.add_recipient(script, Amount::from_sat(sat)),
            Sum::All => builder.drain_wallet().drain_to(script),
        };
        if let Some(data) = data {
            builder.add_data(&data);
        }
        builder.finish().map_err(|error| match error {
            CreateTxError::CoinSelection(short) => {
                WalletError::Insufficient { needed: short.needed, available: short.available }
            }
            CreateTxError::OutputBelowDustLimit(_) => WalletError::Dust(dust),
            error => WalletError::Create(error.to_string()),
        })
    }

    /// Signs it, and counts its inputs as spent.
    pub(super) fn sign(&mut self, mut psbt: Psbt, now: u64) -> Result<Transaction, WalletError> {
        let refused = |what: String| WalletError::Create(what);
        self.keys.sign_psbt(&mut psbt).map_err(refused)?;
        psbt.finalize_mut(self.inner.secp_ctx())
            .map_err(|errors| refused(errors.iter().map(ToString::to_string).collect()))?;
        let tx = psbt.extract_tx().map_err(|error| refused(error.to_string()))?;
        self.inner.apply_unconfirmed_txs([(tx.clone(), now)]);
        Ok(tx)
    }
}

fn payment(
    tx: Transaction,
    script: &ScriptBuf,
    fee: Option<Amount>,
) -> Result<Payment, WalletError> {
    let fee = fee.ok_or_else(|| WalletError::Create("its inputs have no values".into()))?;
    let paid = tx.output.iter().find(|output| output.script_pubkey == *script);
    let amount = paid.map_or(Amount::ZERO, |output| output.value);
    let change = tx.output.iter().filter(|output| output.script_pubkey != *script);
    let change = change.map(|output| output.value).sum();
    Ok(Payment { tx, amount, fee, change })
}

/// The rate by weight that is no less than `rate` by vbytes, of which nodes count whole ones: they
/// refuse what is a satoshi short of their minimum.
fn by_whole_vbytes(rate: FeeRate) -> FeeRate {
    let per_kwu = rate.to_sat_per_kwu();
    let more = per_kwu.saturating_mul(ROUNDING_WEIGHT).div_ceil(MIN_WEIGHT);
    FeeRate::from_sat_per_kwu(per_kwu.saturating_add(more))
}
