//! How the credit of one account is leased out to its stations: the kernel knows stations only.
//!
//! All credit is always leased out: to each what it is likely to need, and where that is more than
//! there is, the same to all who need more. So a payment serves as much as it can between two looks
//! at the counters, and a station that begins is not crowded out by one that is busy. What one station holds and another needs is
//! reclaimed: its limit is lowered, its counter is read after that, and only what is then left is
//! given on. At any time the limits that the kernel may honour add up to no more than what was
//! bought, whatever order readings come in: a late one changes nothing, a counter only grows.
//!
//! CPUs that check one limit at the same instant overshoot it by a frame each, at each station's
//! limit: that stays in the counters, and is taken out of what the others hold at the next look.

use std::collections::BTreeMap;

use crate::{
    few::Few,
    station::Station,
    units::{Octets, Share},
};

/// Credit for each busy station below which one after the other is given all that is left, in
/// octets: more than a frame, so that the last octets are not spread too thin to be used.
const CRUMB_OCTETS: u64 = 4 << 10;
/// Most that is kept for a station only because it could begin to send, or has just begun, in
/// octets.
const FLOOR_OCTETS: u64 = 64 << 10;
/// Most that refused octets count as a wish, for each look at the counters: a flood gets no more.
const WISH_OCTETS: u64 = 64 << 10;
/// How many times what it used lately a station may need until the next look: a connection that
/// begins doubles with each round trip, and one that is refused rests for longer than a look.
const HEADROOM: u64 = 4;
/// Of what a station used, what still counts at the next look: the rest is of no use to a guess.
const MEMORY_DIVISOR: u64 = 4;

const _: () = assert!(CRUMB_OCTETS / 2 > 1_500, "a busy station is always left a frame");

/// What has to be done in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Raise the limit.
    Grant {
        /// Whose.
        station: Station,
        /// Octets that it may use in its life.
        limit: Octets,
        /// Octets left at which to look again; 0 where that helps nobody.
        low: Octets,
    },
    /// Lower the limit, then read the counter and tell [`Leases::reclaimed`].
    Reclaim {
        /// Whose.
        station: Station,
        /// Octets that it may use in its life.
        limit: Octets,
    },
}

/// The leases of one account.
#[derive(Clone, Debug, Default)]
pub struct Leases(Few<Station, Holding>);

/// What is known of one station, in octets of its life.
#[derive(Clone, Copy, Debug)]
struct Holding {
    /// Used before this account paid for it.
    base: u64,
    /// The newest reading.
    used: u64,
    refused: u64,
    /// Most that the kernel may honour at this moment.
    limit: u64,
    /// A lower limit is on its way.
    reclaiming: Option<u64>,
    /// It is to get nothing any more.
    leaving: bool,
    /// The kernel has no room for it.
    barred: bool,
    /// What it used lately, and what it was refused lately.
    lately: u64,
    wish: u64,
}

impl Holding {
    /// Octets of the account's that are gone, or could be at any moment.
    fn spoken_for(&self) -> u64 {
        self.limit.max(self.used).saturating_sub(self.base)
    }

    fn held(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    fn demand(&self) -> u64 {
        self.lately.saturating_add(self.wish)
    }

    /// Whether it is worth lowering others' limits to come nearer to `target`.
    fn starves(&self, target: u64) -> bool {
        let held = self.held();
        let refused = self.wish > 0 && held < CRUMB_OCTETS;
        held < target / 2 || (refused && held < target)
    }

    /// Whether it holds all that there is, so that nothing is to be decided where no other station is.
    fn has_all(&self, total: u64) -> bool {
        let settled = self.takes_part() && self.reclaiming.is_none();
        settled && self.limit >= self.used && self.spoken_for() == total
    }

    fn takes_part(&self) -> bool {
        !self.leaving && !self.barred
    }
}

impl Leases {
    /// A station that the account pays for from now on; its counters stand at `used` and `refused`.
    /// Nothing may be in force for it. From here on all are compared anew.
    pub fn join(&mut self, station: Station, base: Octets, used: Octets, refused: Octets) {
        for holding in self.0.values_mut() {
            (holding.lately, holding.wish) = (0, 0);
        }
        let used = used.max(base).0;
        let holding = Holding {
            base: base.0,
            used,
            refused: refused.0,
            limit: used,
            reclaiming: None,
            leaving: false,
            barred: false,
            lately: 0,
            wish: 0,
        };
        self.0.insert(station, holding);
    }

