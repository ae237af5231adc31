//! The station table as userspace sees it: the one that inserts and removes.

use std::{
    collections::HashMap,
    mem::offset_of,
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bitmesh_common::{Base, Counts, Lease, PROBE_LIMIT, Probe, StationKey, StationSlot, Usage};

use super::{DataplaneError, StationUsage, Terms, memory::Memory};

/// How long a slot rests after its station was removed. A program that found the slot just before
/// still counts into it; programs run for microseconds.
const QUARANTINE: Duration = Duration::from_millis(500);

/// Octets that a station can have bought over its life: the kernel compares credit as a signed
/// number, and this leaves both halves of the range to spare.
pub(super) const BOUGHT_LIMIT: u64 = 1 << 62;

const WORD: usize = size_of::<u64>();
const SLOT_WORDS: usize = size_of::<StationSlot>() / WORD;
const KEY: usize = (offset_of!(StationSlot, lease) + offset_of!(Lease, key)) / WORD;
const LIMIT: usize = (offset_of!(StationSlot, lease) + offset_of!(Lease, limit)) / WORD;
const LOW: usize = (offset_of!(StationSlot, lease) + offset_of!(Lease, low)) / WORD;
const UP: usize = (offset_of!(StationSlot, up) + offset_of!(Usage, counts)) / WORD;
const DOWN: usize = (offset_of!(StationSlot, down) + offset_of!(Usage, counts)) / WORD;
const BASE_UP: usize = (offset_of!(StationSlot, base) + offset_of!(Base, up)) / WORD;
const BASE_DOWN: usize = (offset_of!(StationSlot, base) + offset_of!(Base, down)) / WORD;

/// The table over mapped memory, with an index of who is where.
pub(super) struct Table {
    memory: Memory,
    mask: u32,
    seed: u64,
    places: HashMap<StationKey, u32>,
    resting: HashMap<u32, Instant>,
    /// Every station once more, with its counters as they were seen last. In the order of the slots
    /// while `tidy`: the fastest way through memory.
    seen: Vec<Seen>,
    tidy: bool,
}

/// What is in a part of the table, looked at as the kernel sees it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Stations where they should be, with what each may use and used in its life.
    pub there: Vec<(StationKey, u64, StationUsage)>,
    /// Stations that somebody took off, with what each had used by then.
    pub lost: Vec<(StationKey, StationUsage)>,
    /// Stations that somebody put in, with what each could use. They are off again.
    pub strays: Vec<(StationKey, u64)>,
}

impl Sight {
    /// Takes in what is in another part.
    pub fn append(&mut self, part: Self) {
        self.there.extend(part.there);
        self.lost.extend(part.lost);
        self.strays.extend(part.strays);
    }
}

struct Seen {
    slot: u32,
    key: StationKey,
    /// Of all counters; they only grow.
    sum: u64,
}

impl Table {
    /// Words of memory that a table of `slots` takes.
    pub(super) fn words(slots: u32) -> Option<usize> {
        usize::try_from(slots).ok()?.checked_mul(SLOT_WORDS)
    }

    /// Reads what is in `memory`: nothing, or the stations that an earlier controller left there.
    /// `None` unless the slots are a power of two.
    pub(super) fn new(memory: Memory, seed: u64, now: Instant) -> Option<Self> {
        let slots = u32::try_from(memory.words() / SLOT_WORDS).ok()?;
        if !slots.is_power_of_two() {
            return None;
        }
        let mut table = Self {
            memory,
            mask: slots - 1,
            seed,
            places: HashMap::new(),
            resting: HashMap::new(),
            seen: Vec::new(),
            tidy: true,
        };
        for slot in 0..slots {
            match table.load(slot, KEY) {
                StationKey::EMPTY => {}
                StationKey::REMOVED => {
                    table.resting.insert(slot, now);
                }
                raw => {
                    if let Some(key) = StationKey::from_raw(raw) {
                        table.place(key, slot);
                    }
                }
            }
        }
        Some(table)
    }

