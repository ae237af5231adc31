//! How much there is of everything, without a report of each.

use bitcoin::Amount;

use super::Controller;
use crate::{
    channel::{ChannelStatus, ProviderChannel, SpendKind},
    units::Octets,
};

/// All stations, accounts and channels together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Stations that an account pays for which has credit.
    pub stations_with_credit: u64,
    /// Stations that an account pays or paid for.
    pub stations: u64,
    /// Accounts that have stations.
    pub accounts: u64,
    /// Channels that take payments.
    pub channels_open: u64,
    /// Channels.
    pub channels: u64,
    /// Sum of all payments.
    pub paid: Amount,
    /// The part of it that no block has paid out.
    pub unsettled: Amount,
    /// The part of it that blocks have paid out, what miners got of it included.
    pub settled: Amount,
    /// Payments.
    pub commitments: u64,
}

impl Controller {
    /// Counts everything.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for account in self.accounts.sizes() {
            totals.stations += account.stations;
            totals.accounts += u64::from(account.stations > 0);
            if account.credit > Octets(0) {
                totals.stations_with_credit += account.members;
            }
        }
        let tip = self.book.tip();
        for (_, channel) in self.book.iter() {
            totals.count(channel, tip);
        }
        totals
    }
}

impl Totals {
    fn count(&mut self, channel: &ProviderChannel, tip: u32) {
        let status = channel.status(tip);
        self.channels += 1;
        self.channels_open += u64::from(status == ChannelStatus::Open);
        let paid = channel.paid();
        let add = |sum: Amount| sum.checked_add(paid).unwrap_or(Amount::MAX_MONEY);
        self.paid = add(self.paid);
        self.commitments = self.commitments.saturating_add(channel.commitments());
        let spent = match status {
            ChannelStatus::Settled { kind, .. } => Some(kind),
            ChannelStatus::Closed { kind } => kind,
            _ => None,
        };
        if spent.is_some_and(|kind| kind != SpendKind::Refund) {
            self.settled = add(self.settled);
        }
        if !matches!(status, ChannelStatus::Closed { .. } | ChannelStatus::Settled { .. }) {
            self.unsettled = add(self.unsettled);
        }
    }
}