    /// A station that gets nothing any more, but whose use still counts.
    pub fn leave(&mut self, station: Station) {
        if let Some(holding) = self.0.get_mut(&station) {
            holding.leaving = true;
        }
    }

    /// A station that was to leave stays.
    pub fn stay(&mut self, station: Station) {
        if let Some(holding) = self.0.get_mut(&station) {
            holding.leaving = false;
        }
    }

    /// A station that counts no more; what it used of the account's, by its newest reading.
    pub fn remove(&mut self, station: Station) -> Octets {
        let gone = self.0.remove(&station);
        Octets(gone.map_or(0, |holding| holding.used.saturating_sub(holding.base)))
    }

    /// Takes a reading, in octets of the station's life; one that lags changes nothing.
    pub fn read(&mut self, station: Station, used: Octets, refused: Octets) {
        let Some(holding) = self.0.get_mut(&station) else { return };
        let more = used.0.saturating_sub(holding.used);
        let refused_more = refused.0.saturating_sub(holding.refused);
        holding.used = holding.used.max(used.0);
        holding.refused = holding.refused.max(refused.0);
        holding.lately = holding.lately.saturating_add(more);
        holding.wish = holding.wish.saturating_add(refused_more).min(2 * WISH_OCTETS);
    }

    /// A look at all counters is over: what was used before counts for less from now on.
    pub fn forget(&mut self) {
        for holding in self.0.values_mut() {
            holding.lately /= MEMORY_DIVISOR;
            holding.wish /= MEMORY_DIVISOR;
        }
    }

    /// A lowered limit is in force, and `used` was read after that.
    pub fn reclaimed(&mut self, station: Station, used: Octets, refused: Octets) {
        self.read(station, used, refused);
        let Some(holding) = self.0.get_mut(&station) else { return };
        if let Some(limit) = holding.reclaiming.take() {
            holding.limit = limit.max(holding.used);
        }
    }

    /// The kernel has no room for the station: what was meant for it is free, and it gets nothing
    /// until [`Self::unbar`].
    pub fn bar(&mut self, station: Station) {
        if let Some(holding) = self.0.get_mut(&station) {
            holding.limit = holding.used;
            holding.reclaiming = None;
            holding.barred = true;
        }
    }

    /// There may be room for the station now.
    pub fn unbar(&mut self, station: Station) {
        if let Some(holding) = self.0.get_mut(&station) {
            holding.barred = false;
        }
    }

    /// What an earlier controller left in force.
    pub fn adopt(&mut self, station: Station, limit: Octets) {
        if let Some(holding) = self.0.get_mut(&station) {
            holding.limit = holding.limit.max(limit.0);
        }
    }

    /// Whether nothing was used or refused so lately that it still counts.
    pub fn at_rest(&self) -> bool {
        self.0.values().all(|holding| holding.demand() == 0 && holding.reclaiming.is_none())
    }

    /// Octets that the stations used of the account's.
    pub fn used(&self) -> Octets {
        let used = self.0.values().map(|holding| holding.used.saturating_sub(holding.base));
        Octets(used.fold(0, u64::saturating_add))
    }

    /// Octets of the account's that are gone, or could be at any moment.
    pub fn spoken_for(&self) -> Octets {
        Octets(self.0.values().map(Holding::spoken_for).fold(0, u64::saturating_add))
    }

    /// Octets that the kernel lets the account's stations use, used ones included.
    pub fn limits(&self) -> Octets {
        let limits = self.0.values().map(|holding| holding.limit.saturating_sub(holding.base));
        Octets(limits.fold(0, u64::saturating_add))
    }

    /// Every station whose use counts.
    pub fn stations(&self) -> impl Iterator<Item = Station> + '_ {
        self.0.keys().copied()
    }

    /// Stations that are paid for.
    pub fn members(&self) -> usize {
        self.0.values().filter(|holding| !holding.leaving).count()
    }

    /// What a station may use before it is looked at again.
    pub fn held(&self, station: Station) -> Octets {
        Octets(self.0.get(&station).map_or(0, Holding::held))
    }

    /// What the kernel is to honour for a station; `None` while that changes, or while it has no room
    /// for it.
    pub fn in_force(&self, station: Station) -> Option<Octets> {
        let holding = self.0.get(&station)?;
        (holding.reclaiming.is_none() && !holding.barred).then_some(Octets(holding.limit))
    }

    /// Whether no station may use anything more.
    pub fn is_idle(&self) -> bool {
        self.0.values().all(|holding| holding.held() == 0 && holding.reclaiming.is_none())
    }

