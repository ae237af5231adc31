//! Accounts: who pays, and for which stations.
//!
//! An account is made by the first channel that a station opens, and named after it. Channels that
//! its stations open later are its own, too. Other stations are bound to it by the key of one of its
//! channels. A station belongs to one account at a time; what it uses counts for the account that
//! it belonged to last. Everything here but the leases follows from the journal and the counters.

mod holding;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use self::holding::{Account, Bought};
use crate::{
    arena::{Arena, Spot},
    channel::{ChannelId, InvalidEvent, STATIONS_PER_ACCOUNT_MAX},
    dense::Pack,
    fleet::LateId,
    leasing::{Change, Leases},
    ledger::Usage,
    station::Station,
    units::Octets,
};

/// What the limits that an earlier controller left may exceed the ledger by when stations have
/// moved between accounts, in octets: a frame of 64 KiB on each of 16 CPUs.
const OVERSHOOT_MAX: Octets = Octets(1 << 20);

/// An account's name: its first channel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(ChannelId);

impl AccountId {
    /// The channel that it is named after, which may be forgotten.
    pub fn channel(self) -> ChannelId {
        self.0
    }
}

impl From<ChannelId> for AccountId {
    fn from(first: ChannelId) -> Self {
        Self(first)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a station belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Pays for what it uses.
    pub account: AccountId,
    /// What it had used before.
    pub base: Usage,
    /// It may use the account's credit; else it has left, and only what it used counts.
    pub bound: bool,
}

/// The same as it is kept: most stations had used nothing before.
#[derive(Clone, Debug)]
struct Place {
    account: Spot,
    base: Option<Box<Usage>>,
    bound: bool,
}

/// How large an account is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Whose use counts.
    pub stations: u64,
    /// Of them, those that are paid for.
    pub members: u64,
    /// Bought and not used.
    pub credit: Octets,
}

/// The kernel honours more than the ledger knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// One of the stations.
    pub station: Station,
    /// What the kernel honours, for all stations of its account.
    pub honoured: Octets,
    /// What the ledger knows of.
    pub known: Octets,
}

/// Every account and every station.
#[derive(Debug, Default)]
pub struct Accounts {
    all: Arena<AccountId, Account>,
    seats: BTreeMap<Station, Place>,
    /// Of those that used or were refused anything.
    usage: BTreeMap<Station, Usage>,
    /// The accounts of channels that theirs are not named after.
    later: BTreeMap<ChannelId, AccountId>,
    /// Accounts of several stations.
    shared: BTreeSet<AccountId>,
    /// Those of them whose stations used something lately, or that changed: their credit may have to
    /// be shared out anew.
    active: BTreeSet<AccountId>,
    /// What accounts are not to give out, until what was used late is settled.
    withheld: BTreeMap<AccountId, Octets>,
    /// What was used late and is settled.
    late: BTreeMap<AccountId, BTreeSet<LateId>>,
}

impl Accounts {
    /// A station, which has used `used` so far, opened a channel.
    pub fn open(&mut self, channel: ChannelId, station: Station, used: Usage) {
        let bound = self.seats.get(&station).filter(|seat| seat.bound).map(|seat| seat.account);
        let id = bound.and_then(|spot| self.id_at(spot)).unwrap_or(AccountId(channel));
        if id.0 != channel {
            self.later.insert(channel, id);
        }
        let spot = bound.unwrap_or_else(|| self.spot(id));
        if let Some((_, account)) = self.all.at_mut(spot) {
            account.channels.insert(id, channel);
        }
        if bound.is_none() {
            self.sit(station, spot, used);
        }
    }

    /// A channel is over on which nothing was ever paid. With an account's last one goes the
    /// account, and what is known of its stations, if they never used anything. Which account that was,
    /// and whether it has another channel; `None` for one that stays for what its stations used.
    pub fn forget(&mut self, channel: &ChannelId) -> Option<(AccountId, bool)> {
        let id = self.of_channel(channel)?;
        self.later.remove(channel);
        let account = self.all.get_mut(&id)?;
        account.channels.remove(id, channel);
        if account.channels.bought().next().is_some() {
            return Some((id, true));
        }
        let stations: Vec<_> = account.leases.stations().collect();
        let unused = |station: &Station| {
            self.usage.get(station).is_none_or(|usage| usage.billed() == Octets(0))
        };
        if account.gone > Octets(0)
            || account.leases.limits() > Octets(0)
            || !stations.iter().all(unused)
        {
            // The account stays, and so does what its stations' base follows from.
            return None;
        }
        self.all.remove(&id);
        self.shared.remove(&id);
        self.active.remove(&id);
        self.withheld.remove(&id);
        self.late.remove(&id);
        for station in stations {
            self.seats.remove(&station);
            if self.usage(station) == Usage::default() {
                self.usage.remove(&station);
            }
        }
        Some((id, false))
    }

