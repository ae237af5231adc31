//! The rows of payments that the next one may take the place of.
//!
//! A payment stands for those right before it, so that only the newest of a channel has to be kept.
//! As long as nothing but payments was written since, the order of all events stays the same when it is
//! written over the one before: nothing has to be folded then.

use std::collections::HashMap;

use bitmesh_core::channel::Tally;

use super::journal::Digest;

/// Rows that are known at most: some 16 MB, where so many channels are paid on.
const ROWS_MAX: usize = 131_072;

/// The last event of a channel's journal, a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Newest {
    /// Where it is.
    pub row: Row,
    /// Of the event before it.
    pub before: Digest,
    pub tally: Tally,
}

/// A row of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// Of this number.
    Stored(i64),
    /// The one at this place of those that are about to be appended.
    Appended(usize),
}

/// Those of one batch, or of all that was written since something else was.
#[derive(Debug, Default)]
pub(super) struct NewestRows(HashMap<Digest, Newest>);

impl NewestRows {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, channel: &Digest) -> Option<&Newest> {
        self.0.get(channel)
    }

    pub(super) fn insert(&mut self, channel: Digest, newest: Newest) {
        self.0.insert(channel, newest);
    }

    /// No row's place may be taken any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The rows of these channels are no longer in the journal.
    pub(super) fn remove<'a>(&mut self, channels: impl IntoIterator<Item = &'a Digest>) {
        for channel in channels {
            self.0.remove(channel);
        }
    }

    /// Those of a batch that is written, whose first row was appended as `first`.
    pub(super) fn extend(&mut self, batch: Self, first: i64) {
        if self.0.len().saturating_add(batch.0.len()) > ROWS_MAX {
            self.0.clear();
        }
        self.0.extend(batch.0.into_iter().map(|(channel, newest)| {
            let row = match newest.row {
                Row::Appended(at) => Row::Stored(first.saturating_add_unsigned(at as u64)),
                stored @ Row::Stored(_) => stored,
            };
            (channel, Newest { row, ..newest })
        }));
    }
}
