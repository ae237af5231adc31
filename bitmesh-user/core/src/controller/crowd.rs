//! Channels that were opened and not funded: how many there may be, and who goes first when they are
//! too many.
//!
//! Opening costs a request, and who has many MACs has many stations. At the bound the channel goes
//! that is the least likely to become one that pays, so that a flood pushes out itself and nobody who
//! came to buy has to wait for its end. A channel that a block or a mempool has shown money of never
//! goes: to fill the bound with those takes so many coins. Who funds one that was pushed out gets its
//! money back at the channel's end, by itself, as from a provider that vanished.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{CHANNELS_PER_STATION_MAX, Controller, Out, Refusal};
use crate::{
    account::AccountId,
    channel::{ChannelId, ProviderChannel},
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

impl Controller {
    pub(super) fn check_caps(&self, station: Station) -> Result<(), Refusal> {
        let own: Vec<_> = self.channels_of(station).collect();
        let unfunded = own.iter().filter(|id| self.unfunded.contains(id)).count();
        if unfunded >= UNFUNDED_PER_STATION_MAX {
            return Err(Refusal::TooManyUnfunded);
        }
        if own.len() >= CHANNELS_PER_STATION_MAX {
            return Err(Refusal::TooManyChannels);
        }
        Ok(())
    }

    /// Has a waiting channel end where one more would be too many. One of a station that pays does not
    /// go for a stranger's.
    pub(super) fn make_place(&mut self, station: Station, out: &mut Out) -> Result<(), Refusal> {
        if self.unfunded.len() < UNFUNDED_MAX {
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
        let waiting = self.unfunded.iter().filter_map(|id| Some((id, self.book.get(id)?)));
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
        self.payer(station).is_some()
            || self.channels_of(station).any(|id| !self.unfunded.contains(&id))
    }
}
