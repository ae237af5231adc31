//! Taking over the accounts of edges that are silent, some with each sign of life, so that the loop goes on
//! between. What fails and may pass is done again with the next one.

use std::collections::BTreeMap;

use anyhow::Result;
use bitmesh_core::fleet::EdgeNumber;
use tracing::{info, warn};

use super::{Session, fleet::Fleet};
use crate::store::{EdgeRow, StoreError, is_passing};

/// Accounts that one step takes at most.
const AT_ONCE_MAX: u32 = 1_024;
/// At least: each time a step has failed the next is half as large.
const AT_ONCE_MIN: u32 = 16;

/// Edges that were fenced, whose accounts come here step by step.
pub(super) struct Seizing {
    /// Each as it is since.
    from: BTreeMap<EdgeNumber, EdgeRow>,
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

impl Fleet {
    /// An edge was taken over: that is told once.
    fn note_fenced(&mut self, row: &EdgeRow) {
        if self.fenced.insert(row.number, (row.epoch, row.beat)).is_none() {
            warn!(
                "edge {} gave no sign of life for longer than {} ms: its accounts come here",
                row.name, row.hold_ms
            );
        }
    }
}

impl Session<'_> {
    /// Fences edges that were silent for longer than they may grant, and takes some accounts of one of them.
    /// After a failure nothing more is tried before the next sign of life: its time is needed for that.
    pub(super) async fn take_over(&mut self, over: Vec<EdgeRow>) -> Result<()> {
        for mut row in over {
            let fenced = unless_passing(self.foundation.store.fence(&row).await)?;
            let Some(fleet) = self.fleet.as_mut().filter(|_| fenced != Some(false)) else {
                continue;
            };
            row.epoch = row.epoch.saturating_add(1);
            if fenced.is_some() {
                fleet.note_fenced(&row);
            }
            // It may have happened all the same: if not, the steps find that out.
            fleet.seizing.from.insert(row.number, row);
            if fenced.is_none() {
                return Ok(());
            }
        }
        self.seize().await
    }

    async fn seize(&mut self) -> Result<()> {
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        let at_once = fleet.seizing.at_once;
        let Some((number, edge)) = fleet.seizing.from.pop_first() else { return Ok(()) };
        let taken = unless_passing(self.foundation.store.seize(&edge, at_once).await)?;
        if taken.is_some_and(|taken| taken > 0) {
            fleet.note_fenced(&edge);
            info!("{} accounts of edge {} are on their way here", taken.unwrap_or(0), edge.name);
        }
        let seizing = &mut fleet.seizing;
        seizing.at_once = match taken {
            Some(_) => (at_once * 2).min(AT_ONCE_MAX),
            None => (at_once / 2).max(AT_ONCE_MIN),
        };
        if taken.is_none_or(|taken| taken >= u64::from(at_once)) {
            seizing.from.insert(number, edge);
        }
        Ok(())
    }
}
