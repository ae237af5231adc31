//! A fleet: edges that share one ledger.
//!
//! An account is at one edge at a time, with all its channels and stations. It moves whole: the edge
//! that has it gives it up in the transaction that writes its last counters, or is fenced after it was
//! silent for longer than its lease. What is here are names, what the store has to know beside the
//! journal, and the rule of time; how an account is taken in and released is the controller's.

mod late;
mod lease;

use std::{collections::BTreeSet, fmt, ops::RangeInclusive};

use bitcoin::BlockHash;
use serde::{Deserialize, Serialize};

pub use late::{Late, LateId, Unsettled};
pub use lease::{HOLD_DEFAULT, HOLD_MAX, HOLD_MIN, Hold, Lease, Silence};

use crate::{
    account::AccountId,
    channel::{ChannelId, InvalidEvent, ProviderEvent},
    ledger::Usage,
    station::Station,
};

/// Bits of a key's index that count an edge's channels; those above are the edge's number.
const KEY_BITS: u32 = 20;

/// Edges of one fleet: with the bits of [`KEY_BITS`] they fill the indices that keys are derived by.
pub const EDGES_MAX: u16 = 1 << 11;

const _: () = assert!((EDGES_MAX as u64) << KEY_BITS == 1 << 31, "BIP 32's indices end there");

/// An edge's number in its fleet, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct EdgeNumber(u16);

impl EdgeNumber {
    /// `None` from [`EDGES_MAX`] on.
    pub fn new(number: u16) -> Option<Self> {
        (number < EDGES_MAX).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Indices of the keys that this edge alone opens channels with, so that no two edges take one.
    pub fn keys(self) -> RangeInclusive<u32> {
        let first = u32::from(self.0) << KEY_BITS;
        first..=first | ((1 << KEY_BITS) - 1)
    }
}

impl TryFrom<u16> for EdgeNumber {
    type Error = InvalidEvent;

    fn try_from(number: u16) -> Result<Self, InvalidEvent> {
        Self::new(number).ok_or(InvalidEvent("an edge of a number that there is not"))
    }
}

impl From<EdgeNumber> for u16 {
    fn from(edge: EdgeNumber) -> Self {
        edge.0
    }
}

impl fmt::Display for EdgeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What belongs to one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// Its payments credit the account.
    Channel(ChannelId),
    /// Its use counts for the account.
    Station(Station),
}

/// What the store of a fleet has to know beside the journal. A lone edge records none of these, and
/// none of them is needed to fold a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetEntry {
    /// From now on this belongs to that account, which is made if it was not there: at this edge.
    Member {
        /// What.
        member: Member,
        /// Whose.
        account: AccountId,
    },
    /// An account has no channel any more, and is forgotten with all that belongs to it.
    AccountGone {
        /// Which.
        account: AccountId,
        /// Those that it had: nothing of their journals is needed any more.
        channels: BTreeSet<ChannelId>,
    },
    /// The next key that this edge opens a channel with. Those before may be in journals that are at
    /// other edges, or forgotten.
    KeyIndex {
        /// Its index.
        next: u32,
    },
    /// An account goes to another edge.
    HandOver {
        /// Which.
        account: AccountId,
        /// Where to.
        to: EdgeNumber,
        /// The newest blocks that its channels have seen, oldest first.
        tips: Vec<(u32, BlockHash)>,
    },
    /// An account that came from another edge has seen this edge's blocks, and follows them.
    CaughtUp {
        /// Which.
        account: AccountId,
    },
    /// What became known late is settled: none of it is told again.
    Settled {
        /// What names it.
        late: LateId,
    },
}

/// Accounts that another edge gave up, as the store has them. All of them saw the same blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// Which.
    pub accounts: BTreeSet<AccountId>,
    /// All that happened to their channels, in the order in which it was written.
    pub events: Vec<(ChannelId, ProviderEvent)>,
    /// What their stations used.
    pub usage: Vec<(Station, Usage)>,
    /// The newest blocks that their channels have seen, oldest first.
    pub tips: Vec<(u32, BlockHash)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_share_no_key() {
        let of = |number| EdgeNumber::new(number).unwrap().keys();
        assert_eq!(of(0), 0..=(1 << 20) - 1);
        assert_eq!(*of(1).start(), of(0).end() + 1);
        assert_eq!(*of(EDGES_MAX - 1).end(), (1 << 31) - 1);
        assert_eq!(EdgeNumber::new(EDGES_MAX), None);
    }
}
