//! What the kernel honours for a station, against what the ledger says.
//!
//! Limits are written by the controller alone, right after their cause is durable. Where one is
//! another, something else wrote it: a person, a program, a fault of memory. The ledger is right about what
//! a station may use; the kernel is right about what it used, as long as its count only grows.

use std::fmt;

use crate::{account::Accounts, ledger::Usage, station::Station, units::Octets};

/// How they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DriftKind {
    /// The station may use more than it was leased.
    Over,
    /// It may use less.
    Under,
    /// It was leased something, and is not in the kernel's table.
    Missing,
    /// It is in the table and nobody pays for it.
    Stray,
    /// Its count says less than it said before: what was used could be used again.
    Behind,
}

impl DriftKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Over, Self::Under, Self::Missing, Self::Stray, Self::Behind];

    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Over => "over",
            Self::Under => "under",
            Self::Missing => "missing",
            Self::Stray => "stray",
            Self::Behind => "behind",
        }
    }
}

/// One difference, and what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Whose.
    pub station: Station,
    /// How.
    pub kind: DriftKind,
    /// By how much.
    pub by: Octets,
    /// What it may use in its life.
    pub limit: Octets,
    /// What it used in its life.
    pub usage: Usage,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { station, by, limit, .. } = self;
        match self.kind {
            DriftKind::Over => write!(f, "{station} could use {by} more than its {limit}"),
            DriftKind::Under => write!(f, "{station} could use {by} less than its {limit}"),
            DriftKind::Missing => write!(f, "{station} was taken off the table with {by} left"),
            DriftKind::Stray => write!(f, "{station} could use {by} that nobody pays for"),
            DriftKind::Behind => write!(f, "the count of {station} was turned back by {by}"),
        }
    }
}

impl Accounts {
    /// Judges what the kernel has for a station: its limit and what it used, `None` where it should be in
    /// the table and is not. To be asked while nothing that was decided waits to be done.
    pub fn drift(&self, station: Station, kernel: Option<(Octets, Usage)>) -> Option<Drift> {
        let known = self.usage(station);
        let of = |kind, by, limit| Some(Drift { station, kind, by, limit, usage: known });
        let Some(leases) = self.leases(station) else {
            let (limit, _) = kernel.filter(|(limit, usage)| *limit > usage.billed())?;
            return of(DriftKind::Stray, limit, Octets(0));
        };
        let limit = leases.in_force(station)?;
        let Some((honoured, used)) = kernel else {
            let left = limit.saturating_sub(known.billed());
            return if left > Octets(0) { of(DriftKind::Missing, left, limit) } else { None };
        };
        if used.billed() < known.billed() {
            return of(DriftKind::Behind, known.billed().saturating_sub(used.billed()), limit);
        }
        // What is used up can't be withheld: a limit under it is as good as one at it.
        let spent = used.billed();
        if honoured > limit.max(spent) {
            of(DriftKind::Over, honoured.saturating_sub(limit), limit)
        } else if honoured < limit && limit > spent {
            of(DriftKind::Under, limit.saturating_sub(honoured), limit)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{channel::testing, ledger::Counts};

    fn used(octets: u64) -> Usage {
        let up = Counts { octets: Octets(octets), ..Counts::default() };
        Usage { up, ..Usage::default() }
    }

    fn station(last: u8) -> Station {
        Station::new([2, 0, 0, 0, 0, last], 0).unwrap()
    }

    /// A station that bought and was leased 1,000 octets and used 400.
    fn accounts() -> Accounts {
        let mut accounts = Accounts::default();
        let channel = testing::params().id();
        accounts.open(channel, station(1), Usage::default());
        accounts.set_bought(channel, Octets(1_000));
        let account = accounts.of_channel(&channel).unwrap();
        assert_eq!(accounts.share(account).len(), 1);
        accounts.read(station(1), used(400));
        accounts
    }

    fn kind(kernel: Option<(u64, u64)>) -> Option<(DriftKind, u64, u64)> {
        let kernel = kernel.map(|(limit, octets)| (Octets(limit), used(octets)));
        let drift = accounts().drift(station(1), kernel)?;
        Some((drift.kind, drift.by.0, drift.limit.0))
    }

    #[test]
    fn what_the_ledger_says_is_no_drift_however_far_it_is_used() {
        for octets in [400, 401, 1_000, 1_500] {
            assert_eq!(kind(Some((1_000, octets))), None, "{octets}");
        }
        // Nothing passes under a limit that is used up, wherever it is.
        assert_eq!(kind(Some((900, 1_000))), None);
        assert_eq!(kind(Some((1_100, 1_100))), None);
    }

    #[test]
    fn an_octet_more_or_less_is_drift() {
        assert_eq!(kind(Some((1_001, 400))), Some((DriftKind::Over, 1, 1_000)));
        assert_eq!(kind(Some((999, 400))), Some((DriftKind::Under, 1, 1_000)));
        assert_eq!(kind(Some((1_000, 399))), Some((DriftKind::Behind, 1, 1_000)));
        assert_eq!(kind(None), Some((DriftKind::Missing, 600, 1_000)));
    }

    #[test]
    fn a_station_that_nobody_pays_for_may_be_there_with_nothing() {
        let stray = |limit| accounts().drift(station(2), Some((Octets(limit), used(7))));
        assert_eq!(stray(7), None);
        assert_eq!(stray(8).map(|drift| drift.kind), Some(DriftKind::Stray));
        assert_eq!(accounts().drift(station(2), None), None);
    }

    #[test]
    fn a_station_without_room_or_on_its_way_is_left_alone() {
        let mut accounts = accounts();
        accounts.set_room(station(1), false);
        assert_eq!(accounts.drift(station(1), None), None);
        accounts.set_room(station(1), true);
        let channel = testing::params().id();
        accounts.share(accounts.of_channel(&channel).unwrap());
        accounts.retire(station(1));
        let changes = accounts.share(accounts.of_channel(&channel).unwrap());
        assert!(!changes.is_empty());
        assert_eq!(accounts.drift(station(1), Some((Octets(1_000), used(400)))), None);
    }
}
