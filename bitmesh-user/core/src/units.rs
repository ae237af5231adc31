//! Amounts with their units. Arithmetic is checked: an amount never wraps.

use std::fmt;

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

/// Millisatoshi: what prices and credit are counted in. On chain only whole satoshis exist.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Msat(pub u64);

impl Msat {
    /// The same amount in millisatoshi; `None` above 2^64 - 1 msat.
    pub fn from_amount(amount: Amount) -> Option<Self> {
        amount.to_sat().checked_mul(1_000).map(Self)
    }

    /// Whole satoshis that cover this amount: rounded up, for a payer.
    pub fn to_amount_ceil(self) -> Amount {
        Amount::from_sat(self.0.div_ceil(1_000))
    }
}

impl fmt::Display for Msat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} sat", self.0 / 1_000, self.0 % 1_000)
    }
}

/// L3 octets: IPv4 total length, IPv6 payload length + 40.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Octets(pub u64);

impl Octets {
    /// One MiB, the unit that prices are quoted in.
    pub const MIB: Self = Self(1 << 20);

    /// Sum, held at 2^64 - 1.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, held at 0.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (divisor, unit) = match self.0 {
            0..1_024 => return write!(f, "{} B", self.0),
            1_024..0x10_0000 => (1u64 << 10, "KiB"),
            0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
            _ => (1 << 30, "GiB"),
        };
        let hundredths = u128::from(self.0) * 100 / u128::from(divisor);
        write!(f, "{}.{:02} {unit}", hundredths / 100, hundredths % 100)
    }
}

/// An amount that is split by weights: the parts add up to exactly the amount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    left: u64,
    weights: u128,
}

impl Share {
    /// Of `amount`, by these weights.
    pub(crate) fn of(amount: u64, weights: impl Iterator<Item = u64>) -> Self {
        Self { left: amount, weights: weights.map(u128::from).sum() }
    }

    /// The part of the next weight, in the order that they were given in.
    pub(crate) fn next(&mut self, weight: u64) -> u64 {
        let scaled = u128::from(self.left) * u128::from(weight);
        let part = scaled.checked_div(self.weights).unwrap_or(0);
        let part = u64::try_from(part).unwrap_or(self.left).min(self.left);
        self.weights = self.weights.saturating_sub(weight.into());
        self.left -= part;
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_shown_in_the_unit_that_fits() {
        assert_eq!(Octets(1_023).to_string(), "1023 B");
        assert_eq!(Octets(1_024).to_string(), "1.00 KiB");
        assert_eq!(Octets(3 << 19).to_string(), "1.50 MiB");
        assert_eq!(Octets(u64::MAX).to_string(), "17179869183.99 GiB");
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        for (amount, weights) in
            [(10, vec![1, 1, 1]), (7, vec![0, 5]), (u64::MAX, vec![u64::MAX; 3])]
        {
            let mut share = Share::of(amount, weights.iter().copied());
            let parts: Vec<_> = weights.iter().map(|weight| share.next(*weight)).collect();
            assert_eq!(parts.iter().sum::<u64>(), amount, "{parts:?}");
        }
    }

    #[test]
    fn a_payer_rounds_up_to_whole_satoshis() {
        assert_eq!(Msat(1_000).to_amount_ceil(), Amount::from_sat(1));
        assert_eq!(Msat(1_001).to_amount_ceil(), Amount::from_sat(2));
        assert_eq!(Msat::from_amount(Amount::from_sat(u64::MAX)), None);
    }
}
