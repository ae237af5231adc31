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
    /// Where it failed last: others come first, since a row may be locked for long.
    failed: Option<EdgeNumber>,
}

impl Default for Seizing {
    fn default() -> Self {
        Self { from: BTreeMap::new(), at_once: AT_ONCE_MAX, failed: None }
    }
}

impl Seizing {
    pub(super) fn is_empty(&self) -> bool {
        self.from.is_empty()
    }

    /// Whether it was tried before to fence this edge.
    fn has_tried(&self, number: EdgeNumber) -> bool {
        self.from.contains_key(&number) || self.failed == Some(number)
    }

    /// Those behind the one that failed come first, then it and those before.
    fn next(&mut self) -> Option<(EdgeNumber, EdgeRow)> {
        let number = self.from.keys().copied().min_by_key(|number| Some(*number) <= self.failed)?;
        self.from.remove_entry(&number)
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
    /// After a failure nothing more is tried before the next sign of life: its time is needed for that. What
    /// failed before comes last, so that it keeps nothing else waiting.
    pub(super) async fn take_over(&mut self, over: Vec<EdgeRow>) -> Result<()> {
        let Some(fleet) = &self.fleet else { return Ok(()) };
        let tried = |row: &EdgeRow| fleet.seizing.has_tried(row.number);
        let (again, new): (Vec<_>, Vec<_>) = over.into_iter().partition(tried);
        if self.fence(new).await? && self.seize().await? {
            self.fence(again).await?;
        }
        Ok(())
    }

    /// Whether nothing failed.
    async fn fence(&mut self, over: Vec<EdgeRow>) -> Result<bool> {
        for mut row in over {
            let fenced = unless_passing(self.foundation.store.fence(&row).await)?;
            let Some(fleet) = self.fleet.as_mut().filter(|_| fenced != Some(false)) else {
                continue;
            };
            row.epoch = row.epoch.saturating_add(1);
            if fenced.is_some() {
                fleet.note_fenced(&row);
            } else {
                fleet.seizing.failed = Some(row.number);
            }
            // It may have happened all the same: if not, the steps find that out.
            fleet.seizing.from.insert(row.number, row);
            if fenced.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether nothing failed.
    async fn seize(&mut self) -> Result<bool> {
        let Some(fleet) = &mut self.fleet else { return Ok(true) };
        let at_once = fleet.seizing.at_once;
        let Some((number, edge)) = fleet.seizing.next() else { return Ok(true) };
        let taken = unless_passing(self.foundation.store.seize(&edge, at_once).await)?;
        if taken.is_some_and(|taken| taken > 0) {
            fleet.note_fenced(&edge);
            info!("{} accounts of edge {} are on their way here", taken.unwrap_or(0), edge.name);
        }
        let seizing = &mut fleet.seizing;
        if taken.is_some() {
            seizing.at_once = (at_once * 2).min(AT_ONCE_MAX);
        } else {
            seizing.at_once = (at_once / 2).max(AT_ONCE_MIN);
            seizing.failed = Some(number);
        }
        if taken.is_none_or(|taken| taken >= u64::from(at_once)) {
            seizing.from.insert(number, edge);
        }
        Ok(taken.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_others_come_first_and_then_it_again() {
        let edges = [1u16, 4, 7].map(|number| EdgeNumber::try_from(number).unwrap());
        let row =
            |number| EdgeRow { number, name: number.to_string(), epoch: 1, beat: 1, hold_ms: 1 };
        let mut seizing = Seizing::default();
        let mut turns = Vec::new();
        for _ in 0..5 {
            seizing.from = edges.map(|number| (number, row(number))).into();
            let (number, _) = seizing.next().unwrap();
            turns.push(number);
            seizing.failed = Some(number);
        }
        let [first, second, third] = edges;
        assert_eq!(turns, [first, second, third, first, second]);
        assert!(seizing.has_tried(second) && seizing.has_tried(third));
        seizing.from.retain(|number, _| *number == first);
        assert!(
            !seizing.has_tried(third),
            "one that goes silent anew is fenced before others again"
        );
        assert_eq!(seizing.next(), Some((first, row(first))), "there is nobody else");
        assert!(seizing.is_empty() && seizing.next().is_none());
    }
}
