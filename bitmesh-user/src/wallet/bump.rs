//! A transaction that no block takes, replaced by one that pays miners more.

use bdk_wallet::bitcoin::{Amount, FeeRate, Transaction, Txid};

use super::{Wallet, WalletError};

/// More than nodes want on top of what is replaced: a satoshi a vbyte (BIP125), and a quarter for
/// rounding.
const BUMP_MIN: FeeRate = FeeRate::from_sat_per_kwu(313);

impl Wallet {
    /// A replacement of a transaction of this wallet's that is in no block, signed and not
    /// broadcast: it spends the same outputs, so that only one of both can confirm, and pays the
    /// same to others, for at most `fee_max`. It counts from `now`, in seconds since 1970, which is
    /// to be later than what it replaces.
    pub fn bump(
        &mut self,
        txid: Txid,
        fee_rate: FeeRate,
        fee_max: Amount,
        now: u64,
    ) -> Result<Transaction, WalletError> {
        let refused = |what: String| WalletError::Create(what);
        let known = self.inner.get_tx(txid).map(|known| known.tx_node.tx);
        let known = known.ok_or_else(|| refused(format!("{txid} is not this wallet's")))?;
        let paid = self.inner.calculate_fee_rate(&known).map_err(|e| refused(e.to_string()))?;
        let least = paid.to_sat_per_kwu().saturating_add(BUMP_MIN.to_sat_per_kwu());
        let mut builder =
            self.inner.build_fee_bump(txid).map_err(|error| refused(error.to_string()))?;
        builder.exclude_unconfirmed().fee_rate(fee_rate.max(FeeRate::from_sat_per_kwu(least)));
        let psbt = builder.finish().map_err(|error| refused(error.to_string()))?;
        let fee = psbt.fee().map_err(|error| refused(error.to_string()))?;
        if fee > fee_max {
            return Err(refused(format!("it would cost {fee}, more than {fee_max}, in fees")));
        }
        let spends = |tx: &Transaction, outpoint| {
            tx.input.iter().any(|input| input.previous_output == outpoint)
        };
        let same =
            |input: &bdk_wallet::bitcoin::TxIn| spends(&psbt.unsigned_tx, input.previous_output);
        if !known.input.iter().all(same) {
            return Err(refused("it would not replace what it should".into()));
        }
        self.sign(psbt, now)
    }

    /// What a transaction of this wallet's and those that it replaced spend is free again, from
    /// `now` on, in seconds since 1970: it has waited in vain. Should it confirm after all, it
    /// counts. Oldest first.
    pub fn give_up<'a>(
        &mut self,
        transactions: impl DoubleEndedIterator<Item = &'a Transaction>,
        now: u64,
    ) {
        // One by one: what was replaced would count again without what replaced it.
        for tx in transactions.rev() {
            self.inner.apply_evicted_txs([(tx.compute_txid(), now)]);
        }
    }
}
