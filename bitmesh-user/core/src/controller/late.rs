//! What was used at an edge that was taken over is debited from its account, once it is known.
//!
//! It is withheld first: limits are lowered until as much is free, or all is. Then what is free is
//! debited, no more: an account never owes anything. What is beyond is the provider's loss.

use super::{Controller, Out, Place};
use crate::{
    account::AccountId,
    channel::{Entry, ProviderEvent},
    fleet::{FleetEntry, Late},
    units::Octets,
};

impl Controller {
    /// Of accounts that are elsewhere, or on their way, nothing is settled here. What waits already may
    /// be told again.
    pub(super) fn used_late(&mut self, late: Vec<Late>, out: &mut Out) {
        for late in late {
            let here = self.place(late.account) == Place::Here;
            let settled = self.accounts.is_settled(late.account, late.id);
            if let Some(fleet) = self.fleet.as_mut().filter(|_| here && !settled)
                && fleet.late.add(late)
            {
                self.accounts.withhold(late.account, fleet.late.sum_of(late.account));
                self.share(late.account, out);
            }
        }
        let waiting = self.fleet.as_ref().map(|fleet| fleet.late.accounts()).unwrap_or_default();
        for account in waiting {
            self.settle_late(account, out);
        }
    }

    /// Debits what waits for an account, unless limits are still on their way down.
    pub(super) fn settle_late(&mut self, account: AccountId, out: &mut Out) {
        let Some(fleet) = self.fleet.as_ref().filter(|fleet| !fleet.late.is_empty()) else {
            return;
        };
        let due: Vec<_> = fleet.late.of(account).collect();
        if due.is_empty() || self.accounts.spare(account).is_none() {
            return;
        }
        self.accounts.withhold(account, Octets(0));
        for late in due {
            let spare = self.accounts.spare(account).unwrap_or_default();
            let channel = self.accounts.a_channel_of(account);
            let octets = channel.map_or(Octets(0), |_| late.octets.min(spare));
            if let Some(fleet) = &mut self.fleet {
                fleet.late.settle(late, octets);
            }
            if let Some(channel) = channel {
                self.record(channel, ProviderEvent::UsedLate { late: late.id, octets }, out);
            }
            out.record(Entry::Fleet(FleetEntry::Settled { late: late.id }));
        }
        self.share(account, out);
    }

    /// An account leaves: what waits for it is told to the edge that gets it.
    pub(super) fn leave_late(&mut self, account: AccountId) {
        if let Some(fleet) = &mut self.fleet {
            fleet.late.let_go(account);
        }
        self.accounts.withhold(account, Octets(0));
    }

    /// Octets that stations used at edges that were taken over: debited, and lost since no credit was
    /// left for them, since the start.
    pub fn late(&self) -> (Octets, Octets) {
        self.fleet.as_ref().map(|fleet| fleet.late.sums()).unwrap_or_default()
    }
}
