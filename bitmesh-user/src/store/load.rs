//! Reads everything back, and checks that nothing is missing, changed or too much.

use std::mem;

use bitcoin::{BlockHash, hashes::Hash as _};
use bitmesh_common::StationKey;
use bitmesh_core::{
    bitcoin,
    channel::{ChannelId, Compact, Entry},
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::{
    StoreError,
    engine::{ChannelRow, Engine, JournalRow, UsageRow},
    journal::{Digest, Sum, Tail, link, seal, usage_digest, wallet_digest},
    known::Known,
};

/// Rows that are read, checked and decoded at once.
const PAGE: i64 = 4_096;

/// A channel's events as they were decoded, each with its place in the order of all.
type Events<E> = Vec<(i64, Entry<E>)>;
/// Pages that are being decoded.
type Pages<E> = Vec<JoinHandle<Result<Events<E>, String>>>;

/// Everything that is stored, in order: channels' events, then blocks, then usage. What is known of
/// it is put into `known`.
pub(super) async fn load<E>(
    engine: &mut dyn Engine,
    known: &mut Known,
) -> Result<Vec<Entry<E>>, StoreError>
where
    E: DeserializeOwned + Compact + Send + 'static,
{
    let mark = engine.mark().await?;
    let mut all = Known { mark, ..Known::default() };
    all.settings = engine.settings().await?.into_iter().collect();
    let mut pages: Pages<E> = Vec::new();
    read_channels(engine, &mut all, &mut pages).await?;
    read_journal(engine, &mut all, &mut pages).await?;
    let mut decoded = Vec::with_capacity(pages.len());
    for page in pages {
        let page = page.await.map_err(|error| error.to_string()).and_then(|page| page);
        decoded.push(page.map_err(|what| damaged(engine, what))?);
    }
    let mut entries = in_order(decoded);
    for entry in &entries {
        if let Entry::Channel { event, .. } = entry
            && let Some(index) = event.key_index()
        {
            all.key_taken(index);
        }
    }
    for (height, hash) in engine.blocks().await? {
        all.blocks.insert(height, hash);
        let number = u32::try_from(height);
        let height = number.map_err(|_| damaged(engine, format!("a height of {height}")))?;
        entries.push(Entry::Block { height, hash: BlockHash::from_byte_array(hash) });
    }
    for row in engine.usage().await? {
        all.usage.insert(row[0], usage_digest(&row));
        entries.push(usage(&row).ok_or_else(|| damaged(engine, "a station".into()))?);
    }
    for (number, body) in engine.wallet().await? {
        let (next, sum) = &mut all.wallet;
        if number != *next {
            return Err(damaged(engine, format!("change {next} of the wallet is missing")));
        }
        *next += 1;
        sum.toggle(&wallet_digest(number, &body));
    }
    if !engine.sums() {
        all.mark.sum = all.sum().0;
    } else if all.sum() != Sum(mark.sum) {
        let what = "rows are missing, old or changed: what is there is not what was written last";
        return Err(damaged(engine, what.into()));
    }
    *known = all;
    Ok(entries)
}

/// The events of all pages in the order of all. Each is moved once: they are large.
fn in_order<E>(mut pages: Vec<Events<E>>) -> Vec<Entry<E>> {
    let mut order: Vec<_> = (0usize..)
        .zip(&pages)
        .flat_map(|(page, events)| (0usize..).zip(events).map(move |(at, of)| (of.0, page, at)))
        .collect();
    order.sort_unstable();
    let taken = order.into_iter().filter_map(|(_, page, at)| {
        let (_, entry) = pages.get_mut(page)?.get_mut(at)?;
        Some(mem::replace(entry, Entry::BlockGone { height: 0 }))
    });
    taken.collect()
}

pub(super) fn damaged(engine: &dyn Engine, what: String) -> StoreError {
    StoreError::Damaged { place: engine.place().to_owned(), what }
}

async fn read_channels<E>(
    engine: &mut dyn Engine,
    all: &mut Known,
    pages: &mut Pages<E>,
) -> Result<(), StoreError>
where
    E: DeserializeOwned + Send + 'static,
{
    let mut after = None;
    loop {
        let rows = engine.channels(after, PAGE).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Some(last.channel);
        for row in &rows {
            let n = u32::try_from(row.n);
            let n = n.map_err(|_| damaged(engine, "a number of events".into()))?;
            all.tails.insert(row.channel, Tail { n, digest: row.digest });
        }
        pages.push(tokio::task::spawn_blocking(move || decode_channels(&rows)));
    }
}

fn decode_channels<E: DeserializeOwned>(rows: &[ChannelRow]) -> Result<Events<E>, String> {
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        let channel = ChannelId::from_bytes(row.channel);
        for (seq, event) in unfold(row)? {
            events.push((seq, Entry::Channel { channel, event }));
        }
    }
    Ok(events)
}

