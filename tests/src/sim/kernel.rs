//! What the kernel does with frames, as far as money goes: it lets a frame pass while the limit
//! holds, and CPUs that look at one limit at the same time overshoot it by a frame each.

use std::collections::BTreeMap;

use bitmesh_core::{
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
};

/// CPUs that forward.
pub const CPUS: u64 = 2;
/// Largest frame, in octets: one that is segmented later.
pub const FRAME_MAX: u64 = 64 << 10;
/// What may pass without credit, in octets.
pub const OVERSHOOT_MAX: u64 = (CPUS - 1) * FRAME_MAX;

/// One station's slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Octets that it may use in its life.
    pub limit: u64,
    /// Octets that it used.
    pub used: u64,
    /// Octets that it was refused.
    pub refused: u64,
}

impl Slot {
    /// The counters, as the kernel keeps them.
    pub fn usage(&self) -> Usage {
        let down = Counts {
            octets: Octets(self.used),
            refused_octets: Octets(self.refused),
            ..Counts::default()
        };
        Usage { down, ..Usage::default() }
    }
}

/// The station table. It outlives the controller.
#[derive(Debug, Default)]
pub struct Kernel {
    slots: BTreeMap<Station, Slot>,
}

impl Kernel {
    /// One station's slot; empty, for one that was never granted anything.
    pub fn slot(&self, station: Station) -> Slot {
        self.slots.get(&station).copied().unwrap_or_default()
    }

    /// Sets a limit.
    pub fn set(&mut self, station: Station, limit: Octets, usage: Usage) {
        let fresh = Slot { used: usage.billed().0, ..Slot::default() };
        self.slots.entry(station).or_insert(fresh).limit = limit.0;
    }

    /// Every slot.
    pub fn slots(&self) -> impl Iterator<Item = (Station, Slot)> + '_ {
        self.slots.iter().map(|(station, slot)| (*station, *slot))
    }

    /// Forwards what it may of `octets` in frames of `frame`; `race` when a second CPU looks at the
    /// limit at the same time as the first does for the last frame. What passed.
    pub fn forward(&mut self, station: Station, octets: u64, frame: u64, race: bool) -> u64 {
        let Some(slot) = self.slots.get_mut(&station) else { return 0 };
        let wanted = octets.div_ceil(frame);
        let fits = slot.limit.saturating_sub(slot.used) / frame;
        let mut frames = wanted.min(fits);
        if race && frames > 0 && frames < wanted {
            frames += CPUS - 1;
        }
        slot.used += frames * frame;
        slot.refused += (wanted.saturating_sub(frames)) * frame;
        frames * frame
    }
}
