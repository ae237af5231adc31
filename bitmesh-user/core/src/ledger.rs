//! What each station has bought and used. The truth that the kernel's limits are derived from.

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

    /// The larger of both readings, field by field: a reading that lags never takes usage back.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { up: self.up.max(other.up), down: self.down.max(other.down) }
    }
}

/// One station's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Octets bought, by all channels of the station.
    pub bought: Octets,
    /// What it used.
    pub usage: Usage,
}

impl Account {
    /// Octets bought and not used.
    pub fn credit(&self) -> Octets {
        self.bought.saturating_sub(self.usage.billed())
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
    fn credit_is_what_was_bought_and_not_used_and_never_negative() {
        let usage = usage(60, 30);
        assert_eq!(Account { bought: Octets(100), usage }.credit(), Octets(10));
        assert_eq!(Account { bought: Octets(80), usage }.credit(), Octets(0));
    }

    #[test]
    fn a_lagging_reading_takes_nothing_back() {
        assert_eq!(usage(9, 1).max(usage(5, 2)), usage(9, 2));
    }
}
