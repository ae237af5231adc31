//! The time since boot, as programs keep it for one tick.

/// What `CLOCK_BOOTTIME` said at a tick of the kernel's timer, in two words that CPUs read and write without
/// any order between them.
///
/// The mark is both times in one, so that it fits to the time that it was written with: of two that were
/// written apart nothing is believed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinceBoot {
    /// In nanoseconds.
    pub time: u64,
    /// The tick, exclusive or the time.
    pub mark: u64,
}

const _: () = assert!(size_of::<SinceBoot>() == 16);

impl SinceBoot {
    /// The time at a tick, both in nanoseconds.
    #[inline(always)]
    pub fn new(tick: u64, time: u64) -> Self {
        Self { time, mark: tick ^ time }
    }

    /// The time, if it was asked for at this tick.
    #[inline(always)]
    pub fn at(self, tick: u64) -> Option<u64> {
        if self.mark ^ self.time == tick { Some(self.time) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 4_000_000;

    #[test]
    fn a_time_is_known_for_its_tick_alone() {
        let seen = SinceBoot::new(7 * TICK, 7 * TICK + 123);
        assert_eq!(seen.at(7 * TICK), Some(7 * TICK + 123));
        assert_eq!(seen.at(8 * TICK), None);
        assert_eq!(SinceBoot::default().at(TICK), None);
    }

    #[test]
    fn of_words_that_were_written_apart_none_gives_an_older_time() {
        // Suspended for an hour in between, or not at all.
        for slept in [0, 3_600_000_000_000] {
            for ticks in 1..2_000 {
                let (then, now) = (1_000 * TICK, (1_000 + ticks) * TICK);
                let old = SinceBoot::new(then, then + 77_000);
                let new = SinceBoot::new(now, now + slept + 1_900_000);
                let torn = SinceBoot { time: old.time, mark: new.mark };
                assert_eq!(torn.at(now), None, "{ticks}");
                let torn = SinceBoot { time: new.time, mark: old.mark };
                assert!(torn.at(now).is_none_or(|time| time == new.time), "{ticks}");
            }
        }
    }
}