    /// Stations in the table.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Puts a station in. Its lifetime totals go on from `used`; it may use up to `bought` octets.
    pub(super) fn insert(
        &mut self,
        key: StationKey,
        used: StationUsage,
        bought: u64,
        now: Instant,
    ) -> Result<(), DataplaneError> {
        if bought > BOUGHT_LIMIT {
            return Err(DataplaneError::TooMuch { bought });
        }
        if self.places.contains_key(&key) {
            return Err(DataplaneError::AlreadyThere { key });
        }
        let slot = self.vacancy(key, now).ok_or(DataplaneError::TableFull {
            stations: self.places.len(),
            slots: self.slots(),
        })?;
        let base_up = difference(used.up, self.counts(slot, UP));
        let base_down = difference(used.down, self.counts(slot, DOWN));
        self.store_counts(slot, BASE_UP, base_up);
        self.store_counts(slot, BASE_DOWN, base_down);
        self.store(slot, LOW, 0, Ordering::Relaxed);
        self.store_terms(slot, &Terms::default());
        self.store(slot, LIMIT, limit(bought, base_up, base_down), Ordering::Relaxed);
        self.store(slot, KEY, key.raw(), Ordering::Release);
        self.resting.remove(&slot);
        self.place(key, slot);
        Ok(())
    }

    fn place(&mut self, key: StationKey, slot: u32) {
        self.places.insert(key, slot);
        self.tidy &= self.seen.last().is_none_or(|last| last.slot < slot);
        // Not what the counters say now: a station is seen to change when it is new.
        self.seen.push(Seen { slot, key, sum: !self.sum(slot) });
    }

    /// Takes a station off and returns its totals. A frame that is being handled on another CPU at
    /// this instant may not be in them.
    pub(super) fn remove(&mut self, key: StationKey, now: Instant) -> Option<StationUsage> {
        let slot = self.places.remove(&key)?;
        self.store(slot, LIMIT, 0, Ordering::Relaxed);
        self.store(slot, KEY, StationKey::REMOVED, Ordering::Release);
        self.resting.insert(slot, now);
        self.tidy = false;
        Some(self.usage_at(slot))
    }

    /// Raises what a station may use in its life to `bought` octets; a lower number does nothing.
    pub(super) fn set_bought(
        &mut self,
        key: StationKey,
        bought: u64,
    ) -> Result<(), DataplaneError> {
        if bought > BOUGHT_LIMIT {
            return Err(DataplaneError::TooMuch { bought });
        }
        let slot = *self.places.get(&key).ok_or(DataplaneError::NotThere { key })?;
        if bought > self.bought_at(slot) {
            let (up, down) = (self.counts(slot, BASE_UP), self.counts(slot, BASE_DOWN));
            self.store(slot, LIMIT, limit(bought, up, down), Ordering::Release);
        }
        Ok(())
    }

    /// Changes the terms of a station's lease; the limit stays.
    pub(super) fn set_terms(
        &mut self,
        key: StationKey,
        terms: &Terms,
    ) -> Result<(), DataplaneError> {
        let slot = *self.places.get(&key).ok_or(DataplaneError::NotThere { key })?;
        if let Some(low) = terms.low {
            self.store(slot, LOW, low, Ordering::Relaxed);
        }
        self.store_terms(slot, terms);
        Ok(())
    }

    /// Changes the credit below which the kernel tells.
    pub(super) fn set_low(&mut self, key: StationKey, octets: u64) -> Result<(), DataplaneError> {
        let slot = *self.places.get(&key).ok_or(DataplaneError::NotThere { key })?;
        self.store(slot, LOW, octets, Ordering::Relaxed);
        Ok(())
    }

    /// Lets go of stations that are bound to a port which is not there any more.
    pub(super) fn unbind(&mut self, there: impl Fn(u32) -> bool) {
        for &slot in self.places.values() {
            let bound = Terms::port_of(|word| self.load(slot, word));
            if bound.is_some_and(|port| !there(port)) {
                let (word, kept) = Terms::without_port(|word| self.load(slot, word));
                self.store(slot, word, kept, Ordering::Release);
            }
        }
    }

