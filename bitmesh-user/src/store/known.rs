//! What a store knows of its rows without reading them: enough to write the next ones.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io,
    time::Instant,
};

use bitcoin::hashes::Hash as _;
use bitmesh_core::{
    account::AccountId,
    bitcoin,
    channel::{Compact, Entry, TIPS_KEPT},
    fleet::{FleetEntry, Member},
    ledger::Usage,
    station::Station,
};
use serde::Serialize;

use super::{
    StoreError,
    engine::{BlockChange, Mark, NewEvent, Replaced, UsageRow, Write},
    journal::{Digest, Sum, Tail, block_digest, setting_digest, usage_digest, wallet_digest},
    newest::{Newest, NewestRows, Row},
    postgres::FleetChange,
};

/// The end of each channel's journal.
pub(super) type Tails = HashMap<Digest, Tail>;

/// What is stored.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) mark: Mark,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) tails: Tails,
    /// Rows of the journal, which were not folded; others than there are, once accounts have moved.
    pub(super) journal_rows: u64,
    /// Whether accounts have moved since the rows were counted, and when that was.
    pub(super) accounts_moved: bool,
    pub(super) counted: Option<Instant>,
    /// Digest of each station's usage.
    pub(super) usage: HashMap<i64, Digest>,
    pub(super) blocks: BTreeMap<i64, Digest>,
    /// How many changes of the wallet there are, and the sum of their digests.
    pub(super) wallet: (i64, Sum),
    /// The highest key index that a channel took, by edge.
    pub(super) key_indexes: BTreeMap<u32, u32>,
    /// Payments that nothing but payments was written after.
    pub(super) newest: NewestRows,
}

/// What is different once a write is durable.
#[derive(Debug, Default)]
pub(super) struct Changes {
    mark: Mark,
    settings: Option<BTreeMap<String, String>>,
    tails: Tails,
    /// Rows that the journal grows by, and that it loses.
    appended: u64,
    folded: u64,
    folded_channels: Vec<Digest>,
    forgotten: Vec<Digest>,
    usage: HashMap<i64, Digest>,
    blocks: Option<BTreeMap<i64, Digest>>,
    wallet: Option<(i64, Sum)>,
    key_indexes: Vec<u32>,
    newest: NewestRows,
    /// Something else than payments was written.
    other: bool,
    accounts_moved: bool,
}

impl Changes {
    /// Something else than a payment is written: what comes later stays behind it.
    fn is_other(&mut self) {
        self.other = true;
        self.newest.clear();
    }
}

/// Bits of a key index below the edge's number.
const EDGE_SHIFT: u32 = 20;

