//! The kernel's station table by its pin, read and changed behind the daemon's back.

use std::{
    mem::offset_of,
    os::fd::AsFd as _,
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo};
use bitmesh_common::{Base, Counts, Lease, StationKey, StationSlot, Usage};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const WORD: usize = size_of::<u64>();
const SLOT_WORDS: usize = size_of::<StationSlot>() / WORD;
const KEY: usize = (offset_of!(StationSlot, lease) + offset_of!(Lease, key)) / WORD;
const LIMIT: usize = (offset_of!(StationSlot, lease) + offset_of!(Lease, limit)) / WORD;
const OCTETS: usize = offset_of!(Counts, octets) / WORD;
const UP: usize = (offset_of!(StationSlot, up) + offset_of!(Usage, counts)) / WORD + OCTETS;
const DOWN: usize = (offset_of!(StationSlot, down) + offset_of!(Usage, counts)) / WORD + OCTETS;
const BASE_UP: usize = (offset_of!(StationSlot, base) + offset_of!(Base, up)) / WORD + OCTETS;
const BASE_DOWN: usize = (offset_of!(StationSlot, base) + offset_of!(Base, down)) / WORD + OCTETS;

/// The table of one instance.
pub struct Pinned {
    start: NonNull<AtomicU64>,
    slots: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only seen as atomics.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

/// What the kernel holds of one station, in octets of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Honoured {
    /// Which.
    pub key: StationKey,
    /// What it may use.
    pub limit: u64,
    /// What it used.
    pub used: u64,
    slot: usize,
}

impl Pinned {
    /// Maps the table that is pinned in a directory.
    pub fn open(pins: &Path) -> Result<Self> {
        let pin = pins.join("STATIONS");
        let map = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
        let slots = usize::try_from(MapInfo::from_pin(&pin)?.max_entries())?;
        let octets = slots * size_of::<StationSlot>();
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        let fd = map.fd().as_fd();
        // SAFETY: the kernel chooses the address, so that nothing else is there.
        let start = unsafe { mmap(ptr::null_mut(), octets, flags, MapFlags::SHARED, fd, 0)? };
        Ok(Self { start: NonNull::new(start.cast()).context("a mapping")?, slots })
    }

    fn word(&self, slot: usize, word: usize) -> &AtomicU64 {
        assert!(slot < self.slots && word < SLOT_WORDS, "a word of the table");
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned; the kernel writes
        // whole words.
        unsafe { self.start.add(slot * SLOT_WORDS + word).as_ref() }
    }

    fn load(&self, slot: usize, word: usize) -> u64 {
        self.word(slot, word).load(Ordering::SeqCst)
    }

    /// Every station.
    pub fn stations(&self) -> Vec<Honoured> {
        let of = |slot| {
            let key = StationKey::from_raw(self.load(slot, KEY))?;
            let sum = |words: [usize; 2]| {
                words.into_iter().fold(0u64, |sum, word| sum.wrapping_add(self.load(slot, word)))
            };
            let base = sum([BASE_UP, BASE_DOWN]);
            let limit = self.load(slot, LIMIT).wrapping_add(base);
            Some(Honoured { key, limit, used: base.wrapping_add(sum([UP, DOWN])), slot })
        };
        (0..self.slots).filter_map(of).collect()
    }

    /// One station.
    pub fn station(&self, key: StationKey) -> Option<Honoured> {
        self.stations().into_iter().find(|station| station.key == key)
    }

    /// Changes by how much a station's limit is above what it was.
    pub fn change_limit(&self, station: Honoured, by: i64) {
        self.word(station.slot, LIMIT).fetch_add(by.cast_unsigned(), Ordering::SeqCst);
    }

    /// Changes what a station is said to have uploaded before it had this slot; what it may use in
    /// its life changes with it, since the kernel compares its own counters alone.
    pub fn change_base(&self, station: Honoured, by: i64) {
        self.word(station.slot, BASE_UP).fetch_add(by.cast_unsigned(), Ordering::SeqCst);
    }

    /// Takes a station off.
    pub fn remove(&self, station: Honoured) {
        self.word(station.slot, KEY).store(StationKey::REMOVED, Ordering::SeqCst);
    }

    /// Puts another station into the place of one.
    pub fn rename(&self, station: Honoured, key: StationKey) {
        self.word(station.slot, KEY).store(key.raw(), Ordering::SeqCst);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let octets = self.slots * size_of::<StationSlot>();
        // SAFETY: start and length are those of the mapping, and nothing borrows from it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), octets) };
        debug_assert!(unmapped.is_ok());
    }
}
