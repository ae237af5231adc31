//! A graceful end under load: each payment that was sent before it is answered. As root.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::Amount;
use bitmesh_core::wire::{ErrorBody, PaymentReply};
use bitmesh_tests::{
    daemon::eventually,
    faults::Point,
    ledgers::Ledger,
    payers::{Payer, Stand},
    till::Till,
    topology::{Topology, UPLINK},
};
use bitmesh_user::http;
use futures_util::future::try_join_all;
use rustix::process::Signal;

/// Stations that pay, addresses of each, and connections from each address: a few less than these may have,
/// since an end is noticed late. The edge keeps eight addresses free, and needs some for others.
const STANDS: u8 = 6;
const ADDRESSES: u8 = 2;
const CONNECTIONS: u8 = 14;
/// Payments that have to be under way when the end comes.
const IN_FLIGHT: u64 = 150;
/// What a sync takes, so that they are.
const SYNC: Duration = Duration::from_millis(500);
/// Time that the daemon has to end.
const ENDED: Duration = Duration::from_secs(10);

/// What is counted over all connections.
#[derive(Debug, Default)]
struct Counts {
    under_way: AtomicU64,
    told: AtomicBool,
    accepted: AtomicU64,
    late: AtomicU64,
    refused: AtomicU64,
}

/// A connection of its own from one of a station's addresses.
struct Line<'a> {
    payer: &'a Payer<'a>,
    client: reqwest::Client,
    url: String,
}

impl<'a> Line<'a> {
    fn new(payer: &'a Payer<'a>, from: IpAddr) -> Result<Self> {
        let client = http::plain().local_address(from).timeout(ENDED).build()?;
        let url = format!("{}/v1/channels/{}/payments", payer.url(), payer.channel());
        Ok(Self { payer, client, url })
    }

    /// Pays a sum: the status of the answer, and the sum that is known or the error's code.
    async fn pay(&self, paid: Amount) -> Result<(u16, Result<Amount, String>)> {
        let payment = self.payer.payment(paid)?;
        let answer = self.client.post(&self.url).json(&payment).send().await?;
        let status = answer.status();
        Ok(if status.is_success() {
            (status.as_u16(), Ok(answer.json::<PaymentReply>().await?.paid))
        } else {
            (status.as_u16(), Err(answer.json::<ErrorBody>().await?.error))
        })
    }

    /// Pays a satoshi more each time, until the daemon is gone. The largest sum that was acknowledged.
    async fn run(self, next: &AtomicU64, counts: &Counts) -> Result<Amount> {
        let mut best = Amount::ZERO;
        loop {
            let paid = Amount::from_sat(next.fetch_add(1, Ordering::SeqCst));
            let in_time = !counts.told.load(Ordering::SeqCst);
            counts.under_way.fetch_add(1, Ordering::SeqCst);
            let answer = self.pay(paid).await;
            counts.under_way.fetch_sub(1, Ordering::SeqCst);
            let count = match answer {
                Ok((200, Ok(known))) => {
                    ensure!(known >= paid, "{paid} was paid, {known} is known");
                    best = best.max(known);
                    &counts.accepted
                }
                // The disk took longer than it was made to.
                Ok((503, Err(code))) if in_time && code == "slow-store" => continue,
                // Another connection's larger sum was there first: this one is part of it.
                Ok((409, Err(code))) if code == "stale-payment" => &counts.late,
                Ok((503, Err(code))) if counts.told.load(Ordering::SeqCst) => {
                    ensure!(code == "stopping", "{code}");
                    &counts.refused
                }
                Ok(other) => bail!("{other:?}"),
                Err(error) if in_time => {
                    return Err(error.context(format!("{paid} was sent in time: no answer")));
                }
                Err(_) => return Ok(best),
            };
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Pays over all connections of a stand until the daemon is gone.
fn run(stand: &Stand, payer: &Payer<'_>, counts: &Counts) -> Result<Amount> {
    let addresses = (0..ADDRESSES).map(|number| stand.address(number));
    let addresses = addresses.flat_map(|from| (0..CONNECTIONS).map(move |_| from));
    stand.namespace.block_on(async || {
        let next = AtomicU64::new(1);
        let lines: Vec<_> = addresses.map(|from| Line::new(payer, from)).collect::<Result<_>>()?;
        let best = try_join_all(lines.into_iter().map(|line| line.run(&next, counts))).await?;
        best.into_iter().max().context("connections")
    })
}

#[test]
fn p13_at_a_graceful_end_every_payment_that_is_under_way_is_answered() -> Result<()> {
    let topology = Topology::edge()?;
    let stands: Vec<_> =
        (0..STANDS).map(|number| Stand::new(&topology, number)).collect::<Result<_>>()?;
    for stand in &stands {
        for number in 1..ADDRESSES {
            stand.namespace.address(UPLINK, &stand.address(number).to_string(), 24)?;
        }
    }
    let mut till = Till::open(&topology, &stands)?;
    till.faults.delay(Point::LogSync, SYNC);
    let counts = Counts::default();
    let Till { world, payers, .. } = &mut till;
    let (took, best) = thread::scope(|scope| -> Result<_> {
        let pairs = stands.iter().zip(payers.iter());
        let threads: Vec<_> =
            pairs.map(|(stand, payer)| scope.spawn(|| run(stand, payer, &counts))).collect();
        let ready = eventually("hundreds of payments under way", Duration::from_secs(20), || {
            let accepted = counts.accepted.load(Ordering::SeqCst);
            let under_way = counts.under_way.load(Ordering::SeqCst);
            Ok((accepted > 0 && under_way >= IN_FLIGHT).then_some(under_way))
        });
        counts.told.store(true, Ordering::SeqCst);
        let told = Instant::now();
        world.provider.signal(Signal::TERM)?;
        let ended = world.provider.wait_for_end(ENDED);
        let took = told.elapsed();
        if ended.is_err() {
            world.provider.kill();
        }
        let best: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a payer's thread died"))?)
            .collect::<Result<_>>()?;
        println!("{} payments were under way", ready?);
        ensure!(ended?.success(), "it failed");
        Ok((took, best))
    })
    .with_context(|| world.provider.log())?;
    println!("{took:?}, {counts:?}");
    ensure!(counts.refused.load(Ordering::SeqCst) > 0, "nobody was told that it ends");
    let ledger = Ledger::of(world.provider.directory())?;
    for (payer, best) in payers.iter().zip(best) {
        let paid = ledger.paid(&payer.channel())?;
        ensure!(best > Amount::ZERO && best <= paid, "{best} was acknowledged, {paid} is stored");
        ensure!(paid <= payer.signed(), "{paid} is stored, {} was signed", payer.signed());
    }
    Ok(())
}