    /// The payments on a channel bought so much.
    pub fn set_bought(&mut self, channel: ChannelId, bought: Octets) {
        let id = self.later.get(&channel).copied().unwrap_or(AccountId(channel));
        let Some(account) = self.all.get_mut(&id) else { return };
        let Some(known) = account.channels.get_mut(id, &channel) else { return };
        *known = Bought { now: bought, most: known.most.max(bought) };
        self.rouse(id);
    }

    /// A channel's account pays for a station from now on, which has used `used` so far. No limit
    /// of an earlier account may be in force.
    pub fn bind(
        &mut self,
        channel: &ChannelId,
        station: Station,
        used: Usage,
    ) -> Result<(), InvalidEvent> {
        let account = self.of_channel(channel).ok_or(InvalidEvent("no such account"))?;
        if self.members(account) >= STATIONS_PER_ACCOUNT_MAX {
            return Err(InvalidEvent("an account of too many stations"));
        }
        let spot = self.spot(account);
        self.sit(station, spot, used);
        Ok(())
    }

    /// A channel's account pays no more for a station.
    pub fn unbind(&mut self, channel: &ChannelId, station: Station) -> Result<(), InvalidEvent> {
        let account = self.of_channel(channel).and_then(|id| self.all.spot(&id));
        let seat = self.seats.get_mut(&station);
        let seat = seat.filter(|seat| Some(seat.account) == account && seat.bound);
        let seat = seat.ok_or(InvalidEvent("a station that did not belong to the account"))?;
        seat.bound = false;
        self.retire(station);
        Ok(())
    }

    /// A station, which has used `used` so far, goes over to another account: what it used of a
    /// channel's account stays there.
    pub fn left(
        &mut self,
        channel: &ChannelId,
        station: Station,
        used: Usage,
    ) -> Result<(), InvalidEvent> {
        let account = self.of_channel(channel);
        let seat = self.seat(station).filter(|seat| Some(seat.account) == account);
        let id = seat.ok_or(InvalidEvent("a station that left another's account"))?.account;
        self.read(station, used);
        self.seats.remove(&station);
        if let Some(account) = self.all.get_mut(&id) {
            account.gone = account.gone.saturating_add(account.leases.remove(station));
        }
        self.rouse(id);
        Ok(())
    }

    /// A channel's account pays for what a station used late: once.
    pub fn used_late(
        &mut self,
        channel: &ChannelId,
        late: LateId,
        octets: Octets,
    ) -> Result<(), InvalidEvent> {
        let id = self.of_channel(channel).ok_or(InvalidEvent("no such account"))?;
        if !self.late.entry(id).or_default().insert(late) {
            return Err(InvalidEvent("what was used late is settled already"));
        }
        if let Some(account) = self.all.get_mut(&id) {
            account.gone = account.gone.saturating_add(octets);
        }
        self.rouse(id);
        Ok(())
    }

    /// Whether what was used late is settled.
    pub fn is_settled(&self, id: AccountId, late: LateId) -> bool {
        self.late.get(&id).is_some_and(|known| known.contains(&late))
    }

    /// So much of what an account bought is not to be given out; 0 ends that.
    pub fn withhold(&mut self, id: AccountId, octets: Octets) {
        if octets > Octets(0) {
            self.withheld.insert(id, octets);
        } else {
            self.withheld.remove(&id);
        }
    }

    /// Octets that an account has and that no station holds; `None` while some are being reclaimed.
    pub fn spare(&self, id: AccountId) -> Option<Octets> {
        let Some(account) = self.all.get(&id) else { return Some(Octets(0)) };
        let spare = account.total().saturating_sub(account.leases.spoken_for());
        (!account.leases.is_reclaiming()).then_some(spare)
    }

