//! What a payment buys. A schedule is a function of volume; demand and time of day are folded into
//! it when the provider quotes, so that a price never changes inside a quote.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::units::{Msat, Octets};

/// Most tiers that a schedule may have.
pub const TIERS_MAX: usize = 16;
/// Highest price, in msat per MiB (1 BTC per MiB): keeps products within 128 bits.
pub const MSAT_PER_MIB_MAX: u64 = 100_000_000_000;

/// Prices by cumulative volume within one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Ascending; the first starts at 0 octets, the last has no end. Shared: all channels of an offer
    /// have the same.
    #[serde(with = "shared")]
    pub tiers: Arc<Vec<Tier>>,
}

mod shared {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::{Arc, Tier};

    pub(super) fn serialize<S: Serializer>(
        tiers: &Arc<Vec<Tier>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        tiers.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<Vec<Tier>>, D::Error> {
        Vec::deserialize(deserializer).map(Arc::new)
    }
}

/// Different schedules, each of which is shared by all that are equal.
#[derive(Debug, Default)]
pub struct Schedules(BTreeSet<Arc<Vec<Tier>>>);

impl Schedules {
    /// The one that is equal to `schedule`.
    pub fn share(&mut self, schedule: &Schedule) -> Schedule {
        let tiers = self.0.get(&schedule.tiers).unwrap_or(&schedule.tiers).clone();
        self.0.insert(tiers.clone());
        Schedule { tiers }
    }
}

/// A price that holds from a volume on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Octets bought before this price applies.
    pub from_octets: Octets,
    /// Millisatoshi per MiB (2^20 octets).
    pub msat_per_mib: u64,
}

/// Why a schedule can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Empty or over [`TIERS_MAX`].
    #[error("a schedule has 1 to {TIERS_MAX} tiers")]
    TierCount,
    /// Volumes that don't ascend from 0.
    #[error("the tiers of a schedule start at 0 octets and ascend")]
    Order,
    /// A price of 0 or over [`MSAT_PER_MIB_MAX`].
    #[error("a price is 1 to {MSAT_PER_MIB_MAX} msat per MiB")]
    Price,
}

impl Schedule {
    /// One price whatever the volume.
    pub fn flat(msat_per_mib: u64) -> Self {
        Self { tiers: vec![Tier { from_octets: Octets(0), msat_per_mib }].into() }
    }

