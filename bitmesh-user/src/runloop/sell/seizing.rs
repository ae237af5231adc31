//! Taking over the accounts of edges that are silent, some with each sign of life, so that the loop goes on
//! between. What fails and may pass is done again with the next one.

use std::collections::BTreeMap;

use anyhow::Result;
use bitmesh_core::fleet::EdgeNumber;
use tracing::{info, warn};

use super::Session;
use crate::store::{EdgeRow, StoreError, is_passing};

/// Accounts that one step takes at most.
const AT_ONCE_MAX: u32 = 1_024;
/// At least: each time a step has failed the next is half as large.
const AT_ONCE_MIN: u32 = 16;

/// Edges that were fenced, whose accounts come here step by step.
pub(super) struct Seizing {
    /// The epoch of each since it was fenced.
    from: BTreeMap<EdgeNumber, i64>,
    at_once: u32,
}

impl Default for Seizing {
    fn default() -> Self {
        Self { from: BTreeMap::new(), at_once: AT_ONCE_MAX }
    }
}

impl Seizing {
    pub(super) fn is_empty(&self) -> bool {
        self.from.is_empty()
    }
}

/// Nothing, where it may go well when it is done again.
fn unless_passing<T>(done: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_passing(&error) => {
            warn!("a step of a takeover is done again: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Session<'_> {
    /// Edges that were silent for longer than they may grant are fenced.
    pub(super) async fn fence(&mut self, over: Vec<EdgeRow>) -> Result<()> {
        for row in over {
            let fenced = unless_passing(self.foundation.store.fence(&row).await)?;
            let Some(fleet) = self.fleet.as_mut().filter(|_| fenced != Some(false)) else {
                continue;
            };
            // It may have happened all the same: if not, the steps find that out.
            let epoch = row.epoch.saturating_add(1);
            fleet.seizing.from.insert(row.number, epoch);
            if fenced.is_some() && fleet.fenced.insert(row.number, (epoch, row.beat)).is_none() {
                warn!(
                    "edge {} gave no sign of life for longer than {} ms: its accounts come here",
                    row.name, row.hold_ms
                );
            }
        }
        Ok(())
    }

    /// Takes some accounts of one of them.
    pub(super) async fn seize(&mut self) -> Result<()> {
        let Some(seizing) = self.fleet.as_mut().map(|fleet| &mut fleet.seizing) else {
            return Ok(());
        };
        let Some((edge, epoch)) = seizing.from.first_key_value() else { return Ok(()) };
        let (edge, at_once) = (*edge, seizing.at_once);
        let taken = self.foundation.store.seize(edge, *epoch, at_once).await;
        let Some(taken) = unless_passing(taken)? else {
            seizing.at_once = (at_once / 2).max(AT_ONCE_MIN);
            return Ok(());
        };
        if taken > 0 {
            info!("{taken} accounts of edge {edge} are on their way here");
        }
        if taken < u64::from(at_once) {
            seizing.from.remove(&edge);
        }
        seizing.at_once = (at_once * 2).min(AT_ONCE_MAX);
        Ok(())
    }
}
