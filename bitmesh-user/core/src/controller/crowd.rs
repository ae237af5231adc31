//! Channels that were opened and not funded: how many there may be, and who goes first when they are
//! too many.
//!
//! Opening costs a request, and who has many MACs has many stations. At the bound the channel goes
//! that is the least likely to become one that pays, so that a flood pushes out itself and nobody who
//! came to buy has to wait for its end. A channel that a block or a mempool has shown money of never
//! goes: to fill the bound with those takes so many coins. Who funds one that was pushed out gets its
//! money back at the channel's end, by itself, as from a provider that vanished.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
};

use super::{CHANNELS_PER_STATION_MAX, Controller, Out, Refusal};
use crate::{
    account::AccountId,
    channel::{ChannelId, ProviderChannel},
    dense::Pack,
    station::Station,
};

/// Channels that one station may have open without funding them.
pub const UNFUNDED_PER_STATION_MAX: usize = 4;
/// Channels that all stations together may have open without funding them: bounds the disk. At the
/// pace that the API takes openings of strangers at, ten a second and port, one that waits has a
/// quarter of an hour to present its funding even while a port floods.
pub const UNFUNDED_MAX: usize = 10_000;

/// What a waiting channel is worth keeping for; the least goes first.
type Worth = (bool, Reverse<usize>, u32);

/// Channels that are not over, by who opened them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Crowd {
    /// How many; no station has none.
    each: BTreeMap<Station, usize>,
    /// Those that wait for their funding.
    unfunded: BTreeSet<(Station, ChannelId)>,
}

impl Crowd {
    pub(super) fn opened(&mut self, station: Station) {
        *self.each.entry(station).or_default() += 1;
    }

    /// One that was not over is.
    pub(super) fn over(&mut self, station: Station, id: ChannelId) {
        self.unfunded.remove(&(station, id));
        if let Entry::Occupied(mut own) = self.each.entry(station) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }

    pub(super) fn set_unfunded(&mut self, station: Station, id: ChannelId, unfunded: bool) {
        if unfunded {
            self.unfunded.insert((station, id));
        } else {
            self.unfunded.remove(&(station, id));
        }
    }

    /// How many a station has, and how many of them wait for their funding.
    fn of(&self, station: Station) -> (usize, usize) {
        let from = self.unfunded.range((station, ChannelId::FIRST)..);
        let unfunded = from.take_while(|(of, _)| *of == station).count();
        (self.each.get(&station).copied().unwrap_or(0), unfunded)
    }

    fn has_funded(&self, station: Station) -> bool {
        let (own, unfunded) = self.of(station);
        own > unfunded
    }

    /// How many wait for their funding.
    pub(super) fn unfunded(&self) -> usize {
        self.unfunded.len()
    }

    pub(super) fn absorb(&mut self, other: Self) {
        for (station, many) in other.each {
            *self.each.entry(station).or_default() += many;
        }
        self.unfunded.extend(other.unfunded);
    }
}

impl Pack for Crowd {
    type Apart = Vec<(Station, usize)>;

    fn take_apart(&mut self) -> Self::Apart {
        self.each.take_apart()
    }

    fn put_together(&mut self, apart: Self::Apart) {
        self.each.put_together(apart);
    }
}

impl Controller {
    pub(super) fn check_caps(&self, station: Station) -> Result<(), Refusal> {
        let (own, unfunded) = self.crowd.of(station);
        if unfunded >= UNFUNDED_PER_STATION_MAX {
            return Err(Refusal::TooManyUnfunded);
        }
        if own >= CHANNELS_PER_STATION_MAX {
            return Err(Refusal::TooManyChannels);
        }
        Ok(())
    }

    /// Has a waiting channel end where one more would be too many. One of a station that pays does not
    /// go for a stranger's.
    pub(super) fn make_place(&mut self, station: Station, out: &mut Out) -> Result<(), Refusal> {
        if self.crowd.unfunded() < UNFUNDED_MAX {
            return Ok(());
        }
        let newcomer_pays = self.pays(station);
        let (worth, id) = self.least_worth().ok_or(Refusal::TooManyUnfunded)?;
        let (victim_pays, ..) = worth;
        if victim_pays && !newcomer_pays {
            return Err(Refusal::TooManyUnfunded);
        }
        let end = self.book.get(&id).and_then(ProviderChannel::crowd_out);
        self.record(id, end.ok_or(Refusal::TooManyUnfunded)?, out);
        Ok(())
    }

    /// Strangers' channels before those of stations that pay, those of who has most of them before
    /// others, the oldest first.
    fn least_worth(&self) -> Option<(Worth, ChannelId)> {
        let waiting = self.crowd.unfunded.iter();
        let waiting = waiting.filter_map(|(_, id)| Some((id, self.book.get(id)?)));
        let waiting: Vec<_> = waiting
            .filter(|(id, channel)| channel.costless() && !self.presenting.contains(id))
            .collect();
        let mut each: BTreeMap<Station, usize> = BTreeMap::new();
        for (_, channel) in &waiting {
            *each.entry(channel.station()).or_default() += 1;
        }
        let worth = |channel: &ProviderChannel| {
            let station = channel.station();
            let many = each.get(&station).copied().unwrap_or(0);
            (self.pays(station), Reverse(many), channel.key_index())
        };
        waiting.into_iter().map(|(id, channel)| (worth(channel), *id)).min()
    }

    /// The account that pays for a station, where it bought something, and whether any of that is left.
    pub fn payer(&self, station: Station) -> Option<(AccountId, bool)> {
        self.accounts.payer(station)
    }

    /// Every station whose account bought something, with the account.
    pub fn payers(&self) -> impl Iterator<Item = (Station, AccountId)> + '_ {
        self.accounts.payers()
    }

    /// Whether a station has an account that paid, or a channel with money in it.
    pub fn pays(&self, station: Station) -> bool {
        self.payer(station).is_some() || self.crowd.has_funded(station)
    }

    /// Counts them again, and compares.
    #[cfg(test)]
    pub(super) fn check_crowd(&self) {
        let mut each: BTreeMap<Station, usize> = BTreeMap::new();
        for (_, channel) in self.book.iter().filter(|(_, channel)| !channel.finished()) {
            *each.entry(channel.station()).or_default() += 1;
        }
        assert_eq!(self.crowd.each, each);
        for (station, id) in &self.crowd.unfunded {
            let channel = self.book.get(id).unwrap();
            assert!(channel.speculative() && channel.station() == *station, "{channel:?}");
        }
    }
}
