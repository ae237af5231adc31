//! What it costs to fold the journal while payments come in at a fixed rate: the fewer of them are on
//! the same channel, the more. Where nothing but payments comes they are written over each other, and nothing is
//! ever folded; so channels are opened meanwhile, as many as the API lets in.

use std::{
    cell::RefCell,
    mem,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Amount, Network,
    secp256k1::{Secp256k1, ecdsa::Signature},
};
use bitmesh_core::channel::{ChannelId, Entry, ProviderEvent};
use bitmesh_user::{
    bench::{Better, Contender, Group, Measure, Series, grouped},
    store::{Place, Store, StoreRole, TIDY_INTERVAL_IDLE},
};
use tempfile::TempDir;

use super::{
    Volume,
    fixture::{Event, accounts},
    ledger::{HEIGHT, WRITTEN_AT_ONCE, directory},
};
use crate::plan::go_on;

/// Payments a second.
const RATE: u32 = 10_000;
/// Payments of a batch.
const BATCH: u32 = 100;
/// Batches to one that a channel is opened with: 50 a second.
const OPENED_EVERY: u32 = 2;
/// Most of the rate that may be missing before it is no such rate.
const BEHIND: Duration = Duration::from_secs(1);
const CHANNELS: [u32; 4] = [100, 1_000, 10_000, 100_000];
/// Contenders.
pub const CONTENDERS: usize = CHANNELS.len();

/// A store that payments are put into. It does not know what they mean: one signature serves all.
struct Paid {
    store: Store,
    runtime: tokio::runtime::Runtime,
    channels: Vec<ChannelId>,
    signature: Signature,
    payments: u32,
    /// The channel that is opened next.
    opening: Vec<Event>,
    opened: u32,
    /// What each round found, beside its figure.
    writing_micros: Vec<f64>,
    rows_most: Vec<f64>,
    _directory: TempDir,
}

impl Paid {
    /// So many channels, folded as far as they are, and then paid on until the folding of payments
    /// has begun.
    fn new(count: u32) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (directory, secp) = (directory()?, Secp256k1::new());
        let place = Place::file(directory.path());
        let mut store = runtime.block_on(async {
            let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await?;
            store.load::<ProviderEvent>().await?;
            anyhow::Ok(store)
        })?;
        let (mut channels, mut signature) = (Vec::new(), None);
        for first in (0..count).step_by(WRITTEN_AT_ONCE.try_into()?) {
            let mut entries = Vec::new();
            for account in accounts(first..count.min(first + WRITTEN_AT_ONCE), HEIGHT)? {
                entries.extend(account.journal(&secp, HEIGHT, 0)?);
                channels.push(account.channel);
                if signature.is_none() {
                    signature = Some(account.pay(&secp, 1)?.signature);
                }
            }
            runtime.block_on(store.commit(&entries, None))?;
        }
        let signature = signature.context("no channels")?;
        let (writing_micros, rows_most) = (Vec::new(), Vec::new());
        let mut paid = Self {
            store,
            runtime,
            channels,
            signature,
            payments: 0,
            opening: Vec::new(),
            opened: count,
            writing_micros,
            rows_most,
            _directory: directory,
        };
        while paid.fold()? < TIDY_INTERVAL_IDLE {
            go_on()?;
        }
        loop {
            let rows = paid.store.journal_rows();
            paid.fold()?;
            if paid.store.journal_rows() < rows {
                return Ok(paid);
            }
            go_on()?;
            paid.prepare()?;
            paid.write()?;
        }
    }

    fn fold(&mut self) -> Result<Duration> {
        Ok(self.runtime.block_on(self.store.tidy::<ProviderEvent>(|_| false))?)
    }

    /// Makes what takes time and is no part of writing.
    fn prepare(&mut self) -> Result<()> {
        if self.opening.is_empty() {
            let next = accounts(self.opened..self.opened + 1, HEIGHT)?;
            let next = next.first().context("an account")?;
            self.opening = next.journal(&Secp256k1::new(), HEIGHT, 0)?;
            self.opening.truncate(1);
            self.opened += 1;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let count = u32::try_from(self.channels.len())?;
        let event = |number: u32| {
            let channel = *self.channels.get(usize::try_from(number % count).ok()?)?;
            let paid = Amount::from_sat(u64::from(number / count) + 1);
            let event = ProviderEvent::Paid { paid, signature: self.signature, earlier: 0 };
            Some(Entry::Channel { channel, event })
        };
        let opens = (self.payments / BATCH).is_multiple_of(OPENED_EVERY);
        let mut entries = if opens { mem::take(&mut self.opening) } else { Vec::new() };
        entries.extend((self.payments..self.payments + BATCH).filter_map(event));
        self.runtime.block_on(self.store.commit(&entries, None))?;
        self.payments += BATCH;
        Ok(())
    }

    /// Pays for so long, and folds as the daemon does: microseconds of folding for each payment.
    fn round(&mut self, time: Duration) -> Result<f64> {
        go_on()?;
        let (before, started) = (self.payments, Instant::now());
        let (mut writing, mut folding) = (Duration::ZERO, Duration::ZERO);
        let (mut look, mut most) = (started, 0);
        while started.elapsed() < time {
            self.prepare()?;
            let due = started + Duration::from_secs(1) * (self.payments - before) / RATE;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let since = Instant::now();
            self.write()?;
            writing += since.elapsed();
            most = most.max(self.store.journal_rows());
            if look <= Instant::now() {
                let since = Instant::now();
                let pause = self.fold()?;
                folding += since.elapsed();
                look = Instant::now() + pause;
            }
        }
        let paid = self.payments - before;
        let behind = started.elapsed().saturating_sub(Duration::from_secs(1) * paid / RATE);
        ensure!(behind < BEHIND, "{behind:?} behind after {time:?}: this machine is too slow");
        self.writing_micros.push(writing.as_secs_f64() * 1e6 / f64::from(paid));
        self.rows_most.push(f64::from(u32::try_from(most)?));
        Ok(folding.as_secs_f64() * 1e6 / f64::from(paid))
    }
}

fn name(channels: u32) -> String {
    format!("{} channels", grouped(channels.into()))
}

/// Folding by how many channels are paid on, in turn, and what it takes beside writing.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let made = CHANNELS.iter().map(|count| anyhow::Ok((*count, RefCell::new(Paid::new(*count)?))));
    let made = made.collect::<Result<Vec<_>>>()?;
    let contenders = made.iter().map(|(count, paid)| {
        Contender::new(name(*count), || paid.borrow_mut().round(volume.paced))
    });
    let contenders = contenders.collect();
    let unit = ("us/payment", Better::Lower);
    let title = "folding at 10,000 payments/s and 50 openings/s";
    let folding = Group::race(title, unit, volume.rounds, contenders, before)?;
    let beside = |title: &str, unit, rounds: fn(&Paid) -> &Vec<f64>| {
        let series = made.iter().map(|(count, paid)| Series {
            name: name(*count),
            rounds: rounds(&paid.borrow()).clone(),
        });
        let (title, series) = (title.to_owned(), series.collect());
        Group { title, unit, better: Better::Lower, series, missing: Vec::new() }
    };
    let writing =
        beside("writing beside that, 100 at once", unit.0, |paid: &Paid| &paid.writing_micros);
    let rows = beside("rows that are not folded meanwhile", "rows", |paid: &Paid| &paid.rows_most);
    let all = |group: Group| {
        let measures = CHANNELS.iter().map(|count| group.alone(&name(*count), None)).collect();
        (group, measures)
    };
    Ok([folding, writing, rows].map(all).into())
}
