//! How much there is of everything, without a report of each.

use bitcoin::Amount;

use super::Controller;
use crate::{
    channel::{ChannelStatus, ProviderChannel},
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
        let add = |sum: Amount| sum.checked_add(channel.paid()).unwrap_or(Amount::MAX_MONEY);
        self.paid = add(self.paid);
        if !matches!(status, ChannelStatus::Closed { .. } | ChannelStatus::Settled { .. }) {
            self.unsettled = add(self.unsettled);
        }
    }
}