    /// Checks a schedule that came from outside.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        if self.tiers.is_empty() || self.tiers.len() > TIERS_MAX {
            return Err(ScheduleError::TierCount);
        }
        let ascending = self.tiers.is_sorted_by(|a, b| a.from_octets < b.from_octets);
        if !ascending || self.tiers.first().is_none_or(|tier| tier.from_octets != Octets(0)) {
            return Err(ScheduleError::Order);
        }
        if self.tiers.iter().any(|tier| !(1..=MSAT_PER_MIB_MAX).contains(&tier.msat_per_mib)) {
            return Err(ScheduleError::Price);
        }
        Ok(())
    }

    /// Octets that `paid`, the sum of all payments in a channel, buys. Rounded down once over the
    /// sum: the fraction left of one payment counts towards the next, and is never lost to either.
    pub fn octets_for(&self, paid: Msat) -> Option<Octets> {
        let mut left = u128::from(paid.0) << 20;
        let mut octets = 0u128;
        for (tier, span) in self.spans() {
            let price = u128::from(tier.msat_per_mib);
            match span.map(|span| (span, span * price)) {
                Some((span, cost)) if cost <= left => {
                    octets += span;
                    left -= cost;
                }
                _ => {
                    octets += left.checked_div(price)?;
                    break;
                }
            }
        }
        u64::try_from(octets).ok().map(Octets)
    }

    /// The least sum of payments that buys `octets`; the inverse of [`Schedule::octets_for`].
    pub fn cost_of(&self, octets: Octets) -> Option<Msat> {
        let mut left = u128::from(octets.0);
        let mut cost = 0u128;
        for (tier, span) in self.spans() {
            let taken = span.map_or(left, |span| span.min(left));
            cost = cost.checked_add(taken.checked_mul(tier.msat_per_mib.into())?)?;
            left -= taken;
        }
        u64::try_from(cost.div_ceil(1 << 20)).ok().map(Msat)
    }

    /// Each tier with its length in octets; the last has none.
    fn spans(&self) -> impl Iterator<Item = (&Tier, Option<u128>)> {
        let ends = self.tiers.iter().skip(1).map(Some).chain([None]);
        self.tiers.iter().zip(ends).map(|(tier, end)| {
            (tier, end.map(|end| u128::from(end.from_octets.0.saturating_sub(tier.from_octets.0))))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tiered() -> Schedule {
        Schedule {
            tiers: vec![
                Tier { from_octets: Octets(0), msat_per_mib: 2_000 },
                Tier { from_octets: Octets(10 << 20), msat_per_mib: 1_000 },
            ]
            .into(),
        }
    }

    #[test]
    fn volume_gets_cheaper_at_the_tier_and_not_an_octet_before() {
        assert_eq!(tiered().octets_for(Msat(20_000)), Some(Octets(10 << 20)));
        assert_eq!(tiered().octets_for(Msat(21_000)), Some(Octets(11 << 20)));
        assert_eq!(tiered().octets_for(Msat(19_999)), Some(Octets((10 << 20) - 525)));
        assert_eq!(tiered().cost_of(Octets((10 << 20) + 1)), Some(Msat(20_001)));
    }

    #[test]
    fn schedules_from_outside_are_checked() {
        let tier = |from, msat_per_mib| Tier { from_octets: Octets(from), msat_per_mib };
        let check = |tiers: Vec<Tier>| Schedule { tiers: tiers.into() }.validate();
        assert_eq!(check(vec![]), Err(ScheduleError::TierCount));
        assert_eq!(check(vec![tier(0, 1); TIERS_MAX + 1]), Err(ScheduleError::TierCount));
        assert_eq!(check(vec![tier(1, 1)]), Err(ScheduleError::Order));
        assert_eq!(check(vec![tier(0, 1), tier(0, 1)]), Err(ScheduleError::Order));
        assert_eq!(check(vec![tier(0, 0)]), Err(ScheduleError::Price));
        assert_eq!(check(vec![tier(0, MSAT_PER_MIB_MAX + 1)]), Err(ScheduleError::Price));
        assert_eq!(tiered().validate(), Ok(()));
    }

    #[test]
    fn equal_schedules_share_one_and_others_do_not() {
        let mut schedules = Schedules::default();
        let [first, second, other] =
            [tiered(), tiered(), Schedule::flat(1)].map(|schedule| schedules.share(&schedule));
        assert!(Arc::ptr_eq(&first.tiers, &second.tiers));
        assert_eq!((&second, &other), (&tiered(), &Schedule::flat(1)));
    }

    #[test]
    fn schedules_in_json_are_lists() {
        let text = r#"{"tiers":[{"from_octets":0,"msat_per_mib":7}]}"#;
        let schedule = Schedule::flat(7);
        assert_eq!(serde_json::to_string(&schedule).unwrap(), text);
        assert_eq!(serde_json::from_str::<Schedule>(text).unwrap(), schedule);
    }

    #[test]
    fn the_largest_amounts_do_not_overflow() {
        assert_eq!(Schedule::flat(1).octets_for(Msat(u64::MAX)), None);
        assert!(Schedule::flat(MSAT_PER_MIB_MAX).octets_for(Msat(u64::MAX)).is_some());
        assert_eq!(Schedule::flat(MSAT_PER_MIB_MAX).cost_of(Octets(u64::MAX)), None);
    }

    fn schedules() -> impl Strategy<Value = Schedule> {
        prop::collection::vec((1u64..1 << 40, 1..=1_000_000u64), 1..8).prop_map(|steps| {
            let mut from = 0;
            let tiers = steps
                .into_iter()
                .enumerate()
                .map(|(i, (step, msat_per_mib))| {
                    from = if i == 0 { 0 } else { from + step };
                    Tier { from_octets: Octets(from), msat_per_mib }
                })
                .collect::<Vec<_>>();
            Schedule { tiers: tiers.into() }
        })
    }

    proptest! {
        #[test]
        fn cost_is_the_least_that_buys(schedule in schedules(), octets in 1u64..1 << 44) {
            let cost = schedule.cost_of(Octets(octets)).unwrap();
            prop_assert!(schedule.octets_for(cost).unwrap() >= Octets(octets));
            prop_assert!(schedule.octets_for(Msat(cost.0 - 1)).unwrap() < Octets(octets));
        }

        #[test]
        fn paying_in_parts_buys_what_paying_at_once_does(
            schedule in schedules(), parts in prop::collection::vec(0u64..1 << 30, 1..20),
        ) {
            let mut paid = 0;
            let mut granted = Octets(0);
            for part in &parts {
                paid += part;
                let bought = schedule.octets_for(Msat(paid)).unwrap();
                prop_assert!(bought >= granted);
                granted = bought;
            }
            prop_assert_eq!(Some(granted), schedule.octets_for(Msat(parts.iter().sum())));
        }
    }
}
