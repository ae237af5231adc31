//! A provider's state in memory and in a ledger, paid by many: what the daemon's loop does with
//! payments, without a kernel, sockets and HTTP.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bitcoin::{
    BlockHash, Network,
    hashes::Hash as _,
    secp256k1::{All, Message, PublicKey, Secp256k1, ecdsa::Signature},
};
use bitmesh_core::{
    channel::{Batch, ChannelId, Entry, PaymentCheck, ProviderEvent, VerifiedPayment},
    controller::{Action, Controller, Input, RequestId},
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
    wire::PaymentRequest,
};
use bitmesh_tests::{
    postgres::{PASSWORD, Server, USER, here, programs},
    sweep::own_name,
};
use bitmesh_user::{
    bench::{Measure, Missing},
    store::{Fleet, Place, Store, StoreRole, TIDY_INTERVAL_IDLE},
};
use tempfile::TempDir;

use super::fixture::{Account, accounts};
use crate::{plan::go_on, profile};

/// Payments that are stored in one transaction at most, and of those that a thread verifies at once.
const BATCH: usize = 1_024;
const VERIFIED_AT_ONCE: usize = 32;
/// Part of payments that may be overtaken by later ones of the same channel.
const OVERTAKEN: usize = 100;
/// Payments beforehand: more than a store leaves unfolded.
const BEFOREHAND: usize = 40_000;
/// Height of the chain.
pub const HEIGHT: u32 = 200;
/// Accounts that are made, and written in one transaction.
pub const WRITTEN_AT_ONCE: u32 = 1_000;
const DATABASE: &str = "bench";
/// How long credit lasts without a sign of life. Nobody else looks.
const HOLD: Duration = Duration::from_secs(2);

/// Why there can be no ledger in PostgreSQL, if so.
pub fn no_postgres(contender: &str) -> Option<Missing> {
    let why = programs().err()?;
    Some(Missing { name: contender.to_owned(), why: format!("{why:#}") })
}

/// A folder on the disk that is measured.
pub fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix(&own_name("ledger-")).tempdir_in("target")?)
}

/// A payment with what it takes to verify it.
pub struct Signed {
    channel: ChannelId,
    payment: PaymentRequest,
    check: PaymentCheck,
    message: Message,
    key: PublicKey,
}

pub struct Ledger {
    controller: Controller,
    store: Store,
    runtime: tokio::runtime::Runtime,
    directory: TempDir,
    server: Option<Server<'static>>,
    secp: Secp256k1<All>,
    stations: Vec<Station>,
    payers: Vec<Account>,
    /// What each payer has paid.
    sum: u64,
    /// What each station has used.
    used: u64,
    tidy_due: Instant,
}

impl Ledger {
    /// In a file, with so many accounts, of which some pay, spread over all. What is written is
    /// folded.
    pub fn in_file(count: u32, payers: u32) -> Result<Self> {
        let directory = directory()?;
        let place = Place::file(directory.path());
        Self::new((directory, None), &place, count, payers)
    }

    /// The same in a PostgreSQL of its own, as it comes: every commit is synced.
    pub fn in_database(count: u32, payers: u32) -> Result<Self> {
        let (directory, server) =
            (directory()?, Server::start(&own_name("postgres-"), here(), "")?);
        server.create(DATABASE)?;
        let socket = server.socket().display();
        let address = format!("postgres://{USER}:{PASSWORD}@localhost/{DATABASE}?host={socket}");
        let (address, edge, seed) = (address.parse()?, "bench".into(), "bench".into());
        let fleet = Some(Fleet { address, edge, hold: HOLD, seed });
        let place = Place { directory: directory.path().to_owned(), fleet };
        Self::new((directory, Some(server)), &place, count, payers)
    }