    /// Takes in the accounts of another edge: none of them may be here, and nothing of theirs in force.
    pub(crate) fn absorb(&mut self, other: Self) {
        let seated: BTreeSet<_> = other.seats.keys().copied().collect();
        let seats: Vec<_> = other
            .seats
            .into_iter()
            .filter_map(|(station, seat)| Some((station, *other.all.at(seat.account)?.0, seat)))
            .collect();
        for (id, account) in other.all.into_entries() {
            self.all.insert(id, account);
        }
        for (station, id, seat) in seats {
            let account = self.spot(id);
            self.seats.insert(station, Place { account, ..seat });
        }
        self.later.extend(other.later);
        self.shared.extend(other.shared);
        self.active.extend(other.active);
        self.late.extend(other.late);
        // Of those that have left these accounts others know.
        let own = other.usage.into_iter().filter(|(station, _)| seated.contains(station));
        for (station, usage) in own {
            let usage = self.usage(station).max(usage);
            self.usage.insert(station, usage);
            if let Some(leases) = self.leases_of(station) {
                leases.read(station, usage.billed(), usage.refused());
            }
        }
    }

    /// Lets an account go that another edge has from now on: its channels, and its stations with
    /// what they used. Nothing of it may be in force.
    pub(crate) fn release(&mut self, id: AccountId) -> (Vec<ChannelId>, Vec<(Station, Usage)>) {
        let Some(account) = self.all.remove(&id) else { return Default::default() };
        self.shared.remove(&id);
        self.active.remove(&id);
        self.withheld.remove(&id);
        self.late.remove(&id);
        let channels: Vec<_> = account.channels.ids(id).collect();
        for channel in &channels {
            self.later.remove(channel);
        }
        let stations = account.leases.stations().map(|station| {
            self.seats.remove(&station);
            (station, self.usage.remove(&station).unwrap_or_default())
        });
        (channels, stations.collect())
    }

    /// Where an account is, which is made if there is none.
    fn spot(&mut self, id: AccountId) -> Spot {
        self.all.spot(&id).unwrap_or_else(|| self.all.insert(id, Account::default()))
    }

    fn id_at(&self, spot: Spot) -> Option<AccountId> {
        self.all.at(spot).map(|(id, _)| *id)
    }

    fn sit(&mut self, station: Station, account: Spot, used: Usage) {
        self.read(station, used);
        let base = (used != Usage::default()).then(|| Box::new(used));
        let seat = Place { account, base, bound: true };
        let before = self.seats.insert(station, seat).map(|seat| seat.account);
        if let Some((_, before)) = before.and_then(|spot| self.all.at_mut(spot)) {
            before.gone = before.gone.saturating_add(before.leases.remove(station));
        }
        let now = self.usage(station);
        let Some((id, Account { leases, .. })) = self.all.at_mut(account) else { return };
        leases.join(station, used.billed(), now.billed(), now.refused());
        if leases.several() {
            self.shared.insert(*id);
            self.active.insert(*id);
        }
    }

    /// Takes a reading; one that lags takes nothing back. Whether it says anything new.
    pub fn read(&mut self, station: Station, usage: Usage) -> bool {
        let known = self.usage(station);
        let newest = known.max(usage);
        let news = newest != known;
        if news {
            self.usage.insert(station, newest);
        }
        if news
            && let Some(seat) = self.seats.get(&station)
            && let Some((id, account)) = self.all.at_mut(seat.account)
        {
            account.leases.read(station, newest.billed(), newest.refused());
            let id = *id;
            self.rouse(id);
        }
        news
    }

    /// Decides what changes for one account.
    pub fn share(&mut self, id: AccountId) -> Vec<Change> {
        let Some(account) = self.all.get_mut(&id) else { return Vec::new() };
        let withheld = self.withheld.get(&id).copied().unwrap_or_default();
        account.leases.share(account.total().saturating_sub(withheld))
    }

    /// All counters were just read: decides what changes for accounts of several stations.
    pub fn balance(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in std::mem::take(&mut self.active) {
            let before = changes.len();
            changes.extend(self.share(id));
            let still = changes.len() > before;
            match self.all.get_mut(&id) {
                Some(account) if account.leases.several() => {
                    account.leases.forget();
                    if still || !account.leases.at_rest() {
                        self.active.insert(id);
                    }
                }
                _ => {
                    self.shared.remove(&id);
                }
            }
        }
        changes
    }

