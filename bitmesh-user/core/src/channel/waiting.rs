//! What channels wait for. It is kept by what it is, so that a block costs what is pending and not
//! what is open.

use std::collections::BTreeSet;

use super::ChannelId;
use crate::dense::Pack;

/// Something that a block may bring, or that is looked at with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Blocks alone can end the channel, as it stands.
    End,
    /// A funding that was presented is in no block.
    Funding,
    /// A claim or a close was signed, and nothing that a block holds spends the funding.
    Settlement,
    /// It was paid: there is something to claim.
    Claim {
        /// Tip at which it is to be claimed; 0 where the subscriber wants to leave.
        from: u32,
    },
}

/// All that one channel waits for.
pub type Waits = [Option<Wait>; 4];

/// Who waits for what.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Waiting(BTreeSet<(Wait, ChannelId)>);

impl Waiting {
    /// A channel waited for these, and waits for those now.
    pub(super) fn change(&mut self, id: ChannelId, before: &Waits, after: &Waits) {
        if before == after {
            return;
        }
        for wait in before.iter().flatten() {
            self.0.remove(&(*wait, id));
        }
        self.0.extend(after.iter().flatten().map(|wait| (*wait, id)));
    }

    /// Channels that wait for something between two waits, both included, by that and by id.
    pub(super) fn between(&self, first: Wait, last: Wait) -> impl Iterator<Item = ChannelId> {
        let from = self.0.range((first, ChannelId::FIRST)..);
        from.take_while(move |(wait, _)| *wait <= last).map(|(_, id)| *id)
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl Pack for Waiting {
    type Apart = Vec<(Wait, ChannelId)>;

    fn take_apart(&mut self) -> Self::Apart {
        self.0.take_apart()
    }

    fn put_together(&mut self, apart: Self::Apart) {
        self.0.put_together(apart);
    }
}