    fn new(
        (directory, server): (TempDir, Option<Server<'static>>),
        place: &Place,
        count: u32,
        payers: u32,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut controller = Controller::new(Network::Regtest, vec![]);
        let tip = Entry::Block { height: HEIGHT, hash: BlockHash::all_zeros() };
        let store = runtime.block_on(async {
            let mut store = Store::open(place, StoreRole::Provider, Network::Regtest).await?;
            store.load::<ProviderEvent>().await?;
            store.commit::<ProviderEvent>(std::slice::from_ref(&tip), None).await?;
            anyhow::Ok(store)
        })?;
        controller.replay(&tip)?;
        let secp = Secp256k1::new();
        let (stations, paying, tidy_due) = (Vec::new(), Vec::new(), Instant::now());
        let mut ledger = Self {
            controller,
            store,
            runtime,
            directory,
            server,
            secp,
            stations,
            payers: paying,
            sum: 0,
            used: 0,
            tidy_due,
        };
        let apart = count.checked_div(payers).unwrap_or(u32::MAX).max(1);
        for first in (0..count).step_by(WRITTEN_AT_ONCE.try_into()?) {
            go_on()?;
            let some = accounts(first..count.min(first + WRITTEN_AT_ONCE), HEIGHT)?;
            ledger.add(&some)?;
            let pays = (first..).zip(some).filter(|(number, _)| number.is_multiple_of(apart));
            ledger.payers.extend(pays.map(|(_, account)| account));
        }
        ledger.payers.truncate(payers.try_into()?);
        while ledger.tidy()? < TIDY_INTERVAL_IDLE {
            go_on()?;
        }
        if payers > 0 {
            // Until only payments are left to be folded, as where it has run for a while.
            ledger.pay(BEFOREHAND)?;
        }
        Ok(ledger)
    }

    /// Whether the database is on the file system on which files are measured.
    pub fn is_beside_files(&self) -> Result<bool> {
        let device = |path: &Path| anyhow::Ok(fs::metadata(path)?.dev());
        let own = device(self.directory.path())?;
        self.server.as_ref().map_or(Ok(true), |server| Ok(device(server.socket())? == own))
    }

    fn add(&mut self, accounts: &[Account]) -> Result<()> {
        let mut entries = Vec::new();
        for account in accounts {
            entries.extend(account.journal(&self.secp, HEIGHT, 0)?);
            self.stations.push(account.station);
        }
        self.runtime.block_on(self.store.commit(&entries, None))?;
        Ok(entries.iter().try_for_each(|entry| self.controller.replay(entry))?)
    }

    fn tidy(&mut self) -> Result<Duration> {
        let forgotten = |id: &ChannelId| self.controller.is_forgotten(id);
        Ok(self.runtime.block_on(self.store.tidy::<ProviderEvent>(forgotten))?)
    }

    /// Payments on each channel in turn, none of which was made before.
    pub fn sign(&mut self, count: usize) -> Result<Vec<Signed>> {
        go_on()?;
        let rounds = u64::try_from(count.div_ceil(self.payers.len()))?;
        let mut signed = Vec::with_capacity(count);
        for sum in self.sum + 1..=self.sum + rounds {
            for payer in &self.payers {
                let payment = payer.pay(&self.secp, sum)?;
                let message = payer.message(sum)?;
                let (channel, key) = (payer.channel, payer.params.subscriber.point());
                let key = key.context("a key that is a point")?;
                let check = self.controller.payment_check(&channel, payment.paid);
                let check = check.context("a channel that takes no payment")?;
                signed.push(Signed { channel, payment, check, message, key });
            }
        }
        self.sum += rounds;
        signed.truncate(count);
        Ok(signed)
    }

    /// Payments a second, durable, with the folding that is due meanwhile.
    pub fn pay(&mut self, count: usize) -> Result<f64> {
        let signed = self.sign(count)?;
        self.pay_signed(&signed)
    }

    /// The same, of payments that are signed already.
    pub fn pay_signed(&mut self, signed: &[Signed]) -> Result<f64> {
        let count = signed.len();
        let started = Instant::now();
        let answered = self.take(signed)?;
        let took = started.elapsed().as_secs_f64();
        // Who has no answer sends nothing more: a thread that is held up for long comes with sums that others
        // of the same channel were greater than.
        let overtaken = count.saturating_sub(answered);
        ensure!(overtaken <= count / OVERTAKEN, "{answered} of {count} payments were acknowledged");
        Ok(rate(answered, took))
    }

    fn take(&mut self, signed: &[Signed]) -> Result<usize> {
        let next = AtomicUsize::new(0);
        let (verified, batches) = mpsc::channel::<Vec<(&Signed, VerifiedPayment)>>();
        let secp = &self.secp.clone();
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism()?.get() {
                let (verified, next) = (verified.clone(), &next);
                scope.spawn(move || {
                    while let Some(some) = part(signed, next) {
                        let proven = some.iter().filter_map(|signed| {
                            let PaymentRequest { paid, signature } = &signed.payment;
                            Some((signed, signed.check.verify(secp, *paid, signature)?))
                        });
                        if verified.send(proven.collect()).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(verified);
            let mut answered = 0;
            while let Ok(first) = batches.recv() {
                let mut batch = first;
                while batch.len() < BATCH
                    && let Ok(more) = batches.try_recv()
                {
                    batch.extend(more);
                }
                answered += self.settle(batch)?;
                if self.tidy_due <= Instant::now() {
                    self.tidy_due = self.tidy().map(|pause| Instant::now() + pause)?;
                }
            }
            Ok(answered)
        })
    }

    fn settle(&mut self, batch: Vec<(&Signed, VerifiedPayment)>) -> Result<usize> {
        let mut out: Batch<ProviderEvent, Action> = Batch::default();
        for (n, (signed, proof)) in (0u64..).zip(batch) {
            let (request, channel) = (RequestId(n), signed.channel);
            let (payment, verified) = (signed.payment.clone(), Some(proof));
            let input = Input::Pay { request, channel, payment, verified, station: None };
            self.controller.handle(input, &mut out);
        }
        let actions = self.commit(out)?;
        Ok(actions.iter().filter(|action| matches!(action, Action::Reply(_, Ok(_)))).count())
    }

    fn commit(&mut self, out: Batch<ProviderEvent, Action>) -> Result<Vec<Action>> {
        let durable = self.runtime.block_on(self.store.commit(out.entries(), None))?;
        Ok(out.release(&durable))
    }

    /// Says of measures that were missed where the time goes.
    pub fn explain(&mut self, measures: &mut [Measure], count: usize) -> Result<()> {
        if !profile::any_missed(measures) {
            return Ok(());
        }
        let signed = self.sign(count)?;
        profile::explain_all(measures, || self.pay_signed(&signed).map(drop));
        Ok(())
    }

    /// Verifications a second, and nothing else.
    pub fn verify(&mut self, count: usize) -> Result<f64> {
        let signed = &self.sign(count)?;
        let (next, secp) = (&AtomicUsize::new(0), &self.secp);
        let started = Instant::now();
        let right = thread::scope(|scope| {
            let threads = thread::available_parallelism()?.get();
            let threads: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(move || {
                        let right = |signed: &&Signed| {
                            let signature: &Signature = &signed.payment.signature;
                            secp.verify_ecdsa(&signed.message, signature, &signed.key).is_ok()
                        };
                        let mut count = 0;
                        while let Some(some) = part(signed, next) {
                            count += some.iter().filter(right).count();
                        }
                        count
                    })
                })
                .collect();
            let counts: std::result::Result<Vec<_>, _> =
                threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            anyhow::Ok(counts.map_err(|_| anyhow!("a thread died"))?.into_iter().sum::<usize>())
        })?;
        let took = started.elapsed().as_secs_f64();
        ensure!(right == count, "{right} of {count} signatures were right");
        Ok(rate(count, took))
    }

    /// Milliseconds until counters of all stations, each of which has grown, are taken in.
    pub fn read_usage(&mut self) -> Result<f64> {
        go_on()?;
        self.used += 1_500;
        let up =
            Counts { octets: Octets(self.used), frames: self.used / 1_500, ..Counts::default() };
        let usage = Usage { up, ..Usage::default() };
        let readings = self.stations.iter().map(|station| (*station, usage)).collect();
        let mut out = Batch::default();
        let started = Instant::now();
        self.controller.handle(Input::Usage(readings), &mut out);
        let took = started.elapsed();
        ensure!(out.entries().is_empty(), "counters were written before it was time");
        Ok(took.as_secs_f64() * 1e3)
    }

    /// Milliseconds until what was read last of every station is durable.
    pub fn write_usage(&mut self) -> Result<f64> {
        self.read_usage()?;
        let mut out = Batch::default();
        let started = Instant::now();
        self.controller.handle(Input::Checkpoint, &mut out);
        let written = out.entries().len();
        self.commit(out)?;
        let took = started.elapsed();
        ensure!(written == self.stations.len(), "{written} stations were written down");
        Ok(took.as_secs_f64() * 1e3)
    }
}

fn part<'a>(signed: &'a [Signed], next: &AtomicUsize) -> Option<&'a [Signed]> {
    let from = next.fetch_add(VERIFIED_AT_ONCE, Ordering::Relaxed);
    let to = (from + VERIFIED_AT_ONCE).min(signed.len());
    signed.get(from..to).filter(|some| !some.is_empty())
}

/// So many in so many seconds, a second.
pub fn rate(count: usize, seconds: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds
}