    /// The port and the address that a station is bound to.
    pub(super) fn bound(&self, key: StationKey) -> (Option<u32>, Option<Ipv4Addr>) {
        let Some(&slot) = self.places.get(&key) else { return (None, None) };
        let load = |word| self.load(slot, word);
        (Terms::port_of(load), Terms::ipv4_of(load))
    }

    /// Sets what a station may use in its life to `octets`, which may be less than before. A frame
    /// that is being handled on another CPU at this instant may still pass.
    pub(super) fn set_limit(&mut self, key: StationKey, octets: u64) -> Result<(), DataplaneError> {
        if octets > BOUGHT_LIMIT {
            return Err(DataplaneError::TooMuch { bought: octets });
        }
        let slot = *self.places.get(&key).ok_or(DataplaneError::NotThere { key })?;
        let (up, down) = (self.counts(slot, BASE_UP), self.counts(slot, BASE_DOWN));
        self.store(slot, LIMIT, limit(octets, up, down), Ordering::SeqCst);
        Ok(())
    }

    /// A station's lifetime totals.
    pub(super) fn usage(&self, key: StationKey) -> Option<StationUsage> {
        self.places.get(&key).map(|&slot| self.usage_at(slot))
    }

    /// Every station with what it bought and used, in no order.
    pub(super) fn stations(&self) -> impl Iterator<Item = (StationKey, u64, StationUsage)> {
        self.places.iter().map(|(&key, &slot)| (key, self.bought_at(slot), self.usage_at(slot)))
    }

    /// Compares some slots, from one on, with what this side put there, and takes note of what
    /// somebody else did.
    pub(super) fn look(&mut self, from: u32, slots: u32, now: Instant) -> Sight {
        let mut sight = Sight::default();
        let end = from.saturating_add(slots).min(self.slots());
        self.tidy_up();
        let first = self.seen.partition_point(|seen| seen.slot < from);
        let in_part = self.seen.iter().skip(first).take_while(|seen| seen.slot < end);
        for &Seen { slot, key, .. } in in_part {
            if self.load(slot, KEY) == key.raw() {
                sight.there.push((key, self.bought_at(slot), self.usage_at(slot)));
            } else {
                sight.lost.push((key, self.usage_at(slot)));
            }
        }
        for (key, _) in &sight.lost {
            if let Some(slot) = self.places.remove(key) {
                // Nobody finds who comes behind an empty slot.
                if self.load(slot, KEY) == StationKey::EMPTY {
                    self.store(slot, KEY, StationKey::REMOVED, Ordering::Release);
                }
                self.resting.insert(slot, now);
                self.tidy = false;
            }
        }
        for slot in from..end {
            let key = StationKey::from_raw(self.load(slot, KEY));
            let Some(key) = key.filter(|key| self.places.get(key) != Some(&slot)) else { continue };
            sight.strays.push((key, self.bought_at(slot)));
            self.store(slot, LIMIT, 0, Ordering::Relaxed);
            self.store(slot, KEY, StationKey::REMOVED, Ordering::Release);
            self.resting.insert(slot, now);
        }
        sight
    }

    fn tidy_up(&mut self) {
        if !std::mem::replace(&mut self.tidy, true) {
            self.seen.retain(|seen| self.places.get(&seen.key) == Some(&seen.slot));
            self.seen.sort_unstable_by_key(|seen| seen.slot);
            self.seen.dedup_by_key(|seen| seen.slot);
        }
    }

    /// Reads every station's counters, and returns those that changed since the last time.
    pub(super) fn changed(&mut self) -> Vec<(StationKey, StationUsage)> {
        self.tidy_up();
        let mut seen = std::mem::take(&mut self.seen);
        let mut changed = Vec::new();
        for Seen { slot, key, sum } in &mut seen {
            let now = self.sum(*slot);
            if now != *sum {
                *sum = now;
                changed.push((*key, self.usage_at(*slot)));
            }
        }
        self.seen = seen;
        changed
    }

    /// Those that changed since then, which [`Self::changed`] will return, too.
    pub(super) fn moved(&mut self) -> Vec<(StationKey, StationUsage)> {
        self.tidy_up();
        let moved = self.seen.iter().filter(|seen| self.sum(seen.slot) != seen.sum);
        moved.map(|seen| (seen.key, self.usage_at(seen.slot))).collect()
    }

