//! What an edge does first once others took its accounts over: its kernel grants nothing any more, and
//! what that counted beyond what was written down is told to whoever has the accounts now.
//!
//! Accounts that were not taken yet when it came back are its own as before, and so are their leases.
//!
//! Each step may be done again: limits only fall, the ledger takes a tale once, and that accounts
//! were taken over is known until the table has nothing of them.

use std::collections::HashMap;

use anyhow::Result;
use bitmesh_core::{
    controller::{Controller, Place},
    fleet::{LateId, Member},
    station::Station,
    units::Octets,
};
use tracing::warn;

use super::edge::usage_of;
use crate::{
    dataplane::{Dataplane, StationKey},
    store::Store,
};

/// Does that, where another edge took over.
pub(super) async fn settle(
    store: &mut Store,
    dataplane: &mut Dataplane,
    controller: &Controller,
) -> Result<()> {
    if !store.seized()? {
        return Ok(());
    }
    let is_taken =
        |key: StationKey| controller.place_of(Member::Station(Station::from(key))) != Place::Here;
    let granted: Vec<_> = dataplane.stations().filter(|(key, ..)| is_taken(*key)).collect();
    for (key, limit, used) in granted {
        dataplane.set_limit(key, limit.min(usage_of(&used).billed().0))?;
    }
    // From here on the counters stay as they are.
    let used: HashMap<_, _> = dataplane
        .stations()
        .filter(|(key, ..)| is_taken(*key))
        .map(|(key, _, used)| (Station::from(key), usage_of(&used).billed()))
        .collect();
    let mut late = Vec::new();
    for (id, written) in store.untold().await? {
        let used = used.get(&id.station).copied().unwrap_or_default();
        let octets = LateId::used_late(written, used);
        if octets > Octets(0) {
            late.push((id, octets));
        }
    }
    store.tell_late(&late).await?;
    let sum = late.iter().fold(Octets(0), |sum, (_, octets)| sum.saturating_add(*octets));
    warn!(
        "another edge took this one's accounts over while it was silent: what its kernel still had of {} \
         stations ends; {} octets that {} of them used meanwhile are debited there",
        used.len(),
        sum.0,
        late.len()
    );
    for station in used.into_keys() {
        dataplane.remove(station.key());
    }
    store.seizure_over().await?;
    Ok(())
}
