//! What few channels of a provider have. It is kept apart, so that the others are small.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction};

use super::{ClaimRecord, CloseRecord, Nonce, provider::Commitment};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rare {
    /// Best commitments on fundings that don't count at present.
    pub(super) void: BTreeMap<OutPoint, Commitment>,
    /// The newest funding that was presented and taken, and how many there were.
    pub(super) offered: Option<Box<Transaction>>,
    pub(super) offers: usize,
    /// Most that was paid on a funding that counts no more.
    pub(super) revoked: Amount,
    pub(super) claim: Option<Box<ClaimRecord>>,
    pub(super) payout_script: Option<ScriptBuf>,
    pub(super) close: Option<Box<CloseRecord>>,
    /// Tip when the first close was signed, or height of the block that it was in last.
    pub(super) close_since: Option<u32>,
    pub(super) nonces: BTreeSet<Nonce>,
}

impl Rare {
    /// Of a channel that has nothing of it.
    pub(super) const NONE: Self = Self {
        void: BTreeMap::new(),
        offered: None,
        offers: 0,
        revoked: Amount::ZERO,
        claim: None,
        payout_script: None,
        close: None,
        close_since: None,
        nonces: BTreeSet::new(),
    };

    /// A funding is in a block: what was meant for another one goes.
    pub(super) fn funded(&mut self, outpoint: OutPoint) {
        let txid = outpoint.txid;
        self.offered = self.offered.take().filter(|tx| tx.compute_txid() == txid);
        self.claim = self.claim.take().filter(|claim| claim.spends(&outpoint));
        self.close = self.close.take().filter(|close| close.spends(Some(outpoint)));
        self.close_since = self.close_since.filter(|_| self.close.is_some());
    }
}

/// None of it, to be looked at.
pub(super) static NOTHING_RARE: Rare = Rare::NONE;