/// The events of a folded journal.
pub(super) fn unfold<E: DeserializeOwned>(row: &ChannelRow) -> Result<Vec<(i64, E)>, String> {
    if row.seal != seal(row) {
        let channel = ChannelId::from_bytes(row.channel);
        return Err(format!("the folded journal of channel {channel} was changed"));
    }
    serde_json::from_str(&row.body).map_err(|error| error.to_string())
}

async fn read_journal<E>(
    engine: &mut dyn Engine,
    all: &mut Known,
    pages: &mut Pages<E>,
) -> Result<(), StoreError>
where
    E: DeserializeOwned + Send + 'static,
{
    let mut after = 0;
    loop {
        let rows = engine.journal(after, PAGE).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = last.seq;
        all.journal_rows = all.journal_rows.saturating_add(rows.len() as u64);
        let mut befores = Vec::with_capacity(rows.len());
        for row in &rows {
            let tail = all.tails.entry(row.channel).or_insert_with(|| Tail::start(&row.channel));
            if i64::from(tail.n) != row.n {
                let what = missing(row, tail.n);
                return Err(damaged(engine, what));
            }
            befores.push(tail.digest);
            // Checked while it is decoded.
            *tail = Tail { n: tail.n.saturating_add(1), digest: row.digest };
        }
        pages.push(tokio::task::spawn_blocking(move || decode_journal(&rows, &befores)));
    }
}

/// What it means that a row is not the next of its channel.
pub(super) fn missing(row: &JournalRow, next: u32) -> String {
    let channel = ChannelId::from_bytes(row.channel);
    format!("event {next} of channel {channel} is missing: row {} has event {}", row.seq, row.n)
}

fn decode_journal<E: DeserializeOwned>(
    rows: &[JournalRow],
    befores: &[Digest],
) -> Result<Events<E>, String> {
    let mut events = Vec::with_capacity(rows.len());
    for (row, before) in rows.iter().zip(befores) {
        events.push((
            row.seq,
            Entry::Channel {
                channel: ChannelId::from_bytes(row.channel),
                event: decode(row, before)?,
            },
        ));
    }
    Ok(events)
}

/// The event in a row that follows one of the digest `before`.
pub(super) fn decode<E: DeserializeOwned>(row: &JournalRow, before: &Digest) -> Result<E, String> {
    if link(before, row.body.as_bytes()) != row.digest {
        return Err(format!("row {} of the journal was changed", row.seq));
    }
    serde_json::from_str(&row.body).map_err(|error| error.to_string())
}

/// A station's usage; `None` where the key is none.
pub(super) fn usage<E>(row: &UsageRow) -> Option<Entry<E>> {
    let [station, up @ .., _, _, _, _] = row.map(i64::cast_unsigned);
    let [_, _, _, _, _, down @ ..] = row.map(i64::cast_unsigned);
    let counts = |[octets, frames, refused_octets, refused_frames]: [u64; 4]| Counts {
        octets: Octets(octets),
        frames,
        refused_octets: Octets(refused_octets),
        refused_frames,
    };
    let station = StationKey::from_raw(station).map(Station::from)?;
    Some(Entry::Usage { station, usage: Usage { up: counts(up), down: counts(down) } })
}
