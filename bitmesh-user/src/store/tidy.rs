//! Folds the oldest rows of the journal into one row a channel, a bounded step at a time.

use std::collections::HashMap;

use bitmesh_core::channel::{ChannelId, Compact};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Store, StoreError,
    engine::{ChannelRow, JournalRow, Write},
    journal::{Digest, Tail, seal},
    load::{damaged, decode, missing, unfold},
};

/// Rows of the journal that are never folded: the newest. To fold a payment costs more than to write it, and the
/// longer it waits, the more of the same channel are folded with it.
const ROWS_KEPT: u64 = 32_768;
/// Rows that a step folds at most: each can be of another channel, whose page is written anew.
const ROWS_PER_STEP: i64 = 512;

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Rows of the journal that were folded.
    pub folded: usize,
    /// Channels that were forgotten.
    pub forgotten: usize,
    /// Rows that wait to be folded.
    pub left: u64,
}

/// A channel's journal while it is folded.
struct Folding<E> {
    tail: Tail,
    events: Vec<(i64, E)>,
}

impl<E: Compact> Folding<E> {
    fn add(&mut self, seq: i64, event: E) {
        let left = match self.events.last_mut() {
            Some((last, before)) => {
                let left = before.absorb(event);
                if left.is_none() {
                    *last = seq;
                }
                left
            }
            None => Some(event),
        };
        self.events.extend(left.map(|event| (seq, event)));
    }
}

impl Store {
    /// Folds the oldest rows of the journal, where it is long enough, and forgets channels that
    /// `may_forget` allows, if nothing of theirs is needed to know the next key. What is loaded
    /// after comes to the same.
    ///
    /// # Panics
    /// When what is there was not loaded.
    pub async fn tidy<E>(
        &mut self,
        may_forget: impl Fn(&ChannelId) -> bool,
    ) -> Result<Tidied, StoreError>
    where
        E: Serialize + DeserializeOwned + Compact,
    {
        self.tidy_beyond::<E>(ROWS_KEPT, may_forget).await
    }

    pub(super) async fn tidy_beyond<E>(
        &mut self,
        kept: u64,
        may_forget: impl Fn(&ChannelId) -> bool,
    ) -> Result<Tidied, StoreError>
    where
        E: Serialize + DeserializeOwned + Compact,
    {
        assert!(self.loaded, "a ledger is loaded before it is written");
        let spare = self.known.journal_rows.saturating_sub(kept);
        let step = ROWS_PER_STEP.min(i64::try_from(spare).unwrap_or(i64::MAX));
        if step == 0 {
            return Ok(Tidied::default());
        }
        let rows = self.engine.journal(0, step).await?;
        let Some(last) = rows.last() else { return Ok(Tidied::default()) };
        let folded_to = Some(last.seq);
        let mut channels: Vec<_> = rows.iter().map(|row| row.channel).collect();
        channels.sort_unstable();
        channels.dedup();
        let before = self.engine.folded(&channels).await?;
        let foldings = fold::<E>(&rows, &before).map_err(|what| self.damaged(what))?;
        let mut write = Write { folded_to, ..Write::default() };
        for channel in channels {
            let Some(folding) = foldings.get(&channel) else { continue };
            if self.is_forgettable(&channel, folding, &may_forget) {
                write.forgotten.push(channel);
            } else {
                write.folded.push(row(channel, folding)?);
            }
        }
        let forgotten = write.forgotten.len();
        let (write, changes) = self.known.folding(write, rows.len());
        self.write(&write, changes).await?;
        let left = self.known.journal_rows.saturating_sub(kept);
        Ok(Tidied { folded: rows.len(), forgotten, left })
    }

    fn is_forgettable<E: Compact>(
        &self,
        channel: &Digest,
        folding: &Folding<E>,
        may_forget: impl Fn(&ChannelId) -> bool,
    ) -> bool {
        let index = folding.events.first().and_then(|(_, event)| event.key_index());
        let whole = self.known.tails.get(channel) == Some(&folding.tail);
        whole
            && index.is_some_and(|index| self.known.key_is_behind(index))
            && may_forget(&ChannelId::from_bytes(*channel))
    }

    pub(super) fn damaged(&self, what: String) -> StoreError {
        damaged(self.engine.as_ref(), what)
    }
}

/// Follows rows of the journal from what was folded before.
fn fold<E: DeserializeOwned + Compact>(
    rows: &[JournalRow],
    before: &[ChannelRow],
) -> Result<HashMap<Digest, Folding<E>>, String> {
    let mut foldings = HashMap::new();
    for row in before {
        let n = u32::try_from(row.n).map_err(|_| "a number of events".to_owned())?;
        let tail = Tail { n, digest: row.digest };
        foldings.insert(row.channel, Folding { tail, events: unfold(row)? });
    }
    for row in rows {
        let folding = foldings
            .entry(row.channel)
            .or_insert_with(|| Folding { tail: Tail::start(&row.channel), events: Vec::new() });
        if i64::from(folding.tail.n) != row.n {
            return Err(missing(row, folding.tail.n));
        }
        folding.add(row.seq, decode(row, &folding.tail.digest)?);
        folding.tail = Tail { n: folding.tail.n.saturating_add(1), digest: row.digest };
    }
    Ok(foldings)
}

fn row<E: Serialize>(channel: Digest, folding: &Folding<E>) -> Result<ChannelRow, StoreError> {
    let body = serde_json::to_string(&folding.events).map_err(StoreError::Encode)?;
    let Tail { n, digest } = folding.tail;
    let mut row = ChannelRow { channel, n: n.into(), body, digest, seal: Digest::default() };
    row.seal = seal(&row);
    Ok(row)
}