impl Known {
    /// The sum over all that is known.
    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for tail in self.tails.values() {
            sum.toggle_tail(tail);
        }
        for digest in self.usage.values() {
            sum.toggle(digest);
        }
        for (height, hash) in &self.blocks {
            sum.toggle(&block_digest(*height, hash));
        }
        for (name, value) in &self.settings {
            sum.toggle(&setting_digest(name, value));
        }
        sum.toggle(&self.wallet.1.0);
        sum
    }

    /// Notes that a channel took a key.
    pub(super) fn key_taken(&mut self, index: u32) {
        let highest = self.key_indexes.entry(index >> EDGE_SHIFT).or_default();
        *highest = (*highest).max(index);
    }

    /// Whether another channel took a later key, so that this one is not needed to know the next.
    pub(super) fn key_is_behind(&self, index: u32) -> bool {
        self.key_indexes.get(&(index >> EDGE_SHIFT)).is_some_and(|highest| index < *highest)
    }

    fn start(&self) -> (Write, Changes, Sum) {
        (Write::default(), Changes::default(), Sum(self.mark.sum))
    }

    fn finish(&self, write: &mut Write, changes: &mut Changes, sum: Sum) {
        write.mark = Mark { committed: self.mark.committed.saturating_add(1), sum: sum.0 };
        changes.mark = write.mark;
    }

    /// A batch, and what the wallet has to remember.
    pub(super) fn batch<E: Serialize + Compact>(
        &self,
        entries: &[Entry<E>],
        wallet: Option<&str>,
    ) -> Result<(Write, Changes), StoreError> {
        let (mut write, mut changes, mut sum) = self.start();
        let mut bodies = Vec::new();
        let mut usage = BTreeMap::new();
        for (channel, mut event) in dense(entries) {
            let last = changes.tails.get(&channel).or_else(|| self.tails.get(&channel));
            let last = last.copied().unwrap_or_else(|| Tail::start(&channel));
            let replaced = self.newest(&changes, &channel).and_then(|(seq, newest)| {
                let n = last.n.checked_sub(1)?;
                let stands = event.to_mut().stand_for(newest.tally);
                stands.then_some((seq, Tail { n, digest: newest.before }))
            });
            let from = bodies.len();
            serde_json::to_writer(&mut bodies, event.as_ref()).map_err(StoreError::Encode)?;
            let before = replaced.map_or(last, |(_, before)| before);
            let body = bodies.get(from..).unwrap_or_default();
            let tail = before.after(body).ok_or_else(too_many)?;
            sum.toggle_tail(&last);
            sum.toggle_tail(&tail);
            changes.tails.insert(channel, tail);
            changes.key_indexes.extend(event.key_index());
            let (n, body) = (i64::from(before.n), from..bodies.len());
            let stored = NewEvent { channel, n, body, digest: tail.digest };
            let row = if let Some((seq, _)) = replaced {
                write.replaced.push(Replaced { seq, event: stored });
                Row::Stored(seq)
            } else {
                write.journal.push(stored);
                Row::Appended(write.journal.len() - 1)
            };
            match event.tally() {
                Some(tally) => {
                    let newest = Newest { row, before: before.digest, tally };
                    changes.newest.insert(channel, newest);
                }
                None => changes.is_other(),
            }
        }
        for entry in entries {
            match entry {
                Entry::Channel { .. } => {}
                Entry::Block { height, hash } => {
                    let (height, hash) = (i64::from(*height), hash.to_byte_array());
                    let forgotten = height - i64::from(TIPS_KEPT);
                    write.blocks.push(BlockChange::Connected(height, hash, forgotten));
                }
                Entry::BlockGone { height } => {
                    write.blocks.push(BlockChange::Gone((*height).into()));
                }
                Entry::Usage { station, usage: newest } => {
                    let row = usage_row(*station, newest);
                    usage.insert(row[0], row);
                }
                Entry::Fleet(entry) => {
                    changes.is_other();
                    fleet_change(entry, &mut write, &mut changes);
                }
            }
        }
        changes.appended = write.journal.len() as u64;
        write.bodies = String::from_utf8(bodies)
            .map_err(|error| StoreError::Encode(serde_json::Error::io(io::Error::other(error))))?;
        for (station, row) in usage {
            let digest = usage_digest(&row);
            if let Some(before) = self.usage.get(&station) {
                sum.toggle(before);
            }
            sum.toggle(&digest);
            changes.usage.insert(station, digest);
            write.usage.push(row);
        }
        if !write.blocks.is_empty() {
            changes.blocks = Some(self.blocks_after(&write.blocks, &mut sum));
        }
        if let Some(body) = wallet {
            let (number, mut wallet) = self.wallet;
            let digest = wallet_digest(number, body);
            sum.toggle(&digest);
            wallet.toggle(&digest);
            changes.wallet = Some((number.saturating_add(1), wallet));
            write.wallet = Some((number, body.to_owned()));
        }
        self.finish(&mut write, &mut changes, sum);
        Ok((write, changes))
    }

    /// The row of a channel's last event, if a payment may take its place: one that was written before.
    /// Of one batch they are together already.
    fn newest(&self, changes: &Changes, channel: &Digest) -> Option<(i64, &Newest)> {
        if changes.other || changes.newest.get(channel).is_some() {
            return None;
        }
        let newest = self.newest.get(channel)?;
        match newest.row {
            Row::Stored(seq) => Some((seq, newest)),
            Row::Appended(_) => None,
        }
    }

    fn blocks_after(&self, blocks: &[BlockChange], sum: &mut Sum) -> BTreeMap<i64, Digest> {
        let mut after = self.blocks.clone();
        for change in blocks {
            match *change {
                BlockChange::Connected(height, hash, forgotten) => {
                    after.insert(height, hash);
                    after.retain(|height, _| *height > forgotten);
                }
                BlockChange::Gone(from) => after.retain(|height, _| *height < from),
            }
        }
        for (height, hash) in self.blocks.iter().chain(&after) {
            sum.toggle(&block_digest(*height, hash));
        }
        after
    }

    /// Settings; `None` removes one.
    pub(super) fn set(&self, these: &[(&str, Option<&str>)]) -> (Write, Changes) {
        let (mut write, mut changes, mut sum) = self.start();
        let mut settings = self.settings.clone();
        for (name, value) in these {
            let before = match value {
                Some(value) => settings.insert((*name).to_owned(), (*value).to_owned()),
                None => settings.remove(*name),
            };
            for value in before.iter().chain(settings.get(*name)) {
                sum.toggle(&setting_digest(name, value));
            }
            write.settings.push(((*name).to_owned(), value.map(str::to_owned)));
        }
        changes.settings = Some(settings);
        self.finish(&mut write, &mut changes, sum);
        (write, changes)
    }

    /// Puts one change of the wallet in the place of all.
    pub(super) fn whole_wallet(&self, body: String) -> (Write, Changes) {
        let (mut write, mut changes, mut sum) = self.start();
        let digest = wallet_digest(0, &body);
        sum.toggle(&self.wallet.1.0);
        sum.toggle(&digest);
        changes.wallet = Some((1, Sum(digest)));
        write.wallet = Some((0, body));
        self.finish(&mut write, &mut changes, sum);
        (write, changes)
    }

    /// A write of nothing but what so many rows of the journal say in another way, and of channels
    /// to forget.
    pub(super) fn folding(&self, mut write: Write, rows: usize) -> (Write, Changes) {
        let (_, mut changes, mut sum) = self.start();
        for channel in &write.forgotten {
            if let Some(tail) = self.tails.get(channel) {
                sum.toggle_tail(tail);
            }
        }
        changes.folded = rows as u64;
        changes.folded_channels = write.folded.iter().map(|row| row.channel).collect();
        changes.forgotten.clone_from(&write.forgotten);
        self.finish(&mut write, &mut changes, sum);
        (write, changes)
    }

    /// A write is durable, and its first new row of the journal has that number.
    pub(super) fn accept(&mut self, changes: Changes, first: i64) {
        self.mark = changes.mark;
        if changes.other {
            self.newest.clear();
        }
        self.newest.extend(changes.newest, first);
        self.newest.remove(changes.folded_channels.iter().chain(&changes.forgotten));
        self.tails.extend(changes.tails);
        self.journal_rows =
            self.journal_rows.saturating_add(changes.appended).saturating_sub(changes.folded);
        self.accounts_moved |= changes.accounts_moved;
        for channel in &changes.forgotten {
            self.tails.remove(channel);
        }
        self.usage.extend(changes.usage);
        for index in changes.key_indexes {
            self.key_taken(index);
        }
        if let Some(settings) = changes.settings {
            self.settings = settings;
        }
        if let Some(blocks) = changes.blocks {
            self.blocks = blocks;
        }
        if let Some(wallet) = changes.wallet {
            self.wallet = wallet;
        }
    }
}

