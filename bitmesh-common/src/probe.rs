//! Where in the table a station can be: double hashing from one 64-bit mix.

use crate::StationKey;

/// Slots that a search looks at before it gives up. At a load of one half a station finds no place
/// in its 24 with probability 2^-24: in a table of 2^21 slots, one that fills up refuses a station
/// before it is half full once in 400 times.
pub const PROBE_LIMIT: u32 = 24;

/// The sequence of slots in which a station may live, the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    next: u32,
    step: u32,
}

impl Probe {
    /// The sequence for `key` in a table that was seeded with `seed`. The seed keeps a station from
    /// choosing a MAC that collides with another's.
    #[inline(always)]
    pub const fn new(key: StationKey, seed: u64) -> Self {
        Self::of_bits(key.raw(), seed)
    }

    /// The same for [`StationKey::bits`].
    #[inline(always)]
    pub const fn of_bits(bits: u64, seed: u64) -> Self {
        let mixed = mix(bits ^ seed);
        #[allow(clippy::cast_possible_truncation)] // two halves of one hash
        Self { next: mixed as u32, step: (mixed >> 32) as u32 | 1 }
    }

    /// The next slot of a table with `mask + 1` slots, a power of two. The odd step visits every
    /// slot once before the first repeats.
    #[inline(always)]
    pub const fn next(&mut self, mask: u32) -> u32 {
        let slot = self.next & mask;
        self.next = self.next.wrapping_add(self.step);
        slot
    }
}

/// `SplitMix64`'s finalizer (Steele, Lea, Flood, 2014).
#[inline(always)]
const fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 30;
    bits = bits.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits ^= bits >> 27;
    bits = bits.wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mac;

    fn key(n: u32) -> StationKey {
        StationKey::new(Mac::from_parts(0x0200, n), 0).unwrap()
    }

    #[test]
    fn a_sequence_visits_every_slot_of_a_table_once() {
        for n in 0..200 {
            let mut probe = Probe::new(key(n), 0x5eed);
            let mut seen = [false; 64];
            for _ in 0..64 {
                let slot = probe.next(63) as usize;
                assert!(!seen[slot], "slot {slot} twice for {n}");
                seen[slot] = true;
            }
        }
    }

    #[test]
    fn another_seed_is_another_sequence() {
        let (mut first, mut second) = (Probe::new(key(1), 1), Probe::new(key(1), 2));
        let differ = (0..8).any(|_| first.next(0xffff) != second.next(0xffff));
        assert!(differ);
    }

    #[test]
    fn neighbouring_macs_spread_over_the_table() {
        let mut load = [0u32; 256];
        for n in 0..25_600 {
            load[Probe::new(key(n), 0x5eed).next(255) as usize] += 1;
        }
        let (least, most) = load.iter().fold((u32::MAX, 0), |(l, m), &n| (l.min(n), m.max(n)));
        assert!(least > 50 && most < 160, "expected about 100 each, got {least} to {most}");
    }
}