    fn sum(&self, slot: u32) -> u64 {
        [UP, DOWN].into_iter().fold(0u64, |sum, first| {
            let octets = self.load(slot, first).wrapping_add(self.load(slot, first + 2));
            sum.wrapping_add(octets)
        })
    }

    /// Slots in all.
    pub(super) fn slots(&self) -> u32 {
        self.mask + 1
    }

    /// The first free slot in the station's sequence, while the table is at most half full.
    fn vacancy(&self, key: StationKey, now: Instant) -> Option<u32> {
        if self.places.len() >= usize::try_from(self.slots().div_ceil(2)).ok()? {
            return None;
        }
        let mut probe = Probe::new(key, self.seed);
        (0..PROBE_LIMIT).map(|_| probe.next(self.mask)).find(|&slot| match self.load(slot, KEY) {
            StationKey::EMPTY => true,
            StationKey::REMOVED => self
                .resting
                .get(&slot)
                .is_none_or(|&since| now.saturating_duration_since(since) >= QUARANTINE),
            _ => false,
        })
    }

    fn bought_at(&self, slot: u32) -> u64 {
        let (up, down) = (self.counts(slot, BASE_UP), self.counts(slot, BASE_DOWN));
        self.load(slot, LIMIT).wrapping_add(up.octets).wrapping_add(down.octets)
    }

    fn usage_at(&self, slot: u32) -> StationUsage {
        StationUsage {
            up: sum(self.counts(slot, BASE_UP), self.counts(slot, UP)),
            down: sum(self.counts(slot, BASE_DOWN), self.counts(slot, DOWN)),
        }
    }

    fn counts(&self, slot: u32, first: usize) -> Counts {
        Counts {
            octets: self.load(slot, first),
            frames: self.load(slot, first + 1),
            refused_octets: self.load(slot, first + 2),
            refused_frames: self.load(slot, first + 3),
        }
    }

    fn store_counts(&self, slot: u32, first: usize, counts: Counts) {
        let Counts { octets, frames, refused_octets, refused_frames } = counts;
        for (i, value) in [octets, frames, refused_octets, refused_frames].into_iter().enumerate() {
            self.store(slot, first + i, value, Ordering::Relaxed);
        }
    }

    fn store_terms(&self, slot: u32, terms: &Terms) {
        for (word, value) in terms.words() {
            self.store(slot, word, value, Ordering::Release);
        }
    }

    fn load(&self, slot: u32, word: usize) -> u64 {
        self.at(slot, word).load(Ordering::Acquire)
    }

    fn store(&self, slot: u32, word: usize, value: u64, order: Ordering) {
        self.at(slot, word).store(value, order);
    }

    fn at(&self, slot: u32, word: usize) -> &AtomicU64 {
        let index = usize::try_from(slot & self.mask).unwrap_or(usize::MAX);
        self.memory
            .word(index.saturating_mul(SLOT_WORDS).saturating_add(word))
            .expect("a masked slot is inside the mapping")
    }
}

/// What the kernel must compare its own counters with, so that the station's lifetime use ends at
/// `bought`.
fn limit(bought: u64, base_up: Counts, base_down: Counts) -> u64 {
    bought.wrapping_sub(base_up.octets).wrapping_sub(base_down.octets)
}

fn sum(base: Counts, counted: Counts) -> Counts {
    Counts {
        octets: base.octets.wrapping_add(counted.octets),
        frames: base.frames.wrapping_add(counted.frames),
        refused_octets: base.refused_octets.wrapping_add(counted.refused_octets),
        refused_frames: base.refused_frames.wrapping_add(counted.refused_frames),
    }
}

fn difference(total: Counts, counted: Counts) -> Counts {
    Counts {
        octets: total.octets.wrapping_sub(counted.octets),
        frames: total.frames.wrapping_sub(counted.frames),
        refused_octets: total.refused_octets.wrapping_sub(counted.refused_octets),
        refused_frames: total.refused_frames.wrapping_sub(counted.refused_frames),
    }
}

#[cfg(test)]
mod tests;
