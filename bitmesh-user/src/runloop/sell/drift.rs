//! Reconciliation while running: the kernel's table is compared with the ledger, part by part, and put
//! right where somebody else changed it.

use std::collections::BTreeMap;

use bitmesh_core::{
    channel::{Batch, ProviderEvent},
    controller::{Action, Input},
    drift::{Drift, DriftKind},
    station::Station,
    units::Octets,
};
use tracing::warn;

use super::{Session, edge::usage_of};
use crate::dataplane::{Sight, StationKey};

/// Looks, one each second, in which all of a table with few stations is seen.
const LOOKS: u32 = 10;
/// Stations that are compared in one look, or a few more: each costs microseconds.
const STATIONS_AT_ONCE: usize = 1_024;
/// Slots that are read at once.
const SLOTS_AT_ONCE: u32 = 1_024;
/// Differences of one look that are logged; all are counted.
const TOLD_AT_ONCE: usize = 8;

/// What was found since the daemon started.
#[derive(Debug, Default)]
pub(super) struct Drifted {
    next_slot: u32,
    found: BTreeMap<DriftKind, u64>,
}

impl Drifted {
    /// Stations by how they differed, for `status`.
    pub(super) fn status(&self) -> BTreeMap<String, u64> {
        let of = |kind: DriftKind| self.found.get(&kind).copied().unwrap_or(0);
        DriftKind::ALL.into_iter().map(|kind| (kind.name().to_owned(), of(kind))).collect()
    }
}

impl Drifted {
    fn note<'a>(&mut self, found: impl Iterator<Item = &'a Drift>) {
        let mut more = 0;
        for (told, drift) in found.enumerate() {
            *self.found.entry(drift.kind).or_default() += 1;
            if told < TOLD_AT_ONCE {
                warn!("somebody else changed the kernel's table: {drift}; put right");
            } else {
                more += 1;
            }
        }
        if more > 0 {
            warn!("somebody else changed the kernel's table for {more} more; put right");
        }
    }
}

impl Session<'_> {
    /// Looks at the next part of the table. Everything decided must have been done: a limit that is on
    /// its way would be taken for a difference.
    pub(super) fn find_drift(&mut self, out: &mut Batch<ProviderEvent, Action>) {
        let slots = self.dataplane.slots();
        let mut left = slots.div_ceil(LOOKS);
        let mut sight = Sight::default();
        while left > 0 && sight.there.len() < STATIONS_AT_ONCE {
            let from = self.told.drifted.next_slot;
            let part = left.min(SLOTS_AT_ONCE).min(slots - from);
            sight.append(self.dataplane.look(from, part));
            self.told.drifted.next_slot = if from + part >= slots { 0 } else { from + part };
            left -= part;
        }

        // They are off again already.
        let strays: Vec<_> =
            sight.strays.into_iter().map(|(key, octets)| self.stray(key, octets)).collect();
        let mut found = Vec::new();
        for (key, used) in sight.lost {
            let station = Station::from(key);
            // What it used until it was taken off counts.
            self.controller.handle(Input::Reading(station, usage_of(&used)), out);
            found.extend(self.controller.drift(station, None));
        }
        for (key, limit, used) in sight.there {
            let kernel = Some((Octets(limit), usage_of(&used)));
            found.extend(self.controller.drift(key.into(), kernel));
        }
        for drift in &found {
            self.put_right(drift);
        }
        self.told.drifted.note(strays.iter().chain(&found));
    }

    fn stray(&self, key: StationKey, octets: u64) -> Drift {
        let station = Station::from(key);
        let usage = self.controller.account(station).usage;
        Drift { station, kind: DriftKind::Stray, by: Octets(octets), limit: Octets(0), usage }
    }

    fn put_right(&mut self, drift: &Drift) {
        let &Drift { station, limit, usage, .. } = drift;
        let done = match drift.kind {
            DriftKind::Over => self.dataplane.set_limit(station.key(), limit.0),
            DriftKind::Under | DriftKind::Missing => self.grant(station, limit, usage),
            DriftKind::Stray => {
                self.dataplane.remove(station.key());
                Ok(())
            }
            DriftKind::Behind => {
                self.dataplane.remove(station.key());
                self.grant(station, limit, usage)
            }
        };
        if let Err(error) = done {
            warn!("{station} can't use what it bought yet: {error}");
            self.refuse(station);
        }
    }
}