    /// What a station holds is to be reclaimed, whatever it uses.
    pub fn retire(&mut self, station: Station) {
        if let Some(leases) = self.leases_of(station) {
            leases.leave(station);
        }
    }

    /// A station that was to be retired stays where it is.
    pub fn keep(&mut self, station: Station) {
        if let Some(leases) = self.leases_of(station) {
            leases.stay(station);
        }
    }

    /// A lowered limit is in force, and the counters were read after that.
    pub fn reclaimed(&mut self, station: Station) {
        let usage = self.usage(station);
        if let Some(leases) = self.leases_of(station) {
            leases.reclaimed(station, usage.billed(), usage.refused());
        }
    }

    /// Whether the kernel has room for a station.
    pub fn set_room(&mut self, station: Station, room: bool) {
        match self.leases_of(station) {
            Some(leases) if room => leases.unbar(station),
            Some(leases) => leases.bar(station),
            None => {}
        }
    }

    /// What an earlier controller left in the kernel: limits and usage, in octets of each station's
    /// life. It is refused when it is more than what was ever bought; what was voided since is to be
    /// reclaimed.
    pub fn adopt(&mut self, kernel: &[(Station, Octets, Usage)]) -> Result<(), Ahead> {
        if let Some((station, honoured, known)) = self.adopt_beyond(kernel).first().copied() {
            return Err(Ahead { station, honoured, known });
        }
        for (station, ..) in kernel {
            let Some((_, account)) = self.account_of(*station) else { continue };
            let (honoured, known) = (account.leases.limits(), account.ever());
            let slack = if account.gone > Octets(0) { OVERSHOOT_MAX } else { Octets(0) };
            if honoured > known.saturating_add(slack) {
                return Err(Ahead { station: *station, honoured, known });
            }
        }
        Ok(())
    }

    /// The same, after the ledger went back: what the kernel counted is taken over, and whatever limits
    /// exceed what is known of is to be reclaimed. Stations that nobody pays for and that could use
    /// something, with their limits and what they used: they are to get nothing more.
    pub fn adopt_beyond(
        &mut self,
        kernel: &[(Station, Octets, Usage)],
    ) -> Vec<(Station, Octets, Octets)> {
        let mut strays = Vec::new();
        for (station, limit, usage) in kernel {
            self.read(*station, *usage);
            let billed = self.usage(*station).billed();
            match self.leases_of(*station) {
                Some(leases) => leases.adopt(*station, *limit),
                None if *limit > billed => strays.push((*station, *limit, billed)),
                None => {}
            }
        }
        strays
    }

    /// An account of several stations is to be looked at.
    fn rouse(&mut self, account: AccountId) {
        if self.shared.contains(&account) {
            self.active.insert(account);
        }
    }

    fn leases_of(&mut self, station: Station) -> Option<&mut Leases> {
        let spot = self.seats.get(&station)?.account;
        // What is asked for is changed.
        self.rouse(self.id_at(spot)?);
        self.all.at_mut(spot).map(|(_, account)| &mut account.leases)
    }

    /// The account that a station has a place at.
    fn account_of(&self, station: Station) -> Option<(AccountId, &Account)> {
        self.all.at(self.seats.get(&station)?.account).map(|(id, account)| (*id, account))
    }

