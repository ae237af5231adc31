//! What stations used at an edge before that was taken over, and that it had not written down by then.
//!
//! The kernel of the edge that was taken over still has its counters when it is back. The ledger had,
//! when it was taken over, what each station was known to have used: what the counters have beyond that
//! is written down under a name that there is once, and whoever has the account by then debits it in
//! the commit that takes the name away. So it is settled once, whatever is killed in between.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EdgeNumber;
use crate::{account::AccountId, station::Station, units::Octets};

/// Names what a station used late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateId {
    /// Where.
    pub edge: EdgeNumber,
    /// The edge's epoch once it was taken over.
    pub epoch: u64,
    /// Who.
    pub station: Station,
}

/// What a station used late, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// What names it.
    pub id: LateId,
    /// Pays for it.
    pub account: AccountId,
    /// How much.
    pub octets: Octets,
}

impl LateId {
    /// Octets that a station has used beyond `written`, which the ledger had when its edge was taken
    /// over, once nothing of what it was granted is in force any more. Both are of the station's life. Its
    /// limit bounds nothing here: it may have been lowered below what was used.
    pub fn used_late(written: Octets, used: Octets) -> Octets {
        used.saturating_sub(written)
    }
}

/// What was used late and is to be settled, by the edge that has the account.
#[derive(Debug, Default)]
pub struct Unsettled {
    waiting: BTreeMap<LateId, Late>,
    settled: Octets,
    lost: Octets,
}

impl Unsettled {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Something more; `false` when it waits already.
    pub fn add(&mut self, late: Late) -> bool {
        self.waiting.insert(late.id, late).is_none()
    }

    /// What waits for one account.
    pub fn of(&self, account: AccountId) -> impl Iterator<Item = Late> {
        self.waiting.values().filter(move |late| late.account == account).copied()
    }

    /// The same in all, in octets.
    pub fn sum_of(&self, account: AccountId) -> Octets {
        self.of(account).fold(Octets(0), |sum, late| sum.saturating_add(late.octets))
    }

    /// Accounts that something waits for.
    pub fn accounts(&self) -> Vec<AccountId> {
        let mut accounts: Vec<_> = self.waiting.values().map(|late| late.account).collect();
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }

    /// What waits for an account is another edge's to settle.
    pub fn let_go(&mut self, account: AccountId) {
        self.waiting.retain(|_, late| late.account != account);
    }

    /// Of what was used late, so much was debited; the account had no credit for the rest.
    pub fn settle(&mut self, late: Late, debited: Octets) {
        self.waiting.remove(&late.id);
        self.settled = self.settled.saturating_add(debited);
        self.lost = self.lost.saturating_add(late.octets.saturating_sub(debited));
    }

    /// Octets that were debited, and those that no credit was left for, since the start.
    pub fn sums(&self) -> (Octets, Octets) {
        (self.settled, self.lost)
    }
}
