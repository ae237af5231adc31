//! Speeds: a line from an anchor that cumulative octets must stay under. There is no count of tokens
//! that several CPUs would have to share: the octets are those that are billed, by atomic adds.

/// Bits that a speed is scaled by: octets per nanosecond times 2^[`Rate::SHIFT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Rate(u64);

/// Nanoseconds after which the anchor moves along the line, so that products stay in 64 bits.
pub const STRIDE_NANOS: u64 = 1 << 30;
/// The highest speed, in octets per second (100 Gbit/s).
pub const OCTETS_PER_SECOND_MAX: u64 = 12_500_000_000;

/// Whether a frame may pass a speed, and where the line is measured from afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It may.
    Within,
    /// It may, after the anchor was moved here: time in nanoseconds, octets.
    Anchored(u64, u64),
    /// It comes too early.
    TooFast,
}

impl Rate {
    /// Leaves 2^(64 - 29 - 1) for an elapsed time: 4 seconds at the highest speed.
    const SHIFT: u32 = 28;

    /// A speed in octets per second; `None` for 0 and over [`OCTETS_PER_SECOND_MAX`].
    pub const fn new(octets_per_second: u64) -> Option<Self> {
        if octets_per_second == 0 || octets_per_second > OCTETS_PER_SECOND_MAX {
            return None;
        }
        let scaled = ((octets_per_second as u128) << Self::SHIFT) / 1_000_000_000;
        // Below 2^62 by the limit.
        #[allow(clippy::cast_possible_truncation)]
        Some(Self(if scaled == 0 { 1 } else { scaled as u64 }))
    }

    /// From a word of the table; 0 is no speed.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw == 0 { None } else { Some(Self(raw)) }
    }

    /// The word of the table.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Octets in so many nanoseconds, at most 2 x [`STRIDE_NANOS`].
    #[inline(always)]
    const fn octets(self, nanos: u64) -> u64 {
        self.0.wrapping_mul(nanos) >> Self::SHIFT
    }

    /// Judges a frame of `octets` when `used` were counted before it. The line starts at the anchor
    /// and a frame may be up to `burst` octets above it.
    #[inline(always)]
    pub const fn pace(
        self,
        (time, anchored): (u64, u64),
        now: u64,
        used: u64,
        octets: u64,
        burst: u64,
    ) -> Pace {
        let elapsed = now.saturating_sub(time);
        if elapsed > 2 * STRIDE_NANOS {
            // Idle, or never used: a full burst from here on.
            return Pace::Anchored(now, used);
        }
        let line = anchored.wrapping_add(self.octets(elapsed));
        let above = used.wrapping_add(octets).wrapping_sub(line).cast_signed();
        if above > burst.cast_signed() {
            return Pace::TooFast;
        }
        if used.wrapping_sub(line).cast_signed() < 0 {
            // Slower than the line: what was not used is not saved up.
            return Pace::Anchored(now, used);
        }
        if elapsed > STRIDE_NANOS {
            let moved = time.wrapping_add(STRIDE_NANOS);
            return Pace::Anchored(moved, anchored.wrapping_add(self.octets(STRIDE_NANOS)));
        }
        Pace::Within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Octets that pass in `seconds` when frames of `frame` octets are offered every `gap` ns.
    fn offered(rate: u64, burst: u64, frame: u64, gap: u64, seconds: u64) -> u64 {
        let rate = Rate::new(rate).unwrap();
        let (mut anchor, mut used) = ((0, 0), 7_000);
        for i in 0..seconds * SECOND / gap {
            match rate.pace(anchor, 50 * SECOND + i * gap, used, frame, burst) {
                Pace::TooFast => continue,
                Pace::Anchored(time, octets) => anchor = (time, octets),
                Pace::Within => {}
            }
            used += frame;
        }
        used - 7_000
    }

    #[test]
    fn what_is_offered_above_the_speed_passes_at_the_speed() {
        for (speed, gap) in [(125_000, 1_000_000), (12_500_000, 20_000), (1_250_000_000, 1_000)] {
            let (seconds, burst) = (10, 30_000);
            let passed = offered(speed, burst, 1_500, gap, seconds);
            let sold = speed * seconds;
            assert!(passed >= sold - 1_500 && passed <= sold + burst, "{passed} of {sold}");
        }
    }

    #[test]
    fn what_is_offered_below_the_speed_passes_whole() {
        assert_eq!(offered(12_500_000, 3_000, 1_500, 150_000, 5), 5 * SECOND / 150_000 * 1_500);
    }

    #[test]
    fn a_rest_is_not_saved_up() {
        let rate = Rate::new(1_000_000).unwrap();
        let pace = |now, used| rate.pace((SECOND, 0), now, used, 1_000, 2_000);
        // A second at this speed is 10^6 octets; only the burst is there.
        assert_eq!(pace(2 * SECOND, 10), Pace::Anchored(2 * SECOND, 10));
        let anchor = (2 * SECOND, 10);
        assert_eq!(rate.pace(anchor, 2 * SECOND, 1_010, 1_000, 2_000), Pace::Within);
        assert_eq!(rate.pace(anchor, 2 * SECOND, 1_011, 1_000, 2_000), Pace::TooFast);
        assert_eq!(
            rate.pace(anchor, 60 * SECOND, 1_011, 1_000, 2_000),
            Pace::Anchored(60 * SECOND, 1_011)
        );
    }

    #[test]
    fn speeds_have_bounds_and_the_slowest_is_not_nothing() {
        assert_eq!(Rate::new(0), None);
        assert_eq!(Rate::new(OCTETS_PER_SECOND_MAX + 1), None);
        assert!(Rate::new(1).unwrap().raw() > 0);
        let fastest = Rate::new(OCTETS_PER_SECOND_MAX).unwrap();
        assert!(fastest.octets(2 * STRIDE_NANOS) > 2 * 13_000_000_000);
    }
}