    /// How large every account is.
    pub fn sizes(&self) -> impl Iterator<Item = Size> + '_ {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.all.values().map(move |account| Size {
            stations: count(account.leases.stations().count()),
            members: count(account.leases.members()),
            credit: account.total().saturating_sub(account.leases.used()),
        })
    }

    /// Every account's name.
    pub fn ids(&self) -> impl Iterator<Item = AccountId> + '_ {
        self.all.keys().copied()
    }

    /// Whether there is an account that is named after a channel.
    pub fn is_named_after(&self, channel: &ChannelId) -> bool {
        self.all.contains_key(&AccountId(*channel))
    }

    /// The account that payments on a channel credit.
    pub fn of_channel(&self, channel: &ChannelId) -> Option<AccountId> {
        self.later.get(channel).copied().or_else(|| {
            let named = AccountId(*channel);
            self.all.get(&named)?.channels.first.map(|_| named)
        })
    }

    /// Whether there is such an account.
    pub fn has(&self, id: AccountId) -> bool {
        self.all.contains_key(&id)
    }

    /// One of an account's channels; none, when all were forgotten.
    pub fn a_channel_of(&self, id: AccountId) -> Option<ChannelId> {
        self.all.get(&id)?.channels.ids(id).next()
    }

    /// Whether nothing of an account's is in force, or on its way to be reclaimed.
    pub fn is_idle(&self, id: AccountId) -> bool {
        self.all.get(&id).is_none_or(|account| account.leases.is_idle())
    }

    /// Where a station belongs.
    pub fn seat(&self, station: Station) -> Option<Seat> {
        let Place { account, base, bound } = self.seats.get(&station)?;
        let base = base.as_deref().copied().unwrap_or_default();
        Some(Seat { account: self.id_at(*account)?, base, bound: *bound })
    }

    /// The account that pays for a station, where it bought something, and whether any of that is left.
    pub fn payer(&self, station: Station) -> Option<(AccountId, bool)> {
        self.buyer(self.seats.get(&station)?)
    }

    /// Every station whose account bought something, with the account.
    pub fn payers(&self) -> impl Iterator<Item = (Station, AccountId)> + '_ {
        self.seats.iter().filter_map(|(station, seat)| Some((*station, self.buyer(seat)?.0)))
    }

    fn buyer(&self, seat: &Place) -> Option<(AccountId, bool)> {
        let (id, account) = self.all.at(seat.account).filter(|_| seat.bound)?;
        let bought = account.bought();
        (bought > Octets(0)).then_some((*id, bought > account.used()))
    }

    /// Stations that have a place at an account, and which; also those that are not paid for any more.
    pub fn seats(&self) -> impl Iterator<Item = (Station, AccountId)> + '_ {
        self.seats.iter().filter_map(|(station, seat)| Some((*station, self.id_at(seat.account)?)))
    }

    /// A station's lifetime counters.
    pub fn usage(&self, station: Station) -> Usage {
        self.usage.get(&station).copied().unwrap_or_default()
    }

    /// What all stations used, in their lives.
    pub fn billed(&self) -> Octets {
        self.usage.values().fold(Octets(0), |sum, usage| sum.saturating_add(usage.billed()))
    }

    /// What all stations used and were refused, by direction.
    pub fn total(&self) -> Usage {
        self.usage.values().fold(Usage::default(), |sum, usage| sum.plus(*usage))
    }

    /// Octets bought by an account.
    pub fn bought(&self, id: AccountId) -> Octets {
        self.all.get(&id).map_or(Octets(0), Account::bought)
    }

    /// Octets used by an account.
    pub fn used(&self, id: AccountId) -> Octets {
        self.all.get(&id).map_or(Octets(0), Account::used)
    }

    /// Stations whose use counts for an account.
    pub fn stations(&self, id: AccountId) -> impl Iterator<Item = Station> + '_ {
        self.all.get(&id).into_iter().flat_map(|account| account.leases.stations())
    }

    /// Stations that an account pays for.
    pub fn members(&self, id: AccountId) -> usize {
        self.all.get(&id).map_or(0, |account| account.leases.members())
    }

    /// What a station may use before its limit is looked at again.
    pub fn held(&self, station: Station) -> Octets {
        self.leases(station).map_or(Octets(0), |leases| leases.held(station))
    }

    /// The leases of the account that a station has a place at.
    pub(crate) fn leases(&self, station: Station) -> Option<&Leases> {
        self.account_of(station).map(|(_, account)| &account.leases)
    }

    /// Whether a station shares its account's credit with another.
    pub fn is_shared(&self, station: Station) -> bool {
        self.account_of(station).is_some_and(|(id, _)| self.shared.contains(&id))
    }
}

/// The large trees of it.
pub(crate) struct Apart {
    all: <Arena<AccountId, Account> as Pack>::Apart,
    seats: Vec<(Station, Place)>,
    usage: Vec<(Station, Usage)>,
    later: Vec<(ChannelId, AccountId)>,
}

impl Pack for Accounts {
    type Apart = Apart;

    fn take_apart(&mut self) -> Self::Apart {
        Apart {
            all: self.all.take_apart(),
            seats: self.seats.take_apart(),
            usage: self.usage.take_apart(),
            later: self.later.take_apart(),
        }
    }

    fn put_together(&mut self, apart: Self::Apart) {
        let Apart { all, seats, usage, later } = apart;
        self.all.put_together(all);
        self.seats.put_together(seats);
        self.usage.put_together(usage);
        self.later.put_together(later);
    }
}
