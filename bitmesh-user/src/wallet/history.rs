//! What came, what went, and what waits for a block.

use bdk_wallet::{
    bitcoin::{Amount, Transaction},
    chain::ChainPosition,
};

use super::Wallet;

/// A transaction that concerns the wallet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// It.
    pub tx: Transaction,
    /// Block that holds it.
    pub height: Option<u32>,
    /// That block's time, else when it was made or seen; in seconds since 1970.
    pub time: Option<u64>,
    /// Out of the wallet's outputs.
    pub sent: Amount,
    /// To the wallet's scripts.
    pub received: Amount,
    /// What miners got, where all that it spends is known.
    pub fee: Option<Amount>,
}

impl Wallet {
    /// Every transaction, the newest first: those in no block, then by height.
    pub fn history(&self) -> Vec<Past> {
        let newest_first = self
            .inner
            .transactions_sort_by(|one, other| other.chain_position.cmp(&one.chain_position));
        let past = newest_first.into_iter().map(|known| {
            let tx = known.tx_node.tx.as_ref();
            let (height, time) = match known.chain_position {
                ChainPosition::Confirmed { anchor, .. } => {
                    (Some(anchor.block_id.height), Some(anchor.confirmation_time))
                }
                ChainPosition::Unconfirmed { first_seen, last_seen } => {
                    (None, first_seen.or(last_seen))
                }
            };
            let (sent, received) = self.inner.sent_and_received(tx);
            let fee = self.inner.calculate_fee(tx).ok();
            Past { tx: tx.clone(), height, time, sent, received, fee }
        });
        past.collect()
    }

    /// Own transactions that no block holds: a node may have forgotten them.
    pub fn unconfirmed(&self) -> Vec<Transaction> {
        let waiting =
            self.inner.transactions().filter(|known| !known.chain_position.is_confirmed());
        let own = waiting.map(|known| known.tx_node.tx.as_ref().clone());
        own.filter(|tx| self.spends_own(tx)).collect()
    }

    /// Whether a transaction spends outputs of this wallet.
    pub fn spends_own(&self, tx: &Transaction) -> bool {
        self.inner.sent_and_received(tx).0 > Amount::ZERO
    }
}
