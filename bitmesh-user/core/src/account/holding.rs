//! One account: what was bought on its channels, and what its stations have of that.

use super::AccountId;
use crate::{channel::ChannelId, few::Few, leasing::Leases, units::Octets};

/// What the payments on a channel bought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bought {
    pub(super) now: Octets,
    /// Before payments were voided because their funding was lost.
    pub(super) most: Octets,
}

/// The channels of an account. Most accounts have the first one alone, whose name is their own and is not
/// kept twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Channels {
    pub(super) first: Option<Bought>,
    later: Option<Box<Few<ChannelId, Bought>>>,
}

impl Channels {
    pub(super) fn get_mut(&mut self, id: AccountId, channel: &ChannelId) -> Option<&mut Bought> {
        if id.0 == *channel { self.first.as_mut() } else { self.later.as_mut()?.get_mut(channel) }
    }

    pub(super) fn insert(&mut self, id: AccountId, channel: ChannelId) {
        if id.0 == channel {
            self.first = Some(Bought::default());
        } else {
            self.later.get_or_insert_default().insert(channel, Bought::default());
        }
    }

    pub(super) fn remove(&mut self, id: AccountId, channel: &ChannelId) {
        if id.0 == *channel {
            self.first = None;
        } else if let Some(later) = &mut self.later {
            later.remove(channel);
            self.later.take_if(|later| later.is_empty());
        }
    }

    pub(super) fn ids(&self, id: AccountId) -> impl Iterator<Item = ChannelId> {
        let later = self.later.iter().flat_map(|later| later.keys().copied());
        self.first.map(|_| id.0).into_iter().chain(later)
    }

    pub(super) fn bought(&self) -> impl Iterator<Item = &Bought> {
        self.first.iter().chain(self.later.iter().flat_map(|later| later.values()))
    }
}

/// An account, but for its name.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub(super) channels: Channels,
    /// Used by stations that belong to other accounts now, or at another edge and told late.
    pub(super) gone: Octets,
    pub(super) leases: Leases,
}

impl Account {
    pub(super) fn bought(&self) -> Octets {
        self.channels.bought().fold(Octets(0), |sum, bought| sum.saturating_add(bought.now))
    }

    /// What its stations used, and what left with others.
    pub(super) fn used(&self) -> Octets {
        self.gone.saturating_add(self.leases.used())
    }

    /// What its stations may ever have been let use in all, used octets included.
    pub(super) fn ever(&self) -> Octets {
        let most = self.channels.bought().fold(Octets(0), |sum, of| sum.saturating_add(of.most));
        most.saturating_sub(self.gone)
    }

    /// What its stations may use in all, used octets included.
    pub(super) fn total(&self) -> Octets {
        self.bought().saturating_sub(self.gone)
    }
}
