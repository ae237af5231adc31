//! What stations have used: the counters, as the kernel keeps them.

use serde::{Deserialize, Serialize};

use crate::units::Octets;

/// Counters of one direction. Every field only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// L3 octets that were forwarded and are billed.
    pub octets: Octets,
    /// Frames of the same; a GSO frame is one.
    pub frames: u64,
    /// L3 octets that were dropped for want of credit.
    pub refused_octets: Octets,
    /// Frames of the same.
    pub refused_frames: u64,
}

impl Counts {
    fn since(self, then: Self) -> Self {
        Self {
            octets: self.octets.saturating_sub(then.octets),
            frames: self.frames.saturating_sub(then.frames),
            refused_octets: self.refused_octets.saturating_sub(then.refused_octets),
            refused_frames: self.refused_frames.saturating_sub(then.refused_frames),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            octets: self.octets.saturating_add(other.octets),
            frames: self.frames.saturating_add(other.frames),
            refused_octets: self.refused_octets.saturating_add(other.refused_octets),
            refused_frames: self.refused_frames.saturating_add(other.refused_frames),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            octets: self.octets.max(other.octets),
            frames: self.frames.max(other.frames),
            refused_octets: self.refused_octets.max(other.refused_octets),
            refused_frames: self.refused_frames.max(other.refused_frames),
        }
    }
}

/// What a station has sent and received, in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// From the station to the internet.
    pub up: Counts,
    /// From the internet to the station.
    pub down: Counts,
}

impl Usage {
    /// What is billed: both directions.
    pub fn billed(&self) -> Octets {
        self.up.octets.saturating_add(self.down.octets)
    }

    /// What was dropped for want of credit, both directions.
    pub fn refused(&self) -> Octets {
        self.up.refused_octets.saturating_add(self.down.refused_octets)
    }

    /// Whether nothing was sent, received or refused.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What came after an earlier reading.
    #[must_use]
    pub fn since(self, then: Self) -> Self {
        Self { up: self.up.since(then.up), down: self.down.since(then.down) }
    }

    /// Of two stations together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { up: self.up.plus(other.up), down: self.down.plus(other.down) }
    }

    /// The larger of both readings, field by field: a reading that lags never takes usage back.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { up: self.up.max(other.up), down: self.down.max(other.down) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(up: u64, down: u64) -> Usage {
        let of = |octets| Counts { octets: Octets(octets), ..Counts::default() };
        Usage { up: of(up), down: of(down) }
    }

    #[test]
    fn what_came_after_is_never_negative() {
        assert_eq!(usage(9, 5).since(usage(4, 6)), usage(5, 0));
        assert_eq!(usage(9, 5).billed(), Octets(14));
    }

    #[test]
    fn a_lagging_reading_takes_nothing_back() {
        assert_eq!(usage(9, 1).max(usage(5, 2)), usage(9, 2));
    }
}