/// The events of channels, each with its channel, where those that one can stand for are one: at
/// the place of the last of them.
fn dense<E: Compact>(entries: &[Entry<E>]) -> impl Iterator<Item = (Digest, Cow<'_, E>)> {
    let mut events: Vec<Option<(Digest, Cow<'_, E>)>> = Vec::with_capacity(entries.len());
    let mut newest = HashMap::new();
    for entry in entries {
        let Entry::Channel { channel, event } = entry else { continue };
        let channel = *channel.as_bytes();
        let mut this = Cow::Borrowed(event);
        let before = newest.insert(channel, events.len());
        if let Some(slot) = before.and_then(|at| events.get_mut(at))
            && let Some((_, before)) = slot
        {
            let mut all = before.as_ref().clone();
            if all.absorb(event.clone()).is_none() {
                this = Cow::Owned(all);
                *slot = None;
            }
        }
        events.push(Some((channel, this)));
    }
    events.into_iter().flatten()
}

/// What a fleet's entry changes. A lone edge records none.
fn fleet_change(entry: &FleetEntry, write: &mut Write, changes: &mut Changes) {
    let octets = |account: &AccountId| *account.channel().as_bytes();
    write.fleet.push(match entry {
        FleetEntry::Member { member: Member::Channel(channel), account } => {
            FleetChange::Channel { channel: *channel.as_bytes(), account: octets(account) }
        }
        FleetEntry::Member { member: Member::Station(station), account } => {
            let station = station.key().raw().cast_signed();
            FleetChange::Station { station, account: octets(account) }
        }
        FleetEntry::AccountGone { account, channels } => {
            write.forgotten.extend(channels.iter().map(|channel| *channel.as_bytes()));
            changes.forgotten.clone_from(&write.forgotten);
            changes.accounts_moved = true;
            FleetChange::AccountGone { account: octets(account) }
        }
        FleetEntry::KeyIndex { next } => FleetChange::NextKey((*next).into()),
        FleetEntry::HandOver { account, to, tips } => {
            let tips = tips.iter().map(|(height, hash)| ((*height).into(), hash.to_byte_array()));
            let (to, tips) = (to.get().into(), tips.collect());
            changes.accounts_moved = true;
            FleetChange::HandOver { account: octets(account), to, tips }
        }
        FleetEntry::CaughtUp { account } => {
            changes.accounts_moved = true;
            FleetChange::CaughtUp { account: octets(account) }
        }
        FleetEntry::Settled { late } => FleetChange::Settled {
            edge: late.edge.get().into(),
            epoch: late.epoch.cast_signed(),
            station: late.station.key().raw().cast_signed(),
        },
    });
}

fn too_many() -> StoreError {
    let error = io::Error::other("a channel of more events than can be counted");
    StoreError::Encode(serde_json::Error::io(error))
}

fn usage_row(station: Station, usage: &Usage) -> UsageRow {
    let Usage { up, down } = usage;
    [
        station.key().raw(),
        up.octets.0,
        up.frames,
        up.refused_octets.0,
        up.refused_frames,
        down.octets.0,
        down.frames,
        down.refused_octets.0,
        down.refused_frames,
    ]
    .map(u64::cast_signed)
}
