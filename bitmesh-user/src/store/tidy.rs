//! Folds the oldest rows of the journal into one row a channel, a bounded step at a time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bitmesh_core::channel::{ChannelId, Compact};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Store, StoreError,
    engine::{ChannelRow, JournalRow, Write},
    journal::{Digest, Tail, seal},
    load::{damaged, decode, missing, unfold},
};

/// Rows of the journal that are never folded: the newest, beside as many as payments may be written over
/// ([`super::newest`]). To fold a payment costs more than to write it, and the longer it waits, the more of
/// the same channel are folded with it.
pub(super) const ROWS_KEPT: u64 = 32_768;
/// Rows that a step folds at least, if there are so many, and at most: payments wait meanwhile. The
/// more there are, the more of the same channel are folded at once.
const ROWS_PER_STEP: (u64, u64) = (512, 4_096);
/// Part of the rows that wait which a step folds.
const STEP_DIVISOR: u64 = 8;
/// How long after a look the next one is due, while rows wait.
pub const TIDY_INTERVAL: Duration = Duration::from_millis(100);
/// The same, while none do.
pub const TIDY_INTERVAL_IDLE: Duration = Duration::from_secs(1);
/// How long after rows were counted they may be counted again: it takes as long as to read them.
const COUNT_PAUSE: Duration = Duration::from_secs(15);
/// Time after which a look begins no further step, for each [`ROWS_KEPT`] that wait, and at most: what
/// comes in faster than it is folded gets more time, until it is not.
const LOOK_TIME: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// Rows that a step folds of `waiting`.
fn step_rows(waiting: u64) -> u64 {
    let (least, most) = ROWS_PER_STEP;
    (waiting / STEP_DIVISOR).clamp(least, most).min(waiting)
}

/// How long a look may take while so many rows wait.
fn look_time(waiting: u64) -> Duration {
    let (each, most) = LOOK_TIME;
    let times = u32::try_from(waiting.div_ceil(ROWS_KEPT)).unwrap_or(u32::MAX);
    each.saturating_mul(times).min(most)
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tidied {
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
    /// Folds the oldest rows of the journal for a short time, where it is long enough, and forgets channels
    /// that `may_forget` allows, if nothing of theirs is needed to know the next key. What is loaded
    /// after comes to the same. How long to wait before the next time.
    ///
    /// # Panics
    /// When what is there was not loaded.
    pub async fn tidy<E>(
        &mut self,
        may_forget: impl Fn(&ChannelId) -> bool,
    ) -> Result<Duration, StoreError>
    where
        E: Serialize + DeserializeOwned + Compact,
    {
        let start = Instant::now();
        loop {
            let kept = ROWS_KEPT.saturating_add(self.known.newest.len() as u64);
            let left = self.tidy_beyond::<E>(kept, &may_forget).await?.left;
            if left == 0 {
                return Ok(TIDY_INTERVAL_IDLE);
            }
            if start.elapsed() >= look_time(left) {
                return Ok(TIDY_INTERVAL);
            }
        }
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
        let mut waiting = self.known.journal_rows.saturating_sub(kept);
        let counts = self.known.counted.is_none_or(|at| at.elapsed() >= COUNT_PAUSE);
        if waiting > 0 && self.known.accounts_moved && counts {
            // Their rows went with them.
            self.known.journal_rows = self.database()?.journal_rows().await?;
            (self.known.accounts_moved, self.known.counted) = (false, Some(Instant::now()));
            waiting = self.known.journal_rows.saturating_sub(kept);
        }
        if waiting == 0 {
            return Ok(Tidied::default());
        }
        let step = i64::try_from(step_rows(waiting)).unwrap_or(i64::MAX);
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
