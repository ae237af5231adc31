//! The core's payment step without HTTP: verified on all cores, decided, durable. Beside bare
//! verifications on all cores; and with more and more accounts.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bitcoin::{
    Network,
    hashes::Hash as _,
    secp256k1::{All, Message, PublicKey, Secp256k1, ecdsa::Signature},
};
use bitmesh_core::{
    channel::{Batch, ChannelId, Entry, PaymentCheck, ProviderEvent, VerifiedPayment},
    controller::{Action, Controller, Input, RequestId},
    wire::PaymentRequest,
};
use bitmesh_tests::sweep::own_name;
use bitmesh_user::{
    bench::{Better, Contender, Group, Measure, Target},
    store::{Place, Store, StoreRole},
};
use tempfile::TempDir;

use super::{
    Volume,
    fixture::{Account, accounts},
};
use crate::plan::go_on;

/// Least that the step does of bare verifications.
const STEP_SHARE: f64 = 0.7;
/// Most that a payment may cost with the most accounts, of what it costs with few.
const GROWTH: f64 = 1.5;
/// Few accounts.
const FEW: u32 = 1_000;
/// Channels that are paid on in turn.
const PAYERS: usize = 1_000;
/// Payments that are stored in one transaction at most, and of those that a thread verifies at once.
const BATCH: usize = 1_024;
const VERIFIED_AT_ONCE: usize = 32;
const HEIGHT: u32 = 200;
/// Channels that are written in one transaction.
const WRITTEN_AT_ONCE: usize = 1_000;

/// A payment with what it takes to verify it.
struct Signed {
    channel: ChannelId,
    payment: PaymentRequest,
    check: PaymentCheck,
    message: Message,
    key: PublicKey,
}

/// A provider's state, in memory and on the disk.
struct Ledger {
    controller: Controller,
    store: Store,
    runtime: tokio::runtime::Runtime,
    _directory: TempDir,
    secp: Secp256k1<All>,
    payers: Vec<Account>,
    sum: u64,
}

impl Ledger {
    fn new(count: u32) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let directory =
            tempfile::Builder::new().prefix(&own_name("ledger-")).tempdir_in("target")?;
        let (secp, mut accounts) = (Secp256k1::new(), accounts(count, HEIGHT)?);
        let place = Place::file(directory.path());
        let mut controller = Controller::new(Network::Regtest, vec![]);
        let store = runtime.block_on(async {
            let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await?;
            store.load::<ProviderEvent>().await?;
            let hash = bitcoin::BlockHash::all_zeros();
            let tip = [Entry::Block { height: HEIGHT, hash }];
            store.commit(&tip, None).await?;
            tip.iter().try_for_each(|entry| controller.replay(entry))?;
            for some in accounts.chunks(WRITTEN_AT_ONCE) {
                let mut entries = Vec::new();
                for account in some {
                    entries.extend(account.journal(&secp, HEIGHT, 0)?);
                }
                store.commit(&entries, None).await?;
                entries.iter().try_for_each(|entry| controller.replay(entry))?;
            }
            anyhow::Ok(store)
        })?;
        // Those that pay are spread over all.
        let apart = (accounts.len() / PAYERS).max(1);
        let mut index = 0;
        accounts.retain(|_| {
            index += 1;
            index % apart == 0
        });
        accounts.truncate(PAYERS);
        let payers = accounts;
        Ok(Self { controller, store, runtime, _directory: directory, secp, payers, sum: 0 })
    }

    /// Payments on each channel in turn, none of which was made before.
    fn sign(&mut self, count: usize) -> Result<Vec<Signed>> {
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

    /// Payments a second, durable.
    fn pay(&mut self, count: usize) -> Result<f64> {
        let signed = self.sign(count)?;
        let started = Instant::now();
        let answered = self.take(&signed)?;
        let took = started.elapsed().as_secs_f64();
        ensure!(answered == count, "{answered} of {count} payments were acknowledged");
        Ok(rate(count, took))
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
        let durable = self.runtime.block_on(self.store.commit(out.entries(), None))?;
        let actions = out.release(&durable);
        Ok(actions.iter().filter(|action| matches!(action, Action::Reply(_, Ok(_)))).count())
    }

    /// Verifications a second, and nothing else.
    fn verify(&mut self, count: usize) -> Result<f64> {
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
}

fn part<'a>(signed: &'a [Signed], next: &AtomicUsize) -> Option<&'a [Signed]> {
    let from = next.fetch_add(VERIFIED_AT_ONCE, Ordering::Relaxed);
    let to = (from + VERIFIED_AT_ONCE).min(signed.len());
    signed.get(from..to).filter(|some| !some.is_empty())
}

fn rate(count: usize, seconds: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds
}

/// The step beside bare verifications, and with many accounts beside few.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let few = std::cell::RefCell::new(Ledger::new(FEW)?);
    let count = volume.step_payments;
    // Contenders of other engines go here, beside this one.
    let contenders = vec![
        Contender::new("durable, SQLite", || few.borrow_mut().pay(count)),
        Contender::new("bare verifications", || few.borrow_mut().verify(count)),
    ];
    let unit = ("payments/s", Better::Higher);
    let step = Group::race("the payment step", unit, volume.rounds, contenders, before)?;
    let target = Some(Target::RatioAtLeast(STEP_SHARE));
    let measures = vec![step.compare("durable, SQLite", "bare verifications", target)];

    let many = std::cell::RefCell::new(Ledger::new(volume.accounts)?);
    let micros = |ledger: &std::cell::RefCell<Ledger>| Ok(1e6 / ledger.borrow_mut().pay(count)?);
    let most = format!("{} accounts", volume.accounts);
    let contenders = vec![
        Contender::new(most.clone(), || micros(&many)),
        Contender::new("1000 accounts", || micros(&few)),
    ];
    let unit = ("us", Better::Lower);
    let growth = Group::race("a durable payment", unit, volume.rounds, contenders, before)?;
    let target = Some(Target::RatioAtMost(GROWTH));
    let grown = vec![growth.compare(&most, "1000 accounts", target)];
    Ok(vec![(step, measures), (growth, grown)])
}