    /// Whether a lower limit is on its way to some station.
    pub fn is_reclaiming(&self) -> bool {
        self.0.values().any(|holding| holding.reclaiming.is_some())
    }

    /// Whether there is more than one station that could have a lease.
    pub fn several(&self) -> bool {
        self.0.values().filter(|holding| !holding.leaving || holding.held() > 0).nth(1).is_some()
    }

    /// Decides what changes, of `total` octets that these stations may use in all, used ones
    /// included. Lowered limits first free what they held when they are [`Self::reclaimed`].
    pub fn share(&mut self, total: Octets) -> Vec<Change> {
        if self.0.only().is_some_and(|holding| holding.has_all(total.0)) {
            return Vec::new();
        }
        let spoken_for = self.spoken_for().0;
        let targets = self.targets(total.0.saturating_sub(self.used().0));
        let mut changes = Vec::new();
        let of = |station: &Station| targets.get(station).copied().unwrap_or(0);
        let starves = spoken_for > total.0
            || self.0.iter().any(|(station, holding)| holding.starves(of(station)));
        for (station, holding) in self.0.iter_mut() {
            let target = of(station);
            let wanted = starves || !holding.takes_part();
            if wanted && holding.held() > target && holding.reclaiming.is_none() {
                let limit = holding.used.saturating_add(target);
                holding.reclaiming = Some(limit);
                changes.push(Change::Reclaim { station: *station, limit: Octets(limit) });
            }
        }
        let mut free = total.0.saturating_sub(spoken_for);
        let alone = targets.len() == 1;
        for (station, target) in &targets {
            let Some(holding) = self.0.get_mut(station) else { continue };
            let more = target.saturating_sub(holding.held()).min(free);
            if more == 0 || holding.reclaiming.is_some() {
                continue;
            }
            free -= more;
            holding.limit = holding.limit.max(holding.used).saturating_add(more);
            let low = Octets(if alone { 0 } else { holding.held() / 2 });
            changes.push(Change::Grant { station: *station, limit: Octets(holding.limit), low });
        }
        changes
    }

    /// What each station that takes part should hold of `credit`: together exactly that.
    fn targets(&self, credit: u64) -> BTreeMap<Station, u64> {
        let taking: Vec<_> = self.0.iter().filter(|(_, holding)| holding.takes_part()).collect();
        let of = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).max(1);
        let all = of(taking.len());
        let busy = taking.iter().filter(|(_, holding)| holding.demand() > 0).count();
        if credit / of(busy) < CRUMB_OCTETS && taking.len() > 1 {
            return self.crumbs(credit);
        }
        let idle_floor = FLOOR_OCTETS.min(credit / (8 * all));
        let busy_floor = FLOOR_OCTETS.min(credit / (2 * of(busy)));
        let need = |holding: &Holding| match holding.demand() {
            0 => idle_floor,
            demand => busy_floor.saturating_add(demand.saturating_mul(HEADROOM)),
        };
        let mut needs: Vec<_> =
            taking.iter().map(|(station, holding)| (**station, need(holding).max(1))).collect();
        let sum = needs.iter().fold(0u64, |sum, (_, need)| sum.saturating_add(*need));
        if let Some(more) = credit.checked_sub(sum) {
            let mut share = Share::of(more, needs.iter().map(|(_, need)| *need));
            return needs.into_iter().map(|(s, need)| (s, need + share.next(need))).collect();
        }
        // Not enough: who needs little gets it, the others the same each (max-min fairness).
        needs.sort_by_key(|(_, need)| *need);
        let mut left = credit;
        let waiting = (1..=all).rev();
        needs
            .into_iter()
            .zip(waiting)
            .map(|((station, need), waiting)| {
                let target = need.min(left / waiting);
                left -= target;
                (station, target)
            })
            .collect()
    }

    /// The last octets: all to one, so that they are not split into parts that no frame fits in.
    /// Of those that were refused, the one that had least lately; else who uses most.
    fn crumbs(&self, credit: u64) -> BTreeMap<Station, u64> {
        let taking = || self.0.iter().filter(|(_, holding)| holding.takes_part());
        let next = taking()
            .filter(|(_, holding)| holding.wish > 0)
            .min_by_key(|(_, holding)| holding.lately)
            .or_else(|| taking().max_by_key(|(_, holding)| holding.lately.max(holding.held())));
        let next = next.map(|(station, _)| *station);
        taking().map(|(s, _)| (*s, if Some(*s) == next { credit } else { 0 })).collect()
    }
}

#[cfg(test)]
mod tests;
