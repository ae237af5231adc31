//! What the operator is to know in time: shown by `status`, and logged when it begins and ends.

use std::{collections::BTreeMap, time::Instant};

use bitmesh_core::alarm::{self, Alarm, Kind, Level, Sight};
use tracing::{error, info, warn};

use super::{super::now, Session, fleet::Fleet};

/// Since when the chain is not seen, and what was logged of it.
pub(super) struct Watch {
    lost_since: Option<Instant>,
    last_block: Instant,
    told: BTreeMap<Kind, Level>,
}

impl Watch {
    /// Nothing is known of the chain yet.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { lost_since: Some(now), last_block: now, told: BTreeMap::new() }
    }

    pub(super) fn block(&mut self) {
        self.last_block = Instant::now();
    }

    pub(super) fn synced(&mut self, synced: bool) {
        self.lost_since =
            if synced { None } else { Some(self.lost_since.unwrap_or_else(Instant::now)) };
    }
}

impl Session<'_> {
    pub(super) fn alarms(&self) -> Vec<Alarm> {
        let book = self.controller.book();
        let lost = self.watch.lost_since.map(|since| since.elapsed().as_secs());
        let silent = self.watch.last_block.elapsed().as_secs();
        let sight = Sight {
            tip: book.tip(),
            lost_seconds: lost,
            silent_seconds: silent.max(lost.unwrap_or(0)),
        };
        let mut alarms = alarm::alarms(book, sight);
        alarms.extend(self.foundation.went_back(now()));
        alarms.extend(self.fleet.iter().flat_map(Fleet::alarms));
        alarms
    }

    /// Logs alarms that are new or worse, and the end of others.
    pub(super) fn tell_alarms(&mut self) {
        let alarms = self.alarms();
        for Alarm { kind, level, message } in &alarms {
            let before = self.watch.told.insert(kind.clone(), *level);
            match level {
                _ if before >= Some(*level) => {}
                Level::Warning => warn!("{message}"),
                Level::Error => error!("{message}"),
            }
        }
        self.watch.told.retain(|kind, _| {
            let goes_on = alarms.iter().any(|alarm| alarm.kind == *kind);
            if !goes_on {
                info!("over: {kind:?}");
            }
            goes_on
        });
    }
}
