//! What each station has bought and used. The truth that the kernel's limits are derived from.

use serde::{Deserialize, Serialize};

use crate::units::Octets;

/// What a station has sent and received, in its life. Every field only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// L3 octets that the station sent and the edge forwarded.
    pub up_octets: Octets,
    /// Frames of the same; a GSO frame is one.
    pub up_frames: u64,
    /// L3 octets that the edge sent to the station.
    pub down_octets: Octets,
    /// Frames of the same.
    pub down_frames: u64,
    /// L3 octets to and from the station that were dropped for want of credit.
    pub refused_octets: Octets,
    /// Frames of the same.
    pub refused_frames: u64,
}

impl Usage {
    /// What is billed: both directions.
    pub fn billed(&self) -> Octets {
        self.up_octets.saturating_add(self.down_octets)
    }

    /// The larger of both readings, field by field: a reading that lags never takes usage back.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            up_octets: self.up_octets.max(other.up_octets),
            up_frames: self.up_frames.max(other.up_frames),
            down_octets: self.down_octets.max(other.down_octets),
            down_frames: self.down_frames.max(other.down_frames),
            refused_octets: self.refused_octets.max(other.refused_octets),
            refused_frames: self.refused_frames.max(other.refused_frames),
        }
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

    #[test]
    fn credit_is_what_was_bought_and_not_used_and_never_negative() {
        let usage = Usage { up_octets: Octets(60), down_octets: Octets(30), ..Usage::default() };
        assert_eq!(Account { bought: Octets(100), usage }.credit(), Octets(10));
        assert_eq!(Account { bought: Octets(80), usage }.credit(), Octets(0));
    }

    #[test]
    fn a_lagging_reading_takes_nothing_back() {
        let ahead = Usage { up_octets: Octets(9), down_octets: Octets(1), ..Usage::default() };
        let behind = Usage { up_octets: Octets(5), down_octets: Octets(2), ..Usage::default() };
        let both = ahead.max(behind);
        assert_eq!((both.up_octets, both.down_octets), (Octets(9), Octets(2)));
    }
}
